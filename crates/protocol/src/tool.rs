//! One tool of a server, as `tools/list` described it.

use serde_json::{Map, Value};

use super::RawJson;

/// The parts of a tool that we read, beside everything the server said.
#[derive(Debug, Clone, PartialEq)]
pub struct Tool {
    /// The name as the server spells it.
    pub name: Box<str>,
    /// The whole object from `tools/list`, unknown fields included.
    pub object: Map<String, Value>,
    /// The same as it came.
    pub raw: RawJson,
}

impl Tool {
    /// Reads an item of `tools/list`; `None` where it has no usable name.
    pub fn read(item: Value) -> Option<Self> {
        let Value::Object(object) = item else {
            return None;
        };
        let name = object.get("name")?.as_str()?.into();
        let raw = RawJson::from_json(&Value::Object(object.clone()));
        Some(Self { name, object, raw })
    }

    /// Reads an item as it came; `None` where it has no usable name. Members that hold what no
    /// type of ours can are in `raw` only: they must not cost the tool.
    pub fn read_raw(item: &RawJson) -> Option<Self> {
        // Words with half a letter in them are words all the same.
        let members = item.with_whole_letters().members()?.into_iter();
        let readable = members
            .filter_map(|member| Some((member.name.read().ok()?, member.value.read().ok()?)));
        let raw = item.clone();
        Some(Self {
            raw,
            ..Self::read(Value::Object(readable.collect()))?
        })
    }

    /// The text for the model, if there is one.
    pub fn description(&self) -> Option<&str> {
        self.object.get("description").and_then(Value::as_str)
    }

    /// The schema of the arguments; `null` where the server sent none.
    pub fn input_schema(&self) -> &Value {
        self.object.get("inputSchema").unwrap_or(&Value::Null)
    }

    /// Whether it runs only as a task of MCP's (`execution.taskSupport`), and not in a plain call.
    pub fn needs_task(&self) -> bool {
        let execution = self.object.get("execution");
        execution.is_some_and(|execution| execution["taskSupport"] == "required")
    }

    /// The schema of `structuredContent`, if declared.
    pub fn output_schema(&self) -> Option<&Value> {
        self.object.get("outputSchema")
    }
}
