//! The service, and the straight way of a tool call through it.
//!
//! Nearly all requests call a tool, and the routes with their layers take more memory and copying for
//! one than the call itself. So a call with a plain address goes to its handler at once, past all that
//! [`door`] has for it. All else goes by the [`routes`], calls spelled otherwise too.

use std::{
    net::SocketAddr,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
};

use axum::{
    Router,
    body::{Body, Bytes, HttpBody},
    extract::{ConnectInfo, Request},
    http::{
        HeaderValue, Method, Uri, Version,
        header::{CONNECTION, ORIGIN, TRANSFER_ENCODING, VIA},
        request::Parts,
        uri::PathAndQuery,
    },
    response::{IntoResponse as _, Response},
};
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tower::Service as _;

use super::{Problem, call, door, hosts, leftover::Client, multipart, routes};
use crate::{
    app::App,
    config::{Listen, RESERVED_NAMES},
    replicas::PEER_HEADER,
    telemetry::{RequestId, Requested, span, within},
};

/// An extension of requests whose connection is one too many: they may ask how the bridge is.
#[derive(Clone, Copy)]
pub struct Overfull;

/// Answers all requests.
pub struct Service {
    app: Arc<App>,
    router: Router,
    fronts: Vec<Front>,
    /// Requests that may have a file open.
    files: Arc<Semaphore>,
}

/// Whose connection ends: its body is not read.
fn closing(problem: Problem) -> Response {
    let mut response = problem.into_response();
    let close = HeaderValue::from_static("close");
    response.headers_mut().insert(CONNECTION, close);
    response
}

/// The body of an answer for which a file may be open.
struct WithFile {
    body: Body,
    _permit: OwnedSemaphorePermit,
}

impl HttpBody for WithFile {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
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
            files: Arc::new(Semaphore::new(app.settings.listen.max_file_requests)),
            fronts: fronts(
                &app.settings.listen,
                app.settings.command_line.server.is_some(),
            ),
        }
    }

    /// Answers one request that came from `peer`.
    pub async fn answer(&self, peer: SocketAddr, request: hyper::Request<Incoming>) -> Response {
        let (mut parts, body) = request.into_parts();
        if let Some(problem) = self.unfit(&parts) {
            return closing(problem);
        }
        if parts.version < Version::HTTP_11 {
            // The oldest proxies speak so, and add no header (nginx's plain proxy_pass).
            parts
                .headers
                .append(VIA, HeaderValue::from_static("1.0 unknown"));
        }
        match self.tool(&parts) {
            Some((route, tool)) => self.call(peer, route, tool, &parts, body).await,
            None => Box::pin(self.route(peer, parts, body)).await,
        }
    }

    /// What is wrong with a request whoever sent it, and whatever it asks.
    fn unfit(&self, parts: &Parts) -> Option<Problem> {
        if parts.headers.contains_key(TRANSFER_ENCODING) {
            let mut codings = parts.headers.get_all(TRANSFER_ENCODING).iter();
            let first = codings.next().map_or(&b""[..], HeaderValue::as_bytes);
            if !first.trim_ascii().eq_ignore_ascii_case(b"chunked") || codings.next().is_some() {
                return Some(Problem::bad_transfer_coding());
            }
        }
        let overfull = parts.extensions.get::<Overfull>().is_some();
        (overfull && !hosts::is_health(&self.app.settings.listen, parts.uri.path()))
            .then(Problem::overfull)
    }

    async fn route(&self, peer: SocketAddr, parts: Parts, body: Incoming) -> Response {
        let permit = if self.opens_file(&parts) {
            match self.files.clone().try_acquire_owned() {
                Ok(permit) => Some(permit),
                Err(_) => return closing(Problem::too_many_file_requests()),
            }
        } else {
            None
        };
        let response = self.routed(peer, parts, body).await;
        match permit {
            Some(permit) => response.map(|body| {
                Body::new(WithFile {
                    body,
                    _permit: permit,
                })
            }),
            None => response,
        }
    }

    /// Downloads and uploads take a file descriptor beside that of their connection.
    fn opens_file(&self, parts: &Parts) -> bool {
        let path = hosts::inner(&self.app.settings.listen, parts.uri.path());
        path.starts_with("/files/") || multipart::is_multipart(&parts.headers)
    }

    async fn routed(&self, peer: SocketAddr, mut parts: Parts, body: Incoming) -> Response {
        if tool(&self.fronts, parts.uri.path()).is_none() || parts.method != Method::POST {
            drop_last_slash(&mut parts.uri);
        }
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
        if plain {
            tool(&self.fronts, path)
        } else {
            None
        }
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

/// The same address in another spelling. Of a tool's, which may end in a slash, the offer decides.
fn drop_last_slash(uri: &mut Uri) {
    let bare = uri.path().trim_end_matches('/');
    if bare.is_empty() || bare.len() == uri.path().len() {
        return;
    }
    let query = uri.query().map(|query| format!("?{query}"));
    let mut parts = std::mem::take(uri).into_parts();
    let path = parts
        .path_and_query
        .as_ref()
        .map_or("/", PathAndQuery::path);
    let bare = format!(
        "{}{}",
        path.trim_end_matches('/'),
        query.unwrap_or_default()
    );
    parts.path_and_query = bare.parse().ok();
    *uri = Uri::from_parts(parts).unwrap_or_default();
}

impl Front {
    fn tool<'p>(&self, path: &'p str) -> Option<(&'p str, &'p str)> {
        let (server, tool) = path.strip_prefix(&*self.path)?.split_once('/')?;
        let ours = self.at_root && RESERVED_NAMES.contains(&server);
        (!server.is_empty() && !tool.is_empty() && !ours).then_some((server, tool))
    }
}

