//! A workspace that is in use: its folder, its order of calls, its children, its files.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bridge_model::{BootTime, Job, ServerName, Tenant, WorkspaceKey};
use bridge_process::Child;
use bridge_state::Lease;
use parking_lot::Mutex;
use tokio::{
    sync::{
        OwnedMutexGuard, OwnedRwLockReadGuard, OwnedRwLockWriteGuard, OwnedSemaphorePermit, RwLock,
        Semaphore,
    },
    time::Instant,
};

use super::Sessions;
use crate::{
    admission::Permit,
    artifacts::Snapshot,
    config::{ServerSpec, SpecVersion, Transport},
    telemetry::Live,
};

/// One chat's folder while anybody works in it.
pub struct Workspace {
    /// Which one it is.
    pub key: WorkspaceKey,
    /// Its folder.
    pub job: Job,
    /// Our right to it.
    pub lease: Lease,
    /// What lay in it after the last call; held while looking again.
    pub files: Arc<tokio::sync::Mutex<Snapshot>>,
    order: Arc<RwLock<()>>,
    /// Held by an end that began under a call's turn and may outlast it.
    ending: Arc<tokio::sync::Mutex<()>>,
    slots: Mutex<HashMap<ServerName, Arc<Slot>>>,
    worked_before: Mutex<HashSet<String>>,
    /// Servers whose child was replaced, until an answer says so.
    losses: Mutex<HashSet<ServerName>>,
    /// The message for which the chat's attached files were last looked at.
    attached: Mutex<Option<Box<str>>>,
    /// When the lease was last seen to be ours.
    held_at: Mutex<BootTime>,
    /// Another replica has taken the folder over: nothing more is written there.
    lost: AtomicBool,
}

/// The children of one server in one workspace.
pub struct Slot {
    /// Held while a child is chosen or started.
    pub gate: Arc<tokio::sync::Mutex<()>>,
    /// Calls of this server side by side, where its config allows more than one.
    permits: Arc<Semaphore>,
    /// The children.
    sessions: Mutex<Vec<Arc<Session>>>,
}

/// A child bound to a workspace.
pub struct Session {
    /// The process.
    pub child: Child,
    /// The server as it was when the child was started.
    pub spec: Arc<ServerSpec>,
    /// The version of that, for comparison after a reload.
    pub version: SpecVersion,
    /// Counts against the limit on stateful processes, until the child has ended.
    permit: Mutex<Option<Permit>>,
    /// Against whose share it counts.
    pub tenant: Tenant,
    _live: Live,
    class: Mutex<Class>,
    in_flight: AtomicUsize,
    last_used: Mutex<Instant>,
}

/// A call's turn in its workspace. Dropping it lets the next call begin.
pub enum Turn {
    /// Alone.
    Exclusive {
        /// Keeps all others out.
        _order: OwnedRwLockWriteGuard<()>,
    },
    /// Beside other calls of servers that allow it.
    Concurrent {
        /// Keeps exclusive calls out.
        _order: OwnedRwLockReadGuard<()>,
        /// One of the server's `concurrency`.
        _permit: OwnedSemaphorePermit,
    },
}

