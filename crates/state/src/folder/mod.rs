//! The current implementation of the store: files in the jobs folder, which several bridges may share. Here are
//! the folder as a whole, and the clock by which the age of its content is judged.

mod catalog;
mod chats;
mod files;
mod instance;
mod lease;
mod links;
mod record;
mod sweep;
#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, HashSet},
    fs,
    fs::{DirBuilder, Permissions},
    io,
    io::Write as _,
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
    time::{Duration, Instant, SystemTime},
};

use bridge_model::{JobId, LinkToken};
use files::{Durable, is_absent};
use instance::Instance;
use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use rustix::fs::{Access, StatVfs, access, statvfs};
use uuid::Uuid;

pub use chats::{Acquired, CallEnd, CallOutcome, ChatSummary, Done, Held, NewChat, SessionSummary};
pub use files::{StoreError, is_disk_full, read_within, remove_tree};
pub use instance::{InstanceId, Membership, Others, Peer};
pub use lease::{Holder, Lease};
pub use links::{Artifact, Blob, BlobId, BlobStore, GoneReason, Link, OpenBlob, StagedFile, Stamp};
pub use record::{
    DiskUsage, JobStatus, JournalBody, JournalEntry, JournalMode, LiveSession, Metadata,
    PrincipalHash,
};
pub use sweep::{GcReport, Swept};

/// The instances and their leases, the owners of chats, and the links, in files of the jobs folder.
///
/// Dropping it ends the instance: its leases are then stale.
#[derive(Debug)]
pub struct ChatStore {
    root: PathBuf,
    /// The folder's path as configured, made absolute: children may print it in this form.
    configured: PathBuf,
    instance: Instance,
    watched: instance::Watched,
    clock: Clock,
    hashed: links::Hashed,
    /// Chats whose records are known to be synced to disk.
    synced: Mutex<HashSet<JobId>>,
    /// Whether a clean-up round has run.
    swept: AtomicBool,
    /// Leases that cannot be read, with the renewals of other instances observed when that was first noticed.
    broken: Mutex<HashMap<JobId, HashMap<InstanceId, u32>>>,
}

impl ChatStore {
    /// Opens the folder (created with mode 0700 if absent), joins it as a new instance and removes partial
    /// files of dead instances.
    pub fn open(jobs_dir: &Path, membership: &Membership) -> Result<Self, StoreError> {
        let (root, configured) = prepare(jobs_dir)?;
        let instance = Instance::join(&root.join(".bridge"), membership)?;
        let store = Self {
            root,
            configured,
            instance,
            watched: instance::Watched::default(),
            clock: Clock::at(Moment::now()),
            hashed: links::Hashed::default(),
            synced: Mutex::default(),
            swept: AtomicBool::new(false),
            broken: Mutex::default(),
        };
        for error in store.sweep_instances().1 {
            tracing::warn!(%error, "files of a dead instance not deleted");
        }
        Ok(store)
    }

    /// The id under which this instance holds its leases.
    pub fn instance(&self) -> InstanceId {
        self.instance.id()
    }

    /// Time without a renewal after which other instances take its leases over.
    pub fn ttl(&self) -> Duration {
        self.instance.ttl()
    }

    /// The interval at which [`Self::renew`] must be called.
    pub fn renew_every(&self) -> Duration {
        self.ttl() / instance::RENEWALS
    }

