//! Which workspace folder a chat has.

use std::{
    fs,
    path::{Path, PathBuf},
};

use bridge_model::{Job, JobId, WorkspaceKey};
use jiff::Timestamp;
use uuid::Uuid;

use super::{
    Lease, LeaseError, NewJob, Store, StoreError, error::is_absent, files, lock::FileLock,
    metadata::Kept, remove::remove_tree,
};

/// How [`Store::bind`] found the folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Binding {
    /// It is new and empty.
    Created,
    /// It was there, from an earlier session, another server of the chat or another replica.
    Existing,
}

/// A workspace that this instance may work in.
#[derive(Debug, Clone)]
pub struct Workspace {
    /// The folder.
    pub job: Job,
    /// The right to run children in it.
    pub lease: Lease,
}

/// A folder can be cleaned up between binding and leasing, but hardly that often.
const ATTEMPTS: usize = 8;

impl Store {
    /// The folder of that key, made where there is none (or where its folder is gone). Callers of
    /// any thread, process or replica get the same one. `key` takes the place of `new.key`.
    pub fn bind(
        &self,
        key: &WorkspaceKey,
        new: &NewJob<'_>,
        now: Timestamp,
    ) -> Result<(Job, Binding), StoreError> {
        self.in_whole_folder(|| self.bind_once(key, new, now))
    }

    fn bind_once(
        &self,
        key: &WorkspaceKey,
        new: &NewJob<'_>,
        now: Timestamp,
    ) -> Result<(Job, Binding), StoreError> {
        if let Some(job) = self.lookup(key)? {
            return Ok((job, Binding::Existing));
        }
        let _lock = self.lock_shard(key)?;
        if let Some(job) = self.lookup(key)? {
            return Ok((job, Binding::Existing));
        }
        if let Some(job) = self.clear_binding(&self.binding_path(key))? {
            return Ok((job, Binding::Existing));
        }
        let new = NewJob {
            key: Some(*key),
            ..new.clone()
        };
        let job = self.create_job(&new, now)?;
        if self.show_binding(key, &job)? {
            return Ok((job, Binding::Created));
        }
        // Only where locks do not reach the other replica, and it was faster.
        self.remove_job(&job)?;
        let job = self.lookup(key)?.ok_or(StoreError::JobGone)?;
        Ok((job, Binding::Existing))
    }

    /// Makes an unclaimed folder of ours the one of that key, as the principal's of `new`; `false`
    /// where the key has one already. Whatever the outcome but `true`, the caller removes it.
    pub fn adopt(
        &self,
        key: &WorkspaceKey,
        job: &Job,
        lease: &Lease,
        new: &NewJob<'_>,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        if self.lookup(key)?.is_some() {
            return Ok(false);
        }
        let _lock = self.lock_shard(key)?;
        let taken = self.lookup(key)?.is_some();
        if taken || self.clear_binding(&self.binding_path(key))?.is_some() {
            return Ok(false);
        }
        let new = NewJob {
            key: Some(*key),
            ..new.clone()
        };
        // First whose it is: a folder that a key leads to is nobody else's.
        self.claim(job, lease, &new, now)?;
        self.show_binding(key, job)
    }

    /// `false` where another replica was faster.
    fn show_binding(&self, key: &WorkspaceKey, job: &Job) -> Result<bool, StoreError> {
        let (path, id) = (self.binding_path(key), job.id().to_string());
        let shown = files::show_new(&path, id.as_bytes(), self.staging());
        shown.map_err(files::at("write", &path))
    }

    /// Takes a binding away that leads nowhere. Where locks do not reach the other replica, it may
    /// have made a good one since the look: that is put back, and its folder is the answer.
    fn clear_binding(&self, path: &Path) -> Result<Option<Job>, StoreError> {
        let taken = self.staging().join(Uuid::new_v4().to_string());
        match fs::rename(path, &taken) {
            Ok(()) => {}
            Err(error) if is_absent(&error) => return Ok(None),
            Err(error) => return Err(files::at("replace", path)(error)),
        }
        let content = match files::read_record(&taken) {
            Ok(content) => content,
            Err(error) if files::is_broken(&error) => Vec::new(),
            Err(error) => {
                // It may be a good one: it goes back, and who asked is told.
                let _ = fs::hard_link(&taken, path);
                let _ = remove_tree(&taken);
                return Err(files::at("read", path)(error));
            }
        };
        let _ = remove_tree(&taken);
        let Some(job) = parse(&content).map_or(Ok(None), |id| self.job(id))? else {
            return Ok(None);
        };
        files::show_new(path, &content, self.staging()).map_err(files::at("write", path))?;
        Ok(Some(job))
    }

    /// The folder of that key, if it has one.
    pub fn lookup(&self, key: &WorkspaceKey) -> Result<Option<Job>, StoreError> {
        let path = self.binding_path(key);
        let id = match files::read_record(&path) {
            Ok(content) => parse(&content),
            Err(error) if is_absent(&error) || files::is_broken(&error) => None,
            Err(error) => return Err(files::at("read", &path)(error)),
        };
        id.map_or(Ok(None), |id| self.job(id))
    }

    /// Binds and leases in one step, so that no clean-up comes in between: what a session uses.
    pub fn open_workspace(
        &self,
        key: &WorkspaceKey,
        new: &NewJob<'_>,
        now: Timestamp,
    ) -> Result<Workspace, LeaseError> {
        for _ in 0..ATTEMPTS {
            let bound = self.bind(key, new, now).map_err(LeaseError::Store);
            let leased = bound.and_then(|(job, _)| {
                let lease = self.acquire(&job, now)?;
                self.note_owner(&job, key, new)?;
                Ok(Workspace { job, lease })
            });
            match leased {
                Err(LeaseError::Store(StoreError::JobGone)) => {}
                other => return other,
            }
        }
        Err(StoreError::JobGone.into())
    }

    /// Writes down again whose a folder is whose metadata was torn: the key leads nobody else there.
    fn note_owner(
        &self,
        job: &Job,
        key: &WorkspaceKey,
        new: &NewJob<'_>,
    ) -> Result<(), StoreError> {
        if self.read_metadata(job)?.1 == Kept::Yes {
            return Ok(());
        }
        let new = NewJob {
            key: Some(*key),
            ..new.clone()
        };
        self.update_metadata(job, |metadata| new.note_in(metadata))
            .map(drop)
    }

    /// Removes bindings whose folder is gone; returns how many, and what failed.
    pub(super) fn sweep_bindings(&self) -> (u64, Vec<StoreError>) {
        let (mut removed, mut errors) = (0, Vec::new());
        let top = self.bridge("bindings");
        let mut list = |path: &Path| {
            let names = files::names_in(path).map_err(files::at("list", path));
            names.unwrap_or_else(|error| {
                errors.push(error);
                Vec::new()
            })
        };
        let shards: Vec<_> = list(&top)
            .into_iter()
            .flatten()
            .map(|shard| top.join(shard))
            .map(|shard| (list(&shard), shard))
            .collect();
        for (names, shard) in shards {
            for name in names.into_iter().flatten() {
                if name.len() != 64 {
                    continue;
                }
                match self.remove_orphan(&shard, &name) {
                    Ok(was_orphan) => removed += u64::from(was_orphan),
                    Err(error) => errors.push(error),
                }
            }
        }
        (removed, errors)
    }

    fn remove_orphan(&self, shard: &Path, name: &str) -> Result<bool, StoreError> {
        let path = shard.join(name);
        let leads_nowhere = || match files::read_record(&path) {
            Ok(content) => {
                parse(&content).map_or(Ok(true), |id| self.job(id).map(|job| job.is_none()))
            }
            Err(error) if files::is_broken(&error) => Ok(true),
            Err(error) if is_absent(&error) => Ok(false),
            Err(error) => Err(files::at("read", &path)(error)),
        };
        if !leads_nowhere()? {
            return Ok(false);
        }
        let lock = shard.join("lock");
        let _lock = FileLock::take(&lock).map_err(files::at("lock", &lock))?;
        // Somebody may have bound it anew meanwhile.
        if !leads_nowhere()? {
            return Ok(false);
        }
        Ok(self.clear_binding(&path)?.is_none())
    }

    fn lock_shard(&self, key: &WorkspaceKey) -> Result<FileLock, StoreError> {
        let shard = self.bridge("bindings").join(&key.to_hex()[..2]);
        files::make_dir(&shard).map_err(files::at("make", &shard))?;
        let path = shard.join("lock");
        FileLock::take(&path).map_err(files::at("lock", &path))
    }

    fn binding_path(&self, key: &WorkspaceKey) -> PathBuf {
        let hex = key.to_hex();
        self.bridge("bindings").join(&hex[..2]).join(hex)
    }
}

