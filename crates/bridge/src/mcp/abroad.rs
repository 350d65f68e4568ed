//! A protocol session whose chat is worked on by another replica: it is a guest there, and what is
//! said to it there comes back into its stream here.

use std::sync::Arc;

use axum::http::{HeaderMap, HeaderValue, Method, header};
use bridge_model::Hop;
use bridge_protocol::header_name;
use bridge_state::InstanceId;
use bytes::Bytes;

use super::{request::McpRequest, session::McpSession, stream::Messages};
use crate::replicas::{Elsewhere, Forward, Homed};

/// Where the session's request goes, with what the other replica needs to take the session in. What its child
/// says to nobody in particular is heard here before the request goes there.
pub async fn with_guest(
    request: &McpRequest<'_>,
    session: &Arc<McpSession>,
    elsewhere: Elsewhere,
) -> Elsewhere {
    // A guest's own request came by a lease, and does not go on.
    if request.caller.hop() == Some(Hop::Lease) {
        return elsewhere;
    }
    let elsewhere = Elsewhere {
        guest: Some(Arc::new(session.as_guest())),
        ..elsewhere
    };
    if !elsewhere.draining && session.abroad.add(elsewhere.to) {
        hear(request, session, &elsewhere).await;
    }
    elsewhere
}

/// Passes on what the client tells or answers to wherever the session is a guest.
pub async fn tell(request: &McpRequest<'_>, session: &McpSession, method: &Method, line: &Bytes) {
    if request.caller.hop() == Some(Hop::Lease) {
        return;
    }
    for instance in session.abroad.all() {
        let Some(to) = there(request, session, instance).await else {
            session.abroad.remove(instance);
            continue;
        };
        let sent = of_session(request, session, method, line);
        let replicas = &request.endpoint.replicas;
        replicas.tell(&to, request.caller, &sent).await;
    }
}

async fn hear(request: &McpRequest<'_>, session: &Arc<McpSession>, to: &Elsewhere) {
    let sent = of_session(request, session, &Method::GET, &Bytes::new());
    let replicas = &request.endpoint.replicas;
    let Some(stream) = replicas.listen(to, request.caller, &sent).await else {
        session.abroad.remove(to.to);
        return;
    };
    let (session, to) = (session.clone(), to.to);
    let stopping = request.endpoint.engine.stopping.clone();
    let mut stream = Messages::of(stream, request.endpoint.settings.limits.max_message());
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
    request: &McpRequest<'_>,
    session: &McpSession,
    instance: InstanceId,
) -> Option<Elsewhere> {
    let found = request.endpoint.replicas.home(instance).await?;
    Some(Elsewhere {
        hop: Hop::Lease,
        guest: Some(Arc::new(session.as_guest())),
        ..found
    })
}

/// A message of the session's own.
fn of_session(
    request: &McpRequest<'_>,
    session: &McpSession,
    method: &Method,
    body: &Bytes,
) -> Forward {
    let mut headers = request.headers.clone();
    let id = Homed {
        token: session.id.clone(),
        home: request.endpoint.replicas.own(),
    };
    if let Ok(id) = HeaderValue::from_str(&id.to_string()) {
        headers.insert(header_name::SESSION_ID, id);
    }
    let accept = HeaderValue::from_static("application/json, text/event-stream");
    headers.insert(header::ACCEPT, accept);
    headers.remove("last-event-id");
    Forward {
        method: method.clone(),
        target: request.target.to_owned(),
        headers,
        chosen: HeaderMap::new(),
        body: body.clone().into(),
    }
}
