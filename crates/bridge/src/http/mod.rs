//! The HTTP endpoints: admission, routes, answers.

mod call;
mod documents;
pub mod files;
mod health;
mod inbound;
mod mcp;
mod multipart;
mod problem;
mod route;
mod service;
mod upload;

use axum::{http::HeaderValue, response::Response};
use bridge_model::{Caller, SessionId};

use crate::{
    config::Directory,
    identity::SESSION_HEADER,
    telemetry::{Action, AuditEvent, audit},
};

pub use problem::Problem;
pub use service::{Overfull, Service};

/// Set as an extension on answers whose audit line has been written.
#[derive(Debug, Clone, Copy)]
pub struct Audited;

/// Writes the audit line of a call that is refused before it runs; a call that runs writes its own.
fn refused(
    directory: &Directory,
    caller: &Caller,
    (server, tool): (&str, &str),
    kind: &'static str,
) {
    let kind = directory.refusal_kind(server, kind);
    audit(&AuditEvent {
        address: Some(caller.address),
        server: Some(server),
        tool: Some(tool),
        ..AuditEvent::new(Action::Refusal, &caller.principal, kind)
    });
}

/// Adds the session with which the client gets the same folder again.
fn add_session(response: &mut Response, session: &SessionId) {
    if let Ok(session) = HeaderValue::from_str(session.as_str()) {
        let headers = response.headers_mut();
        headers.insert(SESSION_HEADER.clone(), session);
    }
}
