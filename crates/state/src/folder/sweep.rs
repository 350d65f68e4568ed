//! Clean-up: expired data, files of dead instances, and all data of a user.
//!
//! Ages of chats and links are determined by this instance's clock, see [`ChatStore::now`].

use std::{
    io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use bridge_model::{Job, JobId, Principal};
use jiff::Timestamp;

use super::{
    ChatStore, Doubt,
    files::{self, FileLock, StoreError, remove_tree},
    lease::LeaseError,
    links::{self, GoneReason, TOMBSTONE, is_over},
    record::{DiskUsage, Kept, Metadata, PrincipalHash},
};

/// The results of one round.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct GcReport {
    /// Expired or revoked links whose bytes were removed.
    pub ended_links: u64,
    /// Tombstones removed.
    pub removed_tombstones: u64,
    /// Chats removed.
    pub removed_jobs: u64,
    /// Chats kept because an instance holds their lease.
    pub leased_jobs: u64,
    /// Bindings removed.
    pub removed_bindings: u64,
    /// Dead instances whose files were removed.
    pub removed_instances: u64,
    /// Catalogue entries removed because they were unused for long.
    pub removed_catalog_entries: u64,
    /// Entries of the jobs folder that do not belong to the bridge; not touched.
    pub unknown_entries: u64,
    /// Why nothing was removed by age: clocks disagree.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held_back: Option<String>,
    /// What could not be cleaned, with the reason; everything else was.
    pub errors: Vec<String>,
}

/// The result of a clean-up round.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Swept {
    /// What was done.
    pub report: GcReport,
    /// Disk usage of the remaining chats and links.
    pub usage: DiskUsage,
}

impl GcReport {
    fn add(&mut self, other: Self) {
        self.ended_links += other.ended_links;
        self.removed_tombstones += other.removed_tombstones;
        self.removed_jobs += other.removed_jobs;
        self.leased_jobs += other.leased_jobs;
        self.removed_bindings += other.removed_bindings;
        self.removed_instances += other.removed_instances;
        self.removed_catalog_entries += other.removed_catalog_entries;
        self.unknown_entries += other.unknown_entries;
        self.errors.extend(other.errors);
    }
}

/// Age below which a chat is kept, because its first call may not have begun.
const NEW: Duration = Duration::from_secs(5);

/// Threads of one round: most of its time is spent waiting for the disk.
const THREADS: usize = 4;
/// Up to this number of items no threads are started.
const FEW: usize = 32;

impl ChatStore {
    /// Runs one round. If the wall clock disagrees with other clocks, nothing is removed by age.
    pub fn sweep(&self, retention: Duration) -> Swept {
        self.sweep_unless(self.doubt(), retention)
    }

    /// The same for a command: waits until the clocks of other instances are known.
    pub fn sweep_once_clocks_are_known(&self, retention: Duration) -> Swept {
        self.sweep_unless(self.doubt_once_clocks_are_known(), retention)
    }

    fn sweep_unless(&self, doubt: Option<Doubt>, retention: Duration) -> Swept {
        let held_back = doubt.map(|doubt| doubt.why().to_owned());
        self.round(retention, None, self.now(), held_back)
    }

    /// Runs one round as if the time were `now`.
    #[cfg(any(test, feature = "testing"))]
    pub fn sweep_at(&self, retention: Duration, now: Timestamp) -> Swept {
        self.round(retention, None, now, None)
    }

    /// Removes a user's chats and ends the user's links now, regardless of age. A chat with a fresh lease is
    /// not touched.
    pub fn forget_user(&self, user: &Principal) -> GcReport {
        self.round(Duration::MAX, Some(user), Timestamp::now(), None)
            .report
    }

