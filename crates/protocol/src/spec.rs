//! Terms of the MCP specification: revisions and their two eras, methods, headers, keys of `_meta`,
//! error codes, and the description of a tool.

use serde_json::{Map, Value};

use super::RawJson;

/// Protocol revisions.
pub mod revision {
    /// The revision without sessions: each request carries its own metadata.
    pub const MODERN: &str = "2026-07-28";
    /// Revisions with sessions, newest first.
    pub const LEGACY: &[&str] = &[LATEST_LEGACY, "2025-06-18", "2025-03-26", "2024-11-05"];
    /// The newest revision with sessions.
    pub const LATEST_LEGACY: &str = "2025-11-25";
}

/// The form of the protocol, modern or legacy, that a message uses.
///
/// MCP 2026-07-28 calls revisions "that convey version, identity, and capabilities as per-request
/// metadata" *modern*, and those "that establish a session with an `initialize` handshake"
/// *legacy*. About a server that supports both it says (basic/versioning, "Backward Compatibility
/// with Initialization-Based Versions"):
///
/// > A dual-era **server** selects its behavior from how the client opens:
/// >
/// > - A request carrying modern per-request `_meta` is served statelessly according to this revision.
/// > - An `initialize` request selects legacy semantics, scoped to the stdio process (stdio) or the session
/// >   (HTTP), as specified by the negotiated legacy protocol version.
pub mod era {
    use super::revision::{LEGACY, MODERN};

    /// The form of the protocol that a conversation uses.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    pub enum Era {
        /// 2024-11-05 to 2025-11-25: `initialize`, one conversation per process.
        Legacy,
        /// 2026-07-28: each request carries its own metadata, without a session.
        Modern,
    }

    /// The properties of an HTTP message that determine its era.
    #[derive(Debug, Clone, Copy)]
    pub struct Signs<'a> {
        /// The value of `MCP-Protocol-Version`. Legacy clients send it after `initialize`, with the
        /// negotiated revision (2025-06-18, basic/transports, "Protocol Version Header").
        pub version: Option<&'a str>,
        /// The message contains its revision in `_meta`.
        pub names_version: bool,
        /// The message has a session id.
        pub in_session: bool,
        /// It is an `initialize` request.
        pub initializes: bool,
    }

    impl Era {
        /// The era of a client's message.
        ///
        /// `_meta` decides. A modern client that omits it is recognised by its header, so that the
        /// error names the missing member; an unknown version belongs to the era of its session.
        pub fn detect(signs: &Signs<'_>) -> Self {
            if signs.names_version {
                return Self::Modern;
            }
            let by_header = signs.version.is_some_and(|version| {
                version == MODERN || !signs.in_session && !LEGACY.contains(&version)
            });
            if by_header && !signs.initializes {
                Self::Modern
            } else {
                Self::Legacy
            }
        }
    }
}

