//! Several bridges on one jobs folder, with separate folders otherwise.

use std::{
    path::PathBuf,
    sync::atomic::{AtomicUsize, Ordering},
};

use serde_json::Value;
use tempfile::TempDir;

use super::{Client, Process, TestBridge, folders, vars};

/// Bridges that share a jobs folder. Dropping it asserts that they leave nothing behind.
pub struct Replicas {
    pub bridges: Vec<TestBridge>,
    shared: TempDir,
    next: AtomicUsize,
    /// Whether one was killed: incomplete files may be left.
    pub killed: bool,
}

impl Replicas {
    #[track_caller]
    pub fn start(count: usize, config: &Value) -> Self {
        Self::with(count, config, &[])
    }

    /// With these variables set for each. They stop without a drain delay, unless the variables set
    /// one.
    #[track_caller]
    pub fn with(count: usize, config: &Value, variables: &[(&str, &str)]) -> Self {
        let shared = tempfile::Builder::new().prefix("mcpo-shared-").tempdir();
        let shared = shared.expect("a temporary folder");
        let bridges = (0..count).map(|_| {
            let mut builder = TestBridge::builder(config.clone())
                .jobs(shared.path().join("jobs"))
                .var(vars::DRAIN_DELAY, 0);
            for (name, value) in variables {
                builder = builder.var(name, value);
            }
            builder.start()
        });
        Self {
            bridges: bridges.collect(),
            shared,
            next: AtomicUsize::new(0),
            killed: false,
        }
    }

    /// Waits until this one has noticed other bridges.
    #[track_caller]
    pub fn wait_until_acquainted(&self, index: usize) {
        self.bridges[index].wait_for_log("number of other replicas");
    }

    pub fn jobs(&self) -> PathBuf {
        self.shared.path().join("jobs")
    }

    /// The workspaces of chats. Bridges that start create others for a while, to read the servers'
    /// lists.
    pub fn workspaces(&self) -> Vec<PathBuf> {
        let mut all = folders::workspaces(&self.jobs());
        all.retain(|path| {
            let text = std::fs::read_to_string(path.join("metadata.json")).unwrap_or_default();
            let known: Value = serde_json::from_str(&text).unwrap_or_default();
            known["session_keys"]
                .as_array()
                .is_some_and(|keys| !keys.is_empty())
        });
        all
    }

    /// A client of the next bridge, round robin.
    #[track_caller]
    pub fn next(&self, user: &str, chat: &str) -> Client {
        let next = self.next.fetch_add(1, Ordering::Relaxed);
        self.bridges[next % self.bridges.len()].chat(user, chat)
    }

    /// The bridges that currently have a chat's child. Those that only read servers' lists do not
    /// count.
    pub fn owners(&self) -> Vec<usize> {
        let chats = self.workspaces();
        let serves = |process: &Process| {
            let folder = std::fs::read_link(format!("/proc/{}/cwd", process.pid));
            folder.is_ok_and(|folder| chats.iter().any(|chat| folder.starts_with(chat)))
        };
        (0..self.bridges.len())
            .filter(|index| self.bridges[*index].children().iter().any(serves))
            .collect()
    }

    /// SIGKILLs one.
    #[track_caller]
    pub fn kill_hard(&mut self, index: usize) {
        self.bridges[index].kill_hard();
        self.killed = true;
    }
}

impl Drop for Replicas {
    fn drop(&mut self) {
        self.bridges.clear();
        if !std::thread::panicking() && !self.killed {
            folders::assert_clean(&self.jobs(), &self.shared.path().join("none"));
        }
    }
}
