//! An incoming request: its caller, its body, and the request for forwarding to another replica.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    body::{Body, HttpBody as _},
    http::{request::Parts, uri::PathAndQuery},
    response::{IntoResponse as _, Response},
};
use bridge_model::{Caller, Tenant};
use bytes::Bytes;
use http_body_util::BodyExt as _;
use tokio::io::AsyncWriteExt as _;

use super::{
    Problem,
    body::{self, BodyError},
    multipart,
};
use crate::{
    app::App,
    error_table::ErrorKind,
    identity::Refusal,
    replicas::{EnvelopeError, Forward, OverChannel, PEER_HEADER, Payload, again},
    telemetry::{REQUEST_ID, RequestId},
};

/// An admitted request. Its body is separate.
pub struct Inbound<'r> {
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
    pub async fn caller(&self, app: &App) -> Result<Caller, Refusal> {
        if let Some(relayed) = &self.relayed {
            return Ok(relayed.caller.clone());
        }
        let (headers, address) = (&self.parts.headers, self.peer.ip());
        app.identity.authenticate(headers, address).await
    }

    /// Path and query, unchanged.
    pub fn target(&self) -> &str {
        let target = self.parts.uri.path_and_query();
        target.map_or("/", PathAndQuery::as_str)
    }

    /// The complete body, within the caller's memory for bodies.
    pub async fn read(
        &self,
        app: &App,
        caller: &Caller,
        body: &mut Body,
    ) -> Result<Bytes, BodyError> {
        if let Some(Payload::Whole(body)) = self.relayed.as_ref().map(|relayed| &relayed.body) {
            return Ok(body.clone());
        }
        whole(app, caller, body).await
    }

    /// The body of a request with files as a stored copy that can be forwarded, and a body that reads from it. Without
    /// other replicas no copy is made: the body is streamed.
    pub async fn keep(
        &self,
        app: &App,
        body: &mut Body,
    ) -> Result<Option<(Payload, Body)>, Problem> {
        let kept = match &self.relayed {
            Some(relayed) => relayed.body.clone(),
            None if app.replicas.is_alone().await => return Ok(None),
            None => spool(app, body).await?,
        };
        let body = kept.body().map_err(multipart::unwritten)?;
        Ok(Some((kept, body)))
    }

    /// The request for another replica.
    pub fn forward(&self, app: &App, caller: &Caller, body: Payload) -> Forward {
        let mut headers = self.parts.headers.clone();
        headers.insert(REQUEST_ID, self.id.header().clone());
        let config = app.directory.config();
        let (servers, identity) = (config.servers.values(), &app.identity);
        Forward {
            chosen: identity.forwarded_to_any(servers, &self.parts.headers, caller),
            method: self.parts.method.clone(),
            target: self.target().to_owned(),
            headers,
            body,
        }
    }
}

/// Removes the envelope from a request that another replica has forwarded. Only the envelope identifies the caller.
pub async fn relayed(
    app: &App,
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
    let caller = match app.replicas.read(&envelope) {
        Ok(caller) => caller,
        Err(EnvelopeError::Misdirected) => return Err(again()),
        Err(EnvelopeError::Broken) => return Err(peer_header_refused()),
    };
    let body = if multipart::is_multipart(&parts.headers) {
        spool(app, body).await
    } else {
        let read = whole(app, &caller, body).await;
        read.map(Payload::Whole).map_err(Problem::from)
    };
    let body = body.map_err(Problem::into_response)?;
    Ok(Some(Relayed { caller, body }))
}

async fn whole(app: &App, caller: &Caller, body: &mut Body) -> Result<Bytes, BodyError> {
    let memory = app.bodies.for_tenant(Tenant::from_caller(caller));
    body::whole(memory, body, app.settings.listen.max_body_bytes).await
}

fn peer_header_refused() -> Response {
    let text = format!(
        "the {PEER_HEADER} header is allowed only between replicas, within their encrypted \
         connections: if an older replica sends it, update that replica"
    );
    Problem::new(ErrorKind::FORGED_PEER, text).into_response()
}

/// Writes a body to disk, up to the maximum number of bytes of one request.
async fn spool(app: &App, body: &mut Body) -> Result<Payload, Problem> {
    let limit = multipart::most(app);
    if body.size_hint().lower() > limit {
        return Err(Problem::files_too_large(limit));
    }
    let file = multipart::stage(app).await?;
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
