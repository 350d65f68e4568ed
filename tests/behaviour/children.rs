//! Starts and ends of children, and the errors of failed starts.

use std::fs;

use crate::support::{
    LONG, TestBridge, echo, eventually, odd, promptly, rude, servers, vars, with,
};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, setrlimit};
use serde_json::{Value, json};

fn start() -> TestBridge {
    TestBridge::start(servers([("odd", odd("plain"))]))
}

/// Fails if a text contains the path of one of the bridge's workspaces.
#[track_caller]
fn assert_names_no_workspace(text: &str, workspaces: &[std::path::PathBuf]) {
    for path in workspaces {
        let id = path.file_name().expect("a name").to_string_lossy();
        assert!(!text.contains(&*id), "{id} in {text}");
    }
}

#[test]
fn a_refused_start_is_not_quoted_to_everybody() {
    let refuses = with(odd("refuses"), json!({"env": {"SECRET": "s3cr3t"}}));
    let bridge = TestBridge::builder(servers([("odd", refuses)]))
        .var(vars::API_KEY, "key")
        .start();
    let health = || bridge.client().get("/health").text();
    eventually("its start has failed", || {
        health().contains("initialize returned an error")
    });
    for text in [health(), bridge.wait_for_log("is not ready")] {
        assert!(
            !text.contains("s3cr3t") && !text.contains("licence"),
            "{text}"
        );
    }
    let reply = bridge
        .chat("alice", "c1")
        .bearer("key")
        .call("odd", "crash", json!({}));
    assert_eq!(reply.status, 502, "{}", reply.text());
    let said = reply.text();
    assert!(said.contains("licence for s3cr3t in ."), "{said}");
    let jobs = bridge.jobs().to_string_lossy().into_owned();
    assert!(!said.contains(&jobs), "{said}");
}

#[test]
fn last_words_name_no_workspace() {
    let bridge = start();
    let reply = bridge.chat("alice", "c1").call("odd", "crash", json!({}));
    let (said, workspaces) = (reply.expect(502).to_string(), bridge.workspaces());
    assert!(said.contains("Traceback: server.py in job #"), "{said}");
    assert_eq!(workspaces.len(), 1);
    assert_names_no_workspace(&said, &workspaces);
    let metadata = fs::read_to_string(workspaces[0].join("metadata.json")).expect("metadata");
    let metadata: Value = serde_json::from_str(&metadata).expect("JSON");
    assert_names_no_workspace(&metadata["error"].to_string(), &workspaces);
    assert_names_no_workspace(&bridge.finished_log(), &workspaces);
}

#[test]
fn a_log_line_with_a_number_is_no_answer() {
    let answer = start()
        .chat("alice", "c1")
        .call("odd", "log_line", json!({}));
    assert_eq!(answer.ok(), "the answer");
}

#[test]
fn the_places_of_starts_that_nobody_waits_for_come_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let wait = folder.path().join("wait");
    let slow = with(odd("waits"), json!({"env": {"WAIT_FILE": wait}}));
    let bridge = TestBridge::builder(servers([("slow", slow), ("echo", echo())]))
        .var(vars::MAX_STARTS, 2)
        .start();
    bridge
        .chat("alice", "c0")
        .call("slow", "log_line", json!({}))
        .ok();
    fs::write(&wait, "").expect("the file");
    let before = bridge.children().len();
    let calls: Vec<_> = (0..2)
        .map(|n| {
            bridge
                .chat("alice", &format!("s{n}"))
                .begin("slow", "log_line", &json!({}))
        })
        .collect();
    eventually("both are starting", || {
        bridge.children().len() >= before + 4
    });
    calls
        .into_iter()
        .for_each(crate::support::PendingCall::hang_up);
    // Their processes end at once, which releases their permits.
    eventually("nothing is starting", || bridge.children().len() <= before);
    promptly("another start", || {
        bridge.chat("alice", "c1").echo("counter", json!({}))
    });
}

