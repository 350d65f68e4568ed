//! `/health`: the state of the bridge, from data in memory. Starts no process, does not block and needs
//! no key; but only callers with a key, or on this machine, get more than the status.

use std::{net::SocketAddr, sync::atomic::Ordering};

use axum::{
    http::{Method, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use bridge_model::{Caller, Principal};
use indexmap::IndexMap;
use serde::Serialize;
use serde_json::json;

use super::{Problem, files::Served, inbound::Inbound};
use crate::{
    app::App,
    catalog::Knowledge,
    condition::Trouble,
    config::ServerAccess,
    identity::Refusal,
    telemetry::{Action, AuditEvent, AuditFile, METRICS_TYPE, Metrics, audit},
};

/// The answer to `/health`.
#[derive(Debug, Serialize)]
pub struct Health {
    /// `ok`, `degraded` (it serves, but with problems) or `down`.
    pub status: Status,
    /// The time of the request, in RFC 3339 format.
    pub timestamp: String,
    /// The version of the bridge.
    pub version: &'static str,
    /// Seconds since the start.
    pub uptime: u64,
    /// Why the status is not `ok`.
    pub reasons: Vec<String>,
    /// Findings that an operator should check although they are not errors.
    pub warnings: Vec<String>,
    /// The servers that the caller may see.
    pub servers: IndexMap<String, ServerHealth>,
    /// The current load.
    pub load: Load,
}

/// The overall status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// No problems.
    Ok,
    /// It serves, but with problems.
    Degraded,
    /// It cannot serve: 503.
    Down,
}

/// One server.
#[derive(Debug, Serialize)]
pub struct ServerHealth {
    /// `ready`, `starting` or `failed`.
    pub status: &'static str,
    /// Number of offered tools.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tools: Option<usize>,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// The current load.
#[derive(Debug, Serialize)]
pub struct Load {
    /// Calls being executed.
    pub running_calls: usize,
    /// Calls that wait in the queue.
    pub waiting_calls: usize,
    /// Live stateful processes.
    pub sessions: usize,
    /// Live shared processes.
    pub shared: usize,
    /// Warm processes, which have no session yet.
    pub ready: usize,
}

impl App {
    /// The current state of the bridge.
    pub fn health(&self, caller: &Caller) -> Health {
        let config = self.core.directory.config();
        let mut reasons = Vec::new();
        let mut servers = IndexMap::new();
        let mut hidden = false;
        let shows_all = self.core.directory.shows_all(caller);
        for (name, spec) in &config.servers {
            let mut health = server(self.core.catalog.peek(name));
            if let Some(why) = self.core.engine.children.failed_starts().last_of(spec)
                && health.reason.is_none()
            {
                health.status = "failed";
                health.reason = Some(format!("the last start failed: {why}"));
            }
            if spec.access(caller) == ServerAccess::None {
                hidden |= health.reason.is_some();
                continue;
            }
            if let Some(reason) = &health.reason {
                reasons.push(format!("server '{name}': {reason}"));
            }
            servers.insert(name.as_str().to_owned(), health);
        }
        if hidden {
            reasons
                .push("a server is unavailable; send an API key to see its name here".to_owned());
        }
        // The error may contain a path in the server file, which contains a server's name.
        reasons.extend(self.reload_fault().map(|fault| {
            if shows_all {
                fault
            } else {
                "the server file could not be reloaded; the previous configuration stays active"
                    .to_owned()
            }
        }));
        let mut status = if reasons.is_empty() {
            Status::Ok
        } else {
            Status::Degraded
        };
        if self.core.engine.stopping.is_cancelled() || self.core.replicas.is_draining() {
            reasons.push("the bridge is shutting down".to_owned());
            status = Status::Down;
        }
        let short = self.core.engine.children.failed_starts().shortage();
        let short = short.map(|why| Trouble {
            text: format!("the system cannot start more processes: {why}"),
            down: true,
        });
        for trouble in self.condition.troubles().into_iter().chain(short) {
            status = status.max(if trouble.down {
                Status::Down
            } else {
                Status::Degraded
            });
            reasons.push(trouble.text);
        }
        let (running_calls, waiting_calls) = self.core.engine.admission.load();
        let now = jiff::Timestamp::now();
        Health {
            status,
            timestamp: now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            version: env!("CARGO_PKG_VERSION"),
            uptime: self.started.elapsed().as_secs(),
            reasons,
            warnings: if shows_all {
                self.warnings()
            } else {
                Vec::new()
            },
            servers,
            load: Load {
                running_calls,
                waiting_calls,
                sessions: self.core.engine.sessions.count(),
                shared: self.core.engine.shared.count(),
                ready: self.core.engine.sessions.pool.count(),
            },
        }
    }

    /// If other replicas can take the calls, a replica is ready once it has read the offer of each server.
    /// Checked only once: a changed server file must not make all replicas unready together.
    fn is_acquainted(&self) -> bool {
        if self.acquainted.load(Ordering::Relaxed) || !self.core.replicas.may_have_others() {
            return true;
        }
        let known = |name| {
            let known = self.core.catalog.peek(name);
            !matches!(known, Some(Knowledge::Learning) | None)
        };
        let all = self.core.directory.config().servers.keys().all(known);
        self.acquainted.fetch_or(all, Ordering::Relaxed);
        all
    }
}

fn server(known: Option<Knowledge>) -> ServerHealth {
    let (status, tools, reason) = match known {
        Some(Knowledge::Ready(offer)) => ("ready", Some(offer.tools().len()), None),
        Some(Knowledge::Failed { brief, .. }) => ("failed", None, Some(brief.to_string())),
        Some(Knowledge::Learning) | None => ("starting", None, None),
    };
    ServerHealth {
        status,
        tools,
        reason,
    }
}

/// `GET /health`.
pub async fn report(app: &App, inbound: &Inbound<'_>) -> Response {
    app.condition.look().await;
    let health = app.health(&inbound.reader());
    let status = match health.status {
        Status::Ok | Status::Degraded => StatusCode::OK,
        Status::Down => StatusCode::SERVICE_UNAVAILABLE,
    };
    let body = if inbound.is_operator() {
        serde_json::to_string(&health).unwrap_or_default()
    } else {
        json!({"status": health.status, "timestamp": health.timestamp}).to_string()
    };
    let headers = [
        (header::CONTENT_TYPE, "application/json"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    (status, headers, body).into_response()
}

/// `GET /health/live`: the process responds.
pub fn live() -> Response {
    "ok\n".into_response()
}

/// `GET /health/ready`: calls are accepted.
pub async fn ready(app: &App, inbound: &Inbound<'_>) -> Response {
    app.condition.look().await;
    let down = app.health(&inbound.reader()).status == Status::Down;
    if down || !app.is_acquainted() {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready\n").into_response()
    } else {
        "ok\n".into_response()
    }
}

// `/metrics`, and the audit log of downloads.

/// `GET /metrics`: Prometheus' text format; public like documents.
pub async fn render(app: &App, inbound: &Inbound<'_>) -> Result<Response, Problem> {
    inbound.admit_reader().await?;
    // Labels contain the names of servers.
    if !app.core.directory.shows_all(&inbound.reader()) {
        return Err(Refusal::MissingKey.into());
    }
    let kind = [(header::CONTENT_TYPE, METRICS_TYPE)];
    Ok((kind, app.render_metrics()).into_response())
}

/// Writes an audit line for each file that was sent.
pub fn audit_download(metrics: &Metrics, peer: SocketAddr, method: &Method, response: &Response) {
    let reads = *method == Method::GET;
    let sends = [StatusCode::OK, StatusCode::PARTIAL_CONTENT].contains(&response.status());
    if let Some(Served(file)) = response.extensions().get().filter(|_| reads && sends) {
        // The response may contain a part of the file.
        let length = response.headers().get(header::CONTENT_LENGTH);
        let length = length.and_then(|length| length.to_str().ok()?.parse().ok());
        metrics.downloaded(length.unwrap_or(file.size));
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
