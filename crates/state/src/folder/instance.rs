//! One running bridge among those that share the folder: unknown → alive ⇄ silent, or dead.
//!
//! Each instance renews its record periodically. A reader compares the record with the one it read before, by
//! the reader's own clock: if it was unchanged for [`Instance::ttl`] *while the reader watched*, the instance
//! is silent, and its leases may be taken over. Clocks of different hosts are never compared. Time between
//! two reads counts only up to one renewal interval, because the reader may have been stopped itself, or the
//! folder may have been unreadable.
//!
//! If both run on one kernel and see the same mount, the instance's file lock shows more: if it is free, the
//! process has ended. A held lock proves nothing, because a stopped process holds it too.

#[cfg(any(test, feature = "testing"))]
use std::sync::atomic::{AtomicBool, Ordering};
use std::{
    collections::HashMap,
    fmt, fs,
    fs::File,
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    str::FromStr,
    time::{Duration, Instant},
};

use bridge_model::{JobId, open_read};
use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    ChatStore, PeerClock, TOLERANCE,
    files::{self, StoreError, is_absent, remove_tree},
};

/// Default time without a renewal after which the leases of an instance are taken over.
const LEASE_TTL: Duration = Duration::from_secs(20);
/// Number of renewals within the lease TTL.
pub(super) const RENEWALS: u32 = 4;
/// Number of renewals within which an instance has checked every lease that it holds: it checks all of them
/// once between two renewals.
const LOOKED_THROUGH: u32 = 4;
/// A silent instance may resume: its files are kept much longer than its leases.
const SILENT_FILES_KEPT: Duration = Duration::from_secs(3600);

/// How an instance joins the folder.
#[derive(Debug, Clone)]
pub struct Membership {
    /// The address where other replicas reach it, if they can.
    pub address: Option<String>,
    /// Time without a renewal after which other replicas take its leases over.
    pub ttl: Duration,
    /// Whether it checks each lease that it holds after each renewal, and rewrites a broken one.
    pub mends_leases: bool,
}

impl Default for Membership {
    /// For a command, which other replicas need not reach.
    fn default() -> Self {
        Self {
            address: None,
            ttl: LEASE_TTL,
            mends_leases: false,
        }
    }
}

/// Identifies one run of one bridge process. Random; not a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct InstanceId(Uuid);

impl InstanceId {
    /// An id for a new run.
    pub fn random() -> Self {
        Self(Uuid::new_v4())
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

impl FromStr for InstanceId {
    type Err = uuid::Error;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Uuid::try_parse(text).map(Self)
    }
}

/// The record of an instance.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Record {
    instance: InstanceId,
    boot_id: String,
    /// The device number of the folder's mount on its kernel; `None` if its lock cannot be used.
    #[serde(default)]
    device: Option<u64>,
    pid: u32,
    host: String,
    address: Option<String>,
    /// Milliseconds without a renewal after which its leases may be taken over.
    #[serde(default)]
    ttl_ms: u64,
    /// The instance is shutting down and accepts no new work.
    #[serde(default)]
    draining: bool,
    /// See [`Membership::mends_leases`].
    #[serde(default)]
    mends_leases: bool,
    started_at: Timestamp,
    /// Only compared with an earlier value of the same record.
    renewed_at: Timestamp,
}

/// This process, as other instances see it.
#[derive(Debug)]
pub(super) struct Instance {
    /// Its current record. The address changes with the certificate.
    record: Mutex<Record>,
    folder: PathBuf,
    staging: PathBuf,
    /// `None` if the filesystem does not support locks.
    alive: Mutex<Option<Alive>>,
    #[cfg(any(test, feature = "testing"))]
    killed: AtomicBool,
}

/// The lock file of this run: locked while it is open.
#[derive(Debug)]
struct Alive {
    file: File,
    /// The device number of the folder's mount on this kernel.
    device: u64,
}

/// Another instance that accepts calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// The id of its run.
    pub instance: InstanceId,
    /// The address where it is reached.
    pub address: String,
}

