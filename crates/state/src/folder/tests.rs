//! The steps of the store, as callers use them.

use super::*;
use crate::{
    CallEnd, CallOutcome, JobStatus,
    testing::{Folder, alice, artifact, key, new_chat},
};

fn mine(store: &ChatStore, chat: &str) -> Held {
    match store.acquire(&key(chat), &new_chat()).unwrap() {
        Acquired::Mine(held) => held,
        Acquired::Elsewhere(holder) => panic!("{holder}"),
    }
}

fn session(number: u64) -> LiveSession {
    LiveSession {
        server: "excel".into(),
        number,
        pid: Some(7),
        started_at: Timestamp::UNIX_EPOCH,
    }
}

fn ended(outcome: Option<CallOutcome>) -> Done {
    let bytes = Some(5);
    Done {
        ended: Some(CallEnd { bytes, outcome }),
        ..Done::default()
    }
}

#[test]
fn a_chat_is_one_instances_until_it_is_closed() {
    let folder = Folder::new();
    let (one, two) = (folder.open(), folder.open());
    assert!(!one.exists(&key("c")).unwrap());
    let held = mine(&one, "c");
    let elsewhere = two.acquire(&key("c"), &new_chat()).unwrap();
    let Acquired::Elsewhere(holder) = elsewhere else {
        panic!("{elsewhere:?}");
    };
    assert_eq!(holder.instance, one.instance());
    assert_eq!(two.holder(&key("c")).unwrap(), Some(holder));
    assert_eq!(one.holder(&key("c")).unwrap(), None);
    one.close(&held.lease).unwrap();
    assert_eq!(two.holder(&key("c")).unwrap(), None);
    let taken = mine(&two, "c");
    assert_eq!(taken.job.id(), held.job.id());
    assert!(taken.lease.fence > held.lease.fence);
    assert!(!one.holds(&held.lease).unwrap());
}

#[test]
fn what_a_call_did_shows_in_its_chat() {
    let folder = Folder::new();
    let store = folder.open();
    let Held { job, lease, .. } = mine(&store, "c");
    let metadata = || store.chat(job.id()).unwrap().unwrap().metadata;
    store.session_started(&lease, session(1)).unwrap();
    let failed = CallOutcome::Failed("why".into());
    for (outcome, status, error) in [
        (Some(failed), JobStatus::Failed, Some("why")),
        (None, JobStatus::Failed, Some("why")),
        (Some(CallOutcome::Answered), JobStatus::Idle, None),
    ] {
        store.commit(&lease, ended(outcome)).unwrap();
        let metadata = metadata();
        assert!(metadata.last_call_at.is_some());
        assert_eq!(
            (metadata.status, metadata.error.as_deref()),
            (status, error)
        );
        assert_eq!(metadata.bytes, Some(5));
    }
    let attached = vec![("id".to_owned(), "name".to_owned())];
    let done = Done {
        journal: b"{}\n".to_vec(),
        attachments: attached.clone(),
        ..Done::default()
    };
    store.commit(&lease, done).unwrap();
    let known: Vec<_> = store.attachments(job.id()).unwrap().into_iter().collect();
    assert_eq!(known, attached);
    let journal = std::fs::read(job.folder().join("journal.jsonl")).unwrap();
    assert_eq!(journal, b"{}\n");
    store.session_ended(&lease, 1).unwrap();
    let answered = ended(Some(CallOutcome::Answered));
    store.commit(&lease, answered).unwrap();
    assert_eq!(metadata().status, JobStatus::Ended);
    assert_eq!(metadata().server_names, ["excel"]);
}

#[test]
fn after_a_takeover_nothing_is_written() {
    let folder = Folder::new();
    let (slow, other) = (folder.open(), folder.open());
    let Held { job, lease, .. } = mine(&slow, "c");
    slow.release(&lease).unwrap();
    let taken = mine(&other, "c");
    let refused = || {
        let file = artifact(&alice(), folder.now, 60);
        let staged = slow.blobs().stage().unwrap();
        let blob = slow.blobs().put(staged, &file.sha256).unwrap();
        let done = Done {
            links: vec![(file, blob)],
            journal: b"{}\n".to_vec(),
            ..ended(Some(CallOutcome::Failed("late".into())))
        };
        matches!(slow.commit(&lease, done), Err(StoreError::Fenced))
    };
    assert!(refused(), "held by another");
    other.release(&taken.lease).unwrap();
    assert!(refused(), "released by another");
    assert!(slow.session_started(&lease, session(1)).is_err());
    assert!(!job.folder().join("journal.jsonl").exists());
    let metadata = other.chat(job.id()).unwrap().unwrap().metadata;
    assert_eq!((metadata.last_call_at, metadata.error), (None, None));
    assert_eq!(std::fs::read_dir(slow.staging()).unwrap().count(), 0);
}

#[test]
fn what_a_call_did_may_be_written_after_its_own_instance_opened_the_chat_again() {
    let folder = Folder::new();
    let store = folder.open();
    let first = mine(&store, "c");
    store.close(&first.lease).unwrap();
    let again = mine(&store, "c");
    assert!(again.lease.fence > first.lease.fence);
    let late = ended(Some(CallOutcome::Answered));
    store.commit(&first.lease, late).unwrap();
}

#[test]
fn the_processes_of_a_killed_instance_are_forgotten_by_the_next_holder() {
    let folder = Folder::new();
    let held = folder.crash(|store| {
        let held = mine(store, "c");
        store.session_started(&held.lease, session(1)).unwrap();
        held
    });
    let store = folder.open();
    let taken = mine(&store, "c");
    assert_eq!(taken.job.id(), held.job.id());
    assert_eq!(taken.servers, ["excel"]);
    let chat = store.chat(taken.job.id()).unwrap().unwrap();
    assert_eq!(chat.metadata.live_sessions, []);
}

