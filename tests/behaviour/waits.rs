//! What waits, for how long, and what waits for nothing.

use std::{
    fs::File,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use crate::support::{TestBridge, echo, servers, vars, with};
use serde_json::json;

#[test]
fn a_lock_that_somebody_keeps_holds_up_no_answer() {
    let bridge = TestBridge::start(servers([("echo", echo())]));
    let chat = bridge.chat("alice", "c1");
    chat.echo("counter", json!({}));
    let open = |path: &std::path::PathBuf| File::open(path.join("lock")).expect("a lock");
    let locks: Vec<File> = bridge.workspaces().iter().map(open).collect();
    for lock in &locks {
        lock.lock().expect("nobody has it for long");
    }
    let began = Instant::now();
    assert_eq!(chat.echo("counter", json!({})), 2);
    let waited = began.elapsed();
    let patience = Duration::from_secs(5);
    assert!(
        waited < patience,
        "{waited:?}: as long as locks are waited for"
    );
}

#[test]
fn a_shared_server_gets_no_more_calls_at_once_than_its_config_says() {
    let shared = with(echo(), json!({"mode": "shared", "concurrency": 2}));
    let bridge = TestBridge::start(servers([("echo", shared)]));
    let sleep = |touch: &str| {
        let arguments = json!({"seconds": 60, "touch": touch});
        let call = bridge.client().begin("echo", "sleep", &arguments);
        bridge.wait_for_file(touch);
        call
    };
    let (first, _second) = (sleep("first"), sleep("second"));
    let third = bridge.client().begin("echo", "counter", &json!({}));
    let (sender, answer) = mpsc::channel();
    thread::spawn(move || sender.send(third.rest()));
    let early = answer.recv_timeout(Duration::from_millis(300));
    assert!(early.is_err(), "{early:?}");
    first.hang_up();
    let answer = answer.recv().expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[test]
fn the_waits_of_a_call_have_one_limit_together() {
    let bridge = TestBridge::builder(servers([("echo", echo())]))
        .var(vars::MAX_CONCURRENT, 1)
        .var(vars::QUEUE_TIMEOUT, 4)
        .start();
    // The only place among the running calls is taken by another chat.
    let sleeping = json!({"seconds": 60, "touch": "place"});
    let _place = bridge.chat("alice", "c1").begin("echo", "sleep", &sleeping);
    bridge.wait_for_file("place");
    let chat = bridge.chat("alice", "c2");
    // This one has its chat's turn while it waits for the place.
    let first = chat.begin("echo", "counter", &json!({}));
    let began = Instant::now();
    let second = chat.call("echo", "counter", json!({}));
    assert_eq!(second.status, 429, "{}", second.text());
    let waited = began.elapsed();
    assert!(
        waited < Duration::from_secs(7),
        "{waited:?}: not the limit for each wait"
    );
    assert!(first.rest().starts_with("HTTP/1.1 429"));
}

#[test]
fn links_follow_the_port() {
    let bridge = TestBridge::start(servers([("echo", echo())]));
    let file = json!({"name": "a.txt", "content": "a"});
    let made = bridge.chat("alice", "c1").call("echo", "write_file", file);
    let url = made.ok()["files"][0]["url"].to_string();
    let front = format!("\"http://localhost:{}/files/", bridge.address().port());
    assert!(url.starts_with(&front), "{url}");
}
