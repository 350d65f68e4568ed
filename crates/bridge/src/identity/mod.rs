//! Identifies callers. Every endpoint asks here first, so that all endpoints trust the same things.
//!
//! One principal per request: the user of a verified token (Open WebUI's signed header, or the
//! user's own, which Open WebUI is asked about), else of plain headers from a trusted caller, else
//! the key, else anonymous. Plain headers of an untrusted caller are ignored.

mod forwarding;
mod origins;
mod proxies;
#[cfg(test)]
mod tests;
mod token;

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use axum::http::{HeaderMap, HeaderName, Method};
use bridge_model::{Caller, Principal, ServerName, UserInfo, UserToken};
use ipnet::IpNet;

use crate::{
    config::{IdentityHeaders, KeyRing, ServerAccess, Settings},
    directory::Directory,
    error_table::{CallerError, ErrorKind},
    openwebui::{Failure, OpenWebUi, User},
};
use forwarding::{list, refuse_duplicates, text};
use proxies::ProxyHeaders;
use token::TokenReader;

pub use origins::Origins;

/// `X-MCPO-Session`: the session id of callers who send no chat.
pub static SESSION_HEADER: HeaderName = HeaderName::from_static("x-mcpo-session");

/// What a missing key means once users are named without one.
const BY_ADDRESS: &str = "user headers are trusted by their sender's address because there is no \
                          API key: every program on a trusted machine, including server processes \
                          and requests of a proxy that adds no headers (plain proxy_pass of \
                          nginx, ssh -R, socat), can impersonate every user; set MCPO_API_KEY, or \
                          MCPO_JWT_SECRET to verify users";

/// Resolves callers by what the settings say. Made once.
pub struct Identity {
    keys: KeyRing,
    strict: bool,
    tokens: Option<TokenReader>,
    /// Returns the users of tokens in `Authorization`.
    openwebui: Option<Arc<OpenWebUi>>,
    trusted_proxies: Vec<IpNet>,
    proxy_headers: ProxyHeaders,
    /// Origins of pages that may call.
    pub origins: Origins,
    names: IdentityHeaders,
    /// Two of one of these and the request is refused.
    single: Vec<HeaderName>,
    /// A user was believed for where the request came from.
    believed_address: AtomicBool,
}

impl Identity {
    /// Takes keys, token secret, trusted addresses and header names from the settings.
    pub fn new(settings: &Settings, openwebui: Option<Arc<OpenWebUi>>) -> Self {
        let access = &settings.access;
        let names = access.headers.clone();
        let single = [
            &axum::http::header::AUTHORIZATION,
            &names.key,
            &SESSION_HEADER,
            &names.user_id,
            &names.user_name,
            &names.user_email,
            &names.user_role,
            &names.user_groups,
            &names.user_jwt,
            &names.chat_id,
            &names.message_id,
        ];
        Self {
            keys: access.keys.clone(),
            strict: access.strict_auth,
            tokens: access.jwt_secret.as_ref().map(TokenReader::new),
            openwebui,
            trusted_proxies: access.trusted_proxies.clone(),
            proxy_headers: ProxyHeaders::new(),
            origins: Origins::new(&settings.listen),
            single: single.into_iter().cloned().collect(),
            names,
            believed_address: AtomicBool::new(false),
        }
    }

