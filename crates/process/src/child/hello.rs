//! The first words with a child, and what it said of itself.

use std::time::Duration;

use bridge_protocol::{RawJson, era::Era, meta, method};
use serde_json::{Map, Value, json};

use super::{
    ChildError,
    connection::{Closed, Connection},
    envelope,
    profile::{CLIENT, Profile},
};

/// How long a server that refused `initialize` may take to say that it is of 2026-07-28: older ones
/// may stay silent.
const DISCOVERY: Duration = Duration::from_secs(3);

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
        let info = info.and_then(|meta| meta.member(meta::SERVER_INFO));
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
#[derive(Debug, Clone, Default)]
pub struct HelloParts {
    /// What it offers, each an object.
    pub capabilities: Map<String, Value>,
    /// Name and version.
    pub server_info: ServerInfo,
    /// Text for the model.
    pub instructions: Option<String>,
}

/// Who the child says it is.
#[derive(Debug, Clone, Default)]
pub struct ServerInfo {
    /// For programs.
    pub name: String,
    /// For people.
    pub title: Option<String>,
    /// Its own version.
    pub version: String,
}

impl HelloParts {
    /// Reads a result. A member of the wrong type counts as absent, and costs nothing beside it; the
    /// second part says what was so.
    pub fn of(raw: &RawJson) -> (Self, Vec<String>) {
        let mut odd = Vec::new();
        let mut text = |object: &RawJson, name: &str, shown: &str, needed: bool| {
            let found = object.member(name);
            let read: Option<String> = found.as_ref().and_then(|found| found.read().ok());
            if read.is_none() && (needed || found.is_some()) {
                let what = if found.is_some() {
                    "no text"
                } else {
                    "missing"
                };
                odd.push(format!("initialize: {shown} is {what}"));
            }
            read
        };
        let info = raw.member("serverInfo");
        let info = info.filter(|info| info.members().is_some());
        let info = info.unwrap_or_else(RawJson::empty_object);
        text(raw, "protocolVersion", "protocolVersion", true);
        let mut parts = Self {
            capabilities: Map::new(),
            server_info: ServerInfo {
                name: text(&info, "name", "serverInfo.name", true).unwrap_or_default(),
                title: text(&info, "title", "serverInfo.title", false),
                version: text(&info, "version", "serverInfo.version", true).unwrap_or_default(),
            },
            instructions: text(raw, "instructions", "instructions", false),
        };
        match raw.member("capabilities").map(|raw| raw.approximate()) {
            Some(Value::Object(members)) => {
                for (name, value) in members {
                    let value = match value {
                        Value::Object(_) => value,
                        // "No", in other words.
                        Value::Null | Value::Bool(false) => {
                            odd.push(format!("initialize: capabilities.{name} is {value}"));
                            continue;
                        }
                        _ => {
                            odd.push(format!("initialize: capabilities.{name} is no object"));
                            json!({})
                        }
                    };
                    parts.capabilities.insert(name, value);
                }
            }
            Some(_) => odd.push("initialize: capabilities is no object".to_owned()),
            None => odd.push("initialize: capabilities is missing".to_owned()),
        }
        (parts, odd)
    }
}

/// An answer to `initialize` or `server/discover` that is no welcome.
pub enum Refused {
    /// This error object.
    Rpc(RawJson),
    /// This error object, to `server/discover`.
    NotModern(RawJson),
    /// A result that is none.
    NoHello,
}

