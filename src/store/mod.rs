//! Everything that outlives a request, in the jobs folder: workspaces, bindings, leases, links.
//!
//! Several bridges may share the folder (NFS too), so nothing is believed to be ours alone: names
//! appear by link or rename, changes happen under file locks, and a lease says who works where. File
//! locks may not reach other hosts, so who gets a binding or a lease is decided by exclusive names.
//! All calls block on the disk; async callers use `spawn_blocking`.
//!
//! ```text
//! {job-id}/work/ home/ tmp/    the children's
//! {job-id}/metadata.json …     ours: journal.jsonl, server.log, lease, lease.N, lock
//! .bridge/bindings/{ab}/{key}  which job folder a workspace key has
//! .bridge/artifacts/{ab}/{token}/{meta.json,data}
//! .bridge/catalog/{digest}.json  what a server offered when it was last asked
//! .bridge/instances/{id}.{json,lock}
//! .bridge/tmp/{instance}/      staging, gone with its instance
//! .bridge/peer-key             what the bridges on this folder prove themselves with
//! ```

mod binding;
mod catalog;
mod error;
mod files;
mod gc;
mod incoming;
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

use crate::model::LinkToken;

pub use error::{StoreError, is_disk_full};
pub use files::open_append;
pub use gc::{Clocks, GcReport};
pub use incoming::StagedFile;
pub use instance::{Instance, InstanceId, Membership, Peer};
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
    watched: instance::Watched,
}

impl Store {
    /// Opens the folder (made 0700 where absent), joins it as a new instance and clears what dead
    /// instances left half-made.
    pub fn open(
        jobs_dir: &Path,
        membership: &Membership,
        now: Timestamp,
    ) -> Result<Self, StoreError> {
        let (root, configured) = open::prepare(jobs_dir)?;
        let instance = Instance::join(&root.join(".bridge"), membership, now)?;
        let store = Self {
            root,
            configured,
            instance,
            watched: instance::Watched::default(),
        };
        for error in store.sweep_instances().1 {
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

    /// Tells the other replicas that this one lives. Call every [`Instance::renew_every`].
    pub fn renew(&self, now: Timestamp) -> Result<(), StoreError> {
        self.instance.renew(now)
    }

    /// Tells the other replicas that this one is about to end: they bring nothing new, and wait for
    /// its leases.
    pub fn drain(&self, now: Timestamp) -> Result<(), StoreError> {
        self.instance.drain();
        self.instance.renew(now)
    }

    /// Tells the other replicas where this one is reached from now on.
    pub fn move_to(&self, address: String, now: Timestamp) -> Result<(), StoreError> {
        self.instance.move_to(address);
        self.instance.renew(now)
    }

    /// The secret that all bridges on this folder share: made by the first of them, at random.
    pub fn peer_key(&self) -> Result<Vec<u8>, StoreError> {
        let path = self.bridge("peer-key");
        let fresh = LinkToken::random().as_str().to_owned() + LinkToken::random().as_str();
        files::show_new(&path, fresh.as_bytes(), self.staging())
            .map_err(files::at("write", &path))?;
        let key = files::read_record(&path).map_err(files::at("read", &path))?;
        if key.len() < fresh.len() {
            let error = std::io::Error::other("it is too short: remove it and start all bridges");
            return Err(files::at("use", &path)(error));
        }
        Ok(key)
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
