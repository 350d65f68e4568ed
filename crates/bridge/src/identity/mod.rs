//! Identifies callers. Every endpoint authenticates its requests here, so that all have the same trust rules.
//!
//! One principal per request, from the first of these that is there: a verified token (Open WebUI's signed
//! header, or the user's own token, which Open WebUI verifies), plain headers from a trusted caller, the
//! key, anonymous. Plain headers of an untrusted caller are ignored.

mod direct;
mod forwarding;
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
    config::{Directory, IdentityHeaders, KeyRing, ServerAccess, Settings},
    error_table::{CallerError, ErrorKind},
    openwebui::{Failure, OpenWebUi, User},
};
use direct::ProxyHeaders;
use forwarding::{list, refuse_duplicates, text};
use token::TokenReader;

pub use direct::Origins;

/// `X-MCPO-Session`: the session id of callers that send no chat.
pub static SESSION_HEADER: HeaderName = HeaderName::from_static("x-mcpo-session");

/// The warning for trusted user headers without an API key.
const BY_ADDRESS: &str = "user headers are trusted by their sender's address because there is no \
                          API key: every program on a trusted machine, including server processes \
                          and requests of a proxy that adds no headers (plain proxy_pass of \
                          nginx, ssh -R, socat), can impersonate every user; set MCPO_API_KEY, or \
                          MCPO_JWT_SECRET to verify users";

/// Identifies callers according to the settings.
pub struct Identity {
    keys: KeyRing,
    strict: bool,
    tokens: Option<TokenReader>,
    /// Returns the users of tokens in `Authorization`.
    openwebui: Option<Arc<OpenWebUi>>,
    trusted_proxies: Vec<IpNet>,
    proxy_headers: ProxyHeaders,
    /// Origins of pages that may send requests.
    pub origins: Origins,
    names: IdentityHeaders,
    /// Headers that a request may contain only once.
    single: Vec<HeaderName>,
    /// Whether user headers have been trusted because of the address of their sender.
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

