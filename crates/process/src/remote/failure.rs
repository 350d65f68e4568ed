//! Why a request has no answer, in words that hold no secret: never the URL, never a header.

use std::{error::Error as _, time::Duration};

use bridge_protocol::{RawJson, code};
use bytes::Bytes;
use reqwest::StatusCode;
use serde::Deserialize;

/// Why a request has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// No byte of the request was sent.
    #[error("no connection: {0}")]
    Unreachable(String),
    /// Making the connection took too long; no byte of the request was sent.
    #[error("no connection in time")]
    ConnectTimeout,
    /// The request may have arrived.
    #[error("the connection broke: {0}")]
    Broken(String),
    /// The request may have arrived.
    #[error("it sent nothing for {} seconds", .0.as_secs_f32())]
    Silent(Duration),
    /// The server refused without a JSON-RPC error.
    #[error("it answered with HTTP status {status}{advice}", status = .0, advice = advice(*.0))]
    Status(StatusCode),
    /// Following would hand the request, and its headers, to somebody else.
    #[error(
        "it redirects (HTTP status {0}) to where the bridge does not follow; set `url` to the final address"
    )]
    Redirect(StatusCode),
    /// A message is larger than the bridge takes in.
    #[error("its answer is above the limit of {0} bytes (MCPO_MAX_MESSAGE_BYTES)")]
    TooLarge(usize),
    /// What came is neither JSON nor events.
    #[error("its answer is neither JSON nor an event stream; is `url` its MCP endpoint?")]
    NotMcp,
    /// All was well but for the answer.
    #[error("it ended its answer without answering the request")]
    Unanswered,
    /// The server knows the session no more, and refused the request unread.
    #[error("it ended the session; the next call opens a new one")]
    SessionLost,
    /// The server knows the session no more in which it had taken the request.
    #[error("it ended the session during the request; the next call opens a new one")]
    SessionBroken,
    /// What was good for the session before is not any more: the session, or what the bridge shows for
    /// itself. A new session finds out.
    #[error("it answered with HTTP status 401 Unauthorized (check the server's `headers`)")]
    Unauthorized,
    /// The old transport's first event is missing or leads elsewhere.
    #[error("it named no endpoint on its own origin for messages")]
    NoEndpoint,
}

impl Failure {
    /// Reads an error from before the answer began.
    pub fn sending(error: &reqwest::Error) -> Self {
        match (error.is_connect(), error.is_timeout()) {
            (true, true) => Self::ConnectTimeout,
            (true, false) => Self::Unreachable(root(error)),
            (false, _) => Self::Broken(root(error)),
        }
    }

    /// The answer broke off.
    pub fn reading(error: &reqwest::Error) -> Self {
        Self::Broken(root(error))
    }

    /// Whether nothing more can be asked in the session.
    pub fn ends_session(&self) -> bool {
        matches!(
            self,
            Self::SessionLost | Self::SessionBroken | Self::Unauthorized
        )
    }

    /// Whether the server may have acted on the request.
    fn heard(&self) -> Heard {
        match self {
            Self::SessionLost | Self::Unauthorized => Heard::No,
            _ => Heard::Perhaps,
        }
    }

    /// A JSON-RPC error, as a line, for the request with this id. The `mark` says that it is ours.
    pub fn line(&self, origin: &str, id: &str, mark: &Mark) -> Bytes {
        let heard = self.heard();
        let message = format!("the remote server {origin} failed: {self}");
        let data = serde_json::json!({"mark": mark.0, "unheard": heard == Heard::No});
        let error =
            serde_json::json!({"code": code::INTERNAL_ERROR, "message": message, "data": data});
        format!("{{\"jsonrpc\":\"2.0\",\"id\":{id},\"error\":{error}}}\n").into()
    }
}

/// Whether the server may have acted on the request that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Heard {
    /// It may have.
    Perhaps,
    /// It refused it for want of a session: asking in a new one does nothing twice.
    No,
}

/// Tells our own errors from the server's, which never sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark(String);

impl Mark {
    /// One that nobody can guess.
    pub fn random() -> Self {
        let mut bytes = [0_u8; 16];
        // Without randomness a server could at most word its errors as ours.
        let _ = getrandom::fill(&mut bytes);
        Self(format!("{:032x}", u128::from_ne_bytes(bytes)))
    }

    /// What [`Failure::line`] wrote into this error object with this mark.
    pub fn failed(&self, error: &RawJson) -> Option<Failed> {
        #[derive(Deserialize)]
        struct Error {
            message: String,
            data: Data,
        }
        #[derive(Deserialize)]
        struct Data {
            mark: String,
            unheard: bool,
        }
        let error: Error = error.read().ok()?;
        (error.data.mark == self.0).then_some(Failed {
            why: error.message,
            unheard: error.data.unheard,
        })
    }
}

/// A request that the server gave no answer to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failed {
    /// What happened, with scheme, host and port of the server; never the rest of its URL.
    pub why: String,
    /// The server's session was over before the request, which it did not act on.
    pub unheard: bool,
}

fn advice(status: StatusCode) -> &'static str {
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => " (check the server's `headers`)",
        _ => "",
    }
}

/// The innermost cause. The outer ones repeat it, or name the URL.
fn root(error: &reqwest::Error) -> String {
    let mut cause = error.source();
    while let Some(inner) = cause.and_then(std::error::Error::source) {
        cause = Some(inner);
    }
    let text = cause.map_or_else(|| "the request failed".to_owned(), ToString::to_string);
    if text.contains("UnknownIssuer") {
        return "its certificate is signed by nobody the bridge trusts (SSL_CERT_FILE names the authorities)".to_owned();
    }
    text
}

#[cfg(test)]
mod tests {
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
        let error = RawJson::of(&value["error"]);
        let failed = mark.failed(&error).unwrap();
        assert!(
            failed.unheard
                && failed
                    .why
                    .contains("https://h failed: it ended the session")
        );
        assert_eq!(Mark::random().failed(&error), None);
    }
}
