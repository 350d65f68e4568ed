//! Which instance may use a chat. Only one at a time; the lease of a dead or silent one is taken over.
//!
//! ```text
//! free ──acquire──▶ held ──release──▶ free
//!                    └──holder dead or silent: acquire──▶ held by another; the first is fenced
//! ```
//! Every change of the holder is decided by the file `lease.N`, N being the next fencing number: the instance
//! that creates it first wins and renames it to `lease`. That also works where file locks do not reach other
//! hosts.
//!
//! A `lease` that cannot be read counts as held: its holder rewrites it, and it is not taken over while an
//! instance is alive that may be its holder.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use bridge_model::{Job, JobId};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    ChatStore,
    files::{self, Durable, FileLock, StoreError, is_absent, remove_tree},
    instance::{InstanceId, Liveness},
    record,
};

/// Name of the lease file.
const LEASE: &str = "lease";
/// Fencing number of a folder's first lease.
pub(super) const FIRST: u64 = 1;

/// The right of this instance to run processes in a chat, until released or taken over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The chat.
    pub job: JobId,
    /// The holder.
    pub instance: InstanceId,
    /// Fencing number, incremented with each change of the holder: a lease with an older number has lost the
    /// chat.
    pub fence: u64,
    /// The time when this instance acquired it.
    pub since: Timestamp,
}

/// A live instance that holds a chat: the call must be forwarded there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("this chat runs on another replica ({instance})")]
pub struct Holder {
    /// The id of the instance.
    pub instance: InstanceId,
    /// The address where it can be reached, if known.
    pub address: Option<String>,
    /// It is shutting down and will release the lease: wait for that.
    pub draining: bool,
}

/// Why a lease cannot be acquired.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// A live instance holds it: forward the call there.
    #[error(transparent)]
    Elsewhere(Holder),
    /// The folder failed; [`StoreError::JobGone`] if it was removed in the meantime: bind again.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The lease file. The fence is kept when the holder releases it.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    instance: Option<InstanceId>,
    address: Option<String>,
    fence: u64,
    since: Option<Timestamp>,
}

impl ChatStore {
    /// Writes a lease of this instance into a folder that is not visible yet, with the first number: no other
    /// instance can compete for it.
    pub(super) fn write_first_lease(&self, folder: &Path, now: Timestamp) -> io::Result<()> {
        let record = self.own_record(FIRST, now);
        files::write_json(&folder.join(LEASE), &record, self.staging())
    }

    /// The lease of this instance with this number.
    pub(super) fn lease(&self, job: &Job, fence: u64, since: Timestamp) -> Lease {
        Lease {
            job: job.id(),
            instance: self.instance(),
            fence,
            since,
        }
    }

    fn own_record(&self, fence: u64, since: Timestamp) -> Record {
        Record {
            instance: Some(self.instance()),
            address: self.instance.address(),
            fence,
            since: Some(since),
        }
    }

    /// Acquires the lease: a free one, a stale one (its instance is dead or silent), or one that this
    /// instance holds already (then with the same fence). Not counted: the caller releases it after its last
    /// process in the chat has ended.
    pub(super) fn acquire_lease(&self, job: &Job, now: Timestamp) -> Result<Lease, LeaseError> {
        let _lock = FileLock::job(job)?;
        self.acquire_locked(job, now)
    }

    /// The caller holds the lock of the folder.
    pub(super) fn acquire_locked(&self, job: &Job, now: Timestamp) -> Result<Lease, LeaseError> {
        loop {
            let found = read(job)?;
            let claim = match &found {
                Found::Record(record) if record.instance == Some(self.instance()) => {
                    return Ok(self.lease(job, record.fence, record.since.unwrap_or(now)));
                }
                _ => self.refuse_others(job, &found)?,
            };
            let fence = if claim == MENDING {
                beyond_any(now)
            } else {
                claim
            };
            let record = self.own_record(fence, now);
            if self.put_in_place(job, claim, &record, &found, Durable::Yes)? {
                self.broken.lock().remove(&job.id());
                // A claim left by a killed bridge of an earlier version.
                let _ = remove_tree(&claim_path(job, fence.saturating_sub(1)));
                return Ok(self.lease(job, fence, now));
            }
        }
    }

