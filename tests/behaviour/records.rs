//! Records in the jobs folder are neither lost nor forged if a file there is unreadable, truncated
//! or removed.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::{Value, json};

use crate::support::{Client, PROMPT, Replicas, TestBridge, eventually, just_echo, until, vars};

/// Waits until calls are answered, however slow the machine is.
#[track_caller]
fn wait_until_known(bridge: &TestBridge) {
    let known = until(Duration::from_secs(120), || {
        let health = bridge.client().get("/health").json();
        (health["servers"]["echo"]["status"] == "ready").then_some(())
    });
    assert!(known.is_some(), "what the server offers is not known");
}

#[track_caller]
fn count(client: &Client) -> Value {
    client.call("echo", "counter", json!({})).ok()
}

fn the_only(folders: Vec<PathBuf>) -> PathBuf {
    assert_eq!(folders.len(), 1, "{folders:?}");
    folders.into_iter().next().expect("one")
}

/// The workspace of the only chat.
fn chat_folder(jobs: &Path) -> PathBuf {
    let folders = fs::read_dir(jobs).expect("the jobs folder");
    let mut all: Vec<PathBuf> = folders
        .map(|entry| entry.expect("an entry").path())
        .collect();
    all.retain(|path| {
        let text = fs::read_to_string(path.join("metadata.json")).unwrap_or_default();
        let known: Value = serde_json::from_str(&text).unwrap_or_default();
        known["session_keys"]
            .as_array()
            .is_some_and(|keys| !keys.is_empty())
    });
    the_only(all)
}

#[test]
fn metadata_that_cannot_be_read_is_left_as_it_is() {
    let mut bridge = TestBridge::start(just_echo());
    wait_until_known(&bridge);
    let chat = bridge.chat("alice", "c");
    assert_eq!(count(&chat), 1);
    let folder = chat_folder(&bridge.jobs());
    let (metadata, aside) = (folder.join("metadata.json"), folder.join("aside"));
    // Root reads every file, but not a folder in place of a file.
    fs::rename(&metadata, &aside).expect("put aside");
    fs::create_dir(&metadata).expect("a folder");
    assert_eq!(count(&chat), 2, "a running chat goes on");
    // Metadata is not written after every call.
    eventually("it is said", || {
        count(&chat);
        bridge.log().contains("not written to the journal")
    });
    let refused = bridge.command(&["gc", "--user", "alice"]);
    assert!(!refused.status.success(), "it may be hers: {refused:?}");
    fs::remove_dir(&metadata).expect("it is there still, and empty");
    fs::rename(&aside, &metadata).expect("put back");
    bridge.stop();
    let text = fs::read_to_string(&metadata).expect("the record");
    let known: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(known["server_names"], json!(["echo"]), "{known}");
    let found = bridge.command(&["gc", "--user", "alice"]);
    assert!(found.status.success(), "{found:?}");
    assert!(
        !folder.exists(),
        "her folder is known to be hers: {found:?}"
    );
}

#[test]
fn a_torn_lease_or_a_vanished_lock_leaves_a_chat_where_it_is() {
    let replicas = Replicas::start(2, &just_echo());
    replicas.wait_until_acquainted(0);
    replicas.wait_until_acquainted(1);
    replicas.bridges.iter().for_each(wait_until_known);
    let [one, two] = [0, 1].map(|index| replicas.bridges[index].chat("alice", "c"));
    assert_eq!(count(&one), 1);
    assert_eq!(count(&two), 2);
    let lease = chat_folder(&replicas.jobs()).join("lease");
    let fence = || -> Option<u64> {
        let text = fs::read_to_string(&lease).ok()?;
        serde_json::from_str::<Value>(&text).ok()?["fence"].as_u64()
    };
    let first = fence();
    for turn in 0..3_u64 {
        match turn {
            0 => fs::write(&lease, "").expect("torn"),
            1 => fs::remove_file(&lease).expect("removed"),
            _ => {
                let instances = replicas.jobs().join(".bridge/instances");
                for entry in fs::read_dir(instances).expect("a folder") {
                    let path = entry.expect("an entry").path();
                    if path.extension().is_some_and(|end| end == "lock") {
                        fs::remove_file(path).expect("removed");
                    }
                }
            }
        }
        assert_eq!(count(&two), 3 + 2 * turn, "the same process answers");
        assert_eq!(count(&one), 4 + 2 * turn);
    }
    eventually("the lease is written anew", || fence() == first);
    assert_eq!(replicas.owners().len(), 1);
}

