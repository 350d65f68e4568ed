//! Streamable HTTP: each message is a POST, each answer JSON or events.
//!
//! ```text
//! fresh ── answer to initialize ──▶ settled ── initialized accepted ──▶ listening
//!   │                                   └── refused ──▶ lost                └── refused ──▶ lost
//!   ├── initialize refused: 400, 404 or 405 without JSON-RPC ──▶ the older transport
//!   └── messages that name their revision themselves need no session
//! ```
//! What counts as "the session is lost" says `lost.rs`.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bridge_protocol::{header_name, method, sse::Cursor, utf8};
use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use reqwest::{
    Method, Response, StatusCode,
    header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderValue},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::{
    ToolSchema,
    http::{Content, Events, Http, Resend, content},
    lost,
    lost::Failure,
    message,
    message::{Kind, Outgoing, mirror},
    pipe::{Flights, Input, Landed, Output, wind_up},
};

/// Bytes that are read of a refusal.
const REFUSAL: usize = 256 * 1024;

/// A conversation with one server.
pub struct Streamable {
    http: Http,
    output: Output,
    session: Mutex<Session>,
    lost: CancellationToken,
    /// A request was answered in the session.
    proven: AtomicBool,
    refused: Mutex<Option<Refused>>,
    tool_schema: Option<ToolSchema>,
}

/// An `initialize` that was posted to something that is no Streamable HTTP, and what it said.
pub type Refused = (Outgoing, Failure);

/// What the server gave with its answer to `initialize`.
#[derive(Default, Clone)]
struct Session {
    id: Option<HeaderValue>,
    version: Option<HeaderValue>,
}

impl Streamable {
    /// Nothing is sent before the first message.
    pub fn new(http: Http, output: Output, tool_schema: Option<ToolSchema>) -> Arc<Self> {
        Arc::new(Self {
            http,
            output,
            session: Mutex::default(),
            lost: CancellationToken::new(),
            proven: AtomicBool::new(false),
            refused: Mutex::default(),
            tool_schema,
        })
    }