    /// The bytes of linked files.
    pub fn blobs(&self) -> BlobStore<'_> {
        BlobStore(self)
    }

    /// Leaves the folder; must be this instance's last call: its files and staging are removed, and its
    /// leases are stale after the process has ended.
    pub fn leave(&self) {
        self.instance.leave();
    }

    /// Tells the other replicas that this one is alive. Call it every [`Self::renew_every`].
    pub fn renew(&self) -> Result<(), StoreError> {
        self.forget_mended();
        match self.instance.renew() {
            Err(error) if error.is_absent() => self.restore(),
            other => other,
        }
    }

    /// Recreates the bridge's own folders. If the jobs folder was emptied, or a different volume is mounted
    /// there, the records are lost: chats start with new workspaces.
    fn restore(&self) -> Result<(), StoreError> {
        let (root, _) = prepare(&self.configured)?;
        if root != self.root {
            return Err(StoreError::Unusable {
                path: self.configured.clone(),
                problem: format!(
                    "changed since the start ({}): restart the bridge",
                    self.root.display()
                ),
            });
        }
        self.instance.renew()?;
        tracing::warn!(
            folder = %self.root.display(),
            "the jobs directory was emptied or replaced while the bridge was running; its records \
             are created again; earlier chats and links are lost unless the old directory is \
             restored"
        );
        Ok(())
    }

    /// Runs `work`; if that fails because the bridge's own folders do not exist, creates them and runs it
    /// again.
    fn in_whole_folder<T>(
        &self,
        work: impl Fn() -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        match work() {
            Err(error)
                if error.is_absent() && !(is_whole(&self.root) && self.staging().is_dir()) =>
            {
                self.restore()?;
                work()
            }
            other => other,
        }
    }

    /// Tells the other replicas that this one is shutting down: they forward no new calls to it, and wait for
    /// its leases.
    pub fn drain(&self) -> Result<(), StoreError> {
        self.instance.drain();
        self.instance.renew()
    }

    /// Tells the other replicas the new address of this one.
    pub fn move_to(&self, address: String) -> Result<(), StoreError> {
        self.instance.move_to(address);
        self.instance.renew()
    }

    /// The secret that all bridges on this folder share: created at random by the first of them.
    pub fn peer_key(&self) -> Result<Vec<u8>, StoreError> {
        let path = self.bridge("peer-key");
        let fresh = LinkToken::random().as_str().to_owned() + LinkToken::random().as_str();
        self.show_new(&path, fresh.as_bytes(), Durable::Yes)?;
        let key = files::read_record(&path).map_err(files::at("read", &path))?;
        if key.len() < fresh.len() {
            let error = std::io::Error::other("too short: delete it and restart all replicas");
            return Err(files::at("use", &path)(error));
        }
        Ok(key)
    }

    /// Warnings about the jobs folder that do not stop the bridge.
    pub fn warnings(&self) -> Vec<String> {
        let broken = self.broken.lock().len();
        let broken = (broken > 0).then(|| {
            format!(
                "the leases of {broken} chats (the file 'lease' in their folders) cannot be read: \
                 these chats wait until the replica that holds the lease writes it again, or \
                 until no live replica can hold it"
            )
        });
        broken.into_iter().chain(self.clock.warning()).collect()
    }

    /// The canonical path of the jobs folder.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Bytes that this user can still use on the folder's filesystem, for the free-disk minimum.
    pub fn free_bytes(&self) -> Result<u64, StoreError> {
        let found = self.statvfs()?;
        Ok(found.f_bavail.saturating_mul(found.f_frsize))
    }

    /// Makes the instance end as if by SIGKILL.
    #[cfg(any(test, feature = "testing"))]
    pub fn forget_files(&self) {
        self.instance.forget_files();
    }

    fn bridge(&self, part: &str) -> PathBuf {
        self.root.join(".bridge").join(part)
    }

    /// Creates a file of the store, see [`files::show_new`]; `false` if it exists.
    fn show_new(&self, path: &Path, content: &[u8], durable: Durable) -> Result<bool, StoreError> {
        files::show_new(path, content, self.staging(), durable).map_err(files::at("write", path))
    }

    /// Visits the entries of a folder of the bridge whose entries are spread over folders: each with its
    /// folder and its name.
    fn each_in_shards(&self, part: &str, mut visit: impl FnMut(Result<(&Path, &str), StoreError>)) {
        let top = self.bridge(part);
        let shards = match files::names_in(&top) {
            Ok(shards) => shards,
            Err(error) => return visit(Err(error)),
        };
        for shard in shards.into_iter().map(|shard| top.join(shard)) {
            match files::names_in(&shard) {
                Ok(names) => names.iter().for_each(|name| visit(Ok((&shard, name)))),
                Err(error) => visit(Err(error)),
            }
        }
    }

    /// A folder that only this process uses, on the same filesystem as the rest of the jobs folder. Its
    /// content is removed when the process ends.
    pub fn staging(&self) -> &Path {
        self.instance.staging()
    }
}

