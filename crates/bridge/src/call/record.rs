//! What is kept of a finished call: counters, the audit line, the journal, the workspace's clock.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use bridge_model::JobId;
use bridge_state::{CallEnd, CallOutcome, Done, JournalEntry, JournalMode, Lease, StoreError};
use jiff::Timestamp;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::oneshot;

use super::{Answer, CallEngine, CallError, Running, answer::is_error, error::Severity};
use crate::{
    config::Journal,
    telemetry::{Action, AuditEvent, AuditFile, audit},
};

/// How long an answer waits until its call is written down.
const RECORDING: Duration = Duration::from_secs(2);

/// When a call began, on both clocks.
pub struct Began {
    wall: Timestamp,
    instant: Instant,
}

impl Began {
    /// Now.
    pub fn now() -> Self {
        Self {
            wall: Timestamp::now(),
            instant: Instant::now(),
        }
    }
}

/// Records one call. Never fails a call that succeeded.
pub async fn record(
    running: &Running,
    began: &Began,
    answer: &Result<Answer, CallError>,
    lease: Option<&Lease>,
) {
    let (engine, call) = (&running.engine, &running.call);
    let outcome = match answer {
        Ok(answer) if is_error(&answer.outcome) => "tool_error",
        Ok(_) => "ok",
        Err(error) => error.kind().name,
    };
    let took = began.instant.elapsed();
    engine
        .metrics
        .call_ended(&call.spec.name, call.ask.label(), outcome, took);
    write_audit(running, answer, lease, outcome, took);
    if let Err(error) = answer {
        tell_failure(running, error);
    }
    if let Some(lease) = lease {
        write_folder(running, began, answer, lease, outcome).await;
    }
}

/// What an operator should see without asking for it. The server's own words, which may hold a user's
/// data, are in `server.log` and in the answer.
fn tell_failure(running: &Running, error: &CallError) {
    let call = &running.call;
    let (server, tool) = (call.spec.name.as_str(), call.ask.label());
    let (outcome, why) = (error.kind().name, error.brief());
    let exit = error.exit_status().map(tracing::field::display);
    match error.severity() {
        Severity::Expected => {}
        Severity::Failure => {
            tracing::warn!(server, tool, outcome, exit, error = why, "call failed");
        }
        Severity::Fault => {
            tracing::error!(server, tool, outcome, exit, error = why, "call failed");
        }
    }
}

fn write_audit(
    running: &Running,
    answer: &Result<Answer, CallError>,
    lease: Option<&Lease>,
    outcome: &'static str,
    took: Duration,
) {
    let caller = &running.call.caller;
    let published = answer.iter().flat_map(|answer| answer.files.all());
    let files: Vec<AuditFile<'_>> = published
        .map(|file| AuditFile {
            name: &file.path,
            size: file.size,
            sha256: Some(&file.sha256),
        })
        .collect();
    for file in &files {
        running.engine.metrics.published(file.size);
    }
    audit(&AuditEvent {
        address: Some(caller.address),
        chat: caller.chat.as_deref(),
        job: lease.map(|lease| lease.job),
        server: Some(running.call.spec.name.as_str()),
        tool: Some(running.call.ask.label()),
        files: &files,
        duration: Some(took),
        ..AuditEvent::new(Action::Call, &caller.principal, outcome)
    });
}

async fn write_folder(
    running: &Running,
    began: &Began,
    answer: &Result<Answer, CallError>,
    lease: &Lease,
    outcome: &'static str,
) {
    let (engine, call) = (&running.engine, &running.call);
    let mode = match engine.settings.journal {
        Journal::Full => JournalMode::Full,
        Journal::Metadata => JournalMode::Metadata,
        Journal::Off => JournalMode::Off,
    };
    let error = answer.as_ref().err().map(ToString::to_string);
    let files: Vec<String> = answer
        .iter()
        .flat_map(|answer| &answer.files.files)
        .map(|file| file.path.clone())
        .collect();
    let line = JournalEntry {
        at: began.wall,
        duration: began.instant.elapsed(),
        request_id: Some(call.request_id.as_str()),
        server: call.spec.name.as_str(),
        tool: call.ask.label(),
        outcome,
        error: error.as_deref(),
        request: call.ask.arguments(),
        response: answer.as_ref().ok().map(|answer| &answer.outcome),
        files: &files,
    }
    .line(mode);
    let written = write_entry(engine, lease, Entry { line, error });
    // It goes on behind an answer that need not wait for a disk that hangs, or for a lock that
    // somebody keeps.
    if tokio::time::timeout(RECORDING, written).await.is_err() {
        tracing::warn!("the journal entry of a call is written late");
    }
}

// Finished calls on their way into their workspaces' journals.
//
// A workspace has one writer at a time, and the writer takes all calls that have ended since it began:
// a chat that is flooded makes longer batches, and neither takes a thread for each call nor waits for
// its own lock. The workspace's metadata, which is a new file each time, is written for a call that
// failed, for the first after one, and else once in a while.

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
fn write_entry(engine: &Arc<CallEngine>, lease: &Lease, entry: Entry) -> oneshot::Receiver<()> {
    let (written, done) = oneshot::channel();
    let waiting = Waiting { entry, written };
    {
        let mut queue = engine.records.lock();
        if let Some(others) = queue.get_mut(&lease.job) {
            if others.len() < MOST {
                others.push(waiting);
            } else {
                tracing::warn!(
                    "the call was not written to the journal: too many entries are waiting"
                );
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
                tracing::warn!(%error, calls, "the call was not written to the journal");
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
