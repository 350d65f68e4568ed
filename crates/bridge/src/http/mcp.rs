//! `/mcp/{server}`, and `/mcp` for all servers: MCP Streamable HTTP.

use std::sync::Arc;

use axum::{
    body::Body,
    http::{HeaderMap, Method, header},
    response::{IntoResponse as _, Response},
};
use bridge_model::Caller;
use bridge_protocol::ClientMessage;
use bytes::Bytes;

use super::{inbound::Inbound, refused};
use crate::{
    core::path_and_query,
    error_table::ErrorKind,
    mcp::{self, Endpoint, McpExit, McpRequest, RpcError, Scope},
    replicas::Located,
};

/// Answers a POST (one message of a client), a DELETE (the end of a protocol session) or a GET (a stream of
/// messages that belong to no request).
pub async fn answer(
    endpoint: &Arc<Endpoint>,
    inbound: &Inbound<'_>,
    body: &mut Body,
    server: Option<&str>,
) -> Response {
    let answered = async {
        let (method, headers) = (&inbound.parts.method, &inbound.parts.headers);
        let caller = inbound.caller().await.map_err(RpcError::from)?;
        let posts = *method == Method::POST;
        if *method != Method::DELETE {
            let forms = ["application/json", "text/event-stream"];
            accepts(headers, if posts { &forms } else { &forms[1..] })?;
        }
        if posts {
            is_json(headers)?;
        }
        // The body is read only for a caller who may use the server.
        let locate = || locate(endpoint, server, &caller);
        let located = locate().await?;
        let (body, message) = if posts {
            let body = inbound.read(&caller, body).await;
            let body = body.map_err(RpcError::from)?;
            let parsing = inbound.core.bodies.for_caller(&caller).parse(&body).await;
            let _parsing = parsing.map_err(RpcError::from)?;
            let message = ClientMessage::read(&body).map_err(RpcError::from)?;
            (body, Some(message))
        } else {
            (Bytes::new(), None)
        };
        let request = McpRequest {
            endpoint,
            caller: &caller,
            parts: inbound.parts,
            target: path_and_query(inbound.parts),
            body,
            id: inbound.id,
        };
        let scope = request.forwarding().found(located, locate).await?;
        match message {
            Some(message) => mcp::post(&request, scope, message).await,
            None if *method == Method::DELETE => mcp::delete(&request, &scope).await,
            None => mcp::get(&request, &scope).await,
        }
    };
    answered.await.unwrap_or_else(McpExit::into_response)
}

/// The servers of the request.
async fn locate(
    endpoint: &Endpoint,
    server: Option<&str>,
    caller: &Caller,
) -> Result<Located<Scope>, RpcError> {
    let Some(server) = server else {
        return Ok(Ok(Scope::All));
    };
    let located = mcp::locate_offer(endpoint, server, caller).await;
    let located = located.inspect_err(|error| {
        let (directory, kind) = (&endpoint.core.directory, error.kind.name);
        if directory.refusal_kind(server, kind) == "not_allowed" {
            refused(directory, caller, (server, ""), kind);
        }
    })?;
    Ok(located.map(Scope::One))
}

/// Clients must accept both forms of an answer; `*/*` accepts all.
fn accepts(headers: &HeaderMap, forms: &[&str]) -> Result<(), RpcError> {
    let accept = headers.get_all(header::ACCEPT).iter();
    let accept = accept.filter_map(|value| value.to_str().ok());
    let accept: Vec<String> = accept
        .flat_map(|value| value.split(','))
        .map(|form| without_parameters(form).to_ascii_lowercase())
        .collect();
    let takes = |form: &&str| {
        let (kind, _) = form.split_once('/').unwrap_or((form, ""));
        let any = format!("{kind}/*");
        accept
            .iter()
            .any(|taken| [form, "*/*", &any].contains(&&**taken))
    };
    // HTTP treats a missing header as `*/*`.
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
    let kind = headers.get(header::CONTENT_TYPE);
    let kind = kind.and_then(|kind| kind.to_str().ok());
    let kind = without_parameters(kind.unwrap_or_default());
    if kind.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    let message = "Unsupported Media Type: Content-Type must be application/json";
    Err(RpcError::new(ErrorKind::BAD_MEDIA_TYPE, message))
}

/// The media type of a header's value.
fn without_parameters(value: &str) -> &str {
    value.split(';').next().unwrap_or_default().trim()
}
