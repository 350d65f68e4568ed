//! The OpenAPI face of a server.
mod results;
mod schema;
pub use results::{ToolFailure, result_body};
pub use schema::{Converted, request_schema, response_schema};
