//! Publishes a file: copies it out of its workspace into the store, under a link.

use std::{
    ffi::OsString,
    fs::File,
    io,
    io::{Read, Seek},
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use bridge_model::{Job, LinkToken, Principal, ServerName, hex};
use bridge_state::{Artifact, ChatStore, Done, Lease, PrincipalHash, StagedFile, StoreError};
use jiff::Timestamp;
use rustix::{
    fs::{FileType, SeekFrom, fstat, ioctl_ficlone, seek},
    io::Errno,
};
use sha2::{Digest, Sha256};

use super::{
    Place, RelativePath, Snapshot, paths,
    paths::Patience,
    snapshot::{FileState, state},
    sqlite,
};

/// Publishes the files of one call.
#[derive(Clone, Copy)]
pub struct Publisher<'a> {
    /// Store of the links.
    pub store: &'a ChatStore,
    /// The workspace.
    pub job: &'a Job,
    /// The lease of the workspace.
    pub lease: &'a Lease,
    /// The owner of the links.
    pub principal: &'a Principal,
    /// The server that wrote the files.
    pub server: &'a ServerName,
    /// The tool that wrote the files.
    pub tool: &'a str,
    /// The lifetime of a link (`MCPO_FILE_EXPIRY`).
    pub ttl: Duration,
    /// The largest file that is published, in bytes.
    pub max_bytes: u64,
    /// Limits the time of copying.
    pub patience: &'a Patience,
}

/// Why a file got no link.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// It was removed, or its path leads through a symbolic link or out of the workspace.
    #[error("{0}: no such file in the workspace")]
    NotFound(String),
    /// It is a folder, FIFO, socket or device.
    #[error("{0}: not a regular file")]
    NotAFile(String),
    /// It also has a hard link outside the workspace.
    #[error("{0}: hard links to files outside the workspace are not published")]
    LinkedElsewhere(String),
    /// It was written to during all attempts.
    #[error("{0}: the file changed repeatedly while it was copied")]
    Unstable(String),
    /// It is a database in the middle of a transaction: a copy would be inconsistent.
    #[error("{0}: a database transaction is open; the first call after its end links the file")]
    InTransaction(String),
    /// Copying did not finish in time.
    #[error("{0}: copying took too long and was cancelled")]
    GivenUp(String),
    /// It is larger than `max_bytes`.
    #[error("{name}: larger than the publishing limit of {limit} bytes")]
    TooLarge {
        /// Name of the file.
        name: String,
        /// The limit in bytes.
        limit: u64,
    },
    /// The filesystem returned an error; no partial copy is left.
    #[error("{name}: cannot publish: {source}")]
    Io {
        /// Name of the file.
        name: String,
        /// The error of the system.
        source: io::Error,
    },
    /// The store returned an error.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl PublishError {
    /// The disk or the quota is full (HTTP 507).
    pub fn is_disk_full(&self) -> bool {
        match self {
            Self::Io { source, .. } => bridge_state::is_disk_full(source),
            Self::Store(error) => error.is_disk_full(),
            _ => false,
        }
    }
}

/// Number of attempts to copy a file that changes.
const ATTEMPTS: usize = 3;

const CHUNK: usize = 256 * 1024;

/// Bytes copied between two checks of `Patience`.
const BLOCK: u64 = 8 * 1024 * 1024;

impl Publisher<'_> {
    /// Publishes the current version of one file. `snapshot` is the latest one of the workspace: a file
    /// with several names is published only if the snapshot contains all of them.
    pub fn publish(&self, place: &Place, snapshot: &Snapshot) -> Result<Artifact, PublishError> {
        let name = place.display();
        let source = Source::open(self.job, place, snapshot)?;
        let mut staged = self.store.blobs().stage()?;
        let (target, limit) = (staged.file(), self.max_bytes);
        source.copy_to(target, limit, &name, self.patience, copy_bytes)?;
        self.seal(staged, place)
    }

    /// Records a staged file and creates its link.
    pub(super) fn seal(
        &self,
        mut staged: StagedFile,
        place: &Place,
    ) -> Result<Artifact, PublishError> {
        let (name, now) = (place.path.name().into_owned(), self.store.now());
        let (size, sha256) = digest(staged.file(), self.patience).map_err(failed(&name))?;
        let artifact = Artifact {
            token: LinkToken::random(),
            path: place.display(),
            ascii_name: paths::ascii(&name),
            size,
            mime_type: paths::mime_type(&name),
            sha256,
            created_at: now,
            expires_at: now.saturating_add(self.ttl).unwrap_or(Timestamp::MAX),
            gone_at: None,
            gone: None,
            job: self.lease.job,
            server: self.server.to_string(),
            tool: self.tool.to_owned(),
            principal: PrincipalHash::from(self.principal),
            name,
            other: serde_json::Map::new(),
        };
        let blob = self.store.blobs().put(staged, &artifact.sha256)?;
        let done = Done {
            links: vec![(artifact.clone(), blob)],
            ..Done::default()
        };
        self.store.commit(self.lease, done)?;
        Ok(artifact)
    }
}