    fn round(
        &self,
        retention: Duration,
        user: Option<&Principal>,
        now: Timestamp,
        held_back: Option<String>,
    ) -> Swept {
        let mut round = Round {
            store: self,
            retention,
            user: user.map(PrincipalHash::from),
            now,
            ageless: held_back.is_some(),
            died: false,
            report: GcReport {
                held_back,
                ..GcReport::default()
            },
            usage: DiskUsage::default(),
        };
        if user.is_none() {
            let removed = round.count(self.sweep_instances());
            round.report.removed_instances = removed;
            // An instance may have been killed while it acquired a lease.
            round.died = removed > 0 || !self.swept.swap(true, Ordering::Relaxed);
        }
        let mut links = Vec::new();
        self.each_link(|link| match link {
            Ok(folder) => links.push(folder),
            Err(error) => round.report.errors.push(error.to_string()),
        });
        round.each(&links, |round, folder| round.link(folder));
        round.jobs();
        if user.is_none() && !round.ageless {
            round.report.removed_catalog_entries = round.count(self.sweep_catalog(now));
        }
        round.report.removed_bindings = round.count(self.sweep_bindings());
        Swept {
            report: round.report,
            usage: round.usage,
        }
    }
}

struct Round<'a> {
    store: &'a ChatStore,
    retention: Duration,
    user: Option<PrincipalHash>,
    now: Timestamp,
    /// Clocks disagree: nothing is removed by age.
    ageless: bool,
    /// Instances died since the last round.
    died: bool,
    report: GcReport,
    usage: DiskUsage,
}

