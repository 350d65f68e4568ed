//! Warm processes, ready before a call needs them: each for one caller, in a folder that becomes the
//! caller's.

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
    thread,
};

use crate::support::{
    Builder, Client, Mcp, TestBridge, alive, echo, eventually, fixture, kill_process, result_of,
    servers, vars, with,
};
use rustix::process::{Pid, Signal, kill_process as send};
use serde_json::{Value, json};

fn pooled(server: Value) -> Builder {
    TestBridge::builder(servers([("echo", server)])).var(vars::POOL_MAX, 4)
}

fn stateless() -> Value {
    with(echo(), json!({"mode": "stateless"}))
}

fn load(bridge: &TestBridge, what: &str) -> u64 {
    let health = bridge.client().get("/health").ok();
    health["load"][what].as_u64().expect("a number")
}

#[track_caller]
fn wait_for_ready(bridge: &TestBridge, count: u64) {
    eventually("so many are ready", || load(bridge, "ready") == count);
}

/// The number of calls that found a warm process, or none.
fn asked(bridge: &TestBridge, outcome: &str) -> usize {
    let metrics = bridge.client().get("/metrics").text();
    let label = format!("outcome=\"{outcome}\"");
    let counts = metrics
        .lines()
        .filter(|line| line.starts_with("mcpo_pool_asked_total{") && line.contains(&label))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<usize>().ok());
    counts.sum()
}

fn metadata(folder: &Path) -> Value {
    let text = fs::read(folder.join("metadata.json")).unwrap_or_default();
    serde_json::from_slice(&text).unwrap_or_default()
}

/// The unclaimed folders.
fn unclaimed(bridge: &TestBridge) -> Vec<PathBuf> {
    let mut folders = bridge.workspaces();
    folders.retain(|folder| metadata(folder)["unclaimed"] == true);
    folders
}

/// Starts the bridge, and waits until the servers' lists are known, because the machine may be busy.
#[track_caller]
fn start(builder: Builder) -> TestBridge {
    let bridge = builder.start();
    eventually("its servers are known", || {
        let health = bridge.client().get("/health").ok();
        let servers = health["servers"].as_object().expect("an object");
        servers.values().all(|server| server["status"] == "ready")
    });
    bridge
}

/// The folder in which a call of the server `echo` runs.
fn folder_of(bridge: &TestBridge, reply: &Value) -> PathBuf {
    let id = reply["MCPO_JOB_ID"].as_str().expect("an id");
    bridge.jobs().join(id)
}

fn pid(value: &Value) -> i32 {
    i32::try_from(value.as_i64().expect("a number")).expect("a pid")
}

/// The server process in a folder, not its supervisor.
fn process_in(bridge: &TestBridge, folder: &Path) -> i32 {
    let mut children = bridge.children();
    children.retain(|process| !process.command.contains("__supervise"));
    let works = |pid: &i32| {
        let cwd = fs::read_link(format!("/proc/{pid}/cwd"));
        cwd.is_ok_and(|cwd| cwd == folder.join("work"))
    };
    let mut found = children.iter().map(|process| process.pid).filter(works);
    found.next().expect("a process works there")
}

/// A bridge with one warm process of `echo`, because of an earlier call.
#[track_caller]
fn one_ready(builder: Builder) -> (TestBridge, PathBuf) {
    let bridge = start(builder);
    bridge.chat("first", "c0").echo("counter", json!({}));
    wait_for_ready(&bridge, 1);
    let folder = unclaimed(&bridge).pop().expect("it has a folder");
    (bridge, folder)
}

