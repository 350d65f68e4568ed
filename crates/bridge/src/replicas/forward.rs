//! Forwards a request to another replica, and streams its answer.

use std::{
    error::Error,
    fmt, io,
    iter::successors,
    net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs as _, UdpSocket},
    sync::Arc,
    time::Duration,
};

use axum::{
    body::Body,
    http::{HeaderMap, HeaderName, Method, Request, StatusCode, header},
    response::{IntoResponse, Response},
};
use bridge_model::{Caller, ForwardReason, SessionId};
use bridge_state::{InstanceId, Peer, StagedFile};
use bytes::Bytes;
use futures_util::stream::try_unfold;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::time::Instant;
use tokio_util::io::ReaderStream;

use super::{
    Elsewhere, Envelope, PEER_HEADER, Replicas,
    channel::{CONNECT, NoChannel},
};
use crate::{call::CallError, config::PeerAddress, telemetry::REQUEST_ID};

/// The request headers that are always forwarded. The caller's identity is in the envelope; secrets are
/// forwarded only if the config passes them to a server.
const PASSED: [HeaderName; 4] = [
    header::CONTENT_TYPE,
    header::ACCEPT,
    HeaderName::from_static("last-event-id"),
    REQUEST_ID,
];

/// The answer headers that belong to the connection, or are set here as well.
const KEPT_BACK: [HeaderName; 6] = [
    header::CONNECTION,
    header::TRANSFER_ENCODING,
    header::DATE,
    header::VARY,
    HeaderName::from_static("keep-alive"),
    REQUEST_ID,
];

/// A request to forward.
#[derive(Debug, Clone)]
pub struct Forward {
    /// The method.
    pub method: Method,
    /// Path and query, unchanged.
    pub target: String,
    /// The headers of the request. They are filtered, and the envelope is added, when the request is sent.
    pub headers: HeaderMap,
    /// The client's headers that a server may get.
    pub chosen: HeaderMap,
    /// The complete body.
    pub body: Payload,
}

/// Bytes per read of a body on disk.
const CHUNK: usize = 128 * 1024;

/// A complete body, which can be read more than once: in memory, or on disk if it contains files.
#[derive(Debug, Clone)]
pub enum Payload {
    /// In memory.
    Whole(Bytes),
    /// On disk.
    Spooled(Arc<StagedFile>),
}

impl Payload {
    /// The body, from its start.
    pub fn body(&self) -> io::Result<Body> {
        Ok(match self {
            Self::Whole(bytes) => Body::from(bytes.clone()),
            Self::Spooled(file) => {
                let file = tokio::fs::File::from_std(file.read()?);
                Body::from_stream(ReaderStream::with_capacity(file, CHUNK))
            }
        })
    }
}

/// The outcome of forwarding.
pub(super) enum Sent {
    /// The answer, with its body as a stream.
    Answered(Response),
    /// That replica is not, or no longer, the right one for the request; it has done nothing.
    Again,
    /// That replica does not respond; it has done nothing.
    Unreachable(String),
    /// That replica received the request and gave no answer: it may have done a part of the work.
    Lost(String),
}

impl Replicas {
    pub(super) async fn send(&self, to: &Elsewhere, caller: &Caller, request: &Forward) -> Sent {
        let Some(address) = &to.address else {
            return Sent::Unreachable("it published no address".to_owned());
        };
        if let Err(why) = self.probe(to, address).await {
            return Sent::Unreachable(why);
        }
        let asked = self.ask(to, address, caller, request);
        let answer = tokio::select! {
            answer = asked => answer,
            () = self.gone(to.to) => return Sent::Lost("it stopped responding".to_owned()),
        };
        match answer {
            Ok(answer) if is_again(&answer) => Sent::Again,
            Ok(answer) => Sent::Answered(self.passed_on(to, answer)),
            Err(Failed::NotSent(why) | Failed::Unproven(why)) => Sent::Unreachable(why),
            Err(Failed::Sent(why)) => Sent::Lost(why),
        }
    }

