//! Identifies callers. Every endpoint authenticates its requests here, so that all have the same trust rules.
//!
//! One principal per request, from the first of these that is there: a verified token (Open WebUI's signed
//! header, or the user's own token, which Open WebUI verifies), plain headers from a trusted caller, the
//! key, anonymous. Plain headers of an untrusted caller are ignored. The same rules decide which of its headers a
//! server may get.

mod direct;
#[cfg(test)]
mod tests;

use std::{
    borrow::Cow,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use axum::http::{
    HeaderMap, HeaderName, Method,
    header::{AUTHORIZATION, COOKIE},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use bridge_model::{Caller, Principal, ServerName, UserInfo, UserToken};
use ipnet::IpNet;
use jsonwebtoken::{Algorithm, DecodingKey, Header, Validation, decode, get_current_timestamp};
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, percent_encode};
use serde::Deserialize;

use crate::{
    config::{Directory, IdentityHeaders, KeyRing, Secret, ServerAccess, ServerSpec, Settings},
    error_table::{CallerError, ErrorKind},
    openwebui::{Failure, OpenWebUi, User},
};
use direct::ProxyHeaders;

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
            &AUTHORIZATION,
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
        key_of(&self.keys, &self.names.key, headers)
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
        let key = key_of(&self.keys, &self.names.key, headers);
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
        let Some(token) = user_token(&self.keys, headers) else {
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
            name: name.map(|name| percent_decoded(&name)),
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

// The three places of an API key in a request, and the user's token.

/// The name of the request's key; `None` if no keys are configured. Reads `header` (`X-MCPO-Key`), and only
/// without it `Authorization`, which may be for another service.
fn key_of<'k>(
    keys: &'k KeyRing,
    header: &HeaderName,
    headers: &HeaderMap,
) -> Result<Option<&'k str>, Refusal> {
    if keys.is_empty() {
        return Ok(None);
    }
    let own = value_of(headers, header).map(Cow::Borrowed);
    // Another scheme is not a key, nor is Bearer without a token.
    let key = own.or_else(|| key_in(value_of(headers, &AUTHORIZATION)?));
    let found = keys.find(&key.ok_or(Refusal::MissingKey)?);
    found.ok_or(Refusal::InvalidKey).map(Some)
}

/// The user's token for Open WebUI: a bearer token that is not an API key of the bridge.
fn user_token(keys: &KeyRing, headers: &HeaderMap) -> Option<UserToken> {
    let authorization = value_of(headers, &AUTHORIZATION)?;
    let (scheme, token) = authorization.split_at_checked(BEARER.len())?;
    let token = token.trim_ascii();
    let is_token = scheme.eq_ignore_ascii_case(BEARER)
        && !token.is_empty()
        && token.len() <= LONGEST_BEARER
        && keys.find(token).is_none();
    let token = std::str::from_utf8(token).ok().filter(|_| is_token)?;
    Some(UserToken::new(token))
}

const BEARER: &[u8] = b"bearer ";

/// Maximum length of a bearer token: hashing takes time for every byte.
const LONGEST_BEARER: usize = 16 * 1024;

fn value_of<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h [u8]> {
    let value = headers.get(name).map(|value| value.as_bytes().trim_ascii());
    value.filter(|value| !value.is_empty())
}

/// Whether `Authorization` contains an API key of the bridge, independent of the other headers.
fn authorization_is_ours(keys: &KeyRing, headers: &HeaderMap) -> bool {
    let key = value_of(headers, &AUTHORIZATION).and_then(key_in);
    key.is_some_and(|key| keys.find(&key).is_some())
}

/// The key in `Bearer KEY`, or the password in `Basic base64(anyone:KEY)`.
fn key_in(authorization: &[u8]) -> Option<Cow<'_, [u8]>> {
    let space = authorization.iter().position(|byte| *byte == b' ')?;
    let (scheme, rest) = authorization.split_at(space);
    let credentials = rest.trim_ascii();
    if credentials.is_empty() {
        return None;
    }
    if scheme.eq_ignore_ascii_case(b"bearer") {
        return Some(Cow::Borrowed(credentials));
    }
    if !scheme.eq_ignore_ascii_case(b"basic") {
        return None;
    }
    let pair = BASE64_STANDARD.decode(credentials).ok()?;
    let colon = pair.iter().position(|byte| *byte == b':')?;
    Some(Cow::Owned(pair[colon + 1..].to_vec()))
}

// Signed user tokens, which Open WebUI sends if it shares a secret with the bridge.

/// Maximum lifetime of a token, independent of its `exp`: Open WebUI makes one for each request, with a lifetime
/// of five minutes unless its administrator has set another.
const LONGEST_LIFE_SECONDS: f64 = 24.0 * 3600.0;