#[test]
fn a_jobs_folder_that_is_replaced_works_from_the_next_call_on() {
    let bridge = TestBridge::start(just_echo());
    wait_until_known(&bridge);
    assert_eq!(count(&bridge.chat("alice", "before")), 1);
    let away = tempfile::tempdir_in(bridge.jobs().parent().expect("a parent")).expect("a folder");
    fs::rename(bridge.jobs(), away.path().join("jobs")).expect("moved away");
    fs::create_dir(bridge.jobs()).expect("an empty one");
    let chat = bridge.chat("alice", "after");
    assert_eq!(count(&chat), 1);
    let file = json!({"name": "a.txt", "content": "words"});
    let link = chat.call("echo", "write_file", file).link("a.txt");
    assert_eq!(chat.download(&link).text(), "words");
    bridge.wait_for_log("emptied or replaced");
    // The earlier chat has no folder any more: it gets a new one, sooner or later.
    let before = bridge.chat("alice", "before");
    let again = until(PROMPT, || {
        let answer = before.call("echo", "counter", json!({}));
        (answer.status == 200).then_some(())
    });
    assert!(again.is_some());
}

#[test]
fn changed_bytes_are_never_served_as_the_file_that_was_linked() {
    let bridge = TestBridge::start(just_echo());
    wait_until_known(&bridge);
    let chat = bridge.chat("alice", "c");
    let file = json!({"name": "a.txt", "content": "words"});
    let link = chat.call("echo", "write_file", file).link("a.txt");
    assert_eq!(chat.download(&link).text(), "words");
    let token = link.split('/').nth_back(1).expect("a token");
    let folder = bridge.jobs().join(".bridge/artifacts").join(&token[..2]);
    let data = folder.join(token).join("data");
    let modified = fs::metadata(&data).and_then(|found| found.modified());
    fs::write(&data, "sword").expect("changed");
    let opened = fs::File::options()
        .append(true)
        .open(&data)
        .expect("a file");
    opened
        .set_modified(modified.expect("a time"))
        .expect("set back");
    let reply = chat.download(&link);
    assert_eq!(reply.status, 500);
    assert!(!reply.text().contains("sword"));
    fs::write(&data, "words").expect("as it was");
    assert_eq!(chat.download(&link).text(), "words");
}

#[test]
fn where_another_bridges_clock_is_far_off_nothing_goes_for_its_age_and_health_says_so() {
    let mut bridge = TestBridge::builder(just_echo())
        .var(vars::FILE_EXPIRY, 1)
        .var(vars::FILE_RETENTION, 1)
        .var(vars::CLEANUP_INTERVAL, 1)
        .var(vars::LEASE_TTL, 120)
        .start();
    wait_until_known(&bridge);
    count(&bridge.chat("alice", "c"));
    bridge.stop();
    let folder = chat_folder(&bridge.jobs());
    let instances = bridge.jobs().join(".bridge/instances");
    let id = uuid::Uuid::new_v4();
    let record = json!({
        "instance": id,
        "boot_id": "of another machine",
        "pid": 1,
        "host": "far-away",
        "address": null,
        "ttl_ms": 120_000,
        "started_at": "2200-01-01T00:00:00Z",
        "renewed_at": "2200-01-01T00:00:00Z",
    });
    fs::write(instances.join(format!("{id}.json")), record.to_string()).expect("a record");
    bridge.restart();
    eventually("health says so", || {
        let health = bridge.client().get("/health").json();
        let warnings = health["warnings"].to_string();
        warnings.contains("clean-up by age is paused") && warnings.contains("far-away")
    });
    assert!(
        folder.exists(),
        "it is older than a second by its clock alone"
    );
    fs::remove_file(instances.join(format!("{id}.json"))).expect("it has left");
    eventually("clean-up goes on", || {
        let health = bridge.client().get("/health").json();
        !folder.exists() && !health["warnings"].to_string().contains("far-away")
    });
}