impl Round<'_> {
    /// Runs `work` for each of the items, with several threads if there are many.
    fn each<T: std::marker::Sync>(
        &mut self,
        items: &[T],
        work: impl Fn(&mut Round<'_>, &T) -> Result<(), StoreError> + std::marker::Sync,
    ) {
        let next = AtomicUsize::new(0);
        let run = |round: &mut Round<'_>| {
            while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                let done = work(round, item);
                round.note_all(done.err());
            }
        };
        if items.len() <= FEW {
            run(self);
            return;
        }
        let this = &*self;
        let rounds: Vec<(GcReport, DiskUsage)> = thread::scope(|scope| {
            let started: Vec<_> = (0..THREADS)
                .map(|_| {
                    scope.spawn(|| {
                        let mut round = Round {
                            user: this.user.clone(),
                            report: GcReport::default(),
                            usage: DiskUsage::default(),
                            ..*this
                        };
                        run(&mut round);
                        (round.report, round.usage)
                    })
                })
                .collect();
            let ended = started.into_iter().map(thread::ScopedJoinHandle::join);
            ended.filter_map(Result::ok).collect()
        });
        for (report, usage) in rounds {
            self.report.add(report);
            self.usage.add(usage);
        }
    }

    fn note_all(&mut self, errors: impl IntoIterator<Item = StoreError>) {
        let errors = errors.into_iter().map(|error| error.to_string());
        self.report.errors.extend(errors);
    }

    /// Returns the number of removed entries; records the errors.
    fn count(&mut self, (removed, errors): (u64, Vec<StoreError>)) -> u64 {
        self.note_all(errors);
        removed
    }

    fn link(&mut self, folder: &Path) -> Result<(), StoreError> {
        let Some(artifact) = links::read(folder)? else {
            // Partially removed by an earlier round: the record is removed just before the folder.
            return self.store.remove_whole(folder);
        };
        let reason = match &self.user {
            Some(user) if artifact.principal == *user => GoneReason::Revoked,
            Some(_) => return Ok(()),
            None => GoneReason::Expired,
        };
        match artifact.gone_at {
            _ if self.ageless => {}
            Some(at) if is_over(at, TOMBSTONE, self.now) => {
                self.store.remove_whole(folder)?;
                self.report.removed_tombstones += 1;
            }
            None if self.user.is_some() || artifact.expires_at <= self.now => {
                self.store.end_link(artifact, reason, self.now)?;
                self.report.ended_links += 1;
            }
            None => {
                self.usage.note_link(&artifact.principal, artifact.size);
            }
            Some(_) => {}
        }
        Ok(())
    }

    fn jobs(&mut self) {
        let root = self.store.root();
        let names = match files::names_in(root) {
            Ok(names) => names,
            Err(error) => return self.note_all([error]),
        };
        let mut ids: Vec<JobId> = Vec::new();
        for name in names {
            match name.parse() {
                Ok(id) => ids.push(id),
                Err(_) if name == ".bridge" => {}
                Err(_) => self.report.unknown_entries += 1,
            }
        }
        self.each(&ids, |round, id| {
            if let Some(job) = round.store.job(*id)? {
                return round.job(&job);
            }
            // Either removed in the meantime, or a link or a file is in its place.
            let there = round.store.root().join(id.to_string());
            round.report.unknown_entries += u64::from(there.symlink_metadata().is_ok());
            Ok(())
        });
    }

    fn job(&mut self, job: &Job) -> Result<(), StoreError> {
        let taken = match self.is_due(job)? {
            Some(Shared::No) => self.take_unless_leased(job),
            Some(Shared::Yes) => self.take_if_idle(job),
            None if self.died && self.user.is_none() => return self.store.sweep_claims(job),
            None => return Ok(()),
        };
        let staged = match taken {
            Ok(Some(staged)) => staged,
            // Another bridge removed it first.
            Ok(None) | Err(StoreError::JobGone) => return Ok(()),
            Err(error) => return Err(error),
        };
        remove_tree(&staged).map_err(files::at("remove", job.folder()))?;
        self.report.removed_jobs += 1;
        Ok(())
    }

    /// No key refers to it, so only its holder can use it.
    fn take_unless_leased(&mut self, job: &Job) -> Result<Option<PathBuf>, StoreError> {
        if self.store.leased_by(job)?.is_some() {
            self.report.leased_jobs += 1;
            return Ok(None);
        }
        self.take(job)
    }

    fn take(&self, job: &Job) -> Result<Option<PathBuf>, StoreError> {
        let staged = self.store.move_aside(job.folder());
        staged.map_err(files::at("remove", job.folder()))
    }

    /// Uses the folder's lock, because an instance that acquires the lease concurrently needs the same lock.
    fn take_if_idle(&mut self, job: &Job) -> Result<Option<PathBuf>, StoreError> {
        let lock = FileLock::job(job);
        match &lock {
            Err(StoreError::JobGone) => return Ok(None),
            // A child replaced the lock file; the lease is still decisive.
            Err(error) => tracing::debug!(%error, "workspace cleaned up without its lock"),
            Ok(_) => {}
        }
        // A lease of this instance is in use, too. Any other is claimed, so that no instance can take it
        // while the folder is removed, even where locks do not work.
        if self.store.leased_by(job)?.is_some() {
            self.report.leased_jobs += 1;
            return Ok(None);
        }
        let claim = match self.store.claim_to_remove(job) {
            Ok(claim) => Some(claim),
            Err(LeaseError::Elsewhere(_)) => {
                self.report.leased_jobs += 1;
                return Ok(None);
            }
            // The removal frees disk space, so continue without a claim.
            Err(LeaseError::Store(error)) if error.is_disk_full() => None,
            Err(LeaseError::Store(error)) => return Err(error),
        };
        if self.is_due(job)?.is_none() {
            if let Some(claim) = claim {
                remove_tree(&claim).map_err(files::at("remove", &claim))?;
            }
            return Ok(None);
        }
        let staged = self.take(job);
        drop(lock);
        staged
    }

    /// Whether the chat is removed now, and if so whether other instances may use it in the meantime.
    fn is_due(&mut self, job: &Job) -> Result<Option<Shared>, StoreError> {
        let (metadata, kept) = match self.store.read_metadata(job) {
            Err(StoreError::JobGone) => return Ok(None),
            // Something that a child put in its place has no information; an unreadable file may be intact.
            Err(StoreError::Io { source, .. })
                if self.user.is_none() && files::is_broken(&source) =>
            {
                self.store.metadata_of_folder(job)?
            }
            other => other?,
        };
        let keyless = metadata.session_keys.is_empty() && !metadata.unclaimed;
        let shared = match kept {
            Kept::Yes if keyless => Shared::No,
            _ => Shared::Yes,
        };
        let due = self.is_over(&metadata, kept, job)?;
        if !due && let (Some(owner), Some(bytes)) = (&metadata.principal, metadata.bytes) {
            self.usage.note_job(owner, job.id(), bytes);
        }
        Ok(due.then_some(shared))
    }

    fn is_over(&self, metadata: &Metadata, kept: Kept, job: &Job) -> Result<bool, StoreError> {
        if let Some(user) = &self.user {
            if kept == Kept::No {
                let why = "its owner is unknown because metadata.json is corrupt: if it belongs \
                           to this user, delete it manually or wait until its retention ends";
                return Err(files::at("judge", job.folder())(io::Error::other(why)));
            }
            return Ok(metadata.principal.as_ref() == Some(user));
        }
        if metadata.unclaimed {
            // It is removed after its instance has ended; the caller checks the lease next.
            return Ok(true);
        }
        if self.ageless {
            return Ok(false);
        }
        let idle_since = metadata.last_call_at.unwrap_or(metadata.created_at);
        let retained = !is_over(idle_since, self.retention, self.now);
        let new = !is_over(metadata.created_at, NEW, self.now);
        Ok(!retained && !new)
    }
}

