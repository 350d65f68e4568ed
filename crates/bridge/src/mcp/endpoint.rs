//! Requests of clients of both eras to an MCP endpoint, that of one server (`/mcp/{server}`) or that of
//! all servers (`/mcp`).
//!
//! At the endpoint of all servers a request is routed to one of them: by its tool's or prompt's name, or by its
//! URI. From there on it is a request at that server's endpoint: the same child and folder, the same bytes.
//! Requests that concern all servers (initialization, lists, notifications of changed lists) are answered from the
//! catalogue.

use std::sync::Arc;

use axum::{
    http::{Method, StatusCode},
    response::{IntoResponse as _, Response},
};
use bridge_protocol::{
    ClientMessage, Kind, RawJson, Tool, jsonrpc::splice, method, method::REMOVED,
};
use bytes::Bytes;

use super::{
    RpcError,
    aggregate::View,
    all, legacy,
    legacy::{check_version, relay, take},
    lists, modern,
    modern::{called, is_modern},
    relay::json,
    remote, request,
    request::{McpExit, McpRequest, Scope, ServerRequest},
    session::McpSession,
};
use crate::{
    catalog::Offer,
    config::{Mode, ServerSpec, WorkspaceScope},
    replicas::Exit,
    session::WorkspaceAddress,
};

/// Handles one message of a client of either era.
pub async fn post(
    request: &McpRequest<'_>,
    scope: Scope,
    message: ClientMessage,
) -> Result<Response, McpExit> {
    let id = message.id.clone();
    let answered = if is_modern(&request.parts.headers, &message) {
        post_modern(request, scope, message).await
    } else {
        post_legacy(request, scope, message).await
    };
    answered.map_err(|exit| match exit {
        Exit::Error(error) if error.id.is_none() => error.to(id).into(),
        exit => exit,
    })
}

/// Ends the protocol's session and its streams; the chat's children and folder stay.
pub async fn delete(request: &McpRequest<'_>, scope: &Scope) -> Result<Response, McpExit> {
    let session = legacy::session(request, scope).await?;
    request.endpoint.sessions.end(&session);
    remote::tell(request, &session, &Method::DELETE, &Bytes::new()).await;
    Ok(StatusCode::OK.into_response())
}

/// Handles a message of a client of 2024-11-05 to 2025-11-25.
async fn post_legacy(
    request: &McpRequest<'_>,
    scope: Scope,
    message: ClientMessage,
) -> Result<Response, McpExit> {
    if message.kind == Kind::Request(method::INITIALIZE.into()) {
        return initialize(request, scope, &message).await;
    }
    let session = legacy::session(request, &scope).await?;
    check_version(&request.parts.headers)?;
    let method = match &message.kind {
        Kind::Request(method) => method.clone(),
        Kind::Response | Kind::Notification(_) => {
            return Ok(take(request, &session, &message).await);
        }
    };
    if &*method == method::PING {
        return Ok(json(lists::answer(&message, &RawJson::empty_object())));
    }
    if &*method == method::SET_LEVEL {
        match &scope {
            Scope::All => return set_level_of_all(request, &session, &message).await,
            Scope::One(offer) if legacy::is_modern(offer) => {
                if !offer.learnt.hello.capabilities.contains_key("logging") {
                    return Err(RpcError::method(&method).answered().into());
                }
                return Ok(legacy::set_level(&session, &message)?);
            }
            Scope::One(_) => {}
        }
    }
    let offered = Offered::by(request, scope).await;
    if let Some(list) = offered.list(&method) {
        return Ok(json(lists::answer(&message, &list)));
    }
    match offered.route(request, message, Some(&session)).await? {
        Some((to, message)) => relay(to, &session, message).await,
        None => Err(RpcError::method(&method).answered().into()),
    }
}

/// The offers of the servers of a request.
enum Offered {
    One(Arc<Offer>),
    All(Arc<View>),
}

impl Offered {
    async fn by(request: &McpRequest<'_>, scope: Scope) -> Self {
        match scope {
            Scope::One(offer) => Self::One(offer),
            Scope::All => Self::All(all::settled_view(request).await),
        }
    }

    /// The result of a list method; `None` for other methods, and for lists that depend on the caller's child.
    fn list(&self, method: &str) -> Option<RawJson> {
        match self {
            Self::One(offer) => lists::list(offer, method),
            Self::All(view) => view.list(method),
        }
    }

    /// The answer to `initialize`.
    fn initialize(&self, version: &str) -> RawJson {
        match self {
            Self::One(offer) => lists::initialize(offer, version),
            Self::All(view) => all::initialize(view, version),
        }
    }

    /// The answer to `server/discover`.
    fn discover(&self) -> RawJson {
        match self {
            Self::One(offer) => {
                let own = offer.learnt.modern.get().cloned();
                own.unwrap_or_else(|| lists::discover(offer))
            }
            Self::All(view) => all::discover(view),
        }
    }

