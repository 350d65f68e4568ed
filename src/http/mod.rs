//! The HTTP doors: who may come in, what is asked, and how it is answered.

mod answer;
mod call;
mod documents;
pub mod files;
mod health;
mod hosts;
mod mcp;
mod metrics;
mod peers;
mod problem;
mod routes;

pub use problem::Problem;
pub use routes::router;