pub(super) fn failed(name: &str) -> impl Fn(io::Error) -> PublishError {
    move |source| {
        let name = name.to_owned();
        if source.kind() == io::ErrorKind::TimedOut {
            PublishError::GivenUp(name)
        } else {
            PublishError::Io { name, source }
        }
    }
}

/// An open regular file of a workspace without hard links outside, and the log if it is a database.
struct Source {
    file: File,
    log: Option<File>,
}

impl Source {
    fn open(job: &Job, place: &Place, snapshot: &Snapshot) -> Result<Self, PublishError> {
        let name = || place.display();
        let root = paths::open_dir(&place.area.folder_in(job)).map_err(failed(&name()))?;
        let file = Self::open_one(&root, &place.path, snapshot, &name())?;
        let mut log = None;
        if sqlite::is_database(&file) {
            let beside = |suffix: &str| {
                let mut beside = OsString::from(place.path.as_path().file_name()?);
                beside.push(suffix);
                let path = place.path.sibling(&beside);
                // A special file does not belong to SQLite.
                Self::open_one(&root, &path, snapshot, &name()).ok()
            };
            if beside(sqlite::JOURNAL_SUFFIX).is_some_and(|journal| sqlite::is_hot(&journal)) {
                return Err(PublishError::InTransaction(name()));
            }
            log = beside(sqlite::WAL_SUFFIX);
        }
        Ok(Self { file, log })
    }

    fn open_one(
        root: &OwnedFd,
        path: &RelativePath,
        snapshot: &Snapshot,
        name: &str,
    ) -> Result<File, PublishError> {
        let file = paths::open_file(root.as_fd(), path);
        let file = file.map_err(|error| refusal(name.to_owned(), error))?;
        let stat = fstat(&file).map_err(|error| failed(name)(error.into()))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(PublishError::NotAFile(name.to_owned()));
        }
        #[allow(clippy::useless_conversion)] // not on every platform
        let links = u64::from(stat.st_nlink);
        if links > 1 && snapshot.names_of(&stat) < links {
            return Err(PublishError::LinkedElsewhere(name.to_owned()));
        }
        Ok(file)
    }

    /// Copies again until the file did not change meanwhile. `copy` is a parameter so that tests can
    /// simulate a full disk.
    fn copy_to(
        &self,
        target: &mut File,
        limit: u64,
        name: &str,
        patience: &Patience,
        mut copy: impl FnMut(&File, &mut File, u64, &Patience) -> io::Result<u64>,
    ) -> Result<(), PublishError> {
        let failed = failed(name);
        let too_large = || PublishError::TooLarge {
            name: name.to_owned(),
            limit,
        };
        for _ in 0..ATTEMPTS {
            let before = self.states().map_err(&failed)?;
            let size = before.0.size;
            if size > limit {
                return Err(too_large());
            }
            let copied = copy(&self.file, target, size, patience).map_err(&failed)?;
            let log = self.log.as_ref();
            let completed = log.map_or(Ok(()), |log| sqlite::complete(target, log, patience));
            if copied != size || before != self.states().map_err(&failed)? {
                continue;
            }
            completed.map_err(&failed)?;
            let whole = target.metadata().map_err(&failed)?.len();
            return if whole > limit {
                Err(too_large())
            } else {
                Ok(())
            };
        }
        Err(PublishError::Unstable(name.to_owned()))
    }

    fn states(&self) -> io::Result<(FileState, Option<FileState>)> {
        let log = self.log.as_ref().map(fstat).transpose()?;
        Ok((state(&fstat(&self.file)?), log.as_ref().map(state)))
    }
}

