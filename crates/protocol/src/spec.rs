//! Names that the specification of MCP gives: revisions, methods, headers, keys of `_meta`, error codes.

/// Revisions.
pub mod revision {
    /// The revision in which every request is complete in itself.
    pub const MODERN: &str = "2026-07-28";
    /// Revisions with sessions, newest first.
    pub const LEGACY: &[&str] = &[LATEST_LEGACY, "2025-06-18", "2025-03-26", "2024-11-05"];
    /// The newest revision with sessions.
    pub const LATEST_LEGACY: &str = "2025-11-25";
}

/// Methods of requests and notifications.
pub mod method {
    /// Opens a session.
    pub const INITIALIZE: &str = "initialize";
    /// The client has read the answer to [`INITIALIZE`].
    pub const INITIALIZED: &str = "notifications/initialized";
    /// Asks a server what it is (MCP 2026-07-28).
    pub const DISCOVER: &str = "server/discover";
    /// Asks for a sign of life.
    pub const PING: &str = "ping";
    /// Sets the least level of log messages.
    pub const SET_LEVEL: &str = "logging/setLevel";
    /// Lists tools, page by page.
    pub const TOOLS_LIST: &str = "tools/list";
    /// Calls a tool.
    pub const TOOLS_CALL: &str = "tools/call";
    /// Lists prompts, page by page.
    pub const PROMPTS_LIST: &str = "prompts/list";
    /// Gets a prompt with its arguments filled in.
    pub const PROMPTS_GET: &str = "prompts/get";
    /// Lists resources, page by page.
    pub const RESOURCES_LIST: &str = "resources/list";
    /// Lists templates of resources, page by page.
    pub const RESOURCES_TEMPLATES_LIST: &str = "resources/templates/list";
    /// Reads a resource.
    pub const RESOURCES_READ: &str = "resources/read";
    /// Asks for notifications of one resource.
    pub const RESOURCES_SUBSCRIBE: &str = "resources/subscribe";
    /// Ends [`RESOURCES_SUBSCRIBE`].
    pub const RESOURCES_UNSUBSCRIBE: &str = "resources/unsubscribe";
    /// Opens a stream of notifications (MCP 2026-07-28).
    pub const LISTEN: &str = "subscriptions/listen";
    /// What a server sends first to [`LISTEN`].
    pub const ACKNOWLEDGED: &str = "notifications/subscriptions/acknowledged";
    /// Asks how a value may go on.
    pub const COMPLETE: &str = "completion/complete";
    /// Asks the user something.
    pub const ELICITATION_CREATE: &str = "elicitation/create";
    /// Asks the client's model something.
    pub const SAMPLING_CREATE_MESSAGE: &str = "sampling/createMessage";
    /// Asks for the client's folders.
    pub const ROOTS_LIST: &str = "roots/list";
    /// The answer to a request is no longer wanted.
    pub const CANCELLED: &str = "notifications/cancelled";
    /// How far a request is.
    pub const PROGRESS: &str = "notifications/progress";
    /// A log message.
    pub const MESSAGE: &str = "notifications/message";
    /// [`TOOLS_LIST`] would answer something else.
    pub const TOOLS_CHANGED: &str = "notifications/tools/list_changed";
    /// [`PROMPTS_LIST`] would answer something else.
    pub const PROMPTS_CHANGED: &str = "notifications/prompts/list_changed";
    /// [`RESOURCES_LIST`] would answer something else.
    pub const RESOURCES_CHANGED: &str = "notifications/resources/list_changed";
    /// A resource has changed.
    pub const RESOURCE_UPDATED: &str = "notifications/resources/updated";
    /// Asks how far a task is.
    pub const TASKS_GET: &str = "tasks/get";
    /// Sends input to a task.
    pub const TASKS_UPDATE: &str = "tasks/update";
    /// Ends a task.
    pub const TASKS_CANCEL: &str = "tasks/cancel";
    /// Methods that [`MODERN`](super::revision::MODERN) no longer has.
    pub const REMOVED: &[&str] = &[
        INITIALIZE,
        SET_LEVEL,
        PING,
        RESOURCES_SUBSCRIBE,
        RESOURCES_UNSUBSCRIBE,
    ];
    /// What [`SET_LEVEL`] may ask for.
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
    /// The revision of the message.
    pub const PROTOCOL_VERSION: &str = "mcp-protocol-version";
    /// The session's id.
    pub const SESSION_ID: &str = "mcp-session-id";
    /// The message's method (MCP 2026-07-28).
    pub const METHOD: &str = "mcp-method";
    /// The tool, prompt, resource or task that the message names (MCP 2026-07-28).
    pub const NAME: &str = "mcp-name";
    /// The first part of headers with arguments that a tool's schema marks (MCP 2026-07-28).
    pub const PARAM_PREFIX: &str = "mcp-param-";
}

