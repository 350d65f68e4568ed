//! Whether a server says that it knows the session no more: one rule for both transports, and for
//! every place in which servers say it.
//!
//! A server that says so did not act on the request: it may be sent again in a new session.

use bridge_protocol::code;
use reqwest::StatusCode;

use super::message::{self, RpcError};

/// Bytes of a refusal's text in which words are looked for.
const READ: usize = 4096;

/// What servers say of a session that they do not know. Each is looked for beside the word "session".
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

/// Whether a refusal (a status that is no success) within a session is about the session. A 401 is not
/// judged here.
pub fn by_refusal(status: StatusCode, body: &[u8], error: Option<&RpcError>) -> bool {
    let about_request = |codes: &[i64]| {
        error.is_some_and(|error| error.names_request && codes.contains(&error.code))
    };
    match status {
        // What the specification has for it, and what means the same. A server of 2026-07-28 says in
        // this way that it has no such method.
        StatusCode::NOT_FOUND | StatusCode::GONE => !about_request(&[code::METHOD_NOT_FOUND]),
        _ if about_request(&[code::METHOD_NOT_FOUND, code::INVALID_PARAMS]) => false,
        _ => match error {
            Some(error) => says_so(&error.message),
            None => says_so(&String::from_utf8_lossy(&body[..body.len().min(READ)])),
        },
    }
}

/// Whether the answer to a request within a session is an error about the session.
pub fn by_answer(answer: &[u8], id: &str) -> bool {
    // Most answers are none, and are not read for this.
    memchr::memmem::find(answer, b"\"error\"").is_some()
        && message::error_of(answer, id).is_some_and(|error| by_error(error.code, &error.message))
}

/// The errors of a tool may be about a session of its own, such as a browser's: only the codes that
/// servers use for ours count, and -32000, which stands for anything, only with our words.
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
