//! MCP clients of several bridges on one jobs folder.

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{
    ALL, Client, Mcp, Replicas, Stream, accepted, bytes, echo, eventually, fixture, library,
    result_of, servers, vars, with,
};

#[track_caller]
fn count(client: &Client) -> Value {
    client.call("echo", "counter", json!({})).ok()
}

/// A server whose tool requests input from its client.
fn asker() -> Value {
    json!({"command": "python3", "args": [fixture("asking_server.py")]})
}

/// The call again, with the answer to its question.
fn retry(mcp: &Mcp, tool: &str, pending: &Value) -> Stream {
    mcp.retry(
        tool,
        &json!({}),
        pending,
        &accepted(json!({"colour": "red"})),
    )
}

/// A call asks its client a question in its stream; the client answers through `answering`, at
/// another bridge.
#[track_caller]
fn asks_and_hears(call: &Mcp, tool: &str, answering: &Mcp) {
    let mut asked = call.begin(tool, json!({}));
    let question = asked.message();
    assert_eq!(question["method"], "elicitation/create");
    answering.answer(&question, accepted(json!({"colour": "blue"})));
    let result = asked.result();
    assert!(result.to_string().contains("blue"), "{result}");
}

#[test]
fn a_protocol_session_is_reached_from_every_bridge_and_ends_with_its_own() {
    let config = servers([("bytes", bytes()), ("echo", echo())]);
    let mut replicas = Replicas::start(3, &config);
    let able = json!({"elicitation": {}});
    let first = Mcp::legacy(replicas.bridges[0].client(), "echo", &able);
    let session = first.session.clone().expect("a session");
    let at = |index: usize| {
        let client = replicas.bridges[index].client();
        Mcp::modern(client, "echo", json!({})).in_session(&session)
    };
    assert_eq!(at(1).text("counter", json!({})), "1");
    assert_eq!(at(2).text("counter", json!({})), "2");
    let mut news = at(1).listen();
    assert_eq!(news.status, 200);
    at(2).call("change_tools", json!({}));
    let told = news.message();
    assert_eq!(told["method"], "notifications/tools/list_changed");
    let other = Mcp::modern(replicas.bridges[1].client(), "bytes", json!({}));
    assert_eq!(other.in_session(&session).begin("x", json!({})).status, 404);
    drop(news);
    replicas.kill_hard(0);
    let at = |index: usize| {
        let client = replicas.bridges[index].client();
        Mcp::modern(client, "echo", json!({})).in_session(&session)
    };
    assert_eq!(at(1).begin("counter", json!({})).status, 404);
    assert_eq!(at(2).end(), 404);
}

#[test]
fn a_child_asks_its_client_through_bridges_that_do_not_run_it() {
    let replicas = Replicas::start(3, &servers([("asking", asker())]));
    let able = json!({"elicitation": {}});
    let chat = |index: usize| replicas.bridges[index].chat("alice", "c");
    let home = Mcp::legacy(chat(0), "asking", &able);
    let session = home.session.clone().expect("a session");
    let at = |index: usize| Mcp::modern(chat(index), "asking", json!({})).in_session(&session);
    // The chat's child runs on a bridge other than the one that created the session.
    let modern = Mcp::modern(chat(1), "asking", able.clone());
    let pending = modern.begin("ask", json!({})).result();
    assert_eq!(replicas.owners(), [1]);
    // Its retry works at every bridge.
    let modern = Mcp::modern(chat(2), "asking", able);
    let answer = retry(&modern, "ask", &pending).result();
    let text = answer["content"][0]["text"].as_str().expect("a text");
    assert!(text.contains("accept") && text.contains("red"), "{text}");
    // A session's request goes through the session's bridge to the one with the child, and so does
    // its answer.
    asks_and_hears(&at(2), "ask", &at(1));
    assert_eq!(replicas.owners(), [1], "one child served all of it");
}

