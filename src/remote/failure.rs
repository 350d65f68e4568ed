//! Why a request has no answer, in words that hold no secret: never the URL, never a header.

use std::{error::Error as _, time::Duration};

use bytes::Bytes;
use reqwest::StatusCode;

/// JSON-RPC's internal error.
const INTERNAL_ERROR: i32 = -32603;

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
    #[error("it answered with HTTP status {0}")]
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
    /// The server knows the session no more.
    #[error("it ended the session; the next call opens a new one")]
    SessionLost,
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

    /// A JSON-RPC error, as a line, for the request with this id.
    pub fn line(&self, origin: &str, id: &str) -> Bytes {
        let message = format!("the remote server {origin} failed: {self}");
        let error = serde_json::json!({"code": INTERNAL_ERROR, "message": message});
        format!("{{\"jsonrpc\":\"2.0\",\"id\":{id},\"error\":{error}}}\n").into()
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
        let line = Failure::Status(StatusCode::FORBIDDEN).line("https://h\"x", "\"a\"");
        let value: serde_json::Value = serde_json::from_slice(&line).unwrap();
        assert_eq!(value["id"], "a");
        let message = value["error"]["message"].as_str().unwrap();
        assert!(message.contains("403 Forbidden"), "{message}");
        assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
    }
}
