//! The parts of messages that the transport depends on; the rest is not parsed.

use std::borrow::Cow;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bridge_protocol::{
    ClientMessage, Kind, RawJson, header_name,
    jsonrpc::{Envelope, number},
    last_members, method, text,
};
use bytes::Bytes;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde_json::{Value, value::RawValue};

/// A message of the bridge.
#[derive(Debug)]
pub struct Outgoing(ClientMessage);

impl Outgoing {
    /// Parses one line; `None` if it is not a message, which the bridge never writes.
    pub fn read(line: &Bytes) -> Option<Self> {
        ClientMessage::read(line).ok().map(Self)
    }

    /// The unchanged message, without the newline.
    pub fn body(&self) -> Bytes {
        self.0.line.clone()
    }

    /// The id of a request as JSON text.
    pub fn id(&self) -> Option<&str> {
        let is_request = matches!(self.0.kind, Kind::Request(_));
        let id = self.0.id.as_ref().filter(|_| is_request);
        id.map(RawJson::as_str)
    }

    /// The method, unless it is a response.
    pub fn method(&self) -> Option<&str> {
        match &self.0.kind {
            Kind::Request(method) | Kind::Notification(method) => Some(method),
            Kind::Response => None,
        }
    }

    /// The id of the request that the message cancels, as JSON text.
    pub fn cancels(&self) -> Option<&str> {
        let is_cancellation = self.id().is_none() && self.method() == Some(method::CANCELLED);
        let id = self.0.params.request_id.as_ref();
        id.filter(|_| is_cancellation).map(RawJson::as_str)
    }

    /// Whether it contains its revision, as messages since 2026-07-28 do.
    pub fn is_modern(&self) -> bool {
        self.0.params.meta.protocol_version.is_some()
    }

    /// Whether it opens a session.
    pub fn is_initialize(&self) -> bool {
        self.method() == Some(method::INITIALIZE)
    }

    /// Whether the server may safely receive it twice.
    pub fn is_idempotent(&self) -> bool {
        let Kind::Request(method) = &self.0.kind else {
            return false;
        };
        let reads = ["/list", "/get", "/read"];
        matches!(
            &**method,
            method::INITIALIZE | method::PING | method::DISCOVER
        ) || reads.iter().any(|end| method.ends_with(end))
    }

    /// The tool, prompt, resource or task of a request.
    fn name(&self) -> Option<&str> {
        let Kind::Request(method) = &self.0.kind else {
            return None;
        };
        let params = &self.0.params;
        let name = match &**method {
            method::TOOLS_CALL | method::PROMPTS_GET => params.name.as_ref().map(|(name, _)| name),
            method::RESOURCES_READ => params.uri.as_ref(),
            method::TASKS_GET | method::TASKS_UPDATE | method::TASKS_CANCEL => {
                params.task_id.as_ref()
            }
            _ => None,
        };
        name.map(String::as_str)
    }

    /// The tool and the arguments of a call.
    pub fn call(&self) -> Option<(&str, &RawJson)> {
        let arguments = self.0.params.arguments.as_ref();
        let arguments = arguments.filter(|_| self.method() == Some(method::TOOLS_CALL));
        self.name().zip(arguments)
    }
}

/// Whether a message from the server, or one of a batch, is the response to the request with this
/// id.
pub fn answers(line: &[u8], id: &str) -> bool {
    answer(line, id).is_some()
}

fn answer<'a>(line: &'a [u8], id: &str) -> Option<Envelope<'a>> {
    if line.trim_ascii_start().first() == Some(&b'[') {
        let batch: Vec<&RawValue> = serde_json::from_slice(line).unwrap_or_default();
        let mut parts = batch.into_iter().map(|part| part.get().as_bytes());
        return parts.find_map(|part| answer_alone(part, id));
    }
    answer_alone(line, id)
}

fn answer_alone<'a>(line: &'a [u8], id: &str) -> Option<Envelope<'a>> {
    let envelope = Envelope::lenient(line)?;
    let is_ours = envelope.method.is_none() && envelope.id.is_some_and(|raw| same(raw.get(), id));
    is_ours.then_some(envelope)
}

/// Some servers answer number 5 with `"5"` or `5.0`.
fn same(theirs: &str, ours: &str) -> bool {
    match (number(theirs), number(ours)) {
        (Some(theirs), Some(ours)) => theirs == ours,
        _ => theirs == ours,
    }
}

/// If a body is one response without an id, adds the id of this request: its own connection carries
/// no other request.
pub fn addressed(body: Bytes, id: &str) -> Bytes {
    let Some(envelope) = Envelope::lenient(&body) else {
        return body;
    };
    if envelope.id().is_some() || !envelope.is_answer() || envelope.method.is_some() {
        return body;
    }
    let Ok(id) = RawJson::parse(id.to_owned().into()) else {
        return body;
    };
    let whole = RawJson::parse(body.clone());
    whole.map_or(body, |whole| whole.with_member("id", &id).into_bytes())
}

