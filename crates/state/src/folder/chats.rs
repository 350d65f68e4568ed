//! The folders of chats: creation, lookup by key, claim, lists and removal.
//!
//! A folder can be created before its owner is known, for a process that is started before its first call:
//!
//! ```text
//! (none) ──create_unclaimed──▶ unclaimed ──claim──▶ owned by one principal
//!                                  └── its instance ends ──▶ removed by the clean-up
//! ```
//! No key refers to an unclaimed folder and no list contains it. Its instance holds the lease from the start,
//! and the folder is removed after that instance has ended.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use bridge_model::{Job, JobId, Principal, ServerName, WorkspaceKey};
use jiff::Timestamp;
use uuid::Uuid;

use super::{
    ChatStore,
    files::{self, Durable, FileLock, StoreError, is_absent, remove_tree, unlock_dir},
    instance::InstanceId,
    lease::{self, Holder, Lease, LeaseError},
    links::{Artifact, Blob},
    record::{JobStatus, Kept, LiveSession, Metadata, PrincipalHash},
};

/// What must be known to create a chat.
#[derive(Debug, Clone)]
pub struct NewChat {
    /// The owner: `gc --user` finds the chat by it.
    pub principal: PrincipalHash,
    /// The servers that will run in it.
    pub servers: Vec<ServerName>,
}

impl NewChat {
    /// A chat of this principal.
    pub fn new(principal: &Principal, servers: Vec<ServerName>) -> Self {
        let principal = PrincipalHash::from(principal);
        Self { principal, servers }
    }

    fn note_in(&self, key: Option<&WorkspaceKey>, metadata: &mut Metadata) {
        metadata.session_keys = key.iter().map(|key| key.to_hex()).collect();
        metadata.principal = Some(self.principal.clone());
        metadata.server_names = self.servers.iter().map(ToString::to_string).collect();
    }
}

impl ChatStore {
    /// Creates a folder with its metadata and with the content that `more` adds. It becomes visible in one
    /// step.
    fn make_job(
        &self,
        note: impl FnOnce(&mut Metadata),
        more: impl FnOnce(&Path) -> io::Result<()>,
        now: Timestamp,
    ) -> Result<Job, StoreError> {
        let id = JobId::random();
        let staged = self.staging().join(id.to_string());
        let job = self.job_at(id);
        let mut metadata = Metadata::empty(id, now);
        note(&mut metadata);
        let make = || {
            for part in ["", "work", "home", "tmp"] {
                files::make_dir(&staged.join(part))?;
            }
            files::write_json(&staged.join("metadata.json"), &metadata, self.staging())?;
            more(&staged)?;
            fs::rename(&staged, job.folder())
        };
        make().map_err(|error| {
            // The first error is the one to report.
            let _ = remove_tree(&staged);
            files::at("create the workspace", &staged)(error)
        })?;
        Ok(job)
    }

    /// Creates a folder without a lease.
    #[cfg(test)]
    pub(crate) fn create_job(&self, new: &NewChat, now: Timestamp) -> Result<Job, StoreError> {
        self.make_job(|metadata| new.note_in(None, metadata), |_| Ok(()), now)
    }

    /// Creates a chat without a key, for one call or one process: no lookup finds it. This instance holds its
    /// lease from the moment the folder becomes visible.
    pub fn create(&self, new: &NewChat) -> Result<Held, StoreError> {
        self.in_whole_folder(|| self.make_leased_job(|metadata| new.note_in(None, metadata)))
    }

    /// Creates a folder without an owner, for a process that is started before its first call. No key refers
    /// to it, no list contains it, and it is removed after its instance has ended.
    pub fn create_unclaimed(&self) -> Result<Held, StoreError> {
        self.make_leased_job(|metadata| metadata.unclaimed = true)
    }

