//! A request of a client of either era at an MCP endpoint.

use std::sync::Arc;

use axum::http::{HeaderMap, HeaderName, request::Parts};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use bridge_model::Caller;
use bridge_process::Profile;
use bridge_protocol::{
    ClientMessage, Kind, RawJson,
    era::Era,
    header_name, meta, method,
    revision::{LEGACY, MODERN},
};
use bridge_state::InstanceId;
use bytes::Bytes;
use parking_lot::Mutex;
use serde_json::{Number, Value, json};
use tokio::time::Instant;

use super::{Endpoint, RpcError, aggregate::UriMapping, session::McpSession};
use crate::{
    call::{Ask, Call, PendingInput, Relayed},
    catalog::{Knowledge, Offer},
    error_table::ErrorKind,
    identity::{NoServer, usable},
    replicas::{Exit, Forward, Forwarding, Located, Payload},
    session::{OpenWorkspace, WorkspaceAddress},
    telemetry::RequestId,
};

/// A request at the endpoint of one server, or at that of all servers.
pub struct McpRequest<'a> {
    /// The MCP endpoints.
    pub endpoint: &'a Arc<Endpoint>,
    /// Its authenticated sender.
    pub caller: &'a Caller,
    /// The head of the HTTP request.
    pub parts: &'a Parts,
    /// Path and query, unchanged.
    pub target: &'a str,
    /// The body, unchanged.
    pub body: Bytes,
    /// The request id for logs.
    pub id: &'a RequestId,
}

/// The servers of a request.
pub enum Scope {
    /// One server, with its offer.
    One(Arc<Offer>),
    /// All servers that the caller may see.
    All,
}

/// A request to one server.
pub struct ServerRequest<'a> {
    /// The request.
    pub request: &'a McpRequest<'a>,
    /// The server, with its offer.
    pub offer: Arc<Offer>,
    /// The protocol session, if the client has one.
    pub session: Option<&'a Arc<McpSession>>,
    /// The mapping of its resources' URIs, if the client gets other URIs than the server's.
    pub uris: Option<UriMapping>,
}

/// A workspace that was opened here.
pub struct Entered {
    /// The address of the call's workspace.
    pub address: WorkspaceAddress,
    /// The workspace, if the call has one of its own.
    pub workspace: Option<OpenWorkspace>,
}

/// Why the handling of a request ends early.
pub type McpExit = Exit<RpcError>;

impl McpRequest<'_> {
    /// The request for another replica.
    pub fn forward(&self) -> Forward {
        let (core, body) = (&self.endpoint.core, Payload::Whole(self.body.clone()));
        Forward {
            target: self.target.to_owned(),
            ..core.forward(self.parts, self.id, self.caller, body)
        }
    }

    /// The request, to be forwarded to its replica.
    pub fn forwarding(&self) -> Forwarding<'_, impl Fn() -> Option<Forward>> {
        let replicas = &self.endpoint.core.replicas;
        replicas.forwarding(self.caller, || Some(self.forward()))
    }

    /// Forwards the request to the replica that created or stores what it refers to; `unknown` if that replica
    /// has ended.
    pub async fn forward_home(&self, home: InstanceId, unknown: impl Fn() -> RpcError) -> McpExit {
        let mut forwarding = self.forwarding();
        while let Some(elsewhere) = self.endpoint.core.replicas.home(home).await {
            if let Err(exit) = forwarding.to(&elsewhere).await {
                return exit;
            }
        }
        unknown().into()
    }
}

/// The offer of a server for this caller. Waits for it up to the limit for callers. If this replica does not
/// know it, another one may.
pub async fn locate_offer(
    endpoint: &Endpoint,
    server: &str,
    caller: &Caller,
) -> Result<Located<Arc<Offer>>, RpcError> {
    let unknown = || NoServer::Unknown(server.to_owned());
    let found = endpoint.core.directory.server_for(server, caller);
    let (name, _) = found.ok_or_else(unknown)?;
    match endpoint
        .core
        .catalog
        .offer(&name)
        .await
        .ok_or_else(unknown)?
    {
        Knowledge::Ready(offer) => Ok(Ok(offer)),
        Knowledge::Learning => {
            let other = endpoint.core.replicas.anyone_for(caller);
            Ok(Err(
                other.ok_or_else(|| NoServer::Starting(server.to_owned()))?
            ))
        }
        Knowledge::Failed { brief, .. } => {
            Err(NoServer::Failed(server.to_owned(), brief.to_string()).into())
        }
    }
}

