//! The cost of checking arguments, and the accepted forms of addresses and bodies.

use std::{fs, path::Path};

use serde_json::{Value, json};

use crate::support::{ALL, Client, Mcp, TestBridge, echo, fixture, servers, with};

/// A server with the tools of a file; each tool returns its arguments.
fn zoo(folder: &Path, tools: &Value) -> Value {
    let file = folder.join("tools.json");
    fs::write(&file, tools.to_string()).expect("the tools are written");
    json!({"command": "python3", "args": [fixture("zoo_server.py"), file]})
}

/// A recursive schema: twelve kinds of blocks, each with nested blocks; and eight lists of itself.
fn recursive() -> Value {
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
        json!({
            "type": "object",
            "properties": {
                "type": {"const": kind},
                "text": {"type": "string"},
                "children": {"type": "array", "items": {"$ref": "#/$defs/block"}},
            },
            "required": ["type"],
        })
    };
    let blocks = json!({"type": "array", "items": {"$ref": "#/$defs/block"}});
    let itself = json!({"type": "array", "items": {"$ref": "#/$defs/x"}});
    json!([
        {"name": "append", "inputSchema": {
            "type": "object",
            "properties": {"blocks": blocks},
            "required": ["blocks"],
            "$defs": {"block": {"anyOf": kinds.map(block)}},
        }},
        {"name": "hostile", "inputSchema": {
            "type": "object",
            "properties": {"x": {"$ref": "#/$defs/x"}},
            "$defs": {"x": {"anyOf": vec![itself; 8]}},
        }},
    ])
}

fn toggles(depth: usize, kind: &str) -> Value {
    let innermost = json!({"type": kind});
    let nested = (0..depth).fold(
        innermost,
        |block, _| json!({"type": "toggle", "children": [block]}),
    );
    json!({"blocks": [nested]})
}

/// Resident memory of the bridge's own process, in KiB.
fn resident(client: &Client) -> u64 {
    let metrics = client.get("/metrics").text();
    let line = metrics
        .lines()
        .find(|line| line.starts_with("mcpo_process_resident_memory_bytes"));
    let bytes = line.and_then(|line| line.split_whitespace().last()?.parse::<f64>().ok());
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "bytes of memory"
    )]
    let kib = (bytes.expect("the metric of memory") / 1024.0) as u64;
    kib
}

