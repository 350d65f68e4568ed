//! Who is calling, as far as the bridge can prove it.

use std::{fmt, net::IpAddr};

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
}

/// A user's own token for Open WebUI. It lives as long as the request that brought it: it is never
/// stored, logged or handed to a child.
#[derive(Clone, PartialEq, Eq)]
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
#[derive(Debug, Clone)]
pub struct Caller {
    /// Who owns what this request makes.
    pub principal: Principal,
    /// Beside the id.
    #[allow(
        dead_code,
        reason = "children get it only where a placeholder asks: not built yet"
    )]
    pub user: UserInfo,
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
}
