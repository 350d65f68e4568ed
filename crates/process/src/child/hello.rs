//! The initialisation of a child, and its response.

use std::time::Duration;

use bridge_protocol::{Member, RawJson, era::Era, meta, method, revision};
use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::{
    ChildError,
    connection::{Closed, Connection},
};
use crate::spec::Profile;

/// The name of the client.
const CLIENT: &str = "mcpo-bridge";

/// The time for a server that rejected `initialize` to respond to `server/discover`: older servers
/// may not respond at all.
const DISCOVERY: Duration = Duration::from_secs(3);

/// A child's response to `initialize` or `server/discover`.
#[derive(Debug, Clone)]
pub struct Hello {
    /// The form of the protocol that the child uses, according to its response.
    pub era: Era,
    /// The whole result, unchanged.
    pub raw: RawJson,
}

impl Hello {
    /// The result in the form of a response to `initialize`, which servers of 2026-07-28 do not
    /// send.
    pub fn initialized(&self, name: &str) -> RawJson {
        if self.era == Era::Legacy {
            return self.raw.clone();
        }
        let meta = self.raw.member("_meta");
        let info = meta.and_then(|meta| meta.member(meta::SERVER_INFO));
        let info = info.or_else(|| self.raw.member("serverInfo"));
        let unnamed = || RawJson::from_json(&json!({"name": name, "version": ""}));
        let capabilities = self.raw.member("capabilities");
        let version = RawJson::from_json(&Profile::silent().protocol_version.as_ref().into());
        let members = [
            ("instructions", self.raw.member("instructions")),
            ("serverInfo", Some(info.unwrap_or_else(unnamed))),
            (
                "capabilities",
                Some(capabilities.unwrap_or_else(RawJson::empty_object)),
            ),
            ("protocolVersion", Some(version)),
        ];
        let members = members
            .into_iter()
            .filter_map(|(name, value)| Some((name, value?)));
        members.fold(RawJson::empty_object(), |result, (name, value)| {
            result.with_member(name, &value)
        })
    }
}

/// The parts of a response to `initialize` that the bridge uses.
#[derive(Debug, Clone, Default)]
pub struct HelloParts {
    /// Its capabilities, each an object.
    pub capabilities: Map<String, Value>,
    /// Name and version.
    pub server_info: ServerInfo,
    /// The instructions for the model.
    pub instructions: Option<String>,
}

/// The child's description of itself.
#[derive(Debug, Clone, Default)]
pub struct ServerInfo {
    /// The name for programs.
    pub name: String,
    /// The name for users.
    pub title: Option<String>,
    /// The server's version.
    pub version: String,
}

impl HelloParts {
    /// Reads a result. A member of the wrong type counts as absent, without effect on others; the
    /// second part lists them.
    pub fn read(raw: &RawJson) -> (Self, Vec<String>) {
        let mut odd = Vec::new();
        let mut text = |object: &RawJson, name: &str, shown: &str, needed: bool| {
            let found = object.member(name);
            let read: Option<String> = found.as_ref().and_then(|found| found.read().ok());
            if read.is_none() && (needed || found.is_some()) {
                let what = found.map_or("missing", |_| "not a string");
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
                        // The child does not have the capability.
                        Value::Null | Value::Bool(false) => {
                            odd.push(format!("initialize: capabilities.{name} is {value}"));
                            continue;
                        }
                        _ => {
                            odd.push(format!("initialize: capabilities.{name} is not an object"));
                            json!({})
                        }
                    };
                    parts.capabilities.insert(name, value);
                }
            }
            Some(_) => odd.push("initialize: capabilities is not an object".to_owned()),
            None => odd.push("initialize: capabilities is missing".to_owned()),
        }
        (parts, odd)
    }
}

/// An unsuitable response to `initialize` or `server/discover`.
pub struct Refused {
    why: &'static str,
    /// The error object, if it is one.
    pub error: Option<RawJson>,
}

impl From<Refused> for ChildError {
    fn from(refused: Refused) -> Self {
        let said = refused.error.map(|error| format!(": {}", error.as_str()));
        Self::NotStarted {
            why: refused.why.to_owned(),
            said: said.unwrap_or_default(),
            refused: true,
        }
    }
}

/// Initialises a child, which is ready afterwards. If it rejects `initialize`, checks whether it
/// only supports 2026-07-28.
pub async fn introduce(
    connection: &Connection,
    profile: &Profile,
) -> Result<Result<Hello, Refused>, Closed> {
    if profile.era == Era::Modern {
        return discover(connection).await;
    }
    let params = RawJson::from_json(&json!({
        "protocolVersion": profile.protocol_version,
        "capabilities": profile.capabilities,
        "clientInfo": {"name": CLIENT, "version": env!("CARGO_PKG_VERSION")},
    }));
    let answer = connection
        .request(method::INITIALIZE, Some(&params))
        .await?;
    let raw = match answer {
        Ok(result) => result,
        Err(error) => {
            let discovery = tokio::time::timeout(DISCOVERY, discover(connection)).await;
            return Ok(match discovery {
                Ok(Ok(Ok(hello))) => Ok(hello),
                _ => Err(Refused {
                    why: "initialize returned an error",
                    error: Some(error),
                }),
            });
        }
    };
    if raw.members().is_none() {
        let why = "the result of initialize is not an InitializeResult: it is not an object";
        return Ok(Err(Refused { why, error: None }));
    }
    connection.notify(method::INITIALIZED, None);
    let era = Era::Legacy;
    Ok(Ok(Hello { era, raw }))
}

