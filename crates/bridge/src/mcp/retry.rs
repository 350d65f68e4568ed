//! Which request may go on with a call that waits for its client.

use bridge_model::{Principal, ServerName};
use bridge_protocol::ClientMessage;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// Which request may go on with a parked call: whose it is, and what it asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retry {
    pub(super) principal: Principal,
    server: ServerName,
    request: [u8; 32],
}

impl Retry {
    /// Of a request or of its retry: the same method, name and arguments.
    pub fn of(principal: &Principal, server: &ServerName, message: &ClientMessage) -> Self {
        let params = &message.params;
        let name = params.name.as_ref().map_or("", |(name, _)| name);
        let uri = params.uri.as_deref().unwrap_or_default();
        // By value: a client may write the same arguments in other bytes. What no type of ours
        // holds is compared by its bytes.
        let arguments = params.arguments.as_ref().map(|raw| {
            let value = raw.read().map(|value: Value| value.to_string());
            value.unwrap_or_else(|_| raw.as_str().to_owned())
        });
        let mut hash = Sha256::new();
        for part in [
            &format!("{:?}", message.kind),
            name,
            uri,
            &arguments.unwrap_or_default(),
        ] {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part.as_bytes());
        }
        Self {
            principal: principal.clone(),
            server: server.clone(),
            request: hash.finalize().into(),
        }
    }
}
