//! The command line of the real binary: output, exit codes, and the absence of side effects.

use std::{
    net::TcpListener,
    path::Path,
    process::{Command, Output, Stdio},
};

use crate::support::{
    TestBridge, at_the_root, echo, eventually, fixture, rude, servers, vars, with,
};
use rustix::process::{Pid, Signal, kill_process as send};
use serde_json::{Value, json};

fn prepared() -> TestBridge {
    TestBridge::builder(servers([("echo", echo())])).prepare()
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Runs a command that must end with this code; returns its stdout.
#[track_caller]
fn run(bridge: &TestBridge, arguments: &[&str], code: i32) -> String {
    let output = bridge.command(arguments);
    assert_eq!(
        output.status.code(),
        Some(code),
        "{arguments:?}: {output:?}"
    );
    stdout(&output)
}

/// The JSON of a command that must succeed.
#[track_caller]
fn run_json(bridge: &TestBridge, arguments: &[&str]) -> Value {
    let text = run(bridge, arguments, 0);
    serde_json::from_str(&text).unwrap_or_else(|fault| panic!("{fault} in {text}"))
}

/// One working server among servers that fail in every way.
fn mixed() -> TestBridge {
    let prints =
        json!({"command": "sh", "args": ["-c", "while echo this is no JSON; do sleep 0.1; done"]});
    let config = servers([
        ("missing", json!({"command": "no-such-program"})),
        ("sleeper", rude("never_answers")),
        ("exits", rude("exits_at_start")),
        ("prints", prints),
        ("good", echo()),
    ]);
    TestBridge::builder(config)
        .var(vars::START_TIMEOUT, 10)
        .prepare()
}

#[test]
fn check_names_every_fault_and_the_good_server_is_good() {
    let bridge = mixed();
    let text = run(&bridge, &["check"], 1);
    let line = |name: &str| {
        let mut lines = text.lines();
        let found = lines.find(|line| line.starts_with(name));
        found
            .unwrap_or_else(|| panic!("no {name} in {text}"))
            .to_owned()
    };
    for (name, words) in [
        ("missing", &["failed", "no-such-program"][..]),
        (
            "sleeper",
            &["failed", "no response to initialize within 10 s"],
        ),
        (
            "exits",
            &["failed", "exit code 7", "cannot find my licence"],
        ),
        ("prints", &["failed", "last output: this is no JSON"]),
        (
            "good",
            &["ok", "29 of 29 tools", "about ", " tokens", "MiB"],
        ),
    ] {
        for word in words {
            assert!(
                line(name).contains(word),
                "{word} is missing in: {}",
                line(name)
            );
        }
    }
    assert!(text.contains("small models handle at most 15"), "{text}");
    assert!(text.contains("4 of 5 servers failed"), "{text}");
    assert!(
        !text.contains('\u{1b}'),
        "colours are for terminals: {text}"
    );
}

#[test]
fn check_tells_machines_the_same_and_leaves_the_live_folder_alone() {
    let bridge = mixed();
    let text = run(&bridge, &["check", "--json"], 1);
    let report: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(report["ok"], false);
    let by_name = |name: &str| {
        let servers = report["servers"].as_array().expect("a list").iter();
        let mut found = servers.filter(|server| server["name"] == name);
        found.next().cloned().expect("the server")
    };
    assert_eq!(by_name("sleeper")["status"], "failed");
    let good = by_name("good");
    assert_eq!(good["status"], "ok");
    assert_eq!(
        (&good["tools_offered"], &good["tools_all"]),
        (&json!(29), &json!(29))
    );
    for number in ["tokens_estimate", "memory_bytes"] {
        assert!(good[number].as_u64().expect("a number") > 100, "{good}");
    }
    assert_eq!(
        std::fs::read_dir(bridge.jobs())
            .expect("it is there")
            .count(),
        0
    );
}

#[test]
fn check_warns_of_what_works_but_will_not_please() {
    let narrowed = json!({
        "enabledTools": ["poke", "does_not_compile", "remote_ref", "misspelt"],
        "odd_key": 1,
    });
    let writes = json!({
        "command": "sh",
        "args": ["-c", format!("touch left-behind; exec python3 {}", fixture("echo_server.py"))],
        "mode": "shared",
        "enabledTools": ["add"],
    });
    let config = servers([
        ("weird", with(rude("weird_schemas"), narrowed)),
        ("writes", writes),
    ]);
    let bridge = TestBridge::builder(config).prepare();
    let text = run(&bridge, &["check"], 0);
    for words in [
        "odd_key",
        "misspelt",
        "tool does_not_compile: arguments are not validated",
        "tool remote_ref: the reference",
        "shared but writes",
        "all 2 servers OK",
    ] {
        assert!(text.contains(words), "{words} is missing in {text}");
    }
}

#[test]
fn check_tells_the_faults_of_the_settings_and_of_the_file_at_once() {
    let config = servers([
        ("one", json!({"command": 42})),
        ("two", json!({"mode": "never"})),
    ]);
    let bridge = TestBridge::builder(config)
        .var(vars::START_TIMEOUT, "soon")
        .prepare();
    let output = bridge.command(&["check", "--port", "many"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    for words in [
        "MCPO_START_TIMEOUT",
        "soon",
        "--port",
        "one.command",
        "two.mode",
    ] {
        assert!(
            stderr(&output).contains(words),
            "{words}: {}",
            stderr(&output)
        );
    }
    let text = run(&bridge, &["check", "--json"], 2);
    let refused: Value = serde_json::from_str(&text).expect("JSON");
    let places = refused["faults"].as_array().expect("a list");
    let places: Vec<_> = places
        .iter()
        .map(|fault| fault["place"].to_string())
        .collect();
    assert!(
        places.iter().any(|place| place.contains("START_TIMEOUT")),
        "{places:?}"
    );
    assert!(
        places.iter().any(|place| place.contains("one.command")),
        "{places:?}"
    );
}

#[test]
fn an_interrupted_check_leaves_nothing_behind() {
    let config = servers([("sleeper", rude("never_answers"))]);
    let bridge = TestBridge::builder(config).prepare();
    let jobs = bridge.jobs();
    let root = jobs.parent().expect("the test's folder");
    let mut child = Command::new(env!("CARGO_BIN_EXE_mcpo-bridge"))
        .arg("check")
        .env("MCPO_CONFIG_FILE", bridge.config_file())
        .env("MCPO_TOOLS_DIR", root.join("tools"))
        .env("TMPDIR", root.join("tmp"))
        .current_dir(root)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("it runs");
    eventually("the server runs", || {
        let children = bridge.children();
        children
            .iter()
            .any(|process| process.command.contains("never_answers"))
    });
    let pid = Pid::from_raw(child.id().cast_signed()).expect("a process id");
    send(pid, Signal::INT).expect("it can be interrupted");
    assert_eq!(child.wait().expect("a status").code(), Some(130));
    // The bridge's drop asserts that no process and no temporary file is left.
}

#[test]
fn tools_lists_what_is_offered() {
    let some = with(echo(), json!({"enabledTools": ["add", "echo"]}));
    let config = servers([("some", some), ("other", echo())]);
    let bridge = TestBridge::builder(config).prepare();
    let text = run(&bridge, &["tools", "some"], 0);
    assert!(
        text.contains("add") && text.contains("Test tool echo"),
        "{text}"
    );
    assert!(
        !text.contains("write_file") && !text.contains("other"),
        "{text}"
    );
    let listed = run_json(&bridge, &["tools", "--json"]);
    assert_eq!(listed[0]["tools"].as_array().expect("tools").len(), 2);
    assert_eq!(listed[1]["server"], "other");
    let schema = &listed[0]["tools"][1]["inputSchema"];
    assert_eq!(schema["required"], json!(["a", "b"]));
    let output = bridge.command(&["tools", "nowhere"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(stderr(&output).contains("some, other"), "{output:?}");
}

#[test]
fn call_makes_of_arguments_what_the_schema_asks_for() {
    let bridge = prepared();
    let given = [
        "call",
        "echo",
        "arguments",
        "--arg",
        "count=3",
        "--arg",
        "flag=true",
    ];
    let text = run(&bridge, &[&given[..], &["--arg", "note=5"]].concat(), 0);
    let sent: Value = serde_json::from_str(&text).expect("the tool's JSON");
    assert_eq!(sent, json!({"count": 3, "flag": true, "note": "5"}));
    let text = run(
        &bridge,
        &["call", "echo", "echo", "--json", r#"{"text":"a\nb"}"#],
        0,
    );
    assert_eq!(text, "a\nb\n");
    assert_eq!(
        run(&bridge, &["call", "echo", "counter", "--json", "-"], 0),
        "1\n"
    );
}

#[test]
fn call_tells_wrong_arguments_from_failed_tools() {
    let bridge = prepared();
    for (arguments, code, words) in [
        (&["echo", "fail"][..], 1, "it did not work"),
        (
            &["echo", "rpc_error", "--arg", "code=-32000"],
            1,
            "refused on purpose",
        ),
        (&["echo", "die"], 1, "exited during the call"),
        (&["echo", "add", "--arg", "a=1", "--arg", "b=two"], 2, "b: "),
        (&["echo", "add", "--json", "{"], 2, "--json"),
        (&["echo", "add", "--arg", "a"], 2, "NAME=VALUE"),
        (&["echo", "nothing"], 2, "write_file"),
        (&["nobody", "add"], 2, "it has: echo"),
        (&["echo", "add", "--chat", "c"], 2, "--user"),
    ] {
        let output = bridge.command(&[&["call"], arguments].concat());
        assert_eq!(
            output.status.code(),
            Some(code),
            "{arguments:?}: {output:?}"
        );
        assert!(stderr(&output).contains(words), "{words}: {output:?}");
        assert_eq!(stdout(&output), "", "{arguments:?}");
    }
}

#[test]
fn call_goes_on_in_its_chat_and_says_where_files_lie() {
    let bridge = prepared();
    let chat = ["--user", "alice", "--chat", "c1"];
    let write = r#"{"name": "a.txt", "content": "words"}"#;
    let call = [&["call", "echo", "write_file", "--json", write][..], &chat].concat();
    let made = run_json(&bridge, &[&call[..], &["--format", "json"]].concat());
    assert_eq!(made["result"], "Saved to a.txt");
    let file = &made["files"][0];
    assert_eq!((&file["name"], &file["size"]), (&json!("a.txt"), &json!(5)));
    assert!(
        file["url"].as_str().expect("a link").contains("/files/"),
        "{file}"
    );
    let path = Path::new(file["path"].as_str().expect("a path"));
    assert_eq!(std::fs::read_to_string(path).expect("it is there"), "words");
    let read = ["call", "echo", "read_file", "--arg", "name=a.txt"];
    let text = run(&bridge, &[&read[..], &chat].concat(), 0);
    // The answer, then the notice that the server was restarted.
    assert!(
        text.starts_with("words\n") && text.contains("a.txt"),
        "{text}"
    );
    let strangers = [
        "call",
        "echo",
        "read_file",
        "--arg",
        "name=a.txt",
        "--user",
        "bob",
    ];
    run(&bridge, &[&strangers[..], &["--chat", "c1"]].concat(), 1);
    let text = run(&bridge, &call, 0);
    assert!(
        text.contains("link: http") && text.contains("/work/a.txt"),
        "{text}"
    );
}

#[test]
fn commands_see_a_running_bridge_and_do_not_disturb_it() {
    let bridge = TestBridge::start(servers([("echo", echo())]));
    let chat = bridge.chat("alice", "c1");
    let written = chat.call(
        "echo",
        "write_file",
        json!({"name": "a.txt", "content": "words"}),
    );
    let link = written.link("a.txt");
    let token = link.split('/').nth_back(1).expect("a token");

    let sessions = run_json(&bridge, &["sessions", "--json"]);
    assert_eq!(sessions.as_array().expect("a list").len(), 1, "{sessions}");
    assert_eq!(sessions[0]["server"], "echo");
    let pid = sessions[0]["pid"].as_i64().expect("a process id");
    let children = bridge.children();
    assert!(
        children.iter().any(|child| i64::from(child.pid) == pid),
        "{sessions}"
    );
    let chat_hash = sessions[0]["chat"].as_str().expect("a hash");
    assert!(chat_hash.len() == 8 && chat_hash != "c1", "{sessions}");
    assert!(run(&bridge, &["sessions"], 0).contains(chat_hash));

    let jobs = run_json(&bridge, &["jobs", "list", "--json"]);
    let job = jobs[0]["job"].as_str().expect("an id");
    assert!(jobs[0]["leased_by"].is_string(), "{jobs}");
    assert!(run(&bridge, &["jobs", "list"], 0).contains(job));

    let text = run(&bridge, &["jobs", "show", &job[..8]], 0);
    for words in ["a.txt", "live", "echo.write_file", "ok", "5 B"] {
        assert!(text.contains(words), "{words} is missing in {text}");
    }
    assert!(!text.contains(token), "{text}");
    assert!(run(&bridge, &["jobs", "show", job, "--links"], 0).contains(token));
    let shown = run_json(&bridge, &["jobs", "show", job, "--json"]);
    assert_eq!(shown["journal"][0]["request"]["content"], "words");
    assert!(!shown["links"].to_string().contains(token), "{shown}");

    let call = ["call", "echo", "counter", "--user", "alice", "--chat", "c1"];
    let output = bridge.command(&call);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(
        stderr(&output).contains("workspace of this chat is in use by a running bridge"),
        "{output:?}"
    );

    let report = run_json(&bridge, &["gc", "--user", "alice", "--json"]);
    assert_eq!(
        (&report["ended_links"], &report["leased_jobs"]),
        (&json!(1), &json!(1))
    );
    assert_eq!(chat.echo("read_file", json!({"name": "a.txt"})), "words");
    assert_eq!(chat.download(&link).status, 410);
}

#[test]
fn a_link_is_revoked_by_its_url_and_a_job_with_all_its_links() {
    let bridge = TestBridge::start(servers([("echo", echo())]));
    let chat = bridge.chat("alice", "c1");
    let link = |name: &str| {
        let file = json!({"name": name, "content": "x"});
        chat.call("echo", "write_file", file).link(name)
    };
    let links = [link("a.txt"), link("b.txt"), link("c.txt")];
    let output = bridge.command(&["jobs", "revoke", &links[0]]);
    assert!(output.status.success(), "{output:?}");
    assert!(stdout(&output).contains("a.txt"), "{output:?}");
    let audit = stderr(&output);
    let token = links[0].split('/').nth_back(1).expect("a token");
    assert!(
        audit.contains("revoke") && !audit.contains(token),
        "{audit}"
    );
    let statuses = || links.each_ref().map(|link| chat.download(link).status);
    assert_eq!(statuses(), [410, 200, 200]);
    let jobs = run_json(&bridge, &["jobs", "list", "--json"]);
    let job = jobs[0]["job"].as_str().expect("an id");
    let revoked = run_json(&bridge, &["jobs", "revoke", job, "--json"]);
    assert_eq!(revoked["revoked"].as_array().expect("a list").len(), 2);
    assert_eq!(statuses(), [410, 410, 410]);
    for nothing in [token, job] {
        run(&bridge, &["jobs", "revoke", nothing], 1);
    }
    for unknown in ["00000000", "https://chat.example/no-link"] {
        let output = bridge.command(&["jobs", "revoke", unknown]);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let words = format!("no link or workspace matches '{unknown}'");
        assert!(stderr(&output).contains(&words), "{output:?}");
    }
}

#[test]
fn gc_removes_what_is_over_and_a_folder_that_is_not_there_is_not_made() {
    let bridge = prepared();
    let call = ["call", "echo", "counter", "--user", "alice", "--chat", "c1"];
    run(&bridge, &call, 0);
    assert_eq!(bridge.workspaces().len(), 1);
    assert_eq!(run(&bridge, &["gc"], 0), "nothing to delete\n");
    let text = run(&bridge, &["gc", "--user", "alice"], 0);
    assert!(text.contains("workspaces removed: 1"), "{text}");
    assert!(bridge.workspaces().is_empty());
    let elsewhere = bridge.jobs().join("not-there");
    let elsewhere = elsewhere.to_str().expect("UTF-8");
    for command in ["gc", "sessions"] {
        run(&bridge, &[command, "--jobs-dir", elsewhere], 1);
    }
    assert!(!Path::new(elsewhere).exists());
}

#[test]
fn healthcheck_tells_up_from_down() {
    let bridge = TestBridge::start(servers([("echo", echo())]));
    let port = bridge.address().port().to_string();
    assert_eq!(run(&bridge, &["healthcheck", "--port", &port], 0), "ok\n");
    let url = format!("http://{}/health", bridge.address());
    run(&bridge, &["healthcheck", "--url", &url], 0);
    run(
        &bridge,
        &[
            "healthcheck",
            "--url",
            &format!("http://{}/nothing", bridge.address()),
        ],
        1,
    );
    let free = TcpListener::bind("127.0.0.1:0").expect("a port");
    let nobody = free.local_addr().expect("its address").port().to_string();
    drop(free);
    let output = bridge.command(&["healthcheck", "--port", &nobody]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(stderr(&output).contains(&nobody), "{output:?}");
}

#[test]
fn init_writes_a_config_that_check_likes_and_overwrites_nothing_unasked() {
    let bridge = prepared();
    let path = bridge.config_file().with_file_name("new.json");
    let name = path.to_str().expect("UTF-8");
    assert!(run(&bridge, &["init", name], 0).contains("check --config"));
    let example = at_the_root("mcp-servers.json.example");
    let example = std::fs::read_to_string(example).expect("the example");
    let written = || std::fs::read_to_string(&path).expect("it is written");
    assert_eq!(written(), example);
    let text = run(&bridge, &["check", "--no-start", "--config", name], 0);
    assert!(
        text.contains("excel") && text.contains("not started"),
        "{text}"
    );
    std::fs::write(&path, "mine, and longer than nothing").expect("written");
    let output = bridge.command(&["init", name]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(stderr(&output).contains("--force"), "{output:?}");
    assert!(written().starts_with("mine"));
    run(&bridge, &["init", name, "--force"], 0);
    assert_eq!(written(), example);
    assert_eq!(run(&bridge, &["init", "-"], 0), example);
}

#[test]
fn without_a_config_setting_the_server_file_of_the_current_folder_is_used() {
    let bridge = TestBridge::builder(servers([("unused", echo())]))
        .var("MCPO_CONFIG_FILE", "")
        .prepare();
    let output = bridge.command(&["check", "--no-start"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(stderr(&output).contains("mcpo-bridge init"), "{output:?}");
    run(&bridge, &["init"], 0);
    let text = run(&bridge, &["check", "--no-start"], 0);
    assert!(text.contains("not started (mcp-servers.json)"), "{text}");
}

#[test]
fn advice_about_a_server_file_that_cannot_be_read_fits_the_reason() {
    let bridge = prepared();
    let folder = bridge.jobs();
    let folder = folder.to_str().expect("UTF-8");
    let missing = format!("{folder}/missing.json");
    for (path, advised) in [(&*missing, true), (folder, false)] {
        let output = bridge.command(&["check", "--no-start", "--config", path]);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        let said = stderr(&output);
        assert!(
            said.contains(path) && said.contains("MCPO_CONFIG_FILE"),
            "{said}"
        );
        assert_eq!(said.contains("mcpo-bridge init"), advised, "{said}");
    }
}

#[test]
fn settings_may_stand_before_the_command() {
    let bridge = prepared();
    let call = ["call", "echo", "counter", "--user", "alice", "--chat", "c1"];
    run(&bridge, &call, 0);
    let jobs = bridge.jobs();
    let jobs = jobs.to_str().expect("UTF-8");
    let other = TestBridge::builder(servers([("echo", echo())])).prepare();
    assert_eq!(run(&other, &["jobs", "list"], 0), "no workspaces\n");
    let listed = run_json(&other, &["--jobs-dir", jobs, "jobs", "list", "--json"]);
    assert_eq!(listed.as_array().expect("a list").len(), 1, "{listed}");
    let output = other.command(&["-e", "A=B", "check"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(
        stderr(&output).contains("--env is not allowed before 'check'"),
        "{output:?}"
    );
}

#[test]
fn a_mistyped_command_is_answered_with_the_nearest_one() {
    let bridge = prepared();
    for (typed, words) in [
        (&["chek"][..], "'check'"),
        (&["--port", "8000", "helthcheck"], "'healthcheck'"),
        (&["xyz"], "unrecognized subcommand 'xyz'"),
    ] {
        let output = bridge.command(typed);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert!(stderr(&output).contains(words), "{words}: {output:?}");
    }
}

/// Runs a program on a terminal of 60 columns, presses Ctrl+C when the output offers it, and prints the
/// output.
const TERMINAL: &str = r#"
import fcntl, os, pty, struct, sys, termios
pid, terminal = pty.fork()
if pid == 0:
    fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 60, 0, 0))
    os.execv(sys.argv[1], sys.argv[1:])
output, pressed = b"", False
while True:
    try:
        part = os.read(terminal, 4096)
    except OSError:
        break
    output += part
    if b"Press Ctrl+C" in output and not pressed:
        pressed = os.write(terminal, b"\x03")
sys.stdout.buffer.write(output)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"#;

fn on_a_terminal(bridge: &TestBridge, arguments: &[&str]) -> Output {
    let jobs = bridge.jobs();
    let root = jobs.parent().expect("the test's folder");
    Command::new("python3")
        .args(["-c", TERMINAL, env!("CARGO_BIN_EXE_mcpo-bridge")])
        .args(arguments)
        .env("MCPO_CONFIG_FILE", bridge.config_file())
        .env("MCPO_JOBS_DIR", &jobs)
        .env("MCPO_TOOLS_DIR", root.join("tools"))
        .env("TMPDIR", root.join("tmp"))
        .env("MCPO_FILES_SERVER", "false")
        .env("MCPO_API_KEY", "alice:sesame")
        .env("NO_COLOR", "1")
        .current_dir(root)
        .output()
        .expect("python3 runs")
}

#[test]
fn serve_on_a_terminal_says_where_it_is_and_how_to_stop_it() {
    let bridge = prepared();
    let output = on_a_terminal(&bridge, &["serve", "--port", "0"]);
    let text = stdout(&output);
    assert!(output.status.success(), "{output:?}");
    for words in [
        concat!("mcpo-bridge ", env!("CARGO_PKG_VERSION")),
        "http://127.0.0.1:",
        "/docs",
        "mcp-servers.json (1 server)",
        "alice",
        "Press Ctrl+C",
    ] {
        assert!(text.contains(words), "{words} is missing in {text}");
    }
    assert!(!text.contains("sesame"), "{text}");
}

#[test]
fn check_breaks_long_lines_between_words() {
    let odd = with(echo(), json!({"some_key_that_is_unknown": 1}));
    let bridge = TestBridge::builder(servers([("echo", odd)])).prepare();
    let check = ["check", "--no-start"];
    let whole = run(&bridge, &check, 0);
    assert!(
        whole.lines().any(|line| line.chars().count() > 60),
        "{whole}"
    );
    let output = on_a_terminal(&bridge, &check);
    let shown = stdout(&output);
    let too_long = |line: &&str| line.trim().contains(' ') && line.trim_end().chars().count() > 60;
    assert_eq!(shown.lines().find(too_long), None, "{shown}");
    let words = |text: &str| {
        text.split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert_eq!(words(&shown), words(&whole));
}

#[test]
fn config_schema_is_the_committed_one() {
    let bridge = prepared();
    let committed = at_the_root("docs/mcp-servers.schema.json");
    let committed = std::fs::read_to_string(committed).expect("the schema");
    assert_eq!(run(&bridge, &["config-schema"], 0), committed);
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let output = Command::new(env!("CARGO_BIN_EXE_mcpo-bridge"))
        .arg("config-schema")
        .stdout(writer)
        .stderr(Stdio::piped())
        .output()
        .expect("it runs");
    assert!(output.status.success(), "{output:?}");
    assert_eq!(stderr(&output), "");
}
