//! Codes of JSON-RPC errors: those of JSON-RPC 2.0 (section 5.1), and those of MCP.

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
