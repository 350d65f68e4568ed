//! A jobs folder for tests.

use std::path::{Path, PathBuf};

use jiff::{SignedDuration, Timestamp};

use super::{Membership, NewJob, PrincipalHash, Store};
use crate::model::{Principal, WorkspaceKey};

/// A folder that goes with the test, and a fixed clock.
pub struct Folder {
    dir: tempfile::TempDir,
    pub now: Timestamp,
}

pub fn later(now: Timestamp, seconds: i64) -> Timestamp {
    now + SignedDuration::from_secs(seconds)
}

pub fn alice() -> Principal {
    Principal::User("alice".into())
}

pub fn key(chat: &str) -> WorkspaceKey {
    WorkspaceKey::chat(&alice(), chat, None)
}

pub fn new_job() -> NewJob<'static> {
    NewJob {
        principal: PrincipalHash::from(&alice()),
        key: None,
        servers: &[],
    }
}

impl Folder {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        // Workspaces are kept by their creation on disk too, so the clock must not lie behind it.
        let now = Timestamp::now();
        Self { dir, now }
    }

    pub fn path(&self) -> PathBuf {
        self.dir.path().join("jobs")
    }

    pub fn outside(&self) -> &Path {
        self.dir.path()
    }

    pub fn open(&self) -> Store {
        Store::open(&self.path(), &Membership::default(), self.now).unwrap()
    }

    /// Runs an instance that ends as by SIGKILL: its lock goes, its files stay.
    pub fn crash<T>(&self, work: impl FnOnce(&Store) -> T) -> T {
        let mut store = self.open();
        let result = work(&store);
        store.instance.forget_files();
        result
    }
}
