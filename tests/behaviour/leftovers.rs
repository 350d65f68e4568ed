//! No process and no file is left behind: the harness checks this after every test, and these tests
//! create leftovers.

use std::thread;

use crate::support::{
    LONG, TestBridge, alive, echo, eventually, promptly, rude, servers, vars, with,
};
use rustix::process::Signal;
use serde_json::json;

#[test]
fn two_hundred_calls_with_hang_ups_timeouts_and_crashes_leave_nothing() {
    let bridge = TestBridge::builder(servers([
        ("echo", with(echo(), json!({"timeout": 2}))),
        ("shared", with(echo(), json!({"mode": "shared"}))),
        (
            "fresh",
            with(echo(), json!({"mode": "stateless", "timeout": 2})),
        ),
        ("crash", rude("crash_on_call")),
        ("shell", rude("shell_grandchild")),
    ]))
    .var(vars::KILL_GRACE, 1)
    .start();
    let workers: Vec<_> = (0..8)
        .map(|worker| {
            let clients: Vec<_> = (0..3)
                .map(|chat| bridge.chat(&format!("u{worker}"), &format!("c{chat}")))
                .collect();
            thread::spawn(move || {
                for turn in 0..25 {
                    let client = &clients[turn % clients.len()];
                    let file = json!({"name": format!("{turn}.txt"), "content": "x"});
                    match turn % 8 {
                        0 => drop(client.call("echo", "write_file", file)),
                        1 => client
                            .begin("echo", "sleep", &json!({"seconds": 60}))
                            .hang_up(),
                        2 => drop(client.call("crash", "poke", json!({}))),
                        3 => drop(client.call("fresh", "write_file", file)),
                        4 => drop(client.call("shell", "poke", json!({}))),
                        5 => client
                            .begin("shared", "sleep", &json!({"seconds": 60}))
                            .hang_up(),
                        6 => drop(client.call("echo", "die", json!({}))),
                        _ if worker == 0 => {
                            client.call("echo", "sleep", json!({"seconds": 60}));
                        }
                        _ => drop(client.call("shared", "add", json!({"a": 1, "b": 2}))),
                    }
                }
            })
        })
        .collect();
    for worker in workers {
        worker.join().expect("every call is answered");
    }
    assert_eq!(
        bridge
            .chat("u0", "c0")
            .call("shared", "add", json!({"a": 1, "b": 2}))
            .ok(),
        3
    );
}

#[test]
fn a_grandchild_in_the_childs_group_ends_with_its_session() {
    let shell = with(rude("shell_grandchild"), json!({"idle_timeout": 1}));
    let bridge = TestBridge::start(servers([("rude", shell)]));
    let pid = bridge
        .chat("alice", "c1")
        .call("rude", "poke", json!({}))
        .ok();
    let pid = i32::try_from(pid.as_i64().expect("a pid")).expect("a pid");
    eventually("the grandchild is gone", || !alive(pid));
}

/// The runaway process returns its pid, and the file that contains it.
fn runaway(bridge: &TestBridge, arguments: serde_json::Value) -> i32 {
    let answer = bridge
        .chat("alice", "c1")
        .call("rude", "poke", arguments)
        .ok();
    i32::try_from(answer["result"].as_i64().expect("a pid")).expect("a pid")
}

#[test]
fn a_runaway_in_a_session_of_its_own_ends_with_the_session() {
    let idle = with(rude("forks_runaway"), json!({"idle_timeout": 1}));
    let bridge = TestBridge::start(servers([("rude", idle)]));
    let pid = runaway(&bridge, json!({}));
    eventually("the runaway is gone", || !alive(pid));
}

#[test]
fn a_runaway_without_environment_and_folder_ends_with_the_bridge() {
    let bridge = TestBridge::start(servers([("rude", rude("forks_runaway"))]));
    let pid = runaway(&bridge, json!({"strip": true}));
    bridge.finish();
    eventually("the runaway is gone", || !alive(pid));
}