impl ChatStore {
    /// Performs the disk operations of a new chat: creates a folder with a non-empty file, and removes both.
    /// Returns the bytes that this user can still use; the error describes the problem. Blocks on the disk.
    pub fn probe(&self) -> Result<u64, StoreError> {
        self.instance.is_shown()?;
        let room = self.statvfs()?;
        access(&self.root, Access::WRITE_OK | Access::EXEC_OK)
            .map_err(|error| files::at("write in", &self.root)(error.into()))?;
        let path = self.staging().join(format!("probe-{}", Uuid::new_v4()));
        let mut made = fs::create_dir(&path);
        if made.as_ref().is_err_and(is_absent) {
            // Other instances remove it after this one was silent for long.
            self.instance.is_shown()?;
            made = files::make_dir(self.staging()).and_then(|()| fs::create_dir(&path));
        }
        let made = made.and_then(|()| fs::write(path.join("file"), [b'x'; 4096]));
        let removed = match fs::remove_dir_all(&path) {
            Err(error) if is_absent(&error) => Ok(()),
            other => other,
        };
        made.and(removed)
            .map_err(|error| files::at("write in", &self.root)(explained(error, &room)))?;
        Ok(room.f_bavail.saturating_mul(room.f_frsize))
    }

    pub(super) fn statvfs(&self) -> Result<StatVfs, StoreError> {
        statvfs(&self.root).map_err(|error| files::at("measure", &self.root)(error.into()))
    }
}

/// The system also reports "no space" if no inodes are left.
fn explained(error: io::Error, room: &StatVfs) -> io::Error {
    let full = is_disk_full(&error);
    if full && room.f_files > 0 && room.f_favail == 0 {
        let text = format!("{error}: the filesystem has no inodes left for new files");
        return io::Error::new(error.kind(), text);
    }
    error
}

/// The folders below `.bridge`.
const FOLDERS: [&str; 6] = ["", "bindings", "artifacts", "catalog", "instances", "tmp"];

/// Returns the canonical and the configured absolute path.
fn prepare(jobs_dir: &Path) -> Result<(PathBuf, PathBuf), StoreError> {
    let unusable = |problem: String| StoreError::Unusable {
        path: jobs_dir.to_owned(),
        problem,
    };
    let failed = |error: io::Error| unusable(explain(&error));
    // Collecting the components drops a trailing slash, which would hide that the path is a link.
    let configured: PathBuf = std::path::absolute(jobs_dir)
        .map_err(failed)?
        .components()
        .collect();
    if fs::symlink_metadata(&configured).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
    {
        let mut builder = DirBuilder::new();
        let made = builder.recursive(true).mode(0o700).create(&configured);
        made.map_err(failed)?;
    }
    let found = fs::symlink_metadata(&configured).map_err(failed)?;
    let own = rustix::process::geteuid().as_raw();
    if found.is_symlink() {
        let problem = "is a symbolic link: set MCPO_JOBS_DIR to its target";
        return Err(unusable(problem.into()));
    }
    if !found.is_dir() {
        let problem = "is not a directory: move it away or set MCPO_JOBS_DIR to another path";
        return Err(unusable(problem.into()));
    }
    if found.uid() == own {
        if found.mode() & 0o777 != 0o700 {
            fs::set_permissions(&configured, Permissions::from_mode(0o700)).map_err(failed)?;
        }
    } else if all_users_may_change(found.mode()) {
        return Err(unusable(format!(
            "belongs to user {}, and all users can move its content (mode {:o}): remove the write \
             permission of others, or set MCPO_JOBS_DIR to a directory inside it, which the \
             bridge creates",
            found.uid(),
            found.mode() & 0o7777
        )));
    }
    let root = configured.canonicalize().map_err(failed)?;
    let records = root.join(".bridge");
    // In a shared folder, another user may have created it first.
    if let Ok(there) = fs::symlink_metadata(&records)
        && !files::is_own_dir(&records).map_err(failed)?
    {
        return Err(unusable(format!(
            "contains a '.bridge' that is not a directory of user {own} (it belongs to user {}): \
             move it away, or set MCPO_JOBS_DIR to another directory",
            there.uid()
        )));
    }
    for part in FOLDERS {
        files::make_dir(&root.join(".bridge").join(part)).map_err(failed)?;
    }
    Ok((root, configured))
}

