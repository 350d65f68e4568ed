//! Signed user tokens, which Open WebUI sends if it shares a secret with the bridge.

use std::borrow::Cow;

use axum::http::{HeaderMap, HeaderName, header::AUTHORIZATION};
use base64::{Engine, prelude::BASE64_STANDARD};
use bridge_model::UserToken;
use jsonwebtoken::{Algorithm, DecodingKey, Header, Validation, decode, get_current_timestamp};
use serde::Deserialize;

use super::Refusal;
use crate::{
    config::{KeyRing, Secret},
    openwebui::User,
};

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
pub(super) struct TokenReader {
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
    pub(super) fn new(secret: &Secret) -> Self {
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
    pub(super) fn read(
        &self,
        headers: &HeaderMap,
        header: &HeaderName,
    ) -> Result<Option<User>, Refusal> {
        let Some(token) = value(headers, header) else {
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

// The three places of an API key in a request, and the user's token.

/// The name of the request's key; `None` if no keys are configured. Reads `header` (`X-MCPO-Key`), and only
/// without it `Authorization`, which may be for another service.
pub(super) fn key<'k>(
    keys: &'k KeyRing,
    header: &HeaderName,
    headers: &HeaderMap,
) -> Result<Option<&'k str>, Refusal> {
    if keys.is_empty() {
        return Ok(None);
    }
    let own = value(headers, header).map(Cow::Borrowed);
    // Another scheme is not a key, nor is Bearer without a token.
    let key = own.or_else(|| key_in(value(headers, &AUTHORIZATION)?));
    let found = keys.find(&key.ok_or(Refusal::MissingKey)?);
    found.ok_or(Refusal::InvalidKey).map(Some)
}

/// The user's token for Open WebUI: a bearer token that is not an API key of the bridge.
pub(super) fn user_token(keys: &KeyRing, headers: &HeaderMap) -> Option<UserToken> {
    let authorization = value(headers, &AUTHORIZATION)?;
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

fn value<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h [u8]> {
    let value = headers.get(name).map(|value| value.as_bytes().trim_ascii());
    value.filter(|value| !value.is_empty())
}

/// Whether `Authorization` contains an API key of the bridge, independent of the other headers.
pub(super) fn authorization_is_ours(keys: &KeyRing, headers: &HeaderMap) -> bool {
    let key = value(headers, &AUTHORIZATION).and_then(key_in);
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
