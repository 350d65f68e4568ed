//! Copies a file out of a workspace to where only its link reaches it.

use std::{io, time::Duration};

use jiff::Timestamp;

use super::{RelativePath, Snapshot};
use crate::{
    model::{Principal, ServerName},
    store::{Artifact, Job, Store, StoreError},
};

/// Which call made the files.
#[derive(Debug, Clone, Copy)]
pub struct Origin<'a> {
    /// Whose call it was.
    pub principal: &'a Principal,
    /// The server.
    pub server: &'a ServerName,
    /// The tool.
    pub tool: &'a str,
    /// How long the link lives (`MCPO_FILE_EXPIRY`).
    pub ttl: Duration,
    /// The largest file that is published, in bytes.
    pub max_bytes: u64,
}

/// Why a file got no link.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// It vanished, or its path leads through a symbolic link or out of the workspace.
    #[error("{0}: no such file in the workspace")]
    NotFound(String),
    /// A folder, FIFO, socket or device.
    #[error("{0}: not a regular file")]
    NotAFile(String),
    /// It has a name outside the workspace too.
    #[error("{0}: hard links to files outside the workspace are not published")]
    LinkedElsewhere(String),
    /// Somebody kept writing to it.
    #[error("{0}: the file kept changing while it was copied")]
    Unstable(String),
    /// Over `max_bytes`.
    #[error("{name}: larger than the {limit} bytes that may be published")]
    TooLarge {
        /// The file.
        name: String,
        /// Bytes.
        limit: u64,
    },
    /// The filesystem refused; nothing half-written is left.
    #[error("{name}: cannot publish: {source}")]
    Io {
        /// The file.
        name: String,
        /// What the system said.
        source: io::Error,
    },
    /// The store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl PublishError {
    /// The disk or the quota is full (HTTP 507).
    pub fn is_disk_full(&self) -> bool {
        match self {
            Self::Io { source, .. } => crate::store::is_disk_full(source),
            Self::Store(error) => error.is_disk_full(),
            _ => false,
        }
    }
}

/// Publishes one version of one file of `job`. `snapshot` is the newest one of its `work/`: a file
/// with several names is published only if it holds all of them.
pub fn publish(
    store: &Store,
    job: &Job,
    path: &RelativePath,
    snapshot: &Snapshot,
    origin: &Origin<'_>,
    now: Timestamp,
) -> Result<Artifact, PublishError> {
    todo!("{store:?} {job:?} {path:?} {snapshot:?} {origin:?} {now}")
}
