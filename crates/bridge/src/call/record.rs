//! The record of a finished call: metrics, the audit line, the journal, and the workspace's metadata.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use bridge_model::JobId;
use bridge_state::{CallEnd, CallOutcome, Done, JournalEntry, Lease, StoreError};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::{Answer, CallEngine, CallError, Running, answer::is_error, error::Severity};
use crate::telemetry::{Action, AuditEvent, AuditFile, audit};

/// Maximum delay of an answer by the record of its call.
const RECORDING: Duration = Duration::from_secs(2);

/// Records one call. Never fails a call that succeeded.
#[tracing::instrument(level = "debug", skip_all)]
pub async fn record(running: &Running, answer: &Result<Answer, CallError>) {
    let (engine, call) = (&running.engine, &running.call);
    let outcome = match answer {
        Ok(answer) if is_error(&answer.outcome) => "tool_error",
        Ok(_) => "ok",
        Err(error) => error.kind().name,
    };
    let took = running.began.elapsed();
    engine
        .metrics
        .call_ended(&call.spec.name, call.ask.label(), outcome, took);
    write_audit(running, answer, outcome, took);
    if let Err(error) = answer {
        log_failure(running, error);
    }
    if let Some(lease) = running.folder.get() {
        write_journal(running, answer, lease, outcome).await;
    }
}

/// Logs the error without the server's own text, which may contain a user's data: that is in `server.log`
/// and in the answer.
fn log_failure(running: &Running, error: &CallError) {
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
        job: running.folder.get().map(|lease| lease.job),
        server: Some(running.call.spec.name.as_str()),
        tool: Some(running.call.ask.label()),
        files: &files,
        duration: Some(took),
        ..AuditEvent::new(Action::Call, &caller.principal, outcome)
    });
}

async fn write_journal(
    running: &Running,
    answer: &Result<Answer, CallError>,
    lease: &Lease,
    outcome: &'static str,
) {
    let (engine, call) = (&running.engine, &running.call);
    let error = answer.as_ref().err().map(ToString::to_string);
    let files = answer.iter().flat_map(|answer| &answer.files.files);
    let files: Vec<String> = files.map(|file| file.path.clone()).collect();
    let line = JournalEntry {
        at: running.began_at,
        duration: running.began.elapsed(),
        request_id: Some(call.request_id.as_str()),
        server: call.spec.name.as_str(),
        tool: call.ask.label(),
        outcome,
        error: error.as_deref(),
        request: call.ask.arguments().map(Into::into),
        response: answer.as_ref().ok().map(|answer| (&answer.outcome).into()),
        files: &files,
    }
    .line(engine.settings.journal);
    let written = write_entry(engine, lease, line, error);
    // The answer does not wait longer for a disk that hangs or a lock that is held; writing continues.
    if tokio::time::timeout(RECORDING, written).await.is_err() {
        tracing::warn!("the journal entry of a call is written late");
    }
}

// The queue of finished calls that wait for the journals of their workspaces.
//
// A workspace has one writer at a time, which writes all calls that have ended since its last batch: many
// calls in one chat make longer batches, and do not need a thread each or wait for each other's lock.
// The workspace's metadata, a new file each time, is written after a failed call, after the first
// successful one, and otherwise at intervals.

/// Maximum queue length of one workspace, reached only if its disk hangs.
const MOST: usize = 1024;

/// Maximum age of the time of the last call in the metadata of a busy workspace. Retention is counted
/// from it, so it is also at most an eighth of the retention time.
const RECENT: Duration = Duration::from_secs(5);

/// The tolerated error, in bytes, of the disk usage in the metadata.
const EXACT: u64 = 1024 * 1024;

/// If `noted` has more entries than this, old ones are removed.
const REMEMBERED: usize = 1024;

/// A call that waits to be written.
struct Entry {
    /// Its line of the journal; empty if none is kept.
    line: Vec<u8>,
    /// The error, if the call failed.
    error: Option<String>,
    /// Dropped or sent when the entry is written.
    written: oneshot::Sender<()>,
}

/// The last written metadata of a workspace.
struct Noted {
    at: Instant,
    /// The disk usage, if it is known.
    bytes: Option<u64>,
}

/// The waiting calls by workspace. A workspace is in the map while it has a writer.
pub struct RecordQueue {
    waiting: Mutex<HashMap<JobId, Vec<Entry>>>,
    recent: Duration,
    /// When metadata without a failure was written.
    noted: Mutex<HashMap<JobId, Noted>>,
}

impl RecordQueue {
    /// An empty queue. `retention` is how long workspaces are kept after their last call.
    pub fn new(retention: Duration) -> Self {
        Self {
            waiting: Mutex::default(),
            recent: RECENT.min(retention / 8),
            noted: Mutex::default(),
        }
    }

    /// Whether the metadata is recent enough for a successful call.
    fn is_noted(&self, job: JobId, bytes: Option<u64>) -> bool {
        let noted = self.noted.lock();
        noted.get(&job).is_some_and(|noted| {
            let sizes = noted.bytes.zip(bytes);
            noted.at.elapsed() < self.recent
                && sizes.map_or(noted.bytes == bytes, |(old, new)| old.abs_diff(new) < EXACT)
        })
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

    /// The next batch; if it is empty, the writer of the workspace ends.
    fn take(&self, job: JobId) -> Vec<Entry> {
        let mut waiting = self.waiting.lock();
        let taken = waiting.get_mut(&job).map(std::mem::take);
        let taken = taken.unwrap_or_default();
        if taken.is_empty() {
            waiting.remove(&job);
        }
        taken
    }
}

/// Queues the call. The receiver resolves when it is written, or when it is dropped.
fn write_entry(
    engine: &Arc<CallEngine>,
    lease: &Lease,
    line: Vec<u8>,
    error: Option<String>,
) -> oneshot::Receiver<()> {
    let (written, done) = oneshot::channel();
    let entry = Entry {
        line,
        error,
        written,
    };
    {
        let mut queue = engine.records.waiting.lock();
        if let Some(others) = queue.get_mut(&lease.job) {
            if others.len() < MOST {
                others.push(entry);
            } else {
                tracing::warn!(
                    "the call was not written to the journal: too many entries are waiting"
                );
            }
            return done;
        }
        queue.insert(lease.job, vec![entry]);
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
            for entry in batch {
                // If the call no longer waits, its answer was already sent.
                let _ = entry.written.send(());
            }
        }
    }

    fn write(&self, batch: &[Entry]) -> Result<(), StoreError> {
        let (records, job) = (&self.engine.records, self.lease.job);
        let journal = batch.iter().flat_map(|entry| entry.line.iter().copied());
        let error = batch.last().and_then(|entry| entry.error.clone());
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
            self.engine.records.waiting.lock().remove(&self.lease.job);
        }
    }
}
