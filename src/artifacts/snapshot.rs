//! What lies under `work/`, so that the next look shows what a call created or changed.

use std::{
    collections::{BTreeMap, HashMap},
    ffi::OsStr,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use rustix::{
    fs::{AtFlags, Dir, FileType, Stat, fstat, statat},
    io::Errno,
};

use super::{RelativePath, beneath};

/// Never published, nor anything below: caches and other tools' own business.
const SKIPPED_NAMES: [&str; 2] = ["__pycache__", "node_modules"];
/// Never published: hidden files, and the locks that office programs put beside an open document.
const SKIPPED_PREFIXES: [&str; 2] = [".", "~$"];
/// Never published, in any case: files that are still being written.
const SKIPPED_SUFFIXES: [&str; 3] = [".tmp", ".part", ".crdownload"];

/// How much of a tree is looked at. Beyond that the workspace is over its limits (507).
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Files, folders and everything else.
    pub entries: u64,
    /// Folders within folders.
    pub depth: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            entries: 100_000,
            depth: 64,
        }
    }
}

/// What a workspace takes of the disk, hidden and skipped files included.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Allocated bytes: a sparse file counts by its blocks.
    pub bytes: u64,
    /// Files, folders and everything else.
    pub entries: u64,
}

/// One regular file as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FileState {
    size: u64,
    modified: (i64, i64),
    /// Moves with every change, also where a program sets the other one back.
    changed: (i64, i64),
    identity: Identity,
}

/// Device and inode.
type Identity = (u64, u64);

/// The regular files that may be published, by path, and what the whole tree takes.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    usage: Usage,
    files: BTreeMap<RelativePath, FileState>,
    /// How many names in this tree a file has that has several anywhere.
    names: HashMap<Identity, u64>,
    /// There is more than is looked at.
    over: bool,
}

/// Why no snapshot was taken.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// A limit was passed.
    #[error("the workspace has more than {0} files: delete some of them")]
    TooManyEntries(u64),
    /// A limit was passed.
    #[error("the workspace has folders more than {0} deep: delete them")]
    TooDeep(usize),
    /// `work/` itself cannot be read.
    #[error("the workspace cannot be read: {0}")]
    Io(#[from] io::Error),
}

/// A regular file that is new or differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChangedFile {
    /// Below `work/`.
    pub path: RelativePath,
    /// Bytes.
    pub size: u64,
    /// It was not there before.
    pub created: bool,
}

impl Snapshot {
    /// Looks through `work`, following no links and leaving no filesystem. What vanishes
    /// meanwhile, or cannot be read, is left out.
    pub fn take(work: &Path, limits: &Limits) -> Result<Self, SnapshotError> {
        let top = beneath::open_dir(work)?;
        let mut walk = Walk {
            device: fstat(&top).map_err(io::Error::from)?.st_dev,
            limits,
            found: Self::default(),
        };
        walk.run(top)?;
        Ok(walk.found)
    }

    /// Of a tree that holds more than is looked at. Nothing counts as changed since: what is new in
    /// it is not known.
    pub fn over() -> Self {
        Self {
            over: true,
            ..Self::default()
        }
    }

    /// Whether it is one of those.
    pub fn is_over(&self) -> bool {
        self.over
    }

    /// Adds a file that was put there by no call, so that the next look finds nothing new in it.
    pub fn note(&mut self, work: &Path, path: &RelativePath) -> io::Result<()> {
        let top = beneath::open_dir(work)?;
        let stat = fstat(beneath::open_file(top.as_fd(), path)?)?;
        self.usage.entries += 1;
        self.usage.bytes += allocated(&stat);
        self.files.insert(path.clone(), state(&stat));
        Ok(())
    }

    /// Drops a file from what is known: wherever it lies at the next look, it is new.
    pub fn forget(&mut self, path: &RelativePath) {
        self.files.remove(path);
    }

    /// What the tree takes of the disk.
    pub fn usage(&self) -> Usage {
        self.usage
    }

    /// The publishable files, in order of path: what the model may be told is there.
    pub fn files(&self) -> impl Iterator<Item = &RelativePath> {
        self.files.keys()
    }

    /// The same with their sizes in bytes.
    pub fn sizes(&self) -> impl Iterator<Item = (&RelativePath, u64)> {
        self.files.iter().map(|(path, state)| (path, state.size))
    }

    /// How many names the tree held of a file that has several.
    pub(super) fn names_of(&self, file: &Stat) -> u64 {
        self.names.get(&identity(file)).copied().unwrap_or(0)
    }
}

/// Regular files that are new in `new` or differ from `old` in size, mtime, ctime or inode, in
/// order of path. A touched file counts as changed: content is not compared.
pub fn changed(old: &Snapshot, new: &Snapshot) -> Vec<ChangedFile> {
    let differs =
        |path: &RelativePath, state: &FileState| !old.over && old.files.get(path) != Some(state);
    new.files
        .iter()
        .filter(|(path, state)| differs(path, state))
        .map(|(path, state)| ChangedFile {
            path: path.clone(),
            size: state.size,
            created: !old.files.contains_key(path),
        })
        .collect()
}

