//! Servers of launchers, from environments that are installed once: with a real uv, and a package
//! built here, so without network. Ignored by default because uv may be missing: `cargo test
//! install -- --ignored`.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use crate::support::{PROMPT, TestBridge, eventually, fixture, servers, until};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A folder with these versions of the package.
fn wheels(versions: &[&str]) -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for version in versions {
        wheel(folder.path(), version);
    }
    folder
}

fn wheel(folder: &Path, version: &str) {
    let script = fixture("make_wheel.py");
    let made = Command::new("python3")
        .arg(script)
        .arg(folder)
        .arg(version)
        .status();
    assert!(made.expect("python runs").success());
}

/// The server as a user would configure it, but from this folder instead of an index.
fn tiny(wheels: &Path) -> Value {
    json!({
        "command": "uvx",
        "args": ["--no-index", "--find-links", wheels, "tiny-mcp", "--own", "{MCPO_JOB_ID}"],
        "env": {"API_TOKEN": "hunter2"},
    })
}

fn prepared(config: Value) -> TestBridge {
    TestBridge::builder(config).prepare()
}

fn told(bridge: &TestBridge) -> Value {
    let reply = bridge.client().call("tiny", "where", json!({}));
    serde_json::from_str(reply.ok().as_str().unwrap_or_default()).unwrap_or_else(|_| reply.json())
}

fn is_installed(bridge: &TestBridge, found: &Value) -> bool {
    let program = found["executable"].as_str().unwrap_or_default();
    program.starts_with(&*bridge.tools().join("installed").to_string_lossy())
}

fn lock_file(bridge: &TestBridge) -> PathBuf {
    bridge.config_file().with_extension("lock.json")
}

fn lock(bridge: &TestBridge) -> Value {
    let text = fs::read(lock_file(bridge)).expect("a lock file");
    serde_json::from_slice(&text).expect("JSON")
}

#[track_caller]
fn install(bridge: &TestBridge, arguments: &[&str], code: i32) -> String {
    let output = bridge.command(&[&["install"], arguments].concat());
    assert_eq!(output.status.code(), Some(code), "{output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Collects every file below a folder.
fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() && !path.is_symlink() {
            files(&path, found);
        } else {
            found.push(path);
        }
    }
}

#[test]
#[ignore = "needs uv"]
fn a_server_runs_as_written_until_its_environment_is_there_and_from_there_ever_after() {
    let wheels = wheels(&["1.0"]);
    let mut bridge = TestBridge::start(servers([("tiny", tiny(wheels.path()))]));
    // It answers from the first call on, whatever it is started from.
    let first = until(PROMPT, || {
        (bridge.client().get("/tiny/openapi.json").status == 200).then(|| told(&bridge))
    });
    let first = first.expect("it is learnt");
    eventually("using the installed environment", || {
        is_installed(&bridge, &told(&bridge))
    });
    let found = told(&bridge);
    assert_eq!(
        (&found["version"], &first["version"]),
        (&json!("1.0"), &json!("1.0"))
    );
    let program = found["program"].as_str().expect("a path");
    assert!(program.ends_with("/bin/tiny-mcp"), "{program}");
    assert_eq!(found["arguments"][0], "--own");
    assert_eq!(found["arguments"][1], found["environment"]["MCPO_JOB_ID"]);
    assert_eq!(found["environment"]["API_TOKEN"], "hunter2");
    let path = found["environment"]["PATH"].as_str().expect("a path");
    assert!(
        path.starts_with(&*bridge.tools().join("installed").to_string_lossy()),
        "{path}"
    );
    let launcher = found["parent"].to_string();
    // Started separately, or forked by now.
    assert!(
        launcher.contains("__supervise") || launcher.contains("__adopt"),
        "no launcher is between: {launcher}"
    );
    // Remove the source of the package, and the launcher's caches.
    drop(wheels);
    fs::remove_dir_all(bridge.tools().join("uv")).expect("caches");
    bridge.restart();
    assert!(is_installed(&bridge, &told(&bridge)));
    let mut all = Vec::new();
    files(&bridge.tools(), &mut all);
    let compiled = |path: &PathBuf| path.to_string_lossy().contains("tiny_mcp/__pycache__");
    assert!(all.iter().any(compiled), "its modules are compiled");
    let telling = all.iter().filter(|path| {
        let text = fs::read(path).unwrap_or_default();
        text.windows(7).any(|part| part == b"hunter2")
    });
    assert_eq!(
        telling.count(),
        0,
        "the server's secret is in the tools folder"
    );
}

