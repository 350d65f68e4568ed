use bridge_protocol::Tool;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{deeper_than, request_schema, response_schema};

#[allow(
    clippy::needless_pass_by_value,
    reason = "tests write `json!` in place"
)]
fn tool(schema: Value) -> Tool {
    Tool::read(json!({"name": "t", "inputSchema": schema})).unwrap()
}

fn request(schema: Value) -> Value {
    request_schema(&tool(schema)).schema
}

#[allow(
    clippy::needless_pass_by_value,
    reason = "tests write `json!` in place"
)]
/// One property `x` with the given schema (and `$defs`), converted.
fn property(schema: Value, defs: Value) -> Value {
    request(json!({"type": "object", "properties": {"x": schema}, "$defs": defs}))["properties"]["x"].take()
}

/// Open WebUI 0.12.4's handling of a schema (`resolve_schema`, `clean_properties`): the places that it
/// visits must contain objects, without any references.
fn open_webui_digests(schema: &Value) {
    let map = schema
        .as_object()
        .unwrap_or_else(|| panic!("not an object: {schema}"));
    assert!(!map.contains_key("$ref"), "{schema}");
    if let Some(properties) = map.get("properties") {
        properties
            .as_object()
            .unwrap()
            .values()
            .for_each(open_webui_digests);
    }
    if let Some(items) = map.get("items") {
        open_webui_digests(items);
    }
    for key in ["anyOf", "oneOf", "allOf"] {
        if let Some(branches) = map.get(key) {
            branches
                .as_array()
                .unwrap()
                .iter()
                .for_each(open_webui_digests);
        }
    }
    if let Some(required) = map.get("required") {
        assert!(required.as_array().unwrap().iter().all(Value::is_string));
    }
}

fn usable(body: &Value) {
    open_webui_digests(body);
    assert_eq!(body["type"], "object");
    let properties = body["properties"].as_object().unwrap();
    for name in body["required"].as_array().into_iter().flatten() {
        assert!(
            properties.contains_key(name.as_str().unwrap()),
            "{name} is required but not offered"
        );
    }
    for (name, schema) in properties {
        let typed = ["type", "anyOf", "not"]
            .iter()
            .any(|key| schema.get(key).is_some());
        assert!(typed, "Open WebUI would call {name} a string: {schema}");
    }
    for key in ["anyOf", "oneOf", "allOf"] {
        assert!(
            body.get(key).is_none(),
            "{key} at the root hides the arguments"
        );
    }
}

#[test]
fn an_ordinary_schema_is_kept_as_it_is() {
    let schema = json!({
        "type": "object",
        "title": "write_data",
        "properties": {
            "path": {"type": "string", "title": "Path", "pattern": "\\.xlsx$"},
            "sheet": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": null},
            "row": {"type": "integer", "minimum": 1, "maximum": 1_048_576, "default": 1},
            "mode": {"type": "string", "enum": ["append", "replace"]},
            "when": {"type": ["string", "null"], "format": "date-time"},
            "labels": {"type": "object", "additionalProperties": {"type": "string"}},
        },
        "required": ["path"],
        "additionalProperties": false,
    });
    let converted = request_schema(&tool(schema.clone()));
    assert_eq!(converted.schema, schema);
    assert!(converted.warnings.is_empty());
}

#[test]
fn a_tool_without_arguments_keeps_an_empty_body() {
    for schema in [
        json!({}),
        json!({"type": "object"}),
        json!({"type": "object", "properties": {}}),
    ] {
        assert_eq!(request(schema), json!({"type": "object", "properties": {}}));
    }
    assert_eq!(request(Value::Null)["properties"], json!({}));
}

#[test]
fn references_are_written_out_with_their_siblings() {
    let defs =
        json!({"Colour": {"type": "string", "enum": ["red", "blue"], "description": "inner"}});
    let reference =
        json!({"$ref": "#/$defs/Colour", "description": "of the bar", "default": "red"});
    assert_eq!(
        property(reference, defs),
        json!({"description": "of the bar", "default": "red", "type": "string", "enum": ["red", "blue"]})
    );
}