    fn make_leased_job(&self, note: impl FnOnce(&mut Metadata)) -> Result<Held, StoreError> {
        let now = self.now();
        let write = |folder: &Path| self.write_first_lease(folder, now);
        let job = self.make_job(note, write, now)?;
        Ok(Held {
            lease: self.lease(&job, lease::FIRST, now),
            job,
            servers: Vec::new(),
        })
    }

    /// The folder with this id, if it exists.
    pub(super) fn job(&self, id: JobId) -> Result<Option<Job>, StoreError> {
        let job = self.job_at(id);
        let there = files::is_own_dir(job.folder()).map_err(files::at("inspect", job.folder()))?;
        Ok(there.then_some(job))
    }

    /// Removes a folder at once, regardless of its lease. Links made from it are kept. Follows no links;
    /// handles read-only folders and any depth. Absent is fine.
    pub(super) fn remove_job(&self, job: &Job) -> Result<(), StoreError> {
        self.remove_whole(job.folder())
    }

    /// Moves `path` aside in one step, then removes it. Absent is fine.
    pub(super) fn remove_whole(&self, path: &Path) -> Result<(), StoreError> {
        let removed = match self.move_aside(path) {
            Ok(Some(aside)) => remove_tree(&aside),
            other => other.map(drop),
        };
        removed.map_err(files::at("remove", path))
    }

    /// Moves `path` into the staging folder in one step, so that it is never visible half-removed; `None` if
    /// it does not exist.
    pub(super) fn move_aside(&self, path: &Path) -> io::Result<Option<PathBuf>> {
        let aside = self.staging().join(format!("gone-{}", Uuid::new_v4()));
        let moved = match fs::rename(path, &aside) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied && path.is_dir() => {
                unlock_dir(path)?;
                fs::rename(path, &aside)
            }
            other => other,
        };
        Ok(files::present(moved)?.map(|()| aside))
    }

    pub(super) fn job_at(&self, id: JobId) -> Job {
        Job::below(&self.root, &self.configured, id)
    }
}

/// A chat's folder, and this instance's right to use it.
#[derive(Debug, Clone)]
pub struct Held {
    /// The folder.
    pub job: Job,
    /// The lease.
    pub lease: Lease,
    /// The servers that have run in it.
    pub servers: Vec<String>,
}

/// The outcome of [`ChatStore::acquire`].
#[derive(Debug, Clone)]
pub enum Acquired {
    /// This instance may use the folder until it releases or loses the lease.
    Mine(Held),
    /// Another instance holds the lease.
    Elsewhere(Holder),
}

/// A clean-up can remove the folder between binding and leasing, but not this many times in a row.
const ATTEMPTS: usize = 8;

impl ChatStore {
    /// Creates the chat of this key if it does not exist, without taking its lease.
    pub fn ensure(&self, key: &WorkspaceKey, new: &NewChat) -> Result<(), StoreError> {
        self.bind(key, new, self.now()).map(drop)
    }

    /// Whether a chat of this key exists.
    pub fn exists(&self, key: &WorkspaceKey) -> Result<bool, StoreError> {
        Ok(self.lookup(key)?.is_some())
    }

    /// The folder of this key, created if there is none or if it was removed. Callers in any thread, process
    /// or replica get the same one.
    pub(super) fn bind(
        &self,
        key: &WorkspaceKey,
        new: &NewChat,
        now: Timestamp,
    ) -> Result<Job, StoreError> {
        self.in_whole_folder(|| {
            if let Some(job) = self.lookup(key)? {
                return Ok(job);
            }
            let _lock = self.lock_shard(key)?;
            if let Some(job) = self.lookup(key)? {
                return Ok(job);
            }
            if let Some(job) = self.clear_binding(&self.binding_path(key))? {
                return Ok(job);
            }
            let owned = |metadata: &mut Metadata| new.note_in(Some(key), metadata);
            let job = self.make_job(owned, |_| Ok(()), now)?;
            if self.show_binding(key, job.id())? {
                return Ok(job);
            }
            // Only possible where file locks do not reach the other replica, and that one was first.
            self.remove_job(&job)?;
            self.lookup(key)?.ok_or(StoreError::JobGone)
        })
    }

