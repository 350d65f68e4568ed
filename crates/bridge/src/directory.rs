//! The server file in force, and who may see which of its servers.

use std::sync::Arc;

use bridge_model::{Caller, ServerName};
use parking_lot::RwLock;

use crate::config::{Loaded, ServerAccess};

/// Which servers there are.
pub struct Directory {
    config: RwLock<Arc<Loaded>>,
}

impl Directory {
    /// With this server file.
    pub fn new(config: Loaded) -> Self {
        Self {
            config: RwLock::new(Arc::new(config)),
        }
    }

    /// Puts another one in force; returns the one before.
    pub fn replace(&self, config: Arc<Loaded>) -> Arc<Loaded> {
        let mut current = self.config.write();
        std::mem::replace(&mut *current, config)
    }

    /// The server file as it is in force.
    pub fn config(&self) -> Arc<Loaded> {
        self.config.read().clone()
    }

    /// The server of this name and what this caller may do with it, if it is there for him at all:
    /// every endpoint asks here, and gives the same answer for a server that is not there.
    pub fn server_for(&self, name: &str, caller: &Caller) -> Option<(ServerName, ServerAccess)> {
        // Read in place: every call comes here.
        let config = self.config.read();
        let spec = config.servers.get(name)?;
        let access = spec.access(caller);
        (access != ServerAccess::None).then(|| (spec.name.clone(), access))
    }

    /// Whether every server is there for this caller, at least for reading.
    pub fn shows_all(&self, caller: &Caller) -> bool {
        let config = self.config();
        let mut servers = config.servers.values();
        servers.all(|spec| spec.access(caller) != ServerAccess::None)
    }

    /// The word for the audit log where a caller was told that there is no such server.
    pub fn refusal_kind(&self, server: &str, kind: &'static str) -> &'static str {
        match kind {
            "unknown_server" if self.config().servers.contains_key(server) => "not_allowed",
            kind => kind,
        }
    }
}
