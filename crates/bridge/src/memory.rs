//! The memory available to the bridge and its children, and how many children fit into it.

use std::{
    fmt, fs,
    num::NonZeroUsize,
    path::{Component, Path, PathBuf},
};

/// Part of the memory that children may fill: the bridge, the page cache and one-call children need the
/// rest.
const SHARE_PERCENT: u64 = 80;

/// The memory limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryLimit {
    /// Bytes; `u64::MAX` if unknown.
    pub bytes: u64,
    /// What sets the limit.
    pub source: MemorySource,
}

/// What sets the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemorySource {
    /// A cgroup, such as a container's memory limit.
    Cgroup,
    /// The machine's memory.
    Machine,
    /// The system does not report one.
    Unknown,
}

impl fmt::Display for MemorySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cgroup => "the container's (cgroup's) memory limit",
            Self::Machine => "the machine's memory",
            Self::Unknown => "an unknown amount of memory",
        })
    }
}

/// The smallest memory limit that applies to this process. Reads a few small files.
pub fn memory_limit() -> MemoryLimit {
    memory_limit_below(Path::new("/"))
}

fn memory_limit_below(root: &Path) -> MemoryLimit {
    let machine = read(&root.join("proc/meminfo")).and_then(|text| kibibytes(&text, "MemTotal:"));
    let cgroup = limit_files(root).filter_map(|file| number(&file)).min();
    let (bytes, source) = match (cgroup, machine) {
        // "No limit" is a huge number in version 1 of cgroups.
        (Some(bytes), machine) if machine.is_none_or(|total| bytes < total) => {
            (bytes, MemorySource::Cgroup)
        }
        (_, Some(bytes)) => (bytes, MemorySource::Machine),
        (_, None) => (u64::MAX, MemorySource::Unknown),
    };
    MemoryLimit { bytes, source }
}

/// The bytes that new processes may still take: the least of the machine's memory and that of each
/// cgroup that limits this process; memory that the kernel can reclaim counts as free. `u64::MAX` if
/// unknown. Reads a few small files.
pub fn available_memory() -> u64 {
    available_memory_below(Path::new("/"))
}

fn available_memory_below(root: &Path) -> u64 {
    let machine =
        read(&root.join("proc/meminfo")).and_then(|text| kibibytes(&text, "MemAvailable:"));
    let left = limit_files(root).filter_map(|file| left_in_group(&file));
    left.chain(machine).min().unwrap_or(u64::MAX)
}

/// The free memory of the cgroup with this limit.
fn left_in_group(limit: &Path) -> Option<u64> {
    let most = number(limit)?;
    let (used, cache) = match limit.file_name()?.to_str()? {
        "memory.max" => ("memory.current", "inactive_file "),
        _ => ("memory.usage_in_bytes", "total_inactive_file "),
    };
    let used = number(&limit.with_file_name(used))?;
    let stat = read(&limit.with_file_name("memory.stat")).unwrap_or_default();
    let mut lines = stat.lines();
    let cached = lines.find_map(|line| line.strip_prefix(cache)?.trim().parse::<u64>().ok());
    Some(most.saturating_sub(used.saturating_sub(cached.unwrap_or(0))))
}

fn read(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok()
}

/// A line of `/proc/meminfo` or of a process's `status`, in bytes.
pub fn kibibytes(meminfo: &str, name: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|l| l.strip_prefix(name))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// The folders of this process's cgroups that may have a limit of this controller, of both versions:
/// each cgroup and all its ancestors, because all their limits apply. In a container the path may be one
/// of the host, of which only the top is mounted; then the top is this process's cgroup.
pub fn group_folders(root: &Path, controller: &str) -> Vec<PathBuf> {
    let groups = read(&root.join("proc/self/cgroup")).unwrap_or_default();
    let folders = groups.lines().filter_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, group) = (parts.next()?, parts.next()?);
        let mount = root.join("sys/fs/cgroup").join(match controllers {
            "" => "",
            several if several.split(',').any(|one| one == controller) => controller,
            _ => return None,
        });
        let normal = |part: &Component<'_>| matches!(part, Component::Normal(_));
        let inside: PathBuf = Path::new(group).components().filter(normal).collect();
        let folders = inside.ancestors().map(|group| mount.join(group));
        Some(folders.collect::<Vec<_>>())
    });
    folders.flatten().collect()
}