#[test]
#[ignore = "needs uv"]
fn what_is_locked_is_what_runs_whatever_else_there_is_by_now() {
    let wheels = wheels(&["1.0"]);
    let mut bridge = prepared(servers([("tiny", tiny(wheels.path()))]));
    install(&bridge, &[], 0);
    let locked = lock(&bridge)["servers"]["tiny"]["requirements"].clone();
    let line = locked[0].as_str().expect("a line");
    assert!(line.starts_with("tiny-mcp==1.0 --hash=sha256:"), "{line}");
    wheel(wheels.path(), "2.0");
    fs::remove_dir_all(bridge.tools()).expect("the tools go");
    bridge.restart();
    let found = told(&bridge);
    assert!(is_installed(&bridge, &found), "{found}");
    assert_eq!(found["version"], "1.0");
    let report = bridge.command(&["check", "--json"]);
    let report: Value = serde_json::from_slice(&report.stdout).expect("JSON");
    let launch = &report["servers"][0]["launch"];
    assert_eq!(
        (&launch["how"], &launch["package"]),
        (&json!("locked"), &json!("tiny-mcp 1.0"))
    );
    assert_eq!(launch["runs"], "python tiny_mcp:main");
}

#[test]
#[ignore = "needs uv"]
fn what_was_installed_ahead_runs_with_an_empty_tools_folder_until_something_else_is_locked() {
    let wheels = wheels(&["1.0"]);
    let ahead = tempfile::tempdir().expect("a folder");
    let ahead_lock = ahead.path().join("mcp-servers.lock.json");
    let image = prepared(servers([("called-otherwise", tiny(wheels.path()))]));
    let folder = ahead.path().to_str().expect("a path");
    let lock_there = ahead_lock.to_str().expect("a path");
    install(
        &image,
        &["--tools-dir", folder, "--lock-file", lock_there],
        0,
    );
    let there = || {
        let mut all = Vec::new();
        files(&ahead.path().join("installed"), &mut all);
        all.sort();
        all
    };
    let before = there();
    fs::remove_file(wheels.path().join("tiny_mcp-1.0-py3-none-any.whl")).expect("no index");
    let config = servers([("tiny", tiny(wheels.path()))]);
    let builder = TestBridge::builder(config).var("MCPO_PREINSTALLED_DIR", folder);
    let mut bridge = builder.start();
    let found = told(&bridge);
    let program = found["executable"].as_str().expect("a path");
    assert!(program.starts_with(folder), "{program}");
    assert!(!bridge.tools().join("installed").exists());
    assert_eq!(there(), before, "it is only read");
    let report = bridge.command(&["check", "--json", "--preinstalled-dir", folder]);
    let report: Value = serde_json::from_slice(&report.stdout).expect("JSON");
    assert_eq!(report["servers"][0]["launch"]["how"], "locked");
    // Packages locked by the operator take precedence over those of the image.
    wheel(wheels.path(), "2.0");
    install(&bridge, &["--upgrade", "--yes"], 0);
    bridge.restart();
    let found = told(&bridge);
    assert!(is_installed(&bridge, &found), "{found}");
    assert_eq!(found["version"], "2.0");
}

#[test]
#[ignore = "needs uv"]
fn what_is_not_what_was_locked_does_not_run_at_all() {
    let wheels = wheels(&["1.0"]);
    let mut bridge = prepared(servers([("tiny", tiny(wheels.path()))]));
    install(&bridge, &[], 0);
    let text = fs::read_to_string(lock_file(&bridge)).expect("a lock file");
    let at = text.find("sha256:").expect("a hash") + 7;
    let forged = format!("{}{}{}", &text[..at], "0".repeat(64), &text[at + 64..]);
    fs::write(lock_file(&bridge), forged).expect("it is written");
    fs::remove_dir_all(bridge.tools()).expect("the tools go");
    bridge.restart();
    let refused = until(PROMPT, || {
        let reply = bridge.client().call("tiny", "where", json!({}));
        (reply.status == 502).then(|| reply.text())
    });
    let refused = refused.expect("it is refused");
    assert!(
        refused.contains("locked packages cannot be installed"),
        "{refused}"
    );
}

