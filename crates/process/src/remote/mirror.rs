//! What revisions from 2026-07-28 on repeat in headers, so that proxies need not read bodies.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bridge_protocol::{RawJson, header_name};
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde_json::Value;

use super::message::{Modern, Outgoing};

/// Schemas nest no deeper than this where they are sane.
const DEPTH: usize = 32;
const OPENING: &str = "=?base64?";
const CLOSING: &str = "?=";

/// Adds the headers of a modern message. `schema` is the input schema of the tool that it calls.
pub fn mirror(
    headers: &mut HeaderMap,
    message: &Outgoing,
    modern: &Modern,
    schema: Option<&RawJson>,
) {
    if let Ok(version) = HeaderValue::from_str(&modern.version) {
        headers.insert(header_name::PROTOCOL_VERSION, version);
    }
    if let Some(method) = message.method() {
        headers.insert(header_name::METHOD, value(method));
    }
    if let Some(name) = &modern.name {
        headers.insert(header_name::NAME, value(name));
    }
    let arguments = modern.arguments.as_ref().map(RawJson::read::<Value>);
    let schema = schema.map(RawJson::read::<Value>);
    if let (Some(Ok(arguments)), Some(Ok(schema))) = (arguments, schema) {
        parameters(headers, &schema, &arguments, DEPTH);
    }
}

/// Arguments that the tool's schema marks with `x-mcp-header`. A mark that breaks the rules is
/// passed over: the server says what it misses.
fn parameters(headers: &mut HeaderMap, schema: &Value, arguments: &Value, depth: usize) {
    let Some(properties) = schema.get("properties").and_then(Value::as_object) else {
        return;
    };
    for (key, property) in properties {
        let Some(argument) = arguments.get(key) else {
            continue;
        };
        let mark = property.get("x-mcp-header").and_then(Value::as_str);
        let name = mark.filter(|mark| !mark.is_empty());
        let name = name.and_then(|mark| {
            format!("{}{mark}", header_name::PARAM_PREFIX)
                .parse::<HeaderName>()
                .ok()
        });
        if let (Some(name), Some(text)) = (name, plain(argument)) {
            headers.insert(name, value(&text));
        }
        if depth > 0 {
            parameters(headers, property, argument, depth - 1);
        }
    }
}

/// Strings, integers and booleans; nothing else may stand in a header.
fn plain(argument: &Value) -> Option<String> {
    match argument {
        Value::String(text) => Some(text.clone()),
        Value::Bool(truth) => Some(truth.to_string()),
        Value::Number(number) if number.is_i64() || number.is_u64() => Some(number.to_string()),
        Value::Number(number) => {
            let whole = number.as_f64().filter(|float| float.fract() == 0.0)?;
            Some(format!("{whole:.0}"))
        }
        _ => None,
    }
}

/// The text itself, or its Base64 form where a header cannot carry it.
pub fn value(text: &str) -> HeaderValue {
    let visible = text.bytes().all(|byte| matches!(byte, b'\t' | b' '..=b'~'));
    let padded = text.trim_matches([' ', '\t']) != text;
    let ambiguous = text.starts_with(OPENING) && text.ends_with(CLOSING);
    let encoded = if visible && !padded && !ambiguous {
        text.to_owned()
    } else {
        format!("{OPENING}{}{CLOSING}", BASE64_STANDARD.encode(text))
    };
    HeaderValue::try_from(encoded).expect("visible ASCII fits into a header")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn values_are_encoded_as_the_specification_shows() {
        for (text, expected) in [
            ("us-west1", "us-west1"),
            ("a b\tc", "a b\tc"),
            ("", ""),
            ("Hello, 世界", "=?base64?SGVsbG8sIOS4lueVjA==?="),
            (" padded ", "=?base64?IHBhZGRlZCA=?="),
            ("line1\nline2", "=?base64?bGluZTEKbGluZTI=?="),
            ("=?base64?literal?=", "=?base64?PT9iYXNlNjQ/bGl0ZXJhbD89?="),
        ] {
            assert_eq!(value(text), expected, "{text:?}");
        }
    }

    #[test]
    fn marked_arguments_are_mirrored() {
        let message = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {
            "name": "sql",
            "arguments": {"region": "eu", "deep": {"n": 42.0}, "none": null, "list": ["x"], "on": true},
            "_meta": {"io.modelcontextprotocol/protocolVersion": "2026-07-28"},
        }});
        let schema = RawJson::of(&json!({"properties": {
            "region": {"type": "string", "x-mcp-header": "Region"},
            "deep": {"properties": {"n": {"x-mcp-header": "N"}}},
            "none": {"x-mcp-header": "None"},
            "list": {"x-mcp-header": "List", "items": {"x-mcp-header": "Item"}},
            "on": {"x-mcp-header": "bad name"},
            "absent": {"x-mcp-header": "Absent"},
        }}));
        let message = Outgoing::read(&message.to_string().into()).unwrap();
        let mut headers = HeaderMap::new();
        mirror(
            &mut headers,
            &message,
            message.modern.as_ref().unwrap(),
            Some(&schema),
        );
        let mut found: Vec<_> = headers
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
            .collect();
        found.sort();
        assert_eq!(
            found,
            [
                "mcp-method: tools/call",
                "mcp-name: sql",
                "mcp-param-n: 42",
                "mcp-param-region: eu",
                "mcp-protocol-version: 2026-07-28",
            ]
        );
    }
}
