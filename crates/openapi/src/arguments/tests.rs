use bridge_protocol::RawJson;
use bytes::Bytes;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{ArgumentRules, ArgumentsError, Effort, FieldFault, Patience, Stopped, read_body};
use crate::schema::tests::schema_like;

fn check(schema: &Value, body: &str) -> Result<String, Vec<FieldFault>> {
    let rules = ArgumentRules::compile(schema);
    assert_eq!(rules.warning(), None);
    let body = read_body(Bytes::copy_from_slice(body.as_bytes())).unwrap();
    checked(&rules, &body).map(|sent| sent.as_str().to_owned())
}

fn checked(rules: &ArgumentRules, body: &RawJson) -> Result<RawJson, Vec<FieldFault>> {
    let whole = Effort::whole(Patience::default());
    rules.check(body, &whole).map_err(|error| match error {
        ArgumentsError::Faults(faults) => faults,
        ArgumentsError::Stopped(stopped) => panic!("{stopped:?}"),
    })
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
        assert!(faults[0].msg.contains("duplicate key"), "{}", faults[0].msg);
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
        assert_eq!(checked(&rules, &body).unwrap(), body);
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
        if let Ok(sent) = checked(&rules, &body) {
            prop_assert!(sent.read::<Value>().unwrap().is_object());
            prop_assert_eq!(checked(&rules, &sent).unwrap(), sent, "what was corrected is valid");
        }
    }
}

