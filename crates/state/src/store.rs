//! The interface of state. Each method is one atomic step, takes and returns owned values, and carries
//! the lease, and with it the fencing number, where it writes for a chat.

use std::{collections::BTreeMap, io, ops::RangeInclusive, path::Path, sync::Arc, time::Duration};

use bridge_model::{JobId, LinkToken, Principal, ServerName, WorkspaceKey};
use jiff::Timestamp;

use crate::{
    error::StoreError,
    folder::{
        Artifact, Blob, BlobId, ChatSummary, Done, FreeSpace, GcReport, Held, Holder, InstanceId,
        JobsFolder, Lease, LeaseError, Link, LiveSession, Membership, NewChat, OpenBlob, Others,
        Peer, SessionSummary, StagedFile, Swept,
    },
};

/// The outcome of [`ChatStore::acquire`].
#[derive(Debug, Clone)]
pub enum Acquired {
    /// This instance may work there until it releases the lease or loses it.
    Mine(Held),
    /// Another instance holds it.
    Elsewhere(Holder),
}

/// Which instance works in which chat, the owners, and the links.
///
/// Dropping it ends the instance: its leases are then stale.
#[derive(Debug)]
pub struct ChatStore {
    folder: Arc<JobsFolder>,
    blobs: BlobStore,
}

impl ChatStore {
    /// Opens the jobs folder (made 0700 where absent), joins it as a new instance and clears what dead
    /// instances left half-made.
    pub fn open(jobs_dir: &Path, membership: &Membership) -> Result<Self, StoreError> {
        JobsFolder::open(jobs_dir, membership, Timestamp::now()).map(Self::new)
    }

    pub(crate) fn new(folder: JobsFolder) -> Self {
        let folder = Arc::new(folder);
        let blobs = BlobStore(folder.clone());
        Self { folder, blobs }
    }

    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn folder(&self) -> &JobsFolder {
        &self.folder
    }

    /// The bytes that links lead to.
    pub fn blobs(&self) -> &BlobStore {
        &self.blobs
    }
}

/// Instances: the running bridges, and commands, that share the state.
impl ChatStore {
    /// The id of this one, under which it holds its leases.
    pub fn instance(&self) -> InstanceId {
        self.folder.instance().id()
    }

    /// How long it may be silent before others take its leases over.
    pub fn ttl(&self) -> Duration {
        self.folder.instance().ttl()
    }

    /// How often [`Self::renew`] is due.
    pub fn renew_every(&self) -> Duration {
        self.folder.instance().renew_every()
    }

    /// Tells the others that this one lives.
    pub fn renew(&self) -> Result<(), StoreError> {
        self.folder.renew(Timestamp::now())
    }

    /// Tells the others that this one is about to end: they bring nothing new, and wait for its leases.
    pub fn drain(&self) -> Result<(), StoreError> {
        self.folder.drain(Timestamp::now())
    }

    /// Tells the others where this one is reached from now on.
    pub fn move_to(&self, address: String) -> Result<(), StoreError> {
        self.folder.move_to(address, Timestamp::now())
    }

    /// Leaves as this instance's last act, although others may still have the store: its files and
    /// staging go, and its leases are stale once the process ends.
    pub fn leave(&self) {
        self.folder.leave();
    }

    /// The others that live, seen at this moment, so that silence is noticed in time. Call it several
    /// times within each [`Self::renew_every`].
    pub fn others(&self) -> Result<Others, StoreError> {
        self.folder.watch()
    }

    /// Whether an instance may still come back to work: not where it is known to have ended, or was
    /// silent for too long.
    pub fn is_alive(&self, id: InstanceId) -> bool {
        self.folder.is_alive(id)
    }

    /// The instance, if others reach it.
    pub fn peer(&self, id: InstanceId) -> Option<Peer> {
        self.folder.peer(id)
    }

    /// The secret that all bridges share: made by the first of them, at random.
    pub fn peer_key(&self) -> Result<Vec<u8>, StoreError> {
        self.folder.peer_key()
    }
}