/// Keys of `_meta`.
pub mod meta {
    /// What the keys of the protocol itself begin with.
    pub const RESERVED_PREFIX: &str = "io.modelcontextprotocol/";
    /// What a request's notifications of progress carry.
    pub const PROGRESS_TOKEN: &str = "progressToken";
    /// The revision of the request (MCP 2026-07-28).
    pub const PROTOCOL_VERSION: &str = "io.modelcontextprotocol/protocolVersion";
    /// What the client can do (MCP 2026-07-28).
    pub const CLIENT_CAPABILITIES: &str = "io.modelcontextprotocol/clientCapabilities";
    /// Name and version of the client (MCP 2026-07-28).
    pub const CLIENT_INFO: &str = "io.modelcontextprotocol/clientInfo";
    /// The least level of log messages that the client wants (MCP 2026-07-28).
    pub const LOG_LEVEL: &str = "io.modelcontextprotocol/logLevel";
    /// Name and version of the server, in answers (MCP 2026-07-28).
    pub const SERVER_INFO: &str = "io.modelcontextprotocol/serverInfo";
    /// The subscription that a notification belongs to (MCP 2026-07-28).
    pub const SUBSCRIPTION_ID: &str = "io.modelcontextprotocol/subscriptionId";
}

/// Codes of JSON-RPC errors: those of JSON-RPC 2.0 (section 5.1), and those of MCP.
pub mod code {
    /// The message is no JSON.
    pub const PARSE_ERROR: i64 = -32700;
    /// The JSON is no request, or one that is not allowed here.
    pub const INVALID_REQUEST: i64 = -32600;
    /// There is no such method.
    pub const METHOD_NOT_FOUND: i64 = -32601;
    /// The params are not those of the method; also of a tool that does not exist.
    pub const INVALID_PARAMS: i64 = -32602;
    /// What was asked could not be done.
    pub const INTERNAL_ERROR: i64 = -32603;
    /// Any error of a server's own; JSON-RPC 2.0 reserves -32099 to -32000 for these.
    pub const SERVER_ERROR: i64 = -32000;
    /// The session is unknown: what the official SDKs answer with HTTP status 404.
    pub const SESSION_NOT_FOUND: i64 = -32001;
    /// There is no such resource (MCP before 2026-07-28, which says [`INVALID_PARAMS`]).
    pub const RESOURCE_NOT_FOUND: i64 = -32002;
    /// A header and the body say different things (MCP 2026-07-28).
    pub const HEADER_MISMATCH: i64 = -32020;
    /// The client lacks a capability that the request needs (MCP 2026-07-28).
    pub const MISSING_CAPABILITY: i64 = -32021;
    /// The revision is not spoken here; `data.supported` has those that are (MCP 2026-07-28).
    pub const UNSUPPORTED_VERSION: i64 = -32022;
    /// The request was cancelled (the language server protocol's code).
    pub const CANCELLED: i64 = -32800;
}
