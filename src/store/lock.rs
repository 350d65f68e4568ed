//! File locks. Held for the length of a small read and write, never while anything runs.

use std::{fs::File, io, os::unix::fs::MetadataExt, path::Path};

use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};

use super::{Job, StoreError, files};

/// An exclusive lock on a file, until dropped. Excludes threads, processes and replicas alike.
#[derive(Debug)]
pub struct FileLock {
    _file: File,
}

impl FileLock {
    /// Waits for the lock; makes the file where it is absent. `NotFound` if its folder is gone.
    pub fn take(path: &Path) -> io::Result<Self> {
        let flags = OFlags::CREATE | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        loop {
            let file = File::from(open(path, flags, Mode::RUSR | Mode::WUSR)?);
            rustix::io::retry_on_intr(|| flock(&file, FlockOperation::LockExclusive))?;
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
            if files::is_absent(&error) {
                StoreError::JobGone
            } else {
                files::at("lock", &path)(error)
            }
        })
    }
}
