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

/// The client's stream for what belongs to no request.
pub async fn get(request: &McpRequest<'_>, scope: &Scope) -> Result<Response, McpExit> {
    let session = session(request, scope).await?;
    check_version(request.headers)?;
    let seen = request.headers.get("last-event-id");
    let seen = seen.and_then(|id| id.to_str().ok()?.parse().ok());
    let (sender, events) = mpsc::channel(64);
    let stopping = request.endpoint.engine.stopping.clone();
    // Before the answer, so that what comes after it is on this stream.
    let sending = session.outbox.open(seen, sender);
    tokio::spawn(async move {
        let sending = session.ended.run_until_cancelled(sending);
        // A stream that waits for news must not use up the grace of a bridge that stops.
        stopping.run_until_cancelled(sending).await;
    });
    Ok(session::response(events))
}

/// The answer to `initialize`, with the session's id.
pub fn greeted(
    endpoint: &Endpoint,
    message: &ClientMessage,
    result: &RawJson,
    session: &McpSession,
) -> Response {
    let mut response = json(lists::answer(message, result));
    session.write_id(endpoint.replicas.own(), response.headers_mut());
    response
}

/// The session that the headers name, if it is this caller's with these servers, or where it is.
pub async fn session(request: &McpRequest<'_>, scope: &Scope) -> Result<Arc<McpSession>, McpExit> {
    let server = match scope {
        Scope::One(offer) => Some(&offer.spec.name),
        Scope::All => None,
    };
    let Some(id) = request.headers.get(header_name::SESSION_ID) else {
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
    let found = if id.home == endpoint.replicas.own() {
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

/// The version header, where one is sent.
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

/// Takes what needs no answer, and passes it on to wherever else the session's children live.
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

/// Whether it was for a child of this replica alone.
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
        // The child had its own from us.
        (Kind::Notification(method), _) if &**method == method::INITIALIZED => {}
        _ => session.tell(&message.line),
    }
    false
}

/// Whether the server's children speak 2026-07-28 alone.
pub fn is_modern(offer: &Offer) -> bool {
    offer.learnt.era == Era::Modern
}

/// Notes the level, which goes to children of 2026-07-28 with each request.
pub fn set_level(session: &McpSession, message: &ClientMessage) -> Result<Response, RpcError> {
    let level = message.params.level.as_deref();
    let Some(level) = level.filter(|level| LOG_LEVELS.contains(level)) else {
        let text = format!("params.level must be one of {}", LOG_LEVELS.join(", "));
        return Err(RpcError::params(&text).answered());
    };
    session.set_log_level(level);
    Ok(json(lists::answer(message, &RawJson::empty_object())))
}

/// Passes a request on to the caller's child.
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
    let (shown, asked) = (to.shown.clone(), protocol.clone());
    call.on_child = Some(Arc::new(move |child| {
        *asked.child.lock() = Some(child.notifier());
        followed.follow(child, mode, shown.clone());
    }));
    let (endpoint, owner) = (to.request.endpoint, session.owner);
    let mut relay = Relay::start(endpoint, owner, id, protocol, cancellation, call);
    relay.in_flight = Some(in_flight);
    relay.openwebui = to.is_openwebui(None);
    relay.shown = to.shown;
    Ok(relay.respond().await)
}

/// The chat's address, as the OpenAPI endpoint has it; for clients that send no chat, the session's own.
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

/// What a client with a session gets while one of its requests runs.
struct LegacyProtocol {
    session: Arc<McpSession>,
    id: RawJson,
    token: Option<RawJson>,
    /// The answer of a child of 2026-07-28 to a read.
    reads_modern: bool,
    pending_input: PendingInput,
    /// The child that serves it.
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
        // What we do not know is the client's to judge.
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
