//! State of both MCP endpoints between the requests of one client: notifications, ids in use,
//! capabilities.

use crate::support::{
    LEGACY, Mcp, Scope, Stream, TestBridge, accepted, dialog, eventually, scenarios, servers,
    with_envelope,
};
use serde_json::{Value, json};

scenarios! {
    a_stream_is_taken_up_again_where_it_broke,
    a_cancellation_reaches_the_child_in_the_clients_words,
    two_requests_with_one_id_get_their_own_answers,
    an_id_that_was_used_twice_still_cancels_the_one_that_runs,
    abilities_with_a_number_that_no_type_holds_are_abilities,
}

fn start() -> TestBridge {
    TestBridge::start(servers([("dialog", dialog())]))
}

fn able(at: Scope, bridge: &TestBridge) -> Mcp {
    let able = json!({"elicitation": {}});
    at.legacy(bridge.chat("alice", "c1"), "dialog", &able)
}

fn cancelled(mcp: &Mcp) -> Value {
    let heard = mcp.text("heard", json!({}));
    serde_json::from_str::<Value>(&heard).expect("JSON")["cancelled"].take()
}

/// Sends a request with this id; returns the stream and the child's question.
fn ask(mcp: &Mcp, id: &Value) -> (Stream, Value) {
    let params = json!({"name": mcp.tool("ask"), "arguments": {}});
    let call = json!({"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": params});
    let mut stream = mcp.send(&call.to_string());
    let asked = stream.message();
    (stream, asked)
}

fn a_stream_is_taken_up_again_where_it_broke(at: Scope) {
    let bridge = start();
    let mcp = able(at, &bridge);
    mcp.text("pid", json!({}));
    let update = |number: u32| mcp.call("update", json!({"uri": format!("test://{number}")}));
    let assert_next = |news: &mut Stream, number: u32| {
        let uri = at.uri("dialog", &format!("test://{number}"));
        assert_eq!(news.message()["params"]["uri"], uri);
    };
    let mut news = mcp.listen();
    update(1);
    assert_next(&mut news, 1);
    let seen = news.event_id.clone();
    drop(news);
    update(2);
    update(3);
    let mut again = mcp.listen_after(&seen);
    assert_next(&mut again, 2);
    assert_next(&mut again, 3);
    assert_ne!(again.event_id, seen);
    update(4);
    // And it continues.
    assert_next(&mut again, 4);
    let mut stranger = mcp.listen_after("an id that is not ours");
    update(5);
    assert_next(&mut stranger, 5);
}

fn a_cancellation_reaches_the_child_in_the_clients_words(at: Scope) {
    let bridge = start();
    let mcp = able(at, &bridge);
    let (stream, _) = ask(&mcp, &json!("long"));
    let params = json!({"reason": "enough", "requestId": "long", "odd": 1.0});
    mcp.notify("notifications/cancelled", params);
    assert_eq!(stream.answer()["error"]["code"], -32800);
    eventually("the child hears of it", || cancelled(&mcp) != json!([]));
    let heard = cancelled(&mcp);
    assert_eq!(
        (&heard[0]["reason"], &heard[0]["odd"]),
        (&json!("enough"), &json!(1.0))
    );
    assert!(heard[0]["requestId"].is_u64(), "an id of ours: {heard}");
}

fn two_requests_with_one_id_get_their_own_answers(at: Scope) {
    let bridge = start();
    let mcp = able(at, &bridge);
    let (first, first_question) = ask(&mcp, &json!(7));
    let (second, second_question) = ask(&mcp, &json!(7));
    mcp.answer(&second_question, accepted(json!("second")));
    let text = |stream: Stream| stream.answer()["result"]["content"].to_string();
    assert!(text(second).contains("second"));
    mcp.answer(&first_question, accepted(json!("first")));
    assert!(text(first).contains("first"));
}

fn an_id_that_was_used_twice_still_cancels_the_one_that_runs(at: Scope) {
    let bridge = start();
    let mcp = able(at, &bridge);
    let (first, _) = ask(&mcp, &json!(1));
    // A complete request with the same id, answered meanwhile.
    mcp.text("pid", json!({}));
    mcp.notify("notifications/cancelled", json!({"requestId": 1}));
    assert_eq!(first.answer()["error"]["code"], -32800);
}

fn abilities_with_a_number_that_no_type_holds_are_abilities(at: Scope) {
    let bridge = start();
    let client = bridge.chat("alice", "c1");
    let odd = r#"{"elicitation":{"limit":1e400},"experimental":{"\ud800":-1e999}}"#;
    let hello = format!(
        r#"{{"jsonrpc":"2.0","id":0,"method":"initialize","params":{{"protocolVersion":"{LEGACY}","capabilities":{odd},"clientInfo":{{"name":"t","version":"1"}}}}}}"#
    );
    let mut legacy = at.modern(client.clone(), "dialog", json!({}));
    let reply = client.post(&at.path("dialog"), hello);
    legacy.session = Some(reply.header("Mcp-Session-Id").to_owned());
    let (_stream, asked) = ask(&legacy, &json!(1));
    assert_eq!(asked["method"], "elicitation/create");
    let meta = with_envelope(json!({}), &json!("CAPABILITIES"))["_meta"].to_string();
    let meta = meta.replace("\"CAPABILITIES\"", odd);
    let modern = at.modern(client, "dialog", json!({}));
    let name = modern.tool("ask");
    let pending = modern.send(&format!(
        r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"{name}","arguments":{{}},"_meta":{meta}}}}}"#
    ));
    assert_eq!(pending.result()["resultType"], "input_required");
}
