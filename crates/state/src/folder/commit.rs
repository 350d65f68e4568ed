//! What a call did, written down under its lease.

use super::{
    JobsFolder,
    blobs::Blob,
    lease::Lease,
    links::Artifact,
    record::{JobStatus, LiveSession, Metadata},
};
use crate::error::StoreError;

/// What a call, or an upload, did.
#[derive(Debug, Default)]
pub struct Done {
    /// Its new links, each with the bytes that it leads to.
    pub links: Vec<(Artifact, Blob)>,
    /// Lines of [`JournalEntry::line`](crate::JournalEntry::line).
    pub journal: Vec<u8>,
    /// Attached files that were brought into the chat: their ids in Open WebUI, and their names.
    pub attachments: Vec<(String, String)>,
    /// It is over: the retention of the chat counts from now.
    pub ended: Option<CallEnd>,
}

/// The end of a call.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CallEnd {
    /// What the chat's folders take of the disk, if they were looked at.
    pub bytes: Option<u64>,
    /// How it ended; `None` of an upload, which leaves the chat's status as it is.
    pub outcome: Option<CallOutcome>,
}

/// How a call ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CallOutcome {
    /// With an answer.
    Answered,
    /// It failed, and why. No secrets, no arguments.
    Failed(String),
}

impl JobsFolder {
    /// Writes the parts one after the other; the first one that fails ends it.
    pub fn commit(&self, lease: &Lease, done: Done) -> Result<(), StoreError> {
        for (artifact, blob) in &done.links {
            self.publish(lease, artifact, blob)?;
        }
        let job = self.job_at(lease.job);
        self.append_to_journal(&job, lease.fence, &done.journal)?;
        if done.ended.is_none() && done.attachments.is_empty() {
            return Ok(());
        }
        let now = self.now();
        self.update_metadata(&job, lease.fence, |metadata| {
            metadata.attachments.extend(done.attachments);
            if let Some(ended) = done.ended {
                metadata.last_call_at = Some(now);
                // Without a look at the folders since the start, what was written stays.
                metadata.bytes = ended.bytes.or(metadata.bytes);
                if let Some(outcome) = ended.outcome {
                    note_outcome(metadata, outcome);
                }
            }
        })
        .map(drop)
    }

    /// Notes a process that works in the chat.
    pub fn session_started(&self, lease: &Lease, session: LiveSession) -> Result<(), StoreError> {
        self.update_metadata(&self.job_at(lease.job), lease.fence, |metadata| {
            if !metadata.server_names.contains(&session.server) {
                metadata.server_names.push(session.server.clone());
            }
            metadata.live_sessions.push(session);
            metadata.status = JobStatus::Idle;
        })
        .map(drop)
    }

    /// Notes that the process with this [`LiveSession::number`] has ended.
    pub fn session_ended(&self, lease: &Lease, number: u64) -> Result<(), StoreError> {
        self.update_metadata(&self.job_at(lease.job), lease.fence, |metadata| {
            metadata
                .live_sessions
                .retain(|session| session.number != number);
        })
        .map(drop)
    }

    /// Notes that no process works in the chat any more, and gives its lease back. The lease is given
    /// back also where the note fails.
    pub fn close(&self, lease: &Lease) -> Result<(), StoreError> {
        let job = self.job_at(lease.job);
        let noted = self.update_metadata(&job, lease.fence, |metadata| {
            metadata.live_sessions.clear();
            if metadata.status != JobStatus::Failed {
                metadata.status = JobStatus::Ended;
            }
        });
        let released = self.release(lease);
        noted.and(released)
    }
}

fn note_outcome(metadata: &mut Metadata, outcome: CallOutcome) {
    let error = match outcome {
        CallOutcome::Answered => None,
        CallOutcome::Failed(why) => Some(why),
    };
    metadata.status = match (&error, metadata.live_sessions.is_empty()) {
        (Some(_), _) => JobStatus::Failed,
        (None, true) => JobStatus::Ended,
        (None, false) => JobStatus::Idle,
    };
    metadata.error = error;
}