fn refusal(name: String, error: io::Error) -> PublishError {
    match Errno::from_io_error(&error) {
        Some(Errno::NOENT | Errno::LOOP | Errno::XDEV | Errno::NOTDIR) => {
            PublishError::NotFound(name)
        }
        // A socket, or a device without a driver.
        Some(Errno::NXIO | Errno::NODEV) => PublishError::NotAFile(name),
        _ => failed(&name)(error),
    }
}

/// Copies the first `size` bytes of `source` to `target`, sharing blocks if possible, and skipping
/// holes.
fn copy_bytes(source: &File, target: &mut File, size: u64, patience: &Patience) -> io::Result<u64> {
    target.set_len(0)?;
    target.rewind()?;
    if ioctl_ficlone(&*target, source).is_ok() {
        // It may have grown since its size was read.
        return target.metadata().map(|cloned| cloned.len());
    }
    let mut at = 0;
    while at < size {
        patience.check()?;
        let (start, end) = written(source, at, size);
        at = start;
        while at < end {
            patience.check()?;
            let mut from = source;
            from.seek(io::SeekFrom::Start(at))?;
            target.seek(io::SeekFrom::Start(at))?;
            let copied = io::copy(&mut from.take(BLOCK.min(end - at)), target)?;
            if copied == 0 {
                // It has become shorter.
                return Ok(at);
            }
            at += copied;
        }
    }
    target.set_len(size)?;
    Ok(size)
}

/// The next data segment, from `at` and up to `size`; empty if there is no more data.
fn written(source: &File, at: u64, size: u64) -> (u64, u64) {
    let start = match seek(source, SeekFrom::Data(at)) {
        Ok(start) => start.min(size),
        Err(Errno::NXIO) => return (size, size),
        // Not every filesystem supports this.
        Err(_) => return (at, size),
    };
    let end = seek(source, SeekFrom::Hole(start)).unwrap_or(size);
    (start, end.min(size))
}

/// Size and SHA-256 of the copy itself, because the original may have changed since.
fn digest(file: &mut File, patience: &Patience) -> io::Result<(u64, String)> {
    file.rewind()?;
    let mut hash = Sha256::new();
    let size = read_blocks(file, patience, |block| {
        hash.update(block);
        Ok(())
    })?;
    Ok((size, hex(&hash.finalize())))
}

/// Reads all bytes, unless `patience` ends, and returns their number.
pub(super) fn read_blocks(
    from: &mut impl Read,
    patience: &Patience,
    mut use_block: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<u64> {
    let (mut block, mut size) = (vec![0; CHUNK], 0);
    loop {
        patience.check()?;
        let length = match from.read(&mut block) {
            Ok(0) => return Ok(size),
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        use_block(&block[..length])?;
        size += length as u64;
    }
}

#[cfg(test)]
mod tests {
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
            self.publish_within(name, snapshot, max_bytes, &Patience::endless())
        }

        fn publish_within(
            &self,
            name: &str,
            snapshot: &Snapshot,
            max_bytes: u64,
            patience: &Patience,
        ) -> Result<Artifact, PublishError> {
            let publisher = Publisher {
                store: &self.store,
                job: &self.job,
                lease: &self.lease,
                principal: &alice(),
                server: &"excel".parse().unwrap(),
                tool: "write",
                ttl: Duration::from_mins(1),
                max_bytes,
                patience,
            };
            let path = RelativePath::parse(name).unwrap();
            publisher.publish(&Place::work(path), snapshot)
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
        assert_eq!((one.size, one.expires_at), (3, later(one.created_at, 60)));
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
        let snapshot = Snapshot::look(&bench.job, &Limits::default()).unwrap();
        let given_up = tokio_util::sync::CancellationToken::new();
        given_up.cancel();
        let later = tokio::time::Instant::now() + Duration::from_hours(1);
        let nobody = Patience::until(later, given_up);
        let refused = bench.publish_within("a", &snapshot, 1000, &nobody);
        assert!(
            matches!(refused, Err(PublishError::GivenUp(_))),
            "{refused:?}"
        );
        bench.assert_nothing_left();
    }
}
