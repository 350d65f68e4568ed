use std::{io::Write, os::unix::fs::symlink};

use bridge_model::{JobId, LinkToken};
use serde_json::Map;

use super::{super::NewJob, *};
use crate::{
    Artifact, Link, TOMBSTONE,
    testing::{Folder, alice, key, later, new_job},
};

const CLOCKS: Clocks = Clocks {
    retention: Duration::from_hours(1),
    tombstone: TOMBSTONE,
};
const HOUR: i64 = 3600;

fn link(store: &Store, owner: &Principal, now: Timestamp) -> LinkToken {
    let artifact = Artifact {
        token: LinkToken::random(),
        name: "a.txt".into(),
        path: "a.txt".into(),
        ascii_name: "a.txt".into(),
        size: 1,
        mime_type: "text/plain".into(),
        sha256: String::new(),
        created_at: now,
        expires_at: later(now, HOUR),
        gone_at: None,
        gone: None,
        job: JobId::random(),
        server: "s".into(),
        tool: "t".into(),
        principal: PrincipalHash::from(owner),
        other: Map::new(),
    };
    let mut staged = store.stage_link().unwrap();
    staged.data().write_all(b"x").unwrap();
    staged.publish(store, &artifact).unwrap();
    artifact.token
}

#[test]
fn a_workspace_goes_after_retention_with_its_binding() {
    let folder = Folder::new();
    let store = folder.open();
    let (job, _) = store.bind(&key("c"), &new_job(), folder.now).unwrap();
    let called = later(folder.now, HOUR);
    store
        .update_metadata(&job, |m| m.last_call_at = Some(called))
        .unwrap();
    let early = store.collect(&CLOCKS, None, later(called, HOUR - 1));
    assert_eq!((early.removed_jobs, early.removed_bindings), (0, 0));
    let due = store.collect(&CLOCKS, None, later(called, HOUR));
    assert_eq!((due.removed_jobs, due.removed_bindings), (1, 1));
    assert_eq!(due.errors, Vec::<String>::new());
    assert!(!job.folder().exists());
}

#[test]
fn a_leased_workspace_stays_however_old_and_goes_once_its_holder_died() {
    let folder = Folder::new();
    let years = later(folder.now, 100_000_000);
    let job = folder.crash(|holder| {
        let held = holder
            .open_workspace(&key("c"), &new_job(), folder.now)
            .unwrap();
        let other = folder.open();
        for store in [holder, &other] {
            let report = store.collect(&CLOCKS, None, years);
            assert_eq!((report.removed_jobs, report.leased_jobs), (0, 1));
            let user = store.collect(&CLOCKS, Some(&alice()), years);
            assert_eq!((user.removed_jobs, user.leased_jobs), (0, 1));
        }
        held.job
    });
    assert!(job.folder().exists());
    assert_eq!(folder.open().collect(&CLOCKS, None, years).removed_jobs, 1);
}

#[test]
fn links_become_tombstones_and_then_nothing() {
    let folder = Folder::new();
    let store = folder.open();
    let token = link(&store, &alice(), folder.now);
    assert_eq!(store.collect(&CLOCKS, None, folder.now).ended_links, 0);
    let over = later(folder.now, HOUR);
    assert_eq!(store.collect(&CLOCKS, None, over).ended_links, 1);
    assert_eq!(store.collect(&CLOCKS, None, over).ended_links, 0);
    let found = store.link(&token, over).unwrap();
    assert!(matches!(found, Link::Gone(GoneReason::Expired)));
    let later = later(over, 7 * 24 * HOUR);
    assert_eq!(store.collect(&CLOCKS, None, later).removed_tombstones, 1);
    assert!(matches!(store.link(&token, over).unwrap(), Link::Unknown));
}

