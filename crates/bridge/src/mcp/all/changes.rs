//! News of the joined lists: a server came, went, or offers something else.

use std::sync::Arc;

use bridge_model::Caller;
use bridge_protocol::{RawJson, meta::SUBSCRIPTION_ID};
use bytes::Bytes;

use crate::mcp::{
    Endpoint,
    aggregate::{Marks, View},
    session::McpSession,
};

/// Whose lists changed from `before` to `now`, as the protocol calls them.
pub fn differences(before: &Marks, now: &Marks) -> Vec<&'static str> {
    let mut changed = Vec::new();
    if before.tools != now.tools {
        changed.push("tools");
    }
    if before.prompts != now.prompts {
        changed.push("prompts");
    }
    if before.resources != now.resources {
        changed.push("resources");
    }
    changed
}

/// The note that a list changed; modern clients are told for which subscription.
pub fn note(list: &str, subscription: Option<&RawJson>) -> Bytes {
    let params = subscription.map_or_else(String::new, |id| {
        format!(
            r#","params":{{"_meta":{{"{SUBSCRIPTION_ID}":{}}}}}"#,
            id.as_str()
        )
    });
    format!(r#"{{"jsonrpc":"2.0","method":"notifications/{list}/list_changed"{params}}}"#).into()
}

/// Tells the session's client what changes from now on, until the session ends.
pub fn forward(endpoint: &Arc<Endpoint>, caller: &Caller, view: &View, session: &Arc<McpSession>) {
    let (weak_app, session_now) = (Arc::downgrade(endpoint), Arc::downgrade(session));
    let (caller, mut before) = (caller.clone(), view.marks());
    let mut changes = endpoint.catalog.changes();
    let stopping = endpoint.engine.stopping.clone();
    let forwarding = async move {
        loop {
            // What changed since the view was made counts, too.
            let (Some(endpoint), Some(session)) = (weak_app.upgrade(), session_now.upgrade())
            else {
                return;
            };
            let now = super::view(&endpoint, &caller).marks();
            for list in differences(&before, &now) {
                session.outbox.push(&note(list, None));
            }
            before = now;
            drop((endpoint, session));
            if changes.changed().await.is_err() {
                return;
            }
        }
    };
    let ended = session.ended.clone();
    tokio::spawn(async move {
        tokio::select! {
            () = forwarding => {}
            () = ended.cancelled() => {}
            () = stopping.cancelled() => {}
        }
    });
}
