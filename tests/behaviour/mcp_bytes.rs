//! Messages pass through an MCP endpoint unchanged.

use std::thread;

use crate::support::{
    Client, LEGACY, Mcp, Scope, Stream, TestBridge, bytes, echo, scenarios, servers, with,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

scenarios! {
    a_call_and_its_result_keep_every_byte,
    ids_of_every_spelling_come_back_as_they_were_sent,
    newlines_between_tokens_reach_the_child_as_one_line,
    results_and_errors_of_the_child_keep_every_byte,
    notifications_of_the_child_keep_every_byte_and_come_before_the_answer,
    what_the_child_asks_and_the_client_answers_keeps_every_byte,
    a_modern_call_loses_its_envelope_and_nothing_else,
    members_of_meta_with_odd_names_pass_a_modern_call,
    paths_of_our_folder_become_relative_and_nothing_else_changes,
    two_hundred_calls_get_all_their_progress_in_order,
    progress_that_was_said_twice_is_heard_twice,
    what_a_client_tells_reaches_its_child,
    progress_of_both_eras_comes_with_the_clients_token_and_in_order,
}

/// Members that a JSON library might change, some of them twice.
const STRANGE: &str = r#""one":1,"point":1.0,"huge":1e400,"big":9223372036854775808,"bigger":123456789012345678901234567890,"minus":-0.0,"exp":1E+2,"lone":"\ud800","pair":"\ud83d\ude00","escaped":"\u0041\/","twice":1,"twice":2, "spaced" : [ ] ,"nested":{"null":null,"":{}}"#;
/// The members that the child adds to every answer of `raw`.
const ODD: &str = r#""odd":[1,1.0,1e400,-0,-0.0,1E+2,9223372036854775808,123456789012345678901234567890,0.10,"\ud800","\u0041\/"]"#;

fn start() -> TestBridge {
    TestBridge::start(servers([("bytes", bytes())]))
}

/// The answer of `raw` to a request with this id and these params.
fn shown(id: &str, params: &str) -> String {
    let coded = STANDARD.encode(params);
    format!(
        r#"{{"jsonrpc":"2.0","id":{id},"result":{{"content":[{{"type":"text","text":"{coded}"}}],"params":{params},{ODD}}}}}"#
    )
}

/// A call with these params, which contain the tool's name as its server knows it.
fn call(mcp: &Mcp, id: &str, params: &str) -> String {
    let name = format!(r#""name":"{}"#, mcp.tool(""));
    let params = params.replacen(r#""name":""#, &name, 1);
    format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"tools/call","params":{params}}}"#)
}

fn chat(at: Scope, bridge: &TestBridge, capabilities: &Value) -> Mcp {
    at.legacy(bridge.chat("alice", "c1"), "bytes", capabilities)
}

fn a_call_and_its_result_keep_every_byte(at: Scope) {
    let bridge = start();
    let mcp = chat(at, &bridge, &json!({}));
    let params = format!(
        r#"{{ "x-new":{{{STRANGE}}},"name":"raw","arguments":{{{STRANGE}}},"last":1e400}}"#
    );
    assert_eq!(
        mcp.send(&call(&mcp, "1", &params)).last_line(),
        shown("1", &params)
    );
}

fn ids_of_every_spelling_come_back_as_they_were_sent(at: Scope) {
    let bridge = start();
    let mcp = chat(at, &bridge, &json!({}));
    let params = r#"{"name":"raw"}"#;
    for id in [
        "1",
        "0",
        "-7",
        "9223372036854775808",
        r#""1""#,
        r#""\u0041\/é""#,
        r#""""#,
    ] {
        assert_eq!(
            mcp.send(&call(&mcp, id, params)).last_line(),
            shown(id, params)
        );
    }
}

#[test]
fn unknown_methods_pass_with_their_params() {
    let bridge = start();
    let mcp = chat(Scope::One, &bridge, &json!({}));
    let params = format!("{{{STRANGE}}}");
    let message =
        format!(r#"{{"jsonrpc":"2.0","id":1,"method":"tasks/of/tomorrow","params":{params}}}"#);
    assert_eq!(mcp.send(&message).last_line(), shown("1", &params));
}

fn newlines_between_tokens_reach_the_child_as_one_line(at: Scope) {
    let bridge = start();
    let mcp = chat(at, &bridge, &json!({}));
    let params = "{\r\n\"name\":\"raw\",\n\"arguments\":{}}";
    let one_line = params.replace(['\r', '\n'], " ");
    assert_eq!(
        mcp.send(&call(&mcp, "1", params)).last_line(),
        shown("1", &one_line)
    );
}

fn results_and_errors_of_the_child_keep_every_byte(at: Scope) {
    let bridge = start();
    let mcp = chat(at, &bridge, &json!({}));
    for (kind, value) in [
        ("result", format!(r#"{{"content":[],{STRANGE}}}"#)),
        (
            "error",
            format!(r#"{{"code":-32002,"message":"m","data":{{{STRANGE}}}}}"#),
        ),
    ] {
        let params = format!(r#"{{"name":"reply","arguments":{{"{kind}":{value}}}}}"#);
        let expected = format!(r#"{{"jsonrpc":"2.0","id":"x","{kind}":{value}}}"#);
        assert_eq!(
            mcp.send(&call(&mcp, r#""x""#, &params)).last_line(),
            expected
        );
    }
}

fn notifications_of_the_child_keep_every_byte_and_come_before_the_answer(at: Scope) {
    let bridge = start();
    let mcp = chat(at, &bridge, &json!({}));
    let said = format!(r#"{{"level":"info","data":{{{STRANGE}}}}}"#);
    for method in ["notifications/message", "notifications/never/heard/of"] {
        let params =
            format!(r#"{{"name":"say","arguments":{{"method":"{method}","params":{said}}}}}"#);
        let messages = mcp.send(&call(&mcp, "1", &params)).rest();
        let told = format!(r#"{{"jsonrpc":"2.0","method":"{method}","params":{said}}}"#);
        assert_eq!(messages, [told, shown("1", &params)]);
    }
}

fn what_the_child_asks_and_the_client_answers_keeps_every_byte(at: Scope) {
    let bridge = start();
    let mcp = chat(at, &bridge, &json!({"elicitation": {}}));
    let asked = format!(r#"{{"message":"?",{STRANGE}}}"#);
    let arguments =
        format!(r#"{{"method":"elicitation/create","params":{asked},"ids":["\u0041",70]}}"#);
    let params = format!(r#"{{"name":"ask","arguments":{arguments}}}"#);
    let mut stream = mcp.send(&call(&mcp, "1", &params));
    let answers = [
        format!(r#""result":{{"action":"accept",{STRANGE}}}"#),
        format!(r#""error":{{"code":-1,"message":"no","data":{{{STRANGE}}}}}"#),
    ];
    for answer in &answers {
        let id = asked_with(&mut stream, "elicitation/create", &asked);
        let answer = format!(r#"{{"jsonrpc":"2.0","id":{id},{answer}}}"#);
        assert_eq!(mcp.send(&answer).status, 202);
    }
    let got = format!(r#"[["\u0041",{{{}}}],[70,{{{}}}]]"#, answers[0], answers[1]);
    let last = stream.last_line();
    assert!(last.contains(&format!(r#""answers":{got}"#)), "{last}");
}

/// The id of the next message, which must be this request.
fn asked_with(stream: &mut Stream, method: &str, params: &str) -> String {
    let line = stream.next().expect("the child asks");
    let id = line
        .strip_prefix(r#"{"jsonrpc":"2.0","id":"#)
        .and_then(|rest| {
            rest.strip_suffix(&format!(r#","method":"{method}","params":{params}}}"#))
        });
    id.unwrap_or_else(|| panic!("{line}")).to_owned()
}

fn a_modern_call_loses_its_envelope_and_nothing_else(at: Scope) {
    let bridge = start();
    let mcp = at.modern(bridge.chat("alice", "c1"), "bytes", json!({}));
    let envelope = r#""io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{}"#;
    let own = r#""x-own":{"huge":1e400,"lone":"\ud800"}"#;
    let whole = |meta: &str| {
        format!(
            r#"{{"name":"raw","_meta":{{{meta}}},"arguments":{{"a":1.0,"huge":1e400,"lone":"\udfff"}},"z":-0}}"#
        )
    };
    let sent = call(&mcp, "1", &whole(&format!("{envelope},{own}")));
    let expected = shown("1", &whole(own));
    let expected = expected.replace(r#""result":{"#, r#""result":{"resultType":"complete","#);
    assert_eq!(mcp.send(&sent).last_line(), expected);
}

fn members_of_meta_with_odd_names_pass_a_modern_call(at: Scope) {
    let bridge = start();
    let mcp = at.modern(bridge.chat("alice", "c1"), "bytes", json!({}));
    let envelope = r#""io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{}"#;
    let own = r#""\u0041":2,"twice":1,"twice":2"#;
    let whole = |meta: &str| format!(r#"{{"name":"raw","_meta":{{{meta}}}}}"#);
    let sent = call(&mcp, "1", &whole(&format!("{own},{envelope}")));
    let answer = mcp.send(&sent).last_line();
    assert!(answer.contains(&STANDARD.encode(whole(own))), "{answer}");
}

#[test]
fn lists_and_the_hello_keep_what_the_server_said() {
    let bridge = start();
    let mcp = chat(Scope::One, &bridge, &json!({}));
    let tools = mcp
        .send(r#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#)
        .last_line();
    let odd = r#""execution":{"taskSupport":"optional"},"x-odd":{"one":1.0,"big":9223372036854775808,"lone":"\udfff"}"#;
    assert_eq!(tools.matches(odd).count(), 6, "{tools}");
    for version in [LEGACY, "2025-06-18"] {
        let hello = hello(&bridge.client(), version);
        for kept in [
            r#""x-odd":1e400"#,
            r#""odd":{"one":1.0}"#,
            r#""x-tasks":{"list":{}}"#,
        ] {
            assert!(hello.contains(kept), "{kept} of {version}: {hello}");
        }
        let agreed = format!(r#""protocolVersion":"{version}""#);
        assert!(hello.contains(&agreed), "{hello}");
    }
}

fn hello(client: &Client, version: &str) -> String {
    let params = json!({"protocolVersion": version, "capabilities": {}, "clientInfo": {}});
    let message = json!({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params});
    client.post("/mcp/bytes", message.to_string()).text()
}

#[test]
fn a_modern_client_discovers_who_the_server_is() {
    let bridge = start();
    let mcp = Mcp::modern(bridge.client(), "bytes", json!({}));
    let result = mcp.request("server/discover", json!({})).result();
    let server = &result["_meta"]["io.modelcontextprotocol/serverInfo"];
    assert_eq!(
        *server,
        json!({"name": "bytes", "version": "1.0", "x-odd": 1.0})
    );
    assert_eq!(result["capabilities"]["x-tasks"], json!({"list": {}}));
}

fn paths_of_our_folder_become_relative_and_nothing_else_changes(at: Scope) {
    let bridge = TestBridge::start(servers([("echo", echo())]));
    let mcp = at.legacy(bridge.chat("alice", "c1"), "echo", &json!({}));
    let saved = mcp.begin("save_report", json!({"name": "report.txt"}));
    let line = saved.last_line();
    assert!(
        !line.contains(&bridge.jobs().display().to_string()),
        "{line}"
    );
    assert!(line.contains(r#""odd": 1.0"#), "{line}");
}

fn two_hundred_calls_get_all_their_progress_in_order(at: Scope) {
    let shared = with(bytes(), json!({"mode": "shared"}));
    let bridge = TestBridge::start(servers([("bytes", shared)]));
    let workers: Vec<_> = (0..20)
        .map(|worker| {
            let mcp = at.legacy(bridge.client(), "bytes", &json!({}));
            thread::spawn(move || (0..10).for_each(|turn| notes_in_order(&mcp, worker, turn)))
        })
        .collect();
    for worker in workers {
        worker.join().expect("nothing is lost");
    }
}

fn notes_in_order(mcp: &Mcp, worker: usize, turn: usize) {
    // Numbers and strings, and the same token in several sessions.
    let token = if worker.is_multiple_of(2) {
        turn.to_string()
    } else {
        format!(r#""\u0074-{turn}""#)
    };
    let params = format!(
        r#"{{"name":"notes","_meta":{{"progressToken":{token}}},"arguments":{{"count":20,"numbers":[1,1.0,1e400],"step":{worker}}}}}"#
    );
    let mut messages = mcp.send(&call(mcp, "1", &params)).rest();
    let answer = messages.pop().expect("an answer");
    assert!(answer.contains(r#""id":1,"result":"#), "{answer}");
    let expected: Vec<_> = (0..20)
        .map(|seq| {
            let (number, text) = (["1", "1.0", "1e400"][seq % 3], "x".repeat(worker * seq));
            format!(r#"{{"jsonrpc":"2.0","method":"notifications/progress","params":{{"progressToken":{token},"progress":{number},"seq":{seq},"total":20.0,"message":"{text}"}}}}"#)
        })
        .collect();
    assert_eq!(messages, expected);
}

fn progress_of_both_eras_comes_with_the_clients_token_and_in_order(at: Scope) {
    let bridge = start();
    let client = bridge.chat("alice", "c1");
    for mcp in [
        at.legacy(client.clone(), "bytes", &json!({})),
        at.modern(client, "bytes", json!({})),
    ] {
        let params = json!({
            "name": mcp.tool("notes"),
            "arguments": {"count": 50},
            "_meta": {"progressToken": "mine"},
        });
        let mut stream = mcp.request("tools/call", params);
        for index in 0..50 {
            let note = stream.message();
            assert_eq!(note["params"]["progressToken"], "mine");
            assert_eq!(note["params"]["seq"], index);
        }
    }
}

fn progress_that_was_said_twice_is_heard_twice(at: Scope) {
    let bridge = start();
    let mcp = chat(at, &bridge, &json!({}));
    let params =
        r#"{"name":"notes","_meta":{"progressToken":"t"},"arguments":{"count":2,"times":2}}"#;
    let messages = mcp.send(&call(&mcp, "1", params)).rest();
    assert_eq!(messages.len(), 5, "{messages:#?}");
    assert_eq!((&messages[0], &messages[2]), (&messages[1], &messages[3]));
}

fn what_a_client_tells_reaches_its_child(at: Scope) {
    let bridge = start();
    let mcp = chat(at, &bridge, &json!({"roots": {"listChanged": true}}));
    mcp.begin("raw", json!({})).rest();
    let told = format!(
        r#"{{"jsonrpc":"2.0","method":"notifications/roots/list_changed","params":{{{STRANGE}}}}}"#
    );
    assert_eq!(mcp.send(&told).status, 202);
    let heard = mcp.call("heard", json!({}))["heard"].to_string();
    assert!(heard.contains(&STANDARD.encode(&told)), "{heard}");
}
