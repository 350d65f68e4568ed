//! `/mcp/{server}`, and `/mcp` for all servers: MCP Streamable HTTP.

use std::sync::Arc;

use axum::{
    body::Body,
    http::{HeaderMap, header},
    response::{IntoResponse as _, Response},
};
use bridge_model::{Caller, Tenant};
use bridge_protocol::ClientMessage;
use bytes::Bytes;

use super::{body, inbound::Inbound};
use crate::{
    app::App,
    error_table::ErrorKind,
    mcp::{self, McpExit, McpRequest, RpcError, Scope},
    replicas::Located,
};

/// One message of a client's.
pub async fn post(
    app: &Arc<App>,
    inbound: &Inbound<'_>,
    body: &mut Body,
    server: Option<&str>,
) -> Response {
    let posted = async {
        let headers = &inbound.parts.headers;
        let caller = inbound.caller(app).await.map_err(RpcError::from)?;
        accepts(headers, &["application/json", "text/event-stream"])?;
        is_json(headers)?;
        // Nothing is read for a caller who has no such server.
        let locate = || locate(app, server, &caller);
        let located = locate().await?;
        let body = inbound.read(app, &caller, body).await;
        let body = body.map_err(RpcError::from)?;
        let memory = app.bodies.for_tenant(Tenant::from_caller(&caller));
        let parsing = body::parse(memory, &body).await.map_err(RpcError::from)?;
        let message = ClientMessage::read(&body).map_err(RpcError::from)?;
        drop(parsing);
        let request = request(app, inbound, &caller, body);
        let scope = request.forwarding().found(located, locate).await?;
        mcp::post(&request, scope, message).await
    };
    posted.await.unwrap_or_else(McpExit::into_response)
}

/// A stream of what belongs to no request.
pub async fn get(app: &Arc<App>, inbound: &Inbound<'_>, server: Option<&str>) -> Response {
    let opened = async {
        let caller = inbound.caller(app).await.map_err(RpcError::from)?;
        accepts(&inbound.parts.headers, &["text/event-stream"])?;
        let request = request(app, inbound, &caller, Bytes::new());
        let locate = || locate(app, server, &caller);
        let located = locate().await?;
        let scope = request.forwarding().found(located, locate).await?;
        mcp::get(&request, &scope).await
    };
    opened.await.unwrap_or_else(McpExit::into_response)
}

/// Ends the protocol's session.
pub async fn delete(app: &Arc<App>, inbound: &Inbound<'_>, server: Option<&str>) -> Response {
    let ended = async {
        let caller = inbound.caller(app).await.map_err(RpcError::from)?;
        let request = request(app, inbound, &caller, Bytes::new());
        let locate = || locate(app, server, &caller);
        let located = locate().await?;
        let scope = request.forwarding().found(located, locate).await?;
        mcp::delete(&request, &scope).await
    };
    ended.await.unwrap_or_else(McpExit::into_response)
}

fn request<'a>(
    app: &'a App,
    inbound: &'a Inbound<'_>,
    caller: &'a Caller,
    body: Bytes,
) -> McpRequest<'a> {
    McpRequest {
        endpoint: &app.mcp,
        caller,
        method: inbound.parts.method.clone(),
        headers: &inbound.parts.headers,
        target: inbound.target(),
        body,
        id: inbound.id.clone(),
    }
}

/// Which servers the request is about.
async fn locate(
    app: &App,
    server: Option<&str>,
    caller: &Caller,
) -> Result<Located<Scope>, RpcError> {
    let Some(server) = server else {
        return Ok(Located::Here(Scope::All));
    };
    let located = mcp::locate_offer(&app.mcp, server, caller).await;
    let located = located.inspect_err(|error| {
        let kind = app.directory.refusal_kind(server, error.kind.name);
        if kind == "not_allowed" {
            App::audit_refusal(caller.address, &caller.principal, server, "", kind);
        }
    })?;
    Ok(match located {
        Located::Here(offer) => Located::Here(Scope::One(offer)),
        Located::Elsewhere(other) => Located::Elsewhere(other),
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
    Err(RpcError::new(ErrorKind::NOT_ACCEPTABLE, message))
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
    Err(RpcError::new(ErrorKind::BAD_MEDIA_TYPE, message))
}
