//! The `OpenAPI` endpoint: documents from memory, arguments as sent, content in mcpo's format.

use std::collections::HashSet;

use crate::support::{TestBridge, echo, eventually, rude, servers, with};
use serde_json::{Value, json};

fn start() -> TestBridge {
    TestBridge::start(servers([("echo", echo())]))
}

fn document(bridge: &TestBridge, server: &str) -> Value {
    bridge.client().get(&format!("/{server}/openapi.json")).ok()
}

/// Finds the boolean values of schema keywords below `node` that require a schema.
fn boolean_schemas(node: &Value, found: &mut Vec<String>) {
    match node {
        Value::Object(map) => {
            for (key, value) in map {
                let schemas: Vec<&Value> = match (key.as_str(), value) {
                    ("properties", Value::Object(properties)) => properties.values().collect(),
                    ("anyOf" | "oneOf" | "allOf", Value::Array(list)) => list.iter().collect(),
                    ("items", value) => vec![value],
                    _ => Vec::new(),
                };
                if schemas.iter().any(|schema| schema.is_boolean()) {
                    found.push(format!("{key}: {value}"));
                }
                boolean_schemas(value, found);
            }
        }
        Value::Array(list) => list.iter().for_each(|item| boolean_schemas(item, found)),
        _ => {}
    }
}

#[test]
fn a_document_describes_every_tool_of_all_pages() {
    let paged = with(echo(), json!({"env": {"PAGE_SIZE": "4"}}));
    let bridge = TestBridge::start(servers([("echo", echo()), ("paged", paged)]));
    let (whole, paged) = (document(&bridge, "echo"), document(&bridge, "paged"));
    assert_eq!(whole["openapi"], "3.1.0");
    let tools = |document: &Value| document["paths"].as_object().expect("paths").len();
    assert!(tools(&whole) > 20);
    assert_eq!(tools(&whole), tools(&paged));
}

#[test]
fn an_operation_is_named_as_the_tool_and_lists_its_arguments() {
    let bridge = start();
    let operation = document(&bridge, "echo")["paths"]["/add"]["post"].clone();
    assert_eq!(operation["operationId"], "add");
    let body = &operation["requestBody"]["content"]["application/json"]["schema"];
    assert_eq!(body["properties"]["a"]["type"], "number");
    assert_eq!(body["required"], json!(["a", "b"]));
}