#[test]
fn a_runaway_does_not_survive_a_killed_bridge() {
    let mut bridge = TestBridge::start(servers([("rude", rude("forks_runaway"))]));
    let pid = runaway(&bridge, json!({}));
    bridge.kill_hard();
    assert!(!alive(pid));
}

#[test]
fn a_child_that_talks_on_after_its_stdin_closed_holds_up_no_shutdown() {
    let bridge = TestBridge::start(servers([("rude", rude("chatty_close"))]));
    bridge
        .chat("alice", "c1")
        .call("rude", "poke", json!({}))
        .ok();
}

#[test]
fn sigterm_lets_a_running_call_finish() {
    let mut bridge = TestBridge::start(servers([("echo", echo())]));
    let chat = bridge.chat("alice", "c1");
    let pid = chat.echo("where", json!({}))["pid"].clone();
    let arguments = json!({"seconds": LONG, "touch": "started", "until": "wake"});
    let call = chat.begin("echo", "sleep", &arguments);
    bridge.wait_for_file("started");
    bridge.signal(Signal::TERM);
    eventually("it ends", || !bridge.client().is_ready());
    bridge.wake("started");
    assert!(call.rest().contains("slept"));
    assert_eq!(bridge.wait_for_exit().code(), Some(0));
    assert!(!bridge.children().iter().any(|process| pid == process.pid));
}

#[test]
fn a_call_longer_than_the_grace_is_cut_off_and_the_exit_is_still_good() {
    let mut bridge = TestBridge::builder(servers([("echo", echo())]))
        .var(vars::SHUTDOWN_GRACE, 1)
        .start();
    let chat = bridge.chat("alice", "c1");
    chat.echo("counter", json!({}));
    let call = chat.begin("echo", "sleep", &json!({"seconds": 60, "touch": "started"}));
    bridge.wait_for_file("started");
    bridge.signal(Signal::TERM);
    assert_eq!(bridge.wait_for_exit().code(), Some(0));
    assert!(!call.rest().contains("slept"));
}

#[test]
fn a_second_signal_ends_at_once() {
    let mut bridge = TestBridge::builder(servers([("echo", echo())]))
        .var(vars::SHUTDOWN_GRACE, 60)
        .start();
    let chat = bridge.chat("alice", "c1");
    chat.echo("counter", json!({}));
    let _call = chat.begin("echo", "sleep", &json!({"seconds": 60, "touch": "started"}));
    bridge.wait_for_file("started");
    promptly("the end", || {
        bridge.signal(Signal::TERM);
        bridge.signal(Signal::INT);
        bridge.wait_for_exit();
    });
}

#[test]
fn a_stop_sends_waiting_calls_away_and_ends_running_ones_after_the_grace() {
    let mut bridge = TestBridge::builder(servers([("echo", echo())]))
        .var(vars::MAX_CONCURRENT, 1)
        .var("MCPO_SHUTDOWN_GRACE", 1)
        .start();
    let chat = bridge.chat("alice", "c1");
    let long = chat.begin(
        "echo",
        "sleep",
        &json!({"seconds": LONG, "touch": "started"}),
    );
    bridge.wait_for_file("started");
    let waiting = bridge
        .chat("bob", "c1")
        .begin("echo", "counter", &json!({}));
    bridge.wait_for_waiting_calls(1);
    promptly("the end", || {
        bridge.signal(Signal::TERM);
        assert!(
            waiting.rest().contains("503"),
            "the waiting call is refused at once"
        );
        let long = long.rest();
        assert!(
            long.starts_with("HTTP/1.1 502") && long.contains("interrupted"),
            "the running one after its grace: {long}"
        );
        // The tool may have finished, so the text must not suggest a retry.
        assert!(long.contains("may have been executed"), "{long}");
        assert!(!long.to_lowercase().contains("retry-after"), "{long}");
        assert_eq!(bridge.wait_for_exit().code(), Some(0));
    });
}
