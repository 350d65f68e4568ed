//! `/mcp/{server}`, and `/mcp` for all servers: MCP Streamable HTTP.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    body::Body,
    extract::{ConnectInfo, FromRequest, FromRequestParts as _, Path, Request},
    http::{HeaderMap, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use bridge_model::{Caller, Tenant};
use bridge_protocol::{ClientMessage, code};
use bytes::Bytes;

use super::{body, forward};
use crate::{
    app::App,
    catalog::Offer,
    mcp::{self, Asking, RpcError, all::AskingAll},
    replicas::{Payload, Routed as _},
};

/// What a request of HTTP's came with.
pub struct Came {
    app: Arc<App>,
    /// None for all of them.
    server: Option<String>,
    peer: SocketAddr,
    parts: Parts,
    body: Body,
}

impl FromRequest<Arc<App>> for Came {
    type Rejection = Response;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, Response> {
        let (mut parts, body) = request.into_parts();
        let server = Option::<Path<String>>::from_request_parts(&mut parts, app).await;
        let server = server.map_err(IntoResponse::into_response)?;
        let server = server.map(|Path(server)| server.trim_end_matches('/').to_owned());
        let server = server.filter(|server| !server.is_empty());
        let peer = ConnectInfo::from_request_parts(&mut parts, app).await;
        let ConnectInfo(peer) = peer.map_err(IntoResponse::into_response)?;
        Ok(Self {
            app: app.clone(),
            server,
            peer,
            parts,
            body,
        })
    }
}

/// One message of a client's.
pub async fn post(came: Came) -> Response {
    let body = came.body;
    let (app, headers) = (&came.app, &came.parts.headers);
    let posted = async {
        let caller = forward::caller(app, &came.parts.extensions, headers, came.peer).await?;
        accepts(headers, &["application/json", "text/event-stream"])?;
        is_json(headers)?;
        known(app, came.server.as_deref(), &caller).await?;
        let memory = || app.bodies.of(Tenant::of(&caller));
        let body = match came.parts.extensions.get::<Payload>() {
            // What another replica sent was read already.
            Some(Payload::Whole(body)) => body.clone(),
            _ => body::whole(memory(), body, app.settings.listen.max_body_bytes).await?,
        };
        let parsing = body::parse(memory(), &body).await?;
        let message = ClientMessage::read(&body)?;
        drop(parsing);
        let id = forward::request_id(&came.parts.extensions);
        let request = || forward::forward(app, &caller, &came.parts, &id, body.clone());
        let server = came.server.as_deref();
        let attempt = async || match asking(app, server, &came.parts, &caller).await? {
            Asked::One(asking) => mcp::post(asking, message.clone()).await,
            Asked::All(asking) => mcp::all::post(asking, message.clone()).await,
        };
        app.replicas.run(&caller, request, attempt).await
    };
    posted.await.unwrap_or_else(RpcError::into_response)
}

/// A stream of what belongs to no request.
pub async fn get(came: Came) -> Response {
    let opened = async {
        let (app, parts) = (&came.app, &came.parts);
        let caller = forward::caller(app, &parts.extensions, &parts.headers, came.peer).await?;
        accepts(&parts.headers, &["text/event-stream"])?;
        let id = forward::request_id(&parts.extensions);
        let request = || forward::forward(app, &caller, parts, &id, Bytes::new());
        let server = came.server.as_deref();
        let attempt = async || match asking(app, server, parts, &caller).await? {
            Asked::One(asking) => mcp::get(&asking).await,
            Asked::All(asking) => mcp::all::get(&asking).await,
        };
        app.replicas.run(&caller, request, attempt).await
    };
    opened.await.unwrap_or_else(RpcError::into_response)
}

/// Ends the protocol's session.
pub async fn delete(came: Came) -> Response {
    let ended = async {
        let (app, parts) = (&came.app, &came.parts);
        let caller = forward::caller(app, &parts.extensions, &parts.headers, came.peer).await?;
        let id = forward::request_id(&parts.extensions);
        let request = || forward::forward(app, &caller, parts, &id, Bytes::new());
        let server = came.server.as_deref();
        let attempt = async || match asking(app, server, parts, &caller).await? {
            Asked::One(asking) => mcp::delete(&asking).await,
            Asked::All(asking) => mcp::all::delete(&asking).await,
        };
        app.replicas.run(&caller, request, attempt).await
    };
    ended.await.unwrap_or_else(RpcError::into_response)
}

/// Who was asked.
enum Asked<'a> {
    One(Asking<'a>),
    All(AskingAll<'a>),
}

async fn asking<'a>(
    app: &'a Arc<App>,
    server: Option<&str>,
    parts: &'a Parts,
    caller: &Caller,
) -> Result<Asked<'a>, RpcError> {
    let (caller, headers) = (caller.clone(), &parts.headers);
    let target = forward::target_of(parts).to_owned();
    let request_id = forward::request_id(&parts.extensions);
    let Some(server) = server else {
        return Ok(Asked::All(AskingAll {
            endpoint: &app.mcp,
            caller,
            headers,
            target,
            request_id,
        }));
    };
    Ok(Asked::One(Asking {
        endpoint: &app.mcp,
        offer: offer_for(app, server, &caller).await?,
        caller,
        headers,
        target,
        request_id,
        shown: None,
    }))
}

