//! Wrong types and ranges: the JSON Schema finds them, this file says them in words.

use std::collections::BTreeSet;

use jsonschema::paths::LocationSegment;
use serde_json::Value;

use super::{
    path::Path,
    schema::{ALIASES, json_schema},
};
use crate::config::Fault;

/// One fault for each place where the document differs from the schema.
pub(super) fn faults(document: &Value) -> Vec<Fault> {
    let validator = match jsonschema::validator_for(&json_schema()) {
        Ok(validator) => validator,
        Err(error) => panic!("our own schema compiles: {error}"),
    };
    let mut seen = BTreeSet::new();
    let errors = validator.iter_errors(document);
    errors
        .filter(|error| seen.insert(error.instance_path().as_str().to_owned()))
        .map(|error| fault(error.instance_path().segments(), error.instance()))
        .collect()
}

fn fault<'a>(segments: impl Iterator<Item = LocationSegment<'a>>, value: &Value) -> Fault {
    let mut path = Path::root();
    let mut keys = Vec::new();
    for segment in segments {
        path = match &segment {
            LocationSegment::Property(key) => path.key(key),
            LocationSegment::Index(index) => path.index(*index),
        };
        keys.push(segment.to_string());
    }
    let expected = match keys.as_slice() {
        [] => Expected::hidden(r#"an object: {"mcpServers": {…}}"#),
        [_] => Expected::hidden(r#"an object with the servers: {"excel": {"command": …}}"#),
        [_, _] => Expected::hidden(r#"an object: {"command": …} or {"url": …}"#),
        [_, _, key, ..] => expected(key),
    };
    let fault = Fault::new(
        path,
        format!("{} is not what belongs here", describe(value)),
        format!("write {}", expected.what),
    );
    let scalar = !value.is_object() && !value.is_array();
    if expected.shown && scalar {
        fault.with_value(value)
    } else {
        fault
    }
}

struct Expected {
    what: &'static str,
    /// The value can hold no secret.
    shown: bool,
}

impl Expected {
    fn hidden(what: &'static str) -> Self {
        Self { what, shown: false }
    }

    fn shown(what: &'static str) -> Self {
        Self { what, shown: true }
    }
}

fn expected(key: &str) -> Expected {
    let alias = ALIASES.iter().find(|(alias, _)| *alias == key);
    match alias.map_or(key, |(_, key)| key) {
        "command" => {
            Expected::shown(r#"the program alone, as a string; the rest goes into "args""#)
        }
        "args" => Expected::hidden(r#"a list of strings: ["--port", "8080"]"#),
        "env" | "headers" => Expected::hidden(r#"an object of strings, numbers in quotes: "8080""#),
        "cwd" => Expected::shown("a folder, as a string"),
        "url" => Expected::hidden("an http or https URL, as a string"),
        "type" => Expected::shown(r#"one of "stdio", "streamable-http", "sse""#),
        "mode" => Expected::shown(r#"one of "stateful", "stateless", "shared""#),
        "workspace" => Expected::shown(r#""chat" or "own""#),
        "idle_timeout" | "timeout" => Expected::shown(
            "a number of seconds without quotes, more than 0 and at most 86400; other clients' \
                 files have milliseconds",
        ),
        "max_processes_per_chat" | "concurrency" => {
            Expected::shown("a whole number without quotes, from 1 to 1000")
        }
        "pool" => Expected::shown("a whole number without quotes, from 0 to 1000"),
        "disabled" | "enabled" | "install" | "session_lists" => {
            Expected::shown("true or false, without quotes")
        }
        "launch" => Expected::shown(r#"one of "auto", "exec", "fork""#),
        "usage_guide" | "post_instruction" => Expected::shown("a string"),
        "enabledTools" | "disabledTools" => {
            Expected::shown(r#"a list of tool names: ["read_sheet", "write_sheet"]"#)
        }
        "file_path_fields" | "resolve_path_fields" | "resolve_uri_fields" => {
            Expected::shown(r#"a list of field names: ["file_path"]"#)
        }
        "embed" => Expected::shown(r#"a list of "image" and "html""#),
        "before_end" => {
            Expected::shown(r#"an object: {"tool": "save", "arguments": {"name": "backup"}}"#)
        }
        "client_header_forwarding" => Expected::hidden(
            r#"an object: {"enabled": true, "whitelist": ["X-Tenant-*"], "blacklist": []}"#,
        ),
        "allow" => Expected::hidden(
            r#"an object of lists: {"users": ["ann@example.com"], "groups": ["sales"], "roles": ["admin"]}"#,
        ),
        "oauth" => Expected::hidden("an object, as mcpo has it"),
        _ => Expected::hidden("what docs/mcp-servers.schema.json says"),
    }
}

/// The kind of a value, without the value.
fn describe(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a true or false",
        Value::Number(_) => "this number",
        Value::String(text) if text.is_empty() => "an empty string",
        Value::String(_) => "this string",
        Value::Array(_) => "this list",
        Value::Object(_) => "this object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_of_the_schema_has_its_words() {
        let schema = json_schema();
        let keys = schema["$defs"]["ServerEntry"]["properties"]
            .as_object()
            .unwrap();
        for key in keys.keys() {
            assert!(!expected(key).what.contains("docs/"), "{key}");
        }
    }
}
