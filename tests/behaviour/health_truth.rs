//! `/health` and the log after faults of the machine, the operator or a server.

use std::{
    fs,
    net::TcpListener,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::{Value, json};

use crate::support::{
    Mcp, PROMPT, TestBridge, echo, eventually, fixture, servers, until, vars, with,
};

fn start() -> TestBridge {
    TestBridge::start(servers([("echo", echo())]))
}

fn health(bridge: &TestBridge) -> Value {
    bridge.client().get("/health").json()
}

#[track_caller]
fn until_health(bridge: &TestBridge, what: &str, good: impl Fn(&Value) -> bool) {
    let seen = until(PROMPT, || good(&health(bridge)).then_some(()));
    assert!(seen.is_some(), "{what}: {}", health(bridge));
}

fn is_ok(health: &Value) -> bool {
    health["status"] == "ok"
}

/// The lines of the log that have this message, read as JSON.
fn lines(bridge: &TestBridge, message: &str) -> Vec<Value> {
    let log = bridge.log();
    let lines = log
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok());
    lines
        .filter(|line: &Value| line["message"] == message)
        .collect()
}

fn run(program: &str, path: &Path) {
    let status = Command::new(program).arg(path).status();
    assert!(status.expect("it runs").success());
}

#[test]
fn a_jobs_folder_that_was_replaced_makes_the_bridge_down_and_unready() {
    let bridge = start();
    let jobs = bridge.jobs();
    let aside = jobs.with_file_name("aside");
    fs::rename(&jobs, &aside).expect("it is moved away");
    // This is no folder, because a heartbeat would make a folder ready again.
    fs::write(&jobs, "").expect("a file is there");
    until_health(&bridge, "it is down", |health| health["status"] == "down");
    let reply = bridge.client().get("/health");
    assert_eq!(reply.status, 503);
    assert!(reply.text().contains("replaced"), "{}", reply.text());
    assert_eq!(bridge.client().get("/health/ready").status, 503);
    assert_eq!(bridge.client().get("/health/live").status, 200);
    let call = bridge
        .chat("alice", "c1")
        .call("echo", "counter", json!({}));
    assert!(call.status >= 500, "and so it is: {}", call.text());
    fs::remove_file(&jobs).expect("the file goes");
    fs::rename(&aside, &jobs).expect("it is moved back");
    until_health(&bridge, "it recovers", is_ok);
    assert_eq!(bridge.client().get("/health/ready").status, 200);
}

/// The name of the fault, and a function that causes it.
type Break<'a> = (&'a str, &'a dyn Fn());

#[test]
fn a_server_file_that_is_no_file_or_gone_is_told_of_and_ends_no_reload() {
    let bridge = start();
    let file = bridge.config_file();
    let place = |new: PathBuf| fs::rename(new, &file).expect("it is replaced");
    let new = || file.with_extension("odd");
    let fifo = || {
        run("mkfifo", &new());
        place(new());
    };
    let endless = || {
        symlink("/dev/zero", new()).expect("a link");
        place(new());
    };
    let huge = || {
        let blanks = fs::File::create(new()).expect("a file");
        blanks.set_len(1 << 40).expect("a size");
        place(new());
    };
    let gone = || fs::remove_file(&file).expect("it is removed");
    let broken: [Break<'_>; 4] = [
        ("not a regular file", &fifo),
        ("not a regular file", &endless),
        ("larger than", &huge),
        ("No such file", &gone),
    ];
    for (index, (why, spoil)) in broken.into_iter().enumerate() {
        spoil();
        until_health(&bridge, why, |health| {
            health["status"] == "degraded" && health["reasons"].to_string().contains(why)
        });
        eventually("the log says so", || bridge.log().contains(why));
        let name = format!("new-{index}");
        let config = servers([("echo", echo()), (&name, echo())]);
        bridge.write_config(&config);
        until_health(&bridge, "the next good file is taken", |health| {
            is_ok(health) && health["servers"][&name]["status"] == "ready"
        });
    }
}

#[test]
fn a_shared_server_that_does_not_speak_the_newest_revision_is_well() {
    let shared = with(echo(), json!({"mode": "shared"}));
    let bridge = TestBridge::start(servers([("shared", shared)]));
    // Its process gets a request of that revision, and rejects it.
    let mcp = Mcp::modern(bridge.client(), "shared", json!({}));
    mcp.call("counter", json!({}));
    let health = bridge.client().get("/health").json();
    assert!(is_ok(&health), "{health}");
}