/// Chats: their owners, their leases, and what is written for them.
impl ChatStore {
    /// The chat of this key, made where there is none, with its lease: free, stale (its holder is dead
    /// or silent), or ours already (then with the same fence).
    ///
    /// What is noted of processes in it was written before the lease changed hands: it is cleared. Leases
    /// are not counted: release it once the last process in the chat has ended.
    pub fn acquire(&self, key: &WorkspaceKey, new: &NewChat) -> Result<Acquired, StoreError> {
        match self.folder.acquire_chat(key, new, self.now()) {
            Ok(held) => Ok(Acquired::Mine(held)),
            Err(error) => elsewhere(error).map(Acquired::Elsewhere),
        }
    }

    /// Makes the chat of this key where there is none, without working in it.
    pub fn ensure(&self, key: &WorkspaceKey, new: &NewChat) -> Result<(), StoreError> {
        self.folder.bind(key, new, self.now()).map(drop)
    }

    /// Whether there is a chat of this key.
    pub fn exists(&self, key: &WorkspaceKey) -> Result<bool, StoreError> {
        Ok(self.folder.lookup(key)?.is_some())
    }

    /// Whom [`Self::acquire`] would name. Takes nothing.
    pub fn holder(&self, key: &WorkspaceKey) -> Result<Option<Holder>, StoreError> {
        let Some(job) = self.folder.lookup(key)? else {
            return Ok(None);
        };
        match self.folder.check_elsewhere(&job) {
            Ok(()) => Ok(None),
            Err(error) => elsewhere(error).map(Some),
        }
    }

    /// Makes a chat without a key, for one call or one process: no lookup finds it.
    pub fn create(&self, new: &NewChat) -> Result<Held, StoreError> {
        self.folder.create_leased_job(new, self.now())
    }

    /// Makes one that has no owner yet, for a process that is started ahead of its first call. No key
    /// leads to it, no list shows it, and it ends with its instance.
    pub fn create_unclaimed(&self) -> Result<Held, StoreError> {
        self.folder.create_unclaimed(self.now())
    }

    /// Gives an unclaimed one its owner, once, and where it has a `key` makes it the chat of that key.
    /// `false` where that key has a chat already; [`StoreError::JobGone`] where it is unclaimed no more.
    /// Unless the outcome is `true`, the caller discards it.
    pub fn claim(
        &self,
        lease: &Lease,
        key: Option<&WorkspaceKey>,
        new: &NewChat,
    ) -> Result<bool, StoreError> {
        match key {
            Some(key) => self.folder.adopt(key, lease, new, self.now()),
            None => self
                .folder
                .claim(lease, None, new, self.now())
                .map(|()| true),
        }
    }

    /// Whether the chat was not taken over. A lease that was taken over is lost for good.
    pub fn holds(&self, lease: &Lease) -> Result<bool, StoreError> {
        self.folder.holds(lease)
    }

    /// Gives the lease back. Fine if it was taken over, or the chat is gone.
    pub fn release(&self, lease: &Lease) -> Result<(), StoreError> {
        self.folder.release(lease)
    }

    /// Notes that no process works in the chat any more, and gives the lease back: also where the note
    /// fails.
    pub fn close(&self, lease: &Lease) -> Result<(), StoreError> {
        self.folder.close(lease)
    }

    /// Removes a chat to which no key leads, at once. Its links stay. Where it cannot be removed its
    /// lease is given back, so that the clean-up may remove it.
    pub fn discard(&self, lease: &Lease) -> Result<(), StoreError> {
        self.folder.discard(lease)
    }

    /// Notes a process that works in the chat.
    pub fn session_started(&self, lease: &Lease, session: LiveSession) -> Result<(), StoreError> {
        self.folder.session_started(lease, session)
    }

    /// Notes that the process with this [`LiveSession::number`] has ended.
    pub fn session_ended(&self, lease: &Lease, number: u64) -> Result<(), StoreError> {
        self.folder.session_ended(lease, number)
    }

    /// Writes down what a call did. [`StoreError::Fenced`] where another instance has taken the chat
    /// over, and then nothing is written.
    ///
    /// The folder cannot do that in one step: it writes links, journal and metadata one after the other,
    /// each under the lease, so a takeover in between leaves the parts before it.
    pub fn commit(&self, lease: &Lease, done: Done) -> Result<(), StoreError> {
        self.folder.commit(lease, done)
    }

