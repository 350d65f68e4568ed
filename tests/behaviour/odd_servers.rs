//! Servers with unusual messages: an invalid part affects nothing else.

use crate::support::{ALL, Client, Mcp, TestBridge, echo, fixture, servers, with};
use serde_json::{Value, json};

fn script(script: &Value) -> Value {
    json!({"command": "python3", "args": [fixture("script_server.py"), script.to_string()]})
}

/// A server that lists these items.
fn listing(method: &str, key: &str, items: &Value) -> Value {
    script(&json!({
        "capabilities": {"tools": {}, "prompts": {}, "resources": {}},
        "results": {method: {key: items}, "resources/templates/list": {"resourceTemplates": []}},
    }))
}

fn warnings(bridge: &TestBridge) -> String {
    bridge.client().get("/health").json()["warnings"].to_string()
}

#[test]
fn an_odd_tool_is_mended_at_the_endpoint_of_all_servers_and_named_in_warnings() {
    let odd = json!([
        {"name": "noschema", "description": null},
        {"name": "nullschema", "title": null, "inputSchema": null, "annotations": null, "_meta": null},
        {"name": "truth", "inputSchema": true, "outputSchema": null},
        {"name": "shout", "inputSchema": {"type": "OBJECT", "properties": null, "required": null}},
        {"name": "dangling", "inputSchema": {"type": "object"},
         "outputSchema": {"type": "object", "properties": {"a": {"$ref": "#/$defs/Nope"}}}},
        {"name": 5}, {"inputSchema": {}}, null, "words",
        {"name": "good", "inputSchema": {"type": "object", "properties": {"a": {"type": "string"}}}},
    ]);
    let bridge = TestBridge::ready(servers([
        ("odd", listing("tools/list", "tools", &odd)),
        ("fine", with(echo(), json!({"enabled_tools": ["echo"]}))),
    ]));
    for mcp in Mcp::both(&bridge.chat("alice", "c1"), ALL) {
        let listed = mcp.request("tools/list", json!({})).result()["tools"].take();
        let tools = listed.as_array().expect("a list");
        let names: Vec<_> = tools
            .iter()
            .map(|tool| tool["name"].as_str().unwrap())
            .collect();
        let expected = [
            "noschema",
            "nullschema",
            "truth",
            "shout",
            "dangling",
            "good",
        ];
        let expected: Vec<_> = expected.iter().map(|name| format!("odd_{name}")).collect();
        assert_eq!(names[..6], expected);
        assert_eq!(names[6..], ["fine_echo"]);
        for tool in tools {
            assert_eq!(tool["inputSchema"]["type"], "object", "{tool}");
            let members = tool.as_object().unwrap();
            assert!(members.values().all(|value| !value.is_null()), "{tool}");
            assert!(tool.get("outputSchema").is_none(), "{tool}");
        }
        for name in &expected {
            let own = name.trim_start_matches("odd_");
            assert_eq!(mcp.text(name, json!({})), format!("called {own}"));
        }
        assert_eq!(mcp.text("fine_echo", json!({"text": "hi"})), "hi");
    }
    let warned = warnings(&bridge);
    for word in [
        "'odd'",
        "at /mcp/odd",
        "noschema",
        "4 tools omitted (unnamed)",
    ] {
        assert!(warned.contains(word), "{word}: {warned}");
    }
    assert!(!warned.contains("'fine'"), "{warned}");
    let checked = bridge.command(&["check", "--verbose"]);
    let checked = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert!(checked.contains("noschema"), "{checked}");
    // The server's own text, because the client addressed this server.
    let own = Mcp::legacy(bridge.client(), "odd", &json!({}));
    let listed = own.request("tools/list", json!({})).result();
    assert_eq!(listed["tools"][0], odd[0]);
}

