//! Who works in a workspace. One instance at a time; a dead one's lease is taken over.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    InstanceId, Job, NewJob, Store, StoreError, files, instance::Liveness, lock::FileLock,
};
use crate::model::JobId;

/// The right of this instance to run children in a workspace, until released or taken over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The workspace.
    pub job: JobId,
    /// Who holds it.
    pub instance: InstanceId,
    /// Grows by one with each change of hands: an older number has lost the workspace.
    pub fence: u64,
    /// When this instance took it.
    pub since: Timestamp,
}

/// Why a workspace cannot be worked in.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// A living instance has it: forward the call there.
    #[error("this chat runs on another replica ({instance})")]
    Elsewhere {
        /// The holder.
        instance: InstanceId,
        /// Where it can be reached, if it said so.
        address: Option<String>,
    },
    /// The folder failed; [`StoreError::JobGone`] when it was removed meanwhile: bind again.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The file. The fence stays when the holder goes.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Record {
    instance: Option<InstanceId>,
    address: Option<String>,
    fence: u64,
    since: Option<Timestamp>,
}

impl Store {
    /// A workspace folder of our own from the start. Where the lease cannot be had, no folder is
    /// left either.
    pub fn create_leased_job(
        &self,
        new: &NewJob<'_>,
        now: Timestamp,
    ) -> Result<(Job, Lease), LeaseError> {
        let job = self.create_job(new, now)?;
        match self.acquire(&job, now) {
            Ok(lease) => Ok((job, lease)),
            Err(error) => {
                let _ = self.remove_job(&job);
                Err(error)
            }
        }
    }

    /// Takes the lease: free, stale (its instance is dead), or ours already (then the same fence).
    /// Not counted: the caller releases once its last child in the workspace has ended.
    pub fn acquire(&self, job: &Job, now: Timestamp) -> Result<Lease, LeaseError> {
        let _lock = FileLock::job(job)?;
        let record = read(job)?;
        let own = self.instance().id();
        let mut lease = Lease {
            job: job.id(),
            instance: own,
            fence: record.fence,
            since: record.since.unwrap_or(now),
        };
        match record.instance {
            Some(holder) if holder == own => return Ok(lease),
            Some(holder) => {
                if let Liveness::Alive(address) = self.liveness(holder, now) {
                    return Err(LeaseError::Elsewhere {
                        instance: holder,
                        // What it says now counts: a pod may have come back under another address.
                        address: address.or(record.address),
                    });
                }
            }
            None => {}
        }
        lease.fence += 1;
        lease.since = now;
        let record = Record {
            instance: Some(own),
            address: self.instance().address().map(Into::into),
            fence: lease.fence,
            since: Some(now),
        };
        self.write_lease(job, &record)?;
        Ok(lease)
    }

    /// Gives it back. Fine if it was taken over or the folder is gone.
    pub fn release(&self, lease: &Lease) -> Result<(), StoreError> {
        let Some(job) = self.job(lease.job)? else {
            return Ok(());
        };
        let _lock = match FileLock::job(&job) {
            Err(StoreError::JobGone) => return Ok(()),
            other => other?,
        };
        let record = read(&job)?;
        if !is_of(&record, lease) {
            return Ok(());
        }
        let free = Record {
            fence: record.fence,
            ..Record::default()
        };
        self.write_lease(&job, &free)
    }

    /// Whether nobody took it over.
    #[cfg(test)]
    fn holds(&self, lease: &Lease) -> Result<bool, StoreError> {
        let job = self.job(lease.job)?;
        job.map_or(Ok(false), |job| Ok(is_of(&read(&job)?, lease)))
    }

    /// The living holder of a workspace's lease, ourselves included.
    pub fn leased_by(&self, job: &Job, now: Timestamp) -> Result<Option<InstanceId>, StoreError> {
        let holder = read(job)?.instance;
        Ok(holder.filter(|id| matches!(self.liveness(*id, now), Liveness::Alive(_))))
    }

    fn write_lease(&self, job: &Job, record: &Record) -> Result<(), StoreError> {
        let path = path(job);
        files::write_json(&path, record, self.staging()).map_err(files::at("write", &path))
    }
}

fn is_of(record: &Record, lease: &Lease) -> bool {
    record.instance == Some(lease.instance) && record.fence == lease.fence
}

fn path(job: &Job) -> std::path::PathBuf {
    job.folder().join("lease")
}

