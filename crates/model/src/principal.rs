//! The caller's identity, as far as the bridge can verify it.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{FieldHasher, ServerName, SessionId, hex};

/// The owner of sessions and links. Resolved once per request by `identity`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Principal {
    /// A user named by a verified token, or by plain headers from a trusted caller.
    User(Box<str>),
    /// The holder of a named API key, if no user is known.
    Key(Box<str>),
    /// An unknown caller. It may only use session ids that the bridge created for it.
    Anonymous,
}

impl Principal {
    /// A kind and a name, for hashes and logs.
    pub fn tagged(&self) -> (&'static str, &str) {
        match self {
            Self::User(id) => ("user", id),
            Self::Key(name) => ("key", name),
            Self::Anonymous => ("anonymous", ""),
        }
    }
}

/// User details from headers or the token, except the id. Children get them only if the
/// configuration requests it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserInfo {
    /// Display name, percent-decoded.
    pub name: Option<Box<str>>,
    /// Email address.
    pub email: Option<Box<str>>,
    /// Open WebUI's role: `admin`, `user`, `pending`.
    pub role: Option<Box<str>>,
    /// Names or ids of the user's groups.
    pub groups: Vec<Box<str>>,
}

/// A user's own token for Open WebUI. It exists only during the request that contained it: it is
/// never stored, logged or passed to a child. It is serialised only when a request is forwarded to
/// the replica that owns the chat.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UserToken(Box<str>);

impl UserToken {
    /// Takes the credential from an `Authorization` header.
    pub fn new(text: &str) -> Self {
        Self(text.into())
    }

    /// Only for the `Authorization` header of a request to Open WebUI.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for UserToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[hidden]")
    }
}

/// All information about the sender of one request.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Caller {
    /// The owner of everything that this request creates.
    pub principal: Principal,
    /// User details except the id.
    pub user: UserInfo,
    /// The caller has a key or a trusted address, so its user headers are trusted.
    pub trusted: bool,
    /// The chat, from a header of a caller that may specify one; empty headers count as absent.
    pub chat: Option<Box<str>>,
    /// The message that is being answered, under the same rule as the chat.
    pub message: Option<Box<str>>,
    /// The user's token for Open WebUI, if the connection sends it and it was verified.
    pub token: Option<UserToken>,
    /// `X-MCPO-Session` as sent.
    pub session: Option<Box<str>>,
    /// The TCP peer, for the audit log.
    pub address: IpAddr,
    /// How another replica forwarded the request, if it did.
    #[serde(skip)]
    pub forwarded: Option<(ForwardReason, Option<Arc<RemoteSession>>)>,
}

impl Caller {
    /// Why another replica forwarded the request, if it did.
    pub fn forward_reason(&self) -> Option<ForwardReason> {
        self.forwarded.as_ref().map(|(reason, _)| *reason)
    }

    /// The protocol session of another replica to which the request belongs.
    pub fn remote_session(&self) -> Option<&Arc<RemoteSession>> {
        self.forwarded.as_ref()?.1.as_ref()
    }
}

/// Why a request belongs to another replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ForwardReason {
    /// The replica created the protocol session, or holds the call that waits for input.
    Session,
    /// The replica holds the chat's lease.
    Lease,
}

/// A protocol session that another replica created: the parts that the child's replica needs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RemoteSession {
    /// The secret part of its id.
    pub id: SessionId,
    /// The server; `None` for the endpoint of all servers.
    pub server: Option<ServerName>,
    /// The negotiated protocol revision.
    pub version: Box<str>,
    /// The client's capabilities.
    pub capabilities: Map<String, Value>,
    /// The lowest level of log messages that the client wants.
    pub log_level: Box<str>,
    /// The first message for each of its children.
    pub greeting: Option<Box<str>>,
}

impl Caller {
    /// A caller without any known identity.
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

// The tenant for fair shares of resources.

/// The unit that gets a fair share of the resources that all callers use. Cheap to clone.
///
/// It is a user, across all chats. If no user is known, all callers with the same key are one tenant,
/// and so are all callers without a key from one address or one IPv6 /64 network. Such a tenant may be
/// many people, so limits of concurrency allow it more ([`Self::is_user`]).
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
    /// The tenant of a request's sender.
    pub fn from_caller(caller: &Caller) -> Self {
        Self(Arc::new(match &caller.principal {
            Principal::User(id) => Who::User(id.clone()),
            Principal::Key(name) => Who::Key(name.clone()),
            Principal::Anonymous => Who::Address(network(caller.address)),
        }))
    }

    /// The bridge's own work.
    pub fn bridge() -> Self {
        Self(Arc::new(Who::Bridge))
    }

    /// Whether the tenant is a single user.
    pub fn is_user(&self) -> bool {
        matches!(*self.0, Who::User(_))
    }
}

/// One host often has all addresses of an IPv6 /64 network.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let prefix = address.to_bits() & !u128::from(u64::MAX);
            IpAddr::V6(Ipv6Addr::from_bits(prefix))
        }
        address @ IpAddr::V4(_) => address,
    }
}

// The key of a workspace.

/// Identifies the workspace of a call. It is a hash, because clients choose chat ids, which must
/// never become part of a path.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkspaceKey([u8; 32]);

impl WorkspaceKey {
    /// The key of no workspace.
    pub fn nowhere() -> Self {
        Self([0; 32])
    }

    /// One chat of one principal; with `own`, for one server in that chat.
    pub fn chat(principal: &Principal, chat: &str, own: Option<&ServerName>) -> Self {
        Self::derive("chat", principal, chat, own)
    }

    /// One `X-MCPO-Session` of one principal; with `own`, for one server in that session.
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

    /// Lower-case hex, 64 characters: the name of the binding in the store.
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