#[test]
fn odd_prompts_and_resources_cost_nothing_beside_them() {
    let prompts = json!([
        {"name": "nulls", "title": null, "description": null, "arguments": null},
        {"description": "unnamed"},
        {"name": "args", "arguments": [{"name": "a", "description": null, "required": null}, {"x": 1}]},
    ]);
    let resources = json!([
        {"uri": "x://1", "name": "r", "mimeType": null, "size": null, "annotations": null},
        {"uri": "x://2"}, {"name": "without a uri"}, {"uri": "x://3", "name": "s", "size": "5 KB"},
        {"uri": "no scheme", "name": "t"},
    ]);
    let bridge = TestBridge::ready(servers([
        ("p", listing("prompts/list", "prompts", &prompts)),
        ("r", listing("resources/list", "resources", &resources)),
    ]));
    for mcp in Mcp::both(&bridge.chat("alice", "c1"), ALL) {
        let listed = mcp.request("prompts/list", json!({})).result();
        let expected =
            json!([{"name": "p_nulls"}, {"name": "p_args", "arguments": [{"name": "a"}]}]);
        assert_eq!(listed["prompts"], expected);
        let got = mcp
            .request("prompts/get", json!({"name": "p_args"}))
            .result();
        assert_eq!(got["messages"][0]["content"]["text"], "prompt args");
        let listed = mcp.request("resources/list", json!({})).result();
        let expected = json!([
            {"uri": "x://1", "name": "r"}, {"name": "x://2", "uri": "x://2"},
            {"uri": "x://3", "name": "s"}, {"uri": "mcpo:r/no scheme", "name": "t"},
        ]);
        assert_eq!(listed["resources"], expected);
        let read = mcp
            .request("resources/read", json!({"uri": "mcpo:r/no scheme"}))
            .result();
        assert_eq!(read["contents"][0]["text"], "read no scheme");
    }
    let warned = warnings(&bridge);
    for word in ["a prompt without", "a resource without", "'x://3': size"] {
        assert!(warned.contains(word), "{word}: {warned}");
    }
}

#[test]
fn an_odd_greeting_is_a_greeting() {
    let odd = script(&json!({"results": {"initialize": {
        "protocolVersion": 5, "capabilities": {"tools": true, "prompts": false, "logging": [],
            "extensions": {"io.modelcontextprotocol/ui": null}},
        "serverInfo": {"name": null, "version": 2}, "instructions": {"a": 1},
    }}}));
    let bridge = TestBridge::ready(servers([("odd", odd)]));
    let chat = bridge.chat("alice", "c1");
    assert_eq!(chat.call("odd", "plain", json!({})).ok(), "called plain");
    let hello = Mcp::modern(chat, ALL, json!({}))
        .request("server/discover", json!({}))
        .result();
    assert!(hello["capabilities"].get("extensions").is_none(), "{hello}");
    assert!(warnings(&bridge).contains("serverInfo.name is not a string"));
}

#[test]
fn pages_are_followed_as_far_as_they_lead_and_what_is_odd_is_said() {
    for (cursor, words) in [
        (json!(3), "is a number"),
        (json!({"a": 1}), "has the wrong type"),
    ] {
        let first = json!({"tools": [{"name": "one", "inputSchema": {"type": "object"}}], "nextCursor": cursor});
        let odd = script(&json!({"results": {"tools/list": first}}));
        let bridge = TestBridge::ready(servers([("odd", odd)]));
        let warned = warnings(&bridge);
        assert!(warned.contains(words), "{warned}");
    }
    let lists = script(&json!({
        "capabilities": {"tools": {}, "prompts": {}},
        "results": {"tools/list": {"tools": null}, "prompts/list": {"prompts": {"a": 1}}},
    }));
    let bridge = TestBridge::ready(servers([("odd", lists)]));
    let warned = warnings(&bridge);
    assert!(
        warned.contains("tools/list") && warned.contains("prompts/list"),
        "{warned}"
    );
}

#[test]
fn pages_without_an_end_are_left_at_some_point_and_what_is_missing_is_said() {
    for (pages, words) in [
        (3, "a nextCursor occurs twice"),
        (5000, "more than 1000 pages"),
    ] {
        let bridge = TestBridge::ready(servers([("odd", script(&json!({ "pages": pages })))]));
        let warned = warnings(&bridge);
        assert!(warned.contains(words), "{warned}");
        bridge.client().call("odd", "t2", json!({})).ok();
    }
}

