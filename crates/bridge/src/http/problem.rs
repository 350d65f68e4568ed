//! Error answers of OpenAPI endpoints: RFC 9457 problems whose `detail` has mcpo's format.

use axum::{
    http::StatusCode,
    response::{IntoResponse, Response},
};
use bridge_openapi::FieldFault;
use bridge_protocol::{RawJson, code};
use serde_json::{Map, Value, json};

use crate::{
    call::{CallError, rpc_words},
    error_table::{CallerError, Detail, ErrorKind},
};

/// An error answer.
#[derive(Debug)]
pub struct Problem {
    kind: ErrorKind,
    detail: Value,
    more: Map<String, Value>,
}

impl Problem {
    /// The kind determines where in `detail` the text is.
    pub fn new(kind: ErrorKind, text: impl Into<String>) -> Self {
        let text = text.into();
        match kind.detail {
            Detail::Text => Self::detailed(kind, text.into()),
            Detail::Object => Self::detailed(kind, json!({"message": text})),
        }
    }

    fn detailed(kind: ErrorKind, detail: Value) -> Self {
        let more = Map::new();
        Self { kind, detail, more }
    }

    /// 404 with mcpo's text.
    pub fn not_found() -> Self {
        Self::new(ErrorKind::NOT_FOUND, "Not Found")
    }

    /// 400.
    pub fn path_is_not_text() -> Self {
        let text = "the path is not percent-encoded UTF-8: encode the names in it as UTF-8";
        Self::new(ErrorKind::BAD_PATH, text)
    }

    /// 405.
    pub fn method_not_allowed() -> Self {
        Self::new(ErrorKind::METHOD_NOT_ALLOWED, "Method Not Allowed")
    }

    /// 404: the server has no such tool, or the config does not offer it.
    pub fn unknown_tool(server: &str, tool: &str) -> Self {
        let text = format!("Not Found: server '{server}' has no tool '{tool}'");
        Self::new(ErrorKind::UNKNOWN_TOOL, text)
    }

    /// 404: the tool exists, but this endpoint cannot call it.
    pub fn task_only(server: &str, tool: &str) -> Self {
        let text = format!(
            "Not Found: tool '{tool}' of server '{server}' requires MCP tasks \
             (execution.taskSupport): call it over MCP"
        );
        Self::new(ErrorKind::UNKNOWN_TOOL, text)
    }

    /// 400.
    pub fn bad_json(error: &serde_json::Error) -> Self {
        let text = format!("the body is not JSON: {error}");
        Self::new(ErrorKind::BAD_JSON, text)
    }

    /// 422 with each invalid field, in mcpo's format.
    pub fn bad_arguments(faults: &[FieldFault]) -> Self {
        Self::detailed(ErrorKind::BAD_ARGUMENTS, json!(faults))
    }

    /// 400: an invalid multipart body.
    pub fn bad_part(why: &str) -> Self {
        Self::new(ErrorKind::BAD_MULTIPART, why)
    }

    /// 413.
    pub fn file_too_large(name: &str, limit: u64) -> Self {
        let text = format!("{name}: larger than {limit} bytes (MCPO_MAX_UPLOAD_BYTES)");
        Self::new(ErrorKind::FILE_TOO_LARGE, text)
    }

    /// 413: a body with files.
    pub fn files_too_large(limit: u64) -> Self {
        let text = format!(
            "the files are larger than {limit} bytes in total (MCPO_MAX_UPLOAD_BYTES per file, \
             MCPO_MAX_FILES_PER_CALL files): send them in several requests"
        );
        Self::new(ErrorKind::FILE_TOO_LARGE, text)
    }

    /// 413.
    pub fn too_many_files(most: usize) -> Self {
        let text = format!(
            "more than {most} files (MCPO_MAX_FILES_PER_CALL): send them in several requests"
        );
        Self::new(ErrorKind::TOO_MANY_FILES, text)
    }

    /// 422: files for a server without a persistent folder.
    pub fn no_folder(server: &str) -> Self {
        let text =
            format!("server '{server}' does not accept files because it has no persistent folder");
        Self::new(ErrorKind::NO_FOLDER, text)
    }