#[test]
fn long_chains_and_deep_bodies_together_leave_the_stack_alone() {
    // The longest chain that is accepted, used again at every level of the deepest body.
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

/// A block editor's schema: kinds of blocks, each with blocks within it.
fn blocks(children_first: bool) -> Value {
    let kinds = [
        "paragraph",
        "heading",
        "list",
        "item",
        "quote",
        "code",
        "table",
        "row",
        "cell",
        "callout",
        "toggle",
        "column",
    ];
    let block = |kind: &str| {
        let kind = json!({"const": kind});
        let children = json!({"type": "array", "items": {"$ref": "#/$defs/block"}});
        let properties = if children_first {
            json!({"children": children, "type": kind, "text": {"type": "string"}})
        } else {
            json!({"type": kind, "text": {"type": "string"}, "children": children})
        };
        json!({"type": "object", "properties": properties, "required": ["type"]})
    };
    json!({
        "type": "object",
        "properties": {"blocks": {"type": "array", "items": {"$ref": "#/$defs/block"}}},
        "required": ["blocks"],
        "$defs": {"block": {"anyOf": kinds.map(block)}},
    })
}

fn toggles(depth: usize, innermost: &str) -> String {
    let mut block = innermost.to_owned();
    for _ in 0..depth {
        block = format!(r#"{{"children":[{block}],"type":"toggle"}}"#);
    }
    format!(r#"{{"blocks":[{block}]}}"#)
}

#[test]
fn a_mistake_deep_in_a_recursive_union_is_found_and_named() {
    for children_first in [false, true] {
        let schema = blocks(children_first);
        // Two levels for each block; the maximum for a body is 64.
        for depth in [0, 5, 20, 29] {
            let right = toggles(depth, r#"{"type":"code"}"#);
            assert_eq!(check(&schema, &right).unwrap(), right);
            let faults = check(&schema, &toggles(depth, r#"{"type":"cod"}"#)).unwrap_err();
            let [fault] = &*faults else {
                panic!("{faults:?}")
            };
            assert_eq!(fault.loc.len(), 3 + 2 * depth, "{fault:?}");
            assert_eq!(fault.r#type, "union");
            let number = toggles(depth, r#"{"type":"code","text":5}"#);
            let faults = check(&schema, &number).unwrap_err();
            assert_eq!(faults[0].r#type, "string_type");
            let null = toggles(depth, r#"{"type":"code","text":null}"#);
            let dropped = check(&schema, &null).unwrap();
            assert_eq!(dropped, toggles(depth, r#"{"type":"code"}"#));
        }
    }
}

/// Schemas that multiply at each level of the value, with different keywords: each is `x`, which matches only
/// lists of itself.
fn hostile() -> Vec<Value> {
    let list = json!({"type": "array", "items": {"$ref": "#/$defs/x"}});
    let lists = vec![list.clone(); 8];
    let member = json!({"type": "array", "items": {"$ref": "#/$defs/x"}, "minItems": 0});
    let all = json!({"allOf": [{"anyOf": [list.clone(), list.clone()]}, {"anyOf": [member.clone(), list.clone()]}]});
    let depth = |wrap: &dyn Fn(Value) -> Value| wrap(json!({"$ref": "#/$defs/x"}));
    let both = |inner: Value| json!({"type": "array", "allOf": [{"items": inner}, {"items": inner}, {"items": inner}]});
    let definitions = [
        json!({"anyOf": lists}),
        json!({"oneOf": lists}),
        all,
        depth(&both),
        json!({"type": "array", "not": {"not": {"anyOf": lists}}}),
        json!({"type": "array", "if": {"anyOf": lists}, "then": {"oneOf": lists}, "else": {"anyOf": lists}}),
        json!({"type": "array", "prefixItems": [{"$ref": "#/$defs/x"}], "contains": {"$ref": "#/$defs/x"}, "anyOf": lists}),
        json!({"type": "array", "anyOf": lists, "unevaluatedItems": {"anyOf": lists}}),
        json!({"$dynamicAnchor": "x", "anyOf": [
            {"type": "array", "items": {"$dynamicRef": "#x"}}, {"type": "array", "items": {"$dynamicRef": "#x"}},
            {"type": "array", "items": {"$dynamicRef": "#x"}}, {"type": "array", "items": {"$dynamicRef": "#x"}}]}),
    ];
    let with = |x: &Value| json!({"type": "object", "properties": {"x": {"$ref": "#/$defs/x"}}, "$defs": {"x": x}});
    let mut all: Vec<Value> = definitions.iter().map(with).collect();
    // Without a reference to itself: each level refers to the next one twice.
    let mut defs = serde_json::Map::new();
    defs.insert("n0".into(), json!({"type": "integer"}));
    for level in 1..62 {
        let list = json!({"type": "array", "items": {"$ref": format!("#/$defs/n{}", level - 1)}});
        let name = format!("n{level}");
        let twice = if level % 2 == 0 { "anyOf" } else { "allOf" };
        defs.insert(name, json!({twice: [list, list, list]}));
    }
    all.push(json!({"properties": {"x": {"$ref": "#/$defs/n61"}}, "$defs": defs}));
    // The same in objects.
    let member = json!({"type": "object", "additionalProperties": {"$ref": "#/$defs/x"}});
    let named = json!({"type": "object", "patternProperties": {"^x": {"$ref": "#/$defs/x"}}, "propertyNames": {"maxLength": 9}});
    let x = json!({"anyOf": [member, named, member, named, {"dependentSchemas": {"x": member}, "type": "object", "unevaluatedProperties": {"$ref": "#/$defs/x"}}]});
    all.push(with(&x));
    all
}

/// Limits that are reached at once, also on a slow machine: work that is not counted would continue
/// for minutes, or take all memory.
fn little() -> Effort {
    Effort {
        brief: false,
        deciding: 100_000,
        explaining: 50_000,
        patience: Patience::default(),
    }
}

#[test]
fn no_schema_and_value_together_cost_more_than_their_bound() {
    for (number, schema) in hostile().iter().enumerate() {
        let rules = ArgumentRules::compile(schema);
        assert_eq!(rules.warning(), None, "{number}");
        for (depth, bottom) in [(8, r#""s""#), (60, r#""s""#), (60, "[]")] {
            for [open, close] in [["[", "]"], [r#"{"x":"#, "}"]] {
                let (before, after) = (open.repeat(depth), close.repeat(depth));
                let body = format!(r#"{{"x":{before}{bottom}{after}}}"#);
                let body = RawJson::parse(body.into()).unwrap();
                let outcome = rules.check(&body, &little());
                let said = format!("{outcome:?}");
                assert!(
                    !matches!(outcome, Err(ArgumentsError::Stopped(_))),
                    "{number}"
                );
                assert!(!said.contains("counting"), "{number}: {said}");
                let lists = open == "[" && bottom == "[]";
                // A schema that only refers to itself is decided as if it did not.
                if number < 2 && lists {
                    assert_eq!(outcome.is_ok(), number == 0, "{number}");
                }
                println!(
                    "{number} {depth} {open} {bottom}: {:?}",
                    outcome.map_err(|error| format!("{error:.99?}"))
                );
            }
        }
    }
}

#[test]
fn wide_values_and_schemas_are_bounded_together() {
    let many = |schema: Value| vec![schema; 500];
    let list = |item: &str| format!(r#"{{"x":[{item}{}]}}"#, format!(",{item}").repeat(20_000));
    for schema in [
        json!({"items": {"allOf": many(json!({"minLength": 1}))}}),
        json!({"items": {"anyOf": many(json!({"maxLength": 0}))}}),
        json!({"allOf": many(json!({"uniqueItems": true, "maxItems": 1}))}),
        json!({"allOf": many(json!({"contains": {"const": 7}}))}),
        json!({"items": {"enum": (0..5000).collect::<Vec<_>>()}}),
        json!({"items": {"required": (0..500).map(|n| n.to_string()).collect::<Vec<_>>()}}),
        json!({"anyOf": many(json!({"items": {"type": "integer"}}))}),
    ] {
        let rules = ArgumentRules::compile(&json!({"properties": {"x": schema}}));
        for body in [list(r#""a""#), list("{}"), list("5")] {
            let body = RawJson::parse(body.into()).unwrap();
            let outcome = rules.check(&body, &little());
            assert!(!matches!(outcome, Err(ArgumentsError::Stopped(_))));
        }
    }
}

#[test]
fn past_the_bounds_nothing_is_passed_on_and_nothing_explained() {
    let rules =
        ArgumentRules::compile(&json!({"properties": {"x": {"items": {"type": "string"}}}}));
    let kind = |item: &str, effort: &Effort| {
        let list = format!(r#"{{"x":[{item}{}]}}"#, format!(",{item}").repeat(20_000));
        match rules.check(&RawJson::parse(list.into()).unwrap(), effort) {
            Err(ArgumentsError::Faults(faults)) => faults[0].r#type.clone(),
            other => format!("{other:?}"),
        }
    };
    let few = |deciding, explaining| Effort {
        deciding,
        explaining,
        ..little()
    };
    assert_eq!(kind(r#""a""#, &few(10_000, 0)), "too_complex");
    assert_eq!(kind("5", &few(1_000_000, 10_000)), "union");
    assert_eq!(kind("5", &few(1_000_000, 1_000_000)), "string_type");
    // A brief check reports that there is no outcome yet.
    assert_eq!(kind(r#""a""#, &Effort::brief()), "Err(Stopped(Work))");
}

#[test]
fn a_large_ordinary_body_passes() {
    let row = json!({"type": "array", "items": {"anyOf": [{"type": "number"}, {"type": "string"}, {"type": "null"}]}});
    let schema = json!({"properties": {"rows": {"type": "array", "items": {"$ref": "#/$defs/Row"}}}, "$defs": {"Row": row}});
    let line = format!("[{}]", vec![r#"1,"two",null"#; 30].join(","));
    let body = format!(r#"{{"rows":[{}]}}"#, vec![line.as_str(); 2_000].join(","));
    assert_eq!(check(&schema, &body).unwrap(), body);
    // One invalid cell is not reported separately among so many.
    let wrong = body.replacen("two\",null", "two\",{}", 1);
    assert!(!check(&schema, &wrong).unwrap_err().is_empty());
}

#[test]
fn a_check_ends_when_its_caller_goes_or_its_time_is_over() {
    let rules =
        ArgumentRules::compile(&json!({"properties": {"x": {"items": {"type": "string"}}}}));
    let list = format!(r#"{{"x":["a"{}]}}"#, r#","a""#.repeat(100_000));
    let body = RawJson::parse(list.into()).unwrap();
    let gone = Patience {
        caller: Some(std::sync::Weak::new()),
        ..Patience::default()
    };
    let late = Patience {
        until: Some(std::time::Instant::now()),
        ..Patience::default()
    };
    for (patience, stopped) in [(gone, Stopped::Left), (late, Stopped::Time)] {
        let outcome = rules.check(&body, &Effort::whole(patience));
        assert_eq!(outcome, Err(ArgumentsError::Stopped(stopped)));
    }
}

#[test]
fn patterns_that_backtrack_are_bounded_together() {
    let schema = json!({"properties": {"x": {"items": {"pattern": "^(?=(a+)+$)(a|a)*b"}}}});
    let item = format!(r#""{}c""#, "a".repeat(40));
    let list = format!(r#"{{"x":[{item}{}]}}"#, format!(",{item}").repeat(20_000));
    let _ = check(&schema, &list);
}

#[test]
fn json_text_becomes_the_list_or_object_that_is_asked() {
    let schema = json!({
        "properties": {
            "list": {"type": "array", "items": {"type": "object", "properties": {"n": {"type": "integer"}}}},
            "maybe": {"anyOf": [{"type": "array", "items": {"type": "number"}}, {"type": "null"}]},
            "object": {"type": "object"},
            "either": {"anyOf": [{"type": "string"}, {"type": "array"}]},
            "named": {"type": ["object", "string"]},
        },
    });
    for (sent, passed) in [
        (
            r#"{"list":"[{\"n\": 1.0}]"}"#,
            Ok(r#"{"list":[{"n": 1.0}]}"#),
        ),
        // The same for values within it.
        (
            r#"{"list":" [{\"n\": \"5\"}, {\"n\":null}]\n"}"#,
            Ok(r#"{"list":[{"n":5},{}]}"#),
        ),
        (r#"{"list":["{\"n\":1}"]}"#, Ok(r#"{"list":[{"n":1}]}"#)),
        (r#"{"maybe":"[1.50]"}"#, Ok(r#"{"maybe":[1.50]}"#)),
        (r#"{"object":"{}"}"#, Ok(r#"{"object":{}}"#)),
        (
            r#"{"either":"[1]","named":"{}"}"#,
            Ok(r#"{"either":"[1]","named":"{}"}"#),
        ),
        (r#"{"list":"[{'n': 1}]"}"#, Err("list_type")),
        (r#"{"list":"{}"}"#, Err("list_type")),
        (r#"{"list":"[1"}"#, Err("list_type")),
        (r#"{"object":"[]"}"#, Err("dict_type")),
        (r#"{"object":"{\"a\":1,\"a\":2}"}"#, Err("dict_type")),
        (r#"{"list":"[5]"}"#, Err("dict_type")),
    ] {
        let outcome = check(&schema, sent);
        let outcome = outcome.as_deref().map_err(|faults| &*faults[0].r#type);
        assert_eq!(outcome, passed, "{sent}");
    }
}

#[test]
fn a_schema_that_cannot_be_used_is_checked_as_the_document_shows_it() {
    let schema = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": {"ttl": {"type": "integer", "minimum": 0, "exclusiveMinimum": true}},
    });
    let rules = ArgumentRules::compile(&schema);
    assert!(
        rules.warning().unwrap().contains("document"),
        "{:?}",
        rules.warning()
    );
    let check = |body: &'static str| {
        let body = RawJson::parse(Bytes::from_static(body.as_bytes())).unwrap();
        checked(&rules, &body).map(|sent| sent.as_str().to_owned())
    };
    assert_eq!(check(r#"{"ttl":"5"}"#).unwrap(), r#"{"ttl":5}"#);
    assert!(check(r#"{"ttl":"x"}"#).is_err());
    assert!(check(r#"{"ttl":-1}"#).is_err());
    assert_eq!(check(r#"{"ttl":null}"#).unwrap(), "{}");
    let required = json!({"properties": {"a": {"type": "integer"}}, "required": "a"});
    let rules = ArgumentRules::compile(&required);
    assert!(rules.warning().is_some());
    let body = RawJson::parse(Bytes::from_static(b"{\"a\":\"5\"}")).unwrap();
    assert_eq!(checked(&rules, &body).unwrap().as_str(), r#"{"a":5}"#);
}
