//! A table of statuses, and tests of limits.

use std::thread;

use crate::support::{LONG, TestBridge, echo, promptly, rude, servers, vars, with};
use serde_json::{Value, json};

fn start() -> TestBridge {
    TestBridge::start(servers([("echo", echo())]))
}

#[test]
fn unknown_servers_and_tools_are_404() {
    let bridge = start();
    let chat = bridge.chat("alice", "c1");
    for (server, tool) in [
        ("nobody", "echo"),
        ("echo", "nothing"),
        ("..", "echo"),
        ("%2e%2e", "a%2fb"),
        ("echo", "a%00"),
    ] {
        let reply = chat.call(server, tool, json!({}));
        assert_eq!(reply.status, 404, "{server}/{tool}: {}", reply.text());
    }
    let reply = chat.call("echo", "nothing", json!({}));
    assert_eq!(reply.header("Content-Type"), "application/problem+json");
    let problem = reply.expect(404);
    assert_eq!(problem["status"], 404);
    assert!(problem["title"].is_string());
}

#[test]
fn a_get_on_a_tool_is_405() {
    assert_eq!(start().client().get("/echo/counter").status, 405);
}

#[test]
fn a_disabled_tool_is_not_there() {
    let few = with(
        echo(),
        json!({"enabledTools": ["echo", "add"], "disabledTools": ["add"]}),
    );
    let bridge = TestBridge::start(servers([("echo", few)]));
    let paths = bridge.client().get("/echo/openapi.json").ok()["paths"].clone();
    let paths: Vec<_> = paths.as_object().expect("paths").keys().cloned().collect();
    assert_eq!(paths, ["/echo"]);
    assert_eq!(
        bridge
            .client()
            .call("echo", "add", json!({"a": 1, "b": 1}))
            .status,
        404
    );
}

#[test]
fn broken_json_is_400_and_arguments_that_are_no_object_are_422() {
    let bridge = start();
    for (bad, status) in [
        ("{", 400),
        ("[]", 422),
        ("42", 422),
        ("{\"a\":1,\"a\":2}", 422),
        ("{\"a\":\"\u{0}\"}", 400),
        ("", 422),
    ] {
        let reply = bridge.client().post("/echo/add", bad);
        assert_eq!(reply.status, status, "{bad:?}: {}", reply.text());
    }
    let deep = format!(
        "{{\"text\":{}{}}}",
        "[".repeat(100_000),
        "]".repeat(100_000)
    );
    let reply = bridge.client().post("/echo/echo", deep);
    assert_eq!(reply.status, 422, "well-formed, but no tool takes it");
}

#[test]
fn bad_arguments_are_422_and_name_each_field() {
    let bridge = start();
    let reply = bridge.client().call("echo", "add", json!({"a": "one"}));
    let problem = reply.expect(422);
    let detail = problem["detail"].as_array().expect("a list, as mcpo sends");
    for entry in detail {
        for key in ["type", "loc", "msg"] {
            assert!(!entry[key].is_null(), "{key}: {entry}");
        }
    }
    let said = problem["detail"].to_string();
    assert!(said.contains("\"a\"") && said.contains("\"b\""), "{said}");
}

#[test]
fn a_tools_failure_is_500_with_its_own_words() {
    let reply = start().client().call("echo", "fail", json!({}));
    assert_eq!(reply.expect(500)["detail"]["message"], "it did not work");
}

#[test]
fn rpc_errors_become_mcpos_statuses() {
    let bridge = start();
    for (code, status) in [
        (-32700, 400),
        (-32600, 400),
        (-32601, 404),
        (-32602, 422),
        (-32603, 500),
        (-32000, 500),
    ] {
        let reply = bridge
            .client()
            .call("echo", "rpc_error", json!({"code": code}));
        let detail = reply.expect(status)["detail"].clone();
        assert_eq!(
            detail,
            json!({"message": "refused on purpose", "data": {"why": "test"}}),
            "{code}"
        );
    }
}

#[test]
fn a_body_over_the_limit_is_413() {
    let bridge = TestBridge::builder(servers([("echo", echo())]))
        .var(vars::MAX_BODY_BYTES, 100_000)
        .start();
    let text = |length: usize| json!({"text": "x".repeat(length)});
    assert_eq!(
        bridge.client().call("echo", "echo", text(50_000)).status,
        200
    );
    assert_eq!(
        bridge.client().call("echo", "echo", text(200_000)).status,
        413
    );
}

#[test]
fn over_the_limit_a_call_waits_its_turn_and_then_gets_429() {
    let bridge = TestBridge::builder(servers([("echo", echo())]))
        .var(vars::MAX_CONCURRENT, 1)
        .var(vars::QUEUE_TIMEOUT, 1)
        .start();
    let long = bridge.chat("alice", "c1").begin(
        "echo",
        "sleep",
        &json!({"seconds": LONG, "touch": "started", "until": "wake"}),
    );
    bridge.wait_for_file("started");
    let reply = bridge.chat("bob", "c1").call("echo", "counter", json!({}));
    assert_eq!(reply.status, 429, "{}", reply.text());
    assert!(
        reply
            .header("Retry-After")
            .parse::<u32>()
            .is_ok_and(|seconds| seconds > 0)
    );
    bridge.wake("started");
    assert!(long.rest().contains("slept"));
    assert_eq!(bridge.chat("bob", "c1").echo("counter", json!({})), 1);
}

