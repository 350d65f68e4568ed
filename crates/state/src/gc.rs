//! Clean-up behind everybody, by our own clocks.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use bridge_model::{Job, JobId, Principal};
use jiff::Timestamp;
use uuid::Uuid;

use super::{
    DiskUsage, GoneReason, LeaseError, Metadata, PrincipalHash, Store, StoreError,
    clock::Doubt,
    error::is_absent,
    files,
    link::{self, is_over},
    lock::FileLock,
    metadata::Kept,
    remove::remove_tree,
};

/// How long things are kept. Links carry their own end.
#[derive(Debug, Clone, Copy)]
pub struct Clocks {
    /// A workspace, past the end of its last call (`MCPO_FILE_RETENTION`).
    pub retention: Duration,
    /// A tombstone, past the end of its link: [`super::TOMBSTONE`].
    pub tombstone: Duration,
}

/// What one run did.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct GcReport {
    /// Links whose bytes went.
    pub ended_links: u64,
    /// Tombstones removed.
    pub removed_tombstones: u64,
    /// Workspaces removed.
    pub removed_jobs: u64,
    /// Workspaces kept because somebody works in them.
    pub leased_jobs: u64,
    /// Bindings removed.
    pub removed_bindings: u64,
    /// Dead instances whose files were removed.
    pub removed_instances: u64,
    /// Catalogue entries of servers that are long gone.
    pub removed_catalog_entries: u64,
    /// Entries of the jobs folder that are not ours; left alone.
    pub unknown_entries: u64,
    /// Why nothing was removed for its age: clocks disagree.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held_back: Option<String>,
    /// What could not be cleaned, and why; the rest was.
    pub errors: Vec<String>,
    /// What the workspaces and links take that stay.
    #[serde(skip)]
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
        self.usage.add(other.usage);
    }
}

/// A new workspace is not judged before its first call can have begun.
const NEW: Duration = Duration::from_secs(5);

/// Who cleans beside whom: what takes long is the disk.
const THREADS: usize = 4;
/// Fewer are done before threads have started.
const FEW: usize = 32;

impl Store {
    /// One round by the clock, which is held against others first: where they disagree nothing goes
    /// for its age. Never fails as a whole.
    pub fn collect_due(&self, clocks: &Clocks) -> GcReport {
        self.collect_unless(self.doubt(), clocks)
    }

    /// The same for a command, which waits until it has seen the others.
    pub fn collect_due_after_a_look(&self, clocks: &Clocks) -> GcReport {
        self.collect_unless(self.doubt_after_a_look(), clocks)
    }

    fn collect_unless(&self, doubt: Option<Doubt>, clocks: &Clocks) -> GcReport {
        let held_back = doubt.map(|doubt| doubt.why().to_owned());
        self.round(clocks, None, self.now(), held_back)
    }

    /// One round. With `user`, instead: that user's workspaces and links go now, whatever their
    /// clocks say. Where a lease is fresh nothing is touched. Never fails as a whole.
    pub fn collect(&self, clocks: &Clocks, user: Option<&Principal>, now: Timestamp) -> GcReport {
        self.round(clocks, user, now, None)
    }

    fn round(
        &self,
        clocks: &Clocks,
        user: Option<&Principal>,
        now: Timestamp,
        held_back: Option<String>,
    ) -> GcReport {
        let mut round = Round {
            store: self,
            clocks,
            user: user.map(PrincipalHash::from),
            now,
            ageless: held_back.is_some(),
            died: false,
            report: GcReport {
                held_back,
                ..GcReport::default()
            },
        };
        if user.is_none() {
            let (removed, errors) = self.sweep_instances();
            round.report.removed_instances = removed;
            round.note_all(errors);
            // They may have been killed on their way to a lease.
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
            let (removed, errors) = self.sweep_catalog(now);
            round.report.removed_catalog_entries = removed;
            round.note_all(errors);
        }
        let (removed, errors) = self.sweep_bindings();
        round.report.removed_bindings = removed;
        round.note_all(errors);
        round.report
    }
}

