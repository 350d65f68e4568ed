//! Who works in a workspace. One instance at a time; a dead or silent one's lease is taken over.
//!
//! ```text
//! free ──acquire──▶ held ──release──▶ free
//!                    └──holder dead or silent: acquire──▶ held by another; the first is fenced
//! ```
//! Each change of hands goes to who makes the file `lease.N` first, N being the next fencing number,
//! and then stands in `lease`. That holds also where file locks do not reach other hosts.

use std::path::Path;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    InstanceId, Job, Metadata, NewJob, Store, StoreError, files, instance::Liveness,
    lock::FileLock, remove::remove_tree,
};
use crate::model::JobId;

/// The file's name.
const LEASE: &str = "lease";

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
        /// It is about to end and will give the lease back: wait for that.
        draining: bool,
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
    /// A workspace folder that is our own from the moment in which it appears.
    pub fn create_leased_job(
        &self,
        new: &NewJob<'_>,
        now: Timestamp,
    ) -> Result<(Job, Lease), StoreError> {
        self.in_whole_folder(|| self.make_leased_job(|metadata| new.note_in(metadata), now))
    }

    pub(super) fn make_leased_job(
        &self,
        note: impl FnOnce(&mut Metadata),
        now: Timestamp,
    ) -> Result<(Job, Lease), StoreError> {
        // Nobody can want the first number of a folder that he cannot see.
        let record = self.own_record(1, now);
        let write = |folder: &Path| files::write_json(&folder.join(LEASE), &record, self.staging());
        let job = self.make_job(note, write, now)?;
        let lease = Lease {
            job: job.id(),
            instance: self.instance().id(),
            fence: 1,
            since: now,
        };
        Ok((job, lease))
    }

    fn own_record(&self, fence: u64, since: Timestamp) -> Record {
        Record {
            instance: Some(self.instance().id()),
            address: self.instance().address(),
            fence,
            since: Some(since),
        }
    }

    /// Takes the lease: free, stale (its instance is dead or silent), or ours already (then the
    /// same fence). Not counted: the caller releases once its last child in the workspace has ended.
    pub fn acquire(&self, job: &Job, now: Timestamp) -> Result<Lease, LeaseError> {
        let _lock = FileLock::job(job)?;
        self.acquire_locked(job, now)
    }

    /// The caller has the workspace's lock.
    pub(super) fn acquire_locked(&self, job: &Job, now: Timestamp) -> Result<Lease, LeaseError> {
        let record = read(job)?;
        let own = self.instance().id();
        if record.instance == Some(own) {
            return Ok(Lease {
                job: job.id(),
                instance: own,
                fence: record.fence,
                since: record.since.unwrap_or(now),
            });
        }
        let fence = self.win_fence(job)?;
        let written = self.write_lease(job, &self.own_record(fence, now));
        // Whoever still wants this number sees the lease, and gives up.
        let _ = remove_tree(&claim_path(job, fence));
        written?;
        Ok(Lease {
            job: job.id(),
            instance: own,
            fence,
            since: now,
        })
    }

    fn refuse_alive(&self, holder: InstanceId, known: Option<String>) -> Result<(), LeaseError> {
        match self.liveness(holder) {
            Liveness::Alive { address, draining } => Err(LeaseError::Elsewhere {
                instance: holder,
                // What it says now counts: a pod may have come back under another address.
                address: address.or(known),
                draining,
            }),
            Liveness::Dead { .. } => Ok(()),
        }
    }

    /// Wins the next fencing number: the file of that name is made by one instance alone. One that
    /// was won by somebody who died before he used it is skipped.
    fn win_fence(&self, job: &Job) -> Result<u64, LeaseError> {
        loop {
            let judged = read(job)?;
            if let Some(holder) = judged.instance {
                self.refuse_alive(holder, judged.address)?;
            }
            let Some(fence) = self.claim_above(job, judged.fence)? else {
                continue;
            };
            // Between the look and the claim somebody may have won this number, used it and
            // removed its file again.
            if read(job)?.fence == judged.fence {
                return Ok(fence);
            }
            let _ = remove_tree(&claim_path(job, fence));
        }
    }

    /// `None` where a claim that stood in the way is gone: look again.
    fn claim_above(&self, job: &Job, last: u64) -> Result<Option<u64>, LeaseError> {
        let own = self.instance().id();
        let mut fence = last;
        loop {
            fence += 1;
            let path = claim_path(job, fence);
            let made = files::show_new(&path, own.to_string().as_bytes(), self.staging());
            if made.map_err(files::at("write", &path))? {
                return Ok(Some(fence));
            }
            let claimant = match files::read_record(&path) {
                Ok(content) => std::str::from_utf8(&content)
                    .ok()
                    .and_then(|text| text.parse().ok()),
                Err(error) if files::is_absent(&error) => return Ok(None),
                // A child put something else there.
                Err(_) => None,
            };
            match claimant {
                Some(claimant) if claimant == own => return Ok(Some(fence)),
                Some(claimant) => self.refuse_alive(claimant, None)?,
                None => {}
            }
        }
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

    /// Whether nobody took it over. One that was taken over is lost for good: nothing may be
    /// written in its name any more.
    pub fn holds(&self, lease: &Lease) -> Result<bool, StoreError> {
        let job = self.job(lease.job)?;
        job.map_or(Ok(false), |job| Ok(is_of(&read(&job)?, lease)))
    }

    /// The living holder of a workspace's lease, ourselves included.
    pub fn leased_by(&self, job: &Job) -> Result<Option<InstanceId>, StoreError> {
        let holder = read(job)?.instance;
        Ok(holder.filter(|id| self.is_alive(*id)))
    }

    /// What [`Self::acquire`] would refuse with, without taking anything.
    pub fn check_elsewhere(&self, job: &Job) -> Result<(), LeaseError> {
        let record = read(job)?;
        match record.instance {
            Some(holder) if holder != self.instance().id() => {
                self.refuse_alive(holder, record.address)
            }
            _ => Ok(()),
        }
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
    job.folder().join(LEASE)
}

fn claim_path(job: &Job, fence: u64) -> std::path::PathBuf {
    job.folder().join(format!("lease.{fence}"))
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
    use crate::store::{
        Membership,
        testing::{Folder, key, later, new_job},
    };

    #[test]
    fn one_living_instance_at_a_time() {
        let folder = Folder::new();
        let membership = Membership {
            address: Some("10.0.0.1:8080".into()),
            ..Membership::default()
        };
        let one = Store::open(&folder.path(), &membership, folder.now).unwrap();
        let two = folder.open();
        let held = one
            .open_workspace(&key("c"), &new_job(), folder.now)
            .unwrap();
        // However late by the clock on the wall: nobody has watched it be silent.
        match two.acquire(&held.job, later(folder.now, 100_000)) {
            Err(LeaseError::Elsewhere {
                instance,
                address,
                draining,
            }) => {
                assert_eq!(instance, one.instance().id());
                assert_eq!(address.as_deref(), Some("10.0.0.1:8080"));
                assert!(!draining);
            }
            other => panic!("{other:?}"),
        }
        let leased = two.leased_by(&held.job).unwrap();
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
        let store = Store::open(path.as_ref(), &Membership::default(), now).unwrap();
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
    fn a_number_that_was_won_and_never_used_is_skipped_once_its_winner_is_dead() {
        let folder = Folder::new();
        let store = folder.open();
        let job = store.create_job(&new_job(), folder.now).unwrap();
        let living = folder.open();
        let claim = |id: InstanceId| std::fs::write(claim_path(&job, 1), id.to_string()).unwrap();
        claim(living.instance().id());
        let refused = store.acquire(&job, folder.now);
        assert!(matches!(refused, Err(LeaseError::Elsewhere { .. })));
        claim(folder.crash(|store| store.instance().id()));
        assert_eq!(store.acquire(&job, folder.now).unwrap().fence, 2);
    }

    #[test]
    fn without_locks_one_of_those_who_take_over_at_once_wins() {
        let folder = Folder::new();
        let stores: Vec<_> = (0..4).map(|_| folder.open()).collect();
        for round in 0..20 {
            let job = stores[0].create_job(&new_job(), folder.now).unwrap();
            let won: Vec<_> = std::thread::scope(|scope| {
                let take = |store: &Store| store.acquire_locked(&job, folder.now).ok();
                let threads: Vec<_> = stores
                    .iter()
                    .map(|store| scope.spawn(move || take(store)))
                    .collect();
                let won = threads.into_iter().map(|thread| thread.join().unwrap());
                won.flatten().collect()
            });
            let holding = stores.iter().filter(|store| {
                won.iter().any(|lease| {
                    lease.instance == store.instance().id() && store.holds(lease).unwrap()
                })
            });
            assert_eq!(holding.count(), 1, "round {round}");
            assert_eq!(won.len(), 1, "round {round}");
        }
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
