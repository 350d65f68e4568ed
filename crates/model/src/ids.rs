//! Identifiers. Those that grant access are random and print only as a short digest in logs.

use std::{borrow::Borrow, fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::hash::hex;

/// The name of a workspace folder: a random UUID, so that a neighbour cannot guess it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JobId(Uuid);

impl JobId {
    /// A fresh id from the system's random source.
    pub fn random() -> Self {
        Self(Uuid::new_v4())
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

impl FromStr for JobId {
    type Err = uuid::Error;
    /// Accepts the hyphenated form only, as the folder is named.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let id = Uuid::parse_str(text)?;
        if id.hyphenated().to_string() == text {
            Ok(Self(id))
        } else {
            // The other spellings of a UUID are no names of ours.
            Uuid::parse_str("").map(Self)
        }
    }
}

/// Base58: no `0OIl`, nothing that a URL or markdown would escape, a model copies it whole.
const ALPHABET: &[u8; 58] = b"123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz";

/// 22 × log2(58) = 128.9 bits.
const TOKEN_LENGTH: usize = 22;

fn random_token() -> Box<str> {
    let mut token = String::with_capacity(TOKEN_LENGTH);
    let mut bytes = [0_u8; 64];
    while token.len() < TOKEN_LENGTH {
        getrandom::fill(&mut bytes).expect("the operating system provides random numbers");
        // Rejection keeps every letter equally likely: 232 is the last multiple of 58 in a byte.
        let letters = bytes.iter().filter(|byte| **byte < 232);
        let room = TOKEN_LENGTH - token.len();
        token.extend(
            letters
                .take(room)
                .map(|byte| char::from(ALPHABET[usize::from(*byte) % 58])),
        );
    }
    token.into_boxed_str()
}

/// The text is not one of our tokens.
#[derive(Debug, thiserror::Error)]
#[error("not a token: expected {TOKEN_LENGTH} base58 characters")]
pub struct InvalidToken;

fn parse_token(text: &str) -> Result<Box<str>, InvalidToken> {
    let good = text.len() == TOKEN_LENGTH && text.bytes().all(|byte| ALPHABET.contains(&byte));
    if good {
        Ok(text.into())
    } else {
        Err(InvalidToken)
    }
}

fn short_digest(text: &str) -> String {
    let digest = Sha256::digest(text.as_bytes());
    hex(&digest[..4])
}

macro_rules! token {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, Serialize)]
        #[serde(transparent)]
        pub struct $name(Box<str>);

        impl $name {
            /// A fresh token of 128.9 random bits.
            pub fn random() -> Self {
                Self(random_token())
            }
            /// The secret text itself: for URLs and file names, never for logs.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidToken;
            fn from_str(text: &str) -> Result<Self, InvalidToken> {
                parse_token(text).map(Self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(from)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }

        /// Logs get a digest, with which the token cannot be used.
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "#{}", short_digest(&self.0))
            }
        }
    };
}

token! {
    /// The capability in a download link: it opens one version of one file and nothing else.
    LinkToken
}

token! {
    /// A session id that we minted for a caller who sent no chat (`X-MCPO-Session`).
    SessionId
}

/// Job ids reach logs as a digest only.
impl fmt::Debug for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", short_digest(&self.to_string()))
    }
}

// The name of a server: a key of `mcpServers`.

/// 1–255 characters, none of them `\ ? # %` nor a control character. A slash stands between parts that
/// URLs can have, as in `@scope/name` and `github.com/owner/name`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct ServerName(Arc<str>);

/// Why a name was refused, with the fix.
#[derive(Debug, thiserror::Error)]
#[error(
    "invalid server name: use 1 to 255 characters without \\ ? # % and control characters, and no \
     path segment that is empty, '.' or '..'"
)]
pub struct InvalidServerName;

impl ServerName {
    /// The name as written in the config.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ServerName {
    type Err = InvalidServerName;
    fn from_str(text: &str) -> Result<Self, InvalidServerName> {
        let length = text.chars().count();
        let odd = |c: char| c.is_control() || "\\?#%".contains(c);
        let lost = |part: &str| matches!(part, "" | "." | "..");
        if length > 255 || text.contains(odd) || text.split('/').any(lost) {
            return Err(InvalidServerName);
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for ServerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ServerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

impl<'de> Deserialize<'de> for ServerName {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl Borrow<str> for ServerName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_long_distinct_and_survive_parsing() {
        let (one, two) = (LinkToken::random(), LinkToken::random());
        assert_ne!(one.as_str(), two.as_str());
        assert_eq!(one.as_str().parse::<LinkToken>().unwrap(), one);
        for bad in [
            "",
            "../../etc/passwd",
            "0OIl0OIl0OIl0OIl0OIl00",
            &"a".repeat(23),
        ] {
            assert!(bad.parse::<LinkToken>().is_err(), "{bad}");
        }
    }

    #[test]
    fn debug_output_hides_the_token() {
        let token = LinkToken::random();
        assert!(!format!("{token:?}").contains(token.as_str()));
    }

    #[test]
    fn a_job_id_has_one_spelling() {
        let id = JobId::random();
        assert_eq!(id.to_string().parse::<JobId>().unwrap(), id);
        assert!(id.to_string().to_uppercase().parse::<JobId>().is_err());
        assert!(id.to_string().replace('-', "").parse::<JobId>().is_err());
    }
}