#[test]
fn every_local_spelling_of_a_reference_is_followed() {
    let body = request(json!({
        "$id": "https://example.com/tool.json",
        "type": "object",
        "properties": {
            "escaped": {"$ref": "#/$defs/a~1b%20c"},
            "anchor": {"$ref": "#spot"},
            "sibling": {"$ref": "#/properties/escaped"},
            "by_id": {"$ref": "other.json#/$defs/inner"},
            "definitions": {"$ref": "#/definitions/old"},
        },
        "definitions": {"old": {"type": "boolean"}},
        "$defs": {
            "a/b c": {"type": "integer"},
            "named": {"$anchor": "spot", "type": "number"},
            "embedded": {"$id": "other.json", "$defs": {"inner": {"$ref": "#/$defs/leaf"}, "leaf": {"type": "null"}}},
        },
    }));
    let types = body["properties"]
        .as_object()
        .unwrap()
        .values()
        .map(|schema| schema["type"].clone());
    assert_eq!(
        types.collect::<Vec<_>>(),
        ["integer", "number", "integer", "null", "boolean"]
    );
}

#[test]
fn references_outside_the_schema_are_never_followed() {
    let converted = request_schema(&tool(json!({
        "type": "object",
        "properties": {"x": {"$ref": "https://example.com/x.json", "description": "far away"}},
    })));
    let x = &converted.schema["properties"]["x"];
    assert_eq!(x["description"], "far away");
    assert!(x["type"].as_array().unwrap().contains(&json!("object")));
    assert!(converted.warnings[0].contains("example.com"));
}

#[test]
fn recursion_ends_in_a_permissive_object() {
    let defs = json!({"Node": {
        "type": "object",
        "description": "a node",
        "properties": {"name": {"type": "string"}, "children": {"type": "array", "items": {"$ref": "#/$defs/Node"}}},
    }});
    let node = property(json!({"$ref": "#/$defs/Node"}), defs);
    let second = &node["properties"]["children"]["items"];
    assert_eq!(second["properties"]["name"]["type"], "string");
    assert_eq!(
        second["properties"]["children"]["items"],
        json!({"type": "object", "additionalProperties": true, "description": "a node"})
    );
}

#[test]
fn references_to_nothing_but_themselves_end() {
    for schema in [
        json!({"$ref": "#"}),
        json!({"allOf": [{"$ref": "#"}]}),
        json!({"anyOf": [{"$ref": "#"}]}),
    ] {
        usable(&request(schema));
    }
}

#[test]
fn a_bomb_of_references_degrades_that_tool_alone() {
    let mut defs = serde_json::Map::new();
    defs.insert("n0".into(), json!({"type": "string"}));
    for level in 1..60 {
        let inner = json!({"$ref": format!("#/$defs/n{}", level - 1)});
        defs.insert(
            format!("n{level}"),
            json!({"type": "object", "properties": {"a": inner, "b": inner}}),
        );
    }
    let bomb =
        json!({"type": "object", "properties": {"x": {"$ref": "#/$defs/n59"}}, "$defs": defs});
    let converted = request_schema(&tool(bomb));
    assert!(converted.schema.to_string().len() < 300_000);
    assert_eq!(converted.schema["properties"]["x"]["type"], "object");
    assert!(
        converted
            .warnings
            .iter()
            .any(|warning| warning.contains("too large"))
    );
}

#[test]
fn types_that_refer_to_each_other_everywhere_stay_small() {
    let names: Vec<String> = (0..12).map(|number| format!("T{number}")).collect();
    let all: serde_json::Map<_, _> = names
        .iter()
        .map(|name| (name.clone(), json!({"$ref": format!("#/$defs/{name}")})))
        .collect();
    let defs: serde_json::Map<_, _> = names
        .iter()
        .map(|name| (name.clone(), json!({"type": "object", "properties": all})))
        .collect();
    let body = request(json!({"type": "object", "properties": all, "$defs": defs}));
    usable(&body);
    assert_eq!(body["properties"].as_object().unwrap().len(), 12);
    assert!(body.to_string().len() < 300_000);
}

