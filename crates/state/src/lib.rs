//! What outlives a process, in the jobs folder: workspaces, bindings, leases, links, journals, and what
//! servers offered.
//!
//! This crate must not know MCP methods, HTTP, child processes or settings: it is handed keys, folders,
//! times and limits.
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
//!
//! ```
//! use bridge_model::{Principal, WorkspaceKey};
//! use bridge_state::{Membership, NewJob, PrincipalHash, Store};
//! use jiff::Timestamp;
//!
//! let folder = tempfile::tempdir()?;
//! let store = Store::open(&folder.path().join("jobs"), &Membership::default(), Timestamp::now())?;
//! let ann = Principal::User("ann".into());
//! let new = NewJob {
//!     principal: PrincipalHash::from(&ann),
//!     key: Some(WorkspaceKey::chat(&ann, "7f3a", None)),
//!     servers: &[],
//! };
//! let job = store.create_job(&new, Timestamp::now())?;
//! assert!(job.work().is_dir());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod error;
mod folder;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use error::{StoreError, is_disk_full};
pub use folder::{
    Artifact, Bytes, Clocks, DiskUsage, GcReport, GoneReason, Instance, InstanceId, JobStatus,
    JobSummary, JournalEntry, JournalMode, Lease, LeaseError, Link, LiveSession, Membership,
    Metadata, NewJob, Others, Peer, PrincipalHash, Room, SessionSummary, StagedFile, StagedLink,
    Stamp, Store, TOMBSTONE, read_within, remove_tree,
};
