//! Forwarded headers in the `_meta` of a tool call, where programs read them.

use axum::http::HeaderMap;
use bridge_protocol::{RawJson, meta::PROGRESS_TOKEN};
use serde_json::{Map, Value};

/// Under this name; what a client itself sends under it never arrives.
const KEY: &str = "mcpo-bridge/headers";

/// Names in lower case; several values of one name are joined, as HTTP does it.
pub fn headers(headers: &HeaderMap) -> Value {
    let mut members = Map::new();
    for name in headers.keys() {
        let values = headers.get_all(name).iter();
        let values: Vec<_> = values
            .map(|value| String::from_utf8_lossy(value.as_bytes()))
            .collect();
        members.insert(name.to_string(), values.join(", ").into());
    }
    members.into()
}

/// The client's metadata with the headers, and with our own progress token, in the place of his where
/// he sent one.
pub fn with(meta: Option<&RawJson>, token: Option<u64>, headers: Option<&Value>) -> String {
    let members = meta.and_then(RawJson::members).unwrap_or_default();
    let mut texts: Vec<String> = Vec::with_capacity(members.len() + 2);
    for member in members {
        let name: String = member.name.read().unwrap_or_default();
        let ours = match name.as_str() {
            KEY => headers.is_some(),
            PROGRESS_TOKEN => token.is_some(),
            _ => false,
        };
        if !ours {
            texts.push(format!(
                "{}:{}",
                member.name.as_str(),
                member.value.as_str()
            ));
        }
    }
    texts.extend(token.map(|token| format!("{}:{token}", Value::from(PROGRESS_TOKEN))));
    texts.extend(headers.map(|headers| format!("{}:{headers}", Value::from(KEY))));
    format!("{{{}}}", texts.join(","))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_clients_own_metadata_stays_but_for_ours() {
        let meta = r#"{"a":1.0,"progressToken":"t","mcpo-bridge/headers":{"x":"forged"}}"#;
        let meta = RawJson::parse(meta.to_owned().into()).unwrap();
        let headers = json!({"x": "y"});
        assert_eq!(
            with(Some(&meta), Some(7), Some(&headers)),
            r#"{"a":1.0,"progressToken":7,"mcpo-bridge/headers":{"x":"y"}}"#
        );
        assert_eq!(
            with(None, None, Some(&headers)),
            r#"{"mcpo-bridge/headers":{"x":"y"}}"#
        );
        assert_eq!(
            with(Some(&meta), None, None),
            meta.as_str(),
            "what nobody may forge is only looked at where headers are forwarded"
        );
        assert_eq!(with(None, Some(7), None), r#"{"progressToken":7}"#);
    }
}
