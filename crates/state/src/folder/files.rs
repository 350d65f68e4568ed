//! The disk operations of the store, in folders that children can access, and their errors: its small files,
//! opened without following links, read and replaced atomically; file locks; the removal of whole trees.

use std::{
    ffi::CString,
    fmt,
    fs::{self, DirBuilder, DirEntry, File, OpenOptions},
    io::{self, Read, Write},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use bridge_model::{Job, JobId, LinkToken, open_read};
use rustix::{
    fs::{
        AtFlags, CWD, Dir, FileType, FlockOperation, Mode, OFlags, RenameFlags, chmod, flock, open,
        openat, renameat, renameat_with, unlinkat,
    },
    io::Errno,
};
use serde::{Serialize, de::DeserializeOwned};
use uuid::Uuid;

/// An error of the jobs folder: the action, the path and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// `MCPO_JOBS_DIR` cannot be used at all.
    #[error("the jobs directory {} {problem}", path.display())]
    Unusable {
        /// The folder as configured.
        path: PathBuf,
        /// The problem and its remedy.
        problem: String,
    },
    /// The workspace folder was removed (retention, `gc --user`) or is not the bridge's.
    #[error("the workspace folder no longer exists; the next call creates a new one")]
    JobGone,
    /// Another instance holds the workspace: this one must not write there.
    #[error("another replica took over the workspace; this one no longer writes to it")]
    Fenced,
    /// The filesystem returned an error.
    #[error("cannot {action} {}: {source}", Redacted(path))]
    Io {
        /// The attempted action.
        action: &'static str,
        /// Its path.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

impl StoreError {
    /// The disk or the quota is full (HTTP 507).
    pub fn is_disk_full(&self) -> bool {
        matches!(self, Self::Io { source, .. } if is_disk_full(source))
    }

    /// Whether a component of the path does not exist.
    pub(crate) fn is_absent(&self) -> bool {
        matches!(self, Self::Io { source, .. } if is_absent(source))
    }

    /// Whether this process, or the system, has no file descriptors left.
    pub fn is_lack_of_descriptors(&self) -> bool {
        let number = match self {
            Self::Io { source, .. } => Errno::from_io_error(source),
            _ => None,
        };
        matches!(number, Some(Errno::MFILE | Errno::NFILE))
    }
}

/// A path for logs: readers of logs must neither see a folder's name nor be able to open a link.
struct Redacted<'a>(&'a Path);

impl fmt::Display for Redacted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, part) in self.0.iter().enumerate() {
            let part = part.to_string_lossy();
            if index > 0 && !(index == 1 && self.0.has_root()) {
                f.write_str("/")?;
            }
            if let Ok(id) = part.parse::<JobId>() {
                write!(f, "{id:?}")?;
            } else if let Ok(token) = part.parse::<LinkToken>() {
                write!(f, "{token:?}")?;
            } else {
                f.write_str(&part)?;
            }
        }
        Ok(())
    }
}

/// Whether an error means that no space is left on the device or in the quota.
pub fn is_disk_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

/// Whether the name does not exist, or its folder was removed.
pub fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

/// Adds the action and the path to an error: `.map_err(at("read", path))`.
pub fn at(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    move |source| StoreError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

// Files, their records and their folders.

/// The store's records are far smaller; a larger file was not written by it.
const RECORD_LIMIT: u64 = 1024 * 1024;

/// Creates a new file with mode 0600.
pub fn create_new(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
}

/// Reads a record of at most 1 MiB.
pub fn read_record(path: &Path) -> io::Result<Vec<u8>> {
    read_within(path, RECORD_LIMIT)
}

/// Reads a regular file of at most `limit` bytes without blocking: a FIFO, a device or a link at `path` is an
/// error.
pub fn read_within(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    let file = open_read(path)?;
    file.take(limit + 1).read_to_end(&mut content)?;
    if content.len() as u64 > limit {
        return Err(broken("larger than any record of the bridge"));
    }
    Ok(content)
}

fn broken(why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// Whether the content was read, or could have been, and is not a valid record: it is corrupt, or the path is
/// not a regular file. All other errors say nothing about the content.
pub fn is_broken(error: &io::Error) -> bool {
    let code = Errno::from_io_error(error);
    error.kind() == io::ErrorKind::InvalidData
        || matches!(code, Some(Errno::LOOP | Errno::NXIO | Errno::ISDIR))
}

/// `None` if the name does not exist.
pub fn present<T>(found: io::Result<T>) -> io::Result<Option<T>> {
    match found {
        Err(error) if is_absent(&error) => Ok(None),
        found => found.map(Some),
    }
}

/// Reads a JSON record; `None` if it does not exist.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    let Some(content) = present(read_record(path))? else {
        return Ok(None);
    };
    let record = serde_json::from_slice(&content).map(Some);
    record.map_err(|error| broken(format!("corrupt record: {error}")))
}