#[test]
#[ignore = "needs uv"]
fn an_upgrade_shows_what_it_changes_before_it_changes_it() {
    let wheels = wheels(&["1.0"]);
    let bridge = prepared(servers([("tiny", tiny(wheels.path()))]));
    install(&bridge, &[], 0);
    wheel(wheels.path(), "2.0");
    // Installing again does not upgrade.
    assert!(install(&bridge, &[], 0).contains("tiny-mcp 1.0"));
    let before = lock(&bridge);
    let shown = install(&bridge, &["--upgrade", "--dry-run", "--json"], 0);
    let shown: Value = serde_json::from_str(&shown).expect("JSON");
    let changes = &shown["servers"][0]["changes"];
    assert_eq!(changes["tools"]["added"], json!(["new"]));
    assert_eq!(changes["tools"]["removed"], json!(["old"]));
    let changed = &changes["tools"]["changed"][0];
    assert_eq!(changed["name"], "convert");
    assert_eq!(changed["what"], json!(["inputSchema.properties.unit"]));
    let package = &changes["packages"][0];
    assert_eq!(
        (&package["before"], &package["after"]),
        (&json!("1.0"), &json!("2.0"))
    );
    // There is no terminal for a confirmation.
    let text = install(&bridge, &["--upgrade"], 2);
    assert!(text.contains("+ new") && text.contains("- old"), "{text}");
    assert_eq!(lock(&bridge), before);
    install(&bridge, &["--upgrade", "--yes"], 0);
    let after = lock(&bridge)["servers"]["tiny"]["requirements"][0].to_string();
    assert!(after.contains("tiny-mcp==2.0"), "{after}");
}

#[test]
#[ignore = "needs uv"]
fn a_running_bridge_takes_an_upgrade_over() {
    let wheels = wheels(&["1.0"]);
    let mut bridge = prepared(servers([("tiny", tiny(wheels.path()))]));
    install(&bridge, &[], 0);
    bridge.restart();
    assert_eq!(told(&bridge)["version"], "1.0");
    wheel(wheels.path(), "2.0");
    install(&bridge, &["--upgrade", "--yes"], 0);
    eventually("the new version's tools are offered", || {
        let document = bridge.client().get("/tiny/openapi.json").text();
        document.contains("\"/new\"") && !document.contains("\"/old\"")
    });
    assert_eq!(told(&bridge)["version"], "2.0");
}

#[test]
#[ignore = "needs uv"]
fn what_cannot_be_installed_runs_as_written_and_check_says_why() {
    let wheels = wheels(&["1.0"]);
    let mut own = tiny(wheels.path());
    let args = own["args"].as_array_mut().expect("a list");
    args.splice(0..0, [json!("--env-file"), json!("/dev/null")]);
    let mut off = tiny(wheels.path());
    off["install"] = false.into();
    let mut bridge = prepared(servers([("tiny", own), ("off", off)]));
    let text = install(&bridge, &[], 0);
    assert!(text.contains("--env-file"), "{text}");
    assert!(!lock_file(&bridge).exists());
    let report = bridge.command(&["check", "--json"]);
    let report: Value = serde_json::from_slice(&report.stdout).expect("JSON");
    for (at, why) in [(0, "--env-file"), (1, "\"install\" is false")] {
        let launch = &report["servers"][at]["launch"];
        assert_eq!(launch["how"], "as_written", "{launch}");
        assert!(
            launch["why"]
                .to_string()
                .contains(&why.replace('"', "\\\"")),
            "{launch}"
        );
    }
    bridge.restart();
    assert_eq!(told(&bridge)["version"], "1.0");
}

#[test]
#[ignore = "needs uv"]
fn a_server_that_does_not_like_its_environment_runs_as_written() {
    let wheels = wheels(&["1.0"]);
    let mut server = tiny(wheels.path());
    server["env"]["REFUSES"] = "installed".into();
    let bridge = TestBridge::start(servers([("tiny", server)]));
    bridge.wait_for_log("fails to start from its installed environment");
    let found = told(&bridge);
    assert!(!is_installed(&bridge, &found), "{found}");
}

