//! One request to another replica, and its answer as it comes.

use std::time::Duration;

use axum::{
    body::Body,
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header},
    response::Response,
};

use super::{Elsewhere, Envelope, PEER_HEADER, Payload, Replicas, tls::Known};
use crate::{model::Caller, remote::Outbound, telemetry::REQUEST_ID};

/// In the same network a connection is there at once, or the other is gone.
const CONNECT: Duration = Duration::from_secs(2);
/// Idle connections are given up so soon that a restarted replica meets none.
const POOL_IDLE: Duration = Duration::from_secs(4);

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

pub(super) fn client(certificates: &Known) -> reqwest::Client {
    Outbound::straight(certificates.tls())
        .builder()
        .connect_timeout(CONNECT)
        .pool_idle_timeout(POOL_IDLE)
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .build()
        .expect("a client with these can be made")
}

impl Replicas {
    pub(super) async fn send(&self, to: &Elsewhere, caller: &Caller, request: &Forward) -> Sent {
        let Some(address) = &to.address else {
            return Sent::Unreachable("it did not say where it can be reached".to_owned());
        };
        if let Err(sent) = self.knock(to, address, caller).await {
            return sent;
        }
        let asked = self.ask(to, address, caller, request);
        let answer = tokio::select! {
            answer = asked => answer,
            () = self.gone(to.to) => return Sent::Lost("it fell silent".to_owned()),
        };
        match answer {
            Ok(answer) if is_again(&answer) => Sent::Again,
            Ok(answer) => Sent::Answered(self.passed_on(to, answer)),
            Err(Failed::NotSent(why)) => Sent::Unreachable(why),
            Err(Failed::Sent(why)) => Sent::Lost(why),
        }
    }

    /// Asks something harmless first: a stopped process takes connections and never answers, and a
    /// connection that was kept may be one to a process that has ended. Then nothing was lost.
    async fn knock(&self, to: &Elsewhere, address: &str, caller: &Caller) -> Result<(), Sent> {
        let request = Forward {
            method: Method::GET,
            target: format!("{}/health/live", self.path_prefix),
            headers: HeaderMap::new(),
            chosen: HeaderMap::new(),
            body: Payload::Whole(bytes::Bytes::new()),
        };
        let asked = self.ask(to, address, caller, &request);
        match tokio::time::timeout(CONNECT, asked).await {
            Ok(Ok(answer)) if answer.status() == StatusCode::OK => {
                // To its end, so that the connection can be used again.
                let _ = answer.bytes().await;
                Ok(())
            }
            Ok(Ok(answer)) if is_again(&answer) => {
                Err(Sent::Unreachable("another bridge is there now".to_owned()))
            }
            Ok(Ok(answer)) => {
                let status = answer.status();
                tracing::warn!(
                    to = %to.to,
                    %status,
                    "another bridge refuses this one: MCPO_PEER_KEY must be the same for all"
                );
                Err(Sent::Unreachable(format!(
                    "it refuses this bridge: {status}"
                )))
            }
            Ok(Err(Failed::NotSent(why) | Failed::Sent(why))) => Err(Sent::Unreachable(why)),
            Err(_) => Err(Sent::Unreachable("it does not answer".to_owned())),
        }
    }

    pub(super) async fn ask(
        &self,
        to: &Elsewhere,
        address: &str,
        caller: &Caller,
        request: &Forward,
    ) -> Result<reqwest::Response, Failed> {
        let digest = request.body.digest();
        let signed = (&request.method, request.target.as_str(), digest);
        let envelope = Envelope::new(to.to, signed, caller, to.hop, to.guest.clone());
        let sealed = envelope.seal(&self.key);
        let sealed = sealed.ok_or_else(|| {
            Failed::NotSent("what the client says of itself is too long to go on".to_owned())
        })?;
        let body = request.body.outgoing();
        let body = body.map_err(|error| Failed::NotSent(error.to_string()))?;
        let mut headers = HeaderMap::new();
        let always = |name: &HeaderName| PASSED.contains(name) || name.as_str().starts_with("mcp-");
        let usual = request.headers.iter().filter(|(name, _)| always(name));
        let chosen = request.chosen.iter().filter(|(name, _)| !always(name));
        for (name, value) in usual.chain(chosen) {
            headers.append(name, value.clone());
        }
        headers.insert(PEER_HEADER.clone(), sealed);
        let asked = self
            .client
            .request(
                request.method.clone(),
                format!("{}{}", self.certificates.way(address), request.target),
            )
            .headers(headers)
            .body(body);
        asked.send().await.map_err(|error| {
            let why = reason(&error);
            if error.is_connect() || error.is_builder() {
                Failed::NotSent(why)
            } else {
                Failed::Sent(why)
            }
        })
    }

    /// The answer, whose body ends with the other replica's.
    fn passed_on(&self, to: &Elsewhere, answer: reqwest::Response) -> Response {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = answer.status();
        for (name, value) in answer.headers() {
            let cors = name.as_str().starts_with("access-control-");
            if !cors && !KEPT_BACK.contains(name) {
                response.headers_mut().append(name, value.clone());
            }
        }
        let (store, id) = (self.store.clone(), to.to);
        let look = self.store.instance().renew_every();
        let chunks = futures_util::stream::unfold(Some(answer), move |answer| {
            let store = store.clone();
            async move {
                let mut answer = answer?;
                loop {
                    tokio::select! {
                        chunk = answer.chunk() => {
                            return match chunk {
                                Ok(chunk) => chunk.map(|chunk| (Ok(chunk), Some(answer))),
                                Err(error) => Some((Err(reason(&error)), None)),
                            };
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

/// No answer came.
pub(super) enum Failed {
    /// The request was never sent.
    NotSent(String),
    /// It may have arrived.
    Sent(String),
}

/// 421 with our own mark.
fn is_again(answer: &reqwest::Response) -> bool {
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
fn reason(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}
