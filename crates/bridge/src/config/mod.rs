//! The configuration: the server file (`mcp-servers.json`) and the settings (flags and environment). Both
//! report all their errors at once, and neither prints secrets.

mod base_url;
mod fault;
mod key_ring;
mod server_file;
mod server_spec;
mod settings;

use std::fmt;

pub use base_url::{BaseUrl, InvalidBaseUrl};
pub use fault::{Fault, Faults};
pub use key_ring::KeyRing;
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

// A text that must never appear in a log, an error or a dump.

/// A secret value. `Debug` shows that there is one, but not its content.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Box<str>);

impl Secret {
    /// Wraps a value.
    pub fn new(text: impl Into<Box<str>>) -> Self {
        Self(text.into())
    }

    /// The value itself: for headers, environments and comparisons, never for output.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[hidden]")
    }
}

// The file that `mcpo-bridge init` writes.

/// A commented `mcp-servers.json` with version-pinned servers: the same text as
/// `mcp-servers.json.example`.
pub fn start_config() -> &'static str {
    include_str!("../../../../mcp-servers.json.example")
}

#[cfg(test)]
mod secret_tests {
    use super::*;

    #[test]
    fn no_output_shows_it() {
        let secret = Secret::new("hunter2");
        assert_eq!(format!("{secret:?}"), "[hidden]");
        assert_eq!(secret.expose(), "hunter2");
    }
}