#[test]
fn news_of_a_child_elsewhere_reach_the_sessions_stream() {
    let replicas = Replicas::start(3, &servers([("echo", echo())]));
    let chat = |index: usize| replicas.bridges[index].chat("alice", "c");
    let home = Mcp::legacy(chat(0), "echo", &json!({}));
    let session = home.session.clone().expect("a session");
    let at = |index: usize| Mcp::modern(chat(index), "echo", json!({})).in_session(&session);
    assert_eq!(count(&chat(1)), 1);
    assert_eq!(at(2).text("counter", json!({})), "2");
    let mut news = at(2).listen();
    assert_eq!(news.status, 200);
    chat(1).call("echo", "change_tools", json!({})).ok();
    assert_eq!(news.message()["method"], "notifications/tools/list_changed");
    drop(news);
    assert_eq!(at(1).end(), 200);
    assert_eq!(at(0).begin("counter", json!({})).status, 404);
    assert_eq!(count(&chat(2)), 3, "the chat's child stays");
}

#[test]
fn a_subscription_meets_the_chats_child_wherever_it_runs() {
    let replicas = Replicas::start(3, &servers([("lib", library("lib", &["own"]))]));
    let modern = |index: usize, server: &str| {
        let chat = replicas.bridges[index].chat("alice", "c");
        Mcp::modern(chat, server, json!({}))
    };
    let uri = "test://lib/own";
    let touch = |index: usize| modern(index, "lib").call("touch", json!({"uri": uri}));
    touch(1);
    for server in ["lib", ALL] {
        let filter = json!({"notifications": {"resourceSubscriptions": [uri]}});
        let mut listening = modern(2, server).request("subscriptions/listen", filter);
        let acknowledged = listening.message();
        let method = "notifications/subscriptions/acknowledged";
        assert_eq!(acknowledged["method"], method);
        touch(0);
        let told = listening.message();
        assert_eq!(told["method"], "notifications/resources/updated");
        assert_eq!(told["params"]["uri"], uri);
    }
    assert_eq!(replicas.owners(), [1]);
}

#[test]
fn a_session_of_all_servers_is_reached_from_every_bridge() {
    let config = servers([("echo", echo()), ("other", echo())]);
    let replicas = Replicas::start(3, &config);
    let home = Mcp::legacy(replicas.bridges[0].client(), ALL, &json!({}));
    let session = home.session.clone().expect("a session");
    let at = |index: usize| {
        let client = replicas.bridges[index].client();
        Mcp::modern(client, ALL, json!({})).in_session(&session)
    };
    assert_eq!(at(1).text("echo_counter", json!({})), "1");
    assert_eq!(at(2).text("other_counter", json!({})), "1");
    let file = json!({"name": "a", "content": "mine"});
    at(2).call("echo_write_file", file);
    assert_eq!(at(1).text("other_read_file", json!({"name": "a"})), "mine");
    let mut news = at(1).listen();
    assert_eq!(news.status, 200);
    at(2).call("echo_change_tools", json!({}));
    assert_eq!(news.message()["method"], "notifications/tools/list_changed");
    drop(news);
    let one = Mcp::modern(replicas.bridges[1].client(), "echo", json!({}));
    let one = one.in_session(&session).begin("counter", json!({}));
    assert_eq!(one.status, 404, "it is none of one server");
    assert_eq!(at(1).end(), 200);
    assert_eq!(at(2).begin("echo_counter", json!({})).status, 404);
}

#[test]
fn clients_of_all_servers_find_their_chat_from_every_bridge() {
    let config = servers([("asking", asker()), ("echo", echo())]);
    let replicas = Replicas::start(3, &config);
    let able = json!({"elicitation": {}});
    let chat = |index: usize| replicas.bridges[index].chat("alice", "c");
    let home = Mcp::legacy(chat(0), ALL, &able);
    let session = home.session.clone().expect("a session");
    assert_eq!(count(&chat(1)), 1);
    // Without a session: the call goes to the chat's bridge, and the retry to the call's.
    let modern = |index: usize| Mcp::modern(chat(index), ALL, able.clone());
    assert_eq!(modern(2).text("echo_counter", json!({})), "2");
    let pending = modern(0).begin("asking_ask", json!({})).result();
    let retry = |index: usize| retry(&modern(index), "asking_ask", &pending);
    let answer = retry(2).result();
    assert!(answer.to_string().contains("red"), "{answer}");
    assert_eq!(retry(0).refusal().1, -32602);
    // With a session: through its home bridge to the chat's, followed by the client's answer.
    let at = |index: usize| Mcp::modern(chat(index), ALL, json!({})).in_session(&session);
    assert_eq!(at(2).text("echo_counter", json!({})), "3");
    asks_and_hears(&at(2), "asking_ask", &at(1));
    let mut news = at(2).listen();
    assert_eq!(news.status, 200);
    chat(1).call("echo", "change_tools", json!({})).ok();
    assert_eq!(news.message()["method"], "notifications/tools/list_changed");
    assert_eq!(replicas.owners(), [1], "one bridge served all of it");
}

