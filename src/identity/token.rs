//! Signed user tokens: what Open WebUI sends when it shares a secret with us.

use std::fmt;

use axum::http::{HeaderMap, HeaderName};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode};
use serde::Deserialize;

use super::Refusal;
use crate::{config::Secret, model::UserInfo};

/// Clocks of two machines differ by some seconds.
const LEEWAY_SECONDS: u64 = 30;
/// An id longer than this is nobody's.
const LONGEST_ID: usize = 1024;
/// Verifying costs time for every byte.
const LONGEST_TOKEN: usize = 16 * 1024;

/// Verifies tokens with one secret: HS256 and nothing else.
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
}

impl TokenReader {
    pub(super) fn new(secret: &Secret) -> Self {
        let mut validation = Validation::new(Algorithm::HS256);
        validation.set_required_spec_claims(&["sub"]);
        validation.leeway = LEEWAY_SECONDS;
        validation.validate_nbf = true;
        // The secret is between Open WebUI and its tool servers; it names no audience.
        validation.validate_aud = false;
        Self {
            key: DecodingKey::from_secret(secret.expose().as_bytes()),
            validation,
        }
    }

    /// The user of the token in `header`; none where there is no token.
    pub(super) fn read(
        &self,
        headers: &HeaderMap,
        header: &HeaderName,
    ) -> Result<Option<(Box<str>, UserInfo)>, Refusal> {
        let token = headers
            .get(header)
            .map(|value| value.as_bytes().trim_ascii());
        let Some(token) = token.filter(|token| !token.is_empty()) else {
            return Ok(None);
        };
        let claims = self.verify(token).ok_or_else(|| Refusal::InvalidToken {
            header: header.to_string(),
        })?;
        let filled = |text: Option<Box<str>>| text.filter(|text| !text.is_empty());
        let user = UserInfo {
            name: filled(claims.name),
            email: filled(claims.email),
            role: filled(claims.role),
            groups: Vec::new(),
        };
        Ok(Some((claims.sub, user)))
    }

    fn verify(&self, token: &[u8]) -> Option<Claims> {
        if token.len() > LONGEST_TOKEN {
            return None;
        }
        let claims = decode::<Claims>(token, &self.key, &self.validation)
            .ok()?
            .claims;
        let id = &claims.sub;
        // The same bounds as for plain headers, which can hold no control characters either.
        let good =
            !id.trim().is_empty() && id.len() <= LONGEST_ID && !id.contains(char::is_control);
        good.then_some(claims)
    }
}

impl fmt::Debug for TokenReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenReader")
    }
}
