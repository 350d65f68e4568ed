use std::collections::HashSet;

use bridge_protocol::Tool;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{
    DocumentInput, Documents, OperationIds, document, index_document, operation_ids, path_segment,
};
use crate::{IndexEntry, IndexStatus};

fn tools(list: Value) -> Vec<Tool> {
    let Value::Array(list) = list else {
        panic!("a list")
    };
    list.into_iter()
        .map(|tool| Tool::read(tool).unwrap())
        .collect()
}

fn input(tools: &[Tool]) -> DocumentInput<'_> {
    DocumentInput {
        title: "Excel",
        version: "1.2.3",
        description: Some("Makes workbooks."),
        server_url: "/mcpo/excel",
        tools,
        usage_guide: None,
        secured: false,
        operation_ids: OperationIds::Tool,
    }
}

fn documents() -> Documents {
    Documents {
        name: None,
        description: None,
        version: None,
        operation_ids: OperationIds::Tool,
    }
}

/// As excel-mcp-server, a time server and a slide server write them.
fn realistic() -> Vec<Tool> {
    tools(json!([
        {
            "name": "write_data_to_excel",
            "description": "Write data to Excel worksheet.",
            "inputSchema": {
                "type": "object",
                "title": "write_data_to_excelArguments",
                "properties": {
                    "filepath": {"title": "Filepath", "type": "string"},
                    "sheet_name": {"title": "Sheet Name", "type": "string"},
                    "data": {"title": "Data", "type": "array", "items": {"type": "array", "items": {}}},
                    "start_cell": {"default": "A1", "title": "Start Cell", "type": "string"},
                },
                "required": ["filepath", "sheet_name", "data"],
            },
            "outputSchema": {
                "type": "object",
                "properties": {"result": {"title": "Result", "type": "string"}},
                "required": ["result"],
                "title": "write_data_to_excelOutput",
            },
        },
        {
            "name": "get_current_time",
            "title": "What time is it?",
            "description": "Current time in a time zone",
            "inputSchema": {
                "$schema": "http://json-schema.org/draft-07/schema#",
                "type": "object",
                "properties": {"timezone": {"type": "string", "description": "IANA name"}},
                "additionalProperties": false,
            },
        },
        {
            "name": "slides/add chart",
            "inputSchema": {
                "type": "object",
                "properties": {
                    "chart": {"$ref": "#/$defs/Chart"},
                    "position": {"anyOf": [{"$ref": "#/$defs/Point"}, {"type": "null"}], "default": null},
                    "options": true,
                },
                "required": ["chart"],
                "$defs": {
                    "Chart": {
                        "type": "object",
                        "properties": {
                            "kind": {"enum": ["bar", "line"]},
                            "series": {"type": "array", "items": {"$ref": "#/$defs/Series"}},
                        },
                        "required": ["kind"],
                    },
                    "Series": {"type": "object", "properties": {"inner": {"$ref": "#/$defs/Series"}, "values": {"type": "array", "items": {"type": "number"}}}},
                    "Point": {"type": "array", "items": [{"type": "number"}, {"type": "number"}], "additionalItems": false},
                },
            },
        },
        {"name": "save", "inputSchema": {"type": "object", "properties": {}}},
    ]))
}

#[test]
fn realistic_tools_become_operations() {
    insta::assert_json_snapshot!(document(&input(&realistic())));
}

#[test]
fn a_key_and_a_guide_show_in_the_operations() {
    let tools = realistic();
    let secured = DocumentInput {
        usage_guide: Some("Save at the end."),
        secured: true,
        ..input(&tools)
    };
    let document = document(&secured);
    let time = &document["paths"]["/get_current_time"]["post"];
    assert_eq!(
        time["description"],
        "Current time in a time zone\n\nSave at the end."
    );
    assert_eq!(time["security"], json!([{"HTTPBearer": []}]));
    assert_eq!(
        document["paths"]["/save"]["post"]["description"],
        "Save\n\nSave at the end."
    );
    assert_eq!(
        document["components"]["securitySchemes"]["HTTPBearer"]["scheme"],
        "bearer"
    );
}

