//! JSON Schemas as servers write them → schemas that stand alone inside an OpenAPI document and
//! that Open WebUI's converter digests.
//!
//! Open WebUI resolves only `#/components/schemas` references, turns what has no `type` into
//! `string`, and throws on boolean schemas, taking every other server down with it. So references
//! are inlined, recursion is cut, booleans are rewritten and types are written out. The result is
//! what the model is told; what a call must satisfy is the tool's own schema (`arguments`).

mod inline;
mod limits;
mod merge;
mod refs;
mod root;
mod types;

#[cfg(test)]
pub(crate) mod tests;

use bridge_protocol::Tool;
use serde_json::Value;

pub(super) use limits::{SOURCE_DEPTH, deeper_than};
pub(super) use refs::{Refs, Target};

/// A schema without references or boolean subschemas in places where Open WebUI looks.
#[derive(Debug, Clone, PartialEq)]
pub struct Converted {
    /// The schema, at most 256 KiB of text.
    pub schema: Value,
    /// What could not be kept, in words for the server's administrator; at most 20.
    pub warnings: Vec<String>,
}

/// The request body of a tool: always `type: object` with `properties` at the root. Whatever
/// cannot be converted becomes permissive there, with a warning.
pub fn request_schema(tool: &Tool) -> Converted {
    request_schema_of(tool.input_schema())
}

/// The same of an `inputSchema`.
pub fn request_schema_of(schema: &Value) -> Converted {
    root::request(schema)
}

/// Any other schema of a tool (`outputSchema`), made to stand alone.
pub fn response_schema(schema: &Value) -> Converted {
    root::response(schema)
}
