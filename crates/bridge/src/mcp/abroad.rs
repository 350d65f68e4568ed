//! A protocol session whose chat is worked on by another replica: it is a guest there, and what is
//! said to it there comes back into its stream here.

use std::sync::Arc;

use axum::http::{HeaderMap, HeaderValue, Method, header};
use bridge_model::Hop;
use bridge_protocol::header_name;
use bridge_state::InstanceId;
use bytes::Bytes;

use super::{RpcError, asking::Incoming, session::McpSession, stream::Messages};
use crate::replicas::{Elsewhere, Forward, Homed, Routed as _};

/// The error with what the other replica needs to take the session in. What its child says to nobody
/// in particular is heard here before the request goes there.
pub async fn go(incoming: Incoming<'_>, session: &Arc<McpSession>, error: RpcError) -> RpcError {
    let Some(elsewhere) = error.elsewhere() else {
        return error;
    };
    // A guest's own request came by a lease, and does not go on.
    if incoming.caller.hop() == Some(Hop::Lease) {
        return error;
    }
    let elsewhere = Elsewhere {
        guest: Some(Arc::new(session.as_guest())),
        ..elsewhere.clone()
    };
    if !elsewhere.draining && session.abroad.add(elsewhere.to) {
        hear(incoming, session, &elsewhere).await;
    }
    RpcError::elsewhere(elsewhere)
}

/// Passes on what the client tells or answers to wherever the session is a guest.
pub async fn tell(incoming: Incoming<'_>, session: &McpSession, method: &Method, line: &Bytes) {
    if incoming.caller.hop() == Some(Hop::Lease) {
        return;
    }
    for instance in session.abroad.all() {
        let Some(to) = there(incoming, session, instance).await else {
            session.abroad.remove(instance);
            continue;
        };
        let request = request(incoming, session, method, line);
        let replicas = &incoming.endpoint.replicas;
        replicas.tell(&to, incoming.caller, &request).await;
    }
}

async fn hear(incoming: Incoming<'_>, session: &Arc<McpSession>, to: &Elsewhere) {
    let request = request(incoming, session, &Method::GET, &Bytes::new());
    let replicas = &incoming.endpoint.replicas;
    let Some(stream) = replicas.listen(to, incoming.caller, &request).await else {
        session.abroad.remove(to.to);
        return;
    };
    let (session, to) = (session.clone(), to.to);
    let stopping = incoming.endpoint.engine.stopping.clone();
    let mut stream = Messages::of(stream, incoming.endpoint.settings.limits.max_message());
    tokio::spawn(async move {
        let ended = session.ended.clone();
        let pass = async {
            while let Some(line) = stream.next().await {
                session.outbox.push(&line);
            }
        };
        stopping
            .run_until_cancelled(ended.run_until_cancelled(pass))
            .await;
        session.abroad.remove(to);
    });
}

async fn there(
    incoming: Incoming<'_>,
    session: &McpSession,
    instance: InstanceId,
) -> Option<Elsewhere> {
    let found = incoming.endpoint.replicas.home(instance).await?;
    Some(Elsewhere {
        hop: Hop::Lease,
        guest: Some(Arc::new(session.as_guest())),
        ..found
    })
}

fn request(incoming: Incoming<'_>, session: &McpSession, method: &Method, body: &Bytes) -> Forward {
    let mut headers = incoming.headers.clone();
    let id = Homed {
        token: session.id.clone(),
        home: incoming.endpoint.replicas.own(),
    };
    if let Ok(id) = HeaderValue::from_str(&id.to_string()) {
        headers.insert(header_name::SESSION_ID, id);
    }
    let accept = HeaderValue::from_static("application/json, text/event-stream");
    headers.insert(header::ACCEPT, accept);
    headers.remove("last-event-id");
    Forward {
        method: method.clone(),
        target: incoming.target.to_owned(),
        headers,
        chosen: HeaderMap::new(),
        body: body.clone().into(),
    }
}
