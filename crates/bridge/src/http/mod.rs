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

pub use problem::Problem;
pub use service::{Overfull, Service};

/// Set as an extension on answers whose audit line is written.
#[derive(Debug, Clone, Copy)]
pub struct Audited;
