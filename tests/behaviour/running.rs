//! Operation: health, metrics, logs, reload, commands.

use crate::support::{TestBridge, at_the_root, echo, eventually, fixture, servers, vars, with};
use rustix::process::Signal;
use serde_json::{Value, json};

fn start() -> TestBridge {
    TestBridge::start(servers([("echo", echo())]))
}

/// The lines of the log; each must be JSON.
fn log_lines(bridge: &TestBridge) -> Vec<Value> {
    let log = bridge.log();
    let lines = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|fault| panic!("{fault} in {line}")));
    lines.collect()
}

#[test]
fn health_says_how_it_is_and_spawns_nothing() {
    let bridge = start();
    bridge.client().get("/echo/openapi.json").ok();
    eventually("the learning child has ended", || {
        bridge.children().is_empty()
    });
    let health = bridge.client().get("/health").ok();
    assert_eq!(health["status"], "ok");
    for key in ["timestamp", "version", "uptime", "warnings"] {
        assert!(!health[key].is_null(), "{key}: {health}");
    }
    assert_eq!(bridge.client().get("/health/live").status, 200);
    assert!(bridge.children().is_empty());
}

#[test]
fn metrics_count_calls_and_name_no_user() {
    let bridge = start();
    bridge
        .chat("alice-the-user", "the-chat")
        .echo("counter", json!({}));
    bridge
        .chat("alice-the-user", "the-chat")
        .call("echo", "fail", json!({}));
    let metrics = bridge.client().get("/metrics").text();
    assert!(
        metrics.contains("counter") && metrics.contains("echo"),
        "{metrics}"
    );
    assert!(
        !metrics.contains("alice") && !metrics.contains("the-chat"),
        "{metrics}"
    );
}

#[test]
fn the_request_id_comes_back_and_is_in_the_log() {
    let bridge = start();
    let sent = bridge
        .chat("alice", "c1")
        .header("X-Request-Id", "request-of-the-test");
    let reply = sent.call("echo", "counter", json!({}));
    assert_eq!(reply.header("X-Request-Id"), "request-of-the-test");
    assert!(
        !bridge
            .client()
            .get("/docs")
            .header("X-Request-Id")
            .is_empty()
    );
    bridge.wait_for_log("request-of-the-test");
}

#[test]
fn every_call_download_and_refusal_leaves_one_audit_line() {
    let config = servers([("echo", echo())]);
    let bridge = TestBridge::builder(config)
        .var(vars::API_KEY, "sesame")
        .start();
    let chat = bridge.chat("alice", "the-chat").bearer("sesame");
    let file = json!({"name": "a.txt", "content": "private-content"});
    let link = chat.call("echo", "write_file", file).link("a.txt");
    chat.download(&link);
    bridge.client().call("echo", "counter", json!({}));
    let audits = || -> Vec<Value> {
        let mut lines = log_lines(&bridge);
        lines.retain(|line| line.to_string().contains("\"audit\""));
        lines
    };
    eventually("three lines are written", || audits().len() == 3);
    let text = format!("{:?}", audits());
    assert!(
        text.contains("alice") && text.contains("write_file") && text.contains("a.txt"),
        "{text}"
    );
    // The log contains the sha256 of "private-content", but neither content nor chat nor the link's
    // token.
    for secret in [
        "private-content",
        "the-chat",
        link.split('/').nth_back(1).expect("a token"),
    ] {
        assert!(!text.contains(secret), "{secret}: {text}");
    }
}

#[test]
fn a_reload_adds_and_removes_servers_and_keeps_the_sessions_of_the_others() {
    let bridge = TestBridge::start(servers([("echo", echo()), ("goes", echo())]));
    let chat = bridge.chat("alice", "c1");
    chat.echo("counter", json!({}));
    chat.call("goes", "counter", json!({})).ok();
    bridge.write_config(&servers([("echo", echo()), ("comes", echo())]));
    bridge.signal(Signal::HUP);
    eventually("the new server is there", || {
        chat.call("comes", "counter", json!({})).status == 200
    });
    assert_eq!(chat.echo("counter", json!({})), 2);
    assert_eq!(chat.call("goes", "counter", json!({})).status, 404);
    eventually("the removed server's child ends", || {
        let children = bridge.children();
        let script = fixture("echo_server.py");
        children
            .iter()
            .filter(|process| {
                !process.command.contains("__supervise") && process.command.contains(&script)
            })
            .count()
            == 2
    });
}

#[test]
fn a_changed_file_is_reloaded_without_a_signal() {
    let bridge = start();
    bridge.write_config(&servers([("comes", echo())]));
    eventually("the new server is there", || {
        bridge
            .chat("alice", "c1")
            .call("comes", "counter", json!({}))
            .status
            == 200
    });
}

