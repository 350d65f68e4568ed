//! Clean-up behind everybody, by our own clocks.

use std::time::Duration;

use jiff::Timestamp;

use super::Store;
use crate::model::Principal;

/// How long things are kept. Links carry their own end.
#[derive(Debug, Clone, Copy)]
pub struct Clocks {
    /// A workspace, past the end of its last call (`MCPO_FILE_RETENTION`).
    pub retention: Duration,
    /// A tombstone, past the end of its link.
    pub tombstone: Duration,
}

/// What one run did.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct GcReport {
    /// Links whose bytes went.
    pub ended_links: u64,
    /// Tombstones removed.
    pub removed_tombstones: u64,
    /// Workspaces removed.
    pub removed_jobs: u64,
    /// Workspaces kept because somebody works in them.
    pub leased_jobs: u64,
    /// Bindings removed.
    pub removed_bindings: u64,
    /// Dead instances whose files were removed.
    pub removed_instances: u64,
    /// Entries of the jobs folder that are not ours; left alone.
    pub unknown_entries: u64,
    /// What could not be cleaned, and why; the rest was.
    pub errors: Vec<String>,
}

impl Store {
    /// One round. With `user`, instead: that user's workspaces and links go now, whatever their
    /// clocks say. Where a lease is fresh nothing is touched. Never fails as a whole.
    pub fn collect(&self, clocks: &Clocks, user: Option<&Principal>, now: Timestamp) -> GcReport {
        todo!("{clocks:?} {user:?} {now}")
    }
}