#[test]
fn a_new_chat_takes_the_ready_process_and_its_folder() {
    let (bridge, folder) = one_ready(pooled(echo()));
    let ready = process_in(&bridge, &folder);
    let alice = bridge.chat("alice", "c1");
    let found = alice.echo("where", json!({}));
    assert_eq!(pid(&found["pid"]), ready);
    let environment = fs::read(format!("/proc/{ready}/environ")).expect("it lives");
    let environment = String::from_utf8_lossy(&environment);
    let id = folder.file_name().expect("a name").to_string_lossy();
    for (name, value) in [
        ("MCPO_JOB_ID", id.clone()),
        ("HOME", folder.join("home").to_string_lossy()),
        ("MCPO_WORKDIR", folder.join("work").to_string_lossy()),
    ] {
        let own = format!("{name}={value}");
        assert!(environment.split('\0').any(|line| line == own), "{own}");
    }
    let mut lines = environment.split('\0');
    let short = lines.find_map(|line| line.strip_prefix("TMPDIR="));
    let leads = fs::canonicalize(short.expect("a TMPDIR")).expect("a link");
    let tmp = fs::canonicalize(folder.join("tmp")).expect("its own");
    assert_eq!(leads, tmp);
    assert_eq!(alice.echo("counter", json!({})), 1, "nobody used it before");
    let saved = alice.call(
        "echo",
        "write_file",
        json!({"name": "a.txt", "content": "hers"}),
    );
    let link = saved.link("a.txt");
    assert_eq!(bridge.client().download(&link).text(), "hers");
    let now = metadata(&folder);
    assert!(
        now["principal"].is_string() && now["unclaimed"].is_null(),
        "{now}"
    );
    assert_eq!(now["server_names"], json!(["echo"]));
    assert_eq!((asked(&bridge, "hit"), asked(&bridge, "miss")), (1, 1));
    wait_for_ready(&bridge, 1);
    assert_eq!(load(&bridge, "sessions"), 2);
}

#[test]
fn none_is_given_out_twice() {
    let (bridge, _) = one_ready(pooled(echo()).var(vars::MAX_CONCURRENT, 64));
    let visit = |number: usize| {
        let chat = bridge.chat("alice", &format!("c{number}"));
        let name = format!("of-{number}.txt");
        let file = json!({"name": name, "content": number.to_string()});
        chat.call("echo", "write_file", file).ok();
        assert_eq!(chat.echo("list_files", json!({})), json!([name]));
        assert_eq!(chat.echo("counter", json!({})), 1);
        let found = chat.echo("where", json!({}));
        (
            pid(&found["pid"]),
            folder_of(&bridge, &chat.echo("env", json!({}))),
        )
    };
    let found: Vec<_> = thread::scope(|scope| {
        let visits: Vec<_> = (0..50).map(|n| scope.spawn(move || visit(n))).collect();
        visits
            .into_iter()
            .map(|visit| visit.join().expect("a visit"))
            .collect()
    });
    let (pids, folders): (HashSet<_>, HashSet<_>) = found.into_iter().unzip();
    assert_eq!((pids.len(), folders.len()), (50, 50));
    assert!(asked(&bridge, "hit") > 0);
}

#[test]
fn what_a_process_writes_at_its_start_is_its_first_callers() {
    let script = "import os; open('born.txt', 'w').write('x'); import runpy, sys; \
                  sys.path.insert(0, os.path.dirname(sys.argv[1])); \
                  runpy.run_path(sys.argv[1], run_name='__main__')";
    let server = json!({"command": "python3", "args": ["-c", script, fixture("echo_server.py")]});
    let (bridge, folder) = one_ready(pooled(server));
    let chat = bridge.chat("alice", "c1");
    let reply = chat.call("echo", "echo", json!({"text": "hi"}));
    assert!(folder.join("work/born.txt").exists());
    assert_eq!(
        bridge.client().download(&reply.link("born.txt")).text(),
        "x"
    );
    assert_eq!(asked(&bridge, "hit"), 1);
}

#[test]
fn each_call_of_a_stateless_server_takes_another() {
    let bridge = start(pooled(stateless()));
    let mut seen = HashSet::new();
    for number in 0..4 {
        let client = bridge.chat("alice", "c1");
        let found = client.call("echo", "env", json!({})).ok();
        assert!(seen.insert(folder_of(&bridge, &found)), "{found}");
        wait_for_ready(&bridge, 1);
        assert_eq!(asked(&bridge, "hit"), number);
    }
    let reply = bridge.client().call(
        "echo",
        "write_file",
        json!({"name": "a.txt", "content": "one"}),
    );
    assert_eq!(bridge.client().download(&reply.link("a.txt")).text(), "one");
    assert_eq!(asked(&bridge, "hit"), 4);
    let ready = unclaimed(&bridge);
    assert_eq!(bridge.workspaces().len() - ready.len(), 5);
}

