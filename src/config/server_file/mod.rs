//! `mcp-servers.json`: the file format of Claude Desktop and mcpo, with keys of our own.

use std::sync::Arc;

use indexmap::IndexMap;

use super::{Faults, ServerSpec, SpecVersion};
use crate::model::ServerName;

/// A file that was read, checked and found good.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// In the order of the file, disabled ones left out.
    pub servers: IndexMap<ServerName, Arc<ServerSpec>>,
    /// One sentence each; no secrets.
    pub warnings: Vec<String>,
    /// Changes with the file's bytes and with the value of any `${…}` in use.
    pub digest: SpecVersion,
}

/// Why there is no configuration. Holds no secrets.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file itself.
    #[error(
        "{path}: cannot be read ({source}); create it with `mcpo-bridge init`, or name another with --config / MCPO_CONFIG_FILE"
    )]
    Unreadable {
        /// As given.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// What is in it.
    #[error(transparent)]
    Faulty(#[from] Faults),
}