#[test]
fn a_mistake_deep_in_a_recursive_schema_is_named_and_costs_little() {
    let folder = tempfile::tempdir().expect("a folder");
    let bridge = TestBridge::start(servers([("zoo", zoo(folder.path(), &recursive()))]));
    let client = bridge.client();
    let before = resident(&client);
    for depth in [3, 5, 20] {
        let right = toggles(depth, "code");
        assert_eq!(
            client.call("zoo", "append", right.clone()).ok()["arguments"],
            right
        );
        // Without a limit, 5 levels took minutes and all memory.
        let refused = client
            .call("zoo", "append", toggles(depth, "cod"))
            .expect(422);
        let place = refused["detail"][0]["loc"].as_array().expect("a place");
        assert_eq!(place.len(), 3 + 2 * depth, "{refused}");
    }
    for depth in [8, 60] {
        let lists = |inner: &str| {
            format!(
                r#"{{"x":{}{inner}{}}}"#,
                "[".repeat(depth),
                "]".repeat(depth)
            )
        };
        client.post("/zoo/hostile", lists(r#""s""#)).expect(422);
        client.post("/zoo/hostile", lists("")).ok();
    }
    let grown = resident(&client).saturating_sub(before);
    assert!(grown < 100 * 1024, "{grown} KiB");
}

#[test]
fn a_body_of_too_many_values_is_too_large() {
    let bridge = TestBridge::start(servers([("echo", echo())]));
    let body = format!(r#"{{"list":[0{}]}}"#, ",0".repeat(1_000_000));
    let reply = bridge.client().post("/echo/arguments", body);
    assert_eq!(
        reply.json()["type"],
        "urn:mcpo-bridge:problem:too_many_values"
    );
    assert_eq!(reply.status, 413);
}

#[test]
fn bodies_with_a_mark_in_front_are_read() {
    let bridge = TestBridge::start(servers([("echo", echo())]));
    let text = r#"{"text":"é"}"#;
    let utf16: Vec<u16> = std::iter::once(0xFEFF).chain(text.encode_utf16()).collect();
    for body in [
        format!("\u{feff}{text}").into_bytes(),
        utf16.iter().flat_map(|unit| unit.to_le_bytes()).collect(),
        utf16.iter().flat_map(|unit| unit.to_be_bytes()).collect(),
    ] {
        assert_eq!(bridge.client().post("/echo/echo", body).ok(), "é");
    }
}

#[test]
fn an_address_may_end_in_a_slash() {
    let tools = json!([{"name": "a", "inputSchema": {}}, {"name": "b/", "inputSchema": {}}, {"name": "b", "inputSchema": {}}]);
    let folder = tempfile::tempdir().expect("a folder");
    let bridge = TestBridge::start(servers([("p", zoo(folder.path(), &tools))]));
    let client = bridge.client();
    for front in ["", "/mcpo"] {
        for (path, tool) in [
            ("p/a", "a"),
            ("p/a/", "a"),
            ("p/b/", "b/"),
            ("p/b", "b"),
            ("p/b%2F", "b/"),
        ] {
            let answer = client.post(&format!("{front}/{path}"), "{}").ok();
            assert_eq!(answer["tool"], tool, "{front}/{path}");
        }
        for path in ["p/openapi.json/", "p/docs/"] {
            assert_eq!(client.get(&format!("{front}/{path}")).status, 200, "{path}");
        }
        assert_eq!(client.post(&format!("{front}/p/c/"), "{}").status, 404);
    }
    for path in [
        "/openapi.json/",
        "/docs/",
        "/health/",
        "/health/live/",
        "/metrics/",
    ] {
        assert_eq!(client.get(path).status, 200, "{path}");
    }
    let ping = json!({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {
        "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}});
    let ping = ping.to_string();
    for path in ["/mcp", "/mcp/", "/mcp/p", "/mcp/p/"] {
        // Without `Accept`, which HTTP reads as `*/*`.
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n{ping}",
            ping.len()
        );
        let answer = client.raw(request.as_bytes());
        assert!(answer.starts_with("HTTP/1.1 200 "), "{path}: {answer}");
    }
}

#[test]
fn servers_with_slashes_in_their_names_are_served_as_in_mcpo() {
    let long =
        "github.com/owner/servers/tree/main/src/a-name-that-is-longer-than-sixty-four-characters";
    let bridge = TestBridge::start(servers([
        (long, echo()),
        ("@scope/name", echo()),
        (
            "@scope/name/more",
            with(echo(), json!({"disabledTools": ["add"]})),
        ),
    ]));
    let client = bridge.client();
    let encoded = |name: &str| name.replace('@', "%40").replace('/', "%2F");
    for name in [
        long.to_owned(),
        "@scope/name".to_owned(),
        encoded(long),
        encoded("@scope/name"),
    ] {
        for front in ["", "/mcpo"] {
            let at = |leaf: &str| format!("{front}/{name}/{leaf}");
            assert_eq!(
                client.post(&at("add"), r#"{"a":1,"b":2}"#).ok(),
                3,
                "{front}/{name}"
            );
            assert_eq!(client.post(&at("add/"), r#"{"a":1,"b":2}"#).ok(), 3);
            assert_eq!(client.get(&at("openapi.json")).ok()["openapi"], "3.1.0");
            assert_eq!(client.get(&at("docs")).status, 200);
            assert_eq!(client.post(&at("nothing"), "{}").status, 404);
        }
        let mcp = Mcp::legacy(client.clone(), &name, &json!({}));
        assert_eq!(mcp.text("add", json!({"a": 1, "b": 2})), "3");
    }
    // The longest matching name applies.
    let more = client.post("/@scope/name/more/add", r#"{"a":1,"b":2}"#);
    assert_eq!(more.status, 404, "{}", more.text());
    client
        .post("/@scope/name/more/echo", r#"{"text":"x"}"#)
        .ok();
    let all = Mcp::legacy(client, ALL, &json!({}));
    let listed = all.request("tools/list", json!({})).result();
    let names: Vec<&str> = listed["tools"]
        .as_array()
        .expect("tools")
        .iter()
        .filter_map(|tool| tool["name"].as_str())
        .collect();
    let good = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    for name in &names {
        assert!(name.len() <= 64 && name.chars().all(good), "{name}");
    }
    let adds: Vec<&&str> = names.iter().filter(|name| name.contains("_add_")).collect();
    assert_eq!(adds.len(), 2, "{names:?}");
    for name in adds {
        assert_eq!(all.text(name, json!({"a": 1, "b": 2})), "3", "{name}");
    }
}

#[test]
fn a_tool_that_runs_as_a_task_only_is_no_operation() {
    let tools = json!([
        {"name": "plain", "inputSchema": {}, "execution": {"taskSupport": "optional"}},
        {"name": "slow", "inputSchema": {}, "execution": {"taskSupport": "required"}},
    ]);
    let folder = tempfile::tempdir().expect("a folder");
    let bridge = TestBridge::start(servers([("zoo", zoo(folder.path(), &tools))]));
    let client = bridge.client();
    let document = client.get("/zoo/openapi.json").ok();
    let paths: Vec<&String> = document["paths"]
        .as_object()
        .expect("paths")
        .keys()
        .collect();
    assert_eq!(paths, ["/plain"]);
    let refused = client.post("/zoo/slow", "{}").expect(404);
    assert!(
        refused["detail"].as_str().expect("words").contains("task"),
        "{refused}"
    );
    let warnings = client.get("/health").ok()["warnings"].to_string();
    assert!(warnings.contains("slow"), "{warnings}");
}