    /// A warning if user headers have been trusted without a key.
    pub fn warning(&self) -> Option<&'static str> {
        let believed = self.believed_address.load(Ordering::Relaxed);
        believed.then_some(BY_ADDRESS)
    }

    /// For every route that changes something, or returns a user's data: if keys are configured, the request
    /// needs one.
    pub async fn authenticate(&self, headers: &HeaderMap, peer: IpAddr) -> Result<Caller, Refusal> {
        let key = self.key(headers)?;
        let session = self.session(headers).await?;
        self.resolve(key, session, headers, peer)
    }

    /// The name of the request's key; `None` if no keys are configured.
    fn key(&self, headers: &HeaderMap) -> Result<Option<&str>, Refusal> {
        refuse_duplicates(headers, &self.single)?;
        token::key(&self.keys, &self.names.key, headers)
    }

    /// For documents (`openapi.json`, docs pages): public unless strict, `OPTIONS` always. If they are public,
    /// the caller is anonymous, and the answer must not depend on the caller.
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

    /// For a document that is not public: the caller that the request identifies, else anonymous. Open WebUI
    /// does not identify the user when it fetches a document for a connection with the user's token.
    pub fn reader(&self, headers: &HeaderMap, peer: IpAddr) -> Caller {
        let key = self.key(headers);
        let known = key.and_then(|key| self.resolve(key, None, headers, peer));
        known.unwrap_or_else(|_| Caller {
            trusted: self.openwebui.is_some() && self.is_near(headers, peer),
            ..Caller::nobody(peer)
        })
    }

    /// Whether plain identity headers of this request are trusted: it has a valid key, or its TCP peer is
    /// in the trusted list and no header shows another sender.
    fn is_trusted(&self, headers: &HeaderMap, peer: IpAddr) -> bool {
        let key = token::key(&self.keys, &self.names.key, headers);
        matches!(key, Ok(Some(_))) || self.is_near(headers, peer)
    }

    /// Whether the peer's address identifies the caller: it is in the trusted list, no proxy forwarded the
    /// request, and no page of an origin that is not allowed made a browser send it.
    fn is_near(&self, headers: &HeaderMap, peer: IpAddr) -> bool {
        // A dual-stack socket reports 127.0.0.1 as ::ffff:127.0.0.1.
        let peer = peer.to_canonical();
        let listed = self.trusted_proxies.iter().any(|net| net.contains(&peer));
        listed && self.is_direct(headers)
    }

    fn is_direct(&self, headers: &HeaderMap) -> bool {
        !self.proxy_headers.are_in(headers) && self.origins.vouch(headers)
    }

    /// Whether the caller may see the bridge's own state: with a key, or from this machine.
    pub fn is_operator(&self, headers: &HeaderMap, peer: IpAddr) -> bool {
        let keyed = matches!(self.key(headers), Ok(Some(_)));
        keyed || (peer.to_canonical().is_loopback() && self.is_direct(headers))
    }

    /// The user of a token in `Authorization`. A required key must have been checked before.
    async fn session(&self, headers: &HeaderMap) -> Result<Option<(UserToken, User)>, Refusal> {
        let Some(openwebui) = &self.openwebui else {
            return Ok(None);
        };
        let Some(token) = token::user_token(&self.keys, headers) else {
            return Ok(None);
        };
        // Boxed, because it is large and rarely used.
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
        if let (Some(signed), Some(asked)) = (&signed, &asked)
            && signed.id != asked.id
        {
            let header = self.names.user_jwt.to_string();
            return Err(Refusal::TwoUsers { header });
        }
        let proven = asked.or(signed);
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
        // A verified user may name a chat: it only selects among the user's own chats.
        let (chat, message) = if may_name_chat {
            let chat = text(headers, &self.names.chat_id)?;
            (chat, text(headers, &self.names.message_id)?)
        } else {
            (None, None)
        };
        let (principal, user) = match (said, key) {
            (Some(mut user), _) => {
                // No token contains groups: they are trusted from callers with the key.
                if trusted {
                    user.info.groups = list(headers, &self.names.user_groups)?;
                }
                (Principal::User(user.id), user.info)
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

    /// Logs the warning once, and adds it to `/health`.
    fn note_believed_address(&self) {
        let noted = &self.believed_address;
        if !noted.load(Ordering::Relaxed) && !noted.swap(true, Ordering::Relaxed) {
            tracing::warn!("{BY_ADDRESS}");
        }
    }

    fn plain_user(&self, headers: &HeaderMap) -> Result<Option<User>, Refusal> {
        let Some(id) = text(headers, &self.names.user_id)? else {
            return Ok(None);
        };
        let name = text(headers, &self.names.user_name)?;
        let info = UserInfo {
            name: name.map(|name| forwarding::percent_decoded(&name)),
            email: text(headers, &self.names.user_email)?,
            role: text(headers, &self.names.user_role)?,
            groups: Vec::new(),
        };
        Ok(Some(User { id, info }))
    }
}

// Why a request is refused before any other check.

/// An error of the request itself; the text may be sent to the caller.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// 401 with `WWW-Authenticate: Bearer`.
    #[error("Not authenticated: send the API key as 'Authorization: Bearer KEY' or 'X-MCPO-Key'")]
    MissingKey,
    /// 403.
    #[error("Invalid API key")]
    InvalidKey,
    /// 401 without the reason, because it would help an attacker who forges tokens.
    #[error("Invalid user token in {header}")]
    InvalidToken {
        /// The header with the token.
        header: String,
    },
    /// 401: Open WebUI rejected the token.
    #[error(
        "Open WebUI rejected the user token in Authorization: sign in again, or set the \
         connection's auth type to bearer"
    )]
    InvalidSession,
    /// 401: two tokens of different users.
    #[error("Authorization and {header} carry tokens of different users")]
    TwoUsers {
        /// The header with the other token.
        header: String,
    },
    /// 502 or 503: Open WebUI could not identify the token's user.
    #[error("The user token could not be verified: {0} (MCPO_OPENWEBUI_URL)")]
    Unverified(Failure),
    /// 400: two values, and a proxy in front may have used the other one.
    #[error("The header {header} was sent more than once")]
    DuplicateHeader {
        /// The header's name.
        header: String,
    },
    /// 400: too long, or with invalid characters.
    #[error("Invalid value of {header}: {why}")]
    BadHeader {
        /// The header's name.
        header: String,
        /// The problem, without the value.
        why: &'static str,
    },
}

/// Why a caller cannot use a server. The first field is the server's name.
#[derive(Debug, thiserror::Error)]
pub enum NoServer {
    /// No such server, or this caller may not see it.
    #[error("Not Found: no server '{0}'")]
    Unknown(String),
    /// The caller has a key or a trusted address, but the request identifies no user.
    #[error(
        "server '{0}' is restricted to certain users, but this request has no trusted user: set \
         ENABLE_FORWARD_USER_INFO_HEADERS=true in Open WebUI, or add the key's name to allow.keys \
         of the server"
    )]
    UserNeeded(String),
    /// The server is starting, and its offer is being read.
    #[error("server '{0}' is starting; try again in a moment")]
    Starting(String),
    /// The server could not be started; the start is retried in the background.
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

/// The server of this name, if the caller may use it. Read access to its offer is not enough.
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