impl Refused {
    /// The error object, if it is one.
    pub fn error(&self) -> Option<&RawJson> {
        match self {
            Self::Rpc(error) | Self::NotModern(error) => Some(error),
            Self::NoHello => None,
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
            Refused::NoHello => (
                "its answer to initialize is no InitializeResult: it is no object",
                String::new(),
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
    let raw = match connection
        .request(method::INITIALIZE, Some(&params))
        .await?
    {
        Ok(result) => result,
        Err(error) => {
            let discovery = tokio::time::timeout(DISCOVERY, discover(connection)).await;
            return Ok(match discovery {
                Ok(Ok(Ok(hello))) => Ok(hello),
                _ => Err(Refused::Rpc(error)),
            });
        }
    };
    if raw.members().is_none() {
        return Ok(Err(Refused::NoHello));
    }
    connection.notify(method::INITIALIZED, None);
    let era = Era::Legacy;
    Ok(Ok(Hello { era, raw }))
}

/// Asks a child of 2026-07-28 what it is, which also pins a process that could be either.
async fn discover(connection: &Connection) -> Result<Result<Hello, Refused>, Closed> {
    let params = envelope::params(None, &Profile::modern());
    let answer = connection.request(method::DISCOVER, Some(&params)).await?;
    let era = Era::Modern;
    Ok(answer
        .map(|raw| Hello { era, raw })
        .map_err(Refused::NotModern))
}

/// The ability that a caller needs for what a child asks; `None` where we do not know the question.
pub fn needed(method: &str) -> Option<&'static str> {
    match method {
        method::ELICITATION_CREATE => Some("elicitation"),
        method::SAMPLING_CREATE_MESSAGE => Some("sampling"),
        method::ROOTS_LIST => Some("roots"),
        _ => None,
    }
}

/// Whether a caller with these abilities can be asked this, mode included.
pub fn can_answer(
    capabilities: &Map<String, Value>,
    needed: &str,
    params: Option<&RawJson>,
) -> bool {
    let Some(said) = capabilities.get(needed).filter(|said| !said.is_null()) else {
        return false;
    };
    if needed != "elicitation" {
        return true;
    }
    let mode = params.and_then(|params| params.member("mode")?.read::<String>().ok());
    let has = |mode: &str| said.get(mode).is_some();
    match mode.as_deref() {
        None | Some("form") => has("form") || !has("url"),
        Some(mode) => has(mode),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(value: Value) -> Map<String, Value> {
        match value {
            Value::Object(members) => members,
            other => panic!("{other} is no object"),
        }
    }

    #[test]
    fn a_child_hears_what_its_caller_can_do_in_one_spelling() {
        for (said, heard) in [
            (json!({}), json!({})),
            (
                json!({"elicitation": {"url": {}, "form": {}, "x": 1}}),
                json!({"elicitation": {"form": {}, "url": {}}}),
            ),
            (
                json!({"elicitation": {}}),
                json!({"elicitation": {"form": {}}}),
            ),
            (
                json!({"elicitation": {"url": {}}}),
                json!({"elicitation": {"url": {}}}),
            ),
            (
                json!({"sampling": {"tools": {}}, "roots": {"listChanged": true}, "experimental": {"a": {}}}),
                json!({"roots": {}, "sampling": {"tools": {}}}),
            ),
            (json!({"elicitation": null, "roots": true}), json!({})),
        ] {
            let profile = Profile::able(&object(said.clone()));
            assert_eq!(Value::Object(profile.capabilities), heard, "{said}");
        }
        let one = Profile::able(&object(json!({"roots": {}, "elicitation": {}})));
        let same = Profile::able(&object(json!({"elicitation": {"form": {}}, "roots": {}})));
        assert_eq!(one.key(), same.key());
    }

    #[test]
    fn questions_are_held_against_abilities_and_modes() {
        let can = |said: Value, mode: Option<&str>| {
            let params = mode.map(|mode| RawJson::of(&json!({"mode": mode})));
            can_answer(&object(said), "elicitation", params.as_ref())
        };
        assert!(can(json!({"elicitation": {}}), None));
        assert!(can(json!({"elicitation": {}}), Some("form")));
        assert!(!can(json!({"elicitation": {}}), Some("url")));
        assert!(can(json!({"elicitation": {"url": {}}}), Some("url")));
        assert!(!can(json!({"elicitation": {"url": {}}}), None));
        assert!(can(
            json!({"elicitation": {"form": {}, "url": {}}}),
            Some("url")
        ));
        assert!(!can(json!({"sampling": {}}), None));
    }

    #[test]
    fn an_odd_hello_costs_nothing_but_its_odd_members() {
        let raw = RawJson::parse(
            r#"{"protocolVersion":5,"capabilities":{"tools":true,"resources":false,"prompts":null,"logging":[],"x":{"y":1}},
                "serverInfo":{"name":null,"version":2,"title":"T"},"instructions":{},"\ud800":1,"capabilities":{}}"#
                .into(),
        );
        let (parts, odd) = HelloParts::of(&raw.unwrap());
        let capabilities = json!({"tools": {}, "logging": {}, "x": {"y": 1}});
        assert_eq!(Value::Object(parts.capabilities), capabilities);
        assert_eq!(parts.server_info.title.as_deref(), Some("T"));
        assert_eq!((&*parts.server_info.name, parts.instructions), ("", None));
        assert!(odd.len() >= 7, "{odd:?}");
        for info in ["null", "[]", "5", "{}"] {
            let raw =
                format!(r#"{{"protocolVersion":"1","capabilities":{{}},"serverInfo":{info}}}"#);
            let (_, odd) = HelloParts::of(&RawJson::parse(raw.into()).unwrap());
            assert_eq!(odd.len(), 2, "{info}");
        }
    }
}