#[test]
fn answers_are_found_behind_marks_and_words_and_with_odd_ids() {
    let answer =
        r#"{"jsonrpc":"2.0","id":%ID%,"result":{"content":[{"type":"text","text":"found"}]}}"#;
    let marked = format!("\u{feff}{answer}\n");
    for raw in [
        marked.clone(),
        format!("Processing... {answer}\n"),
        format!("\u{1b}[?25h\u{1b}[0m{answer}\n"),
        format!("Ok to proceed? (y) {answer} done\n"),
        format!("{}\n", answer.replace("%ID%", "%ID%.0")),
        format!("{}\n", answer.replace("%ID%", "\"%ID%\"")),
        format!(
            "{}\n",
            answer.replace("{\"jsonrpc\"", "{\"jsonrpc\":\"2.0\",\"jsonrpc\"")
        ),
        format!("[7,{{\"id\":{{}}}},{answer}]\n"),
    ] {
        let server = script(&json!({"raw": {"tools/call": raw}}));
        let bridge = TestBridge::ready(servers([("odd", server)]));
        let called = bridge.chat("alice", "c1").call("odd", "plain", json!({}));
        assert_eq!(called.ok(), "found", "{raw}");
    }
    let hello = r#"{"jsonrpc":"2.0","id":%ID%,"result":{"protocolVersion":"2025-06-18","capabilities":{"tools":{}},"serverInfo":{"name":"n","version":"1"}}}"#;
    for before in ["\u{feff}", "Starting server on stdio..."] {
        let server = script(&json!({"raw": {"initialize": format!("{before}{hello}\n")}}));
        let bridge = TestBridge::ready(servers([("odd", server)]));
        let called = bridge.chat("alice", "c1").call("odd", "plain", json!({}));
        assert_eq!(called.ok(), "called plain", "{before}");
    }
}

#[test]
fn a_call_without_an_answer_says_what_stood_in_its_place() {
    let server = script(&json!({"raw": {"tools/call": "License expired: see the portal\n"}}));
    let server = with(server, json!({"timeout": 15}));
    let bridge = TestBridge::ready(servers([("odd", server)]));
    let failed = bridge.chat("alice", "c1").call("odd", "plain", json!({}));
    assert_eq!(failed.status, 504);
    assert!(
        failed.text().contains("License expired"),
        "{}",
        failed.text()
    );
}

#[test]
fn an_odd_error_keeps_its_words_at_every_door() {
    for error in [
        json!("it broke"),
        json!({"message": "it broke"}),
        json!({"code": "x", "message": {"why": "it broke"}}),
        json!(["it broke"]),
    ] {
        let raw = format!("{{\"jsonrpc\":\"2.0\",\"id\":%ID%,\"error\":{error}}}\n");
        let server = script(&json!({"raw": {"tools/call": raw}}));
        let bridge = TestBridge::ready(servers([("odd", server)]));
        let chat = bridge.chat("alice", "c1");
        let failed = chat.call("odd", "plain", json!({}));
        assert!(failed.text().contains("it broke"), "{}", failed.text());
        for (server, tool) in [("odd", "plain"), (ALL, "odd_plain")] {
            for mcp in Mcp::both(&chat, server) {
                let told = mcp.begin(tool, json!({})).answer();
                let (code, words) = (&told["error"]["code"], &told["error"]["message"]);
                assert!(code.is_i64(), "{told}");
                assert!(
                    words
                        .as_str()
                        .is_some_and(|words| words.contains("it broke")),
                    "{told}"
                );
            }
        }
    }
}

#[test]
fn a_request_with_a_null_id_is_refused() {
    let bridge = TestBridge::ready(servers([("echo", echo())]));
    let call = json!({"jsonrpc": "2.0", "id": null, "method": "tools/list"});
    for path in ["/mcp", "/mcp/echo"] {
        let reply = bridge.client().post(path, call.to_string());
        assert_eq!(reply.status, 400, "{}", reply.text());
        assert_eq!(reply.json()["error"]["code"], -32600);
    }
}