/// The other live instances.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Others {
    /// Those that accept calls.
    pub peers: Vec<Peer>,
    /// Number of all live ones. Each may take a lease over, including one that cannot be reached or is
    /// shutting down.
    pub alive: usize,
}

impl Instance {
    /// The id under which this run holds its leases.
    pub fn id(&self) -> InstanceId {
        self.record.lock().instance
    }

    /// The address where other replicas reach this one, if known.
    pub fn address(&self) -> Option<String> {
        self.record.lock().address.clone()
    }

    /// Time without a renewal after which other replicas take its leases over.
    pub fn ttl(&self) -> Duration {
        Duration::from_millis(self.record.lock().ttl_ms)
    }

    pub(super) fn join(bridge: &Path, membership: &Membership) -> Result<Self, StoreError> {
        let now = Timestamp::now();
        let id = InstanceId::random();
        let folder = bridge.join("instances");
        let path = folder.join(format!("{id}.lock"));
        let alive = match lock_then_show(&folder.join(format!("new-{id}")), &path) {
            Ok(alive) => Some(alive),
            Err(error) if files::is_unsupported(&error) => {
                tracing::warn!(
                    %error,
                    "the jobs directory does not support file locks: a stopped replica is \
                     detected only by timeout"
                );
                None
            }
            Err(error) => return Err(files::at("lock", &path)(error)),
        };
        let staging = bridge.join("tmp").join(id.to_string());
        let record = Record {
            instance: id,
            boot_id: boot_id(),
            device: None,
            pid: std::process::id(),
            host: rustix::system::uname().nodename().to_string_lossy().into(),
            address: membership.address.clone(),
            ttl_ms: u64::try_from(membership.ttl.as_millis()).unwrap_or(u64::MAX),
            draining: false,
            mends_leases: membership.mends_leases,
            started_at: now,
            renewed_at: now,
        };
        let instance = Self {
            record: Mutex::new(record),
            folder,
            staging,
            alive: Mutex::new(alive),
            #[cfg(any(test, feature = "testing"))]
            killed: AtomicBool::new(false),
        };
        instance.renew()?;
        Ok(instance)
    }

    /// Writes the record. Other instances remove staging without a record, so both are restored here.
    pub(super) fn renew(&self) -> Result<(), StoreError> {
        let now = Timestamp::now();
        self.keep_locked()?;
        let device = self.device();
        let record = {
            let mut own = self.record.lock();
            (own.renewed_at, own.device) = (now, device);
            own.clone()
        };
        let path = self.folder.join(format!("{}.json", self.id()));
        let write = || {
            files::make_dir(&self.staging)
                .and_then(|()| files::write_json(&path, &record, &self.staging))
        };
        let written = match write() {
            Err(error) if is_absent(&error) => write(),
            other => other,
        };
        written.map_err(files::at("write", &path))?;
        // The lifetime of children depends on this record: only what the other instances can read counts.
        let shown = files::read_json::<Record>(&path).map_err(files::at("read", &path))?;
        if shown.is_none_or(|shown| shown.renewed_at != now) {
            let error = io::Error::other("a read does not return the data just written");
            return Err(files::at("renew", &path)(error));
        }
        Ok(())
    }

    /// Recreates the lock file if it was removed or replaced: a free lock would mean that this process has
    /// ended.
    fn keep_locked(&self) -> Result<(), StoreError> {
        let mut alive = self.alive.lock();
        let Some(held) = alive.as_mut() else {
            return Ok(());
        };
        let path = self.folder.join(format!("{}.lock", self.id()));
        let mut renew = || {
            if !lies_at(&held.file, &path)? {
                let hidden = self.folder.join(format!("new-{}", self.id()));
                *held = lock_then_show(&hidden, &path)?;
            }
            Ok(())
        };
        renew().map_err(files::at("lock", &path))
    }

    fn device(&self) -> Option<u64> {
        let alive = self.alive.lock();
        alive.as_ref().map(|alive| alive.device)
    }

