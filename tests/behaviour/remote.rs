//! Remote servers: one bridge in front of another, through both endpoints.

use std::net::TcpListener;

use crate::support::{
    Builder, Client, LONG, Mcp, TestBridge, echo, eventually,
    far::{self, Far},
    fixture, promptly, result_of, servers, vars, with,
};
use serde_json::{Value, json};

const KEY: &str = "a-key-that-nobody-may-read-anywhere";

/// A bridge whose remote server `echo` is that of `behind`.
fn in_front_of(behind: &TestBridge, more: Value) -> TestBridge {
    prepared(behind, more).start()
}

fn prepared(behind: &TestBridge, more: Value) -> Builder {
    let url = format!("http://{}/mcp/echo?secret=in-the-query", behind.address());
    let remote = json!({"url": url, "type": "streamable-http"});
    TestBridge::builder(servers([("echo", with(remote, more))]))
}

/// The port stays the same after restarts.
fn behind() -> Builder {
    let port = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr());
    let port = port.expect("a free port").port();
    TestBridge::builder(servers([("echo", echo())])).var("MCPO_PORT", port)
}

/// The answer's text, as a number.
fn counted(client: &Client) -> Value {
    let answer = client.echo("counter", json!({}));
    result_of(&answer).clone()
}

/// Posts a client's message to `/mcp/echo`; returns the JSON-RPC messages of the response.
fn mcp(client: &Client, message: &Value) -> (Vec<Value>, String) {
    let client = client
        .clone()
        .header("Accept", "application/json, text/event-stream")
        .header("MCP-Protocol-Version", "2025-11-25");
    let reply = client.post("/mcp/echo", message.to_string());
    let text = reply.text();
    let lines = text
        .lines()
        .map(|line| line.strip_prefix("data:").unwrap_or(line));
    let messages = lines.filter_map(|line| serde_json::from_str::<Value>(line.trim()).ok());
    let messages = messages.filter(Value::is_object).collect();
    (messages, reply.header("mcp-session-id").to_owned())
}

fn initialised(client: &Client) -> Client {
    let params = json!({
        "protocolVersion": "2025-11-25",
        "capabilities": {},
        "clientInfo": {"name": "test", "version": "0"},
    });
    let message = json!({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params});
    let (answer, session) = mcp(client, &message);
    assert!(answer[0]["result"]["serverInfo"].is_object(), "{answer:?}");
    let client = client.clone().header("Mcp-Session-Id", session);
    mcp(
        &client,
        &json!({"jsonrpc": "2.0", "method": "notifications/initialized"}),
    );
    client
}

#[test]
fn each_chat_has_a_session_of_its_own_there() {
    let far = behind().start();
    let near = in_front_of(&far, json!({}));
    let (first, second) = (near.chat("alice", "c1"), near.chat("alice", "c2"));
    let sum = first.echo("add", json!({"a": 40, "b": 2}));
    assert_eq!(result_of(&sum), &json!(42));
    for expected in 1..=3 {
        assert_eq!(counted(&first), expected);
    }
    assert_eq!(counted(&second), 1);
    let listed = near.command(&["sessions"]);
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    assert_eq!(listed.matches("echo").count(), 2, "{listed}");
}

#[test]
fn a_shared_one_has_one_session_for_everybody() {
    let far = behind().start();
    let near = in_front_of(&far, json!({"mode": "shared"}));
    assert_eq!(counted(&near.chat("alice", "c1")), 1);
    assert_eq!(counted(&near.chat("bob", "c2")), 2);
}

#[test]
fn a_stateless_one_has_one_for_each_call() {
    let far = behind().start();
    let near = in_front_of(&far, json!({"mode": "stateless"}));
    let chat = near.chat("alice", "c1");
    for _ in 0..2 {
        assert_eq!(counted(&chat), 1);
    }
}

