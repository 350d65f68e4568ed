//! The three places where a request may carry an API key, and the user's token beside it.

use std::borrow::Cow;

use axum::http::{HeaderMap, HeaderName, header::AUTHORIZATION};
use base64::{Engine, prelude::BASE64_STANDARD};
use bridge_model::UserToken;

use crate::config::KeyRing;

/// What a request says about keys.
pub(super) enum KeyCheck<'a> {
    /// No key is set.
    NotNeeded,
    /// The name of the key that was sent.
    Valid(&'a str),
    /// Keys are set and none was sent.
    Missing,
    /// One was sent, and it is none of ours.
    Wrong,
}

/// Looks at `header` (`X-MCPO-Key`), and only without it at `Authorization`, which may then belong
/// to somebody else.
pub(super) fn check<'a>(
    keys: &'a KeyRing,
    header: &HeaderName,
    headers: &HeaderMap,
) -> KeyCheck<'a> {
    if keys.is_empty() {
        return KeyCheck::NotNeeded;
    }
    let offered = match (value(headers, header), value(headers, &AUTHORIZATION)) {
        (Some(key), _) => Cow::Borrowed(key),
        (None, Some(authorization)) => match key_in(authorization) {
            Some(key) => key,
            // Another scheme is no key; Bearer without one is none either.
            None => return KeyCheck::Missing,
        },
        (None, None) => return KeyCheck::Missing,
    };
    keys.find(&offered).map_or(KeyCheck::Wrong, KeyCheck::Valid)
}

/// The user's token for Open WebUI: a bearer token that is no key of ours.
pub(super) fn user_token(keys: &KeyRing, headers: &HeaderMap) -> Option<UserToken> {
    let authorization = value(headers, &AUTHORIZATION)?;
    let (scheme, token) = authorization.split_at_checked(BEARER.len())?;
    let token = token.trim_ascii();
    let is_token = scheme.eq_ignore_ascii_case(BEARER)
        && !token.is_empty()
        && token.len() <= LONGEST_TOKEN
        && keys.find(token).is_none();
    let token = std::str::from_utf8(token).ok().filter(|_| is_token)?;
    Some(UserToken::new(token))
}

const BEARER: &[u8] = b"bearer ";
/// Hashing costs time for every byte.
const LONGEST_TOKEN: usize = 16 * 1024;

fn value<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h [u8]> {
    let value = headers.get(name).map(|value| value.as_bytes().trim_ascii());
    value.filter(|value| !value.is_empty())
}

/// Whether `Authorization` carries one of our keys, whatever else the request carries.
pub(super) fn authorization_is_ours(keys: &KeyRing, headers: &HeaderMap) -> bool {
    let value = headers.get(AUTHORIZATION);
    let key = value.and_then(|value| key_in(value.as_bytes().trim_ascii()));
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
