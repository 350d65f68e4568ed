//! The secret that replicas prove themselves to each other with.

use std::fmt;

use jsonwebtoken::{DecodingKey, EncodingKey};

use crate::{
    config::Secret,
    store::{Store, StoreError},
};

/// Signs and verifies. All replicas on a jobs folder have the same.
pub struct PeerKey {
    pub(super) sign: EncodingKey,
    pub(super) verify: DecodingKey,
}

impl PeerKey {
    /// The one of the settings, else the one that lies in the jobs folder.
    pub fn new(given: Option<&Secret>, store: &Store) -> Result<Self, StoreError> {
        Ok(match given {
            Some(secret) => Self::of(secret.expose().as_bytes()),
            None => Self::of(&store.peer_key()?),
        })
    }

    /// With these bytes.
    pub fn of(secret: &[u8]) -> Self {
        Self {
            sign: EncodingKey::from_secret(secret),
            verify: DecodingKey::from_secret(secret),
        }
    }
}

impl fmt::Debug for PeerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PeerKey")
    }
}
