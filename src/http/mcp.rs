//! `/mcp/{server}`, and `/mcp` for all servers: MCP Streamable HTTP.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    body::Body,
    extract::{ConnectInfo, Path, Request, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse as _, Response},
};

use crate::{
    app::App,
    mcp::{self, Asking, ClientMessage, RpcError, all::AskingAll},
    telemetry::RequestId,
};

/// One message of a client's.
pub async fn post(
    State(app): State<Arc<App>>,
    Path(server): Path<String>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: Request,
) -> Response {
    let (parts, body) = request.into_parts();
    let posted = async {
        let asking = asking(&app, &server, peer, &parts.headers, parts.extensions.get()).await?;
        accepts(&parts.headers, &["application/json", "text/event-stream"])?;
        let message = read(body, &parts.headers, app.settings.listen.max_body_bytes).await?;
        mcp::post(asking, message).await
    };
    posted.await.unwrap_or_else(RpcError::into_response)
}

/// A stream of what belongs to no request.
pub async fn get(
    State(app): State<Arc<App>>,
    Path(server): Path<String>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: Request,
) -> Response {
    let (parts, _) = request.into_parts();
    let opened = async {
        let asking = asking(&app, &server, peer, &parts.headers, parts.extensions.get()).await?;
        accepts(&parts.headers, &["text/event-stream"])?;
        mcp::get(&asking)
    };
    opened.await.unwrap_or_else(RpcError::into_response)
}

/// Ends the protocol's session.
pub async fn delete(
    State(app): State<Arc<App>>,
    Path(server): Path<String>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: Request,
) -> Response {
    let (parts, _) = request.into_parts();
    let ended = async {
        let asking = asking(&app, &server, peer, &parts.headers, parts.extensions.get()).await?;
        mcp::delete(&asking)
    };
    ended.await.unwrap_or_else(RpcError::into_response)
}

/// One message of a client's of all servers.
pub async fn post_all(
    State(app): State<Arc<App>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: Request,
) -> Response {
    let (parts, body) = request.into_parts();
    let posted = async {
        let asking = asking_all(&app, peer, &parts.headers, parts.extensions.get())?;
        accepts(&parts.headers, &["application/json", "text/event-stream"])?;
        let message = read(body, &parts.headers, app.settings.listen.max_body_bytes).await?;
        mcp::all::post(asking, message).await
    };
    posted.await.unwrap_or_else(RpcError::into_response)
}

/// A stream of what belongs to no request, of all servers.
pub async fn get_all(
    State(app): State<Arc<App>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: Request,
) -> Response {
    let (parts, _) = request.into_parts();
    let opened = asking_all(&app, peer, &parts.headers, parts.extensions.get());
    let opened = opened.and_then(|asking| {
        accepts(&parts.headers, &["text/event-stream"])?;
        mcp::all::get(&asking)
    });
    opened.unwrap_or_else(RpcError::into_response)
}

/// Ends the protocol's session with all servers.
pub async fn delete_all(
    State(app): State<Arc<App>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: Request,
) -> Response {
    let (parts, _) = request.into_parts();
    let asking = asking_all(&app, peer, &parts.headers, parts.extensions.get());
    let ended = asking.and_then(|asking| mcp::all::delete(&asking));
    ended.unwrap_or_else(RpcError::into_response)
}

fn asking_all<'a>(
    app: &'a Arc<App>,
    peer: SocketAddr,
    headers: &'a HeaderMap,
    request_id: Option<&RequestId>,
) -> Result<AskingAll<'a>, RpcError> {
    Ok(AskingAll {
        app,
        caller: app.identity.authenticate(headers, peer.ip())?,
        headers,
        request_id: text(request_id),
    })
}

fn text(request_id: Option<&RequestId>) -> Box<str> {
    let text = request_id.map(ToString::to_string);
    text.unwrap_or_default().into()
}

async fn asking<'a>(
    app: &'a Arc<App>,
    server: &str,
    peer: SocketAddr,
    headers: &'a HeaderMap,
    request_id: Option<&RequestId>,
) -> Result<Asking<'a>, RpcError> {
    let caller = app.identity.authenticate(headers, peer.ip())?;
    let offer = mcp::offer(app, server).await?;
    Ok(Asking {
        app,
        caller,
        offer,
        headers,
        request_id: text(request_id),
        shown: None,
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
    if forms.iter().all(takes) {
        return Ok(());
    }
    let message = format!(
        "Not Acceptable: the client must accept {}",
        forms.join(" and ")
    );
    Err(RpcError::new(
        StatusCode::NOT_ACCEPTABLE,
        -32600,
        "not_acceptable",
        &message,
    ))
}

async fn read(body: Body, headers: &HeaderMap, limit: u64) -> Result<ClientMessage, RpcError> {
    let kind = headers
        .get(header::CONTENT_TYPE)
        .and_then(|kind| kind.to_str().ok());
    let kind = kind
        .and_then(|kind| kind.split(';').next())
        .unwrap_or_default()
        .trim();
    if !kind.eq_ignore_ascii_case("application/json") {
        let message = "Unsupported Media Type: Content-Type must be application/json";
        let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        return Err(RpcError::new(status, -32600, "bad_media_type", message));
    }
    let most = usize::try_from(limit).unwrap_or(usize::MAX);
    let bytes = axum::body::to_bytes(body, most).await.map_err(|_| {
        let message = format!("the body is larger than {limit} bytes (MCPO_MAX_BODY_BYTES)");
        RpcError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            -32600,
            "body_too_large",
            &message,
        )
    })?;
    ClientMessage::read(&bytes)
}
