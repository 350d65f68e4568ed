//! Requests to one remote server: its headers, its limits, and what may be sent again.

use std::time::Duration;

use bridge_protocol::sse::{Cursor, Event, Parser, TooLong};
use bytes::{Bytes, BytesMut};
use reqwest::{
    Client, Method, Response, StatusCode, Url,
    header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue},
    redirect::{Action, Attempt, Policy},
};
use tokio::time::timeout;

use super::{
    PerRequestHeaders, RemoteError, RemoteOptions,
    lost::{Failure, Mark},
};
use crate::spec::RemoteSpec;

/// Idle connections are given up before servers do so: many close them after five seconds, and a
/// call written at that moment is lost.
const POOL_IDLE: Duration = Duration::from_secs(4);

/// Finds connections that died without a word.
const KEEPALIVE: Duration = Duration::from_secs(30);

const REDIRECTS: usize = 5;

/// Pauses before a connection that was refused is tried again.
const AGAIN: [Duration; 2] = [Duration::from_millis(200), Duration::from_millis(800)];

/// Speaks HTTP with one server. Cheap to clone.
#[derive(Clone)]
pub struct Http {
    client: Client,
    /// Where the server is.
    pub url: Url,
    origin: String,
    idle: Duration,
    limit: usize,
    mark: Mark,
    per_request_headers: PerRequestHeaders,
}

/// Whether a request whose connection broke may be sent again. One that was never sent always may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resend {
    /// It may have arrived, and arriving twice would do harm.
    Never,
    /// Once.
    Once,
}

impl Http {
    /// No connection is made yet.
    pub fn new(spec: &RemoteSpec, options: &RemoteOptions) -> Result<Self, RemoteError> {
        let origin = spec.url.origin().ascii_serialization();
        let client = options
            .outbound
            .builder()
            .user_agent(concat!("mcpo-bridge/", env!("CARGO_PKG_VERSION")))
            .default_headers(headers(spec))
            .connect_timeout(options.connect_timeout)
            .pool_idle_timeout(POOL_IDLE)
            .tcp_keepalive(KEEPALIVE)
            .redirect(Policy::custom(follow))
            // The client's own idea of what may be sent again is not ours. It still moves on from
            // a pooled connection that closed before anything of the request was written.
            .retry(reqwest::retry::never())
            .build();
        let client = client.map_err(|error| RemoteError::Client {
            origin: origin.clone(),
            why: error.without_url().to_string(),
        })?;
        Ok(Self {
            client,
            url: spec.url.clone(),
            origin,
            idle: options.idle_timeout,
            limit: options.max_message,
            mark: Mark::random(),
            per_request_headers: PerRequestHeaders::default(),
        })
    }

    /// Scheme, host and port: what errors may name.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// What our own errors bear.
    pub fn mark(&self) -> &Mark {
        &self.mark
    }

    /// Headers of single requests.
    pub fn per_request_headers(&self) -> &PerRequestHeaders {
        &self.per_request_headers
    }

    /// A JSON-RPC error, as a line, for the request with this id.
    pub fn failed(&self, failure: &Failure, id: &str) -> Bytes {
        failure.line(&self.origin, id, &self.mark)
    }

    /// How long the server may be silent.
    pub fn idle(&self) -> Duration {
        self.idle
    }

    /// Bytes of one message.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Sends and waits for the answer's head. The status may be any but a redirect.
    pub async fn send(
        &self,
        method: Method,
        url: &Url,
        headers: HeaderMap,
        body: Bytes,
        resend: Resend,
    ) -> Result<Response, Failure> {
        let mut pauses = AGAIN.into_iter();
        let mut resend = resend;
        loop {
            let request = self
                .client
                .request(method.clone(), url.clone())
                .headers(headers.clone())
                .body(body.clone());
            let failure = match timeout(self.idle, request.send()).await {
                Ok(Ok(response)) if response.status().is_redirection() => {
                    return Err(Failure::Redirect(response.status()));
                }
                Ok(Ok(response)) => return Ok(response),
                Ok(Err(error)) => Failure::sending(&error),
                Err(_) => return Err(Failure::Silent(self.idle)),
            };
            match failure {
                Failure::Unreachable(why) => {
                    let Some(pause) = pauses.next() else {
                        return Err(Failure::Unreachable(why));
                    };
                    tokio::time::sleep(pause).await;
                }
                Failure::Broken(_) if resend == Resend::Once => resend = Resend::Never,
                other => return Err(other),
            }
        }
    }

