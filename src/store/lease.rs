//! Who works in a workspace. One instance at a time; a dead one's lease is taken over.

use jiff::Timestamp;

use super::{InstanceId, Job, Store, StoreError};
use crate::model::JobId;

/// The right of this instance to run children in a workspace, until released or taken over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The workspace.
    pub job: JobId,
    /// Who holds it.
    pub instance: InstanceId,
    /// Grows by one with each change of hands: an older number has lost the workspace.
    pub fence: u64,
    /// When this instance took it.
    pub since: Timestamp,
}

/// Why a workspace cannot be worked in.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// A living instance has it: forward the call there.
    #[error("this chat runs on another replica ({instance})")]
    Elsewhere {
        /// The holder.
        instance: InstanceId,
        /// Where it can be reached, if it said so.
        address: Option<String>,
    },
    /// The folder failed; [`StoreError::JobGone`] when it was removed meanwhile: bind again.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Store {
    /// Takes the lease: free, stale (its instance is dead), or ours already (then the same fence).
    /// Not counted: the caller releases once its last child in the workspace has ended.
    pub fn acquire(&self, job: &Job, now: Timestamp) -> Result<Lease, LeaseError> {
        todo!("{job:?} {now}")
    }

    /// Gives it back. Fine if it was taken over or the folder is gone.
    pub fn release(&self, lease: &Lease) -> Result<(), StoreError> {
        todo!("{lease:?}")
    }

    /// Whether nobody took it over.
    pub fn holds(&self, lease: &Lease) -> Result<bool, StoreError> {
        todo!("{lease:?}")
    }

    /// The living holder of a workspace's lease, ourselves included.
    pub fn leased_by(&self, job: &Job, now: Timestamp) -> Result<Option<InstanceId>, StoreError> {
        todo!("{job:?} {now}")
    }
}
