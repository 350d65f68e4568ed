//! Calls that wait for input of their caller, and streams that wait for notifications: neither
//! blocks the chat's other calls.

use std::thread;

use crate::support::{
    Client, LONG, Mcp, PendingCall, Stream, TestBridge, accepted, dialog, echo, eventually,
    servers, with,
};
use serde_json::{Value, json};

fn start() -> TestBridge {
    TestBridge::start(servers([("dialog", dialog()), ("echo", echo())]))
}

fn impatient() -> TestBridge {
    let config = servers([("dialog", dialog())]);
    TestBridge::builder(config)
        .var("MCPO_INPUT_TIMEOUT", "1")
        .start()
}

fn able() -> Value {
    json!({"elicitation": {}})
}

fn modern(client: Client) -> Mcp {
    Mcp::modern(client, "dialog", able())
}

fn legacy(client: Client) -> Mcp {
    Mcp::legacy(client, "dialog", &able())
}

fn files() -> Value {
    json!({"before": "before.txt", "after": "after.txt"})
}

/// The retry of a modern client's pending call.
fn retry(mcp: &Mcp, arguments: &Value, pending: &Value) -> Stream {
    mcp.retry("ask", arguments, pending, &accepted(json!({"sure": true})))
}

fn answer(mcp: &Mcp, asked: &Value) {
    mcp.answer(asked, accepted(json!({"sure": true})));
}

/// Holds the chat's turn until the bridge wakes `asleep.txt`.
fn sleep(bridge: &TestBridge, client: &Client) -> PendingCall {
    let arguments = json!({"seconds": LONG, "touch": "asleep.txt", "until": "wake"});
    let call = client.begin("echo", "sleep", &arguments);
    bridge.wait_for_file("asleep.txt");
    call
}

/// The names of the files that a result links.
fn linked(result: &Value) -> Vec<&str> {
    let blocks = result["content"].as_array().expect("content").iter();
    let links = blocks.filter(|block| block["type"] == "resource_link");
    links.filter_map(|link| link["name"].as_str()).collect()
}

fn heard(mcp: &Mcp) -> Value {
    let text = mcp.text("heard", json!({}));
    serde_json::from_str(&text).expect("JSON")
}

#[test]
fn a_question_that_nobody_answers_holds_up_no_other_call_of_the_chat() {
    let bridge = start();
    let client = bridge.chat("alice", "c1");
    let (asker, other) = (modern(client.clone()), legacy(client.clone()));
    let pending = asker.begin("ask", files()).result();
    let pid = other.text("pid", json!({}));
    let same = client.call("dialog", "pid", json!({})).json();
    assert_eq!(pid, same.to_string());
    let mut stream = other.begin("ask", json!({}));
    let asked = stream.message();
    assert_eq!(
        client.echo("echo", json!({"text": "by another server"})),
        "by another server"
    );
    answer(&other, &asked);
    assert!(stream.result()["content"][0]["text"].is_string());
    let done = retry(&asker, &files(), &pending).result();
    assert!(linked(&done).contains(&"after.txt"), "{done}");
}

#[test]
fn each_call_links_its_own_files_whichever_ran_while_it_was_pending() {
    let bridge = start();
    let client = bridge.chat("alice", "c1");
    let asker = modern(client.clone());
    let pending = asker.begin("ask", files()).result();
    let between = legacy(client).call("write", json!({"name": "between.txt"}));
    assert_eq!(linked(&between), ["between.txt"]);
    let done = retry(&asker, &files(), &pending).result();
    assert_eq!(linked(&done), ["after.txt", "before.txt", "files.zip"]);
}

#[test]
fn an_answered_call_goes_on_in_its_turn() {
    let bridge = start();
    let client = bridge.chat("alice", "c1");
    let asker = modern(client.clone());
    let pending = asker.begin("ask", files()).result();
    let sleeping = sleep(&bridge, &client);
    let retried = thread::spawn(move || {
        let done = retry(&asker, &files(), &pending).result();
        assert!(linked(&done).contains(&"after.txt"), "{done}");
    });
    // Other calls run meanwhile.
    for text in ["one", "two", "three"] {
        assert_eq!(
            bridge.chat("bob", "c1").echo("echo", json!({"text": text})),
            text
        );
    }
    assert!(!retried.is_finished(), "it waits for its turn");
    bridge.wake("asleep.txt");
    // Both files of the other call are its own: the pending call wrote none meanwhile.
    let answer = sleeping.rest();
    assert!(
        answer.contains("asleep.txt") && !answer.contains("after.txt"),
        "{answer}"
    );
    retried.join().expect("it goes on");
}