    /// Sets the owner of an unclaimed folder of this instance, once, and with a `key` makes it the chat of
    /// that key. `false` if that key has a chat already; [`StoreError::JobGone`] if the folder is no longer
    /// unclaimed. Unless the result is `true`, the caller discards the folder.
    pub fn claim(
        &self,
        lease: &Lease,
        key: Option<&WorkspaceKey>,
        new: &NewChat,
    ) -> Result<bool, StoreError> {
        let Some(key) = key else {
            return self.set_owner(lease, None, new).map(|()| true);
        };
        if self.lookup(key)?.is_some() {
            return Ok(false);
        }
        let _lock = self.lock_shard(key)?;
        let taken = self.lookup(key)?.is_some();
        if taken || self.clear_binding(&self.binding_path(key))?.is_some() {
            return Ok(false);
        }
        // The owner is written first: a folder with a key always has an owner.
        self.set_owner(lease, Some(key), new)?;
        self.show_binding(key, lease.job)
    }

    fn set_owner(
        &self,
        lease: &Lease,
        key: Option<&WorkspaceKey>,
        new: &NewChat,
    ) -> Result<(), StoreError> {
        let job = self.job_at(lease.job);
        let _lock = FileLock::job(&job)?;
        let mut metadata = self.metadata(&job)?;
        if !metadata.unclaimed || !self.holds(lease)? {
            return Err(StoreError::JobGone);
        }
        metadata.unclaimed = false;
        metadata.created_at = self.now();
        new.note_in(key, &mut metadata);
        self.write_metadata(&job, &metadata)
    }

    /// Writes the binding; `false` if another replica was first.
    fn show_binding(&self, key: &WorkspaceKey, id: JobId) -> Result<bool, StoreError> {
        let (path, id) = (self.binding_path(key), id.to_string());
        self.show_new(&path, id.as_bytes(), Durable::Yes)
    }

    /// Removes a binding whose folder does not exist. Where file locks do not reach the other replica, that
    /// one may have replaced it by a valid binding since the check: it is then restored, and its folder is
    /// returned.
    fn clear_binding(&self, path: &Path) -> Result<Option<Job>, StoreError> {
        let taken = self.move_aside(path).map_err(files::at("replace", path))?;
        let Some(taken) = taken else {
            return Ok(None);
        };
        let content = match files::read_record(&taken) {
            Ok(content) => content,
            Err(error) if files::is_broken(&error) => Vec::new(),
            Err(error) => {
                // It may be a valid binding: restore it and return the error.
                let _ = fs::hard_link(&taken, path);
                let _ = remove_tree(&taken);
                return Err(files::at("read", path)(error));
            }
        };
        let _ = remove_tree(&taken);
        let Some(job) = parse(&content).map_or(Ok(None), |id| self.job(id))? else {
            return Ok(None);
        };
        self.show_new(path, &content, Durable::Yes)?;
        Ok(Some(job))
    }

    /// The folder of this key, if there is one.
    pub(super) fn lookup(&self, key: &WorkspaceKey) -> Result<Option<Job>, StoreError> {
        let path = self.binding_path(key);
        let id = match files::read_record(&path) {
            Ok(content) => parse(&content),
            Err(error) if is_absent(&error) || files::is_broken(&error) => None,
            Err(error) => return Err(files::at("read", &path)(error)),
        };
        id.map_or(Ok(None), |id| self.job(id))
    }

    /// Returns the chat of this key, created if there is none, with its lease: a free one, a stale one (its
    /// holder is dead or silent), or one that this instance holds already (then with the same fence).
    ///
    /// Process records in the chat are older than the change of the holder, so they are cleared. Leases are
    /// not counted: release the lease after the last process in the chat has ended.
    pub fn acquire(&self, key: &WorkspaceKey, new: &NewChat) -> Result<Acquired, StoreError> {
        match self.acquire_chat(key, new, self.now()) {
            Ok(held) => Ok(Acquired::Mine(held)),
            Err(LeaseError::Elsewhere(holder)) => Ok(Acquired::Elsewhere(holder)),
            Err(LeaseError::Store(error)) => Err(error),
        }
    }

