//! Names from the MCP specification: revisions, methods, headers, keys of `_meta`, error codes.

/// Protocol revisions.
pub mod revision {
    /// The revision without sessions: each request carries its own metadata.
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
