//! The OpenAPI face of a server, as pure functions: what its tools look like as operations, what
//! a request body must be, and what a tool's result becomes. No I/O, no handlers.

#![allow(
    clippy::doc_markdown,
    reason = "OpenAPI and Open WebUI are names, not code"
)]

mod arguments;
mod docs;
mod document;
mod results;
mod schema;

pub use arguments::{
    ArgumentRules, BRIEF_BYTES, Effort, FieldFault, Patience, Stopped, Unfit, read_body,
};
pub use docs::{DOCS_CSP, INDEX_CSP, IndexEntry, IndexStatus, asset, docs_page, index_page};
pub use document::{DocumentInput, document, index_document, name_of_dots, path_segment};
pub use results::{ToolFailure, result_body};
pub use schema::request_schema;
