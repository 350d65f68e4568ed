//! Children that exit, hang or send invalid messages: only that call fails, with the right status.

use std::thread;

use crate::support::{
    LONG, TestBridge, alive, echo, eventually, fixture, kill_process, promptly, result_of, rude,
    servers, vars, with,
};
use serde_json::{Value, json};

/// The answer of a rude server's tool.
#[track_caller]
fn poke(mode: &str) -> Value {
    let bridge = TestBridge::start(servers([("rude", rude(mode))]));
    bridge
        .chat("alice", "c1")
        .call("rude", "poke", json!({}))
        .ok()
}

fn pid_of(answer: &Value) -> i32 {
    let pid = answer["pid"].as_i64().expect("a pid");
    i32::try_from(pid).expect("a pid")
}

#[test]
fn a_child_killed_mid_call_fails_that_call_at_once_and_the_next_one_goes_on() {
    let bridge = TestBridge::start(servers([("echo", echo()), ("other", echo())]));
    let chat = bridge.chat("alice", "c1");
    chat.echo("write_file", json!({"name": "kept.txt", "content": "kept"}));
    let pid = pid_of(&chat.echo("where", json!({})));
    chat.call("other", "counter", json!({})).ok();
    let sleeper = chat.clone();
    let arguments = json!({"seconds": LONG, "touch": "started"});
    let call = thread::spawn(move || sleeper.call("echo", "sleep", arguments));
    bridge.wait_for_file("started");
    kill_process(pid);
    let reply = promptly("the answer", || call.join().expect("an answer"));
    assert_eq!(reply.status, 502, "{}", reply.text());

    let answer = chat.echo("list_files", json!({}));
    assert_eq!(answer["result"], json!(["kept.txt", "started"]));
    assert!(
        answer["notice"]
            .as_str()
            .is_some_and(|notice| notice.contains("kept.txt"))
    );
    assert_eq!(chat.echo("counter", json!({})), 1, "said once, not again");
    assert_eq!(
        chat.call("other", "counter", json!({})).ok(),
        2,
        "the other server noticed nothing"
    );
}

#[test]
fn a_child_that_kills_itself_on_a_call_is_a_502_and_is_replaced() {
    let bridge = TestBridge::start(servers([("rude", rude("crash_on_call"))]));
    for _ in 0..2 {
        let reply = bridge.chat("alice", "c1").call("rude", "poke", json!({}));
        assert_eq!(reply.status, 502, "{}", reply.text());
        assert_eq!(reply.header("Content-Type"), "application/problem+json");
    }
}

#[test]
fn a_killed_bridge_leaves_no_orphan_and_the_chat_keeps_its_folder() {
    let mut bridge = TestBridge::start(servers([
        ("echo", echo()),
        ("rude", rude("shell_grandchild")),
    ]));
    let chat = bridge.chat("alice", "c1");
    let file = json!({"name": "a.txt", "content": "kept"});
    let link = chat.call("echo", "write_file", file).link("a.txt");
    chat.call("rude", "poke", json!({})).ok();
    let _mid_call = chat.begin("echo", "sleep", &json!({"seconds": 60}));
    bridge.kill_hard();
    bridge.restart();
    let chat = bridge.chat("alice", "c1");
    let answer = chat.echo("read_file", json!({"name": "a.txt"}));
    assert_eq!(answer["result"], "kept");
    assert_eq!(chat.download(&link).text(), "kept");
}

#[test]
fn a_good_server_serves_as_if_the_bad_ones_were_not_there() {
    let missing = json!({"command": "no-such-command-anywhere"});
    let bridge = TestBridge::builder(servers([
        ("missing", missing),
        ("silent", rude("never_answers")),
        ("exits", rude("exits_at_start")),
        (
            "garbage",
            json!({"command": "sh", "args": ["-c", "while :; do echo garbage; sleep 0.1; done"]}),
        ),
        ("echo", echo()),
    ]))
    .var(vars::START_TIMEOUT, 10)
    .start();
    eventually("health names each fault", || {
        let health = bridge.client().get("/health").ok();
        let said = health.to_string();
        let named = ["missing", "silent", "exits", "garbage"]
            .iter()
            .all(|name| said.contains(name));
        named && health["status"] == "degraded"
    });
    for (server, status) in [("missing", 502), ("exits", 502), ("silent", 504)] {
        let reply = bridge.chat("alice", "c1").call(server, "poke", json!({}));
        // Its tools were never read: the catalogue is not ready, or the start has failed.
        assert!(
            [status, 502, 503].contains(&reply.status),
            "{server}: {} {}",
            reply.status,
            reply.text()
        );
    }
}

