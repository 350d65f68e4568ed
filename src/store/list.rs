//! What is in the folder, for the command line.

use jiff::Timestamp;

use super::{InstanceId, Job, LiveSession, Metadata, Store, StoreError};
use crate::model::JobId;

/// One workspace.
#[derive(Debug, Clone)]
pub struct JobSummary {
    /// The folder.
    pub job: Job,
    /// What is known of it.
    pub metadata: Metadata,
    /// The living instance that works in it.
    pub leased_by: Option<InstanceId>,
}

/// One live child, here or on another replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionSummary {
    /// Where it works.
    pub job: JobId,
    /// Who runs it.
    pub instance: InstanceId,
    /// The child.
    pub session: LiveSession,
}

impl Store {
    /// All workspaces, oldest first. Unreadable ones are logged and left out.
    pub fn jobs(&self, now: Timestamp) -> Result<Vec<JobSummary>, StoreError> {
        todo!("{now}")
    }

    /// The children that live under fresh leases.
    pub fn sessions(&self, now: Timestamp) -> Result<Vec<SessionSummary>, StoreError> {
        todo!("{now}")
    }
}