fn parse(content: &[u8]) -> Option<JobId> {
    std::str::from_utf8(content).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Folder, key, new_job};

    #[test]
    fn everybody_who_binds_a_key_gets_the_same_folder() {
        let folder = Folder::new();
        let stores = [folder.open(), folder.open(), folder.open()];
        let bound: Vec<_> = std::thread::scope(|scope| {
            let bind = |number: usize| {
                let store = &stores[number % 3];
                store.bind(&key("c"), &new_job(), folder.now).unwrap()
            };
            let threads: Vec<_> = (0..24).map(|n| scope.spawn(move || bind(n))).collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .collect()
        });
        let created = bound
            .iter()
            .filter(|(_, how)| *how == Binding::Created)
            .count();
        assert_eq!(created, 1);
        assert!(bound.iter().all(|(job, _)| job.id() == bound[0].0.id()));
        assert_eq!(stores[0].jobs().unwrap().len(), 1);
    }

    #[test]
    fn a_restarted_bridge_finds_the_folder() {
        let folder = Folder::new();
        let bind = |store: &Store| {
            store
                .bind(&key("c"), &new_job(), folder.now)
                .unwrap()
                .0
                .id()
        };
        let before = folder.crash(bind);
        assert_eq!(bind(&folder.open()), before);
    }

    #[test]
    fn a_removed_folder_is_replaced_and_chats_are_apart() {
        let folder = Folder::new();
        let store = folder.open();
        let (first, _) = store.bind(&key("c"), &new_job(), folder.now).unwrap();
        let (other, _) = store.bind(&key("d"), &new_job(), folder.now).unwrap();
        assert_ne!(first.id(), other.id());
        store.remove_job(&first).unwrap();
        assert!(store.lookup(&key("c")).unwrap().is_none());
        let (second, how) = store.bind(&key("c"), &new_job(), folder.now).unwrap();
        assert_eq!(how, Binding::Created);
        assert_ne!(first.id(), second.id());
        let keys = store.metadata(&second).unwrap().session_keys;
        assert_eq!(keys, [key("c").to_hex()]);
    }

    #[test]
    fn a_broken_binding_is_replaced() {
        let folder = Folder::new();
        let store = folder.open();
        store.bind(&key("c"), &new_job(), folder.now).unwrap();
        fs::write(store.binding_path(&key("c")), "../../etc").unwrap();
        assert!(store.lookup(&key("c")).unwrap().is_none());
        let (_, how) = store.bind(&key("c"), &new_job(), folder.now).unwrap();
        assert_eq!(how, Binding::Created);
    }
}
