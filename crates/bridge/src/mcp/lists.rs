//! Answers from the catalogue, without a process.

use std::fmt::Write as _;

use bridge_protocol::{
    ClientMessage, RawJson, code,
    jsonrpc::{Reply, splice},
    last_members, meta,
    meta::SUBSCRIPTION_ID,
    method,
    revision::{LEGACY, MODERN},
};
use bytes::Bytes;
use serde_json::{Value, json};

use crate::{catalog::Offer, config::ServerSpec};

/// The revision agreed with a client that requests `wanted`.
pub fn agree(wanted: Option<&str>) -> &'static str {
    LEGACY
        .iter()
        .find(|version| Some(**version) == wanted)
        .unwrap_or(&LEGACY[0])
}

/// The server's own `initialize` result, with the agreed revision.
pub fn initialize(offer: &Offer, version: &str) -> RawJson {
    let hello = &offer.learnt.hello_raw;
    let version = RawJson::from_json(&version.into());
    match hello.member("protocolVersion") {
        Some(said) => hello.exchange(&said, &version),
        None => hello.clone(),
    }
}

/// The result of a list method, as a single page; `None` for other methods, and for lists that depend on
/// the caller's child.
pub fn list(offer: &Offer, method: &str) -> Option<RawJson> {
    if offer.spec.session_lists {
        return None;
    }
    let learnt = &offer.learnt;
    let (key, items) = match method {
        method::TOOLS_LIST => return Some(page("tools", offer.tools().map(|tool| &tool.raw))),
        method::PROMPTS_LIST => ("prompts", &learnt.prompts),
        method::RESOURCES_LIST => ("resources", &learnt.resources),
        method::RESOURCES_TEMPLATES_LIST => ("resourceTemplates", &learnt.templates),
        _ => return None,
    };
    Some(page(key, items.iter()))
}

/// A list as a single page.
pub fn page<'a>(key: &str, items: impl Iterator<Item = &'a RawJson>) -> RawJson {
    let items: Vec<RawJson> = items.cloned().collect();
    RawJson::empty_object().with_member(key, &RawJson::of_elements(&items))
}

/// Whether the method is a list or a read, whose result has a lifetime.
pub fn holds(method: &str) -> bool {
    matches!(
        method,
        method::TOOLS_LIST
            | method::PROMPTS_LIST
            | method::RESOURCES_LIST
            | method::RESOURCES_TEMPLATES_LIST
            | method::RESOURCES_READ
    )
}

/// A child's own `tools/list` result, reduced to the tools that the config offers.
pub fn offered(reply: Reply, spec: &ServerSpec) -> Reply {
    let result = reply.outcome.as_ref().ok();
    let place = result.and_then(|result| result.member("tools"));
    let tools = place.as_ref().and_then(RawJson::elements);
    let Some((place, mut tools)) = place.zip(tools) else {
        return reply;
    };
    let listed = tools.len();
    tools.retain(|tool| {
        let name: Option<String> = tool.member("name").and_then(|name| name.read().ok());
        name.is_none_or(|name| spec.offers(&name))
    });
    if tools.len() == listed {
        return reply;
    }
    let kept = RawJson::of_elements(&tools);
    let line = splice(&reply.line, &[(&place, kept.as_bytes())]);
    Reply::read(&line).unwrap_or(reply)
}

/// A result as the response to a message.
pub fn answer(message: &ClientMessage, result: &RawJson) -> Bytes {
    let id = message.answer_id();
    format!(
        r#"{{"jsonrpc":"2.0","id":{},"result":{}}}"#,
        id.as_str(),
        result.as_str()
    )
    .into()
}

/// A notification without parameters of its own; for modern clients it has the id of their subscription.
pub fn notification(method: &str, subscription: Option<&RawJson>) -> Bytes {
    let params = subscription.map_or_else(String::new, |id| {
        let id = id.as_str();
        format!(r#","params":{{"_meta":{{"{SUBSCRIPTION_ID}":{id}}}}}"#)
    });
    format!(r#"{{"jsonrpc":"2.0","method":"{method}"{params}}}"#).into()
}

/// How long a list or a read may be cached, in milliseconds: short, because its content may change at any
/// time, and another request is cheap.
pub const TTL: u64 = 1000;

/// The server's identity and capabilities, for clients without a session.
pub fn discover(offer: &Offer) -> RawJson {
    let hello = &offer.learnt.hello;
    let info = offer.learnt.hello_raw.member("serverInfo");
    let info: Value = info.and_then(|info| info.read().ok()).unwrap_or_default();
    let capabilities = Value::Object(hello.capabilities.clone());
    discovered(&capabilities, &info, hello.instructions.clone())
}

/// The result of `server/discover`.
pub fn discovered(capabilities: &Value, info: &Value, instructions: Option<String>) -> RawJson {
    let mut result = json!({
        "resultType": "complete",
        "supportedVersions": [MODERN],
        "capabilities": capabilities,
        "ttlMs": TTL,
        "cacheScope": "private",
        "_meta": {meta::SERVER_INFO: info},
    });
    if let Some(text) = instructions {
        result["instructions"] = text.into();
    }
    RawJson::from_json(&result)
}

/// A result with the members that 2026-07-28 requires; existing members stay. `holds` adds the lifetime of
/// lists and reads.
pub fn complete(result: &RawJson, holds: bool) -> RawJson {
    let text = result.as_str();
    let Some(inside) = text.strip_prefix('{') else {
        return result.clone();
    };
    let names = ["resultType", "ttlMs", "cacheScope"];
    let values = ["\"complete\"", &TTL.to_string(), "\"private\""];
    let present = last_members(text.as_bytes(), names).unwrap_or_default();
    let mut front = String::new();
    for ((name, value), present) in names.iter().zip(values).zip(present) {
        if (holds || *name == "resultType") && present.is_none() {
            let _ = write!(front, "\"{name}\":{value},");
        }
    }
    if inside.trim_start().starts_with('}') {
        front.pop();
    }
    RawJson::parse(format!("{{{front}{inside}").into()).unwrap_or_else(|_| result.clone())
}

/// The code of an error object.
pub fn code(error: &RawJson) -> Option<i64> {
    error.member("code")?.read().ok()
}

/// An error object with the error code of 2026-07-28.
pub fn current_code(error: &RawJson) -> RawJson {
    // "Resource not found" of older revisions is an invalid parameter since 2026-07-28.
    recoded(error, code::RESOURCE_NOT_FOUND, code::INVALID_PARAMS)
}

/// The error of a read with the error code of older revisions.
pub fn earlier_code(error: &RawJson) -> RawJson {
    recoded(error, code::INVALID_PARAMS, code::RESOURCE_NOT_FOUND)
}

fn recoded(error: &RawJson, from: i64, to: i64) -> RawJson {
    match error.member("code") {
        Some(found) if code(error) == Some(from) => {
            error.exchange(&found, &RawJson::from_json(&to.into()))
        }
        _ => error.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_completed_once_and_keep_their_bytes() {
        let raw = |text: &str| RawJson::parse(text.to_owned().into()).unwrap();
        let read = raw(r#"{ "x":1.0,"ttlMs":5}"#);
        let expected = r#"{"resultType":"complete","cacheScope":"private", "x":1.0,"ttlMs":5}"#;
        assert_eq!(complete(&read, true).as_str(), expected);
        assert_eq!(
            complete(&raw("{}"), false).as_str(),
            r#"{"resultType":"complete"}"#
        );
        let done = raw(r#"{"resultType":"input_required"}"#);
        assert_eq!(complete(&done, false).as_str(), done.as_str());
    }
}