#[test]
fn a_short_wait_ends_well() {
    let bridge = TestBridge::builder(servers([("echo", echo())]))
        .var(vars::MAX_CONCURRENT, 1)
        .start();
    let long = bridge.chat("alice", "c1").begin(
        "echo",
        "sleep",
        &json!({"seconds": LONG, "touch": "started", "until": "wake"}),
    );
    bridge.wait_for_file("started");
    let waits = bridge
        .chat("bob", "c1")
        .begin("echo", "counter", &json!({}));
    bridge.wait_for_waiting_calls(1);
    bridge.wake("started");
    assert!(long.rest().contains("slept"));
    let answer = promptly("the call that waited", || waits.rest());
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[test]
fn one_busy_user_does_not_starve_another() {
    let bridge = TestBridge::builder(servers([("echo", echo())]))
        .var(vars::MAX_CONCURRENT, 1)
        .start();
    let first = bridge.chat("greedy", "c0").begin(
        "echo",
        "sleep",
        &json!({"seconds": LONG, "touch": "started"}),
    );
    bridge.wait_for_file("started");
    let queued: Vec<_> = (1..12)
        .map(|chat| {
            bridge.chat("greedy", &format!("c{chat}")).begin(
                "echo",
                "sleep",
                &json!({"seconds": LONG}),
            )
        })
        .collect();
    bridge.wait_for_waiting_calls(11);
    let modest = bridge
        .chat("modest", "c1")
        .begin("echo", "counter", &json!({}));
    bridge.wait_for_waiting_calls(12);
    first.hang_up();
    let answer = promptly("the call of the other user", || modest.rest());
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    queued
        .into_iter()
        .for_each(crate::support::PendingCall::hang_up);
}

#[test]
fn a_timeout_is_504() {
    let bridge = TestBridge::builder(servers([("echo", echo())]))
        .var(vars::TIMEOUT, 10)
        .start();
    let reply = bridge
        .chat("alice", "c1")
        .call("echo", "sleep", json!({"seconds": 60}));
    assert_eq!(reply.status, 504, "{}", reply.text());
}

#[test]
fn below_the_free_disk_floor_nothing_new_is_written() {
    let bridge = TestBridge::builder(servers([("echo", echo())]))
        .var(vars::MIN_FREE_DISK_BYTES, u64::MAX / 2)
        .start();
    let file = json!({"name": "a.txt", "content": "a"});
    let reply = bridge.chat("alice", "c1").call("echo", "write_file", file);
    assert_eq!(reply.status, 507, "{}", reply.text());
}

#[test]
fn a_workspace_over_its_quota_is_507_and_a_sparse_file_counts_its_blocks() {
    let bridge = TestBridge::builder(servers([("echo", echo())]))
        .var(vars::MAX_WORKSPACE_BYTES, 1 << 20)
        .start();
    let sparse = json!({"name": "sparse.bin", "bytes": 100 << 20});
    assert_eq!(
        bridge
            .chat("alice", "c1")
            .call("echo", "write_sparse", sparse)
            .status,
        200
    );
    let file = json!({"name": "big.txt", "content": "x".repeat(2 << 20)});
    let reply = bridge.chat("alice", "c2").call("echo", "write_file", file);
    assert_eq!(reply.status, 507, "{}", reply.text());
}

#[test]
fn a_workspace_with_too_many_files_is_507() {
    let bridge = TestBridge::builder(servers([("rude", rude("many_files")), ("echo", echo())]))
        .var(vars::MAX_WORKSPACE_FILES, 1000)
        .start();
    let reply = bridge.chat("alice", "c1").call("rude", "poke", json!({}));
    assert_eq!(reply.status, 507, "{}", reply.text());
    assert_eq!(bridge.chat("alice", "c2").echo("counter", json!({})), 1);
}

#[test]
fn a_workspace_with_too_many_files_opens_for_the_tools_that_delete_them() {
    let mut bridge = TestBridge::builder(servers([("echo", echo())]))
        .var(vars::MAX_WORKSPACE_FILES, 100)
        .start();
    let call = |bridge: &TestBridge, tool: &str, arguments: Value| {
        bridge.chat("alice", "c1").call("echo", tool, arguments)
    };
    let made = call(&bridge, "write_many", json!({"count": 150}));
    assert_eq!(made.status, 507, "{}", made.text());
    // In the open folder, and in the one found by a restarted bridge.
    for _ in 0..2 {
        let file = json!({"name": "more.txt", "content": "1"});
        let over = call(&bridge, "write_file", file).ok();
        assert!(
            over["notice"].to_string().contains("more than 100 files"),
            "{over}"
        );
        assert_eq!(over["files"], Value::Null, "{over}");
        bridge.restart();
    }
    let mut folders = bridge
        .workspaces()
        .into_iter()
        .map(|path| path.join("work"));
    let work = folders.find(|work| work.join("many-00000.txt").exists());
    let work = work.expect("the chat's folder");
    for number in 0..100 {
        std::fs::remove_file(work.join(format!("many-{number:05}.txt"))).expect("as a tool would");
    }
    let fits = call(&bridge, "echo", json!({"text": "a"})).ok();
    let said = fits.to_string();
    assert!(
        !said.contains("100 files") && !said.contains("/files/"),
        "{said}"
    );
    let file = json!({"name": "again.txt", "content": "1"});
    let under = call(&bridge, "write_file", file).ok();
    assert_eq!(under["files"].as_array().map(Vec::len), Some(1), "{under}");
}

#[test]
fn answers_reach_the_caller_they_belong_to() {
    let shared = with(echo(), json!({"mode": "shared"}));
    let bridge = TestBridge::start(servers([("echo", shared)]));
    let workers: Vec<_> = (0..16)
        .map(|worker| {
            let client = bridge.client();
            thread::spawn(move || {
                for turn in 0..50 {
                    let canary = format!("canary {worker}/{turn}");
                    assert_eq!(client.echo("echo", json!({"text": canary})), canary);
                }
            })
        })
        .collect();
    for worker in workers {
        worker.join().expect("every answer is its caller's");
    }
}
