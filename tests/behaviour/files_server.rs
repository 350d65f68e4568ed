//! The built-in server `files`: lists the files of the chat's folder, creates new links to them,
//! deletes them.

use crate::support::{ALL, Client, Mcp, TestBridge, echo, servers, vars, with};
use serde_json::{Value, json};

fn start(config: Value) -> TestBridge {
    TestBridge::builder(config)
        .var(vars::FILES_SERVER, "true")
        .start()
}

fn files(client: &Client, tool: &str, arguments: Value) -> Value {
    let reply = client.call("mcpo/files", tool, arguments);
    reply.ok()
}

#[test]
fn a_chat_lists_links_and_deletes_what_is_in_its_folder_and_nobody_elses() {
    let bridge = start(servers([("echo", echo())]));
    let chat = bridge.chat("alice", "c1");
    let write = json!({"name": "a.txt", "content": "four"});
    let first = chat.call("echo", "write_file", write).link("a.txt");
    let listed = files(&chat, "list_files", json!({}));
    let file = json!({"name": "a.txt", "size": 4, "mime_type": "text/plain"});
    assert_eq!(listed, json!({"files": [file]}));
    let answer = chat.call("mcpo/files", "get_link", json!({"name": "a.txt"}));
    let second = answer.link("a.txt");
    assert_ne!(first, second);
    assert_eq!(chat.download(&second).text(), "four");
    let other = bridge.chat("bob", "c1");
    assert_eq!(files(&other, "list_files", json!({})), json!({"files": []}));
    for tool in ["get_link", "delete_file"] {
        let refused = other.call("mcpo/files", tool, json!({"name": "a.txt"}));
        assert_eq!(refused.status, 500, "{}", refused.text());
        assert!(refused.text().contains("no file 'a.txt'"));
    }
    files(&chat, "delete_file", json!({"name": "a.txt"}));
    assert_eq!(files(&chat, "list_files", json!({})), json!({"files": []}));
    assert_eq!(
        chat.download(&second).text(),
        "four",
        "a link lives by its own clock"
    );
}

#[test]
fn it_is_at_the_mcp_doors_too() {
    let bridge = start(servers([("echo", echo())]));
    let chat = bridge.chat("alice", "c1");
    chat.echo("write_file", json!({"name": "a.txt", "content": "four"}));
    let mcp = Mcp::legacy(chat.clone(), "files", &json!({}));
    let linked = mcp.call("get_link", json!({"name": "a.txt"}));
    assert!(linked.to_string().contains("/files/"), "{linked}");
    let all = Mcp::legacy(chat, ALL, &json!({}));
    let tools = all.request("tools/list", json!({})).result().to_string();
    for tool in ["list_files", "get_link", "delete_file"] {
        assert!(tools.contains(tool), "{tools}");
    }
}

#[test]
fn a_folder_of_a_servers_own_is_not_looked_into() {
    let own = with(
        echo(),
        json!({"workspace": "own", "allow": {"users": ["alice"]}}),
    );
    let bridge = start(servers([("own", own)]));
    let alice = bridge.chat("alice", "c1");
    let write = json!({"name": "a.txt", "content": "x"});
    alice.call("own", "write_file", write).ok();
    for user in ["alice", "bob"] {
        let chat = bridge.chat(user, "c1");
        assert_eq!(files(&chat, "list_files", json!({})), json!({"files": []}));
    }
}

#[test]
fn it_is_turned_off_by_a_setting_and_by_an_entry_of_its_name() {
    let is_there = |bridge: &TestBridge| {
        let health = bridge.client().get("/health").ok();
        health["servers"].get("files").is_some()
    };
    assert!(is_there(&start(servers([("echo", echo())]))));
    let off = with(echo(), json!({"disabled": true}));
    assert!(!is_there(&start(servers([("files", off)]))));
    assert!(!is_there(&TestBridge::start(servers([("echo", echo())]))));
    let own = start(servers([("files", echo())]));
    assert_eq!(files(&own.client(), "add", json!({"a": 1, "b": 2})), 3);
}
