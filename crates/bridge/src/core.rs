//! The parts of the bridge that the HTTP and the MCP endpoints share.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use axum::http::{request::Parts, uri::PathAndQuery};
use bridge_model::Caller;

use crate::{
    body::BodyMemory,
    call::CallEngine,
    catalog::Catalog,
    config::{Directory, Settings},
    identity::Identity,
    replicas::{Forward, Payload, Replicas},
    telemetry::{REQUEST_ID, RequestId},
};

/// What to configure in Open WebUI so that calls carry a chat id.
const NO_CHAT: &str = "stateful calls arrive without a chat of an authenticated user or key, so \
                       each call starts a new process and folder: set \
                       ENABLE_FORWARD_USER_INFO_HEADERS=true in Open WebUI (or add the custom \
                       headers X-OpenWebUI-Chat-Id: {{CHAT_ID}} and X-OpenWebUI-User-Id: \
                       {{USER_ID}} to the connection), and make it send the API key or connect \
                       from a trusted address";

/// The shared parts.
pub struct Core {
    /// The settings from flags and environment.
    pub settings: Arc<Settings>,
    /// The servers, and which callers may see them.
    pub directory: Arc<Directory>,
    /// Authenticates callers.
    pub identity: Arc<Identity>,
    /// The lists of all servers.
    pub catalog: Arc<Catalog>,
    /// Runs calls.
    pub engine: Arc<CallEngine>,
    /// Memory for request bodies.
    pub bodies: BodyMemory,
    /// The other replicas on the same jobs folder.
    pub replicas: Arc<Replicas>,
    /// Whether a stateful call had no chat id.
    pub calls_without_chat: AtomicBool,
}

impl Core {
    /// Records that a stateful call had no chat id: logged once, and a warning in `/health`.
    pub fn note_call_without_chat(&self) {
        if !self.calls_without_chat.swap(true, Ordering::Relaxed) {
            tracing::warn!("{NO_CHAT}");
        }
    }

    /// The warning if stateful calls had no chat id.
    pub fn warning_without_chat(&self) -> Option<String> {
        let missing = self.calls_without_chat.load(Ordering::Relaxed);
        missing.then(|| NO_CHAT.to_owned())
    }

    /// A request with this head, id and body, to be forwarded to another replica.
    pub fn forward(
        &self,
        parts: &Parts,
        id: &RequestId,
        caller: &Caller,
        body: Payload,
    ) -> Forward {
        let config = self.directory.config();
        let servers = config.servers.values();
        let mut headers = parts.headers.clone();
        headers.insert(REQUEST_ID, id.header().clone());
        Forward {
            method: parts.method.clone(),
            target: path_and_query(parts).to_owned(),
            headers,
            chosen: self
                .identity
                .forwarded_to_any(servers, &parts.headers, caller),
            body,
        }
    }
}

/// Path and query of a request, unchanged.
pub fn path_and_query(parts: &Parts) -> &str {
    let target = parts.uri.path_and_query();
    target.map_or("/", PathAndQuery::as_str)
}
