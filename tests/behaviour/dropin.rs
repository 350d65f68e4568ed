//! Compatibility with mcpo: its command lines, its addresses, its header forwarding.

use serde_json::{Value, json};

use crate::support::{Builder, Client, TestBridge, echo, fixture, result_of, servers, vars, with};

/// `mcpo-bridge … -- python3 echo_server.py`
fn single(arguments: &[&str]) -> Builder {
    let mut builder = TestBridge::builder(json!({"mcpServers": {}}));
    let server = fixture("echo_server.py");
    let command = ["--", "python3", &server];
    for argument in arguments.iter().chain(&command) {
        builder = builder.arg(argument);
    }
    builder
}

fn document(client: &Client, path: &str) -> Value {
    client.get(path).ok()
}

#[test]
fn a_single_server_is_served_at_the_root() {
    let bridge = single(&[]).start();
    let client = bridge.client();
    assert_eq!(client.post("/add", r#"{"a": 1, "b": 2}"#).ok(), 3);
    let root = document(&client, "/openapi.json");
    assert_eq!(root["servers"], json!([{"url": "/"}]));
    assert_eq!(root["paths"]["/add"]["post"]["operationId"], "add");
    let page = client.get("/docs").text();
    assert!(page.contains(r#"src="docs/assets/"#), "{page}");
    assert_eq!(client.get("/add").status, 405);
    assert_eq!(client.post("/nothing", "{}").status, 404);
    assert_eq!(client.get("/nothing").status, 404);
}

#[test]
fn a_single_server_is_an_ordinary_one_by_its_name() {
    let bridge = single(&["--name", "Clock 1"]).start();
    let client = bridge.client();
    let body = r#"{"a": 1, "b": 2}"#;
    assert_eq!(client.post("/Clock%201/add", body).ok(), 3);
    assert_eq!(client.post("/mcpo/Clock%201/add", body).ok(), 3);
    assert_eq!(
        document(&client, "/openapi.json")["info"]["title"],
        "Clock 1"
    );
    let asked = client
        .header("Accept", "application/json, text/event-stream")
        .header("MCP-Protocol-Version", "2026-07-28");
    assert_ne!(asked.post("/mcp/Clock%201", "{}").status, 404);
}

#[test]
fn a_tool_named_as_a_route_of_ours_is_called_all_the_same() {
    let bridge = single(&[]).start();
    let client = bridge.client();
    let kind = |path: &str| client.post(path, "{}").json()["type"].clone();
    let unknown = "urn:mcpo-bridge:problem:unknown_tool";
    assert_eq!(
        kind("/health"),
        unknown,
        "it was looked for among the tools"
    );
    assert_eq!(kind("/docs"), unknown);
    assert_eq!(client.request("DELETE", "/health").status, 405);
}

#[test]
fn variables_of_the_command_line_reach_the_server_beneath_its_own() {
    let server = with(echo(), json!({"env": {"B": "own", "C": "${FROM_FILE}"}}));
    let prepared = TestBridge::builder(servers([("echo", server)]));
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("vars.env");
    std::fs::write(&file, "FROM_FILE='a b'\nB=no\n").expect("it is written");
    let bridge = prepared
        .arg("--env=A=x=y")
        .arg("--env-path")
        .arg(file.to_str().expect("text"))
        .start();
    let env = bridge.client().echo("env", json!({}));
    assert_eq!(
        [&env["A"], &env["B"], &env["C"], &env["FROM_FILE"]],
        ["x=y", "own", "a b", "a b"]
    );
}

#[test]
fn what_a_proxy_takes_off_is_named_in_documents_and_may_still_be_there() {
    let bridge = TestBridge::builder(servers([("echo", echo())]))
        .arg("--root-path=/outside")
        .start();
    let client = bridge.client();
    let body = r#"{"a": 1, "b": 2}"#;
    assert_eq!(client.post("/echo/add", body).ok(), 3);
    assert_eq!(client.post("/outside/echo/add", body).ok(), 3);
    let url = &document(&client, "/echo/openapi.json")["servers"][0]["url"];
    assert_eq!(url, "/outside/echo");
}

#[test]
fn mcpos_operation_ids_are_a_setting() {
    let bridge = TestBridge::builder(servers([("echo", echo())]))
        .var("MCPO_OPERATION_IDS", "mcpo")
        .start();
    let document = document(&bridge.client(), "/echo/openapi.json");
    assert_eq!(
        document["paths"]["/add"]["post"]["operationId"],
        "tool_add_post"
    );
    assert_eq!(bridge.client().echo("add", json!({"a": 1, "b": 2})), 3);
}

fn forwarding(whitelist: &[&str]) -> Value {
    json!({"client_header_forwarding": {"enabled": true, "whitelist": whitelist}})
}

fn forwarded(meta: &Value) -> &Value {
    &meta["mcpo-bridge/headers"]
}

#[test]
fn chosen_headers_reach_a_program_beside_its_arguments() {
    let server = with(
        echo(),
        forwarding(&["X-Tenant", "Authorization", "X-MCPO-*"]),
    );
    let config = servers([("echo", server), ("plain", echo())]);
    let bridge = TestBridge::builder(config)
        .var(vars::API_KEY, "the-key")
        .start();
    let client = bridge
        .client()
        .header("X-Tenant", "a")
        .header("X-Other", "b");
    let keyed = client.clone().bearer("the-key");
    let meta = keyed.echo("meta", json!({}));
    assert_eq!(
        *forwarded(&meta),
        json!({"x-tenant": "a"}),
        "our key stays here"
    );
    let with_token = client.header("X-MCPO-Key", "the-key").bearer("the-users");
    let meta = with_token.echo("meta", json!({}));
    let both = json!({"x-tenant": "a", "authorization": "Bearer the-users"});
    assert_eq!(*forwarded(&meta), both);
    assert_eq!(keyed.call("plain", "meta", json!({})).ok(), Value::Null);
    let log = bridge.finished_log();
    assert!(!log.contains("the-users"), "nor is it logged");
}

#[test]
fn what_a_stranger_says_of_the_user_is_not_forwarded() {
    let server = with(echo(), forwarding(&["X-OpenWebUI-*"]));
    let bridge = TestBridge::builder(servers([("echo", server)])).start();
    let near = bridge.chat("alice", "c");
    let meta = near.echo("meta", json!({}));
    assert_eq!(forwarded(&meta)["x-openwebui-user-id"], "alice");
    let proxied = near.header("X-Forwarded-For", "203.0.113.9");
    assert_eq!(*forwarded(&proxied.echo("meta", json!({}))), json!({}));
}

#[test]
fn chosen_headers_reach_a_remote_server_as_headers_of_that_call() {
    let behind = with(echo(), forwarding(&["X-Tenant"]));
    let behind = TestBridge::start(servers([("echo", behind)]));
    let url = format!("http://{}/mcp/echo", behind.address());
    for mode in ["stateful", "shared", "stateless"] {
        let remote = json!({"type": "streamablehttp", "url": url, "mode": mode});
        let remote = with(remote, forwarding(&["X-Tenant"]));
        let bridge = TestBridge::start(servers([("echo", remote)]));
        let seen = |tenant: &str| {
            let client = bridge.chat("alice", "c").header("X-Tenant", tenant);
            let meta = client.echo("meta", json!({}));
            let meta = result_of(&meta).clone();
            forwarded(&meta)["x-tenant"].clone()
        };
        assert_eq!([seen("a"), seen("b")], ["a", "b"], "{mode}");
        let none = bridge.chat("alice", "c").echo("meta", json!({}));
        let none = result_of(&none).clone();
        assert_eq!(*forwarded(&none), json!({}), "{mode}");
    }
}

#[test]
fn a_client_cannot_forge_what_is_forwarded() {
    let server = with(echo(), forwarding(&["X-Tenant"]));
    let bridge = TestBridge::start(servers([("echo", server)]));
    let client = bridge
        .chat("alice", "c")
        .header("X-Tenant", "real")
        .header("Accept", "application/json, text/event-stream")
        .header("MCP-Protocol-Version", "2026-07-28")
        .header("Mcp-Method", "tools/call")
        .header("Mcp-Name", "meta");
    let forged = json!({"x-tenant": "forged", "x-role": "admin"});
    let call = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {
        "name": "meta", "arguments": {},
        "_meta": {
            "mcpo-bridge/headers": forged, "mine": 1,
            "io.modelcontextprotocol/protocolVersion": "2026-07-28",
            "io.modelcontextprotocol/clientCapabilities": {},
        },
    }});
    let answer = client.post("/mcp/echo", call.to_string()).ok();
    let text = answer["result"]["content"][0]["text"]
        .as_str()
        .expect("text");
    let meta: Value = serde_json::from_str(text).expect("json");
    assert_eq!(*forwarded(&meta), json!({"x-tenant": "real"}));
    assert_eq!(meta["mine"], 1);
}
