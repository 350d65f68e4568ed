//! Protocol sessions on several replicas: the one that made it is its home, and its id says so. Where
//! a chat's child lives on another one, the session is a guest there, and the home passes on what
//! either side says.

use std::{collections::HashSet, fmt, str::FromStr};

use bridge_model::SessionId;
use bridge_state::InstanceId;
use parking_lot::Mutex;

/// An id that names the replica which knows it: `{token}.{instance}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Homed {
    /// The secret part.
    pub token: SessionId,
    /// The replica.
    pub home: InstanceId,
}

impl fmt::Display for Homed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.token.as_str(), self.home)
    }
}

/// Not an id of ours.
#[derive(Debug, thiserror::Error)]
#[error("not an id of this service")]
pub struct InvalidHomed;

impl FromStr for Homed {
    type Err = InvalidHomed;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (token, home) = text.split_once('.').ok_or(InvalidHomed)?;
        Ok(Self {
            token: token.parse().map_err(|_| InvalidHomed)?,
            home: home.parse().map_err(|_| InvalidHomed)?,
        })
    }
}

/// The replicas where a session is a guest.
#[derive(Debug, Default)]
pub struct Abroad(Mutex<HashSet<InstanceId>>);

impl Abroad {
    /// Notes one; `false` if it is known.
    pub fn add(&self, instance: InstanceId) -> bool {
        self.lock().insert(instance)
    }

    /// Its stream has ended: the next request that goes there opens another.
    pub fn remove(&self, instance: InstanceId) {
        self.lock().remove(&instance);
    }

    /// All of them.
    pub fn all(&self) -> Vec<InstanceId> {
        self.lock().iter().copied().collect()
    }

    fn lock(&self) -> parking_lot::MutexGuard<'_, HashSet<InstanceId>> {
        self.0.lock()
    }
}
