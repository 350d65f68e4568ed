//! Whether a server reports that a session is lost: one rule for both transports, and for all parts
//! of a response in which servers report it.
//!
//! A server that reports it did not process the request, which may be resent in a new session.

use std::{error::Error as _, time::Duration};

use bridge_protocol::{RawJson, code};
use bytes::Bytes;
use reqwest::StatusCode;
use serde::Deserialize;

use super::{message, message::RpcError};

/// Maximum size of a rejection's text that is searched for words, in bytes.
const READ: usize = 4096;

/// Words that servers use for an unknown session, together with the word "session".
const WORDS: &[&str] = &[
    "not found",
    "no valid",
    "not valid",
    "invalid",
    "unknown",
    "not known",
    "not recognized",
    "not recognised",
    "unrecognized",
    "not exist",
    "n't exist",
    "expired",
    "terminated",
    "no longer",
    "could not find",
    "couldn't find",
    "cannot find",
    "can't find",
    "no such",
    "no session",
    "no active",
    "not active",
    "inactive",
    "closed",
    "ended",
    "lost",
    "deleted",
    "evicted",
    "stale",
    "missing",
    "required",
    "timed out",
    "no transport",
];

/// Whether a rejection (an unsuccessful status) within a session concerns the session. Does not
/// cover 401.
pub fn by_refusal(status: StatusCode, body: &[u8], error: Option<&RpcError>) -> bool {
    let about_request = |codes: &[i64]| {
        error.is_some_and(|error| error.names_request && codes.contains(&error.parts.code))
    };
    match status {
        // The status of the specification, and one with the same meaning. A server of 2026-07-28
        // also responds so to an unknown method.
        StatusCode::NOT_FOUND | StatusCode::GONE => !about_request(&[code::METHOD_NOT_FOUND]),
        _ if about_request(&[code::METHOD_NOT_FOUND, code::INVALID_PARAMS]) => false,
        _ => match error {
            Some(error) => says_so(&error.parts.message),
            None => says_so(&String::from_utf8_lossy(&body[..body.len().min(READ)])),
        },
    }
}

/// Whether the response to a request within a session is an error about the session.
pub fn by_answer(answer: &[u8], id: &str) -> bool {
    // Most responses are not errors, and parsing them is avoided.
    memchr::memmem::find(answer, b"\"error\"").is_some()
        && message::error_of(answer, id).is_some_and(|error| by_error(error.code, &error.message))
}

/// A tool's errors may concern another kind of session, such as a browser's: only the codes that
/// servers use for MCP sessions count, and -32000, which can mean anything, counts only with the
/// words for MCP sessions.
fn by_error(found: i64, message: &str) -> bool {
    let ours = || {
        let words = message.to_ascii_lowercase();
        let names = ["session id", "session-id", "sessionid", "not initialized"];
        names.iter().any(|name| words.contains(name))
    };
    match found {
        code::SESSION_NOT_FOUND | code::INVALID_REQUEST => says_so(message),
        code::SERVER_ERROR => says_so(message) && ours(),
        _ => false,
    }
}

fn says_so(text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    let names = text.contains("session") || text.contains("no transport");
    let uninitialized = [
        "not initialized",
        "not initialised",
        "before initialization",
    ];
    names && WORDS.iter().any(|word| text.contains(word))
        || uninitialized.iter().any(|word| text.contains(word))
}

// Why a request has no response, without secrets: never the URL, never a header.