#[test]
fn a_discarded_chat_is_gone_with_its_lease() {
    let folder = Folder::new();
    let store = folder.open();
    for held in [
        store.create(&new_chat()).unwrap(),
        store.create_unclaimed().unwrap(),
    ] {
        store.discard(&held.lease).unwrap();
        store.discard(&held.lease).unwrap();
        assert!(!held.job.folder().exists());
        assert!(!store.holds(&held.lease).unwrap());
    }
}

#[test]
fn the_chat_of_a_key_stays_what_it_is() {
    let folder = Folder::new();
    let store = folder.open();
    store.ensure(&key("c"), &new_chat()).unwrap();
    let ready = store.create_unclaimed().unwrap();
    let claim = |chat: &str| store.claim(&ready.lease, Some(&key(chat)), &new_chat());
    assert!(!claim("c").unwrap());
    assert!(claim("d").unwrap());
    assert!(matches!(claim("e"), Err(StoreError::JobGone)));
    assert_eq!(mine(&store, "d").job.id(), ready.job.id());
}

#[test]
fn a_folder_in_the_place_of_ours_is_none_to_work_in() {
    let dir = Folder::new();
    let store = dir.open();
    let aside = dir.outside().join("aside");
    fs::rename(dir.path(), &aside).unwrap();
    assert!(store.probe().is_err(), "it is gone");
    fs::create_dir(dir.path()).unwrap();
    assert!(store.probe().unwrap_err().to_string().contains("replaced"));
    // Another bridge has created its own folders there.
    let other = dir.open();
    assert!(store.probe().unwrap_err().to_string().contains("replaced"));
    other.probe().unwrap();
    drop(other);
    fs::remove_dir_all(dir.path()).unwrap();
    fs::rename(aside, dir.path()).unwrap();
    store.probe().unwrap();
}

#[test]
fn a_probe_leaves_nothing_and_tells_what_is_free() {
    let dir = Folder::new();
    let store = dir.open();
    let room = store.probe().unwrap();
    assert!(room > 0);
    assert_eq!(fs::read_dir(store.staging()).unwrap().count(), 0);
}

fn problem(path: &Path) -> String {
    prepare(path).unwrap_err().to_string()
}

#[test]
fn makes_the_folder_private() {
    let dir = tempfile::tempdir().unwrap();
    let jobs = dir.path().join("deep/jobs");
    prepare(&jobs).unwrap();
    assert_eq!(fs::metadata(&jobs).unwrap().mode() & 0o777, 0o700);
    fs::set_permissions(&jobs, Permissions::from_mode(0o755)).unwrap();
    prepare(&jobs).unwrap();
    assert_eq!(fs::metadata(&jobs).unwrap().mode() & 0o777, 0o700);
}

#[test]
fn refuses_files_and_links_with_the_fix() {
    let dir = tempfile::tempdir().unwrap();
    let (file, link) = (dir.path().join("file"), dir.path().join("link"));
    fs::write(&file, "").unwrap();
    std::os::unix::fs::symlink(dir.path(), &link).unwrap();
    assert!(problem(&file).contains("not a directory"));
    assert!(problem(&link).contains("symbolic link"));
    assert!(problem(&link.join("")).contains("symbolic link"));
    assert!(problem(&file.join("below")).contains("cannot be used"));
}

#[test]
fn of_other_users_folders_only_those_are_refused_that_all_users_may_change() {
    for (mode, refused) in [
        (0o42775, false),
        (0o42770, false),
        (0o40755, false),
        (0o41777, false),
        (0o40777, true),
        (0o42777, true),
    ] {
        assert_eq!(all_users_may_change(mode), refused, "{mode:o}");
    }
}

#[test]
fn a_volume_of_another_user_is_used_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let jobs = dir.path().join("volume");
    fs::create_dir(&jobs).unwrap();
    fs::set_permissions(&jobs, Permissions::from_mode(0o2775)).unwrap();
    // Only root can change the owner of a folder; for other users the test above covers the rule.
    if std::os::unix::fs::chown(&jobs, Some(65534), None).is_err() {
        return;
    }
    prepare(&jobs).unwrap();
    let (mount, records) = (
        jobs.metadata().unwrap(),
        jobs.join(".bridge").metadata().unwrap(),
    );
    assert_eq!((mount.uid(), mount.mode() & 0o7777), (65534, 0o2775));
    assert_eq!(records.mode() & 0o777, 0o700);
    std::os::unix::fs::chown(jobs.join(".bridge"), Some(65534), None).unwrap();
    assert!(problem(&jobs).contains("'.bridge'"));
    fs::set_permissions(&jobs, Permissions::from_mode(0o777)).unwrap();
    assert!(problem(&jobs).contains("mode 777"));
}

#[test]
fn links_in_place_of_our_own_folder_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let jobs = dir.path().join("jobs");
    prepare(&jobs).unwrap();
    fs::rename(jobs.join(".bridge"), dir.path().join("away")).unwrap();
    std::os::unix::fs::symlink(dir.path().join("away"), jobs.join(".bridge")).unwrap();
    assert!(problem(&jobs).contains("'.bridge'"));
}

#[test]
fn remembers_both_spellings() {
    let dir = tempfile::tempdir().unwrap();
    let real = dir.path().canonicalize().unwrap().join("real");
    fs::create_dir(&real).unwrap();
    std::os::unix::fs::symlink(&real, dir.path().join("alias")).unwrap();
    let written = dir.path().join("alias/jobs");
    let (root, configured) = prepare(&written).unwrap();
    assert_eq!((root, configured), (real.join("jobs"), written));
}
