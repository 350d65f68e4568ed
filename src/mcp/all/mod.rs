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
mod names;
mod route;
mod shown;
mod uris;
mod view;

use std::sync::Arc;

use axum::{http::HeaderMap, response::Response};

use super::{Asking, ClientMessage, RpcError, is_modern};
use crate::{
    app::App,
    catalog::Knowledge,
    config::Loaded,
    model::{Caller, ServerName},
};

pub use legacy::{delete, get};
pub use shown::Shown;
pub use view::Views;

use view::View;

/// Everything that a request to all servers needs.
pub struct AskingAll<'a> {
    /// The bridge.
    pub app: &'a Arc<App>,
    /// Who asks.
    pub caller: Caller,
    /// The request's headers.
    pub headers: &'a HeaderMap,
    /// For logs.
    pub request_id: Box<str>,
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

/// The servers that a caller may use: all of them. Everything at this endpoint goes by this.
fn servers<'a>(config: &'a Loaded, _caller: &Caller) -> impl Iterator<Item = &'a ServerName> {
    config.servers.keys()
}

/// What they offer, as far as it is known now.
fn view(app: &App, caller: &Caller) -> Arc<View> {
    let config = app.config();
    let known = servers(&config, caller).filter_map(|name| match app.catalog.peek(name)? {
        Knowledge::Ready(offer) => Some(offer),
        Knowledge::Learning | Knowledge::Failed { .. } => None,
    });
    let known: Vec<_> = known.collect();
    app.views.view(&config, &known)
}

impl<'a> AskingAll<'a> {
    /// What the caller's servers offer. Those that are just being learnt are waited for a little.
    async fn view(&self) -> Arc<View> {
        let config = self.app.config();
        let names = servers(&config, &self.caller);
        self.app.catalog.settled(names).await;
        view(self.app, &self.caller)
    }

    /// The same request to one of the servers.
    fn to(&self, view: &Arc<View>, server: usize) -> Asking<'a> {
        Asking {
            app: self.app,
            caller: self.caller.clone(),
            offer: view.offers[server].clone(),
            headers: self.headers,
            request_id: self.request_id.clone(),
            shown: Some(Shown::new(view.clone(), server)),
        }
    }
}