    /// Fails while an instance is alive that holds the lease, or may hold it. Returns the number of the claim
    /// with which the lease can be taken.
    fn refuse_others(&self, job: &Job, found: &Found) -> Result<u64, LeaseError> {
        match found {
            Found::Record(record) => {
                if let Some(holder) = record.instance {
                    self.refuse_alive(holder, record.address.clone())?;
                }
                Ok(record.fence + 1)
            }
            Found::Broken(why) => self.refuse_suspects(job, why).map(|()| MENDING),
        }
    }

    fn refuse_alive(&self, holder: InstanceId, known: Option<String>) -> Result<(), LeaseError> {
        match self.liveness(holder) {
            Liveness::Alive { address, draining } => Err(LeaseError::Elsewhere(Holder {
                instance: holder,
                // The current address has priority: a pod may have restarted under a different one.
                address: address.or(known),
                draining,
            })),
            Liveness::Dead { .. } => Ok(()),
        }
    }

    /// Fails while an instance is alive that may hold a lease that cannot be read.
    fn refuse_suspects(&self, job: &Job, why: &str) -> Result<(), LeaseError> {
        let new = !self.broken.lock().contains_key(&job.id());
        let mut suspects = self.suspects(job.id())?.into_iter();
        let Some((instance, alive)) = suspects.next() else {
            tracing::warn!(
                job = ?job.id(),
                why,
                "the lease of a chat cannot be read and no live replica can hold it; a new one is \
                 written"
            );
            return Ok(());
        };
        let others = suspects.count();
        if new {
            tracing::warn!(
                job = ?job.id(),
                why,
                suspects = others + 1,
                "the lease of a chat cannot be read; it counts as held until its holder writes it \
                 again or no live replica can hold it"
            );
        }
        let Liveness::Alive { address, draining } = alive else {
            return Ok(());
        };
        Err(LeaseError::Elsewhere(Holder {
            instance,
            address,
            // With several candidates none can be chosen: the call waits until the holder has rewritten its
            // lease.
            draining: draining || others > 0,
        }))
    }

    /// Replaces the lease `found` by `record`, unless another instance was first: only one instance can
    /// create the file `lease.{claim}`, which contains the record from the start and becomes the lease by its
    /// rename. An instance that considers its creator dead removes the claim first, so a creator that was
    /// only stopped for long finds nothing to rename: the number never decreases. `false`: read the lease
    /// again.
    fn put_in_place(
        &self,
        job: &Job,
        claim: u64,
        record: &Record,
        found: &Found,
        durable: Durable,
    ) -> Result<bool, LeaseError> {
        let (claim, lease) = (claim_path(job, claim), path(job));
        if !self.show_claim(&claim, record, durable)? {
            self.clear_claim(&claim)?;
            return Ok(false);
        }
        // The number may have been used between the read and the claim.
        let same = read(job).map(|now| now == *found);
        if !matches!(same, Ok(true)) {
            let _ = remove_tree(&claim);
            return same.map_err(Into::into);
        }
        match fs::rename(&claim, &lease) {
            Ok(()) => {}
            Err(error) if is_absent(&error) => return Ok(false),
            // The lease's path is a folder: remove it and read the lease again.
            Err(_) if lease.is_dir() => {
                let _ = remove_tree(&claim);
                remove_tree(&lease).map_err(files::at("replace", &lease))?;
                return Ok(false);
            }
            Err(error) => {
                let _ = remove_tree(&claim);
                return Err(files::at("write", &lease)(error).into());
            }
        }
        // The renamed claim may have been another instance's.
        Ok(matches!(read(job)?, Found::Record(now) if now == *record))
    }

    /// Creates a claim; `false` if there is one with its number.
    fn show_claim(
        &self,
        path: &Path,
        record: &Record,
        durable: Durable,
    ) -> Result<bool, StoreError> {
        let content = files::to_json(record).map_err(files::at("write", path))?;
        self.show_new(path, &content, durable)
    }

