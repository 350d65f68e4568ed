//! A message of a client, split into its parts without changing its bytes.

use std::borrow::Cow;

use bytes::Bytes;
use serde_json::{Map, Value, value::RawValue};

use crate::{RawJson, code, jsonrpc::Envelope, last_members, members, meta, text, utf8};

/// One message from a client. All parts lie within the line.
#[derive(Debug, Clone)]
pub struct ClientMessage {
    /// The whole message.
    pub line: Bytes,
    /// For requests and responses.
    pub id: Option<RawJson>,
    /// The kind of message.
    pub kind: Kind,
    /// The parsed members of the params.
    pub params: Params,
}

/// The kind of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A request, with its method; it has an id.
    Request(Box<str>),
    /// A notification, with its method; it has no id.
    Notification(Box<str>),
    /// A response to a request of the server.
    Response,
}

/// The members of params that a bridge reads, in any method.
#[derive(Debug, Clone, Default)]
pub struct Params {
    /// For `tools/call` and `prompts/get`: as text, and as a part of the line.
    pub name: Option<(String, RawJson)>,
    /// For `resources/read`.
    pub uri: Option<String>,
    /// For `tasks/get`, `tasks/update` and `tasks/cancel`.
    pub task_id: Option<String>,
    /// For `tools/call`.
    pub arguments: Option<RawJson>,
    /// For `initialize`.
    pub protocol_version: Option<String>,
    /// For `initialize`.
    pub capabilities: Option<Map<String, Value>>,
    /// For `notifications/cancelled`.
    pub request_id: Option<RawJson>,
    /// For `logging/setLevel`.
    pub level: Option<String>,
    /// For a retry: the state that the first response asked the client to return.
    pub request_state: Option<String>,
    /// For a retry: the responses to the requested input.
    pub input_responses: Option<RawJson>,
    /// For `subscriptions/listen`.
    pub notifications: Option<RawJson>,
    /// The metadata.
    pub meta: Meta,
}

/// The members of `_meta` that a bridge reads.
#[derive(Debug, Clone, Default)]
pub struct Meta {
    /// `_meta` itself.
    pub whole: Option<RawJson>,
    /// The token for progress notifications.
    pub progress_token: Option<RawJson>,
    /// 2026-07-28 and later.
    pub protocol_version: Option<String>,
    /// 2026-07-28 and later.
    pub client_capabilities: Option<Map<String, Value>>,
    /// 2026-07-28 and later: the lowest level of log messages that the client wants.
    pub log_level: Option<String>,
    /// 2026-07-28 and later: the client's name.
    pub client_name: Option<String>,
}

/// Why a body is not a valid client message, as a JSON-RPC error.
#[derive(Debug, Clone)]
pub struct Malformed {
    /// One of [`code`].
    pub code: i64,
    /// The error message.
    pub message: String,
    /// The id for the response, if there is one.
    pub id: Option<RawJson>,
}

impl Malformed {
    fn new(code: i64, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            id: None,
        }
    }

    fn request(message: impl Into<String>) -> Self {
        Self::new(code::INVALID_REQUEST, message)
    }

    fn to(mut self, id: Option<&RawJson>) -> Self {
        self.id = id.cloned();
        self
    }
}

impl ClientMessage {
    /// Parses one message. A member that the bridge reads must not be duplicated: a proxy in front
    /// of the bridge may have used the other one.
    pub fn read(body: &Bytes) -> Result<Self, Malformed> {
        let whole = RawJson::parse(utf8(body.clone())).map_err(|error| {
            Malformed::new(code::PARSE_ERROR, format!("the body is not JSON: {error}"))
        })?;
        let line = whole.clone().into_bytes();
        if line.first() == Some(&b'[') {
            return Err(Malformed::request(
                "batches are not supported: send each message in a separate request",
            ));
        }
        let envelope = Envelope::strict(whole.as_str())
            .map_err(|error| Malformed::request(format!("not a JSON-RPC message: {error}")))?;
        let raw = |part: &RawValue| RawJson::within(&line, part);
        let id = envelope.id.map(raw);
        let kind = kind(&envelope).map_err(|error| error.to(id.as_ref()))?;
        let params = match envelope.params {
            Some(params) => Params::read(&line, params),
            None => Ok(Params::default()),
        };
        let params = params.map_err(|error| error.to(id.as_ref()))?;
        Ok(Self {
            line,
            id,
            kind,
            params,
        })
    }

    /// A value within the params, by the keys of its path.
    pub fn param(&self, path: &[&str]) -> Option<RawJson> {
        let [params] = last_members(&self.line, ["params"])?;
        RawJson::within(&self.line, params?).at(path)
    }

    /// The id for a response; `null` if there is none.
    pub fn answer_id(&self) -> RawJson {
        self.id.clone().unwrap_or_else(RawJson::null)
    }
}

