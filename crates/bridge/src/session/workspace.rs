//! A workspace in use: its folder, its queue of calls, its children, its files.

use std::{
    collections::{HashMap, HashSet},
    num::NonZeroUsize,
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
    artifacts::TrackedFiles,
    config::{ServerSpec, SpecVersion, Transport},
    telemetry::Live,
};

/// A chat's folder while it is used.
pub struct Workspace {
    /// Its key.
    pub key: WorkspaceKey,
    /// Its folder.
    pub job: Job,
    /// The lease of the folder.
    pub lease: Lease,
    /// Its files after the last call; held while they are read again.
    pub files: Arc<tokio::sync::Mutex<TrackedFiles>>,
    order: Arc<RwLock<()>>,
    /// Held by the end of a session that began in a call's turn and may take longer.
    ending: Arc<tokio::sync::Mutex<()>>,
    slots: Mutex<HashMap<ServerName, Arc<Slot>>>,
    worked_before: Mutex<HashSet<String>>,
    /// Servers whose child was replaced, until an answer reports the loss.
    losses: Mutex<HashSet<ServerName>>,
    /// The message for which the chat's attached files were last checked.
    attached: Mutex<Option<Box<str>>>,
    /// When the lease was last confirmed.
    held_at: Mutex<BootTime>,
    /// Whether another replica has taken the folder over: then nothing more is written to it.
    lost: AtomicBool,
}

/// The children of one server in one workspace.
pub struct Slot {
    /// Held while a child is chosen or started.
    pub gate: Arc<tokio::sync::Mutex<()>>,
    /// Concurrent calls of this server, if its configuration allows more than one.
    permits: Arc<Semaphore>,
    /// The children.
    sessions: Mutex<Vec<Arc<Session>>>,
}

/// A child bound to a workspace.
pub struct Session {
    /// The process.
    pub child: Child,
    /// The server's configuration when the child was started.
    pub spec: Arc<ServerSpec>,
    /// The version of `spec`, for comparison after a reload.
    pub version: SpecVersion,
    /// Its permit among the stateful processes, until the child has ended.
    permit: Mutex<Option<Permit>>,
    /// The tenant whose share it counts against.
    pub tenant: Tenant,
    _live: Live,
    class: Mutex<Class>,
    in_flight: AtomicUsize,
    last_used: Mutex<Instant>,
}

/// A call's turn in its workspace. Dropping it lets the next call run.
#[expect(dead_code, reason = "held, not used")]
pub enum Turn {
    /// Exclusive.
    Exclusive(OwnedRwLockWriteGuard<()>),
    /// Concurrent with other calls of servers that allow it, within the server's `concurrency`, but
    /// not with exclusive calls.
    Concurrent(OwnedRwLockReadGuard<()>, OwnedSemaphorePermit),
}

/// Guard for the end of a session. Dropping it lets the next turn begin.
pub type Ending = OwnedMutexGuard<()>;

impl Workspace {
    /// A workspace whose lease the bridge holds, confirmed at `held_at`. `worked_before` names the
    /// servers that have run here.
    pub fn new(
        key: WorkspaceKey,
        job: Job,
        (lease, held_at): (Lease, BootTime),
        files: TrackedFiles,
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

    /// When its lease was last confirmed.
    pub fn held_at(&self) -> BootTime {
        *self.held_at.lock()
    }

    /// Records that the lease was confirmed at that time.
    pub fn seen_held(&self, at: BootTime) {
        let mut held_at = self.held_at.lock();
        *held_at = (*held_at).max(at);
    }

    /// Whether another replica has taken the folder over.
    pub fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Relaxed)
    }

    /// Records that the lease is lost; `false` if this was known.
    pub(super) fn lose(&self) -> bool {
        !self.lost.swap(true, Ordering::Relaxed)
    }

    /// Waits for the turn of a call to `spec`: exclusive, unless its `concurrency` allows more calls.
    pub async fn turn(&self, spec: &ServerSpec) -> Turn {
        if spec.concurrency.map_or(1, NonZeroUsize::get) == 1 {
            return self.turn_alone().await;
        }
        let permits = self.slot(spec).permits.clone();
        let permit = permits.acquire_owned().await.expect("never closed");
        let turn = Turn::Concurrent(self.order.clone().read_owned().await, permit);
        drop(self.ending.lock().await);
        turn
    }

    /// Waits for an exclusive turn.
    pub async fn turn_alone(&self) -> Turn {
        let turn = Turn::Exclusive(self.order.clone().write_owned().await);
        drop(self.ending.lock().await);
        turn
    }

    /// The turn, if no call works here now.
    pub fn turn_if_idle(&self) -> Option<Turn> {
        let order = self.order.clone().try_write_owned().ok()?;
        drop(self.ending.try_lock().ok()?);
        Some(Turn::Exclusive(order))
    }

    /// For the end of a session by a caller with a turn: the next turn waits until this guard is
    /// dropped, even if the caller releases its own turn earlier.
    pub async fn ending(&self) -> Ending {
        self.ending.clone().lock_owned().await
    }

    /// The same with the workspace, unless another session is ending.
    pub fn ending_if_none(self: &Arc<Self>) -> Option<(Arc<Self>, Ending)> {
        let ending = self.ending.clone().try_lock_owned().ok()?;
        Some((self.clone(), ending))
    }

    /// The children of a server.
    pub fn slot(&self, spec: &ServerSpec) -> Arc<Slot> {
        let concurrency = spec.concurrency.map_or(1, NonZeroUsize::get);
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

    /// Unbinds a child; `false` if it was unbound before.
    pub fn unbind(&self, session: &Arc<Session>) -> bool {
        self.unbind_if(session, |_| true)
    }

    /// Unbinds a child that no call uses, so that no other call gets it.
    pub fn unbind_idle(&self, session: &Arc<Session>) -> bool {
        self.unbind_if(session, |session| session.in_flight() == 0)
    }

    fn unbind_if(&self, session: &Arc<Session>, may: impl Fn(&Session) -> bool) -> bool {
        let slots = self.slots.lock();
        let Some(slot) = slots.get(&session.spec.name) else {
            return false;
        };
        let mut sessions = slot.sessions.lock();
        let before = sessions.len();
        sessions.retain(|other| !Arc::ptr_eq(other, session) || !may(other));
        sessions.len() < before
    }

    /// Records that a new child of the server works here, and a loss if an earlier child has ended and
    /// none is `left`.
    pub fn note_worked(&self, server: &ServerName, left: bool) {
        let mut before = self.worked_before.lock();
        if !before.insert(server.as_str().to_owned()) && !left {
            self.losses.lock().insert(server.clone());
        }
    }

    /// Whether the server's memory was lost, and no answer has reported it yet.
    pub fn has_loss(&self, server: &ServerName) -> bool {
        self.losses.lock().contains(server)
    }

    /// Records that an answer reports the loss.
    pub fn loss_told(&self, server: &ServerName) {
        self.losses.lock().remove(server);
    }

    /// Whether this is the first call for a message, before which the chat's attached files are
    /// checked; without a message, every call is.
    pub fn begin_attachments(&self, message: Option<&str>) -> bool {
        let mut attached = self.attached.lock();
        let first = message.is_none() || attached.as_deref() != message;
        *attached = message.map(Into::into);
        first
    }
}