/// Refuses a body that is for no server of the caller's before it is read; a server that another
/// replica may know is there.
async fn known(app: &App, server: Option<&str>, caller: &Caller) -> Result<(), RpcError> {
    let Some(server) = server else {
        return Ok(());
    };
    match offer_for(app, server, caller).await {
        Err(error) if error.elsewhere().is_none() => Err(error),
        _ => Ok(()),
    }
}

async fn offer_for(app: &App, server: &str, caller: &Caller) -> Result<Arc<Offer>, RpcError> {
    let offer = mcp::offer(&app.mcp, server, caller).await;
    offer.inspect_err(|error| {
        let kind = app.directory.refusal_kind(server, error.kind);
        if kind == "not_allowed" {
            App::audit_refusal(caller.address, &caller.principal, server, "", kind);
        }
    })
}

/// Clients must take both forms of an answer; `*/*` takes everything.
fn accepts(headers: &HeaderMap, forms: &[&str]) -> Result<(), RpcError> {
    let accept = headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok());
    let accept: Vec<String> = accept
        .flat_map(|value| value.split(','))
        .map(|form| {
            form.split(';')
                .next()
                .unwrap_or_default()
                .trim()
                .to_ascii_lowercase()
        })
        .collect();
    let takes = |form: &&str| {
        let (kind, _) = form.split_once('/').unwrap_or((form, ""));
        accept
            .iter()
            .any(|taken| taken == form || taken == "*/*" || *taken == format!("{kind}/*"))
    };
    // HTTP reads a missing header as `*/*`.
    if !headers.contains_key(header::ACCEPT) || forms.iter().all(takes) {
        return Ok(());
    }
    let message = format!(
        "Not Acceptable: the client must accept {}",
        forms.join(" and ")
    );
    Err(RpcError::new(
        StatusCode::NOT_ACCEPTABLE,
        code::INVALID_REQUEST,
        "not_acceptable",
        &message,
    ))
}

fn is_json(headers: &HeaderMap) -> Result<(), RpcError> {
    let kind = headers
        .get(header::CONTENT_TYPE)
        .and_then(|kind| kind.to_str().ok());
    let kind = kind
        .and_then(|kind| kind.split(';').next())
        .unwrap_or_default()
        .trim();
    if kind.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    let message = "Unsupported Media Type: Content-Type must be application/json";
    let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
    Err(RpcError::new(
        status,
        code::INVALID_REQUEST,
        "bad_media_type",
        message,
    ))
}
