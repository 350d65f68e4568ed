//! One running bridge among those that share the folder.

use std::{fmt, fs::File, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// How often [`super::Store::renew`] is due. A silent instance counts as dead after three of them.
pub const HEARTBEAT_EVERY: Duration = Duration::from_secs(10);

/// Names one run of one bridge process. Random; not a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct InstanceId(Uuid);

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

impl FromStr for InstanceId {
    type Err = uuid::Error;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Uuid::try_parse(text).map(Self)
    }
}

/// This process: holds the lock that tells others that it lives.
#[derive(Debug)]
pub struct Instance {
    id: InstanceId,
    /// Locked for as long as it is open.
    _alive: File,
}

impl Instance {
    /// The id under which this run holds its leases.
    pub fn id(&self) -> InstanceId {
        self.id
    }
}