#[test]
fn nesting_beyond_what_can_be_read_is_not_walked() {
    let mut deep = json!({"type": "string"});
    for _ in 0..500 {
        deep = json!({"type": "array", "items": deep});
    }
    assert!(deeper_than(&deep, 128));
    let tool = tool(json!({"type": "object", "properties": {"x": deep}}));
    let converted = request_schema(&tool);
    usable(&converted.schema);
    assert!(converted.warnings[0].contains("nested"));
}

#[test]
fn boolean_schemas_become_objects() {
    let body = request(json!({
        "type": "object",
        "properties": {
            "anything": true,
            "nothing": false,
            "list": {"type": "array", "items": true},
            "either": {"anyOf": [true, {"type": "string"}]},
            "open": {"type": "object", "additionalProperties": true},
            "pair": {"type": "array", "prefixItems": [{"type": "string"}, true], "items": false},
        },
        "required": ["nothing", "anything"],
    }));
    usable(&body);
    assert!(body["properties"].get("nothing").is_none());
    assert_eq!(body["required"], json!(["anything"]));
    assert_eq!(body["properties"]["open"]["additionalProperties"], true);
    assert_eq!(body["properties"]["pair"]["maxItems"], 2);
}

#[test]
fn variants_survive_open_webuis_unwrapping() {
    let nothing = json!({"type": "null"});
    let inner = json!({"description": "n", "anyOf": [{"type": "integer"}, {"type": "string"}]});
    let nested = property(json!({"anyOf": [inner, nothing]}), json!({}));
    let flat = json!({"anyOf": [{"type": "integer"}, {"type": "string"}, {"type": "null"}]});
    assert_eq!(nested, flat);
    let empty = property(json!({"anyOf": [nothing, nothing]}), json!({}));
    assert_eq!(empty, nothing, "an empty list of variants would be left");
}

#[test]
fn draft_7_tuples_become_prefix_items() {
    let body = request(json!({
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "object",
        "properties": {"point": {
            "type": "array",
            "items": [{"type": "number"}, {"type": "number"}],
            "additionalItems": {"type": "string"},
        }},
    }));
    assert_eq!(
        body["properties"]["point"],
        json!({"type": "array", "prefixItems": [{"type": "number"}, {"type": "number"}], "items": {"type": "string"}})
    );
}

#[test]
fn variants_at_the_root_become_arguments() {
    let body = request(json!({
        "oneOf": [
            {"type": "object", "properties": {"kind": {"const": "file"}, "path": {"type": "string"}}, "required": ["kind", "path"]},
            {"$ref": "#/$defs/Url"},
        ],
        "$defs": {"Url": {"type": "object", "properties": {"kind": {"const": "url"}, "url": {"type": "string"}}, "required": ["kind", "url"]}},
    }));
    usable(&body);
    assert_eq!(
        body["properties"]["kind"],
        json!({"type": "string", "enum": ["file", "url"]})
    );
    assert_eq!(body["properties"].as_object().unwrap().len(), 3);
    assert_eq!(body["required"], json!(["kind"]));
}

#[test]
fn parts_at_the_root_add_up() {
    let body = request(json!({
        "allOf": [
            {"properties": {"a": {"type": "string"}}, "required": ["a"]},
            {"properties": {"b": {"type": "integer"}, "a": {"minLength": 2}}, "required": ["b"]},
        ],
    }));
    usable(&body);
    assert_eq!(body["properties"]["a"]["minLength"], 2);
    assert_eq!(body["properties"]["a"]["type"], "string");
    assert_eq!(body["required"], json!(["a", "b"]));
}

