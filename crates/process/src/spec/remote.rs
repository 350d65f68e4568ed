//! A server somewhere else, before and after it is given a user.

use std::fmt;

use indexmap::IndexMap;
use url::Url;

use super::user_values::{UserValues, fill};

/// A remote server. `Debug` shows the origin of the URL and the names of the headers.
#[derive(Clone, PartialEq, Eq)]
pub struct RemoteSpec {
    /// `http` or `https`; may hold a secret in its path or query.
    pub url: Url,
    /// The protocol spoken there.
    pub kind: RemoteKind,
    /// Sent with every request; names and values are valid HTTP. Values may be secrets.
    pub headers: IndexMap<String, String>,
}

impl RemoteSpec {
    /// With headers for this user.
    #[must_use]
    pub fn for_user(&self, user: &UserValues) -> Self {
        let user = user.in_headers();
        let filled = self.headers.iter();
        let filled = filled.map(|(name, value)| (name.clone(), fill(value, &user.pairs())));
        Self {
            headers: filled.collect(),
            ..self.clone()
        }
    }
}

impl fmt::Debug for RemoteSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteSpec")
            .field("origin", &self.url.origin().ascii_serialization())
            .field("kind", &self.kind)
            .field("headers", &self.headers.keys())
            .finish_non_exhaustive()
    }
}

/// The protocol of a remote server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RemoteKind {
    /// MCP Streamable HTTP.
    StreamableHttp,
    /// HTTP with server-sent events, of revision 2024-11-05.
    Sse,
}