/// The expected issuer, if a token has one.
const ISSUER: &str = "open-webui";

/// The expected audience, if a token has one. Open WebUI's tokens have none.
const AUDIENCE: &str = "mcpo-bridge";

/// Tolerance for differences between the clocks of two machines, in seconds.
const LEEWAY_SECONDS: u64 = 30;

/// Maximum length of a token: verification takes time for every byte.
const LONGEST_TOKEN: usize = 16 * 1024;

/// Verifies tokens with one secret; HS256 only.
struct TokenReader {
    key: DecodingKey,
    validation: Validation,
}

#[derive(Deserialize)]
struct Claims {
    sub: Box<str>,
    name: Option<Box<str>>,
    email: Option<Box<str>>,
    role: Option<Box<str>>,
    exp: f64,
    iat: Option<f64>,
}

impl TokenReader {
    fn new(secret: &Secret) -> Self {
        let mut validation = Validation::new(Algorithm::HS256);
        // A token without an expiry would be valid for ever.
        validation.set_required_spec_claims(&["sub", "exp"]);
        // Checked only if the token has them: a token for another audience is invalid here, even if it was
        // signed with the same secret.
        validation.set_issuer(&[ISSUER]);
        validation.set_audience(&[AUDIENCE]);
        validation.leeway = LEEWAY_SECONDS;
        validation.validate_nbf = true;
        Self {
            key: DecodingKey::from_secret(secret.expose().as_bytes()),
            validation,
        }
    }

    /// The user of the token in `header`; `None` without a token.
    fn read(&self, headers: &HeaderMap, header: &HeaderName) -> Result<Option<User>, Refusal> {
        let Some(token) = value_of(headers, header) else {
            return Ok(None);
        };
        let user = self.verify(token).ok_or_else(|| Refusal::InvalidToken {
            header: header.to_string(),
        })?;
        Ok(Some(user))
    }

    fn verify(&self, token: &[u8]) -> Option<User> {
        if token.len() > LONGEST_TOKEN {
            return None;
        }
        let decoded = decode::<Claims>(token, &self.key, &self.validation).ok()?;
        let claims = decoded.claims;
        let good = is_plain(&decoded.header) && claims.is_of_today();
        let user = User::new(claims.sub, [claims.name, claims.email, claims.role]);
        user.filter(|_| good)
    }
}

/// A JWT without critical extensions: the bridge supports none.
fn is_plain(header: &Header) -> bool {
    let typ = header.typ.as_deref();
    header.crit.is_none() && typ.is_none_or(|typ| typ.eq_ignore_ascii_case("JWT"))
}

impl Claims {
    /// Whether it was issued within the last day, and expires within the next. The expiry itself was checked before.
    #[expect(clippy::cast_precision_loss, reason = "seconds of this age are exact")]
    fn is_of_today(&self) -> bool {
        let (now, leeway) = (get_current_timestamp() as f64, LEEWAY_SECONDS as f64);
        let longest = LONGEST_LIFE_SECONDS + leeway;
        let made = |at: f64| at <= now + leeway && now - at <= longest;
        self.exp - now <= longest && self.iat.is_none_or(made)
    }
}

// Reads identity headers without a change to their bytes.

/// Maximum length of a value. Ids are stored and hashed; real ones are much shorter.
const LONGEST: usize = 1024;

/// Maximum length of a list: a user may be in many groups.
const LONGEST_LIST: usize = 16 * 1024;

/// The prefix of a value that is not UTF-8, which is stored percent-encoded. Header values cannot
/// contain DEL, so the prefix is unambiguous.
const NOT_UTF8: char = '\u{7f}';

/// The value of a header that was sent at most once, without the white space around it. An empty value counts
/// as absent: Open WebUI sends empty headers for unknown values.
fn text(headers: &HeaderMap, name: &HeaderName) -> Result<Option<Box<str>>, Refusal> {
    let bytes = bytes(headers, name);
    if bytes.len() > LONGEST {
        return Err(bad(name, "longer than 1024 bytes"));
    }
    Ok(match std::str::from_utf8(bytes) {
        Ok("") => None,
        Ok(text) => Some(text.into()),
        Err(_) => Some(format!("{NOT_UTF8}{}", percent_encode(bytes, NON_ALPHANUMERIC)).into()),
    })
}

