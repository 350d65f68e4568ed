//! Protocol sessions (`Mcp-Session-Id`), for clients of 2024-11-05 to 2025-11-25.
//!
//! They contain only the protocol's state between requests: the chat's child and
//! folder belong to the chat, and outlive them.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{
    body::{Body, BodyDataStream},
    http::{HeaderMap, HeaderName, HeaderValue, header},
    response::{IntoResponse as _, Response},
};
use bridge_model::{Principal, RemoteSession, ServerName, SessionId};
use bridge_process::{Cancellation, Child, Responder, WeakNotifier};
use bridge_protocol::{
    RawJson, header_name,
    jsonrpc::{Said, number, splice},
    method,
    sse::{Cursor, Parser, TooLong, event},
};
use bridge_state::InstanceId;
use bytes::Bytes;
use futures_util::{StreamExt as _, stream, stream::BoxStream};
use indexmap::IndexMap;
use parking_lot::Mutex;
use serde_json::{Map, Value};
use tokio::{
    sync::{Notify, broadcast, mpsc},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{aggregate::UriMapping, lists::notification};
use crate::{
    call::PendingInput,
    catalog::News,
    config::{Mode, ServerSpec},
    replicas::RoutableSessionId,
};

/// A session that was unused for this long is removed; its client then initializes again.
const KEPT_UNUSED: Duration = Duration::from_secs(24 * 3600);

/// The servers of a config.
type Servers = IndexMap<ServerName, Arc<ServerSpec>>;

/// Maximum number of sessions of one principal; above it, the least recently used one is removed.
const MOST: usize = 1000;

/// Maximum number of server requests that wait for one client.
const MOST_ASKED: usize = 1000;

/// The log level of a client that did not set one.
const LOG_LEVEL: &str = "info";

/// All sessions of this bridge.
#[derive(Default)]
pub struct McpSessions {
    all: Mutex<HashMap<SessionId, Arc<McpSession>>>,
    owners: AtomicU64,
}

/// The session of one client.
pub struct McpSession {
    /// `Mcp-Session-Id`.
    pub id: SessionId,
    /// Its owner.
    pub principal: Principal,
    /// Its server; `None` at the endpoint of all servers.
    pub server: Option<ServerName>,
    /// The agreed revision.
    pub version: Box<str>,
    /// The capabilities of the client.
    pub capabilities: Map<String, Value>,
    /// Distinguishes its requests from those of other sessions on a shared child.
    pub owner: u64,
    /// The messages for the client's GET stream.
    pub outbox: Arc<Outbox>,
    /// Cancelled when the session ends.
    pub ended: CancellationToken,
    /// Requests in progress, by a number of the bridge: a client may use an id twice at the same time.
    in_flight: Mutex<HashMap<u64, (RawJson, Cancellation)>>,
    requests: AtomicU64,
    asked: Mutex<HashMap<u64, PendingServerRequest>>,
    asks: AtomicU64,
    followed: Mutex<HashMap<u64, Option<WeakNotifier>>>,
    /// Sent to each child that the session follows from now on.
    greeting: Mutex<Option<Bytes>>,
    log_level: Mutex<Box<str>>,
    last_used: Mutex<Instant>,
    /// The replicas where it is a remote session, because a child of it runs there.
    pub(super) session_proxies: Mutex<HashSet<InstanceId>>,
}

/// A request of a child that the client has not answered yet.
struct PendingServerRequest {
    responder: Responder,
    pending_input: PendingInput,
    /// The child's own progress token.
    token: Option<RawJson>,
}

impl PendingServerRequest {
    /// Whether its call waits for another answer, too.
    fn is_one_of_several(&self, others: &HashMap<u64, Self>) -> bool {
        others
            .values()
            .any(|other| other.pending_input.is_of(&self.pending_input))
    }
}

impl McpSessions {
    /// Begins a session.
    pub fn begin(
        &self,
        principal: Principal,
        server: Option<ServerName>,
        version: &str,
        capabilities: Map<String, Value>,
    ) -> Arc<McpSession> {
        let made = RemoteSession {
            id: SessionId::random(),
            server,
            version: version.into(),
            capabilities,
            log_level: LOG_LEVEL.into(),
            greeting: None,
        };
        let session = Arc::new(McpSession::new(principal, made, self.owner(), 1));
        self.keep(&session);
        session
    }

    /// The session of another replica, which was forwarded with a client's request. Its server requests have
    /// numbers that differ from those of the home replica and of all others.
    pub fn remote_session(
        &self,
        principal: &Principal,
        remote_session: &RemoteSession,
    ) -> Option<Arc<McpSession>> {
        let known = self.all.lock().contains_key(&remote_session.id);
        if !known {
            let apart = Uuid::new_v4().as_u64_pair().0 >> 12 | 1 << 32;
            let (principal, made) = (principal.clone(), remote_session.clone());
            let session = McpSession::new(principal, made, self.owner(), apart);
            self.keep(&Arc::new(session));
        }
        let server = remote_session.server.as_ref();
        let found = self.find(&remote_session.id, principal, server)?;
        found.set_log_level(&remote_session.log_level);
        if let Some(greeting) = &remote_session.greeting {
            *found.greeting.lock() = Some(greeting.to_string().into());
        }
        Some(found)
    }

    fn keep(&self, session: &Arc<McpSession>) {
        let mut all = self.all.lock();
        all.retain(|_, other| other.last_used.lock().elapsed() < KEPT_UNUSED);
        let own = all.values();
        let own = own.filter(|other| other.principal == session.principal);
        if own.clone().count() >= MOST
            && let Some(oldest) = own.min_by_key(|other| *other.last_used.lock()).cloned()
        {
            oldest.ended.cancel();
            all.remove(&oldest.id);
        }
        all.entry(session.id.clone())
            .or_insert_with(|| session.clone());
    }

    /// A number that distinguishes the requests of one client from all others.
    pub fn owner(&self) -> u64 {
        self.owners.fetch_add(1, Ordering::Relaxed)
    }

    /// The session, if it belongs to this principal and this server. Other sessions are as if unknown.
    pub fn find(
        &self,
        id: &SessionId,
        principal: &Principal,
        server: Option<&ServerName>,
    ) -> Option<Arc<McpSession>> {
        let session = self.all.lock().get(id)?.clone();
        let theirs = session.principal == *principal && session.server.as_ref() == server;
        theirs.then(|| {
            *session.last_used.lock() = Instant::now();
            session
        })
    }

    /// Notifies the clients of a server that its offer has changed.
    pub fn announce(&self, news: &News) {
        let line = notification(news.method, None);
        let all: Vec<_> = self.all.lock().values().cloned().collect();
        let of_server = |session: &&Arc<McpSession>| session.server.as_ref() == Some(&news.server);
        for session in all.iter().filter(of_server) {
            session.outbox.push(&line);
        }
    }

    /// Ends the sessions with servers whose access list has changed: their clients may initialize again, if
    /// they still have access. The endpoint of all servers always uses the current config.
    pub fn end_where_changed(&self, before: &Servers, now: &Servers) {
        let changed = |server: &ServerName| {
            let allow = |servers: &Servers| servers.get(server).map(|spec| spec.allow.clone());
            allow(before) != allow(now)
        };
        let all: Vec<_> = self.all.lock().values().cloned().collect();
        for session in all {
            if session.server.as_ref().is_some_and(changed) {
                self.end(&session);
            }
        }
    }

    /// Ends a session and its streams.
    pub fn end(&self, session: &McpSession) {
        self.all.lock().remove(&session.id);
        session.ended.cancel();
        session.asked.lock().clear();
    }
}

impl McpSession {
    fn new(principal: Principal, made: RemoteSession, owner: u64, first_ask: u64) -> Self {
        Self {
            id: made.id,
            principal,
            server: made.server,
            version: made.version,
            capabilities: made.capabilities,
            owner,
            outbox: Arc::default(),
            ended: CancellationToken::new(),
            in_flight: Mutex::default(),
            requests: AtomicU64::new(1),
            asked: Mutex::default(),
            asks: AtomicU64::new(first_ask),
            followed: Mutex::default(),
            greeting: Mutex::new(made.greeting.map(|line| String::from(line).into())),
            log_level: Mutex::new(made.log_level),
            last_used: Mutex::new(Instant::now()),
            session_proxies: Mutex::default(),
        }
    }

    /// The state that another replica needs for the session.
    pub fn to_remote_session(&self) -> RemoteSession {
        let greeting = self.greeting.lock().clone();
        let greeting = greeting.and_then(|line| Some(str::from_utf8(&line).ok()?.into()));
        RemoteSession {
            id: self.id.clone(),
            server: self.server.clone(),
            version: self.version.clone(),
            capabilities: self.capabilities.clone(),
            log_level: self.log_level(),
            greeting,
        }
    }

    /// Writes its id, with the home replica, into headers.
    pub fn write_id(&self, home: InstanceId, headers: &mut HeaderMap) {
        let token = self.id.clone();
        let id = RoutableSessionId { token, home }.to_string();
        if let Ok(id) = HeaderValue::from_str(&id) {
            headers.insert(header_name::SESSION_ID, id);
        }
    }

    /// Registers a request, so that its client can cancel it by its id.
    pub fn begin_request(self: &Arc<Self>, id: &RawJson) -> InFlight {
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        let cancellation = Cancellation::default();
        let request = (id.clone(), cancellation.clone());
        self.in_flight.lock().insert(number, request);
        InFlight {
            session: self.clone(),
            number,
            cancellation,
        }
    }

    /// Cancels a request of the client, which sent this line.
    pub fn cancel(&self, line: &Bytes, id: &RawJson) {
        let in_flight: Vec<_> = self.in_flight.lock().values().cloned().collect();
        for (_, cancellation) in in_flight.iter().filter(|(known, _)| known == id) {
            cancellation.cancel(line, id);
        }
    }

    /// Stores the responder of a child's request under a new number, which also replaces the child's
    /// progress token, because several children may use the same one. `None` if too many requests wait for
    /// this client; the child's request must then be declined.
    pub fn ask(
        &self,
        responder: Responder,
        pending_input: PendingInput,
        token: Option<RawJson>,
    ) -> Option<u64> {
        let mut asked = self.asked.lock();
        if asked.len() >= MOST_ASKED {
            return None;
        }
        let number = self.asks.fetch_add(1, Ordering::Relaxed);
        pending_input.begin();
        let ours = PendingServerRequest {
            responder,
            pending_input,
            token,
        };
        asked.insert(number, ours);
        Some(number)
    }

    /// Passes the progress of a client's answer to the child that sent the request; `false` if none did.
    pub fn progress(&self, line: &Bytes, token: &RawJson) -> bool {
        let asked = self.asked.lock();
        let found = number(token.as_str()).and_then(|number| asked.get(&number));
        let own = found.and_then(|found| Some((found, found.token.as_ref()?)));
        own.inspect(|(found, own)| {
            let line = splice(line, &[(token, own.as_bytes())]);
            found.responder.tell(&line);
        })
        .is_some()
    }

    /// The child cancels its request with this id: the client's line, with the bridge's number for the
    /// request; `None` if no such request is open.
    pub fn withdrawn(&self, said: &Said, notifier: &WeakNotifier) -> Option<Bytes> {
        let id = said.param(&["requestId"])?;
        let mut asked = self.asked.lock();
        let mut open = asked.iter();
        let found = open.find(|(_, asked)| notifier.asked(&asked.responder, &id));
        let number = *found?.0;
        let gone = asked.remove(&number)?;
        if !gone.is_one_of_several(&asked) {
            gone.pending_input.answered();
        }
        drop(asked);
        Some(splice(&said.line, &[(&id, number.to_string().as_bytes())]))
    }

    /// Passes a client's response to the child that sent the request, once its call may continue; `false` if
    /// none did.
    pub fn answer(&self, line: &Bytes, id: &RawJson) -> bool {
        let mut open = self.asked.lock();
        let Some(asked) = number(id.as_str()).and_then(|number| open.remove(&number)) else {
            return false;
        };
        let waits = asked.is_one_of_several(&open);
        drop(open);
        if waits {
            // The call still waits for its caller; the child may need this answer before its next request.
            asked.responder.relay(line, id);
            return true;
        }
        asked.pending_input.answered();
        let (line, id) = (line.clone(), id.clone());
        tokio::spawn(async move {
            asked.pending_input.resumed().await;
            asked.responder.relay(&line, &id);
        });
        true
    }

    /// The minimum level of log messages for the client.
    pub fn log_level(&self) -> Box<str> {
        self.log_level.lock().clone()
    }

    /// Sets the minimum level of log messages for the client.
    pub fn set_log_level(&self, level: &str) {
        *self.log_level.lock() = level.into();
    }

    /// Passes a client's notification to the session's children, except shared ones, which would apply it to all
    /// their callers.
    pub fn tell(&self, line: &Bytes) {
        for notifier in self.followed.lock().values().flatten() {
            notifier.tell(line);
        }
    }

    /// Sends a line to the session's children, including future ones; each line replaces the one before it.
    pub fn tell_always(&self, line: &Bytes) {
        *self.greeting.lock() = Some(line.clone());
        self.tell(line);
    }

    /// Forwards the child's messages that belong to no request, until the child or the session ends; from
    /// now on the child gets the client's notifications. `uris` maps the URIs of its resources.
    pub fn follow(self: &Arc<Self>, child: &Child, mode: Mode, uris: Option<UriMapping>) {
        let mut followed = self.followed.lock();
        followed.retain(|_, notifier| notifier.as_ref().is_none_or(WeakNotifier::is_open));
        let notifier = (mode != Mode::Shared).then(|| child.notifier());
        let greeting = self.greeting.lock().clone();
        if let (Some(notifier), Some(greeting)) = (&notifier, greeting)
            && !followed.contains_key(&child.parts.number)
        {
            notifier.tell(&greeting);
        }
        if followed.insert(child.parts.number, notifier).is_some() {
            return;
        }
        drop(followed);
        let (ended, mut news) = (self.ended.clone(), child.news());
        let (session, notifier) = (Arc::downgrade(self), child.notifier());
        tokio::spawn(ended.run_until_cancelled_owned(async move {
            loop {
                let said = match news.recv().await {
                    Ok(said) => said,
                    Err(broadcast::error::RecvError::Lagged(_)) => continue,
                    Err(broadcast::error::RecvError::Closed) => return,
                };
                let Some(session) = session.upgrade() else {
                    return;
                };
                if let Some(line) = session.told(&said, &notifier, uris.as_ref()) {
                    session.outbox.push(&line);
                }
            }
        }));
    }

    /// A child's message for the client.
    fn told(
        &self,
        said: &Said,
        notifier: &WeakNotifier,
        uris: Option<&UriMapping>,
    ) -> Option<Bytes> {
        match (&*said.method, uris) {
            (method::CANCELLED, _) => self.withdrawn(said, notifier),
            (_, Some(uris)) => Some(uris.note(said)),
            (_, None) => Some(said.line.clone()),
        }
    }
}

/// A request in progress. Dropping it unregisters its id.
pub struct InFlight {
    session: Arc<McpSession>,
    number: u64,
    /// Triggered when the client cancels the request.
    pub cancellation: Cancellation,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.session.in_flight.lock().remove(&self.number);
    }
}

