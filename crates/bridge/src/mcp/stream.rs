//! Server-sent events, as MCP uses them.

use std::{convert::Infallible, time::Duration};

use axum::{
    body::{Body, BodyDataStream},
    http::{HeaderValue, header},
    response::{IntoResponse as _, Response},
};
use bytes::Bytes;
use futures_util::StreamExt as _;
use tokio::sync::mpsc;

/// A stream that says nothing for this long gets a comment: proxies and clients close silent ones.
pub const PING_EVERY: Duration = Duration::from_secs(15);
/// A comment, which clients must ignore.
pub const PING: Bytes = Bytes::from_static(b": ping\n\n");
/// One message as an event. Messages are single lines.
pub fn event(id: Option<u64>, line: &[u8]) -> Bytes {
    let mut event = Vec::with_capacity(line.len() + 48);
    event.extend_from_slice(b"event: message\n");
    if let Some(id) = id {
        event.extend_from_slice(format!("id: {id}\n").as_bytes());
    }
    event.extend_from_slice(b"data: ");
    event.extend_from_slice(line);
    event.extend_from_slice(b"\n\n");
    event.into()
}

/// The messages of a response that is a stream of events, however its bytes are cut.
pub struct Messages {
    body: BodyDataStream,
    rest: Vec<u8>,
    /// In so much of the rest there is no end of a line.
    looked: usize,
}

impl Messages {
    /// Of this response.
    pub fn of(response: Response) -> Self {
        Self {
            body: response.into_body().into_data_stream(),
            rest: Vec::new(),
            looked: 0,
        }
    }

    /// The next one; `None` once the stream has ended.
    pub async fn next(&mut self) -> Option<Bytes> {
        loop {
            while let Some(end) = memchr::memchr(b'\n', &self.rest[self.looked..]) {
                let line: Vec<u8> = self.rest.drain(..=self.looked + end).collect();
                self.looked = 0;
                // Comments, ids and names say nothing here; a message is one line of data.
                if let Some(data) = line.strip_prefix(b"data: ") {
                    return Some(Bytes::copy_from_slice(data.trim_ascii_end()));
                }
            }
            self.looked = self.rest.len();
            let chunk = self.body.next().await?.ok()?;
            self.rest.extend_from_slice(&chunk);
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
