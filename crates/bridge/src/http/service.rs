//! The steps of every request: admit, route, answer, count.

use std::{convert::Infallible, net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use axum::{
    body::{Body, HttpBody as _, to_bytes},
    http::{
        HeaderName, HeaderValue, Method, Request, StatusCode, Version,
        header::{
            ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, ALLOW, CONNECTION,
            CONTENT_LENGTH, EXPECT, ORIGIN, TRANSFER_ENCODING, VIA,
        },
        request::Parts,
    },
    response::{IntoResponse as _, Response},
};
use bridge_model::Principal;
use hyper::body::Incoming;
use tokio::sync::Semaphore;
use tower::{Layer as _, ServiceExt as _, service_fn};
use tower_http::cors::{AllowHeaders, AllowMethods, AllowOrigin, CorsLayer, ExposeHeaders};

use super::{
    Audited, Problem, call, documents,
    files::Downloads,
    health,
    inbound::{Inbound, Relayed, check_host, relayed},
    mcp,
    route::{Route, Routes},
    upload,
};
use crate::{
    app::App,
    body::{guarded, is_multipart},
    config::Listen,
    identity::SESSION_HEADER,
    telemetry::{
        Action, AuditEvent, Metrics, ProblemKind, REQUEST_ID, RequestId, Requested, audit, span,
        within,
    },
};

/// An extension of requests on a connection beyond the limit: only health checks are answered there.
#[derive(Clone, Copy)]
pub struct Overfull;

/// Answers all requests.
pub struct Service {
    app: Arc<App>,
    routes: Routes,
    cors: CorsLayer,
    downloads: Downloads,
    /// Permits for requests that may have a file open.
    files: Arc<Semaphore>,
}

impl Service {
    /// The whole service.
    pub fn new(app: &Arc<App>) -> Self {
        let settings = &app.core.settings;
        let single = settings.command_line.server.as_ref();
        Self {
            app: app.clone(),
            routes: Routes::new(&settings.listen, single.map(|spec| spec.name.clone())),
            cors: cors(&settings.listen),
            downloads: Downloads::new(app.store.clone(), settings.lang),
            files: Arc::new(Semaphore::new(settings.listen.max_file_requests)),
        }
    }

    /// Answers one request from `peer`. Every answer has a request id, also a refusal; pages of other
    /// origins can read why they are refused.
    pub async fn answer(&self, peer: SocketAddr, request: hyper::Request<Incoming>) -> Response {
        let (mut parts, body) = request.into_parts();
        let uri = parts.uri.clone();
        let (route, pattern) = self.routes.find(&parts.method, uri.path());
        if let Some(problem) = refusal(&parts, &route) {
            return closing(problem);
        }
        if parts.version < Version::HTTP_11 {
            // The oldest proxies send HTTP/1.0, and add no header (nginx's plain proxy_pass).
            let via = HeaderValue::from_static("1.0 unknown");
            parts.headers.append(VIA, via);
        }
        // Downloads and uploads need a file descriptor in addition to that of their connection.
        let opens_file = matches!(route, Route::Files(_)) || is_multipart(&parts.headers);
        let permit = opens_file.then(|| self.files.clone().try_acquire_owned());
        let Ok(permit) = permit.transpose() else {
            return closing(Problem::too_many_file_requests());
        };
        let id = RequestId::from_headers(&parts.headers);
        let span = span(&id, &parts.method, &pattern);
        let (methods, origin) = (route.methods(), cross_origin(&parts));
        let inside = self.enter(peer, &id, route, pattern, parts, body);
        // Pinned in place: it is large, and would be copied.
        let answer = pin!(async {
            match origin {
                Some(origin) => self.answer_origin(origin, methods, Box::pin(inside)).await,
                None => inside.await,
            }
        });
        let response = within(span, &id, answer).await;
        match permit {
            Some(permit) => response.map(|body| Body::new(guarded(body, permit))),
            None => response,
        }
    }

    /// Answers a page of another origin, or its preflight request.
    async fn answer_origin(
        &self,
        origin: Request<()>,
        methods: &[Method],
        inside: impl Future<Output = Response>,
    ) -> Response {
        let asks = origin.method() == Method::OPTIONS;
        let mut inside = Some(inside);
        let inside = service_fn(|_: Request<()>| {
            let inside = inside.take();
            async { Ok::<_, Infallible>(inside.expect("it is called once").await) }
        });
        let Ok(mut response) = self.cors.layer(inside).oneshot(origin).await;
        if asks && !methods.is_empty() {
            allow(methods, &mut response);
        }
        response
    }

    /// Admits the request, answers it, and counts the answer.
    async fn enter(
        &self,
        peer: SocketAddr,
        id: &RequestId,
        route: Route<'_>,
        pattern: Arc<str>,
        mut parts: Parts,
        body: Incoming,
    ) -> Response {
        let app = &self.app;
        let requested = Requested::at(pattern, &parts.method);
        let mut body = Body::new(body);
        let mut response = match self.admit(&route, &mut parts, &mut body).await {
            Ok(relayed) => {
                let inbound = Inbound {
                    core: &app.core,
                    peer,
                    id,
                    parts: &parts,
                    relayed,
                };
                let response = if let Route::Server(mount, server, tool) = &route
                    && parts.method == Method::POST
                {
                    // Most requests are calls.
                    call::call(&inbound, &mut body, *mount, server, tool).await
                } else {
                    let answer = Box::pin(self.dispatch(&route, &inbound, &mut body)).await;
                    answer.unwrap_or_else(Problem::into_response)
                };
                if parts.method == Method::HEAD {
                    without_body(response)
                } else {
                    response
                }
            }
            Err(refusal) => refusal,
        };
        if !body.is_end_stream() {
            read_rest(&parts, body, &mut response).await;
        }
        if app.core.replicas.is_draining() {
            // The next request must be sent to another replica.
            close(&mut response);
        }
        app.metrics.answered(requested, response.status());
        count_problem(&app.metrics, peer, &response);
        response
    }

    /// Admits requests to hosts of this bridge, and those that another replica has forwarded with their caller.
    async fn admit(
        &self,
        route: &Route<'_>,
        parts: &mut Parts,
        body: &mut Body,
    ) -> Result<Option<Relayed>, Response> {
        let relayed = relayed(&self.app.core, parts, body).await?;
        // Another replica uses the address at which it reaches this one.
        if relayed.is_none() {
            check_host(&self.app.core, route, parts).map_err(Problem::into_response)?;
        }
        Ok(relayed)
    }

    /// Answers requests that are not calls of a server's tool.
    async fn dispatch(
        &self,
        route: &Route<'_>,
        inbound: &Inbound<'_>,
        body: &mut Body,
    ) -> Result<Response, Problem> {
        let (app, method) = (&self.app, &inbound.parts.method);
        match (route, method) {
            (Route::Unknown, _) => Err(Problem::not_found()),
            (Route::NotText, _) => Err(Problem::path_is_not_text()),
            (route, method) if !route.methods().contains(method) => {
                let mut response = Problem::method_not_allowed().into_response();
                allow(route.methods(), &mut response);
                Ok(response)
            }
            (Route::Files(_), &Method::POST) => upload::post(inbound, body).await,
            (Route::Health, _) => Ok(health::report(app, inbound).await),
            (Route::Live, _) => Ok(health::live()),
            (Route::Ready, _) => Ok(health::ready(app, inbound).await),
            (Route::Metrics, _) => health::render(app, inbound).await,
            (Route::RootDocument, _) => documents::root(inbound, "openapi.json").await,
            (Route::Index, _) => documents::root(inbound, "docs").await,
            (Route::Asset(file), _) => documents::asset(file),
            (Route::Server(mount, server, leaf), _) => {
                documents::of_server(inbound, *mount, server, leaf).await
            }
            (Route::Mcp(server), _) => {
                Ok(mcp::answer(&app.mcp, inbound, body, server.as_deref()).await)
            }
            (Route::Files(path), _) => {
                let response = self
                    .downloads
                    .answer(path, method, &inbound.parts.headers)
                    .await;
                health::audit_download(&app.metrics, inbound.peer, method, &response);
                Ok(response)
            }
        }
    }
}

/// Why a request is refused regardless of its sender and its content.
fn refusal(parts: &Parts, route: &Route<'_>) -> Option<Problem> {
    let mut codings = parts.headers.get_all(TRANSFER_ENCODING).iter();
    if let Some(first) = codings.next() {
        let chunked = first
            .as_bytes()
            .trim_ascii()
            .eq_ignore_ascii_case(b"chunked");
        if !chunked || codings.next().is_some() {
            return Some(Problem::bad_transfer_coding());
        }
    }
    let overfull = parts.extensions.get::<Overfull>().is_some();
    (overfull && !route.is_health()).then(Problem::overfull)
}

/// Counts a problem by its kind, and writes an audit line for refusals without one.
fn count_problem(metrics: &Metrics, peer: SocketAddr, response: &Response) {
    let Some(ProblemKind(kind)) = response.extensions().get() else {
        return;
    };
    metrics.problem(kind);
    let status = response.status();
    let refused = matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
    if refused && response.extensions().get::<Audited>().is_none() {
        let event = AuditEvent::new(Action::Refusal, &Principal::Anonymous, kind);
        audit(&AuditEvent {
            address: Some(peer.ip()),
            ..event
        });
    }
}

/// The answer to a request whose body is not read: its connection is closed.
fn closing(problem: Problem) -> Response {
    let mut response = problem.into_response();
    close(&mut response);
    response
}

fn close(response: &mut Response) {
    let close = HeaderValue::from_static("close");
    response.headers_mut().insert(CONNECTION, close);
}

fn allow(methods: &[Method], response: &mut Response) {
    let methods: Vec<&str> = methods.iter().map(Method::as_str).collect();
    if let Ok(methods) = HeaderValue::from_str(&methods.join(",")) {
        response.headers_mut().insert(ALLOW, methods);
    }
}

/// The answer to a HEAD request.
fn without_body(mut response: Response) -> Response {
    let size = response.body().size_hint().exact();
    if let Some(size) = size.filter(|_| !response.headers().contains_key(CONTENT_LENGTH)) {
        response.headers_mut().insert(CONTENT_LENGTH, size.into());
    }
    response.map(|_| Body::empty())
}

/// The parts of a request that determine whether a page of another origin may read the answer. `None` for calls that
/// no page sends, whose answers are not cached.
fn cross_origin(parts: &Parts) -> Option<Request<()>> {
    const READ: [HeaderName; 4] = [
        ORIGIN,
        ACCESS_CONTROL_REQUEST_METHOD,
        ACCESS_CONTROL_REQUEST_HEADERS,
        HeaderName::from_static("access-control-request-private-network"),
    ];
    if parts.method == Method::POST && !parts.headers.contains_key(ORIGIN) {
        return None;
    }
    let mut request = Request::new(());
    *request.method_mut() = parts.method.clone();
    for name in READ {
        for value in parts.headers.get_all(&name) {
            request.headers_mut().append(name.clone(), value.clone());
        }
    }
    Some(request)
}

/// Credentials are allowed only for listed origins: with `*`, browsers never send them.
fn cors(listen: &Listen) -> CorsLayer {
    let origins = &listen.cors_allow_origins;
    let any = origins.iter().any(|origin| origin == "*");
    let listed = origins.iter().filter_map(|origin| origin.parse().ok());
    let origin = if any {
        AllowOrigin::mirror_request()
    } else {
        AllowOrigin::list(listed)
    };
    CorsLayer::new()
        .allow_origin(origin)
        .allow_methods(AllowMethods::mirror_request())
        .allow_headers(AllowHeaders::mirror_request())
        .allow_credentials(!any)
        .expose_headers(ExposeHeaders::list([SESSION_HEADER.clone(), REQUEST_ID]))
}

// The rest of a request's body.
//
// A refusal often is sent before the body was read. Then the server closes a kept connection without an error, and
// the client's next request there is lost. So a short rest is read here; if it is long, or the client waits for
// `100 Continue`, the answer announces that the connection will be closed.

/// Maximum number of bytes of the rest that is read, and the timeout.
const SHORT: usize = 64 * 1024;

const SOON: Duration = Duration::from_millis(500);

/// Reads the rest of a body, or adds `Connection: close` to the answer.
async fn read_rest(parts: &Parts, rest: Body, response: &mut Response) {
    let reading = tokio::time::timeout(SOON, to_bytes(rest, SHORT));
    let read = !parts.headers.contains_key(EXPECT) && matches!(reading.await, Ok(Ok(_)));
    if !read && parts.version <= Version::HTTP_11 {
        close(response);
    }
}