/// Whether all of the bridge's own folders exist.
fn is_whole(root: &Path) -> bool {
    let there = |part: &&str| files::is_own_dir(&root.join(".bridge").join(part));
    FOLDERS.iter().all(|part| there(part).unwrap_or(true))
}

/// A folder of another user is acceptable if only its group may write (Kubernetes mounts volumes so, with
/// `fsGroup`), or if all may write but only move their own files (sticky). Folders that the bridge creates in
/// it are private.
fn all_users_may_change(mode: u32) -> bool {
    let (others_write, sticky) = (mode & 0o002 != 0, mode & 0o1000 != 0);
    others_write && !sticky
}

fn explain(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => format!(
            "is not writable ({error}): grant user {} write permission, or set MCPO_JOBS_DIR to \
             another directory",
            rustix::process::geteuid().as_raw()
        ),
        _ => format!("cannot be used: {error}"),
    }
}

// The clock: whether it can be trusted. Ages are computed from times that this bridge or another one recorded
// with its wall clock; to a clock that is hours ahead, everything has expired. So before anything is removed
// by age, the clock is compared with three others:
//
// - the time since the kernel started, which cannot be set: has the wall clock moved differently?
// - those of the other bridges on the folder, by the times in their records;
// - that of the filesystem, by the time of a new file (on shared storage it is another machine's).
//
// If one of them disagrees, nothing is removed by age, and `/health` reports it.

impl ChatStore {
    /// The trusted time, for records and ages. If the clock is set while the bridge runs, the change is not
    /// followed at once.
    pub fn now(&self) -> Timestamp {
        self.clock.believed(Moment::now())
    }

    /// Why nothing may be removed by age now. Blocks on the disk.
    fn doubt(&self) -> Option<Doubt> {
        let disk = self.in_whole_folder(|| self.write_probe()).ok();
        match self.peer_clocks() {
            Ok(peers) => self.clock.judge(Moment::now(), disk, &peers),
            Err(error) => Some(Doubt::Unknown(error.to_string())),
        }
    }

    /// The same for a command, which has not observed the other instances yet: waits until each has renewed
    /// its record or counts as silent.
    fn doubt_once_clocks_are_known(&self) -> Option<Doubt> {
        let until = Instant::now() + self.ttl() * 2;
        loop {
            match self.doubt() {
                Some(Doubt::Unknown(_)) if Instant::now() < until => {
                    std::thread::sleep(self.renew_every() / 8);
                }
                doubt => return doubt,
            }
        }
    }

    /// The current time of the filesystem: that of the server if the storage is remote.
    fn write_probe(&self) -> Result<SystemTime, StoreError> {
        let path = self.staging().join(format!("probe-{}", Uuid::new_v4()));
        let made = files::create_new(&path).and_then(|mut file| {
            file.write_all(b"probe")?;
            file.metadata()?.modified()
        });
        let removed = match fs::remove_file(&path) {
            Err(error) if !is_absent(&error) => Err(error),
            _ => Ok(()),
        };
        made.and_then(|time| removed.map(|()| time))
            .map_err(files::at("write", &path))
    }
}

/// Tolerated difference. Synchronized clocks differ by less, and no retention is short enough for this to
/// matter.
const TOLERANCE: SignedDuration = SignedDuration::from_secs(60);
/// A clock that was set is trusted again after it has run evenly for this long.
const BELIEVED_AFTER: Duration = Duration::from_secs(3600);

/// What this process knows about its clock.
#[derive(Debug)]
struct Clock(Mutex<Trusted>);

#[derive(Debug)]
struct Trusted {
    /// A trusted moment, on both clocks.
    wall: Timestamp,
    up: Duration,
    /// How far the wall clock is off, and since when, by the kernel's time.
    moved: Option<(SignedDuration, Duration)>,
    /// The result of the last comparison.
    doubt: Option<String>,
}

/// Both clocks at one moment.
#[derive(Debug, Clone, Copy)]
struct Moment {
    wall: Timestamp,
    /// Time since the kernel started, including suspended time.
    up: Duration,
}

impl Moment {
    fn now() -> Self {
        Self {
            wall: Timestamp::now(),
            up: uptime(),
        }
    }
}

