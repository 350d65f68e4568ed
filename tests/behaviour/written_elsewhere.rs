//! Files that a call wrote other than as plain files of its working directory, and the consequences
//! for a chat that writes too much there.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use crate::support::{Client, LONG, Reply, TestBridge, fixture, promptly, servers, vars, with};
use serde_json::{Value, json};

fn places() -> Value {
    json!({"command": "python3", "args": [fixture("places_server.py")]})
}

fn config() -> Value {
    servers([("places", places())])
}

fn ask(client: &Client, tool: &str, arguments: Value) -> Reply {
    client.call("places", tool, arguments)
}

fn write(client: &Client, path: &str) -> Reply {
    ask(client, "write", json!({"path": path}))
}

fn names(reply: &Reply) -> Vec<String> {
    let answer = reply.ok();
    let files = answer["files"].as_array().cloned().unwrap_or_default();
    let name = |file: &Value| file["name"].as_str().expect("a name").to_owned();
    files.iter().map(name).collect()
}

fn notice(reply: &Reply) -> String {
    reply.ok()["notice"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn what_a_call_wrote_and_names_is_linked_wherever_in_its_folders_it_lies() {
    let bridge = TestBridge::start(config());
    let chat = bridge.chat("alice", "c1");
    for (path, name) in [
        (".playwright-mcp/page.png", ".playwright-mcp/page.png"),
        (".env", ".env"),
        ("..foo.txt", "..foo.txt"),
        ("report.tmp", "report.tmp"),
        ("$TMPDIR/chart.png", "tmp/chart.png"),
        ("../tmp/deep/er/chart.png", "tmp/deep/er/chart.png"),
        ("~/Documents/売上 1.txt", "home/Documents/売上 1.txt"),
    ] {
        let reply = write(&chat, path);
        assert_eq!(names(&reply), [name], "{}", reply.text());
        assert_eq!(chat.download(&reply.link(name)).text(), "content");
        assert!(!reply.text().contains("/mb-"), "{}", reply.text());
    }
    // It writes a file that is named neither in its answer nor in its arguments.
    assert_eq!(names(&ask(&chat, "bind_socket", json!({}))), [""; 0]);
    // Named now, but written by an earlier call.
    let late = json!({"text": "see ../tmp/proof"});
    assert_eq!(names(&ask(&chat, "say", late)), [""; 0]);
    for cache in [
        "~/.cache/x/a.json",
        "node_modules/a.js",
        "$TMPDIR/Code Cache/a.js",
    ] {
        assert_eq!(names(&write(&chat, cache)), [""; 0], "{cache}");
    }
}

#[test]
fn a_stateless_calls_temporary_file_is_linked_too() {
    let stateless = with(places(), json!({"mode": "stateless"}));
    let bridge = TestBridge::start(servers([("places", stateless)]));
    let reply = write(&bridge.client(), "$TMPDIR/chart.png");
    assert_eq!(names(&reply), ["tmp/chart.png"]);
}

#[test]
fn an_answer_that_names_a_secret_gets_no_link_and_learns_nothing() {
    let bridge = TestBridge::start(config());
    let bob = bridge.chat("bob", "c1");
    write(&bob, ".env").ok();
    write(&bob, "secret.txt").ok();
    let others = bridge.work_with("secret.txt");
    let chat = bridge.chat("alice", "c1");
    write(&chat, "a.txt").ok();
    let other = others
        .parent()
        .expect("a folder")
        .file_name()
        .expect("a name");
    let other = other.to_string_lossy();
    let secrets = [
        "/etc/passwd".to_owned(),
        "file:///etc/passwd".to_owned(),
        bridge.config_file().display().to_string(),
        others.join(".env").display().to_string(),
        others.join("secret.txt").display().to_string(),
        format!("../../{other}/work/.env"),
        "../metadata.json".to_owned(),
        "../server.log".to_owned(),
        "../tmp/../metadata.json".to_owned(),
        "~/../lease".to_owned(),
    ];
    for secret in &secrets {
        // The answer of a server that claims to have written it, and an argument that names it.
        let said = |path: &str| {
            let text = format!("Saved to {path}");
            ask(&chat, "say", json!({"text": text, "about": path}))
        };
        let there = said(secret);
        let absent = said(&format!("{secret}-absent"));
        for reply in [&there, &absent] {
            assert_eq!(names(reply), [""; 0], "{}", reply.text());
        }
        let (there, absent) = (notice(&there), notice(&absent));
        assert!(
            there.contains("outside this chat's folder"),
            "{secret}: {there}"
        );
        assert_eq!(there, absent.replace("-absent", ""), "{secret}");
    }
    // Not through a link either.
    for (path, to) in [("../tmp/l", "/etc/passwd"), (".l", "../metadata.json")] {
        let reply = ask(&chat, "link", json!({"path": path, "to": to}));
        assert_eq!(names(&reply), [""; 0], "{}", reply.text());
    }
}

#[test]
fn a_file_outside_is_told_once_and_a_linked_one_is_not() {
    let bridge = TestBridge::start(config());
    let chat = bridge.chat("alice", "c1");
    let target = tempfile::tempdir().expect("a folder");
    let path = target.path().join("report.docx").display().to_string();
    let reply = write(&chat, &path);
    assert_eq!(names(&reply), [""; 0]);
    let said = notice(&reply);
    assert_eq!(said.matches(&path).count(), 1, "{said}");
    let claimed = json!({"path": "report.docx", "say": "Saved to /mnt/data/report.docx"});
    let reply = ask(&chat, "write", claimed);
    assert_eq!(names(&reply), ["report.docx"]);
    assert_eq!(notice(&reply), "");
    // There is no notice about paths that are only read or mentioned.
    let read = ask(&chat, "read", json!({"path": "/etc/hostname"}));
    assert!(
        !read.text().contains("outside this chat"),
        "{}",
        read.text()
    );
}

#[test]
fn temporary_folders_have_short_names_however_deep_the_jobs_folder_is() {
    let root = tempfile::tempdir().expect("a folder");
    let jobs = root
        .path()
        .join("a-jobs-folder-whose-name-alone-has-sixty-letters-or-some-more");
    let mut bridge = TestBridge::builder(config()).jobs(jobs.clone()).start();
    let chat = bridge.chat("alice", "c1");
    let reply = ask(&chat, "bind_socket", json!({}));
    let said = reply.ok().to_string();
    assert!(said.contains("bound in ../tmp,"), "{said}");
    let proof = &bridge.workspaces()[0].join("tmp/proof");
    assert_eq!(
        fs::read_to_string(proof).expect("on the jobs volume"),
        "there"
    );
    let (folder, link) = short_name(&jobs);
    assert!(link.as_os_str().len() <= 24, "{link:?}");
    assert_eq!(
        fs::metadata(&folder).expect("a folder").mode() & 0o777,
        0o700
    );
    // A second bridge on this host does not touch the first one's.
    let second = TestBridge::start(config());
    ask(&second.chat("alice", "c1"), "bind_socket", json!({})).ok();
    assert!(link.is_symlink());
    second.finish();
    assert!(link.is_symlink());
    bridge.kill_hard();
    // Another test's bridge may remove it before this one does.
    bridge.restart();
    ask(&bridge.chat("alice", "c2"), "bind_socket", json!({})).ok();
    assert!(!folder.exists(), "what a killed bridge left is swept");
    let (folder, _) = short_name(&jobs);
    bridge.finish();
    assert!(!folder.exists(), "and what one that ends has made");
}

/// The folder of links that points into this jobs folder, and such a link.
fn short_name(jobs: &Path) -> (PathBuf, PathBuf) {
    let jobs = fs::canonicalize(jobs).expect("the jobs folder");
    let entries = |path: &Path| {
        let entries = fs::read_dir(path).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect::<Vec<_>>()
    };
    let folders = entries(Path::new("/tmp"));
    let ours = folders.into_iter().filter(|path| {
        let name = path.file_name().unwrap_or_default();
        name.to_string_lossy().starts_with("mb-")
    });
    let mut links = ours.flat_map(|folder| {
        let links = entries(&folder).into_iter();
        links.map(move |link| (folder.clone(), link))
    });
    let leads = |link: &Path| fs::read_link(link).is_ok_and(|target| target.starts_with(&jobs));
    links.find(|(_, link)| leads(link)).expect("a short name")
}

#[test]
fn a_blob_in_an_answer_becomes_a_file_with_a_link() {
    let bridge = TestBridge::start(config());
    let chat = bridge.chat("alice", "c1");
    let blob = |uri: &str| {
        let given = json!({"uri": uri, "kind": "application/gzip", "base64": "aGVsbG8="});
        ask(&chat, "blob", given)
    };
    let reply = blob("demo://a/report.gz");
    assert_eq!(names(&reply), ["report.gz"]);
    let link = reply.link("report.gz");
    assert_eq!(chat.download(&link).text(), "hello");
    // The same content is the same file, with a separate link.
    let again = blob("demo://a/report.gz");
    assert_eq!(names(&again), ["report.gz"]);
    assert_ne!(again.link("report.gz"), link);
    write(&chat, "x.gz").ok();
    assert_eq!(names(&blob("demo://b/x.gz")), ["x-2.gz"]);
    assert_eq!(names(&blob("file:///etc/../../../.bashrc")), ["bashrc.gz"]);
    let small = TestBridge::builder(config())
        .var(vars::MAX_WORKSPACE_BYTES, 5000)
        .start();
    let chat = small.chat("alice", "c1");
    let large = json!({"uri": "a:b.gz", "kind": "a/b", "base64": "AAAA".repeat(5000)});
    let reply = ask(&chat, "blob", large);
    assert_eq!(names(&reply), [""; 0]);
    let told = notice(&reply);
    assert!(told.contains("MCPO_MAX_WORKSPACE_BYTES"), "{told}");
}

/// The rows that Python's own SQLite reads from a file.
fn rows(bytes: &[u8]) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("copy.db");
    fs::write(&file, bytes).expect("a copy");
    let script = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); \
                  print(c.execute('pragma integrity_check').fetchone()[0], \
                  c.execute('select count(*) from t').fetchone()[0])";
    let output = Command::new("python3")
        .args(["-c", script])
        .arg(&file)
        .output();
    let output = output.expect("python3 runs");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

#[test]
fn a_database_is_one_file_with_all_that_was_committed() {
    let bridge = TestBridge::start(config());
    let chat = bridge.chat("alice", "c1");
    for (count, expected) in [(1, "ok 1"), (2000, "ok 2001"), (1, "ok 2002")] {
        let reply = ask(&chat, "database", json!({"name": "data.db", "rows": count}));
        assert_eq!(names(&reply), ["data.db"], "{}", reply.text());
        assert_eq!(rows(&chat.download(&reply.link("data.db")).body), expected);
    }
    assert!(bridge.work_with("data.db").join("data.db-wal").exists());
    // Files that only have such names are ordinary files.
    for name in ["notes", "notes-wal", "other-journal"] {
        assert_eq!(names(&write(&chat, name)), [name]);
    }
}

#[test]
fn a_database_in_a_transaction_is_linked_when_that_has_ended() {
    let bridge = TestBridge::start(config());
    let chat = bridge.chat("alice", "c1");
    let reply = ask(&chat, "transaction", json!({"name": "data.db"}));
    assert_eq!(names(&reply), [""; 0], "{}", reply.text());
    assert!(notice(&reply).contains("transaction"), "{}", reply.text());
    let reply = ask(&chat, "transaction", json!({"end": true}));
    assert_eq!(names(&reply), ["data.db"], "{}", reply.text());
    assert_eq!(rows(&chat.download(&reply.link("data.db")).body), "ok 50");
}

#[test]
fn arguments_may_name_files_by_uri() {
    let fields = json!({"resolve_uri_fields": ["uri"]});
    let bridge = TestBridge::start(servers([("places", with(places(), fields))]));
    let chat = bridge.chat("alice", "c1");
    let given = json!({"path": "a b.txt", "content": "hello"});
    ask(&chat, "write", given).ok();
    for uri in [
        "a b.txt",
        "file:a b.txt",
        "file:///a%20b.txt",
        "file://localhost/a%20b.txt",
    ] {
        let reply = ask(&chat, "read_uri", json!({"uri": uri}));
        assert_eq!(reply.ok(), "hello", "{uri}");
    }
    let page = ask(&chat, "read_uri", json!({"uri": "data:text/plain,page"}));
    assert_eq!(page.ok(), "page");
    for bad in ["../x", "file:../x", "file:///%2e%2e/x", "/etc/passwd"] {
        let reply = ask(&chat, "read_uri", json!({"uri": bad}));
        assert_eq!(reply.status, 422, "{bad}: {}", reply.text());
    }
}

fn with_files_server(bytes: u64) -> TestBridge {
    TestBridge::builder(config())
        .var(vars::FILES_SERVER, "true")
        .var(vars::MAX_WORKSPACE_BYTES, bytes)
        .start()
}

fn files(client: &Client, tool: &str, arguments: Value) -> Reply {
    client.call("mcpo/files", tool, arguments)
}

#[test]
fn a_chat_over_its_quota_can_list_and_delete_and_goes_on() {
    let bridge = with_files_server(4 << 20);
    let chat = bridge.chat("alice", "c1");
    write(&chat, "a.txt").ok();
    for (path, more) in [("$TMPDIR/big", "one.txt"), ("~/big", "two.txt")] {
        let reply = ask(&chat, "grow", json!({"path": path, "mib": 5}));
        assert_eq!(reply.status, 507, "{}", reply.text());
        assert!(reply.text().contains("home/ and tmp/"), "{}", reply.text());
        let listed = files(&chat, "list_files", json!({}));
        assert!(listed.text().contains("a.txt"), "{}", listed.text());
        // A call that writes nothing does not fail either.
        ask(&chat, "say", json!({"text": "hello"})).ok();
        assert_eq!(write(&chat, more).status, 507);
        files(&chat, "clear_temporary_files", json!({})).ok();
        assert_eq!(names(&write(&chat, "again.txt")), ["again.txt"]);
    }
    let reply = ask(&chat, "grow", json!({"path": "big.bin", "mib": 5}));
    assert_eq!(reply.status, 507, "{}", reply.text());
    files(&chat, "delete_file", json!({"name": "big.bin"})).ok();
    assert_eq!(names(&write(&chat, "last.txt")), ["last.txt"]);
}

#[test]
fn too_many_temporary_files_are_told_by_a_true_number() {
    let bridge = TestBridge::builder(config())
        .var(vars::FILES_SERVER, "true")
        .var(vars::MAX_WORKSPACE_FILES, 100)
        .start();
    let chat = bridge.chat("alice", "c1");
    let reply = ask(&chat, "many", json!({"path": "$TMPDIR/many", "count": 120}));
    assert_eq!(reply.status, 507, "{}", reply.text());
    assert!(
        reply.text().contains("tmp/ contains more than 100 files"),
        "{}",
        reply.text()
    );
    assert!(
        !reply.text().contains("18446744073709551615"),
        "{}",
        reply.text()
    );
    // Files in `work/` are linked as always.
    assert_eq!(names(&write(&chat, "a.txt")), ["a.txt"]);
    files(&chat, "clear_temporary_files", json!({})).ok();
    assert_eq!(notice(&write(&chat, "b.txt")), "");
}

#[test]
fn a_call_that_fills_the_disk_is_ended_while_it_runs() {
    let bridge = with_files_server(4 << 20);
    let chat = bridge.chat("alice", "c1");
    for path in ["big.bin", "$TMPDIR/big"] {
        let given = json!({"path": path, "mib": 8, "seconds": 2 * LONG});
        let reply = promptly("the end of the call", || ask(&chat, "grow", given));
        assert_eq!(reply.status, 507, "{}", reply.text());
        assert!(reply.text().contains("was cancelled"), "{}", reply.text());
        files(&chat, "clear_temporary_files", json!({})).ok();
        if path == "big.bin" {
            files(&chat, "delete_file", json!({"name": path})).ok();
        }
    }
    assert_eq!(names(&write(&chat, "a.txt")), ["a.txt"]);
}

#[test]
fn below_the_disk_floor_files_are_listed_and_deleted() {
    let root = tempfile::tempdir().expect("a folder");
    let jobs = root.path().join("jobs");
    let bridge = TestBridge::builder(config()).jobs(jobs.clone()).start();
    write(&bridge.chat("alice", "c1"), "a.txt").ok();
    bridge.finish();
    let bridge = TestBridge::builder(config())
        .jobs(jobs)
        .var(vars::FILES_SERVER, "true")
        .var(vars::MIN_FREE_DISK_BYTES, u64::MAX / 2)
        .start();
    let chat = bridge.chat("alice", "c1");
    assert_eq!(write(&chat, "b.txt").status, 507);
    assert!(
        files(&chat, "list_files", json!({}))
            .text()
            .contains("a.txt")
    );
    files(&chat, "delete_file", json!({"name": "a.txt"})).ok();
    assert!(
        !files(&chat, "list_files", json!({}))
            .text()
            .contains("a.txt")
    );
}

#[test]
fn a_copy_that_takes_too_long_is_given_up_and_not_begun_again() {
    // It uses no disk space, but its digest takes hours.
    const BYTES: u64 = 1 << 42;
    let slow = with(places(), json!({"timeout": 10}));
    let bridge = TestBridge::builder(servers([("places", slow)]))
        .var(vars::FILES_SERVER, "true")
        .var(vars::MAX_WORKSPACE_BYTES, BYTES * 2)
        .start();
    let chat = bridge.chat("alice", "c1");
    let reply = ask(&chat, "sparse", json!({"name": "big.bin", "bytes": BYTES}));
    assert_eq!(names(&reply), [""; 0]);
    let said = notice(&reply);
    assert!(
        said.contains("big.bin") && said.contains("get_link"),
        "{said}"
    );
    let reply = write(&chat, "a.txt");
    assert_eq!(names(&reply), ["a.txt"]);
    assert_eq!(notice(&reply), "");
    let staged = bridge.jobs().join(".bridge/tmp");
    for instance in fs::read_dir(staged).expect("the folder").flatten() {
        let left = fs::read_dir(instance.path()).expect("a folder").count();
        assert_eq!(left, 0, "half-made links are removed");
    }
    let metrics = bridge.client().get("/metrics").text();
    assert!(metrics.contains("mcpo_files_given_up_total 1"), "{metrics}");
}
