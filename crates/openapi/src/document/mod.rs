//! The OpenAPI 3.1 document of one server: one POST per tool.

mod components;
mod ids;
mod index;
mod operation;
mod wording;

#[cfg(test)]
mod tests;

use std::collections::HashSet;

use bridge_protocol::Tool;
use serde_json::{Map, Value, json};

pub use ids::{mcpo_operation_id, name_of_dots, operation_ids, path_segment};
pub use index::index_document;
pub use wording::{Documents, OperationIds};

/// What a document says of a server.
#[derive(Debug, Clone, Copy)]
pub struct DocumentInput<'a> {
    /// The server's own title, or its name in the config.
    pub title: &'a str,
    /// The server's version; may be empty.
    pub version: &'a str,
    /// The server's instructions, for people: models never see them here.
    pub description: Option<&'a str>,
    /// Where the operations are, as a path without a slash at its end: `/mcpo/excel`.
    pub server_url: &'a str,
    /// The tools to show, in order. Of two with one name the first counts.
    pub tools: &'a [Tool],
    /// Text that each operation's description ends with.
    pub usage_guide: Option<&'a str>,
    /// Whether calls need a key.
    pub secured: bool,
    /// How operations are called.
    pub operation_ids: OperationIds,
}

/// The document. Size and time follow the tools; build it once per catalogue.
pub fn document(input: &DocumentInput<'_>) -> Value {
    let mut names: HashSet<&str> = HashSet::new();
    let mut tools: Vec<&Tool> = input.tools.iter().collect();
    tools.retain(|tool| !tool.name.is_empty() && names.insert(&tool.name));
    let names = tools.iter().map(|tool| match input.operation_ids {
        OperationIds::Tool => tool.name.to_string(),
        OperationIds::Mcpo => mcpo_operation_id(&tool.name),
    });
    let names: Vec<String> = names.collect();
    let ids = operation_ids(names.iter().map(String::as_str));
    let mut paths = Map::new();
    for (tool, id) in tools.into_iter().zip(ids) {
        let operation = operation::post(tool, &id, input);
        paths.insert(
            format!("/{}", path_segment(&tool.name)),
            json!({ "post": operation }),
        );
    }
    let mut info = json!({"title": input.title, "version": input.version});
    if let Some(text) = input.description.filter(|text| !text.trim().is_empty()) {
        info["description"] = text.into();
    }
    json!({
        "openapi": "3.1.0",
        "info": info,
        "servers": [{"url": input.server_url}],
        "paths": paths,
        "components": components::all(input.secured),
    })
}
