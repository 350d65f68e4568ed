//! The links of a call in a tool's result: a text block with markdown, and a `resource_link` for
//! each file. All other bytes stay unchanged.
//!
//! Open WebUI shows `structuredContent` again if it is not the only text of the result. In that case the
//! text of the links is an embedded resource, which Open WebUI passes on without counting it.

use bridge_protocol::jsonrpc::{Reply, splice};
use serde_json::json;

use crate::{
    call::{Answer, Link},
    config::{ServerSpec, Settings},
};

/// The URI of the text with the links, if it is a resource.
const LINKS: &str = "mcpo-bridge:links";

/// The response line with the links of the call appended to its `content`.
pub fn with_links(
    answer: &Answer,
    spec: &ServerSpec,
    settings: &Settings,
    openwebui: bool,
) -> Reply {
    let structured = answer.outcome.member("structuredContent");
    let embeds = openwebui && structured.is_some_and(|it| it.as_str() != "null");
    let blocks = blocks(answer, spec, settings, embeds);
    let longer = || {
        let content = answer.outcome.member("content")?;
        let inside = content.as_str().strip_prefix('[')?.strip_suffix(']')?;
        let comma = if inside.trim().is_empty() { "" } else { "," };
        let longer = format!("[{inside}{comma}{}]", blocks.join(","));
        Reply::read(&splice(
            &answer.reply.line,
            &[(&content, longer.as_bytes())],
        ))
    };
    let changed = if blocks.is_empty() { None } else { longer() };
    changed.unwrap_or_else(|| answer.reply.clone())
}

fn blocks(answer: &Answer, spec: &ServerSpec, settings: &Settings, embeds: bool) -> Vec<String> {
    let mut texts = Vec::new();
    if !answer.files.files.is_empty() {
        texts.push(answer.files.message(settings));
        texts.extend(spec.post_instruction.clone());
    }
    texts.extend(answer.notice(settings.lang));
    let text = (!texts.is_empty()).then(|| {
        let text = texts.join("\n");
        if embeds {
            let resource = json!({"uri": LINKS, "mimeType": "text/markdown", "text": text});
            json!({"type": "resource", "resource": resource})
        } else {
            json!({"type": "text", "text": text})
        }
    });
    let links = answer.files.all().map(|file| {
        let link = Link::to_artifact(file, settings);
        json!({
            "type": "resource_link",
            "uri": link.url,
            "name": link.name,
            "mimeType": link.mime_type,
            "size": link.size,
        })
    });
    let blocks = text.into_iter().chain(links);
    blocks.map(|block| block.to_string()).collect()
}
