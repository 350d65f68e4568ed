//! A workspace folder and the paths in it.

use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::{PrincipalHash, Store, StoreError};
use crate::model::{JobId, ServerName, WorkspaceKey};

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

/// A workspace folder that existed when this was made. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Job {
    id: JobId,
    folder: PathBuf,
    configured: PathBuf,
}

impl Job {
    /// Its id, the folder's name.
    pub fn id(&self) -> JobId {
        self.id
    }
    /// The folder itself; only `work`, `home` and `tmp` in it are the children's.
    pub fn folder(&self) -> &Path {
        &self.folder
    }
    /// The children's working directory, where artifacts are found.
    pub fn work(&self) -> PathBuf {
        self.folder.join("work")
    }
    /// The children's `HOME`.
    pub fn home(&self) -> PathBuf {
        self.folder.join("home")
    }
    /// The children's `TMPDIR`.
    pub fn tmp(&self) -> PathBuf {
        self.folder.join("tmp")
    }
    /// Where the children's stderr goes (0600, made on first use, capped by the writer).
    pub fn server_log(&self) -> PathBuf {
        self.folder.join("server.log")
    }
    /// The folder's spellings, for [`crate::artifacts::relative`].
    pub fn paths(&self) -> JobFolderPaths {
        JobFolderPaths {
            canonical: self.folder.clone(),
            configured: self.configured.clone(),
        }
    }
}

/// The absolute spellings under which a child may name its workspace folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobFolderPaths {
    /// With links in the jobs folder's path resolved: what `getcwd` says.
    pub canonical: PathBuf,
    /// With the jobs folder as the operator wrote it.
    pub configured: PathBuf,
}

impl Store {
    /// Makes a workspace folder with its metadata; it appears whole or not at all.
    pub fn create_job(&self, new: &NewJob<'_>, now: Timestamp) -> Result<Job, StoreError> {
        todo!("{new:?} {now}")
    }

    /// The workspace with that id, if its folder exists.
    pub fn job(&self, id: JobId) -> Result<Option<Job>, StoreError> {
        todo!("{id}")
    }

    /// Removes a workspace folder at once, whatever its lease says. Published artifacts stay.
    /// Follows no links; copes with read-only folders and any depth. Absent is fine.
    pub fn remove_job(&self, job: &Job) -> Result<(), StoreError> {
        todo!("{job:?}")
    }
}
