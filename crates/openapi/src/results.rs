//! Converts a tool's result to the JSON answer of an OpenAPI call, in mcpo's format, including the content that
//! mcpo dropped. Text and unknown blocks are passed on byte by byte; no tree is built.

use std::borrow::Cow;

use bridge_protocol::{RawJson, last_members, text};
use bytes::Bytes;
use serde::{Deserialize, de::IgnoredAny};
use serde_json::{json, value::RawValue};

/// The tool itself reported an error (`isError`).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the tool failed: {message}")]
pub struct ToolFailure {
    /// The tool's own text.
    pub message: String,
}

/// The answer to a call: one content item as such, none as `[]`, several as an array. Text that is
/// JSON is passed on as JSON, byte by byte; a result that is not a `CallToolResult` stays unchanged.
///
/// Nothing is added from `structuredContent` if there are blocks: servers repeat the blocks' content in it,
/// including the bytes of pictures and files. Half a surrogate pair becomes U+FFFD, because readers of
/// this answer pass it on to programs that reject it.
pub fn result_body(result: &RawJson) -> Result<RawJson, ToolFailure> {
    let result = result.with_whole_letters();
    // Text that is JSON contains escapes of its own.
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
    let items: Vec<RawJson> = items.collect();
    Ok(match &*items {
        [only] => only.clone(),
        items => RawJson::of_elements(items),
    })
}

fn failure(blocks: Option<&[&RawValue]>, structured: Option<&RawValue>) -> ToolFailure {
    let texts = blocks.into_iter().flatten();
    let texts: Vec<String> = texts.filter_map(|block| block_text(block)).collect();
    let mut message = texts.join("\n");
    if message.trim().is_empty() {
        let structured = structured.map(RawValue::get);
        let nothing = "the tool returned an error without a message";
        structured.unwrap_or(nothing).clone_into(&mut message);
    }
    ToolFailure { message }
}

/// A text block without duplicate members.
#[derive(Deserialize)]
struct TextBlock<'a> {
    #[serde(rename = "type")]
    _type: IgnoredAny,
    #[serde(borrow)]
    text: &'a RawValue,
}

