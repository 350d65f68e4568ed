//! A client of the MCP endpoint, of either era, that returns the messages unchanged.

use std::io::{BufRead, BufReader};

use serde_json::{Value, json};
use ureq::{Body, http};

use super::Client;

/// The newest revision that has sessions.
pub const LEGACY: &str = "2025-11-25";
/// The revision that has none.
pub const MODERN: &str = "2026-07-28";

/// Selects all servers, in place of a server's name.
pub const ALL: &str = "";

/// The two MCP endpoints, which follow the same rules.
#[derive(Clone, Copy, PartialEq)]
pub enum Scope {
    /// `/mcp/{server}`, of one server.
    One,
    /// `/mcp`, of all servers.
    All,
}

impl Scope {
    /// The endpoint's name for [`Mcp`].
    fn endpoint(self, server: &str) -> &str {
        match self {
            Self::One => server,
            Self::All => ALL,
        }
    }

    pub fn path(self, server: &str) -> String {
        path_of(self.endpoint(server))
    }

    /// The name of a server's tool for clients of this endpoint.
    pub fn tool(self, server: &str, tool: &str) -> String {
        match self {
            Self::One => tool.to_owned(),
            Self::All => format!("{server}_{tool}"),
        }
    }

    /// The URI, for clients of this endpoint, of a resource that its server does not list.
    pub fn uri(self, server: &str, uri: &str) -> String {
        match self {
            Self::One => uri.to_owned(),
            Self::All => format!("mcpo:{server}/{uri}"),
        }
    }

    /// A modern client of this endpoint, whose calls are for one server.
    pub fn modern(self, client: Client, server: &str, capabilities: Value) -> Mcp {
        let mut mcp = Mcp::modern(client, self.endpoint(server), capabilities);
        mcp.prefix = self.tool(server, "");
        mcp
    }

    /// The same for a legacy client, initialized.
    #[track_caller]
    pub fn legacy(self, client: Client, server: &str, capabilities: &Value) -> Mcp {
        let mut mcp = Mcp::legacy(client, self.endpoint(server), capabilities);
        mcp.prefix = self.tool(server, "");
        mcp
    }
}

