//! The child of each `shared` server, for all callers and concurrent calls.
//!
//! A process is initialized once with its callers' capabilities (elicitation, sampling, roots), so
//! callers with the same capabilities share a child: one for all without any, and a few others.

use std::{borrow::Cow, collections::HashMap, sync::Arc, time::Duration};

use bridge_model::{Job, Principal, ServerName, Tenant};
use bridge_process::{Child, ChildError, End, Listener, Profile};
use bridge_state::{ChatStore, Held, Lease, NewChat};
use futures_util::{
    FutureExt as _,
    future::{BoxFuture, ready},
};
use parking_lot::Mutex;
use tokio::{sync::watch, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::SessionError;
use crate::{
    admission::{Permit, Permits},
    child::{ChildRequest, Children},
    config::{ServerSpec, SpecVersion},
};

/// A failed start is not repeated within this time: callers get the same error.
const PAUSE: Duration = Duration::from_secs(1);
/// A start has its own timeout, not that of the first caller.
const NO_DEADLINE: Duration = Duration::from_secs(24 * 60 * 60);

/// Maximum number of children of one server for callers with different capabilities; further callers
/// get the child for callers without any.
const PROFILES: usize = 8;

/// A server and the capabilities of its child's callers.
type Key = (ServerName, Cow<'static, str>);

/// All shared children of this bridge.
pub struct SharedChildren {
    children: Arc<Children>,
    store: Arc<ChatStore>,
    states: Mutex<HashMap<Key, ChildState>>,
    listener: Arc<dyn Fn(&ServerName) -> Listener + Send + Sync>,
    /// Maximum number of concurrent calls of one user, if the server's configuration sets no limit.
    per_user: usize,
    /// Starts and ends, which callers cannot interrupt: a shutdown waits for them.
    tasks: TaskTracker,
    /// Cancelled when no more children are started and running calls are not waited for.
    stopping: CancellationToken,
}

/// A running shared child.
pub struct SharedChild {
    /// The process.
    pub child: Child,
    /// Its own folder, from which nothing is published.
    pub job: Job,
    /// Permits for concurrent calls.
    permits: Permits,
    lease: Lease,
    version: SpecVersion,
}

/// The state of a server's child. Absent if there is no child.
enum ChildState {
    Starting(Start),
    Running(Arc<SharedChild>),
    Failed(SpecVersion, Instant, ChildError),
}

/// A start, for all callers that wait for it.
struct Start {
    version: SpecVersion,
    /// Cancelled when the child is no longer needed.
    called_off: CancellationToken,
    outcome: watch::Receiver<Option<Result<Arc<SharedChild>, ChildError>>>,
}

impl SharedChildren {
    /// Starts no child before one is requested.
    pub fn new(
        children: Arc<Children>,
        store: Arc<ChatStore>,
        listener: Arc<dyn Fn(&ServerName) -> Listener + Send + Sync>,
        per_user: usize,
    ) -> Self {
        Self {
            per_user,
            children,
            store,
            states: Mutex::default(),
            listener,
            tasks: TaskTracker::new(),
            stopping: CancellationToken::new(),
        }
    }

    /// The server's child, started if there is none. A start continues for other callers if the
    /// caller leaves, or its deadline passes.
    pub async fn child(
        self: &Arc<Self>,
        spec: &Arc<ServerSpec>,
        (profile, tenant): (&Profile, &Tenant),
        deadline: Instant,
    ) -> Result<Arc<SharedChild>, SessionError> {
        let child = self.waiting(spec, profile, tenant)?;
        let child = tokio::time::timeout_at(deadline, child).await;
        child.unwrap_or_else(|_| Err(ChildError::Timeout.into()))
    }

    fn waiting(
        self: &Arc<Self>,
        spec: &Arc<ServerSpec>,
        profile: &Profile,
        tenant: &Tenant,
    ) -> Result<BoxFuture<'static, Result<Arc<SharedChild>, SessionError>>, SessionError> {
        let version = spec.version();
        let mut profile = self.children.spoken(spec, profile.clone());
        let mut key = (spec.name.clone(), profile.key());
        let mut states = self.states.lock();
        let of_server = |states: &HashMap<Key, ChildState>| {
            let of_server = states.keys().filter(|(server, _)| *server == spec.name);
            of_server.count()
        };
        if !states.contains_key(&key) && of_server(&states) >= PROFILES {
            profile = self.children.spoken(spec, Profile::silent());
            key.1 = profile.key();
        }
        match states.get(&key) {
            Some(ChildState::Running(shared))
                if shared.child.is_alive() && shared.version == version =>
            {
                return Ok(ready(Ok(shared.clone())).boxed());
            }
            Some(ChildState::Starting(start)) if start.version == version => {
                let mut outcome = start.outcome.clone();
                let joined = async move {
                    let outcome = outcome.wait_for(Option::is_some).await;
                    let outcome = outcome.ok().and_then(|outcome| outcome.clone());
                    Ok(outcome.unwrap_or_else(|| Err(called_off()))?)
                };
                return Ok(joined.boxed());
            }
            Some(ChildState::Failed(failed, at, error))
                if *failed == version && at.elapsed() < PAUSE =>
            {
                return Err(error.clone().into());
            }
            _ => {}
        }
        if let Some(old) = states.remove(&key) {
            self.give_up(old);
        }
        if self.stopping.is_cancelled() {
            return Err(called_off().into());
        }
        let (tell, outcome) = watch::channel(None);
        let off = CancellationToken::new();
        let start = Start {
            version,
            called_off: off.clone(),
            outcome,
        };
        states.insert(key.clone(), ChildState::Starting(start));
        let (shares, spec, tenant) = (self.clone(), spec.clone(), tenant.clone());
        let start = self.tasks.spawn(async move {
            let started = shares.start(&spec, (profile, tenant), &off).await;
            let started = shares.settle(key, spec.version(), &off, started);
            tell.send_replace(Some(match &started {
                Ok(shared) => Ok(shared.clone()),
                Err(SessionError::Child(error)) => Err(error.clone()),
                Err(error) => Err(ChildError::not_started(error.to_string())),
            }));
            started
        });
        // The first caller gets the original error.
        let begun = start.map(|started| started.unwrap_or_else(|_| Err(called_off().into())));
        Ok(begun.boxed())
    }

    /// The state after a start, unless it was called off.
    fn settle(
        self: &Arc<Self>,
        key: Key,
        version: SpecVersion,
        off: &CancellationToken,
        started: Result<SharedChild, SessionError>,
    ) -> Result<Arc<SharedChild>, SessionError> {
        let started = started.map(Arc::new);
        let mut states = self.states.lock();
        if off.is_cancelled() {
            if let Ok(shared) = started {
                self.retire(shared);
            }
            return Err(called_off().into());
        }
        let state = match &started {
            Ok(shared) => Some(ChildState::Running(shared.clone())),
            Err(SessionError::Child(error)) => {
                Some(ChildState::Failed(version, Instant::now(), error.clone()))
            }
            Err(_) => None,
        };
        match state {
            Some(state) => states.insert(key, state),
            None => states.remove(&key),
        };
        started
    }

    async fn start(
        self: &Arc<Self>,
        spec: &Arc<ServerSpec>,
        (profile, tenant): (Profile, Tenant),
        off: &CancellationToken,
    ) -> Result<SharedChild, SessionError> {
        let store = self.store.clone();
        let new = NewChat::new(&Principal::Anonymous, vec![spec.name.clone()]);
        let made = tokio::task::spawn_blocking(move || store.create(&new)).await;
        let Held { job, lease, .. } = made.expect("making a folder does not panic")?;
        let deadline = Instant::now() + NO_DEADLINE;
        let request = ChildRequest {
            tenant,
            listener: (self.listener)(&spec.name),
            ..ChildRequest::of_bridge(spec, &job, profile, deadline)
        };
        let ready = tokio::select! {
            ready = self.children.ready(request) => ready,
            () = off.cancelled() => Err(called_off()),
        };
        match ready {
            Ok(child) => Ok(SharedChild {
                child,
                job,
                lease,
                permits: Permits::side_by_side(
                    spec.concurrency.map(std::num::NonZeroUsize::get),
                    self.per_user,
                ),
                version: spec.version(),
            }),
            Err(error) => {
                self.clear(lease).await;
                Err(error.into())
            }
        }
    }

    /// Lends this child to no further call; it ends after its current calls.
    pub fn forget(self: &Arc<Self>, gone: &Arc<SharedChild>) {
        let is_it = |_: &Key, state: &mut ChildState| matches!(state, ChildState::Running(shared) if Arc::ptr_eq(shared, gone));
        for (_, state) in self.states.lock().extract_if(is_it) {
            self.give_up(state);
        }
    }

    /// Ends the child if it fails a ping, after the timeout or cancellation of a call.
    pub async fn check(self: &Arc<Self>, shared: &Arc<SharedChild>, patience: Duration) {
        if !shared.child.answers_ping(patience).await {
            let how = End::Terminate(self.children.kill_grace());
            shared.child.end(how).await;
        }
    }

    /// Ends the children of removed or changed servers, after their calls. Does not wait.
    pub fn end_outdated(self: &Arc<Self>, current: impl Fn(&ServerName, SpecVersion) -> bool) {
        let outdated = |(name, _): &Key, state: &mut ChildState| !current(name, state.version());
        for (_, state) in self.states.lock().extract_if(outdated) {
            self.give_up(state);
        }
    }

    /// Ends all children, and starts no more.
    pub async fn end_all(self: &Arc<Self>) {
        self.stopping.cancel();
        for (_, state) in self.states.lock().drain() {
            self.give_up(state);
        }
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// The number of running children.
    pub fn count(&self) -> usize {
        let running = |state: &&ChildState| matches!(state, ChildState::Running(_));
        self.states.lock().values().filter(running).count()
    }

    fn give_up(self: &Arc<Self>, state: ChildState) {
        match state {
            ChildState::Starting(start) => start.called_off.cancel(),
            ChildState::Running(shared) => self.retire(shared),
            ChildState::Failed(..) => {}
        }
    }

    /// Ends a child after its calls, or at once during a shutdown.
    fn retire(self: &Arc<Self>, shared: Arc<SharedChild>) {
        let shares = self.clone();
        self.tasks.spawn(async move {
            let unused = async {
                while shared.child.is_alive() && Arc::strong_count(&shared) > 1 {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            };
            tokio::select! {
                () = unused => {}
                () = shares.stopping.cancelled() => {}
            }
            let how = End::Gracefully(shares.children.kill_grace());
            shared.child.end(how).await;
            shares.clear(shared.lease.clone()).await;
        });
    }

    async fn clear(&self, lease: Lease) {
        let store = self.store.clone();
        // If that fails, the clean-up deletes it later.
        let _ = tokio::task::spawn_blocking(move || store.discard(&lease)).await;
    }
}

impl SharedChild {
    /// Waits for a permit for a concurrent call: as many as its configuration allows, and never all
    /// for one user.
    pub fn permit(&self, tenant: &Tenant) -> impl Future<Output = Permit> + use<> {
        self.permits.enter(tenant)
    }
}

impl ChildState {
    fn version(&self) -> SpecVersion {
        match self {
            Self::Starting(start) => start.version,
            Self::Running(shared) => shared.version,
            Self::Failed(version, ..) => *version,
        }
    }
}

fn called_off() -> ChildError {
    ChildError::not_started(
        "the server's configuration changed, or the bridge is stopping; try again".to_owned(),
    )
}