/// The value of a content block. `block` is a slice of `line`.
fn block_value(line: &Bytes, block: &RawValue) -> RawJson {
    // The most frequent form.
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

/// Whether a text may be JSON, by its first character.
fn may_be_json(text: &str) -> bool {
    let first = text.trim_ascii_start().bytes().next();
    first.is_some_and(|byte| b"{[\"-tfn".contains(&byte) || byte.is_ascii_digit())
}

/// Text that is JSON becomes that JSON, without building a tree; other text stays the same literal.
fn json_or_text(line: &Bytes, literal: &RawValue) -> RawJson {
    let inner = match text(literal) {
        Some(text) if may_be_json(&text) => match text {
            // Without escapes the JSON within the string is a slice of the line itself.
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
    // Some servers already send a complete data URI.
    if data
        .get(..5)
        .is_some_and(|start| start.eq_ignore_ascii_case("data:"))
    {
        return RawJson::from_value(&data).ok();
    }
    let mime_type = mime_type.and_then(text).unwrap_or(default_type.into());
    RawJson::from_value(&format!("data:{mime_type};base64,{data}")).ok()
}

/// Text is the answer itself. A picture becomes a data URI, which the chat can show; any other binary is described
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
    Some(RawJson::from_json(&json!({
        "type": "resource",
        "uri": uri.and_then(text),
        "mime_type": kind,
        // In bytes, decoded.
        "size": (blob.len() / 4 * 3).saturating_sub(padding),
    })))
}

#[cfg(test)]
mod tests {
    use bridge_protocol::RawJson;
    use bytes::Bytes;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::result_body;

    fn raw(text: &str) -> RawJson {
        RawJson::parse(Bytes::copy_from_slice(text.as_bytes())).unwrap()
    }

    fn body(result: &Value) -> String {
        result_body(&raw(&result.to_string()))
            .unwrap()
            .as_str()
            .into()
    }

    fn text(text: &str) -> Value {
        json!({"type": "text", "text": text})
    }

    #[test]
    fn text_is_json_where_it_can_be() {
        for (sent, answer) in [
            ("42", "42"),
            ("007", "\"007\""),
            (" 1.0 ", "1.0"),
            ("1e400", "1e400"),
            ("18446744073709551616", "18446744073709551616"),
            (r#"{"b":1,"a":[true,null]}"#, r#"{"b":1,"a":[true,null]}"#),
            (
                r#"{"s":"\ud83d\ude00","s":2}"#,
                r#"{"s":"\ud83d\ude00","s":2}"#,
            ),
            ("NaN", "\"NaN\""),
            ("", "\"\""),
            ("two words", "\"two words\""),
            ("\"quoted\"", "\"quoted\""),
            ("1 2", "\"1 2\""),
        ] {
            assert_eq!(body(&json!({"content": [text(sent)]})), answer, "{sent}");
        }
    }

    #[test]
    fn of_a_name_that_stands_twice_the_last_counts_and_a_list_is_no_result() {
        for (result, wanted) in [
            (
                r#"{"content":[],"content":[{"type":"text","text":"a b","text":"c d"}]}"#,
                r#""c d""#,
            ),
            (
                r#"{"content":[{"type":"text","type":"image","data":"AA","text":"x"}]}"#,
                r#""data:image/png;base64,AA""#,
            ),
            (
                r#"{"isError":true,"isError":false,"content":[{"type":"text","text":"ok"}]}"#,
                r#""ok""#,
            ),
            (
                r#"[[{"type":"text","text":"x"}]]"#,
                r#"[[{"type":"text","text":"x"}]]"#,
            ),
        ] {
            assert_eq!(result_body(&raw(result)).unwrap().as_str(), wanted);
        }
    }

    #[test]
    fn one_item_is_bare_and_several_are_a_list() {
        assert_eq!(body(&json!({"content": []})), "[]");
        assert_eq!(
            body(&json!({"content": [text("1.50"), text("x")]})),
            "[1.50,\"x\"]"
        );
    }

    #[test]
    fn half_a_letter_becomes_a_mark_that_every_reader_takes() {
        for (content, answer) in [
            (
                r#"[{"type":"text","text":"\ud800 alone"}]"#,
                r#""\ufffd alone""#,
            ),
            (
                r#"[{"type":"text","text":"{\"a\":\"\\ud83d\"}"},{"type":"text","text":"\ud83d\ude00\ude00"}]"#,
                r#"[{"a":"\ufffd"},"\ud83d\ude00\ufffd"]"#,
            ),
            (
                r#"[{"type":"odd","\udc00":"\\ud800"}]"#,
                r#"{"type":"odd","\ufffd":"\\ud800"}"#,
            ),
        ] {
            let result = raw(&format!(r#"{{"content":{content}}}"#));
            let body = result_body(&result).unwrap();
            assert_eq!(body.as_str(), answer);
            assert!(body.read::<Value>().is_ok(), "{answer}");
        }
        let failed = raw(r#"{"isError":true,"content":[{"type":"text","text":"no \ud800"}]}"#);
        assert_eq!(result_body(&failed).unwrap_err().message, "no \u{fffd}");
    }

    #[test]
    fn a_picture_that_is_a_data_uri_already_stays_one() {
        let uri = "data:image/gif;base64,aGk=";
        let image = json!({"type": "image", "data": uri, "mimeType": "image/png"});
        assert_eq!(body(&json!({"content": [image]})), format!("\"{uri}\""));
        let blob = json!({"uri": "a:b", "mimeType": "image/gif", "blob": uri});
        let resource = json!({"type": "resource", "resource": blob});
        assert_eq!(body(&json!({"content": [resource]})), format!("\"{uri}\""));
    }

    #[test]
    fn depth_costs_no_stack() {
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(body(&json!({"content": [text(&deep)]})), deep);
        assert_eq!(
            body(&json!({"content": [text(&deep[1..])]})),
            format!("\"{}\"", &deep[1..])
        );
    }

    #[test]
    fn pictures_and_sounds_are_data_uris() {
        let image = json!({"type": "image", "data": "aGk=", "mimeType": "image/jpeg"});
        let audio = json!({"type": "audio", "data": "aGk=", "mimeType": "audio/mpeg"});
        assert_eq!(
            body(&json!({"content": [image, audio]})),
            r#"["data:image/jpeg;base64,aGk=","data:audio/mpeg;base64,aGk="]"#
        );
    }

    #[test]
    fn resources_are_text_or_named_binaries() {
        let resource = |inner: Value| json!({"content": [{"type": "resource", "resource": inner}]});
        assert_eq!(
            body(&resource(json!({"uri": "a:b", "text": "{\"n\":1.0}"}))),
            r#"{"n":1.0}"#
        );
        assert_eq!(
            body(&resource(
                json!({"uri": "a:b", "mimeType": "application/pdf", "blob": "aGVsbG8="})
            )),
            r#"{"type":"resource","uri":"a:b","mime_type":"application/pdf","size":5}"#
        );
        assert_eq!(
            body(&resource(
                json!({"uri": "a:b", "mimeType": "image/png", "blob": "aGk="})
            )),
            "\"data:image/png;base64,aGk=\""
        );
        let link =
            json!({"type": "resource_link", "uri": "file:///x", "name": "x", "_meta": {"k": 1}});
        assert_eq!(body(&json!({"content": [link]})), link.to_string());
    }

    #[test]
    fn structured_content_stands_in_for_missing_blocks() {
        let structured = json!({"n": 1});
        let image = json!({"type": "image", "data": "aGk=", "mimeType": "image/png"});
        assert_eq!(
            body(&json!({"content": [], "structuredContent": structured})),
            r#"{"n":1}"#
        );
        assert_eq!(
            body(&json!({"structuredContent": structured})),
            r#"{"n":1}"#
        );
        assert_eq!(
            body(&json!({"content": [text("t")], "structuredContent": structured})),
            "\"t\""
        );
        assert_eq!(
            body(&json!({"content": [image], "structuredContent": structured})),
            r#""data:image/png;base64,aGk=""#
        );
        let blocks = json!([{"type": "resource", "resource": {"uri": "a:b", "blob": "Ynll"}}]);
        assert_eq!(
            body(&json!({"content": blocks, "structuredContent": {"content": blocks}})),
            r#"{"type":"resource","uri":"a:b","mime_type":null,"size":3}"#
        );
    }

    #[test]
    fn a_failure_speaks_in_the_tools_words() {
        let fail = |result: Value| result_body(&raw(&result.to_string())).unwrap_err().message;
        assert_eq!(
            fail(json!({"isError": true, "content": [text("no"), text("file")]})),
            "no\nfile"
        );
        assert!(fail(json!({"isError": true, "content": []})).contains("without a message"));
        assert_eq!(
            fail(json!({"isError": true, "structuredContent": {"code": 7}})),
            r#"{"code":7}"#
        );
        assert_eq!(
            body(&json!({"isError": false, "content": [text("fine")]})),
            "\"fine\""
        );
    }

    #[test]
    fn foreign_shapes_pass_as_they_are() {
        for odd in [
            r#"{"toolResult":1.0}"#,
            "[1.0]",
            "null",
            r#"{"content":"text"}"#,
            r#"{"content":[1.0,{"type":5}]}"#,
        ] {
            let answer = result_body(&raw(odd)).unwrap();
            let expected = if odd.contains("type") {
                r#"[1.0,{"type":5}]"#
            } else {
                odd
            };
            assert_eq!(answer.as_str(), expected);
        }
    }

    #[test]
    fn json_text_without_escapes_is_not_copied() {
        let digits = "1".repeat(1000);
        let result = raw(&json!({"content": [text(&digits)]}).to_string());
        let answer = result_body(&result).unwrap();
        let line = result.as_bytes().as_ptr_range();
        assert!(line.contains(&answer.as_bytes().as_ptr()));
    }

    proptest! {
        #[test]
        fn any_text_survives(sent in ".{0,40}") {
            let answer: Value = serde_json::from_str(&body(&json!({"content": [text(&sent)]}))).unwrap();
            let expected = serde_json::from_str(&sent).unwrap_or(Value::String(sent));
            prop_assert_eq!(answer, expected);
        }
    }
}
