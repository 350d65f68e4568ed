//! The name of a server: a key of `mcpServers`.

use std::{borrow::Borrow, fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// 1–255 characters, none of them `\ ? # %` nor a control character. A slash stands between parts that
/// URLs can have, as in `@scope/name` and `github.com/owner/name`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServerName(Arc<str>);

/// Why a name was refused, with the fix.
#[derive(Debug, thiserror::Error)]
#[error(
    "a server name has 1 to 255 characters, none of them \\ ? # % or a control character, and \
     no part between slashes is empty, '.' or '..': rename it"
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

impl Serialize for ServerName {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&self.0)
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
