//! Servers whose lists depend on the session (`session_lists`).

use serde_json::{Value, json};

use crate::support::{Mcp, TestBridge, echo, servers, with};

/// Its tool `change_tools` adds a tool `extra`, in that process only.
fn start(more: Value) -> TestBridge {
    let server = with(echo(), json!({"session_lists": true}));
    TestBridge::start(servers([("echo", with(server, more))]))
}

fn tools(mcp: &Mcp) -> Vec<String> {
    let result = mcp.request("tools/list", json!({})).result();
    let tools = result["tools"].as_array().expect("tools").iter();
    tools
        .map(|tool| tool["name"].as_str().expect("a name").to_owned())
        .collect()
}

#[test]
fn each_chat_sees_and_calls_the_tools_of_its_own_process() {
    let bridge = start(json!({}));
    let (alice, bob) = (bridge.chat("alice", "c1"), bridge.chat("bob", "c1"));
    alice.echo("change_tools", json!({}));
    for mcp in Mcp::both(&alice, "echo") {
        assert!(tools(&mcp).contains(&"extra".to_owned()));
        assert_eq!(mcp.text("extra", json!({})), "extra");
    }
    assert_eq!(alice.echo("extra", json!({})), "extra");
    assert_eq!(alice.post("/echo/extra", "null").ok(), "extra");
    for mcp in Mcp::both(&bob, "echo") {
        assert!(!tools(&mcp).contains(&"extra".to_owned()));
        assert_eq!(mcp.begin("extra", json!({})).refusal().1, -32602);
    }
    // The server itself returns the error for the unknown tool.
    let unknown = bob.call("echo", "extra", json!({})).expect(422);
    assert_eq!(unknown["detail"]["message"], "Unknown tool: extra");
}

#[test]
fn the_config_still_hides_tools() {
    let bridge = start(
        json!({"enabledTools": ["echo", "change_tools", "extra"], "disabledTools": ["extra"]}),
    );
    let alice = bridge.chat("alice", "c1");
    alice.echo("change_tools", json!({}));
    for mcp in Mcp::both(&alice, "echo") {
        assert_eq!(tools(&mcp), ["echo", "change_tools"]);
        assert_eq!(mcp.begin("extra", json!({})).refusal().1, -32602);
    }
    alice.call("echo", "extra", json!({})).expect(404);
}

#[test]
fn arguments_that_only_the_session_may_understand_are_left_to_the_server() {
    let bridge = start(json!({}));
    let alice = bridge.chat("alice", "c1");
    // The catalogue's schema requires a number here, and corrects a similar value.
    assert_eq!(alice.echo("arguments", json!({"count": "5"}))["count"], 5);
    assert_eq!(
        alice.echo("arguments", json!({"count": "many"}))["count"],
        "many"
    );
}