    /// Checks that the folder is still the one that was joined: it contains this instance's lock. A volume
    /// that was remounted, or a folder that was recreated, has no such lock or a different one.
    pub(super) fn is_shown(&self) -> Result<(), StoreError> {
        let alive = self.alive.lock();
        let kind = if alive.is_some() { "lock" } else { "json" };
        let path = self.folder.join(format!("{}.{kind}", self.id()));
        let shown = match alive.as_ref() {
            Some(alive) => lies_at(&alive.file, &path),
            None => files::present(fs::symlink_metadata(&path)).map(|found| found.is_some()),
        };
        if shown.map_err(files::at("find", &path))? {
            return Ok(());
        }
        let why = "the jobs directory was replaced; it is prepared with the next heartbeat";
        Err(files::at("find", &path)(io::Error::other(why)))
    }

    pub(super) fn move_to(&self, address: String) {
        self.record.lock().address = Some(address);
    }

    pub(super) fn drain(&self) {
        self.record.lock().draining = true;
    }

    pub(super) fn staging(&self) -> &Path {
        &self.staging
    }
}

#[cfg(any(test, feature = "testing"))]
impl Instance {
    /// Makes [`Self::leave`] keep all files, as after SIGKILL.
    pub(super) fn forget_files(&self) {
        self.killed.store(true, Ordering::Relaxed);
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.leave();
    }
}

impl Instance {
    /// Removes the files of this run. The lock itself is held until the process ends.
    pub(super) fn leave(&self) {
        #[cfg(any(test, feature = "testing"))]
        if self.killed.load(Ordering::Relaxed) {
            return;
        }
        let gone = remove_files(&self.folder, self.id()).and_then(|()| remove_tree(&self.staging));
        if let Err(error) = gone {
            tracing::debug!(%error, "this instance's files remain until the next clean-up");
        }
    }
}

/// Whether `path` is this file and not another one.
fn lies_at(file: &File, path: &Path) -> io::Result<bool> {
    let own = file.metadata()?;
    let found = files::present(fs::symlink_metadata(path))?;
    Ok(found.is_some_and(|found| (found.dev(), found.ino()) == (own.dev(), own.ino())))
}

/// Locks the file before it becomes visible: an unlocked one would mean that this process is dead. Also
/// returns the folder's device.
fn lock_then_show(hidden: &Path, shown: &Path) -> io::Result<Alive> {
    let file = files::create_new(hidden)?;
    let locked = flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(Into::into);
    let shown = locked.and_then(|()| fs::rename(hidden, shown));
    let device = shown.and_then(|()| Ok(file.metadata()?.dev()));
    if device.is_err() {
        let _ = fs::remove_file(hidden);
    }
    device.map(|device| Alive { file, device })
}

fn remove_files(folder: &Path, id: InstanceId) -> io::Result<()> {
    for kind in ["json", "lock"] {
        remove_tree(&folder.join(format!("{id}.{kind}")))?;
    }
    Ok(())
}

fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|text| text.trim().to_owned())
        .unwrap_or_default()
}

/// What is known about another instance.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Liveness {
    /// It is alive, as far as this instance can see.
    Alive {
        /// The address where it is reached.
        address: Option<String>,
        /// It is shutting down, and releases its leases as its calls end.
        draining: bool,
    },
    /// It has ended, or has been silent for too long.
    Dead {
        /// Its files may be removed too.
        for_sure: bool,
    },
}

/// The clock difference that a record shows before its first observed renewal: the record may be old, but not
/// from the future, and a recent one means that the clocks agree.
fn ahead_at_first(record: &Record) -> Option<SignedDuration> {
    let ahead = Timestamp::now().duration_since(record.renewed_at);
    let fresh = Duration::from_millis(record.ttl_ms) / RENEWALS;
    let latest = TOLERANCE + SignedDuration::try_from(fresh).unwrap_or_default();
    (ahead <= latest).then(|| ahead.min(TOLERANCE))
}

impl Liveness {
    pub(super) fn is_dead(&self) -> bool {
        matches!(self, Self::Dead { .. })
    }
}

