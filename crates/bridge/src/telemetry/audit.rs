//! The audit log: one line for each call, upload, download, refusal and revocation.

use std::{net::IpAddr, time::Duration};

use bridge_model::{JobId, Principal, WorkspaceKey, hex};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::{
    AUDIT,
    request_id::{RequestId, milliseconds},
};

/// The field of audit lines that holds JSON, because a line can contain several files.
pub(super) const FILES: &str = "files";

/// Bytes of a chat's hash that are logged: enough to distinguish chats.
const CHAT_HASH: usize = 8;

/// The audited action.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// A tool was called.
    Call,
    /// A file was downloaded.
    Download,
    /// Files were uploaded.
    Upload,
    /// A request was refused.
    Refusal,
    /// Links were revoked.
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

/// A file that was uploaded, downloaded or created.
#[derive(Debug, Clone, Serialize)]
pub struct AuditFile<'a> {
    /// Display name.
    pub name: &'a str,
    /// Size in bytes.
    pub size: u64,
    /// SHA-256 in lower-case hex.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<&'a str>,
}

/// One audit line. Its content grants no access: chat, session and job are logged as short hashes, and there
/// is no field for arguments.
#[derive(Debug, Clone)]
pub struct AuditEvent<'a> {
    /// The action.
    pub action: Action,
    /// The principal that performed it.
    pub principal: &'a Principal,
    /// The TCP peer.
    pub address: Option<IpAddr>,
    /// The chat's id as sent; hashed when logged.
    pub chat: Option<&'a str>,
    /// The workspace key of the session or chat; shortened when logged.
    pub session: Option<WorkspaceKey>,
    /// The workspace; hashed when logged.
    pub job: Option<JobId>,
    /// The requested server's name.
    pub server: Option<&'a str>,
    /// The requested tool's name.
    pub tool: Option<&'a str>,
    /// The files that were uploaded, downloaded or created.
    pub files: &'a [AuditFile<'a>],
    /// `ok` or a kind of problem: a fixed word, never a message.
    pub outcome: &'static str,
    /// The duration of the action.
    pub duration: Option<Duration>,
    /// Only set outside a request's span; inside, the span's id is logged.
    pub request_id: Option<&'a RequestId>,
}

impl<'a> AuditEvent<'a> {
    /// An event with these fields only.
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

/// Writes the line, regardless of the log level.
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
        // The field's name is the constant FILES.
        files,
        outcome = event.outcome,
        duration_ms = event.duration.map(milliseconds),
        request_id = event.request_id.map(RequestId::as_str),
        "audit"
    );
}

fn chat_hash(chat: &str) -> String {
    hex(&Sha256::digest(chat)[..CHAT_HASH])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::LogLevel,
        telemetry::logs::testing::{lines_of, text_of},
    };

    fn call<'a>(user: &'a Principal, files: &'a [AuditFile<'a>], job: JobId) -> AuditEvent<'a> {
        AuditEvent {
            address: Some("192.0.2.7".parse().unwrap()),
            chat: Some("chat-of-alice"),
            session: Some(WorkspaceKey::chat(user, "chat-of-alice", None)),
            job: Some(job),
            server: Some("excel"),
            tool: Some("create_workbook"),
            files,
            duration: Some(Duration::from_millis(1234)),
            ..AuditEvent::new(Action::Call, user, "ok")
        }
    }

    #[test]
    fn in_text_a_line_names_its_kind_once() {
        let text = text_of(LogLevel::Error, || {
            audit(&AuditEvent::new(Action::Call, &Principal::Anonymous, "ok"));
        });
        assert!(text.contains(" INFO     audit action=call user="), "{text}");
    }

    #[test]
    fn a_call_is_one_line_with_everything_and_nothing_that_grants_access() {
        let (alice, job) = (Principal::User("alice".into()), JobId::random());
        let files = [AuditFile {
            name: "売上 \"Q1\"\n.xlsx",
            size: 5120,
            sha256: Some("ab12"),
        }];
        let lines = lines_of(LogLevel::Error, || {
            let _span = tracing::info_span!(target: AUDIT, "request", request_id = "r1").entered();
            audit(&call(&alice, &files, job));
        });
        let [line] = &lines[..] else {
            panic!("{lines:?}")
        };
        let is = |key: &str, value: serde_json::Value| assert_eq!(line[key], value, "{key}");
        is("event", "audit".into());
        is("level", "INFO".into());
        is("target", "audit".into());
        is("action", "call".into());
        is("user", "alice".into());
        is("user_kind", "user".into());
        is("client", "192.0.2.7".into());
        // printf chat-of-alice | sha256sum | cut -c-16
        is("chat", "94953cefa6f09d11".into());
        is(
            "session",
            format!("{:?}", WorkspaceKey::chat(&alice, "chat-of-alice", None)).into(),
        );
        is("job", format!("{job:?}").into());
        is("server", "excel".into());
        is("tool", "create_workbook".into());
        is("outcome", "ok".into());
        is("duration_ms", 1234.into());
        is("request_id", "r1".into());
        is("files", serde_json::to_value(files).unwrap());
        let text = line.to_string();
        assert!(!text.contains(&job.to_string()));
        assert!(!text.contains("chat-of-alice"));
    }

    #[test]
    fn what_is_not_known_is_not_written_and_nobody_is_anonymous() {
        let lines = lines_of(LogLevel::Critical, || {
            let id: RequestId = "own".parse().unwrap();
            audit(&AuditEvent {
                request_id: Some(&id),
                ..AuditEvent::new(Action::Refusal, &Principal::Anonymous, "unauthorized")
            });
        });
        assert_eq!(lines[0]["user"], "anonymous");
        assert_eq!(lines[0]["user_kind"], "anonymous");
        assert_eq!(lines[0]["request_id"], "own");
        for absent in [
            "chat",
            "session",
            "job",
            "server",
            "tool",
            "files",
            "duration_ms",
            "client",
        ] {
            assert!(lines[0].get(absent).is_none(), "{absent}");
        }
    }

    #[test]
    fn names_cannot_forge_lines_in_text_either() {
        let evil = Principal::User("eve\n2026-01-01T00:00:00Z INFO audit\x1b[2J user=alice".into());
        let files = [AuditFile {
            name: "a\nb\u{9b}.txt",
            size: 1,
            sha256: None,
        }];
        let text = text_of(LogLevel::Error, || {
            audit(&call(&evil, &files, JobId::random()));
        });
        assert_eq!(text.matches('\n').count(), 1, "{text}");
        assert!(
            !text.contains(|c: char| c.is_control() && c != '\n'),
            "{text:?}"
        );
        assert!(text.contains(r#"user="eve\n2026"#), "{text}");
        assert!(text.contains(r#""name":"a\nb\u009b.txt""#), "{text}");
    }
}