/// Creates two tests of each of these scenarios, one for each [`Scope`].
macro_rules! scenarios {
    ($($name:ident),+ $(,)?) => {
        mod one_server {
            use $crate::support::Scope;
            $(#[test] fn $name() { super::$name(Scope::One); })+
        }
        mod all_servers {
            use $crate::support::Scope;
            $(#[test] fn $name() { super::$name(Scope::All); })+
        }
    };
}
pub(crate) use scenarios;

/// The answer of a user who accepts a child's request for input.
#[allow(clippy::needless_pass_by_value)] // so that a test reads `accepted(json!({…}))`
pub fn accepted(content: Value) -> Value {
    json!({"action": "accept", "content": content})
}

fn path_of(server: &str) -> String {
    if server == ALL {
        "/mcp".to_owned()
    } else {
        format!("/mcp/{server}")
    }
}

/// An MCP client of one server. Legacy after initialization, modern otherwise.
#[derive(Clone)]
pub struct Mcp {
    client: Client,
    path: String,
    /// Prefix of the names of the tools that it calls.
    prefix: String,
    /// `Mcp-Session-Id`, of legacy clients.
    pub session: Option<String>,
    /// The capabilities that a modern client sends with every request.
    capabilities: Value,
}

impl Mcp {
    /// A modern client with these capabilities, of one server or of [`ALL`].
    pub fn modern(client: Client, server: &str, capabilities: Value) -> Self {
        Self {
            client,
            path: path_of(server),
            prefix: String::new(),
            session: None,
            capabilities,
        }
    }

    /// A legacy client with these capabilities, initialized.
    #[track_caller]
    pub fn legacy(client: Client, server: &str, capabilities: &Value) -> Self {
        let mut mcp = Self::modern(client, server, json!({}));
        let params = json!({
            "protocolVersion": LEGACY,
            "capabilities": capabilities,
            "clientInfo": {"name": "test", "version": "1"},
        });
        let hello = json!({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params});
        let reply = mcp.client.post(&mcp.path, hello.to_string());
        assert_eq!(reply.status, 200, "{}", reply.text());
        mcp.session = Some(reply.header("Mcp-Session-Id").to_owned());
        mcp
    }

    /// A client of each era without capabilities.
    #[track_caller]
    pub fn both(client: &Client, server: &str) -> [Self; 2] {
        [
            Self::legacy(client.clone(), server, &json!({})),
            Self::modern(client.clone(), server, json!({})),
        ]
    }

    /// The same client in another protocol session.
    pub fn in_session(&self, session: &str) -> Self {
        let session = Some(session.to_owned());
        Self {
            session,
            ..self.clone()
        }
    }

    /// Sends one message with the headers of the client's era; the response is read as it arrives.
    #[track_caller]
    pub fn send(&self, message: &str) -> Stream {
        let mut headers = vec![("Content-Type", "application/json".to_owned())];
        match &self.session {
            Some(session) => {
                headers.push(("Mcp-Session-Id", session.clone()));
                headers.push(("MCP-Protocol-Version", LEGACY.to_owned()));
            }
            None => headers.extend(modern_headers(message)),
        }
        let headers: Vec<_> = headers
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value.into_bytes()))
            .collect();
        let body = Some(message.as_bytes().to_vec());
        Stream::read(self.client.open("POST", &self.path, &headers, body))
    }

    /// A request with id 1; a modern client's `_meta` is added.
    #[track_caller]
    pub fn request(&self, method: &str, params: Value) -> Stream {
        let params = if self.session.is_some() {
            params
        } else {
            with_envelope(params, &self.capabilities)
        };
        let request = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
        self.send(&request.to_string())
    }

    /// This client's name of a tool.
    pub fn tool(&self, tool: &str) -> String {
        format!("{}{tool}", self.prefix)
    }

    /// A call whose answer may take long.
    #[track_caller]
    #[allow(clippy::needless_pass_by_value)] // so that a call reads `begin("add", json!({…}))`
    pub fn begin(&self, tool: &str, arguments: Value) -> Stream {
        let params = json!({"name": self.tool(tool), "arguments": arguments});
        self.request("tools/call", params)
    }

    /// A call that must succeed; returns its result.
    #[track_caller]
    pub fn call(&self, tool: &str, arguments: Value) -> Value {
        self.begin(tool, arguments).result()
    }

    /// The text of a call's first block.
    #[track_caller]
    pub fn text(&self, tool: &str, arguments: Value) -> String {
        let result = self.call(tool, arguments);
        let text = result["content"][0]["text"].as_str();
        text.unwrap_or_else(|| panic!("no text in {result}"))
            .to_owned()
    }

    /// Sends a notification, which must be accepted.
    #[track_caller]
    #[allow(clippy::needless_pass_by_value)]
    pub fn notify(&self, method: &str, params: Value) {
        let told = json!({"jsonrpc": "2.0", "method": method, "params": params});
        assert_eq!(self.send(&told.to_string()).status, 202, "{told}");
    }

    /// Answers a child's request.
    #[track_caller]
    #[allow(clippy::needless_pass_by_value)]
    pub fn answer(&self, asked: &Value, result: Value) {
        let answer = json!({"jsonrpc": "2.0", "id": asked["id"], "result": result});
        assert_eq!(self.send(&answer.to_string()).status, 202, "{asked}");
    }

    /// Sends a modern client's call again, with one answer to all its questions.
    #[track_caller]
    pub fn retry(&self, tool: &str, arguments: &Value, parked: &Value, answer: &Value) -> Stream {
        assert_eq!(parked["resultType"], "input_required", "{parked}");
        let asked = parked["inputRequests"].as_object().expect("questions");
        let answers = asked.keys().map(|key| (key.clone(), answer.clone()));
        let answers: serde_json::Map<_, _> = answers.collect();
        let params = json!({
            "name": self.tool(tool),
            "arguments": arguments,
            "requestState": parked["requestState"],
            "inputResponses": answers,
        });
        self.request("tools/call", params)
    }

    /// Ends the protocol's session; returns the status.
    pub fn end(&self) -> u16 {
        let session = self.session.as_deref().expect("a session");
        let client = self.client.clone().header("Mcp-Session-Id", session);
        client.request("DELETE", &self.path).status
    }

    /// The stream of messages that belong to no request.
    pub fn listen(&self) -> Stream {
        let session = self.session.as_deref().expect("a session");
        let client = self.client.clone().header("Mcp-Session-Id", session);
        Stream::read(client.open("GET", &self.path, &[], None))
    }

    /// The same stream, resumed after the event with this id.
    pub fn listen_after(&self, id: &str) -> Stream {
        let client = self.client.clone().header("Last-Event-ID", id);
        let again = Self {
            client,
            ..self.clone()
        };
        again.listen()
    }
}

