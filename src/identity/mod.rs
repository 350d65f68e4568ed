//! Who is calling. Every door asks here first, so that all doors believe the same things.
//!
//! One principal per request: the user of a verified token, else of plain headers from a trusted
//! caller, else the key, else nobody. What an untrusted caller says of himself counts as unsaid.

use std::net::IpAddr;

use axum::http::{HeaderMap, HeaderName, Method};
use ipnet::IpNet;

use crate::{
    config::{IdentityHeaders, KeyRing, Settings},
    model::{Caller, Principal, UserInfo},
};

mod forwarding;
mod headers;
mod keys;
mod refusal;
mod token;

pub use refusal::{Refusal, user_needed};

use headers::{list, refuse_duplicates, says_forwarded, text};
use keys::{KEY_HEADER, KeyCheck};
use token::TokenReader;

/// `X-MCPO-Session`: the session id of callers who send no chat.
pub static SESSION_HEADER: HeaderName = HeaderName::from_static("x-mcpo-session");

/// Resolves callers by what the settings say. Made once; nothing in it changes.
#[derive(Debug)]
pub struct Identity {
    keys: KeyRing,
    strict: bool,
    tokens: Option<TokenReader>,
    trusted_proxies: Vec<IpNet>,
    names: IdentityHeaders,
    /// Two of one of these and the request is refused.
    single: Vec<HeaderName>,
}

impl Identity {
    /// Takes keys, token secret, trusted addresses and header names from the settings.
    pub fn new(settings: &Settings) -> Self {
        let access = &settings.access;
        let names = access.headers.clone();
        let single = [
            &axum::http::header::AUTHORIZATION,
            &KEY_HEADER,
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
            trusted_proxies: access.trusted_proxies.clone(),
            single: single.into_iter().cloned().collect(),
            names,
        }
    }

    /// For every route that acts or tells about somebody's data: where keys are set, one of them
    /// is needed.
    pub fn authenticate(&self, headers: &HeaderMap, peer: IpAddr) -> Result<Caller, Refusal> {
        refuse_duplicates(headers, &self.single)?;
        let key = match self.check_key(headers) {
            KeyCheck::Valid(name) => Some(name),
            KeyCheck::NotNeeded => None,
            KeyCheck::Missing => return Err(Refusal::MissingKey),
            KeyCheck::Wrong => return Err(Refusal::InvalidKey),
        };
        self.resolve(key, headers, peer)
    }

    /// For documents (`openapi.json`, docs pages): open to all unless strict, `OPTIONS` always.
    /// Where it is open, an answer must not depend on who asks: the caller is nobody.
    pub fn authenticate_document(
        &self,
        method: &Method,
        headers: &HeaderMap,
        peer: IpAddr,
    ) -> Result<Caller, Refusal> {
        if self.strict && method != Method::OPTIONS {
            return self.authenticate(headers, peer);
        }
        Ok(Caller::nobody(peer))
    }

    /// For a document that is not for everybody: who asks as far as he says so, else nobody.
    pub fn reader(&self, headers: &HeaderMap, peer: IpAddr) -> Caller {
        let known = self.authenticate(headers, peer);
        known.unwrap_or_else(|_| Caller::nobody(peer))
    }

    /// Whether plain identity headers of this request are believed: it carries a valid key, or
    /// its TCP peer is in the trusted list and no proxy in between passed on somebody else's.
    #[cfg(test)]
    fn is_trusted(&self, headers: &HeaderMap, peer: IpAddr) -> bool {
        matches!(self.check_key(headers), KeyCheck::Valid(_)) || self.is_near(headers, peer)
    }

    fn check_key(&self, headers: &HeaderMap) -> KeyCheck<'_> {
        keys::check(&self.keys, headers)
    }

    fn is_near(&self, headers: &HeaderMap, peer: IpAddr) -> bool {
        // A dual-stack socket shows 127.0.0.1 as ::ffff:127.0.0.1.
        let peer = peer.to_canonical();
        let listed = self.trusted_proxies.iter().any(|net| net.contains(&peer));
        listed && !says_forwarded(headers)
    }

    fn resolve(
        &self,
        key: Option<&str>,
        headers: &HeaderMap,
        peer: IpAddr,
    ) -> Result<Caller, Refusal> {
        let trusted = key.is_some() || self.is_near(headers, peer);
        let said = match &self.tokens {
            Some(tokens) => tokens.read(headers, &self.names.user_jwt)?,
            None if trusted => self.plain_user(headers)?,
            None => None,
        };
        // Who proved to be a user may name his chat: it only ever selects among his own.
        let proven = self.tokens.is_some() && said.is_some();
        let chat = if trusted || proven {
            text(headers, &self.names.chat_id)?
        } else {
            None
        };
        let (principal, user) = match (said, key) {
            (Some((id, mut user)), _) => {
                // No token names them, so that they are believed of whoever has the key.
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
            session: text(headers, &SESSION_HEADER)?,
            address: peer.to_canonical(),
            forwarded: None,
        })
    }

    fn plain_user(&self, headers: &HeaderMap) -> Result<Option<(Box<str>, UserInfo)>, Refusal> {
        let Some(id) = text(headers, &self.names.user_id)? else {
            return Ok(None);
        };
        let user = UserInfo {
            name: text(headers, &self.names.user_name)?.map(|name| headers::percent_decoded(&name)),
            email: text(headers, &self.names.user_email)?,
            role: text(headers, &self.names.user_role)?,
            groups: Vec::new(),
        };
        Ok(Some((id, user)))
    }
}

#[cfg(test)]
mod tests;
