//! The errors that callers get: one row for each.
//!
//! A row's name is for programs (`type` of a problem document, `data.kind` of a JSON-RPC error), for metrics
//! and for logs. At an MCP endpoint an error of the call itself is sent with status 200, as JSON-RPC
//! requires; only errors of the request as such, and temporary refusals, have a status that proxies see.

use std::fmt::Display;

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use bridge_protocol::code::{
    CANCELLED as REQUEST_CANCELLED, HEADER_MISMATCH as MISMATCH, INTERNAL_ERROR, INVALID_PARAMS,
    INVALID_REQUEST, METHOD_NOT_FOUND, MISSING_CAPABILITY as CAPABILITY, PARSE_ERROR,
    UNSUPPORTED_VERSION as VERSION,
};

use crate::telemetry::ProblemKind;

/// A kind of error, and how each endpoint answers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ErrorKind {
    /// For programs, metrics and logs.
    pub name: &'static str,
    /// The type of `detail` in a problem document.
    pub detail: Detail,
    /// The HTTP status at an OpenAPI endpoint.
    pub status: u16,
    /// The HTTP status at an MCP endpoint.
    pub mcp_status: u16,
    /// The JSON-RPC error code.
    pub code: i64,
    /// Seconds, for `Retry-After`; 0 if repeating the request is useless or would act twice.
    pub retry_after: u64,
}

/// The `detail` of a problem document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// The text, as in mcpo's errors of requests that called no tool.
    Text,
    /// An object with the text as `message`.
    Object,
}

/// An error with a text that the caller may read.
pub trait CallerError: Display {
    /// Its row of the table.
    fn kind(&self) -> ErrorKind;
}

macro_rules! table {
    ($($row:ident $name:literal $detail:ident $status:literal $mcp_status:literal $code:ident $retry_after:literal;)*) => {
        impl ErrorKind {$(
            #[doc = concat!("`", $name, "`: ", $status, " at OpenAPI endpoints.")]
            pub const $row: Self = Self {
                name: $name,
                detail: Detail::$detail,
                status: $status,
                mcp_status: $mcp_status,
                code: $code,
                retry_after: $retry_after,
            };
        )*}
    };
}