    /// Removes the claim of a dead instance; fails if its creator is alive.
    fn clear_claim(&self, path: &Path) -> Result<(), LeaseError> {
        let read_claim = |path: &Path| match files::present(files::read_record(path)) {
            // A child replaced it by something else.
            Err(error) if files::is_broken(&error) => Ok(Some(Vec::new())),
            content => content.map_err(files::at("read", path)),
        };
        let Some(content) = read_claim(path)? else {
            return Ok(());
        };
        if let Some(maker) = claimant(&content).filter(|maker| *maker != self.instance()) {
            self.refuse_alive(maker, None)?;
        }
        // The rename succeeds for only one of several concurrent callers.
        let taken = self.move_aside(path).map_err(files::at("remove", path))?;
        let Some(taken) = taken else {
            return Ok(());
        };
        // A live instance may have created a new claim since the check: that one is restored.
        let another = !matches!(read_claim(&taken)?, Some(now) if now == content);
        if another {
            let _ = fs::hard_link(&taken, path);
        }
        let _ = remove_tree(&taken);
        Ok(())
    }

    /// Releases the lease. Succeeds if it was taken over or the folder no longer exists.
    pub fn release(&self, lease: &Lease) -> Result<(), StoreError> {
        let Some(job) = self.job(lease.job)? else {
            return Ok(());
        };
        let _lock = match FileLock::job(&job) {
            Err(StoreError::JobGone) => return Ok(()),
            other => other?,
        };
        let free = Record {
            fence: lease.fence,
            ..Record::default()
        };
        loop {
            let found = read(&job)?;
            if matches!(&found, Found::Record(record) if !is_of(record, lease)) {
                return Ok(());
            }
            // If a crash of the host loses the release, the lease is stale, which is as good as released.
            let put = self.put_in_place(&job, lease.fence + 1, &free, &found, Durable::No);
            match put {
                Ok(false) => {}
                // `Elsewhere`: another instance is taking it over.
                Ok(true) | Err(LeaseError::Elsewhere(_)) => return Ok(()),
                Err(LeaseError::Store(error)) => return Err(error),
            }
        }
    }

    /// Whether this instance still holds the lease. After a takeover it is lost permanently: nothing may be
    /// written under it any more. Rewrites a broken record.
    pub fn holds(&self, lease: &Lease) -> Result<bool, StoreError> {
        let Some(job) = self.job(lease.job)? else {
            return Ok(false);
        };
        match read(&job)? {
            Found::Record(record) => Ok(is_of(&record, lease)),
            // A broken lease is not taken over while this instance is alive.
            Found::Broken(why) => self.mend(&job, lease, &why),
        }
    }

    fn mend(&self, job: &Job, lease: &Lease, why: &str) -> Result<bool, StoreError> {
        let _lock = match FileLock::job(job) {
            Err(StoreError::JobGone) => return Ok(false),
            // Without the lock, the claim decides.
            other => other.ok(),
        };
        let record = self.own_record(lease.fence, lease.since);
        loop {
            let found = read(job)?;
            if let Found::Record(record) = &found {
                return Ok(is_of(record, lease));
            }
            match self.put_in_place(job, MENDING, &record, &found, Durable::Yes) {
                Ok(false) => {}
                Ok(true) => {
                    self.broken.lock().remove(&job.id());
                    tracing::warn!(
                        job = ?job.id(),
                        why,
                        "a lease of this replica could not be read and was written again"
                    );
                    return Ok(true);
                }
                // An instance considers this one dead, and has not taken the lease over yet.
                Err(LeaseError::Elsewhere(_)) => return Ok(true),
                Err(LeaseError::Store(error)) => {
                    tracing::warn!(
                        job = ?job.id(),
                        why,
                        %error,
                        "a lease of this replica can be neither read nor written"
                    );
                    return Ok(true);
                }
            }
        }
    }