    /// The other instance that [`Self::acquire`] would return. Acquires nothing.
    pub fn holder(&self, key: &WorkspaceKey) -> Result<Option<Holder>, StoreError> {
        let refused = match self.lookup(key)? {
            Some(job) => self.check_elsewhere(&job),
            None => Ok(()),
        };
        match refused {
            Ok(()) => Ok(None),
            Err(LeaseError::Elsewhere(holder)) => Ok(Some(holder)),
            Err(LeaseError::Store(error)) => Err(error),
        }
    }

    /// Binds and leases in one step, so that no clean-up can run in between.
    pub(super) fn acquire_chat(
        &self,
        key: &WorkspaceKey,
        new: &NewChat,
        now: Timestamp,
    ) -> Result<Held, LeaseError> {
        for _ in 0..ATTEMPTS {
            let bound = self.bind(key, new, now).map_err(LeaseError::Store);
            let leased = bound.and_then(|job| {
                let lease = self.acquire_lease(&job, now)?;
                let metadata = self.take_up(&job, &lease, key, new).inspect_err(|_| {
                    if let Err(error) = self.release(&lease) {
                        tracing::warn!(job = ?job.id(), %error, "lease not released");
                    }
                })?;
                let servers = metadata.server_names;
                Ok(Held {
                    job,
                    lease,
                    servers,
                })
            });
            match leased {
                Err(LeaseError::Store(StoreError::JobGone)) => {}
                other => return other,
            }
        }
        Err(StoreError::JobGone.into())
    }

    /// The metadata, updated for the new holder: with the owner if the file was corrupt (the key proves the
    /// owner), and without the processes of a bridge that was killed.
    fn take_up(
        &self,
        job: &Job,
        lease: &Lease,
        key: &WorkspaceKey,
        new: &NewChat,
    ) -> Result<Metadata, StoreError> {
        let (metadata, kept) = self.read_metadata(job)?;
        if kept == Kept::Yes && metadata.live_sessions.is_empty() {
            return Ok(metadata);
        }
        self.update_metadata(job, lease.fence, |metadata| {
            if kept == Kept::No {
                new.note_in(Some(key), metadata);
            }
            metadata.live_sessions.clear();
        })
    }

    /// Removes a folder that has no key. If that fails, its lease is released, so that the clean-up can
    /// remove it.
    pub fn discard(&self, lease: &Lease) -> Result<(), StoreError> {
        let removed = self.remove_job(&self.job_at(lease.job));
        if removed.is_err() {
            self.release(lease)?;
        }
        removed
    }

    /// Removes bindings to folders that no longer exist; returns their number, and the errors.
    pub(super) fn sweep_bindings(&self) -> (u64, Vec<StoreError>) {
        let (mut removed, mut errors) = (0, Vec::new());
        self.each_in_shards("bindings", |binding| {
            let orphan = binding.and_then(|(shard, name)| self.remove_orphan(shard, name));
            match orphan {
                Ok(was_orphan) => removed += u64::from(was_orphan),
                Err(error) => errors.push(error),
            }
        });
        (removed, errors)
    }

    fn remove_orphan(&self, shard: &Path, name: &str) -> Result<bool, StoreError> {
        // The others are locks.
        if name.len() != 64 {
            return Ok(false);
        }
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
        let _lock = FileLock::of_folder(shard)?;
        // The key may have a folder again since the check.
        if !leads_nowhere()? {
            return Ok(false);
        }
        Ok(self.clear_binding(&path)?.is_none())
    }

