//! The catalogue after a restart: stored entries are served at once, until the server's lists are
//! read again.

use std::{fs, path::Path};

use crate::support::{Mcp, TestBridge, eventually, fixture, servers};
use serde_json::{Value, json};

/// A server that does not respond while `wait` exists, and has one more tool if `more` names it.
fn waiting(folder: &Path) -> Value {
    servers([(
        "odd",
        json!({
            "command": "python3",
            "args": [fixture("odd_server.py"), "waits"],
            "env": {"WAIT_FILE": folder.join("wait"), "MORE_TOOLS": folder.join("more")},
        }),
    )])
}

fn document(bridge: &TestBridge) -> Option<String> {
    let reply = bridge.client().get("/odd/openapi.json");
    (reply.status == 200).then(|| reply.text())
}

#[track_caller]
fn learnt(config: Value) -> TestBridge {
    let bridge = TestBridge::start(config);
    eventually("the server is learnt and kept", || {
        document(&bridge).is_some() && !kept(&bridge).is_empty()
    });
    bridge
}

/// The files that store the catalogue.
fn kept(bridge: &TestBridge) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(bridge.jobs().join(".bridge/catalog")).expect("the folder");
    entries
        .map(|entry| entry.expect("an entry").path())
        .collect()
}

#[test]
fn a_restarted_bridge_serves_documents_before_its_servers_answer() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut bridge = learnt(waiting(folder.path()));
    let before = document(&bridge);
    fs::write(folder.path().join("wait"), "").expect("it is written");
    bridge.restart();
    assert_eq!(document(&bridge), before);
    let health = bridge.client().get("/health").json();
    assert_eq!(health["servers"]["odd"]["status"], "ready", "{health}");
    fs::remove_file(folder.path().join("wait")).expect("it is removed");
}

#[test]
fn a_server_that_changed_meanwhile_is_asked_and_its_clients_told() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut bridge = learnt(waiting(folder.path()));
    fs::write(folder.path().join("wait"), "").expect("it is written");
    fs::write(folder.path().join("more"), "brand_new").expect("it is written");
    bridge.restart();
    let old = document(&bridge).expect("a document from before");
    assert!(!old.contains("brand_new"), "{old}");
    let mcp = Mcp::legacy(bridge.client(), "odd", &json!({}));
    let mut news = mcp.listen();
    fs::remove_file(folder.path().join("wait")).expect("it is removed");
    assert_eq!(news.message()["method"], "notifications/tools/list_changed");
    let tools = mcp.request("tools/list", json!({})).result().to_string();
    assert!(tools.contains("brand_new"), "{tools}");
    let new = document(&bridge).expect("a document");
    assert!(new.contains("brand_new"), "{new}");
}

#[test]
fn a_server_that_is_gone_meanwhile_is_not_believed_in() {
    let folder = tempfile::tempdir().expect("a folder");
    let program = folder.path().join("server.sh");
    let text = format!("#!/bin/sh\nexec python3 {}\n", fixture("echo_server.py"));
    fs::write(&program, text).expect("it is written");
    let config = servers([("odd", json!({"command": "sh", "args": [program]}))]);
    let mut bridge = learnt(config);
    fs::remove_file(&program).expect("it is removed");
    bridge.restart();
    eventually("its documents are gone", || {
        bridge.client().get("/odd/openapi.json").status == 502
    });
}

#[test]
fn an_entry_that_is_broken_is_named_and_learnt_anew() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut bridge = learnt(waiting(folder.path()));
    let before = document(&bridge);
    for file in kept(&bridge) {
        let whole = fs::read(&file).expect("it is read");
        fs::write(file, &whole[..whole.len() / 2]).expect("it is written");
    }
    bridge.restart();
    eventually("it is learnt anew", || document(&bridge) == before);
    bridge.wait_for_log("cached catalog entry is corrupt");
}

#[test]
fn another_config_believes_nothing_of_before() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut bridge = learnt(waiting(folder.path()));
    let mut config = waiting(folder.path());
    config["mcpServers"]["odd"]["env"]["OTHER"] = "1".into();
    bridge.write_config(&config);
    fs::write(folder.path().join("wait"), "").expect("it is written");
    bridge.restart();
    let health = bridge.client().get("/health").json();
    assert_eq!(health["servers"]["odd"]["status"], "starting", "{health}");
    fs::remove_file(folder.path().join("wait")).expect("it is removed");
}
