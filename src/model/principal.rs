//! Who is calling, as far as the bridge can prove it.

use std::net::IpAddr;

/// The owner of sessions and links. Resolved once per request by `identity`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
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
#[derive(Debug, Clone, Default, PartialEq, Eq)]
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

/// Everything known of the sender of one request.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Who owns what this request makes.
    pub principal: Principal,
    /// Beside the id.
    pub user: UserInfo,
    /// He has a key, or comes from a trusted address: what he says of a user is believed.
    pub trusted: bool,
    /// The chat, from a header of a caller who may name one; empty headers are absent.
    pub chat: Option<Box<str>>,
    /// `X-MCPO-Session` as sent.
    pub session: Option<Box<str>>,
    /// The TCP peer, for the audit log.
    pub address: IpAddr,
}

impl Caller {
    /// Somebody of whom nothing is known.
    pub fn nobody(address: IpAddr) -> Self {
        Self {
            principal: Principal::Anonymous,
            user: UserInfo::default(),
            trusted: false,
            chat: None,
            session: None,
            address: address.to_canonical(),
        }
    }
}
