//! Processes forked from one that has imported their modules: each behaves like one that was
//! started separately, whatever the modules do.

use std::{collections::HashSet, fs, path::Path};

use crate::support::{
    PROMPT, TestBridge, alive, eventually, fixture, kill_process, servers, until, vars, with,
};
use base64::Engine as _;
use serde_json::{Value, json};

/// The interpreter; `MCPO_TEST_PYTHON` sets the full path of another one.
fn python() -> String {
    std::env::var("MCPO_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned())
}

/// The server that imports these modules at its start.
fn server(modules: &str) -> Value {
    json!({
        "command": python(),
        "args": [fixture("fork_server.py"), "--work", "{MCPO_WORKDIR}"],
        "env": {"MODULES": modules, "OWN": "{MCPO_JOB_ID}"},
        "mode": "stateless",
        "launch": "fork",
    })
}

fn start(modules: &str) -> TestBridge {
    TestBridge::start(servers([("fork", server(modules))]))
}

fn look(bridge: &TestBridge) -> Value {
    told(&bridge.client().call("fork", "look", json!({})).ok())
}

fn told(answer: &Value) -> Value {
    let hidden = answer.as_str().or_else(|| answer["result"].as_str());
    let hidden = hidden.expect("a text");
    let text = base64::engine::general_purpose::STANDARD.decode(hidden);
    serde_json::from_slice(&text.expect("base64")).expect("JSON")
}

fn is_forked(found: &Value) -> bool {
    found["parents"][0] == "__adopt"
}

/// The report of a forked process, as soon as there is a parent to fork from.
#[track_caller]
fn forked(bridge: &TestBridge) -> Value {
    let found = until(PROMPT, || Some(look(bridge)).filter(is_forked));
    found.unwrap_or_else(|| panic!("nothing is forked: {}", bridge.log()))
}

/// Two processes forked from the same parent, one after the other.
#[track_caller]
fn two(modules: &str) -> (TestBridge, Value, Value) {
    let bridge = start(modules);
    let first = forked(&bridge);
    let second = forked(&bridge);
    assert_ne!(first["pid"], second["pid"]);
    assert_eq!(first["parents"][1], second["parents"][1]);
    (bridge, first, second)
}

/// The report of a process that was started separately, for comparison.
fn started(modules: &str) -> Value {
    let config = with(server(modules), json!({"launch": "exec"}));
    let bridge = TestBridge::start(servers([("fork", config)]));
    let found = look(&bridge);
    assert_eq!(found["parents"][0], "__supervise");
    found
}

#[track_caller]
fn assert_different(first: &Value, second: &Value) {
    match (first, second) {
        (Value::Array(first), Value::Array(second)) => {
            assert_eq!(first.len(), second.len());
            std::iter::zip(first, second).for_each(|(first, second)| assert_ne!(first, second));
        }
        _ => assert_ne!(first, second),
    }
}

/// The report of `check` about the processes.
fn checked(modules: &str) -> Value {
    let bridge = TestBridge::builder(servers([("fork", server(modules))])).prepare();
    let output = bridge.command(&["check", "--json"]);
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    report["servers"][0]["processes"].clone()
}

/// Asserts that each process imports a module itself, for this reason.
#[track_caller]
fn assert_left_out(report: &Value, module: &str, why: &str) {
    assert_eq!(report["how"], "forked", "{report}");
    let left: Vec<&str> = report["left_out"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(Value::as_str)
        .collect();
    let expected = format!("fork_modules.{module} ({why}");
    assert!(
        left.iter().any(|line| line.starts_with(&expected)),
        "{left:?}"
    );
}

#[test]
fn a_forked_process_is_as_one_that_was_started() {
    let (_bridge, first, second) = two("big");
    let own = started("big");
    for key in ["core", "oom", "signals", "open", "modules"] {
        assert_eq!(first[key], own[key], "{key}");
    }
    assert_eq!(first["main"], own["main"]);
    assert_eq!(first["arguments"][0], own["arguments"][0]);
    assert_eq!(first["parents"][2], "__nursery");
    for found in [&first, &second] {
        assert_eq!(found["arguments"][2], found["cwd"]);
        assert_eq!(found["environment"]["MCPO_WORKDIR"], found["cwd"]);
        assert_eq!(
            found["environment"]["OWN"],
            found["environment"]["MCPO_JOB_ID"]
        );
        assert_eq!(found["c_environment"], found["environment"]["MCPO_JOB_ID"]);
        assert_eq!(found["group"], found["pid"]);
        let work = Path::new(found["cwd"].as_str().expect("a path"));
        let job = work.parent().expect("a folder");
        assert_eq!(
            found["environment"]["HOME"],
            job.join("home").display().to_string()
        );
        let temporary = found["temporary"].as_str().expect("a path");
        let short = found["environment"]["TMPDIR"].as_str().expect("a path");
        assert!(
            short.len() <= 24 && temporary.starts_with(short),
            "{short} {temporary}"
        );
        assert_eq!(found["calls"], 1, "nothing is left of another call");
        for number in ["0", "1", "2"] {
            let pipe = found["descriptors"][number].as_str().expect("a name");
            assert!(pipe.starts_with("pipe:"), "{pipe}");
        }
    }
    assert_different(&first["random"], &second["random"]);
    assert_different(&first["authkey"], &second["authkey"]);
    assert_different(&first["cwd"], &second["cwd"]);
    let names = |found: &Value| {
        let names = found["environment"].as_object().expect("an object").keys();
        names.cloned().collect::<HashSet<_>>()
    };
    assert_eq!(names(&first), names(&own));
}

#[test]
fn a_folder_kept_by_a_module_is_the_processs_own() {
    let (_bridge, first, second) = two("uses_cwd,cwd");
    for found in [first, second] {
        let cwd = found["cwd"].as_str().expect("a path");
        assert_eq!(found["modules"]["uses_cwd"], cwd);
        let kept = &found["modules"]["cwd"];
        assert_eq!(kept["here"], cwd);
        assert_eq!(kept["deep"], format!("{cwd}/allowed"));
        assert_eq!(kept["class"], format!("{cwd}/x"));
        assert_eq!(kept["default"], cwd);
    }
    let report = checked("uses_cwd,cwd");
    assert_left_out(&report, "cwd", "it keeps the working folder");
    assert_left_out(&report, "uses_cwd", "it ");
}

#[test]
fn the_environment_that_a_module_read_is_the_processs_own() {
    let (_bridge, first, second) = two("environment");
    for found in [&first, &second] {
        let kept = &found["modules"]["environment"];
        assert_eq!(kept["work"], found["cwd"]);
        assert_eq!(kept["own"], found["environment"]["MCPO_JOB_ID"]);
        assert_eq!(kept["set"], "yes");
        assert_eq!(found["environment"]["SET_AT_IMPORT"], "yes");
    }
    assert_left_out(
        &checked("environment"),
        "environment",
        "it keeps the working folder",
    );
}

#[test]
fn secrets_drawn_at_import_are_the_processs_own() {
    let (_bridge, first, second) = two("secret");
    assert_different(&first["modules"]["secret"], &second["modules"]["secret"]);
    assert_left_out(&checked("secret"), "secret", "it draws random numbers");
}

#[test]
fn a_thread_started_at_import_runs_in_each_process() {
    let (_bridge, first, second) = two("thread");
    for found in [first, second] {
        assert_eq!(
            found["modules"]["thread"],
            json!({"threads": 2, "beats": true})
        );
    }
    assert_left_out(&checked("thread"), "thread", "it starts a thread");
}

#[test]
fn files_opened_at_import_are_the_processs_own() {
    let (_bridge, first, second) = two("files");
    for found in [&first, &second] {
        assert_eq!(found["modules"]["files"]["position"], 1);
    }
    assert_ne!(
        first["modules"]["files"]["inode"],
        second["modules"]["files"]["inode"]
    );
    assert_left_out(&checked("files"), "files", "it opens a file or a socket");
}

#[test]
fn a_process_started_at_import_belongs_to_each_process() {
    let (bridge, first, second) = two("process");
    for found in [first, second] {
        let kept = &found["modules"]["process"];
        assert_eq!(kept["number"], found["pid"]);
        assert_eq!(kept["below"], Value::Null, "it runs, and is its child");
    }
    bridge.finish();
    assert_left_out(&checked("process"), "process", "it starts a process");
}

#[test]
fn what_the_standard_library_remembers_is_the_processs_own() {
    let (_bridge, first, second) = two("temporary");
    for found in [first, second] {
        let (kept, environment) = (&found["modules"]["temporary"], &found["environment"]);
        assert_eq!(kept["folder"], environment["TMPDIR"]);
        let home = environment["HOME"].as_str().expect("a path");
        assert_eq!(kept["userbase"], format!("{home}/.local"));
    }
    assert_eq!(checked("temporary")["left_out"], json!([]));
}

#[test]
fn stdin_and_stdout_are_pipes_before_and_behind_a_fork() {
    let (bridge, first, second) = two("stdin");
    for found in [first, second] {
        assert_eq!(
            found["modules"]["stdin"],
            json!({"pipe": true, "same": true})
        );
    }
    let found = told(&bridge.client().call("fork", "stdin", json!({})).ok());
    assert_eq!(found, json!({"same": true, "seekable": false}));
}

#[test]
fn a_module_that_cannot_be_imported_ahead_is_imported_by_each() {
    let (_bridge, first, second) = two("fails");
    for found in [first, second] {
        assert_eq!(found["modules"]["fails"], found["pid"]);
    }
    assert_left_out(&checked("fails"), "fails", "its import fails");
}

#[test]
fn an_exit_has_its_code_and_runs_what_was_registered() {
    let config = with(server("big"), json!({"mode": "stateful"}));
    let bridge = TestBridge::start(servers([("fork", config)]));
    let look = |chat: &str| {
        told(
            &bridge
                .chat("alice", chat)
                .call("fork", "look", json!({}))
                .ok(),
        )
    };
    let mut chats = 0;
    let found = until(PROMPT, || {
        chats += 1;
        Some(look(&format!("c{chats}"))).filter(is_forked)
    });
    let found = found.expect("it is forked");
    let chat = bridge.chat("alice", &format!("c{chats}"));
    let again = told(&chat.call("fork", "look", json!({})).ok());
    assert_eq!(
        (&again["pid"], &again["calls"]),
        (&found["pid"], &json!(2)),
        "a chat keeps its process"
    );
    let reply = chat.call("fork", "exit", json!({"code": 7}));
    assert!(reply.text().contains("exit code 7"), "{}", reply.text());
    let work = Path::new(found["cwd"].as_str().expect("a path")).to_owned();
    assert_eq!(
        fs::read_to_string(work.join("at-exit")).expect("a file"),
        "it ran"
    );
    let anew = told(&chat.call("fork", "look", json!({})).ok());
    assert!(is_forked(&anew) && anew["pid"] != found["pid"], "{anew}");
    assert_eq!(anew["cwd"], found["cwd"]);
}

#[test]
fn a_shared_server_is_forked_where_the_file_says_so() {
    let config = with(server("big"), json!({"mode": "shared"}));
    let bridge = TestBridge::start(servers([("fork", config)]));
    let mut found = look(&bridge);
    eventually("it is forked", || {
        kill_process(i32::try_from(found["pid"].as_i64().expect("a number")).expect("a pid"));
        let reply = bridge.client().call("fork", "look", json!({}));
        if reply.status == 200 {
            found = told(&reply.json());
        }
        is_forked(&found)
    });
}

/// Waits until a process has ended.
#[track_caller]
fn assert_ends(pid: &Value) {
    let pid = i32::try_from(pid.as_i64().expect("a number")).expect("a pid");
    eventually("it has ended", || !alive(pid));
}

#[test]
fn what_leaves_its_session_ends_with_the_process() {
    let (bridge, ..) = two("big");
    let left = told(&bridge.client().call("fork", "runaway", json!({})).ok());
    assert_ends(&left["pid"]);
}

#[test]
fn nothing_survives_a_bridge_that_is_killed() {
    let (mut bridge, ..) = two("big");
    let chat = bridge.client().begin("fork", "runaway", &json!({}));
    bridge.kill_hard();
    chat.hang_up();
}

#[test]
fn what_a_killed_supervisor_leaves_is_ended() {
    let config = with(server("big"), json!({"mode": "stateful"}));
    let bridge = TestBridge::start(servers([("fork", config)]));
    let mut chats = 0;
    let found = until(PROMPT, || {
        chats += 1;
        let chat = bridge.chat("alice", &format!("c{chats}"));
        Some(told(&chat.call("fork", "look", json!({})).ok())).filter(is_forked)
    });
    let found = found.expect("it is forked");
    let chat = bridge.chat("alice", &format!("c{chats}"));
    let left = told(&chat.call("fork", "runaway", json!({})).ok());
    let stat = fs::read_to_string(format!("/proc/{}/stat", found["pid"])).expect("it runs");
    let parent = stat
        .rsplit_once(") ")
        .expect("a name")
        .1
        .split(' ')
        .nth(1)
        .expect("a parent");
    kill_process(parent.parse().expect("a number"));
    assert_ends(&found["pid"]);
    assert_ends(&left["pid"]);
    eventually("it has another", || {
        chat.call("fork", "look", json!({})).status == 200
    });
}

fn parent_pid(bridge: &TestBridge) -> i32 {
    let all = bridge.children();
    let parent = all.iter().find(|process| {
        process.command.contains("/.bridge/tmp/") && !process.command.contains("__nursery")
    });
    parent.expect("a fork parent").pid
}

#[test]
fn a_chat_outlives_the_fork_parent_and_new_processes_are_started() {
    let config = with(server("big"), json!({"mode": "stateful"}));
    let bridge = TestBridge::start(servers([("fork", config)]));
    let mut chats = 0;
    let found = until(PROMPT, || {
        chats += 1;
        let chat = bridge.chat("alice", &format!("c{chats}"));
        Some(told(&chat.call("fork", "look", json!({})).ok())).filter(is_forked)
    });
    let found = found.expect("it is forked");
    let parent = Path::new("/proc").join(found["pid"].to_string());
    assert!(parent.exists());
    let stat = |pid: &str| fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    let above = |pid: &str| {
        let stat = stat(pid);
        let rest = stat.rsplit_once(") ").expect("a name").1;
        rest.split(' ').nth(1).expect("a parent").to_owned()
    };
    let supervisor = above(&found["pid"].to_string());
    kill_process(above(&supervisor).parse().expect("a number"));
    bridge.wait_for_log("fork parent failed");
    let chat = bridge.chat("alice", &format!("c{chats}"));
    let again = told(&chat.call("fork", "look", json!({})).ok());
    assert_eq!(again["pid"], found["pid"]);
    let other = told(&bridge.chat("bob", "c").call("fork", "look", json!({})).ok());
    assert_eq!(other["parents"][0], "__supervise");
    let health = bridge.client().get("/health").text();
    assert!(health.contains("its fork parent exited"), "{health}");
    // After a while there is another parent.
    let mut bobs = 0;
    let anew = until(PROMPT, || {
        bobs += 1;
        let chat = bridge.chat("bob", &format!("b{bobs}"));
        Some(told(&chat.call("fork", "look", json!({})).ok())).filter(is_forked)
    });
    assert!(anew.is_some());
}

#[test]
fn a_fork_parent_goes_with_its_server() {
    let (bridge, ..) = two("big");
    let parent = parent_pid(&bridge);
    bridge.write_config(&servers([(
        "other",
        with(server(""), json!({"launch": "exec"})),
    )]));
    bridge.signal(rustix::process::Signal::HUP);
    eventually("it has ended", || !alive(parent));
}

#[test]
fn a_module_that_was_changed_is_imported_anew() {
    let folder = tempfile::tempdir().expect("a folder");
    for name in ["fork_server.py", "wire.py"] {
        fs::copy(fixture(name), folder.path().join(name)).expect("a copy");
    }
    let modules = folder.path().join("fork_modules");
    fs::create_dir(&modules).expect("a folder");
    fs::write(modules.join("__init__.py"), "").expect("a file");
    let write = |text: &str| {
        let module = format!("def tell():\n    return {text:?}\n");
        fs::write(modules.join("changing.py"), module).expect("a file");
    };
    write("old");
    let script = folder.path().join("fork_server.py");
    let config = with(server("changing"), json!({"args": [script]}));
    let bridge = TestBridge::start(servers([("fork", config)]));
    assert_eq!(forked(&bridge)["modules"]["changing"], "old");
    write("newer");
    assert_eq!(look(&bridge)["modules"]["changing"], "newer");
    assert_eq!(forked(&bridge)["modules"]["changing"], "newer");
}

#[test]
fn a_server_that_cannot_be_forked_says_why() {
    let relative = with(server(""), json!({"args": ["fork_server.py"]}));
    let bridge = TestBridge::builder(servers([
        ("relative", relative),
        ("shell", json!({"command": "sh", "args": ["-c", format!("exec python3 {}", fixture("echo_server.py"))], "launch": "fork"})),
        ("auto", with(server(""), json!({"launch": "auto"}))),
    ]))
    .prepare();
    let output = bridge.command(&["check", "--json"]);
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let of = |index: usize| report["servers"][index].clone();
    assert!(
        of(1)["processes"]["why"]
            .to_string()
            .contains("not a Python server"),
        "{report}"
    );
    assert!(
        of(2)["processes"]["why"].to_string().contains("not pinned"),
        "{report}"
    );
}

#[test]
fn nothing_is_shared_by_many_calls() {
    many(60);
}

#[test]
#[ignore = "takes a minute"]
fn nothing_is_shared_by_a_thousand_calls() {
    many(1000);
}

/// Concurrent calls, each of which checks for traces of the others.
fn many(count: usize) {
    let bridge = TestBridge::builder(servers([(
        "fork",
        server("secret,cwd,environment,files,temporary"),
    )]))
    .var(vars::MAX_CONCURRENT, 8)
    .start();
    forked(&bridge);
    let found: Vec<Value> = std::thread::scope(|scope| {
        let calls = (0..8).map(|_| {
            let bridge = &bridge;
            scope.spawn(move || (0..count / 8).map(|_| look(bridge)).collect::<Vec<_>>())
        });
        let calls: Vec<_> = calls.collect();
        calls
            .into_iter()
            .flat_map(|call| call.join().expect("no panic"))
            .collect()
    });
    let mut seen = HashSet::new();
    for one in &found {
        assert!(is_forked(one), "{one}");
        assert_eq!(one["calls"], 1);
        let cwd = &one["cwd"];
        assert_eq!(&one["modules"]["cwd"]["here"], cwd);
        assert_eq!(&one["modules"]["environment"]["work"], cwd);
        assert_eq!(&one["environment"]["MCPO_WORKDIR"], cwd);
        assert_eq!(
            one["modules"]["temporary"]["folder"],
            one["environment"]["TMPDIR"]
        );
        assert_eq!(one["modules"]["files"]["position"], 1);
        let random = one["random"].as_array().expect("a list").iter();
        let secret = one["modules"]["secret"].as_array().expect("a list").iter();
        let own = [
            cwd,
            &one["temporary"],
            &one["authkey"],
            &one["modules"]["files"]["inode"],
        ];
        for value in random.chain(secret).chain(own.into_iter().take(3)) {
            assert!(seen.insert(value.to_string()), "twice: {value}");
        }
    }
}

#[test]
fn a_fork_parent_that_stands_still_costs_nobody_a_call() {
    let (bridge, ..) = two("big");
    let parent = rustix::process::Pid::from_raw(parent_pid(&bridge)).expect("a process id");
    rustix::process::kill_process(parent, rustix::process::Signal::STOP).expect("it is stopped");
    let found = look(&bridge);
    assert_eq!(found["parents"][0], "__supervise");
}