/// The records of other instances as observed, by this instance's clock.
#[derive(Debug, Default)]
pub(super) struct Watched(Mutex<HashMap<InstanceId, Observed>>);

#[derive(Debug)]
struct Observed {
    renewed_at: Timestamp,
    /// Number of observed renewals.
    renewals: u32,
    unchanged: Duration,
    looked: Instant,
    /// How far this clock was ahead of the instance's clock at the last observed renewal.
    ahead: Option<SignedDuration>,
}

impl Watched {
    /// How long the record has been observed unchanged. The time between two reads counts only up to `most`,
    /// the renewal interval: an instance must not count as dead because it was not observed.
    fn unchanged(&self, record: &Record, most: Duration, at: Instant) -> Duration {
        let mut seen = self.0.lock();
        let seen = seen.entry(record.instance).or_insert(Observed {
            renewed_at: record.renewed_at,
            renewals: 0,
            unchanged: Duration::ZERO,
            looked: at,
            ahead: ahead_at_first(record),
        });
        if seen.renewed_at == record.renewed_at {
            seen.unchanged += at.saturating_duration_since(seen.looked).min(most);
        } else {
            (seen.renewed_at, seen.unchanged) = (record.renewed_at, Duration::ZERO);
            seen.renewals = seen.renewals.saturating_add(1);
            seen.ahead = Some(Timestamp::now().duration_since(record.renewed_at));
        }
        seen.looked = at;
        seen.unchanged
    }

    fn ahead(&self, id: InstanceId) -> Option<SignedDuration> {
        let seen = self.0.lock();
        seen.get(&id)?.ahead
    }

    fn renewals(&self, id: InstanceId) -> u32 {
        let seen = self.0.lock();
        seen.get(&id).map_or(0, |seen| seen.renewals)
    }

    fn forget(&self, id: InstanceId) {
        self.0.lock().remove(&id);
    }
}

impl ChatStore {
    pub(super) fn liveness(&self, id: InstanceId) -> Liveness {
        self.liveness_at(id, Instant::now())
    }

    fn liveness_at(&self, id: InstanceId, at: Instant) -> Liveness {
        let own = self.instance.record.lock().clone();
        if id == own.instance {
            let (address, draining) = (own.address, own.draining);
            return Liveness::Alive { address, draining };
        }
        let folder = &self.instance.folder;
        let record = match files::read_json::<Record>(&folder.join(format!("{id}.json"))) {
            Ok(Some(record)) => record,
            // It left, or never existed.
            Ok(None) if locked(&folder.join(format!("{id}.lock"))) != Locked::Held => {
                self.watched.forget(id);
                return Liveness::Dead { for_sure: true };
            }
            unknown => {
                // A removed record is restored by the next renewal.
                if let Err(error) = unknown {
                    tracing::warn!(
                        %id,
                        %error,
                        "the record of another replica cannot be read; it is assumed to be alive"
                    );
                }
                let (address, draining) = (None, false);
                return Liveness::Alive { address, draining };
            }
        };
        let same_mount = record.device.is_some() && record.device == self.instance.device();
        let same_kernel = !own.boot_id.is_empty() && record.boot_id == own.boot_id;
        // An absent lock file proves nothing: it may have been removed.
        if same_mount && same_kernel && locked(&folder.join(format!("{id}.lock"))) == Locked::Free {
            return Liveness::Dead { for_sure: true };
        }
        // The two instances may be configured differently: the longer time is safe for both.
        let ttl = Duration::from_millis(own.ttl_ms.max(record.ttl_ms));
        let silent = self.watched.unchanged(&record, ttl / RENEWALS, at);
        if silent >= ttl {
            return Liveness::Dead {
                for_sure: silent > SILENT_FILES_KEPT.max(ttl),
            };
        }
        Liveness::Alive {
            address: record.address,
            draining: record.draining,
        }
    }

    /// All instances that have a record, except this one.
    fn other_ids(&self) -> Result<impl Iterator<Item = InstanceId>, StoreError> {
        let folder = &self.instance.folder;
        let (names, own) = (files::names_in(folder)?.into_iter(), self.instance.id());
        let ids = names.filter_map(|name| name.strip_suffix(".json")?.parse().ok());
        Ok(ids.filter(move |id| *id != own))
    }