    /// Sends a harmless request without a caller first, so that a failure loses nothing: a paused process accepts
    /// connections and never answers, and an idle connection may be to a process that has ended. This also
    /// checks that the other replica has the peer key.
    async fn probe(&self, to: &Elsewhere, address: &str) -> Result<(), String> {
        let request = Forward {
            method: Method::GET,
            target: format!("{}/health/live", self.path_prefix),
            headers: HeaderMap::new(),
            chosen: HeaderMap::new(),
            body: Payload::Whole(Bytes::new()),
        };
        let nobody = Caller::nobody(Ipv4Addr::UNSPECIFIED.into());
        let asked = self.ask(to, address, &nobody, &request);
        match tokio::time::timeout(CONNECT, asked).await {
            Ok(Ok(answer)) if answer.status() == StatusCode::OK => {
                // Read to its end, so that the connection can be used again.
                let _ = answer.into_body().collect().await;
                self.has_proven(to.to);
                Ok(())
            }
            Ok(Ok(answer)) if is_again(&answer) => {
                Err("another replica uses its address now".to_owned())
            }
            Ok(Ok(answer)) => Err(format!("it rejects this replica: {}", answer.status())),
            Ok(Err(Failed::NotSent(why) | Failed::Sent(why))) => Err(why),
            Ok(Err(Failed::Unproven(why))) => {
                self.has_not_proven(to.to, address, &why);
                Err(why)
            }
            Err(_) => Err("no response".to_owned()),
        }
    }

    /// Authenticates a replica whose record has been read.
    pub(super) async fn challenge(&self, peer: &Peer) {
        let to = Elsewhere::peer(peer);
        if let Err(why) = self.probe(&to, &peer.address).await {
            tracing::debug!(to = %to.to, why, "replica not verified yet");
        }
    }

    pub(super) async fn ask(
        &self,
        to: &Elsewhere,
        address: &str,
        caller: &Caller,
        request: &Forward,
    ) -> Result<Answer, Failed> {
        let envelope = Envelope {
            to: to.to,
            reason: to.reason,
            caller: caller.clone(),
            remote_session: to.remote_session.clone(),
        };
        let envelope = envelope.written().ok_or_else(|| {
            Failed::NotSent(
                "the client's identity and capabilities are too large to forward".to_owned(),
            )
        })?;
        let body = request.body.body();
        let body = body.map_err(|error| Failed::NotSent(error.to_string()))?;
        let uri = format!("{}{}", self.certificates.way(address), request.target);
        let asked = Request::builder().method(request.method.clone()).uri(uri);
        let asked = asked.body(body);
        let mut asked = asked.map_err(|error| Failed::NotSent(error.to_string()))?;
        let headers = asked.headers_mut();
        let always = |name: &HeaderName| PASSED.contains(name) || name.as_str().starts_with("mcp-");
        let usual = request.headers.iter().filter(|(name, _)| always(name));
        let chosen = request.chosen.iter().filter(|(name, _)| !always(name));
        for (name, value) in usual.chain(chosen) {
            headers.append(name, value.clone());
        }
        headers.insert(PEER_HEADER.clone(), envelope);
        self.client.request(asked).await.map_err(|error| {
            if let Some(unproven @ NoChannel::Unproven(_)) = cause_of(&error) {
                return Failed::Unproven(unproven.to_string());
            }
            let why = reason(&error);
            if error.is_connect() {
                Failed::NotSent(why)
            } else {
                Failed::Sent(why)
            }
        })
    }