    /// Forgets unreadable leases that can be read again or no longer exist.
    pub(super) fn forget_mended(&self) {
        let noted: Vec<JobId> = self.broken.lock().keys().copied().collect();
        for id in noted {
            let mended = match self.job(id) {
                Ok(Some(job)) => matches!(read(&job), Ok(Found::Record(_))),
                Ok(None) => true,
                Err(_) => false,
            };
            if mended {
                self.broken.lock().remove(&id);
            }
        }
    }

    /// Fails if another instance has taken the chat over since the lease with this number. Must be called
    /// before each write, under the lock of the folder. A later lease of this instance is no takeover: the
    /// results of a call may be written after its chat was closed and opened again.
    pub(super) fn refuse_fenced(&self, job: &Job, fence: u64) -> Result<(), StoreError> {
        let Found::Record(record) = read(job)? else {
            return Ok(());
        };
        match record.instance {
            Some(holder) if holder != self.instance() => Err(StoreError::Fenced),
            None if record.fence > fence => Err(StoreError::Fenced),
            _ => Ok(()),
        }
    }

    /// The live holder of a chat's lease, which may be this instance; for a broken lease an instance that may
    /// hold it.
    pub(super) fn leased_by(&self, job: &Job) -> Result<Option<InstanceId>, StoreError> {
        match read(job)? {
            Found::Record(record) => Ok(record.instance.filter(|id| self.is_alive(*id))),
            Found::Broken(_) => {
                let suspects = self.suspects(job.id())?;
                Ok(suspects.first().map(|(id, _)| *id))
            }
        }
    }

    /// The error that [`Self::acquire_lease`] would return, without acquiring anything.
    pub(super) fn check_elsewhere(&self, job: &Job) -> Result<(), LeaseError> {
        match read(job)? {
            Found::Record(record) if record.instance == Some(self.instance()) => Ok(()),
            found => self.refuse_others(job, &found).map(drop),
        }
    }

    /// Prevents other instances from taking a chat that is about to be removed: the claim is removed with its
    /// folder. The caller holds the folder's lock.
    pub(super) fn claim_to_remove(&self, job: &Job) -> Result<PathBuf, LeaseError> {
        loop {
            let found = read(job)?;
            let claim = self.refuse_others(job, &found)?;
            let path = claim_path(job, claim);
            let record = self.own_record(claim, Timestamp::UNIX_EPOCH);
            if !self.show_claim(&path, &record, Durable::No)? {
                self.clear_claim(&path)?;
            } else if read(job)? == found {
                self.broken.lock().remove(&job.id());
                return Ok(path);
            } else {
                let _ = remove_tree(&path);
            }
        }
    }

    /// Removes claims of instances that died before they acquired the lease.
    pub(super) fn sweep_claims(&self, job: &Job) -> Result<(), StoreError> {
        let folder = job.folder();
        for name in files::names_in(folder)? {
            let number = name.strip_prefix("lease.");
            if number.is_some_and(|number| number.bytes().all(|byte| byte.is_ascii_digit())) {
                match self.clear_claim(&folder.join(name)) {
                    Ok(()) | Err(LeaseError::Elsewhere(_)) => {}
                    Err(LeaseError::Store(error)) => return Err(error),
                }
            }
        }
        Ok(())
    }
}

/// The claim number for a lease that cannot be read, because its number is unknown.
const MENDING: u64 = 0;

/// A number that is larger than any that an unreadable lease can have had: no lease changes its holder once a
/// second for fifty years.
fn beyond_any(now: Timestamp) -> u64 {
    u64::try_from(now.as_second()).unwrap_or(0).max(1 << 30)
}

/// The creator of a claim; an earlier version wrote only its id.
fn claimant(content: &[u8]) -> Option<InstanceId> {
    if let Ok(record) = serde_json::from_slice::<Record>(content) {
        // A claim that releases a lease has no creator, because it takes no time.
        return record.instance;
    }
    std::str::from_utf8(content).ok()?.trim().parse().ok()
}

fn is_of(record: &Record, lease: &Lease) -> bool {
    record.instance == Some(lease.instance) && record.fence == lease.fence
}

fn path(job: &Job) -> PathBuf {
    job.folder().join(LEASE)
}

fn claim_path(job: &Job, claim: u64) -> PathBuf {
    job.folder().join(format!("lease.{claim}"))
}

