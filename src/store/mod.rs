//! Everything that outlives a request, in the jobs folder: workspaces, bindings, leases, links.
//!
//! Several bridges may share the folder (NFS too), so nothing is believed to be ours alone: names
//! appear by link or rename, changes happen under file locks, and a lease says who works where.
//! All calls block on the disk; async callers use `spawn_blocking`.
//!
//! ```text
//! {job-id}/work/ home/ tmp/    the children's
//! {job-id}/metadata.json …     ours: journal.jsonl, server.log, lease, lock
//! .bridge/bindings/{ab}/{key}  which job folder a workspace key has
//! .bridge/artifacts/{ab}/{token}/{meta.json,data}
//! .bridge/catalog/{digest}.json  what a server offered when it was last asked
//! .bridge/instances/{id}.{json,lock}
//! .bridge/tmp/{instance}/      staging, gone with its instance
//! ```

mod binding;
mod catalog;
mod error;
mod files;
mod gc;
mod instance;
mod job;
mod journal;
mod lease;
mod link;
mod list;
mod lock;
mod metadata;
mod open;
mod principal;
mod remove;
#[cfg(test)]
pub mod testing;

use std::path::{Path, PathBuf};

use jiff::Timestamp;

pub use error::{StoreError, is_disk_full};
pub use files::open_append;
pub use gc::{Clocks, GcReport};
pub use instance::{HEARTBEAT_EVERY, Instance, InstanceId};
pub use job::{Job, JobFolderPaths, NewJob};
pub use journal::{JournalEntry, JournalMode};
pub use lease::{Lease, LeaseError};
pub use link::{Artifact, GoneReason, Link, StagedLink, TOMBSTONE};
pub use list::{JobSummary, SessionSummary};
pub use metadata::{JobStatus, LiveSession, Metadata};
pub use principal::PrincipalHash;

/// The jobs folder of this process. Dropping it ends the instance: its leases are then stale.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
    /// The folder as the operator spelled it, made absolute: children may print that spelling.
    configured: PathBuf,
    instance: Instance,
}

impl Store {
    /// Opens the folder (made 0700 where absent), joins it as a new instance and clears what dead
    /// instances left half-made. `address` is where other replicas reach this one.
    pub fn open(
        jobs_dir: &Path,
        address: Option<&str>,
        now: Timestamp,
    ) -> Result<Self, StoreError> {
        let (root, configured) = open::prepare(jobs_dir)?;
        let instance = Instance::join(&root.join(".bridge"), address, now)?;
        let store = Self {
            root,
            configured,
            instance,
        };
        for error in store.sweep_instances(now).1 {
            tracing::warn!(%error, "cannot clear what a dead instance left");
        }
        Ok(store)
    }

    /// This process, as other replicas see it.
    pub fn instance(&self) -> &Instance {
        &self.instance
    }

    /// Leaves the folder as this instance's last act, whoever still holds the store: its files and
    /// staging go, and its leases are stale once the process ends.
    pub fn leave(&self) {
        self.instance.leave();
    }

    /// Tells the other replicas that this one lives. Call every [`HEARTBEAT_EVERY`].
    pub fn renew(&self, now: Timestamp) -> Result<(), StoreError> {
        self.instance.renew(now)
    }

    /// The canonical path of the jobs folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Bytes that are free on the folder's filesystem for us, for the free-disk floor.
    pub fn free_bytes(&self) -> Result<u64, StoreError> {
        let found = rustix::fs::statvfs(&self.root)
            .map_err(|error| files::at("measure", &self.root)(error.into()))?;
        Ok(found.f_bavail.saturating_mul(found.f_frsize))
    }

    fn bridge(&self, part: &str) -> PathBuf {
        self.root.join(".bridge").join(part)
    }

    /// Ours alone, on the same filesystem as everything else in the folder.
    /// What is in it ends with this process.
    pub fn staging(&self) -> &Path {
        self.instance.staging()
    }
}