    /// The other live instances that may hold a lease that cannot be read. Instances that have checked all
    /// their leases since the damage was first found are omitted: they would have rewritten it.
    pub(super) fn suspects(&self, job: JobId) -> Result<Vec<(InstanceId, Liveness)>, StoreError> {
        let mut found = Vec::new();
        for id in self.other_ids()? {
            let alive = self.liveness(id);
            if alive.is_dead() {
                continue;
            }
            let renewals = self.watched.renewals(id);
            let mut broken = self.broken.lock();
            let since = broken.entry(job).or_default().entry(id);
            let since = *since.or_insert(renewals);
            drop(broken);
            let mends = || self.record_of(id).is_some_and(|record| record.mends_leases);
            if renewals.saturating_sub(since) < LOOKED_THROUGH || !mends() {
                found.push((id, alive));
            }
        }
        Ok(found)
    }

    fn record_of(&self, id: InstanceId) -> Option<Record> {
        let path = self.instance.folder.join(format!("{id}.json"));
        files::read_json(&path).unwrap_or_default()
    }

    /// The clocks of the other live instances.
    pub(super) fn peer_clocks(&self) -> Result<Vec<PeerClock>, StoreError> {
        let mut clocks = Vec::new();
        for id in self.other_ids()? {
            if self.liveness(id).is_dead() {
                continue;
            }
            // An unreadable record counts as unknown, like that of an instance that has not written yet.
            let host = self.record_of(id).map(|record| record.host);
            clocks.push(PeerClock {
                host: host.unwrap_or_else(|| "another machine".to_owned()),
                ahead: self.watched.ahead(id),
            });
        }
        Ok(clocks)
    }

    /// Reads the records of all other instances once, so that silence is detected in time. Call it several
    /// times within each [`Self::renew_every`].
    pub fn others(&self) -> Result<Others, StoreError> {
        let mut others = Others::default();
        for instance in self.other_ids()? {
            let Liveness::Alive { address, draining } = self.liveness(instance) else {
                continue;
            };
            others.alive += 1;
            if let Some(address) = address.filter(|_| !draining) {
                others.peers.push(Peer { instance, address });
            }
        }
        Ok(others)
    }

    /// Whether an instance may still resume work: false if it has ended or was silent for too long.
    pub fn is_alive(&self, id: InstanceId) -> bool {
        !self.liveness(id).is_dead()
    }

    /// The instance, if other replicas can reach it.
    pub fn peer(&self, id: InstanceId) -> Option<Peer> {
        let Liveness::Alive { address, .. } = self.liveness(id) else {
            return None;
        };
        let (address, instance) = (address?, id);
        Some(Peer { instance, address })
    }

    /// Removes the files of dead instances; returns the number of instances, and the errors.
    pub(super) fn sweep_instances(&self) -> (u64, Vec<StoreError>) {
        let (mut removed, mut errors) = (0, Vec::new());
        let mut dead = std::collections::BTreeSet::new();
        for folder in [self.bridge("tmp"), self.instance.folder.clone()] {
            match files::names_in(&folder) {
                Ok(names) => dead.extend(names.into_iter().filter_map(|name| {
                    let id: InstanceId = name.split('.').next()?.parse().ok()?;
                    let gone = self.liveness(id) == Liveness::Dead { for_sure: true };
                    gone.then_some(id)
                })),
                Err(error) => errors.push(error),
            }
        }
        for id in dead {
            let staging = self.bridge("tmp").join(id.to_string());
            self.watched.forget(id);
            let gone = remove_tree(&staging).and_then(|()| remove_files(&self.instance.folder, id));
            match gone {
                Ok(()) => removed += 1,
                Err(error) => errors.push(files::at("remove", &staging)(error)),
            }
        }
        (removed, errors)
    }
}

/// What the lock file of an instance shows about its process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Locked {
    /// The process has not ended.
    Held,
    /// The process has ended.
    Free,
    /// Nothing: the file is absent or cannot be opened.
    Unknown,
}

