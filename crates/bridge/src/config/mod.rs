//! The configuration: the server file (`mcp-servers.json`) and the settings (flags and environment). Both
//! report all their errors at once, and neither prints secrets.

mod fault;
mod server_file;
mod server_spec;
mod settings;
mod values;

pub use fault::{Fault, Faults};
pub use server_file::{
    ConfigError, Directory, LARGEST_FILE, LINK_FIELD, Loaded, json_schema, load, read_bounded,
    remedy, servers,
};
pub use server_spec::{
    Allow, BeforeEnd, Embed, FILES_SERVER, HeaderForwarding, Launch, Mode, OWN_PROGRAM,
    RESERVED_NAMES, Remembered, ServerAccess, ServerSpec, SpecVersion, Transport, WorkspaceScope,
};
pub use settings::{
    CommandLine, DEFAULT_MAX_TOTAL_PROCESSES, IdentityHeaders, Lang, Limits, Listen, Log,
    LogFormat, LogLevel, PeerAddress, Settings, SettingsArgs, SingleServer, Tls,
    misspelt_variables,
};
pub use values::{BaseUrl, InvalidBaseUrl, KeyRing, Secret};

// The file that `mcpo-bridge init` writes.

/// A commented `mcp-servers.json` with version-pinned servers: the same text as
/// `mcp-servers.json.example`.
pub fn start_config() -> &'static str {
    include_str!("../../../../mcp-servers.json.example")
}
