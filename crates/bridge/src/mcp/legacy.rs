//! Clients of 2024-11-05 to 2025-11-25: sessions, a GET stream, and requests in both directions.

use std::sync::Arc;

use axum::{
    http::{HeaderMap, Method, StatusCode},
    response::{IntoResponse as _, Response},
};
use bridge_process::{Profile, Responder, WeakNotifier};
use bridge_protocol::{
    ClientMessage, Kind, RawJson,
    era::Era,
    header_name,
    jsonrpc::{Reply, Said, splice},
    meta, method,
    method::LOG_LEVELS,
    revision::LEGACY,
};
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::{
    RpcError, lists,
    relay::{ClientProtocol, Relay, RequestOutcome, json, refused, with_token},
    remote,
    request::{McpExit, McpRequest, Scope, ServerRequest, relayed, unsupported},
    session,
    session::McpSession,
};
use crate::{
    call::PendingInput,
    catalog::Offer,
    config::WorkspaceScope,
    error_table::ErrorKind,
    mcp::Endpoint,
    replicas::RoutableSessionId,
    session::{Class, WorkspaceAddress},
};

/// The client's stream for messages that belong to no request.
pub async fn get(request: &McpRequest<'_>, scope: &Scope) -> Result<Response, McpExit> {
    let session = session(request, scope).await?;
    check_version(&request.parts.headers)?;
    let seen = request.parts.headers.get("last-event-id");
    let seen = seen.and_then(|id| id.to_str().ok()?.parse().ok());
    let (sender, events) = mpsc::channel(64);
    let stopping = request.endpoint.core.engine.stopping.clone();
    // Opened before the response, so that later messages are on this stream.
    let sending = session.outbox.open(seen, sender);
    tokio::spawn(async move {
        let sending = session.ended.run_until_cancelled(sending);
        // A stream without messages must not use up the grace period of a bridge that stops.
        stopping.run_until_cancelled(sending).await;
    });
    Ok(session::response(events))
}

/// The response to `initialize`, with the session's id.
pub fn greeted(
    endpoint: &Endpoint,
    message: &ClientMessage,
    result: &RawJson,
    session: &McpSession,
) -> Response {
    let mut response = json(lists::answer(message, result));
    session.write_id(endpoint.core.replicas.own(), response.headers_mut());
    response
}

/// The session in the headers, if it belongs to this caller and these servers. The request is forwarded if another
/// replica is the session's home.
pub async fn session(request: &McpRequest<'_>, scope: &Scope) -> Result<Arc<McpSession>, McpExit> {
    let server = match scope {
        Scope::One(offer) => Some(&offer.spec.name),
        Scope::All => None,
    };
    let Some(id) = request.parts.headers.get(header_name::SESSION_ID) else {
        let missing = "Mcp-Session-Id is missing: send initialize first";
        return Err(RpcError::invalid(missing).into());
    };
    let (endpoint, caller) = (request.endpoint, request.caller);
    let unknown = || {
        let message = "Session not found: send initialize again";
        RpcError::new(ErrorKind::UNKNOWN_SESSION, message)
    };
    let id = RoutableSessionId::read(id.to_str().unwrap_or_default()).ok_or_else(unknown)?;
    let (sessions, principal) = (&endpoint.sessions, &caller.principal);
    let found = if id.home == endpoint.core.replicas.own() {
        sessions.find(&id.token, principal, server)
    } else if let Some(remote_session) = caller
        .remote_session()
        .filter(|remote_session| remote_session.id == id.token)
    {
        sessions.remote_session(principal, remote_session)
    } else {
        return Err(request.forward_home(id.home, unknown).await);
    };
    Ok(found.ok_or_else(unknown)?)
}

/// Checks the version header, if the client sent one.
pub fn check_version(headers: &HeaderMap) -> Result<(), RpcError> {
    let Some(version) = headers.get(header_name::PROTOCOL_VERSION) else {
        return Ok(());
    };
    let version = version.to_str().unwrap_or_default();
    if LEGACY.contains(&version) {
        return Ok(());
    }
    Err(unsupported(version, LEGACY))
}

/// Accepts a message that needs no response, and forwards it to the other replicas of the session's children.
pub async fn take(
    request: &McpRequest<'_>,
    session: &McpSession,
    message: &ClientMessage,
) -> Response {
    if !take_here(session, message) {
        remote::tell(request, session, &Method::POST, &message.line).await;
    }
    StatusCode::ACCEPTED.into_response()
}

/// Whether the message was only for a child of this replica.
fn take_here(session: &McpSession, message: &ClientMessage) -> bool {
    match (&message.kind, &message.params.request_id) {
        (Kind::Response, _) => return session.answer(&message.line, &message.answer_id()),
        (Kind::Notification(method), Some(id)) if &**method == method::CANCELLED => {
            session.cancel(&message.line, id);
        }
        (Kind::Notification(method), _) if &**method == method::PROGRESS => {
            let token = message.param(&[meta::PROGRESS_TOKEN]);
            if token.is_some_and(|token| session.progress(&message.line, &token)) {
                return true;
            }
            session.tell(&message.line);
        }
        // The bridge has sent its own to the child.
        (Kind::Notification(method), _) if &**method == method::INITIALIZED => {}
        _ => session.tell(&message.line),
    }
    false
}

