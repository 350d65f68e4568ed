//! `/mcp`: one endpoint for all servers, for clients of every era.
//!
//! A request is given to one server: by its tool's or prompt's name, or by its URI. From there on
//! it is a request at `/mcp/{server}`: the same child and folder, the same bytes. What concerns all
//! servers (greetings, lists, news of lists) is answered here, from the catalogue.

mod changes;
mod hello;
mod listen;
mod route;

use std::sync::Arc;

use bridge_model::{Caller, ServerName};

use super::{
    aggregate::{Shown, View},
    request::{McpRequest, ServerRequest},
};
use crate::{
    catalog::Knowledge,
    config::{Loaded, ServerAccess, ServerSpec},
    mcp::Endpoint,
};

pub use changes::forward as forward_changes;
pub use hello::{discover, initialize};
pub use listen::listen;
pub use route::route;

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

/// What the caller's servers offer. Those that are just being learnt are waited for a little.
pub async fn settled_view(request: &McpRequest<'_>) -> Arc<View> {
    let config = request.endpoint.directory.config();
    let names = servers(&config, request.caller);
    request.endpoint.catalog.settled(names).await;
    view(request.endpoint, request.caller)
}

/// The same request to one of the servers.
fn to<'a>(request: &'a McpRequest<'a>, view: &Arc<View>, server: usize) -> ServerRequest<'a> {
    ServerRequest {
        request,
        offer: view.offers[server].clone(),
        shown: Some(Shown::new(view.clone(), server)),
    }
}