    fn lock_shard(&self, key: &WorkspaceKey) -> Result<FileLock, StoreError> {
        let shard = self.bridge("bindings").join(&key.to_hex()[..2]);
        files::make_dir(&shard).map_err(files::at("make", &shard))?;
        FileLock::of_folder(&shard)
    }

    fn binding_path(&self, key: &WorkspaceKey) -> PathBuf {
        let hex = key.to_hex();
        self.bridge("bindings").join(&hex[..2]).join(hex)
    }
}

fn parse(content: &[u8]) -> Option<JobId> {
    std::str::from_utf8(content).ok()?.trim().parse().ok()
}

/// One chat, as lists show it.
#[derive(Debug, Clone)]
pub struct ChatSummary {
    /// The folder.
    pub job: Job,
    /// Its metadata.
    pub metadata: Metadata,
    /// The live instance that holds its lease.
    pub leased_by: Option<InstanceId>,
}

impl ChatSummary {
    /// Its status. The first call is recorded only when it ends, so a leased `Created` chat counts as
    /// running.
    pub fn status(&self) -> JobStatus {
        match self.metadata.status {
            JobStatus::Created if self.leased_by.is_some() => JobStatus::Running,
            status => status,
        }
    }
}

/// One live child, on this replica or another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionSummary {
    /// The workspace of the child.
    pub job: JobId,
    /// The instance that runs it.
    pub instance: InstanceId,
    /// The child.
    pub session: LiveSession,
}

impl ChatStore {
    /// All chats, oldest first. Unreadable ones are logged and omitted.
    pub fn chats(&self) -> Result<Vec<ChatSummary>, StoreError> {
        let names = files::names_in(self.root())?.into_iter();
        let ids = names.filter_map(|name| name.parse().ok());
        let jobs = ids.filter_map(|id| {
            self.chat(id).unwrap_or_else(|error| {
                tracing::warn!(job = ?id, %error, "workspace cannot be listed");
                None
            })
        });
        let mut jobs: Vec<_> = jobs.collect();
        jobs.sort_by_key(|summary| summary.metadata.created_at);
        Ok(jobs)
    }

    /// The chat with this id, if it exists and has an owner.
    pub fn chat(&self, id: JobId) -> Result<Option<ChatSummary>, StoreError> {
        let Some(job) = self.job(id)? else {
            return Ok(None);
        };
        let metadata = self.metadata(&job)?;
        if metadata.unclaimed {
            return Ok(None);
        }
        Ok(Some(ChatSummary {
            metadata,
            leased_by: self.leased_by(&job)?,
            job,
        }))
    }

    /// The live children in chats whose lease is fresh.
    pub fn sessions(&self) -> Result<Vec<SessionSummary>, StoreError> {
        let sessions = self.chats()?.into_iter().flat_map(|chat| {
            let (job, leased_by) = (chat.job.id(), chat.leased_by);
            let sessions = chat.metadata.live_sessions.into_iter();
            sessions.filter_map(move |session| {
                let instance = leased_by?;
                Some(SessionSummary {
                    job,
                    instance,
                    session,
                })
            })
        });
        Ok(sessions.collect())
    }
}

// The results of a call, written under its lease.

/// The results of a call or an upload.
#[derive(Debug, Default)]
pub struct Done {
    /// New links, each with its bytes.
    pub links: Vec<(Artifact, Blob)>,
    /// Lines of [`JournalEntry::line`](crate::JournalEntry::line).
    pub journal: Vec<u8>,
    /// Attached files that were copied into the chat: their ids in Open WebUI, and their names.
    pub attachments: Vec<(String, String)>,
    /// Set if the call has ended: the retention of the chat starts now.
    pub ended: Option<CallEnd>,
}

/// The end of a call.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CallEnd {
    /// The disk usage of the chat's folders, if it was measured.
    pub bytes: Option<u64>,
    /// The outcome; `None` for an upload, which does not change the chat's status.
    pub outcome: Option<CallOutcome>,
}

/// How a call ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CallOutcome {
    /// The server answered.
    Answered,
    /// It failed, with the reason. Contains no secrets and no arguments.
    Failed(String),
}

