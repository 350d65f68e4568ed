//! An incoming request: its host, its caller, its body, and the request for forwarding to another replica.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    body::{Body, HttpBody as _},
    http::{HeaderMap, header, request::Parts, uri::Authority},
    response::{IntoResponse as _, Response},
};
use bridge_model::Caller;
use bytes::Bytes;
use http_body_util::BodyExt as _;
use tokio::io::AsyncWriteExt as _;

use super::{Problem, multipart, route::Route};
use crate::{
    body::{self, BodyError},
    call::CallEngine,
    config::{ServerAccess, ServerSpec, Settings},
    core::Core,
    error_table::ErrorKind,
    identity::Refusal,
    replicas::{EnvelopeError, Forward, OverChannel, PEER_HEADER, Payload, again},
    telemetry::RequestId,
};

/// An admitted request. Its body is separate.
pub struct Inbound<'r> {
    /// The parts of the bridge that answer it.
    pub core: &'r Core,
    /// The address of the peer.
    pub peer: SocketAddr,
    /// The request id for logs.
    pub id: &'r RequestId,
    /// The head, unchanged.
    pub parts: &'r Parts,
    /// Set if another replica has forwarded the request.
    pub relayed: Option<Relayed>,
}

/// A request that another replica has forwarded.
pub struct Relayed {
    /// The caller, as authenticated by that replica.
    pub caller: Caller,
    /// The body, which has been read already.
    pub body: Payload,
}

impl Inbound<'_> {
    /// The caller: as another replica has authenticated it, or by the request's own headers.
    pub async fn caller(&self) -> Result<Caller, Refusal> {
        if let Some(relayed) = &self.relayed {
            return Ok(relayed.caller.clone());
        }
        let (headers, address) = (&self.parts.headers, self.peer.ip());
        self.core.identity.authenticate(headers, address).await
    }

    /// The complete body, within the caller's memory for bodies.
    pub async fn read(&self, caller: &Caller, body: &mut Body) -> Result<Bytes, BodyError> {
        if let Some(Payload::Whole(body)) = self.relayed.as_ref().map(|relayed| &relayed.body) {
            return Ok(body.clone());
        }
        whole(self.core, caller, body).await
    }

    /// The body of a request with files as a stored copy that can be forwarded, and a body that reads from it. Without
    /// other replicas no copy is made: the body is streamed.
    pub async fn keep(&self, body: &mut Body) -> Result<Option<(Payload, Body)>, Problem> {
        let kept = match &self.relayed {
            Some(relayed) => relayed.body.clone(),
            None if self.core.replicas.is_alone().await => return Ok(None),
            None => spool(&self.core.engine, body).await?,
        };
        let body = kept.body().map_err(multipart::unwritten)?;
        Ok(Some((kept, body)))
    }

    /// The request for another replica.
    pub fn forward(&self, caller: &Caller, body: Payload) -> Forward {
        self.core.forward(self.parts, self.id, caller, body)
    }

    /// Refuses a reader who may not see documents.
    pub async fn admit_reader(&self) -> Result<(), Refusal> {
        let (parts, ip) = (self.parts, self.peer.ip());
        let identity = &self.core.identity;
        let reader = identity.authenticate_document(&parts.method, &parts.headers, ip);
        reader.await.map(drop)
    }

    /// The reader as far as the request identifies one, for content that is not public.
    pub fn reader(&self) -> Caller {
        self.core
            .identity
            .reader(&self.parts.headers, self.peer.ip())
    }

    /// Whether the reader may see the bridge's own state.
    pub fn is_operator(&self) -> bool {
        let (core, headers) = (self.core, &self.parts.headers);
        names_us(&core.settings, self.parts) && core.identity.is_operator(headers, self.peer.ip())
    }

    /// Whether the reader may see a server.
    pub fn reader_sees(&self, spec: &ServerSpec) -> bool {
        // A server for all callers needs no identification of the reader.
        spec.allow.is_none() || spec.access(&self.reader()) != ServerAccess::None
    }
}

// Only requests to the bridge's own hosts and origins reach a handler: a page that rebinds its own name to
// the bridge's address (DNS rebinding) must not act with a browser's rights.

/// Refuses unknown `Host` and `Origin` with 403. Health checks are sent to an address and are exempt, as are
/// downloads.
pub fn check_host(core: &Core, route: &Route<'_>, parts: &Parts) -> Result<(), Problem> {
    let refuse = |text: &str| Err(Problem::new(ErrorKind::UNKNOWN_HOST, text));
    if route.is_health() || matches!(route, Route::Files(path) if *path != "/files") {
        return Ok(());
    }
    if !names_us(&core.settings, parts) {
        return refuse("this host name is not allowed; add it to MCPO_ALLOWED_HOSTS");
    }
    let origins = &core.identity.origins;
    let mut sent = parts.headers.get_all(header::ORIGIN).iter();
    if !sent.all(|origin| origins.admits(origin)) {
        return refuse(
            "this origin is not allowed; add it to MCPO_CORS_ALLOW_ORIGINS, or set MCPO_BASE_URL \
             if it is the bridge's own",
        );
    }
    Ok(())
}

