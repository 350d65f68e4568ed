//! Streamable HTTP: each message is a POST, each response is JSON or events.
//!
//! ```text
//! fresh ── response to initialize ──▶ settled ── initialized accepted ──▶ listening
//!   │                                     └── refused ──▶ lost                └── refused ──▶ lost
//!   ├── initialize refused: 400, 404 or 405 without JSON-RPC ──▶ the older transport
//!   └── messages that contain their revision need no session
//! ```
//! `lost.rs` defines when a session is lost.

use std::{sync::Arc, time::Duration};

use bridge_protocol::{header_name, method, sse::Cursor, utf8};
use bytes::Bytes;
use parking_lot::Mutex;
use reqwest::{
    Method, Response, StatusCode,
    header::{ACCEPT, HeaderMap, HeaderValue},
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    ToolSchema,
    http::{Content, Events, Http, Transport, content},
    lost,
    lost::Failure,
    message,
    message::{Outgoing, mirrored},
    pipe::{Flights, Input, Landed, Output},
};

/// A session with one server.
pub struct Streamable {
    base: Transport,
    session: Mutex<Session>,
    refused: Mutex<Option<Refused>>,
    tool_schema: Option<ToolSchema>,
}

/// An `initialize` that was posted to a server without Streamable HTTP, and the failure.
pub type Refused = (Outgoing, Failure);

/// The session values from the response to `initialize`.
#[derive(Default, Clone)]
struct Session {
    id: Option<HeaderValue>,
    version: Option<HeaderValue>,
}

impl Streamable {
    /// Sends nothing before the first message.
    pub fn new(http: Http, output: Output, tool_schema: Option<ToolSchema>) -> Arc<Self> {
        Arc::new(Self {
            base: Transport::new(http, output),
            session: Mutex::default(),
            refused: Mutex::default(),
            tool_schema,
        })
    }

    /// Transports messages until the bridge closes the pipe or the server ends the session.
    pub async fn serve(self: &Arc<Self>, input: &mut Input) {
        let mut flights = Flights::default();
        let mut listening = None;
        let work = async {
            loop {
                tokio::select! {
                    next = input.next() => match next {
                        Some(message) => self.carry(message, &mut flights, &mut listening).await,
                        None => break,
                    },
                    true = flights.land() => {}
                }
            }
            flights.land_all().await;
        };
        let ended = self.base.lost.run_until_cancelled(work).await.is_some();
        let is_older = || self.refused.lock().is_some();
        if ended || is_older() {
            return;
        }
        drop(listening);
        self.base.wind_up(input, &mut flights).await;
    }

    /// Returns, once, the request that must be sent over the older transport instead.
    pub fn refused(&self) -> Option<Refused> {
        self.refused.lock().take()
    }

    /// Closes the session at the server.
    pub async fn close_session(&self) {
        let headers = self.session_headers();
        if headers.contains_key(header_name::SESSION_ID) && !self.base.lost.is_cancelled() {
            let sent = self.base.http.send_empty(Method::DELETE, headers);
            if let Err(failure) = sent.await {
                tracing::debug!(origin = self.base.http.origin, %failure, "session not closed");
            }
        }
    }

    async fn carry(
        self: &Arc<Self>,
        message: Outgoing,
        flights: &mut Flights,
        listening: &mut Option<AbortOnDropHandle<()>>,
    ) {
        let this = self.clone();
        if let Some(id) = message.id() {
            let (id, is_modern) = (id.into(), message.is_modern());
            flights.request(id, is_modern, async move { this.ask(message).await });
        } else if let Some(id) = message.cancels() {
            match flights.is_modern(id) {
                // Closing the stream cancels the request.
                Some(true) => flights.cancel(id),
                Some(false) => {
                    let id = id.into();
                    flights.other(async move {
                        this.tell(&message).await;
                        Landed::Cancelled(id)
                    });
                }
                // It was already answered.
                None => {}
            }
        } else if message.method() == Some(method::INITIALIZED) {
            // The next message may require that the server has received this one.
            if self.tell(&message).await && !message.is_modern() {
                let listen = tokio::spawn(async move { this.listen().await });
                *listening = Some(AbortOnDropHandle::new(listen));
            }
        } else {
            flights.other(async move {
                this.tell(&message).await;
                Landed::Done
            });
        }
    }

