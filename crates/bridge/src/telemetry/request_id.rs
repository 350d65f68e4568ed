//! The id that ties the lines of one request together, and the line that ends it.

use std::{
    fmt,
    hash::{BuildHasher as _, RandomState},
    str::FromStr,
    time::Instant,
};

use axum::{
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode},
    response::Response,
};
use tracing::{Instrument as _, Span};

use crate::telemetry::AUDIT;

/// Taken from the request if it is fit for a log; always in the answer.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Letters of an id that others chose.
const MAX_LENGTH: usize = 128;

/// Names one request: 1–128 of `[A-Za-z0-9._-]`. In the extensions of every request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestId(HeaderValue);

/// The text is no request id.
#[derive(Debug, thiserror::Error)]
#[error("a request id has 1 to {MAX_LENGTH} of A-Z a-z 0-9 . _ -: send such a one or none")]
pub struct InvalidRequestId;

impl RequestId {
    /// A fresh UUID. It is told to everybody, so it need not be hard to guess: no system call.
    pub fn random() -> Self {
        let half = || RandomState::new().hash_one(());
        let bytes = (u128::from(half()) << 64 | u128::from(half())).to_be_bytes();
        let id = uuid::Builder::from_random_bytes(bytes).into_uuid();
        Self::of_fit(
            id.hyphenated()
                .encode_lower(&mut uuid::Uuid::encode_buffer()),
        )
    }

    /// The caller's id, else a fresh one: a bad one, or two of them, is no reason to refuse.
    pub fn of(headers: &HeaderMap) -> Self {
        let mut sent = headers.get_all(REQUEST_ID).iter();
        match (sent.next(), sent.next()) {
            (Some(one), None) => one.to_str().ok().and_then(|text| text.parse().ok()),
            _ => None,
        }
        .unwrap_or_else(Self::random)
    }

    /// The id's text.
    pub fn as_str(&self) -> &str {
        self.0.to_str().expect("its letters are ASCII")
    }

    /// As it stands in a header.
    pub fn header(&self) -> &HeaderValue {
        &self.0
    }

    fn of_fit(text: &str) -> Self {
        Self(HeaderValue::from_str(text).expect("its letters are fit for a header"))
    }
}

impl FromStr for RequestId {
    type Err = InvalidRequestId;
    fn from_str(text: &str) -> Result<Self, InvalidRequestId> {
        let fit = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if (1..=MAX_LENGTH).contains(&text.len()) && text.bytes().all(fit) {
            Ok(Self::of_fit(text))
        } else {
            Err(InvalidRequestId)
        }
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What the lines of one request are written in. `route` is a pattern, never the path: links hold tokens.
///
/// The audit target, so that its lines have the request's id at every level.
pub fn span(id: &RequestId, method: &Method, route: &str) -> Span {
    tracing::info_span!(
        target: AUDIT,
        "request",
        request_id = id.as_str(),
        method = method_label(method),
        route,
    )
}

/// Answers within the request's span; the answer names the id.
pub async fn within(
    span: Span,
    id: &RequestId,
    answer: impl Future<Output = Response>,
) -> Response {
    let handled = async {
        let mut line = EndLine::new();
        let response = answer.await;
        line.status = Some(response.status());
        response
    };
    let mut response = handled.instrument(span).await;
    response.headers_mut().insert(REQUEST_ID, id.0.clone());
    response
}

/// Callers may send any word as a method; logs and metrics know these.
pub(super) fn method_label(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "DELETE" => "DELETE",
        "OPTIONS" => "OPTIONS",
        "PATCH" => "PATCH",
        _ => "other",
    }
}

/// Written when dropped: a caller who hangs up drops his request, and that is worth a line, too.
struct EndLine {
    began: Instant,
    status: Option<StatusCode>,
}

impl EndLine {
    fn new() -> Self {
        Self {
            began: Instant::now(),
            status: None,
        }
    }
}

impl Drop for EndLine {
    fn drop(&mut self) {
        let duration_ms = super::milliseconds(self.began.elapsed());
        match self.status {
            Some(status) if status.is_server_error() => {
                tracing::info!(status = status.as_u16(), duration_ms, "request failed");
            }
            Some(status) => {
                tracing::debug!(status = status.as_u16(), duration_ms, "request answered");
            }
            None => tracing::debug!(duration_ms, "request abandoned"),
        }
    }
}

#[cfg(test)]
mod tests;
