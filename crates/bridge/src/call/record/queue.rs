//! Finished calls on their way into their workspaces' journals.
//!
//! A workspace has one writer at a time, and the writer takes all calls that have ended since it began:
//! a chat that is flooded makes longer batches, and neither takes a thread for each call nor waits for
//! its own lock. The workspace's metadata, which is a new file each time, is written for a call that
//! failed, for the first after one, and else once in a while.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use bridge_model::JobId;
use bridge_state::{CallEnd, CallOutcome, Done, Lease, StoreError};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::oneshot;

use crate::call::CallEngine;

/// Calls of one workspace that may wait. More come only where its disk hangs.
const MOST: usize = 1024;

/// How old the time of the last call may be in the metadata of a workspace that is called again and
/// again. Retention is judged by it, so it is also at most an eighth of that.
const RECENT: Duration = Duration::from_secs(5);
/// By how many bytes the metadata may be wrong on what a workspace takes of the disk.
const EXACT: u64 = 1024 * 1024;
/// Workspaces that are remembered as recent before they are looked through.
const REMEMBERED: usize = 1024;

/// A call to be written.
pub struct Entry {
    /// Its line of the journal; empty where none is kept.
    pub line: Vec<u8>,
    /// Why it failed.
    pub error: Option<String>,
}

struct Waiting {
    entry: Entry,
    written: oneshot::Sender<()>,
}

/// What the metadata says of a workspace.
struct Noted {
    at: Instant,
    /// What the workspace takes of the disk, if that is known.
    bytes: Option<u64>,
}

/// The calls that wait, by their workspace. A workspace is in it while it has a writer.
pub struct RecordQueue {
    waiting: Mutex<HashMap<JobId, Vec<Waiting>>>,
    recent: Duration,
    /// When metadata without a failure was written.
    noted: Mutex<HashMap<JobId, Noted>>,
}

impl RecordQueue {
    /// An empty one, where workspaces are kept for so long after their last call.
    pub fn new(retention: Duration) -> Self {
        Self {
            waiting: Mutex::default(),
            recent: RECENT.min(retention / 8),
            noted: Mutex::default(),
        }
    }

    /// Whether a good call needs no new metadata.
    fn is_noted(&self, job: JobId, bytes: Option<u64>) -> bool {
        let noted = self.noted.lock();
        noted
            .get(&job)
            .is_some_and(|noted| noted.at.elapsed() < self.recent && is_near(noted.bytes, bytes))
    }

    fn note(&self, job: JobId, bytes: Option<u64>, failed: bool) {
        let mut noted = self.noted.lock();
        if failed {
            noted.remove(&job);
            return;
        }
        if noted.len() >= REMEMBERED {
            noted.retain(|_, noted| noted.at.elapsed() < self.recent);
        }
        let at = Instant::now();
        noted.insert(job, Noted { at, bytes });
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<JobId, Vec<Waiting>>> {
        self.waiting.lock()
    }

    /// Those that have come; the writer of the workspace ends where there are none.
    fn take(&self, job: JobId) -> Vec<Waiting> {
        let mut waiting = self.lock();
        let taken = waiting.get_mut(&job).map(std::mem::take);
        let taken = taken.unwrap_or_default();
        if taken.is_empty() {
            waiting.remove(&job);
        }
        taken
    }
}

fn is_near(noted: Option<u64>, bytes: Option<u64>) -> bool {
    let (Some(noted), Some(bytes)) = (noted, bytes) else {
        return noted == bytes;
    };
    noted.abs_diff(bytes) < EXACT
}

/// Writes the call, and tells when that is done, or that it never will be.
pub fn write(engine: &Arc<CallEngine>, lease: &Lease, entry: Entry) -> oneshot::Receiver<()> {
    let (written, done) = oneshot::channel();
    let waiting = Waiting { entry, written };
    {
        let mut queue = engine.records.lock();
        if let Some(others) = queue.get_mut(&lease.job) {
            if others.len() < MOST {
                others.push(waiting);
            } else {
                tracing::warn!("the call was not written to its workspace: too many wait for that");
            }
            return done;
        }
        queue.insert(lease.job, vec![waiting]);
    }
    let (engine, lease) = (engine.clone(), lease.clone());
    tokio::task::spawn_blocking(move || Writer { engine, lease }.run());
    done
}

/// The writer of one workspace.
struct Writer {
    engine: Arc<CallEngine>,
    lease: Lease,
}

impl Writer {
    fn run(self) {
        loop {
            let batch = self.engine.records.take(self.lease.job);
            if batch.is_empty() {
                return;
            }
            if let Err(error) = self.write(&batch) {
                let calls = batch.len();
                tracing::warn!(%error, calls, "the call was not written to its workspace");
            }
            for waiting in batch {
                // Whoever no longer waits has an answer.
                let _ = waiting.written.send(());
            }
        }
    }

    fn write(&self, batch: &[Waiting]) -> Result<(), StoreError> {
        let (records, job) = (&self.engine.records, self.lease.job);
        let journal = batch
            .iter()
            .flat_map(|waiting| waiting.entry.line.iter().copied());
        let error = batch.last().and_then(|waiting| waiting.entry.error.clone());
        let failed = error.is_some();
        let bytes = self.engine.disk.of_folder(job);
        let noted = !failed && records.is_noted(job, bytes);
        let outcome = error.map_or(CallOutcome::Answered, CallOutcome::Failed);
        let done = Done {
            journal: journal.collect(),
            ended: (!noted).then_some(CallEnd {
                bytes,
                outcome: Some(outcome),
            }),
            ..Done::default()
        };
        self.engine.store.commit(&self.lease, done)?;
        if !noted {
            records.note(job, bytes, failed);
        }
        Ok(())
    }
}

impl Drop for Writer {
    /// After a panic the workspace gets a new writer with its next call.
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.engine.records.lock().remove(&self.lease.job);
        }
    }
}