    /// Sends a message without a response; true if it was accepted.
    async fn tell(&self, message: &Outgoing) -> bool {
        let failure = match self.post(message).await {
            Ok(posted) => return posted.is_ok(),
            Err(failure) => failure,
        };
        let method = message.method().unwrap_or("an answer");
        tracing::debug!(origin = self.base.http.origin, method, %failure, "message not accepted");
        self.base.note(&failure);
        false
    }

    /// Sends a request; always writes a response line.
    async fn ask(&self, message: Outgoing) {
        let id = message.id().unwrap_or("null");
        let failure = match self.post(&message).await {
            Ok(Ok(response)) => match self.answer(response, &message, id).await {
                Ok(()) if message.is_initialize() => return,
                Ok(()) => return self.base.prove(),
                Err(failure) => failure,
            },
            Ok(Err(line)) => return self.base.output.line(line).await,
            Err(failure) if is_older(&message, &failure) => {
                *self.refused.lock() = Some((message, failure));
                return self.base.lost.cancel();
            }
            Err(failure) => failure,
        };
        // Before the sender gets the failure and may retry at once.
        self.base.note(&failure);
        self.base
            .output
            .line(self.base.http.failed(&failure, id))
            .await;
    }

    /// Posts a message: the response, or the server's own error as a line.
    async fn post(&self, message: &Outgoing) -> Result<Result<Response, Bytes>, Failure> {
        let mut headers = if message.is_modern() {
            let find = self.tool_schema.as_ref();
            let schema = message
                .call()
                .and_then(|(tool, _)| find.and_then(|find| find(tool)));
            mirrored(message, schema.as_ref())
        } else if message.is_initialize() {
            HeaderMap::new()
        } else {
            self.session_headers()
        };
        let accepted = HeaderValue::from_static("application/json, text/event-stream");
        headers.insert(ACCEPT, accepted);
        let url = &self.base.http.url;
        let response = self.base.post(url, message, headers).await?;
        if response.status().is_success() {
            return Ok(Ok(response));
        }
        let in_session = self.is_in_session(message);
        let refusal = self.base.refusal(response, message.id()).await;
        // Within a session a 403 concerns one request, and the server's error is useful.
        let is_about_credentials = refusal.status == StatusCode::UNAUTHORIZED
            || refusal.status == StatusCode::FORBIDDEN && !in_session;
        match refusal.error {
            _ if in_session && refusal.is_about_session => Err(Failure::SessionLost),
            _ if in_session && refusal.is_stale => Err(Failure::Unauthorized),
            // A rejection of the bridge's credentials gets the bridge's own explanation.
            Some(error) if !is_about_credentials => Ok(Err(message::line(error.line))),
            _ => Err(Failure::Status(refusal.status)),
        }
    }

    /// Whether a message belongs to the session: one that opens a session or contains its revision
    /// does not.
    fn is_in_session(&self, message: &Outgoing) -> bool {
        !message.is_initialize() && !message.is_modern() && self.session.lock().id.is_some()
    }

    fn session_headers(&self) -> HeaderMap {
        let session = self.session.lock().clone();
        let pairs = [
            (header_name::SESSION_ID, session.id),
            (header_name::PROTOCOL_VERSION, session.version),
        ];
        pairs
            .into_iter()
            .filter_map(|(name, value)| Some((name.parse().ok()?, value?)))
            .collect()
    }
}

