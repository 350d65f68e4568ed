//! The HTTP doors: who may come in, what is asked, and how it is answered.

mod answer;
mod body;
mod call;
mod call_files;
mod documents;
mod door;
pub mod files;
mod forward;
mod front;
mod health;
mod hosts;
mod leftover;
mod mcp;
mod metrics;
mod multipart;
mod peers;
mod problem;
mod reader;
mod routes;
mod spool;
mod straight;
mod upload;

pub use problem::Problem;
pub use straight::{Overfull, Service};

/// Set as an extension on answers whose audit line is written.
#[derive(Debug, Clone, Copy)]
pub struct Audited;
