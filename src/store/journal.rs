//! `journal.jsonl`: one line for each call of a workspace, for the operator.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Job, Store, StoreError};
use crate::model::RawJson;

/// How much of a call is kept (`MCPO_JOURNAL`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JournalMode {
    /// Requests and responses too, each cut at 64 KiB.
    #[default]
    Full,
    /// Without requests and responses.
    Metadata,
    /// Nothing.
    Off,
}

/// One call.
#[derive(Debug, Clone)]
pub struct JournalEntry<'a> {
    /// When it arrived.
    pub at: Timestamp,
    /// From arrival to answer.
    pub duration: std::time::Duration,
    /// The request id of the logs.
    pub request_id: Option<&'a str>,
    /// The server's name.
    pub server: &'a str,
    /// The tool's name.
    pub tool: &'a str,
    /// `ok`, `tool_error`, `timeout`, … as in the audit log.
    pub outcome: &'a str,
    /// Why, if it failed.
    pub error: Option<&'a str>,
    /// The arguments.
    pub request: Option<&'a RawJson>,
    /// The result.
    pub response: Option<&'a RawJson>,
    /// Files that it made or changed, by display name.
    pub files: &'a [String],
}

impl Store {
    /// Appends the call. The file is rotated once (`journal.1.jsonl`) at 16 MiB.
    pub fn journal(
        &self,
        job: &Job,
        mode: JournalMode,
        entry: &JournalEntry<'_>,
    ) -> Result<(), StoreError> {
        todo!("{job:?} {mode:?} {entry:?}")
    }
}