/// Methods of requests and notifications.
pub mod method {
    /// Opens a session.
    pub const INITIALIZE: &str = "initialize";
    /// Confirms that the client has received the response to [`INITIALIZE`].
    pub const INITIALIZED: &str = "notifications/initialized";
    /// Requests the server's identity and capabilities (MCP 2026-07-28).
    pub const DISCOVER: &str = "server/discover";
    /// Checks that the peer responds.
    pub const PING: &str = "ping";
    /// Sets the lowest level of log messages.
    pub const SET_LEVEL: &str = "logging/setLevel";
    /// Lists tools, page by page.
    pub const TOOLS_LIST: &str = "tools/list";
    /// Calls a tool.
    pub const TOOLS_CALL: &str = "tools/call";
    /// Lists prompts, page by page.
    pub const PROMPTS_LIST: &str = "prompts/list";
    /// Returns a prompt with its arguments filled in.
    pub const PROMPTS_GET: &str = "prompts/get";
    /// Lists resources, page by page.
    pub const RESOURCES_LIST: &str = "resources/list";
    /// Lists resource templates, page by page.
    pub const RESOURCES_TEMPLATES_LIST: &str = "resources/templates/list";
    /// Reads a resource.
    pub const RESOURCES_READ: &str = "resources/read";
    /// Subscribes to notifications about one resource.
    pub const RESOURCES_SUBSCRIBE: &str = "resources/subscribe";
    /// Ends [`RESOURCES_SUBSCRIBE`].
    pub const RESOURCES_UNSUBSCRIBE: &str = "resources/unsubscribe";
    /// Opens a stream of notifications (MCP 2026-07-28).
    pub const LISTEN: &str = "subscriptions/listen";
    /// The first message of a server in response to [`LISTEN`].
    pub const ACKNOWLEDGED: &str = "notifications/subscriptions/acknowledged";
    /// Requests completions of an argument value.
    pub const COMPLETE: &str = "completion/complete";
    /// Asks the user for input.
    pub const ELICITATION_CREATE: &str = "elicitation/create";
    /// Asks the client's model for a completion.
    pub const SAMPLING_CREATE_MESSAGE: &str = "sampling/createMessage";
    /// Asks for the client's root folders.
    pub const ROOTS_LIST: &str = "roots/list";
    /// Cancels a request.
    pub const CANCELLED: &str = "notifications/cancelled";
    /// The progress of a request.
    pub const PROGRESS: &str = "notifications/progress";
    /// A log message.
    pub const MESSAGE: &str = "notifications/message";
    /// The result of [`TOOLS_LIST`] has changed.
    pub const TOOLS_CHANGED: &str = "notifications/tools/list_changed";
    /// The result of [`PROMPTS_LIST`] has changed.
    pub const PROMPTS_CHANGED: &str = "notifications/prompts/list_changed";
    /// The result of [`RESOURCES_LIST`] has changed.
    pub const RESOURCES_CHANGED: &str = "notifications/resources/list_changed";
    /// A resource has changed.
    pub const RESOURCE_UPDATED: &str = "notifications/resources/updated";
    /// Requests the state of a task.
    pub const TASKS_GET: &str = "tasks/get";
    /// Sends input to a task.
    pub const TASKS_UPDATE: &str = "tasks/update";
    /// Cancels a task.
    pub const TASKS_CANCEL: &str = "tasks/cancel";
    /// Methods that [`MODERN`](super::revision::MODERN) has removed.
    pub const REMOVED: &[&str] = &[
        INITIALIZE,
        SET_LEVEL,
        PING,
        RESOURCES_SUBSCRIBE,
        RESOURCES_UNSUBSCRIBE,
    ];
    /// The levels for [`SET_LEVEL`].
    pub const LOG_LEVELS: &[&str] = &[
        "debug",
        "info",
        "notice",
        "warning",
        "error",
        "critical",
        "alert",
        "emergency",
    ];
}

/// Headers of Streamable HTTP, in lower case as HTTP libraries write them.
pub mod header_name {
    /// The protocol revision of the message.
    pub const PROTOCOL_VERSION: &str = "mcp-protocol-version";
    /// The session id.
    pub const SESSION_ID: &str = "mcp-session-id";
    /// The method of the message (MCP 2026-07-28).
    pub const METHOD: &str = "mcp-method";
    /// The tool, prompt, resource or task that the message names (MCP 2026-07-28).
    pub const NAME: &str = "mcp-name";
    /// The prefix of headers for arguments that a tool's schema marks (MCP 2026-07-28).
    pub const PARAM_PREFIX: &str = "mcp-param-";
}