/// The revision in a response to `initialize`.
pub fn negotiated(line: &[u8], id: &str) -> Option<String> {
    let result = answer(line, id)?.result?;
    let [version] = last_members(result.get().as_bytes(), ["protocolVersion"])?;
    text(version?).map(Cow::into_owned)
}

/// A JSON-RPC error in the body of a rejection.
pub struct RpcError {
    /// The line for the caller, without its newline.
    pub line: Bytes,
    /// Whether the body contained the request's id.
    pub names_request: bool,
    /// Its code and its message.
    pub parts: ErrorParts,
}

/// Parses the body of a rejection. An error without an id gets the request's id.
pub fn rpc_error(body: &Bytes, id: Option<&str>) -> Option<RpcError> {
    let envelope = Envelope::lenient(body)?;
    let error = envelope.error?;
    let parts = ErrorParts::read(error)?;
    let named = envelope.id.zip(id);
    let names_request = named.is_some_and(|(theirs, ours)| same(theirs.get(), ours));
    let line = if names_request {
        body.clone()
    } else {
        let (id, error) = (id.unwrap_or("null"), error.get());
        format!(r#"{{"jsonrpc":"2.0","id":{id},"error":{error}}}"#).into()
    };
    Some(RpcError {
        line,
        names_request,
        parts,
    })
}

/// The parts of an error object.
pub struct ErrorParts {
    /// 0 if it has none.
    pub code: i64,
    /// Empty if it has none.
    pub message: String,
}

impl ErrorParts {
    /// `None` for an error that is not JSON-RPC, such as OAuth's.
    fn read(error: &RawValue) -> Option<Self> {
        let [code, message] = last_members(error.get().as_bytes(), ["code", "message"])?;
        let code: Option<i64> = code.and_then(|code| serde_json::from_str(code.get()).ok());
        let message = message.and_then(text);
        let is_error = code.is_some() || message.is_some();
        is_error.then(|| Self {
            code: code.unwrap_or_default(),
            message: message.unwrap_or_default().into_owned(),
        })
    }
}

/// The error in the response to the request with this id.
pub fn error_of(line: &[u8], id: &str) -> Option<ErrorParts> {
    ErrorParts::read(answer(line, id)?.error?)
}

/// The id of a message that is an error response.
pub fn refused_id(line: &[u8]) -> Option<Box<str>> {
    // Most messages are not, and parsing them is avoided.
    memchr::memmem::find(line, b"\"error\"")?;
    let envelope = Envelope::lenient(line).filter(|envelope| envelope.error.is_some())?;
    Some(envelope.id()?.get().into())
}

/// Makes a message one line: newlines between its tokens become spaces; newlines inside strings are
/// always escaped.
pub fn line(message: impl Into<Vec<u8>>) -> Bytes {
    let mut line: Vec<u8> = message.into();
    line.iter_mut()
        .filter(|byte| matches!(byte, b'\n' | b'\r'))
        .for_each(|byte| *byte = b' ');
    line.push(b'\n');
    line.into()
}

// Values that revisions since 2026-07-28 repeat in headers, so that proxies need not parse bodies.

/// Maximum depth of schemas that are searched.
const DEPTH: usize = 32;

const OPENING: &str = "=?base64?";

const CLOSING: &str = "?=";

/// The headers of a modern message. `schema` is the input schema of the tool that it calls.
pub fn mirrored(message: &Outgoing, schema: Option<&RawJson>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let version = message.0.params.meta.protocol_version.as_deref();
    if let Some(Ok(version)) = version.map(HeaderValue::from_str) {
        headers.insert(header_name::PROTOCOL_VERSION, version);
    }
    if let Some(method) = message.method() {
        headers.insert(header_name::METHOD, value(method));
    }
    if let Some(name) = message.name() {
        headers.insert(header_name::NAME, value(name));
    }
    let arguments = message
        .call()
        .map(|(_, arguments)| arguments.read::<Value>());
    let schema = schema.map(RawJson::read::<Value>);
    if let (Some(Ok(arguments)), Some(Ok(schema))) = (arguments, schema) {
        parameters(&mut headers, &schema, &arguments, DEPTH);
    }
    headers
}

/// Adds the arguments that the tool's schema marks with `x-mcp-header`. An invalid mark is ignored:
/// the server reports missing headers.
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

/// Strings, integers and booleans; other values are not allowed in headers.
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

/// The text itself, or its Base64 form if a header cannot contain the text.
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

    fn outgoing(text: &str) -> Outgoing {
        let whole = format!(r#"{{"jsonrpc":"2.0",{}"#, &text[1..]);
        Outgoing::read(&whole.into()).expect(text)
    }

    #[test]
    fn kinds_are_told_apart() {
        let request = outgoing(r#"{"id": "a\"b", "method":"tools\/call"}"#);
        assert_eq!(request.id(), Some(r#""a\"b""#));
        assert_eq!(request.method(), Some("tools/call"));
        let cancel = r#"{"method":"notifications/cancelled","params":{"requestId":7}}"#;
        assert_eq!(outgoing(cancel).cancels(), Some("7"));
        let response = outgoing(r#"{"id":1,"result":{}}"#);
        assert_eq!((response.id(), response.method()), (None, None));
        assert!(Outgoing::read(&Bytes::from_static(b"hello")).is_none());
    }

    #[test]
    fn a_revision_in_meta_makes_a_message_modern() {
        let text = r#"{"id":1,"method":"resources/read","params":{"uri":"a:\u00e9","name":5,
            "_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}}}"#;
        let modern = outgoing(text);
        assert!(modern.is_modern());
        assert_eq!(modern.name(), Some("a:é"));
        assert!(!outgoing(r#"{"id":1,"method":"m","params":{"_meta":{}}}"#).is_modern());
    }

    #[test]
    fn calls_are_not_idempotent() {
        let of =
            |method: &str| outgoing(&format!(r#"{{"id":1,"method":"{method}"}}"#)).is_idempotent();
        assert!(of("tools/list") && of("initialize") && of("resources/read"));
        assert!(!of("tools/call") && !of("tasks/cancel") && !of("subscriptions/listen"));
    }

    #[test]
    fn answers_are_found_alone_and_in_batches() {
        for id in ["\"7\"", "7.0", "7"] {
            let twice = format!(r#"{{"jsonrpc":"2.0","jsonrpc":"2.0","id":{id},"result":{{}}}}"#);
            assert!(answers(twice.as_bytes(), "7"), "{id}");
        }
        assert!(answers(br#" [{"method":"n"},{"id":7,"error":{}}]"#, "7"));
        assert!(!answers(br#"{"id":7,"method":"ping"}"#, "7"));
        assert!(!answers(br#"{"id":8,"result":{}}"#, "7"));
        for settled in [
            r#"{"id":1,"result":{"protocolVersion":"2025-06-18"}}"#,
            r#"[5,{"id":1,"result":{"protocolVersion":"2025-06-18"}}]"#,
        ] {
            let version = negotiated(settled.as_bytes(), "1");
            assert_eq!(version.as_deref(), Some("2025-06-18"));
        }
    }

    #[test]
    fn errors_in_refusals_keep_their_bytes() {
        let body = Bytes::from_static(br#"{"id":7,"error":{"code":-1,"message":"x", "y":1.0}}"#);
        assert_eq!(rpc_error(&body, Some("7")).unwrap().line, body);
        let named = rpc_error(&body, Some("8")).unwrap();
        let expected = r#"{"jsonrpc":"2.0","id":8,"error":{"code":-1,"message":"x", "y":1.0}}"#;
        assert_eq!(named.line, expected);
        assert!(!named.names_request);
        let oauth = Bytes::from_static(br#"{"error":"invalid_token"}"#);
        assert!(rpc_error(&oauth, None).is_none());
    }

    #[test]
    fn an_answer_without_an_id_answers_the_request_whose_body_it_is() {
        for (body, expected) in [
            (r#"{"id":null,"result":{}}"#, r#"{"id":7,"result":{}}"#),
            (r#"{"error":{"code":1}}"#, r#"{"id":7,"error":{"code":1}}"#),
            (r#"{"id":8,"result":{}}"#, r#"{"id":8,"result":{}}"#),
            (r#"{"method":"n"}"#, r#"{"method":"n"}"#),
            ("[]", "[]"),
        ] {
            assert_eq!(addressed(Bytes::from(body), "7"), expected);
        }
    }

    #[test]
    fn pretty_json_becomes_one_line() {
        let flat = line(&b"{\r\n \"a\": \"x\\ny\"\n}"[..]);
        assert_eq!(flat, &b"{   \"a\": \"x\\ny\" }\n"[..]);
    }
}

#[cfg(test)]
mod mirror_tests {
    use serde_json::json;

    use super::*;

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
        let schema = RawJson::from_json(&json!({"properties": {
            "region": {"type": "string", "x-mcp-header": "Region"},
            "deep": {"properties": {"n": {"x-mcp-header": "N"}}},
            "none": {"x-mcp-header": "None"},
            "list": {"x-mcp-header": "List", "items": {"x-mcp-header": "Item"}},
            "on": {"x-mcp-header": "bad name"},
            "absent": {"x-mcp-header": "Absent"},
        }}));
        let message = Outgoing::read(&message.to_string().into()).unwrap();
        let headers = mirrored(&message, Some(&schema));
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
