//! Our own small files, in folders that children can reach: opened without following links, read and
//! written whole, and locked.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
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

/// Our records are far smaller; what is larger was not written by us.
const RECORD_LIMIT: u64 = 1024 * 1024;

/// Says what was tried on which path: `.map_err(at("read", path))`.
pub fn at(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    move |source| StoreError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

/// Makes a new file of ours, 0600.
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

/// Reads a regular file of at most so many bytes, and never blocks for a writer: a FIFO, a device or a
/// link in its place is an error.
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

/// What is there was read, or could be, and is no record of ours: torn, or something else in its
/// place. All other errors say nothing of what is there.
pub fn is_broken(error: &io::Error) -> bool {
    let code = Errno::from_io_error(error);
    error.kind() == io::ErrorKind::InvalidData
        || matches!(code, Some(Errno::LOOP | Errno::NXIO | Errno::ISDIR))
}

/// `None` where nothing of that name is there.
pub fn present<T>(found: io::Result<T>) -> io::Result<Option<T>> {
    match found {
        Err(error) if is_absent(&error) => Ok(None),
        found => found.map(Some),
    }
}

/// Reads a JSON record; `None` where there is none.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    let Some(content) = present(read_record(path))? else {
        return Ok(None);
    };
    let record = serde_json::from_slice(&content).map(Some);
    record.map_err(|error| broken(format!("corrupt record: {error}")))
}

/// Replaces a file whole: readers see the old or the new one. `staging` is on the same filesystem.
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

/// Whether a new file must be on the disk before others rely on it, or a crash of the host may take it.
#[derive(Debug, Clone, Copy)]
pub enum Durable {
    Yes,
    No,
}

/// Makes a file that must not be there yet, whole and, with [`Durable::Yes`], on the disk; `false` where it is there. By link
/// or by a rename that replaces nothing, which are one step on shared filesystems, too; where there is
/// neither, by making it, and then a reader at that moment may see it empty.
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

/// The filesystem does not know that operation.
fn is_refused(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::PERM | Errno::NOTSUP | Errno::NOSYS | Errno::INVAL | Errno::MLINK)
    )
}

/// Replaces a JSON record whole.
pub fn write_json(path: &Path, record: &impl Serialize, staging: &Path) -> io::Result<()> {
    write_whole(path, &to_json(record)?, staging)
}

/// A record as it stands in its file.
pub fn to_json(record: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut content = serde_json::to_vec_pretty(record)?;
    content.push(b'\n');
    Ok(content)
}

/// Sees to it that a file's bytes are on the disk. Absent is fine.
pub fn sync_file(path: &Path) -> io::Result<()> {
    present(open_read(path))?.map_or(Ok(()), |file| file.sync_all())
}

/// Sees to it that the names in a folder are on the disk. A filesystem that cannot does it itself.
pub fn sync_dir(path: &Path) -> io::Result<()> {
    match File::open(path).and_then(|folder| folder.sync_all()) {
        Err(error) if is_refused(&error) => Ok(()),
        other => other,
    }
}

/// Makes a folder 0700; one that is there already is fine.
pub fn make_dir(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && is_own_dir(path)? => Ok(()),
        other => other,
    }
}

/// Whether a real folder (no link) of our user is there.
pub fn is_own_dir(path: &Path) -> io::Result<bool> {
    let user = rustix::process::geteuid().as_raw();
    let found = present(fs::symlink_metadata(path))?;
    Ok(found.is_some_and(|found| found.is_dir() && found.uid() == user))
}

/// The names in a folder; what is not UTF-8 is not ours and comes as `None`.
pub fn names_in(path: &Path) -> io::Result<Vec<Option<String>>> {
    let entries = present(fs::read_dir(path))?.into_iter().flatten();
    let names = entries.map(|entry| entry.map(|entry| entry.file_name().into_string().ok()));
    names.collect()
}

/// How long a lock is waited for. Our own holders need milliseconds; only a holder that should not
/// have it keeps it for longer: a child can open the lock of its chat.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two looks; the first ones come sooner.
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// An exclusive lock on a file, until dropped. Excludes threads and processes, and other hosts where
/// the filesystem carries locks to them: what must hold without that is decided by exclusive names.
#[derive(Debug)]
pub struct FileLock {
    _file: File,
}

/// Whether the filesystem has no locks at all.
pub fn is_unsupported(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::NOLCK | Errno::NOTSUP | Errno::NOSYS | Errno::INVAL)
    )
}

impl FileLock {
    /// Waits for the lock, up to five seconds (`TimedOut`); makes the file where it is absent.
    /// `NotFound` if its folder is gone.
    pub fn take(path: &Path) -> io::Result<Self> {
        Self::take_within(path, PATIENCE)
    }

    fn take_within(path: &Path, patience: Duration) -> io::Result<Self> {
        let until = Instant::now() + patience;
        let flags = OFlags::CREATE | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        loop {
            let file = File::from(open(path, flags, Mode::RUSR | Mode::WUSR)?);
            lock_until(&file, until)?;
            // The holder before may have moved the folder away: then this lock guards nothing.
            if path.symlink_metadata()?.ino() == file.metadata()?.ino() {
                return Ok(Self { _file: file });
            }
        }
    }

    /// The lock on a chat's records.
    pub fn job(job: &Job) -> Result<Self, StoreError> {
        let path = job.folder().join("lock");
        Self::take(&path).map_err(|error| {
            if is_absent(&error) {
                StoreError::JobGone
            } else {
                at("lock", &path)(error)
            }
        })
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
        let kept = FileLock::take(&path).unwrap();
        let refused = FileLock::take_within(&path, Duration::from_millis(20));
        assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::TimedOut);
        drop(kept);
        FileLock::take_within(&path, Duration::ZERO).unwrap();
    }
}