// Messages that belong to no request of the client, for the GET stream of its session.
//
// A session may have several such streams at once: a client that lost one without a notice opens
// another. The protocol requires each message on only one of them: the newest gets all messages, and the
// earlier ones wait for its end.

/// Maximum number of stored events, from which a stream can be resumed.
const KEPT_EVENTS: usize = 256;

/// Maximum number of bytes of stored events.
const KEPT_EVENT_BYTES: usize = 4 * 1024 * 1024;

/// The messages, stored for a while so that a stream can be resumed.
#[derive(Default)]
pub struct Outbox {
    events: Mutex<Events>,
    more: Notify,
}

#[derive(Default)]
struct Events {
    kept: VecDeque<(u64, Bytes)>,
    bytes: usize,
    last: u64,
    /// The last event that was sent to a stream.
    sent: u64,
    /// Open streams; the last one gets new events.
    streams: Vec<u64>,
    opened: u64,
}

/// One stream. When it is dropped, the stream before it gets new events.
struct Open {
    outbox: Arc<Outbox>,
    number: u64,
    /// The last event that it must not send again.
    seen: u64,
    /// A newer stream is open.
    waits: bool,
}

impl Drop for Open {
    fn drop(&mut self) {
        let number = self.number;
        self.outbox
            .events
            .lock()
            .streams
            .retain(|other| *other != number);
        self.outbox.more.notify_waiters();
    }
}

