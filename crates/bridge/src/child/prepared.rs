//! The common part of fork parents ([`super::fork`]) and warm processes ([`crate::session`]): both are
//! prepared before a call needs them, for one version of a server, by tasks that end with that version,
//! and after failures with increasing delays.

use std::{collections::HashMap, hash::Hash, time::Duration};

use bridge_model::ServerName;
use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::config::SpecVersion;

/// Maximum delay after failures.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(600);

/// A version of a server, and a further property that distinguishes its entries.
pub type Key<P> = (ServerName, SpecVersion, P);

/// The table of prepared items.
pub struct Prepared<P, T> {
    entries: Mutex<HashMap<Key<P>, Entry<T>>>,
    /// The tasks that prepare and end the items: a shutdown waits for them.
    pub tasks: TaskTracker,
    /// Cancelled when no more items are prepared.
    pub stopping: CancellationToken,
}

/// The prepared items of one key. Dropping it cancels its tasks.
pub struct Entry<T> {
    /// The owner's state.
    pub state: T,
    /// When a call last requested it.
    pub last: Instant,
    /// No item is prepared before this time.
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

    /// Resets the count of failures.
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
    /// A new entry, which must still be added to the table.
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

    /// Removes the entries of removed or changed servers.
    pub fn follow(&self, current: impl Fn(&ServerName) -> Option<SpecVersion>) {
        let is_outdated =
            |(name, version, _): &Key<P>, _: &mut Entry<T>| current(name) != Some(*version);
        let outdated: Vec<_> = self.lock().extract_if(is_outdated).collect();
        // Dropped without the lock, because the items may end on drop.
        drop(outdated);
    }

    /// Removes all entries, and accepts no more.
    pub fn stop(&self) {
        self.stopping.cancel();
        let entries = std::mem::take(&mut *self.lock());
        drop(entries);
    }

    /// The same, and waits until all items have ended.
    pub async fn end_all(&self) {
        self.stop();
        self.tasks.close();
        self.tasks.wait().await;
    }
}