/// Why a request has no response.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// No byte of the request was sent.
    #[error("no connection: {0}")]
    Unreachable(String),
    /// Establishing the connection took too long; no byte of the request was sent.
    #[error("connection timed out")]
    ConnectTimeout,
    /// The request may have arrived.
    #[error("connection lost: {0}")]
    Broken(String),
    /// The request may have arrived.
    #[error("it sent nothing for {} seconds", .0.as_secs_f32())]
    Silent(Duration),
    /// The server rejected the request without a JSON-RPC error.
    #[error("it returned HTTP status {status}{advice}", status = .0, advice = advice(*.0))]
    Status(StatusCode),
    /// Following the redirect would send the request, including its headers, to another server.
    #[error(
        "it redirects (HTTP status {0}) to a URL that the bridge does not follow; set `url` to \
         the final URL"
    )]
    Redirect(StatusCode),
    /// A message exceeds the bridge's limit.
    #[error("its response is larger than {0} bytes (MCPO_MAX_MESSAGE_BYTES)")]
    TooLarge(usize),
    /// The response is neither JSON nor events.
    #[error(
        "its response is neither JSON nor an event stream; check that `url` is its MCP endpoint"
    )]
    NotMcp,
    /// The response ended without a reply to the request.
    #[error("its response ended without a reply to the request")]
    Unanswered,
    /// The server no longer knows the session, and rejected the request without processing it.
    #[error("it ended the session; the next call opens a new one")]
    SessionLost,
    /// The server no longer knows the session in which it had accepted the request.
    #[error("it ended the session during the request; the next call opens a new one")]
    SessionBroken,
    /// The server rejects requests like those that it accepted before. A new session shows whether
    /// the session or the bridge's credentials are the reason.
    #[error("it returned HTTP status 401 Unauthorized (check the server's `headers`)")]
    Unauthorized,
    /// The old transport's first event is missing, or its endpoint has another origin.
    #[error("it returned no message endpoint on its own origin")]
    NoEndpoint,
}

impl Failure {
    /// From an error before the response began.
    pub fn sending(error: &reqwest::Error) -> Self {
        match (error.is_connect(), error.is_timeout()) {
            (true, true) => Self::ConnectTimeout,
            (true, false) => Self::Unreachable(root(error)),
            (false, _) => Self::Broken(root(error)),
        }
    }

    /// From an error within the response.
    pub fn reading(error: &reqwest::Error) -> Self {
        Self::Broken(root(error))
    }

    /// A JSON-RPC error, as a line, for the request with this id. The `mark` identifies it as the
    /// bridge's.
    pub fn line(&self, origin: &str, id: &str, mark: &Mark) -> Bytes {
        let message = format!("the remote server {origin} failed: {self}");
        // The server rejected the request because of the session: a retry in a new session is safe.
        let unread = matches!(self, Self::SessionLost | Self::Unauthorized);
        let data = serde_json::json!({"mark": mark.0, "unread": unread});
        let error =
            serde_json::json!({"code": code::INTERNAL_ERROR, "message": message, "data": data});
        format!("{{\"jsonrpc\":\"2.0\",\"id\":{id},\"error\":{error}}}\n").into()
    }
}

/// Distinguishes the bridge's errors from the server's. The server never receives the mark.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark(String);

impl Mark {
    /// A random mark that cannot be guessed.
    pub fn random() -> Self {
        let mut bytes = [0_u8; 16];
        // Without randomness, a server could at most present its errors as the bridge's.
        let _ = getrandom::fill(&mut bytes);
        Self(format!("{:032x}", u128::from_ne_bytes(bytes)))
    }

    /// Parses the data that [`Failure::line`] wrote into this error object, if the mark matches.
    pub fn failed(&self, error: &RawJson) -> Option<Failed> {
        #[derive(Deserialize)]
        struct Error {
            message: String,
            data: Data,
        }
        #[derive(Deserialize)]
        struct Data {
            mark: String,
            unread: bool,
        }
        let error: Error = error.read().ok()?;
        (error.data.mark == self.0).then_some(Failed {
            why: error.message,
            unread: error.data.unread,
        })
    }
}

/// A request to which the server did not respond.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failed {
    /// What happened, with scheme, host and port of the server; never the rest of its URL.
    pub why: String,
    /// The server's session had ended before the request, which the server did not process.
    pub unread: bool,
}

fn advice(status: StatusCode) -> &'static str {
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => " (check the server's `headers`)",
        _ => "",
    }
}

