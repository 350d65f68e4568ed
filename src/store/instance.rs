//! One running bridge among those that share the folder: unknown → alive → dead, never back.
//!
//! Alive means that it holds the lock on its file. Where that lock cannot be judged (another
//! host's, on a filesystem whose locks stay local), a fresh heartbeat counts too.

use std::{
    fmt, fs,
    fs::File,
    io,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Store, StoreError, files, remove};

/// How often [`super::Store::renew`] is due. A silent instance counts as dead after three of them.
pub const HEARTBEAT_EVERY: Duration = Duration::from_secs(10);
const HEARTBEAT_FRESH: SignedDuration = SignedDuration::from_secs(30);
/// Another host's clock may be wrong: its files are left much longer than its leases.
const FOREIGN_FILES_KEPT: SignedDuration = SignedDuration::from_hours(1);

/// Names one run of one bridge process. Random; not a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct InstanceId(Uuid);

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

/// What an instance says of itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Record {
    instance: InstanceId,
    boot_id: String,
    pid: u32,
    host: String,
    address: Option<String>,
    started_at: Timestamp,
    renewed_at: Timestamp,
}

/// This process: holds the lock that tells others that it lives.
#[derive(Debug)]
pub struct Instance {
    record: Record,
    folder: PathBuf,
    staging: PathBuf,
    /// Locked for as long as it is open.
    _alive: File,
}

impl Instance {
    /// The id under which this run holds its leases.
    pub fn id(&self) -> InstanceId {
        self.record.instance
    }

    /// Where other replicas reach this one, if that is known.
    pub fn address(&self) -> Option<&str> {
        self.record.address.as_deref()
    }

    pub(super) fn join(
        bridge: &Path,
        address: Option<&str>,
        now: Timestamp,
    ) -> Result<Self, StoreError> {
        let id = InstanceId(Uuid::new_v4());
        let folder = bridge.join("instances");
        let path = folder.join(format!("{id}.lock"));
        let alive = lock_then_show(&folder.join(format!("new-{id}")), &path)
            .map_err(files::at("lock (the filesystem must support flock)", &path))?;
        // Only now: staging without a lock is what the dead leave.
        let staging = bridge.join("tmp").join(id.to_string());
        files::make_dir(&staging).map_err(files::at("make", &staging))?;
        let record = Record {
            instance: id,
            boot_id: boot_id(),
            pid: std::process::id(),
            host: rustix::system::uname().nodename().to_string_lossy().into(),
            address: address.map(Into::into),
            started_at: now,
            renewed_at: now,
        };
        let instance = Self {
            record,
            folder,
            staging,
            _alive: alive,
        };
        instance.renew(now)?;
        Ok(instance)
    }

    pub(super) fn renew(&self, now: Timestamp) -> Result<(), StoreError> {
        let record = Record {
            renewed_at: now,
            ..self.record.clone()
        };
        let path = self.folder.join(format!("{}.json", self.id()));
        files::write_json(&path, &record, &self.staging).map_err(files::at("write", &path))
    }

    pub(super) fn staging(&self) -> &Path {
        &self.staging
    }
}

#[cfg(test)]
impl Instance {
    /// Lets the lock go without cleaning up, as SIGKILL does.
    pub(super) fn forget_files(&mut self) {
        self.folder = PathBuf::from("/nonexistent");
        self.staging = PathBuf::from("/nonexistent");
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.leave();
    }
}

impl Instance {
    /// Removes what belongs to this run. The lock itself is held until the process ends.
    pub(super) fn leave(&self) {
        let gone =
            remove_files(&self.folder, self.id()).and_then(|()| remove::remove_tree(&self.staging));
        if let Err(error) = gone {
            tracing::debug!(%error, "this instance's files stay for the next clean-up");
        }
    }
}

/// Nobody may see the file unlocked, or he would take us for dead.
fn lock_then_show(hidden: &Path, shown: &Path) -> io::Result<File> {
    let file = files::create_new(hidden)?;
    let locked = flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(Into::into);
    let shown = locked.and_then(|()| fs::rename(hidden, shown));
    if shown.is_err() {
        let _ = fs::remove_file(hidden);
    }
    shown.map(|()| file)
}

fn remove_files(folder: &Path, id: InstanceId) -> io::Result<()> {
    for kind in ["json", "lock"] {
        remove::remove_tree(&folder.join(format!("{id}.{kind}")))?;
    }
    Ok(())
}

fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|text| text.trim().to_owned())
        .unwrap_or_default()
}

/// What is known of another instance.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Liveness {
    /// It lives, and is reached there.
    Alive(Option<String>),
    /// It ended.
    Dead {
        /// Its files may go too.
        for_sure: bool,
    },
}

impl Store {
    pub(super) fn liveness(&self, id: InstanceId, now: Timestamp) -> Liveness {
        let folder = &self.instance.folder;
        let record: Option<Record> = files::read_json(&folder.join(format!("{id}.json")))
            .ok()
            .flatten();
        let address = record.as_ref().and_then(|record| record.address.clone());
        if id == self.instance.id() || is_locked(&folder.join(format!("{id}.lock"))) {
            return Liveness::Alive(address);
        }
        let own_boot = &self.instance.record.boot_id;
        match record {
            Some(record) if own_boot.is_empty() || record.boot_id != *own_boot => {
                let silent = now.duration_since(record.renewed_at);
                if silent < HEARTBEAT_FRESH {
                    return Liveness::Alive(address);
                }
                let for_sure = silent > FOREIGN_FILES_KEPT;
                Liveness::Dead { for_sure }
            }
            // Same kernel: the lock is the truth, at once. Without a record there is no heartbeat.
            _ => Liveness::Dead { for_sure: true },
        }
    }

    /// Removes the files of dead instances; returns how many there were, and what failed.
    pub(super) fn sweep_instances(&self, now: Timestamp) -> (u64, Vec<StoreError>) {
        let (mut removed, mut errors) = (0, Vec::new());
        let mut dead = std::collections::BTreeSet::new();
        for folder in [self.bridge("tmp"), self.instance.folder.clone()] {
            match files::names_in(&folder) {
                Ok(names) => dead.extend(names.into_iter().flatten().filter_map(|name| {
                    let id: InstanceId = name.split('.').next()?.parse().ok()?;
                    let gone = self.liveness(id, now) == Liveness::Dead { for_sure: true };
                    gone.then(|| id.to_string())
                })),
                Err(error) => errors.push(files::at("list", &folder)(error)),
            }
        }
        for id in dead.iter().filter_map(|id| id.parse().ok()) {
            let staging = self.bridge("tmp").join(InstanceId::to_string(&id));
            let gone = remove::remove_tree(&staging)
                .and_then(|()| remove_files(&self.instance.folder, id));
            match gone {
                Ok(()) => removed += 1,
                Err(error) => errors.push(files::at("remove", &staging)(error)),
            }
        }
        (removed, errors)
    }
}

/// Whether its owner still holds it. A shared attempt: two who look do not see each other.
fn is_locked(path: &Path) -> bool {
    files::open_read(path).is_ok_and(|file| {
        flock(&file, FlockOperation::NonBlockingLockShared) == Err(rustix::io::Errno::WOULDBLOCK)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing::{Folder, later};

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
            (store.instance().id(), store.staging().to_owned())
        });
        assert!(staging.exists());
        let store = folder.open();
        assert!(!staging.exists());
        assert_eq!(
            store.liveness(id, folder.now),
            Liveness::Dead { for_sure: true }
        );
    }

    #[test]
    fn another_hosts_heartbeat_counts_for_thirty_seconds() {
        let folder = Folder::new();
        let store = folder.open();
        let mut record = store.instance.record.clone();
        record.instance = InstanceId(Uuid::new_v4());
        record.boot_id = "another host".into();
        let path = store
            .instance
            .folder
            .join(format!("{}.json", record.instance));
        files::write_json(&path, &record, store.staging()).unwrap();
        let at = |seconds| store.liveness(record.instance, later(folder.now, seconds));
        assert_eq!(at(29), Liveness::Alive(None));
        assert_eq!(at(31), Liveness::Dead { for_sure: false });
        assert_eq!(at(7200), Liveness::Dead { for_sure: true });
    }

    #[test]
    fn a_live_neighbour_keeps_its_files() {
        let folder = Folder::new();
        let (one, two) = (folder.open(), folder.open());
        let years = later(folder.now, 100_000_000);
        assert_eq!(two.sweep_instances(years).0, 0);
        assert!(one.staging().exists());
    }
}
