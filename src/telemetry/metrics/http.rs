//! Requests are counted in one place, whatever answers them.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    http::StatusCode,
    middleware::Next,
    response::Response,
};

use super::{Metrics, labels::ByRequest};
use crate::telemetry::request_id::{method_label, route_label};

/// Middleware for `axum::middleware::from_fn_with_state`, added by `Router::layer` so that the
/// route is known. A caller who hangs up first is not counted.
pub async fn count_requests(
    State(metrics): State<Arc<Metrics>>,
    request: Request,
    next: Next,
) -> Response {
    let route = route_label(&request).to_owned();
    let method = method_label(request.method());
    let response = next.run(request).await;
    let status = class(response.status());
    let labels = ByRequest {
        route,
        method,
        status,
    };
    metrics.http_requests.get_or_create(&labels).inc();
    response
}

fn class(status: StatusCode) -> &'static str {
    match status.as_u16() / 100 {
        1 => "1xx",
        2 => "2xx",
        3 => "3xx",
        4 => "4xx",
        _ => "5xx",
    }
}