fn uptime() -> Duration {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    let read = || {
        let text = fs::read_to_string("/proc/uptime").ok()?;
        let seconds = text.split_whitespace().next()?.parse().ok()?;
        Duration::try_from_secs_f64(seconds).ok()
    };
    // This fallback does not count suspended time, so after a suspension the clock looks as if it had been
    // set.
    read().unwrap_or_else(|| START.get_or_init(Instant::now).elapsed())
}

/// The clock of another bridge, as its record shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct PeerClock {
    host: String,
    /// How far this clock is ahead of it; `None` before its first observed renewal.
    ahead: Option<SignedDuration>,
}

/// Why nothing is removed by age now.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Doubt {
    /// Another bridge has not been observed to renew its record yet: that takes seconds.
    Unknown(String),
    /// Clocks disagree.
    Disagree(String),
}

impl Doubt {
    fn why(&self) -> &str {
        match self {
            Self::Unknown(why) | Self::Disagree(why) => why,
        }
    }
}

impl Clock {
    fn at(moment: Moment) -> Self {
        Self(Mutex::new(Trusted {
            wall: moment.wall,
            up: moment.up,
            moved: None,
            doubt: None,
        }))
    }

    /// The trusted time: the wall clock, or if that was set in the meantime, the time that it would otherwise
    /// show.
    fn believed(&self, moment: Moment) -> Timestamp {
        let mut state = self.0.lock();
        let passed = moment.up.saturating_sub(state.up);
        let expected = state.wall.saturating_add(passed).unwrap_or(Timestamp::MAX);
        let off = moment.wall.duration_since(expected);
        if off.abs() <= TOLERANCE {
            (state.wall, state.up, state.moved) = (moment.wall, moment.up, None);
            return moment.wall;
        }
        let since = match state.moved {
            Some((before, since)) if (off - before).abs() <= TOLERANCE => since,
            _ => {
                state.moved = Some((off, moment.up));
                moment.up
            }
        };
        if moment.up.saturating_sub(since) >= BELIEVED_AFTER {
            (state.wall, state.up, state.moved) = (moment.wall, moment.up, None);
            return moment.wall;
        }
        expected
    }

    /// Compares all clocks. `None` if they agree.
    fn judge(
        &self,
        moment: Moment,
        disk: Option<SystemTime>,
        peers: &[PeerClock],
    ) -> Option<Doubt> {
        self.believed(moment);
        let doubt = self.own(moment, disk).or_else(|| of_peers(peers));
        let mut state = self.0.lock();
        let why = match &doubt {
            Some(Doubt::Disagree(why)) => Some(why.clone()),
            _ => None,
        };
        // The numbers of one disagreement change with each comparison, so only the start and the end are
        // logged.
        if why.is_some() != state.doubt.is_some() {
            if let Some(why) = &why {
                tracing::warn!("{}", warning(why));
            } else {
                tracing::info!("the clocks agree again; clean-up continues");
            }
        }
        state.doubt = why;
        doubt
    }

    fn own(&self, moment: Moment, disk: Option<SystemTime>) -> Option<Doubt> {
        if let Some((off, _)) = self.0.lock().moved {
            let why = format!(
                "this machine's clock was set {} while the bridge was running. If it is correct \
                 now, restart the bridge or wait an hour",
                difference(off, "forward", "back")
            );
            return Some(Doubt::Disagree(why));
        }
        let disk = disk.and_then(|time| Timestamp::try_from(time).ok())?;
        let off = moment.wall.duration_since(disk);
        (off.abs() > TOLERANCE).then(|| {
            Doubt::Disagree(format!(
                "this machine's clock is {} of the clock of the jobs directory's filesystem. \
                 Synchronize both with a time server",
                difference(off, "ahead", "behind")
            ))
        })
    }

    /// The warning for `/health`.
    fn warning(&self) -> Option<String> {
        self.0.lock().doubt.as_deref().map(warning)
    }
}

fn of_peers(peers: &[PeerClock]) -> Option<Doubt> {
    let far = |peer: &&PeerClock| peer.ahead.is_some_and(|ahead| ahead.abs() > TOLERANCE);
    if let Some(PeerClock {
        host,
        ahead: Some(ahead),
    }) = peers.iter().find(far)
    {
        return Some(Doubt::Disagree(format!(
            "this machine's clock is {} of the clock of a replica on {host}, which uses the same \
             jobs directory. Synchronize both with a time server",
            difference(*ahead, "ahead", "behind")
        )));
    }
    let unknown = peers.iter().find(|peer| peer.ahead.is_none())?;
    Some(Doubt::Unknown(format!(
        "the clock of a replica on {}, which uses the same jobs directory, is not known yet",
        unknown.host
    )))
}