#[test]
fn an_unanswered_question_ends_its_call_and_not_its_child() {
    let bridge = impatient();
    let mcp = legacy(bridge.chat("alice", "c1"));
    let pid = mcp.text("pid", json!({}));
    let mut stream = mcp.begin("ask", json!({}));
    let asked = stream.message();
    let error = stream.answer();
    assert_eq!(error["error"]["data"]["kind"], "not_answered", "{error}");
    eventually("the child hears of it", || {
        heard(&mcp)["cancelled"] != json!([])
    });
    // Too late, and without effect.
    answer(&mcp, &asked);
    assert_eq!(mcp.text("pid", json!({})), pid);
}

#[test]
fn a_pending_call_whose_client_does_not_come_back_expires() {
    let bridge = impatient();
    let mcp = modern(bridge.chat("alice", "c1"));
    let pid = mcp.text("pid", json!({}));
    let pending = mcp.begin("ask", json!({})).result();
    eventually("the child hears of it", || {
        heard(&mcp)["cancelled"] != json!([])
    });
    let late = retry(&mcp, &json!({}), &pending);
    assert_eq!(late.refusal(), (400, -32602));
    assert_eq!(mcp.text("pid", json!({})), pid);
}

#[test]
fn hanging_up_while_pending_cancels_the_call_and_keeps_the_child() {
    let bridge = start();
    let client = bridge.chat("alice", "c1");
    let mcp = legacy(client.clone());
    let pid = mcp.text("pid", json!({}));
    let mut stream: Stream = mcp.begin("ask", files());
    stream.message();
    drop(stream);
    eventually("the child hears of it", || {
        heard(&mcp)["cancelled"] != json!([])
    });
    assert_eq!(mcp.text("pid", json!({})), pid);
}

#[test]
fn hanging_up_a_call_that_waits_to_go_on_lets_the_other_one_end() {
    let bridge = start();
    let client = bridge.chat("alice", "c1");
    let mcp = legacy(client.clone());
    let mut stream = mcp.begin("ask", files());
    let asked = stream.message();
    let sleeping = sleep(&bridge, &client);
    answer(&mcp, &asked);
    drop(stream);
    bridge.wake("asleep.txt");
    assert!(sleeping.rest().contains("slept"));
    eventually("the child hears of it", || {
        heard(&mcp)["cancelled"] != json!([])
    });
}

#[test]
fn a_reload_waits_for_a_pending_call() {
    let bridge = start();
    let client = bridge.chat("alice", "c1");
    let mcp = modern(client.clone());
    let pending = mcp.begin("ask", files()).result();
    let newer = with(dialog(), json!({"env": {"NEW": "1"}}));
    bridge.write_config(&servers([("dialog", newer), ("echo", echo())]));
    let old = client.call("dialog", "pid", json!({})).json();
    eventually("the new one serves", || {
        client.call("dialog", "pid", json!({})).json() != old
    });
    let done = retry(&mcp, &files(), &pending).result();
    assert!(linked(&done).contains(&"after.txt"), "{done}");
}

#[test]
fn a_subscription_waits_for_no_call_of_its_chat() {
    let bridge = start();
    let client = bridge.chat("alice", "c1");
    let sleeping = sleep(&bridge, &client);
    let filter = json!({"notifications": {"resourceSubscriptions": ["test://a"]}});
    let mut news = modern(client.clone()).request("subscriptions/listen", filter);
    let acknowledged = news.message();
    assert_eq!(
        acknowledged["method"],
        "notifications/subscriptions/acknowledged"
    );
    sleeping.hang_up();
    let mcp = legacy(client);
    eventually("it is subscribed", || {
        heard(&mcp)["subscribed"] == json!(["test://a"])
    });
    mcp.call("update", json!({"uri": "test://b"}));
    mcp.call("update", json!({"uri": "test://a"}));
    let update = news.message();
    assert_eq!(update["params"]["uri"], "test://a", "{update}");
}

#[test]
fn a_subscription_to_a_stateless_server_starts_nothing_and_stays_open() {
    let stateless = with(dialog(), json!({"mode": "stateless"}));
    let bridge = TestBridge::start(servers([("dialog", stateless)]));
    let mcp = modern(bridge.client());
    mcp.text("pid", json!({}));
    eventually("the catalogue's folder is gone", || {
        bridge.workspaces().len() == 1
    });
    let filter = json!({"notifications": {"toolsListChanged": true}});
    let mut news = mcp.request("subscriptions/listen", filter);
    assert_eq!(
        news.message()["method"],
        "notifications/subscriptions/acknowledged"
    );
    assert_eq!(bridge.workspaces().len(), 1);
    let (sender, ended) = std::sync::mpsc::channel();
    thread::spawn(move || {
        sender.send(news.next()).ok();
    });
    for _ in 0..5 {
        mcp.text("pid", json!({}));
    }
    assert!(
        ended.try_recv().is_err(),
        "it is open while other calls come and go"
    );
}
