//! A client's message, taken apart without changing a byte of it.

use bridge_protocol::{RawJson, last_members, present, utf8};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Map, Value, value::RawValue};

use super::RpcError;

/// One message from a client. All parts lie within the line.
#[derive(Debug, Clone)]
pub struct ClientMessage {
    /// The whole message.
    pub line: Bytes,
    /// Of requests and responses.
    pub id: Option<RawJson>,
    /// What kind it is.
    pub kind: Kind,
    /// What we read of the params.
    pub params: Params,
}

/// What a message is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// Asks; has an id.
    Request(Box<str>),
    /// Tells; has none.
    Notification(Box<str>),
    /// Answers a request of the server's.
    Response,
}

/// The members of params that a bridge reads, in any method.
#[derive(Debug, Clone, Default)]
pub struct Params {
    /// Of `tools/call` and `prompts/get`, as text and as it lies in the line.
    pub name: Option<(String, RawJson)>,
    /// Of `resources/read`.
    pub uri: Option<String>,
    /// Of `tools/call`.
    pub arguments: Option<RawJson>,
    /// Of `initialize`.
    pub protocol_version: Option<String>,
    /// Of `initialize`.
    pub capabilities: Option<Map<String, Value>>,
    /// Of `notifications/cancelled`.
    pub request_id: Option<RawJson>,
    /// Of `logging/setLevel`.
    pub level: Option<String>,
    /// Of a retry: what the first answer asked to be sent back.
    pub request_state: Option<String>,
    /// Of a retry: the answers.
    pub input_responses: Option<RawJson>,
    /// Of `subscriptions/listen`.
    pub notifications: Option<RawJson>,
    /// The metadata.
    pub meta: Meta,
}

/// The members of `_meta` that a bridge reads.
#[derive(Debug, Clone, Default)]
pub struct Meta {
    /// Where `_meta` itself lies.
    pub whole: Option<RawJson>,
    /// For progress.
    pub progress_token: Option<RawJson>,
    /// 2026-07-28 and later.
    pub protocol_version: Option<String>,
    /// 2026-07-28 and later.
    pub client_capabilities: Option<Map<String, Value>>,
    /// 2026-07-28 and later: log messages are wanted.
    pub log_level: Option<String>,
    /// 2026-07-28 and later: what the client is called.
    pub client_name: Option<String>,
}

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow, default)]
    jsonrpc: Option<&'a RawValue>,
    /// `"id":null` is no notification's.
    #[serde(borrow, default, deserialize_with = "present")]
    id: Option<&'a RawValue>,
    #[serde(default)]
    method: Option<String>,
    #[serde(borrow, default)]
    params: Option<&'a RawValue>,
    #[serde(borrow, default)]
    result: Option<&'a RawValue>,
    #[serde(borrow, default)]
    error: Option<&'a RawValue>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct RawParams<'a> {
    #[serde(borrow, default)]
    name: Option<&'a RawValue>,
    #[serde(borrow, default)]
    uri: Option<&'a RawValue>,
    #[serde(borrow, default)]
    arguments: Option<&'a RawValue>,
    #[serde(borrow, default)]
    protocol_version: Option<&'a RawValue>,
    #[serde(borrow, default)]
    capabilities: Option<&'a RawValue>,
    #[serde(borrow, default)]
    request_id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    level: Option<&'a RawValue>,
    #[serde(borrow, default)]
    request_state: Option<&'a RawValue>,
    #[serde(borrow, default)]
    input_responses: Option<&'a RawValue>,
    #[serde(borrow, default)]
    notifications: Option<&'a RawValue>,
    #[serde(rename = "_meta", borrow, default)]
    meta: Option<&'a RawValue>,
}

#[derive(Deserialize, Default)]
struct RawMeta<'a> {
    #[serde(rename = "progressToken", borrow, default)]
    progress_token: Option<&'a RawValue>,
    #[serde(rename = "io.modelcontextprotocol/protocolVersion", borrow, default)]
    protocol_version: Option<&'a RawValue>,
    #[serde(rename = "io.modelcontextprotocol/clientCapabilities", borrow, default)]
    client_capabilities: Option<&'a RawValue>,
    #[serde(rename = "io.modelcontextprotocol/logLevel", borrow, default)]
    log_level: Option<&'a RawValue>,
    #[serde(rename = "io.modelcontextprotocol/clientInfo", borrow, default)]
    client_info: Option<&'a RawValue>,
}