    /// The response for the caller; its body ends with that of the other replica's answer.
    fn passed_on(&self, to: &Elsewhere, answer: Answer) -> Response {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = answer.status();
        for (name, value) in answer.headers() {
            let cors = name.as_str().starts_with("access-control-");
            if !cors && !KEPT_BACK.contains(name) {
                response.headers_mut().append(name, value.clone());
            }
        }
        let (store, id) = (self.store.clone(), to.to);
        let chunks = try_unfold(
            (answer.into_body(), store),
            move |(mut body, store)| async move {
                loop {
                    tokio::select! {
                        frame = body.frame() => {
                            let frame = frame.transpose().map_err(|error| reason(&error))?;
                            let Some(frame) = frame else { return Ok(None) };
                            // Trailers contain nothing of the bridge's.
                            if let Ok(chunk) = frame.into_data() {
                                return Ok(Some((chunk, (body, store))));
                            }
                        }
                        // A paused replica keeps its connections open.
                        () = tokio::time::sleep(store.renew_every()) => {
                            let store = store.clone();
                            let alive = tokio::task::spawn_blocking(move || store.is_alive(id));
                            if matches!(alive.await, Ok(false)) {
                                return Err("replica stopped responding".to_owned());
                            }
                        }
                    }
                }
            },
        );
        *response.body_mut() = Body::from_stream(chunks);
        response
    }

    /// Sends a message to another replica; a failure is only logged, since no caller waits for an answer.
    pub async fn tell(&self, to: &Elsewhere, caller: &Caller, request: &Forward) {
        match self.send(to, caller, request).await {
            Sent::Answered(_) => {}
            Sent::Again => tracing::debug!(to = %to.to, "replica did not accept a message"),
            Sent::Unreachable(why) | Sent::Lost(why) => {
                tracing::debug!(to = %to.to, why, "replica did not accept a message");
            }
        }
    }

    /// Opens a stream of events at another replica.
    pub async fn listen(
        &self,
        to: &Elsewhere,
        caller: &Caller,
        request: &Forward,
    ) -> Option<Response> {
        let address = to.address.as_ref()?;
        let asked = self.ask(to, address, caller, request);
        let answer = tokio::time::timeout(CONNECT, asked).await.ok()?.ok()?;
        (answer.status() == StatusCode::OK).then(|| self.passed_on(to, answer))
    }
}

/// An answer, with its body as a stream.
type Answer = hyper::Response<Incoming>;

/// Why there is no answer.
pub(super) enum Failed {
    /// The request was not sent: the server is not a replica with the same key.
    Unproven(String),
    /// The request was not sent.
    NotSent(String),
    /// The request may have been received.
    Sent(String),
}

/// Whether an answer is a 421 with the peer header.
fn is_again(answer: &Answer) -> bool {
    answer.status() == StatusCode::MISDIRECTED_REQUEST
        && answer.headers().contains_key(&PEER_HEADER)
}

/// The answer to a request that belongs to another replica.
pub fn again() -> Response {
    let mark = [(PEER_HEADER.clone(), "again")];
    (StatusCode::MISDIRECTED_REQUEST, mark).into_response()
}

/// The innermost cause, without the address, because callers may see it.
fn reason(error: &(dyn Error + 'static)) -> String {
    let causes = successors(Some(error), |&error| error.source());
    causes.last().unwrap_or(error).to_string()
}

/// The connection error among the causes, if there is one.
fn cause_of<'e>(error: &'e (dyn Error + 'static)) -> Option<&'e NoChannel> {
    let mut causes = successors(Some(error), |&error| error.source());
    causes.find_map(<dyn Error>::downcast_ref)
}

// Requests that are either handled here or answered by another replica.

/// The interval of retries while a lease is about to change its owner.
const PAUSE: Duration = Duration::from_millis(100);

/// The object of a request, if it is here; otherwise the replica that has it.
pub type Located<T> = Result<T, Elsewhere>;

/// Why a request is not handled further.
pub enum Exit<E> {
    /// It failed.
    Error(E),
    /// Another replica answered it.
    Answered(Box<Response>),
}

impl<E> From<E> for Exit<E> {
    fn from(error: E) -> Self {
        Self::Error(error)
    }
}

impl<E: IntoResponse> IntoResponse for Exit<E> {
    fn into_response(self) -> Response {
        match self {
            Self::Error(error) => error.into_response(),
            Self::Answered(response) => *response,
        }
    }
}

/// A request that is forwarded to its replica, with retries while that replica changes.
pub struct Forwarding<'f, F> {
    replicas: &'f Replicas,
    caller: &'f Caller,
    request: F,
    began: Option<Instant>,
    /// Why the last replica did not answer.
    unreachable: Option<String>,
}

impl Replicas {
    /// A request that may belong to another replica. A request without a stored copy (`None`) is not forwarded.
    pub fn forwarding<'f, F: Fn() -> Option<Forward>>(
        &'f self,
        caller: &'f Caller,
        request: F,
    ) -> Forwarding<'f, F> {
        Forwarding {
            replicas: self,
            caller,
            request,
            began: None,
            unreachable: None,
        }
    }
}