/// A folder on the way down.
struct Folder {
    entries: Dir,
    handle: OwnedFd,
    path: Option<RelativePath>,
    /// Counted, but nothing in it is published.
    skipped: bool,
}

struct Walk<'a> {
    device: u64,
    limits: &'a Limits,
    found: Snapshot,
}

impl Walk<'_> {
    /// Holds one descriptor for each level, so `limits.depth` bounds them.
    fn run(&mut self, top: OwnedFd) -> Result<(), SnapshotError> {
        let mut open = vec![Folder {
            entries: Dir::read_from(&top).map_err(io::Error::from)?,
            handle: top,
            path: None,
            skipped: false,
        }];
        while let Some(folder) = open.last_mut() {
            // A folder that stops answering is done with, as if it had vanished.
            let Some(Ok(entry)) = folder.entries.read() else {
                open.pop();
                continue;
            };
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            if let Some(inner) = self.visit(folder, name)? {
                if open.len() > self.limits.depth {
                    return Err(SnapshotError::TooDeep(self.limits.depth));
                }
                open.push(inner);
            }
        }
        Ok(())
    }

    /// Counts an entry; returns the folder to go down into, if it is one.
    fn visit(
        &mut self,
        folder: &Folder,
        name: &std::ffi::CStr,
    ) -> Result<Option<Folder>, SnapshotError> {
        let Ok(stat) = statat(&folder.handle, name, AtFlags::SYMLINK_NOFOLLOW) else {
            return Ok(None);
        };
        let usage = &mut self.found.usage;
        usage.entries += 1;
        if usage.entries > self.limits.entries {
            return Err(SnapshotError::TooManyEntries(self.limits.entries));
        }
        let os_name = OsStr::from_bytes(name.to_bytes());
        let skipped = folder.skipped || is_skipped(os_name);
        let path = || RelativePath::entry(folder.path.as_ref(), os_name);
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                usage.bytes += allocated(&stat);
                Ok(self.go_down(folder, name, path(), skipped))
            }
            FileType::RegularFile => {
                self.count_file(&stat);
                if !skipped {
                    self.found.files.insert(path(), state(&stat));
                }
                Ok(None)
            }
            _ => Ok(None),
        }
    }

    fn count_file(&mut self, stat: &Stat) {
        if stat.st_nlink > 1 {
            let names = self.found.names.entry(identity(stat)).or_default();
            *names += 1;
            if *names > 1 {
                return;
            }
        }
        self.found.usage.bytes += allocated(stat);
    }

    fn go_down(
        &self,
        folder: &Folder,
        name: &std::ffi::CStr,
        path: RelativePath,
        skipped: bool,
    ) -> Option<Folder> {
        let open = || -> Result<_, Errno> {
            let handle = beneath::dir_at(folder.handle.as_fd(), name)?;
            // A mount in a workspace is the operator's, and no call made what is in it.
            let inside = fstat(&handle)?.st_dev == self.device;
            inside
                .then(|| Dir::read_from(&handle).map(|entries| (entries, handle)))
                .transpose()
        };
        let (entries, handle) = open().ok()??;
        Some(Folder {
            entries,
            handle,
            path: Some(path),
            skipped,
        })
    }
}

fn is_skipped(name: &OsStr) -> bool {
    let name = name.as_bytes();
    let ends = |suffix: &str| {
        let start = name.len().checked_sub(suffix.len());
        start.is_some_and(|start| name[start..].eq_ignore_ascii_case(suffix.as_bytes()))
    };
    SKIPPED_NAMES.iter().any(|skip| name == skip.as_bytes())
        || SKIPPED_PREFIXES
            .iter()
            .any(|skip| name.starts_with(skip.as_bytes()))
        || SKIPPED_SUFFIXES.iter().any(|skip| ends(skip))
}

fn allocated(stat: &Stat) -> u64 {
    u64::try_from(stat.st_blocks)
        .unwrap_or(0)
        .saturating_mul(512)
}

fn identity(stat: &Stat) -> Identity {
    (stat.st_dev, stat.st_ino)
}

/// The widths of these fields differ by platform.
#[allow(clippy::useless_conversion, clippy::cast_possible_wrap)]
fn state(stat: &Stat) -> FileState {
    FileState {
        size: u64::try_from(stat.st_size).unwrap_or(0),
        modified: (stat.st_mtime, stat.st_mtime_nsec as i64),
        changed: (stat.st_ctime, stat.st_ctime_nsec as i64),
        identity: identity(stat),
    }
}

/// Whether a file is still what it was: for copying without a torn page.
pub(super) fn is_same(before: &Stat, after: &Stat) -> bool {
    state(before) == state(after)
}

#[cfg(test)]
mod tests;
