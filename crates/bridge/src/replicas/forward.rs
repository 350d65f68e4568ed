//! One request to another replica, and its answer as it comes.

use std::error::Error;

use axum::{
    body::Body,
    http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, header},
    response::Response,
};
use bridge_model::{Caller, Hop, Principal};
use bridge_state::Peer;
use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;

use super::{
    Elsewhere, Envelope, PEER_HEADER, Payload, Replicas,
    channel::{CONNECT, NoChannel},
};
use crate::telemetry::REQUEST_ID;

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
            return Sent::Unreachable("it did not say where it can be reached".to_owned());
        };
        if let Err(why) = self.knock(to, address).await {
            return Sent::Unreachable(why);
        }
        let asked = self.ask(to, address, caller, request);
        let answer = tokio::select! {
            answer = asked => answer,
            () = self.gone(to.to) => return Sent::Lost("it fell silent".to_owned()),
        };
        match answer {
            Ok(answer) if is_again(&answer) => Sent::Again,
            Ok(answer) => Sent::Answered(self.passed_on(to, answer)),
            Err(Failed::NotSent(why) | Failed::Unproven(why)) => Sent::Unreachable(why),
            Err(Failed::Sent(why)) => Sent::Lost(why),
        }
    }

    /// Asks something harmless first, in nobody's name: a stopped process takes connections and never
    /// answers, and a connection that was kept may be one to a process that has ended. Then nothing
    /// was lost. Whether the other holds the peer key is known by then, too.
    async fn knock(&self, to: &Elsewhere, address: &str) -> Result<(), String> {
        let request = Forward {
            method: Method::GET,
            target: format!("{}/health/live", self.path_prefix),
            headers: HeaderMap::new(),
            chosen: HeaderMap::new(),
            body: Payload::Whole(Bytes::new()),
        };
        let nobody = nobody();
        let asked = self.ask(to, address, &nobody, &request);
        match tokio::time::timeout(CONNECT, asked).await {
            Ok(Ok(answer)) if answer.status() == StatusCode::OK => {
                // To its end, so that the connection can be used again.
                let _ = answer.into_body().collect().await;
                self.has_proven(to.to);
                Ok(())
            }
            Ok(Ok(answer)) if is_again(&answer) => Err("another bridge is there now".to_owned()),
            Ok(Ok(answer)) => Err(format!("it refuses this bridge: {}", answer.status())),
            Ok(Err(Failed::NotSent(why) | Failed::Sent(why))) => Err(why),
            Ok(Err(Failed::Unproven(why))) => {
                self.has_not_proven(to.to, address, &why);
                Err(why)
            }
            Err(_) => Err("it does not answer".to_owned()),
        }
    }

    /// Lets one that was seen prove that it holds the peer key.
    pub(super) async fn challenge(&self, peer: &Peer) -> bool {
        let to = Elsewhere {
            to: peer.instance,
            address: Some(peer.address.clone()),
            draining: false,
            hop: Hop::Lease,
            guest: None,
        };
        let proven = self.knock(&to, &peer.address).await;
        proven
            .inspect_err(|why| tracing::debug!(to = %to.to, why, "another bridge is not known yet"))
            .is_ok()
    }

    pub(super) async fn ask(
        &self,
        to: &Elsewhere,
        address: &str,
        caller: &Caller,
        request: &Forward,
    ) -> Result<Answer, Failed> {
        let envelope = Envelope::new(to.to, caller, to.hop, to.guest.clone()).written();
        let envelope = envelope.ok_or_else(|| {
            Failed::NotSent("what the client says of itself is too long to go on".to_owned())
        })?;
        let body = request.body.body();
        let body = body.map_err(|error| Failed::NotSent(error.to_string()))?;
        let asked = Request::builder()
            .method(request.method.clone())
            .uri(format!(
                "{}{}",
                self.certificates.way(address),
                request.target
            ))
            .body(body);
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
        let look = self.store.renew_every();
        let chunks = futures_util::stream::unfold(Some(answer.into_body()), move |body| {
            let store = store.clone();
            async move {
                let mut body = body?;
                loop {
                    tokio::select! {
                        frame = body.frame() => {
                            let frame = match frame? {
                                Ok(frame) => frame,
                                Err(error) => return Some((Err(reason(&error)), None)),
                            };
                            // Trailers say nothing that is ours.
                            if let Ok(chunk) = frame.into_data() {
                                return Some((Ok(chunk), Some(body)));
                            }
                        }
                        // A stopped replica keeps its connections open.
                        () = tokio::time::sleep(look) => {
                            let store = store.clone();
                            let alive = tokio::task::spawn_blocking(move || store.is_alive(id));
                            if matches!(alive.await, Ok(false)) {
                                return Some((Err("the replica fell silent".to_owned()), None));
                            }
                        }
                    }
                }
            }
        });
        *response.body_mut() = Body::from_stream(chunks);
        response
    }
}

impl Replicas {
    /// Tells another replica something; a failure is logged, since nobody waits for an answer.
    pub async fn tell(&self, to: &Elsewhere, caller: &Caller, request: &Forward) {
        match self.send(to, caller, request).await {
            Sent::Answered(_) => {}
            Sent::Again => tracing::debug!(to = %to.to, "another bridge did not take a message"),
            Sent::Unreachable(why) | Sent::Lost(why) => {
                tracing::debug!(to = %to.to, why, "another bridge did not take a message");
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

/// Who asks where no caller does.
fn nobody() -> Caller {
    Caller {
        principal: Principal::Anonymous,
        user: bridge_model::UserInfo::default(),
        trusted: false,
        chat: None,
        message: None,
        token: None,
        session: None,
        address: std::net::Ipv4Addr::UNSPECIFIED.into(),
        forwarded: None,
    }
}

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
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::MISDIRECTED_REQUEST;
    let mark = HeaderValue::from_static("again");
    response.headers_mut().insert(PEER_HEADER.clone(), mark);
    response
}

/// The innermost cause, without the address: callers may read it.
fn reason(error: &(dyn Error + 'static)) -> String {
    let mut cause = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}

/// Why there was no connection, if it was that.
fn cause_of<'e>(error: &'e (dyn Error + 'static)) -> Option<&'e NoChannel> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        cause = error.source();
    }
    None
}