#[test]
fn a_body_with_a_byte_order_mark_is_read() {
    let bridge = TestBridge::ready(servers([("echo", echo())]));
    let hello = json!({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {
        "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "é", "version": "1"}}});
    let text = hello.to_string();
    let wide = |unit: u16| unit.to_le_bytes();
    let bodies = [
        ["\u{feff}", &text].concat().into_bytes(),
        ["\u{feff}", &text]
            .concat()
            .encode_utf16()
            .flat_map(wide)
            .collect(),
    ];
    for body in bodies {
        bridge.client().post("/mcp", body).ok();
    }
}

#[test]
fn an_unknown_version_hears_which_there_are_in_its_era() {
    let bridge = TestBridge::ready(servers([("echo", echo())]));
    for path in ["/mcp", "/mcp/echo"] {
        let hello = json!({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {
            "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}});
        let session = bridge.client().post(path, hello.to_string());
        let session = session.header("Mcp-Session-Id").to_owned();
        let list = json!({"jsonrpc": "2.0", "id": 2, "method": "tools/list"}).to_string();
        let unknown = bridge.client().header("MCP-Protocol-Version", "1999-01-01");
        let supported = |client: Client| {
            let refused = client.post(path, list.clone());
            assert_eq!(refused.status, 400, "{}", refused.text());
            refused.json()["error"]["data"]["supported"].to_string()
        };
        let told = supported(unknown.clone().header("Mcp-Session-Id", session));
        assert!(
            told.contains("2025-06-18") && !told.contains("2026-07-28"),
            "{told}"
        );
        let told = supported(unknown);
        assert!(
            told.contains("2025-06-18") && told.contains("2026-07-28"),
            "{told}"
        );
    }
}

#[test]
fn a_child_hears_what_its_caller_can_do() {
    let bridge = TestBridge::ready(servers([("s", script(&json!({})))]));
    for (chat, declared, heard) in [
        (
            "c1",
            json!({"elicitation": {"form": {}, "url": {}}}),
            json!({"elicitation": {"form": {}, "url": {}}}),
        ),
        (
            "c2",
            json!({"elicitation": {}}),
            json!({"elicitation": {"form": {}}}),
        ),
        ("c3", json!({}), json!({})),
        (
            "c4",
            json!({"sampling": {}, "roots": {}}),
            json!({"roots": {}, "sampling": {}}),
        ),
    ] {
        let mcp = Mcp::modern(bridge.chat("alice", chat), "s", declared.clone());
        let said: Value = serde_json::from_str(&mcp.text("hello", json!({}))).expect("JSON");
        assert_eq!(said, heard, "{declared}");
        let mcp = Mcp::legacy(bridge.chat("bob", chat), "s", &declared);
        let said: Value = serde_json::from_str(&mcp.text("hello", json!({}))).expect("JSON");
        assert_eq!(said, declared);
    }
    let said = bridge.chat("carol", "c1").call("s", "hello", json!({}));
    assert_eq!(said.ok(), json!({}));
}

#[test]
fn a_child_that_asks_for_what_is_not_there_hears_so_and_its_call_goes_on() {
    let bridge = TestBridge::ready(servers([("s", script(&json!({})))]));
    let url = json!({"method": "elicitation/create", "params": {"mode": "url", "url": "https://x/", "message": "m", "elicitationId": "e"}});
    let sample =
        json!({"method": "sampling/createMessage", "params": {"messages": [], "maxTokens": 5}});
    let roots = json!({"method": "roots/list"});
    for (asked, code) in [(url, -32602), (sample, -32601), (roots, -32601)] {
        for mcp in both_with(
            &bridge.chat("alice", "c1"),
            "s",
            &json!({"elicitation": {"form": {}}}),
        ) {
            let answer: Value =
                serde_json::from_str(&mcp.text("ask", json!({"request": asked}))).expect("JSON");
            assert_eq!(answer["code"], code, "{answer}");
        }
        let answer = bridge
            .chat("carol", "c1")
            .call("s", "ask", json!({"request": asked}))
            .ok();
        assert_eq!(answer["code"], -32601, "{answer}");
    }
}

fn both_with(client: &Client, server: &str, able: &Value) -> [Mcp; 2] {
    [
        Mcp::legacy(client.clone(), server, able),
        Mcp::modern(client.clone(), server, able.clone()),
    ]
}

#[test]
fn the_text_of_links_is_an_embedded_resource_where_open_webui_would_show_a_result_twice() {
    let result = |structured: Value| {
        let mut result = json!({"content": [{"type": "text", "text": "{\"result\":1}"}]});
        if !structured.is_null() {
            result["structuredContent"] = structured;
        }
        script(&json!({"results": {"tools/call": result}, "writes": "a.txt"}))
    };
    let bridge = TestBridge::ready(servers([
        ("wrapped", result(json!({"result": 1}))),
        ("plain", result(Value::Null)),
    ]));
    let second = |mcp: &Mcp| mcp.call("plain", json!({}))["content"][1].take();
    for (server, embedded) in [("wrapped", true), ("plain", false)] {
        for mcp in Mcp::both(&bridge.chat("alice", "c1"), server) {
            let block = second(&mcp);
            let (kind, text) = if embedded {
                ("resource", &block["resource"]["text"])
            } else {
                ("text", &block["text"])
            };
            assert_eq!(block["type"], kind, "{block}");
            assert!(
                text.as_str().is_some_and(|text| text.contains("[a.txt](")),
                "{block}"
            );
        }
        // Other clients show a text block to their model, but perhaps not an embedded resource.
        for mcp in Mcp::both(&bridge.client(), server) {
            assert_eq!(second(&mcp)["type"], "text");
        }
    }
}
