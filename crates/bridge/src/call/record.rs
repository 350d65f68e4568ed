//! What is kept of a finished call: counters, the audit line, the journal, the workspace's clock.

mod queue;

use std::time::{Duration, Instant};

use bridge_state::{JournalEntry, JournalMode, Lease};
use jiff::Timestamp;

use super::{Answer, CallError, Running, error::Severity};
use crate::{
    call::answer::is_error,
    config::Journal,
    telemetry::{Action, AuditEvent, AuditFile, audit},
};

pub use self::queue::RecordQueue;

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
        Err(error) => error.kind(),
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
    let (outcome, why) = (error.kind(), error.brief());
    let exit = error.exit_status().map(tracing::field::display);
    match error.severity() {
        Severity::Expected => {}
        Severity::Failure => {
            tracing::warn!(server, tool, outcome, exit, error = why, "a call failed");
        }
        Severity::Fault => {
            tracing::error!(server, tool, outcome, exit, error = why, "a call failed");
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
    let written = queue::write(engine, lease, queue::Entry { line, error });
    // It goes on behind an answer that need not wait for a disk that hangs, or for a lock that
    // somebody keeps.
    if tokio::time::timeout(RECORDING, written).await.is_err() {
        tracing::warn!("the call is written to its workspace late");
    }
}
