//! What the MCP door keeps between the requests of one client: news, ids in flight, abilities.

use crate::support::{LEGACY, Mcp, TestBridge, dialog, eventually, servers, with_envelope};
use serde_json::{Value, json};

fn start() -> TestBridge {
    TestBridge::start(servers([("dialog", dialog())]))
}

fn able(bridge: &TestBridge) -> Mcp {
    let able = json!({"elicitation": {}});
    Mcp::legacy(bridge.chat("alice", "c1"), "dialog", &able)
}

fn update(mcp: &Mcp, uri: &str) {
    mcp.call("update", json!({"uri": uri}));
}

fn cancelled(mcp: &Mcp) -> Value {
    let heard = mcp.text("heard", json!({}));
    serde_json::from_str::<Value>(&heard).expect("JSON")["cancelled"].take()
}

/// Asks under this id; gives the stream and the child's question.
fn ask(mcp: &Mcp, id: &Value) -> (crate::support::Stream, Value) {
    let params = json!({"name": "ask", "arguments": {}});
    let call = json!({"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": params});
    let mut stream = mcp.send(&call.to_string());
    let asked = stream.message();
    (stream, asked)
}

fn answer(mcp: &Mcp, asked: &Value, content: &str) {
    let result = json!({"action": "accept", "content": content});
    let answer = json!({"jsonrpc": "2.0", "id": asked["id"], "result": result});
    assert_eq!(mcp.send(&answer.to_string()).status, 202);
}

#[test]
fn a_stream_is_taken_up_again_where_it_broke() {
    let bridge = start();
    let mcp = able(&bridge);
    mcp.text("pid", json!({}));
    let mut news = mcp.listen();
    update(&mcp, "test://1");
    assert_eq!(news.message()["params"]["uri"], "test://1");
    let seen = news.event_id.clone();
    drop(news);
    for uri in ["test://2", "test://3"] {
        update(&mcp, uri);
    }
    let mut again = mcp.listen_after(&seen);
    for uri in ["test://2", "test://3"] {
        assert_eq!(again.message()["params"]["uri"], uri);
    }
    assert_ne!(again.event_id, seen);
    update(&mcp, "test://4");
    assert_eq!(
        again.message()["params"]["uri"],
        "test://4",
        "and it goes on"
    );
    let mut stranger = mcp.listen_after("made up");
    update(&mcp, "test://5");
    assert_eq!(
        stranger.message()["params"]["uri"],
        "test://5",
        "an id that is not ours"
    );
}

#[test]
fn a_cancellation_reaches_the_child_in_the_clients_words() {
    let bridge = start();
    let mcp = able(&bridge);
    let (stream, _) = ask(&mcp, &json!("long"));
    let params = json!({"reason": "enough", "requestId": "long", "odd": 1.0});
    let told = json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": params});
    assert_eq!(mcp.send(&told.to_string()).status, 202);
    assert_eq!(stream.answer()["error"]["code"], -32800);
    eventually("the child hears of it", || cancelled(&mcp) != json!([]));
    let heard = cancelled(&mcp);
    assert_eq!(
        (&heard[0]["reason"], &heard[0]["odd"]),
        (&json!("enough"), &json!(1.0))
    );
    assert!(heard[0]["requestId"].is_u64(), "an id of ours: {heard}");
}

#[test]
fn two_requests_with_one_id_get_their_own_answers() {
    let bridge = start();
    let mcp = able(&bridge);
    let (first, first_question) = ask(&mcp, &json!(7));
    let (second, second_question) = ask(&mcp, &json!(7));
    answer(&mcp, &second_question, "second");
    let text = |stream: crate::support::Stream| stream.answer()["result"]["content"].to_string();
    assert!(text(second).contains("second"));
    answer(&mcp, &first_question, "first");
    assert!(text(first).contains("first"));
}

#[test]
fn an_id_that_was_used_twice_still_cancels_the_one_that_runs() {
    let bridge = start();
    let mcp = able(&bridge);
    let (first, _) = ask(&mcp, &json!(1));
    // A whole request with the same id comes and goes.
    mcp.text("pid", json!({}));
    let params = json!({"requestId": 1});
    let told = json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": params});
    mcp.send(&told.to_string());
    assert_eq!(first.answer()["error"]["code"], -32800);
}

#[test]
fn abilities_with_a_number_that_no_type_holds_are_abilities() {
    let bridge = start();
    let client = bridge.chat("alice", "c1");
    let odd = r#"{"elicitation":{"limit":1e400},"experimental":{"\ud800":-1e999}}"#;
    let hello = format!(
        r#"{{"jsonrpc":"2.0","id":0,"method":"initialize","params":{{"protocolVersion":"{LEGACY}","capabilities":{odd},"clientInfo":{{"name":"t","version":"1"}}}}}}"#
    );
    let mut legacy = Mcp::modern(client.clone(), "dialog", json!({}));
    let reply = client.post("/mcp/dialog", hello);
    legacy.session = Some(reply.header("Mcp-Session-Id").to_owned());
    let (_stream, asked) = ask(&legacy, &json!(1));
    assert_eq!(asked["method"], "elicitation/create");
    let meta = with_envelope(json!({}), &json!("CAPABILITIES"))["_meta"].to_string();
    let meta = meta.replace("\"CAPABILITIES\"", odd);
    let modern = Mcp::modern(client, "dialog", json!({}));
    let parked = modern.send(&format!(
        r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"ask","arguments":{{}},"_meta":{meta}}}}}"#
    ));
    assert_eq!(parked.result()["resultType"], "input_required");
}
