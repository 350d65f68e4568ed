//! A workspace that is in use: its folder, its order of calls, its children, its files.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, OwnedSemaphorePermit, RwLock, Semaphore},
    time::Instant,
};

use super::Class;
use crate::{
    artifacts::Snapshot,
    child::Child,
    config::{ServerSpec, SpecVersion},
    model::ServerName,
    store::{Job, Lease},
    telemetry::Live,
};

/// One chat's folder while anybody works in it.
pub struct Workspace {
    /// Its folder.
    pub job: Job,
    /// Our right to it.
    pub lease: Lease,
    /// What lay in it after the last call; held while looking again.
    pub files: tokio::sync::Mutex<Snapshot>,
    order: Arc<RwLock<()>>,
    slots: Mutex<HashMap<ServerName, Arc<Slot>>>,
    worked_before: Mutex<HashSet<String>>,
}

/// The children of one server in one workspace.
pub struct Slot {
    /// Held while a child is chosen or started.
    pub gate: tokio::sync::Mutex<()>,
    /// Calls of this server side by side, where its config allows more than one.
    places: Arc<Semaphore>,
    /// The children.
    pub sessions: Mutex<Vec<Arc<Session>>>,
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
    place: Mutex<Option<OwnedSemaphorePermit>>,
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
    Beside {
        /// Keeps exclusive calls out.
        _order: OwnedRwLockReadGuard<()>,
        /// One of the server's `concurrency`.
        _place: OwnedSemaphorePermit,
    },
}

impl Workspace {
    /// A workspace whose lease we hold. `worked_before` names the servers that ever ran here.
    pub fn new(
        job: Job,
        lease: Lease,
        files: Snapshot,
        worked_before: impl IntoIterator<Item = String>,
    ) -> Self {
        Self {
            job,
            lease,
            files: tokio::sync::Mutex::new(files),
            order: Arc::default(),
            slots: Mutex::default(),
            worked_before: Mutex::new(worked_before.into_iter().collect()),
        }
    }

    /// Waits for the turn of a call to `spec`: alone, unless its `concurrency` says otherwise.
    pub async fn turn(&self, spec: &ServerSpec) -> Turn {
        match spec.concurrency.map(std::num::NonZeroUsize::get) {
            None | Some(1) => Turn::Exclusive {
                _order: self.order.clone().write_owned().await,
            },
            Some(_) => {
                let places = self.slot(spec).places.clone();
                let place = places.acquire_owned().await.expect("never closed");
                Turn::Beside {
                    _order: self.order.clone().read_owned().await,
                    _place: place,
                }
            }
        }
    }

    /// The turn, if nobody works here now.
    pub fn turn_if_idle(&self) -> Option<Turn> {
        let order = self.order.clone().try_write_owned().ok()?;
        Some(Turn::Exclusive { _order: order })
    }

    /// The children of a server.
    pub fn slot(&self, spec: &ServerSpec) -> Arc<Slot> {
        let concurrency = spec.concurrency.map_or(1, std::num::NonZeroUsize::get);
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = slots.entry(spec.name.clone()).or_insert_with(|| {
            Arc::new(Slot {
                gate: tokio::sync::Mutex::default(),
                places: Arc::new(Semaphore::new(concurrency)),
                sessions: Mutex::default(),
            })
        });
        slot.clone()
    }

    /// All children that are bound here.
    pub fn sessions(&self) -> Vec<Arc<Session>> {
        let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.values().flat_map(|slot| slot.sessions()).collect()
    }

    /// Unbinds a child; `false` if somebody did already.
    pub fn unbind(&self, session: &Arc<Session>) -> bool {
        let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots
            .get(&session.spec.name)
            .is_some_and(|slot| slot.unbind(session))
    }

    /// Notes that the server works here; `true` if one of it did before.
    pub fn note_worked(&self, server: &ServerName) -> bool {
        let mut before = self
            .worked_before
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        !before.insert(server.as_str().to_owned())
    }
}

impl Slot {
    /// The children, as they are now.
    pub fn sessions(&self) -> Vec<Arc<Session>> {
        self.sessions
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn unbind(&self, session: &Arc<Session>) -> bool {
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        let before = sessions.len();
        sessions.retain(|other| !Arc::ptr_eq(other, session));
        sessions.len() < before
    }
}

impl Session {
    /// A session around a ready child.
    pub fn new(
        child: Child,
        spec: Arc<ServerSpec>,
        place: OwnedSemaphorePermit,
        live: Live,
        class: Class,
    ) -> Self {
        Self {
            child,
            version: spec.version(),
            spec,
            place: Mutex::new(Some(place)),
            _live: live,
            class: Mutex::new(class),
            in_flight: AtomicUsize::new(0),
            last_used: Mutex::new(Instant::now()),
        }
    }

    /// Its place among the live children, once.
    pub fn give_up_place(&self) -> Option<OwnedSemaphorePermit> {
        let mut place = self.place.lock().unwrap_or_else(PoisonError::into_inner);
        place.take()
    }

    /// Begins a use; the idle clock stops until it is dropped.
    pub fn lend(self: &Arc<Self>, class: Class) -> Lent {
        let mut kept = self.class.lock().unwrap_or_else(PoisonError::into_inner);
        *kept = (*kept).max(class);
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        Lent(self.clone())
    }

    /// Calls that use it now.
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// What kind of caller it serves.
    pub fn class(&self) -> Class {
        *self.class.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When its last call ended.
    pub fn last_used(&self) -> Instant {
        *self
            .last_used
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
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
        *self
            .0
            .last_used
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Instant::now();
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}