impl Slot {
    /// The current children.
    pub fn sessions(&self) -> Vec<Arc<Session>> {
        self.sessions.lock().clone()
    }

    /// Lends the child that serves a call: an idle one, else the least busy. `Err` if a new one has
    /// to be started, with whether there are others.
    pub fn acquire(&self, spec: &ServerSpec, class: Class) -> Result<SessionGuard, bool> {
        let bound = self.sessions.lock();
        // Under the lock, so that an idle child is either lent or ended.
        let (sessions, chosen) = fitting(&bound, spec);
        let chosen = chosen.map(|index| sessions[index].begin_use(class));
        chosen.ok_or(!sessions.is_empty())
    }

    /// Whether a child could serve a call now.
    pub fn can_serve(&self, spec: &ServerSpec) -> bool {
        fitting(&self.sessions.lock(), spec).1.is_some()
    }

    /// Binds a new child, in use.
    pub fn bind(&self, session: &Arc<Session>, class: Class) -> SessionGuard {
        let mut sessions = self.sessions.lock();
        sessions.push(session.clone());
        session.begin_use(class)
    }
}

/// The children that may serve a call, and which of them does.
fn fitting(bound: &[Arc<Session>], spec: &ServerSpec) -> (Vec<Arc<Session>>, Option<usize>) {
    let version = spec.version();
    // Children of an older config end with their calls.
    let fits = |session: &&Arc<Session>| session.version == version && session.child.is_alive();
    let sessions: Vec<_> = bound.iter().filter(fits).cloned().collect();
    let busy: Vec<_> = sessions.iter().map(|session| session.in_flight()).collect();
    let chosen = choose(&busy, spec.max_processes_per_chat);
    (sessions, chosen)
}

/// The index of the child that serves one more call, given the number of calls of each; `None` starts
/// another.
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

    /// Takes its permit among the stateful children; `None` after the first time.
    pub fn give_up_permit(&self) -> Option<Permit> {
        self.permit.lock().take()
    }

    /// Begins a use; the idle time starts again when the result is dropped.
    fn begin_use(self: &Arc<Self>, class: Class) -> SessionGuard {
        let mut kept = self.class.lock();
        *kept = (*kept).max(class);
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        SessionGuard(self.clone())
    }

    /// The number of calls that use it now.
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Whether it is a session with a remote server.
    pub fn is_remote(&self) -> bool {
        matches!(self.spec.transport, Transport::Remote(_))
    }

    /// The class of its caller.
    pub fn class(&self) -> Class {
        *self.class.lock()
    }

    /// When its last call ended.
    pub fn last_used(&self) -> Instant {
        *self.last_used.lock()
    }

    /// When its idle time is over.
    pub fn idle_end(&self, one_call: Duration) -> Instant {
        let keep = match self.class() {
            Class::OneCall => one_call.min(self.spec.idle_timeout),
            Class::Lasting => self.spec.idle_timeout,
        };
        self.last_used() + keep
    }
}

/// A session in use.
pub struct SessionGuard(Arc<Session>);

impl std::ops::Deref for SessionGuard {
    type Target = Arc<Session>;
    fn deref(&self) -> &Arc<Session> {
        &self.0
    }
}

impl Drop for SessionGuard {
    fn drop(&mut self) {
        *self.0.last_used.lock() = Instant::now();
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A workspace that was opened for a call, until the call takes it. If it is dropped before, the
/// clean-up is notified.
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

/// The kinds of sessions, in the order in which they are ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// A session of a caller without a chat, which may not call again.
    OneCall,
    /// A session of a chat, or one named by the caller.
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