    /// The rest of an answer, up to `limit` bytes.
    pub async fn body(&self, mut response: Response, limit: usize) -> Result<Bytes, Failure> {
        if response.content_length() > Some(limit as u64) {
            return Err(Failure::TooLarge(limit));
        }
        let mut body = BytesMut::new();
        loop {
            match timeout(self.idle, response.chunk()).await {
                Ok(Ok(Some(chunk))) if body.len() + chunk.len() > limit => {
                    return Err(Failure::TooLarge(limit));
                }
                Ok(Ok(Some(chunk))) => body.extend_from_slice(&chunk),
                Ok(Ok(None)) => return Ok(body.freeze()),
                Ok(Err(error)) => return Err(Failure::reading(&error)),
                Err(_) => return Err(Failure::Silent(self.idle)),
            }
        }
    }
}

/// The configured headers. Those that frame the message are HTTP's own.
fn headers(spec: &RemoteSpec) -> HeaderMap {
    let configured = spec.headers.iter().filter_map(|(name, value)| {
        Some((
            name.parse::<HeaderName>().ok()?,
            HeaderValue::try_from(value).ok()?,
        ))
    });
    let mut headers = HeaderMap::new();
    for (name, mut value) in configured {
        value.set_sensitive(true);
        headers.insert(name, value);
    }
    for framing in ["connection", "content-length", "transfer-encoding"] {
        headers.remove(framing);
    }
    headers
}

/// 307 and 308 within the origin keep method and body. All others would change the request, or
/// show it to somebody else.
fn follow(attempt: Attempt<'_>) -> Action {
    let keeps_request = matches!(
        attempt.status(),
        StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT
    );
    let before = attempt.previous();
    let same_origin = before
        .last()
        .is_some_and(|last| last.origin() == attempt.url().origin());
    if keeps_request && same_origin && before.len() <= REDIRECTS {
        attempt.follow()
    } else {
        attempt.stop()
    }
}

/// What an answer says it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// One message, or a batch.
    Json,
    /// Server-sent events.
    Events,
    /// Nothing that we read.
    Other,
}

/// Reads the content type.
pub fn content(response: &Response) -> Content {
    let header = response.headers().get(CONTENT_TYPE);
    let text = header.and_then(|value| value.to_str().ok()).unwrap_or("");
    let kind = text.split(';').next().unwrap_or("").trim();
    if kind.eq_ignore_ascii_case("text/event-stream") {
        Content::Events
    } else if kind.eq_ignore_ascii_case("application/json") {
        Content::Json
    } else {
        Content::Other
    }
}

// The events of one answer, as they come.

/// Reads events from an answer.
pub struct Events {
    response: Response,
    parser: Parser,
    limit: usize,
    idle: Option<Duration>,
}

impl Events {
    /// `idle` bounds the server's silence, `limit` one event in bytes. `cursor` is where the
    /// stream goes on.
    pub fn new(response: Response, limit: usize, idle: Option<Duration>, cursor: Cursor) -> Self {
        Self {
            response,
            parser: Parser::new(limit, cursor),
            limit,
            idle,
        }
    }

    /// The next event; `None` at the end of the stream. Cancel-safe.
    pub async fn next(&mut self) -> Result<Option<Event>, Failure> {
        loop {
            match self.parser.event() {
                Ok(Some(event)) => return Ok(Some(event)),
                Ok(None) => {}
                Err(TooLong) => return Err(Failure::TooLarge(self.limit)),
            }
            let chunk = self.response.chunk();
            let chunk = match self.idle {
                Some(idle) => timeout(idle, chunk)
                    .await
                    .map_err(|_| Failure::Silent(idle))?,
                None => chunk.await,
            };
            match chunk {
                Ok(Some(bytes)) => self.parser.push(&bytes),
                Ok(None) => return Ok(None),
                Err(error) => return Err(Failure::reading(&error)),
            }
        }
    }

    /// The next message. Events of other names are not for us.
    pub async fn message(&mut self) -> Result<Option<Vec<u8>>, Failure> {
        while let Some(event) = self.next().await? {
            if event.is_message() {
                return Ok(Some(event.data));
            }
        }
        Ok(None)
    }

    /// Where to go on after the last event.
    pub fn cursor(&self) -> Cursor {
        self.parser.cursor().clone()
    }

    /// Whether the server said anything but comments.
    pub fn received_any(&self) -> bool {
        self.parser.received_any()
    }
}
