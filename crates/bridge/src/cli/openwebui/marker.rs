//! How a connection of ours is known again: by a header of its own. Open WebUI's page for editing
//! connections keeps headers, and drops members that it does not know.

use std::fmt;

use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// Its name.
pub const HEADER: &str = "X-MCPO-Connection";

/// `owner/server; grants=…; info=…`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Marker {
    /// Which bridge's, where several keep connections in one Open WebUI.
    pub owner: String,
    /// The server in the config.
    pub server: String,
    /// Of the access grants that we set; if they have another one now, an administrator changed them.
    pub grants: String,
    /// The same of name and description.
    pub info: String,
}

impl Marker {
    /// The marker of a connection; `None` if we did not create it.
    pub fn of(connection: &Value) -> Option<Self> {
        let headers = connection["headers"].as_object()?;
        let ours = headers
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(HEADER));
        let mut parts = ours?.1.as_str()?.split(';').map(str::trim);
        let (owner, server) = parts.next()?.split_once('/')?;
        let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
        let mut rest = parts.filter_map(|part| part.split_once('='));
        let mut digest = |wanted: &str| {
            let found = rest.find(|(name, _)| *name == wanted);
            found.map_or_else(String::new, |(_, digest)| digest.to_owned())
        };
        Some(Self {
            owner: decoded(owner),
            server: decoded(server),
            grants: digest("grants"),
            info: digest("info"),
        })
    }
}

impl fmt::Display for Marker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let encoded = |text| utf8_percent_encode(text, NON_ALPHANUMERIC);
        let (owner, server) = (encoded(&self.owner), encoded(&self.server));
        let (grants, info) = (&self.grants, &self.info);
        write!(f, "{owner}/{server}; grants={grants}; info={info}")
    }
}

/// A short digest of the grants in a connection; their order does not count, nor what else Open
/// WebUI keeps beside them.
pub fn grants_digest(connection: &Value) -> String {
    let grants = connection["config"]["access_grants"].as_array();
    let mut lines: Vec<String> = grants
        .into_iter()
        .flatten()
        .map(|grant| {
            let text = |key: &str| grant[key].as_str().unwrap_or_default();
            let (kind, id) = (text("principal_type"), text("principal_id"));
            format!("{kind} {id} {}", text("permission"))
        })
        .collect();
    lines.sort();
    digest(&lines.join("\n"))
}

/// A short digest of what people read.
pub fn info_digest(connection: &Value) -> String {
    let text = |key: &str| connection["info"][key].as_str().unwrap_or_default();
    digest(&format!("{}\n{}", text("name"), text("description")))
}

fn digest(text: &str) -> String {
    let hash = Sha256::digest(text);
    hash[..6]
        .iter()
        .fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"))
}
