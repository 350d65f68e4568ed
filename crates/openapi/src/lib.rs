//! An MCP server as OpenAPI, in pure functions: its tools as the operations of a document, the validation of
//! request bodies, and the conversion of tool results. Formats and status texts are those of mcpo.
//!
//! This crate must not depend on HTTP servers, processes, files or callers.
//!
//! ```
//! use bridge_openapi::{DocumentInput, OperationIds, document};
//! use bridge_protocol::Tool;
//! use serde_json::json;
//!
//! let tool = json!({"name": "now", "inputSchema": {"type": "object", "properties": {}}});
//! let document = document(&DocumentInput {
//!     title: "time",
//!     version: "1.0",
//!     description: None,
//!     server_url: "/mcpo/time",
//!     tools: &[Tool::read(tool).expect("a tool with a name")],
//!     usage_guide: None,
//!     secured: false,
//!     operation_ids: OperationIds::Tool,
//! });
//! assert_eq!(document["openapi"], "3.1.0");
//! assert_eq!(document["paths"]["/now"]["post"]["operationId"], "now");
//! ```

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
    ArgumentRules, ArgumentsError, BRIEF_BYTES, Effort, FieldFault, Patience, SCHEMA_MAPS, Stopped,
    read_body,
};
pub use docs::{DOCS_CSP, INDEX_CSP, IndexEntry, IndexStatus, asset, docs_page, index_page};
pub use document::{
    DocumentInput, Documents, OperationIds, document, index_document, name_of_dots, path_segment,
};
pub use results::{ToolFailure, result_body};
pub use schema::request_schema;