#[test]
fn a_call_that_brings_files_finds_them_at_its_start() {
    let bridge = start(pooled(stateless()));
    bridge.client().call("echo", "counter", json!({})).ok();
    wait_for_ready(&bridge, 1);
    let parts: [(&str, Option<&str>, &[u8]); 1] = [("name", Some("in.txt"), b"came")];
    let reply = bridge.client().post_parts("/echo/read_file", &parts);
    assert!(reply.text().contains("came"), "{}", reply.text());
    assert_eq!(asked(&bridge, "hit"), 0);
}

#[test]
fn a_chats_other_servers_and_its_return_work_in_its_own_folder() {
    let config = servers([
        ("echo", echo()),
        ("second", with(echo(), json!({"pool": 1}))),
    ]);
    let mut bridge = start(TestBridge::builder(config).var(vars::POOL_MAX, 4));
    for server in ["echo", "second"] {
        bridge
            .chat("first", server)
            .call(server, "counter", json!({}))
            .ok();
    }
    wait_for_ready(&bridge, 2);
    let alice = bridge.chat("alice", "c1");
    let works_in = |server: &str| folder_of(&bridge, &alice.call(server, "env", json!({})).ok());
    let own = works_in("echo");
    let hits = asked(&bridge, "hit");
    assert_eq!(works_in("second"), own);
    assert_eq!(asked(&bridge, "hit"), hits, "it is started in place");
    bridge.restart();
    bridge.chat("first", "c9").echo("counter", json!({}));
    wait_for_ready(&bridge, 1);
    let again = bridge.chat("alice", "c1").echo("env", json!({}));
    let again = result_of(&again);
    assert_eq!(folder_of(&bridge, again), own);
    assert_eq!(asked(&bridge, "hit"), 0);
}

#[test]
fn who_is_spoken_to_otherwise_gets_another() {
    let (bridge, folder) = one_ready(pooled(echo()));
    let mcp = Mcp::legacy(
        bridge.chat("alice", "c1"),
        "echo",
        &json!({"elicitation": {}}),
    );
    let found: Value = serde_json::from_str(&mcp.text("env", json!({}))).expect("JSON");
    assert_ne!(folder_of(&bridge, &found), folder);
    assert_eq!(asked(&bridge, "hit"), 0);
    // The next caller with the same capabilities finds one.
    wait_for_ready(&bridge, 2);
    let mcp = Mcp::legacy(
        bridge.chat("bob", "c1"),
        "echo",
        &json!({"elicitation": {}}),
    );
    mcp.text("counter", json!({}));
    assert_eq!(asked(&bridge, "hit"), 1);
}

#[test]
fn servers_that_need_their_caller_from_the_start_are_not_kept_ready() {
    let named = with(echo(), json!({"env": {"WHO": "{MCPO_USER_ID}"}}));
    let config = servers([
        ("named", named),
        ("never", with(echo(), json!({"pool": 0}))),
        ("shared", with(echo(), json!({"mode": "shared"}))),
        ("echo", echo()),
    ]);
    let bridge = start(TestBridge::builder(config).var(vars::POOL_MAX, 4));
    for server in ["named", "never", "shared", "echo"] {
        bridge
            .chat("alice", server)
            .call(server, "counter", json!({}))
            .ok();
    }
    wait_for_ready(&bridge, 1);
    assert_eq!(asked(&bridge, "miss"), 1, "the others do not even ask");
    let env = bridge
        .chat("bob", "c1")
        .call("named", "env", json!({}))
        .ok();
    assert_eq!(env["WHO"], "bob");
}

#[test]
fn one_that_asked_its_caller_something_is_not_given_out() {
    let server = with(echo(), json!({"env": {"ASKS": "1"}}));
    let (bridge, folder) = one_ready(pooled(server));
    let found = bridge.chat("alice", "c1").echo("env", json!({}));
    assert_ne!(folder_of(&bridge, &found), folder);
    assert_eq!(asked(&bridge, "hit"), 0);
    eventually("it has ended", || !folder.exists());
}

