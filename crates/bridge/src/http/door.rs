//! What each request passes on its way in, and its answer on its way out.

use std::{convert::Infallible, net::SocketAddr, sync::Arc};

use axum::{
    extract::{ConnectInfo, Request, State},
    http::{Method, header::ORIGIN},
    middleware::Next,
    response::Response,
};
use tower::{Layer as _, ServiceExt as _, service_fn};
use tower_http::cors::{AllowHeaders, AllowMethods, AllowOrigin, CorsLayer, ExposeHeaders};

use super::{forward, health, hosts, leftover::Leftover, metrics, peers};
use crate::{
    app::App,
    config::Listen,
    identity::SESSION_HEADER,
    telemetry::{REQUEST_ID, Requested, tied},
};

/// What all requests pass.
pub struct Door {
    app: Arc<App>,
    cors: CorsLayer,
}

impl Door {
    pub fn new(app: &Arc<App>) -> Self {
        Self {
            app: app.clone(),
            cors: cors(&app.settings.listen),
        }
    }
}

/// Middleware for `axum::middleware::from_fn_with_state`, added by `Router::layer` so that the route
/// is known. Every answer has a request id, also a refusal; pages of other origins learn why they
/// are refused; and only who may come in reaches a handler.
///
/// All of it is one layer: each further one would copy all below it for each request.
pub async fn pass(
    State(door): State<Arc<Door>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: Request,
    next: Next,
) -> Response {
    let app = &door.app;
    tied(request, async |request: Request| {
        // Without an origin nothing is to be said, except to caches, which keep no answer to a POST.
        if request.method() == Method::POST && !request.headers().contains_key(ORIGIN) {
            return enter(app, peer, request, next).await;
        }
        let inside = service_fn(async |request| {
            Ok::<_, Infallible>(enter(app, peer, request, next.clone()).await)
        });
        let Ok(response) = door.cors.layer(inside).oneshot(request).await;
        response
    })
    .await
}

/// Credentials are allowed only for origins that are named: `*` never gets a browser's own.
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

/// What another replica sends on is known as such, of the rest only hosts that are ours come in, and
/// everything is counted.
async fn enter(app: &App, peer: SocketAddr, request: Request, next: Next) -> Response {
    let requested = Requested::of(&request);
    let (request, leftover) = Leftover::watch(request);
    let mut response = match admit(app, request).await {
        Ok(request) => next.run(request).await,
        Err(refusal) => refusal,
    };
    if let Some(leftover) = leftover {
        leftover.settle(&mut response).await;
    }
    leave(app, peer, requested, &mut response);
    response
}

async fn admit(app: &App, request: Request) -> Result<Request, Response> {
    let request = peers::admit(app, request).await?;
    // Another replica names this one as it reaches it.
    if forward::proven(request.extensions()).is_none() {
        hosts::check(app, request.uri(), request.headers())?;
    }
    Ok(request)
}

/// What each answer passes on its way out.
pub fn leave(app: &App, peer: SocketAddr, requested: Requested, response: &mut Response) {
    health::leave(app, response);
    app.metrics.answered(requested, response.status());
    metrics::count_problem(&app.metrics, peer, response);
}