impl<F: Fn() -> Option<Forward>> Forwarding<'_, F> {
    /// The located object, if it is here; otherwise the request is forwarded. `locate` is called for each retry.
    pub async fn found<T, E: From<CallError>, Again>(
        mut self,
        mut located: Located<T>,
        locate: impl Fn() -> Again,
    ) -> Result<T, Exit<E>>
    where
        Again: Future<Output = Result<Located<T>, E>>,
    {
        loop {
            match located {
                Ok(found) => return Ok(found),
                Err(elsewhere) => self.to(&elsewhere).await?,
            }
            located = locate().await?;
        }
    }

    /// Forwards the request. Waits for a replica that does not answer, until it responds again, or until its leases
    /// can be taken over: `Ok` means that the caller has to locate the request's replica again.
    pub async fn to<E: From<CallError>>(&mut self, elsewhere: &Elsewhere) -> Result<(), Exit<E>> {
        let failed = |error: CallError| Err(Exit::Error(error.into()));
        let began = *self.began.get_or_insert_with(Instant::now);
        let mut patience = self.replicas.silence;
        if elsewhere.draining {
            patience = self.replicas.patience;
        } else if !may_go_on(self.caller.forward_reason(), elsewhere.reason) {
            // The sending replica locates again, with newer data.
            return Err(Exit::Answered(Box::new(again())));
        } else {
            let Some(request) = (self.request)() else {
                return failed(elsewhere.unreachable(None));
            };
            let (replicas, metrics) = (self.replicas, &self.replicas.metrics);
            // Boxed, because it is large and rarely used.
            match Box::pin(replicas.send(elsewhere, self.caller, &request)).await {
                Sent::Answered(response) => {
                    metrics.forwarded("answered");
                    return Err(Exit::Answered(Box::new(response)));
                }
                Sent::Lost(why) => {
                    metrics.forwarded("lost");
                    return failed(CallError::ReplicaLost(why));
                }
                Sent::Unreachable(why) => {
                    metrics.forwarded("unreachable");
                    tracing::debug!(to = %elsewhere.to, why, "replica does not respond");
                    self.unreachable = Some(why);
                }
                Sent::Again => metrics.forwarded("again"),
            }
        }
        if began.elapsed() > patience {
            return failed(elsewhere.unreachable(self.unreachable.as_deref()));
        }
        tokio::time::sleep(PAUSE).await;
        Ok(())
    }
}

/// A request is forwarded by a session and then by a lease, each at most once.
fn may_go_on(came: Option<ForwardReason>, goes: ForwardReason) -> bool {
    match came {
        None => true,
        Some(ForwardReason::Session) => goes == ForwardReason::Lease,
        Some(ForwardReason::Lease) => false,
    }
}

// Protocol sessions on several replicas: the replica that made a session is its home, and the session id
// contains it. If a chat's child runs on another one, the session is a remote one there, and the home forwards
// the messages of both sides.

/// An id with the replica that knows it: `{token}.{instance}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoutableSessionId {
    /// The secret part.
    pub token: SessionId,
    /// The replica.
    pub home: InstanceId,
}

impl fmt::Display for RoutableSessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.token.as_str(), self.home)
    }
}

impl RoutableSessionId {
    /// Reads an id; `None` if this service did not create it.
    pub fn read(text: &str) -> Option<Self> {
        let (token, home) = text.split_once('.')?;
        Some(Self {
            token: token.parse().ok()?,
            home: home.parse().ok()?,
        })
    }
}

