//! The file that `mcpo-bridge init` writes.

/// A commented `mcp-servers.json` with version-pinned servers: the same text as
/// `mcp-servers.json.example`.
pub fn start_config() -> &'static str {
    include_str!("../../../../mcp-servers.json.example")
}