/// Sends `server/discover`, which also selects 2026-07-28 in a child that supports both.
async fn discover(connection: &Connection) -> Result<Result<Hello, Refused>, Closed> {
    let params = modern_params(None, &Profile::modern());
    let answer = connection.request(method::DISCOVER, Some(&params)).await?;
    let (era, why) = (Era::Modern, "it does not support revision 2026-07-28");
    let refused = |error| Refused {
        why,
        error: Some(error),
    };
    Ok(answer.map(|raw| Hello { era, raw }).map_err(refused))
}

// The content of `_meta` in requests of 2026-07-28: revision and capabilities, in each request.

/// Converts a request of an older revision to one of 2026-07-28, from a client with this profile.
pub fn envelop(line: &Bytes, profile: &Profile) -> Bytes {
    let Ok(whole) = RawJson::parse(line.clone()) else {
        return line.clone();
    };
    let params = modern_params(whole.member("params").as_ref(), profile);
    whole.with_member("params", &params).into_bytes()
}

/// The params of a request, with revision and capabilities added to `_meta`.
pub fn modern_params(params: Option<&RawJson>, profile: &Profile) -> RawJson {
    let params = params.cloned().unwrap_or_else(RawJson::empty_object);
    let whole = params.member("_meta");
    let mut whole = whole.unwrap_or_else(RawJson::empty_object);
    let mut parts = vec![
        (
            meta::CLIENT_INFO,
            json!({"name": CLIENT, "version": env!("CARGO_PKG_VERSION")}),
        ),
        (
            meta::CLIENT_CAPABILITIES,
            Value::Object(profile.capabilities.clone()),
        ),
        (meta::PROTOCOL_VERSION, revision::MODERN.into()),
    ];
    let level = profile.log_level.as_deref();
    parts.extend(level.map(|level| (meta::LOG_LEVEL, Value::from(level))));
    for (name, value) in parts {
        whole = whole.with_member(name, &RawJson::from_json(&value));
    }
    params.with_member("_meta", &whole)
}

/// Converts a request of 2026-07-28 to one of an older revision: removes the members of `_meta`
/// that only the newer revision defines, and that some older servers reject.
pub fn unfold(line: &Bytes) -> Bytes {
    let unfolded = || {
        let whole = RawJson::parse(line.clone()).ok()?;
        let params = whole.member("params")?;
        let members = params.member("_meta")?.members()?;
        let reserved = |member: &Member| {
            let name: Result<String, _> = member.name.read();
            name.is_ok_and(|name| name.starts_with(meta::RESERVED_PREFIX))
        };
        let kept = members.iter().filter(|member| !reserved(member));
        let kept = kept.map(|kept| format!("{}:{}", kept.name.as_str(), kept.value.as_str()));
        let kept: Vec<String> = kept.collect();
        let kept = RawJson::parse(format!("{{{}}}", kept.join(",")).into()).ok()?;
        let params = params.with_member("_meta", &kept);
        Some(whole.with_member("params", &params).into_bytes())
    };
    unfolded().unwrap_or_else(|| line.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_odd_hello_costs_nothing_but_its_odd_members() {
        let raw = RawJson::parse(
            r#"{"capabilities":{},"protocolVersion":5,"capabilities":{"tools":true,"resources":false,"prompts":null,"logging":[],"x":{"y":1}},
                "serverInfo":{"name":null,"version":2,"title":"T"},"instructions":{},"\ud800":1}"#
                .into(),
        );
        let (parts, odd) = HelloParts::read(&raw.unwrap());
        let capabilities = json!({"tools": {}, "logging": {}, "x": {"y": 1}});
        assert_eq!(Value::Object(parts.capabilities), capabilities);
        assert_eq!(parts.server_info.title.as_deref(), Some("T"));
        assert_eq!((&*parts.server_info.name, parts.instructions), ("", None));
        assert!(odd.len() >= 7, "{odd:?}");
        for info in ["null", "[]", "5", "{}"] {
            let raw =
                format!(r#"{{"protocolVersion":"1","capabilities":{{}},"serverInfo":{info}}}"#);
            let (_, odd) = HelloParts::read(&RawJson::parse(raw.into()).unwrap());
            assert_eq!(odd.len(), 2, "{info}");
        }
    }
}

#[cfg(test)]
mod envelope_tests {
    use super::*;

    #[test]
    fn an_envelope_is_put_on_and_taken_off_and_all_other_bytes_stay() {
        let profile = Profile {
            log_level: Some("info".into()),
            ..Profile::silent()
        };
        for (line, back) in [
            (
                r#"{"method":"m","id":1}"#,
                r#"{"params":{"_meta":{}},"method":"m","id":1}"#,
            ),
            (
                r#"{"method":"m","params":{ "x":1e400,"_meta":{"progressToken":7,"a":1.0} },"y":1.0}"#,
                r#"{"method":"m","params":{ "x":1e400,"_meta":{"progressToken":7,"a":1.0} },"y":1.0}"#,
            ),
        ] {
            let newer = envelop(&Bytes::from_static(line.as_bytes()), &profile);
            let whole = RawJson::parse(newer.clone()).unwrap();
            let sent = whole.member("params").unwrap().member("_meta").unwrap();
            let said = |name: &str| {
                sent.member(&format!("{}{name}", meta::RESERVED_PREFIX))
                    .unwrap()
            };
            assert_eq!(said("protocolVersion").as_str(), r#""2026-07-28""#);
            assert_eq!(said("clientCapabilities").as_str(), "{}");
            assert_eq!(said("logLevel").as_str(), r#""info""#);
            assert_eq!(unfold(&newer), back);
        }
    }
}
