//! A jobs folder for tests of this crate and of the crates that use it.

#![allow(
    clippy::missing_panics_doc,
    clippy::new_without_default,
    reason = "a test that panics has failed"
)]

use std::path::{Path, PathBuf};

use bridge_model::{Principal, WorkspaceKey};
use jiff::{SignedDuration, Timestamp};

#[cfg(test)]
use crate::{Artifact, Done, Lease, StoreError};
use crate::{ChatStore, Membership, NewChat, PrincipalHash};
#[cfg(test)]
use bridge_model::{JobId, LinkToken};

/// A temporary folder and a fixed clock.
pub struct Folder {
    dir: tempfile::TempDir,
    /// The time of the clock.
    pub now: Timestamp,
}

/// `seconds` after `now`.
pub fn later(now: Timestamp, seconds: i64) -> Timestamp {
    now + SignedDuration::from_secs(seconds)
}

/// A user.
pub fn alice() -> Principal {
    Principal::User("alice".into())
}

/// The key of one of Alice's chats.
pub fn key(chat: &str) -> WorkspaceKey {
    WorkspaceKey::chat(&alice(), chat, None)
}

/// A chat of Alice.
pub fn new_chat() -> NewChat {
    NewChat {
        principal: PrincipalHash::from(&alice()),
        servers: Vec::new(),
    }
}

/// Runs one clean-up round as if the time were `now`.
pub fn sweep_at(store: &ChatStore, retention: std::time::Duration, now: Timestamp) -> crate::Swept {
    store.sweep_at(retention, now)
}

/// The record of a link to the text "bytes", which expires after this number of seconds.
#[cfg(test)]
pub(crate) fn artifact(owner: &Principal, now: Timestamp, seconds: i64) -> Artifact {
    Artifact {
        token: LinkToken::random(),
        name: "売上.xlsx".into(),
        path: "売上.xlsx".into(),
        ascii_name: "file.xlsx".into(),
        size: 5,
        mime_type: "text/plain".into(),
        sha256: "277089d91c0bdf4f2e6862ba7e4a07605119431f5d13f726dd352b06f1b206a9".into(),
        created_at: now,
        expires_at: later(now, seconds),
        gone_at: None,
        gone: None,
        job: JobId::random(),
        server: "excel".into(),
        tool: "write".into(),
        principal: PrincipalHash::from(owner),
        other: serde_json::Map::new(),
    }
}

/// Publishes the link as a call in its chat does.
#[cfg(test)]
pub(crate) fn publish(folder: &ChatStore, artifact: Artifact) -> Result<Artifact, StoreError> {
    use std::io::Write as _;
    let mut staged = folder.blobs().stage()?;
    staged.file().write_all(b"bytes").unwrap();
    let blob = folder.blobs().put(staged, &artifact.sha256)?;
    let done = Done {
        links: vec![(artifact.clone(), blob)],
        ..Done::default()
    };
    folder.commit(&lease(folder, artifact.job), done)?;
    Ok(artifact)
}

/// A lease of the folder's own instance, which need not have a record.
#[cfg(test)]
pub(crate) fn lease(folder: &ChatStore, job: JobId) -> Lease {
    Lease {
        job,
        instance: folder.instance(),
        fence: 0,
        since: Timestamp::UNIX_EPOCH,
    }
}

impl Folder {
    /// An empty folder.
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        // Retention also considers the creation time on disk, so the clock must not be behind it.
        let now = Timestamp::now();
        Self { dir, now }
    }

    /// The path of the jobs folder.
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("jobs")
    }

    /// The folder that contains it.
    pub fn outside(&self) -> &Path {
        self.dir.path()
    }

    /// Opens the folder as another instance.
    pub fn open(&self) -> ChatStore {
        ChatStore::open(&self.path(), &Membership::default()).unwrap()
    }

    /// Runs an instance that ends as if by SIGKILL: its lock is released, its files are kept.
    pub fn crash<T>(&self, work: impl FnOnce(&ChatStore) -> T) -> T {
        let store = self.open();
        let result = work(&store);
        store.forget_files();
        result
    }
}
