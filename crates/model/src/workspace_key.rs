//! Which workspace a call belongs to.

use std::fmt;

use sha2::{Digest, Sha256};

use super::{Principal, ServerName, ids::hex};

/// Which workspace a call belongs to: a hash, because chat ids are chosen by clients and must
/// never become part of a path.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkspaceKey([u8; 32]);

impl WorkspaceKey {
    /// Of no workspace.
    pub fn nowhere() -> Self {
        Self([0; 32])
    }

    /// One chat of one principal; with `own`, of one server in that chat.
    pub fn chat(principal: &Principal, chat: &str, own: Option<&ServerName>) -> Self {
        Self::derive("chat", principal, chat, own)
    }

    /// One `X-MCPO-Session` of one principal; with `own`, of one server in that session.
    pub fn session(principal: &Principal, session: &str, own: Option<&ServerName>) -> Self {
        Self::derive("session", principal, session, own)
    }

    fn derive(kind: &str, principal: &Principal, id: &str, own: Option<&ServerName>) -> Self {
        let (who, name) = principal.tagged();
        let mut hash = Sha256::new();
        let own = own.map_or("", |server| server.as_str());
        for part in ["mcpo-bridge workspace v1", kind, who, name, id, own] {
            // Lengths keep ("ab","c") and ("a","bc") apart.
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part.as_bytes());
        }
        Self(hash.finalize().into())
    }

    /// Lower-case hex, 64 letters: the name of the binding in the store.
    pub fn to_hex(self) -> String {
        hex(&self.0)
    }
}

impl fmt::Debug for WorkspaceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_hex()[..8])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_separate_principals_chats_and_kinds() {
        let alice = Principal::User("alice".into());
        let bob = Principal::User("bob".into());
        let key = Principal::Key("alice".into());
        let all = [
            WorkspaceKey::chat(&alice, "c", None),
            WorkspaceKey::chat(&bob, "c", None),
            WorkspaceKey::chat(&key, "c", None),
            WorkspaceKey::chat(&Principal::Anonymous, "c", None),
            WorkspaceKey::session(&alice, "c", None),
            WorkspaceKey::chat(&alice, "c", Some(&"excel".parse().unwrap())),
            WorkspaceKey::chat(&Principal::User("alic".into()), "ec", None),
        ];
        let distinct: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!(distinct.len(), all.len());
    }
}