/// By the first of the fronts that the path has: what that one cannot tell is left to the routes.
fn tool<'f, 'p>(fronts: &'f [Front], path: &'p str) -> Option<(&'f Arc<str>, (&'p str, &'p str))> {
    let front = fronts.iter().find(|front| path.starts_with(&front.path))?;
    Some((&front.route, front.tool(path)?))
}

/// In the order in which the routes match them. The tools of a `single` server are at the root, too:
/// what is meant there the routes find out.
fn fronts(listen: &Listen, single: bool) -> Vec<Front> {
    let inner = listen.path_prefix.clone();
    let outer = (!listen.root_path.is_empty()).then(|| format!("{}{inner}", listen.root_path));
    let bases: Vec<String> = outer.into_iter().chain([inner]).collect();
    let front = |base: &String, path: &str, at_root| Front {
        path: format!("{base}{path}"),
        route: format!("{base}{path}{{server}}/{{*leaf}}").into(),
        at_root,
    };
    let below = bases.iter().map(|base| front(base, "/mcpo/", false));
    let at_root = bases.iter().filter(|_| !single);
    below
        .chain(at_root.map(|base| front(base, "/", true)))
        .collect()
}

#[cfg(test)]
mod tests {
    use axum::{
        extract::{MatchedPath, Path},
        routing::post,
    };
    use tower::ServiceExt as _;

    use super::*;
    use crate::config::SettingsArgs;

    /// What the routes make of a call's path, of all of which `/{server}/{*leaf}` could take the place.
    async fn routed(router: &Router, path: &str) -> Option<(String, String, String)> {
        let request = Request::post(path).body(Body::empty()).unwrap();
        let response = router.clone().oneshot(request).await.unwrap();
        let found = axum::body::to_bytes(response.into_body(), 1000).await;
        serde_json::from_slice(&found.unwrap()).ok()
    }

    fn router(listen: &Listen) -> Router {
        let call = post(
            async |route: MatchedPath, Path((server, tool)): Path<(String, String)>| {
                let at_root = !route.as_str().ends_with("/mcpo/{server}/{*leaf}");
                let ours = at_root && RESERVED_NAMES.contains(&server.as_str());
                let found = (!ours).then(|| (route.as_str().to_owned(), server, tool));
                serde_json::to_string(&found).unwrap()
            },
        );
        let mut routes = Router::new()
            .route("/mcpo/{server}/{*leaf}", call.clone())
            .route("/{server}/{*leaf}", call);
        for other in [
            "/health/live",
            "/docs/assets/{file}",
            "/mcp",
            "/mcp/",
            "/mcp/{*server}",
            "/files/{*rest}",
        ] {
            routes = routes.route(other, post(async || "null"));
        }
        routes::placed(routes, listen)
    }

    #[tokio::test]
    async fn a_call_that_goes_straight_goes_where_the_routes_would_send_it() {
        let names = [
            "", "mcpo", "mcp", "api", "p", "docs", "files", "time", "a.b",
        ];
        let mut paths = vec![String::new()];
        for _ in 0..4 {
            let longer = paths
                .iter()
                .flat_map(|path| names.map(|name| format!("{path}/{name}")));
            paths = paths.iter().cloned().chain(longer).collect();
        }
        paths.sort();
        paths.dedup();
        for (root, prefix) in [("", ""), ("/api", ""), ("", "/p"), ("/api", "/p")] {
            let mut listen = SettingsArgs::default().resolve().unwrap().listen;
            (listen.root_path, listen.path_prefix) = (root.to_owned(), prefix.to_owned());
            let (router, fronts) = (router(&listen), fronts(&listen, false));
            let (mut straight, mut roundabout) = (0, 0);
            for path in paths.iter().filter(|path| !path.is_empty()) {
                let routed = routed(&router, path).await;
                let tool = tool(&fronts, path).map(|(route, (server, tool))| {
                    (route.to_string(), server.to_owned(), tool.to_owned())
                });
                straight += usize::from(tool.is_some());
                // No server is called nothing.
                let named = routed
                    .as_ref()
                    .is_some_and(|(_, server, _)| !server.is_empty());
                roundabout += usize::from(tool.is_none() && named);
                assert!(
                    tool.is_none() || tool == routed,
                    "{path}: {tool:?}, {routed:?}"
                );
            }
            assert!(straight > 100 * roundabout, "{straight} {roundabout}");
        }
    }
}
