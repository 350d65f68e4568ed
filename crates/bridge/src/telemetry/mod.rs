//! Observability for administrators: the log, the audit lines and the metrics.
//!
//! Each is defined in one place: log fields in `logs/line.rs`, audit fields in `audit.rs`, metric names in
//! `metrics.rs`.

mod audit;
mod logs;
mod metrics;
mod request_id;

pub use audit::{Action, AuditEvent, AuditFile, audit};
pub use logs::{LogGuard, init, init_for_command};
pub use metrics::{CONTENT_TYPE as METRICS_TYPE, Live, Metrics, Requested, ServerState};
pub use request_id::{REQUEST_ID, RequestId, span, within};

/// The target of audit lines. It passes the filter at every level.
pub const AUDIT: &str = "audit";

/// The kind of a problem, as an extension of its response: metrics count by it.
#[derive(Debug, Clone, Copy)]
pub struct ProblemKind(pub &'static str);
