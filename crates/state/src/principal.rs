//! The owner of a workspace or link, as it is written to disk.

use bridge_model::Principal;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// SHA-256 of a principal, lower-case hex: enough to find his things again, not to name him.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PrincipalHash(Box<str>);

impl From<&Principal> for PrincipalHash {
    fn from(principal: &Principal) -> Self {
        let (kind, name) = principal.tagged();
        let mut hash = Sha256::new();
        for part in ["mcpo-bridge principal v1", kind, name] {
            // Lengths keep ("ab","c") and ("a","bc") apart.
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part.as_bytes());
        }
        let digest = hash.finalize();
        Self(digest.iter().map(|byte| format!("{byte:02x}")).collect())
    }
}
