//! What the headers of 2026-07-28 must say, so that nobody in front routes by something that the
//! body does not say.

use axum::http::HeaderMap;
use base64::Engine as _;
use bridge_protocol::{
    ClientMessage, RawJson, code, header_name, meta, method,
    revision::{LEGACY, MODERN},
};
use serde_json::{Value, json};

use super::RpcError;

/// Methods whose `Mcp-Name` must be sent.
const NAMED: &[&str] = &[
    method::TOOLS_CALL,
    method::RESOURCES_READ,
    method::PROMPTS_GET,
];

/// Checks the headers against the message. `schema` is that of the arguments of the tool it calls.
pub fn check(
    headers: &HeaderMap,
    message: &ClientMessage,
    method: &str,
    schema: Option<&Value>,
) -> Result<(), RpcError> {
    check_version(headers, message)?;
    same(headers, header_name::METHOD, method)?;
    if NAMED.contains(&method) {
        let params = &message.params;
        let name = params
            .name
            .as_ref()
            .map(|(name, _)| name)
            .or(params.uri.as_ref());
        let Some(name) = name else {
            return Err(RpcError::params("params.name or params.uri is missing"));
        };
        same(headers, header_name::NAME, name)?;
    }
    match schema {
        Some(schema) => check_params(headers, message, schema),
        None => Ok(()),
    }
}

fn check_version(headers: &HeaderMap, message: &ClientMessage) -> Result<(), RpcError> {
    let Some(version) = one(headers, header_name::PROTOCOL_VERSION)? else {
        return Err(RpcError::headers(
            "the header MCP-Protocol-Version is missing",
        ));
    };
    let Some(said) = &message.params.meta.protocol_version else {
        if version != MODERN {
            // It may be of either era.
            let all = [&[MODERN], LEGACY].concat();
            return Err(unsupported(&version, &all));
        }
        return Err(missing(meta::PROTOCOL_VERSION));
    };
    if *said != version {
        return Err(RpcError::headers(&format!(
            "MCP-Protocol-Version is '{version}', and the body says '{said}'"
        )));
    }
    if version != MODERN {
        return Err(unsupported(&version, &[MODERN]));
    }
    if message.params.meta.client_capabilities.is_none() {
        return Err(missing(meta::CLIENT_CAPABILITIES));
    }
    Ok(())
}

fn missing(key: &str) -> RpcError {
    RpcError::params(&format!("params._meta[{key:?}] is missing"))
}

fn unsupported(version: &str, supported: &[&str]) -> RpcError {
    let status = axum::http::StatusCode::BAD_REQUEST;
    RpcError::new(
        status,
        code::UNSUPPORTED_VERSION,
        "unsupported_version",
        "Unsupported protocol version",
    )
    .with(json!({"supported": supported, "requested": version}))
}

fn one(headers: &HeaderMap, name: &str) -> Result<Option<String>, RpcError> {
    let mut all = headers.get_all(name).iter();
    let Some(first) = all.next() else {
        return Ok(None);
    };
    if all.next().is_some() {
        return Err(RpcError::headers(&format!(
            "the header {name} was sent more than once"
        )));
    }
    let bad = || RpcError::headers(&format!("the header {name} holds no plain text"));
    first
        .to_str()
        .map(|text| Some(text.to_owned()))
        .map_err(|_| bad())
}

fn same(headers: &HeaderMap, name: &str, wanted: &str) -> Result<(), RpcError> {
    let Some(sent) = one(headers, name)? else {
        return Err(RpcError::headers(&format!("the header {name} is missing")));
    };
    if decoded(&sent).is_some_and(|sent| sent == wanted) {
        return Ok(());
    }
    Err(RpcError::headers(&format!(
        "the header {name} is '{sent}', and the body says '{wanted}'"
    )))
}

/// `=?base64?…?=` stands for text that a header cannot hold.
fn decoded(value: &str) -> Option<String> {
    let Some(coded) = value
        .strip_prefix("=?base64?")
        .and_then(|rest| rest.strip_suffix("?="))
    else {
        return Some(value.to_owned());
    };
    let bytes = base64::engine::general_purpose::STANDARD
        .decode(coded)
        .ok()?;
    String::from_utf8(bytes).ok()
}

/// Arguments that the tool's schema marks with `x-mcp-header` stand in a header too.
fn check_params(
    headers: &HeaderMap,
    message: &ClientMessage,
    schema: &Value,
) -> Result<(), RpcError> {
    match &message.params.arguments {
        Some(arguments) => check_level(headers, schema, arguments),
        None => Ok(()),
    }
}

fn check_level(headers: &HeaderMap, schema: &Value, arguments: &RawJson) -> Result<(), RpcError> {
    // The schema bounds the depth, not the caller.
    let Some(properties) = schema["properties"].as_object() else {
        return Ok(());
    };
    for member in arguments.members().unwrap_or_default() {
        let name: String = member.name.read().unwrap_or_default();
        let Some(property) = properties.get(&name) else {
            continue;
        };
        if let Some(header) = property["x-mcp-header"].as_str() {
            let header = format!("mcp-param-{}", header.to_ascii_lowercase());
            check_value(headers, &header, &member.value)?;
        }
        check_level(headers, property, &member.value)?;
    }
    Ok(())
}

fn check_value(headers: &HeaderMap, header: &str, value: &RawJson) -> Result<(), RpcError> {
    if matches!(value.as_bytes().first(), Some(b'{' | b'[')) {
        return Ok(());
    }
    match value.read() {
        Ok(Value::String(text)) => same(headers, header, &text),
        Ok(Value::Number(number)) => same_number(headers, header, &number),
        Ok(Value::Bool(flag)) => same(headers, header, &flag.to_string()),
        Ok(Value::Null | Value::Array(_) | Value::Object(_)) => Ok(()),
        Err(_) => Err(RpcError::headers(&format!(
            "the argument for the header {header} is nothing that a header can hold"
        ))),
    }
}

fn same_number(
    headers: &HeaderMap,
    name: &str,
    wanted: &serde_json::Number,
) -> Result<(), RpcError> {
    let sent = one(headers, name)?.and_then(|sent| decoded(&sent));
    let sent = sent.and_then(|sent| sent.trim().parse::<f64>().ok());
    if sent.is_some() && sent == wanted.as_f64() {
        return Ok(());
    }
    Err(RpcError::headers(&format!(
        "the header {name} is missing or not {wanted}"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn coded_values_are_read() {
        assert_eq!(
            decoded("=?base64?SGVsbG8sIOS4lueVjA==?=").unwrap(),
            "Hello, 世界"
        );
        assert_eq!(decoded("plain").unwrap(), "plain");
        assert_eq!(decoded("=?base64?!?="), None);
    }

    #[test]
    fn an_argument_beside_it_that_no_number_type_holds_hides_no_mismatch() {
        let schema = json!({"properties": {"tenant": {"x-mcp-header": "Tenant"}}});
        let mut headers = HeaderMap::new();
        headers.insert("mcp-param-tenant", "mine".parse().unwrap());
        for (arguments, good) in [
            (r#"{"tenant":"mine","huge":1e400}"#, true),
            (r#"{"tenant":"yours","huge":1e400}"#, false),
            (r#"{"tenant":"mine","tenant":"yours"}"#, false),
            (r#"{"tenant":1e400}"#, false),
            (r#"{"tenant":null}"#, true),
        ] {
            let arguments = RawJson::parse(arguments.into()).unwrap();
            let checked = check_level(&headers, &schema, &arguments);
            assert_eq!(checked.is_ok(), good, "{}", arguments.as_str());
        }
    }
}
