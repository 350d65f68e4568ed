//! File locks. Held for the length of a small read and write, never while anything runs.

use std::{
    fs::File,
    io,
    os::unix::fs::MetadataExt,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use bridge_model::Job;
use rustix::{
    fs::{FlockOperation, Mode, OFlags, flock, open},
    io::Errno,
};

use super::{StoreError, error::is_absent, files};

/// Our own holders need milliseconds. Longer than this has the lock only who should not: a child
/// can open the lock of its workspace.
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
    let code = error.raw_os_error().map(Errno::from_raw_os_error);
    matches!(
        code,
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
            // Whoever had it before may have moved the folder away: then this lock guards nothing.
            match path.symlink_metadata() {
                Ok(now) if now.ino() == file.metadata()?.ino() => return Ok(Self { _file: file }),
                Ok(_) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The lock on a workspace's records.
    pub fn job(job: &Job) -> Result<Self, StoreError> {
        let path = job.folder().join("lock");
        Self::take(&path).map_err(|error| {
            if is_absent(&error) {
                StoreError::JobGone
            } else {
                files::at("lock", &path)(error)
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
                let why = "somebody keeps it locked: a server that locks files outside its work \
                           folder, or a replica that hangs";
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
    fn a_lock_that_somebody_keeps_is_an_error_and_no_hang() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let kept = FileLock::take(&path).unwrap();
        let refused = FileLock::take_within(&path, Duration::from_millis(20));
        assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::TimedOut);
        drop(kept);
        FileLock::take_within(&path, Duration::ZERO).unwrap();
    }
}