/// Whether the server's children support only 2026-07-28.
pub fn is_modern(offer: &Offer) -> bool {
    offer.learnt.era == Era::Modern
}

/// Stores the level, which is sent to children of 2026-07-28 with each request.
pub fn set_level(session: &McpSession, message: &ClientMessage) -> Result<Response, RpcError> {
    let level = message.params.level.as_deref();
    let Some(level) = level.filter(|level| LOG_LEVELS.contains(level)) else {
        let text = format!("params.level must be one of {}", LOG_LEVELS.join(", "));
        return Err(RpcError::params(&text).answered());
    };
    session.set_log_level(level);
    Ok(json(lists::answer(message, &RawJson::empty_object())))
}

/// Relays a request to the caller's child.
pub async fn relay(
    to: ServerRequest<'_>,
    session: &Arc<McpSession>,
    message: ClientMessage,
) -> Result<Response, McpExit> {
    let relayed = relayed(&to.offer, &message, Era::Legacy)?;
    let profile = Profile {
        protocol_version: String::from(session.version.clone()).into(),
        capabilities: session.capabilities.clone(),
        log_level: Some(session.log_level()),
        ..Profile::silent()
    };
    let address = to.enter(address(&to, session)?, Some(&profile)).await?;
    let id = message.answer_id();
    let in_flight = session.begin_request(&id);
    let cancellation = in_flight.cancellation.clone();
    let reads_modern = &*relayed.method == method::RESOURCES_READ && is_modern(&to.offer);
    let mut call = to.call(relayed, address, profile);
    let protocol = Arc::new(LegacyProtocol {
        session: session.clone(),
        id: id.clone(),
        token: message.params.meta.progress_token.clone(),
        reads_modern,
        pending_input: call.pending_input.clone(),
        child: Mutex::default(),
    });
    let (followed, mode) = (session.clone(), call.spec.mode);
    let (uris, asked) = (to.uris.clone(), protocol.clone());
    call.on_child = Some(Arc::new(move |child| {
        *asked.child.lock() = Some(child.notifier());
        followed.follow(child, mode, uris.clone());
    }));
    let (endpoint, owner) = (to.request.endpoint, session.owner);
    let mut relay = Relay::start(endpoint, owner, id, protocol, cancellation, call);
    relay.in_flight = Some(in_flight);
    relay.openwebui = to.is_openwebui(None);
    relay.uris = to.uris;
    Ok(relay.respond().await)
}

/// The chat's address, as at the OpenAPI endpoint; for clients that send no chat, the session's own.
fn address(to: &ServerRequest<'_>, session: &McpSession) -> Result<WorkspaceAddress, RpcError> {
    let address = to.address()?;
    let spec = &to.offer.spec;
    if address.class == Class::Lasting {
        return Ok(address);
    }
    let own = (spec.workspace == WorkspaceScope::Own).then_some(&spec.name);
    Ok(WorkspaceAddress::of_protocol(
        &session.principal,
        &session.id,
        own,
    ))
}

/// Messages for a client with a session during one of its requests.
struct LegacyProtocol {
    session: Arc<McpSession>,
    id: RawJson,
    token: Option<RawJson>,
    /// The request is a read from a child of 2026-07-28.
    reads_modern: bool,
    pending_input: PendingInput,
    /// The child that serves the request.
    child: Mutex<Option<WeakNotifier>>,
}

impl ClientProtocol for LegacyProtocol {
    fn notification(&self, said: &Said) -> Option<Bytes> {
        if &*said.method == method::CANCELLED {
            let child = self.child.lock();
            return self.session.withdrawn(said, child.as_ref()?);
        }
        with_token(said, self.token.as_ref())
    }

    fn request(&self, said: Said, responder: Responder) -> RequestOutcome {
        // Unknown methods are for the client to decide.
        if let Some((code, why)) = refused(&self.session.capabilities, &said) {
            responder.refuse(code, &why);
            return RequestOutcome::Declined;
        }
        let Some(id) = said.id.clone() else {
            return RequestOutcome::Declined;
        };
        let token = said.param(&["_meta", meta::PROGRESS_TOKEN]);
        let pending_input = self.pending_input.clone();
        let Some(number) = self.session.ask(responder, pending_input, token.clone()) else {
            return RequestOutcome::Declined;
        };
        let number = number.to_string();
        let mut edits = vec![(&id, number.as_bytes())];
        edits.extend(token.as_ref().map(|token| (token, number.as_bytes())));
        RequestOutcome::Send(splice(&said.line, &edits))
    }

    fn response(&self, reply: &Reply) -> Bytes {
        let id = self.id.as_bytes();
        match &reply.outcome {
            Err(error) if self.reads_modern => {
                let earlier = lists::earlier_code(error);
                splice(&reply.line, &[(&reply.id, id), (error, earlier.as_bytes())])
            }
            _ => splice(&reply.line, &[(&reply.id, id)]),
        }
    }
}
