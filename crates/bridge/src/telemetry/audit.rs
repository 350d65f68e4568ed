//! Who did what: one line for each call, upload, download, refusal and revocation.

use std::{fmt::Write as _, net::IpAddr, time::Duration};

use bridge_model::{JobId, Principal, WorkspaceKey};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::{AUDIT, request_id::RequestId};

/// The field of audit lines that holds JSON, because a line can name several files.
pub(super) const FILES: &str = "files";
/// Bytes of a chat's hash: enough to tell chats apart.
const CHAT_HASH: usize = 8;

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// A tool was called.
    Call,
    /// A file went out.
    Download,
    /// Files came in.
    Upload,
    /// Somebody was sent away.
    Refusal,
    /// Links were taken back.
    Revoke,
}

impl Action {
    fn as_str(self) -> &'static str {
        match self {
            Self::Call => "call",
            Self::Download => "download",
            Self::Upload => "upload",
            Self::Refusal => "refusal",
            Self::Revoke => "revoke",
        }
    }
}

/// A file that came, went or was made.
#[derive(Debug, Clone, Serialize)]
pub struct AuditFile<'a> {
    /// As the user knows it.
    pub name: &'a str,
    /// In bytes.
    pub size: u64,
    /// Lower-case hex.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<&'a str>,
}

/// One line. Nothing in it grants access: chat, session and job are written as short hashes, and
/// arguments have no field.
#[derive(Debug, Clone)]
pub struct AuditEvent<'a> {
    /// What was done.
    pub action: Action,
    /// By whom.
    pub principal: &'a Principal,
    /// The TCP peer.
    pub address: Option<IpAddr>,
    /// The chat as sent; hashed here.
    pub chat: Option<&'a str>,
    /// The session or chat's workspace key; shortened here.
    pub session: Option<WorkspaceKey>,
    /// The workspace; hashed here.
    pub job: Option<JobId>,
    /// The server's name, as asked for.
    pub server: Option<&'a str>,
    /// The tool's name, as asked for.
    pub tool: Option<&'a str>,
    /// What came, went or was made.
    pub files: &'a [AuditFile<'a>],
    /// `ok` or a kind of problem: a word of ours, never a message.
    pub outcome: &'static str,
    /// How long it took.
    pub duration: Option<Duration>,
    /// Only where no request's span is around; else that one's id is written.
    pub request_id: Option<&'a RequestId>,
}

impl<'a> AuditEvent<'a> {
    /// An event of which nothing more is known yet.
    pub fn new(action: Action, principal: &'a Principal, outcome: &'static str) -> Self {
        Self {
            action,
            principal,
            address: None,
            chat: None,
            session: None,
            job: None,
            server: None,
            tool: None,
            files: &[],
            outcome,
            duration: None,
            request_id: None,
        }
    }
}

/// Writes the line, whatever the log level.
pub fn audit(event: &AuditEvent<'_>) {
    let (user_kind, user) = match event.principal.tagged() {
        (kind, "") => (kind, kind),
        tagged => tagged,
    };
    let files = (!event.files.is_empty())
        .then(|| serde_json::to_string(event.files).expect("names and numbers are JSON"));
    tracing::info!(
        target: AUDIT,
        event = "audit",
        action = event.action.as_str(),
        user,
        user_kind,
        client = event.address.map(tracing::field::display),
        chat = event.chat.map(chat_hash),
        session = event.session.map(tracing::field::debug),
        job = event.job.map(tracing::field::debug),
        server = event.server,
        tool = event.tool,
        // The name is the constant FILES.
        files,
        outcome = event.outcome,
        duration_ms = event.duration.map(super::milliseconds),
        request_id = event.request_id.map(RequestId::as_str),
        "audit"
    );
}

fn chat_hash(chat: &str) -> String {
    let digest = Sha256::digest(chat.as_bytes());
    digest[..CHAT_HASH]
        .iter()
        .fold(String::new(), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        })
}

#[cfg(test)]
mod tests;
