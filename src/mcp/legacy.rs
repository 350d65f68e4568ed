//! Clients of 2024-11-05 to 2025-11-25: sessions, a GET stream, and requests in both directions.

use std::sync::Arc;

use axum::{
    http::{HeaderMap, HeaderValue, Method, StatusCode},
    response::{IntoResponse as _, Response},
};
use bytes::Bytes;
use serde_json::json;
use tokio::sync::{mpsc, watch};

use super::{
    ClientMessage, Kind, RpcError, abroad,
    asking::{Asking, relayed},
    lists,
    relay::{Asked, Manner, Relay, json, with_token},
    session::McpSession,
    stream,
};
use crate::{
    child::{Era, Profile, Replier, Reply, Said, splice},
    config::WorkspaceScope,
    model::RawJson,
    replicas::Homed,
    session::{Class, Place},
};

/// What `logging/setLevel` may ask for.
const LEVELS: &[&str] = &[
    "debug",
    "info",
    "notice",
    "warning",
    "error",
    "critical",
    "alert",
    "emergency",
];
/// `Mcp-Session-Id`
pub const SESSION: &str = "mcp-session-id";

/// One message of a client's.
pub async fn post(asking: Asking<'_>, message: ClientMessage) -> Result<Response, RpcError> {
    let id = message.id.clone();
    let answered = match &message.kind {
        Kind::Request(method) if &**method == "initialize" => initialize(&asking, &message).await,
        _ => match session(&asking).await {
            Ok(session) => in_session(asking, session, message).await,
            Err(error) => Err(error),
        },
    };
    answered.map_err(|error| {
        if error.id.is_none() {
            error.to(id)
        } else {
            error
        }
    })
}

/// The client's stream for what belongs to no request.
pub async fn get(asking: &Asking<'_>) -> Result<Response, RpcError> {
    let session = session(asking).await?;
    check_version(asking.headers)?;
    let seen = asking
        .headers
        .get("last-event-id")
        .and_then(|id| id.to_str().ok()?.parse().ok());
    // Without an id a stream begins with what comes next.
    let seen = seen.unwrap_or_else(|| session.outbox.last());
    let (sender, events) = mpsc::channel(64);
    let stopping = asking.app.engine.stopping.clone();
    tokio::spawn(async move {
        let outbox = session.outbox.clone();
        let sending = session.ended.run_until_cancelled(outbox.send(seen, sender));
        // A stream that waits for news must not use up the grace of a bridge that stops.
        stopping.run_until_cancelled(sending).await;
    });
    Ok(stream::response(events))
}

/// Ends the protocol's session and its streams; the chat's child and folder stay.
pub async fn delete(asking: &Asking<'_>) -> Result<Response, RpcError> {
    let session = session(asking).await?;
    asking.app.mcp.end(&session);
    abroad::tell(asking, &session, &Method::DELETE, &Bytes::new()).await;
    Ok(StatusCode::OK.into_response())
}

async fn initialize(asking: &Asking<'_>, message: &ClientMessage) -> Result<Response, RpcError> {
    // Where the chat's child lives, if it does, the session needs no go-between.
    if let Some(place) = Place::of(&asking.caller, &asking.offer.spec) {
        let (caller, spec) = (&asking.caller, &asking.offer.spec);
        let here = asking.app.replicas.look(caller, spec, &place).await;
        here.map_err(RpcError::elsewhere)?;
    }
    let version = lists::agree(message.params.protocol_version.as_deref());
    let result = lists::initialize(&asking.offer, version);
    let session = asking.app.mcp.begin(
        asking.caller.principal.clone(),
        Some(asking.offer.spec.name.clone()),
        version,
        message.params.capabilities.clone().unwrap_or_default(),
    );
    let mut response = json(lists::answer(message, &result));
    let id = Homed {
        token: session.id.clone(),
        home: asking.app.replicas.own(),
    };
    if let Ok(id) = HeaderValue::from_str(&id.to_string()) {
        response.headers_mut().insert(SESSION, id);
    }
    Ok(response)
}

async fn session(asking: &Asking<'_>) -> Result<Arc<McpSession>, RpcError> {
    let Some(id) = asking.headers.get(SESSION) else {
        return Err(RpcError::invalid(
            "Mcp-Session-Id is missing: send initialize first",
        ));
    };
    let principal = &asking.caller.principal;
    let unknown = || {
        let message = "Session not found: send initialize again";
        RpcError::new(StatusCode::NOT_FOUND, -32600, "unknown_session", message)
    };
    let id = id.to_str().unwrap_or_default().parse::<Homed>();
    let id = id.map_err(|_| unknown())?;
    let (sessions, server) = (&asking.app.mcp, &asking.offer.spec.name);
    let found = if id.home == asking.app.replicas.own() {
        sessions.find(&id.token, principal, Some(server))
    } else if let Some(guest) = asking.caller.guest().filter(|guest| guest.id == id.token) {
        sessions.guest(principal, guest)
    } else {
        return Err(asking.at_home(id.home, unknown()).await);
    };
    found.ok_or_else(unknown)
}

fn check_version(headers: &HeaderMap) -> Result<(), RpcError> {
    let Some(version) = headers.get("mcp-protocol-version") else {
        return Ok(());
    };
    let version = version.to_str().unwrap_or_default();
    if lists::LEGACY.contains(&version) {
        return Ok(());
    }
    let message = "Unsupported protocol version";
    let error = RpcError::new(
        StatusCode::BAD_REQUEST,
        -32022,
        "unsupported_version",
        message,
    );
    Err(error.with(json!({"supported": lists::LEGACY, "requested": version})))
}

