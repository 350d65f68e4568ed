use bytes::Bytes;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{ArgumentRules, FieldFault, read_body};
use crate::{model::RawJson, openapi::schema::tests::schema_like};

fn check(schema: &Value, body: &str) -> Result<String, Vec<FieldFault>> {
    let rules = ArgumentRules::compile(schema);
    assert_eq!(rules.warning(), None);
    let body = read_body(Bytes::copy_from_slice(body.as_bytes())).unwrap();
    rules.check(&body).map(|sent| sent.as_str().to_owned())
}

fn excel() -> Value {
    json!({
        "type": "object",
        "properties": {
            "path": {"type": "string"},
            "row": {"type": "integer", "minimum": 1},
            "ratio": {"type": "number"},
            "bold": {"type": "boolean"},
            "sheet": {"anyOf": [{"type": "string"}, {"type": "null"}]},
            "width": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
            "level": {"enum": [1, 2, "auto"]},
            "cells": {"type": "array", "items": {"$ref": "#/$defs/Cell"}},
        },
        "required": ["path"],
        "$defs": {"Cell": {
            "type": "object",
            "properties": {"n": {"type": "number"}, "note": {"type": "string"}},
            "additionalProperties": false,
        }},
    })
}

#[test]
fn valid_arguments_are_passed_on_byte_by_byte() {
    let odd = r#"{ "path":"\u0061", "row" : 1.0,"extra":[18446744073709551616],"sheet":null,  "ratio":1.50}"#;
    assert_eq!(check(&excel(), odd).unwrap(), odd);
}

#[test]
fn no_body_is_no_arguments() {
    let schema = json!({"type": "object", "properties": {"a": {"default": 1}}});
    for body in ["", " \n", "null", "{}"] {
        assert_eq!(check(&schema, body).unwrap(), "{}", "{body:?}");
    }
    let faults = check(&excel(), "").unwrap_err();
    assert_eq!(
        serde_json::to_value(&faults).unwrap(),
        json!([{"type": "missing", "loc": ["body", "path"], "msg": "Field required", "input": {}}])
    );
}

