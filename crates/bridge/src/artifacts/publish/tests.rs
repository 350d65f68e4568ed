use std::{
    cell::Cell,
    fs,
    io::Write,
    os::unix::fs::symlink,
    sync::atomic::{AtomicBool, Ordering},
};

use bridge_state::{
    Held, Link,
    testing::{Folder, alice, later, new_chat},
};

use super::*;
use crate::artifacts::Limits;

struct Bench {
    folder: Folder,
    store: ChatStore,
    job: Job,
    lease: Lease,
}

impl Bench {
    fn new() -> Self {
        let folder = Folder::new();
        let store = folder.open();
        let Held { job, lease, .. } = store.create(&new_chat()).unwrap();
        Self {
            folder,
            store,
            job,
            lease,
        }
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.job.work().join(name), text).unwrap();
    }

    fn publish(&self, name: &str) -> Result<Artifact, PublishError> {
        let snapshot = Snapshot::take(&self.job.work(), &Limits::default()).unwrap();
        self.publish_with(name, &snapshot, 1000)
    }

    fn publish_with(
        &self,
        name: &str,
        snapshot: &Snapshot,
        max_bytes: u64,
    ) -> Result<Artifact, PublishError> {
        let origin = Origin {
            lease: &self.lease,
            principal: &alice(),
            server: &"excel".parse().unwrap(),
            tool: "write",
            ttl: Duration::from_mins(1),
            max_bytes,
        };
        let path = RelativePath::parse(name).unwrap();
        publish(
            &self.store,
            &self.job,
            &Place::work(path),
            snapshot,
            &origin,
            &Patience::endless(),
            self.folder.now,
        )
    }

    fn served(&self, artifact: &Artifact) -> String {
        match self.store.link(&artifact.token).unwrap() {
            Link::Live(_, blob) => {
                let mut data = self.store.blobs().get(&blob, None).unwrap().unwrap();
                let mut text = String::new();
                data.read_to_string(&mut text).unwrap();
                text
            }
            other => panic!("{other:?}"),
        }
    }

    fn assert_nothing_left(&self) {
        let staging = self.folder.path().join(".bridge/tmp");
        for instance in fs::read_dir(staging).unwrap() {
            assert_eq!(fs::read_dir(instance.unwrap().path()).unwrap().count(), 0);
        }
    }
}

#[test]
fn an_old_link_keeps_its_bytes() {
    let bench = Bench::new();
    bench.write("売上.xlsx", "one");
    let one = bench.publish("売上.xlsx").unwrap();
    bench.write("売上.xlsx", "two!");
    let two = bench.publish("売上.xlsx").unwrap();
    fs::remove_file(bench.job.work().join("売上.xlsx")).unwrap();
    assert_eq!(
        (bench.served(&one), bench.served(&two)),
        ("one".into(), "two!".into())
    );
    assert_ne!(one.token, two.token);
    assert_eq!(
        (one.name.as_str(), one.ascii_name.as_str()),
        ("売上.xlsx", "file.xlsx")
    );
    assert_eq!((one.size, one.expires_at), (3, later(bench.folder.now, 60)));
    let sha256 = "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed";
    assert_eq!(one.sha256, sha256);
    bench.assert_nothing_left();
}

#[test]
fn links_folders_and_fifos_are_refused() {
    let bench = Bench::new();
    let work = bench.job.work();
    fs::write(bench.folder.outside().join("secret"), "x").unwrap();
    symlink(bench.folder.outside().join("secret"), work.join("link")).unwrap();
    symlink(bench.folder.outside(), work.join("dir")).unwrap();
    symlink("../metadata.json", work.join("up")).unwrap();
    fs::create_dir(work.join("folder")).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, work.join("fifo"), rustix::fs::Mode::RUSR).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(work.join("socket")).unwrap();
    for name in ["link", "dir/secret", "up", "missing"] {
        let refused = bench.publish(name);
        assert!(
            matches!(refused, Err(PublishError::NotFound(_))),
            "{name}: {refused:?}"
        );
    }
    for name in ["folder", "fifo", "socket"] {
        let refused = bench.publish(name);
        assert!(
            matches!(refused, Err(PublishError::NotAFile(_))),
            "{name}: {refused:?}"
        );
    }
    bench.assert_nothing_left();
}

#[test]
fn hard_links_are_published_only_if_all_names_are_here() {
    let bench = Bench::new();
    let work = bench.job.work();
    fs::write(bench.folder.outside().join("secret"), "x").unwrap();
    fs::hard_link(bench.folder.outside().join("secret"), work.join("stolen")).unwrap();
    bench.write("a", "mine");
    fs::hard_link(work.join("a"), work.join(".backup")).unwrap();
    let refused = bench.publish("stolen");
    assert!(
        matches!(refused, Err(PublishError::LinkedElsewhere(_))),
        "{refused:?}"
    );
    assert_eq!(bench.served(&bench.publish("a").unwrap()), "mine");
}