    /// Puts a staged file into the chat's `work/` under `name`, which is one part of a path; `false`
    /// where something has that name. Nothing there is replaced, and no link is followed.
    pub fn put_file(
        &self,
        lease: &Lease,
        file: &StagedFile,
        name: &str,
    ) -> Result<bool, StoreError> {
        self.folder.put_file(lease, file, name)
    }

    /// The attached files that were brought into the chat: their ids in Open WebUI, and their names.
    pub fn attachments(&self, job: JobId) -> Result<BTreeMap<String, String>, StoreError> {
        self.folder.attachments(job)
    }
}

/// Links.
impl ChatStore {
    /// Looks a token up. A link expires by the clock alone, not when the clean-up comes by.
    pub fn link(&self, token: &LinkToken) -> Result<Link, StoreError> {
        self.folder.link(token, self.now())
    }

    /// Ends a link: its bytes go at once and it answers 410. `false` if none is live.
    pub fn revoke(&self, token: &LinkToken) -> Result<bool, StoreError> {
        self.folder.revoke(token, self.now())
    }

    /// Removes a link that was not handed out: it answers 404. Absent is fine.
    pub fn remove_link(&self, token: &LinkToken) -> Result<(), StoreError> {
        self.folder.remove_link(token)
    }

    /// The links made from a chat's files, tombstones included, oldest first. They outlive the chat.
    pub fn links_of(&self, job: JobId) -> Result<Vec<Artifact>, StoreError> {
        self.folder.links_of(job)
    }
}

/// Clean-up.
impl ChatStore {
    /// Removes what is over: links at their own end, chats `retention` after their last call, what dead
    /// instances left. Nothing is removed for its age while clocks disagree, and no chat with a
    /// living lease. Never fails as a whole.
    pub fn sweep(&self, retention: Duration) -> Swept {
        self.folder.sweep(retention)
    }

    /// The same for a command: it waits until it has seen the other instances' clocks.
    pub fn sweep_once_clocks_are_known(&self, retention: Duration) -> Swept {
        self.folder.sweep_once_clocks_are_known(retention)
    }

    /// Removes the chats and ends the links of a user now, whatever their age. A chat with a
    /// living lease stays. Never fails as a whole.
    pub fn forget_user(&self, user: &Principal) -> GcReport {
        self.folder.forget_user(user, Timestamp::now())
    }
}

/// Lists, for the command line.
impl ChatStore {
    /// All chats, oldest first. Unreadable ones are logged and left out.
    pub fn chats(&self) -> Result<Vec<ChatSummary>, StoreError> {
        self.folder.chats()
    }

    /// One of them. One without an owner is none.
    pub fn chat(&self, id: JobId) -> Result<Option<ChatSummary>, StoreError> {
        self.folder.chat(id)
    }

    /// The processes that live under leases of living instances.
    pub fn sessions(&self) -> Result<Vec<SessionSummary>, StoreError> {
        self.folder.sessions()
    }
}

/// What servers offered when they were last asked.
impl ChatStore {
    /// What was kept for this server; `None` where there is nothing.
    pub fn catalog_entry(&self, server: &ServerName) -> io::Result<Option<Vec<u8>>> {
        self.folder.catalog_entry(server)
    }

    /// Keeps it, in place of what was kept before.
    pub fn keep_catalog_entry(
        &self,
        server: &ServerName,
        content: &[u8],
    ) -> Result<(), StoreError> {
        self.folder.keep_catalog_entry(server, content)
    }
}

/// The state of the storage itself.
impl ChatStore {
    /// The time as it is believed to be: what is written down and what is judged by it. A clock that
    /// is set while the bridge runs is not followed at once.
    pub fn now(&self) -> Timestamp {
        self.folder.now()
    }

    /// What an administrator should look at although the bridge serves.
    pub fn warnings(&self) -> Vec<String> {
        self.folder.warnings()
    }

    /// Does on a small scale what each new chat does. The error says what is wrong. Blocks for as long
    /// as the disk does.
    pub fn probe(&self) -> Result<FreeSpace, StoreError> {
        self.folder.probe()
    }

