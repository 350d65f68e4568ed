//! What can go wrong in the jobs folder.

use std::{io, path::PathBuf};

/// A failure of the jobs folder: what, where, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// `MCPO_JOBS_DIR` cannot be used at all.
    #[error("the jobs folder {} {problem}", path.display())]
    Unusable {
        /// The folder as configured.
        path: PathBuf,
        /// What is wrong with it, and the fix.
        problem: String,
    },
    /// The workspace folder was removed (retention, `gc --user`) or is no folder of ours.
    #[error("the workspace folder is gone; a new one is made for the next call")]
    JobGone,
    /// The filesystem refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl StoreError {
    /// The disk or the quota is full (HTTP 507).
    pub fn is_disk_full(&self) -> bool {
        matches!(self, Self::Io { source, .. } if is_disk_full(source))
    }
}

/// Whether an error means that no space is left on the device or in the quota.
pub fn is_disk_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}