fn kind(envelope: &Envelope<'_>) -> Result<Kind, Malformed> {
    if envelope.jsonrpc.and_then(text).as_deref() != Some("2.0") {
        return Err(Malformed::request("\"jsonrpc\" must be \"2.0\""));
    }
    let Some(method) = envelope.method else {
        return match envelope.id {
            Some(_) if envelope.is_answer() => Ok(Kind::Response),
            _ => Err(Malformed::request("neither a request nor a response")),
        };
    };
    let Some(method) = text(method) else {
        return Err(Malformed::request("\"method\" must be a string"));
    };
    match envelope.id {
        Some(id) if is_id(id) => Ok(Kind::Request(method.into())),
        Some(_) => Err(Malformed::request("\"id\" must be a string or an integer")),
        None => Ok(Kind::Notification(method.into())),
    }
}

/// Strings and numbers. Clients should not send fractions, but they are harmless.
fn is_id(id: &RawValue) -> bool {
    let first = id.get().bytes().next();
    first.is_some_and(|byte| matches!(byte, b'"' | b'-' | b'0'..=b'9'))
}

impl Params {
    fn read(line: &Bytes, params: &RawValue) -> Result<Self, Malformed> {
        let names = [
            "name",
            "uri",
            "taskId",
            "arguments",
            "protocolVersion",
            "capabilities",
            "requestId",
            "level",
            "requestState",
            "inputResponses",
            "notifications",
            "_meta",
        ];
        let found = Members::read(line, params, names, "params")?;
        let meta = found.get("_meta").map(|meta| Meta::read(line, meta));
        Ok(Self {
            name: found.text("name").zip(found.raw("name")),
            uri: found.text("uri"),
            task_id: found.text("taskId"),
            arguments: found.raw("arguments"),
            protocol_version: found.text("protocolVersion"),
            capabilities: found.object("capabilities"),
            request_id: found.raw("requestId"),
            level: found.text("level"),
            request_state: found.text("requestState"),
            input_responses: found.raw("inputResponses"),
            notifications: found.raw("notifications"),
            meta: meta.transpose()?.unwrap_or_default(),
        })
    }
}

impl Meta {
    fn read(line: &Bytes, whole: &RawValue) -> Result<Self, Malformed> {
        let names = [
            meta::PROGRESS_TOKEN,
            meta::PROTOCOL_VERSION,
            meta::CLIENT_CAPABILITIES,
            meta::LOG_LEVEL,
            meta::CLIENT_INFO,
        ];
        let found = Members::read(line, whole, names, "params._meta")?;
        let client_name = found.raw(meta::CLIENT_INFO);
        let client_name = client_name.and_then(|info| info.member("name")?.read().ok());
        Ok(Self {
            whole: Some(RawJson::within(line, whole)),
            progress_token: found.raw(meta::PROGRESS_TOKEN),
            protocol_version: found.text(meta::PROTOCOL_VERSION),
            client_capabilities: found.object(meta::CLIENT_CAPABILITIES),
            log_level: found.text(meta::LOG_LEVEL),
            client_name,
        })
    }
}

/// The members of an object without duplicates; `null` counts as absent.
struct Members<'a, const N: usize> {
    line: &'a Bytes,
    names: [&'static str; N],
    found: [Option<&'a RawValue>; N],
}

impl<'a, const N: usize> Members<'a, N> {
    fn read(
        line: &'a Bytes,
        object: &'a RawValue,
        names: [&'static str; N],
        path: &str,
    ) -> Result<Self, Malformed> {
        let malformed = |error| Malformed::new(code::INVALID_PARAMS, format!("{path}: {error}"));
        let found = members(object.get(), names).map_err(malformed)?;
        let found = found.map(|member| member.filter(|raw| raw.get() != "null"));
        Ok(Self { line, names, found })
    }

    fn get(&self, name: &str) -> Option<&'a RawValue> {
        let index = self.names.iter().position(|known| *known == name)?;
        self.found[index]
    }

    fn raw(&self, name: &str) -> Option<RawJson> {
        Some(RawJson::within(self.line, self.get(name)?))
    }

    fn text(&self, name: &str) -> Option<String> {
        self.get(name).and_then(text).map(Cow::into_owned)
    }

    /// Keeps the other members if a number fits no Rust type.
    fn object(&self, name: &str) -> Option<Map<String, Value>> {
        match self.raw(name)?.approximate() {
            Value::Object(members) => Some(members),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<ClientMessage, Malformed> {
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
        assert_eq!(
            kind(r#"{"jsonrpc":"2.0","id":0,"result":null}"#),
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
            r#"{"jsonrpc":"2.0","id":1,"method":7}"#,
            r#"{"jsonrpc":"2.0","id":1,"error":null}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"a","method":"b"}"#,
        ] {
            assert_eq!(code(bad), -32600, "{bad}");
        }
        let twice =
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a","name":"b"}}"#;
        assert_eq!(code(twice), -32602);
        let list = r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":["a"]}"#;
        assert_eq!(code(list), -32602);
    }
}