#[test]
fn a_users_things_go_now_and_nobody_elses() {
    let folder = Folder::new();
    let store = folder.open();
    let bob = Principal::User("bob".into());
    let mine = link(&store, &alice(), folder.now);
    let his = link(&store, &bob, folder.now);
    store.bind(&key("c"), &new_job(), folder.now).unwrap();
    let bobs = NewJob {
        principal: PrincipalHash::from(&bob),
        ..new_job()
    };
    store.create_job(&bobs, folder.now).unwrap();
    let report = store.collect(&CLOCKS, Some(&alice()), folder.now);
    let counts = (
        report.removed_jobs,
        report.ended_links,
        report.removed_bindings,
    );
    assert_eq!(counts, (1, 1, 1));
    let found = store.link(&mine, folder.now).unwrap();
    assert!(matches!(found, Link::Gone(GoneReason::Revoked)));
    assert!(matches!(
        store.link(&his, folder.now).unwrap(),
        Link::Live(..)
    ));
    assert_eq!(store.jobs().unwrap().len(), 1);
}

#[test]
fn strangers_are_left_alone_and_links_not_followed() {
    let folder = Folder::new();
    let store = folder.open();
    fs::write(folder.outside().join("keep"), "x").unwrap();
    symlink(
        folder.outside(),
        folder.path().join(JobId::random().to_string()),
    )
    .unwrap();
    fs::create_dir(folder.path().join("lost+found")).unwrap();
    let job = store.create_job(&new_job(), folder.now).unwrap();
    symlink(folder.outside(), job.work().join("out")).unwrap();
    let report = store.collect(&CLOCKS, None, later(folder.now, 2 * HOUR));
    assert_eq!((report.removed_jobs, report.unknown_entries), (1, 2));
    assert!(folder.outside().join("keep").exists());
    assert!(folder.path().join("lost+found").exists());
}

#[test]
fn one_bad_entry_does_not_stop_the_rest() {
    let folder = Folder::new();
    let store = folder.open();
    let (bad, good) = (
        link(&store, &alice(), folder.now),
        link(&store, &alice(), folder.now),
    );
    let shard = folder
        .path()
        .join(".bridge/artifacts")
        .join(&bad.as_str()[..2]);
    fs::write(shard.join(bad.as_str()).join("meta.json"), "{").unwrap();
    let unreadable = store.create_job(&new_job(), folder.now).unwrap();
    fs::write(unreadable.folder().join("metadata.json"), "{").unwrap();
    let report = store.collect(&CLOCKS, None, later(folder.now, 2 * HOUR));
    assert_eq!((report.ended_links, report.removed_jobs), (1, 1));
    assert_eq!(report.errors.len(), 1, "{:?}", report.errors);
    assert!(matches!(
        store.link(&good, later(folder.now, HOUR)).unwrap(),
        Link::Gone(..)
    ));
}

#[test]
fn a_new_workspace_is_not_taken_before_its_first_call() {
    let folder = Folder::new();
    let store = folder.open();
    store.create_job(&new_job(), folder.now).unwrap();
    let none = Clocks {
        retention: Duration::ZERO,
        ..CLOCKS
    };
    assert_eq!(
        store
            .collect(&none, None, later(folder.now, 4))
            .removed_jobs,
        0
    );
    assert_eq!(
        store
            .collect(&none, None, later(folder.now, 5))
            .removed_jobs,
        1
    );
}

#[test]
fn while_clocks_disagree_only_what_needs_no_clock_goes() {
    let folder = Folder::new();
    let made = folder.crash(|store| store.create_unclaimed(folder.now).unwrap().0);
    let store = folder.open();
    let long_ago = later(folder.now, -30 * 24 * HOUR);
    let token = link(&store, &alice(), long_ago);
    let (job, _) = store.bind(&key("c"), &new_job(), long_ago).unwrap();
    let doubt = Some(Doubt::Disagree("it is tomorrow".to_owned()));
    let report = store.collect_unless(doubt, &CLOCKS);
    assert_eq!(report.held_back.as_deref(), Some("it is tomorrow"));
    assert_eq!((report.removed_jobs, report.ended_links), (1, 0));
    assert!(!made.folder().exists() && job.folder().exists());
    let found = store.link(&token, long_ago).unwrap();
    assert!(matches!(found, Link::Live(..)), "its bytes are there");
    let report = store.collect_unless(None, &CLOCKS);
    assert_eq!(report.held_back, None);
    assert_eq!((report.removed_jobs, report.ended_links), (1, 1));
    assert_eq!(report.errors, [] as [String; 0]);
}

