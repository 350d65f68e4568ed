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
