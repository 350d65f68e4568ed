//! A disk that is full, read-only or faulty for a while, and its content when a link is returned.

use std::{fs, process::Command};

use serde_json::{Value, json};

use crate::support::{Builder, TestBridge, echo, eventually, fixture, servers, vars};

const NO_SPACE: i32 = 28;
const READ_ONLY: i32 = 30;
const BROKEN: i32 = 5;

/// The disk of one bridge.
struct Disk(tempfile::TempDir);

impl Disk {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let built = Command::new("cc")
            .args(["-shared", "-fPIC", "-o"])
            .arg(folder.path().join("disk_faults.so"))
            .arg(fixture("disk_faults.c"))
            .arg("-ldl")
            .status();
        assert!(built.expect("a C compiler").success());
        Self(folder)
    }

    fn builder(&self) -> Builder {
        let path = |name: &str| self.0.path().join(name).display().to_string();
        TestBridge::builder(servers([("echo", echo())]))
            .var("LD_PRELOAD", path("disk_faults.so"))
            .var("DISK_FAULTS", path("faults"))
            .var("DISK_LOG", path("log"))
            .var(vars::MIN_FREE_DISK_BYTES, 0)
    }

    /// From now on these operations fail for paths that contain these texts.
    fn fails(&self, rules: &[(&str, i32, &str)]) {
        let lines = rules
            .iter()
            .map(|(operation, number, text)| format!("{operation} {number} {text}\n"));
        let beside = self.0.path().join("next");
        fs::write(&beside, lines.collect::<String>()).expect("the faults");
        fs::rename(beside, self.0.path().join("faults")).expect("the faults");
    }

    fn works(&self) {
        self.fails(&[]);
    }

    fn log(&self) -> Vec<String> {
        let log = fs::read_to_string(self.0.path().join("log")).expect("the log");
        log.lines().map(str::to_owned).collect()
    }
}

fn file(name: &str) -> Value {
    json!({"name": name, "content": "four"})
}

#[test]
fn a_link_and_whose_it_is_are_on_the_disk_before_it_is_handed_out() {
    let disk = Disk::new();
    let bridge = disk.builder().start();
    let reply = bridge
        .chat("alice", "c1")
        .call("echo", "write_file", file("a.txt"));
    let link = reply.link("a.txt");
    let log = disk.log();
    let shown = log
        .iter()
        .position(|line| line.starts_with("rename ") && line.contains("/.bridge/artifacts/"))
        .expect("the link is shown");
    let names: Vec<&str> = log[shown].split(' ').collect();
    let [_, staged, folder] = names[..] else {
        panic!("{names:?}")
    };
    let token = folder.rsplit('/').next().expect("a name");
    assert!(link.contains(token), "{link} {token}");
    let shard = folder.strip_suffix(&format!("/{token}")).expect("a shard");
    let is_synced = |lines: &[String], path: &str| lines.contains(&format!("sync {path}"));
    let (before, after) = log.split_at(shown);
    for name in ["/data", "/meta.json", ""] {
        let path = format!("{staged}{name}");
        assert!(is_synced(before, &path), "{path}: {log:#?}");
    }
    let of_job = |name: &str| {
        before
            .iter()
            .any(|line| line.starts_with("sync ") && line.ends_with(name))
    };
    assert!(of_job("/metadata.json") && of_job("/lease"), "{log:#?}");
    assert!(is_synced(after, shard), "{log:#?}");
}

#[test]
fn on_a_full_disk_a_call_loses_its_link_and_not_its_answer() {
    let disk = Disk::new();
    let bridge = disk.builder().start();
    let chat = bridge.chat("alice", "c1");
    chat.echo("counter", json!({}));
    disk.fails(&[("write", NO_SPACE, "/.bridge/tmp/")]);
    let full = chat.call("echo", "write_file", file("a.txt")).ok();
    assert!(full["notice"].to_string().contains("Not linked"), "{full}");
    for count in 2..5 {
        assert_eq!(chat.echo("counter", json!({})), count);
    }
    disk.works();
    chat.call("echo", "write_file", file("b.txt")).link("b.txt");
}

#[test]
fn a_disk_without_room_for_a_folder_is_told_of_until_it_has_some() {
    for (number, words) in [(NO_SPACE, "No space left"), (READ_ONLY, "Read-only")] {
        let disk = Disk::new();
        let bridge = disk.builder().start();
        bridge.chat("alice", "c1").echo("counter", json!({}));
        disk.fails(&[("mkdir", number, "/")]);
        let reply = bridge
            .chat("alice", "c2")
            .call("echo", "counter", json!({}));
        assert!([500, 507].contains(&reply.status), "{}", reply.text());
        eventually("health says so", || {
            let health = bridge.client().get("/health").text();
            health.contains(words) && bridge.client().get("/health/ready").status == 503
        });
        disk.works();
        eventually("it is well again", || {
            bridge.client().get("/health/ready").status == 200
        });
        bridge.chat("alice", "c2").echo("counter", json!({}));
    }
}

#[test]
fn a_record_that_cannot_be_read_for_a_while_is_neither_forgotten_nor_replaced() {
    let disk = Disk::new();
    let mut bridge = disk.builder().start();
    let chat = bridge.chat("alice", "c1");
    chat.call("echo", "write_file", file("a.txt")).link("a.txt");
    for record in ["/.bridge/bindings/", "/metadata.json", "/lease"] {
        bridge.restart();
        disk.fails(&[("open", BROKEN, record)]);
        let chat = bridge.chat("alice", "c1");
        let reply = chat.call("echo", "read_file", json!({"name": "a.txt"}));
        assert!(reply.status >= 500, "{record}: {}", reply.text());
        disk.works();
        let read = chat
            .call("echo", "read_file", json!({"name": "a.txt"}))
            .ok();
        assert!(read.to_string().contains("four"), "{record}: {read}");
        // There is a second one while the server's lists are read.
        eventually("the chat has one folder", || bridge.workspaces().len() == 1);
    }
}