/// Whether instances other than the holder may use a chat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shared {
    /// It belongs to one call or process.
    No,
    /// It belongs to a chat, or will.
    Yes,
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use bridge_model::LinkToken;

    use std::fs;

    use super::*;
    use crate::{
        Link, NewChat,
        testing::{Folder, alice, artifact, key, later, new_chat, publish},
    };

    const RETENTION: Duration = Duration::from_hours(1);
    const HOUR: i64 = 3600;

    fn link(store: &ChatStore, owner: &Principal, now: Timestamp) -> LinkToken {
        publish(store, artifact(owner, now, HOUR)).unwrap().token
    }

    #[test]
    fn a_workspace_goes_after_retention_with_its_binding() {
        let folder = Folder::new();
        let store = folder.open();
        let job = store.bind(&key("c"), &new_chat(), folder.now).unwrap();
        let called = later(folder.now, HOUR);
        store
            .update_metadata(&job, 0, |m| m.last_call_at = Some(called))
            .unwrap();
        let early = store.sweep_at(RETENTION, later(called, HOUR - 1)).report;
        assert_eq!((early.removed_jobs, early.removed_bindings), (0, 0));
        let due = store.sweep_at(RETENTION, later(called, HOUR)).report;
        assert_eq!((due.removed_jobs, due.removed_bindings), (1, 1));
        assert_eq!(due.errors, Vec::<String>::new());
        assert!(!job.folder().exists());
    }

    #[test]
    fn a_leased_workspace_stays_however_old_and_goes_once_its_holder_died() {
        let folder = Folder::new();
        let years = later(folder.now, 100_000_000);
        let job = folder.crash(|holder| {
            let held = holder
                .acquire_chat(&key("c"), &new_chat(), folder.now)
                .unwrap();
            let other = folder.open();
            for store in [holder, &other] {
                let report = store.sweep_at(RETENTION, years).report;
                assert_eq!((report.removed_jobs, report.leased_jobs), (0, 1));
                let user = store.forget_user(&alice());
                assert_eq!((user.removed_jobs, user.leased_jobs), (0, 1));
            }
            held.job
        });
        assert!(job.folder().exists());
        assert_eq!(
            folder.open().sweep_at(RETENTION, years).report.removed_jobs,
            1
        );
    }

    #[test]
    fn links_become_tombstones_and_then_nothing() {
        let folder = Folder::new();
        let store = folder.open();
        let token = link(&store, &alice(), folder.now);
        assert_eq!(store.sweep_at(RETENTION, folder.now).report.ended_links, 0);
        let over = later(folder.now, HOUR);
        assert_eq!(store.sweep_at(RETENTION, over).report.ended_links, 1);
        assert_eq!(store.sweep_at(RETENTION, over).report.ended_links, 0);
        let found = store.link_at(&token, over).unwrap();
        assert!(matches!(found, Link::Gone(GoneReason::Expired)));
        let later = later(over, 7 * 24 * HOUR);
        assert_eq!(
            store.sweep_at(RETENTION, later).report.removed_tombstones,
            1
        );
        assert!(matches!(
            store.link_at(&token, over).unwrap(),
            Link::Unknown
        ));
    }

    #[test]
    fn only_the_chats_and_links_of_the_user_are_removed() {
        let folder = Folder::new();
        let store = folder.open();
        let bob = Principal::User("bob".into());
        let mine = link(&store, &alice(), folder.now);
        let his = link(&store, &bob, folder.now);
        store.bind(&key("c"), &new_chat(), folder.now).unwrap();
        let bobs = NewChat {
            principal: PrincipalHash::from(&bob),
            ..new_chat()
        };
        store.create_job(&bobs, folder.now).unwrap();
        let report = store.forget_user(&alice());
        let counts = (
            report.removed_jobs,
            report.ended_links,
            report.removed_bindings,
        );
        assert_eq!(counts, (1, 1, 1));
        let found = store.link_at(&mine, folder.now).unwrap();
        assert!(matches!(found, Link::Gone(GoneReason::Revoked)));
        assert!(matches!(
            store.link_at(&his, folder.now).unwrap(),
            Link::Live(..)
        ));
        assert_eq!(store.chats().unwrap().len(), 1);
    }

    #[test]
    fn unknown_entries_are_left_alone_and_symbolic_links_not_followed() {
        let folder = Folder::new();
        let store = folder.open();
        fs::write(folder.outside().join("keep"), "x").unwrap();
        symlink(
            folder.outside(),
            folder.path().join(JobId::random().to_string()),
        )
        .unwrap();
        fs::create_dir(folder.path().join("lost+found")).unwrap();
        let job = store.create_job(&new_chat(), folder.now).unwrap();
        symlink(folder.outside(), job.work().join("out")).unwrap();
        let report = store
            .sweep_at(RETENTION, later(folder.now, 2 * HOUR))
            .report;
        assert_eq!((report.removed_jobs, report.unknown_entries), (1, 2));
        assert!(folder.outside().join("keep").exists());
        assert!(folder.path().join("lost+found").exists());
    }

    #[test]
    fn one_bad_entry_does_not_stop_the_rest() {
        let folder = Folder::new();
        let store = folder.open();
        let (bad, good) = (
            link(&store, &alice(), folder.now),
            link(&store, &alice(), folder.now),
        );
        let shard = folder
            .path()
            .join(".bridge/artifacts")
            .join(&bad.as_str()[..2]);
        fs::write(shard.join(bad.as_str()).join("meta.json"), "{").unwrap();
        let unreadable = store.create_job(&new_chat(), folder.now).unwrap();
        fs::write(unreadable.folder().join("metadata.json"), "{").unwrap();
        let report = store
            .sweep_at(RETENTION, later(folder.now, 2 * HOUR))
            .report;
        assert_eq!((report.ended_links, report.removed_jobs), (1, 1));
        assert_eq!(report.errors.len(), 1, "{:?}", report.errors);
        assert!(matches!(
            store.link_at(&good, later(folder.now, HOUR)).unwrap(),
            Link::Gone(..)
        ));
    }

    #[test]
    fn a_new_workspace_is_not_taken_before_its_first_call() {
        let folder = Folder::new();
        let store = folder.open();
        store.create_job(&new_chat(), folder.now).unwrap();
        assert_eq!(
            store
                .sweep_at(Duration::ZERO, later(folder.now, 4))
                .report
                .removed_jobs,
            0
        );
        assert_eq!(
            store
                .sweep_at(Duration::ZERO, later(folder.now, 5))
                .report
                .removed_jobs,
            1
        );
    }

    #[test]
    fn while_clocks_disagree_only_what_needs_no_clock_goes() {
        let folder = Folder::new();
        let made = folder.crash(|store| store.create_unclaimed().unwrap().job);
        let store = folder.open();
        let long_ago = later(folder.now, -30 * 24 * HOUR);
        let token = link(&store, &alice(), long_ago);
        let job = store.bind(&key("c"), &new_chat(), long_ago).unwrap();
        let doubt = Some(Doubt::Disagree("it is tomorrow".to_owned()));
        let report = store.sweep_unless(doubt, RETENTION).report;
        assert_eq!(report.held_back.as_deref(), Some("it is tomorrow"));
        assert_eq!((report.removed_jobs, report.ended_links), (1, 0));
        assert!(!made.folder().exists() && job.folder().exists());
        let found = store.link_at(&token, long_ago).unwrap();
        assert!(matches!(found, Link::Live(..)), "its bytes are there");
        let report = store.sweep_unless(None, RETENTION).report;
        assert_eq!(report.held_back, None);
        assert_eq!((report.removed_jobs, report.ended_links), (1, 1));
        assert_eq!(report.errors, [] as [String; 0]);
    }

    #[test]
    fn many_go_in_one_round_and_each_is_counted_once() {
        let folder = Folder::new();
        let store = folder.open();
        let chats = ["a", "b", "c"].map(|chat| store.bind(&key(chat), &new_chat(), folder.now));
        for _ in 0..200 {
            let job = store.create_job(&new_chat(), folder.now).unwrap();
            fs::write(job.work().join("a"), "x").unwrap();
            link(&store, &alice(), folder.now);
        }
        let held = store.create(&new_chat()).unwrap().job;
        let report = store
            .sweep_at(RETENTION, later(folder.now, 2 * HOUR))
            .report;
        assert_eq!(report.errors, [] as [String; 0]);
        assert_eq!((report.removed_jobs, report.ended_links), (203, 200));
        assert_eq!((report.leased_jobs, report.removed_bindings), (1, 3));
        assert!(held.folder().exists() && chats.len() == 3);
        assert_eq!(fs::read_dir(store.staging()).unwrap().count(), 0);
    }

    #[test]
    fn two_rounds_at_once_do_not_disturb_each_other() {
        let folder = Folder::new();
        let stores = [folder.open(), folder.open()];
        for _ in 0..100 {
            stores[0].create_job(&new_chat(), folder.now).unwrap();
        }
        let reports: Vec<_> = thread::scope(|scope| {
            let clean = |store: &ChatStore| {
                store
                    .sweep_at(RETENTION, later(folder.now, 2 * HOUR))
                    .report
            };
            let started = stores
                .each_ref()
                .map(|store| scope.spawn(move || clean(store)));
            started.into_iter().map(|one| one.join().unwrap()).collect()
        });
        assert_eq!(
            reports
                .iter()
                .map(|report| report.removed_jobs)
                .sum::<u64>(),
            100
        );
        for report in reports {
            assert_eq!(report.errors, [] as [String; 0]);
        }
    }

    #[test]
    fn the_claims_of_killed_bridges_go() {
        let folder = Folder::new();
        let store = folder.open();
        let job = store.bind(&key("c"), &new_chat(), folder.now).unwrap();
        let claim = |number: u32, id: &str| {
            let path = job.folder().join(format!("lease.{number}"));
            fs::write(&path, id).unwrap();
            path
        };
        let living = claim(1, &folder.open().instance().to_string());
        let other = folder.open();
        let kept = claim(2, &other.instance().to_string());
        let dead = claim(3, &folder.crash(|store| store.instance().to_string()));
        store.sweep_at(RETENTION, folder.now);
        assert!(!dead.exists() && !living.exists(), "both have ended");
        assert!(kept.exists());
    }

    #[test]
    fn something_else_in_the_place_of_metadata_keeps_no_folder_for_ever() {
        let folder = Folder::new();
        let store = folder.open();
        let job = store.create_job(&new_chat(), folder.now).unwrap();
        let metadata = job.folder().join("metadata.json");
        fs::remove_file(&metadata).unwrap();
        fs::create_dir(&metadata).unwrap();
        let report = store
            .sweep_at(RETENTION, later(folder.now, HOUR - 60))
            .report;
        assert_eq!(report.removed_jobs, 0);
        let user = store.forget_user(&alice());
        assert_eq!((user.removed_jobs, user.errors.len()), (0, 1));
        let report = store
            .sweep_at(RETENTION, later(folder.now, HOUR + 60))
            .report;
        assert_eq!(
            (report.removed_jobs, report.errors.len()),
            (1, 0),
            "{report:?}"
        );
    }
}