/// Whether the server uses the older transport, according to the specification.
fn is_older(message: &Outgoing, failure: &Failure) -> bool {
    let signs = [
        StatusCode::BAD_REQUEST,
        StatusCode::NOT_FOUND,
        StatusCode::METHOD_NOT_ALLOWED,
    ];
    message.is_initialize()
        && !message.is_modern()
        && matches!(failure, Failure::Status(status) if signs.contains(status))
}

// The response to one POST, and its continuation when its stream breaks.

/// After the response the server should end the stream; then the connection can be reused.
const LINGER: Duration = Duration::from_millis(250);

/// Consecutive attempts to resume a broken stream.
const RESUMPTIONS: u32 = 5;

impl Streamable {
    /// Forwards the server's messages until the request has its response.
    async fn answer(
        &self,
        response: Response,
        message: &Outgoing,
        id: &str,
    ) -> Result<(), Failure> {
        let opens = message.is_initialize() && !message.is_modern();
        if opens {
            let mut session = response.headers().get(header_name::SESSION_ID).cloned();
            if let Some(id) = &mut session {
                id.set_sensitive(true);
            }
            self.session.lock().id = session;
        }
        let question = Question {
            id,
            opens,
            in_session: self.is_in_session(message),
        };
        match content(&response) {
            Content::Json => {
                let body = self.base.http.body(response, self.base.http.limit).await?;
                let body = message::addressed(utf8(body), id);
                if self.pass(body.into(), &question).await? {
                    Ok(())
                } else {
                    Err(Failure::Unanswered)
                }
            }
            Content::Events => self.follow(response, message, &question).await,
            // A server that only accepts a request never sends its response.
            Content::Other if response.status() == StatusCode::ACCEPTED => Err(Failure::Unanswered),
            Content::Other => Err(Failure::NotMcp),
        }
    }

    async fn follow(
        &self,
        response: Response,
        message: &Outgoing,
        question: &Question<'_>,
    ) -> Result<(), Failure> {
        // Notifications may be hours apart.
        let waits_for_news = message.method() == Some(method::LISTEN);
        let idle = (!waits_for_news).then_some(self.base.http.idle);
        let limit = self.base.http.limit;
        let mut events = Events::new(response, limit, idle, Cursor::default());
        loop {
            let Err(failure) = self.drain(&mut events, question).await else {
                return Ok(());
            };
            let cursor = events.parser.cursor().clone();
            let may_resume = matches!(failure, Failure::Broken(_) | Failure::Unanswered);
            if message.is_modern() || cursor.last_id.is_none() || !may_resume {
                return Err(failure);
            }
            let response = self.resume(&cursor, failure).await?;
            events = Events::new(response, limit, idle, cursor);
        }
    }

    /// Forwards the events of a stream; the error is why it ended before the response.
    async fn drain(&self, events: &mut Events, question: &Question<'_>) -> Result<(), Failure> {
        loop {
            let data = events.message().await?.ok_or(Failure::Unanswered)?;
            if self.pass(data, question).await? {
                break;
            }
        }
        let _ = tokio::time::timeout(LINGER, self.pass_all(events)).await;
        Ok(())
    }

    /// Resumes the stream after its last event; `failure` is why it broke.
    async fn resume(&self, cursor: &Cursor, failure: Failure) -> Result<Response, Failure> {
        let mut attempt = 0;
        loop {
            tokio::time::sleep(reconnect_pause(cursor, attempt)).await;
            attempt += 1;
            match self.open_stream(cursor).await {
                Ok(response) => return Ok(response),
                // The server had accepted the request before.
                Err(Failure::SessionLost) => return Err(Failure::SessionBroken),
                Err(refused) if is_final_failure(&refused) => return Err(failure),
                Err(_) if attempt >= RESUMPTIONS => return Err(failure),
                Err(_) => {}
            }
        }
    }

