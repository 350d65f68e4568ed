//! A request on its way to the replica that it belongs to, and what another replica has proven of one.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    body::Body,
    extract::OriginalUri,
    http::{Extensions, HeaderMap, request::Parts},
};
use bridge_model::Caller;

use super::{Problem, multipart, spool::spool};
use crate::{
    app::App,
    identity::Refusal,
    replicas::{Forward, Payload},
    telemetry::{REQUEST_ID, RequestId},
};

/// The body of a request that brings files. Where there are other replicas it is written down first, and
/// returned as what may go on, too; else it is read as it comes.
pub async fn keep(
    app: &App,
    parts: &Parts,
    body: Body,
) -> Result<(Body, Option<Payload>), Problem> {
    let kept = match parts.extensions.get::<Payload>() {
        // What another replica sent is on disk already.
        Some(kept) => kept.clone(),
        None if app.replicas.is_alone().await => return Ok((body, None)),
        None => spool(app, body).await?,
    };
    let body = kept.body().map_err(multipart::unwritten)?;
    Ok((body, Some(kept)))
}

/// The caller whom another replica has proven.
pub fn proven(extensions: &Extensions) -> Option<&Caller> {
    extensions.get::<Arc<Caller>>().map(|caller| &**caller)
}

/// Who calls: as another replica has proven it, or by the request's own headers.
pub async fn caller(
    app: &App,
    extensions: &Extensions,
    headers: &HeaderMap,
    peer: SocketAddr,
) -> Result<Caller, Refusal> {
    match proven(extensions) {
        Some(caller) => Ok(caller.clone()),
        None => app.identity.authenticate(headers, peer.ip()).await,
    }
}

/// The id that the request got on its way in.
pub fn request_id(extensions: &Extensions) -> RequestId {
    let id = extensions.get::<RequestId>().cloned();
    id.unwrap_or_else(RequestId::random)
}

/// The request as it may go on to another replica.
pub fn forward(
    app: &App,
    caller: &Caller,
    parts: &Parts,
    id: &RequestId,
    body: impl Into<Payload>,
) -> Forward {
    let mut headers = parts.headers.clone();
    headers.insert(REQUEST_ID, id.header().clone());
    let config = app.directory.config();
    let servers = config.servers.values();
    Forward {
        chosen: app
            .identity
            .forwarded_to_any(servers, &parts.headers, caller),
        method: parts.method.clone(),
        target: target_of(parts).to_owned(),
        headers,
        body: body.into(),
    }
}

/// Path and query, as they came.
pub fn target_of(parts: &Parts) -> &str {
    let original = parts.extensions.get::<OriginalUri>();
    target(original.map_or(&parts.uri, |original| &original.0))
}

fn target(uri: &axum::http::Uri) -> &str {
    uri.path_and_query()
        .map_or("/", axum::http::uri::PathAndQuery::as_str)
}
