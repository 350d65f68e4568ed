//! The HTTP doors: who may come in, what is asked, and how it is answered.

mod address;
mod answer;
mod body;
mod call;
mod call_files;
mod documents;
pub mod files;
mod health;
mod hosts;
mod inbound;
mod mcp;
mod metrics;
mod multipart;
mod permit;
mod problem;
mod reader;
mod route;
mod service;
mod unread;
mod upload;

pub use problem::Problem;
pub use service::{Overfull, Service};

/// Set as an extension on answers whose audit line is written.
#[derive(Debug, Clone, Copy)]
pub struct Audited;