/// An end under way. Dropping it lets the next turn begin.
pub struct Ending(#[expect(dead_code, reason = "held, not used")] OwnedMutexGuard<()>);

impl Workspace {
    /// A workspace whose lease we hold, as was known at `held_at`. `worked_before` names the servers that ever ran here.
    pub fn new(
        key: WorkspaceKey,
        job: Job,
        (lease, held_at): (Lease, BootTime),
        files: Snapshot,
        worked_before: impl IntoIterator<Item = String>,
    ) -> Self {
        Self {
            key,
            job,
            lease,
            files: Arc::new(tokio::sync::Mutex::new(files)),
            order: Arc::default(),
            ending: Arc::default(),
            slots: Mutex::default(),
            worked_before: Mutex::new(worked_before.into_iter().collect()),
            losses: Mutex::default(),
            attached: Mutex::default(),
            held_at: Mutex::new(held_at),
            lost: AtomicBool::new(false),
        }
    }

    /// When its lease was last seen to be ours.
    pub fn held_at(&self) -> BootTime {
        *self.held_at.lock()
    }

    /// It was seen to be ours at that time.
    pub fn seen_held(&self, at: BootTime) {
        let mut held_at = self.held_at.lock();
        *held_at = (*held_at).max(at);
    }

    /// Whether another replica has taken the folder over.
    pub fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Relaxed)
    }

    /// Notes that; `false` if it was known.
    pub(super) fn lose(&self) -> bool {
        !self.lost.swap(true, Ordering::Relaxed)
    }

    /// Waits for the turn of a call to `spec`: alone, unless its `concurrency` says otherwise.
    pub async fn turn(&self, spec: &ServerSpec) -> Turn {
        let turn = match spec.concurrency.map(std::num::NonZeroUsize::get) {
            None | Some(1) => Turn::Exclusive {
                _order: self.order.clone().write_owned().await,
            },
            Some(_) => {
                let permits = self.slot(spec).permits.clone();
                let permit = permits.acquire_owned().await.expect("never closed");
                Turn::Concurrent {
                    _order: self.order.clone().read_owned().await,
                    _permit: permit,
                }
            }
        };
        drop(self.ending.lock().await);
        turn
    }

    /// The turn, if nobody works here now.
    pub fn turn_if_idle(&self) -> Option<Turn> {
        let order = self.order.clone().try_write_owned().ok()?;
        drop(self.ending.try_lock().ok()?);
        Some(Turn::Exclusive { _order: order })
    }

    /// For a caller who has a turn and ends a session: the next turn waits until this is dropped,
    /// also where the caller gives up his own before.
    pub async fn ending(&self) -> Ending {
        Ending(self.ending.clone().lock_owned().await)
    }

    /// The same, unless somebody ends one already.
    pub fn ending_if_none(&self) -> Option<Ending> {
        self.ending.clone().try_lock_owned().ok().map(Ending)
    }

    /// The children of a server.
    pub fn slot(&self, spec: &ServerSpec) -> Arc<Slot> {
        let concurrency = spec.concurrency.map_or(1, std::num::NonZeroUsize::get);
        let mut slots = self.slots.lock();
        let slot = slots.entry(spec.name.clone()).or_insert_with(|| {
            Arc::new(Slot {
                gate: Arc::default(),
                permits: Arc::new(Semaphore::new(concurrency)),
                sessions: Mutex::default(),
            })
        });
        slot.clone()
    }

    /// All children that are bound here.
    pub fn sessions(&self) -> Vec<Arc<Session>> {
        let slots = self.slots.lock();
        slots.values().flat_map(|slot| slot.sessions()).collect()
    }

    /// Unbinds a child; `false` if somebody did already.
    pub fn unbind(&self, session: &Arc<Session>) -> bool {
        let slots = self.slots.lock();
        slots
            .get(&session.spec.name)
            .is_some_and(|slot| slot.unbind(session))
    }

    /// Unbinds a child that no call uses: none gets it any more.
    pub fn unbind_idle(&self, session: &Arc<Session>) -> bool {
        let slots = self.slots.lock();
        slots
            .get(&session.spec.name)
            .is_some_and(|slot| slot.unbind_idle(session))
    }

    /// Notes that a new child of the server works here, and what is lost if one did before and
    /// none is `left`.
    pub fn note_worked(&self, server: &ServerName, left: bool) {
        let mut before = self.worked_before.lock();
        if !before.insert(server.as_str().to_owned()) && !left {
            self.losses().insert(server.clone());
        }
    }

    /// What the server held in memory is gone, and no answer said so yet.
    pub fn has_loss(&self, server: &ServerName) -> bool {
        self.losses().contains(server)
    }

    /// An answer says that what the server held in memory is gone: it need not be said again.
    pub fn loss_told(&self, server: &ServerName) {
        self.losses().remove(server);
    }

    /// Whether this is the first call for a message, before which the chat's attached files are
    /// looked at; without one, every call is.
    pub fn begin_attachments(&self, message: Option<&str>) -> bool {
        let mut attached = self.attached.lock();
        let first = message.is_none() || attached.as_deref() != message;
        *attached = message.map(Into::into);
        first
    }

    fn losses(&self) -> parking_lot::MutexGuard<'_, HashSet<ServerName>> {
        self.losses.lock()
    }
}

impl Slot {
    /// The children, as they are now.
    pub fn sessions(&self) -> Vec<Arc<Session>> {
        self.sessions.lock().clone()
    }

    /// Lends the child that serves a call: an idle one, else the least busy. `Err` where a new
    /// one is to be started, and whether others stay beside it.
    pub fn lend(&self, spec: &ServerSpec, class: Class) -> Result<Lent, bool> {
        let bound = self.sessions.lock();
        // Under the lock, so that a child that was found idle is lent or ended, not both.
        let (sessions, chosen) = fitting(&bound, spec);
        match chosen {
            Some(index) => Ok(sessions[index].lend(class)),
            None => Err(!sessions.is_empty()),
        }
    }

    /// Whether a child is there that would serve a call now.
    pub fn would_lend(&self, spec: &ServerSpec) -> bool {
        let bound = self.sessions.lock();
        fitting(&bound, spec).1.is_some()
    }

    /// Binds a new child, in use.
    pub fn bind(&self, session: &Arc<Session>, class: Class) -> Lent {
        let mut sessions = self.sessions.lock();
        sessions.push(session.clone());
        session.lend(class)
    }