#[test]
fn check_names_every_fault_of_a_config() {
    let config = servers([
        ("missing", json!({"command": "no-such-command-anywhere"})),
        ("silent", rude("never_answers")),
        ("exits", rude("exits_at_start")),
        ("echo", echo()),
    ]);
    let bridge = TestBridge::builder(config)
        .var(vars::START_TIMEOUT, 10)
        .prepare();
    let output = bridge.command(&["check", "--verbose"]);
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    for words in [
        "no-such-command-anywhere",
        "silent",
        "exits",
        "cannot find my licence",
        "write_file",
    ] {
        assert!(said.contains(words), "{words} is missing in:\n{said}");
    }
}

#[test]
fn a_server_that_fails_at_first_is_tried_again() {
    // It works once the file exists, like a server whose network becomes available late.
    let folder = tempfile::tempdir().expect("a folder");
    let flag = folder.path().join("flag");
    let script = format!(
        "test -e '{}' && exec python3 '{}'",
        flag.display(),
        fixture("echo_server.py")
    );
    let late = json!({"command": "sh", "args": ["-c", script]});
    let bridge = TestBridge::start(servers([("echo", late)]));
    let status = || {
        bridge
            .chat("alice", "c1")
            .call("echo", "counter", json!({}))
            .status
    };
    assert!([502, 503].contains(&status()));
    std::fs::write(&flag, "").expect("a file");
    eventually("the server is tried again", || status() == 200);
}

#[test]
fn garbage_between_answers_breaks_nothing() {
    assert_eq!(poke("garbage"), "ok");
}

#[test]
fn a_flood_on_stderr_breaks_nothing() {
    assert_eq!(poke("floods_stderr"), "ok");
}

#[test]
fn a_flood_of_garbage_on_stdout_breaks_nothing() {
    assert_eq!(poke("floods_stdout_garbage"), "ok");
}

#[test]
fn the_log_of_a_child_is_capped() {
    let bridge = TestBridge::start(servers([("rude", rude("floods_stderr"))]));
    bridge
        .chat("alice", "c1")
        .call("rude", "poke", json!({}))
        .ok();
    let workspace = bridge.workspaces().pop().expect("a workspace");
    let log = workspace
        .join("server.log")
        .metadata()
        .expect("a log")
        .len();
    assert!(
        (1..12 << 20).contains(&log),
        "13 MB were written to stderr, {log} bytes kept"
    );
}

#[test]
fn the_first_of_two_answers_counts_and_the_second_reaches_nobody() {
    let bridge = TestBridge::start(servers([("rude", rude("answers_twice"))]));
    for _ in 0..3 {
        assert_eq!(
            bridge
                .chat("alice", "c1")
                .call("rude", "poke", json!({}))
                .ok(),
            "first"
        );
    }
}

#[test]
fn answers_with_wrong_ids_reach_nobody() {
    assert_eq!(poke("wrong_id"), "ok");
    // Like the official clients: a number sent back as a string still matches.
    assert_eq!(poke("string_ids"), "as a string");
}

#[test]
fn notifications_and_requests_before_the_answer_are_not_the_answer() {
    assert_eq!(poke("notifies_first"), "ok");
}

#[test]
fn a_childs_ping_is_answered() {
    assert_eq!(poke("pings_client"), "ok");
}

#[test]
fn invalid_utf8_and_deep_json_break_nothing() {
    assert_eq!(poke("invalid_utf8"), "ok");
    assert_eq!(poke("deep_json"), "ok");
}

#[test]
fn an_answer_nested_deep_is_passed_on_as_it_is() {
    let bridge = TestBridge::start(servers([("rude", rude("deep_answer")), ("echo", echo())]));
    let chat = bridge.chat("alice", "c1");
    let reply = chat.call("rude", "poke", json!({}));
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert!(reply.text().starts_with("[[[["));
    assert_eq!(chat.echo("counter", json!({})), 1);
}

