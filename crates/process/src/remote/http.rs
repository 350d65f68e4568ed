//! HTTP requests to one remote server: headers, limits, and resending.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use bridge_protocol::{
    sse::{Cursor, Event, Parser, TooLong},
    utf8,
};
use bytes::{Bytes, BytesMut};
use futures_util::FutureExt as _;
use reqwest::{
    Client, Method, Response, StatusCode, Url,
    header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue},
    redirect::{Action, Attempt, Policy},
};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{
    PerRequestHeaders, RemoteOptions, lost,
    lost::{Failure, Mark},
    message,
    message::{Outgoing, RpcError},
    pipe::{Flights, Input, Output},
};
use crate::spec::RemoteSpec;

/// Idle connections are closed before servers do so: many servers close them after five seconds,
/// and a call written at that moment is lost.
const POOL_IDLE: Duration = Duration::from_secs(4);

/// Detects dead connections.
const KEEPALIVE: Duration = Duration::from_secs(30);

const REDIRECTS: usize = 5;

/// Pauses before retries of a refused connection.
const AGAIN: [Duration; 2] = [Duration::from_millis(200), Duration::from_millis(800)];

/// An HTTP client for one server. Cheap to clone.
#[derive(Clone)]
pub struct Http {
    client: Client,
    /// The server's URL.
    pub url: Url,
    /// Scheme, host and port: the part of the URL that errors may contain.
    pub origin: String,
    /// Maximum time in which the server may send nothing.
    pub idle: Duration,
    /// Maximum size of one message, in bytes.
    pub limit: usize,
    /// The mark of the bridge's own errors.
    pub mark: Mark,
    /// Headers of single requests.
    pub per_request_headers: PerRequestHeaders,
}

