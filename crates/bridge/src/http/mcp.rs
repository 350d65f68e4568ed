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
    mcp::{self, McpExit, McpRequest, RpcError, Scope},
    replicas::{Located, Payload},
};

/// What a request of HTTP's came with.
pub struct Came {
    app: Arc<App>,
    /// None for all of them.
    server: Option<String>,
    peer: SocketAddr,
    parts: Parts,
}

/// The same with its body.
pub struct WithBody(Came, Body);

impl FromRequest<Arc<App>> for WithBody {
    type Rejection = Response;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, Response> {
        let (mut parts, body) = request.into_parts();
        let server = Option::<Path<String>>::from_request_parts(&mut parts, app).await;
        let server = server.map_err(IntoResponse::into_response)?;
        let server = server.map(|Path(server)| server.trim_end_matches('/').to_owned());
        let server = server.filter(|server| !server.is_empty());
        let peer = ConnectInfo::from_request_parts(&mut parts, app).await;
        let ConnectInfo(peer) = peer.map_err(IntoResponse::into_response)?;
        let came = Came {
            app: app.clone(),
            server,
            peer,
            parts,
        };
        Ok(Self(came, body))
    }
}

/// One message of a client's.
pub async fn post(WithBody(came, body): WithBody) -> Response {
    let posted = async {
        let (app, headers) = (&came.app, &came.parts.headers);
        let caller = caller(&came).await?;
        accepts(headers, &["application/json", "text/event-stream"])?;
        is_json(headers)?;
        // Nothing is read for a caller who has no such server.
        let located = locate(&came, &caller).await?;
        let memory = || app.bodies.of(Tenant::of(&caller));
        let body = match came.parts.extensions.get::<Payload>() {
            // What another replica sent was read already.
            Some(Payload::Whole(body)) => body.clone(),
            _ => {
                let limit = app.settings.listen.max_body_bytes;
                let body = body::whole(memory(), body, limit).await;
                body.map_err(RpcError::from)?
            }
        };
        let parsing = body::parse(memory(), &body).await.map_err(RpcError::from)?;
        let message = ClientMessage::read(&body).map_err(RpcError::from)?;
        drop(parsing);
        let request = request(&came, &caller, body);
        let scope = found_or_forward(&came, &request, located).await?;
        mcp::post(&request, scope, message).await
    };
    posted.await.unwrap_or_else(McpExit::into_response)
}

/// A stream of what belongs to no request.
pub async fn get(WithBody(came, _): WithBody) -> Response {
    let opened = async {
        let caller = caller(&came).await?;
        accepts(&came.parts.headers, &["text/event-stream"])?;
        let request = request(&came, &caller, Bytes::new());
        let located = locate(&came, &caller).await?;
        let scope = found_or_forward(&came, &request, located).await?;
        mcp::get(&request, &scope).await
    };
    opened.await.unwrap_or_else(McpExit::into_response)
}

/// Ends the protocol's session.
pub async fn delete(WithBody(came, _): WithBody) -> Response {
    let ended = async {
        let caller = caller(&came).await?;
        let request = request(&came, &caller, Bytes::new());
        let located = locate(&came, &caller).await?;
        let scope = found_or_forward(&came, &request, located).await?;
        mcp::delete(&request, &scope).await
    };
    ended.await.unwrap_or_else(McpExit::into_response)
}

async fn caller(came: &Came) -> Result<Caller, RpcError> {
    let Parts {
        extensions,
        headers,
        ..
    } = &came.parts;
    Ok(forward::caller(&came.app, extensions, headers, came.peer).await?)
}

fn request<'a>(came: &'a Came, caller: &'a Caller, body: Bytes) -> McpRequest<'a> {
    McpRequest {
        endpoint: &came.app.mcp,
        caller,
        method: came.parts.method.clone(),
        headers: &came.parts.headers,
        target: forward::target_of(&came.parts),
        body,
        id: forward::request_id(&came.parts.extensions),
    }
}

/// Which servers the request is about.
async fn locate(came: &Came, caller: &Caller) -> Result<Located<Scope>, RpcError> {
    let (app, Some(server)) = (&came.app, &came.server) else {
        return Ok(Located::Here(Scope::All));
    };
    let located = mcp::locate_offer(&app.mcp, server, caller).await;
    let located = located.inspect_err(|error| {
        let kind = app.directory.refusal_kind(server, error.kind);
        if kind == "not_allowed" {
            App::audit_refusal(caller.address, &caller.principal, server, "", kind);
        }
    })?;
    Ok(match located {
        Located::Here(offer) => Located::Here(Scope::One(offer)),
        Located::Elsewhere(other) => Located::Elsewhere(other),
    })
}

/// What was located; where that is elsewhere, the request is answered there.
async fn found_or_forward(
    came: &Came,
    request: &McpRequest<'_>,
    mut located: Located<Scope>,
) -> Result<Scope, McpExit> {
    let mut forwarding = request.forwarding();
    loop {
        match located {
            Located::Here(scope) => return Ok(scope),
            Located::Elsewhere(other) => forwarding.to(&other).await?,
        }
        located = locate(came, request.caller).await?;
    }
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
