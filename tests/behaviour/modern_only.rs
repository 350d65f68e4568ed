//! Servers that support only MCP 2026-07-28, with callers of every kind.

use serde_json::{Value, json};

use crate::support::{Client, Mcp, Stream, TestBridge, eventually, fixture, servers, vars, with};

const META: &str = "io.modelcontextprotocol/";
const MODES: [&str; 3] = ["stateful", "stateless", "shared"];

fn modern_only() -> Value {
    json!({ "command": "python3", "args": [fixture("modern_server.py")] })
}

fn start(mode: &str) -> TestBridge {
    let server = with(modern_only(), json!({"mode": mode}));
    TestBridge::start(servers([("modern", server)]))
}

fn everything() -> Value {
    json!({"elicitation": {}, "sampling": {}, "roots": {}})
}

fn legacy(client: Client) -> Mcp {
    Mcp::legacy(client, "modern", &everything())
}

fn modern(client: Client) -> Mcp {
    Mcp::modern(client, "modern", everything())
}

fn chat(bridge: &TestBridge) -> Client {
    bridge.chat("alice", "c1")
}

// All callers, in all modes.

#[test]
fn it_serves_callers_of_every_kind_in_every_mode() {
    for mode in MODES {
        let bridge = start(mode);
        let client = chat(&bridge);
        let hi = json!({"text": "hi"});
        assert_eq!(
            client.call("modern", "echo", hi.clone()).ok(),
            "hi",
            "{mode}"
        );
        for mcp in [legacy(client.clone()), modern(client)] {
            assert_eq!(mcp.text("echo", hi.clone()), "hi", "{mode}");
        }
    }
}

#[test]
fn the_doors_share_the_chats_child_and_its_files() {
    let bridge = start("stateful");
    let client = chat(&bridge);
    assert_eq!(client.call("modern", "counter", json!({})).ok(), 1);
    assert_eq!(legacy(client.clone()).text("counter", json!({})), "2");
    assert_eq!(modern(client.clone()).text("counter", json!({})), "3");
    let file = json!({"name": "deck.txt", "content": "a deck"});
    let written = client.call("modern", "write_file", file.clone()).ok();
    assert_eq!(
        client
            .download(written["files"][0]["url"].as_str().unwrap())
            .text(),
        "a deck"
    );
    let changed = json!({"name": "deck.txt", "content": "another"});
    let result = legacy(client.clone()).call("write_file", changed);
    assert_eq!(result["content"][0]["text"], "Saved to deck.txt");
    let link = result["content"][2]["uri"].as_str().expect("a link");
    assert_eq!(client.download(link).text(), "another");
}

