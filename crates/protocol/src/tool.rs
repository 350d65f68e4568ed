//! One tool of a server, as described in `tools/list`.

use serde_json::{Map, Value};

use super::RawJson;

/// The parts of a tool that the bridge reads, and the whole description.
#[derive(Debug, Clone, PartialEq)]
pub struct Tool {
    /// The name as the server spells it.
    pub name: Box<str>,
    /// The whole object from `tools/list`, unknown fields included.
    pub object: Map<String, Value>,
    /// The whole object with its original bytes.
    pub raw: RawJson,
}

impl Tool {
    /// Reads an item of `tools/list`; `None` if it has no usable name.
    pub fn read(item: Value) -> Option<Self> {
        let Value::Object(object) = item else {
            return None;
        };
        let name = object.get("name")?.as_str()?.into();
        let raw = RawJson::from_json(&Value::Object(object.clone()));
        Some(Self { name, object, raw })
    }

    /// Reads an item with its original bytes; `None` if it has no usable name. Members that no Rust
    /// type can hold are in `raw` only, so that they do not make the tool unusable.
    pub fn read_raw(item: &RawJson) -> Option<Self> {
        // Text with unpaired surrogates is still usable.
        let members = item.with_whole_letters().members()?.into_iter();
        let readable = members
            .filter_map(|member| Some((member.name.read().ok()?, member.value.read().ok()?)));
        let raw = item.clone();
        Some(Self {
            raw,
            ..Self::read(Value::Object(readable.collect()))?
        })
    }

    /// The description for the model, if any.
    pub fn description(&self) -> Option<&str> {
        self.object.get("description").and_then(Value::as_str)
    }

    /// The schema of the arguments; `null` if the server sent none.
    pub fn input_schema(&self) -> &Value {
        self.object.get("inputSchema").unwrap_or(&Value::Null)
    }

    /// Whether it runs only as an MCP task (`execution.taskSupport`), not in a plain call.
    pub fn needs_task(&self) -> bool {
        let execution = self.object.get("execution");
        execution.is_some_and(|execution| execution["taskSupport"] == "required")
    }

    /// The schema of `structuredContent`, if declared.
    pub fn output_schema(&self) -> Option<&Value> {
        self.object.get("outputSchema")
    }
}