#[test]
fn a_shared_server_that_cannot_take_the_newest_revision_is_well() {
    // After a request of that revision one process does not respond, and one exits.
    const SERVER: &str = r#"
import json, sys
for line in sys.stdin:
    message = json.loads(line)
    if message["method"] == "server/discover":
        open(sys.argv[2], "w").close()
        if sys.argv[1] == "ends":
            sys.exit(1)
        continue
    answers = {
        "initialize": {"protocolVersion": "2025-06-18", "capabilities": {"tools": {}},
                       "serverInfo": {"name": "old", "version": "1"}},
        "tools/list": {"tools": [{"name": "t", "inputSchema": {"type": "object"}}]},
    }
    if "id" in message:
        answer = {"jsonrpc": "2.0", "id": message["id"], "result": answers.get(message["method"], {})}
        print(json.dumps(answer), flush=True)
"#;
    let folder = tempfile::tempdir().expect("a folder");
    let server = |how: &str| {
        let asked = folder.path().join(how).display().to_string();
        json!({"command": "python3", "args": ["-c", SERVER, how, asked], "mode": "shared"})
    };
    let config = servers([("silent", server("silent")), ("ends", server("ends"))]);
    // The start timeout ends before the timeout of that request.
    let bridge = TestBridge::builder(config)
        .var("MCPO_START_TIMEOUT", 5)
        .start();
    let tried = |server: &str| {
        let failed = format!(r#"mcpo_child_starts_total{{server="{server}",outcome="failed"}}"#);
        let metrics = bridge.client().get("/metrics").text();
        folder.path().join(server).exists() && metrics.contains(&failed)
    };
    let both = until(PROMPT, || (tried("silent") && tried("ends")).then_some(()));
    assert!(both.is_some(), "both were asked for the newest revision");
    until_health(&bridge, "both are well", is_ok);
}

#[test]
fn a_server_whose_processes_no_longer_start_is_told_of() {
    let folder = tempfile::tempdir().expect("a folder");
    let script = folder.path().join("server.py");
    fs::copy(fixture("echo_server.py"), &script).expect("a copy");
    fs::copy(fixture("wire.py"), folder.path().join("wire.py")).expect("a copy");
    let server = json!({"command": "python3", "args": [script.display().to_string()]});
    let bridge = TestBridge::start(servers([("moved", server), ("echo", echo())]));
    until_health(&bridge, "it was learnt", |health| {
        health["servers"]["moved"]["status"] == "ready"
    });
    let away = folder.path().join("away");
    fs::rename(&script, &away).expect("it is moved away");
    let call = |chat: &str| {
        bridge
            .chat("alice", chat)
            .call("moved", "counter", json!({}))
    };
    assert_eq!(call("c1").status, 502);
    let told = health(&bridge);
    assert_eq!(told["status"], "degraded", "{told}");
    assert!(
        told["reasons"]
            .to_string()
            .contains("the last start failed"),
        "{told}"
    );
    fs::rename(&away, &script).expect("it is moved back");
    assert_ne!(call("c2").status, 502);
    until_health(&bridge, "it starts again", is_ok);
}

#[test]
fn a_port_that_is_about_to_be_free_is_waited_for() {
    let held = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = held.local_addr().expect("an address").port();
    let mut bridge = TestBridge::builder(servers([("echo", echo())]))
        .var("MCPO_PORT", port)
        .prepare();
    let config = bridge.config_file();
    let log = config
        .ancestors()
        .nth(2)
        .expect("its folder")
        .join("bridge.log");
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let told = until(PROMPT, || {
                let log = fs::read_to_string(&log).unwrap_or_default();
                log.contains("port in use").then_some(())
            });
            drop(held);
            assert!(told.is_some(), "it was tried");
        });
        bridge.restart();
    });
    assert_eq!(bridge.address().port(), port);
}

#[test]
fn a_call_that_fails_is_a_warning_and_a_tools_own_error_is_none() {
    let bridge = TestBridge::builder(servers([("echo", echo())]))
        .var(vars::TIMEOUT, 10)
        .start();
    let alice = bridge
        .chat("alice", "c1")
        .header("X-Request-Id", "the-request");
    assert_eq!(alice.call("echo", "die", json!({})).status, 502);
    alice.call("echo", "fail", json!({}));
    eventually("the failure is in the log", || {
        !lines(&bridge, "call failed").is_empty()
    });
    let found = lines(&bridge, "call failed");
    let [line] = &found[..] else {
        panic!("one line: {found:#?}");
    };
    for (field, value) in [
        ("level", "WARNING"),
        ("server", "echo"),
        ("tool", "die"),
        ("outcome", "died"),
        ("request_id", "the-request"),
    ] {
        assert_eq!(line[field], value, "{field}: {line}");
    }
    assert!(
        line["exit"]
            .as_str()
            .is_some_and(|exit| exit.starts_with("exit ")),
        "{line}"
    );
    let slow = alice.call("echo", "sleep", json!({"seconds": 600}));
    assert_eq!(slow.status, 504);
    eventually("so is the next", || {
        lines(&bridge, "call failed")
            .iter()
            .any(|line| line["outcome"] == "timeout")
    });
}

/// The targets of a process's descriptors, by number.
fn descriptors(pid: i64) -> Vec<(String, String)> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).expect("it lives");
    let mut found: Vec<_> = entries
        .map(|entry| {
            let entry = entry.expect("an entry");
            let target = fs::read_link(entry.path()).unwrap_or_default();
            let name = entry.file_name().to_string_lossy().into_owned();
            (name, target.display().to_string())
        })
        .collect();
    found.sort();
    found
}

