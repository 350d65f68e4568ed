//! The one child of each `shared` server, for everyone and calls side by side.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use tokio::time::Instant;

use super::SessionError;
use crate::{
    child::{Child, ChildError, ChildRequest, Children, End, Listener, Profile},
    config::{ServerSpec, SpecVersion},
    model::{Principal, ServerName},
    store::{Job, Lease, LeaseError, NewJob, PrincipalHash, Store},
};

/// A start that failed is not tried again within this time: callers get the same answer.
const PAUSE: Duration = Duration::from_secs(1);

/// All shared children of this bridge.
pub struct SharedChildren {
    children: Arc<Children>,
    store: Arc<Store>,
    slots: Mutex<HashMap<ServerName, Arc<Slot>>>,
    listener: Arc<dyn Fn(&ServerName) -> Listener + Send + Sync>,
}

/// A running shared child.
pub struct SharedChild {
    /// The process.
    pub child: Child,
    /// Where it works: a folder of its own, from which nothing is published.
    pub job: Job,
    lease: Lease,
    version: SpecVersion,
}

type Slot = tokio::sync::Mutex<State>;

#[derive(Default)]
enum State {
    #[default]
    Absent,
    Running(Arc<SharedChild>),
    Failed(Instant, ChildError),
}

impl SharedChildren {
    /// None runs before one is asked for.
    pub fn new(
        children: Arc<Children>,
        store: Arc<Store>,
        listener: Arc<dyn Fn(&ServerName) -> Listener + Send + Sync>,
    ) -> Self {
        Self {
            children,
            store,
            slots: Mutex::default(),
            listener,
        }
    }

    /// The server's child, started where there is none that lives.
    pub async fn child(
        self: &Arc<Self>,
        spec: &Arc<ServerSpec>,
        deadline: Instant,
    ) -> Result<Arc<SharedChild>, SessionError> {
        let slot = {
            let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
            slots.entry(spec.name.clone()).or_default().clone()
        };
        // Held across the start of this one server's one child: everybody else waits for the same.
        let mut state = slot.lock().await;
        match &*state {
            State::Running(shared)
                if shared.child.is_alive() && shared.version == spec.version() =>
            {
                return Ok(shared.clone());
            }
            State::Failed(at, error) if at.elapsed() < PAUSE => return Err(error.clone().into()),
            _ => {}
        }
        if let State::Running(old) = std::mem::take(&mut *state) {
            // Calls on it still hold it; its tree ends with the last of them.
            self.retire(old);
        }
        match self.start(spec, deadline).await {
            Ok(shared) => {
                let shared = Arc::new(shared);
                *state = State::Running(shared.clone());
                Ok(shared)
            }
            Err(error) => {
                if let SessionError::Child(failure) = &error {
                    *state = State::Failed(Instant::now(), failure.clone());
                }
                Err(error)
            }
        }
    }

    async fn start(
        self: &Arc<Self>,
        spec: &Arc<ServerSpec>,
        deadline: Instant,
    ) -> Result<SharedChild, SessionError> {
        let (store, server) = (self.store.clone(), spec.name.clone());
        let make = move || {
            let principal = PrincipalHash::from(&Principal::Anonymous);
            let new = NewJob {
                principal,
                key: None,
                servers: &[server],
            };
            let job = store.create_job(&new, Timestamp::now())?;
            let lease = store
                .acquire(&job, Timestamp::now())
                .map_err(|error| match error {
                    LeaseError::Store(error) => SessionError::Store(error),
                    elsewhere @ LeaseError::Elsewhere { .. } => SessionError::Lease(elsewhere),
                })?;
            Ok::<_, SessionError>((job, lease))
        };
        let made = tokio::task::spawn_blocking(make).await;
        let (job, lease) = made.expect("making a folder does not panic")?;
        let request = ChildRequest {
            spec: spec.clone(),
            job: job.clone(),
            profile: Profile::silent(),
            overlay: Vec::new(),
            deadline,
            listener: (self.listener)(&spec.name),
        };
        match self.children.ready(request).await {
            Ok(child) => Ok(SharedChild {
                child,
                job,
                lease,
                version: spec.version(),
            }),
            Err(error) => {
                self.clear(job, lease).await;
                Err(error.into())
            }
        }
    }

    /// Ends the child if it fails a ping: called after a call on it was given up.
    pub async fn check(self: &Arc<Self>, shared: &Arc<SharedChild>, patience: Duration) {
        if !shared.child.answers_ping(patience).await {
            shared
                .child
                .end(End::Terminate(self.children.kill_grace()))
                .await;
        }
    }

    /// Ends the children of servers that are gone or changed; calls on them end first.
    pub async fn end_outdated(
        self: &Arc<Self>,
        current: impl Fn(&ServerName, SpecVersion) -> bool,
    ) {
        for (name, slot) in self.all() {
            let mut state = slot.lock().await;
            if let State::Running(shared) = &*state
                && !current(&name, shared.version)
            {
                self.retire(shared.clone());
                *state = State::Absent;
            }
        }
    }

    /// Ends all of them.
    pub async fn end_all(self: &Arc<Self>) {
        let mut ending = Vec::new();
        for (_, slot) in self.all() {
            if let State::Running(shared) = std::mem::take(&mut *slot.lock().await) {
                let shares = self.clone();
                ending.push(tokio::spawn(async move { shares.end(&shared).await }));
            }
        }
        for end in ending {
            let _ = end.await;
        }
    }

    /// How many run.
    pub fn count(&self) -> usize {
        let running = |slot: &Arc<Slot>| {
            slot.try_lock()
                .is_ok_and(|state| matches!(&*state, State::Running(_)))
        };
        self.all().iter().filter(|(_, slot)| running(slot)).count()
    }

    fn all(&self) -> Vec<(ServerName, Arc<Slot>)> {
        let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots
            .iter()
            .map(|(name, slot)| (name.clone(), slot.clone()))
            .collect()
    }

    /// Ends a replaced child once nobody calls it any more.
    fn retire(self: &Arc<Self>, shared: Arc<SharedChild>) {
        let shares = self.clone();
        tokio::spawn(async move {
            while shared.child.is_alive() && Arc::strong_count(&shared) > 1 {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            shares.end(&shared).await;
        });
    }

    async fn end(self: &Arc<Self>, shared: &SharedChild) {
        shared
            .child
            .end(End::Gracefully(self.children.kill_grace()))
            .await;
        self.clear(shared.job.clone(), shared.lease.clone()).await;
    }

    async fn clear(&self, job: Job, lease: Lease) {
        let store = self.store.clone();
        // What cannot be removed now is garbage that the collector gets later.
        let clear = move || {
            let _ = store.release(&lease);
            store.remove_job(&job)
        };
        let _ = tokio::task::spawn_blocking(clear).await;
    }
}
