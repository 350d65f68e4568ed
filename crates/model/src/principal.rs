//! Who is calling, as far as the bridge can prove it.

use std::{fmt, net::IpAddr, sync::Arc};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{ServerName, SessionId};

/// The owner of sessions and links. Resolved once per request by `identity`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Principal {
    /// A user named by a verified token, or by plain headers from a trusted caller.
    User(Box<str>),
    /// The holder of a named API key, where no user is known.
    Key(Box<str>),
    /// Nobody we know. May only use session ids that we minted for him.
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
    /// Names or ids of his groups.
    pub groups: Vec<Box<str>>,
}

/// A user's own token for Open WebUI. It lives as long as the request that brought it: it is never
/// stored, logged or handed to a child. It is written only into the envelope in which a request goes on
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
    /// He has a key, or comes from a trusted address: what he says of a user is believed.
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
    pub forwarded: Option<(Hop, Option<Arc<Guest>>)>,
}

impl Caller {
    /// By what the request came here from another replica.
    pub fn hop(&self) -> Option<Hop> {
        self.forwarded.as_ref().map(|(hop, _)| *hop)
    }

    /// The protocol session of another replica's that came with the request.
    pub fn guest(&self) -> Option<&Arc<Guest>> {
        self.forwarded.as_ref()?.1.as_ref()
    }
}

/// By what a request belongs to another replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hop {
    /// It made the protocol session, or keeps the call that waits.
    Session,
    /// It holds the chat's lease.
    Lease,
}

/// A protocol session that another replica made, as far as it is needed where the child is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Guest {
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
    /// What each of its children is told first.
    pub greeting: Option<Box<str>>,
}

impl Caller {
    /// Somebody of whom nothing is known.
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