    /// What deserves a look in how callers are known by now.
    pub fn warning(&self) -> Option<&'static str> {
        let believed = self.believed_address.load(Ordering::Relaxed);
        believed.then_some(BY_ADDRESS)
    }

    /// For every route that acts, or returns a user's data: where keys are set, one of them
    /// is needed.
    pub async fn authenticate(&self, headers: &HeaderMap, peer: IpAddr) -> Result<Caller, Refusal> {
        let key = self.key(headers)?;
        let session = self.session(headers).await?;
        self.resolve(key, session, headers, peer)
    }

    /// The name of the key that was sent, where keys are set.
    fn key(&self, headers: &HeaderMap) -> Result<Option<&str>, Refusal> {
        refuse_duplicates(headers, &self.single)?;
        token::key(&self.keys, &self.names.key, headers)
    }

    /// For documents (`openapi.json`, docs pages): open to all unless strict, `OPTIONS` always.
    /// Where it is open, an answer must not depend on the caller, who is anonymous.
    pub async fn authenticate_document(
        &self,
        method: &Method,
        headers: &HeaderMap,
        peer: IpAddr,
    ) -> Result<Caller, Refusal> {
        // Open WebUI sends neither key nor token for the document of a session connection.
        let readable = self.openwebui.is_some() && self.is_near(headers, peer);
        if self.strict && !readable && method != Method::OPTIONS {
            return self.authenticate(headers, peer).await;
        }
        Ok(Caller::nobody(peer))
    }

    /// For a document that is not for all: the caller as far as the request names one, else anonymous. Open
    /// WebUI names none when it fetches one for a connection with the user's token.
    pub fn reader(&self, headers: &HeaderMap, peer: IpAddr) -> Caller {
        let key = self.key(headers);
        let known = key.and_then(|key| self.resolve(key, None, headers, peer));
        known.unwrap_or_else(|_| Caller {
            trusted: self.openwebui.is_some() && self.is_near(headers, peer),
            ..Caller::nobody(peer)
        })
    }

    /// Whether plain identity headers of this request are believed: it carries a valid key, or
    /// its TCP peer is in the trusted list and nothing shows that it began with somebody else.
    fn is_trusted(&self, headers: &HeaderMap, peer: IpAddr) -> bool {
        let key = token::key(&self.keys, &self.names.key, headers);
        matches!(key, Ok(Some(_))) || self.is_near(headers, peer)
    }

    /// Whether the peer's address identifies the caller: it is in the trusted list, no proxy passed the
    /// request on, and no page of an origin that was not named had a browser send it.
    fn is_near(&self, headers: &HeaderMap, peer: IpAddr) -> bool {
        // A dual-stack socket shows 127.0.0.1 as ::ffff:127.0.0.1.
        let peer = peer.to_canonical();
        let listed = self.trusted_proxies.iter().any(|net| net.contains(&peer));
        listed && self.is_direct(headers)
    }

    fn is_direct(&self, headers: &HeaderMap) -> bool {
        !self.proxy_headers.are_in(headers) && self.origins.vouch(headers)
    }

    /// Whether the caller may see the bridge's own state: with a key, or on this machine.
    pub fn is_operator(&self, headers: &HeaderMap, peer: IpAddr) -> bool {
        let keyed = matches!(self.key(headers), Ok(Some(_)));
        keyed || (peer.to_canonical().is_loopback() && self.is_direct(headers))
    }

    /// The user of a token in `Authorization`. A required key was checked before this.
    async fn session(&self, headers: &HeaderMap) -> Result<Option<(UserToken, User)>, Refusal> {
        let Some(openwebui) = &self.openwebui else {
            return Ok(None);
        };
        let Some(token) = token::user_token(&self.keys, headers) else {
            return Ok(None);
        };
        // Boxed: it is large, and asked of few callers.
        let user = Box::pin(openwebui.user_of(&token)).await;
        let user = user.inspect_err(|failure| {
            tracing::warn!(%failure, "user token could not be verified");
        });
        match user.map_err(Refusal::Unverified)? {
            Some(user) => Ok(Some((token, user))),
            None => Err(Refusal::InvalidSession),
        }
    }

    fn resolve(
        &self,
        key: Option<&str>,
        session: Option<(UserToken, User)>,
        headers: &HeaderMap,
        peer: IpAddr,
    ) -> Result<Caller, Refusal> {
        let trusted = key.is_some() || self.is_near(headers, peer);
        let signed = match &self.tokens {
            Some(tokens) => tokens.read(headers, &self.names.user_jwt)?,
            None => None,
        };
        let (token, asked) = session.unzip();
        if let (Some((id, _)), Some(user)) = (&signed, &asked)
            && *id != user.id
        {
            let header = self.names.user_jwt.to_string();
            return Err(Refusal::TwoUsers { header });
        }
        let proven = asked.map(|user| (user.id, user.info)).or(signed);
        let may_name_chat = trusted || proven.is_some();
        let said = match proven {
            Some(user) => Some(user),
            None if trusted && self.tokens.is_none() => {
                let user = self.plain_user(headers)?;
                if user.is_some() && key.is_none() {
                    self.note_believed_address();
                }
                user
            }
            None => None,
        };
        // A proven user may name a chat: it only selects among the user's own chats.
        let (chat, message) = if may_name_chat {
            let chat = text(headers, &self.names.chat_id)?;
            (chat, text(headers, &self.names.message_id)?)
        } else {
            (None, None)
        };
        let (principal, user) = match (said, key) {
            (Some((id, mut user)), _) => {
                // No token names groups: they are trusted from callers with the key.
                if trusted {
                    user.groups = list(headers, &self.names.user_groups)?;
                }
                (Principal::User(id), user)
            }
            (None, Some(key)) => (Principal::Key(key.into()), UserInfo::default()),
            (None, None) => (Principal::Anonymous, UserInfo::default()),
        };
        Ok(Caller {
            principal,
            user,
            trusted,
            chat,
            message,
            token,
            session: text(headers, &SESSION_HEADER)?,
            address: peer.to_canonical(),
            forwarded: None,
        })
    }

    /// Said once in the log, and in `/health`.
    fn note_believed_address(&self) {
        let noted = &self.believed_address;
        if !noted.load(Ordering::Relaxed) && !noted.swap(true, Ordering::Relaxed) {
            tracing::warn!("{BY_ADDRESS}");
        }
    }

    fn plain_user(&self, headers: &HeaderMap) -> Result<Option<(Box<str>, UserInfo)>, Refusal> {
        let Some(id) = text(headers, &self.names.user_id)? else {
            return Ok(None);
        };
        let name = text(headers, &self.names.user_name)?;
        let user = UserInfo {
            name: name.map(|name| forwarding::percent_decoded(&name)),
            email: text(headers, &self.names.user_email)?,
            role: text(headers, &self.names.user_role)?,
            groups: Vec::new(),
        };
        Ok(Some((id, user)))
    }
}