    /// Carries messages until the bridge closes the pipe, or the server ends the session.
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
        let ended = self.lost.run_until_cancelled(work).await.is_some();
        let is_older = || self.refused_lock().is_some();
        if ended || is_older() {
            return;
        }
        drop(listening);
        let refusal = |id: &str| self.http.failed(&Failure::SessionLost, id);
        wind_up(input, &mut flights, &self.output, refusal).await;
    }

    /// What is to be asked over the older transport instead, once.
    pub fn refused(&self) -> Option<Refused> {
        self.refused_lock().take()
    }

    fn refused_lock(&self) -> MutexGuard<'_, Option<Refused>> {
        self.refused.lock()
    }

    /// Tells the server that nobody comes back.
    pub async fn say_goodbye(&self) {
        let headers = self.session_headers();
        if headers.contains_key(header_name::SESSION_ID) && !self.lost.is_cancelled() {
            let url = &self.http.url;
            let sent = self
                .http
                .send(Method::DELETE, url, headers, Bytes::new(), Resend::Once);
            if let Err(failure) = sent.await {
                tracing::debug!(origin = self.http.origin(), %failure, "session not closed");
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
        match &message.kind {
            Kind::Request { id, .. } => {
                let (id, is_modern) = (id.clone(), message.modern.is_some());
                flights.request(id, is_modern, async move { this.ask(message).await });
            }
            Kind::Cancel { id } => match flights.is_modern(id) {
                // The end of the stream is the cancellation.
                Some(true) => flights.cancel(id),
                Some(false) => {
                    let id = id.clone();
                    flights.other(async move {
                        this.tell(&message).await;
                        Landed::Cancelled(id)
                    });
                }
                // It was answered meanwhile.
                None => {}
            },
            // What comes next may need that the server has heard it.
            Kind::Notification { method } if &**method == method::INITIALIZED => {
                if self.tell(&message).await && message.modern.is_none() {
                    let listen = tokio::spawn(async move { this.listen().await });
                    *listening = Some(AbortOnDropHandle::new(listen));
                }
            }
            Kind::Notification { .. } | Kind::Answer => flights.other(async move {
                this.tell(&message).await;
                Landed::Done
            }),
        }
    }

    /// Sends what has no answer; true if it was accepted.
    async fn tell(&self, message: &Outgoing) -> bool {
        let failure = match self.post(message).await {
            Ok(response) if response.status().is_success() => return true,
            Ok(response) => match self.refusal(response, message).await {
                Refusal::Rpc(_) => return false,
                Refusal::Failure(failure) => failure,
            },
            Err(failure) => failure,
        };
        let method = message.method().unwrap_or("an answer");
        tracing::debug!(origin = self.http.origin(), method, %failure, "message not accepted");
        self.note(&failure);
        false
    }

    /// Sends a request; in the end there is a line for it.
    async fn ask(&self, message: Outgoing) {
        let id = message.id().unwrap_or("null");
        let failure = match self.post(&message).await {
            Ok(response) if response.status().is_success() => {
                match self.answer(response, &message, id).await {
                    Ok(()) if message.method() == Some(method::INITIALIZE) => return,
                    Ok(()) => return self.proven.store(true, Ordering::Relaxed),
                    Err(failure) => failure,
                }
            }
            Ok(response) => match self.refusal(response, &message).await {
                Refusal::Rpc(line) => return self.output.line(line).await,
                Refusal::Failure(failure) if is_older(&message, &failure) => {
                    *self.refused_lock() = Some((message, failure));
                    return self.lost.cancel();
                }
                Refusal::Failure(failure) => failure,
            },
            Err(failure) => failure,
        };
        // Before its sender hears of it, who may come again at once.
        self.note(&failure);
        self.output.line(self.http.failed(&failure, id)).await;
    }

    async fn post(&self, message: &Outgoing) -> Result<Response, Failure> {
        let mut headers = match &message.modern {
            Some(modern) => {
                let called = modern
                    .name
                    .as_deref()
                    .filter(|_| modern.arguments.is_some());
                let find = self.tool_schema.as_ref();
                let schema = called.and_then(|tool| find.and_then(|find| find(tool)));
                let mut headers = HeaderMap::new();
                mirror(&mut headers, message, modern, schema.as_ref());
                headers
            }
            None if message.method() == Some(method::INITIALIZE) => HeaderMap::new(),
            None => self.session_headers(),
        };
        let accepted = HeaderValue::from_static("application/json, text/event-stream");
        headers.insert(ACCEPT, accepted);
        let json = HeaderValue::from_static("application/json");
        headers.insert(CONTENT_TYPE, json);
        self.http
            .per_request_headers()
            .add_to(&mut headers, message.id());
        let resend = if message.is_idempotent() {
            Resend::Once
        } else {
            Resend::Never
        };
        let (url, body) = (&self.http.url, message.body.clone());
        self.http
            .send(Method::POST, url, headers, body, resend)
            .await
    }

    /// Reads why the server refused.
    async fn refusal(&self, response: Response, message: &Outgoing) -> Refusal {
        let (status, id) = (response.status(), message.id());
        let in_session = self.is_in_session(message);
        let limit = REFUSAL.min(self.http.limit());
        let body = self.http.body(response, limit).await.unwrap_or_default();
        let body = utf8(body);
        let error = message::rpc_error(&body, id);
        let is_about_session = lost::by_refusal(status, &body, error.as_ref());
        // What was good for the session before: a new one finds out whether it is at fault.
        let is_stale = status == StatusCode::UNAUTHORIZED
            && self.proven.load(Ordering::Relaxed)
            && !self.http.per_request_headers().has_credentials(id);
        // Within a session a 403 is about one request, and the server's words are worth having.
        let is_about_credentials =
            status == StatusCode::UNAUTHORIZED || status == StatusCode::FORBIDDEN && !in_session;
        match error {
            _ if in_session && is_about_session => Refusal::Failure(Failure::SessionLost),
            _ if in_session && is_stale => Refusal::Failure(Failure::Unauthorized),
            // About the bridge's credentials, and so ours to explain.
            _ if is_about_credentials => Refusal::Failure(Failure::Status(status)),
            Some(error) => Refusal::Rpc(message::line(error.line)),
            None => Refusal::Failure(Failure::Status(status)),
        }
    }

    /// A session that is lost ends the pipe.
    fn note(&self, failure: &Failure) {
        if failure.ends_session() {
            self.lost.cancel();
        }
    }

    /// Whether a message goes to a session of the server's: one that opens another, or names its revision
    /// itself, goes to none.
    fn is_in_session(&self, message: &Outgoing) -> bool {
        let opens = message.method() == Some(method::INITIALIZE);
        !opens && message.modern.is_none() && self.session().id.is_some()
    }

    fn session(&self) -> Session {
        let session = self.session.lock();
        session.clone()
    }

    fn settle(&self, change: impl FnOnce(&mut Session)) {
        let mut session = self.session.lock();
        change(&mut session);
    }

    fn session_headers(&self) -> HeaderMap {
        let session = self.session();
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

/// What the specification tells clients to take for a server of the older transport.
fn is_older(message: &Outgoing, failure: &Failure) -> bool {
    let signs = [
        StatusCode::BAD_REQUEST,
        StatusCode::NOT_FOUND,
        StatusCode::METHOD_NOT_ALLOWED,
    ];
    let opens = message.method() == Some(method::INITIALIZE) && message.modern.is_none();
    opens && matches!(failure, Failure::Status(status) if signs.contains(status))
}

enum Refusal {
    /// The server's own error, as a line.
    Rpc(Bytes),
    Failure(Failure),
}

// The answer to one POST, and how it goes on elsewhere when its stream breaks.

/// After the answer the server should end the stream; then the connection can be used again.
const LINGER: Duration = Duration::from_millis(250);

/// Attempts in a row to take a broken stream up again.
const RESUMPTIONS: u32 = 5;

/// What came of a stream.
enum End {
    /// With the answer.
    Answered,
    /// It ended, or broke.
    Open(Failure),
}

impl Streamable {
    /// Passes on what the server sends, until the request has its answer.
    async fn answer(
        &self,
        response: Response,
        message: &Outgoing,
        id: &str,
    ) -> Result<(), Failure> {
        let opens = message.method() == Some(method::INITIALIZE) && message.modern.is_none();
        if opens {
            let mut session = response.headers().get(header_name::SESSION_ID).cloned();
            if let Some(id) = &mut session {
                id.set_sensitive(true);
            }
            self.settle(|settled| settled.id = session);
        }
        let question = Question {
            id,
            opens,
            in_session: self.is_in_session(message),
        };
        match content(&response) {
            Content::Json => {
                let body = self.http.body(response, self.http.limit()).await?;
                let body = message::addressed(utf8(body), id);
                if self.pass(body.into(), &question).await? {
                    Ok(())
                } else {
                    Err(Failure::Unanswered)
                }
            }
            Content::Events => self.follow(response, message, &question).await,
            // No server says "accepted" to a request and means it.
            Content::Other if response.status() == reqwest::StatusCode::ACCEPTED => {
                Err(Failure::Unanswered)
            }
            Content::Other => Err(Failure::NotMcp),
        }
    }

    async fn follow(
        &self,
        response: Response,
        message: &Outgoing,
        question: &Question<'_>,
    ) -> Result<(), Failure> {
        // News may be hours away.
        let waits_for_news = message.method() == Some(method::LISTEN);
        let idle = (!waits_for_news).then_some(self.http.idle());
        let limit = self.http.limit();
        let mut events = Events::new(response, limit, idle, Cursor::default());
        loop {
            let failure = match self.drain(&mut events, question).await {
                End::Answered => return Ok(()),
                End::Open(failure) => failure,
            };
            let cursor = events.cursor();
            let may_resume = matches!(failure, Failure::Broken(_) | Failure::Unanswered);
            if message.modern.is_some() || cursor.last_id.is_none() || !may_resume {
                return Err(failure);
            }
            let response = self.resume(&cursor, failure).await?;
            events = Events::new(response, limit, idle, cursor);
        }
    }

    async fn drain(&self, events: &mut Events, question: &Question<'_>) -> End {
        loop {
            match events.message().await {
                Ok(Some(data)) => match self.pass(data, question).await {
                    Ok(true) => break,
                    Ok(false) => {}
                    Err(failure) => return End::Open(failure),
                },
                Ok(None) => return End::Open(Failure::Unanswered),
                Err(failure) => return End::Open(failure),
            }
        }
        let rest = async {
            while let Ok(Some(data)) = events.message().await {
                self.output.line(message::line(data)).await;
            }
        };
        let _ = tokio::time::timeout(LINGER, rest).await;
        End::Answered
    }

    /// Takes the stream up again after its last event; `failure` is why it has to be.
    async fn resume(&self, cursor: &Cursor, failure: Failure) -> Result<Response, Failure> {
        let mut attempt = 0;
        loop {
            tokio::time::sleep(reconnect_pause(cursor, attempt)).await;
            attempt += 1;
            match self.open_stream(cursor).await {
                Ok(response) => return Ok(response),
                // It had taken the request before.
                Err(Failure::SessionLost) => return Err(Failure::SessionBroken),
                Err(refused) if is_final_failure(&refused) => return Err(failure),
                Err(_) if attempt >= RESUMPTIONS => return Err(failure),
                Err(_) => {}
            }
        }
    }

    /// Passes on one message; true if it is the answer. An answer that only says that the session is lost
    /// is a failure.
    async fn pass(&self, data: Vec<u8>, question: &Question<'_>) -> Result<bool, Failure> {
        let is_answer = message::answers(&data, question.id);
        if is_answer && question.in_session && lost::by_answer(&data, question.id) {
            return Err(Failure::SessionLost);
        }
        if is_answer && question.opens {
            // Before the bridge hears of it: its next message has to carry the revision.
            let version = message::negotiated(&data, question.id);
            let version = version.and_then(|version| HeaderValue::try_from(version).ok());
            self.settle(|session| session.version = version);
        }
        self.output.line(message::line(data)).await;
        Ok(is_answer)
    }
}

struct Question<'a> {
    id: &'a str,
    opens: bool,
    in_session: bool,
}

// The session's own stream: what the server says without being asked.

/// The pause where the server names none.
const PAUSE: Duration = Duration::from_secs(1);

/// Between connections, whatever the server says.
const SHORTEST: Duration = Duration::from_millis(100);

const LONGEST: Duration = Duration::from_secs(60);

impl Streamable {
    /// Passes on what comes, over as many connections as it takes. Returns where the server offers
    /// no stream, or none that can be read.
    async fn listen(&self) {
        let mut cursor = Cursor::default();
        let mut failures = 0;
        loop {
            let failure = match self.open_stream(&cursor).await {
                Ok(response) => {
                    let mut events = Events::new(response, self.http.limit(), None, cursor);
                    let end = self.pass_all(&mut events).await;
                    cursor = events.cursor();
                    // A server that hangs up on everybody is asked ever more rarely.
                    failures = if events.received_any() {
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
                    origin = self.http.origin(),
                    %failure,
                    "no stream for server messages"
                );
                return self.note(&failure);
            }
            tokio::time::sleep(reconnect_pause(&cursor, failures)).await;
        }
    }

    async fn pass_all(&self, events: &mut Events) -> Result<(), Failure> {
        while let Some(data) = events.message().await? {
            self.output.line(message::line(data)).await;
        }
        Ok(())
    }

    /// Opens the session's stream, or takes one up again after its last event.
    async fn open_stream(&self, cursor: &Cursor) -> Result<Response, Failure> {
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
                let limit = REFUSAL.min(self.http.limit());
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
fn is_final_failure(failure: &Failure) -> bool {
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
fn reconnect_pause(cursor: &Cursor, failures: u32) -> Duration {
    let first = cursor.retry.unwrap_or(PAUSE).max(SHORTEST);
    first.saturating_mul(1 << failures.min(6)).min(LONGEST)
}