#[test]
fn what_dies_or_hangs_unused_is_not_given_out() {
    let (bridge, folder) = one_ready(pooled(echo()));
    kill_process(process_in(&bridge, &folder));
    let found = bridge.chat("alice", "c1").echo("env", json!({}));
    assert_ne!(folder_of(&bridge, &found), folder);
    eventually("its folder is gone", || !folder.exists());
    wait_for_ready(&bridge, 1);
    let folder = unclaimed(&bridge).pop().expect("another");
    let hangs = Pid::from_raw(process_in(&bridge, &folder)).expect("a pid");
    send(hangs, Signal::STOP).expect("it can be stopped");
    let found = bridge.chat("bob", "c1").echo("env", json!({}));
    assert_ne!(folder_of(&bridge, &found), folder);
    eventually("its folder is gone", || !folder.exists());
    assert_eq!(asked(&bridge, "hit"), 0);
}

#[test]
fn a_changed_server_has_new_ones() {
    let (bridge, folder) = one_ready(pooled(echo()));
    let changed = with(echo(), json!({"env": {"SAYS": "new"}}));
    bridge.write_config(&servers([("echo", changed)]));
    eventually("the old one is gone", || !folder.exists());
    let env = bridge.chat("alice", "c1").echo("env", json!({}));
    assert_eq!(env["SAYS"], "new");
    wait_for_ready(&bridge, 1);
    let env = bridge.chat("alice", "c2").echo("env", json!({}));
    assert_eq!(env["SAYS"], "new");
    assert_eq!(asked(&bridge, "hit"), 1);
}

#[test]
fn a_changed_script_has_new_ones() {
    let own = tempfile::tempdir().expect("a folder");
    for file in ["echo_server.py", "wire.py"] {
        fs::copy(fixture(file), own.path().join(file)).expect("a copy");
    }
    let script = own.path().join("echo_server.py");
    let server = json!({"command": "python3", "args": [script]});
    let (bridge, _) = one_ready(pooled(server));
    let text = fs::read_to_string(&script).expect("the script");
    let text = text.replace("lambda a: text(a[\"text\"])", "lambda a: text(\"changed\")");
    fs::write(&script, text).expect("it is written");
    let said = bridge
        .chat("alice", "c1")
        .echo("echo", json!({"text": "hi"}));
    assert_eq!(said, "changed");
    wait_for_ready(&bridge, 1);
    let module = own.path().join("wire.py");
    let text = fs::read_to_string(&module).expect("a module");
    let text = text.replace("\"text\": value", "\"text\": \"beside\"");
    fs::write(&module, text).expect("it is written");
    let said = bridge.chat("bob", "c1").echo("echo", json!({"text": "hi"}));
    assert_eq!(said, "beside");
}

#[test]
fn none_is_kept_once_nobody_comes() {
    let (bridge, folder) = one_ready(pooled(echo()).var(vars::POOL_IDLE, 15));
    let ready = process_in(&bridge, &folder);
    wait_for_ready(&bridge, 0);
    eventually("nothing of it is left", || {
        !alive(ready) && !folder.exists()
    });
    assert!(unclaimed(&bridge).is_empty());
    let found = bridge.chat("alice", "c1").echo("where", json!({}));
    assert_eq!(asked(&bridge, "hit"), 0);
    assert!(alive(pid(&found["pid"])));
}

#[test]
fn none_is_kept_where_memory_is_scarce() {
    let bridge = start(pooled(echo()).var(vars::POOL_MIN_FREE_MEMORY, "1000TiB"));
    // A pool with enough memory shows when this one would have been filled.
    let (other, _) = one_ready(pooled(echo()));
    for chat in ["c1", "c2", "c3"] {
        for bridge in [&bridge, &other] {
            bridge.chat("alice", chat).echo("counter", json!({}));
        }
        wait_for_ready(&other, 1);
    }
    assert_eq!(asked(&other, "hit"), 3);
    assert_eq!((asked(&bridge, "hit"), asked(&bridge, "miss")), (0, 3));
    assert!(unclaimed(&bridge).is_empty());
}