impl Open {
    /// The next event, if this stream is the one that sends it.
    fn next(&mut self) -> Option<Bytes> {
        let mut events = self.outbox.events.lock();
        if events.streams.last() != Some(&self.number) {
            self.waits = true;
            return None;
        }
        if std::mem::take(&mut self.waits) {
            self.seen = self.seen.max(events.sent);
        }
        let mut new = events.kept.iter().filter(|(number, _)| *number > self.seen);
        let (number, event) = new.next()?.clone();
        self.seen = number;
        events.sent = events.sent.max(number);
        Some(event)
    }

    async fn send(mut self, reader: mpsc::Sender<Bytes>) {
        let outbox = self.outbox.clone();
        loop {
            let mut more = std::pin::pin!(outbox.more.notified());
            // Registered before the check, or an event in between could be missed.
            more.as_mut().enable();
            while let Some(event) = self.next() {
                if reader.send(event).await.is_err() {
                    return;
                }
            }
            tokio::select! {
                () = more => {}
                () = reader.closed() => return,
                () = tokio::time::sleep(PING_EVERY) => {
                    if reader.send(PING).await.is_err() {
                        return;
                    }
                }
            }
        }
    }
}

impl Outbox {
    /// Adds a message.
    pub fn push(&self, line: &[u8]) {
        let mut events = self.events.lock();
        events.last += 1;
        let event = event(Some(events.last), line);
        events.bytes += event.len();
        let number = events.last;
        events.kept.push_back((number, event));
        while events.kept.len() > KEPT_EVENTS || events.bytes > KEPT_EVENT_BYTES {
            let Some((_, event)) = events.kept.pop_front() else {
                break;
            };
            events.bytes -= event.len();
        }
        drop(events);
        self.more.notify_waiters();
    }