    /// Forwards one message; true if it is the response. A response that only means that the
    /// session is lost is a failure.
    async fn pass(&self, data: Vec<u8>, question: &Question<'_>) -> Result<bool, Failure> {
        let is_answer = message::answers(&data, question.id);
        if is_answer && question.in_session && lost::by_answer(&data, question.id) {
            return Err(Failure::SessionLost);
        }
        if is_answer && question.opens {
            // Before the bridge gets the response, because its next message must contain the
            // revision.
            let version = message::negotiated(&data, question.id);
            let version = version.and_then(|version| HeaderValue::try_from(version).ok());
            self.session.lock().version = version;
        }
        self.base.output.line(message::line(data)).await;
        Ok(is_answer)
    }
}

struct Question<'a> {
    id: &'a str,
    opens: bool,
    in_session: bool,
}

// The session's own stream: server messages that belong to no request.

/// The pause if the server specifies none.
const PAUSE: Duration = Duration::from_secs(1);

/// Minimum pause between connections, whatever the server specifies.
const SHORTEST: Duration = Duration::from_millis(100);

const LONGEST: Duration = Duration::from_secs(60);

impl Streamable {
    /// Forwards all messages, over as many connections as necessary. Returns if the server offers
    /// no stream, or none that can be read.
    async fn listen(&self) {
        let mut cursor = Cursor::default();
        let mut failures = 0;
        loop {
            let failure = match self.open_stream(&cursor).await {
                Ok(response) => {
                    let mut events = Events::new(response, self.base.http.limit, None, cursor);
                    let end = self.pass_all(&mut events).await;
                    cursor = events.parser.cursor().clone();
                    // The interval grows for a server that closes all connections.
                    failures = if events.parser.received_any() {
                        0
                    } else {
                        failures + 1
                    };
                    end.err()
                }
                Err(failure) => {
                    failures += 1;
                    Some(failure)
                }
            };
            if let Some(failure) = failure.filter(is_final_failure) {
                tracing::debug!(
                    origin = self.base.http.origin,
                    %failure,
                    "no stream for server messages"
                );
                return self.base.note(&failure);
            }
            tokio::time::sleep(reconnect_pause(&cursor, failures)).await;
        }
    }

    async fn pass_all(&self, events: &mut Events) -> Result<(), Failure> {
        while let Some(data) = events.message().await? {
            self.base.output.line(message::line(data)).await;
        }
        Ok(())
    }

    /// Opens the session's stream, or resumes a stream after its last event.
    async fn open_stream(&self, cursor: &Cursor) -> Result<Response, Failure> {
        let mut headers = self.session_headers();
        headers.insert(ACCEPT, HeaderValue::from_static("text/event-stream"));
        let last = cursor.last_id.as_ref();
        if let Some(last) = last.and_then(|id| HeaderValue::from_maybe_shared(id.clone()).ok()) {
            headers.insert("last-event-id", last);
        }
        let response = self.base.http.send_empty(Method::GET, headers).await?;
        match response.status() {
            status if !status.is_success() => {
                let refusal = self.base.refusal(response, None).await;
                let lost = refusal.is_about_session && self.session.lock().id.is_some();
                Err(if lost {
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

/// Whether a retry would fail in the same way.
fn is_final_failure(failure: &Failure) -> bool {
    match failure {
        Failure::Status(status) => {
            let later = [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_MANY_REQUESTS];
            (status.is_client_error() && !later.contains(status))
                || *status == StatusCode::NOT_IMPLEMENTED
        }
        Failure::Unreachable(_)
        | Failure::ConnectTimeout
        | Failure::Broken(_)
        | Failure::Silent(_)
        | Failure::Unanswered => false,
        _ => true,
    }
}

/// The server's pause, or the default, doubled with every consecutive failure.
fn reconnect_pause(cursor: &Cursor, failures: u32) -> Duration {
    let first = cursor.retry.unwrap_or(PAUSE).max(SHORTEST);
    first.saturating_mul(1 << failures.min(6)).min(LONGEST)
}