#[test]
fn a_path_swapped_for_a_link_never_leads_out() {
    let bench = Bench::new();
    let work = bench.job.work();
    fs::create_dir(bench.folder.outside().join("evil")).unwrap();
    fs::write(bench.folder.outside().join("evil/file"), "secret").unwrap();
    fs::create_dir(work.join("good")).unwrap();
    fs::write(work.join("good/file"), "mine").unwrap();
    let snapshot = Snapshot::take(&work, &Limits::default()).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let _ = fs::rename(work.join("good"), work.join("aside"));
                let _ = symlink(bench.folder.outside().join("evil"), work.join("good"));
                let _ = fs::remove_file(work.join("good"));
                let _ = fs::rename(work.join("aside"), work.join("good"));
            }
        });
        for _ in 0..500 {
            if let Ok(artifact) = bench.publish_with("good/file", &snapshot, 1000) {
                assert_eq!(bench.served(&artifact), "mine");
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    bench.assert_nothing_left();
}

#[test]
fn the_size_is_capped_sparse_or_not() {
    let bench = Bench::new();
    File::create(bench.job.work().join("sparse"))
        .unwrap()
        .set_len(1 << 40)
        .unwrap();
    let refused = bench.publish("sparse");
    assert!(
        matches!(refused, Err(PublishError::TooLarge { limit: 1000, .. })),
        "{refused:?}"
    );
    bench.write("exact", &"x".repeat(1000));
    assert_eq!(bench.publish("exact").unwrap().size, 1000);
}

#[test]
fn a_file_that_never_holds_still_is_refused_and_one_that_settles_is_whole() {
    let bench = Bench::new();
    bench.write("log", "x");
    let place = Place::work(RelativePath::parse("log").unwrap());
    let source = Source::open(&bench.job, &place, &Snapshot::default()).unwrap();
    let patience = Patience::endless();
    let copy_while_written = |writes: usize| {
        let round = Cell::new(0);
        let mut staged = bench.store.blobs().stage().unwrap();
        let copied = source.copy_to(
            staged.file(),
            1000,
            "log",
            &patience,
            |from, to, size, patience| {
                let copied = copy_bytes(from, to, size, patience);
                round.set(round.get() + 1);
                if round.get() <= writes {
                    let mut log = File::options()
                        .append(true)
                        .open(bench.job.work().join("log"))?;
                    log.write_all(b"more")?;
                }
                copied
            },
        );
        copied.map(|()| digest(staged.file(), &patience).unwrap().0)
    };
    assert!(matches!(
        copy_while_written(ATTEMPTS),
        Err(PublishError::Unstable(_))
    ));
    let whole = fs::metadata(bench.job.work().join("log")).unwrap().len() + 4;
    assert_eq!(copy_while_written(1).unwrap(), whole);
}

#[test]
fn a_full_disk_is_recognised_and_leaves_nothing() {
    let bench = Bench::new();
    bench.write("a", "text");
    let place = Place::work(RelativePath::parse("a").unwrap());
    let source = Source::open(&bench.job, &place, &Snapshot::default()).unwrap();
    let patience = Patience::endless();
    let mut staged = bench.store.blobs().stage().unwrap();
    let refused = source.copy_to(staged.file(), 1000, "a", &patience, |_, to, _, _| {
        to.write_all(b"te")?;
        Err(io::ErrorKind::StorageFull.into())
    });
    drop(staged);
    assert!(refused.unwrap_err().is_disk_full());
    bench.assert_nothing_left();
}

#[test]
fn a_sparse_file_is_copied_as_one() {
    let bench = Bench::new();
    let path = bench.job.work().join("sparse");
    let file = File::create(&path).unwrap();
    file.set_len(1 << 30).unwrap();
    for at in [5 << 20, (1 << 30) - 1] {
        std::os::unix::fs::FileExt::write_at(&file, b"x", at).unwrap();
    }
    let mut copy = tempfile::tempfile_in(bench.folder.path()).unwrap();
    let source = File::open(&path).unwrap();
    let copied = copy_bytes(&source, &mut copy, 1 << 30, &Patience::endless()).unwrap();
    assert_eq!(copied, 1 << 30);
    let found = copy.metadata().unwrap();
    let blocks = std::os::unix::fs::MetadataExt::blocks(&found);
    assert_eq!(found.len(), 1 << 30);
    assert!(blocks * 512 < 8 << 20, "{blocks} blocks");
    for at in [5 << 20, (1 << 30) - 1] {
        let mut byte = [0];
        std::os::unix::fs::FileExt::read_exact_at(&copy, &mut byte, at).unwrap();
        assert_eq!(&byte, b"x");
    }
}

#[test]
fn a_copy_for_nobody_stops_and_leaves_nothing() {
    let bench = Bench::new();
    bench.write("a", "text");
    let snapshot = Snapshot::of(&bench.job, &Limits::default()).unwrap();
    let given_up = tokio_util::sync::CancellationToken::new();
    given_up.cancel();
    let later = tokio::time::Instant::now() + Duration::from_hours(1);
    let nobody = Patience::until(later, given_up);
    let origin = Origin {
        lease: &bench.lease,
        principal: &alice(),
        server: &"excel".parse().unwrap(),
        tool: "write",
        ttl: Duration::from_mins(1),
        max_bytes: 1000,
    };
    let place = Place::work(RelativePath::parse("a").unwrap());
    let now = bench.folder.now;
    let refused = publish(
        &bench.store,
        &bench.job,
        &place,
        &snapshot,
        &origin,
        &nobody,
        now,
    );
    assert!(
        matches!(refused, Err(PublishError::GivenUp(_))),
        "{refused:?}"
    );
    bench.assert_nothing_left();
}