/// The files with the memory limits of this process's cgroups.
fn limit_files(root: &Path) -> impl Iterator<Item = PathBuf> {
    let folders = group_folders(root, "memory").into_iter();
    let files =
        |folder: PathBuf| ["memory.max", "memory.limit_in_bytes"].map(|file| folder.join(file));
    folders.flat_map(files)
}

/// The number in a file.
pub fn number(path: &Path) -> Option<u64> {
    read(path)?.trim().parse().ok()
}

/// A smaller number of children than the operator asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cap {
    /// The number that fits.
    pub max: NonZeroUsize,
    /// For the operator: both numbers, the reason, and the remedy.
    pub warning: String,
}

/// Compares the memory of `max_total` children of `child_bytes` each with 80 % of the limit. `None` if
/// they fit, or if `child_bytes` is 0 (nothing was measured).
pub fn stateful_cap(max_total: NonZeroUsize, child_bytes: u64, limit: MemoryLimit) -> Option<Cap> {
    let room = limit.bytes / 100 * SHARE_PERCENT;
    let max = at_least_one(room.checked_div(child_bytes)?);
    if max >= max_total {
        return None;
    }
    let warning = format!(
        "MCPO_STATEFUL_MAX_TOTAL_PROCESSES is {max_total}, but a server process needs {child} MiB \
         and only {max} fit into {SHARE_PERCENT} % of {source} ({bytes} MiB): using {max}. Set \
         MCPO_STATEFUL_MAX_TOTAL_PROCESSES={max} or give the bridge more memory.",
        child = mebibytes(child_bytes),
        source = limit.source,
        bytes = mebibytes(limit.bytes),
    );
    Some(Cap { max, warning })
}

/// The number, but at least one.
pub fn at_least_one(count: u64) -> NonZeroUsize {
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    NonZeroUsize::new(count).unwrap_or(NonZeroUsize::MIN)
}

