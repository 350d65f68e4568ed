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
    let link = json!({"type": "resource_link", "uri": "file:///x", "name": "x", "_meta": {"k": 1}});
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
    assert!(fail(json!({"isError": true, "content": []})).contains("no reason"));
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