// The address at which other replicas reach this one, if none is configured.

/// The variable that is set by Kubernetes' downward API, if configured so.
const POD_IP: &str = "POD_IP";

/// `HOST:PORT`: as configured, else `POD_IP`, else the listen address, else the host's own address:
/// the one that its name resolves to (Docker and Kubernetes write it into each container), or the source address
/// of its default route. `None` if there is only loopback.
pub fn reachable_at(given: Option<&PeerAddress>, listening: SocketAddr) -> Option<String> {
    let port = given
        .and_then(|given| given.port)
        .unwrap_or(listening.port());
    if let Some(given) = given {
        return Some(joined(&given.host, port));
    }
    let pod = std::env::var(POD_IP).ok();
    let pod = pod.and_then(|address| address.trim().parse::<IpAddr>().ok());
    let listened = Some(listening.ip()).filter(|address| !address.is_unspecified());
    let own = listened
        .filter(IpAddr::is_loopback)
        .or(pod)
        .or(listened)
        .or_else(by_name)
        .or_else(by_route);
    own.map(|address| joined(&address.to_string(), port))
}

fn joined(host: &str, port: u16) -> String {
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

fn by_name() -> Option<IpAddr> {
    let name = rustix::system::uname();
    let name = name.nodename().to_str().ok()?.to_owned();
    let mut found = (name, 0).to_socket_addrs().ok()?.map(|found| found.ip());
    found.find(is_useful)
}

/// Sends nothing: connecting a datagram socket only selects a route.
fn by_route() -> Option<IpAddr> {
    // Addresses for documentation (RFC 5737, RFC 3849), which use the default route.
    let routes = [("0.0.0.0:0", "192.0.2.1:9"), ("[::]:0", "[2001:db8::1]:9")];
    routes.into_iter().find_map(|(any, far)| {
        let socket = UdpSocket::bind(any).ok()?;
        socket.connect(far).ok()?;
        let own = socket.local_addr().ok()?.ip();
        is_useful(&own).then_some(own)
    })
}

fn is_useful(address: &IpAddr) -> bool {
    !address.is_loopback() && !address.is_unspecified()
}

#[cfg(test)]
mod forwarding_tests {
    use super::*;

    #[test]
    fn no_request_goes_round_in_circles() {
        for goes in [ForwardReason::Session, ForwardReason::Lease] {
            assert!(may_go_on(None, goes));
            assert!(!may_go_on(Some(ForwardReason::Lease), goes));
        }
        assert!(may_go_on(
            Some(ForwardReason::Session),
            ForwardReason::Lease
        ));
        assert!(!may_go_on(
            Some(ForwardReason::Session),
            ForwardReason::Session
        ));
    }
}

#[cfg(test)]
mod address_tests {
    use super::*;

    #[test]
    fn what_was_said_counts_and_the_port_that_is_listened_on() {
        let listening: SocketAddr = "0.0.0.0:8081".parse().unwrap();
        let given = |host: &str, port| PeerAddress {
            host: host.into(),
            port,
        };
        let at = |given: PeerAddress| reachable_at(Some(&given), listening).unwrap();
        assert_eq!(at(given("bridge-1", None)), "bridge-1:8081");
        assert_eq!(at(given("fd00::7", Some(9000))), "[fd00::7]:9000");
    }

    #[test]
    fn an_address_that_is_listened_on_is_one_to_reach() {
        let at = |listening: &str| reachable_at(None, listening.parse().unwrap());
        assert_eq!(at("127.0.0.1:8080").as_deref(), Some("127.0.0.1:8080"));
        assert_eq!(at("192.0.2.7:8080").as_deref(), Some("192.0.2.7:8080"));
        let everywhere = at("0.0.0.0:8080");
        assert!(everywhere.is_none_or(|own| !own.starts_with("0.") && !own.starts_with("127.")));
    }
}