    /// 500: the tool reported an error.
    pub fn tool_failed(message: &str) -> Self {
        Self::new(ErrorKind::TOOL_ERROR, message)
    }

    /// 503: all connections are in use.
    pub fn overfull() -> Self {
        let text = "all connections of the bridge are in use (MCPO_MAX_CONNECTIONS); try again in \
                    a moment";
        Self::new(ErrorKind::OVERFULL, text)
    }

    /// 503: each of these requests needs a file descriptor.
    pub fn too_many_file_requests() -> Self {
        let text = "too many concurrent downloads and uploads for the limit on open files (ulimit \
                    -n); try again in a moment";
        Self::new(ErrorKind::OVERFULL, text)
    }

    /// 400: proxies in front may read another body than the bridge.
    pub fn bad_transfer_coding() -> Self {
        let text = "unsupported Transfer-Encoding: only chunked is supported";
        Self::new(ErrorKind::BAD_TRANSFER_CODING, text)
    }

    /// Adds an extension member.
    pub fn with(mut self, name: &str, value: Value) -> Self {
        self.more.insert(name.to_owned(), value);
        self
    }

    /// The kind for metrics and logs.
    pub fn kind(&self) -> &'static str {
        self.kind.name
    }
}

impl From<CallError> for Problem {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Rpc { error, .. } => rpc(&error),
            error => Self::new(error.kind(), error.to_string()),
        }
    }
}

/// Maps JSON-RPC codes to HTTP statuses as mcpo does.
fn rpc(error: &RawJson) -> Problem {
    let error: Value = error.with_whole_letters().approximate();
    let status = match error["code"].as_i64() {
        Some(code::PARSE_ERROR | code::INVALID_REQUEST) => 400,
        Some(code::METHOD_NOT_FOUND) => 404,
        Some(code::INVALID_PARAMS) => 422,
        _ => ErrorKind::RPC_ERROR.status,
    };
    let mut detail = json!({"message": rpc_words(&error)});
    if let Some(data) = error.get("data").filter(|data| !data.is_null()) {
        detail["data"] = data.clone();
    }
    let kind = ErrorKind {
        status,
        ..ErrorKind::RPC_ERROR
    };
    Problem::detailed(kind, detail)
}

impl<E: CallerError> From<E> for Problem {
    fn from(error: E) -> Self {
        Self::new(error.kind(), error.to_string())
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let (name, status) = (self.kind.name, self.kind.status);
        let title = StatusCode::from_u16(status).ok();
        let title = title.and_then(|status| status.canonical_reason());
        let mut body = json!({
            "type": format!("urn:mcpo-bridge:problem:{name}"),
            "title": title.unwrap_or("Client Closed Request"),
            "status": status,
            "detail": self.detail,
        });
        if let Value::Object(members) = &mut body {
            members.extend(self.more);
        }
        let content_type = "application/problem+json";
        self.kind.respond(status, content_type, body.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{call::Waited, mcp::RpcError};
    use bridge_process::{ChildError, ExitStatus};
    use std::time::Duration;

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
                unread: false,
            }),
        ];
        let asked = asked.into_iter().map(CallError::after_asking);
        let lost = [
            CallError::Fenced,
            CallError::ReplicaLost("silent".to_owned()),
        ];
        for error in asked.chain(lost) {
            let text = error.to_string();
            assert!(text.contains("may have been executed"), "{text}");
            assert!(!text.contains("call again"), "{text}");
            let rpc = RpcError::of_call(&error);
            assert_eq!((rpc.status, rpc.kind.retry_after), (200, 0), "{text}");
            let problem = Problem::from(error);
            assert_eq!(problem.kind.retry_after, 0, "{text}");
            assert!(![429, 503].contains(&problem.kind.status), "{text}");
        }
        // The error of a call that was not started says so.
        let text = CallError::TakenOver.to_string();
        assert!(text.contains("not started"), "{text}");
    }
}
