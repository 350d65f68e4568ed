//! The system's limits for this process.

use std::{fs, num::NonZeroUsize, os::unix::fs::MetadataExt as _, path::Path};

use rustix::process::{Resource, Rlimit, getrlimit, getuid, setrlimit};

use crate::{
    config::Settings,
    memory::{Cap, at_least_one, group_folders, number},
};

/// Descriptors that a child takes: three pipes, its supervisor's socket and its process.
const OF_A_CHILD: u64 = 5;
/// Descriptors for the bridge's own files and logs, and for calls that work on the disk.
const OWN_FILES: u64 = 32;
/// Minimum number of processes and threads of a child: its supervisor and itself.
const PIDS_OF_A_CHILD: u64 = 2;
/// Processes and threads for short tasks: children of one call, installations, threads for the disk.
const OWN_PIDS: u64 = 16;

/// Number of threads that serve requests: a quarter of the processors is left to the children, which
/// do the actual work. More threads than free processors would only compete with each other. `None` if
/// tokio's own variable sets the number.
pub fn worker_threads() -> Option<usize> {
    let given = std::env::var_os("TOKIO_WORKER_THREADS").is_some();
    let processors = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    (!given).then_some(processors - processors / 4)
}

/// Descriptors of the bridge itself: its files, its sockets, and the temporary ones of a request.
const OWN: usize = 64;
/// Minimum number of concurrent downloads and uploads, however few descriptors are left for their
/// files.
const LEAST_FILES: usize = 8;
/// Maximum number of connections; more only use memory.
const MOST: usize = 16 * 1024;

/// Determines the number of connections, or lowers the configured one: descriptors are reserved for
/// the bridge's own files, starts of processes and downloads, whatever clients do. Returns a warning,
/// if there is one.
pub fn fit_connections(settings: &mut Settings) -> Option<String> {
    // `raise_open_files` raises the limit to this value.
    let files = getrlimit(Resource::Nofile).maximum;
    let files = files.map_or(usize::MAX, |files| {
        usize::try_from(files).unwrap_or(usize::MAX)
    });
    let (limits, stateful) = (&settings.limits, &settings.stateful);
    let children = stateful.max_total_processes.get() + settings.pool.max;
    let children = children + limits.max_concurrent.get() + limits.max_starts.get();
    let room = room(files, children);
    let set = settings.listen.max_connections;
    settings.listen.max_connections = match set {
        0 => (room - room / 4).min(MOST),
        set => set.min(room),
    };
    let connections = settings.listen.max_connections;
    settings.listen.max_file_requests = (room - connections).max(LEAST_FILES);
    (set > room).then(|| {
        format!(
            "MCPO_MAX_CONNECTIONS is {set}, but only {room} of {files} file descriptors are left \
             for connections: using {room}. Raise the limit on open files (ulimit -n)."
        )
    })
}

/// The descriptors that remain of `files` after the bridge's own and its children's.
fn room(files: usize, children: usize) -> usize {
    let of_a_child = usize::try_from(OF_A_CHILD).unwrap_or(usize::MAX);
    let reserve = children.saturating_mul(of_a_child).saturating_add(OWN);
    // As in `for_files`, at least a quarter is for connections.
    files - reserve.min(files - files / 4)
}

/// Raises the limit on open files as far as possible: each child takes four, each connection one, and
/// the usual 1024 would stop a busy bridge. Returns the limit now in force; `None` for none.
///
/// Call this after [`crate::child::Children`] has recorded the limit that its children get.
pub fn raise_open_files() -> Option<u64> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    // On failure the old limit stays in force.
    let _ = setrlimit(Resource::Nofile, raised);
    getrlimit(Resource::Nofile).current
}

/// The number of stateful children that the system's limits allow, if it is less than `most`. Reads a
/// few small files.
pub fn stateful_cap(most: NonZeroUsize, open_files: Option<u64>) -> Option<Cap> {
    let pids = [
        group_pids(Path::new("/")).map(|free| ("the container's (cgroup's) limit on pids", free)),
        user_pids().map(|free| ("the user's limit on processes (RLIMIT_NPROC)", free)),
    ];
    let by_pids = pids.into_iter().flatten();
    let by_pids = by_pids.map(|(what, free)| (what, for_pids(free)));
    let files = "the limit on open files (RLIMIT_NOFILE)";
    let by_files = open_files.map(|limit| (files, for_files(limit)));
    tightest(most, by_pids.chain(by_files))
}

