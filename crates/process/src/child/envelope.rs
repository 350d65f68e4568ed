//! What requests of 2026-07-28 carry in `_meta`: revision and abilities, each time anew.

use bridge_protocol::{Member, RawJson, meta, revision};
use bytes::Bytes;
use serde_json::{Value, json};

use super::profile::{CLIENT, Profile};

/// A request of an older revision as one of 2026-07-28, from a client with this profile.
pub fn envelop(line: &Bytes, profile: &Profile) -> Bytes {
    let Ok(whole) = RawJson::parse(line.clone()) else {
        return line.clone();
    };
    let params = params(whole.member("params").as_ref(), profile);
    whole.with_member("params", &params).into_bytes()
}

/// The params of a request with the envelope in them.
pub fn params(params: Option<&RawJson>, profile: &Profile) -> RawJson {
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
        whole = whole.with_member(name, &RawJson::of(&value));
    }
    params.with_member("_meta", &whole)
}

/// A request of 2026-07-28 as one of an older revision: without what only the newer one puts into
/// `_meta`, which some older servers refuse.
pub fn unfold(line: &Bytes) -> Bytes {
    let unfolded = || {
        let whole = RawJson::parse(line.clone()).ok()?;
        let params = whole.member("params")?;
        let members = params.member("_meta")?.members()?;
        let reserved = |member: &Member| {
            let name: Result<String, _> = member.name.read();
            name.is_ok_and(|name| name.starts_with(meta::RESERVED_PREFIX))
        };
        let kept: Vec<String> = members
            .iter()
            .filter(|member| !reserved(member))
            .map(|member| format!("{}:{}", member.name.as_str(), member.value.as_str()))
            .collect();
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
