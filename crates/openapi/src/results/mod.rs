//! A tool's result → the JSON that answers an OpenAPI call, as mcpo shaped it, with what mcpo
//! dropped. Text and unknown blocks are passed on as the bytes they came in; no tree is built.

mod block;

#[cfg(test)]
mod tests;

use std::{borrow::Cow, fmt};

use bridge_protocol::RawJson;
use bytes::Bytes;
use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::value::RawValue;

/// The tool itself said that it failed (`isError`).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the tool failed: {message}")]
pub struct ToolFailure {
    /// The tool's own words.
    pub message: String,
}

/// The members of one JSON object, unread. The last of a repeated key counts.
struct Members<'a>(Vec<(Name<'a>, &'a RawValue)>);

/// Borrowed where it has no escapes.
#[derive(Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'a> Members<'a> {
    fn get(&self, name: &str) -> Option<&'a RawValue> {
        let mut latest = self.0.iter().rev();
        let (_, value) = latest.find(|(known, _)| known.0 == name)?;
        Some(value)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(object: D) -> Result<Self, D::Error> {
        object.deserialize_map(EachMember)
    }
}

struct EachMember;

impl<'de> Visitor<'de> for EachMember {
    type Value = Members<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Self::Value, A::Error> {
        let mut members = Vec::new();
        while let Some(member) = object.next_entry()? {
            members.push(member);
        }
        Ok(Members(members))
    }
}

/// What counts of a result, where it is an object.
#[derive(Deserialize)]
struct Parts<'a> {
    /// The blocks, if it is a list of them.
    #[serde(borrow, default)]
    content: Option<Vec<&'a RawValue>>,
    /// `null` is none.
    #[serde(borrow, default, rename = "structuredContent")]
    structured: Option<&'a RawValue>,
    #[serde(borrow, default, rename = "isError")]
    is_error: Option<&'a RawValue>,
}

impl<'a> Parts<'a> {
    fn read(result: &'a str) -> Option<Self> {
        // Of an array the first three items would be taken for the members.
        if !result.starts_with('{') {
            return None;
        }
        let usual = serde_json::from_str(result);
        usual.ok().or_else(|| Self::of_odd(result))
    }

    /// Where a name stands twice, or the content is something else.
    fn of_odd(result: &'a str) -> Option<Self> {
        let members: Members<'a> = serde_json::from_str(result).ok()?;
        let content = members.get("content").map(RawValue::get);
        Some(Self {
            content: content.and_then(|list| serde_json::from_str(list).ok()),
            structured: members
                .get("structuredContent")
                .filter(|value| value.get() != "null"),
            is_error: members.get("isError"),
        })
    }
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
    let Some(parts) = Parts::read(result.as_str()) else {
        return Ok(result.clone());
    };
    let line = result.clone().into_bytes();
    let (blocks, structured) = (parts.content, parts.structured);
    if parts.is_error.is_some_and(|flag| flag.get() == "true") {
        return Err(failure(blocks.as_deref(), structured));
    }
    let structured = structured.map(|value| RawJson::within(&line, value));
    let Some(blocks) = blocks else {
        return Ok(structured.unwrap_or_else(|| result.clone()));
    };
    if let Some(value) = structured.filter(|_| blocks.is_empty()) {
        return Ok(value);
    }
    let items = blocks.into_iter().map(|block| block::item(&line, block));
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
        .filter_map(|block| block::text(block))
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
