//! Clients of 2024-11-05 to 2025-11-25 of all servers: one session over all of them.

use std::sync::Arc;

use axum::{
    http::StatusCode,
    response::{IntoResponse as _, Response},
};

use super::{AskingAll, changes, hello, route::route};
use crate::{
    child::splice,
    mcp::{
        ClientMessage, Kind, RpcError,
        legacy::{LEVELS, check_version, greeted, relay, session_with, stream_of, take},
        lists,
        relay::json,
        session::McpSession,
    },
    model::RawJson,
};

/// One message of a client's.
pub async fn post(asking: AskingAll<'_>, message: ClientMessage) -> Result<Response, RpcError> {
    let Kind::Request(method) = message.kind.clone() else {
        let session = session(&asking)?;
        check_version(asking.headers)?;
        return Ok(take(&session, &message));
    };
    if &*method == "initialize" {
        return Ok(initialize(&asking, &message).await);
    }
    let session = session(&asking)?;
    check_version(asking.headers)?;
    match &*method {
        "ping" => return Ok(json(lists::answer(&message, &RawJson::empty_object()))),
        "logging/setLevel" => return set_level(&session, &message),
        _ => {}
    }
    let view = asking.view().await;
    if let Some(list) = view.list(&method) {
        return Ok(json(lists::answer(&message, &list)));
    }
    match route(&asking, view, &message).await? {
        Some(routed) => relay(routed.asking, session, routed.message).await,
        None => Err(RpcError::method(&method).answered()),
    }
}

/// The client's stream for what belongs to no request, of all servers.
pub fn get(asking: &AskingAll<'_>) -> Result<Response, RpcError> {
    stream_of(asking.app, session(asking)?, asking.headers)
}

/// Ends the protocol's session and its streams; the chat's children and folder stay.
pub fn delete(asking: &AskingAll<'_>) -> Result<Response, RpcError> {
    let session = session(asking)?;
    asking.app.mcp.end(&session);
    Ok(StatusCode::OK.into_response())
}

fn session(asking: &AskingAll<'_>) -> Result<Arc<McpSession>, RpcError> {
    session_with(asking.app, &asking.caller, None, asking.headers)
}

async fn initialize(asking: &AskingAll<'_>, message: &ClientMessage) -> Response {
    let version = lists::agree(message.params.protocol_version.as_deref());
    let view = asking.view().await;
    let result = hello::initialize(&view, version);
    let session = asking.app.mcp.begin(
        asking.caller.principal.clone(),
        None,
        version,
        message.params.capabilities.clone().unwrap_or_default(),
    );
    changes::forward(asking.app, &asking.caller, &view, &session);
    greeted(message, &result, &session)
}

/// The children of the session are told, each when it first serves it; none is started for this.
fn set_level(session: &McpSession, message: &ClientMessage) -> Result<Response, RpcError> {
    let whole = RawJson::parse(message.line.clone()).ok();
    let params = whole.and_then(|whole| whole.member("params"));
    let level = params.and_then(|params| params.member("level"));
    let level = level.and_then(|level| level.read::<String>().ok());
    let Some(level) = level.filter(|level| LEVELS.contains(&&**level)) else {
        let text = format!("params.level must be one of {}", LEVELS.join(", "));
        return Err(RpcError::params(&text).answered());
    };
    // Children of 2026-07-28 hear it with each request, others once.
    session.set_log_level(&level);
    // Numbers of ours begin with 1: nobody waits for this answer.
    session.tell_always(&splice(&message.line, &[(&message.answer_id(), b"0")]));
    Ok(json(lists::answer(message, &RawJson::empty_object())))
}
