//! One request to another replica, and its answer as it comes.

use std::{
    error::Error,
    fmt,
    iter::successors,
    net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs as _, UdpSocket},
    time::Duration,
};

use axum::{
    body::Body,
    http::{HeaderMap, HeaderName, Method, Request, StatusCode, header},
    response::{IntoResponse, Response},
};
use bridge_model::{Caller, ForwardReason, SessionId};
use bridge_state::{InstanceId, Peer};
use bytes::Bytes;
use futures_util::stream::try_unfold;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::time::Instant;

use super::{
    Elsewhere, Envelope, PEER_HEADER, Payload, Replicas,
    channel::{CONNECT, NoChannel},
};
use crate::{call::CallError, config::PeerAddress, telemetry::REQUEST_ID};

/// What of a request's headers always goes on. Identity travels in the envelope, and secrets not at
/// all, but where the config has a server get them.
const PASSED: [HeaderName; 4] = [
    header::CONTENT_TYPE,
    header::ACCEPT,
    HeaderName::from_static("last-event-id"),
    REQUEST_ID,
];

/// What of an answer's headers is the connection's, or is set here as well.
const KEPT_BACK: [HeaderName; 6] = [
    header::CONNECTION,
    header::TRANSFER_ENCODING,
    header::DATE,
    header::VARY,
    HeaderName::from_static("keep-alive"),
    REQUEST_ID,
];

/// A request as it goes on.
#[derive(Debug, Clone)]
pub struct Forward {
    /// The method.
    pub method: Method,
    /// Path and query, as they came.
    pub target: String,
    /// Of the request; the envelope and what must not go on is seen to here.
    pub headers: HeaderMap,
    /// The client's headers that a server may get.
    pub chosen: HeaderMap,
    /// The whole body.
    pub body: Payload,
}

/// How it went.
pub(super) enum Sent {
    /// The answer; its body is still coming.
    Answered(Response),
    /// It is not, or no longer, the one that the request belongs to; nothing was done.
    Again,
    /// It does not answer; nothing was done.
    Unreachable(String),
    /// It had the request and gave no answer: it may have done some of the work.
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

    /// Sends a harmless request without a caller first: a stopped process accepts connections and never
    /// answers, and a connection that was kept may be one to a process that has ended. Then nothing
    /// was lost. Whether the other holds the peer key is known by then, too.
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
                // To its end, so that the connection can be used again.
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

    /// Lets one that was seen prove that it holds the peer key.
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

    /// The answer, whose body ends with the other replica's.
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
                            // Trailers say nothing that is ours.
                            if let Ok(chunk) = frame.into_data() {
                                return Ok(Some((chunk, (body, store))));
                            }
                        }
                        // A stopped replica keeps its connections open.
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

/// An answer whose body is still coming.
type Answer = hyper::Response<Incoming>;

/// No answer came.
pub(super) enum Failed {
    /// The request was never sent: the other is no bridge with our key.
    Unproven(String),
    /// The request was never sent.
    NotSent(String),
    /// It may have arrived.
    Sent(String),
}

/// 421 with our own mark.
fn is_again(answer: &Answer) -> bool {
    answer.status() == StatusCode::MISDIRECTED_REQUEST
        && answer.headers().contains_key(&PEER_HEADER)
}

/// The answer to a request that does not belong here.
pub fn again() -> Response {
    let mark = [(PEER_HEADER.clone(), "again")];
    (StatusCode::MISDIRECTED_REQUEST, mark).into_response()
}

/// The innermost cause, without the address: callers may read it.
fn reason(error: &(dyn Error + 'static)) -> String {
    let causes = successors(Some(error), |&error| error.source());
    causes.last().unwrap_or(error).to_string()
}

/// Why there was no connection, if it was that.
fn cause_of<'e>(error: &'e (dyn Error + 'static)) -> Option<&'e NoChannel> {
    let mut causes = successors(Some(error), |&error| error.source());
    causes.find_map(<dyn Error>::downcast_ref)
}

// A request runs here, or is answered by the replica that it belongs to.

/// Between two looks at a lease that is about to change hands.
const PAUSE: Duration = Duration::from_millis(100);

/// What a request is about: it is found here, or belongs to another replica.
pub type Located<T> = Result<T, Elsewhere>;

/// Why a request is not handled further.
pub enum Exit<E> {
    /// It failed.
    Error(E),
    /// Another replica has answered it.
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

/// A request that goes to where it belongs, as often as that has to be looked for.
pub struct Forwarding<'f, F> {
    replicas: &'f Replicas,
    caller: &'f Caller,
    request: F,
    began: Option<Instant>,
    /// Why the last one did not answer.
    unreachable: Option<String>,
}

impl Replicas {
    /// A request that may belong elsewhere. One that was not kept (`None`) goes nowhere.
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
    /// What was located, if that is here; otherwise the request is answered where it is. `locate` looks again.
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

    /// Has the request answered there. A replica that does not answer is waited for until it has come back, or
    /// until what it held is free to take: `Ok` says that it is time to look again where the request belongs.
    pub async fn to<E: From<CallError>>(&mut self, elsewhere: &Elsewhere) -> Result<(), Exit<E>> {
        let failed = |error: CallError| Err(Exit::Error(error.into()));
        let began = *self.began.get_or_insert_with(Instant::now);
        let mut patience = self.replicas.silence;
        if elsewhere.draining {
            patience = self.replicas.patience;
        } else if !may_go_on(self.caller.forward_reason(), elsewhere.reason) {
            // The replica that sent it here looks again, and knows more then.
            return Err(Exit::Answered(Box::new(again())));
        } else {
            let Some(request) = (self.request)() else {
                return failed(elsewhere.unreachable(None));
            };
            let (replicas, metrics) = (self.replicas, &self.replicas.metrics);
            // Boxed: it is large, and few requests go on.
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

/// By a session and then by a lease, each at most once.
fn may_go_on(came: Option<ForwardReason>, goes: ForwardReason) -> bool {
    match came {
        None => true,
        Some(ForwardReason::Session) => goes == ForwardReason::Lease,
        Some(ForwardReason::Lease) => false,
    }
}

// Protocol sessions on several replicas: the one that made it is its home, and its id says so. Where
// a chat's child lives on another one, the session is a remote one there, and the home passes on what
// either side says.

/// An id that names the replica which knows it: `{token}.{instance}`.
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
    /// Reads an id; `None` for one that this service did not make.
    pub fn read(text: &str) -> Option<Self> {
        let (token, home) = text.split_once('.')?;
        Some(Self {
            token: token.parse().ok()?,
            home: home.parse().ok()?,
        })
    }
}

// The address at which other replicas reach this one, where none is configured.

/// What Kubernetes' downward API is asked to set.
const POD_IP: &str = "POD_IP";

/// `HOST:PORT`: as said, else `POD_IP`, else the address that is listened on, else the host's own:
/// what its name means (Docker and Kubernetes write that down for each container), or the address
/// that its packets leave from. `None` where there is nothing but loopback.
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

/// Nothing is sent: connecting a datagram socket only chooses a route.
fn by_route() -> Option<IpAddr> {
    // Addresses for documentation (RFC 5737, RFC 3849), which are behind the default route.
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