impl ServerRequest<'_> {
    /// The address of this caller's workspace, as at the OpenAPI endpoint; an error if the caller may only
    /// read the server's offer.
    pub fn address(&self) -> Result<WorkspaceAddress, RpcError> {
        let (endpoint, caller) = (self.request.endpoint, self.request.caller);
        let server = self.offer.spec.name.as_str();
        usable(&endpoint.core.directory, server, caller)?;
        WorkspaceAddress::for_caller(caller, &self.offer.spec)
            .ok_or_else(|| RpcError::new(ErrorKind::UNKNOWN_SESSION, "session not found"))
    }

    /// Whether the client is Open WebUI: by the headers that it sends with every call in a chat, or by the
    /// client's name.
    pub fn is_openwebui(&self, client_name: Option<&str>) -> bool {
        let headers = &self.request.parts.headers;
        let names = &self.request.endpoint.core.settings.access.headers;
        let sends = |name: &HeaderName| headers.get(name).is_some_and(|value| !value.is_empty());
        let letters = client_name.unwrap_or_default().chars();
        let letters = letters.filter(char::is_ascii_alphanumeric);
        let letters: String = letters.map(|c| c.to_ascii_lowercase()).collect();
        sends(&names.chat_id) || sends(&names.message_id) || letters.starts_with("openwebui")
    }

    /// A call that relays a request to the child at this address. It has no sink for the child's other
    /// messages, and cannot wait for its client.
    pub fn call(&self, relayed: Relayed, entered: Entered, profile: Profile) -> Box<Call> {
        let request = self.request;
        let identity = &request.endpoint.core.identity;
        Box::new(Call {
            caller: request.caller.clone(),
            spec: self.offer.spec.clone(),
            address: entered.address,
            opened: Mutex::new(entered.workspace),
            ask: Ask::Relay(relayed),
            profile,
            sink: None,
            on_child: None,
            pending_input: PendingInput::default(),
            incoming: Mutex::default(),
            forwarded: identity.forwarded(&self.offer.spec, &request.parts.headers, request.caller),
            request_id: request.id.clone(),
            received: Instant::now(),
        })
    }
}

/// The request for the child. Only tools that the config offers can be called.
pub fn relayed(offer: &Offer, message: &ClientMessage, era: Era) -> Result<Relayed, RpcError> {
    let Kind::Request(method) = &message.kind else {
        return Err(RpcError::invalid("not a request"));
    };
    let (mut tool, mut name_text) = (None, None);
    if &**method == method::TOOLS_CALL {
        let Some((name, lies)) = &message.params.name else {
            let text = "params.name (the tool's name) is missing";
            return Err(RpcError::new(ErrorKind::BAD_ARGUMENTS, text));
        };
        if !offer.may_call(name) {
            let text = format!("Unknown tool: {name}");
            return Err(RpcError::new(ErrorKind::UNKNOWN_TOOL, text));
        }
        (tool, name_text) = (Some(name.as_str().into()), Some(lies.clone()));
    }
    Ok(Relayed {
        line: message.line.clone(),
        id: message.answer_id(),
        token: message.params.meta.progress_token.clone(),
        era,
        method: method.clone(),
        tool,
        name: name_text,
        arguments: message.params.arguments.clone(),
        meta: message.params.meta.whole.clone(),
    })
}

// The headers of 2026-07-28 must match the body, so that no proxy routes by a value that differs from
// the body's.

/// Methods that require `Mcp-Name`.
const NAMED: &[&str] = &[
    method::TOOLS_CALL,
    method::RESOURCES_READ,
    method::PROMPTS_GET,
];

/// Checks the headers against the message. `schema` is that of the called tool's arguments.
pub fn check(
    headers: &HeaderMap,
    message: &ClientMessage,
    method: &str,
    schema: Option<&Value>,
) -> Result<(), RpcError> {
    check_version(headers, message)?;
    same(headers, header_name::METHOD, method)?;
    if NAMED.contains(&method) {
        let params = &message.params;
        let name = params.name.as_ref().map(|(name, _)| name);
        let Some(name) = name.or(params.uri.as_ref()) else {
            return Err(RpcError::params("params.name or params.uri is missing"));
        };
        same(headers, header_name::NAME, name)?;
    }
    match (schema, &message.params.arguments) {
        (Some(schema), Some(arguments)) => check_level(headers, schema, arguments),
        _ => Ok(()),
    }
}

fn check_version(headers: &HeaderMap, message: &ClientMessage) -> Result<(), RpcError> {
    let Some(version) = one(headers, header_name::PROTOCOL_VERSION)? else {
        return Err(RpcError::headers(
            "the header MCP-Protocol-Version is missing",
        ));
    };
    let Some(said) = &message.params.meta.protocol_version else {
        if version != MODERN {
            // The client may be of either era.
            let all = [&[MODERN], LEGACY].concat();
            return Err(unsupported(&version, &all));
        }
        return Err(missing(meta::PROTOCOL_VERSION));
    };
    if *said != version {
        return Err(RpcError::headers(&format!(
            "MCP-Protocol-Version is '{version}', but the body contains '{said}'"
        )));
    }
    if version != MODERN {
        return Err(unsupported(&version, &[MODERN]));
    }
    if message.params.meta.client_capabilities.is_none() {
        return Err(missing(meta::CLIENT_CAPABILITIES));
    }
    Ok(())
}

fn missing(key: &str) -> RpcError {
    RpcError::params(&format!("params._meta[{key:?}] is missing"))
}

