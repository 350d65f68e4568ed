//! `metadata.json`: what the store knows of a workspace. Never the chat id or the user's name.

use std::{collections::BTreeMap, fs};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Job, PrincipalHash, Store, StoreError, files, lock::FileLock};
use crate::model::JobId;

/// Where a workspace is in its life: created → running ⇄ idle → ended | failed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobStatus {
    /// No call has run yet.
    #[default]
    Created,
    /// A call is being executed.
    Running,
    /// A session lives, no call runs.
    Idle,
    /// No session lives; kept until retention is over.
    Ended,
    /// As `Ended`, and the last call failed; `error` says why.
    Failed,
}

/// A child that works in the workspace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveSession {
    /// The server's name.
    pub server: String,
    /// Its own among the children of the lease's instance.
    #[serde(default)]
    pub number: u64,
    /// The child's process id, on the host of the lease's instance; none for a remote server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// When it was started.
    pub started_at: Timestamp,
}

/// The file's content. Fields of other versions survive in `other`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Metadata {
    /// The folder's name.
    pub job_id: JobId,
    /// Workspace keys (hashes, hex) bound to this folder.
    #[serde(default)]
    pub session_keys: Vec<String>,
    /// Whose it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub principal: Option<PrincipalHash>,
    /// It is nobody's: made for a process that waits for whom it will work for.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unclaimed: bool,
    /// The servers that worked in it.
    #[serde(default)]
    pub server_names: Vec<String>,
    /// ISO 8601.
    pub created_at: Timestamp,
    /// The end of the last call: retention counts from here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_call_at: Option<Timestamp>,
    /// Where it is in its life.
    #[serde(default)]
    pub status: JobStatus,
    /// Why the last call failed, if it did. No secrets, no arguments.
    #[serde(default)]
    pub error: Option<String>,
    /// The children that work in it.
    #[serde(default)]
    pub live_sessions: Vec<LiveSession>,
    /// Attached files of the chat that were brought here: their ids in Open WebUI, and their names.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub attachments: BTreeMap<String, String>,
    /// Fields that this version does not know.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

impl Metadata {
    pub(super) fn empty(job_id: JobId, created_at: Timestamp) -> Self {
        Self {
            job_id,
            session_keys: Vec::new(),
            principal: None,
            unclaimed: false,
            server_names: Vec::new(),
            created_at,
            last_call_at: None,
            status: JobStatus::default(),
            error: None,
            live_sessions: Vec::new(),
            attachments: BTreeMap::new(),
            other: Map::new(),
        }
    }
}

impl Store {
    /// Reads the metadata. A corrupt or missing file is logged and rebuilt from the folder.
    #[allow(clippy::unused_self)] // where the records lie is the store's to know
    pub fn metadata(&self, job: &Job) -> Result<Metadata, StoreError> {
        let path = job.folder().join("metadata.json");
        match files::read_json::<Metadata>(&path) {
            Ok(Some(metadata)) if metadata.job_id == job.id() => return Ok(metadata),
            Ok(Some(_)) => {
                tracing::warn!(job = ?job.id(), "metadata of another workspace: rebuilt");
            }
            Ok(None) => tracing::warn!(job = ?job.id(), "no metadata: rebuilt"),
            Err(error) => tracing::warn!(job = ?job.id(), %error, "unreadable metadata: rebuilt"),
        }
        let born = fs::symlink_metadata(job.folder())
            .and_then(|found| found.created().or_else(|_| found.modified()));
        match born {
            Ok(born) => {
                let born = Timestamp::try_from(born).unwrap_or(Timestamp::UNIX_EPOCH);
                Ok(Metadata::empty(job.id(), born))
            }
            Err(error) if files::is_absent(&error) => Err(StoreError::JobGone),
            Err(error) => Err(files::at("look at", job.folder())(error)),
        }
    }

    /// Changes the metadata as one step, also among replicas; returns what was written.
    pub fn update_metadata(
        &self,
        job: &Job,
        change: impl FnOnce(&mut Metadata),
    ) -> Result<Metadata, StoreError> {
        let _lock = FileLock::job(job)?;
        let mut metadata = self.metadata(job)?;
        change(&mut metadata);
        let path = job.folder().join("metadata.json");
        files::write_json(&path, &metadata, self.staging()).map_err(files::at("write", &path))?;
        Ok(metadata)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing::{Folder, new_job};

    #[test]
    fn updates_from_many_threads_all_count() {
        let folder = Folder::new();
        let stores = [folder.open(), folder.open()];
        let job = stores[0].create_job(&new_job(), folder.now).unwrap();
        std::thread::scope(|scope| {
            for number in 0..16 {
                let (store, job) = (&stores[number % 2], &job);
                scope.spawn(move || {
                    let add = |m: &mut Metadata| m.server_names.push(format!("s{number}"));
                    store.update_metadata(job, add).unwrap();
                });
            }
        });
        assert_eq!(stores[0].metadata(&job).unwrap().server_names.len(), 16);
    }

    #[test]
    fn what_another_version_wrote_survives() {
        let folder = Folder::new();
        let store = folder.open();
        let job = store.create_job(&new_job(), folder.now).unwrap();
        let path = job.folder().join("metadata.json");
        let mut json: Value = files::read_json(&path).unwrap().unwrap();
        json["from_the_future"] = 7.into();
        files::write_json(&path, &json, store.staging()).unwrap();
        store
            .update_metadata(&job, |metadata| metadata.status = JobStatus::Idle)
            .unwrap();
        let json: Value = files::read_json(&path).unwrap().unwrap();
        assert_eq!(json["from_the_future"], 7);
        assert_eq!(json["status"], "idle");
        assert_eq!(json["created_at"], folder.now.to_string());
    }

    #[test]
    fn a_corrupt_file_is_rebuilt() {
        let folder = Folder::new();
        let store = folder.open();
        let job = store.create_job(&new_job(), folder.now).unwrap();
        let path = job.folder().join("metadata.json");
        for broken in ["", "{\"job_id\":", "[]"] {
            fs::write(&path, broken).unwrap();
            let rebuilt = store.metadata(&job).unwrap();
            assert_eq!(rebuilt.job_id, job.id());
            assert!(
                rebuilt
                    .created_at
                    .duration_since(folder.now)
                    .as_secs()
                    .abs()
                    < 60
            );
        }
        let server = |metadata: &mut Metadata| metadata.server_names = vec!["excel".into()];
        store.update_metadata(&job, server).unwrap();
        assert_eq!(store.metadata(&job).unwrap().server_names, ["excel"]);
    }

    #[test]
    fn a_link_or_fifo_in_its_place_is_not_read() {
        let folder = Folder::new();
        let store = folder.open();
        let job = store.create_job(&new_job(), folder.now).unwrap();
        let path = job.folder().join("metadata.json");
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
        assert_eq!(store.metadata(&job).unwrap().principal, None);
        fs::remove_file(&path).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RUSR).unwrap();
        assert_eq!(store.metadata(&job).unwrap().principal, None);
    }
}