/// Keys of `_meta`.
pub mod meta {
    /// The prefix of the protocol's own keys.
    pub const RESERVED_PREFIX: &str = "io.modelcontextprotocol/";
    /// The token that identifies a request's progress notifications.
    pub const PROGRESS_TOKEN: &str = "progressToken";
    /// The revision of the request (MCP 2026-07-28).
    pub const PROTOCOL_VERSION: &str = "io.modelcontextprotocol/protocolVersion";
    /// The client's capabilities (MCP 2026-07-28).
    pub const CLIENT_CAPABILITIES: &str = "io.modelcontextprotocol/clientCapabilities";
    /// Name and version of the client (MCP 2026-07-28).
    pub const CLIENT_INFO: &str = "io.modelcontextprotocol/clientInfo";
    /// The lowest level of log messages that the client wants (MCP 2026-07-28).
    pub const LOG_LEVEL: &str = "io.modelcontextprotocol/logLevel";
    /// Name and version of the server, in responses (MCP 2026-07-28).
    pub const SERVER_INFO: &str = "io.modelcontextprotocol/serverInfo";
    /// The subscription that a notification belongs to (MCP 2026-07-28).
    pub const SUBSCRIPTION_ID: &str = "io.modelcontextprotocol/subscriptionId";
}

/// JSON-RPC error codes: those of JSON-RPC 2.0 (section 5.1), and those of MCP.
pub mod code {
    /// The message is not JSON.
    pub const PARSE_ERROR: i64 = -32700;
    /// The JSON is not a request, or the request is not allowed here.
    pub const INVALID_REQUEST: i64 = -32600;
    /// The method does not exist.
    pub const METHOD_NOT_FOUND: i64 = -32601;
    /// The params are invalid for the method; also for an unknown tool.
    pub const INVALID_PARAMS: i64 = -32602;
    /// The request failed.
    pub const INTERNAL_ERROR: i64 = -32603;
    /// A server-defined error; JSON-RPC 2.0 reserves -32099 to -32000 for these.
    pub const SERVER_ERROR: i64 = -32000;
    /// The session is unknown; the official SDKs send this code with HTTP status 404.
    pub const SESSION_NOT_FOUND: i64 = -32001;
    /// The resource does not exist (MCP before 2026-07-28, which uses [`INVALID_PARAMS`]).
    pub const RESOURCE_NOT_FOUND: i64 = -32002;
    /// A header does not match the body (MCP 2026-07-28).
    pub const HEADER_MISMATCH: i64 = -32020;
    /// The client lacks a capability that the request needs (MCP 2026-07-28).
    pub const MISSING_CAPABILITY: i64 = -32021;
    /// The revision is not supported; `data.supported` lists those that are (MCP 2026-07-28).
    pub const UNSUPPORTED_VERSION: i64 = -32022;
    /// The request was cancelled (code of the Language Server Protocol).
    pub const CANCELLED: i64 = -32800;
}

// A tool, as described in `tools/list`.

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

#[cfg(test)]
mod tests {
    use super::era::*;

    #[test]
    fn each_way_to_open_has_its_era() {
        use Era::{Legacy, Modern};
        // The header, then the era as the first message, within a session, and as `initialize`.
        let without_meta = [
            (None, [Legacy, Legacy, Legacy]),
            (Some("2024-11-05"), [Legacy, Legacy, Legacy]),
            (Some("2025-11-25"), [Legacy, Legacy, Legacy]),
            (Some("2026-07-28"), [Modern, Modern, Legacy]),
            (Some("1900-01-01"), [Modern, Legacy, Legacy]),
            (Some("2031-01-01"), [Modern, Legacy, Legacy]),
            (Some(""), [Modern, Legacy, Legacy]),
        ];
        for (version, expected) in without_meta {
            let of = |in_session, initializes, names_version| {
                Era::detect(&Signs {
                    version,
                    names_version,
                    in_session,
                    initializes,
                })
            };
            let found = [
                of(false, false, false),
                of(true, false, false),
                of(false, true, false),
            ];
            assert_eq!(found, expected, "{version:?}");
            for (in_session, initializes) in
                [(false, false), (true, false), (false, true), (true, true)]
            {
                assert_eq!(
                    of(in_session, initializes, true),
                    Modern,
                    "{version:?} and _meta"
                );
            }
        }
    }
}
