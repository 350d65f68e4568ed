//! What outlives a process, in the jobs folder: workspaces, bindings, leases, links, journals, and what
//! servers offered.
//!
//! This crate must not know MCP methods, HTTP, child processes or settings: it is handed keys, folders,
//! times and limits.
//!
//! Several bridges may share the folder (NFS too), so nothing is believed to be ours alone: names
//! appear by link or rename, changes happen under file locks, and a lease says who works where. File
//! locks may not reach other hosts, so who gets a binding or a lease is decided by exclusive names.
//! All calls block on the disk; async callers use `spawn_blocking`.
//!
//! ```text
//! {job-id}/work/ home/ tmp/    the children's
//! {job-id}/metadata.json …     ours: journal.jsonl, server.log, lease, lease.N, lock
//! .bridge/bindings/{ab}/{key}  which job folder a workspace key has
//! .bridge/artifacts/{ab}/{token}/{meta.json,data}
//! .bridge/catalog/{digest}.json  what a server offered when it was last asked
//! .bridge/instances/{id}.{json,lock}
//! .bridge/tmp/{instance}/      staging, gone with its instance
//! .bridge/peer-key             what the bridges on this folder prove themselves with
//! ```
//!
//! ```
//! use bridge_model::{Principal, WorkspaceKey};
//! use bridge_state::{Membership, NewJob, PrincipalHash, Store};
//! use jiff::Timestamp;
//!
//! let folder = tempfile::tempdir()?;
//! let store = Store::open(&folder.path().join("jobs"), &Membership::default(), Timestamp::now())?;
//! let ann = Principal::User("ann".into());
//! let new = NewJob {
//!     principal: PrincipalHash::from(&ann),
//!     key: Some(WorkspaceKey::chat(&ann, "7f3a", None)),
//!     servers: &[],
//! };
//! let job = store.create_job(&new, Timestamp::now())?;
//! assert!(job.work().is_dir());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod binding;
mod catalog;
mod clock;
mod error;
mod files;
mod gc;
mod incoming;
mod instance;
mod journal;
mod lease;
mod link;
mod list;
mod lock;
mod metadata;
mod open;
mod principal;
mod probe;
mod remove;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod unclaimed;
mod usage;
mod workspaces;

use std::{
    collections::{HashMap, HashSet},
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError, atomic::AtomicBool},
    time::Instant,
};

use bridge_model::{JobId, LinkToken};
use jiff::Timestamp;
use uuid::Uuid;

use self::clock::{Clock, Doubt, Moment};

use error::is_absent;
pub use error::{StoreError, is_disk_full};
pub use files::read_within;
pub use gc::{Clocks, GcReport};
pub use incoming::StagedFile;
pub use instance::{Instance, InstanceId, Membership, Others, Peer};
pub use journal::{JournalEntry, JournalMode};
pub use lease::{Lease, LeaseError};
pub use link::{Artifact, Bytes, GoneReason, Link, StagedLink, Stamp, TOMBSTONE};
pub use list::{JobSummary, SessionSummary};
pub use metadata::{JobStatus, LiveSession, Metadata};
pub use principal::PrincipalHash;
pub use probe::Room;
pub use remove::remove_tree;
pub use usage::DiskUsage;
pub use workspaces::NewJob;

/// The jobs folder of this process. Dropping it ends the instance: its leases are then stale.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
    /// The folder as the operator spelled it, made absolute: children may print that spelling.
    configured: PathBuf,
    instance: Instance,
    watched: instance::Watched,
    clock: Clock,
    hashed: link::Hashed,
    /// Workspaces whose records are known to be on the disk.
    synced: Mutex<HashSet<JobId>>,
    /// A round of clean-up was done.
    swept: AtomicBool,
    /// Leases that cannot be read: the others' renewals that had been seen when that was noticed.
    broken: Mutex<HashMap<JobId, HashMap<InstanceId, u32>>>,
}

impl Store {
    /// Opens the folder (made 0700 where absent), joins it as a new instance and clears what dead
    /// instances left half-made.
    pub fn open(
        jobs_dir: &Path,
        membership: &Membership,
        now: Timestamp,
    ) -> Result<Self, StoreError> {
        let (root, configured) = open::prepare(jobs_dir)?;
        let instance = Instance::join(&root.join(".bridge"), membership, now)?;
        let store = Self {
            root,
            configured,
            instance,
            watched: instance::Watched::default(),
            clock: Clock::at(Moment::now()),
            hashed: link::Hashed::default(),
            synced: Mutex::default(),
            swept: AtomicBool::new(false),
            broken: Mutex::default(),
        };
        for error in store.sweep_instances().1 {
            tracing::warn!(%error, "cannot clear what a dead instance left");
        }
        Ok(store)
    }

    /// This process, as other replicas see it.
    pub fn instance(&self) -> &Instance {
        &self.instance
    }

    /// Leaves the folder as this instance's last act, whoever still holds the store: its files and
    /// staging go, and its leases are stale once the process ends.
    pub fn leave(&self) {
        self.instance.leave();
    }

    /// Tells the other replicas that this one lives. Call every [`Instance::renew_every`].
    pub fn renew(&self, now: Timestamp) -> Result<(), StoreError> {
        self.forget_mended();
        match self.instance.renew(now) {
            Err(error) if error.is_absent() => self.restore(now),
            other => other,
        }
    }

