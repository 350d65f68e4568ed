//! Server-sent events, as MCP uses them.

use std::{convert::Infallible, time::Duration};

use axum::{
    body::{Body, BodyDataStream},
    http::{HeaderValue, header},
    response::{IntoResponse as _, Response},
};
use bridge_protocol::sse::{Cursor, Parser, TooLong};
use bytes::Bytes;
use futures_util::StreamExt as _;
use tokio::sync::mpsc;

/// A stream that says nothing for this long gets a comment: proxies and clients close silent ones.
pub const PING_EVERY: Duration = Duration::from_secs(15);
/// A comment, which clients must ignore.
pub const PING: Bytes = Bytes::from_static(b": ping\n\n");

/// The messages of a response that is a stream of events, as another replica sends them.
pub struct Messages {
    body: BodyDataStream,
    parser: Parser,
}

impl Messages {
    /// Of this response. `limit` in bytes bounds one event.
    pub fn of(response: Response, limit: usize) -> Self {
        Self {
            body: response.into_body().into_data_stream(),
            parser: Parser::new(limit, Cursor::default()),
        }
    }

    /// The next one; `None` once the stream has ended, or cannot be followed further.
    pub async fn next(&mut self) -> Option<Bytes> {
        loop {
            match self.parser.event() {
                Ok(Some(event)) if event.is_message() => return Some(event.data.into()),
                Ok(Some(_)) => {}
                Ok(None) => {
                    let chunk = self.body.next().await?.ok()?;
                    self.parser.push(&chunk);
                }
                Err(TooLong) => {
                    tracing::warn!("an event of another replica is longer than a message may be");
                    return None;
                }
            }
        }
    }
}

/// A response whose body is what comes through the channel.
pub fn response(events: mpsc::Receiver<Bytes>) -> Response {
    let events = futures_util::stream::unfold(events, |mut events| async move {
        let event = events.recv().await?;
        Some((Ok::<_, Infallible>(event), events))
    });
    let mut response = Body::from_stream(events).into_response();
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/event-stream"),
    );
    headers.insert(
        header::CACHE_CONTROL,
        HeaderValue::from_static("no-cache, no-transform"),
    );
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn messages(chunks: &[&'static str], limit: usize) -> Vec<Bytes> {
        let chunks: Vec<_> = chunks
            .iter()
            .map(|chunk| Ok::<_, Infallible>(*chunk))
            .collect();
        let body = Body::from_stream(futures_util::stream::iter(chunks));
        let mut messages = Messages::of(Response::new(body), limit);
        let mut found = Vec::new();
        while let Some(message) = messages.next().await {
            found.push(message);
        }
        found
    }

    #[tokio::test]
    async fn messages_are_found_in_every_spelling_of_an_event() {
        let chunks = [
            ": ping\n\nevent: message\nid: 1\nda",
            "ta: {\"a\":1}\n\ndata:{\"b\":2}\r\n\r\nevent: other\ndata: no\n\n",
            "data: {\ndata: \"c\":3}\n\n",
        ];
        let expected = [r#"{"a":1}"#, r#"{"b":2}"#, "{\n\"c\":3}"];
        assert_eq!(messages(&chunks, 100).await, expected);
    }

    #[tokio::test]
    async fn an_event_without_an_end_is_not_gathered_for_ever() {
        let long = "data: 0123456789012345678901234567890123456789";
        assert_eq!(
            messages(&["data: 1\n\n", long, long, long], 100).await,
            ["1"]
        );
    }
}
