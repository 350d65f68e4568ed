//! The store's small files, in folders that children can access: opened without following links, read and
//! replaced atomically, and locked.

use std::{
    fs::{self, DirBuilder, DirEntry, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use bridge_model::{Job, open_read};
use rustix::{
    fs::{FlockOperation, Mode, OFlags, flock, open},
    io::Errno,
};
use serde::{Serialize, de::DeserializeOwned};
use uuid::Uuid;

use crate::error::{StoreError, is_absent};

/// The store's records are far smaller; a larger file was not written by it.
const RECORD_LIMIT: u64 = 1024 * 1024;

/// Adds the action and the path to an error: `.map_err(at("read", path))`.
pub fn at(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    move |source| StoreError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

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
    let cwd = rustix::fs::CWD;
    let flags = rustix::fs::RenameFlags::NOREPLACE;
    rustix::fs::renameat_with(cwd, from, cwd, to, flags).map_err(Into::into)
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
