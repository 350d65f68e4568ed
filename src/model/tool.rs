//! One tool of a server, as `tools/list` described it.

use serde_json::{Map, Value};

/// The parts of a tool that we read, beside everything the server said.
#[derive(Debug, Clone, PartialEq)]
pub struct Tool {
    /// The name as the server spells it.
    pub name: Box<str>,
    /// The whole object from `tools/list`, unknown fields included.
    pub object: Map<String, Value>,
}

impl Tool {
    /// Reads an item of `tools/list`; `None` where it has no usable name.
    pub fn read(item: Value) -> Option<Self> {
        let Value::Object(object) = item else {
            return None;
        };
        let name = object.get("name")?.as_str()?.into();
        Some(Self { name, object })
    }

    /// The text for the model, if there is one.
    pub fn description(&self) -> Option<&str> {
        self.object.get("description").and_then(Value::as_str)
    }

    /// The schema of the arguments; `null` where the server sent none.
    pub fn input_schema(&self) -> &Value {
        self.object.get("inputSchema").unwrap_or(&Value::Null)
    }

    /// The schema of `structuredContent`, if declared.
    pub fn output_schema(&self) -> Option<&Value> {
        self.object.get("outputSchema")
    }
}