/// The content of the lease file.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    Record(Record),
    /// Corrupt, or not a regular file: it may be held.
    Broken(String),
}

fn read(job: &Job) -> Result<Found, StoreError> {
    let path = path(job);
    match files::read_json(&path) {
        Ok(Some(record)) => Ok(Found::Record(record)),
        // Either the chat was never leased, or the file of a held lease was removed.
        Ok(None) if record::has_live_sessions(job)? => {
            Ok(Found::Broken("it was removed".to_owned()))
        }
        Ok(None) => Ok(Found::Record(Record::default())),
        Err(error) if files::is_broken(&error) => Ok(Found::Broken(error.to_string())),
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
    use crate::{
        LiveSession, Membership,
        folder::chats::Held,
        testing::{Folder, key, later, new_chat},
    };

    #[test]
    fn one_living_instance_at_a_time() {
        let folder = Folder::new();
        let membership = Membership {
            address: Some("10.0.0.1:8080".into()),
            ..Membership::default()
        };
        let one = ChatStore::open(&folder.path(), &membership).unwrap();
        let two = folder.open();
        let held = one
            .acquire_chat(&key("c"), &new_chat(), folder.now)
            .unwrap();
        // However late by the wall clock: no instance has observed its silence.
        match two.acquire_lease(&held.job, later(folder.now, 100_000)) {
            Err(LeaseError::Elsewhere(Holder {
                instance,
                address,
                draining,
            })) => {
                assert_eq!(instance, one.instance());
                assert_eq!(address.as_deref(), Some("10.0.0.1:8080"));
                assert!(!draining);
            }
            other => panic!("{other:?}"),
        }
        let leased = two.leased_by(&held.job).unwrap();
        assert_eq!(leased, Some(one.instance()));
        one.release(&held.lease).unwrap();
        assert_eq!(two.acquire_lease(&held.job, folder.now).unwrap().fence, 2);
    }

    #[test]
    fn acquiring_again_keeps_the_fence() {
        let folder = Folder::new();
        let store = folder.open();
        let first = store
            .acquire_chat(&key("c"), &new_chat(), folder.now)
            .unwrap();
        let again = store
            .acquire_chat(&key("c"), &new_chat(), later(folder.now, 5))
            .unwrap();
        assert_eq!(first.lease, again.lease);
    }

    #[test]
    fn a_crashed_holder_loses_it_at_once_and_cannot_give_back_what_is_not_its_own() {
        let folder = Folder::new();
        let stale = folder.crash(|store| {
            store
                .acquire_chat(&key("c"), &new_chat(), folder.now)
                .unwrap()
                .lease
        });
        let store = folder.open();
        let mine = store
            .acquire_chat(&key("c"), &new_chat(), folder.now)
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
        let store = ChatStore::open(path.as_ref(), &Membership::default()).unwrap();
        let held = store.acquire_chat(&key("c"), &new_chat(), now).unwrap();
        println!("\nheld {}", held.job.id());
        loop {
            std::thread::park();
        }
    }

    #[test]
    fn a_killed_process_is_succeeded_at_once_in_the_same_folder() {
        let folder = Folder::new();
        let mut other = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "folder::lease::tests::held_until_killed"])
            .args(["--ignored", "--nocapture"])
            .env(FOLDER, folder.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(other.stdout.take().unwrap()).lines();
        let job = lines.find_map(|line| Some(line.unwrap().strip_prefix("held ")?.to_owned()));
        let store = folder.open();
        let open = || store.acquire_chat(&key("c"), &new_chat(), folder.now);
        let refused = open();
        other.kill().unwrap();
        other.wait().unwrap();
        assert!(
            matches!(refused, Err(LeaseError::Elsewhere(_))),
            "{refused:?}"
        );
        let taken = open().unwrap();
        assert_eq!(Some(taken.job.id().to_string()), job);
        assert_eq!(taken.lease.fence, 2);
    }

    #[test]
    fn a_stale_lease_goes_to_one_of_several_instances() {
        let folder = Folder::new();
        folder
            .crash(|store| {
                store
                    .acquire_chat(&key("c"), &new_chat(), folder.now)
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
                            .acquire_chat(&key("c"), &new_chat(), folder.now)
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
        let job = store.create_job(&new_chat(), folder.now).unwrap();
        let living = folder.open();
        let claim = |id: InstanceId| std::fs::write(claim_path(&job, 1), id.to_string()).unwrap();
        claim(living.instance());
        let refused = store.acquire_lease(&job, folder.now);
        assert!(matches!(refused, Err(LeaseError::Elsewhere(_))));
        claim(folder.crash(ChatStore::instance));
        assert_eq!(store.acquire_lease(&job, folder.now).unwrap().fence, 1);
        assert_eq!(claims(&job), [] as [String; 0]);
    }

    fn claims(job: &Job) -> Vec<String> {
        let mut claims = files::names_in(job.folder()).unwrap();
        claims.retain(|name| name.starts_with("lease."));
        claims
    }

    #[test]
    fn an_instance_that_was_stopped_after_its_claim_sets_no_number_back() {
        let folder = Folder::new();
        let (slow, other) = (folder.open(), folder.open());
        let job = slow.create_job(&new_chat(), folder.now).unwrap();
        // The steps of `slow` before its rename; it is then stopped for longer than its TTL.
        let found = read(&job).unwrap();
        let record = slow.own_record(1, folder.now);
        let content = files::to_json(&record).unwrap();
        files::show_new(&claim_path(&job, 1), &content, slow.staging(), Durable::Yes).unwrap();
        let lock = slow.instance().to_string() + ".lock";
        let instances = slow.bridge("instances");
        std::fs::rename(instances.join(&lock), folder.outside().join(&lock)).unwrap();
        std::fs::remove_file(instances.join(lock.replace("lock", "json"))).unwrap();
        assert!(!other.is_alive(slow.instance()));
        let taken = other.acquire_lease(&job, folder.now).unwrap();
        assert!(!matches!(
            slow.put_in_place(&job, 1, &record, &found, Durable::Yes),
            Ok(true)
        ));
        assert!(other.holds(&taken).unwrap());
        let lost = Lease {
            instance: slow.instance(),
            ..taken.clone()
        };
        assert!(!slow.holds(&lost).unwrap());
        // Nor can it release a lease that another instance holds.
        slow.release(&lost).unwrap();
        assert!(other.holds(&taken).unwrap());
        assert_eq!(claims(&job), [] as [String; 0]);
    }

    /// What may be at a lease's path after a crash of the host, or because of a child.
    fn break_lease(job: &Job, how: usize) {
        let path = path(job);
        std::fs::remove_file(&path).unwrap();
        match how {
            0 => std::fs::write(&path, "").unwrap(),
            1 => std::fs::write(&path, "{\"instance\": \"").unwrap(),
            2 => std::fs::create_dir(&path).unwrap(),
            3 => std::os::unix::fs::symlink("/etc/passwd", &path).unwrap(),
            4 => {
                use rustix::fs::{CWD, Mode, mkfifoat};
                mkfifoat(CWD, &path, Mode::RUSR | Mode::WUSR).unwrap();
            }
            // Removed; the process in the chat is still in the metadata.
            _ => {}
        }
    }

    fn hold(store: &ChatStore, now: Timestamp) -> Held {
        let held = store.acquire_chat(&key("c"), &new_chat(), now).unwrap();
        let session = LiveSession {
            server: "excel".into(),
            number: 1,
            pid: Some(7),
            started_at: now,
        };
        store
            .update_metadata(&held.job, 0, |m| m.live_sessions = vec![session])
            .unwrap();
        held
    }

    #[test]
    fn a_broken_lease_is_held_and_its_holder_writes_it_anew() {
        for how in 0..6 {
            let folder = Folder::new();
            let (one, two) = (folder.open(), folder.open());
            let held = hold(&one, folder.now);
            break_lease(&held.job, how);
            match two.acquire_lease(&held.job, folder.now) {
                Err(LeaseError::Elsewhere(Holder { instance, .. })) => {
                    assert_eq!(instance, one.instance(), "{how}");
                }
                other => panic!("{how}: {other:?}"),
            }
            assert!(two.check_elsewhere(&held.job).is_err(), "{how}");
            assert!(two.leased_by(&held.job).unwrap().is_some(), "{how}");
            assert!(two.warnings()[0].contains("'lease'"), "{how}");
            assert!(one.holds(&held.lease).unwrap(), "{how}");
            assert!(matches!(read(&held.job).unwrap(), Found::Record(r) if is_of(&r, &held.lease)));
            assert!(two.acquire_lease(&held.job, folder.now).is_err(), "{how}");
            two.renew().unwrap();
            assert_eq!(two.warnings(), [] as [String; 0], "{how}");
        }
    }

    #[test]
    fn a_broken_lease_is_free_once_no_instance_lives_that_could_hold_it() {
        for how in 0..6 {
            let folder = Folder::new();
            let other = folder.open();
            let held = folder.crash(|store| hold(store, folder.now));
            break_lease(&held.job, how);
            let store = folder.open();
            assert!(store.acquire_lease(&held.job, folder.now).is_err(), "{how}");
            drop(other);
            let taken = store.acquire_lease(&held.job, folder.now).unwrap();
            assert!(taken.fence > held.lease.fence, "{how}: the number grows");
            assert!(store.holds(&taken).unwrap());
        }
    }

    #[test]
    fn an_instance_that_checked_its_leases_meanwhile_does_not_hold_a_broken_one() {
        let folder = Folder::new();
        let membership = Membership {
            mends_leases: true,
            ..Membership::default()
        };
        let other = ChatStore::open(&folder.path(), &membership).unwrap();
        let held = folder.crash(|store| hold(store, folder.now));
        break_lease(&held.job, 0);
        let store = folder.open();
        for renewal in 1..=4 {
            assert!(
                store.acquire_lease(&held.job, folder.now).is_err(),
                "{renewal}"
            );
            other.renew().unwrap();
        }
        store.acquire_lease(&held.job, folder.now).unwrap();
    }

    #[test]
    fn a_lock_file_that_vanished_proves_no_death() {
        let folder = Folder::new();
        let (one, two) = (folder.open(), folder.open());
        let held = hold(&one, folder.now);
        let lock = one.instance().to_string() + ".lock";
        std::fs::remove_file(one.bridge("instances").join(lock)).unwrap();
        let refused = two.acquire_lease(&held.job, folder.now);
        assert!(
            matches!(refused, Err(LeaseError::Elsewhere(_))),
            "{refused:?}"
        );
    }

    #[test]
    fn without_locks_one_of_several_takeovers_at_once_wins() {
        let folder = Folder::new();
        let stores: Vec<_> = (0..4).map(|_| folder.open()).collect();
        for round in 0..20 {
            let job = stores[0].create_job(&new_chat(), folder.now).unwrap();
            let won: Vec<_> = std::thread::scope(|scope| {
                let take = |store: &ChatStore| store.acquire_locked(&job, folder.now).ok();
                let threads: Vec<_> = stores
                    .iter()
                    .map(|store| scope.spawn(move || take(store)))
                    .collect();
                let won = threads.into_iter().map(|thread| thread.join().unwrap());
                won.flatten().collect()
            });
            let holding = stores.iter().filter(|store| {
                won.iter()
                    .any(|lease| lease.instance == store.instance() && store.holds(lease).unwrap())
            });
            assert_eq!(holding.count(), 1, "round {round}");
            assert_eq!(won.len(), 1, "round {round}");
        }
    }

    #[test]
    fn a_removed_folder_cannot_be_leased() {
        let folder = Folder::new();
        let store = folder.open();
        let job = store.create_job(&new_chat(), folder.now).unwrap();
        let lease = store.acquire_lease(&job, folder.now).unwrap();
        store.remove_job(&job).unwrap();
        let refused = store.acquire_lease(&job, folder.now);
        assert!(matches!(
            refused,
            Err(LeaseError::Store(StoreError::JobGone))
        ));
        store.release(&lease).unwrap();
    }
}
