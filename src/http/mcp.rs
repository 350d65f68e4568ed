//! `/mcp/{server}`, and `/mcp` for all servers: MCP Streamable HTTP.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    body::Body,
    extract::{ConnectInfo, FromRequest, FromRequestParts as _, Path, Request},
    http::{HeaderMap, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};

use crate::{
    app::App,
    mcp::{self, Asking, ClientMessage, RpcError, all::AskingAll},
    telemetry::RequestId,
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
        let peer = ConnectInfo::from_request_parts(&mut parts, app).await;
        let ConnectInfo(peer) = peer.map_err(IntoResponse::into_response)?;
        Ok(Self {
            app: app.clone(),
            server: server.map(|Path(server)| server),
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
        let asking = asking(app, came.server.as_deref(), came.peer, &came.parts).await?;
        accepts(headers, &["application/json", "text/event-stream"])?;
        let message = read(body, headers, app.settings.listen.max_body_bytes).await?;
        match asking {
            Asked::One(asking) => mcp::post(asking, message).await,
            Asked::All(asking) => mcp::all::post(asking, message).await,
        }
    };
    posted.await.unwrap_or_else(RpcError::into_response)
}

/// A stream of what belongs to no request.
pub async fn get(came: Came) -> Response {
    let opened = async {
        let server = came.server.as_deref();
        let asking = asking(&came.app, server, came.peer, &came.parts).await?;
        accepts(&came.parts.headers, &["text/event-stream"])?;
        match asking {
            Asked::One(asking) => mcp::get(&asking),
            Asked::All(asking) => mcp::all::get(&asking),
        }
    };
    opened.await.unwrap_or_else(RpcError::into_response)
}

/// Ends the protocol's session.
pub async fn delete(came: Came) -> Response {
    let ended = async {
        let server = came.server.as_deref();
        match asking(&came.app, server, came.peer, &came.parts).await? {
            Asked::One(asking) => mcp::delete(&asking),
            Asked::All(asking) => mcp::all::delete(&asking),
        }
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
    peer: SocketAddr,
    parts: &'a Parts,
) -> Result<Asked<'a>, RpcError> {
    let headers = &parts.headers;
    let caller = app.identity.authenticate(headers, peer.ip()).await?;
    let request_id = parts.extensions.get::<RequestId>();
    let request_id = request_id.map(ToString::to_string).unwrap_or_default();
    let request_id = request_id.into();
    let Some(server) = server else {
        return Ok(Asked::All(AskingAll {
            app,
            caller,
            headers,
            request_id,
        }));
    };
    Ok(Asked::One(Asking {
        app,
        caller,
        offer: mcp::offer(app, server).await?,
        headers,
        request_id,
        shown: None,
    }))
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