#[test]
fn a_line_without_end_ends_the_call_and_not_the_bridge() {
    let bridge = TestBridge::builder(servers([("rude", rude("giant_line")), ("echo", echo())]))
        .var(vars::MAX_MESSAGE_BYTES, 4 << 20)
        .start();
    let chat = bridge.chat("alice", "c1");
    let reply = chat.call("rude", "poke", json!({}));
    assert_eq!(reply.status, 502, "{}", reply.text());
    assert_eq!(chat.echo("counter", json!({})), 1);
}

#[test]
fn a_large_result_arrives_whole() {
    let answer = poke("huge_result");
    assert_eq!(answer.as_str().map(str::len), Some(20 << 20));
}

#[test]
fn a_child_that_closes_its_stdout_is_dead() {
    let bridge = TestBridge::start(servers([("rude", rude("closes_stdout"))]));
    let reply = bridge.chat("alice", "c1").call("rude", "poke", json!({}));
    assert_eq!(reply.status, 502, "{}", reply.text());
}

#[test]
fn a_child_that_stops_reading_times_out_and_holds_up_nobody() {
    let config = servers([
        (
            "rude",
            with(rude("stops_reading_stdin"), json!({"timeout": 10})),
        ),
        ("echo", echo()),
    ]);
    let bridge = TestBridge::start(config);
    let stuck = bridge.chat("alice", "c1");
    let big = json!({"padding": "x".repeat(1 << 20)});
    // One after the other: with two concurrent calls, the second would start a new process at its
    // timeout.
    for count in 1..=2 {
        let call = stuck.begin("rude", "poke", &big);
        assert_eq!(bridge.chat("bob", "c1").echo("counter", json!({})), count);
        let answer = call.rest();
        assert!(
            answer.starts_with("HTTP/1.1 504"),
            "{}",
            &answer[..200.min(answer.len())]
        );
    }
}

#[test]
fn a_child_that_exits_after_its_greeting_is_a_fault_of_its_own() {
    let bridge = TestBridge::start(servers([
        ("rude", rude("exits_after_init")),
        ("echo", echo()),
    ]));
    let reply = bridge.chat("alice", "c1").call("rude", "poke", json!({}));
    assert!([502, 503].contains(&reply.status), "{}", reply.text());
    assert_eq!(bridge.chat("alice", "c1").echo("counter", json!({})), 1);
}

#[test]
fn a_slow_start_is_waited_for() {
    let slow = with(rude("slow_start"), json!({"env": {"START_SECONDS": "1.5"}}));
    let bridge = TestBridge::start(servers([("rude", slow)]));
    assert_eq!(
        bridge
            .chat("alice", "c1")
            .call("rude", "poke", json!({}))
            .ok(),
        "ok"
    );
}

#[test]
fn a_timeout_ends_the_whole_tree_of_the_child() {
    let slow = with(echo(), json!({"timeout": 3}));
    let bridge = TestBridge::start(servers([("echo", slow)]));
    let chat = bridge.chat("alice", "c1");
    // The timeout includes a start, which may take longer on a busy machine.
    let started = || {
        let replies = std::iter::repeat_with(|| chat.call("echo", "where", json!({})));
        let answer = replies.take(10).find(|reply| reply.status == 200);
        let answer = answer
            .expect("it starts within its time, once in ten times")
            .json();
        pid_of(result_of(&answer))
    };
    let pid = started();
    let reply = chat.call("echo", "sleep", json!({"seconds": LONG}));
    assert_eq!(reply.status, 504, "{}", reply.text());
    eventually("the child is gone", || !alive(pid));
    assert_ne!(started(), pid);
}

#[test]
fn a_child_that_ignores_sigterm_is_killed_after_the_grace() {
    let deaf = with(rude("ignores_sigterm"), json!({"timeout": 10}));
    let bridge = TestBridge::builder(servers([("rude", deaf)]))
        .var(vars::KILL_GRACE, 1)
        .start();
    let reply = bridge.chat("alice", "c1").call("rude", "poke", json!({}));
    assert_eq!(reply.status, 504, "{}", reply.text());
    // The drop asserts that none of them is left.
}
