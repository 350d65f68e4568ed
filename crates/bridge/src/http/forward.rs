//! A request on its way to the replica that it belongs to, and what another replica has proven of one.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    extract::{OriginalUri, Request},
    http::{Extensions, HeaderMap, request::Parts},
    response::Response,
};
use bridge_model::Caller;

use super::{Problem, multipart, spool::spool};
use crate::{
    app::App,
    identity::Refusal,
    replicas::{Forward, Payload},
    telemetry::{REQUEST_ID, RequestId},
};

/// Runs `attempt` with the request, here or where it belongs. Where there are no others, its body is
/// read as it comes; else it is written down first, since it may have to go on.
pub async fn run<F: Future<Output = Result<Response, Problem>>>(
    app: &Arc<App>,
    caller: &Caller,
    request: Request,
    attempt: impl Fn(Request) -> F,
) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    let payload = match parts.extensions.get::<Payload>() {
        // What another replica sent is on disk already.
        Some(payload) => payload.clone(),
        None if app.replicas.is_alone().await => {
            return attempt(Request::from_parts(parts, body)).await;
        }
        None => spool(app, body).await?,
    };
    let id = request_id(&parts.extensions);
    let forward = || forward(app, caller, &parts, &id, payload.clone());
    let again = async || attempt(again(&parts, &payload)?).await;
    app.replicas.run(caller, &forward, again).await
}

fn again(parts: &Parts, payload: &Payload) -> Result<Request, Problem> {
    let body = payload.body().map_err(multipart::unwritten)?;
    Ok(Request::from_parts(parts.clone(), body))
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