#[test]
fn what_a_client_wants_logged_holds_for_its_children_on_other_bridges() {
    let replicas = Replicas::start(2, &servers([("lib", library("lib", &[]))]));
    let chat = |index: usize| replicas.bridges[index].chat("alice", "c");
    let home = Mcp::legacy(chat(0), ALL, &json!({}));
    let set = |level: &str| {
        let level = json!({"level": level});
        home.request("logging/setLevel", level).result();
    };
    set("error");
    assert_eq!(
        Mcp::modern(chat(1), ALL, json!({})).text("lib_level", json!({})),
        "None"
    );
    assert_eq!(home.text("lib_level", json!({})), "error");
    set("warning");
    assert_eq!(home.text("lib_level", json!({})), "warning");
    assert_eq!(replicas.owners(), [1]);
}

#[test]
fn servers_with_folders_of_their_own_are_heard_together_from_several_bridges() {
    let own = |name| with(library(name, &["own"]), json!({"workspace": "own"}));
    let replicas = Replicas::start(3, &servers([("one", own("one")), ("two", own("two"))]));
    let chat = |index: usize| replicas.bridges[index].chat("alice", "c");
    let modern = |index: usize| Mcp::modern(chat(index), ALL, json!({}));
    let home = Mcp::legacy(chat(2), ALL, &json!({}));
    let uris = ["test://one/own", "test://two/own"];
    for (index, name) in ["one", "two"].into_iter().enumerate() {
        modern(index).call(&format!("{name}_touch"), json!({"uri": uris[index]}));
    }
    assert_eq!(replicas.owners(), [0, 1]);
    let filter = json!({"notifications": {"resourceSubscriptions": uris}});
    let mut listening = modern(2).request("subscriptions/listen", filter);
    assert_eq!(
        listening.message()["method"],
        "notifications/subscriptions/acknowledged"
    );
    for (name, uri) in ["one", "two"].into_iter().zip(uris) {
        home.call(&format!("{name}_touch"), json!({"uri": uri}));
        let told = listening.message();
        assert_eq!(told["method"], "notifications/resources/updated");
        assert_eq!(told["params"]["uri"], uri);
    }
    assert_eq!(replicas.owners(), [0, 1]);
}

#[test]
fn a_call_that_waits_for_its_client_loses_its_chat_like_any_other() {
    let config = servers([("asking", asker()), ("echo", echo())]);
    let replicas = Replicas::with(2, &config, &[(vars::LEASE_TTL, "8")]);
    let able = json!({"elicitation": {}});
    let chat = |index: usize| replicas.bridges[index].chat("alice", "c");
    let mcp = Mcp::legacy(chat(0), ALL, &able);
    let mut asked = mcp.begin("asking_ask", json!({}));
    let question = asked.message();
    assert_eq!(question["method"], "elicitation/create");
    replicas.bridges[0].signal(Signal::STOP);
    let taken = count(&chat(1));
    assert_eq!(result_of(&taken), 1, "{taken}");
    replicas.bridges[0].signal(Signal::CONT);
    mcp.answer(&question, accepted(json!({"colour": "blue"})));
    let failed = asked.answer();
    assert_eq!(failed["error"]["data"]["kind"], "fenced", "{failed}");
    eventually("the old child is gone", || replicas.owners() == [1]);
}