    fn unbind_idle(&self, session: &Arc<Session>) -> bool {
        let mut sessions = self.sessions.lock();
        let before = sessions.len();
        sessions.retain(|other| !Arc::ptr_eq(other, session) || other.in_flight() > 0);
        sessions.len() < before
    }

    fn unbind(&self, session: &Arc<Session>) -> bool {
        let mut sessions = self.sessions.lock();
        let before = sessions.len();
        sessions.retain(|other| !Arc::ptr_eq(other, session));
        sessions.len() < before
    }
}

/// The children that may serve a call, and which of them does.
fn fitting(bound: &[Arc<Session>], spec: &ServerSpec) -> (Vec<Arc<Session>>, Option<usize>) {
    let version = spec.version();
    // Those of an older config end with their calls.
    let fits = |session: &&Arc<Session>| session.version == version && session.child.is_alive();
    let sessions: Vec<_> = bound.iter().filter(fits).cloned().collect();
    let busy: Vec<_> = sessions.iter().map(|session| session.in_flight()).collect();
    let chosen = choose(&busy, spec.max_processes_per_chat);
    (sessions, chosen)
}

/// Which of the children, by the calls that each has, serves one more; `None` starts another.
fn choose(busy: &[usize], most: usize) -> Option<usize> {
    let least = (0..busy.len()).min_by_key(|index| busy[*index])?;
    (busy[least] == 0 || busy.len() >= most).then_some(least)
}

impl Session {
    /// A session around a ready child.
    pub fn new(
        child: Child,
        spec: Arc<ServerSpec>,
        permit: Permit,
        live: Live,
        class: Class,
    ) -> Self {
        Self {
            child,
            version: spec.version(),
            spec,
            tenant: permit.tenant().clone(),
            permit: Mutex::new(Some(permit)),
            _live: live,
            class: Mutex::new(class),
            in_flight: AtomicUsize::new(0),
            last_used: Mutex::new(Instant::now()),
        }
    }

    /// Its permit among the live children, once.
    pub fn give_up_permit(&self) -> Option<Permit> {
        let mut permit = self.permit.lock();
        permit.take()
    }

    /// Begins a use; the idle clock stops until it is dropped.
    fn lend(self: &Arc<Self>, class: Class) -> Lent {
        let mut kept = self.class.lock();
        *kept = (*kept).max(class);
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        Lent(self.clone())
    }

    /// Calls that use it now.
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Whether it is with a server elsewhere.
    pub fn is_remote(&self) -> bool {
        matches!(self.spec.transport, Transport::Remote(_))
    }

    /// What kind of caller it serves.
    pub fn class(&self) -> Class {
        *self.class.lock()
    }

    /// When its last call ended.
    pub fn last_used(&self) -> Instant {
        *self.last_used.lock()
    }

    /// When it may be ended for being idle.
    pub fn idle_end(&self, one_call: Duration) -> Instant {
        let keep = match self.class() {
            Class::OneCall => one_call.min(self.spec.idle_timeout),
            Class::Lasting => self.spec.idle_timeout,
        };
        self.last_used() + keep
    }
}

/// A session in use.
pub struct Lent(Arc<Session>);

impl std::ops::Deref for Lent {
    type Target = Arc<Session>;
    fn deref(&self) -> &Arc<Session> {
        &self.0
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        *self.0.last_used.lock() = Instant::now();
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A workspace that was opened for a call, until the call takes it. Dropped untaken, the housekeeper is told.
pub struct OpenWorkspace {
    workspace: Option<Arc<Workspace>>,
    sessions: Arc<Sessions>,
}

impl OpenWorkspace {
    pub(super) fn new(workspace: Arc<Workspace>, sessions: Arc<Sessions>) -> Self {
        Self {
            workspace: Some(workspace),
            sessions,
        }
    }

    /// The workspace, for the call.
    pub fn take(mut self) -> Option<Arc<Workspace>> {
        self.workspace.take()
    }
}

impl Drop for OpenWorkspace {
    fn drop(&mut self) {
        if let Some(workspace) = self.workspace.take() {
            let key = workspace.key;
            drop(workspace);
            self.sessions.call_ended(key);
        }
    }
}

/// What kind of session: in the order in which they are given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// A caller without a chat, who may or may not come back.
    OneCall,
    /// A chat, or a session that the caller named.
    Lasting,
}

#[cfg(test)]
mod tests {
    use super::choose;

    #[test]
    fn an_idle_child_first_then_a_new_one_then_the_least_busy() {
        assert_eq!(choose(&[], 2), None);
        assert_eq!(choose(&[1, 0], 2), Some(1));
        assert_eq!(choose(&[1], 2), None);
        assert_eq!(choose(&[3, 1], 2), Some(1));
    }
}
