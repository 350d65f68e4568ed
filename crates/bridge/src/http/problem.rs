//! One error → status table. Bodies are RFC 9457 problems whose `detail` has mcpo's shape.

use std::time::Duration;

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use bridge_openapi::FieldFault;
use bridge_process::ChildError;
use bridge_protocol::{RawJson, code};
use serde_json::{Map, Value, json};

use crate::{
    call::{CallError, rpc_words},
    identity::Refusal,
    telemetry::ProblemKind,
};

/// What a caller is told when there is no result.
#[derive(Debug)]
pub struct Problem {
    status: StatusCode,
    kind: &'static str,
    detail: Value,
    more: Map<String, Value>,
    retry_after: Option<Duration>,
    challenge: Option<&'static str>,
}

impl Problem {
    /// `detail` is what mcpo's callers read; `kind` is for programs.
    pub fn new(status: StatusCode, kind: &'static str, detail: Value) -> Self {
        let (more, retry_after, challenge) = (Map::new(), None, None);
        Self {
            status,
            kind,
            detail,
            more,
            retry_after,
            challenge,
        }
    }

    fn message(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        Self::new(status, kind, json!({"message": message.into()}))
    }

    /// 404 with mcpo's words.
    pub fn not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", "Not Found".into())
    }

    /// 400.
    pub fn path_is_not_text() -> Self {
        let text = "the path is not UTF-8 in percent-encoding: encode the names in it as UTF-8";
        Self::message(StatusCode::BAD_REQUEST, "bad_path", text)
    }

    /// 405.
    pub fn method_not_allowed() -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "method_not_allowed",
            "Method Not Allowed".into(),
        )
    }

    /// 404: no such server, or none for this caller.
    pub fn unknown_server(name: &str) -> Self {
        let text = format!("Not Found: there is no server '{name}'");
        Self::new(StatusCode::NOT_FOUND, "unknown_server", text.into())
    }

    /// 403: the caller is believed, and the server is for users, of whom he names none.
    pub fn user_needed(server: &str) -> Self {
        let text = crate::identity::user_needed(server);
        Self::message(StatusCode::FORBIDDEN, "user_needed", text)
    }

    /// 404: the server has no such tool, or the config does not offer it.
    pub fn unknown_tool(server: &str, tool: &str) -> Self {
        let text = format!("Not Found: the server '{server}' has no tool '{tool}'");
        Self::new(StatusCode::NOT_FOUND, "unknown_tool", text.into())
    }

    /// 404: the tool is there, and this door cannot call it.
    pub fn task_only(server: &str, tool: &str) -> Self {
        let text = format!(
            "Not Found: the tool '{tool}' of the server '{server}' runs as an MCP task only \
             (execution.taskSupport): call it over MCP"
        );
        Self::new(StatusCode::NOT_FOUND, "unknown_tool", text.into())
    }

    /// 503: the server is being asked what it offers.
    pub fn not_ready(server: &str) -> Self {
        let text = format!("the server '{server}' is starting; try again in a moment");
        let mut problem = Self::message(StatusCode::SERVICE_UNAVAILABLE, "starting", text);
        problem.retry_after = Some(Duration::from_secs(5));
        problem
    }

    /// 502: the server cannot be started; it is tried again in the background.
    pub fn failed(server: &str, why: &str) -> Self {
        let text = format!("the server '{server}' cannot be used: {why}");
        let mut problem = Self::message(StatusCode::BAD_GATEWAY, "not_started", text);
        problem.retry_after = Some(Duration::from_secs(30));
        problem
    }

    /// 400.
    pub fn bad_json(error: &serde_json::Error) -> Self {
        let text = format!("the body is not JSON: {error}");
        Self::new(StatusCode::BAD_REQUEST, "bad_json", text.into())
    }

    /// 422 naming each field, in mcpo's shape.
    pub fn bad_arguments(faults: &[FieldFault]) -> Self {
        Self::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "bad_arguments",
            json!(faults),
        )
    }

    /// 400: a body in parts that cannot be read.
    pub fn bad_part(why: &str) -> Self {
        Self::message(StatusCode::BAD_REQUEST, "bad_multipart", why)
    }

    /// 413.
    pub fn file_too_large(name: &str, limit: u64) -> Self {
        let text = format!("{name}: larger than {limit} bytes (MCPO_MAX_UPLOAD_BYTES)");
        Self::message(StatusCode::PAYLOAD_TOO_LARGE, "file_too_large", text)
    }

    /// 413: a body that brings files.
    pub fn files_too_large(limit: u64) -> Self {
        let text = format!(
            "the files are together larger than {limit} bytes (MCPO_MAX_UPLOAD_BYTES for each, \
             MCPO_MAX_FILES_PER_CALL of them): send them in turn"
        );
        Self::message(StatusCode::PAYLOAD_TOO_LARGE, "file_too_large", text)
    }

    /// 413.
    pub fn too_many_files(most: usize) -> Self {
        let text = format!("more than {most} files (MCPO_MAX_FILES_PER_CALL): send them in turn");
        Self::message(StatusCode::PAYLOAD_TOO_LARGE, "too_many_files", text)
    }

    /// 422: files for a server that keeps none.
    pub fn no_folder(server: &str) -> Self {
        let text = format!("the server '{server}' has no folder that lasts: it takes no files");
        Self::message(StatusCode::UNPROCESSABLE_ENTITY, "no_folder", text)
    }

    /// 500: the tool said that it failed.
    pub fn tool_failed(message: &str) -> Self {
        Self::message(StatusCode::INTERNAL_SERVER_ERROR, "tool_error", message)
    }

    /// 503: all connections are taken by requests that are being answered.
    pub fn overfull() -> Self {
        let text = "all connections of the bridge are in use (MCPO_MAX_CONNECTIONS): try again in a \
            moment";
        let problem = Self::message(StatusCode::SERVICE_UNAVAILABLE, "overfull", text);
        problem.retry_after(5)
    }

    /// 503: each of these takes a file descriptor.
    pub fn too_many_file_requests() -> Self {
        let text = "too many downloads and uploads at once for the open files that the bridge may have \
            (ulimit -n): try again in a moment";
        let problem = Self::message(StatusCode::SERVICE_UNAVAILABLE, "overfull", text);
        problem.retry_after(5)
    }

    /// 400: proxies in front may see another body than the bridge.
    pub fn bad_transfer_coding() -> Self {
        let text = "the only transfer coding that is known is chunked, by itself";
        Self::message(StatusCode::BAD_REQUEST, "bad_transfer_coding", text)
    }

    /// Says when to try again.
    pub fn retry_after(mut self, seconds: u64) -> Self {
        self.retry_after = Some(Duration::from_secs(seconds));
        self
    }

    /// Adds an extension member.
    pub fn with(mut self, name: &str, value: Value) -> Self {
        self.more.insert(name.to_owned(), value);
        self
    }

    /// The word for metrics and logs.
    pub fn kind(&self) -> &'static str {
        self.kind
    }
}