#[test]
fn a_changed_server_starts_anew_in_the_same_folder() {
    let bridge = start();
    let chat = bridge.chat("alice", "c1");
    chat.echo("write_file", json!({"name": "a.txt", "content": "a"}));
    bridge.write_config(&servers([(
        "echo",
        with(echo(), json!({"env": {"NEW": "value"}})),
    )]));
    bridge.signal(Signal::HUP);
    eventually("the child has the new environment", || {
        chat.call("echo", "env", json!({})).text().contains("NEW")
    });
    assert_eq!(chat.echo("read_file", json!({"name": "a.txt"})), "a");
}

#[test]
fn a_broken_file_changes_nothing_and_health_says_why() {
    let bridge = start();
    let chat = bridge.chat("alice", "c1");
    chat.echo("counter", json!({}));
    bridge.write_config_text("{ \"mcpServers\": { ");
    bridge.signal(Signal::HUP);
    eventually("health says so", || {
        bridge.client().get("/health").ok()["reasons"]
            .to_string()
            .contains("mcp-servers.json")
    });
    assert_eq!(chat.echo("counter", json!({})), 2);
}

#[test]
fn a_bad_config_at_the_start_names_file_path_value_and_all_faults() {
    let config = servers([
        ("one", json!({"command": 42})),
        ("two", json!({"command": "x", "mode": "sometimes"})),
    ]);
    let (code, said) = TestBridge::builder(config).prepare().refuses_to_start();
    assert_eq!(code, Some(2), "{said}");
    // Once, in the log, because there is no terminal.
    assert_eq!(said.matches("one.command").count(), 1, "{said}");
    for words in [
        "mcp-servers.json",
        "one.command",
        "42",
        "two.mode",
        "sometimes",
    ] {
        assert!(said.contains(words), "{words} is missing in:\n{said}");
    }
}

#[test]
fn an_unknown_key_warns_and_a_comment_does_not() {
    let odd = with(echo(), json!({"idle_timeuot": 5, "//": "a comment"}));
    let bridge = TestBridge::start(servers([("echo", odd)]));
    assert_eq!(bridge.client().echo("counter", json!({})), 1);
    let log = bridge.wait_for_log("idle_timeuot");
    assert!(!log.contains("\"//\""), "{log}");
}

#[test]
fn secrets_in_the_config_reach_the_child_and_nobody_else() {
    let secret = json!({"env": {"TOKEN": "${SERVER_TOKEN}", "HOME_OF": "${NOT_SET:-fallback}", "WORK": "{MCPO_WORKDIR}"}});
    let bridge = TestBridge::builder(servers([("echo", with(echo(), secret))]))
        .var("SERVER_TOKEN", "the-servers-secret")
        .var(vars::LOG_LEVEL, "DEBUG")
        .start();
    let chat = bridge.chat("alice", "c1");
    let environment = chat.echo("env", json!({}));
    assert_eq!(environment["TOKEN"], "the-servers-secret");
    assert_eq!(environment["HOME_OF"], "fallback");
    // The folder's path is made relative in answers, and the folder itself is ".".
    assert_eq!(environment["WORK"], environment["MCPO_WORKDIR"]);
    assert!(!bridge.finished_log().contains("the-servers-secret"));
}

#[test]
fn the_commands_work_on_the_same_config() {
    let bridge = TestBridge::builder(servers([("echo", echo())])).prepare();
    let run = |arguments: &[&str]| {
        let output = bridge.command(arguments);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        text
    };
    assert!(run(&["check"]).contains("echo"));
    assert!(run(&["tools"]).contains("write_file"));
    assert!(run(&["call", "echo", "add", "--arg", "a=20", "--arg", "b=22"]).contains("42"));
    assert!(run(&["call", "echo", "echo", "--json", r#"{"text":"words"}"#]).contains("words"));
    let schema: Value = serde_json::from_str(&run(&["config-schema"])).expect("a JSON Schema");
    assert!(schema["properties"]["mcpServers"].is_object());
    run(&["gc"]);
    assert!(run(&["--version"]).contains(env!("CARGO_PKG_VERSION")));
}

#[test]
fn the_example_config_is_valid_and_small_enough_for_small_models() {
    let path = at_the_root("mcp-servers.json.example");
    let text = std::fs::read_to_string(path).expect("the example");
    let example: Value = serde_json::from_str(&text).expect("strict JSON");
    for (name, server) in example["mcpServers"].as_object().expect("servers") {
        let tools = server["enabledTools"]
            .as_array()
            .expect("a list of tools")
            .len();
        assert!((1..=15).contains(&tools), "{name} has {tools} tools");
        let pinned = server["args"].to_string().contains("==");
        assert!(pinned, "{name} pins its version");
    }
}
