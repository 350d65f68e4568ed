//! Who is calling, as far as the bridge can prove it.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{ServerName, SessionId};
use crate::hash::{FieldHasher, hex};

/// The owner of sessions and links. Resolved once per request by `identity`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Principal {
    /// A user named by a verified token, or by plain headers from a trusted caller.
    User(Box<str>),
    /// The holder of a named API key, where no user is known.
    Key(Box<str>),
    /// An unknown caller. May only use session ids that the bridge created for it.
    Anonymous,
}

impl Principal {
    /// A kind and a name, for hashing and for logs.
    pub fn tagged(&self) -> (&'static str, &str) {
        match self {
            Self::User(id) => ("user", id),
            Self::Key(name) => ("key", name),
            Self::Anonymous => ("anonymous", ""),
        }
    }
}

/// What user headers or the token said beside the id. Reaches children only where the config asks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserInfo {
    /// Display name, percent-decoded.
    pub name: Option<Box<str>>,
    /// Mail address.
    pub email: Option<Box<str>>,
    /// Open WebUI's role: `admin`, `user`, `pending`.
    pub role: Option<Box<str>>,
    /// Names or ids of the user's groups.
    pub groups: Vec<Box<str>>,
}

/// A user's own token for Open WebUI. It lives as long as the request that brought it: it is never
/// stored, logged or passed to a child. It is written only into the envelope in which a request goes on
/// to the replica that holds the chat.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UserToken(Box<str>);

impl UserToken {
    /// Takes the credential of an `Authorization` header.
    pub fn new(text: &str) -> Self {
        Self(text.into())
    }

    /// For the `Authorization` of a request to Open WebUI, and nothing else.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for UserToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[hidden]")
    }
}

/// Everything known of the sender of one request.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Caller {
    /// Who owns what this request makes.
    pub principal: Principal,
    /// Beside the id.
    pub user: UserInfo,
    /// The caller has a key, or a trusted address: its user headers are believed.
    pub trusted: bool,
    /// The chat, from a header of a caller who may name one; empty headers are absent.
    pub chat: Option<Box<str>>,
    /// The message that is being answered, under the same rule as the chat.
    pub message: Option<Box<str>>,
    /// What acts for the user at Open WebUI, where the connection sends it and it was verified.
    pub token: Option<UserToken>,
    /// `X-MCPO-Session` as sent.
    pub session: Option<Box<str>>,
    /// The TCP peer, for the audit log.
    pub address: IpAddr,
    /// How the request came here, where another replica sent it on.
    #[serde(skip)]
    pub forwarded: Option<(ForwardReason, Option<Arc<RemoteSession>>)>,
}

impl Caller {
    /// By what the request came here from another replica.
    pub fn forward_reason(&self) -> Option<ForwardReason> {
        self.forwarded.as_ref().map(|(reason, _)| *reason)
    }

    /// The protocol session of another replica's that came with the request.
    pub fn remote_session(&self) -> Option<&Arc<RemoteSession>> {
        self.forwarded.as_ref()?.1.as_ref()
    }
}

/// By what a request belongs to another replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ForwardReason {
    /// It made the protocol session, or keeps the call that waits.
    Session,
    /// It holds the chat's lease.
    Lease,
}

/// A protocol session that another replica made, as far as it is needed where the child is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RemoteSession {
    /// The secret part of its id.
    pub id: SessionId,
    /// With which server; none for the endpoint of all servers.
    pub server: Option<ServerName>,
    /// The revision that was agreed on.
    pub version: Box<str>,
    /// What the client can answer.
    pub capabilities: Map<String, Value>,
    /// The least level of log messages that it wants.
    pub log_level: Box<str>,
    /// The message that each of its children gets first.
    pub greeting: Option<Box<str>>,
}

impl Caller {
    /// A caller of whom nothing is known.
    pub fn nobody(address: IpAddr) -> Self {
        Self {
            principal: Principal::Anonymous,
            user: UserInfo::default(),
            trusted: false,
            chat: None,
            message: None,
            token: None,
            session: None,
            address: address.to_canonical(),
            forwarded: None,
        }
    }
}

// The tenant whose share of the machine something counts against.

/// Who has a share of what all callers use together. Cheap to clone.
///
/// That is a user, in all chats. Where no user is known, all callers with one key are one tenant,
/// and of those without a key all who come from one address, or from one IPv6 network of 64 bits:
/// each of these may be many people, and gets more of what only orders side by side ([`Self::is_user`]).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Tenant(Arc<Who>);

#[derive(Debug, PartialEq, Eq, Hash)]
enum Who {
    User(Box<str>),
    Key(Box<str>),
    Address(IpAddr),
    Bridge,
}

impl Tenant {
    /// Of one request's sender.
    pub fn from_caller(caller: &Caller) -> Self {
        Self(Arc::new(match &caller.principal {
            Principal::User(id) => Who::User(id.clone()),
            Principal::Key(name) => Who::Key(name.clone()),
            Principal::Anonymous => Who::Address(network(caller.address)),
        }))
    }

    /// What the bridge does by itself.
    pub fn bridge() -> Self {
        Self(Arc::new(Who::Bridge))
    }

    /// Whether it is one person.
    pub fn is_user(&self) -> bool {
        matches!(*self.0, Who::User(_))
    }
}

/// One host often has all addresses of a network of 64 bits.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let prefix = address.to_bits() & !u128::from(u64::MAX);
            IpAddr::V6(Ipv6Addr::from_bits(prefix))
        }
        address @ IpAddr::V4(_) => address,
    }
}

// Which workspace a call belongs to.

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
        let mut hash = FieldHasher::new("mcpo-bridge workspace v1");
        let own = own.map_or("", |server| server.as_str());
        for part in [kind, who, name, id, own] {
            hash.text(part);
        }
        Self(hash.finish())
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
mod tenant_tests {
    use super::*;

    fn anonymous(address: &str) -> Tenant {
        Tenant::from_caller(&Caller::nobody(address.parse().unwrap()))
    }

    fn known(principal: Principal, chat: &str) -> Tenant {
        Tenant::from_caller(&Caller {
            principal,
            chat: Some(chat.into()),
            ..Caller::nobody([127, 0, 0, 1].into())
        })
    }

    #[test]
    fn a_user_is_one_in_all_chats_and_not_the_key_of_that_name() {
        let alice = known(Principal::User("alice".into()), "c1");
        assert_eq!(alice, known(Principal::User("alice".into()), "c2"));
        assert_ne!(alice, known(Principal::User("bob".into()), "c1"));
        assert_ne!(alice, known(Principal::Key("alice".into()), "c1"));
        assert!(alice.is_user());
    }

    #[test]
    fn callers_without_a_name_are_told_apart_by_their_network() {
        assert_eq!(anonymous("192.0.2.1"), anonymous("::ffff:192.0.2.1"));
        assert_ne!(anonymous("192.0.2.1"), anonymous("192.0.2.2"));
        assert_eq!(anonymous("2001:db8::1"), anonymous("2001:db8::f:2"));
        assert_ne!(anonymous("2001:db8::1"), anonymous("2001:db8:0:1::1"));
        assert!(!anonymous("192.0.2.1").is_user());
    }
}

#[cfg(test)]
mod workspace_key_tests {
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