    /// The server that a message is for, and the message for that server; `None` if it names no server.
    async fn route<'a>(
        &self,
        request: &'a McpRequest<'a>,
        message: ClientMessage,
        session: Option<&'a Arc<McpSession>>,
    ) -> Result<Option<(ServerRequest<'a>, ClientMessage)>, McpExit> {
        match self {
            Self::One(offer) => {
                let to = ServerRequest {
                    request,
                    offer: offer.clone(),
                    session,
                    uris: None,
                };
                Ok(Some((to, message)))
            }
            Self::All(view) => all::route(request, view.clone(), &message, session).await,
        }
    }
}

async fn initialize(
    request: &McpRequest<'_>,
    scope: Scope,
    message: &ClientMessage,
) -> Result<Response, McpExit> {
    let (endpoint, caller) = (request.endpoint, request.caller);
    let version = lists::agree(message.params.protocol_version.as_deref());
    let capabilities = message.params.capabilities.clone().unwrap_or_default();
    let principal = caller.principal.clone();
    let offered = Offered::by(request, scope).await;
    let server = match &offered {
        Offered::One(offer) => {
            forward_to_holder(request, Some(&offer.spec)).await?;
            Some(offer.spec.name.clone())
        }
        Offered::All(view) => {
            forward_to_any_holder(request, view).await?;
            None
        }
    };
    let sessions = &endpoint.sessions;
    let session = sessions.begin(principal, server, version, capabilities);
    if let Offered::All(view) = &offered {
        all::forward(endpoint, caller, view, &session);
    }
    let result = offered.initialize(version);
    Ok(legacy::greeted(endpoint, message, &result, &session))
}

/// Forwards to the replica of the chat's child, if it runs, so that the session needs no proxy.
async fn forward_to_holder(
    request: &McpRequest<'_>,
    spec: Option<&Arc<ServerSpec>>,
) -> Result<(), McpExit> {
    let (replicas, caller) = (&request.endpoint.core.replicas, request.caller);
    let Some(spec) = spec else { return Ok(()) };
    let Some(address) = WorkspaceAddress::for_caller(caller, spec) else {
        return Ok(());
    };
    let mut forwarding = request.forwarding();
    while let Err(elsewhere) = replicas.elsewhere(caller, spec.mode, &address).await {
        forwarding.to(&elsewhere).await?;
    }
    Ok(())
}

/// The same for all servers. Children with folders of their own may still run on other replicas.
async fn forward_to_any_holder(request: &McpRequest<'_>, view: &View) -> Result<(), McpExit> {
    let (replicas, caller) = (&request.endpoint.core.replicas, request.caller);
    let mut forwarding = request.forwarding();
    while replicas.is_draining()
        && let Some(other) = replicas.anyone_for(caller)
    {
        forwarding.to(&other).await?;
    }
    let shares = |spec: &&Arc<ServerSpec>| {
        spec.mode == Mode::Stateful && spec.workspace != WorkspaceScope::Own
    };
    let mut specs = view.offers.iter().map(|offer| &offer.spec);
    forward_to_holder(request, specs.find(shares)).await
}

/// Sets the log level of the session's children, each when it first serves the session; starts no child.
async fn set_level_of_all(
    request: &McpRequest<'_>,
    session: &McpSession,
    message: &ClientMessage,
) -> Result<Response, McpExit> {
    // Children of 2026-07-28 get the level with each request, others once.
    let answer = legacy::set_level(session, message)?;
    // The bridge's own ids begin with 1, so no request waits for this response.
    session.tell_always(&splice(&message.line, &[(&message.answer_id(), b"0")]));
    remote::tell(request, session, &Method::POST, &message.line).await;
    Ok(answer)
}

/// Handles a message of a client of 2026-07-28.
async fn post_modern(
    request: &McpRequest<'_>,
    scope: Scope,
    message: ClientMessage,
) -> Result<Response, McpExit> {
    let method = match &message.kind {
        Kind::Request(method) => method.clone(),
        // The specification defines no client notifications; accepting one does no harm.
        Kind::Notification(_) => return Ok(StatusCode::ACCEPTED.into_response()),
        Kind::Response => {
            let text = "clients of this revision send no responses";
            return Err(RpcError::invalid(text).into());
        }
    };
    let offered = Offered::by(request, scope).await;
    let routed = offered.route(request, message.clone(), None).await;
    // The headers repeat the client's own names; the schema is that of the tool they refer to.
    let target = routed.as_ref().ok().and_then(Option::as_ref);
    let tool = target.and_then(|(to, message)| called(&to.offer, message));
    let schema = tool.map(Tool::input_schema);
    request::check(&request.parts.headers, &message, &method, schema)?;
    if REMOVED.contains(&&*method) {
        return Err(RpcError::method(&method).into());
    }
    if &*method == method::DISCOVER {
        return Ok(json(lists::answer(&message, &offered.discover())));
    }
    if &*method == method::LISTEN
        && let Offered::All(view) = &offered
    {
        return all::listen(request, view, &message).await;
    }
    if let Some(list) = offered.list(&method) {
        let list = lists::complete(&list, true);
        return Ok(json(lists::answer(&message, &list)));
    }
    match routed? {
        Some((to, message)) => modern::request(to, message, &method).await,
        None => Err(RpcError::method(&method).into()),
    }
}
