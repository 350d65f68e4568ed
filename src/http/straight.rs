//! The service, and the straight way of a tool call through it.
//!
//! Nearly all requests call a tool, and the routes with their layers take more memory and copying for
//! one than the call itself. So a call with a plain address goes to its handler at once, past all that
//! [`door`] has for it. All else goes by the [`routes`], calls spelled otherwise too.

use std::{net::SocketAddr, pin::pin, sync::Arc};

use axum::{
    Router,
    body::{Body, HttpBody as _},
    extract::{ConnectInfo, Request},
    http::{Method, header::ORIGIN, request::Parts},
    response::Response,
};
use hyper::body::Incoming;
use tower::Service as _;

use super::{call, door, hosts, leftover::Client, multipart, routes};
use crate::{
    app::App,
    config::RESERVED_NAMES,
    replicas::PEER_HEADER,
    telemetry::{RequestId, Requested, span, within},
};

/// Answers all requests.
pub struct Service {
    app: Arc<App>,
    router: Router,
    fronts: Vec<Front>,
}

/// What stands before `{server}/{tool}`.
struct Front {
    path: String,
    /// The pattern, as the routes have it.
    route: Arc<str>,
    /// Names of our own may stand where the server's does.
    at_root: bool,
}

impl Service {
    /// The whole service.
    pub fn new(app: &Arc<App>) -> Self {
        Self {
            app: app.clone(),
            router: routes::router(app),
            fronts: fronts(app),
        }
    }

    /// Answers one request that came from `peer`.
    pub async fn answer(&self, peer: SocketAddr, request: hyper::Request<Incoming>) -> Response {
        let (parts, body) = request.into_parts();
        match self.tool(&parts) {
            Some((route, tool)) => self.call(peer, route, tool, &parts, body).await,
            None => Box::pin(self.route(peer, parts, body)).await,
        }
    }

    async fn route(&self, peer: SocketAddr, parts: Parts, body: Incoming) -> Response {
        let mut request = Request::from_parts(parts, Body::new(body));
        request.extensions_mut().insert(ConnectInfo(peer));
        let Ok(response) = self.router.clone().call(request).await;
        response
    }

    /// Which tool is called, if that is plain to see: nothing is encoded, no page of a browser's asks,
    /// no other replica has sent it, and no files come with it.
    fn tool<'p>(&self, parts: &'p Parts) -> Option<(&Arc<str>, (&'p str, &'p str))> {
        let (path, headers) = (parts.uri.path(), &parts.headers);
        let plain = parts.method == Method::POST
            && !path.contains('%')
            && !headers.contains_key(ORIGIN)
            && !headers.contains_key(&PEER_HEADER)
            && !multipart::is_multipart(headers);
        let mut fronts = self.fronts.iter().filter(|_| plain);
        fronts.find_map(|front| Some((&front.route, front.tool(path)?)))
    }

    async fn call(
        &self,
        peer: SocketAddr,
        route: &Arc<str>,
        tool: (&str, &str),
        parts: &Parts,
        mut body: Incoming,
    ) -> Response {
        let (app, id) = (&self.app, RequestId::of(&parts.headers));
        let requested = Requested::at(route.clone(), &parts.method);
        let client = Client::of(&parts.headers, parts.version);
        let span = span(&id, &parts.method, route);
        // In place: it is large, and would be copied.
        let answer = pin!(async {
            let mut response = match hosts::check(app, &parts.uri, &parts.headers) {
                Ok(()) => call::straight(app, tool, peer, &id, parts, &mut body).await,
                Err(refusal) => refusal,
            };
            if !body.is_end_stream() {
                client.settle(Body::new(body), &mut response).await;
            }
            door::leave(app, peer, requested, &mut response);
            response
        });
        within(span, &id, answer).await
    }
}

impl Front {
    fn tool<'p>(&self, path: &'p str) -> Option<(&'p str, &'p str)> {
        let (server, tool) = path.strip_prefix(&*self.path)?.split_once('/')?;
        let ours = self.at_root && RESERVED_NAMES.contains(&server);
        (!server.is_empty() && !tool.is_empty() && !ours).then_some((server, tool))
    }
}

/// In the order in which the routes match them.
fn fronts(app: &App) -> Vec<Front> {
    let (listen, single) = (&app.settings.listen, &app.settings.command_line.server);
    let inner = listen.path_prefix.clone();
    let outer = (!listen.root_path.is_empty()).then(|| format!("{}{inner}", listen.root_path));
    let front = |before: &str, path: &str, at_root| Front {
        path: format!("{before}{path}"),
        route: format!("{before}{path}{{server}}/{{*leaf}}").into(),
        at_root,
    };
    let bases: Vec<String> = outer.into_iter().chain([inner]).collect();
    let below = bases.iter().map(|before| front(before, "/mcpo/", false));
    // A single server has its tools there, too.
    let root = bases.iter().filter(|_| single.is_none());
    below
        .chain(root.map(|before| front(before, "/", true)))
        .collect()
}