// Why a request is turned away before anything else is looked at.

/// The request's own fault; the text may be sent to the caller.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// 401 with `WWW-Authenticate: Bearer`.
    #[error("Not authenticated: send the API key as 'Authorization: Bearer KEY' or 'X-MCPO-Key'")]
    MissingKey,
    /// 403.
    #[error("Invalid API key")]
    InvalidKey,
    /// 401. Deliberately without the reason: it would help a forger.
    #[error("Invalid user token in {header}")]
    InvalidToken {
        /// The header that carried it.
        header: String,
    },
    /// 401: Open WebUI was asked.
    #[error(
        "Open WebUI rejected the user token in Authorization: sign in again, or set the \
         connection's auth type to bearer"
    )]
    InvalidSession,
    /// 401: two proofs of two users.
    #[error("Authorization and {header} carry tokens of different users")]
    TwoUsers {
        /// The header that carried the other.
        header: String,
    },
    /// 502 or 503: Open WebUI could not tell the token's user.
    #[error("The user token could not be verified: {0} (MCPO_OPENWEBUI_URL)")]
    Unverified(Failure),
    /// 400: two values, and no way to tell which one a proxy in front looked at.
    #[error("The header {header} was sent more than once")]
    DuplicateHeader {
        /// Its name.
        header: String,
    },
    /// 400: too long, or with characters that have no place in it.
    #[error("Invalid value of {header}: {why}")]
    BadHeader {
        /// Its name.
        header: String,
        /// What is wrong with the value, without the value.
        why: &'static str,
    },
}

/// Why a caller gets nothing of a server, whose name comes first.
#[derive(Debug, thiserror::Error)]
pub enum NoServer {
    /// There is none of this name, or not for this caller.
    #[error("Not Found: no server '{0}'")]
    Unknown(String),
    /// The caller has a key or a trusted address, but names no user.
    #[error(
        "server '{0}' is restricted to certain users, but this request has no trusted user: set \
         ENABLE_FORWARD_USER_INFO_HEADERS=true in Open WebUI, or add the key's name to allow.keys \
         of the server"
    )]
    UserNeeded(String),
    /// It is being asked what it offers.
    #[error("server '{0}' is starting; try again in a moment")]
    Starting(String),
    /// It cannot be started; that is tried again in the background.
    #[error("server '{0}' is unavailable: {1}")]
    Failed(String, String),
}

impl CallerError for NoServer {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Unknown(_) => ErrorKind::UNKNOWN_SERVER,
            Self::UserNeeded(_) => ErrorKind::USER_NEEDED,
            Self::Starting(_) => ErrorKind::STARTING,
            Self::Failed(..) => ErrorKind::SERVER_FAILED,
        }
    }
}

/// The server of this name, if the caller may use it, and not only read what it offers.
pub fn usable(directory: &Directory, name: &str, caller: &Caller) -> Result<ServerName, NoServer> {
    match directory.server_for(name, caller) {
        Some((name, ServerAccess::Use)) => Ok(name),
        Some(_) => Err(NoServer::UserNeeded(name.to_owned())),
        None => Err(NoServer::Unknown(name.to_owned())),
    }
}

impl CallerError for Refusal {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::MissingKey => ErrorKind::MISSING_KEY,
            Self::InvalidKey => ErrorKind::INVALID_KEY,
            Self::InvalidToken { .. } => ErrorKind::INVALID_TOKEN,
            Self::InvalidSession => ErrorKind::INVALID_SESSION,
            Self::TwoUsers { .. } => ErrorKind::TWO_USERS,
            Self::Unverified(Failure::Unreachable(_) | Failure::Silent) => {
                ErrorKind::OPENWEBUI_UNREACHABLE
            }
            Self::Unverified(_) => ErrorKind::OPENWEBUI_UNUSABLE,
            Self::DuplicateHeader { .. } => ErrorKind::DUPLICATE_HEADER,
            Self::BadHeader { .. } => ErrorKind::BAD_HEADER,
        }
    }
}