/// Replaces a file atomically: readers see the old or the new content. `staging` is on the same filesystem.
pub fn write_whole(path: &Path, content: &[u8], staging: &Path) -> io::Result<()> {
    let temp = staging.join(Uuid::new_v4().to_string());
    let written = create_new(&temp)
        .and_then(|mut file| file.write_all(content))
        .and_then(|()| fs::rename(&temp, path));
    if written.is_err() {
        let _ = fs::remove_file(&temp);
    }
    written
}

/// Whether a new file must be on disk before others rely on it, or may be lost in a crash of the host.
#[derive(Debug, Clone, Copy)]
pub enum Durable {
    Yes,
    No,
}

/// Creates a file that must not exist yet, atomically and, with [`Durable::Yes`], synced to disk; `false` if
/// it exists. Uses a link or a rename that replaces nothing, which are atomic on shared filesystems too.
/// Where the filesystem supports neither, the file is created in place, and a reader at that moment may see
/// it empty.
pub fn show_new(path: &Path, content: &[u8], staging: &Path, durable: Durable) -> io::Result<bool> {
    let temp = staging.join(Uuid::new_v4().to_string());
    let mut file = create_new(&temp)?;
    let shown = file
        .write_all(content)
        .and_then(|()| match durable {
            Durable::Yes => file.sync_all(),
            Durable::No => Ok(()),
        })
        .and_then(|()| match fs::hard_link(&temp, path) {
            Err(error) if is_refused(&error) => rename_new(&temp, path),
            other => other,
        })
        .or_else(|error| {
            if is_refused(&error) {
                create_new(path)?.write_all(content)
            } else {
                Err(error)
            }
        });
    let _ = fs::remove_file(&temp);
    match shown {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error),
    }
}

fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE).map_err(Into::into)
}

/// Whether the filesystem does not support the operation.
fn is_refused(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::PERM | Errno::NOTSUP | Errno::NOSYS | Errno::INVAL | Errno::MLINK)
    )
}

/// Replaces a JSON record atomically.
pub fn write_json(path: &Path, record: &impl Serialize, staging: &Path) -> io::Result<()> {
    write_whole(path, &to_json(record)?, staging)
}

/// The content of a record's file.
pub fn to_json(record: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut content = serde_json::to_vec_pretty(record)?;
    content.push(b'\n');
    Ok(content)
}

/// Syncs a file's bytes to disk. Absent is fine.
pub fn sync_file(path: &Path) -> io::Result<()> {
    present(open_read(path))?.map_or(Ok(()), |file| file.sync_all())
}

/// Syncs the names in a folder to disk. Filesystems that do not support this need no sync.
pub fn sync_dir(path: &Path) -> io::Result<()> {
    match File::open(path).and_then(|folder| folder.sync_all()) {
        Err(error) if is_refused(&error) => Ok(()),
        other => other,
    }
}

/// Creates a folder with mode 0700; an existing one is fine.
pub fn make_dir(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && is_own_dir(path)? => Ok(()),
        other => other,
    }
}

/// Whether a real folder (not a link) of this user exists at `path`.
pub fn is_own_dir(path: &Path) -> io::Result<bool> {
    let user = rustix::process::geteuid().as_raw();
    let found = present(fs::symlink_metadata(path))?;
    Ok(found.is_some_and(|found| found.is_dir() && found.uid() == user))
}

