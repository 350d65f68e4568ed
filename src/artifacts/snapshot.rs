//! What lies under `work/`, so that the next look shows what a call created or changed.

use std::{io, path::Path};

use super::RelativePath;

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

/// The regular files that may be published, by path, and what the whole tree takes.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    usage: Usage,
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
    /// meanwhile is left out.
    pub fn take(work: &Path, limits: &Limits) -> Result<Self, SnapshotError> {
        todo!("{work:?} {limits:?}")
    }

    /// What the tree takes of the disk.
    pub fn usage(&self) -> Usage {
        self.usage
    }

    /// The publishable files, in order of path: what the model may be told is there.
    pub fn files(&self) -> impl Iterator<Item = &RelativePath> {
        std::iter::empty()
    }
}

/// Regular files that are new in `new` or differ from `old` in size, mtime, ctime or inode, in
/// order of path. A touched file counts as changed: content is not compared.
pub fn changed(old: &Snapshot, new: &Snapshot) -> Vec<ChangedFile> {
    todo!("{old:?} {new:?}")
}
