//! `metadata.json`: what the store knows of a workspace. Never the chat id or the user's name.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Job, PrincipalHash, Store, StoreError};
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
    /// The child's process id, on the host of the lease's instance.
    pub pid: u32,
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
    /// Fields that this version does not know.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

impl Store {
    /// Reads the metadata. A corrupt or missing file is logged and rebuilt from the folder.
    pub fn metadata(&self, job: &Job) -> Result<Metadata, StoreError> {
        todo!("{job:?}")
    }

    /// Changes the metadata as one step, also among replicas; returns what was written.
    pub fn update_metadata(
        &self,
        job: &Job,
        change: impl FnOnce(&mut Metadata),
    ) -> Result<Metadata, StoreError> {
        let _ = change;
        todo!("{job:?}")
    }
}