#[test]
fn a_ready_process_makes_room_before_anybodys_session_does() {
    let config = servers([
        ("echo", echo()),
        ("second", with(echo(), json!({"pool": 0}))),
    ]);
    let builder = TestBridge::builder(config)
        .var(vars::POOL_MAX, 4)
        // The pool never takes the last permit, whichever call is first.
        .var(vars::MAX_TOTAL_PROCESSES, 3);
    let (bridge, folder) = one_ready(builder);
    let alice = bridge.chat("first", "c0");
    let before = alice.echo("where", json!({}));
    for user in ["bob", "carol"] {
        let chat = bridge.chat(user, "c1");
        chat.call("second", "counter", json!({})).ok();
    }
    eventually("its folder is gone", || !folder.exists());
    assert_eq!(load(&bridge, "sessions"), 3);
    assert_eq!(alice.echo("where", json!({})), before);
    assert_eq!(load(&bridge, "ready"), 0);
}

#[test]
fn the_last_place_is_left_to_calls() {
    let config = servers([("echo", echo()), ("second", echo())]);
    let builder = TestBridge::builder(config).var(vars::POOL_MAX, 4);
    let bridge = start(builder.var(vars::MAX_TOTAL_PROCESSES, 1));
    let chat = bridge.chat("alice", "c1");
    for server in ["echo", "second", "echo", "second"] {
        chat.call(server, "counter", json!({})).ok();
    }
    assert_eq!(asked(&bridge, "hit"), 0);
    assert!(unclaimed(&bridge).is_empty());
}

#[test]
fn one_that_is_starting_makes_room_too() {
    let slow = with(echo(), json!({"env": {"START_DELAY": "4"}}));
    let config = servers([("slow", slow), ("second", with(echo(), json!({"pool": 0})))]);
    let builder = TestBridge::builder(config).var(vars::POOL_MAX, 1);
    let bridge = start(builder.var(vars::MAX_TOTAL_PROCESSES, 3));
    bridge
        .chat("first", "c0")
        .call("slow", "counter", json!({}))
        .ok();
    eventually("another is starting", || unclaimed(&bridge).len() == 1);
    for user in ["alice", "bob"] {
        bridge
            .chat(user, "c1")
            .call("second", "counter", json!({}))
            .ok();
    }
    assert_eq!((load(&bridge, "sessions"), load(&bridge, "ready")), (3, 0));
    let first = bridge
        .chat("first", "c0")
        .call("slow", "counter", json!({}));
    assert_eq!(first.ok(), 2, "its session was left alone");
}

#[test]
fn all_servers_together_have_no_more_than_the_limit() {
    let config = servers([("one", echo()), ("two", echo()), ("three", stateless())]);
    let bridge = start(TestBridge::builder(config).var(vars::POOL_MAX, 2));
    for round in 0..3 {
        for server in ["one", "two", "three"] {
            let client = bridge.chat("alice", &format!("{server}-{round}"));
            client.call(server, "counter", json!({})).ok();
            assert!(load(&bridge, "ready") <= 2);
        }
    }
    wait_for_ready(&bridge, 2);
    assert!(unclaimed(&bridge).len() <= 2);
}

#[test]
fn a_killed_bridge_leaves_no_folder_of_nobody() {
    let (mut bridge, folder) = one_ready(pooled(echo()));
    let alice = bridge.chat("alice", "c1");
    alice
        .call(
            "echo",
            "write_file",
            json!({"name": "a", "content": "hers"}),
        )
        .ok();
    wait_for_ready(&bridge, 1);
    eventually("one folder is nobody's", || unclaimed(&bridge).len() == 1);
    let left = unclaimed(&bridge);
    bridge.kill_hard();
    assert!(left[0].exists());
    bridge.restart();
    eventually("it is collected", || !left[0].exists());
    assert!(folder.exists(), "what was taken stays");
    let text = bridge
        .chat("alice", "c1")
        .echo("read_file", json!({"name": "a"}));
    assert!(text.to_string().contains("hers"), "{text}");
}

