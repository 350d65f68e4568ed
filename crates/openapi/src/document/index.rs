//! The document at the root: no operations, but where they are.

use std::fmt::Write;

use bridge_model::link_text;
use serde_json::{Value, json};

use super::Documents;
use crate::IndexEntry;

/// Like mcpo's: the servers with links to their docs, in the description.
pub fn index_document(said: &Documents, servers: &[IndexEntry<'_>]) -> Value {
    let text = said.description.as_deref();
    let mut description = text.unwrap_or("MCP servers as OpenAPI.").to_owned();
    description.push_str("\n\n- **available tools**:");
    for server in servers {
        let name = link_text(server.name);
        let _ = write!(description, "\n    - [{name}]({}/docs)", server.url);
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": said.name.as_deref().unwrap_or("mcpo-bridge"),
            "description": description,
            "version": said.version.as_deref().unwrap_or(env!("CARGO_PKG_VERSION")),
        },
        "paths": {},
    })
}
