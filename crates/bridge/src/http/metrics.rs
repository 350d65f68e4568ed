//! `/metrics`, and what downloads leave in the audit log.

use std::net::SocketAddr;

use axum::{
    http::{HeaderValue, Method, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use bridge_model::Principal;

use super::{Audited, Problem, files::Served};
use crate::{
    app::App,
    http::reader::Reader,
    identity::Refusal,
    telemetry::{Action, AuditEvent, AuditFile, METRICS_TYPE, Metrics, ProblemKind, audit},
};

/// `GET /metrics`: Prometheus' text format; open like documents.
pub async fn render(app: &App, reader: &Reader<'_>) -> Response {
    if let Err(problem) = reader.admit(app).await {
        return problem.into_response();
    }
    // Labels name servers.
    if !app.directory.shows_all(&reader.caller(app)) {
        return Problem::from(Refusal::MissingKey).into_response();
    }
    let kind = HeaderValue::from_static(METRICS_TYPE);
    ([(header::CONTENT_TYPE, kind)], app.render_metrics()).into_response()
}

/// Counts a problem by its kind, and leaves an audit line for refusals that no call left.
pub fn count_problem(metrics: &Metrics, peer: SocketAddr, response: &Response) {
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

/// One audit line for each file that went out.
pub fn audit_download(app: &App, peer: SocketAddr, method: &Method, response: &Response) {
    let reads = *method == Method::GET;
    let sends = matches!(
        response.status(),
        StatusCode::OK | StatusCode::PARTIAL_CONTENT
    );
    if let Some(Served(file)) = response.extensions().get().filter(|_| reads && sends) {
        app.metrics
            .downloaded(length(response).unwrap_or(file.size));
        audit(&AuditEvent {
            address: Some(peer.ip()),
            job: Some(file.job),
            server: Some(&file.server),
            tool: Some(&file.tool),
            files: &[AuditFile {
                name: &file.path,
                size: file.size,
                sha256: Some(&file.sha256),
            }],
            ..AuditEvent::new(Action::Download, &Principal::Anonymous, "ok")
        });
    }
}

/// What is sent, which may be a part of the file.
fn length(response: &Response) -> Option<u64> {
    response
        .headers()
        .get(header::CONTENT_LENGTH)?
        .to_str()
        .ok()?
        .parse()
        .ok()
}
