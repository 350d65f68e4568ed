//! The session's own stream: what the server says without being asked.

use std::time::Duration;

use bytes::Bytes;
use reqwest::{
    Method, Response, StatusCode,
    header::{ACCEPT, HeaderValue},
};

use super::{Content, Cursor, Events, Failure, Resend, Streamable, content, lost, message};

/// The pause where the server names none.
const PAUSE: Duration = Duration::from_secs(1);
/// Between connections, whatever the server says.
const SHORTEST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(60);

impl Streamable {
    /// Passes on what comes, over as many connections as it takes. Returns where the server offers
    /// no stream, or none that can be read.
    pub(super) async fn listen(&self) {
        let mut cursor = Cursor::default();
        let mut failures = 0;
        loop {
            let failure = match self.open_stream(&cursor).await {
                Ok(response) => {
                    let mut events = Events::new(response, self.http.limit(), None, cursor);
                    let end = self.pass_all(&mut events).await;
                    cursor = events.cursor();
                    // A server that hangs up on everybody is asked ever more rarely.
                    failures = if events.heard() { 0 } else { failures + 1 };
                    end.err()
                }
                Err(failure) => {
                    failures += 1;
                    Some(failure)
                }
            };
            if let Some(failure) = failure.filter(is_final) {
                tracing::debug!(origin = self.http.origin(), %failure, "no stream of news");
                return self.note(&failure);
            }
            tokio::time::sleep(pause(&cursor, failures)).await;
        }
    }

    async fn pass_all(&self, events: &mut Events) -> Result<(), Failure> {
        while let Some(data) = events.message().await? {
            self.output.line(message::line(data)).await;
        }
        Ok(())
    }

    /// Opens the session's stream, or takes one up again after its last event.
    pub(super) async fn open_stream(&self, cursor: &Cursor) -> Result<Response, Failure> {
        let mut headers = self.session_headers();
        headers.insert(ACCEPT, HeaderValue::from_static("text/event-stream"));
        let last = cursor.last_id.as_ref();
        if let Some(last) = last.and_then(|id| HeaderValue::from_maybe_shared(id.clone()).ok()) {
            headers.insert("last-event-id", last);
        }
        let url = &self.http.url;
        let sent = self
            .http
            .send(Method::GET, url, headers, Bytes::new(), Resend::Once);
        let response = sent.await?;
        match response.status() {
            status if !status.is_success() => {
                let limit = super::REFUSAL.min(self.http.limit());
                let body = self.http.body(response, limit).await.unwrap_or_default();
                let error = message::rpc_error(&body, None);
                let lost = lost::by_refusal(status, &body, error.as_ref());
                Err(if lost && self.session().id.is_some() {
                    Failure::SessionLost
                } else {
                    Failure::Status(status)
                })
            }
            _ if content(&response) != Content::Events => Err(Failure::NotMcp),
            _ => Ok(response),
        }
    }
}

/// Whether asking again would bring nothing else.
pub(super) fn is_final(failure: &Failure) -> bool {
    match failure {
        Failure::Status(status) => {
            let later = [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_MANY_REQUESTS];
            (status.is_client_error() && !later.contains(status))
                || *status == StatusCode::NOT_IMPLEMENTED
        }
        Failure::Redirect(_)
        | Failure::TooLarge(_)
        | Failure::NotMcp
        | Failure::SessionLost
        | Failure::SessionBroken
        | Failure::Unauthorized
        | Failure::NoEndpoint => true,
        Failure::Unreachable(_)
        | Failure::ConnectTimeout
        | Failure::Broken(_)
        | Failure::Silent(_)
        | Failure::Unanswered => false,
    }
}

/// The server's pause, or ours, doubled with every failure in a row.
pub(super) fn pause(cursor: &Cursor, failures: u32) -> Duration {
    let first = cursor.retry.unwrap_or(PAUSE).max(SHORTEST);
    first.saturating_mul(1 << failures.min(6)).min(LONGEST)
}
