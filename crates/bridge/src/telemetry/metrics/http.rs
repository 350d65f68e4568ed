//! Requests are counted in one place, whatever answers them.

use std::sync::Arc;

use axum::http::{Method, StatusCode};

use super::{Metrics, labels::ByRequest};
use crate::telemetry::request_id::method_label;

/// What a request is counted as once it is answered. A caller who hangs up first is not counted.
pub struct Requested {
    route: Arc<str>,
    method: &'static str,
}

impl Requested {
    /// By the pattern of its route.
    pub fn at(route: Arc<str>, method: &Method) -> Self {
        let method = method_label(method);
        Self { route, method }
    }
}

impl Metrics {
    /// A request was answered.
    pub fn answered(&self, Requested { route, method }: Requested, status: StatusCode) {
        let labels = ByRequest {
            route,
            method,
            status: class(status),
        };
        self.http_requests.get_or_create(&labels).inc();
    }
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
