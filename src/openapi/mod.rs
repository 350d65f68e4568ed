//! The OpenAPI face of a server.
mod arguments;
mod results;
mod schema;
pub use arguments::{ArgumentRules, FieldFault, read_body};
pub use results::{ToolFailure, result_body};
pub use schema::{Converted, request_schema, response_schema};