impl ClientMessage {
    /// Reads one message. Members that we read may stand in it once only: a proxy in front may
    /// have looked at the other one.
    pub fn read(body: &Bytes) -> Result<Self, RpcError> {
        let whole = RawJson::parse(utf8(body.clone()))
            .map_err(|error| RpcError::parse(&format!("the body is not JSON: {error}")))?;
        let line = whole.into_bytes();
        if line.first() == Some(&b'[') {
            return Err(RpcError::invalid(
                "batches are not taken: send each message by itself",
            ));
        }
        let envelope: Envelope<'_> = serde_json::from_slice(&line)
            .map_err(|error| RpcError::invalid(&format!("not a JSON-RPC message: {error}")))?;
        let raw = |part: &RawValue| RawJson::within(&line, part);
        let id = envelope.id.map(raw);
        if envelope
            .jsonrpc
            .is_none_or(|version| version.get() != r#""2.0""#)
        {
            return Err(RpcError::invalid("\"jsonrpc\" must be \"2.0\"").to(id));
        }
        let answered = envelope.result.or(envelope.error).is_some();
        let kind = match (envelope.method, &id) {
            (Some(method), Some(id)) if is_id(id) => Kind::Request(method.into()),
            (Some(_), Some(_)) => {
                return Err(RpcError::invalid("an id is a string or a whole number"));
            }
            (Some(method), None) => Kind::Notification(method.into()),
            (None, Some(_)) if answered => Kind::Response,
            _ => return Err(RpcError::invalid("neither a request nor a response").to(id)),
        };
        let params = Params::read(&line, envelope.params.map(RawValue::get));
        let params = params.map_err(|error| error.to(id.clone()))?;
        Ok(Self {
            line,
            id,
            kind,
            params,
        })
    }

    /// The id for an answer; `null` where there is none.
    pub fn answer_id(&self) -> RawJson {
        self.id.clone().unwrap_or_else(RawJson::null)
    }
}

/// Strings and numbers; fractions are nobody's id, but do no harm.
fn is_id(id: &RawJson) -> bool {
    id.as_bytes()
        .first()
        .is_some_and(|byte| matches!(byte, b'"' | b'-' | b'0'..=b'9'))
}

impl Params {
    fn read(line: &Bytes, params: Option<&str>) -> Result<Self, RpcError> {
        let Some(text) = params else {
            return Ok(Self::default());
        };
        let bad = |error: serde_json::Error| RpcError::params(&format!("params: {error}"));
        let found: RawParams<'_> = serde_json::from_str(text).map_err(bad)?;
        let raw = |part: &RawValue| RawJson::within(line, part);
        let name = found
            .name
            .and_then(|name| Some((text_of(name)?, raw(name))));
        Ok(Self {
            name,
            uri: found.uri.and_then(text_of),
            arguments: found.arguments.map(raw),
            protocol_version: found.protocol_version.and_then(text_of),
            capabilities: found.capabilities.map(raw).and_then(object_of),
            request_id: found.request_id.map(raw),
            level: found.level.and_then(text_of),
            request_state: found.request_state.and_then(text_of),
            input_responses: found.input_responses.map(raw),
            notifications: found.notifications.map(raw),
            meta: match found.meta {
                Some(meta) => Meta::read(line, meta)?,
                None => Meta::default(),
            },
        })
    }
}

impl Meta {
    fn read(line: &Bytes, meta: &RawValue) -> Result<Self, RpcError> {
        let bad = |error: serde_json::Error| RpcError::params(&format!("params._meta: {error}"));
        let found: RawMeta<'_> = serde_json::from_str(meta.get()).map_err(bad)?;
        Ok(Self {
            whole: Some(RawJson::within(line, meta)),
            progress_token: found
                .progress_token
                .map(|token| RawJson::within(line, token)),
            protocol_version: found.protocol_version.and_then(text_of),
            client_capabilities: found
                .client_capabilities
                .map(|raw| RawJson::within(line, raw))
                .and_then(object_of),
            log_level: found.log_level.and_then(text_of),
            client_name: found.client_info.and_then(|info| {
                let [name] = last_members(info.get().as_bytes(), ["name"])?;
                text_of(name?)
            }),
        })
    }
}

fn text_of(raw: &RawValue) -> Option<String> {
    serde_json::from_str(raw.get()).ok()
}

/// An odd number somewhere in it must not take away what the client can do.
#[expect(
    clippy::needless_pass_by_value,
    reason = "for use as a function of options"
)]
fn object_of(raw: RawJson) -> Option<Map<String, Value>> {
    match raw.approximate() {
        Value::Object(members) => Some(members),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<ClientMessage, RpcError> {
        ClientMessage::read(&Bytes::copy_from_slice(text.as_bytes()))
    }

    #[test]
    fn kinds_are_told_apart() {
        let kind = |text: &str| read(text).unwrap().kind;
        assert_eq!(
            kind(r#"{"jsonrpc":"2.0","id":"a","method":"m"}"#),
            Kind::Request("m".into())
        );
        assert_eq!(
            kind(r#"{"jsonrpc":"2.0","method":"n"}"#),
            Kind::Notification("n".into())
        );
        assert_eq!(
            kind(r#"{"jsonrpc":"2.0","id":0,"result":{}}"#),
            Kind::Response
        );
    }

    #[test]
    fn what_is_no_message_says_so_with_the_code_of_the_specification() {
        let code = |text: &str| read(text).unwrap_err().code;
        assert_eq!(code("{"), -32700);
        for bad in [
            "[]",
            "1",
            r#"{"id":1,"method":"m"}"#,
            r#"{"jsonrpc":"2.0","id":{},"method":"m"}"#,
            r#"{"jsonrpc":"2.0","id":null,"method":"m"}"#,
            r#"{"jsonrpc":"2.0","id":true,"method":"m"}"#,
            r#"{"jsonrpc":"2.0","id":1}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"a","method":"b"}"#,
        ] {
            assert_eq!(code(bad), -32600, "{bad}");
        }
        let twice =
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a","name":"b"}}"#;
        assert_eq!(code(twice), -32602);
    }
}
