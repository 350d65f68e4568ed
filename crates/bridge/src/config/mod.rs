//! What the bridge is told: the server file (`mcp-servers.json`) and the settings (flags and
//! environment). Both report all their faults at once, and neither ever prints a secret.

mod base_url;
mod bounded;
mod fault;
mod key_ring;
mod secret;
mod server_file;
mod server_spec;
mod settings;
mod start_config;

pub use base_url::{BaseUrl, InvalidBaseUrl};
pub use bounded::read_bounded;
pub use fault::{Fault, Faults};
pub use key_ring::KeyRing;
pub use secret::Secret;
pub use server_file::{
    ConfigError, LARGEST_FILE, LINK_FIELD, Loaded, json_schema, load, remedy, servers,
};
pub use server_spec::{
    Allow, BeforeEnd, Embed, FILES_SERVER, HeaderForwarding, Launch, Mode, OWN_PROGRAM,
    RESERVED_NAMES, Remembered, ServerAccess, ServerSpec, SpecVersion, Transport, WorkspaceScope,
};
pub use settings::{
    CommandLine, DEFAULT_MAX_TOTAL_PROCESSES, IdentityHeaders, Journal, Lang, Listen, Log,
    LogFormat, LogLevel, PeerAddress, Settings, SettingsArgs, SingleServer, Tls,
    misspelt_variables,
};
pub use start_config::start_config;