struct Round<'a> {
    store: &'a Store,
    clocks: &'a Clocks,
    user: Option<PrincipalHash>,
    now: Timestamp,
    /// No clock is believed: only what needs none goes.
    ageless: bool,
    /// Instances died since the last round.
    died: bool,
    report: GcReport,
}

impl Round<'_> {
    /// Does `work` for each of the items, some beside each other.
    fn each<T: std::marker::Sync>(
        &mut self,
        items: &[T],
        work: impl Fn(&mut Round<'_>, &T) -> Result<(), StoreError> + std::marker::Sync,
    ) {
        let next = AtomicUsize::new(0);
        let run = |round: &mut Round<'_>| {
            while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                let done = work(round, item);
                round.note(done);
            }
        };
        if items.len() <= FEW {
            run(self);
            return;
        }
        let this = &*self;
        let reports: Vec<GcReport> = thread::scope(|scope| {
            let started: Vec<_> = (0..THREADS)
                .map(|_| {
                    scope.spawn(|| {
                        let mut round = Round {
                            user: this.user.clone(),
                            report: GcReport::default(),
                            ..*this
                        };
                        run(&mut round);
                        round.report
                    })
                })
                .collect();
            let ended = started.into_iter().map(thread::ScopedJoinHandle::join);
            ended.filter_map(Result::ok).collect()
        });
        for report in reports {
            self.report.add(report);
        }
    }

    fn note(&mut self, done: Result<(), StoreError>) {
        self.note_all(done.err());
    }

    fn note_all(&mut self, errors: impl IntoIterator<Item = StoreError>) {
        let errors = errors.into_iter().map(|error| error.to_string());
        self.report.errors.extend(errors);
    }

    fn link(&mut self, folder: &Path) -> Result<(), StoreError> {
        let Some(artifact) = link::read(folder)? else {
            // Half-removed by an earlier round: the record goes last but one.
            return self.remove(folder);
        };
        let reason = match &self.user {
            Some(user) if artifact.principal == *user => GoneReason::Revoked,
            Some(_) => return Ok(()),
            None => GoneReason::Expired,
        };
        match artifact.gone_at {
            _ if self.ageless => {}
            Some(at) if is_over(at, self.clocks.tombstone, self.now) => {
                self.remove(folder)?;
                self.report.removed_tombstones += 1;
            }
            None if self.user.is_some() || artifact.expires_at <= self.now => {
                self.store.end_link(artifact, reason, self.now)?;
                self.report.ended_links += 1;
            }
            None => {
                let usage = &mut self.report.usage;
                usage.note_link(&artifact.principal, artifact.size);
            }
            Some(_) => {}
        }
        Ok(())
    }

    fn remove(&self, folder: &Path) -> Result<(), StoreError> {
        let staged = self.store.staging().join(Uuid::new_v4().to_string());
        fs::rename(folder, &staged)
            .and_then(|()| remove_tree(&staged))
            .map_err(files::at("remove", folder))
    }

    fn jobs(&mut self) {
        let names = match files::names_in(self.store.root()) {
            Ok(names) => names,
            Err(error) => {
                return self.note(Err(files::at("list", self.store.root())(error)));
            }
        };
        let mut ids: Vec<JobId> = Vec::new();
        for name in names {
            match name.as_deref().map(str::parse::<JobId>) {
                Some(Ok(id)) => ids.push(id),
                _ if name.as_deref() == Some(".bridge") => {}
                _ => self.report.unknown_entries += 1,
            }
        }
        self.each(&ids, |round, id| {
            if let Some(job) = round.store.job(*id)? {
                return round.job(&job);
            }
            // Gone meanwhile, or a link or a file in its place.
            let there = round.store.root().join(id.to_string());
            round.report.unknown_entries += u64::from(there.symlink_metadata().is_ok());
            Ok(())
        });
    }

    fn job(&mut self, job: &Job) -> Result<(), StoreError> {
        let Some(shared) = self.is_due(job)? else {
            if self.died && self.user.is_none() {
                self.store.sweep_claims(job)?;
            }
            return Ok(());
        };
        let taken = match shared {
            Shared::No => self.take_unless_leased(job),
            Shared::Yes => self.take_if_idle(job),
        };
        let staged = match taken {
            Ok(Some(staged)) => staged,
            // Another bridge was faster.
            Ok(None) | Err(StoreError::JobGone) => return Ok(()),
            Err(error) => return Err(error),
        };
        remove_tree(&staged).map_err(files::at("remove", job.folder()))?;
        self.report.removed_jobs += 1;
        Ok(())
    }

    /// No key leads to it, so nobody will want it who does not hold it already.
    fn take_unless_leased(&mut self, job: &Job) -> Result<Option<PathBuf>, StoreError> {
        if self.store.leased_by(job)?.is_some() {
            self.report.leased_jobs += 1;
            return Ok(None);
        }
        self.take(job)
    }

    fn take(&self, job: &Job) -> Result<Option<PathBuf>, StoreError> {
        match self.store.take_away(job) {
            Err(error) if is_absent(&error) => Ok(None),
            staged => staged.map(Some).map_err(files::at("remove", job.folder())),
        }
    }

    /// Under the lock, because whoever takes the lease in this moment needs the same one.
    fn take_if_idle(&mut self, job: &Job) -> Result<Option<PathBuf>, StoreError> {
        let lock = match FileLock::job(job) {
            Err(StoreError::JobGone) => return Ok(None),
            // A child left something else in its place; the lease says all the same.
            Err(error) => {
                tracing::debug!(%error, "a workspace is cleaned up without its lock");
                None
            }
            Ok(lock) => Some(lock),
        };
        // Our own lease is somebody's at work, too. Any other is claimed, so that nobody can take it
        // while the folder goes, whatever his lock says.
        if self.store.leased_by(job)?.is_some() {
            self.report.leased_jobs += 1;
            return Ok(None);
        }
        let claim = match self.store.claim_to_remove(job) {
            Ok(claim) => Some(claim),
            Err(LeaseError::Elsewhere { .. }) => {
                self.report.leased_jobs += 1;
                return Ok(None);
            }
            // It is what makes room.
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

    /// Whether it goes now, and if so whether others may want it meanwhile.
    fn is_due(&mut self, job: &Job) -> Result<Option<Shared>, StoreError> {
        let (metadata, kept) = match self.store.read_metadata(job) {
            Err(StoreError::JobGone) => return Ok(None),
            // Whatever a child put in its place is as good as nothing; what may be whole is not.
            Err(error) if self.user.is_none() && is_foreign(&error) => {
                self.store.metadata_of_folder(job)?
            }
            other => other?,
        };
        let shared = if kept == Kept::Yes && metadata.session_keys.is_empty() && !metadata.unclaimed
        {
            Shared::No
        } else {
            Shared::Yes
        };
        let due = self.is_over(&metadata, kept, job)?;
        if !due && let (Some(owner), Some(bytes)) = (&metadata.principal, metadata.bytes) {
            self.report.usage.note_job(owner, job.id(), bytes);
        }
        Ok(due.then_some(shared))
    }

    fn is_over(&self, metadata: &Metadata, kept: Kept, job: &Job) -> Result<bool, StoreError> {
        if let Some(user) = &self.user {
            if kept == Kept::No {
                let why = "whose it is is not known, since its metadata.json is broken: if it is \
                           this user's, remove it by hand, or wait for its retention to end";
                return Err(files::at("judge", job.folder())(io::Error::other(why)));
            }
            return Ok(metadata.principal.as_ref() == Some(user));
        }
        if metadata.unclaimed {
            // It goes with its bridge, whose lease is looked at next.
            return Ok(true);
        }
        if self.ageless {
            return Ok(false);
        }
        let idle_since = metadata.last_call_at.unwrap_or(metadata.created_at);
        let retained = !is_over(idle_since, self.clocks.retention, self.now);
        let new = !is_over(metadata.created_at, NEW, self.now);
        Ok(!retained && !new)
    }
}

/// Whether anybody but its holder may come to want a workspace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shared {
    /// It is of one call.
    No,
    /// It is a chat's, or will be.
    Yes,
}

/// Something else is in the place of a record.
fn is_foreign(error: &StoreError) -> bool {
    matches!(error, StoreError::Io { source, .. } if files::is_broken(source))
}

#[cfg(test)]
mod tests;
