//! The active server file, and which callers may see which of its servers.

use std::sync::Arc;

use bridge_model::{Caller, ServerName};
use parking_lot::RwLock;

use crate::config::{Loaded, ServerAccess};

/// The servers and their access rules.
pub struct Directory {
    config: RwLock<Arc<Loaded>>,
}

impl Directory {
    /// Creates it with this server file.
    pub fn new(config: Loaded) -> Self {
        Self {
            config: RwLock::new(Arc::new(config)),
        }
    }

    /// Activates another server file; returns the previous one.
    pub fn replace(&self, config: Arc<Loaded>) -> Arc<Loaded> {
        let mut current = self.config.write();
        std::mem::replace(&mut *current, config)
    }

    /// The active server file.
    pub fn config(&self) -> Arc<Loaded> {
        self.config.read().clone()
    }

    /// The server of this name and the caller's access to it, if the caller may see it at all.
    /// Every endpoint asks here, and gives the same answer for an invisible server as for one that
    /// does not exist.
    pub fn server_for(&self, name: &str, caller: &Caller) -> Option<(ServerName, ServerAccess)> {
        // The file is not copied, because every call passes here.
        let config = self.config.read();
        let spec = config.servers.get(name)?;
        let access = spec.access(caller);
        (access != ServerAccess::None).then(|| (spec.name.clone(), access))
    }

    /// Whether this caller may at least read every server.
    pub fn shows_all(&self, caller: &Caller) -> bool {
        let config = self.config();
        let mut servers = config.servers.values();
        servers.all(|spec| spec.access(caller) != ServerAccess::None)
    }

    /// The word in the audit log for a caller that got "no such server".
    pub fn refusal_kind(&self, server: &str, kind: &'static str) -> &'static str {
        match kind {
            "unknown_server" if self.config().servers.contains_key(server) => "not_allowed",
            kind => kind,
        }
    }
}
