//! A tool's result → the JSON that answers an OpenAPI call, as mcpo shaped it, with what mcpo
//! dropped. Text and unknown blocks are passed on as the bytes they came in; no tree is built.

#[cfg(test)]
mod tests;

use std::borrow::Cow;

use bridge_protocol::{RawJson, last_members, text};
use bytes::Bytes;
use serde::{Deserialize, Serialize, de::IgnoredAny};
use serde_json::value::RawValue;

/// The tool itself said that it failed (`isError`).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the tool failed: {message}")]
pub struct ToolFailure {
    /// The tool's own words.
    pub message: String,
}

/// The answer to a call: one content item bare, none as `[]`, several as an array. Text that is
/// JSON is passed on as JSON, byte by byte; a result that is no `CallToolResult` passes as it is.
///
/// Of `structuredContent` nothing is added to blocks: servers repeat in it what the blocks say, with
/// the bytes of pictures and files once more. Half a surrogate pair becomes U+FFFD, because readers of
/// this answer pass it on to others who take none.
pub fn result_body(result: &RawJson) -> Result<RawJson, ToolFailure> {
    let result = result.with_whole_letters();
    // Text that is JSON brings its own escapes.
    whole_body(&result).map(|body| body.with_whole_letters())
}

fn whole_body(result: &RawJson) -> Result<RawJson, ToolFailure> {
    let names = ["content", "structuredContent", "isError"];
    let Some([content, structured, is_error]) = last_members(result.as_bytes(), names) else {
        return Ok(result.clone());
    };
    let line = result.clone().into_bytes();
    let blocks: Option<Vec<&RawValue>> =
        content.and_then(|list| serde_json::from_str(list.get()).ok());
    let structured = structured.filter(|value| value.get() != "null");
    if is_error.is_some_and(|flag| flag.get() == "true") {
        return Err(failure(blocks.as_deref(), structured));
    }
    let structured = structured.map(|value| RawJson::within(&line, value));
    let Some(blocks) = blocks else {
        return Ok(structured.unwrap_or_else(|| result.clone()));
    };
    if let Some(value) = structured.filter(|_| blocks.is_empty()) {
        return Ok(value);
    }
    let items = blocks.into_iter().map(|block| block_value(&line, block));
    Ok(join(items.collect()))
}

fn join(mut items: Vec<RawJson>) -> RawJson {
    if items.len() == 1 {
        return items.remove(0);
    }
    let size: usize = items.iter().map(|item| item.as_bytes().len() + 1).sum();
    let mut list = Vec::with_capacity(size + 2);
    list.push(b'[');
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            list.push(b',');
        }
        list.extend_from_slice(item.as_bytes());
    }
    list.push(b']');
    RawJson::parse(Bytes::from(list)).expect("JSON values between commas and brackets are JSON")
}

fn failure(blocks: Option<&[&RawValue]>, structured: Option<&RawValue>) -> ToolFailure {
    let texts: Vec<String> = blocks
        .into_iter()
        .flatten()
        .filter_map(|block| block_text(block))
        .collect();
    let mut message = texts.join("\n");
    if message.trim().is_empty() {
        message = structured.map_or_else(
            || "the tool reported an error and gave no reason".to_owned(),
            |value| value.get().to_owned(),
        );
    }
    ToolFailure { message }
}

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
struct TextBlock<'a> {
    #[serde(rename = "type")]
    _type: IgnoredAny,
    #[serde(borrow)]
    text: &'a RawValue,
}

/// The value of a content block. `block` lies within `line`.
fn block_value(line: &Bytes, block: &RawValue) -> RawJson {
    // As nearly all are.
    if block.get().starts_with(r#"{"type":"text","#)
        && let Ok(TextBlock { text, .. }) = serde_json::from_str(block.get())
    {
        return json_or_text(line, text);
    }
    let names = ["type", "text", "data", "mimeType", "resource"];
    let members = last_members(block.get().as_bytes(), names).unwrap_or_default();
    let [kind, literal, data, mime_type, resource] = members;
    let value = match kind.and_then(text).as_deref() {
        Some("text") => literal.map(|literal| json_or_text(line, literal)),
        Some("image") => data_uri(data, mime_type, "image/png"),
        Some("audio") => data_uri(data, mime_type, "audio/wav"),
        Some("resource") => resource.and_then(|resource| embedded_resource(line, resource)),
        _ => None,
    };
    value.unwrap_or_else(|| RawJson::within(line, block))
}

/// The text of a text block or of an embedded text resource.
fn block_text(block: &RawValue) -> Option<String> {
    let [own, resource] = last_members(block.get().as_bytes(), ["text", "resource"])?;
    let own = own.and_then(text);
    let found = own.or_else(|| {
        let [inner] = last_members(resource?.get().as_bytes(), ["text"])?;
        text(inner?)
    });
    found.map(Cow::into_owned)
}

/// Prose is told by its first letter.
fn may_be_json(text: &str) -> bool {
    let first = text.trim_ascii_start().bytes().next();
    first.is_some_and(|byte| b"{[\"-tfn".contains(&byte) || byte.is_ascii_digit())
}

/// Text that is JSON becomes that JSON, unread; other text stays the literal that it came as.
fn json_or_text(line: &Bytes, literal: &RawValue) -> RawJson {
    let inner = match text(literal) {
        Some(text) if may_be_json(&text) => match text {
            // Without escapes the JSON within the string is a part of the line itself.
            Cow::Borrowed(text) => line.slice_ref(text.as_bytes()),
            Cow::Owned(text) => text.into(),
        },
        _ => return RawJson::within(line, literal),
    };
    RawJson::parse(inner).unwrap_or_else(|_| RawJson::within(line, literal))
}

fn data_uri(
    data: Option<&RawValue>,
    mime_type: Option<&RawValue>,
    default_type: &str,
) -> Option<RawJson> {
    let data = text(data?)?;
    // Some servers write the whole of it already.
    if data
        .get(..5)
        .is_some_and(|start| start.eq_ignore_ascii_case("data:"))
    {
        return RawJson::from_value(&data).ok();
    }
    let mime_type = mime_type.and_then(text).unwrap_or(default_type.into());
    RawJson::from_value(&format!("data:{mime_type};base64,{data}")).ok()
}

/// Text is the answer itself. A picture is one that the chat can show; any other binary is named
/// and never inlined, because base64 would only fill the model's context.
fn embedded_resource(line: &Bytes, resource: &RawValue) -> Option<RawJson> {
    let names = ["text", "mimeType", "blob", "uri"];
    let [literal, mime_type, blob, uri] = last_members(resource.get().as_bytes(), names)?;
    if let Some(literal) = literal {
        return Some(json_or_text(line, literal));
    }
    let kind = mime_type.and_then(text);
    if kind
        .as_deref()
        .is_some_and(|kind| kind.starts_with("image/"))
    {
        return data_uri(blob, mime_type, "image/png");
    }
    let blob = text(blob?)?;
    let padding = blob.bytes().rev().take_while(|byte| *byte == b'=').count();
    let binary = Binary {
        r#type: "resource",
        uri: uri.and_then(text),
        mime_type: kind,
        size: (blob.len() / 4 * 3).saturating_sub(padding),
    };
    RawJson::from_value(&binary).ok()
}