#[test]
fn names_are_one_path_segment_each() {
    for (name, path) in [
        ("a/b", "a%2Fb"),
        ("../../etc", "..%2F..%2Fetc"),
        ("with space", "with%20space"),
        ("{id}", "%7Bid%7D"),
        ("..", "tool_.."),
        ("表", "%E8%A1%A8"),
        ("get-time_2.0~x", "get-time_2.0~x"),
        ("a\r\nb?c#d%", "a%0D%0Ab%3Fc%23d%25"),
    ] {
        assert_eq!(path_segment(name), path);
    }
}

#[test]
fn a_name_that_is_an_id_keeps_it() {
    let ids = operation_ids(["a b", "a_b", "a/b", "a_b", "", "a_b_2"]);
    assert_eq!(ids, ["a_b_3", "a_b", "a_b_4", "a_b_5", "tool", "a_b_2"]);
    let long = "x".repeat(70);
    let ids = operation_ids([&*long, &*format!("{long}y")]);
    assert_eq!(ids[1], format!("{}_2", "x".repeat(62)));
}

/// With a look at each id before, the test would be ended for its time.
#[test]
fn of_very_many_names_without_a_latin_letter_each_has_an_id() {
    let names: Vec<String> = (0..100_000)
        .map(|_| "\u{540d}\u{524d}".to_owned())
        .collect();
    let ids = operation_ids(names.iter().map(String::as_str));
    let different: std::collections::HashSet<_> = ids.iter().collect();
    assert_eq!(different.len(), names.len());
}

#[test]
fn mcpos_operation_ids_are_there_for_who_filters_on_them() {
    let tools = tools(json!([{"name": "get_time"}, {"name": "a/b c"}]));
    let document = document(&DocumentInput {
        operation_ids: OperationIds::Mcpo,
        ..input(&tools)
    });
    let id = |path: &str| document["paths"][path]["post"]["operationId"].clone();
    assert_eq!(id("/get_time"), "tool_get_time_post");
    assert_eq!(id("/a%2Fb%20c"), "tool_a_b_c_post");
}

#[test]
fn of_two_tools_with_one_name_the_first_counts() {
    let tools = tools(json!([
        {"name": "t", "description": "one"}, {"name": "t", "description": "two"}, {"name": ""},
    ]));
    let document = document(&input(&tools));
    assert_eq!(document["paths"].as_object().unwrap().len(), 1);
    assert_eq!(document["paths"]["/t"]["post"]["description"], "one");
}

#[test]
fn one_bad_tool_leaves_the_others_as_they_are() {
    let mut all = realistic();
    let alone = document(&input(&all));
    all.extend(tools(json!([{"name": "bad", "inputSchema": {"$ref": "#", "anyOf": [5, {"$ref": "file:///etc/passwd"}]}}])));
    let mut together = document(&input(&all));
    assert_eq!(
        together["paths"]["/bad"]["post"]["requestBody"]["content"]["application/json"]["schema"]["type"],
        "object"
    );
    together["paths"]
        .as_object_mut()
        .unwrap()
        .shift_remove("/bad");
    assert_eq!(alone, together);
}

#[test]
fn the_root_document_links_to_each_servers_docs() {
    let entry = |name, url| IndexEntry {
        name,
        title: None,
        status: IndexStatus::Starting,
        url,
    };
    let document = index_document(
        &documents(),
        &[
            entry("excel", "mcpo/excel"),
            entry("a](x)", "mcpo/a%5D%28x%29"),
            entry("<img src=x>", "mcpo/x"),
        ],
    );
    let text = document["info"]["description"].as_str().unwrap();
    assert!(text.contains("[excel](mcpo/excel/docs)"), "{text}");
    assert!(text.contains(r"[a\](x)](mcpo/a%5D%28x%29/docs)"), "{text}");
    assert!(text.contains("[&lt;img src=x&gt;](mcpo/x/docs)"), "{text}");
    assert_eq!(document["paths"], json!({}));
}

proptest! {
    #[test]
    fn ids_are_distinct_and_fit_model_apis(names in prop::collection::vec("[a-b_/é]{0,3}|.{60,70}", 0..12)) {
        let ids = operation_ids(names.iter().map(String::as_str));
        let distinct: HashSet<_> = ids.iter().collect();
        prop_assert_eq!(distinct.len(), names.len());
        for id in &ids {
            prop_assert!((1..=64).contains(&id.len()));
            prop_assert!(id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-'), "{}", id);
        }
    }
}