impl Http {
    /// Does not connect yet.
    pub fn new(spec: &RemoteSpec, options: &RemoteOptions) -> Result<Self, String> {
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
            // The bridge decides which requests are resent. The client still replaces a pooled
            // connection that closed before any part of the request was written.
            .retry(reqwest::retry::never())
            .build();
        let client = client.map_err(|error| {
            let why = error.without_url();
            format!("cannot prepare HTTP requests to {origin}: {why}")
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

    /// A JSON-RPC error, as a line, for the request with this id.
    pub fn failed(&self, failure: &Failure, id: &str) -> Bytes {
        failure.line(&self.origin, id, &self.mark)
    }

    /// Sends a request without a body to the server's URL.
    pub async fn send_empty(
        &self,
        method: Method,
        headers: HeaderMap,
    ) -> Result<Response, Failure> {
        self.send(method, &self.url, headers, Bytes::new(), true)
            .await
    }

    /// Sends a request and waits for the head of the response. Any status except a redirect is
    /// returned. A request whose connection broke may have arrived: it is resent only once, and only
    /// if it `may_repeat`.
    async fn send(
        &self,
        method: Method,
        url: &Url,
        headers: HeaderMap,
        body: Bytes,
        mut may_repeat: bool,
    ) -> Result<Response, Failure> {
        let mut pauses = AGAIN.into_iter();
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
                Failure::Broken(_) if may_repeat => may_repeat = false,
                other => return Err(other),
            }
        }
    }

    /// Reads the body of a response, up to `limit` bytes.
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

// State that both transports share.

/// Maximum size of a rejection's body that is read, in bytes.
pub const REFUSAL: usize = 256 * 1024;

/// A session with one server, for either transport.
pub struct Transport {
    pub http: Http,
    pub output: Output,
    /// Set when the session is lost.
    pub lost: CancellationToken,
    /// Whether a request was accepted in the session.
    proven: AtomicBool,
}

/// How a server rejected a message.
pub struct Refusal {
    pub status: StatusCode,
    /// Its JSON-RPC error, if it sent one.
    pub error: Option<RpcError>,
    /// The rejection means that the session is lost.
    pub is_about_session: bool,
    /// The server rejects requests like those that it accepted before: a new session shows whether
    /// the session or the credentials are the reason.
    pub is_stale: bool,
}

impl Transport {
    /// Does not connect yet.
    pub fn new(http: Http, output: Output) -> Self {
        Self {
            http,
            output,
            lost: CancellationToken::new(),
            proven: AtomicBool::new(false),
        }
    }

    /// Records that a request was accepted in the session.
    pub fn prove(&self) {
        self.proven.store(true, Ordering::Relaxed);
    }

    /// Whether a request was accepted in the session.
    pub fn is_proven(&self) -> bool {
        self.proven.load(Ordering::Relaxed)
    }

    /// Posts a message.
    pub async fn post(
        &self,
        url: &Url,
        message: &Outgoing,
        mut headers: HeaderMap,
    ) -> Result<Response, Failure> {
        let json = HeaderValue::from_static("application/json");
        headers.insert(CONTENT_TYPE, json);
        let own = &self.http.per_request_headers;
        own.add_to(&mut headers, message.id());
        let (body, may_repeat) = (message.body(), message.is_idempotent());
        self.http
            .send(Method::POST, url, headers, body, may_repeat)
            .await
    }

    /// Reads why the server rejected the request with this id, or a message without an id.
    pub async fn refusal(&self, response: Response, id: Option<&str>) -> Refusal {
        let status = response.status();
        let limit = REFUSAL.min(self.http.limit);
        let body = utf8(self.http.body(response, limit).await.unwrap_or_default());
        let error = message::rpc_error(&body, id);
        Refusal {
            status,
            is_about_session: lost::by_refusal(status, &body, error.as_ref()),
            is_stale: status == StatusCode::UNAUTHORIZED
                && self.is_proven()
                && !self.http.per_request_headers.has_credentials(id),
            error,
        }
    }

    /// Ends the pipe if the session is lost.
    pub fn note(&self, failure: &Failure) {
        if matches!(
            failure,
            Failure::SessionLost | Failure::SessionBroken | Failure::Unauthorized
        ) {
            self.lost.cancel();
        }
    }

    /// After the session was lost: requests in flight may still be answered, and new requests are
    /// rejected without being sent, so that their senders may send them in a new session.
    pub async fn wind_up(&self, input: &mut Input, flights: &mut Flights) {
        let refuse = async |message: Outgoing| {
            if let Some(id) = message.id() {
                let refusal = self.http.failed(&Failure::SessionLost, id);
                self.output.line(refusal).await;
            }
        };
        let refusing = async {
            while let Some(message) = input.next().await {
                refuse(message).await;
            }
        };
        tokio::select! {
            () = flights.land_all() => {}
            () = refusing => {}
        }
        // The rest of the messages in the pipe.
        while let Some(Some(message)) = input.next().now_or_never() {
            refuse(message).await;
        }
    }
}

/// The configured headers, except those that determine HTTP framing.
fn headers(spec: &RemoteSpec) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in &spec.headers {
        let parsed = (name.parse::<HeaderName>(), HeaderValue::try_from(value));
        if let (Ok(name), Ok(mut value)) = parsed {
            value.set_sensitive(true);
            headers.insert(name, value);
        }
    }
    for framing in ["connection", "content-length", "transfer-encoding"] {
        headers.remove(framing);
    }
    headers
}

/// Follows 307 and 308 within the origin, which keep method and body. Other redirects would change
/// the request, or send it to another server.
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

/// The content type of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// One message, or a batch.
    Json,
    /// Server-sent events.
    Events,
    /// Anything else.
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

// The events of one response.

/// Reads events from a response.
pub struct Events {
    response: Response,
    /// Knows the position after the last event.
    pub parser: Parser,
    limit: usize,
    idle: Option<Duration>,
}

impl Events {
    /// `idle` bounds the time without data, `limit` one event, in bytes. `cursor` is the position
    /// at which the stream resumes.
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

    /// The next message. Events of other types are ignored.
    pub async fn message(&mut self) -> Result<Option<Vec<u8>>, Failure> {
        while let Some(event) = self.next().await? {
            if event.is_message() {
                return Ok(Some(event.data));
            }
        }
        Ok(None)
    }
}