impl From<CallError> for Problem {
    fn from(error: CallError) -> Self {
        let (kind, text) = (error.kind(), error.to_string());
        let (status, retry) = match error {
            CallError::Rpc { error, .. } => return rpc(&error),
            // Nothing here says when to come back: the tool may have acted.
            CallError::Fenced => (StatusCode::CONFLICT, None),
            CallError::Unfinished(error) => match Self::from(*error).status {
                StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                    (StatusCode::BAD_GATEWAY, None)
                }
                status => (status, None),
            },
            CallError::Child(ChildError::Timeout)
            | CallError::Timeout(_)
            | CallError::Unanswered(_) => (StatusCode::GATEWAY_TIMEOUT, None),
            CallError::Busy(_) | CallError::Child(ChildError::TooManyStarts) => {
                (StatusCode::TOO_MANY_REQUESTS, Some(10))
            }
            CallError::Child(_)
            | CallError::ReplicaLost(_)
            | CallError::Unanswerable { .. }
            | CallError::TooManyRounds(_) => (StatusCode::BAD_GATEWAY, None),
            CallError::DiskFull(_) | CallError::OverQuota(_) => {
                (StatusCode::INSUFFICIENT_STORAGE, None)
            }
            CallError::UnknownSession => (StatusCode::NOT_FOUND, None),
            CallError::Elsewhere(_) | CallError::TakenOver | CallError::ShuttingDown => {
                (StatusCode::SERVICE_UNAVAILABLE, Some(5))
            }
            CallError::BadPath { .. } => (StatusCode::UNPROCESSABLE_ENTITY, None),
            // Nobody reads this answer; 499 is what proxies log for it.
            CallError::Left => (
                StatusCode::from_u16(499).unwrap_or(StatusCode::BAD_REQUEST),
                None,
            ),
            CallError::Internal(_) => (StatusCode::INTERNAL_SERVER_ERROR, None),
        };
        let mut problem = Self::message(status, kind, text);
        problem.retry_after = retry.map(Duration::from_secs);
        problem
    }
}