/// The names in a folder, none if it does not exist. In a name that is not UTF-8, which cannot be the store's,
/// the invalid bytes are replaced.
pub fn names_in(path: &Path) -> Result<Vec<String>, StoreError> {
    let read = || {
        let entries = present(fs::read_dir(path))?.into_iter().flatten();
        let name = |entry: DirEntry| entry.file_name().to_string_lossy().into_owned();
        entries
            .map(|entry| entry.map(name))
            .collect::<io::Result<_>>()
    };
    read().map_err(at("list", path))
}

// Locks.

/// Timeout for a file lock. The bridge holds one for milliseconds; only a process that should not hold it
/// keeps it longer, such as a child that opened the lock of its chat.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest delay between two attempts; the first delays are shorter.
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// An exclusive lock on a file, until dropped. Excludes threads and processes, and other hosts only if the
/// filesystem supports that: whatever must hold without it is decided by exclusive names.
#[derive(Debug)]
pub struct FileLock {
    _file: File,
}

/// Whether the filesystem does not support locks.
pub fn is_unsupported(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::NOLCK | Errno::NOTSUP | Errno::NOSYS | Errno::INVAL)
    )
}

impl FileLock {
    /// The lock of a folder, in its file `lock`, which is created if it is absent. Waits for it, up to five
    /// seconds (`TimedOut`); `NotFound` if the folder does not exist.
    pub fn of_folder(folder: &Path) -> Result<Self, StoreError> {
        let path = folder.join("lock");
        Self::take_within(&path, PATIENCE).map_err(at("lock", &path))
    }

    fn take_within(path: &Path, patience: Duration) -> io::Result<Self> {
        let until = Instant::now() + patience;
        let flags = OFlags::CREATE | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        loop {
            let file = File::from(open(path, flags, Mode::RUSR | Mode::WUSR)?);
            lock_until(&file, until)?;
            // The previous holder may have moved the folder away: then this lock protects nothing.
            if path.symlink_metadata()?.ino() == file.metadata()?.ino() {
                return Ok(Self { _file: file });
            }
        }
    }

    /// The lock on a chat's records.
    pub fn job(job: &Job) -> Result<Self, StoreError> {
        match Self::of_folder(job.folder()) {
            Err(error) if error.is_absent() => Err(StoreError::JobGone),
            other => other,
        }
    }
}