    /// Opens a stream that continues after an event, or, without one, starts with the next event.
    /// The future sends until the reader is closed.
    pub fn open(
        self: &Arc<Self>,
        after: Option<u64>,
        reader: mpsc::Sender<Bytes>,
    ) -> impl Future<Output = ()> + Send + use<> {
        let mut events = self.events.lock();
        events.opened += 1;
        let number = events.opened;
        events.streams.push(number);
        let seen = after.unwrap_or(events.last);
        drop(events);
        let open = Open {
            outbox: self.clone(),
            number,
            seen,
            waits: false,
        };
        open.send(reader)
    }
}

// Server-sent events in MCP.

/// A stream that is silent for this time sends a comment: proxies and clients close silent streams.
pub const PING_EVERY: Duration = Duration::from_secs(15);

/// A comment, which clients must ignore.
pub const PING: Bytes = Bytes::from_static(b": ping\n\n");

/// The messages of another replica's event stream, until it ends or is invalid. `limit` is the maximum number of
/// bytes of one event.
pub fn messages(response: Response, limit: usize) -> BoxStream<'static, Bytes> {
    let body = response.into_body().into_data_stream();
    let parser = Parser::new(limit, Cursor::default());
    let next = |(mut body, mut parser): (BodyDataStream, Parser)| async move {
        loop {
            match parser.event() {
                Ok(Some(event)) if event.is_message() => {
                    return Some((event.data.into(), (body, parser)));
                }
                Ok(Some(_)) => {}
                Ok(None) => parser.push(&body.next().await?.ok()?),
                Err(TooLong) => {
                    tracing::warn!("event from another replica exceeds the message limit");
                    return None;
                }
            }
        }
    };
    stream::unfold((body, parser), next).boxed()
}