#[test]
fn both_doors_lead_to_it_and_progress_comes_in_order() {
    let far = behind().start();
    let near = in_front_of(&far, json!({}));
    let chat = near.chat("alice", "c1");
    assert_eq!(counted(&chat), 1);
    let client = initialised(&chat);
    let call = |id: u32, name: &str, arguments: Value, meta: Value| {
        let params = json!({"name": name, "arguments": arguments, "_meta": meta});
        json!({"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": params})
    };
    let (answer, _) = mcp(&client, &call(2, "counter", json!({}), json!({})));
    let result = &answer.last().expect("an answer")["result"];
    assert_eq!(
        result["content"][0]["text"], "2",
        "the chat's own session: {answer:?}"
    );
    let slow = call(
        3,
        "slow_progress",
        json!({"steps": 20}),
        json!({"progressToken": "mine"}),
    );
    let (messages, _) = mcp(&client, &slow);
    let notes = messages
        .iter()
        .filter(|one| one["method"] == "notifications/progress");
    let notes: Vec<_> = notes.map(|note| &note["params"]).collect();
    let steps: Vec<_> = notes
        .iter()
        .filter_map(|note| note["progress"].as_u64())
        .collect();
    assert_eq!(steps, (0..20).collect::<Vec<_>>());
    assert!(notes.iter().all(|note| note["progressToken"] == "mine"));
    assert_eq!(messages.last().expect("an answer")["id"], 3);
}

#[test]
fn what_it_asks_reaches_the_client_and_the_answer_reaches_it() {
    let asking = json!({"command": "python3", "args": [fixture("asking_server.py")]});
    let far = TestBridge::start(servers([("echo", asking)]));
    let near = in_front_of(&far, json!({}));
    let client = near
        .chat("alice", "c1")
        .header("Accept", "application/json, text/event-stream")
        .header("MCP-Protocol-Version", "2026-07-28")
        .header("Mcp-Method", "tools/call")
        .header("Mcp-Name", "ask");
    let ask = |id: u32, more: Value| {
        let meta = json!({
            "io.modelcontextprotocol/protocolVersion": "2026-07-28",
            "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "0"},
            "io.modelcontextprotocol/clientCapabilities": {"elicitation": {"form": {}}},
        });
        let params = with(json!({"name": "ask", "arguments": {}, "_meta": meta}), more);
        let message = json!({"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": params});
        client.post("/mcp/echo", message.to_string()).ok()["result"].clone()
    };
    let first = ask(1, json!({}));
    let asked = first["inputRequests"].as_object().expect("a question");
    let (key, question) = asked.iter().next().expect("a question");
    assert_eq!(question["params"]["message"], "Which colour?");
    let answer = json!({"action": "accept", "content": {"colour": "red"}});
    let answers = serde_json::Map::from_iter([(key.clone(), answer)]);
    let retry = json!({"inputResponses": answers, "requestState": first["requestState"]});
    let last = ask(2, retry);
    assert_eq!(
        last["content"][0]["text"], "accept {'colour': 'red'}",
        "{last}"
    );
}

#[test]
fn one_that_is_not_there_is_named_in_health() {
    let far = behind().start();
    let origin = format!("http://{}", far.address());
    let near = prepared(&far, json!({}));
    far.finish();
    let near = near.start();
    let reason = || near.client().get("/health").json()["servers"]["echo"]["reason"].clone();
    eventually("the failure is known", || reason().is_string());
    let reason = reason().to_string();
    assert!(
        reason.contains(&origin) && reason.contains("no connection"),
        "{reason}"
    );
    assert!(!reason.contains("in-the-query"), "{reason}");
}

#[test]
fn one_that_dies_fails_its_call_at_once_and_is_found_again() {
    let mut far = behind().start();
    let near = in_front_of(&far, json!({}));
    let chat = near.chat("alice", "c1");
    assert_eq!(counted(&chat), 1);
    let calling = chat.begin("echo", "sleep", &json!({"seconds": LONG, "touch": "begun"}));
    far.wait_for_file("begun");
    let address = far.address();
    far.kill_hard();
    let answer = promptly("the answer", || calling.rest());
    assert!(answer.starts_with("HTTP/1.1 502"), "{answer}");
    assert!(answer.contains(&format!("http://{address}")), "{answer}");
    assert!(!answer.contains("in-the-query"), "{answer}");
    far.restart();
    let answer = chat.echo("counter", json!({}));
    assert_eq!(answer["result"], 1, "a new session there: {answer}");
}

