//! The links of a call in a tool's result: a text block with markdown, and a `resource_link` for
//! each file. All other bytes stay.

use serde::Deserialize;
use serde_json::{json, value::RawValue};

use crate::{
    call::{Answer, Link},
    child::{Reply, splice},
    config::{ServerSpec, Settings},
    model::RawJson,
};

/// The answer's line with what the call left appended to its `content`.
pub fn with_links(answer: &Answer, spec: &ServerSpec, settings: &Settings) -> Reply {
    let blocks = blocks(answer, spec, settings);
    let unchanged = || answer.reply.clone();
    if blocks.is_empty() {
        return unchanged();
    }
    let Some(content) = content(&answer.outcome) else {
        return unchanged();
    };
    let text = content.as_str();
    let inside = text
        .strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'));
    let Some(inside) = inside else {
        return unchanged();
    };
    let comma = if inside.trim().is_empty() { "" } else { "," };
    let longer = format!("[{inside}{comma}{}]", blocks.join(","));
    let line = splice(&answer.reply.line, &[(&content, longer.as_bytes())]);
    Reply::read(&line).unwrap_or_else(unchanged)
}

fn blocks(answer: &Answer, spec: &ServerSpec, settings: &Settings) -> Vec<String> {
    let mut texts = Vec::new();
    if !answer.files.files.is_empty() {
        texts.push(answer.files.message(settings));
        texts.extend(spec.post_instruction.clone());
    }
    texts.extend(answer.notice(settings.lang));
    let text = (!texts.is_empty()).then(|| json!({"type": "text", "text": texts.join("\n")}));
    let links = answer.files.all().map(|file| {
        let link = Link::of(file, settings);
        json!({
            "type": "resource_link",
            "uri": link.url,
            "name": link.name,
            "mimeType": link.mime_type,
            "size": link.size,
        })
    });
    text.into_iter()
        .chain(links)
        .map(|block| block.to_string())
        .collect()
}

/// The `content` of a result, within its line.
fn content(result: &RawJson) -> Option<RawJson> {
    #[derive(Deserialize)]
    struct Parts<'a> {
        #[serde(borrow)]
        content: &'a RawValue,
    }
    let bytes = result.clone().into_bytes();
    let parts: Parts<'_> = serde_json::from_slice(&bytes).ok()?;
    Some(RawJson::within(&bytes, parts.content))
}
