//! Persistent state: chats with their leases and journals, links, and the catalogues of servers.
//!
//! This crate must not depend on MCP methods, HTTP, child processes or settings: callers pass keys, folders,
//! times and limits.
//!
//! A *chat* is the folder of one chat, one session or one call of a user, with its records. The first two can
//! be looked up by their key.
//!
//! # The interface
//!
//! [`ChatStore`] holds records, [`BlobStore`] bytes. Several bridges use both concurrently. Each method is
//! one atomic step that takes and returns owned values: its arguments contain all the information that it
//! needs, and no lock is held after it returns. The current storage is a folder, which writes the parts of a
//! commit one after the other; a database could implement each step by one statement or transaction. All
//! methods block on the disk or the network: async callers use `spawn_blocking`.
//!
//! | step | of [`ChatStore`] |
//! |---|---|
//! | instances | [`renew`](ChatStore::renew), [`drain`](ChatStore::drain), [`move_to`](ChatStore::move_to), [`leave`](ChatStore::leave), [`others`](ChatStore::others) |
//! | enter a chat | [`acquire`](ChatStore::acquire) → [`Acquired::Mine`] with the [`Lease`] and its fencing number, or [`Acquired::Elsewhere`] with the [`Holder`] |
//! | a chat without a key | [`create`](ChatStore::create), [`create_unclaimed`](ChatStore::create_unclaimed), [`claim`](ChatStore::claim), [`discard`](ChatStore::discard) |
//! | keep and leave it | [`holds`](ChatStore::holds), [`close`](ChatStore::close), [`release`](ChatStore::release) |
//! | write for it, under its lease | [`commit`](ChatStore::commit): links, journal, attachments, clock and status of a call; [`put_file`](ChatStore::put_file), [`session_started`](ChatStore::session_started), [`session_ended`](ChatStore::session_ended); all refuse with [`StoreError::Fenced`] once another instance has taken the chat over |
//! | links | [`link`](ChatStore::link), [`revoke`](ChatStore::revoke), [`remove_link`](ChatStore::remove_link), [`links_of`](ChatStore::links_of) |
//! | clean-up | [`sweep`](ChatStore::sweep), [`forget_user`](ChatStore::forget_user) |
//! | lists | [`chats`](ChatStore::chats), [`chat`](ChatStore::chat), [`sessions`](ChatStore::sessions), [`catalog_entry`](ChatStore::catalog_entry) |
//!
//! | step | of [`BlobStore`] |
//! |---|---|
//! | write | [`stage`](BlobStore::stage) a file, fill it, [`put`](BlobStore::put) it, commit the link to it |
//! | read | [`get`](BlobStore::get), whole or a range |
//! | delete | with the last link to it |
//!
//! # The folder behind it
//!
//! Several bridges may share the folder (also over NFS), so no code assumes that only this process changes a
//! file: names are created by link or rename, changes are made under file locks, and a lease determines which
//! instance may use a chat. File locks may not reach other hosts, so bindings and leases are decided by
//! exclusive names.
//!
//! ```text
//! {job-id}/work/ home/ tmp/    for children
//! {job-id}/metadata.json …     the store's: journal.jsonl, server.log, lease, lease.N, lock
//! .bridge/bindings/{ab}/{key}  the folder of a chat's key
//! .bridge/artifacts/{ab}/{token}/{meta.json,data}
//! .bridge/catalog/{digest}.json  a server's last known catalogue
//! .bridge/instances/{id}.{json,lock}
//! .bridge/tmp/{instance}/      staging, removed with its instance
//! .bridge/peer-key             the secret with which the bridges on this folder authenticate each other
//! ```
//!
//! # Example
//!
//! ```
//! use bridge_model::{Principal, WorkspaceKey};
//! use bridge_state::{Acquired, ChatStore, Done, Membership, NewChat, PrincipalHash};
//!
//! let folder = tempfile::tempdir()?;
//! let store = ChatStore::open(&folder.path().join("jobs"), &Membership::default())?;
//! let ann = Principal::User("ann".into());
//! let new = NewChat {
//!     principal: PrincipalHash::from(&ann),
//!     servers: Vec::new(),
//! };
//! let key = WorkspaceKey::chat(&ann, "7f3a", None);
//! let Acquired::Mine(held) = store.acquire(&key, &new)? else {
//!     panic!("another instance holds it");
//! };
//! assert!(held.job.work().is_dir());
//! let done = Done {
//!     journal: b"{}\n".to_vec(),
//!     ..Done::default()
//! };
//! store.commit(&held.lease, done)?;
//! store.close(&held.lease)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod folder;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use folder::{
    Acquired, Artifact, Blob, BlobId, BlobStore, CallEnd, CallOutcome, ChatStore, ChatSummary,
    DiskUsage, Done, GcReport, GoneReason, Held, Holder, InstanceId, JobStatus, JournalBody,
    JournalEntry, JournalMode, Lease, Link, LiveSession, Membership, Metadata, NewChat, OpenBlob,
    Others, Peer, PrincipalHash, SessionSummary, StagedFile, Stamp, StoreError, Swept,
    is_disk_full, read_within, remove_tree,
};