async fn in_session(
    asking: Asking<'_>,
    session: Arc<McpSession>,
    message: ClientMessage,
) -> Result<Response, RpcError> {
    check_version(asking.headers)?;
    match &message.kind {
        Kind::Response => {
            let id = message.answer_id();
            if !session.answer(&message.line, &id) {
                abroad::tell(&asking, &session, &Method::POST, &message.line).await;
            }
            Ok(StatusCode::ACCEPTED.into_response())
        }
        Kind::Notification(method) => {
            match (&**method, &message.params.request_id) {
                ("notifications/cancelled", Some(id)) => session.cancel(id),
                // The child had its own from us.
                ("notifications/initialized", _) => {}
                _ => session.tell(&message.line),
            }
            abroad::tell(&asking, &session, &Method::POST, &message.line).await;
            Ok(StatusCode::ACCEPTED.into_response())
        }
        Kind::Request(method) if &**method == "ping" => {
            Ok(json(lists::answer(&message, &RawJson::empty_object())))
        }
        Kind::Request(method) if &**method == "logging/setLevel" && is_modern(&asking) => {
            set_level(&asking, &session, &message)
        }
        Kind::Request(method) => match lists::list(&asking.offer, method) {
            Some(list) => Ok(json(lists::answer(&message, &list))),
            None => relay(asking, session, message).await,
        },
    }
}

/// Whether the server's children speak 2026-07-28 alone.
fn is_modern(asking: &Asking<'_>) -> bool {
    asking.offer.learnt.era == Era::Modern
}

/// Notes the level, which goes to children of 2026-07-28 with each request.
fn set_level(
    asking: &Asking<'_>,
    session: &McpSession,
    message: &ClientMessage,
) -> Result<Response, RpcError> {
    if !asking
        .offer
        .learnt
        .hello
        .capabilities
        .contains_key("logging")
    {
        let text = "Method not found: logging/setLevel";
        return Err(RpcError::new(
            StatusCode::OK,
            -32601,
            "unknown_method",
            text,
        ));
    }
    let level = message.params.level.as_deref();
    let Some(level) = level.filter(|level| LEVELS.contains(level)) else {
        let text = format!("params.level must be one of {}", LEVELS.join(", "));
        return Err(RpcError::new(
            StatusCode::OK,
            -32602,
            "bad_arguments",
            &text,
        ));
    };
    session.set_log_level(level);
    Ok(json(lists::answer(message, &RawJson::empty_object())))
}

async fn relay(
    asking: Asking<'_>,
    session: Arc<McpSession>,
    message: ClientMessage,
) -> Result<Response, RpcError> {
    let relayed = relayed(&asking.offer, &message, Era::Legacy)?;
    let place = match asking.enter(place(&asking, &session)?).await {
        Ok(place) => place,
        Err(error) => return Err(abroad::go(&asking, &session, error).await),
    };
    let id = message.answer_id();
    let in_flight = session.begin_request(&id);
    let (park, parked) = watch::channel(false);
    let manner = Arc::new(LegacyManner {
        session: session.clone(),
        id: id.clone(),
        token: message.params.meta.progress_token.clone(),
        reads_modern: &*relayed.method == "resources/read" && is_modern(&asking),
        park,
    });
    let cancelled = in_flight.cancelled.clone();
    let profile = Profile {
        protocol_version: session.version.clone(),
        capabilities: session.capabilities.clone(),
        log_level: Some(session.log_level()),
        ..Profile::silent()
    };
    let mut call = asking.call(relayed, place, profile);
    let (followed, mode) = (session.clone(), call.spec.mode);
    call.on_child = Some(Arc::new(move |child| followed.follow(child, mode)));
    call.parked = parked;
    let mut relay = Relay::start(asking.app, session.owner, id, manner, cancelled, call);
    relay.keep(in_flight);
    Ok(relay.respond().await)
}

/// The chat's place, as the OpenAPI door has it; for clients that send no chat, the session's own.
fn place(asking: &Asking<'_>, session: &McpSession) -> Result<Place, RpcError> {
    let place = asking.place()?;
    if place.class == Class::Lasting {
        return Ok(place);
    }
    let spec = &asking.offer.spec;
    let own = (spec.workspace == WorkspaceScope::Own).then_some(&spec.name);
    Ok(Place::of_protocol(&session.principal, &session.id, own))
}

/// How a client with a session is spoken to while a request of his runs.
struct LegacyManner {
    session: Arc<McpSession>,
    id: RawJson,
    token: Option<RawJson>,
    /// The answer of a child of 2026-07-28 to a read.
    reads_modern: bool,
    park: watch::Sender<bool>,
}

impl Manner for LegacyManner {
    fn told(&self, said: &Said) -> Option<Bytes> {
        with_token(said, self.token.as_ref())
    }

    fn asked(&self, said: Said, replier: Replier) -> Asked {
        let able = |capability: &str| self.session.capabilities.contains_key(capability);
        let answers = match &*said.method {
            "elicitation/create" => able("elicitation"),
            "sampling/createMessage" => able("sampling"),
            "roots/list" => able("roots"),
            // What we do not know is the client's to judge.
            _ => true,
        };
        let Some(id) = said.id.clone().filter(|_| answers) else {
            return Asked::Declined;
        };
        let number = self.session.ask(replier, self.park.clone()).to_string();
        Asked::Send(splice(&said.line, &[(&id, number.as_bytes())]))
    }

    fn answered(&self, reply: &Reply) -> Bytes {
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