fn mebibytes(bytes: u64) -> u64 {
    bytes.div_ceil(1024 * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1024 * 1024 * 1024;
    const MACHINE: (&str, &str) = (
        "proc/meminfo",
        "MemTotal:       4194304 kB\nMemFree: 1 kB\n",
    );

    fn system(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    fn limit_of(files: &[(&str, &str)]) -> MemoryLimit {
        memory_limit_below(system(files).path())
    }

    fn available_in(files: &[(&str, &str)]) -> u64 {
        available_memory_below(system(files).path())
    }

    #[test]
    fn what_is_free_is_what_the_tightest_of_all_leaves() {
        let machine = ("proc/meminfo", "MemTotal: 9 kB\nMemAvailable: 2097152 kB\n");
        assert_eq!(available_in(&[]), u64::MAX);
        assert_eq!(available_in(&[machine]), 2 * GIB);
        let group = ("proc/self/cgroup", "0::/a\n");
        let files = [
            machine,
            group,
            ("sys/fs/cgroup/memory.max", "max\n"),
            ("sys/fs/cgroup/memory.current", "1\n"),
            ("sys/fs/cgroup/a/memory.max", "1073741824\n"),
            ("sys/fs/cgroup/a/memory.current", "1000000000\n"),
            (
                "sys/fs/cgroup/a/memory.stat",
                "anon 5\ninactive_file 400000000\n",
            ),
        ];
        assert_eq!(available_in(&files), GIB - 600_000_000);
    }

    #[test]
    fn version_1_is_read_too() {
        let files = [
            ("proc/self/cgroup", "4:memory:/b\n"),
            ("sys/fs/cgroup/memory/b/memory.limit_in_bytes", "1000\n"),
            ("sys/fs/cgroup/memory/b/memory.usage_in_bytes", "900\n"),
            (
                "sys/fs/cgroup/memory/b/memory.stat",
                "inactive_file 1\ntotal_inactive_file 300\n",
            ),
        ];
        assert_eq!(available_in(&files), 400);
    }

    #[test]
    fn a_group_that_is_over_its_limit_has_nothing_left() {
        let files = [
            ("proc/self/cgroup", "0::/\n"),
            ("sys/fs/cgroup/memory.max", "10\n"),
            ("sys/fs/cgroup/memory.current", "11\n"),
        ];
        assert_eq!(available_in(&files), 0);
    }

    fn expected(bytes: u64, source: MemorySource) -> MemoryLimit {
        MemoryLimit { bytes, source }
    }

    #[test]
    fn without_a_cgroup_it_is_the_machines_memory() {
        assert_eq!(
            limit_of(&[MACHINE]),
            expected(4 * GIB, MemorySource::Machine)
        );
        assert_eq!(limit_of(&[]), expected(u64::MAX, MemorySource::Unknown));
    }

    #[test]
    fn the_tightest_group_on_the_way_up_counts() {
        let limit = limit_of(&[
            MACHINE,
            ("proc/self/cgroup", "0::/a.slice/b.service\n"),
            ("sys/fs/cgroup/a.slice/memory.max", "1073741824\n"),
            ("sys/fs/cgroup/a.slice/b.service/memory.max", "max\n"),
        ]);
        assert_eq!(limit, expected(GIB, MemorySource::Cgroup));
    }

    #[test]
    fn a_containers_own_top_counts_where_the_path_is_the_hosts() {
        let limit = limit_of(&[
            MACHINE,
            (
                "proc/self/cgroup",
                "5:cpu:/x\n4:memory:/docker/0123\n0::/../../x\n",
            ),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "536870912\n"),
        ]);
        assert_eq!(limit, expected(GIB / 2, MemorySource::Cgroup));
    }

    #[test]
    fn version_1_says_no_limit_with_a_huge_number() {
        let limit = limit_of(&[
            MACHINE,
            ("proc/self/cgroup", "4:memory:/\n"),
            (
                "sys/fs/cgroup/memory/memory.limit_in_bytes",
                "9223372036854771712\n",
            ),
        ]);
        assert_eq!(limit, expected(4 * GIB, MemorySource::Machine));
    }

    #[test]
    fn this_machine_tells_its_memory() {
        let limit = memory_limit();
        assert_ne!(limit.source, MemorySource::Unknown);
        assert!(limit.bytes > 64 * 1024 * 1024, "{limit:?}");
    }

    fn cap(max_total: usize, child_bytes: u64, memory: u64) -> Option<Cap> {
        let max_total = NonZeroUsize::new(max_total).unwrap();
        stateful_cap(
            max_total,
            child_bytes,
            expected(memory, MemorySource::Cgroup),
        )
    }

    #[test]
    fn too_many_children_are_capped_and_the_warning_names_both_numbers() {
        let cap = cap(500, 100 * 1024 * 1024, 4 * GIB).unwrap();
        assert_eq!(cap.max.get(), 32);
        for part in [
            "MCPO_STATEFUL_MAX_TOTAL_PROCESSES is 500",
            "only 32 fit",
            "100 MiB",
        ] {
            assert!(cap.warning.contains(part), "{}", cap.warning);
        }
    }

    #[test]
    fn what_fits_is_left_alone_and_one_child_is_always_allowed() {
        assert_eq!(cap(32, 100 * 1024 * 1024, 4 * GIB), None);
        assert_eq!(cap(500, 0, 4 * GIB), None);
        assert_eq!(cap(1, 8 * GIB, 4 * GIB), None);
        assert_eq!(cap(2, 8 * GIB, 4 * GIB).unwrap().max.get(), 1);
    }
}