pub(super) fn unsupported(version: &str, supported: &[&str]) -> RpcError {
    let text = "Unsupported protocol version";
    let error = RpcError::new(ErrorKind::UNSUPPORTED_VERSION, text);
    error.with(json!({"supported": supported, "requested": version}))
}

fn one(headers: &HeaderMap, name: &str) -> Result<Option<String>, RpcError> {
    let mut all = headers.get_all(name).iter();
    let Some(first) = all.next() else {
        return Ok(None);
    };
    if all.next().is_some() {
        return Err(RpcError::headers(&format!(
            "the header {name} was sent more than once"
        )));
    }
    match first.to_str() {
        Ok(text) => Ok(Some(text.to_owned())),
        Err(_) => Err(RpcError::headers(&format!(
            "the header {name} is not plain text"
        ))),
    }
}

fn same(headers: &HeaderMap, name: &str, wanted: &str) -> Result<(), RpcError> {
    let Some(sent) = one(headers, name)? else {
        return Err(RpcError::headers(&format!("the header {name} is missing")));
    };
    if decoded(&sent).is_some_and(|sent| sent == wanted) {
        return Ok(());
    }
    Err(RpcError::headers(&format!(
        "the header {name} is '{sent}', but the body contains '{wanted}'"
    )))
}

/// Decodes `=?base64?…?=`, the form of text that a header cannot contain.
fn decoded(value: &str) -> Option<String> {
    let coded = value.strip_prefix("=?base64?");
    match coded.and_then(|rest| rest.strip_suffix("?=")) {
        Some(coded) => String::from_utf8(BASE64_STANDARD.decode(coded).ok()?).ok(),
        None => Some(value.to_owned()),
    }
}

/// Checks that arguments marked with `x-mcp-header` in the tool's schema are also in a header.
fn check_level(headers: &HeaderMap, schema: &Value, arguments: &RawJson) -> Result<(), RpcError> {
    // The schema limits the recursion, not the caller.
    let Some(properties) = schema["properties"].as_object() else {
        return Ok(());
    };
    for member in arguments.members().unwrap_or_default() {
        let name: String = member.name.read().unwrap_or_default();
        let Some(property) = properties.get(&name) else {
            continue;
        };
        if let Some(header) = property["x-mcp-header"].as_str() {
            let header = format!("mcp-param-{}", header.to_ascii_lowercase());
            check_value(headers, &header, &member.value)?;
        }
        check_level(headers, property, &member.value)?;
    }
    Ok(())
}

fn check_value(headers: &HeaderMap, header: &str, value: &RawJson) -> Result<(), RpcError> {
    if matches!(value.as_bytes().first(), Some(b'{' | b'[')) {
        return Ok(());
    }
    match value.read() {
        Ok(Value::String(text)) => same(headers, header, &text),
        Ok(Value::Number(number)) => same_number(headers, header, &number),
        Ok(Value::Bool(flag)) => same(headers, header, &flag.to_string()),
        Ok(Value::Null | Value::Array(_) | Value::Object(_)) => Ok(()),
        Err(_) => Err(RpcError::headers(&format!(
            "the argument of the header {header} is not a valid header value"
        ))),
    }
}

fn same_number(headers: &HeaderMap, name: &str, wanted: &Number) -> Result<(), RpcError> {
    let sent = one(headers, name)?.and_then(|sent| decoded(&sent));
    let sent = sent.and_then(|sent| sent.trim().parse::<f64>().ok());
    if sent.is_some() && sent == wanted.as_f64() {
        return Ok(());
    }
    Err(RpcError::headers(&format!(
        "the header {name} is missing or not {wanted}"
    )))
}

#[cfg(test)]
mod headers_tests {
    use super::*;

    #[test]
    fn coded_values_are_read() {
        assert_eq!(
            decoded("=?base64?SGVsbG8sIOS4lueVjA==?=").unwrap(),
            "Hello, 世界"
        );
        assert_eq!(decoded("plain").unwrap(), "plain");
        assert_eq!(decoded("=?base64?!?="), None);
    }

    #[test]
    fn an_argument_beside_it_that_no_number_type_holds_hides_no_mismatch() {
        let schema = json!({"properties": {"tenant": {"x-mcp-header": "Tenant"}}});
        let mut headers = HeaderMap::new();
        headers.insert("mcp-param-tenant", "mine".parse().unwrap());
        for (arguments, good) in [
            (r#"{"tenant":"mine","huge":1e400}"#, true),
            (r#"{"tenant":"yours","huge":1e400}"#, false),
            (r#"{"tenant":"mine","tenant":"yours"}"#, false),
            (r#"{"tenant":1e400}"#, false),
            (r#"{"tenant":null}"#, true),
        ] {
            let arguments = RawJson::parse(arguments.into()).unwrap();
            let checked = check_level(&headers, &schema, &arguments);
            assert_eq!(checked.is_ok(), good, "{}", arguments.as_str());
        }
    }
}
