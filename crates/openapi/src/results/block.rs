//! One content block → one JSON value.

use std::borrow::Cow;

use bridge_protocol::RawJson;
use bytes::Bytes;
use serde::{Deserialize, Serialize, de::IgnoredAny};
use serde_json::value::RawValue;

use super::Members;

/// A string that is borrowed where it has no escapes.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// What stands for a binary that a model cannot read.
#[derive(Serialize)]
struct Binary<'a> {
    r#type: &'static str,
    uri: Option<Cow<'a, str>>,
    mime_type: Option<Cow<'a, str>>,
    /// Bytes, decoded.
    size: usize,
}

/// A block of text. No name stands twice in it.
#[derive(Deserialize)]
struct Written<'a> {
    #[serde(rename = "type")]
    _type: IgnoredAny,
    #[serde(borrow)]
    text: &'a RawValue,
}

/// The value of a block. `block` lies within `line`.
pub fn item(line: &Bytes, block: &RawValue) -> RawJson {
    let whole = || RawJson::within(line, block);
    // As nearly all are, read without a list of members.
    if block.get().starts_with(r#"{"type":"text","#)
        && let Ok(Written { text, .. }) = serde_json::from_str(block.get())
    {
        return json_or_text(line, text);
    }
    let Ok(members) = serde_json::from_str::<Members>(block.get()) else {
        return whole();
    };
    let converted = match string(&members, "type").as_deref() {
        Some("text") => members.get("text").map(|text| json_or_text(line, text)),
        Some("image") => data_uri(&members, "data", "image/png"),
        Some("audio") => data_uri(&members, "data", "audio/wav"),
        Some("resource") => members
            .get("resource")
            .and_then(|resource| embedded(line, resource)),
        _ => None,
    };
    converted.unwrap_or_else(whole)
}

/// The text of a text block or of an embedded text resource.
pub fn text(block: &RawValue) -> Option<String> {
    let members: Members = serde_json::from_str(block.get()).ok()?;
    let of = |members: &Members| string(members, "text").map(Cow::into_owned);
    of(&members).or_else(|| of(&serde_json::from_str(members.get("resource")?.get()).ok()?))
}

fn string<'a>(members: &Members<'a>, key: &str) -> Option<Cow<'a, str>> {
    let text: Text<'a> = serde_json::from_str(members.get(key)?.get()).ok()?;
    Some(text.0)
}

/// Prose is told by its first letter.
fn may_be_json(text: &str) -> bool {
    let first = text.trim_ascii_start().bytes().next();
    first.is_some_and(|byte| b"{[\"-tfn".contains(&byte) || byte.is_ascii_digit())
}

/// Text that is JSON becomes that JSON, unread; other text stays the literal that it came as.
fn json_or_text(line: &Bytes, literal: &RawValue) -> RawJson {
    let Ok(Text(text)) = serde_json::from_str(literal.get()) else {
        return RawJson::within(line, literal);
    };
    if !may_be_json(&text) {
        return RawJson::within(line, literal);
    }
    let inner = match text {
        // Without escapes the JSON within the string is a part of the line itself.
        Cow::Borrowed(text) => line.slice_ref(text.as_bytes()),
        Cow::Owned(text) => text.into(),
    };
    RawJson::parse(inner).unwrap_or_else(|_| RawJson::within(line, literal))
}

fn data_uri(members: &Members<'_>, key: &str, default_type: &str) -> Option<RawJson> {
    let data = string(members, key)?;
    // Some servers write the whole of it already.
    if data
        .get(..5)
        .is_some_and(|start| start.eq_ignore_ascii_case("data:"))
    {
        return RawJson::from_value(&data).ok();
    }
    let mime_type = string(members, "mimeType").unwrap_or(default_type.into());
    RawJson::from_value(&format!("data:{mime_type};base64,{data}")).ok()
}

/// Text is the answer itself. A picture is one that the chat can show; any other binary is named
/// and never inlined, because base64 would only fill the model's context.
fn embedded(line: &Bytes, resource: &RawValue) -> Option<RawJson> {
    let members: Members = serde_json::from_str(resource.get()).ok()?;
    if let Some(text) = members.get("text") {
        return Some(json_or_text(line, text));
    }
    let mime_type = string(&members, "mimeType");
    if mime_type
        .as_deref()
        .is_some_and(|kind| kind.starts_with("image/"))
    {
        return data_uri(&members, "blob", "image/png");
    }
    let blob = string(&members, "blob")?;
    let padding = blob.bytes().rev().take_while(|byte| *byte == b'=').count();
    let binary = Binary {
        r#type: "resource",
        uri: string(&members, "uri"),
        mime_type,
        size: (blob.len() / 4 * 3).saturating_sub(padding),
    };
    RawJson::from_value(&binary).ok()
}