fn lock_until(file: &File, until: Instant) -> io::Result<()> {
    let mut pause = Duration::from_millis(1);
    loop {
        match flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(Errno::WOULDBLOCK) if Instant::now() < until => {
                thread::sleep(pause);
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            Err(Errno::WOULDBLOCK) => {
                let why = "still locked, by a server that locks files outside its work folder or \
                           by a replica that hangs";
                return Err(io::Error::new(io::ErrorKind::TimedOut, why));
            }
            Err(error) if is_unsupported(&error.into()) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

// The removal of trees that children created: any depth, read-only folders, never through a link.

/// Removes anything at `path`; no other process may rename the folders above at the same time. Absent is
/// fine.
///
/// Nested folders are first moved up to the top one, so the depth is limited neither by stack nor by
/// descriptors nor by path length. A mount point cannot be moved: it is kept, and an error is returned.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    match unlinkat(CWD, path, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(error) => return Err(error.into()),
    }
    let top = open_forced(CWD, path)?;
    while empty_once(top.as_fd(), top.as_fd())? {}
    unlinkat(CWD, path, AtFlags::REMOVEDIR)?;
    Ok(())
}

/// Makes a folder readable and writable, whatever mode its owner (a child with our uid) set.
pub fn unlock_dir(path: &Path) -> io::Result<()> {
    open_forced(CWD, path).map(drop)
}

fn open_forced<P: rustix::path::Arg>(parent: BorrowedFd<'_>, name: P) -> io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let found = openat(parent, name, flags | OFlags::PATH, Mode::empty())?;
    // fchmod does not work on O_PATH, and chmod by name would follow a link.
    let magic = format!("/proc/self/fd/{}", found.as_raw_fd());
    // If this matters, the next step fails.
    let _ = chmod(magic, Mode::RWXU);
    let readable = openat(&found, c".", flags | OFlags::RDONLY, Mode::empty())?;
    Ok(readable)
}

/// Removes the files of `dir` and moves its folders to `top`. Returns whether there were any entries.
fn empty_once(dir: BorrowedFd<'_>, top: BorrowedFd<'_>) -> io::Result<bool> {
    let is_top = dir.as_raw_fd() == top.as_raw_fd();
    let mut any = false;
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        any = true;
        let is_dir = entry.file_type() == FileType::Directory;
        // Most of the folders that the bridge creates are empty.
        let kind = if is_dir {
            AtFlags::REMOVEDIR
        } else {
            AtFlags::empty()
        };
        if unlinkat(dir, name, kind).is_ok() {
            continue;
        }
        let moved = CString::new(Uuid::new_v4().to_string())?;
        let inner = open_forced(dir, name)?;
        renameat_with(dir, name, top, &moved, RenameFlags::NOREPLACE).or_else(
            |error| match error {
                // Not every filesystem supports the flag; the name is random anyway.
                Errno::INVAL => renameat(dir, name, top, &moved),
                other => Err(other),
            },
        )?;
        if is_top {
            empty_once(inner.as_fd(), top)?;
            unlinkat(top, &moved, AtFlags::REMOVEDIR)?;
        }
    }
    Ok(any)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn messages_show_neither_workspace_names_nor_tokens() {
        let (job, token) = (JobId::random(), LinkToken::random());
        let message = |path: String| {
            let source = io::Error::from(io::ErrorKind::StorageFull);
            let error = StoreError::Io {
                action: "write",
                path: path.into(),
                source,
            };
            assert!(error.is_disk_full());
            error.to_string()
        };
        let shown = message(format!("/jobs/{job}/metadata.json"));
        assert!(
            shown.starts_with(&format!("cannot write /jobs/{job:?}/metadata.json: ")),
            "{shown}"
        );
        assert!(!message(format!("a/{}/data", token.as_str())).contains(token.as_str()));
    }

    #[test]
    fn a_lock_that_stays_held_is_an_error_and_no_hang() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let kept = FileLock::take_within(&path, Duration::ZERO).unwrap();
        let refused = FileLock::take_within(&path, Duration::from_millis(20));
        assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::TimedOut);
        drop(kept);
        FileLock::take_within(&path, Duration::ZERO).unwrap();
    }

    #[test]
    fn removes_read_only_folders_and_spares_what_links_point_to() {
        let dir = tempfile::tempdir().unwrap();
        let (tree, outside) = (dir.path().join("tree"), dir.path().join("outside"));
        fs::create_dir_all(tree.join("a/b")).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("keep"), "x").unwrap();
        fs::write(tree.join("a/b/file"), "x").unwrap();
        symlink(&outside, tree.join("a/link")).unwrap();
        for locked in ["a/b", "a"] {
            fs::set_permissions(tree.join(locked), fs::Permissions::from_mode(0o000)).unwrap();
        }
        remove_tree(&tree).unwrap();
        assert!(!tree.exists());
        assert!(outside.join("keep").exists());
    }

    #[test]
    fn removes_a_tree_deeper_than_any_path_or_descriptor_limit() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir(&tree).unwrap();
        let name = "d".repeat(100);
        let mut here = open(&tree, OFlags::DIRECTORY, Mode::empty()).unwrap();
        for _ in 0..1100 {
            rustix::fs::mkdirat(&here, name.as_str(), Mode::RWXU).unwrap();
            here = openat(&here, name.as_str(), OFlags::DIRECTORY, Mode::empty()).unwrap();
        }
        remove_tree(&tree).unwrap();
        assert!(!tree.exists());
    }

    #[test]
    fn removes_the_link_and_not_its_target() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("target")).unwrap();
        symlink(dir.path().join("target"), dir.path().join("link")).unwrap();
        remove_tree(&dir.path().join("link")).unwrap();
        assert!(dir.path().join("target").exists());
        assert!(!dir.path().join("link").is_symlink());
    }
}
