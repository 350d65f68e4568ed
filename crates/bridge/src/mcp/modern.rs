//! Clients of 2026-07-28: no session, every request complete in itself, with children that were initialized
//! as legacy ones. A child's request becomes `input_required`, and the client's retry continues the pending
//! call.

use std::{sync::Arc, time::Duration};

use axum::{
    http::{HeaderMap, StatusCode},
    response::Response,
};
use bridge_process::{Cancellation, LONG_LIVED, Profile, Responder, needed};
use bridge_protocol::{
    ClientMessage, Kind, RawJson, Tool, code,
    era::{Era, Signs},
    header_name,
    jsonrpc::{Reply, Said, splice},
    method,
};
use bytes::Bytes;
use parking_lot::Mutex;
use serde_json::{Map, Value, json};

use super::relay::Retry;
use super::{
    listen, lists,
    relay::{ClientProtocol, Relay, RequestOutcome, refused, with_subscription, with_token},
    request::{McpExit, ServerRequest, relayed},
};
use crate::{catalog::Offer, config::Mode, replicas::Exit};

/// Maximum lifetime of a subscription: a day.
const LONGEST_LISTEN: Duration = Duration::from_secs(24 * 3600);

/// Whether a message is of 2026-07-28.
pub fn is_modern(headers: &HeaderMap, message: &ClientMessage) -> bool {
    let version = headers.get(header_name::PROTOCOL_VERSION);
    let signs = Signs {
        version: version.and_then(|version| version.to_str().ok()),
        names_version: message.params.meta.protocol_version.is_some(),
        in_session: headers.contains_key(header_name::SESSION_ID),
        initializes: message.kind == Kind::Request(method::INITIALIZE.into()),
    };
    Era::detect(&signs) == Era::Modern
}

/// The tool that a message calls.
pub fn called<'a>(offer: &'a Offer, message: &ClientMessage) -> Option<&'a Tool> {
    let calls = message.kind == Kind::Request(method::TOOLS_CALL.into());
    let (name, _) = message.params.name.as_ref().filter(|_| calls)?;
    offer.tool(name).map(|offered| &offered.tool)
}

/// A request to one server, whose headers have been checked.
pub async fn request(
    to: ServerRequest<'_>,
    message: ClientMessage,
    method: &str,
) -> Result<Response, McpExit> {
    let is_modern = to.offer.learnt.modern.get().is_some();
    let shared = to.offer.spec.mode == Mode::Shared;
    if method == method::LISTEN && !(is_modern && shared) {
        return listen::listen(to, &message).await;
    }
    if let Some(state) = &message.params.request_state {
        let (request, pending_inputs) = (to.request, &to.request.endpoint.pending_inputs);
        let retry = Retry::for_message(&request.caller.principal, &to.offer.spec.name, &message);
        match pending_inputs.take(request, state, &retry, &message).await {
            Ok(relay) => {
                let protocol = protocol(&message, method);
                return Ok(relay.go_on(message.answer_id(), protocol).respond().await);
            }
            // It may be the child's own method.
            Err(Exit::Error(_)) if is_modern => {}
            Err(exit) => return Err(exit),
        }
    }
    relay(to, message, method, is_modern).await
}

/// Relays to the child. A child of this revision gets the message unchanged; a request of a legacy
/// child is returned as `input_required`.
async fn relay(
    to: ServerRequest<'_>,
    message: ClientMessage,
    method: &str,
    is_modern: bool,
) -> Result<Response, McpExit> {
    let (endpoint, caller) = (to.request.endpoint, to.request.caller);
    let retry = Retry::for_message(&caller.principal, &to.offer.spec.name, &message);
    let relayed = relayed(&to.offer, &message, Era::Modern)?;
    let profile = if is_modern {
        Profile::modern()
    } else {
        let able = message.params.meta.client_capabilities.as_ref();
        Profile::able(able.unwrap_or(&Map::new()))
    };
    let address = to.enter(to.address()?, Some(&profile)).await?;
    let mut call = to.call(relayed, address, profile);
    let mut owner = endpoint.sessions.owner();
    if method == method::LISTEN {
        // A subscription lasts until its client ends it.
        Arc::make_mut(&mut call.spec).timeout = LONGEST_LISTEN;
        owner = LONG_LIVED;
    }
    let (id, protocol) = (message.answer_id(), protocol(&message, method));
    let cancellation = Cancellation::default();
    let mut relay = Relay::start(endpoint, owner, id, protocol, cancellation, call);
    relay.retry = Some(retry);
    relay.openwebui = to.is_openwebui(message.params.meta.client_name.as_deref());
    relay.uris = to.uris;
    Ok(relay.respond().await)
}

fn protocol(message: &ClientMessage, method: &str) -> Arc<dyn ClientProtocol> {
    let meta = &message.params.meta;
    Arc::new(ModernProtocol {
        id: message.answer_id(),
        token: meta.progress_token.clone(),
        capabilities: meta.client_capabilities.clone().unwrap_or_default(),
        missing: Mutex::default(),
        logs: meta.log_level.is_some(),
        holds: lists::holds(method),
    })
}

/// Messages for a client without a session during one of its requests.
struct ModernProtocol {
    id: RawJson,
    token: Option<RawJson>,
    capabilities: Map<String, Value>,
    /// Those that the child needed and the client did not declare.
    missing: Mutex<Map<String, Value>>,
    /// The client requested log messages.
    logs: bool,
    /// The answer is a list or a read, whose result has a lifetime.
    holds: bool,
}

impl ClientProtocol for ModernProtocol {
    fn notification(&self, said: &Said) -> Option<Bytes> {
        if !self.logs && &*said.method == method::MESSAGE {
            return None;
        }
        with_subscription(said, &self.id).or_else(|| with_token(said, self.token.as_ref()))
    }

    fn request(&self, said: Said, responder: Responder) -> RequestOutcome {
        let Some(needed) = needed(&said.method) else {
            return RequestOutcome::Declined;
        };
        match refused(&self.capabilities, &said) {
            None => RequestOutcome::AwaitRetry(said, responder),
            Some((code, why)) => {
                if code == code::METHOD_NOT_FOUND {
                    self.missing.lock().insert(needed.to_owned(), json!({}));
                }
                responder.refuse(code, &why);
                RequestOutcome::Declined
            }
        }
    }

    fn missing_capabilities(&self) -> Map<String, Value> {
        self.missing.lock().clone()
    }

    fn response(&self, reply: &Reply) -> Bytes {
        let (old, new) = match &reply.outcome {
            Ok(result) => (result, lists::complete(result, self.holds)),
            Err(error) => (error, lists::current_code(error)),
        };
        let id = (&reply.id, self.id.as_bytes());
        splice(&reply.line, &[id, (old, new.as_bytes())])
    }

    fn status(&self, reply: &Reply) -> StatusCode {
        match reply.outcome.as_ref().err().and_then(lists::code) {
            Some(code::METHOD_NOT_FOUND) => StatusCode::NOT_FOUND,
            // The codes that the specification reserves for invalid headers, capabilities and versions.
            Some(code::UNSUPPORTED_VERSION..=code::HEADER_MISMATCH) => StatusCode::BAD_REQUEST,
            _ => StatusCode::OK,
        }
    }
}