/// The names in a header that was sent at most once: separated by commas, each percent-encoded if
/// necessary, as in Open WebUI's `{{USER_GROUPS}}`; or a JSON list, in which a name may contain a
/// comma.
fn list(headers: &HeaderMap, name: &HeaderName) -> Result<Vec<Box<str>>, Refusal> {
    let bytes = bytes(headers, name);
    let bad = |why| bad(name, why);
    if bytes.len() > LONGEST_LIST {
        return Err(bad("longer than 16 KiB"));
    }
    let text = std::str::from_utf8(bytes).map_err(|_| bad("not UTF-8"))?;
    let names: Vec<String> = if text.starts_with('[') {
        serde_json::from_str(text).map_err(|_| bad("not a JSON list of strings"))?
    } else {
        let parts = text.split(',');
        parts.map(|part| percent_decoded(part).into()).collect()
    };
    let names = names.iter().map(|name| name.trim());
    let names = names.filter(|name| !name.is_empty());
    Ok(names.map(Into::into).collect())
}

fn bytes<'h>(headers: &'h HeaderMap, name: &HeaderName) -> &'h [u8] {
    let value = headers.get(name);
    value.map_or(b"", |value| value.as_bytes().trim_ascii())
}

fn bad(header: &HeaderName, why: &'static str) -> Refusal {
    let header = header.to_string();
    Refusal::BadHeader { header, why }
}

/// Refuses a request that contains one of `names` twice, even with equal values.
fn refuse_duplicates(headers: &HeaderMap, names: &[HeaderName]) -> Result<(), Refusal> {
    if headers.keys_len() == headers.len() {
        return Ok(());
    }
    let twice = |name: &&HeaderName| headers.get_all(*name).iter().nth(1).is_some();
    let header = names.iter().find(twice).map(HeaderName::to_string);
    header.map_or(Ok(()), |header| Err(Refusal::DuplicateHeader { header }))
}

/// Decodes Open WebUI's percent-encoding of names; a text that cannot be decoded stays unchanged.
fn percent_decoded(text: &str) -> Box<str> {
    let decoded = percent_decode_str(text).decode_utf8();
    decoded.map_or_else(|_| text.into(), Into::into)
}

// The request headers that servers may get: never an API key of the bridge, and of the headers that identify
// the user only trusted ones.

impl Identity {
    /// The headers of an authenticated request for its server; `None` if the server's config forwards no
    /// headers.
    pub fn forwarded(
        &self,
        spec: &ServerSpec,
        headers: &HeaderMap,
        caller: &Caller,
    ) -> Option<HeaderMap> {
        let forwarding = spec.forwarding.as_ref()?;
        let chosen = forwarding.choose(headers).into_iter();
        // Another replica has checked the headers of requests that it forwarded: only it had the caller's credentials.
        let looked_at = caller.forward_reason().is_some();
        let may = |name: &HeaderName| looked_at || self.may_leave(name, headers, caller.address);
        let mut forwarded: HeaderMap = HeaderMap::new();
        for (name, value) in chosen.filter(|(name, _)| may(name)) {
            forwarded.append(name, value);
        }
        Some(forwarded)
    }

    /// The headers of an authenticated request for any of these servers, for the replica that sends the
    /// request to one of them.
    pub fn forwarded_to_any<'a>(
        &self,
        specs: impl Iterator<Item = &'a Arc<ServerSpec>>,
        headers: &HeaderMap,
        caller: &Caller,
    ) -> HeaderMap {
        let forwarded = specs.filter_map(|spec| self.forwarded(spec, headers, caller));
        let forwarded: Vec<HeaderMap> = forwarded.collect();
        let mut all = HeaderMap::new();
        for (name, value) in headers {
            if forwarded.iter().any(|some| some.contains_key(name)) {
                all.append(name.clone(), value.clone());
            }
        }
        all
    }

    fn may_leave(&self, name: &HeaderName, headers: &HeaderMap, peer: IpAddr) -> bool {
        let names = &self.names;
        if *name == self.names.key || *name == SESSION_HEADER {
            return false;
        }
        let session = self.openwebui.is_some();
        let proven = session && user_token(&self.keys, headers).is_some();
        if *name == COOKIE {
            // Open WebUI can be configured to send the user's cookies, which contain the user's token.
            return !session;
        }
        if *name == AUTHORIZATION {
            // The user's own token for Open WebUI is only for the bridge.
            return !proven && !authorization_is_ours(&self.keys, headers);
        }
        if *name == names.user_jwt {
            // A token has been verified before.
            return self.tokens.is_some();
        }
        let trusted = || self.is_trusted(headers, peer);
        if *name == names.user_groups {
            return trusted();
        }
        let plain = [
            &names.user_id,
            &names.user_name,
            &names.user_email,
            &names.user_role,
        ];
        if plain.contains(&name) {
            return self.tokens.is_none() && !proven && trusted();
        }
        if *name == names.chat_id || *name == names.message_id {
            return proven
                || trusted()
                || (self.tokens.is_some() && headers.contains_key(&names.user_jwt));
        }
        true
    }
}