#[test]
fn a_child_has_its_three_descriptors_and_none_of_ours() {
    let bridge = start();
    // Connections, another child, and a download are open at the same time.
    let other = bridge.chat("bob", "c1");
    other.echo("counter", json!({}));
    let alice = bridge.chat("alice", "c1");
    let pid = alice.echo("where", json!({}))["pid"]
        .as_i64()
        .expect("a number");
    let found = descriptors(pid);
    let numbers: Vec<_> = found.iter().map(|(number, _)| number.as_str()).collect();
    assert_eq!(numbers, ["0", "1", "2"], "{found:?}");
    assert!(
        found.iter().all(|(_, target)| target.starts_with("pipe:")),
        "{found:?}"
    );
}

#[test]
fn orphans_of_a_child_are_reaped_when_they_end() {
    // One after the other: a check every few seconds would not find enough of them in time.
    let orphans = "
import os, sys, time
for _ in range(12):
    reading, writing = os.pipe()
    if os.fork() == 0:
        orphan = os.fork()
        if orphan:
            os.write(writing, str(orphan).encode())
        os._exit(0)
    os.wait()
    orphan = int(os.read(reading, 99))
    while os.path.exists(f'/proc/{orphan}'):
        time.sleep(0.01)
os.execvp('python3', ['python3', sys.argv[1]])
";
    let args = json!(["-c", orphans, fixture("echo_server.py")]);
    let bridge = TestBridge::start(servers([(
        "echo",
        json!({"command": "python3", "args": args}),
    )]));
    let alice = bridge.chat("alice", "c1");
    let pid = alice.echo("where", json!({}))["pid"]
        .as_i64()
        .expect("a number");
    let stat = |pid: &str| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (_, rest) = stat.rsplit_once(") ")?;
        let fields: Vec<String> = rest.split(' ').map(str::to_owned).collect();
        Some((fields[0].clone(), fields[1].clone()))
    };
    let (_, supervisor) = stat(&pid.to_string()).expect("it lives");
    let left = || {
        let entries = fs::read_dir("/proc").expect("/proc").flatten();
        let pids = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let below = pids.filter(|pid| stat(pid).is_some_and(|(_, parent)| parent == supervisor));
        below.count()
    };
    let reaped = until(PROMPT, || (left() == 1).then_some(()));
    assert!(reaped.is_some(), "{} are below the supervisor", left());
}

/// An unprivileged user.
const NOBODY: u32 = 65534;

/// Programs of the same user may inspect a process unless it is not dumpable: then its files in
/// `/proc` belong to root.
#[test]
fn no_process_of_ours_can_be_looked_into() {
    use std::os::unix::{
        fs::{MetadataExt as _, PermissionsExt as _},
        process::CommandExt as _,
    };
    let folder = tempfile::tempdir().expect("a folder");
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("open to all");
    let program = folder.path().join("mcpo-bridge");
    let built = env!("CARGO_BIN_EXE_mcpo-bridge");
    if fs::hard_link(built, &program).is_err() {
        fs::copy(built, &program).expect("a copy");
    }
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}/health", silent.local_addr().expect("an address"));
    let config = folder.path().join("servers.json");
    fs::write(&config, r#"{"mcpServers": {}}"#).expect("the config");
    let jobs = folder.path().join("jobs");
    fs::create_dir(&jobs).expect("a folder");
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(&jobs, Some(NOBODY), None).expect("another's");
    }
    let port = jobs.join("port");
    let [config, jobs, written] = [&config, &jobs, &port].map(|path| path.to_str().expect("text"));
    for arguments in [
        &["__supervise", "sleep", "1000"][..],
        &["__nursery", "sleep", "1000"],
        &["healthcheck", "--max-time", "1000", "--url", &url],
        &[
            "serve",
            "--port",
            "0",
            "--config",
            config,
            "--jobs-dir",
            jobs,
            "--tools-dir",
            jobs,
            "--port-file",
            written,
        ],
    ] {
        // Their stdin is a socket that never receives data.
        let (_ours, theirs) = std::os::unix::net::UnixStream::pair().expect("a pair");
        let mut command = Command::new(&program);
        command
            .args(arguments)
            .env_clear()
            .current_dir("/")
            .stdin(std::process::Stdio::from(std::os::fd::OwnedFd::from(
                theirs,
            )))
            .stdout(std::process::Stdio::null());
        if rustix::process::geteuid().is_root() {
            command.uid(NOBODY);
        }
        let mut child = command.spawn().expect("it runs");
        if arguments[0] == "serve" {
            // It first executes itself again.
            let serves = until(PROMPT, || port.exists().then_some(()));
            assert!(serves.is_some(), "it does not serve");
        }
        let environment = format!("/proc/{}/environ", child.id());
        let hidden = until(PROMPT, || {
            let found = fs::metadata(&environment).expect("it lives");
            (found.uid() == 0).then_some(())
        });
        child.kill().expect("it is killed");
        child.wait().expect("it is gone");
        assert!(hidden.is_some(), "{arguments:?}");
    }
}
