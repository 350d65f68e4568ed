//! The HTTP endpoints: who may come in, what is asked, and how it is answered.

mod body;
mod call;
mod documents;
pub mod files;
mod health;
mod hosts;
mod inbound;
mod mcp;
mod multipart;
mod problem;
mod route;
mod service;
mod upload;

use bridge_model::Caller;

use crate::{
    app::App,
    telemetry::{Action, AuditEvent, audit},
};

pub use body::guarded;
pub use problem::Problem;
pub use service::{Overfull, Service};

/// Set as an extension on answers whose audit line is written.
#[derive(Debug, Clone, Copy)]
pub struct Audited;

/// Writes the audit line of a call that is refused before it runs; a call that runs writes its own.
fn refused(app: &App, caller: &Caller, (server, tool): (&str, &str), kind: &'static str) {
    let kind = app.directory.refusal_kind(server, kind);
    audit(&AuditEvent {
        address: Some(caller.address),
        server: Some(server),
        tool: Some(tool),
        ..AuditEvent::new(Action::Refusal, &caller.principal, kind)
    });
}
