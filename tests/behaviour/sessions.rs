//! Sessions that make room for each other or exit, and timeouts of waiting calls.

use std::fs;

use crate::support::{
    LONG, TestBridge, echo, eventually, fixture, promptly, result_of, servers, vars, with,
};
use rustix::process::{Pid, Signal, kill_process as send};
use serde_json::{Value, json};

/// Two servers in one chat, one process at a time.
fn one_at_a_time(first: Value) -> TestBridge {
    TestBridge::builder(servers([("first", first), ("second", echo())]))
        .var(vars::MAX_TOTAL_PROCESSES, 1)
        .start()
}

/// Clock ticks (10 ms) of processor time that a process has used.
fn ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("a process");
    let (_, fields) = stat.rsplit_once(')').expect("a name");
    let fields: Vec<_> = fields.split_whitespace().collect();
    let number = |index: usize| fields[index].parse::<u64>().expect("a number");
    number(11) + number(12)
}

fn live_sessions(bridge: &TestBridge) -> u64 {
    let health = bridge.client().get("/health").ok();
    health["load"]["sessions"].as_u64().expect("a number")
}

#[test]
fn a_chats_own_idle_session_makes_room_for_its_next_server() {
    let bridge = one_at_a_time(echo());
    let chat = bridge.chat("alice", "c1");
    for server in ["first", "second", "first"] {
        let answer = chat.call(server, "counter", json!({})).ok();
        let counted = result_of(&answer);
        assert_eq!(*counted, 1, "{server}");
    }
}

#[test]
fn who_waits_for_a_place_gets_it_when_the_call_that_holds_it_ends() {
    let bridge = one_at_a_time(echo());
    let busy = bridge.chat("alice", "c1");
    busy.call("first", "counter", json!({})).ok();
    let long = busy.begin(
        "first",
        "sleep",
        &json!({"seconds": LONG, "touch": "started", "until": "wake"}),
    );
    bridge.wait_for_file("started");
    let waits = bridge
        .chat("bob", "c1")
        .begin("first", "counter", &json!({}));
    eventually("it has its folder", || bridge.workspaces().len() == 2);
    bridge.wake("started");
    let answer = promptly("the call that waited", || waits.rest());
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(long.rest().contains("slept"));
}

#[test]
fn an_end_that_was_begun_for_a_caller_who_left_is_waited_for() {
    let save = json!({"tool": "sleep", "arguments": {"seconds": 2, "touch": "saving"}});
    let bridge = one_at_a_time(with(echo(), json!({"before_end": save})));
    let chat = bridge.chat("alice", "c1");
    let pid = chat.call("first", "where", json!({})).ok()["pid"].clone();
    let given_up = chat.begin("second", "counter", &json!({}));
    bridge.wait_for_file("saving");
    given_up.hang_up();
    let next = chat.call("first", "where", json!({})).ok()["result"]["pid"].clone();
    assert_ne!(pid, next);
    let alive = |process: &crate::support::Process| pid == process.pid;
    assert!(!bridge.children().iter().any(alive), "both were at work");
}

#[test]
fn a_session_past_its_time_beside_a_running_call_costs_nothing() {
    let short = with(echo(), json!({"idle_timeout": 1}));
    let bridge = TestBridge::start(servers([("short", short), ("echo", echo())]));
    let chat = bridge.chat("alice", "c1");
    chat.call("short", "where", json!({})).ok();
    let before = ticks(bridge.pid());
    chat.echo("sleep", json!({"seconds": 4}));
    let used = ticks(bridge.pid()) - before;
    assert!(used < 100, "{used} ticks in 4 s");
}

#[test]
fn a_dead_idle_child_gives_up_its_place_at_once() {
    let bridge = TestBridge::start(servers([("echo", echo())]));
    let pid = bridge.chat("alice", "c1").echo("where", json!({}))["pid"].clone();
    assert_eq!(live_sessions(&bridge), 1);
    let pid = i32::try_from(pid.as_i64().expect("a number")).expect("a process id");
    send(Pid::from_raw(pid).expect("a process id"), Signal::KILL).expect("it lives");
    eventually("the session is gone", || live_sessions(&bridge) == 0);
}