/// JSON-RPC codes as mcpo maps them.
fn rpc(error: &RawJson) -> Problem {
    let error: Value = error.with_whole_letters().approximate();
    let status = match error["code"].as_i64() {
        Some(code::PARSE_ERROR | code::INVALID_REQUEST) => StatusCode::BAD_REQUEST,
        Some(code::METHOD_NOT_FOUND) => StatusCode::NOT_FOUND,
        Some(code::INVALID_PARAMS) => StatusCode::UNPROCESSABLE_ENTITY,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    let mut detail = json!({"message": rpc_words(&error)});
    if let Some(data) = error.get("data").filter(|data| !data.is_null()) {
        detail["data"] = data.clone();
    }
    Problem::new(status, "rpc_error", detail)
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let status = StatusCode::from_u16(refusal.status()).unwrap_or(StatusCode::FORBIDDEN);
        let mut problem = Self::new(status, refusal.kind(), refusal.to_string().into());
        problem.challenge = refusal.challenge();
        problem.retry_after = refusal.retry_after().map(Duration::from_secs);
        problem
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut body = json!({
            "type": format!("urn:mcpo-bridge:problem:{}", self.kind),
            "title": self.status.canonical_reason().unwrap_or("Client Closed Request"),
            "status": self.status.as_u16(),
            "detail": self.detail,
        });
        if let Value::Object(members) = &mut body {
            members.extend(self.more);
        }
        let mut response = (self.status, body.to_string()).into_response();
        let headers = response.headers_mut();
        let kind = HeaderValue::from_static("application/problem+json");
        headers.insert(header::CONTENT_TYPE, kind);
        if let Some(wait) = self.retry_after {
            headers.insert(header::RETRY_AFTER, wait.as_secs().into());
        }
        if let Some(challenge) = self.challenge {
            headers.insert(
                header::WWW_AUTHENTICATE,
                HeaderValue::from_static(challenge),
            );
        }
        response.extensions_mut().insert(ProblemKind(self.kind));
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{call::Waited, mcp::RpcError};
    use bridge_process::ExitStatus;

    #[test]
    fn what_may_have_been_done_is_said_to_be_and_nothing_advises_to_repeat_it() {
        let second = Duration::from_secs(1);
        let waited = Waited {
            time: second,
            noise: None,
        };
        let died = ChildError::Died {
            status: ExitStatus::Signal(9),
            said: String::new(),
        };
        let asked = [
            CallError::Timeout(waited),
            CallError::Unanswered(second),
            CallError::Busy("other calls are in front".to_owned()),
            CallError::ShuttingDown,
            CallError::DiskFull("full".to_owned()),
            CallError::TakenOver,
            CallError::Internal("broken".to_owned()),
            CallError::TooManyRounds(32),
            CallError::Child(died),
            CallError::Child(ChildError::Timeout),
            CallError::Child(ChildError::TooLong { limit: 1 }),
            CallError::Child(ChildError::Unanswered {
                why: "reset".into(),
            }),
        ];
        let asked = asked.into_iter().map(CallError::after_asking);
        let lost = [
            CallError::Fenced,
            CallError::ReplicaLost("silent".to_owned()),
        ];
        for error in asked.chain(lost) {
            let text = error.to_string();
            assert!(text.contains("may have been carried out"), "{text}");
            assert!(!text.contains("call again"), "{text}");
            let rpc = RpcError::of_call(&error);
            assert!(rpc.wait().is_none(), "{text}");
            assert!(rpc.status == StatusCode::OK, "{text}: {}", rpc.status);
            let problem = Problem::from(error);
            assert!(problem.retry_after.is_none(), "{text}");
            let later = [
                StatusCode::TOO_MANY_REQUESTS,
                StatusCode::SERVICE_UNAVAILABLE,
            ];
            assert!(!later.contains(&problem.status), "{text}");
        }
        // What was not begun says so.
        let text = CallError::TakenOver.to_string();
        assert!(text.contains("not begun"), "{text}");
    }
}
