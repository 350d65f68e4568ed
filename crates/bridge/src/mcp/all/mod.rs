//! `/mcp`: one endpoint for all servers, for clients of every era.
//!
//! A request is given to one server: by its tool's or prompt's name, or by its URI. From there on
//! it is a request at `/mcp/{server}`: the same child and folder, the same bytes. What concerns all
//! servers (greetings, lists, news of lists) is answered here, from the catalogue.

mod changes;
mod hello;
mod legacy;
mod listen;
mod modern;
mod route;

use std::sync::Arc;

use axum::{
    http::{HeaderMap, Method},
    response::Response,
};
use bridge_model::{Caller, ServerName};
use bridge_openapi::path_segment;
use bridge_protocol::ClientMessage;

use super::{
    Asking, RpcError,
    aggregate::{Shown, View},
    asking::Incoming,
    is_modern,
};
use crate::{
    catalog::Knowledge,
    config::{Loaded, ServerAccess, ServerSpec},
    mcp::Endpoint,
    replicas::Forward,
    telemetry::{REQUEST_ID, RequestId},
};

pub use legacy::{delete, get};

/// Everything that a request to all servers needs.
pub struct AskingAll<'a> {
    /// The bridge.
    pub endpoint: &'a Arc<Endpoint>,
    /// Who asks.
    pub caller: Caller,
    /// The request's headers.
    pub headers: &'a HeaderMap,
    /// Path and query, as they came.
    pub target: String,
    /// For logs.
    pub request_id: RequestId,
}

/// One message of a client's, of whichever era.
pub async fn post(asking: AskingAll<'_>, message: ClientMessage) -> Result<Response, RpcError> {
    let id = message.id.clone();
    let answered = if is_modern(asking.headers, &message) {
        modern::post(asking, message).await
    } else {
        legacy::post(asking, message).await
    };
    answered.map_err(|error| {
        if error.id.is_none() {
            error.to(id)
        } else {
            error
        }
    })
}

/// The servers that are there for a caller. Everything at this endpoint goes by this.
fn servers<'a>(config: &'a Loaded, caller: &Caller) -> impl Iterator<Item = &'a ServerName> {
    let seen = |spec: &ServerSpec| spec.access(caller) != ServerAccess::None;
    let servers = config.servers.iter();
    servers.filter_map(move |(name, spec)| seen(spec).then_some(name))
}

/// What they offer, as far as it is known now.
fn view(endpoint: &Endpoint, caller: &Caller) -> Arc<View> {
    let config = endpoint.directory.config();
    let known = servers(&config, caller).filter_map(|name| match endpoint.catalog.peek(name)? {
        Knowledge::Ready(offer) => Some(offer),
        Knowledge::Learning | Knowledge::Failed { .. } => None,
    });
    let known: Vec<_> = known.collect();
    endpoint.views.view(&config, &known)
}

impl<'a> AskingAll<'a> {
    /// What the caller's servers offer. Those that are just being learnt are waited for a little.
    async fn view(&self) -> Arc<View> {
        let config = self.endpoint.directory.config();
        let names = servers(&config, &self.caller);
        self.endpoint.catalog.settled(names).await;
        view(self.endpoint, &self.caller)
    }

    /// The message, to be sent on.
    fn incoming(&self) -> Incoming<'_> {
        Incoming {
            endpoint: self.endpoint,
            caller: &self.caller,
            headers: self.headers,
            target: &self.target,
        }
    }

    /// A message of ours to one of the servers, as it may go to another replica.
    fn to_server(&self, server: &ServerName, message: &ClientMessage) -> Forward {
        let mut headers = self.headers.clone();
        headers.insert(REQUEST_ID, self.request_id.header().clone());
        let path = self.target.split('?').next().unwrap_or_default();
        let path = path.trim_end_matches('/');
        Forward {
            method: Method::POST,
            target: format!("{path}/{}", path_segment(server.as_str())),
            headers,
            // Only calls have a use for them.
            chosen: HeaderMap::new(),
            body: message.line.clone().into(),
        }
    }

    /// The same request to one of the servers.
    fn to(&self, view: &Arc<View>, server: usize) -> Asking<'a> {
        Asking {
            endpoint: self.endpoint,
            caller: self.caller.clone(),
            offer: view.offers[server].clone(),
            headers: self.headers,
            target: self.target.clone(),
            request_id: self.request_id.clone(),
            shown: Some(Shown::new(view.clone(), server)),
        }
    }
}