#[test]
fn too_many_starts_are_429() {
    let folder = tempfile::tempdir().expect("a folder");
    let wait = folder.path().join("wait");
    let slow = with(
        odd("waits"),
        json!({"env": {"WAIT_FILE": wait, "BUSY": "1"}}),
    );
    let bridge = TestBridge::builder(servers([("slow", slow), ("echo", echo())]))
        .var(vars::MAX_STARTS, 1)
        .var(vars::START_TIMEOUT, 15)
        .start();
    bridge
        .chat("alice", "c0")
        .call("slow", "log_line", json!({}))
        .ok();
    bridge.chat("alice", "c0").echo("counter", json!({}));
    fs::write(&wait, "").expect("the file");
    let before = bridge.workspaces().len();
    let begin = |chat: &str| {
        let chat = bridge.chat("alice", chat);
        chat.begin("slow", "log_line", &json!({}))
    };
    // The first child starts. The second start is requested when the first is well under way, so that
    // it gets the permit after it, and the calls behind both run into the timeout.
    let starting = || {
        let all = bridge.children().into_iter().map(|one| one.command);
        let of_slow = all.filter(|command| command.contains("odd_server"));
        of_slow
            .filter(|command| !command.contains("__supervise"))
            .count()
    };
    let others = starting();
    let _first = begin("s0");
    eventually("the first starts", || starting() > others);
    let _second = begin("s1");
    eventually("the second waits", || {
        bridge.workspaces().len() >= before + 2
    });
    let reply = bridge
        .chat("alice", "c2")
        .call("echo", "counter", json!({}));
    assert_eq!(reply.status, 429, "{}", reply.text());
    assert!(reply.text().contains("MCPO_MAX_STARTS"), "{}", reply.text());
}

#[test]
fn a_child_that_stops_its_supervisor_ends_with_it() {
    let bridge = TestBridge::builder(servers([("odd", odd("plain"))]))
        .var(vars::KILL_GRACE, 1)
        .start();
    bridge
        .chat("alice", "c1")
        .call("odd", "stop_supervisor", json!({}))
        .ok();
    promptly("the end", || bridge.finish());
}

#[test]
fn a_working_folder_that_is_missing_is_named_as_such() {
    let server = with(echo(), json!({"cwd": "/nowhere/at/all"}));
    let bridge = TestBridge::start(servers([("echo", server)]));
    eventually("it is known", || {
        let health = bridge.client().get("/health").text();
        health.contains("the directory in its cwd does not exist")
    });
    let reply = bridge
        .chat("alice", "c1")
        .call("echo", "counter", json!({}));
    assert!(
        reply
            .text()
            .contains("the directory in its cwd does not exist"),
        "{}",
        reply.text()
    );
}

#[test]
fn processes_that_stand_still_do_not_hold_up_the_end() {
    let bridge = TestBridge::builder(servers([("echo", echo())]))
        .var(vars::KILL_GRACE, 60)
        .start();
    bridge.chat("alice", "c1").echo("counter", json!({}));
    for process in bridge.children() {
        let pid = Pid::from_raw(process.pid).expect("a process id");
        kill_process(pid, Signal::STOP).expect("it can be stopped");
    }
    promptly("the end", || bridge.finish());
}

#[test]
fn a_child_that_closed_its_stdin_is_502_and_replaced() {
    let bridge = TestBridge::start(servers([(
        "odd",
        with(odd("plain"), json!({"timeout": LONG})),
    )]));
    let chat = bridge.chat("alice", "c1");
    chat.call("odd", "close_stdin", json!({})).ok();
    let reply = promptly("the answer", || chat.call("odd", "log_line", json!({})));
    assert_eq!(reply.status, 502, "{}", reply.text());
    chat.call("odd", "log_line", json!({})).ok();
}

#[test]
fn the_bridge_opens_many_files_and_children_as_many_as_before() {
    let hard = getrlimit(Resource::Nofile).maximum;
    let limit = Rlimit {
        current: Some(512),
        maximum: hard,
    };
    setrlimit(Resource::Nofile, limit).expect("a lower limit");
    let answer = start()
        .chat("alice", "c1")
        .call("odd", "open_files", json!({}))
        .ok();
    let answer = answer.as_str().expect("text").to_owned();
    let [child, bridge, most] = answer.split(' ').collect::<Vec<_>>()[..] else {
        panic!("{answer}")
    };
    assert_eq!((child, bridge), ("512", most));
}

#[test]
fn a_server_that_is_still_asked_what_it_offers_leaves_no_folder() {
    let mut bridge = TestBridge::start(servers([("silent", rude("never_answers"))]));
    eventually("it is asked", || {
        bridge.workspaces().len() == 1 && !bridge.children().is_empty()
    });
    bridge.signal(Signal::TERM);
    bridge.wait_for_exit();
    assert!(bridge.workspaces().is_empty());
    assert!(bridge.children().is_empty());
}

#[test]
fn a_runaway_does_not_use_up_the_grace_of_a_child_that_left() {
    let bridge = TestBridge::builder(servers([("rude", rude("forks_runaway"))]))
        .var(vars::KILL_GRACE, LONG)
        .start();
    bridge
        .chat("alice", "c1")
        .call("rude", "poke", json!({}))
        .ok();
    promptly("the end", || bridge.finish());
}
