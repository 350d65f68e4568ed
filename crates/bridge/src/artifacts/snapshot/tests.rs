use std::{
    fs::{self, File},
    os::unix::fs::symlink,
    time::{Duration, SystemTime},
};

use bridge_model::JobId;

use super::*;

fn look(work: &Path) -> Snapshot {
    Snapshot::take(work, &Limits::default()).unwrap()
}

fn names(changed: &[ChangedFile]) -> Vec<String> {
    changed
        .iter()
        .map(|file| file.path.display().into())
        .collect()
}

#[test]
fn created_and_changed_files_are_found_at_any_depth() {
    let dir = tempfile::tempdir().unwrap();
    let work = dir.path();
    fs::create_dir_all(work.join("a/b/c")).unwrap();
    for name in ["same", "a/edited", "deleted"] {
        fs::write(work.join(name), "one").unwrap();
    }
    let before = look(work);
    fs::write(work.join("a/edited"), "two!").unwrap();
    fs::write(work.join("a/b/c/新しい.txt"), "new").unwrap();
    fs::remove_file(work.join("deleted")).unwrap();
    let found = changed(&before, &look(work));
    assert_eq!(names(&found), ["a/b/c/新しい.txt", "a/edited"]);
    assert_eq!((found[0].created, found[0].size), (true, 3));
    assert!(!found[1].created);
    assert_eq!(changed(&before, &before), []);
}

#[test]
fn same_size_same_mtime_is_still_found() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a");
    let past = SystemTime::now() - Duration::from_hours(1);
    let write = |text: &str| {
        fs::write(&file, text).unwrap();
        File::options()
            .write(true)
            .open(&file)
            .unwrap()
            .set_modified(past)
            .unwrap();
    };
    write("one");
    let before = look(dir.path());
    // The clock of ctime ticks with the kernel's timer: wait for the next tick, not for a time.
    while {
        write("two");
        changed(&before, &look(dir.path())).is_empty()
    } {}
    let after = look(dir.path());
    let old = before.files.values().next().unwrap();
    let new = after.files.values().next().unwrap();
    assert_eq!((old.size, old.modified), (new.size, new.modified));
}

#[test]
fn saving_by_rename_is_found() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("book.xlsx.tmp"), "one").unwrap();
    let before = look(dir.path());
    fs::rename(
        dir.path().join("book.xlsx.tmp"),
        dir.path().join("book.xlsx"),
    )
    .unwrap();
    assert_eq!(names(&changed(&before, &look(dir.path()))), ["book.xlsx"]);
}

#[test]
fn hidden_partial_and_lock_files_are_counted_and_not_named() {
    let dir = tempfile::tempdir().unwrap();
    for folder in [".git", "node_modules/x", "__pycache__"] {
        fs::create_dir_all(dir.path().join(folder)).unwrap();
    }
    let skipped = [
        ".git/config",
        "node_modules/x/a.js",
        "__pycache__/a.pyc",
        ".hidden",
        "~$book.xlsx",
        ".~lock.book.ods#",
        "a.TMP",
        "b.part",
        "c.crdownload",
    ];
    for name in skipped {
        fs::write(dir.path().join(name), "x").unwrap();
    }
    fs::write(dir.path().join("tmp"), "x").unwrap();
    let found = look(dir.path());
    assert_eq!(
        found.files().map(RelativePath::display).collect::<Vec<_>>(),
        ["tmp"]
    );
    assert_eq!(found.usage().entries, 9 + 4 + 1);
}

#[test]
fn links_fifos_and_sockets_are_not_files() {
    let dir = tempfile::tempdir().unwrap();
    let work = dir.path().join("work");
    fs::create_dir(&work).unwrap();
    fs::write(dir.path().join("secret"), "x").unwrap();
    symlink("../secret", work.join("link")).unwrap();
    symlink("..", work.join("up")).unwrap();
    symlink("loop", work.join("loop")).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, work.join("fifo"), rustix::fs::Mode::RUSR).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(work.join("socket")).unwrap();
    assert_eq!(look(&work).files().count(), 0);
    symlink(&work, dir.path().join("linked")).unwrap();
    assert!(Snapshot::take(&dir.path().join("linked"), &Limits::default()).is_err());
}

#[test]
fn odd_names_do_no_harm() {
    let dir = tempfile::tempdir().unwrap();
    for name in [&b"bad\xff.txt"[..], b"line\r\nbreak.txt"] {
        fs::write(dir.path().join(OsStr::from_bytes(name)), "x").unwrap();
    }
    let found = changed(&Snapshot::default(), &look(dir.path()));
    assert_eq!(names(&found), ["bad\u{fffd}.txt", "line__break.txt"]);
}

#[test]
fn usage_counts_blocks_and_hard_links_once() {
    let dir = tempfile::tempdir().unwrap();
    File::create(dir.path().join("sparse"))
        .unwrap()
        .set_len(1 << 40)
        .unwrap();
    let sparse = look(dir.path()).usage().bytes;
    assert!(sparse < 1 << 20);
    fs::write(dir.path().join("full"), vec![1; 1 << 20]).unwrap();
    File::open(dir.path().join("full"))
        .unwrap()
        .sync_all()
        .unwrap();
    let one = look(dir.path()).usage().bytes;
    assert!(one >= sparse + (1 << 20));
    fs::hard_link(dir.path().join("full"), dir.path().join("again")).unwrap();
    let two = look(dir.path()).usage();
    assert_eq!((two.bytes, two.entries), (one, 3));
}

#[test]
fn limits_hold() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("1/2/3")).unwrap();
    let take = |entries, depth| Snapshot::take(dir.path(), &Limits { entries, depth });
    assert!(take(3, 3).is_ok());
    assert!(matches!(take(2, 3), Err(SnapshotError::TooManyEntries(2))));
    assert!(matches!(take(3, 2), Err(SnapshotError::TooDeep(2))));
}

#[test]
fn what_is_hidden_or_beside_the_work_is_kept_apart_and_caches_are_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let job = Job::below(dir.path(), dir.path(), JobId::random());
    for folder in [job.work(), job.home(), job.tmp()] {
        fs::create_dir_all(folder).unwrap();
    }
    let before = Snapshot::of(&job, &Limits::default()).unwrap();
    let put = |path: &str| {
        let path = job.folder().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "x").unwrap();
    };
    for path in [
        "work/plain/cache/a",
        "work/.out/b",
        "work/c.part",
        "work/node_modules/d",
        "work/.x/Code Cache/e",
        "home/f",
        "home/.cache/g",
        "tmp/h/i",
        "tmp/.pytest_cache/j",
    ] {
        put(path);
    }
    let after = Snapshot::of(&job, &Limits::default()).unwrap();
    let plain: Vec<_> = after.files().map(|path| path.display()).collect();
    assert_eq!(plain, ["plain/cache/a"]);
    let aside = changed_aside(&before, &after);
    let aside: Vec<_> = aside.iter().map(Place::display).collect();
    assert_eq!(aside, [".out/b", "c.part", "home/f", "tmp/h/i"]);
    assert_eq!(changed_aside(&after, &after), []);
    assert!(after.aside_bytes() > 0 && after.aside_bytes() < after.usage().bytes);
}
