//! Clean-up behind everybody, by our own clocks.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use jiff::Timestamp;
use uuid::Uuid;

use super::{
    GoneReason, Job, LeaseError, PrincipalHash, Store, StoreError, files,
    link::{self, is_over},
    lock::FileLock,
    remove::remove_tree,
};
use crate::model::Principal;

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
    /// What could not be cleaned, and why; the rest was.
    pub errors: Vec<String>,
}

/// A new workspace is not judged before its first call can have begun.
const NEW: Duration = Duration::from_secs(5);

impl Store {
    /// One round. With `user`, instead: that user's workspaces and links go now, whatever their
    /// clocks say. Where a lease is fresh nothing is touched. Never fails as a whole.
    pub fn collect(&self, clocks: &Clocks, user: Option<&Principal>, now: Timestamp) -> GcReport {
        let mut round = Round {
            store: self,
            clocks,
            user: user.map(PrincipalHash::from),
            now,
            report: GcReport::default(),
        };
        self.each_link(|link| {
            let done = link.and_then(|folder| round.link(&folder));
            round.note(done);
        });
        round.jobs();
        if user.is_none() {
            let (removed, errors) = self.sweep_instances();
            round.report.removed_instances = removed;
            round.note_all(errors);
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
    report: GcReport,
}

impl Round<'_> {
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
            Some(at) if is_over(at, self.clocks.tombstone, self.now) => {
                self.remove(folder)?;
                self.report.removed_tombstones += 1;
            }
            None if self.user.is_some() || artifact.expires_at <= self.now => {
                self.store.end_link(artifact, reason, self.now)?;
                self.report.ended_links += 1;
            }
            _ => {}
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
        for name in names {
            if name.as_deref() == Some(".bridge") {
                continue;
            }
            let id = name.and_then(|name| name.parse().ok());
            match id.map(|id| self.store.job(id)) {
                Some(Ok(Some(job))) => {
                    let done = self.job(&job);
                    self.note(done);
                }
                Some(Err(error)) => self.note(Err(error)),
                Some(Ok(None)) | None => self.report.unknown_entries += 1,
            }
        }
    }

    fn job(&mut self, job: &Job) -> Result<(), StoreError> {
        if !self.is_due(job)? {
            return Ok(());
        }
        let Some(staged) = self.take_if_idle(job)? else {
            return Ok(());
        };
        remove_tree(&staged).map_err(files::at("remove", job.folder()))?;
        self.report.removed_jobs += 1;
        Ok(())
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
        // Our own lease is somebody's at work, too. Any other is taken, so that nobody can take it
        // while the folder goes, whatever his lock says.
        if self.store.leased_by(job)?.is_some() {
            self.report.leased_jobs += 1;
            return Ok(None);
        }
        let lease = match self.store.acquire_locked(job, self.now) {
            Ok(lease) => Some(lease),
            Err(LeaseError::Elsewhere { .. }) => {
                self.report.leased_jobs += 1;
                return Ok(None);
            }
            // It is what makes room.
            Err(LeaseError::Store(error)) if error.is_disk_full() => None,
            Err(LeaseError::Store(error)) => return Err(error),
        };
        if !self.is_due(job)? {
            drop(lock);
            if let Some(lease) = lease {
                self.store.release(&lease)?;
            }
            return Ok(None);
        }
        let staged = self.store.take_away(job);
        drop(lock);
        staged.map(Some).map_err(files::at("remove", job.folder()))
    }

    fn is_due(&self, job: &Job) -> Result<bool, StoreError> {
        let metadata = match self.store.metadata(job) {
            Err(StoreError::JobGone) => return Ok(false),
            other => other?,
        };
        if let Some(user) = &self.user {
            return Ok(metadata.principal.as_ref() == Some(user));
        }
        if metadata.unclaimed {
            // It goes with its bridge, whose lease is looked at next.
            return Ok(true);
        }
        let idle_since = metadata.last_call_at.unwrap_or(metadata.created_at);
        let retained = !is_over(idle_since, self.clocks.retention, self.now);
        let new = !is_over(metadata.created_at, NEW, self.now);
        Ok(!retained && !new)
    }
}

#[cfg(test)]
mod tests;
