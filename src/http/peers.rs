//! Requests that another replica has sent on: their envelope says who calls, and nobody else's may.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    extract::{OriginalUri, Request},
    http::{Extensions, HeaderMap, StatusCode, request::Parts},
    response::{IntoResponse as _, Response},
};

use super::{Problem, body, multipart, spool};
use crate::{
    app::App,
    identity::Refusal,
    model::{Caller, Tenant},
    replicas::{Forward, OverChannel, PEER_HEADER, Payload, Refused, again},
    telemetry::{REQUEST_ID, RequestId},
};

/// Takes the envelope off, and leaves the caller in the request's extensions.
pub async fn admit(app: &App, mut request: Request) -> Result<Request, Response> {
    let mut sent = request.headers().get_all(&PEER_HEADER).iter();
    let (first, second) = (sent.next().cloned(), sent.next().is_some());
    let Some(value) = first else {
        return Ok(request);
    };
    request.headers_mut().remove(&PEER_HEADER);
    let proven = request.extensions().get::<OverChannel>().is_some();
    if second || !proven {
        return Err(refuse());
    }
    match app.replicas.read(&value) {
        Ok(caller) => unpack(app, caller, request).await,
        Err(Refused::Misdirected) => Err(again()),
        Err(Refused::Broken) => Err(refuse()),
    }
}

async fn unpack(app: &App, caller: Caller, request: Request) -> Result<Request, Response> {
    let (mut parts, body) = request.into_parts();
    let body = if multipart::is_multipart(&parts.headers) {
        spool::spool(app, body)
            .await
            .map_err(Problem::into_response)?
    } else {
        let body = body::whole(
            app.bodies.of(Tenant::of(&caller)),
            body,
            app.settings.listen.max_body_bytes,
        )
        .await;
        let body = body.map_err(|unread| Problem::from(unread).into_response())?;
        body.into()
    };
    parts.extensions.insert(Arc::new(caller));
    let bytes = body.body();
    let bytes = bytes.map_err(|error| multipart::unwritten(error).into_response())?;
    parts.extensions.insert(body);
    Ok(Request::from_parts(parts, bytes))
}

fn refuse() -> Response {
    let text = format!(
        "the {PEER_HEADER} header is for the bridges of this service alone, within the encrypted \
         connections between them: a bridge of an older version that sends it has to be updated"
    );
    Problem::new(StatusCode::FORBIDDEN, "forged_peer", text.into()).into_response()
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
    let config = app.config();
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