impl ChatStore {
    /// Writes the parts one after the other; stops at the first error.
    pub fn commit(&self, lease: &Lease, done: Done) -> Result<(), StoreError> {
        for (artifact, blob) in &done.links {
            self.publish(lease, artifact, blob)?;
        }
        let job = self.job_at(lease.job);
        self.append_to_journal(&job, lease.fence, &done.journal)?;
        if done.ended.is_none() && done.attachments.is_empty() {
            return Ok(());
        }
        let now = self.now();
        self.update_metadata(&job, lease.fence, |metadata| {
            metadata.attachments.extend(done.attachments);
            if let Some(ended) = done.ended {
                metadata.last_call_at = Some(now);
                // If the folders were not measured, the previous value is kept.
                metadata.bytes = ended.bytes.or(metadata.bytes);
                if let Some(outcome) = ended.outcome {
                    note_outcome(metadata, outcome);
                }
            }
        })
        .map(drop)
    }

    /// Records a process that runs in the chat.
    pub fn session_started(&self, lease: &Lease, session: LiveSession) -> Result<(), StoreError> {
        self.update_metadata(&self.job_at(lease.job), lease.fence, |metadata| {
            if !metadata.server_names.contains(&session.server) {
                metadata.server_names.push(session.server.clone());
            }
            metadata.live_sessions.push(session);
            metadata.status = JobStatus::Idle;
        })
        .map(drop)
    }

    /// Records that the process with this [`LiveSession::number`] has ended.
    pub fn session_ended(&self, lease: &Lease, number: u64) -> Result<(), StoreError> {
        self.update_metadata(&self.job_at(lease.job), lease.fence, |metadata| {
            let sessions = &mut metadata.live_sessions;
            sessions.retain(|session| session.number != number);
        })
        .map(drop)
    }

    /// Records that no process runs in the chat any more, and releases its lease, also if the record cannot
    /// be written.
    pub fn close(&self, lease: &Lease) -> Result<(), StoreError> {
        let job = self.job_at(lease.job);
        let noted = self.update_metadata(&job, lease.fence, |metadata| {
            metadata.live_sessions.clear();
            if metadata.status != JobStatus::Failed {
                metadata.status = JobStatus::Ended;
            }
        });
        let released = self.release(lease);
        noted.and(released)
    }
}