/// Uses a shared lock, so that two readers do not conflict.
fn locked(path: &Path) -> Locked {
    let Ok(file) = open_read(path) else {
        return Locked::Unknown;
    };
    match flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Locked::Free,
        Err(rustix::io::Errno::WOULDBLOCK) => Locked::Held,
        Err(_) => Locked::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Doubt, *};
    use crate::testing::{Folder, later};

    #[test]
    fn a_dropped_store_leaves_nothing_of_its_instance() {
        let folder = Folder::new();
        drop(folder.open());
        for part in ["instances", "tmp"] {
            let path = folder.path().join(".bridge").join(part);
            assert_eq!(fs::read_dir(path).unwrap().count(), 0, "{part}");
        }
    }

    #[test]
    fn a_crashed_instance_is_dead_at_once_and_its_staging_is_cleared() {
        let folder = Folder::new();
        let (id, staging) = folder.crash(|store| {
            fs::write(store.staging().join("half-written"), "x").unwrap();
            (store.instance(), store.staging().to_owned())
        });
        assert!(staging.exists());
        let store = folder.open();
        assert!(!staging.exists());
        assert_eq!(store.liveness(id), Liveness::Dead { for_sure: true });
    }

    /// The record of a bridge on another host, whose clock is far off.
    struct Foreign(Record);

    impl Foreign {
        fn new(store: &ChatStore) -> Self {
            let mut record = store.instance.record.lock().clone();
            record.instance = InstanceId::random();
            record.boot_id = "another host".into();
            Self(record)
        }

        fn beat(&mut self, store: &ChatStore, at: Timestamp) {
            self.0.renewed_at = at;
            let path = store
                .instance
                .folder
                .join(format!("{}.json", self.0.instance));
            files::write_json(&path, &self.0, store.staging()).unwrap();
        }
    }

    #[test]
    fn another_hosts_silence_counts_as_it_is_watched_and_not_by_its_clock() {
        let folder = Folder::new();
        let store = folder.open();
        let mut other = Foreign::new(&store);
        let began = Instant::now();
        let seconds = Duration::from_secs;
        let id = other.0.instance;
        let look = |after| store.liveness_at(id, began + seconds(after));
        let alive = Liveness::Alive {
            address: None,
            draining: false,
        };
        other.beat(&store, later(folder.now, -100_000));
        for after in (0..20).step_by(5) {
            assert_eq!(look(after), alive, "{after}");
        }
        assert_eq!(look(20), Liveness::Dead { for_sure: false });
        other.beat(&store, later(folder.now, -99_999));
        assert_eq!(look(21), alive);
        // This process was stopped, or the folder was unreadable: this does not count as silence.
        assert_eq!(look(500), alive);
    }

    #[test]
    fn clocks_that_are_far_apart_are_noticed_before_anything_is_removed() {
        let folder = Folder::new();
        let store = folder.open();
        assert_eq!(store.doubt(), None, "alone, and the filesystem agrees");
        let mut other = Foreign::new(&store);
        let now = Timestamp::now();
        let why = |store: &ChatStore| store.doubt().map(|doubt| doubt.why().to_owned());
        // The clock is two hours behind, or the record is two hours old.
        other.beat(&store, later(now, -7200));
        assert!(matches!(store.doubt(), Some(Doubt::Unknown(_))));
        other.beat(&store, later(now, -7199));
        assert!(why(&store).unwrap().contains("ahead"));
        assert!(store.warnings()[0].contains("clean-up by age is paused"));
        // The clock was corrected.
        other.beat(&store, now);
        assert_eq!(store.doubt(), None);
        assert_eq!(store.warnings(), [] as [String; 0]);
        let mut tomorrow = Foreign::new(&store);
        tomorrow.beat(&store, later(now, 86_400));
        assert!(why(&store).unwrap().contains("behind"));
    }

    #[test]
    fn others_see_where_an_instance_is_reached_from_now_on() {
        let folder = Folder::new();
        let (one, two) = (folder.open(), folder.open());
        let id = one.instance();
        one.move_to("https://h:1#ab".to_owned()).unwrap();
        one.drain().unwrap();
        let seen = two.peer(id).map(|peer| peer.address);
        assert_eq!(seen.as_deref(), Some("https://h:1#ab"));
    }

    #[test]
    fn a_stopped_neighbour_is_silent_though_it_holds_its_lock() {
        let folder = Folder::new();
        let (one, two) = (folder.open(), folder.open());
        let began = Instant::now();
        let id = one.instance();
        let at = |after| two.liveness_at(id, began + Duration::from_secs(after));
        for after in (0..20).step_by(5) {
            assert!(matches!(at(after), Liveness::Alive { .. }), "{after}");
        }
        assert_eq!(at(20), Liveness::Dead { for_sure: false });
        assert_eq!(two.sweep_instances().0, 0);
        one.renew().unwrap();
        assert!(matches!(at(21), Liveness::Alive { .. }));
    }

    #[test]
    fn only_instances_that_take_calls_are_peers() {
        let folder = Folder::new();
        let reached = |address: &str| {
            let membership = Membership {
                address: Some(address.into()),
                ..Membership::default()
            };
            ChatStore::open(&folder.path(), &membership).unwrap()
        };
        let (one, two, command) = (reached("a:1"), reached("b:2"), folder.open());
        let peer = Peer {
            instance: two.instance(),
            address: "b:2".into(),
        };
        assert_eq!(one.others().unwrap().peers, [peer]);
        assert_eq!(command.others().unwrap().peers.len(), 2);
        two.drain().unwrap();
        assert_eq!(one.others().unwrap().peers, []);
    }

    #[test]
    fn a_lock_file_that_was_removed_is_made_again() {
        let folder = Folder::new();
        let (one, two) = (folder.open(), folder.open());
        let id = one.instance();
        let path = one.instance.folder.join(format!("{id}.lock"));
        fs::remove_file(&path).unwrap();
        one.renew().unwrap();
        assert!(path.exists());
        assert!(two.is_alive(id));
        drop(one);
        assert!(!two.is_alive(id));
    }

    fn check_writable(store: &ChatStore) -> Result<(), StoreError> {
        store.in_whole_folder(|| store.write_probe()).map(drop)
    }

    #[test]
    fn an_emptied_jobs_folder_is_filled_again_by_the_first_step_that_needs_it() {
        use crate::testing::{key, new_chat};
        type Work = fn(&ChatStore, Timestamp);
        let works: [Work; 5] = [
            |store, _| store.renew().unwrap(),
            |store, _| check_writable(store).unwrap(),
            |store, now| drop(store.acquire_chat(&key("c"), &new_chat(), now).unwrap()),
            |store, _| drop(store.create(&new_chat()).unwrap()),
            |store, _| {
                drop(store.blobs().stage().unwrap());
            },
        ];
        for (number, work) in works.into_iter().enumerate() {
            let folder = Folder::new();
            let store = folder.open();
            fs::rename(folder.path(), folder.outside().join("away")).unwrap();
            if number % 2 == 0 {
                fs::create_dir(folder.path()).unwrap();
            }
            work(&store, folder.now);
            check_writable(&store).unwrap();
            let other = folder.open();
            assert!(other.is_alive(store.instance()), "{number}");
        }
    }

    #[test]
    fn a_folder_that_takes_no_files_is_not_writable() {
        let folder = Folder::new();
        let store = folder.open();
        check_writable(&store).unwrap();
        assert_eq!(fs::read_dir(store.staging()).unwrap().count(), 0);
        fs::remove_dir(store.staging()).unwrap();
        fs::write(store.staging(), "no folder").unwrap();
        check_writable(&store).unwrap_err();
    }

    #[test]
    fn a_live_neighbour_keeps_its_files() {
        let folder = Folder::new();
        let (one, two) = (folder.open(), folder.open());
        assert_eq!(two.sweep_instances().0, 0);
        assert!(one.staging().exists());
    }
}