/// A response whose body is received from the channel.
pub fn response(mut events: mpsc::Receiver<Bytes>) -> Response {
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-cache, no-transform"),
        (HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    let events = stream::poll_fn(move |context| events.poll_recv(context));
    let body = Body::from_stream(events.map(Ok::<_, Infallible>));
    (headers, body).into_response()
}

#[cfg(test)]
mod stream_tests {
    use super::*;

    async fn found(chunks: &[&'static str], limit: usize) -> Vec<Bytes> {
        let chunks: Vec<_> = chunks
            .iter()
            .map(|chunk| Ok::<_, Infallible>(*chunk))
            .collect();
        let body = Body::from_stream(futures_util::stream::iter(chunks));
        messages(Response::new(body), limit).collect().await
    }

    #[tokio::test]
    async fn messages_are_found_in_every_spelling_of_an_event() {
        let chunks = [
            ": ping\n\nevent: message\nid: 1\nda",
            "ta: {\"a\":1}\n\ndata:{\"b\":2}\r\n\r\nevent: other\ndata: no\n\n",
            "data: {\ndata: \"c\":3}\n\n",
        ];
        let expected = [r#"{"a":1}"#, r#"{"b":2}"#, "{\n\"c\":3}"];
        assert_eq!(found(&chunks, 100).await, expected);
    }

    #[tokio::test]
    async fn an_event_without_an_end_is_not_gathered_for_ever() {
        let long = "data: 0123456789012345678901234567890123456789";
        assert_eq!(found(&["data: 1\n\n", long, long, long], 100).await, ["1"]);
    }
}