#[test]
fn one_that_restarts_between_calls_is_asked_in_a_new_session() {
    for mode in ["stateful", "shared"] {
        let mut far = behind().start();
        let near = in_front_of(&far, json!({"mode": mode}));
        let chat = near.chat("alice", "c1");
        assert_eq!(counted(&chat), 1);
        far.restart();
        assert_eq!(counted(&chat), 1, "{mode}");
        assert_eq!(counted(&chat), 2, "{mode}");
    }
}

#[test]
fn a_command_that_is_done_has_closed_its_sessions() {
    let far = Far::start(far::respond);
    let remote = json!({"url": format!("{}/mcp", far.origin), "type": "streamable-http"});
    let near = TestBridge::builder(servers([("echo", remote)])).prepare();
    let check = near.command(&["check"]);
    assert!(check.status.success(), "{check:?}");
    assert!(far.count("POST initialize") > 0);
    assert_eq!(far.count("DELETE"), far.count("POST initialize"));
}

#[test]
fn the_headers_of_the_file_reach_it() {
    let far = behind().var(vars::API_KEY, KEY).start();
    let headers = json!({"headers": {"Authorization": "Bearer ${FAR_KEY}"}});
    let near = prepared(&far, headers).var("FAR_KEY", KEY).start();
    assert_eq!(counted(&near.chat("alice", "c1")), 1);
}

#[test]
fn a_wrong_key_is_named_without_the_key() {
    let far = behind().var(vars::API_KEY, KEY).start();
    let wrong = "this-key-is-the-wrong-one-for-it";
    let headers = json!({"headers": {"Authorization": format!("Bearer {wrong}")}});
    let near = prepared(&far, headers).prepare();
    let check = near.command(&["check"]);
    let said = String::from_utf8_lossy(&[check.stdout, check.stderr].concat()).into_owned();
    assert_eq!(check.status.code(), Some(1), "{said}");
    let near = {
        drop(near);
        let headers = json!({"headers": {"Authorization": format!("Bearer {wrong}")}});
        in_front_of(&far, headers)
    };
    let reason = || near.client().get("/health").json()["servers"]["echo"]["reason"].clone();
    eventually("the failure is known", || reason().is_string());
    let reason = reason().to_string();
    near.wait_for_log("HTTP status 403");
    for text in [&said, &reason, &near.finished_log()] {
        assert!(text.contains("HTTP status 403"), "{text}");
        assert!(
            text.contains(&format!("http://{}", far.address())),
            "{text}"
        );
        for secret in [wrong, KEY, "in-the-query"] {
            assert!(!text.contains(secret), "{text}");
        }
    }
}

/// Ended on drop.
struct Started(std::process::Child);

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn one_that_speaks_only_the_newest_revision_serves_everybody() {
    let folder = tempfile::tempdir().expect("a folder");
    let port = folder.path().join("port");
    let mut command = std::process::Command::new("python3");
    let command = command.arg(fixture("modern_http.py")).arg(&port);
    let _server = Started(command.spawn().expect("python"));
    eventually("the server listens", || port.exists());
    let port = std::fs::read_to_string(&port).expect("a port");
    let url = format!("http://127.0.0.1:{port}/mcp");
    for mode in ["stateful", "stateless", "shared"] {
        let remote = json!({"url": url, "type": "streamable-http", "mode": mode});
        let bridge = TestBridge::start(servers([("modern", remote)]));
        let client = bridge.chat("alice", "c1");
        let hi = json!({"text": "hi"});
        assert_eq!(
            client.call("modern", "echo", hi.clone()).ok(),
            "hi",
            "{mode}"
        );
        let older = Mcp::legacy(client.clone(), "modern", &json!({"elicitation": {}}));
        assert_eq!(older.text("echo", hi.clone()), "hi", "{mode}");
        let newer = Mcp::modern(client, "modern", json!({}));
        assert_eq!(newer.text("echo", hi), "hi", "{mode}");
        let mut stream = older.begin("ask", json!({}));
        let asked = stream.message();
        assert_eq!(asked["method"], "elicitation/create", "{mode}");
        older.answer(&asked, json!({"action": "accept"}));
        let result = stream.result();
        assert_eq!(
            result["content"][0]["text"], r#"{"action": "accept"}"#,
            "{mode}"
        );
    }
}