#[test]
fn many_go_in_one_round_and_each_is_counted_once() {
    let folder = Folder::new();
    let store = folder.open();
    let chats = ["a", "b", "c"].map(|chat| store.bind(&key(chat), &new_job(), folder.now));
    for _ in 0..200 {
        let job = store.create_job(&new_job(), folder.now).unwrap();
        fs::write(job.work().join("a"), "x").unwrap();
        link(&store, &alice(), folder.now);
    }
    let (held, _) = store.create_leased_job(&new_job(), folder.now).unwrap();
    let report = store.collect(&CLOCKS, None, later(folder.now, 2 * HOUR));
    assert_eq!(report.errors, [] as [String; 0]);
    assert_eq!((report.removed_jobs, report.ended_links), (203, 200));
    assert_eq!((report.leased_jobs, report.removed_bindings), (1, 3));
    assert!(held.folder().exists() && chats.len() == 3);
    assert_eq!(fs::read_dir(store.staging()).unwrap().count(), 0);
}

#[test]
fn two_who_clean_at_once_do_not_trip_over_each_other() {
    let folder = Folder::new();
    let stores = [folder.open(), folder.open()];
    for _ in 0..100 {
        stores[0].create_job(&new_job(), folder.now).unwrap();
    }
    let reports: Vec<_> = thread::scope(|scope| {
        let clean = |store: &Store| store.collect(&CLOCKS, None, later(folder.now, 2 * HOUR));
        let started = stores
            .each_ref()
            .map(|store| scope.spawn(move || clean(store)));
        started.into_iter().map(|one| one.join().unwrap()).collect()
    });
    assert_eq!(
        reports
            .iter()
            .map(|report| report.removed_jobs)
            .sum::<u64>(),
        100
    );
    for report in reports {
        assert_eq!(report.errors, [] as [String; 0]);
    }
}

#[test]
fn the_claims_of_killed_bridges_go() {
    let folder = Folder::new();
    let store = folder.open();
    let (job, _) = store.bind(&key("c"), &new_job(), folder.now).unwrap();
    let claim = |number: u32, id: &str| {
        let path = job.folder().join(format!("lease.{number}"));
        fs::write(&path, id).unwrap();
        path
    };
    let living = claim(1, &folder.open().instance().id().to_string());
    let other = folder.open();
    let kept = claim(2, &other.instance().id().to_string());
    let dead = claim(3, &folder.crash(|store| store.instance().id().to_string()));
    store.collect(&CLOCKS, None, folder.now);
    assert!(!dead.exists() && !living.exists(), "both have ended");
    assert!(kept.exists());
}

#[test]
fn something_else_in_the_place_of_metadata_keeps_no_folder_for_ever() {
    let folder = Folder::new();
    let store = folder.open();
    let job = store.create_job(&new_job(), folder.now).unwrap();
    let metadata = job.folder().join("metadata.json");
    fs::remove_file(&metadata).unwrap();
    fs::create_dir(&metadata).unwrap();
    let report = store.collect(&CLOCKS, None, later(folder.now, HOUR - 60));
    assert_eq!(report.removed_jobs, 0);
    let user = store.collect(&CLOCKS, Some(&alice()), folder.now);
    assert_eq!((user.removed_jobs, user.errors.len()), (0, 1));
    let report = store.collect(&CLOCKS, None, later(folder.now, HOUR + 60));
    assert_eq!(
        (report.removed_jobs, report.errors.len()),
        (1, 0),
        "{report:?}"
    );
}