fn modern_headers(message: &str) -> Vec<(&'static str, String)> {
    let mut headers = vec![("MCP-Protocol-Version", MODERN.to_owned())];
    let message = RawRequest::of(message);
    headers.push(("Mcp-Method", message.method));
    headers.extend(message.name.map(|name| ("Mcp-Name", name)));
    headers
}

/// The members that a modern client repeats in headers; the others may be unsupported by `Value`.
struct RawRequest {
    method: String,
    name: Option<String>,
}

impl RawRequest {
    fn of(message: &str) -> Self {
        #[derive(serde::Deserialize)]
        struct Message {
            method: String,
            #[serde(default)]
            params: Params,
        }
        #[derive(serde::Deserialize, Default)]
        struct Params {
            name: Option<String>,
            uri: Option<String>,
        }
        let message: Message = serde_json::from_str(message).expect("a request");
        let Params { name, uri } = message.params;
        Self {
            method: message.method,
            name: name.or(uri),
        }
    }
}

/// `params` with the `_meta` of a modern request merged into its `_meta`.
pub fn with_envelope(mut params: Value, capabilities: &Value) -> Value {
    let meta = &mut params["_meta"];
    meta["io.modelcontextprotocol/protocolVersion"] = MODERN.into();
    meta["io.modelcontextprotocol/clientCapabilities"] = capabilities.clone();
    params
}

/// A response of the MCP endpoint: one message as JSON, or any number as events. Dropping it before
/// its end closes the connection.
pub struct Stream {
    pub status: u16,
    pub headers: http::HeaderMap,
    lines: Box<dyn BufRead + Send>,
    has_events: bool,
    /// Id of the last event, if it had one.
    pub event_id: String,
}

impl Stream {
    fn read(answer: http::Response<Body>) -> Self {
        let (head, body) = answer.into_parts();
        let kind = head.headers.get("Content-Type");
        Self {
            status: head.status.as_u16(),
            has_events: kind.is_some_and(|kind| kind == "text/event-stream"),
            headers: head.headers,
            event_id: String::new(),
            lines: Box::new(BufReader::new(body.into_reader())),
        }
    }

    /// All remaining messages.
    pub fn rest(self) -> Vec<String> {
        self.collect()
    }

    /// The next message, which must arrive.
    #[track_caller]
    pub fn message(&mut self) -> Value {
        let message = self.next().expect("another message");
        serde_json::from_str(&message).unwrap_or_else(|fault| panic!("{fault} in {message}"))
    }

    /// The last message, unchanged.
    #[track_caller]
    pub fn last_line(self) -> String {
        self.last().expect("an answer")
    }

    /// The last message.
    #[track_caller]
    pub fn answer(self) -> Value {
        let line = self.last_line();
        serde_json::from_str(&line).unwrap_or_else(|fault| panic!("{fault} in {line}"))
    }

    /// The result of a request that must succeed.
    #[track_caller]
    pub fn result(self) -> Value {
        let mut answer = self.answer();
        assert!(answer["result"].is_object(), "{answer}");
        answer["result"].take()
    }

    /// The status and the code of a request that must fail.
    #[track_caller]
    pub fn refusal(self) -> (u16, i64) {
        let status = self.status;
        let answer = self.answer();
        let code = answer["error"]["code"].as_i64();
        (
            status,
            code.unwrap_or_else(|| panic!("no error in {answer}")),
        )
    }
}

impl Iterator for Stream {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        loop {
            let mut line = String::new();
            self.lines.read_line(&mut line).expect("the body arrives");
            if line.is_empty() {
                return None;
            }
            if !self.has_events {
                return Some(line);
            }
            if let Some(id) = line.strip_prefix("id: ") {
                id.trim_end().clone_into(&mut self.event_id);
            }
            // One message is one `data` line; comments, names and ids are ignored here.
            if let Some(data) = line.strip_prefix("data: ") {
                return Some(data.trim_end_matches('\n').to_owned());
            }
        }
    }
}