fn difference(off: SignedDuration, ahead: &str, behind: &str) -> String {
    let direction = if off.is_negative() { behind } else { ahead };
    format!("{} s {direction}", off.abs().as_secs())
}

fn warning(why: &str) -> String {
    format!("clean-up by age is paused: {why}")
}

#[cfg(test)]
mod clock_tests {
    use super::*;

    const HOUR: u64 = 3600;

    /// `up` seconds after the start, with a wall clock that is off by `off`.
    fn at(up: u64, off: i64) -> Moment {
        let wall = Timestamp::from_second(1_800_000_000).unwrap();
        let passed = SignedDuration::from_secs(up.cast_signed() + off);
        Moment {
            wall: wall + passed,
            up: Duration::from_secs(1000 + up),
        }
    }

    fn clock() -> Clock {
        Clock::at(at(0, 0))
    }

    fn disagrees(doubt: Option<&Doubt>) -> bool {
        matches!(doubt, Some(Doubt::Disagree(_)))
    }

    #[test]
    fn a_clock_that_is_set_and_set_back_is_not_believed_meanwhile() {
        for off in [3 * HOUR.cast_signed(), -2 * 86_400, 100 * 31_536_000] {
            let clock = clock();
            assert_eq!(clock.judge(at(10, 0), None, &[]), None);
            assert!(
                disagrees(clock.judge(at(20, off), None, &[]).as_ref()),
                "{off}"
            );
            assert_eq!(clock.believed(at(21, off)), at(21, 0).wall);
            assert!(clock.warning().unwrap().contains("was set"));
            assert_eq!(clock.judge(at(25, 0), None, &[]), None);
            assert_eq!(clock.warning(), None);
        }
    }

    #[test]
    fn a_clock_that_is_corrected_and_runs_evenly_is_believed_in_the_end() {
        let clock = clock();
        let off = 3 * HOUR.cast_signed();
        assert!(disagrees(clock.judge(at(10, off), None, &[]).as_ref()));
        assert!(disagrees(
            clock.judge(at(HOUR, off + 5), None, &[]).as_ref()
        ));
        assert_eq!(clock.judge(at(HOUR + 10, off), None, &[]), None);
        assert_eq!(clock.believed(at(HOUR + 11, off)), at(HOUR + 11, off).wall);
    }

    #[test]
    fn a_clock_that_drifts_is_followed() {
        let clock = clock();
        for day in 1..100 {
            let moment = at(day * 86_400, day.cast_signed() * 30);
            assert_eq!(clock.judge(moment, None, &[]), None);
        }
    }

    #[test]
    fn the_filesystems_clock_and_the_others_must_agree() {
        let clock = clock();
        let moment = at(10, 0);
        let disk = |off: i64| {
            Some(SystemTime::from(
                moment.wall + SignedDuration::from_secs(off),
            ))
        };
        assert_eq!(clock.judge(moment, disk(-30), &[]), None);
        assert!(disagrees(clock.judge(moment, disk(-7200), &[]).as_ref()));
        assert!(clock.warning().unwrap().contains("7200 s ahead"));
        let peer = |ahead: Option<i64>| PeerClock {
            host: "far".to_owned(),
            ahead: ahead.map(SignedDuration::from_secs),
        };
        assert_eq!(clock.judge(moment, None, &[peer(Some(3))]), None);
        let unknown = clock.judge(moment, None, &[peer(Some(3)), peer(None)]);
        assert!(matches!(unknown, Some(Doubt::Unknown(_))));
        assert_eq!(clock.warning(), None, "seconds are no news");
        let far = clock.judge(moment, None, &[peer(None), peer(Some(-7200))]);
        assert!(far.unwrap().why().contains("7200 s behind"));
    }

    #[test]
    fn the_kernel_tells_its_time() {
        let before = uptime();
        assert!(before > Duration::ZERO);
        assert!(uptime() >= before);
    }
}