#[test]
fn a_body_that_is_not_an_object_is_a_fault() {
    for body in ["[]", "5", "\"{}\""] {
        let faults = check(&json!({}), body).unwrap_err();
        assert_eq!(
            (faults[0].r#type.as_str(), &*faults[0].loc),
            ("dict_type", &[json!("body")][..])
        );
    }
}

#[test]
fn what_cannot_be_read_is_a_fault_and_no_panic() {
    let deep = format!("{{\"a\":{}1{}}}", "[".repeat(50_000), "]".repeat(50_000));
    for body in [deep.as_str(), r#"{"a":1e400}"#, r#"{"a":"\ud800"}"#] {
        let faults = check(&json!({}), body).unwrap_err();
        assert_eq!(faults[0].r#type, "json_invalid");
    }
    assert!(read_body(Bytes::from_static(b"{")).is_err());
}

#[test]
fn a_key_twice_is_refused_at_every_level() {
    for body in [
        r#"{"path":"a","path":"b"}"#,
        r#"{"path":"a","cells":[{"n":1,"n":2}]}"#,
        r#"{"a":1,"\u0061":2}"#,
    ] {
        let faults = check(&json!({}), body).unwrap_err();
        assert!(faults[0].msg.contains("stands twice"), "{}", faults[0].msg);
    }
}

#[test]
fn exact_strings_become_what_the_schema_asks_for() {
    for (sent, passed) in [
        (r#"{"path":"p","row":"5"}"#, r#"{"path":"p","row":5}"#),
        (
            r#"{"path":"p","ratio":"1.50"}"#,
            r#"{"path":"p","ratio":1.50}"#,
        ),
        (
            r#"{"path":"p","bold":"true"}"#,
            r#"{"path":"p","bold":true}"#,
        ),
        (
            r#"{"path":"p","bold":"False"}"#,
            r#"{"path":"p","bold":false}"#,
        ),
        (r#"{"path":"p","width":"12"}"#, r#"{"path":"p","width":12}"#),
        (r#"{"path":"p","level":"2"}"#, r#"{"path":"p","level":2}"#),
        (
            r#"{"path":"p","cells":[{"n":"-1e3","note":"5"},{"n":1.0}]}"#,
            r#"{"path":"p","cells":[{"n":-1e3,"note":"5"},{"n":1.0}]}"#,
        ),
    ] {
        assert_eq!(check(&excel(), sent).unwrap(), passed);
    }
}

#[test]
fn only_the_failing_places_change() {
    let sent = r#"{ "path":"5", "big":18446744073709551616, "row":"7", "ratio":1.0 }"#;
    let passed = r#"{"path":"5","big":18446744073709551616,"row":7,"ratio":1.0}"#;
    assert_eq!(check(&excel(), sent).unwrap(), passed);
}

#[test]
fn nothing_lossy_is_converted() {
    for value in [
        "007",
        "5.5",
        " 5",
        "5 ",
        "+5",
        "1_000",
        "0x10",
        "five",
        "",
        "NaN",
        "99999999999999999999999",
    ] {
        let body = json!({"path": "p", "row": value}).to_string();
        let faults = check(&excel(), &body).unwrap_err();
        assert_eq!(faults[0].r#type, "int_type", "{value}");
        assert_eq!(faults[0].input, value);
    }
    for value in ["1e400", "yes", "1"] {
        let body = json!({"path": "p", "bold": value, "ratio": value}).to_string();
        assert!(check(&excel(), &body).is_err(), "{value}");
    }
}

#[test]
fn nulls_are_dropped_where_the_schema_has_no_null() {
    assert_eq!(
        check(
            &excel(),
            r#"{"path":"p","row":null,"sheet":null,"level":null}"#
        )
        .unwrap(),
        r#"{"path":"p","sheet":null}"#
    );
    assert_eq!(
        check(
            &excel(),
            r#"{"path":"p","cells":[{"note":null,"odd":null}]}"#
        )
        .unwrap(),
        r#"{"path":"p","cells":[{}]}"#
    );
    let faults = check(&excel(), r#"{"path":null}"#).unwrap_err();
    assert_eq!(faults[0].r#type, "missing");
    assert!(check(&excel(), r#"{"path":"p","cells":[null]}"#).is_err());
}

#[test]
fn keys_that_look_like_indexes_or_pointers_are_keys() {
    let schema = json!({"additionalProperties": {"type": "integer"}});
    let sent = r#"{"007":"1","7":"2","":"3","a/b~c":"4"}"#;
    assert_eq!(
        check(&schema, sent).unwrap(),
        r#"{"007":1,"7":2,"":3,"a/b~c":4}"#
    );
}

#[test]
fn faults_name_each_field() {
    let sent = r#"{"row":0,"ratio":"x","cells":[{"n":{}},{"odd":1}],"width":"wide"}"#;
    insta::assert_json_snapshot!(check(&excel(), sent).unwrap_err());
}

#[test]
fn a_huge_value_is_not_sent_back() {
    let body = json!({"path": ["x".repeat(100_000)], "row": "y".repeat(100_000)}).to_string();
    let faults = serde_json::to_string(&check(&excel(), &body).unwrap_err()).unwrap();
    assert!(faults.len() < 2_000, "{}", faults.len());
}

#[test]
fn a_schema_that_cannot_be_used_checks_nothing() {
    for schema in [
        json!({"type": "object", "properties": {"a": {"pattern": "("}}}),
        json!({"properties": {"a": {"$ref": "https://example.com/remote.json"}}}),
        json!({"$schema": "https://example.com/unknown", "type": "object"}),
        json!({"$ref": "#"}),
        json!({"type": 5}),
        json!({"type": "string"}),
        json!({"allOf": [{"$id": "inner.json", "$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#"}}}]}),
        json!({"allOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/b"}]}, "b": {"$ref": "#/$defs/a"}}}),
        json!([]),
    ] {
        let rules = ArgumentRules::compile(&schema);
        assert!(rules.warning().is_some(), "{schema}");
        let body = RawJson::parse(Bytes::from_static(b"{\"a\":1}")).unwrap();
        assert_eq!(rules.check(&body).unwrap(), body);
    }
}

#[test]
fn a_schema_that_doubles_at_every_step_is_refused() {
    let mut defs = serde_json::Map::new();
    defs.insert("n0".into(), json!({"type": "object"}));
    for level in 1..18 {
        let inner = json!({"$ref": format!("#/$defs/n{}", level - 1)});
        defs.insert(format!("n{level}"), json!({"allOf": [inner, inner]}));
    }
    let rules = ArgumentRules::compile(&json!({"$ref": "#/$defs/n17", "$defs": defs}));
    assert!(rules.warning().unwrap().contains("too many"));
}

#[test]
fn recursive_schemas_are_fine() {
    let tree =
        json!({"type": "object", "properties": {"n": {"type": "integer"}, "child": {"$ref": "#"}}});
    assert_eq!(
        check(&tree, r#"{"child":{"child":{"n":"3"}}}"#).unwrap(),
        r#"{"child":{"child":{"n":3}}}"#
    );
}

#[test]
fn draft_7_schemas_are_read_as_such() {
    let schema = json!({
        "$schema": "http://json-schema.org/draft-07/schema#",
        "properties": {"p": {"items": [{"type": "integer"}], "additionalItems": false}},
    });
    assert_eq!(check(&schema, r#"{"p":["1"]}"#).unwrap(), r#"{"p":[1]}"#);
    assert!(check(&schema, r#"{"p":[1,2]}"#).is_err());
}

proptest! {
    #[test]
    fn no_schema_and_no_body_break_the_check(schema in schema_like(), a in ".{0,4}", n in any::<i64>()) {
        let rules = ArgumentRules::compile(&schema);
        let body = json!({"a": {"a": [n, a, null]}, "b": n.to_string(), "c": null});
        let body = RawJson::from_value(&body).unwrap();
        if let Ok(sent) = rules.check(&body) {
            prop_assert!(sent.read::<Value>().unwrap().is_object());
            prop_assert_eq!(rules.check(&sent).unwrap(), sent, "what was corrected is valid");
        }
    }
}

#[test]
fn long_chains_and_deep_bodies_together_leave_the_stack_alone() {
    // The longest chain that is accepted, taken again at every level of the deepest body.
    let mut defs = serde_json::Map::new();
    defs.insert(
        "n0".into(),
        json!({"properties": {"a": {"$ref": "#/$defs/n19"}}}),
    );
    for level in 1..20 {
        let inner = json!({"$ref": format!("#/$defs/n{}", level - 1)});
        defs.insert(
            format!("n{level}"),
            json!({"allOf": [inner], "type": "object"}),
        );
    }
    let schema = json!({"$ref": "#/$defs/n19", "$defs": defs});
    let nested = |levels: usize, inner: &str| {
        format!("{}{inner}{}", "{\"a\":".repeat(levels), "}".repeat(levels))
    };
    let body = nested(63, "{}");
    assert_eq!(check(&schema, &body).unwrap(), body);
    assert_eq!(
        check(&schema, &nested(63, "1")).unwrap_err()[0].r#type,
        "dict_type"
    );
    assert_eq!(
        check(&schema, &nested(65, "{}")).unwrap_err()[0].r#type,
        "too_deep"
    );
}

#[test]
fn schemas_deep_in_themselves_or_through_references_leave_the_stack_alone() {
    let mut deep = String::from("{}");
    for _ in 0..62 {
        deep = format!("{{\"properties\":{{\"a\":{deep}}}}}");
    }
    ArgumentRules::compile(&serde_json::from_str(&deep).unwrap());
    let mut defs = serde_json::Map::new();
    for level in 0..5_000 {
        let next = json!({"$ref": format!("#/$defs/n{}", level + 1)});
        defs.insert(format!("n{level}"), json!({"properties": {"a": next}}));
    }
    defs.insert("n5000".into(), json!({"type": "string"}));
    let schema = json!({"$ref": "#/$defs/n0", "$defs": defs});
    ArgumentRules::compile(&schema);
}
