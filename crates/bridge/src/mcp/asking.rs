//! What both eras need to know of a request.

use std::sync::{Arc, Mutex};

use axum::http::{HeaderMap, StatusCode};
use bridge_model::Caller;
use bridge_process::Profile;
use bridge_protocol::{ClientMessage, Kind, code, era::Era, method};
use bridge_state::InstanceId;
use tokio::time::Instant;

use super::{RpcError, files::is_openwebui};
use crate::{
    call::{Ask, Call, Parking, Relayed},
    catalog::{Knowledge, Offer},
    config::ServerAccess,
    identity::user_needed,
    mcp::{Endpoint, aggregate::Shown},
    session::{Place, Wants},
    telemetry::RequestId,
};

/// Everything that a request of a client's needs.
pub struct Asking<'a> {
    /// The bridge.
    pub endpoint: &'a Arc<Endpoint>,
    /// Who asks.
    pub caller: Caller,
    /// Which server.
    pub offer: Arc<Offer>,
    /// The request's headers.
    pub headers: &'a HeaderMap,
    /// Path and query, as they came.
    pub target: String,
    /// For logs.
    pub request_id: RequestId,
    /// How its resources are called, where that is not as it calls them.
    pub shown: Option<Shown>,
}

/// What is needed to send a client's message on to another replica.
#[derive(Clone, Copy)]
pub struct Incoming<'a> {
    /// The bridge.
    pub endpoint: &'a Arc<Endpoint>,
    /// Who sent it.
    pub caller: &'a Caller,
    /// Its headers.
    pub headers: &'a HeaderMap,
    /// Path and query, as they came.
    pub target: &'a str,
}

impl Incoming<'_> {
    /// Sends the message to the replica that made or keeps what it names; an error of its own where
    /// that one has ended.
    pub async fn at_home(&self, home: InstanceId, unknown: RpcError) -> RpcError {
        let home = self.endpoint.replicas.home(home).await;
        home.map_or(unknown, RpcError::elsewhere)
    }
}

/// What a server offers to this caller; waited for as long as a caller waits. Where this replica
/// does not know, another may.
pub async fn offer(
    endpoint: &Endpoint,
    server: &str,
    caller: &Caller,
) -> Result<Arc<Offer>, RpcError> {
    let unknown = || unknown(server);
    let (name, _) = endpoint
        .directory
        .server_for(server, caller)
        .ok_or_else(unknown)?;
    match endpoint.catalog.offer(&name).await.ok_or_else(unknown)? {
        Knowledge::Ready(offer) => Ok(offer),
        Knowledge::Learning => {
            if let Some(other) = endpoint.replicas.anyone_for(caller) {
                return Err(RpcError::elsewhere(other));
            }
            let message = format!("the server '{server}' is starting; try again in a moment");
            let status = StatusCode::SERVICE_UNAVAILABLE;
            Err(RpcError::new(
                status,
                code::INTERNAL_ERROR,
                "starting",
                &message,
            ))
        }
        Knowledge::Failed { brief, .. } => {
            let message = format!("the server '{server}' cannot be used: {brief}");
            let status = StatusCode::BAD_GATEWAY;
            Err(RpcError::new(
                status,
                code::INTERNAL_ERROR,
                "not_started",
                &message,
            ))
        }
    }
}

fn unknown(server: &str) -> RpcError {
    let message = format!("Not Found: there is no server '{server}'");
    RpcError::new(
        StatusCode::NOT_FOUND,
        code::INVALID_REQUEST,
        "unknown_server",
        &message,
    )
}

impl Asking<'_> {
    /// Where a call of this caller works, as the OpenAPI door has it; an error where he may only
    /// read what the server offers.
    pub fn place(&self) -> Result<Place, RpcError> {
        let server = self.offer.spec.name.as_str();
        match self.endpoint.directory.server_for(server, &self.caller) {
            Some((_, ServerAccess::Use)) => {}
            Some(_) => {
                let (status, text) = (StatusCode::FORBIDDEN, user_needed(server));
                return Err(RpcError::new(
                    status,
                    code::INVALID_REQUEST,
                    "user_needed",
                    &text,
                ));
            }
            None => return Err(unknown(server)),
        }
        Place::of(&self.caller, &self.offer.spec).ok_or_else(|| {
            let status = StatusCode::NOT_FOUND;
            RpcError::new(
                status,
                code::INVALID_REQUEST,
                "unknown_session",
                "no such session",
            )
        })
    }

    /// Opens the place here, or says which replica the message belongs to. With a profile, it is
    /// for a request to a child that is spoken to like that.
    pub async fn enter(
        &self,
        mut place: Place,
        profile: Option<&Profile>,
    ) -> Result<Place, RpcError> {
        place.wants =
            profile.and_then(|profile| Wants::of(&self.offer.spec, profile, &self.caller));
        let replicas = &self.endpoint.replicas;
        let entered = replicas
            .enter(&self.caller, self.offer.spec.mode, &mut place)
            .await;
        entered.map_err(RpcError::elsewhere)?;
        Ok(place)
    }

    /// Whether Open WebUI asks, which may also say its name.
    pub fn is_openwebui(&self, client_name: Option<&str>) -> bool {
        let names = &self.endpoint.settings.access.headers;
        is_openwebui(self.headers, names, client_name)
    }

    /// The message, to be sent on.
    pub fn incoming(&self) -> Incoming<'_> {
        Incoming {
            endpoint: self.endpoint,
            caller: &self.caller,
            headers: self.headers,
            target: &self.target,
        }
    }

    /// The headers of the request that the server gets.
    fn forwarded(&self) -> Option<HeaderMap> {
        let identity = &self.endpoint.identity;
        identity.forwarded(&self.offer.spec, self.headers, &self.caller)
    }

    /// A call that passes a request on to the child at this place. Nobody hears what the child says
    /// meanwhile, and it cannot wait for its client.
    pub fn call(&self, relayed: Relayed, place: Place, profile: Profile) -> Box<Call> {
        Box::new(Call {
            caller: self.caller.clone(),
            spec: self.offer.spec.clone(),
            place,
            ask: Ask::Relay(relayed),
            profile,
            hearing: None,
            on_child: None,
            parking: Parking::default(),
            incoming: Mutex::default(),
            forwarded: self.forwarded(),
            request_id: self.request_id.clone(),
            received: Instant::now(),
        })
    }
}

/// The request as it goes to the child. Only tools that the config offers are called.
pub fn relayed(offer: &Offer, message: &ClientMessage, era: Era) -> Result<Relayed, RpcError> {
    let Kind::Request(method) = &message.kind else {
        return Err(RpcError::invalid("not a request"));
    };
    let (mut tool, mut place) = (None, None);
    if &**method == method::TOOLS_CALL {
        let Some((name, lies)) = &message.params.name else {
            let text = "params.name is missing: the tool's name";
            return Err(RpcError::new(
                StatusCode::OK,
                code::INVALID_PARAMS,
                "bad_arguments",
                text,
            ));
        };
        if !offer.may_call(name) {
            let text = format!("Unknown tool: {name}");
            return Err(RpcError::new(
                StatusCode::OK,
                code::INVALID_PARAMS,
                "unknown_tool",
                &text,
            ));
        }
        (tool, place) = (Some(name.as_str().into()), Some(lies.clone()));
    }
    Ok(Relayed {
        line: message.line.clone(),
        id: message.answer_id(),
        token: message.params.meta.progress_token.clone(),
        era,
        method: method.clone(),
        tool,
        name: place,
        arguments: message.params.arguments.clone(),
        meta: message.params.meta.whole.clone(),
    })
}