/// The innermost cause. The outer causes repeat it, or contain the URL.
fn root(error: &reqwest::Error) -> String {
    let mut cause = error.source();
    while let Some(inner) = cause.and_then(std::error::Error::source) {
        cause = Some(inner);
    }
    let text = cause.map_or_else(|| "the request failed".to_owned(), ToString::to_string);
    if text.contains("UnknownIssuer") {
        return "its certificate is not signed by a trusted authority (set SSL_CERT_FILE to the \
                trusted certificates)"
            .to_owned();
    }
    text
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn refused(status: u16, body: &str) -> bool {
        let body = Bytes::from(body.to_owned());
        let error = message::rpc_error(&body, Some("7"));
        by_refusal(StatusCode::from_u16(status).unwrap(), &body, error.as_ref())
    }

    #[test]
    fn refusals_in_every_spelling() {
        for (status, body) in [
            (404, ""),
            (404, "Could not find session"),
            (410, "<html>"),
            (
                404,
                r#"{"jsonrpc":"2.0","id":7,"error":{"code":-32001,"message":"Session not found"}}"#,
            ),
            (
                400,
                r#"{"jsonrpc":"2.0","id":null,"error":{"code":-32000,"message":"Bad Request: No valid session ID provided"}}"#,
            ),
            (
                400,
                r#"{"jsonrpc":"2.0","id":7,"error":{"code":-32600,"message":"Session has expired"}}"#,
            ),
            (
                400,
                r#"{"jsonrpc":"2.0","error":{"code":-32000,"message":"Bad Request: Server not initialized"},"id":null}"#,
            ),
            (400, "No transport found for sessionId"),
            (400, r#"{"error":"Invalid session ID"}"#),
            (403, "session_id is not valid"),
            (500, "unknown session"),
        ] {
            assert!(refused(status, body), "{status} {body}");
        }
        for (status, body) in [
            (
                404,
                r#"{"jsonrpc":"2.0","id":7,"error":{"code":-32601,"message":"Method not found"}}"#,
            ),
            (
                400,
                r#"{"jsonrpc":"2.0","id":7,"error":{"code":-32602,"message":"session: this argument is required"}}"#,
            ),
            (400, "Bad Request"),
            (403, "forbidden"),
            (500, "the recording session is busy"),
            (503, "<html>"),
        ] {
            assert!(!refused(status, body), "{status} {body}");
        }
    }

    #[test]
    fn errors_in_answers_count_by_code_and_words() {
        for (code, text, lost) in [
            (-32001, "Session not found", true),
            (-32600, "Session not found", true),
            (-32600, "Invalid or expired session", true),
            (-32000, "Bad Request: No valid session ID provided", true),
            (-32000, "the browser session was closed", false),
            (-32001, "Request timed out", false),
            (-32602, "Session not found", false),
            (-32603, "session closed", false),
        ] {
            let answer = format!(
                r#"{{"jsonrpc":"2.0","id":7,"error":{{"code":{code},"message":"{text}"}}}}"#
            );
            assert_eq!(by_answer(answer.as_bytes(), "7"), lost, "{answer}");
        }
        assert!(!by_answer(
            br#"{"id":7,"result":{"error":"Session not found"}}"#,
            "7"
        ));
        assert!(!by_answer(
            br#"{"id":8,"error":{"code":-32001,"message":"Session not found"}}"#,
            "7"
        ));
    }
}

#[cfg(test)]
mod failure_tests {
    use super::*;

    #[test]
    fn a_line_is_json_with_the_id_as_it_was() {
        let line =
            Failure::Status(StatusCode::FORBIDDEN).line("https://h\"x", "\"a\"", &Mark::random());
        let value: serde_json::Value = serde_json::from_slice(&line).unwrap();
        assert_eq!(value["id"], "a");
        let message = value["error"]["message"].as_str().unwrap();
        assert!(message.contains("403 Forbidden"), "{message}");
        assert_eq!(line.split(|byte| *byte == b'\n').count(), 2);
    }

    #[test]
    fn only_an_error_with_the_mark_is_ours() {
        let mark = Mark::random();
        let line = Failure::SessionLost.line("https://h", "1", &mark);
        let value: serde_json::Value = serde_json::from_slice(&line).unwrap();
        let error = RawJson::from_json(&value["error"]);
        let failed = mark.failed(&error).unwrap();
        assert!(
            failed.unread
                && failed
                    .why
                    .contains("https://h failed: it ended the session")
        );
        assert_eq!(Mark::random().failed(&error), None);
    }
}