fn read(job: &Job) -> Result<Record, StoreError> {
    let path = path(job);
    match files::read_json(&path) {
        Ok(record) => Ok(record.unwrap_or_default()),
        Err(error) if error.kind() == std::io::ErrorKind::InvalidData => {
            tracing::warn!(job = ?job.id(), %error, "unreadable lease: taken as free");
            Ok(Record::default())
        }
        Err(error) => Err(files::at("read", &path)(error)),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead, BufReader},
        process::{Command, Stdio},
    };

    use super::*;
    use crate::store::testing::{Folder, key, later, new_job};

    #[test]
    fn one_living_instance_at_a_time() {
        let folder = Folder::new();
        let one = Store::open(&folder.path(), Some("10.0.0.1:8080"), folder.now).unwrap();
        let two = folder.open();
        let held = one
            .open_workspace(&key("c"), &new_job(), folder.now)
            .unwrap();
        // However late: the lock says that it lives.
        match two.acquire(&held.job, later(folder.now, 100_000)) {
            Err(LeaseError::Elsewhere { instance, address }) => {
                assert_eq!(instance, one.instance().id());
                assert_eq!(address.as_deref(), Some("10.0.0.1:8080"));
            }
            other => panic!("{other:?}"),
        }
        let leased = two.leased_by(&held.job, folder.now).unwrap();
        assert_eq!(leased, Some(one.instance().id()));
        one.release(&held.lease).unwrap();
        assert_eq!(two.acquire(&held.job, folder.now).unwrap().fence, 2);
    }

    #[test]
    fn acquiring_again_keeps_the_fence() {
        let folder = Folder::new();
        let store = folder.open();
        let first = store
            .open_workspace(&key("c"), &new_job(), folder.now)
            .unwrap();
        let again = store
            .open_workspace(&key("c"), &new_job(), later(folder.now, 5))
            .unwrap();
        assert_eq!(first.lease, again.lease);
    }

    #[test]
    fn a_crashed_holder_loses_it_at_once_and_cannot_give_back_what_is_not_its_own() {
        let folder = Folder::new();
        let stale = folder.crash(|store| {
            store
                .open_workspace(&key("c"), &new_job(), folder.now)
                .unwrap()
                .lease
        });
        let store = folder.open();
        let mine = store
            .open_workspace(&key("c"), &new_job(), folder.now)
            .unwrap();
        assert_eq!(mine.lease.job, stale.job);
        assert_eq!(mine.lease.fence, stale.fence + 1);
        store.release(&stale).unwrap();
        assert!(store.holds(&mine.lease).unwrap());
        assert!(!store.holds(&stale).unwrap());
    }

    const FOLDER: &str = "MCPO_TEST_HELD_FOLDER";

    #[test]
    #[ignore = "the other process of the next test"]
    fn held_until_killed() {
        let Some(path) = std::env::var_os(FOLDER) else {
            return;
        };
        let now = Timestamp::now();
        let store = Store::open(path.as_ref(), None, now).unwrap();
        let held = store.open_workspace(&key("c"), &new_job(), now).unwrap();
        println!("\nheld {}", held.job.id());
        loop {
            std::thread::park();
        }
    }

    #[test]
    fn a_killed_process_is_succeeded_at_once_in_the_same_folder() {
        let folder = Folder::new();
        let mut other = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "store::lease::tests::held_until_killed"])
            .args(["--ignored", "--nocapture"])
            .env(FOLDER, folder.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(other.stdout.take().unwrap()).lines();
        let job = lines.find_map(|line| Some(line.unwrap().strip_prefix("held ")?.to_owned()));
        let store = folder.open();
        let open = || store.open_workspace(&key("c"), &new_job(), folder.now);
        let refused = open();
        other.kill().unwrap();
        other.wait().unwrap();
        assert!(
            matches!(refused, Err(LeaseError::Elsewhere { .. })),
            "{refused:?}"
        );
        let taken = open().unwrap();
        assert_eq!(Some(taken.job.id().to_string()), job);
        assert_eq!(taken.lease.fence, 2);
    }

    #[test]
    fn a_stale_lease_goes_to_one_of_those_who_want_it() {
        let folder = Folder::new();
        folder
            .crash(|store| {
                store
                    .open_workspace(&key("c"), &new_job(), folder.now)
                    .map(drop)
            })
            .unwrap();
        let stores: Vec<_> = (0..4).map(|_| folder.open()).collect();
        let won = std::thread::scope(|scope| {
            let threads: Vec<_> = stores
                .iter()
                .map(|store| {
                    scope.spawn(|| {
                        store
                            .open_workspace(&key("c"), &new_job(), folder.now)
                            .is_ok()
                    })
                })
                .collect();
            threads
                .into_iter()
                .map(|t| t.join().unwrap())
                .filter(|won| *won)
                .count()
        });
        assert_eq!(won, 1);
    }

    #[test]
    fn a_removed_folder_cannot_be_leased() {
        let folder = Folder::new();
        let store = folder.open();
        let job = store.create_job(&new_job(), folder.now).unwrap();
        let lease = store.acquire(&job, folder.now).unwrap();
        store.remove_job(&job).unwrap();
        let refused = store.acquire(&job, folder.now);
        assert!(matches!(
            refused,
            Err(LeaseError::Store(StoreError::JobGone))
        ));
        store.release(&lease).unwrap();
    }
}