#[test]
#[ignore = "needs uv"]
fn several_may_install_into_one_folder_at_once() {
    let wheels = wheels(&["1.0"]);
    let bridge = prepared(servers([("tiny", tiny(wheels.path()))]));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| install(&bridge, &["--no-lock"], 0));
        }
    });
    let installed = bridge.tools().join("installed");
    let count = |part: &str| {
        fs::read_dir(installed.join(part))
            .expect("a folder")
            .count()
    };
    assert_eq!((count("environments"), count("staging")), (1, 0));
}

/// An index that accepts connections and never responds.
fn silent_index() -> (TcpListener, Value) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    let index = format!("http://{address}/simple");
    let server = json!({"command": "uvx", "args": ["--default-index", index, "tiny-mcp"]});
    (listener, servers([("tiny", server)]))
}

/// Whether a package manager is running for an environment.
fn is_installing(bridge: &TestBridge) -> bool {
    let children = bridge.children();
    children
        .iter()
        .any(|child| child.command.contains("pip compile"))
}

#[test]
#[ignore = "needs uv"]
fn a_bridge_that_stops_while_it_installs_leaves_nothing() {
    let (_listener, config) = silent_index();
    let mut bridge = TestBridge::start(config);
    eventually("packages are looked for", || is_installing(&bridge));
    let staging = bridge.tools().join("installed/staging");
    let staged = || fs::read_dir(&staging).expect("a folder").count();
    assert_eq!(staged(), 1);
    bridge.signal(rustix::process::Signal::TERM);
    bridge.wait_for_exit();
    assert_eq!(staged(), 0);
}

#[test]
#[ignore = "needs uv"]
fn a_bridge_that_is_killed_while_it_installs_leaves_no_process() {
    let (_listener, config) = silent_index();
    let mut bridge = TestBridge::start(config);
    eventually("packages are looked for", || is_installing(&bridge));
    bridge.kill_hard();
}

/// A local registry, ended on drop.
struct Registry(Child, String);

impl Registry {
    fn start() -> Self {
        let mut command = Command::new("python3");
        let command = command
            .arg(fixture("npm_registry.py"))
            .stdout(Stdio::piped());
        let mut child = command.spawn().expect("python runs");
        let mut port = String::new();
        let mut said = BufReader::new(child.stdout.take().expect("its output"));
        said.read_line(&mut port).expect("its port");
        Self(child, format!("http://127.0.0.1:{}", port.trim()))
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
#[ignore = "needs npm"]
fn a_server_of_npx_is_locked_and_started_by_node() {
    if Command::new("npm").arg("--version").output().is_err() {
        eprintln!("not run: there is no npm here");
        return;
    }
    let registry = Registry::start();
    let server = json!({
        "command": "npx",
        "args": ["-y", "tiny-node", "--own"],
        "env": {"npm_config_registry": registry.1},
    });
    let mut bridge = prepared(servers([("tiny", server)]));
    install(&bridge, &[], 0);
    let locked = &lock(&bridge)["servers"]["tiny"]["package_lock"]["packages"];
    let package = &locked["node_modules/tiny-node"];
    assert_eq!(package["version"], "1.0.0");
    assert!(
        package["integrity"]
            .as_str()
            .is_some_and(|hash| hash.starts_with("sha512-"))
    );
    let text = fs::read_to_string(lock_file(&bridge)).expect("a lock file");
    assert!(
        !text.contains("127.0.0.1"),
        "the lock file names no registry: {text}"
    );
    // Only from the lock file.
    fs::remove_dir_all(bridge.tools()).expect("the tools go");
    install(&bridge, &[], 0);
    drop(registry);
    bridge.restart();
    let found = told(&bridge);
    let program = found["program"].as_str().expect("a path");
    assert!(program.ends_with("node_modules/.bin/tiny"), "{program}");
    assert!(program.starts_with(&*bridge.tools().join("installed").to_string_lossy()));
    assert_eq!(found["arguments"], json!(["--own"]));
}

#[test]
fn a_lock_file_that_is_none_is_named() {
    let bridge = prepared(servers([(
        "tiny",
        json!({"command": "uvx", "args": ["x"]}),
    )]));
    fs::write(lock_file(&bridge), "{").expect("it is written");
    let output = bridge.command(&["install"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(told.contains("mcp-servers.lock.json"), "{told}");
}
