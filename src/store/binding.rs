//! Which workspace folder a chat has.

use jiff::Timestamp;

use super::{Job, Lease, LeaseError, NewJob, Store, StoreError};
use crate::model::WorkspaceKey;

/// How [`Store::bind`] found the folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Binding {
    /// It is new and empty.
    Created,
    /// It was there, from an earlier session, another server of the chat or another replica.
    Existing,
}

/// A workspace that this instance may work in.
#[derive(Debug, Clone)]
pub struct Workspace {
    /// The folder.
    pub job: Job,
    /// Whether it is new.
    pub binding: Binding,
    /// The right to run children in it.
    pub lease: Lease,
}

impl Store {
    /// The folder of that key, made where there is none (or where its folder is gone). Callers of
    /// any thread, process or replica get the same one. `new.key` must be that key.
    pub fn bind(
        &self,
        key: &WorkspaceKey,
        new: &NewJob<'_>,
        now: Timestamp,
    ) -> Result<(Job, Binding), StoreError> {
        todo!("{key:?} {new:?} {now}")
    }

    /// The folder of that key, if it has one.
    pub fn lookup(&self, key: &WorkspaceKey) -> Result<Option<Job>, StoreError> {
        todo!("{key:?}")
    }

    /// Binds and leases in one step, so that no clean-up comes in between: what a session uses.
    pub fn open_workspace(
        &self,
        key: &WorkspaceKey,
        new: &NewJob<'_>,
        now: Timestamp,
    ) -> Result<Workspace, LeaseError> {
        todo!("{key:?} {new:?} {now}")
    }
}
