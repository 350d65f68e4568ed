//! What fork parents ([`super::fork`]) and warm processes ([`crate::session`]) have in common: both are
//! prepared before a call needs them, for one version of a server, by tasks that end when that
//! version does, and after failures with increasing delays.

use std::{collections::HashMap, hash::Hash, time::Duration};

use bridge_model::ServerName;
use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::config::SpecVersion;

/// The longest delay after failures.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(600);

/// A version of a server, and what else distinguishes its entries.
pub type Key<P> = (ServerName, SpecVersion, P);

/// What is prepared.
pub struct Prepared<P, T> {
    entries: Mutex<HashMap<Key<P>, Entry<T>>>,
    /// The tasks that prepare and end it: a shutdown waits for them.
    pub tasks: TaskTracker,
    /// Cancelled when nothing more is prepared.
    pub stopping: CancellationToken,
}

/// What is prepared for one key. Dropping it cancels its tasks.
pub struct Entry<T> {
    /// What the owner knows of it.
    pub state: T,
    /// When a call last asked for it.
    pub last: Instant,
    /// Nothing is prepared before this time.
    pub not_before: Instant,
    /// Cancels the tasks of this entry.
    pub outdated: CancellationToken,
    failures: u32,
}

impl<T> Drop for Entry<T> {
    fn drop(&mut self) {
        self.outdated.cancel();
    }
}

impl<T> Entry<T> {
    /// Delays the next attempt by `pause`, which doubles with each failure in a row.
    pub fn failed(&mut self, pause: Duration) {
        let pause = pause.saturating_mul(1 << self.failures.min(10));
        self.not_before = Instant::now() + pause.min(LONGEST_PAUSE);
        self.failures += 1;
    }

    /// Ends a row of failures.
    pub fn succeeded(&mut self) {
        self.failures = 0;
    }
}

impl<P, T> Default for Prepared<P, T> {
    fn default() -> Self {
        Self {
            entries: Mutex::default(),
            tasks: TaskTracker::new(),
            stopping: CancellationToken::new(),
        }
    }
}

impl<P: Eq + Hash, T> Prepared<P, T> {
    /// A new entry, which is not in the table yet.
    pub fn entry(&self, state: T) -> Entry<T> {
        let now = Instant::now();
        Entry {
            state,
            last: now,
            not_before: now,
            outdated: self.stopping.child_token(),
            failures: 0,
        }
    }

    /// The table.
    pub fn lock(&self) -> MutexGuard<'_, HashMap<Key<P>, Entry<T>>> {
        self.entries.lock()
    }

    /// Removes the entries of servers that are gone or changed.
    pub fn follow(&self, current: impl Fn(&ServerName) -> Option<SpecVersion>) {
        let is_outdated =
            |(name, version, _): &Key<P>, _: &mut Entry<T>| current(name) != Some(*version);
        let outdated: Vec<_> = self.lock().extract_if(is_outdated).collect();
        // Not under the lock: what is prepared may end when it is dropped.
        drop(outdated);
    }

    /// Removes all entries, and accepts no more.
    pub fn stop(&self) {
        self.stopping.cancel();
        let entries = std::mem::take(&mut *self.lock());
        drop(entries);
    }

    /// The same, and waits until nothing of them is left.
    pub async fn end_all(&self) {
        self.stop();
        self.tasks.close();
        self.tasks.wait().await;
    }
}