    /// Bytes that are free for us where chats are kept.
    pub fn free_bytes(&self) -> Result<u64, StoreError> {
        self.folder.free_bytes()
    }

    /// A folder of this instance alone, which is removed with it.
    pub fn staging(&self) -> &Path {
        self.folder.staging()
    }
}

fn elsewhere(error: LeaseError) -> Result<Holder, StoreError> {
    match error {
        LeaseError::Elsewhere(holder) => Ok(holder),
        LeaseError::Store(error) => Err(error),
    }
}

/// Immutable bytes: put once, read in ranges. The clean-up and [`ChatStore::revoke`] delete them.
#[derive(Debug)]
pub struct BlobStore(Arc<JobsFolder>);

impl BlobStore {
    /// Begins a file, for bytes to come.
    pub fn stage(&self) -> Result<StagedFile, StoreError> {
        self.0.stage_file()
    }

    /// Keeps the bytes of a file whose hash this is (SHA-256, lower-case hex). They are on the disk
    /// when this returns, and stay for as long as the blob, or a link to it that is
    /// [committed](ChatStore::commit), does.
    pub fn put(&self, file: StagedFile, sha256: &str) -> Result<Blob, StoreError> {
        self.0.put_blob(file, sha256)
    }

    /// Opens the bytes, or a range of them; `None` where they are gone. Bytes that are not those that
    /// were put are an error.
    pub fn get(
        &self,
        id: &BlobId,
        range: Option<RangeInclusive<u64>>,
    ) -> Result<Option<OpenBlob>, StoreError> {
        self.0.open_blob(id, range)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        CallEnd, CallOutcome, JobStatus,
        testing::{Folder, alice, artifact, key, new_chat},
    };

    fn mine(store: &ChatStore, chat: &str) -> Held {
        match store.acquire(&key(chat), &new_chat()).unwrap() {
            Acquired::Mine(held) => held,
            Acquired::Elsewhere(holder) => panic!("{holder}"),
        }
    }

    fn session(number: u64) -> LiveSession {
        LiveSession {
            server: "excel".into(),
            number,
            pid: Some(7),
            started_at: Timestamp::UNIX_EPOCH,
        }
    }

    fn ended(outcome: Option<CallOutcome>) -> Done {
        let bytes = Some(5);
        Done {
            ended: Some(CallEnd { bytes, outcome }),
            ..Done::default()
        }
    }

    #[test]
    fn a_chat_is_one_instances_until_it_is_closed() {
        let folder = Folder::new();
        let (one, two) = (folder.open(), folder.open());
        assert!(!one.exists(&key("c")).unwrap());
        let held = mine(&one, "c");
        let elsewhere = two.acquire(&key("c"), &new_chat()).unwrap();
        let Acquired::Elsewhere(holder) = elsewhere else {
            panic!("{elsewhere:?}");
        };
        assert_eq!(holder.instance, one.instance());
        assert_eq!(two.holder(&key("c")).unwrap(), Some(holder));
        assert_eq!(one.holder(&key("c")).unwrap(), None);
        one.close(&held.lease).unwrap();
        assert_eq!(two.holder(&key("c")).unwrap(), None);
        let taken = mine(&two, "c");
        assert_eq!(taken.job.id(), held.job.id());
        assert!(taken.lease.fence > held.lease.fence);
        assert!(!one.holds(&held.lease).unwrap());
    }

    #[test]
    fn what_a_call_did_shows_in_its_chat() {
        let folder = Folder::new();
        let store = folder.open();
        let Held { job, lease, .. } = mine(&store, "c");
        let metadata = || store.chat(job.id()).unwrap().unwrap().metadata;
        store.session_started(&lease, session(1)).unwrap();
        let failed = CallOutcome::Failed("why".into());
        for (outcome, status, error) in [
            (Some(failed), JobStatus::Failed, Some("why")),
            (None, JobStatus::Failed, Some("why")),
            (Some(CallOutcome::Answered), JobStatus::Idle, None),
        ] {
            store.commit(&lease, ended(outcome)).unwrap();
            let metadata = metadata();
            assert!(metadata.last_call_at.is_some());
            assert_eq!(
                (metadata.status, metadata.error.as_deref()),
                (status, error)
            );
            assert_eq!(metadata.bytes, Some(5));
        }
        let attached = vec![("id".to_owned(), "name".to_owned())];
        let done = Done {
            journal: b"{}\n".to_vec(),
            attachments: attached.clone(),
            ..Done::default()
        };
        store.commit(&lease, done).unwrap();
        let known: Vec<_> = store.attachments(job.id()).unwrap().into_iter().collect();
        assert_eq!(known, attached);
        let journal = std::fs::read(job.folder().join("journal.jsonl")).unwrap();
        assert_eq!(journal, b"{}\n");
        store.session_ended(&lease, 1).unwrap();
        let answered = ended(Some(CallOutcome::Answered));
        store.commit(&lease, answered).unwrap();
        assert_eq!(metadata().status, JobStatus::Ended);
        assert_eq!(metadata().server_names, ["excel"]);
    }