#[test]
fn nobody_reaches_a_folder_of_nobody() {
    let builder = pooled(echo()).var(vars::FILES_SERVER, true);
    let (bridge, folder) = one_ready(builder);
    fs::write(folder.join("work/secret.txt"), "x").expect("a file");
    let id = folder
        .file_name()
        .expect("a name")
        .to_string_lossy()
        .into_owned();
    for arguments in [vec!["jobs", "list"], vec!["sessions", "list"]] {
        let told = bridge.command(&arguments);
        let told = String::from_utf8_lossy(&told.stdout).into_owned();
        assert!(!told.contains(&id[..8]), "{arguments:?}: {told}");
    }
    assert!(!bridge.command(&["jobs", "show", &id]).status.success());
    let who = ["first", "alice", "", &id];
    let clients: Vec<Client> = who.iter().map(|user| bridge.chat(user, &id)).collect();
    for client in clients.iter().chain([&bridge.client().in_session(&id)]) {
        let told = client.call("files", "list_files", json!({})).text();
        assert!(!told.contains("secret"), "{told}");
        assert_eq!(client.get(&format!("/files/{id}/secret.txt")).status, 404);
    }
    let collected = bridge.command(&["gc", "--user", "first"]);
    assert!(collected.status.success(), "{collected:?}");
    assert!(folder.join("work/secret.txt").exists(), "it is not his");
    assert_eq!(load(&bridge, "ready"), 1);
}

#[test]
fn a_ready_process_tells_news_and_progress_as_any_other() {
    let (bridge, _) = one_ready(pooled(echo()));
    let mcp = || Mcp::legacy(bridge.chat("alice", "c1"), "echo", &json!({}));
    // With the same profile.
    Mcp::legacy(bridge.chat("first", "c1"), "echo", &json!({})).text("counter", json!({}));
    eventually("one more is ready", || load(&bridge, "ready") >= 1);
    let mcp = mcp();
    let hits = asked(&bridge, "hit");
    let stream = mcp.request(
        "tools/call",
        json!({"name": "slow_progress", "arguments": {"steps": 3}, "_meta": {"progressToken": "p"}}),
    );
    let told = stream.rest().join("\n");
    assert_eq!(told.matches("notifications/progress").count(), 3, "{told}");
    assert_eq!(told.matches("notifications/message").count(), 3, "{told}");
    assert_eq!(asked(&bridge, "hit"), hits + 1);
    let mut news = mcp.listen();
    mcp.text("change_tools", json!({}));
    let said = news.message();
    assert_eq!(said["method"], "notifications/tools/list_changed");
}

#[test]
fn servers_of_the_newest_revision_are_kept_ready_too() {
    let modern = json!({"command": "python3", "args": [fixture("modern_server.py")]});
    for mode in ["stateful", "stateless"] {
        let server = with(modern.clone(), json!({"mode": mode}));
        let config = servers([("modern", server)]);
        let bridge = start(TestBridge::builder(config).var(vars::POOL_MAX, 4));
        let count = |chat: &str| {
            let mcp = Mcp::modern(bridge.chat("alice", chat), "modern", json!({}));
            mcp.text("counter", json!({}))
        };
        assert_eq!(count("c1"), "1");
        wait_for_ready(&bridge, 1);
        assert_eq!(count("c2"), "1");
        wait_for_ready(&bridge, 1);
        let told = bridge
            .chat("alice", "c3")
            .call("modern", "counter", json!({}));
        assert_eq!(told.ok(), 1);
        assert_eq!(asked(&bridge, "hit"), 2, "{mode}");
    }
}

#[test]
fn a_bridge_that_ends_takes_over_no_ones_ready_process() {
    let jobs = tempfile::tempdir().expect("a folder");
    let another = || {
        let builder = pooled(echo()).jobs(jobs.path().to_owned());
        start(builder.var(vars::LEASE_TTL, 2))
    };
    let (mut one, two) = (another(), another());
    one.chat("alice", "c1").echo("counter", json!({}));
    wait_for_ready(&one, 1);
    let folder = unclaimed(&one).pop().expect("it has a folder");
    let collected = two.command(&["gc"]);
    assert!(collected.status.success(), "{collected:?}");
    assert!(folder.exists(), "its bridge lives");
    one.kill_hard();
    eventually("it goes with its bridge", || {
        two.command(&["gc"]);
        !folder.exists()
    });
}
