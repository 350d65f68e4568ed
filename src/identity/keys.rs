//! The three places where a request may carry an API key.

use std::borrow::Cow;

use axum::http::{HeaderMap, HeaderName, header::AUTHORIZATION};
use base64::{Engine, prelude::BASE64_STANDARD};

use crate::config::KeyRing;

/// `X-MCPO-Key`: for connections whose `Authorization` is the user's own token.
pub(super) static KEY_HEADER: HeaderName = HeaderName::from_static("x-mcpo-key");

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

/// Looks at `X-MCPO-Key`, and only without it at `Authorization`, which may then belong to
/// somebody else.
pub(super) fn check<'a>(keys: &'a KeyRing, headers: &HeaderMap) -> KeyCheck<'a> {
    if keys.is_empty() {
        return KeyCheck::NotNeeded;
    }
    let value = |name| {
        let value = headers.get(name).map(|value| value.as_bytes().trim_ascii());
        value.filter(|value| !value.is_empty())
    };
    let offered = match (value(&KEY_HEADER), value(&AUTHORIZATION)) {
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