fn note_outcome(metadata: &mut Metadata, outcome: CallOutcome) {
    let error = match outcome {
        CallOutcome::Answered => None,
        CallOutcome::Failed(why) => Some(why),
    };
    metadata.status = match (&error, metadata.live_sessions.is_empty()) {
        (Some(_), _) => JobStatus::Failed,
        (None, true) => JobStatus::Ended,
        (None, false) => JobStatus::Idle,
    };
    metadata.error = error;
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::MetadataExt as _, time::Duration};

    use super::*;
    use crate::testing::{Folder, alice, key, later, new_chat};

    #[test]
    fn a_workspace_is_private() {
        let folder = Folder::new();
        let store = folder.open();
        let job = store.create_job(&new_chat(), folder.now).unwrap();
        for dir in [job.folder().to_owned(), job.work(), job.home(), job.tmp()] {
            assert_eq!(fs::metadata(dir).unwrap().mode() & 0o777, 0o700);
        }
        let metadata = fs::metadata(job.folder().join("metadata.json")).unwrap();
        assert_eq!(metadata.mode() & 0o777, 0o600);
        assert_eq!(store.job(job.id()).unwrap().unwrap().work(), job.work());
    }

    #[test]
    fn removing_a_workspace_leaves_nothing_in_staging_and_is_repeatable() {
        let folder = Folder::new();
        let store = folder.open();
        let job = store.create_job(&new_chat(), folder.now).unwrap();
        fs::write(job.work().join("a.txt"), "a").unwrap();
        store.remove_job(&job).unwrap();
        store.remove_job(&job).unwrap();
        assert!(store.job(job.id()).unwrap().is_none());
        assert_eq!(fs::read_dir(store.staging()).unwrap().count(), 0);
    }

    #[test]
    fn a_link_in_place_of_a_workspace_is_not_one() {
        let folder = Folder::new();
        let store = folder.open();
        let id = JobId::random();
        std::os::unix::fs::symlink(folder.outside(), store.root().join(id.to_string())).unwrap();
        assert!(store.job(id).unwrap().is_none());
    }

    #[test]
    fn all_callers_of_a_key_get_the_same_folder() {
        let folder = Folder::new();
        let stores = [folder.open(), folder.open(), folder.open()];
        let bound: Vec<_> = std::thread::scope(|scope| {
            let bind = |number: usize| {
                let store = &stores[number % 3];
                store.bind(&key("c"), &new_chat(), folder.now).unwrap()
            };
            let threads: Vec<_> = (0..24).map(|n| scope.spawn(move || bind(n))).collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .collect()
        });
        assert!(bound.iter().all(|job: &Job| job.id() == bound[0].id()));
        assert_eq!(stores[0].chats().unwrap().len(), 1);
    }

    #[test]
    fn a_restarted_bridge_finds_the_folder() {
        let folder = Folder::new();
        let bind = |store: &ChatStore| {
            let job = store.bind(&key("c"), &new_chat(), folder.now);
            job.unwrap().id()
        };
        let before = folder.crash(bind);
        assert_eq!(bind(&folder.open()), before);
    }

    #[test]
    fn a_removed_folder_is_replaced_and_chats_are_apart() {
        let folder = Folder::new();
        let store = folder.open();
        let first = store.bind(&key("c"), &new_chat(), folder.now).unwrap();
        let other = store.bind(&key("d"), &new_chat(), folder.now).unwrap();
        assert_ne!(first.id(), other.id());
        store.remove_job(&first).unwrap();
        assert!(store.lookup(&key("c")).unwrap().is_none());
        let second = store.bind(&key("c"), &new_chat(), folder.now).unwrap();
        assert_ne!(first.id(), second.id());
        let keys = store.metadata(&second).unwrap().session_keys;
        assert_eq!(keys, [key("c").to_hex()]);
    }

    #[test]
    fn a_broken_binding_is_replaced() {
        let folder = Folder::new();
        let store = folder.open();
        store.bind(&key("c"), &new_chat(), folder.now).unwrap();
        fs::write(store.binding_path(&key("c")), "../../etc").unwrap();
        assert!(store.lookup(&key("c")).unwrap().is_none());
        let bound = store.bind(&key("c"), &new_chat(), folder.now).unwrap();
        let found = store.lookup(&key("c")).unwrap().map(|job| job.id());
        assert_eq!(found, Some(bound.id()));
    }

    const RETENTION: Duration = Duration::from_hours(1);

    #[test]
    fn an_unclaimed_folder_is_not_found_and_its_living_bridge_keeps_it() {
        let folder = Folder::new();
        let (store, other) = (folder.open(), folder.open());
        let Held { job, lease, .. } = store.create_unclaimed().unwrap();
        assert!(store.holds(&lease).unwrap());
        for store in [&store, &other] {
            assert!(store.chats().unwrap().is_empty());
            assert!(store.chat(job.id()).unwrap().is_none());
            let report = store.sweep_at(RETENTION, folder.now).report;
            assert_eq!((report.removed_jobs, report.leased_jobs), (0, 1));
            store.forget_user(&alice());
        }
        assert!(store.job(job.id()).unwrap().is_some());
        assert_eq!(store.metadata(&job).unwrap().principal, None);
    }

    #[test]
    fn an_unclaimed_folder_is_removed_once_its_bridge_has_ended() {
        let folder = Folder::new();
        let made = folder.crash(|store| store.create_unclaimed().unwrap().job);
        let store = folder.open();
        let report = store.sweep_at(RETENTION, folder.now).report;
        assert_eq!(report.removed_jobs, 1);
        assert!(store.job(made.id()).unwrap().is_none());
    }

    #[test]
    fn an_unclaimed_folder_is_claimed_once() {
        let folder = Folder::new();
        let store = folder.open();
        let Held { job, lease, .. } = store.create_unclaimed().unwrap();
        store.claim(&lease, None, &new_chat()).unwrap();
        let bob = NewChat {
            principal: PrincipalHash::from(&Principal::User("bob".into())),
            ..new_chat()
        };
        let again = store.claim(&lease, None, &bob);
        assert!(matches!(again, Err(StoreError::JobGone)), "{again:?}");
        let metadata = store.metadata(&job).unwrap();
        assert_eq!(metadata.principal, Some(new_chat().principal));
        assert!(!metadata.unclaimed);
        assert_eq!(store.chats().unwrap().len(), 1);
    }

    #[test]
    fn the_folder_of_a_key_stays_what_it_is() {
        let folder = Folder::new();
        let store = folder.open();
        let own = store.bind(&key("c"), &new_chat(), folder.now).unwrap();
        let Held { job, lease, .. } = store.create_unclaimed().unwrap();
        let claim = |chat| store.claim(&lease, Some(&key(chat)), &new_chat());
        assert!(!claim("c").unwrap());
        assert_eq!(store.lookup(&key("c")).unwrap().unwrap().id(), own.id());
        assert!(store.metadata(&job).unwrap().unclaimed);
        assert!(claim("d").unwrap());
        assert_eq!(store.lookup(&key("d")).unwrap().unwrap().id(), job.id());
        let keys = store.metadata(&job).unwrap().session_keys;
        assert_eq!(keys, [key("d").to_hex()]);
        assert!(matches!(claim("e"), Err(StoreError::JobGone)));
        assert!(store.lookup(&key("e")).unwrap().is_none());
    }

    #[test]
    fn one_that_was_taken_over_cannot_be_claimed() {
        let folder = Folder::new();
        let Held { job, lease, .. } = folder.crash(|store| store.create_unclaimed().unwrap());
        let store = folder.open();
        store.acquire_lease(&job, folder.now).unwrap();
        let refused = store.claim(&lease, None, &new_chat());
        assert!(matches!(refused, Err(StoreError::JobGone)), "{refused:?}");
    }

    #[test]
    fn sessions_count_only_under_a_living_lease() {
        let folder = Folder::new();
        let session = LiveSession {
            server: "excel".into(),
            number: 1,
            pid: Some(7),
            started_at: folder.now,
        };
        let open = |store: &ChatStore| {
            let job = store
                .acquire_chat(&key("c"), &new_chat(), folder.now)
                .unwrap()
                .job;
            let live = vec![session.clone()];
            store
                .update_metadata(&job, 0, |metadata| metadata.live_sessions = live)
                .unwrap();
        };
        folder.crash(open);
        let store = folder.open();
        assert_eq!(store.sessions().unwrap(), []);
        let of_chats = |store: &ChatStore| -> Vec<_> {
            let chats = store.chats().unwrap();
            chats.iter().map(ChatSummary::status).collect()
        };
        assert_eq!(of_chats(&store), [JobStatus::Created]);
        open(&store);
        assert_eq!(store.sessions().unwrap()[0].session, session);
        assert_eq!(of_chats(&store), [JobStatus::Running]);
    }

    #[test]
    fn workspaces_are_listed_oldest_first() {
        let folder = Folder::new();
        let store = folder.open();
        for seconds in [5, 1, 3] {
            store
                .create_job(&new_chat(), later(folder.now, seconds))
                .unwrap();
        }
        std::fs::create_dir(folder.path().join("lost+found")).unwrap();
        let jobs = store.chats().unwrap();
        assert_eq!(jobs.len(), 3);
        assert!(jobs.is_sorted_by_key(|job| job.metadata.created_at));
    }
}