    /// Whether records can be written in the jobs folder now: makes a small file and removes it.
    /// Makes our own folders again where the jobs folder was emptied or replaced. Blocks on the
    /// disk for as long as that hangs: a caller who must answer waits with a limit.
    #[allow(dead_code, reason = "for /health, which asks it next")]
    pub fn check_writable(&self) -> Result<(), StoreError> {
        self.in_whole_folder(|| self.write_probe()).map(drop)
    }

    /// What the filesystem takes for the time: its own clock where it is another machine's.
    fn write_probe(&self) -> Result<std::time::SystemTime, StoreError> {
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

    /// Makes our own folders again. Whoever emptied the jobs folder, or mounted another volume in
    /// its place, took the records: chats begin anew, but they do begin.
    fn restore(&self, now: Timestamp) -> Result<(), StoreError> {
        let (root, _) = open::prepare(&self.configured)?;
        if root != self.root {
            return Err(StoreError::Unusable {
                path: self.configured.clone(),
                problem: format!(
                    "is not the same as at the start ({}): restart the bridge",
                    self.root.display()
                ),
            });
        }
        self.instance.renew(now)?;
        tracing::warn!(
            folder = %self.root.display(),
            "the jobs folder was emptied or replaced while the bridge runs: its records are begun \
             anew; chats and links from before are gone unless the old folder comes back"
        );
        Ok(())
    }

    /// Does `work`; where that failed because our own folders are gone, makes them and does it
    /// once more.
    fn in_whole_folder<T>(
        &self,
        work: impl Fn() -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        match work() {
            Err(error)
                if error.is_absent()
                    && !(open::is_whole(&self.root) && self.staging().is_dir()) =>
            {
                self.restore(Timestamp::now())?;
                work()
            }
            other => other,
        }
    }

    /// Tells the other replicas that this one is about to end: they bring nothing new, and wait for
    /// its leases.
    pub fn drain(&self, now: Timestamp) -> Result<(), StoreError> {
        self.instance.drain();
        self.instance.renew(now)
    }

    /// Tells the other replicas where this one is reached from now on.
    pub fn move_to(&self, address: String, now: Timestamp) -> Result<(), StoreError> {
        self.instance.move_to(address);
        self.instance.renew(now)
    }

    /// The secret that all bridges on this folder share: made by the first of them, at random.
    pub fn peer_key(&self) -> Result<Vec<u8>, StoreError> {
        let path = self.bridge("peer-key");
        let fresh = LinkToken::random().as_str().to_owned() + LinkToken::random().as_str();
        files::show_new(&path, fresh.as_bytes(), self.staging())
            .map_err(files::at("write", &path))?;
        let key = files::read_record(&path).map_err(files::at("read", &path))?;
        if key.len() < fresh.len() {
            let error = std::io::Error::other("it is too short: remove it and start all bridges");
            return Err(files::at("use", &path)(error));
        }
        Ok(key)
    }

    /// What deserves a look in the jobs folder though the bridge serves.
    pub fn warnings(&self) -> Vec<String> {
        let broken = self.broken().len();
        let broken = (broken > 0).then(|| {
            format!(
                "the records of who works in {broken} workspaces (their file 'lease') cannot be \
                 read: their chats wait until the bridge that holds them has written them anew, or \
                 until no bridge lives that could hold them"
            )
        });
        broken.into_iter().chain(self.clock.warning()).collect()
    }

    /// What is believed to be the time: what is written down and what is judged by it. A clock that
    /// somebody sets while the bridge runs is not followed at once.
    pub fn now(&self) -> Timestamp {
        self.clock.believed(Moment::now())
    }

    /// Why nothing may be removed for its age now. Blocks on the disk.
    fn doubt(&self) -> Option<Doubt> {
        let disk = self.in_whole_folder(|| self.write_probe()).ok();
        match self.peer_clocks() {
            Ok(peers) => self.clock.judge(Moment::now(), disk, &peers),
            Err(error) => Some(Doubt::Unknown(error.to_string())),
        }
    }

    /// The same for a command, which has seen nothing of the others yet: waits until they were seen
    /// to write, or silent.
    fn doubt_after_a_look(&self) -> Option<Doubt> {
        let until = Instant::now() + self.instance.ttl() * 2;
        loop {
            match self.doubt() {
                Some(Doubt::Unknown(_)) if Instant::now() < until => {
                    std::thread::sleep(self.instance.renew_every() / 8);
                }
                doubt => return doubt,
            }
        }
    }

    fn broken(&self) -> MutexGuard<'_, HashMap<JobId, HashMap<InstanceId, u32>>> {
        self.broken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The canonical path of the jobs folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Bytes that are free on the folder's filesystem for us, for the free-disk floor.
    pub fn free_bytes(&self) -> Result<u64, StoreError> {
        let found = self.statvfs()?;
        Ok(found.f_bavail.saturating_mul(found.f_frsize))
    }

    fn bridge(&self, part: &str) -> PathBuf {
        self.root.join(".bridge").join(part)
    }

    /// Ours alone, on the same filesystem as everything else in the folder.
    /// What is in it ends with this process.
    pub fn staging(&self) -> &Path {
        self.instance.staging()
    }
}
