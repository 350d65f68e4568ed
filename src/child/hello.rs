//! The first words with a child, and what it said of itself.

use std::{borrow::Cow, time::Duration};

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{
    ChildError,
    connection::{Closed, Connection},
    envelope,
};
use crate::model::RawJson;

/// What we are called.
pub const CLIENT: &str = "mcpo-bridge";
/// How long a server that refused `initialize` may take to say that it is of 2026-07-28: older ones
/// may stay silent.
const DISCOVERY: Duration = Duration::from_secs(3);

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
    pub protocol_version: Cow<'static, str>,
    /// What the caller can answer; everything else the bridge declines for him.
    pub capabilities: Map<String, Value>,
    /// The least log messages that the caller wants, for children that are told with each request.
    pub log_level: Option<Box<str>>,
}

impl Profile {
    /// The same text for profiles that a process cannot tell apart.
    pub fn key(&self) -> Cow<'static, str> {
        let era = match self.era {
            Era::Legacy => "legacy",
            Era::Modern => "modern",
        };
        if self.capabilities.is_empty() {
            return era.into();
        }
        let mut capabilities: Vec<String> = self
            .capabilities
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        capabilities.sort();
        // Revisions differ in little that a server looks at: only abilities need a child each.
        format!("{era} {}", capabilities.join(",")).into()
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
            log_level: None,
        }
    }

    /// For callers that can answer nothing: the OpenAPI door and the catalogue.
    pub fn silent() -> Self {
        Self {
            era: Era::Legacy,
            protocol_version: "2025-11-25".into(),
            capabilities: Map::new(),
            log_level: None,
        }
    }
}

/// A child's answer to `initialize` or `server/discover`.
#[derive(Debug, Clone)]
pub struct Hello {
    /// Which of both it answered, and so how the child is spoken to.
    pub era: Era,
    /// The whole result, as it came.
    pub raw: RawJson,
}

impl Hello {
    /// As an answer to `initialize`, which servers of 2026-07-28 do not give themselves.
    pub fn initialized(&self, name: &str) -> RawJson {
        if self.era == Era::Legacy {
            return self.raw.clone();
        }
        let info = self.raw.member("_meta");
        let info = info.and_then(|meta| meta.member("io.modelcontextprotocol/serverInfo"));
        let info = info.or_else(|| self.raw.member("serverInfo"));
        let info = info.unwrap_or_else(|| RawJson::of(&json!({"name": name, "version": ""})));
        let mut result = RawJson::empty_object();
        let instructions = self.raw.member("instructions");
        for (name, value) in [("instructions", instructions), ("serverInfo", Some(info))] {
            if let Some(value) = value {
                result = result.with_member(name, &value);
            }
        }
        let capabilities = self.raw.member("capabilities");
        let capabilities = capabilities.unwrap_or_else(RawJson::empty_object);
        let version = RawJson::of(&Profile::silent().protocol_version.as_ref().into());
        result
            .with_member("capabilities", &capabilities)
            .with_member("protocolVersion", &version)
    }
}

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
            refused: true,
        }
    }
}

/// Introduces us; the child is ready afterwards. One that refuses `initialize` is asked whether it
/// speaks 2026-07-28 alone.
pub async fn introduce(
    connection: &Connection,
    profile: &Profile,
) -> Result<Result<Hello, Refused>, Closed> {
    if profile.era == Era::Modern {
        return discover(connection).await;
    }
    let params = RawJson::of(&json!({
        "protocolVersion": profile.protocol_version,
        "capabilities": profile.capabilities,
        "clientInfo": {"name": CLIENT, "version": env!("CARGO_PKG_VERSION")},
    }));
    let raw = match connection.request("initialize", Some(&params)).await? {
        Ok(result) => result,
        Err(error) => {
            let discovery = tokio::time::timeout(DISCOVERY, discover(connection)).await;
            return Ok(match discovery {
                Ok(Ok(Ok(hello))) => Ok(hello),
                _ => Err(Refused::Rpc(error)),
            });
        }
    };
    if let Err(error) = raw.read::<HelloParts>() {
        return Ok(Err(Refused::NoHello(error)));
    }
    connection.notify("notifications/initialized", None);
    let era = Era::Legacy;
    Ok(Ok(Hello { era, raw }))
}

/// Asks a child of 2026-07-28 what it is, which also pins a process that could be either.
async fn discover(connection: &Connection) -> Result<Result<Hello, Refused>, Closed> {
    let params = envelope::params(None, &Profile::modern());
    let answer = connection.request("server/discover", Some(&params)).await?;
    let era = Era::Modern;
    Ok(answer
        .map(|raw| Hello { era, raw })
        .map_err(Refused::NotModern))
}
