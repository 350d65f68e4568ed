//! Making, finding and removing workspace folders.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use bridge_model::{Job, JobId, ServerName, WorkspaceKey};
use jiff::Timestamp;
use uuid::Uuid;

use super::{Metadata, PrincipalHash, Store, StoreError, error::is_absent, files, remove};

/// What is known when a workspace is made.
#[derive(Debug, Clone)]
pub struct NewJob<'a> {
    /// Whose it is: `gc --user` finds it by that.
    pub principal: PrincipalHash,
    /// The chat or session, if the workspace belongs to one; `None` for a one-call workspace.
    pub key: Option<WorkspaceKey>,
    /// The servers that will work in it.
    pub servers: &'a [ServerName],
}

impl NewJob<'_> {
    /// Writes down whose the folder is.
    pub(super) fn note_in(&self, metadata: &mut Metadata) {
        metadata.session_keys = self.key.iter().map(|key| key.to_hex()).collect();
        metadata.principal = Some(self.principal.clone());
        metadata.server_names = self.servers.iter().map(ToString::to_string).collect();
    }
}

impl Store {
    /// Makes a workspace folder with its metadata; it appears whole or not at all.
    pub fn create_job(&self, new: &NewJob<'_>, now: Timestamp) -> Result<Job, StoreError> {
        let owned = |metadata: &mut Metadata| new.note_in(metadata);
        self.make_job(owned, |_| Ok(()), now)
    }

    /// The same, with what `more` puts into it before anybody sees it.
    pub(super) fn make_job(
        &self,
        note: impl FnOnce(&mut Metadata),
        more: impl FnOnce(&Path) -> io::Result<()>,
        now: Timestamp,
    ) -> Result<Job, StoreError> {
        let id = JobId::random();
        let staged = self.staging().join(id.to_string());
        let job = self.job_at(id);
        let mut metadata = Metadata::empty(id, now);
        note(&mut metadata);
        let made = self
            .fill_job(&staged, &metadata)
            .and_then(|()| more(&staged))
            .and_then(|()| fs::rename(&staged, job.folder()));
        made.map(|()| job).map_err(|error| {
            // The first failure is the one to tell.
            let _ = remove::remove_tree(&staged);
            files::at("make the workspace", &staged)(error)
        })
    }

    fn fill_job(&self, folder: &Path, metadata: &Metadata) -> io::Result<()> {
        for part in ["", "work", "home", "tmp"] {
            files::make_dir(&folder.join(part))?;
        }
        files::write_json(&folder.join("metadata.json"), metadata, self.staging())
    }

    /// The workspace with that id, if its folder exists.
    pub fn job(&self, id: JobId) -> Result<Option<Job>, StoreError> {
        let job = self.job_at(id);
        let there = files::is_own_dir(job.folder()).map_err(files::at("look at", job.folder()))?;
        Ok(there.then_some(job))
    }

    /// Removes a workspace folder at once, whatever its lease says. Published artifacts stay.
    /// Follows no links; copes with read-only folders and any depth. Absent is fine.
    pub fn remove_job(&self, job: &Job) -> Result<(), StoreError> {
        match self.take_away(job) {
            Ok(staged) => remove::remove_tree(&staged).map_err(files::at("remove", job.folder())),
            Err(error) if is_absent(&error) => Ok(()),
            Err(error) => Err(files::at("remove", job.folder())(error)),
        }
    }

    /// Moves the folder out of sight in one step: nobody finds it half-removed.
    pub(super) fn take_away(&self, job: &Job) -> io::Result<PathBuf> {
        let staged = self.staging().join(format!("gone-{}", Uuid::new_v4()));
        match fs::rename(job.folder(), &staged) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                remove::unlock_dir(job.folder())?;
                fs::rename(job.folder(), &staged)?;
            }
            other => other?,
        }
        Ok(staged)
    }

    fn job_at(&self, id: JobId) -> Job {
        Job::below(&self.root, &self.configured, id)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::testing::{Folder, new_job};

    #[test]
    fn a_workspace_is_private() {
        let folder = Folder::new();
        let store = folder.open();
        let job = store.create_job(&new_job(), folder.now).unwrap();
        for dir in [job.folder().to_owned(), job.work(), job.home(), job.tmp()] {
            assert_eq!(fs::metadata(dir).unwrap().mode() & 0o777, 0o700);
        }
        let metadata = fs::metadata(job.folder().join("metadata.json")).unwrap();
        assert_eq!(metadata.mode() & 0o777, 0o600);
        assert_eq!(store.job(job.id()).unwrap().unwrap().work(), job.work());
    }

    #[test]
    fn removing_a_workspace_leaves_nothing_in_staging_and_is_repeatable() {
        let folder = Folder::new();
        let store = folder.open();
        let job = store.create_job(&new_job(), folder.now).unwrap();
        fs::write(job.work().join("a.txt"), "a").unwrap();
        store.remove_job(&job).unwrap();
        store.remove_job(&job).unwrap();
        assert!(store.job(job.id()).unwrap().is_none());
        assert_eq!(fs::read_dir(store.staging()).unwrap().count(), 0);
    }

    #[test]
    fn a_link_in_place_of_a_workspace_is_not_one() {
        let folder = Folder::new();
        let store = folder.open();
        let id = JobId::random();
        std::os::unix::fs::symlink(folder.outside(), store.root().join(id.to_string())).unwrap();
        assert!(store.job(id).unwrap().is_none());
    }
}
