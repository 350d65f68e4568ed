//! Files on their way into a workspace: written beside it, and there at once or not at all.

use std::{
    fs::{self, File},
    io,
    os::fd::AsFd as _,
    path::PathBuf,
};

use bridge_model::Job;
use rustix::{
    fs::{AtFlags, CWD, Mode, OFlags, RenameFlags, linkat, open, renameat_with},
    io::Errno,
};
use uuid::Uuid;

use super::{
    Store,
    files::{self, FileLock},
};
use crate::error::{StoreError, is_absent};

/// Names that are tried before one is found that is free.
const ATTEMPTS: usize = 1000;

/// A file that came and is in no workspace yet. Dropped, it leaves nothing behind.
#[derive(Debug)]
pub struct StagedFile {
    path: PathBuf,
    data: File,
}

impl Store {
    /// Begins a file.
    pub fn stage_file(&self) -> Result<StagedFile, StoreError> {
        self.in_whole_folder(|| self.stage_file_once())
    }

    fn stage_file_once(&self) -> Result<StagedFile, StoreError> {
        let path = self.staging().join(format!("in-{}", Uuid::new_v4()));
        match files::create_new(&path) {
            Ok(data) => Ok(StagedFile { path, data }),
            Err(error) => Err(files::at("make", &path)(error)),
        }
    }
}

impl StagedFile {
    /// Another handle of the bytes to come.
    pub fn data(&self) -> io::Result<File> {
        self.data.try_clone()
    }

    /// Its bytes from the beginning, by a handle that shares no position with others.
    pub fn read(&self) -> io::Result<File> {
        File::open(&self.path)
    }

    /// Puts it into the workspace under the first of `names` that is free, and returns that one.
    /// Nothing there is replaced, and no link is followed: a name is one part of a path.
    pub fn place(
        self,
        store: &Store,
        job: &Job,
        names: impl Iterator<Item = String>,
    ) -> Result<String, StoreError> {
        let _lock = FileLock::job(job)?;
        store.refuse_others(job)?;
        let work = job.work();
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
        let folder = open(&work, flags, Mode::empty());
        let folder = folder.map_err(|error| files::at("open", &work)(error.into()))?;
        for name in names.take(ATTEMPTS) {
            match self.put(folder.as_fd(), &name) {
                Ok(()) => return Ok(name),
                Err(Errno::EXIST) => {}
                Err(error) => return Err(files::at("put a file into", &work)(error.into())),
            }
        }
        let taken = io::Error::from(io::ErrorKind::AlreadyExists);
        Err(files::at("put a file into", &work)(taken))
    }

    fn put(&self, folder: std::os::fd::BorrowedFd<'_>, name: &str) -> Result<(), Errno> {
        let new = RenameFlags::NOREPLACE;
        match renameat_with(CWD, &self.path, folder, name, new) {
            // Some network filesystems cannot; a second name never replaces either.
            Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {
                linkat(CWD, &self.path, folder, name, AtFlags::empty())
            }
            done => done,
        }
    }
}

impl Drop for StagedFile {
    fn drop(&mut self) {
        match fs::remove_file(&self.path) {
            Err(error) if !is_absent(&error) => {
                tracing::warn!(%error, "a file that came stays until this bridge ends");
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write as _, os::unix::fs::symlink};

    use jiff::Timestamp;

    use super::*;
    use crate::testing::{Folder, new_job};

    fn put(store: &Store, job: &Job, names: &[&str]) -> Result<String, StoreError> {
        let staged = store.stage_file().unwrap();
        staged.data().unwrap().write_all(b"new").unwrap();
        staged.place(store, job, names.iter().map(ToString::to_string))
    }

    #[test]
    fn nothing_is_replaced_and_no_link_is_followed() {
        let dir = Folder::new();
        let store = dir.open();
        let job = store.create_job(&new_job(), Timestamp::now()).unwrap();
        fs::write(job.work().join("a"), "old").unwrap();
        fs::write(dir.outside().join("outside"), "old").unwrap();
        symlink(dir.outside().join("outside"), job.work().join("b")).unwrap();
        symlink(dir.outside().join("nothing"), job.work().join("c")).unwrap();
        assert_eq!(put(&store, &job, &["a", "b", "c", "d"]).unwrap(), "d");
        assert_eq!(fs::read(job.work().join("a")).unwrap(), b"old");
        assert_eq!(fs::read(dir.outside().join("outside")).unwrap(), b"old");
        assert!(!dir.outside().join("nothing").exists());
        assert_eq!(fs::read(job.work().join("d")).unwrap(), b"new");
        assert!(put(&store, &job, &["a"]).is_err());
        drop(store.stage_file().unwrap());
        assert_eq!(fs::read_dir(store.staging()).unwrap().count(), 0);
    }

    #[test]
    fn a_workspace_that_was_taken_over_takes_nothing() {
        let dir = Folder::new();
        let (slow, other) = (dir.open(), dir.open());
        let job = slow.create_job(&new_job(), Timestamp::now()).unwrap();
        let lease = slow.acquire(&job, dir.now).unwrap();
        assert_eq!(put(&slow, &job, &["a"]).unwrap(), "a");
        slow.release(&lease).unwrap();
        let _taken = other.acquire(&job, dir.now).unwrap();
        let refused = put(&slow, &job, &["b"]).unwrap_err();
        assert!(matches!(refused, StoreError::TakenOver), "{refused}");
        assert!(!job.work().join("b").exists());
        let refused = slow.append_to_journal(&job, b"a call\n").unwrap_err();
        assert!(matches!(refused, StoreError::TakenOver), "{refused}");
        assert!(!job.folder().join("journal.jsonl").exists());
    }

    #[test]
    fn a_work_folder_that_is_a_link_takes_nothing() {
        let dir = Folder::new();
        let store = dir.open();
        let job = store.create_job(&new_job(), Timestamp::now()).unwrap();
        fs::remove_dir(job.work()).unwrap();
        fs::create_dir(dir.outside().join("elsewhere")).unwrap();
        symlink(dir.outside().join("elsewhere"), job.work()).unwrap();
        assert!(put(&store, &job, &["a"]).is_err());
    }
}