#[test]
fn a_server_with_a_folder_of_its_own_has_it_in_a_named_session_too() {
    let own = with(echo(), json!({"workspace": "own"}));
    let bridge = TestBridge::start(servers([("own", own), ("echo", echo())]));
    for (first, second) in [("echo", "own"), ("own", "echo")] {
        let file = json!({"name": "a.txt", "content": first});
        let begun = bridge.client().call(first, "write_file", file);
        begun.ok();
        let client = bridge.client().in_session(begun.header("X-MCPO-Session"));
        let there = |server| client.call(server, "list_files", json!({})).ok();
        assert_eq!(there(first), json!(["a.txt"]));
        assert_eq!(there(second), json!([]));
    }
}

#[test]
fn what_was_lost_is_said_even_if_the_first_call_afterwards_fails() {
    let bridge = TestBridge::start(servers([("echo", echo())]));
    let chat = bridge.chat("alice", "c1");
    chat.echo("counter", json!({}));
    assert_eq!(chat.call("echo", "die", json!({})).status, 502);
    let failed = chat.call("echo", "rpc_error", json!({"code": -32000}));
    assert_eq!(failed.status, 500);
    let told = chat.echo("counter", json!({}));
    assert_eq!(told["result"], 1);
    assert!(told["notice"].is_string(), "{told}");
    assert_eq!(chat.echo("counter", json!({})), 2, "said once");
}

/// A bridge whose shared server `shared` is already known; from now on its start takes `seconds`.
fn slow_from_now_on(seconds: u32) -> TestBridge {
    let bridge = TestBridge::start(servers([("shared", slow_shared())]));
    bridge.client().get("/shared/openapi.json").ok();
    eventually("the throw-away child is gone", || {
        bridge.workspaces().is_empty()
    });
    let delay = bridge.config_file().with_file_name("delay");
    fs::write(delay, seconds.to_string()).expect("the delay is written");
    bridge
}

/// A server that reads its start delay from a file beside the config, three folders above its own.
fn slow_shared() -> Value {
    let start = format!(
        "delay=../../../config/delay; [ ! -e $delay ] || sleep $(cat $delay); exec python3 {}",
        fixture("echo_server.py")
    );
    json!({"command": "sh", "args": ["-c", start], "mode": "shared"})
}

#[test]
fn a_shared_start_that_its_first_caller_gives_up_serves_the_next_one() {
    let bridge = slow_from_now_on(3);
    let given_up = bridge.client().begin("shared", "counter", &json!({}));
    eventually("it starts", || bridge.workspaces().len() == 1);
    given_up.hang_up();
    assert_eq!(bridge.client().call("shared", "counter", json!({})).ok(), 1);
    assert_eq!(bridge.workspaces().len(), 1, "one start, one folder");
}

#[test]
fn a_shared_server_that_hangs_at_its_start_delays_no_reload() {
    let bridge = slow_from_now_on(50);
    let waiting = bridge.client().begin("shared", "counter", &json!({}));
    eventually("it starts", || bridge.workspaces().len() == 1);
    bridge.write_config(&servers([("echo", echo())]));
    let chat = bridge.chat("alice", "c1");
    eventually("the new server is there", || {
        chat.call("echo", "counter", json!({})).status == 200
    });
    assert!(waiting.rest().contains("502"), "called off");
    eventually("the folder is gone", || bridge.workspaces().len() == 1);
}

#[test]
fn a_shared_server_that_hangs_at_its_start_delays_no_shutdown() {
    let bridge = slow_from_now_on(50);
    let waiting = bridge.client().begin("shared", "counter", &json!({}));
    eventually("it starts", || bridge.workspaces().len() == 1);
    waiting.hang_up();
    // The test passes if it ends within the harness's timeout.
    bridge.finish();
}