fn tightest(most: NonZeroUsize, rooms: impl Iterator<Item = (&'static str, u64)>) -> Option<Cap> {
    let (what, room) = rooms.min_by_key(|(_, room)| *room)?;
    let max = at_least_one(room);
    (max < most).then(|| Cap {
        max,
        warning: format!(
            "MCPO_STATEFUL_MAX_TOTAL_PROCESSES is {most}, but {what} allows only about {max} \
             processes: no more are started. Raise that limit, or set \
             MCPO_STATEFUL_MAX_TOTAL_PROCESSES={max}."
        ),
    })
}

/// The number of children for this limit on open files. A quarter of the descriptors is for
/// connections.
fn for_files(limit: u64) -> u64 {
    (limit - limit / 4).saturating_sub(OWN_FILES) / OF_A_CHILD
}

fn for_pids(free: u64) -> u64 {
    free.saturating_sub(OWN_PIDS) / PIDS_OF_A_CHILD
}

/// The number of processes and threads that the cgroups of this process still allow; `None`: no limit
/// is known.
fn group_pids(root: &Path) -> Option<u64> {
    let folders = group_folders(root, "pids").into_iter();
    let free = folders.filter_map(|folder| {
        let used = number(&folder.join("pids.current")).unwrap_or(0);
        Some(number(&folder.join("pids.max"))?.saturating_sub(used))
    });
    free.min()
}

/// The number that the user's limit still allows; the limit does not apply to root.
fn user_pids() -> Option<u64> {
    let user = getuid();
    let limit = getrlimit(Resource::Nproc).current?;
    if user.is_root() {
        return None;
    }
    let processes = fs::read_dir("/proc").ok()?.filter_map(Result::ok);
    let own = processes.filter(|process| {
        let name = process.file_name();
        let is_process = name.as_encoded_bytes().iter().all(u8::is_ascii_digit);
        let owner = process.metadata().map(|data| data.uid());
        is_process && owner.is_ok_and(|owner| owner == user.as_raw())
    });
    let threads = own.map(|process| {
        let tasks = fs::read_dir(process.path().join("task"));
        tasks.map_or(1, |tasks| tasks.count() as u64)
    });
    Some(limit.saturating_sub(threads.sum()))
}

/// The unused descriptors, and the limit; `None` if there is no limit.
pub fn open_files_left() -> Option<(u64, u64)> {
    let most = getrlimit(Resource::Nofile).current?;
    // Counting them takes one itself.
    let used = fs::read_dir("/proc/self/fd").map_or(most, |open| open.count() as u64);
    Some((most.saturating_sub(used), most))
}

/// The number of processes and threads that this process's cgroups still allow; `None` if none of them
/// has a limit.
pub fn processes_left() -> Option<u64> {
    group_pids(Path::new("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cap(most: usize, open_files: u64) -> Option<usize> {
        let most = NonZeroUsize::new(most).unwrap();
        let rooms = [("RLIMIT_NOFILE", for_files(open_files)), ("pids", 1000)];
        tightest(most, rooms.into_iter()).map(|cap| cap.max.get())
    }

    #[test]
    fn few_descriptors_lower_the_number_of_processes_and_usual_ones_do_not() {
        assert_eq!(cap(100, 1024), None);
        assert_eq!(cap(100, 4096), None);
        assert_eq!(cap(100, 128), Some(12));
        assert_eq!(cap(100, 10), Some(1));
        let most = NonZeroUsize::new(100).unwrap();
        let rooms = [("a limit", for_files(256)), ("another", 99)].into_iter();
        let warning = tightest(most, rooms).unwrap().warning;
        assert!(
            warning.contains("but a limit allows only about 32"),
            "{warning}"
        );
    }

    #[test]
    fn the_tightest_group_counts() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        assert_eq!(group_pids(root.path()), None);
        write("proc/self/cgroup", "0::/a/b\n");
        write("sys/fs/cgroup/a/b/pids.max", "max\n");
        assert_eq!(group_pids(root.path()), None);
        write("sys/fs/cgroup/a/pids.max", "60\n");
        write("sys/fs/cgroup/a/pids.current", "12\n");
        assert_eq!(group_pids(root.path()), Some(48));
        assert_eq!(for_pids(48), 16);
        write("proc/self/cgroup", "3:cpu:/x\n2:pids:/y\n");
        assert_eq!(group_pids(root.path()), None);
        write("sys/fs/cgroup/pids/pids.max", "20\n");
        assert_eq!(group_pids(root.path()), Some(20));
    }

    #[test]
    fn connections_leave_descriptors_for_children_and_the_bridge_itself() {
        // 100 chats, 8 warm processes, 8 calls and 2 starts.
        assert_eq!(room(2000, 118), 2000 - 5 * 118 - 64);
        // With few descriptors, a quarter.
        assert_eq!((room(128, 118), room(64, 118), room(0, 1)), (32, 16, 0));
    }
}
