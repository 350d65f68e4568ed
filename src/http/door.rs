//! What each request passes on its way in, and its answer on its way out.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    extract::{ConnectInfo, Request, State},
    middleware::Next,
    response::Response,
};

use super::{health, hosts, leftover::Leftover, metrics, peers};
use crate::{app::App, telemetry::Requested};

/// Middleware for `axum::middleware::from_fn_with_state`, added by `Router::layer` so that the route
/// is known: what another replica sends on is known as such, of the rest only hosts that are ours
/// come in, and everything is counted.
pub async fn pass(
    State(app): State<Arc<App>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: Request,
    next: Next,
) -> Response {
    let requested = Requested::of(&request);
    let (request, leftover) = Leftover::watch(request);
    let mut response = match admit(&app, request).await {
        Ok(request) => next.run(request).await,
        Err(refusal) => refusal,
    };
    if let Some(leftover) = leftover {
        leftover.settle(&mut response).await;
    }
    health::leave(&app, &mut response);
    app.metrics.answered(requested, response.status());
    metrics::count_problem(&app.metrics, peer, &response);
    response
}

async fn admit(app: &App, request: Request) -> Result<Request, Response> {
    let request = peers::admit(app, request).await?;
    hosts::check(app, &request)?;
    Ok(request)
}