/// Whether a request's host is one of this bridge, which is not so for a page that rebound its name.
fn names_us(settings: &Settings, parts: &Parts) -> bool {
    let allowed = &settings.listen.allowed_hosts;
    // HTTP/1.1 requires Host; an absolute request target takes precedence.
    match parts.uri.host() {
        Some(target) => known(target, allowed),
        None => host(&parts.headers).is_some_and(|host| known(&host, allowed)),
    }
}

/// The host of the only `Host` header.
fn host(headers: &HeaderMap) -> Option<String> {
    let mut all = headers.get_all(header::HOST).iter();
    let one: Authority = all.next()?.to_str().ok()?.parse().ok()?;
    all.next().is_none().then(|| one.host().to_owned())
}

fn known(host: &str, allowed: &[String]) -> bool {
    let host = host.trim_matches(['[', ']']);
    let named = |name: &String| name == "*" || name.eq_ignore_ascii_case(host);
    allowed.iter().any(named)
}

// Requests that another replica has forwarded.

/// Removes the envelope from a request that another replica has forwarded. Only the envelope identifies the caller.
pub async fn relayed(
    core: &Core,
    parts: &mut Parts,
    body: &mut Body,
) -> Result<Option<Relayed>, Response> {
    let mut sent = parts.headers.get_all(&PEER_HEADER).iter();
    let (first, second) = (sent.next().cloned(), sent.next().is_some());
    let Some(envelope) = first else {
        return Ok(None);
    };
    parts.headers.remove(&PEER_HEADER);
    let proven = parts.extensions.get::<OverChannel>().is_some();
    if second || !proven {
        return Err(peer_header_refused());
    }
    let caller = match core.replicas.read(&envelope) {
        Ok(caller) => caller,
        Err(EnvelopeError::Misdirected) => return Err(again()),
        Err(EnvelopeError::Broken) => return Err(peer_header_refused()),
    };
    let body = if body::is_multipart(&parts.headers) {
        spool(&core.engine, body).await
    } else {
        let read = whole(core, &caller, body).await;
        read.map(Payload::Whole).map_err(Problem::from)
    };
    let body = body.map_err(Problem::into_response)?;
    Ok(Some(Relayed { caller, body }))
}

async fn whole(core: &Core, caller: &Caller, body: &mut Body) -> Result<Bytes, BodyError> {
    let memory = core.bodies.for_caller(caller);
    body::whole(memory, body, core.settings.listen.max_body_bytes).await
}

fn peer_header_refused() -> Response {
    let text = format!(
        "the {PEER_HEADER} header is allowed only between replicas, within their encrypted \
         connections: if an older replica sends it, update that replica"
    );
    Problem::new(ErrorKind::FORGED_PEER, text).into_response()
}

/// Writes a body to disk, up to the maximum number of bytes of one request.
async fn spool(engine: &CallEngine, body: &mut Body) -> Result<Payload, Problem> {
    let limit = multipart::most(&engine.settings);
    if body.size_hint().lower() > limit {
        return Err(Problem::files_too_large(limit));
    }
    let file = multipart::stage(engine).await?;
    let to = file.data().map_err(multipart::unwritten)?;
    let mut to = tokio::fs::File::from_std(to);
    let mut size = 0_u64;
    while let Some(frame) = body.frame().await {
        let Ok(chunk) = frame.map_err(BodyError::from_error)?.into_data() else {
            continue;
        };
        size = size.saturating_add(chunk.len() as u64);
        if size > limit {
            return Err(Problem::files_too_large(limit));
        }
        to.write_all(&chunk).await.map_err(multipart::unwritten)?;
    }
    to.flush().await.map_err(multipart::unwritten)?;
    Ok(Payload::Spooled(Arc::new(file)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_brackets_and_case_do_not_matter() {
        let allowed = ["localhost".to_owned(), "::1".to_owned()];
        for (sent, good) in [
            ("localhost", true),
            ("LOCALHOST:8080", true),
            ("[::1]:8080", true),
            ("evil.example", false),
            ("localhost.evil.example", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, sent.parse().unwrap());
            assert_eq!(
                host(&headers).is_some_and(|host| known(&host, &allowed)),
                good,
                "{sent}"
            );
        }
    }

    #[test]
    fn two_hosts_are_no_host() {
        let mut headers = HeaderMap::new();
        headers.append(header::HOST, "localhost".parse().unwrap());
        headers.append(header::HOST, "evil.example".parse().unwrap());
        assert_eq!(host(&headers), None);
    }
}