table! {
    //                                  OpenAPI: detail, HTTP   MCP: HTTP, JSON-RPC, and Retry-After
    // The request as such.
    NOT_FOUND "not_found"                         Text   404 404 INVALID_REQUEST   0;
    BAD_PATH "bad_path"                           Object 400 400 INVALID_REQUEST   0;
    METHOD_NOT_ALLOWED "method_not_allowed"       Text   405 405 INVALID_REQUEST   0;
    BAD_TRANSFER_CODING "bad_transfer_coding"     Object 400 400 INVALID_REQUEST   0;
    BAD_MEDIA_TYPE "bad_media_type"               Object 415 415 INVALID_REQUEST   0;
    NOT_ACCEPTABLE "not_acceptable"               Object 406 406 INVALID_REQUEST   0;
    OVERFULL "overfull"                           Object 503 503 INTERNAL_ERROR    5;
    // Its body.
    BODY_TOO_LARGE "body_too_large"               Object 413 413 INVALID_REQUEST   0;
    TOO_MANY_VALUES "too_many_values"             Object 413 413 INVALID_REQUEST   0;
    NO_MEMORY "no_memory"                         Object 503 503 INVALID_REQUEST   5;
    SLOW_BODY "slow_body"                         Object 408 408 INVALID_REQUEST   0;
    BROKEN_BODY "broken_body"                     Text   400 400 INVALID_REQUEST   0;
    BAD_JSON "bad_json"                           Text   400 400 PARSE_ERROR       0;
    BAD_MULTIPART "bad_multipart"                 Object 400 400 INVALID_REQUEST   0;
    FILE_TOO_LARGE "file_too_large"               Object 413 413 INVALID_REQUEST   0;
    TOO_MANY_FILES "too_many_files"               Object 413 413 INVALID_REQUEST   0;
    NO_FOLDER "no_folder"                         Object 422 422 INVALID_REQUEST   0;
    // The caller's identity and rights.
    UNKNOWN_HOST "unknown_host"                   Text   403 403 INVALID_REQUEST   0;
    FORGED_PEER "forged_peer"                     Text   403 403 INVALID_REQUEST   0;
    MISSING_KEY "missing_key"                     Text   401 401 INVALID_REQUEST   0;
    INVALID_KEY "invalid_key"                     Text   403 403 INVALID_REQUEST   0;
    INVALID_TOKEN "invalid_token"                 Text   401 401 INVALID_REQUEST   0;
    INVALID_SESSION "invalid_session"             Text   401 401 INVALID_REQUEST   0;
    TWO_USERS "two_users"                         Text   401 401 INVALID_REQUEST   0;
    OPENWEBUI_UNREACHABLE "openwebui_unavailable" Text   503 503 INVALID_REQUEST   5;
    OPENWEBUI_UNUSABLE "openwebui_unavailable"    Text   502 502 INVALID_REQUEST   5;
    DUPLICATE_HEADER "duplicate_header"           Text   400 400 INVALID_REQUEST   0;
    BAD_HEADER "bad_header"                       Text   400 400 INVALID_REQUEST   0;
    USER_NEEDED "user_needed"                     Object 403 403 INVALID_REQUEST   0;
    // The MCP message.
    BAD_REQUEST "bad_request"                     Object 400 400 INVALID_REQUEST   0;
    BAD_PARAMS "bad_arguments"                    Object 400 400 INVALID_PARAMS    0;
    HEADER_MISMATCH "header_mismatch"             Object 400 400 MISMATCH          0;
    UNSUPPORTED_VERSION "unsupported_version"     Object 400 400 VERSION           0;
    UNKNOWN_METHOD "unknown_method"               Object 404 404 METHOD_NOT_FOUND  0;
    UNKNOWN_SESSION "unknown_session"             Object 404 404 INVALID_REQUEST   0;
    // The server, the tool and its arguments.
    UNKNOWN_SERVER "unknown_server"               Text   404 404 INVALID_REQUEST   0;
    STARTING "starting"                           Object 503 503 INTERNAL_ERROR    5;
    SERVER_FAILED "not_started"                   Object 502 502 INTERNAL_ERROR    30;
    UNKNOWN_TOOL "unknown_tool"                   Text   404 200 INVALID_PARAMS    0;
    BAD_ARGUMENTS "bad_arguments"                 Object 422 200 INVALID_PARAMS    0;
    BAD_FILE_NAME "bad_path"                      Object 422 200 INVALID_PARAMS    0;
    // The call, before the request was sent to the tool.
    BUSY "busy"                                   Object 429 429 INTERNAL_ERROR    10;
    DISK_FULL "disk_full"                         Object 507 507 INTERNAL_ERROR    0;
    ELSEWHERE "elsewhere"                         Object 503 503 INTERNAL_ERROR    5;
    SHUTTING_DOWN "shutting_down"                 Object 503 503 INTERNAL_ERROR    5;
    NOT_STARTED "not_started"                     Object 502 200 INTERNAL_ERROR    0;
    NOT_SUBSCRIBED "not_subscribed"               Object 502 200 INTERNAL_ERROR    0;
    // After that. No row has `Retry-After`, because the tool may have acted.
    DIED "died"                                   Object 502 200 INTERNAL_ERROR    0;
    REMOTE_FAILED "remote_failed"                 Object 502 200 INTERNAL_ERROR    0;
    ANSWER_TOO_LARGE "answer_too_large"           Object 502 200 INTERNAL_ERROR    0;
    TIMEOUT "timeout"                             Object 504 200 INTERNAL_ERROR    0;
    INPUT_REQUIRED "input_required"               Object 502 200 INTERNAL_ERROR    0;
    NOT_ANSWERED "not_answered"                   Object 504 200 INTERNAL_ERROR    0;
    TOO_MANY_ROUNDS "too_many_rounds"             Object 502 200 INTERNAL_ERROR    0;
    INTERRUPTED "interrupted"                     Object 502 200 INTERNAL_ERROR    0;
    FENCED "fenced"                               Object 409 200 INTERNAL_ERROR    0;
    REPLICA_LOST "replica_lost"                   Object 502 200 INTERNAL_ERROR    0;
    TOOL_ERROR "tool_error"                       Object 500 200 INTERNAL_ERROR    0;
    RPC_ERROR "rpc_error"                         Object 500 200 INTERNAL_ERROR    0;
    MISSING_CAPABILITY "missing_capability"       Object 500 400 CAPABILITY        0;
    // The client disconnected and does not read this response; proxies log 499 for it.
    CANCELLED "cancelled"                         Object 499 200 REQUEST_CANCELLED 0;
    INTERNAL "internal"                           Object 500 200 INTERNAL_ERROR    0;
}

impl ErrorKind {
    /// The same error for a call whose request the tool already got: a program would take a temporary
    /// refusal as advice to repeat it.
    #[must_use]
    pub fn after_asking(self) -> Self {
        match self {
            Self::BUSY | Self::SHUTTING_DOWN => Self::INTERRUPTED,
            Self { status: 503, .. } => Self {
                status: 502,
                mcp_status: 200,
                retry_after: 0,
                ..self
            },
            _ => Self {
                mcp_status: 200,
                retry_after: 0,
                ..self
            },
        }
    }

    /// A response of this kind.
    pub fn respond(self, status: u16, content_type: &'static str, body: String) -> Response {
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        if self.retry_after > 0 {
            headers.insert(header::RETRY_AFTER, self.retry_after.into());
        }
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response.extensions_mut().insert(ProblemKind(self.name));
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_has_the_headers_of_its_row() {
        let respond = |kind: ErrorKind| kind.respond(kind.status, "text/plain", String::new());
        let refused = respond(ErrorKind::MISSING_KEY);
        assert_eq!(refused.status(), StatusCode::UNAUTHORIZED);
        assert_eq!(refused.headers()[header::WWW_AUTHENTICATE], "Bearer");
        let busy = respond(ErrorKind::BUSY);
        assert_eq!(busy.headers()[header::RETRY_AFTER], "10");
        for kind in [ErrorKind::TIMEOUT, ErrorKind::BUSY.after_asking()] {
            let response = respond(kind);
            assert!(!response.headers().contains_key(header::RETRY_AFTER));
            assert!(!response.headers().contains_key(header::WWW_AUTHENTICATE));
        }
    }
}