#[test]
fn older_clients_are_greeted_and_shown_the_lists_in_their_own_form() {
    let bridge = start("stateful");
    let hello = json!({
        "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"},
    });
    let hello = json!({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": hello});
    let accept = "application/json, text/event-stream";
    let client = bridge.client().header("Accept", accept);
    let hello = client.post("/mcp/modern", hello.to_string()).json();
    let hello = &hello["result"];
    assert_eq!(hello["protocolVersion"], "2025-06-18");
    assert_eq!(
        hello["serverInfo"],
        json!({"name": "modern", "version": "1.2.3"})
    );
    assert_eq!(hello["instructions"], "Speaks of today.");
    assert_eq!(hello["capabilities"]["tools"], json!({"listChanged": true}));
    let mcp = legacy(bridge.client());
    for (method, list, name) in [
        ("tools/list", "tools", "echo"),
        ("prompts/list", "prompts", "hello"),
        ("resources/list", "resources", "watched"),
    ] {
        assert_eq!(
            mcp.request(method, json!({})).result()[list][0]["name"],
            name
        );
    }
    assert!(bridge.children().is_empty(), "lists take no process");
}

#[test]
fn a_child_hears_what_its_caller_can_answer() {
    let bridge = start("stateful");
    let client = chat(&bridge);
    let meta = |text: Value| -> Value { serde_json::from_str(text.as_str().unwrap()).unwrap() };
    let said = legacy(client.clone()).text("meta", json!({}));
    let said = meta(said.into());
    assert_eq!(said[format!("{META}clientCapabilities")], everything());
    assert_eq!(said[format!("{META}protocolVersion")], "2026-07-28");
    let said = client.call("modern", "meta", json!({})).ok();
    assert_eq!(said[format!("{META}clientCapabilities")], json!({}));
    assert_eq!(said[format!("{META}logLevel")], Value::Null);
}

#[test]
fn a_server_that_stays_silent_or_dies_at_the_older_handshake_is_learnt_too() {
    for how in ["silent", "die"] {
        let server = with(modern_only(), json!({"env": {"REFUSE": how}}));
        let bridge = TestBridge::builder(servers([("modern", server)]))
            .var(vars::START_TIMEOUT, 10)
            .start();
        let client = chat(&bridge);
        eventually("it is learnt", || {
            client.get("/mcpo/modern/openapi.json").status == 200
        });
        assert_eq!(client.call("modern", "counter", json!({})).ok(), 1, "{how}");
        assert_eq!(legacy(client).text("counter", json!({})), "2", "{how}");
    }
}

// Requests for input.

/// Answers the next question of the stream, which must have this method.
#[track_caller]
fn answer(mcp: &Mcp, stream: &mut Stream, result: &Value) -> String {
    let asked = stream.message();
    mcp.answer(&asked, result.clone());
    asked["method"].as_str().expect("a question").to_owned()
}

fn accepted(value: &str) -> Value {
    json!({"action": "accept", "content": {"colour": value}})
}

#[test]
fn older_clients_answer_it_as_they_answer_older_servers() {
    for mode in MODES {
        let bridge = start(mode);
        let mcp = legacy(chat(&bridge));
        let mut stream = mcp.begin("ask", json!({}));
        let method = answer(&mcp, &mut stream, &accepted("red"));
        assert_eq!(method, "elicitation/create", "{mode}");
        let result = stream.result();
        let text = result["content"][0]["text"].as_str().expect("text");
        let text: Value = serde_json::from_str(text).expect(text);
        assert_eq!(text, accepted("red"), "{mode}");
    }
}

#[test]
fn rounds_of_several_questions_are_asked_one_round_after_the_other() {
    let bridge = start("stateful");
    let mcp = legacy(chat(&bridge));
    let mut stream = mcp.begin("ask_twice", json!({}));
    let mut asked: Vec<_> = (0..3)
        .map(|number| answer(&mcp, &mut stream, &json!({"n": number})))
        .collect();
    asked.push(answer(&mcp, &mut stream, &json!({"n": "last"})));
    let [rest @ .., last] = &asked[..] else {
        panic!()
    };
    assert_eq!(
        rest,
        ["elicitation/create", "roots/list", "sampling/createMessage"]
    );
    assert_eq!(last, "elicitation/create");
    let result = stream.result();
    let text = result["content"][0]["text"].as_str().expect("text");
    let text: Value = serde_json::from_str(text).expect(text);
    assert_eq!(
        text,
        json!({"a": {"n": 0}, "b": {"n": 1}, "c": {"n": 2}, "d": {"n": "last"}})
    );
}

#[test]
fn clients_of_its_own_revision_play_the_rounds_with_its_own_names() {
    for mode in MODES {
        let bridge = start(mode);
        // With and without a chat: the retry must reach the same process.
        for client in [chat(&bridge), bridge.client()] {
            let mcp = modern(client);
            let asked = mcp.begin("ask", json!({})).result();
            assert_eq!(asked["resultType"], "input_required", "{mode}");
            let question = &asked["inputRequests"]["my_colour"];
            assert_eq!(question["method"], "elicitation/create", "{mode} {asked}");
            let again = json!({
                "name": "ask", "arguments": {}, "requestState": asked["requestState"],
                "inputResponses": {"my_colour": accepted("red")},
            });
            let result = mcp.request("tools/call", again).result();
            let text = result["content"][0]["text"].as_str().expect("text");
            let text: Value = serde_json::from_str(text).expect(text);
            assert_eq!(text, accepted("red"), "{mode}");
        }
    }
}

#[test]
fn a_caller_who_cannot_be_asked_loses_nothing_but_the_question() {
    let bridge = start("stateful");
    let client = chat(&bridge);
    // The server checks the capabilities that its caller declared.
    let refused = client.call("modern", "ask", json!({}));
    assert_eq!(refused.status, 500);
    assert!(
        refused.text().contains("must declare elicitation"),
        "{}",
        refused.text()
    );
    let unable = Mcp::legacy(client.clone(), "modern", &json!({}));
    assert_eq!(unable.begin("ask", json!({})).refusal(), (200, -32021));
    // It does not check them, and asks nevertheless.
    let cancelled = json!({"action": "cancel"});
    assert_eq!(
        client.call("modern", "ask_anyway", json!({})).ok(),
        cancelled
    );
    let told: Value = serde_json::from_str(&unable.text("ask_anyway", json!({}))).expect("JSON");
    assert_eq!(told, cancelled);
    // The child still works as before.
    assert_eq!(
        client.call("modern", "echo", json!({"text": "hi"})).ok(),
        "hi"
    );
}

#[test]
fn a_client_that_refuses_to_answer_cancels_the_question_and_its_call_goes_on() {
    let bridge = start("stateful");
    let mcp = legacy(chat(&bridge));
    let mut stream = mcp.begin("ask", json!({}));
    let asked = stream.message();
    let refusal = json!({"code": -1, "message": "no"});
    let answer = json!({"jsonrpc": "2.0", "id": asked["id"], "error": refusal});
    assert_eq!(mcp.send(&answer.to_string()).status, 202);
    let result = stream.result();
    assert_eq!(result["content"][0]["text"], r#"{"action": "cancel"}"#);
    assert_eq!(mcp.text("echo", json!({"text": "hi"})), "hi");
}

#[test]
fn a_server_that_wants_another_try_gets_it_and_one_that_never_ends_does_not() {
    let bridge = start("stateful");
    let client = chat(&bridge);
    assert_eq!(
        client.call("modern", "try_again", json!({})).ok(),
        "after 2 tries"
    );
    let mcp = legacy(client);
    let mut stream = mcp.begin("forever", json!({}));
    for _ in 0..32 {
        answer(&mcp, &mut stream, &json!({"roots": []}));
    }
    let end = stream.answer();
    assert!(
        end["error"]["message"]
            .as_str()
            .is_some_and(|text| text.contains("32 rounds")),
        "{end}"
    );
}

// Features of older revisions that this one does not have.

#[test]
fn pings_and_log_levels_are_answered_for_it() {
    let bridge = start("stateful");
    let mcp = legacy(chat(&bridge));
    assert_eq!(mcp.request("ping", json!({})).result(), json!({}));
    let level = |mcp: &Mcp| mcp.begin("talk", json!({})).message()["params"]["level"].take();
    assert_eq!(level(&mcp), "info");
    let set = mcp.request("logging/setLevel", json!({"level": "error"}));
    assert_eq!(set.result(), json!({}));
    assert_eq!(level(&mcp), "error");
    let wrong = mcp.request("logging/setLevel", json!({"level": "loud"}));
    assert_eq!(wrong.refusal(), (200, -32602));
}

#[test]
fn a_resource_that_is_not_there_has_each_revisions_code() {
    let bridge = start("stateful");
    let uri = json!({"uri": "test://nowhere"});
    let client = chat(&bridge);
    let read = |mcp: Mcp| mcp.request("resources/read", uri.clone()).refusal().1;
    assert_eq!(read(legacy(client.clone())), -32002);
    assert_eq!(read(modern(client)), -32602);
}

#[test]
fn progress_has_the_clients_own_token() {
    let bridge = start("shared");
    let mcp = legacy(bridge.client());
    let params = json!({"name": "talk", "arguments": {}, "_meta": {"progressToken": "mine"}});
    let notes = mcp.request("tools/call", params).rest();
    let progress = notes.iter().find(|note| note.contains("progressToken"));
    assert!(
        progress.is_some_and(|note| note.contains(r#""mine""#)),
        "{notes:?}"
    );
}

// Notifications.

#[test]
fn older_clients_hear_its_news_on_their_stream() {
    for mode in ["stateful", "shared"] {
        let bridge = start(mode);
        let mcp = legacy(chat(&bridge));
        let watched = json!({"uri": "test://watched"});
        mcp.request("resources/subscribe", watched.clone()).result();
        let mut news = mcp.listen();
        assert_ne!(mcp.text("touch", json!({})), "0", "{mode}");
        let updated = news.message();
        assert_eq!(
            updated["method"], "notifications/resources/updated",
            "{mode}"
        );
        assert_eq!(updated["params"]["uri"], "test://watched");
        assert_eq!(
            updated["params"]["_meta"],
            json!({}),
            "our subscription is no business of his"
        );
        mcp.call("change", json!({}));
        assert_eq!(
            news.message()["method"],
            "notifications/tools/list_changed",
            "{mode}"
        );
        mcp.request("resources/unsubscribe", watched).result();
    }
}

#[test]
fn clients_of_its_own_revision_hear_its_news_once() {
    for mode in ["stateful", "shared"] {
        let bridge = start(mode);
        let mcp = modern(chat(&bridge));
        let filter = json!({"toolsListChanged": true, "resourceSubscriptions": ["test://watched"]});
        let mut news = mcp.request("subscriptions/listen", json!({"notifications": filter}));
        let acknowledged = news.message();
        assert_eq!(
            acknowledged["method"],
            "notifications/subscriptions/acknowledged"
        );
        mcp.call("change", json!({}));
        mcp.call("touch", json!({}));
        for method in ["tools/list_changed", "resources/updated"] {
            let note = news.message();
            assert_eq!(note["method"], format!("notifications/{method}"), "{mode}");
            assert_eq!(
                note["params"]["_meta"][format!("{META}subscriptionId")],
                1,
                "{mode}"
            );
        }
    }
}
