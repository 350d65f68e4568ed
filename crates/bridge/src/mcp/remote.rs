//! A protocol session whose chat is at another replica: it is a remote session there, and messages that the child
//! sends outside of requests are forwarded to the session's stream here.

use std::sync::Arc;

use axum::http::{HeaderMap, HeaderValue, Method, header};
use bridge_model::ForwardReason;
use bridge_process::Profile;
use bytes::Bytes;
use futures_util::StreamExt as _;

use super::{
    request::{Entered, McpExit, McpRequest, ServerRequest},
    session::{McpSession, messages},
};
use crate::{
    replicas::{Elsewhere, Forward, Payload},
    session::{ChildSpec, WorkspaceAddress},
};

impl ServerRequest<'_> {
    /// Opens the workspace here, or forwards the request to its replica, where the session is a remote one.
    /// With a profile, the request is for a child with that profile.
    pub async fn enter(
        &self,
        address: WorkspaceAddress,
        profile: Option<&Profile>,
    ) -> Result<Entered, McpExit> {
        let (endpoint, caller) = (self.request.endpoint, self.request.caller);
        let spec = &self.offer.spec;
        let child = profile.and_then(|profile| ChildSpec::for_caller(spec, profile, caller));
        let (mut forwarding, replicas) = (self.request.forwarding(), &endpoint.core.replicas);
        loop {
            let entering = replicas.enter(caller, spec.mode, &address, child.as_ref());
            let elsewhere = match entering.await {
                Ok(workspace) => return Ok(Entered { address, workspace }),
                Err(elsewhere) => elsewhere,
            };
            let elsewhere = with_remote_session(self.request, self.session, elsewhere);
            forwarding.to(&elsewhere.await).await?;
        }
    }
}

/// The replica for the session's request, with the data that it needs to accept the session. Messages that its child
/// sends outside of requests are received here before the request is forwarded.
pub async fn with_remote_session(
    request: &McpRequest<'_>,
    session: Option<&Arc<McpSession>>,
    elsewhere: Elsewhere,
) -> Elsewhere {
    // The request of a remote session was forwarded by a lease, and is not forwarded again.
    let by_lease = request.caller.forward_reason() == Some(ForwardReason::Lease);
    let Some(session) = session.filter(|_| !by_lease) else {
        return elsewhere;
    };
    let elsewhere = Elsewhere {
        remote_session: Some(Arc::new(session.to_remote_session())),
        ..elsewhere
    };
    if !elsewhere.draining && session.session_proxies.lock().insert(elsewhere.to) {
        listen_there(request, session, &elsewhere).await;
    }
    elsewhere
}

/// Forwards the client's notifications and responses to all replicas where the session is a remote one.
pub async fn tell(request: &McpRequest<'_>, session: &McpSession, method: &Method, line: &Bytes) {
    if request.caller.forward_reason() == Some(ForwardReason::Lease) {
        return;
    }
    let proxies: Vec<_> = session.session_proxies.lock().iter().copied().collect();
    for instance in proxies {
        let replicas = &request.endpoint.core.replicas;
        let Some(found) = replicas.home(instance).await else {
            session.session_proxies.lock().remove(&instance);
            continue;
        };
        let to = Elsewhere {
            reason: ForwardReason::Lease,
            remote_session: Some(Arc::new(session.to_remote_session())),
            ..found
        };
        let sent = of_session(request, session, method, line);
        replicas.tell(&to, request.caller, &sent).await;
    }
}

async fn listen_there(request: &McpRequest<'_>, session: &Arc<McpSession>, to: &Elsewhere) {
    let sent = of_session(request, session, &Method::GET, &Bytes::new());
    let replicas = &request.endpoint.core.replicas;
    let Some(stream) = replicas.listen(to, request.caller, &sent).await else {
        session.session_proxies.lock().remove(&to.to);
        return;
    };
    let (session, to) = (session.clone(), to.to);
    let stopping = request.endpoint.core.engine.stopping.clone();
    let mut stream = messages(stream, request.endpoint.core.settings.limits.max_message());
    tokio::spawn(async move {
        let ended = session.ended.clone();
        let pass = async {
            while let Some(line) = stream.next().await {
                session.outbox.push(&line);
            }
        };
        let pass = ended.run_until_cancelled(pass);
        stopping.run_until_cancelled(pass).await;
        session.session_proxies.lock().remove(&to);
    });
}

/// A message of the session itself.
fn of_session(
    request: &McpRequest<'_>,
    session: &McpSession,
    method: &Method,
    body: &Bytes,
) -> Forward {
    let mut headers = request.parts.headers.clone();
    session.write_id(request.endpoint.core.replicas.own(), &mut headers);
    let accept = HeaderValue::from_static("application/json, text/event-stream");
    headers.insert(header::ACCEPT, accept);
    headers.remove("last-event-id");
    Forward {
        method: method.clone(),
        target: request.target.to_owned(),
        headers,
        chosen: HeaderMap::new(),
        body: Payload::Whole(body.clone()),
    }
}
