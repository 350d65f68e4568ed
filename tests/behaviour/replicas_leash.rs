//! Bridges that still run but cannot write to the jobs folder: their children end before another
//! bridge starts new ones, and without other bridges no child ends.

use std::{fs, path::PathBuf, time::Duration};

use serde_json::{Value, json};

use crate::support::{Client, Replicas, TestBridge, eventually, just_echo, result_of, until, vars};

fn count(client: &Client) -> crate::support::Reply {
    client.call("echo", "counter", json!({}))
}

/// A bridge whose own staging folder is a file: it cannot write its records, as on a full or
/// read-only file system, while other bridges can. (CI runs as root and has no FUSE: neither the
/// permissions of a folder nor a mount could do this to one of two bridges.)
struct CutOff {
    staging: PathBuf,
}

impl CutOff {
    fn from_folder(bridge: &TestBridge) -> Self {
        let records = bridge.jobs().join(".bridge");
        let own = format!("http://{}", bridge.address());
        let mut instances = fs::read_dir(records.join("instances")).expect("records");
        let id = instances.find_map(|entry| {
            let text = fs::read_to_string(entry.ok()?.path()).ok()?;
            let record: Value = serde_json::from_str(&text).ok()?;
            let id = record["instance"].as_str()?.to_owned();
            (record["address"] == own).then_some(id)
        });
        let staging = records.join("tmp").join(id.expect("its record"));
        fs::rename(&staging, staging.with_extension("aside")).expect("it is moved");
        fs::write(&staging, "").expect("a file is in its place");
        Self { staging }
    }

    fn heal(self) {
        fs::remove_file(&self.staging).expect("the file goes");
        let aside = self.staging.with_extension("aside");
        fs::rename(aside, &self.staging).expect("the folder is back");
    }
}

/// Waits until more renewals have failed than other bridges wait for.
fn wait_for_silence(bridge: &TestBridge) {
    let silent = until(Duration::from_secs(60), || {
        let failed = bridge.log().matches("heartbeat not written").count();
        (failed >= 8).then_some(())
    });
    assert!(silent.is_some(), "its renewals fail");
}

#[test]
fn a_bridge_that_is_cut_off_from_its_records_has_no_process_left_when_another_takes_over() {
    let replicas = Replicas::with(2, &just_echo(), &[(vars::LEASE_TTL, "8")]);
    let chats = [0, 1].map(|index| replicas.bridges[index].chat("alice", "c"));
    assert_eq!(count(&chats[0]).ok(), 1);
    replicas.wait_until_acquainted(0);
    replicas.wait_until_acquainted(1);
    let sleep = json!({"seconds": 300, "touch": "began"});
    let direct = chats[0].begin("echo", "sleep", &sleep);
    replicas.bridges[0].wait_for_file("began");
    let cut = CutOff::from_folder(&replicas.bridges[0]);
    // The bridge itself runs and is reachable: until it counts as dead, it gets the calls.
    let taken = until(Duration::from_secs(90), || {
        let answer = count(&chats[1]);
        (answer.status == 200).then(|| (answer.json(), replicas.owners()))
    });
    let (taken, owners) = taken.expect("another goes on");
    assert_eq!(result_of(&taken), 1, "{taken}");
    assert_eq!(owners, [1], "the old process was ended before that");
    cut.heal();
    let answer = direct.rest();
    assert!(answer.contains("may have been executed"), "{answer}");
    assert!(!answer.contains("call again"), "{answer}");
    eventually("the first sends its calls on", || {
        count(&chats[0]).status == 200
    });
    assert_eq!(replicas.owners(), [1]);
}

#[test]
fn a_bridge_that_is_alone_keeps_its_sessions_while_its_records_cannot_be_written() {
    let replicas = Replicas::with(1, &just_echo(), &[(vars::LEASE_TTL, "2")]);
    let chat = replicas.bridges[0].chat("alice", "c");
    assert_eq!(count(&chat).ok(), 1);
    let cut = CutOff::from_folder(&replicas.bridges[0]);
    wait_for_silence(&replicas.bridges[0]);
    assert_eq!(replicas.owners(), [0]);
    cut.heal();
    assert_eq!(count(&chat).ok(), 2);
}