#[test]
fn the_same_routes_stand_below_mcpo_and_at_the_root() {
    let bridge = start();
    for front in ["", "/mcpo"] {
        assert_eq!(
            bridge
                .client()
                .get(&format!("{front}/echo/openapi.json"))
                .status,
            200
        );
        let reply = bridge
            .client()
            .post(&format!("{front}/echo/add"), r#"{"a":1,"b":2}"#);
        assert_eq!(reply.ok(), 3);
        let docs = bridge.client().get(&format!("{front}/echo/docs"));
        assert!(docs.header("Content-Type").starts_with("text/html"));
    }
}

#[test]
fn a_server_named_like_a_route_is_served_below_mcpo_only() {
    let bridge = TestBridge::start(servers([("health", echo())]));
    assert_eq!(bridge.client().get("/mcpo/health/openapi.json").status, 200);
    assert!(bridge.client().get("/health").ok()["status"].is_string());
    assert!(
        bridge.client().get("/health").ok()["warnings"]
            .to_string()
            .contains("health")
    );
}

#[test]
fn a_document_carries_no_folder_of_the_child_it_was_learnt_from() {
    let bridge = start();
    let text = document(&bridge, "echo").to_string();
    assert!(!text.contains("/work"), "{text}");
    assert!(!text.contains(&bridge.jobs().display().to_string()));
}

#[test]
fn documents_are_answered_without_a_process() {
    let bridge = start();
    document(&bridge, "echo");
    eventually("the learning child has ended", || {
        bridge.children().is_empty()
    });
    document(&bridge, "echo");
    assert!(bridge.children().is_empty(), "{:?}", bridge.children());
}

#[test]
fn the_usage_guide_is_in_every_operation() {
    let guided = with(echo(), json!({"usage_guide": "Use plain file names."}));
    let bridge = TestBridge::start(servers([("echo", guided)]));
    let document = document(&bridge, "echo");
    for (path, operations) in document["paths"].as_object().expect("paths") {
        let description = operations["post"]["description"]
            .as_str()
            .expect("a description");
        assert!(
            description.contains("Use plain file names."),
            "{path}: {description}"
        );
    }
}

#[test]
fn a_changed_list_of_tools_is_noticed() {
    let folder = tempfile::tempdir().expect("a folder");
    let extra = json!({"env": {"EXTRA_FILE": folder.path().join("extra")}});
    let config = servers([("echo", echo()), ("more", with(echo(), extra))]);
    let bridge = TestBridge::start(config);
    let has_extra = |server: &str| !document(&bridge, server)["paths"]["/extra"].is_null();
    assert!(!has_extra("echo") && !has_extra("more"));
    let chat = bridge.chat("alice", "c1");
    for server in ["echo", "more"] {
        chat.call(server, "change_tools", json!({})).ok();
    }
    eventually("it is listed", || has_extra("more"));
    assert_eq!(chat.call("more", "extra", json!({})).ok(), "extra");
    // The catalogue uses a new child; only the session's own child of this server has the tool.
    assert!(!has_extra("echo"));
    assert_eq!(chat.call("echo", "extra", json!({})).status, 404);
}

#[test]
fn weird_schemas_hurt_nobody() {
    let bridge = TestBridge::start(servers([
        ("weird", rude("weird_schemas")),
        ("echo", echo()),
    ]));
    let document = document(&bridge, "weird");
    let mut booleans = Vec::new();
    boolean_schemas(&document, &mut booleans);
    assert_eq!(booleans, Vec::<String>::new());
    assert!(
        !document.to_string().contains("127.0.0.1:9"),
        "a remote reference is cut off"
    );
    let paths = document["paths"].as_object().expect("paths");
    assert_eq!(paths.len(), 16, "{:?}", paths.keys());
    let mut names = HashSet::new();
    for (path, operations) in paths {
        let name = operations["post"]["operationId"].as_str().expect("a name");
        let good = |letter: char| letter.is_ascii_alphanumeric() || "_-".contains(letter);
        assert!(
            (1..=64).contains(&name.len()) && name.chars().all(good),
            "{name}"
        );
        assert!(names.insert(name.to_owned()), "{name} stands twice");
        let reply = bridge.client().post(&format!("/weird{path}"), "{}");
        assert!(
            [200, 422].contains(&reply.status),
            "{path}: {} {}",
            reply.status,
            reply.text()
        );
    }
}

#[test]
fn three_hundred_tools_are_served() {
    let many = with(rude("weird_schemas"), json!({"env": {"TOOL_COUNT": "300"}}));
    let bridge = TestBridge::start(servers([("weird", many)]));
    assert_eq!(
        document(&bridge, "weird")["paths"]
            .as_object()
            .expect("paths")
            .len(),
        316
    );
}

#[test]
fn arguments_arrive_as_they_were_sent() {
    let bridge = start();
    let sent = json!({"count": 5, "maybe": null, "unknown": {"deep": [1, 2.0]}});
    assert_eq!(bridge.client().echo("arguments", sent.clone()), sent);
    assert_eq!(
        bridge.client().echo("arguments", json!({"count": 1})),
        json!({"count": 1})
    );
}

#[test]
fn what_small_models_send_is_mended_only_where_it_fails() {
    let bridge = start();
    let sent = json!({"count": "5", "flag": "true", "note": null, "maybe": null});
    let got = bridge.client().echo("arguments", sent);
    assert_eq!(got, json!({"count": 5, "flag": true, "maybe": null}));
    let text = json!({"count": 1, "note": "5"});
    assert_eq!(
        bridge.client().echo("arguments", text.clone()),
        text,
        "a text that looks like a number"
    );
    let reply = bridge
        .client()
        .call("echo", "arguments", json!({"count": "five"}));
    assert_eq!(reply.status, 422, "no inexact conversion");
}

#[test]
fn texts_become_json_where_they_are_json() {
    let bridge = start();
    let echo = |text: &str| bridge.client().echo("echo", json!({"text": text}));
    assert_eq!(echo("42"), 42);
    assert_eq!(echo("007"), "007");
    assert_eq!(echo("{\"a\": [1]}"), json!({"a": [1]}));
    assert_eq!(echo("plain words"), "plain words");
}

#[test]
fn content_of_every_kind_arrives() {
    let bridge = start();
    let image = bridge.client().echo("image", json!({}));
    assert!(
        image
            .as_str()
            .is_some_and(|uri| uri.starts_with("data:image/png;base64,"))
    );
    let structured = bridge.client().echo("structured", json!({}));
    assert_eq!(structured, json!({"answer": 42, "list": [1, 2]}));
    let mixed = bridge.client().echo("mixed", json!({}));
    assert_eq!(mixed.as_array().map(Vec::len), Some(5), "{mixed}");
    let text = mixed.to_string();
    for part in ["words", "data:image/png", "audio/wav", "in it", "test://b"] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn progress_and_logs_before_the_result_are_not_the_result() {
    assert_eq!(
        start().client().echo("slow_progress", json!({"steps": 20})),
        "done"
    );
}

#[test]
fn the_index_of_documents_names_every_server() {
    let bridge = TestBridge::start(servers([("echo", echo()), ("second", echo())]));
    let page = bridge.client().get("/docs");
    assert!(page.text().contains("echo") && page.text().contains("second"));
    assert!(
        !page.text().contains("https://cdn"),
        "assets come from the binary"
    );
}
