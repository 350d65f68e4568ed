//! Waits and their timeouts, and operations that must not wait.

use std::{
    fs::{self, File},
    time::{Duration, Instant},
};

use crate::support::{LONG, TestBridge, echo, eventually, promptly, servers, vars, with};
use serde_json::json;

#[test]
fn a_lock_that_somebody_keeps_holds_up_no_answer() {
    let bridge = TestBridge::start(servers([("echo", echo())]));
    let chat = bridge.chat("alice", "c1");
    chat.echo("counter", json!({}));
    let open = |path: &std::path::PathBuf| File::open(path.join("lock")).expect("a lock");
    let locks: Vec<File> = bridge.workspaces().iter().map(open).collect();
    for lock in &locks {
        lock.lock().expect("it is free between calls");
    }
    assert_eq!(chat.echo("counter", json!({})), 2);
    // If the bridge waited for the record, it would be written, or fail after the 5 s of a lock.
    bridge.wait_for_log("is written late");
}

#[test]
fn calls_of_a_chat_wait_for_its_journal_in_one_thread_and_are_all_written() {
    const CALLS: usize = 60;
    let bridge = TestBridge::start(servers([("echo", echo())]));
    let chat = bridge.chat("alice", "c1");
    chat.echo("counter", json!({}));
    let workspace = bridge.workspaces().remove(0);
    let lock = File::open(workspace.join("lock")).expect("a lock");
    lock.lock().expect("it is free between calls");
    let threads = || {
        let tasks = fs::read_dir(format!("/proc/{}/task", bridge.pid()));
        tasks.expect("the bridge runs").count()
    };
    let before = threads();
    std::thread::scope(|scope| {
        for _ in 0..CALLS {
            scope.spawn(|| bridge.chat("alice", "c1").echo("counter", json!({})));
        }
    });
    let waiting = threads();
    assert!(waiting < before + CALLS / 2, "{before}, then {waiting}");
    drop(lock);
    let journal = || fs::read_to_string(workspace.join("journal.jsonl")).expect("a journal");
    eventually("all calls are in the journal", || {
        journal().lines().count() == CALLS + 1
    });
}

#[test]
fn a_shared_server_gets_no_more_calls_at_once_than_its_config_says() {
    let shared = with(echo(), json!({"mode": "shared", "concurrency": 2}));
    let other = with(echo(), json!({"mode": "shared"}));
    let bridge = TestBridge::start(servers([("echo", shared), ("other", other)]));
    let sleep = |touch: &str| {
        let arguments = json!({"seconds": LONG, "touch": touch});
        // By two users, because one user never gets all of it.
        let call = bridge.chat(touch, "c1").begin("echo", "sleep", &arguments);
        bridge.wait_for_file(touch);
        call
    };
    let (first, _second) = (sleep("first"), sleep("second"));
    let arguments = json!({"seconds": 0, "touch": "third"});
    let third = bridge.client().begin("echo", "sleep", &arguments);
    // Other calls run meanwhile, and get as far as the process.
    for count in 1..20 {
        assert_eq!(
            bridge.client().call("other", "counter", json!({})).ok(),
            count
        );
    }
    assert!(!bridge.has_file("third"), "it is not in the process");
    first.hang_up();
    let answer = promptly("the third call", || third.rest());
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[test]
fn the_waits_of_a_call_have_one_limit_together() {
    // Clearly different from the sum of the two limits, in both directions.
    const LIMIT: u64 = 25;
    let bridge = TestBridge::builder(servers([("echo", echo())]))
        .var(vars::MAX_CONCURRENT, 1)
        .var(vars::QUEUE_TIMEOUT, LIMIT)
        .start();
    // Another chat takes the only permit among the running calls.
    let sleeping = json!({"seconds": 3 * LONG, "touch": "place"});
    let _place = bridge.chat("alice", "c1").begin("echo", "sleep", &sleeping);
    bridge.wait_for_file("place");
    let chat = bridge.chat("alice", "c2");
    // This call has its chat's turn while it waits for the permit.
    let first = chat.begin("echo", "counter", &json!({}));
    let began = Instant::now();
    let second = chat.call("echo", "counter", json!({}));
    assert_eq!(second.status, 429, "{}", second.text());
    let waited = began.elapsed();
    assert!(
        waited < Duration::from_secs(2 * LIMIT - 2),
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
