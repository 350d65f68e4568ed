//! The first words with a child, and what it said of itself.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{ChildError, connection::Connection};
use crate::model::RawJson;

/// Which side of the protocol's break a conversation is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Era {
    /// 2024-11-05 to 2025-11-25: `initialize`, one conversation per process.
    Legacy,
    /// 2026-07-28: every request is complete in itself.
    Modern,
}

/// How a child is spoken to. Fixed by a session's first caller: a process hears it once.
#[derive(Debug, Clone, PartialEq)]
pub struct Profile {
    /// Which form of the protocol.
    pub era: Era,
    /// The revision we ask for.
    pub protocol_version: Box<str>,
    /// What the caller can answer; everything else the bridge declines for him.
    pub capabilities: Map<String, Value>,
}

impl Profile {
    /// The same text for profiles that a process cannot tell apart.
    pub fn key(&self) -> String {
        let mut capabilities: Vec<String> = self
            .capabilities
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        capabilities.sort();
        // Revisions differ in little that a server looks at: only abilities need a child each.
        format!("{:?} {}", self.era, capabilities.join(","))
    }

    /// For callers whose abilities come with each request: the child is told that everything can be
    /// answered, and what one caller cannot is found out when he is asked.
    pub fn able() -> Self {
        let names = ["elicitation", "roots", "sampling"];
        let able = names.map(|name| (name.to_owned(), Value::Object(Map::new())));
        Self {
            capabilities: able.into_iter().collect(),
            ..Self::silent()
        }
    }

    /// For callers of 2026-07-28: version and abilities come with each request.
    pub fn modern() -> Self {
        Self {
            era: Era::Modern,
            protocol_version: "2026-07-28".into(),
            capabilities: Map::new(),
        }
    }

    /// For callers that can answer nothing: the OpenAPI door and the catalogue.
    pub fn silent() -> Self {
        Self {
            era: Era::Legacy,
            protocol_version: "2025-11-25".into(),
            capabilities: Map::new(),
        }
    }
}

/// A child's answer to `initialize` or `server/discover`: the whole result, as it came.
#[derive(Debug, Clone)]
pub struct Hello(pub RawJson);

/// What we read of the answer to `initialize`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HelloParts {
    /// The revision that the child chose.
    pub protocol_version: String,
    /// What it offers.
    pub capabilities: Map<String, Value>,
    /// Name and version.
    pub server_info: ServerInfo,
    /// Text for the model.
    pub instructions: Option<String>,
}

/// Who the child says it is.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct ServerInfo {
    /// For programs.
    pub name: String,
    /// For people.
    pub title: Option<String>,
    /// Its own version.
    pub version: String,
}

/// An answer to `initialize` or `server/discover` that is no welcome.
pub enum Refused {
    /// This error object.
    Rpc(RawJson),
    /// This error object, to `server/discover`.
    NotModern(RawJson),
    /// A result that is none, and why.
    NoHello(serde_json::Error),
}

impl Refused {
    /// The error object, if it is one.
    pub fn error(&self) -> Option<&RawJson> {
        match self {
            Self::Rpc(error) | Self::NotModern(error) => Some(error),
            Self::NoHello(_) => None,
        }
    }
}

impl From<Refused> for ChildError {
    fn from(refused: Refused) -> Self {
        let (why, said) = match refused {
            Refused::Rpc(error) => (
                "it answered initialize with an error",
                format!(": {}", error.as_str()),
            ),
            Refused::NotModern(error) => (
                "it does not speak the revision 2026-07-28",
                format!(": {}", error.as_str()),
            ),
            Refused::NoHello(error) => (
                "its answer to initialize is no InitializeResult",
                format!(": {error}"),
            ),
        };
        Self::NotStarted {
            why: why.to_owned(),
            said,
        }
    }
}

/// Introduces us; the child is ready afterwards.
pub async fn introduce(
    connection: &Connection,
    profile: &Profile,
) -> Result<Result<Hello, Refused>, super::connection::Closed> {
    if profile.era == Era::Modern {
        return discover(connection, profile).await;
    }
    let params = RawJson::of(&json!({
        "protocolVersion": profile.protocol_version,
        "capabilities": profile.capabilities,
        "clientInfo": {"name": "mcpo-bridge", "version": env!("CARGO_PKG_VERSION")},
    }));
    let raw = match connection.request("initialize", Some(&params)).await? {
        Ok(result) => result,
        Err(error) => return Ok(Err(Refused::Rpc(error))),
    };
    if let Err(error) = raw.read::<HelloParts>() {
        return Ok(Err(Refused::NoHello(error)));
    }
    connection.notify("notifications/initialized", None);
    Ok(Ok(Hello(raw)))
}

/// Asks a child of 2026-07-28 what it is, which also pins a process that could be either.
async fn discover(
    connection: &Connection,
    profile: &Profile,
) -> Result<Result<Hello, Refused>, super::connection::Closed> {
    let params = RawJson::of(&json!({"_meta": {
        "io.modelcontextprotocol/protocolVersion": profile.protocol_version,
        "io.modelcontextprotocol/clientCapabilities": profile.capabilities,
        "io.modelcontextprotocol/clientInfo": {
            "name": "mcpo-bridge",
            "version": env!("CARGO_PKG_VERSION"),
        },
    }}));
    Ok(
        match connection.request("server/discover", Some(&params)).await? {
            Ok(result) => Ok(Hello(result)),
            Err(error) => Err(Refused::NotModern(error)),
        },
    )
}
