//! The one child of each `shared` server, for everyone and calls side by side.
//!
//! A process hears once what its callers can answer (elicitation, sampling, roots), so callers who
//! can answer the same share a child: one for all who can answer nothing, and a few others.

use std::{borrow::Cow, collections::HashMap, sync::Arc, time::Duration};

use bridge_model::{Job, Principal, ServerName, Tenant};
use bridge_process::{Child, ChildError, End, Listener, Profile, UserValues};
use bridge_state::{ChatStore, Held, Lease, NewChat, PrincipalHash};
use parking_lot::{Mutex, MutexGuard};
use tokio::{sync::watch, task::JoinHandle, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::SessionError;
use crate::{
    admission::{Permit, Permits},
    child::{ChildRequest, Children},
    config::{ServerSpec, SpecVersion},
};

/// A start that failed is not tried again within this time: callers get the same answer.
const PAUSE: Duration = Duration::from_secs(1);
/// A start is bounded by its own time limit, not by the patience of whoever asked first.
const NO_DEADLINE: Duration = Duration::from_secs(24 * 60 * 60);

/// Children of one server for callers of different abilities; callers beyond get the child of those
/// who can answer nothing.
const PROFILES: usize = 8;

/// A server and what the callers of its child can answer.
type Key = (ServerName, Cow<'static, str>);

/// All shared children of this bridge.
pub struct SharedChildren {
    children: Arc<Children>,
    store: Arc<ChatStore>,
    states: Mutex<HashMap<Key, ChildState>>,
    listener: Arc<dyn Fn(&ServerName) -> Listener + Send + Sync>,
    /// Calls of one user that a child works on, where its config says nothing of calls side by side.
    per_user: usize,
    /// Starts and ends, which no caller can interrupt: a shutdown waits for them.
    tasks: TaskTracker,
    /// Nothing is started any more, and nobody waited for.
    stopping: CancellationToken,
}

/// A running shared child.
pub struct SharedChild {
    /// The process.
    pub child: Child,
    /// Where it works: a folder of its own, from which nothing is published.
    pub job: Job,
    /// For the calls that it works on side by side.
    permits: Permits,
    lease: Lease,
    version: SpecVersion,
}

/// What a server's child does. Absent where there is none.
enum ChildState {
    Starting(Start),
    Running(Arc<SharedChild>),
    Failed(SpecVersion, Instant, ChildError),
}

/// A start under way, for all who wait for it.
struct Start {
    version: SpecVersion,
    /// Nobody wants it any more.
    called_off: CancellationToken,
    outcome: watch::Receiver<Option<Result<Arc<SharedChild>, ChildError>>>,
}

/// How a caller comes to the child.
enum Way {
    There(Arc<SharedChild>),
    /// He is the first, and gets the failure itself.
    Begun(JoinHandle<Result<Arc<SharedChild>, SessionError>>),
    /// Somebody else began.
    Joined(watch::Receiver<Option<Result<Arc<SharedChild>, ChildError>>>),
}

impl SharedChildren {
    /// None runs before one is asked for.
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

    /// The server's child, started where there is none that lives. A caller who leaves, or whose
    /// deadline passes, leaves the start to the others and to the next.
    pub async fn child(
        self: &Arc<Self>,
        spec: &Arc<ServerSpec>,
        (profile, tenant): (&Profile, &Tenant),
        deadline: Instant,
    ) -> Result<Arc<SharedChild>, SessionError> {
        let way = self.way(spec, profile, tenant)?;
        let child = async {
            match way {
                Way::There(shared) => Ok(shared),
                Way::Begun(start) => start.await.unwrap_or_else(|_| Err(called_off().into())),
                Way::Joined(mut outcome) => {
                    let outcome = outcome.wait_for(Option::is_some).await;
                    let outcome = outcome.ok().and_then(|outcome| outcome.clone());
                    Ok(outcome.unwrap_or_else(|| Err(called_off()))?)
                }
            }
        };
        let child = tokio::time::timeout_at(deadline, child).await;
        child.unwrap_or_else(|_| Err(ChildError::Timeout.into()))
    }

    fn way(
        self: &Arc<Self>,
        spec: &Arc<ServerSpec>,
        profile: &Profile,
        tenant: &Tenant,
    ) -> Result<Way, SessionError> {
        let version = spec.version();
        let mut profile = self.children.spoken(spec, profile.clone());
        let mut key = (spec.name.clone(), profile.key());
        let mut states = self.states();
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
                return Ok(Way::There(shared.clone()));
            }
            Some(ChildState::Starting(start)) if start.version == version => {
                return Ok(Way::Joined(start.outcome.clone()));
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
        let called_off = CancellationToken::new();
        let start = Start {
            version,
            called_off: called_off.clone(),
            outcome,
        };
        states.insert(key.clone(), ChildState::Starting(start));
        let (shares, spec, tenant) = (self.clone(), spec.clone(), tenant.clone());
        Ok(Way::Begun(self.tasks.spawn(async move {
            let started = shares.start(&spec, (profile, tenant), &called_off).await;
            let started = shares.settle(key, spec.version(), &called_off, started);
            tell.send_replace(Some(match &started {
                Ok(shared) => Ok(shared.clone()),
                Err(SessionError::Child(error)) => Err(error.clone()),
                Err(error) => Err(ChildError::not_started(error.to_string())),
            }));
            started
        })))
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
        let mut states = self.states();
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
        let (store, server) = (self.store.clone(), spec.name.clone());
        let make = move || {
            let principal = PrincipalHash::from(&Principal::Anonymous);
            let new = NewChat {
                principal,
                servers: vec![server],
            };
            store.create(&new)
        };
        let made = tokio::task::spawn_blocking(make).await;
        let Held { job, lease, .. } = made.expect("making a folder does not panic")?;
        let request = ChildRequest {
            spec: spec.clone(),
            job: job.clone(),
            profile,
            user: UserValues::default(),
            tenant,
            deadline: Instant::now() + NO_DEADLINE,
            listener: (self.listener)(&spec.name),
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

    /// Gives this child to nobody any more; it ends once nobody calls it.
    pub fn forget(self: &Arc<Self>, gone: &Arc<SharedChild>) {
        let is_it = |_: &Key, state: &mut ChildState| match state {
            ChildState::Running(shared) => Arc::ptr_eq(shared, gone),
            _ => false,
        };
        let found: Vec<_> = self.states().extract_if(is_it).collect();
        for (_, state) in found {
            self.give_up(state);
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

    /// Ends the children of servers that are gone or changed; calls on them end first. Waits for
    /// none of them.
    #[expect(
        clippy::unused_async,
        reason = "a reload awaits it, and may have to wait one day"
    )]
    pub async fn end_outdated(
        self: &Arc<Self>,
        current: impl Fn(&ServerName, SpecVersion) -> bool,
    ) {
        let outdated = |(name, _): &Key, state: &mut ChildState| !current(name, state.version());
        for (_, state) in self.states().extract_if(outdated) {
            self.give_up(state);
        }
    }

    /// Ends all of them, and starts no more.
    pub async fn end_all(self: &Arc<Self>) {
        self.stopping.cancel();
        for (_, state) in self.states().drain() {
            self.give_up(state);
        }
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// How many run.
    pub fn count(&self) -> usize {
        let running = |state: &&ChildState| matches!(state, ChildState::Running(_));
        self.states().values().filter(running).count()
    }

    fn states(&self) -> MutexGuard<'_, HashMap<Key, ChildState>> {
        self.states.lock()
    }

    fn give_up(self: &Arc<Self>, state: ChildState) {
        match state {
            ChildState::Starting(start) => start.called_off.cancel(),
            ChildState::Running(shared) => self.retire(shared),
            ChildState::Failed(..) => {}
        }
    }

    /// Ends a child that nobody gets any more: once nobody calls it, or at a shutdown at once.
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
            shares.end(&shared).await;
        });
    }

    async fn end(self: &Arc<Self>, shared: &SharedChild) {
        shared
            .child
            .end(End::Gracefully(self.children.kill_grace()))
            .await;
        self.clear(shared.lease.clone()).await;
    }

    async fn clear(&self, lease: Lease) {
        let store = self.store.clone();
        // What cannot be removed now is garbage that the collector gets later.
        let _ = tokio::task::spawn_blocking(move || store.discard(&lease)).await;
    }
}

impl SharedChild {
    /// Waits for a permit among the calls that it works on side by side: in all as many as its config
    /// says, and of one user never all.
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