#[test]
fn untyped_schemas_get_the_type_that_follows() {
    for (schema, expected) in [
        (json!({"const": 5}), json!("integer")),
        (json!({"enum": ["a", null]}), json!(["string", "null"])),
        (
            json!({"allOf": [{"$ref": "#/$defs/S"}], "default": "x"}),
            json!("string"),
        ),
        (
            json!({"oneOf": [{"type": "string"}, {"type": "integer"}]}),
            json!(["string", "integer"]),
        ),
        (
            json!({"properties": {"y": {"type": "string"}}}),
            json!("object"),
        ),
        (json!({"items": {"type": "string"}}), json!("array")),
        (json!({"minimum": 1}), json!("number")),
        (
            json!({"description": "rows"}),
            json!(["string", "number", "boolean", "object", "array", "null"]),
        ),
    ] {
        let converted = property(schema.clone(), json!({"S": {"type": "string"}}));
        assert_eq!(converted["type"], expected, "{schema}");
    }
}

#[test]
fn data_and_property_names_are_no_references() {
    let data = json!({"$ref": "#/$defs/S"});
    let schema = json!({
        "type": "object",
        "properties": {"$ref": {"type": "string"}, "$defs": {"type": "string"}},
        "default": data, "examples": [data], "enum": [data], "const": data,
    });
    assert_eq!(
        property(schema.clone(), json!({"S": {"type": "integer"}})),
        schema
    );
}

#[test]
fn nonsense_is_ignored_where_it_stands() {
    let body = request(json!({
        "type": "object",
        "properties": {"a": 5, "b": {"type": "str"}, "c": {"type": "string", "required": true}, "d": {"anyOf": 3}},
        "required": "a",
        "allOf": {}, "items": 7, "if": [],
    }));
    usable(&body);
    assert_eq!(body["properties"]["c"], json!({"type": "string"}));
}

fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 64, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::vec((".{0,6}", inner), 0..5)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

/// Values in the form of schemas, with random references and every keyword in any place.
pub(crate) fn schema_like() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        any::<bool>().prop_map(Value::from),
        prop::sample::select(vec!["string", "integer", "object", "array", "null", "odd"])
            .prop_map(|name| json!({"type": name})),
        prop::sample::select(vec![
            "#",
            "#/$defs/a",
            "#/properties/a",
            "#/allOf/0",
            "#b",
            "http://x/y",
            "#/$defs/a/items"
        ])
        .prop_map(|target| json!({"$ref": target, "description": "d"})),
        Just(json!({"enum": [1, "a", null]})),
        Just(json!({"const": {"$ref": "#"}})),
        Just(json!({"required": ["a", "b"]})),
    ];
    leaf.prop_recursive(4, 48, 4, |inner| {
        let keyword = prop::sample::select(vec![
            "properties",
            "$defs",
            "items",
            "prefixItems",
            "anyOf",
            "oneOf",
            "allOf",
            "not",
            "if",
            "then",
            "additionalProperties",
            "patternProperties",
            "definitions",
            "dependencies",
            "contains",
        ]);
        prop::collection::vec((keyword, prop::collection::vec(inner, 1..3)), 1..4).prop_map(
            |members| {
                let named = |schemas: Vec<Value>| -> Value {
                    let names = ["a", "b", "c"].map(String::from);
                    Value::Object(names.into_iter().zip(schemas).collect())
                };
                let member = |(key, mut schemas): (&str, Vec<Value>)| {
                    let value = match key {
                        "properties" | "$defs" | "patternProperties" | "definitions"
                        | "dependencies" => named(schemas),
                        "prefixItems" | "anyOf" | "oneOf" | "allOf" => schemas.into(),
                        _ => schemas.remove(0),
                    };
                    (key.to_owned(), value)
                };
                Value::Object(members.into_iter().map(member).collect())
            },
        )
    })
}

proptest! {
    #[test]
    fn any_json_gives_a_usable_body(schema in json_value()) {
        usable(&request(schema.clone()));
        open_webui_digests(&response_schema(&schema).schema);
    }

    #[test]
    fn any_schema_gives_a_usable_body(schema in schema_like()) {
        usable(&request(schema.clone()));
        open_webui_digests(&response_schema(&schema).schema);
    }
}
