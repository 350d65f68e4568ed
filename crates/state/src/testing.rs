//! A jobs folder for tests, of this crate and of those above it.

#![allow(
    clippy::missing_panics_doc,
    clippy::new_without_default,
    reason = "a test that panics has failed"
)]

use std::path::{Path, PathBuf};

use bridge_model::{Principal, WorkspaceKey};
use jiff::{SignedDuration, Timestamp};

use super::{Membership, NewJob, PrincipalHash, Store};

/// A folder that goes with the test, and a fixed clock.
pub struct Folder {
    dir: tempfile::TempDir,
    /// What the clock says.
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

/// The key of one of her chats.
pub fn key(chat: &str) -> WorkspaceKey {
    WorkspaceKey::chat(&alice(), chat, None)
}

/// A workspace of hers without a chat.
pub fn new_job() -> NewJob<'static> {
    NewJob {
        principal: PrincipalHash::from(&alice()),
        key: None,
        servers: &[],
    }
}

impl Folder {
    /// An empty folder.
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        // Workspaces are kept by their creation on disk too, so the clock must not lie behind it.
        let now = Timestamp::now();
        Self { dir, now }
    }

    /// Where the jobs folder is.
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("jobs")
    }

    /// The folder around it.
    pub fn outside(&self) -> &Path {
        self.dir.path()
    }

    /// Joins as one more instance.
    pub fn open(&self) -> Store {
        Store::open(&self.path(), &Membership::default(), self.now).unwrap()
    }

    /// Runs an instance that ends as by SIGKILL: its lock goes, its files stay.
    pub fn crash<T>(&self, work: impl FnOnce(&Store) -> T) -> T {
        let mut store = self.open();
        let result = work(&store);
        store.forget_files();
        result
    }
}
