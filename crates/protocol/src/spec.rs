//! Names that the specification of MCP gives.

/// The revision in which every request is complete in itself.
pub const MODERN: &str = "2026-07-28";
/// Revisions with sessions, newest first.
pub const LEGACY: &[&str] = &["2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05"];
/// Methods of [`LEGACY`] revisions that [`MODERN`] has no more.
pub const REMOVED: &[&str] = &[
    "initialize",
    "logging/setLevel",
    "ping",
    "resources/subscribe",
    "resources/unsubscribe",
];
/// What `logging/setLevel` may ask for.
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
/// The header with a session's id.
pub const SESSION_HEADER: &str = "mcp-session-id";
/// The member of `_meta` that says which subscription a note is for.
pub const SUBSCRIPTION_KEY: &str = "io.modelcontextprotocol/subscriptionId";
