//! Clients of 2024-11-05 to 2025-11-25 of all servers: one session over all of them.

use std::sync::Arc;

use axum::{
    http::{Method, StatusCode},
    response::{IntoResponse as _, Response},
};
use bridge_protocol::{ClientMessage, Kind, RawJson, jsonrpc::splice, method, method::LOG_LEVELS};
use bytes::Bytes;

use super::{AskingAll, changes, hello, route::route};
use crate::{
    config::{Mode, ServerSpec, WorkspaceScope},
    mcp::{
        RpcError, abroad,
        aggregate::View,
        legacy::{check_version, greeted, relay, session_with, stream_of, take},
        lists,
        relay::json,
        session::McpSession,
    },
    session::Place,
};

/// One message of a client's.
pub async fn post(asking: AskingAll<'_>, message: ClientMessage) -> Result<Response, RpcError> {
    let Kind::Request(method) = message.kind.clone() else {
        let session = session(&asking).await?;
        check_version(asking.headers)?;
        return Ok(take(asking.incoming(), &session, &message).await);
    };
    if &*method == method::INITIALIZE {
        return initialize(&asking, &message).await;
    }
    let session = session(&asking).await?;
    check_version(asking.headers)?;
    match &*method {
        method::PING => return Ok(json(lists::answer(&message, &RawJson::empty_object()))),
        method::SET_LEVEL => return set_level(&asking, &session, &message).await,
        _ => {}
    }
    let view = asking.view().await;
    if let Some(list) = view.list(&method) {
        return Ok(json(lists::answer(&message, &list)));
    }
    let routed = match route(&asking, view, &message).await {
        Ok(routed) => routed,
        Err(error) => return Err(abroad::go(asking.incoming(), &session, error).await),
    };
    match routed {
        Some(routed) => relay(routed.asking, session, routed.message).await,
        None => Err(RpcError::method(&method).answered()),
    }
}

/// The client's stream for what belongs to no request, of all servers.
pub async fn get(asking: &AskingAll<'_>) -> Result<Response, RpcError> {
    stream_of(asking.endpoint, session(asking).await?, asking.headers)
}

/// Ends the protocol's session and its streams; the chat's children and folder stay.
pub async fn delete(asking: &AskingAll<'_>) -> Result<Response, RpcError> {
    let session = session(asking).await?;
    asking.endpoint.sessions.end(&session);
    let nothing = Bytes::new();
    abroad::tell(asking.incoming(), &session, &Method::DELETE, &nothing).await;
    Ok(StatusCode::OK.into_response())
}

async fn session(asking: &AskingAll<'_>) -> Result<Arc<McpSession>, RpcError> {
    session_with(asking.incoming(), None).await
}

async fn initialize(asking: &AskingAll<'_>, message: &ClientMessage) -> Result<Response, RpcError> {
    let version = lists::agree(message.params.protocol_version.as_deref());
    let view = asking.view().await;
    look(asking, &view).await?;
    let result = hello::initialize(&view, version);
    let session = asking.endpoint.sessions.begin(
        asking.caller.principal.clone(),
        None,
        version,
        message.params.capabilities.clone().unwrap_or_default(),
    );
    changes::forward(asking.endpoint, &asking.caller, &view, &session);
    Ok(greeted(asking.endpoint, message, &result, &session))
}

/// Where the chat's children live, if they do, the session needs no go-between. Children in folders
/// of their own may live elsewhere all the same.
async fn look(asking: &AskingAll<'_>, view: &View) -> Result<(), RpcError> {
    let replicas = &asking.endpoint.replicas;
    if replicas.is_draining()
        && let Some(other) = replicas.anyone_for(&asking.caller)
    {
        return Err(RpcError::elsewhere(other));
    }
    let specs = || view.offers.iter().map(|offer| &offer.spec);
    let shares = |spec: &&Arc<ServerSpec>| {
        spec.mode == Mode::Stateful && spec.workspace != WorkspaceScope::Own
    };
    let Some(spec) = specs().find(shares) else {
        return Ok(());
    };
    let Some(place) = Place::of(&asking.caller, spec) else {
        return Ok(());
    };
    let here = replicas.look(&asking.caller, spec.mode, &place).await;
    here.map_err(RpcError::elsewhere)
}

/// The children of the session are told, each when it first serves it; none is started for this.
async fn set_level(
    asking: &AskingAll<'_>,
    session: &McpSession,
    message: &ClientMessage,
) -> Result<Response, RpcError> {
    let whole = RawJson::parse(message.line.clone()).ok();
    let params = whole.and_then(|whole| whole.member("params"));
    let level = params.and_then(|params| params.member("level"));
    let level = level.and_then(|level| level.read::<String>().ok());
    let Some(level) = level.filter(|level| LOG_LEVELS.contains(&&**level)) else {
        let text = format!("params.level must be one of {}", LOG_LEVELS.join(", "));
        return Err(RpcError::params(&text).answered());
    };
    // Children of 2026-07-28 hear it with each request, others once.
    session.set_log_level(&level);
    // Numbers of ours begin with 1: nobody waits for this answer.
    session.tell_always(&splice(&message.line, &[(&message.answer_id(), b"0")]));
    abroad::tell(asking.incoming(), session, &Method::POST, &message.line).await;
    Ok(json(lists::answer(message, &RawJson::empty_object())))
}