    #[test]
    fn after_a_takeover_nothing_is_written() {
        let folder = Folder::new();
        let (slow, other) = (folder.open(), folder.open());
        let Held { job, lease, .. } = mine(&slow, "c");
        slow.release(&lease).unwrap();
        let taken = mine(&other, "c");
        let refused = || {
            let file = artifact(&alice(), folder.now, 60);
            let staged = slow.blobs().stage().unwrap();
            let blob = slow.blobs().put(staged, &file.sha256).unwrap();
            let done = Done {
                links: vec![(file, blob)],
                journal: b"{}\n".to_vec(),
                ..ended(Some(CallOutcome::Failed("late".into())))
            };
            matches!(slow.commit(&lease, done), Err(StoreError::Fenced))
        };
        assert!(refused(), "held by another");
        other.release(&taken.lease).unwrap();
        assert!(refused(), "released by another");
        assert!(slow.session_started(&lease, session(1)).is_err());
        assert!(!job.folder().join("journal.jsonl").exists());
        let metadata = other.chat(job.id()).unwrap().unwrap().metadata;
        assert_eq!((metadata.last_call_at, metadata.error), (None, None));
        assert_eq!(std::fs::read_dir(slow.staging()).unwrap().count(), 0);
    }

    #[test]
    fn what_a_call_did_may_be_written_after_its_own_instance_opened_the_chat_again() {
        let folder = Folder::new();
        let store = folder.open();
        let first = mine(&store, "c");
        store.close(&first.lease).unwrap();
        let again = mine(&store, "c");
        assert!(again.lease.fence > first.lease.fence);
        let late = ended(Some(CallOutcome::Answered));
        store.commit(&first.lease, late).unwrap();
    }

    #[test]
    fn the_processes_of_a_killed_instance_are_forgotten_by_the_next_holder() {
        let folder = Folder::new();
        let held = folder.crash(|store| {
            let held = mine(store, "c");
            store.session_started(&held.lease, session(1)).unwrap();
            held
        });
        let store = folder.open();
        let taken = mine(&store, "c");
        assert_eq!(taken.job.id(), held.job.id());
        assert_eq!(taken.servers, ["excel"]);
        let chat = store.chat(taken.job.id()).unwrap().unwrap();
        assert_eq!(chat.metadata.live_sessions, []);
    }

    #[test]
    fn a_discarded_chat_is_gone_with_its_lease() {
        let folder = Folder::new();
        let store = folder.open();
        for held in [
            store.create(&new_chat()).unwrap(),
            store.create_unclaimed().unwrap(),
        ] {
            store.discard(&held.lease).unwrap();
            store.discard(&held.lease).unwrap();
            assert!(!held.job.folder().exists());
            assert!(!store.holds(&held.lease).unwrap());
        }
    }

    #[test]
    fn the_chat_of_a_key_stays_what_it_is() {
        let folder = Folder::new();
        let store = folder.open();
        store.ensure(&key("c"), &new_chat()).unwrap();
        let ready = store.create_unclaimed().unwrap();
        let claim = |chat: &str| store.claim(&ready.lease, Some(&key(chat)), &new_chat());
        assert!(!claim("c").unwrap());
        assert!(claim("d").unwrap());
        assert!(matches!(claim("e"), Err(StoreError::JobGone)));
        assert_eq!(mine(&store, "d").job.id(), ready.job.id());
    }
}
