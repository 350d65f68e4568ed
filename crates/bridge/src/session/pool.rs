//! The pool of warm processes: children that are started and initialised before a call needs them.
//! A call that takes one also gets the folder in which it was started.
//!
//! ```text
//! (none) ──demand──▶ Starting ──ready──▶ Ready ──taken──▶ used by a chat, or by one call
//!                        └── failed ──▶ (none) ◀── exited, outdated, idle, no room ──┘
//! ```
//! A child serves one chat or one call and is not returned. A call that finds no warm child starts its own at
//! once.

use std::{
    cmp::Reverse,
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use bridge_model::ServerName;
use bridge_process::{
    Child, ChildError, End, Listener, Profile,
    launch::{Resolved, Sources},
};
use bridge_state::{ChatStore, Held, Lease, NewChat, StoreError};
use parking_lot::Mutex;
use tokio::{
    runtime::Handle,
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::end::Population;
use crate::{
    admission::Permit,
    child::{ChildRequest, Children, Entry, Prepared},
    config::{Mode, ServerSpec, SpecVersion, Transport},
    memory::available_memory,
    telemetry::{Live, Metrics},
};

/// Timeout of a warm child's answer to a ping; a new one gets more time.
const PING: Duration = Duration::from_secs(1);

/// Maximum number of different profiles of one server.
const PROFILES: usize = 8;

/// Delay after the first failed start, or after a child exited unused.
const PAUSE: Duration = Duration::from_secs(1);

/// The delay for a server whose children ask their caller at the start.
const LONG_PAUSE: Duration = Duration::from_secs(600);

/// The limits of the pool.
#[derive(Debug, Clone)]
pub struct PoolSettings {
    /// Maximum number of children of all servers; 0 disables the pool.
    pub max: usize,
    /// A server without a call for this time gets no warm children.
    pub idle: Duration,
    /// No warm children are kept while less memory is free, in bytes.
    pub min_free_memory: u64,
    /// No warm children are started while less disk space is free, in bytes.
    pub min_free_disk: u64,
    /// Maximum number of concurrent starts of the pool.
    pub starts: usize,
}

/// All warm children of this bridge.
pub struct Pool {
    settings: PoolSettings,
    context: Arc<Context>,
    kinds: Prepared<Box<str>, Kind>,
    /// The current servers; calls may still use earlier versions.
    current: Mutex<HashMap<ServerName, SpecVersion>>,
    /// Permits of the pool's own starts, held while a start is active.
    starts: Arc<Semaphore>,
    /// Wakes the loop that fills the pool.
    wake: Notify,
    /// Wakes tasks that wait for the end of a start.
    settled: Notify,
}

/// The parts of the bridge that the pool uses.
struct Context {
    children: Arc<Children>,
    store: Arc<ChatStore>,
    population: Arc<Population>,
    metrics: Arc<Metrics>,
    listener: Arc<dyn Fn(&ServerName) -> Listener + Send + Sync>,
    /// Tasks that end children: a shutdown waits for them.
    tasks: TaskTracker,
}

/// Identifies interchangeable children: one version of a server, and one profile.
type Key = crate::child::Key<Box<str>>;

type Kinds = HashMap<Key, Entry<Kind>>;

/// The children of one key.
struct Kind {
    spec: Arc<ServerSpec>,
    profile: Profile,
    demand: Demand,
    /// The warm children, the oldest first.
    ready: VecDeque<Spare>,
    starting: usize,
}

impl Kind {
    fn count(&self) -> usize {
        self.ready.len() + self.starting
    }
}

impl Pool {
    /// Starts no child before a call requests one and [`Pool::fill`] runs.
    pub fn new(
        settings: PoolSettings,
        children: Arc<Children>,
        store: Arc<ChatStore>,
        metrics: Arc<Metrics>,
        population: Arc<Population>,
        listener: Arc<dyn Fn(&ServerName) -> Listener + Send + Sync>,
    ) -> Self {
        let kinds = Prepared::default();
        let context = Context {
            children,
            store,
            population,
            metrics,
            listener,
            tasks: kinds.tasks.clone(),
        };
        Self {
            starts: Arc::new(Semaphore::new(settings.starts.max(1))),
            settings,
            context: Arc::new(context),
            kinds,
            current: Mutex::default(),
            wake: Notify::new(),
            settled: Notify::new(),
        }
    }

    /// A warm child for a new chat or for one call, if there is one. The request also counts as
    /// demand for later ones.
    pub async fn take(&self, spec: &Arc<ServerSpec>, profile: &Profile) -> Option<Spare> {
        let (key, profile) = self.key(spec, profile)?;
        self.note_arrival(&key, spec, profile);
        let found = self.find(&key, spec).await;
        self.context.metrics.pool_asked(&spec.name, found.is_some());
        self.wake.notify_one();
        found
    }

    async fn find(&self, key: &Key, spec: &Arc<ServerSpec>) -> Option<Spare> {
        let until = Instant::now() + PING;
        while Instant::now() < until {
            let spare = self.kinds.lock().get_mut(key)?.state.ready.pop_front()?;
            let is_usable = spare.is_usable(spec).await;
            let mut kinds = self.kinds.lock();
            let Some(kind) = kinds.get_mut(key) else {
                continue;
            };
            if is_usable {
                kind.succeeded();
                return Some(spare);
            }
            tracing::debug!(server = %spec.name, "warm process discarded");
            kind.failed(PAUSE);
            if spare.child().parts.connection.has_declined() {
                // It sends requests to its caller at its start, so none of its kind can be warm.
                kind.not_before = Instant::now() + LONG_PAUSE;
            }
        }
        None
    }

    /// The key of suitable children; `None` if each needs its caller from the beginning.
    fn key(&self, spec: &Arc<ServerSpec>, profile: &Profile) -> Option<(Key, Profile)> {
        let Transport::Stdio(command) = &spec.transport else {
            return None;
        };
        let stopping = &self.kinds.stopping;
        let off = self.settings.max == 0 || spec.pool == Some(0) || stopping.is_cancelled();
        if off || command.asks_for_user() || spec.mode == Mode::Shared {
            return None;
        }
        let profile = self.context.children.spoken(spec, profile.clone());
        // Unlike shared children, they get the exact revision that the caller requests.
        let said = format!("{} {}", profile.protocol_version, profile.key());
        Some(((spec.name.clone(), spec.version(), said.into()), profile))
    }

    /// Counts a request; if a server has too many kinds, the least recently used one is removed.
    fn note_arrival(&self, key: &Key, spec: &Arc<ServerSpec>, profile: Profile) {
        if self.current.lock().get(&key.0) != Some(&key.1) {
            return;
        }
        let mut removed = None;
        let mut kinds = self.kinds.lock();
        if !kinds.contains_key(key) {
            let alike: Vec<_> = kinds.iter().filter(|(other, _)| other.0 == key.0).collect();
            let oldest = alike.iter().min_by_key(|(_, kind)| kind.last);
            let oldest = oldest.filter(|_| alike.len() >= PROFILES);
            if let Some(oldest) = oldest.map(|(key, _)| (*key).clone()) {
                removed = kinds.remove(&oldest);
            }
        }
        let kind = kinds.entry(key.clone()).or_insert_with(|| {
            self.kinds.entry(Kind {
                spec: spec.clone(),
                profile,
                demand: Demand::new(Instant::now()),
                ready: VecDeque::new(),
                starting: 0,
            })
        });
        kind.last = Instant::now();
        kind.state.demand.arrived(kind.last);
        drop(kinds);
        drop(removed);
    }

    /// Releases a permit among the stateful processes: of the least recently used kind, or else of
    /// one that is starting. `false` if the pool holds none.
    pub async fn make_room(&self) -> bool {
        let mut settled = std::pin::pin!(self.settled.notified());
        // Registered before the check, so that a start that ends meanwhile is noticed.
        settled.as_mut().enable();
        let spare = {
            let mut kinds = self.kinds.lock();
            let stateful = kinds
                .values_mut()
                .filter(|kind| kind.state.spec.mode == Mode::Stateful && kind.state.count() > 0);
            let kind = stateful.min_by_key(|kind| (kind.state.ready.is_empty(), kind.last));
            let Some(kind) = kind else { return false };
            kind.not_before = Instant::now() + PAUSE;
            let spare = kind.state.ready.pop_front();
            if spare.is_none() {
                kind.outdated.cancel();
                kind.outdated = self.kinds.stopping.child_token();
            }
            spare
        };
        match spare {
            Some(spare) => self.context.end(spare.into_parts()).await,
            None => settled.await,
        }
        true
    }

    /// Sets the current servers, and ends the children of removed or changed ones.
    pub fn follow<'a>(&self, specs: impl Iterator<Item = &'a Arc<ServerSpec>>) {
        let current: HashMap<_, _> = specs
            .map(|spec| (spec.name.clone(), spec.version()))
            .collect();
        self.current.lock().clone_from(&current);
        self.kinds.follow(|name| current.get(name).copied());
        self.wake.notify_one();
    }

    /// Ends the children whose folder another bridge has taken over.
    pub async fn check_leases(&self) {
        let leases: Vec<_> = {
            let kinds = self.kinds.lock();
            let ready = kinds.values().flat_map(|kind| &kind.state.ready);
            ready.map(|spare| spare.lease().clone()).collect()
        };
        if leases.is_empty() {
            return;
        }
        let store = self.context.store.clone();
        let read = move || {
            let mut lost = leases;
            lost.retain(|lease| matches!(store.holds(lease), Ok(false)));
            lost
        };
        let lost = tokio::task::spawn_blocking(read).await.unwrap_or_default();
        let mut ended = Vec::new();
        for kind in self.kinds.lock().values_mut() {
            let ready = std::mem::take(&mut kind.state.ready);
            let (lost, held): (VecDeque<_>, _) = ready
                .into_iter()
                .partition(|spare| lost.contains(spare.lease()));
            kind.state.ready = held;
            ended.push(lost);
        }
    }

    /// Ends all of them, and starts no more.
    pub fn stop(&self) {
        self.kinds.stop();
    }

    /// The same, and waits until all children have ended.
    pub async fn end_all(&self) {
        self.kinds.end_all().await;
    }

    /// The number of warm children.
    pub fn count(&self) -> usize {
        let kinds = self.kinds.lock();
        kinds.values().map(|kind| kind.state.ready.len()).sum()
    }
}

// The number of children of a kind that should be warm: the number of requests that recently arrived
// within the duration of a start.

/// The number follows a burst within the first time, and a decline within the second.
const SPANS: [Duration; 2] = [Duration::from_secs(10), Duration::from_secs(60)];

/// Safety factor: requests are not evenly distributed.
const SAFETY: f64 = 2.0;

/// Assumed duration of a start before the first one was measured.
const START: Duration = Duration::from_secs(1);

/// Recent requests, and the duration of a start.
struct Demand {
    /// Counts of requests with exponential decay over [`SPANS`], at the last request.
    counts: [f64; 2],
    start: Option<Duration>,
    last: Instant,
}

impl Demand {
    /// Starts without any request.
    pub fn new(now: Instant) -> Self {
        Self {
            counts: [0.0; 2],
            start: None,
            last: now,
        }
    }

    /// Counts a request.
    pub fn arrived(&mut self, now: Instant) {
        self.counts = self.decayed(now).map(|count| count + 1.0);
        self.last = now;
    }

    /// Records the duration of a start.
    pub fn started(&mut self, took: Duration) {
        self.start = Some(self.start.map_or(took, |before| (before * 3 + took) / 4));
    }

    fn decayed(&self, now: Instant) -> [f64; 2] {
        let age = now.duration_since(self.last).as_secs_f64();
        let decayed = |(count, span): (f64, Duration)| count * (-age / span.as_secs_f64()).exp();
        [0, 1].map(|at| decayed((self.counts[at], SPANS[at])))
    }

    /// The number of children that should be warm; 0 after `idle` without a request.
    pub fn wanted(&self, idle: Duration, now: Instant) -> usize {
        if now.duration_since(self.last) >= idle {
            return 0;
        }
        let counts = self.decayed(now).into_iter().zip(SPANS);
        let rates = counts.map(|(count, span)| count / span.as_secs_f64());
        let rate = rates.fold(0.0, f64::max);
        let within = rate * self.start.unwrap_or(START).as_secs_f64() * SAFETY;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a small number that is not negative"
        )]
        let wanted = within.ceil() as usize;
        wanted.max(1)
    }
}

// Fills the pool as far as recent demand, memory and permits allow; starts that a call waits for come
// first.

/// A start has its own timeout.
const NO_DEADLINE: Duration = Duration::from_secs(24 * 60 * 60);

/// Timeout of a new child's answer to its first ping.
const FIRST_PING: Duration = Duration::from_secs(5);

/// Maximum wait for a fork parent.
const PARENT: Duration = Duration::from_secs(60);

/// How long a start keeps its permit of the pool while it waits for a fork parent.
const PARENT_PERMIT_WAIT: Duration = Duration::from_secs(10);

/// Interval between two rounds while any child is warm, or should be.
const REST: Duration = Duration::from_secs(1);

/// The interval while starts have to wait.
const SHORT_REST: Duration = Duration::from_millis(50);

/// How long no warm children are started after a lack of memory.
const MEMORY_PAUSE: Duration = Duration::from_secs(30);

/// Why a child did not become warm.
#[derive(Debug, thiserror::Error)]
enum NotMade {
    #[error("the limit of stateful processes is reached")]
    NoPermit,
    #[error("no longer needed, or its slot was needed")]
    CalledOff,
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Child(#[from] ChildError),
    #[error("no response to ping")]
    Silent,
}

/// The limits of one round.
struct Room {
    /// Maximum number of children of all kinds.
    most: usize,
    /// Whether new ones may be started now.
    new: bool,
}

impl Pool {
    /// Starts and ends children according to demand, until dropped.
    pub async fn fill(self: &Arc<Self>) {
        if self.settings.max == 0 {
            return;
        }
        let mut no_new_before = Instant::now();
        loop {
            let rest = self.round(&mut no_new_before).await;
            let woken = self.wake.notified();
            match rest {
                Some(rest) => drop(tokio::time::timeout(rest, woken).await),
                None => woken.await,
            }
        }
    }

    /// One round; returns the time until the next, if it is due without a request.
    async fn round(self: &Arc<Self>, no_new_before: &mut Instant) -> Option<Duration> {
        if self.kinds.lock().is_empty() {
            return None;
        }
        let now = Instant::now();
        let store = self.context.store.clone();
        let free = move || (available_memory(), store.free_bytes().unwrap_or(0));
        let free = tokio::task::spawn_blocking(free).await;
        let (memory, disk) = free.unwrap_or_default();
        let low = memory < self.settings.min_free_memory;
        if low {
            *no_new_before = now + MEMORY_PAUSE;
        }
        // With some reserve, because otherwise a child that was just started would be ended again.
        let scarce = memory < self.settings.min_free_memory / 4 * 5;
        let halted = scarce || disk < self.settings.min_free_disk || now < *no_new_before;
        let room = Room {
            most: if low { 0 } else { self.settings.max },
            new: !halted && !self.kinds.stopping.is_cancelled(),
        };
        drop(self.trim(&room, now));
        let held_up = self.start_wanted(&room, now);
        Some(if held_up { SHORT_REST } else { REST })
    }

    /// Removes children that have exited, are outdated or superfluous, the oldest first.
    fn trim(&self, room: &Room, now: Instant) -> Vec<Spare> {
        let mut ended = Vec::new();
        let mut kinds = self.kinds.lock();
        let over = self.context.population.is_over();
        for kind in kinds.values_mut() {
            for spare in std::mem::take(&mut kind.state.ready) {
                let spec = &kind.state.spec;
                let exited = !spare.child().is_alive();
                if !exited && spare.made_of.is_current(&self.context, spec) {
                    kind.state.ready.push_back(spare);
                    continue;
                }
                if exited {
                    tracing::debug!(server = %spec.name, "warm process exited");
                    kind.failed(PAUSE);
                }
                ended.push(spare);
            }
            let wanted = self.wanted(&kind.state, room, now);
            let ready = &mut kind.state.ready;
            ended.extend(ready.drain(..ready.len().saturating_sub(wanted)));
            if over && kind.state.spec.mode == Mode::Stateful {
                ended.extend(ready.pop_front());
            }
        }
        let idle = self.settings.idle;
        kinds.retain(|_, Entry { state, .. }| {
            state.count() > 0 || state.demand.wanted(idle, now) > 0
        });
        ended
    }

    fn wanted(&self, kind: &Kind, room: &Room, now: Instant) -> usize {
        let own = kind.spec.pool.unwrap_or(self.settings.max);
        let wanted = kind.demand.wanted(self.settings.idle, now);
        wanted.min(own).min(room.most)
    }

    /// Begins the starts that are due now; returns whether more are due, and wait for others.
    fn start_wanted(self: &Arc<Self>, room: &Room, now: Instant) -> bool {
        let mut ended = Vec::new();
        let mut kinds = self.kinds.lock();
        while let Some((key, count)) = self.due(&kinds, room, now) {
            if !room.new {
                return false;
            }
            if !self.context.children.has_leisure() {
                return true;
            }
            // Released while the start only waits, so that other starts can proceed.
            let Ok(permit) = self.starts.clone().try_acquire_owned() else {
                return true;
            };
            if kinds.values().map(|kind| kind.state.count()).sum::<usize>() >= room.most {
                // The first child of one server is more useful than the last of another.
                let most = kinds.values_mut().map(|kind| &mut kind.state.ready);
                match most
                    .max_by_key(|ready| ready.len())
                    .filter(|ready| ready.len() > count + 1)
                {
                    Some(ready) => ended.extend(ready.pop_front()),
                    None => return false,
                }
            }
            if let Some(kind) = kinds.get_mut(&key) {
                self.start(key, kind, permit);
            }
        }
        false
    }

    /// The kind of the next start, and its number of children.
    fn due(&self, kinds: &Kinds, room: &Room, now: Instant) -> Option<(Key, usize)> {
        let of_server = |(server, ..): &Key| {
            let same = kinds.iter().filter(|(other, _)| other.0 == *server);
            same.map(|(_, kind)| kind.state.count()).sum::<usize>()
        };
        kinds
            .iter()
            .filter(|(_, kind)| now >= kind.not_before)
            .filter(|(_, kind)| kind.state.count() < self.wanted(&kind.state, room, now))
            .filter(|(key, kind)| {
                kind.state
                    .spec
                    .pool
                    .is_none_or(|most| of_server(key) < most)
            })
            .min_by_key(|(_, kind)| (kind.state.count(), Reverse(kind.last)))
            .map(|(key, kind)| (key.clone(), kind.state.count()))
    }

    fn start(self: &Arc<Self>, key: Key, kind: &mut Entry<Kind>, permit: OwnedSemaphorePermit) {
        kind.state.starting += 1;
        let (spec, profile) = (kind.state.spec.clone(), kind.state.profile.clone());
        let (pool, off) = (self.clone(), kind.outdated.clone());
        self.context.tasks.spawn(async move {
            // The fork parent is started first: the pool can wait for it, and a process that was
            // started separately would not share its memory.
            let parent = pool
                .context
                .children
                .prepare(&spec, Instant::now() + PARENT);
            let parent = pool.release_permit_during(off.run_until_cancelled(parent), permit);
            let Some((_, permit)) = off.run_until_cancelled(parent).await else {
                return pool.settle(&key, Err(NotMade::CalledOff), Instant::now());
            };
            let began = Instant::now();
            let made = pool.make(&spec, profile, permit, &off).await;
            pool.settle(&key, made, began);
            pool.wake.notify_one();
        });
    }

    /// Waits for something with a permit of the pool, which is released if the wait is long.
    async fn release_permit_during<T>(
        &self,
        wait: impl Future<Output = T>,
        permit: OwnedSemaphorePermit,
    ) -> (T, OwnedSemaphorePermit) {
        let mut wait = std::pin::pin!(wait);
        if let Ok(done) = tokio::time::timeout(PARENT_PERMIT_WAIT, &mut wait).await {
            return (done, permit);
        }
        drop(permit);
        let done = wait.await;
        let permit = self.starts.clone().acquire_owned().await;
        (done, permit.expect("never closed"))
    }

    /// Adds a child to the warm ones, unless its kind was removed.
    fn settle(self: &Arc<Self>, key: &Key, made: Result<Spare, NotMade>, began: Instant) {
        let now = Instant::now();
        let mut kinds = self.kinds.lock();
        let Some(kind) = kinds.get_mut(key) else {
            drop(kinds);
            drop(made);
            return self.settled.notify_waiters();
        };
        kind.state.starting = kind.state.starting.saturating_sub(1);
        match made {
            Ok(spare) => {
                kind.state.demand.started(now - began);
                let gone = spare.child().gone();
                kind.state.ready.push_back(spare);
                let pool = Arc::downgrade(self);
                tokio::spawn(async move {
                    gone.await;
                    if let Some(pool) = pool.upgrade() {
                        pool.wake.notify_one();
                    }
                });
            }
            Err(NotMade::NoPermit | NotMade::CalledOff) => kind.not_before = now + PAUSE,
            Err(error) => {
                tracing::debug!(server = %kind.state.spec.name, %error, "warm process not started");
                kind.failed(PAUSE);
            }
        }
        self.settled.notify_waiters();
    }

    async fn make(
        &self,
        spec: &Arc<ServerSpec>,
        profile: Profile,
        start: OwnedSemaphorePermit,
        off: &CancellationToken,
    ) -> Result<Spare, NotMade> {
        let context = &self.context;
        let permit = match spec.mode {
            Mode::Stateful => {
                let permit = context.population.try_spare_permit();
                Some(permit.ok_or(NotMade::NoPermit)?)
            }
            Mode::Stateless | Mode::Shared => None,
        };
        let (store, made_of) = (context.store.clone(), MadeOf::read(context, spec).await);
        let held = tokio::task::spawn_blocking(move || store.create_unclaimed()).await;
        let held = held.expect("making a folder does not panic")?;
        let deadline = Instant::now() + NO_DEADLINE;
        let mut request = ChildRequest::of_bridge(spec, &held.job, profile, deadline);
        request.stop = off.clone();
        // A stateless child has no listener, like one that a call starts.
        if spec.mode != Mode::Stateless {
            request.listener = (context.listener)(&spec.name);
        }
        let child = match context.children.ready_aside(request, start).await {
            Ok(child) => child,
            Err(error) => {
                drop(permit);
                context.remove(held.lease).await;
                return Err(if off.is_cancelled() {
                    NotMade::CalledOff
                } else {
                    error.into()
                });
            }
        };
        let spare = Spare {
            context: context.clone(),
            made_of,
            parts: Some(SpareParts {
                child,
                held,
                permit,
                counted: Some(context.metrics.pooled(&spec.name)),
            }),
        };
        // A server that does not answer pings cannot be distinguished from one that hangs.
        if spare.child().answers_ping(FIRST_PING).await {
            Ok(spare)
        } else {
            Err(NotMade::Silent)
        }
    }
}

// A warm child without a session, in an unclaimed folder.

/// A warm child. Dropping it ends the child and deletes its folder.
pub struct Spare {
    context: Arc<Context>,
    made_of: MadeOf,
    /// `None` after it was taken.
    parts: Option<SpareParts>,
}

/// A warm child that was taken.
pub struct SpareParts {
    /// The process.
    pub child: Child,
    /// Its folder and lease.
    pub held: Held,
    /// Its permit among the stateful processes, if it counts as one.
    pub permit: Option<Permit>,
    counted: Option<Live>,
}

impl Spare {
    fn parts(&self) -> &SpareParts {
        self.parts.as_ref().expect("it has them until it is taken")
    }

    /// Its process.
    pub fn child(&self) -> &Child {
        &self.parts().child
    }

    /// The lease of its folder.
    pub fn lease(&self) -> &Lease {
        &self.parts().held.lease
    }

    /// Assigns its folder to this principal. Blocks on the disk.
    pub fn claim(self, new: &NewChat) -> Result<SpareParts, StoreError> {
        self.context.store.claim(self.lease(), None, new)?;
        Ok(self.into_parts())
    }

    /// The parts, after its folder was claimed.
    pub fn into_parts(mut self) -> SpareParts {
        let mut parts = self.parts.take().expect("once");
        parts.counted = None;
        parts
    }

    /// Whether a caller may get it: it runs, answers, has sent no request without a caller, and a
    /// start would still use the same files.
    async fn is_usable(&self, spec: &Arc<ServerSpec>) -> bool {
        let child = self.child();
        child.is_alive()
            && !child.parts.connection.has_declined()
            && self.made_of.holds(&self.context, spec).await
            && child.answers_ping(PING).await
            && !child.parts.connection.has_declined()
    }
}

impl Drop for Spare {
    fn drop(&mut self) {
        // Without a runtime the bridge is about to end, and dropping the child kills it.
        if let Some(parts) = self.parts.take()
            && let Ok(runtime) = Handle::try_current()
        {
            let context = self.context.clone();
            let end = async move { context.end(parts).await };
            self.context.tasks.spawn_on(end, &runtime);
        }
    }
}

impl Context {
    /// Ends a child that was not used: it has nothing to save.
    async fn end(&self, parts: SpareParts) {
        parts.child.end(End::Kill).await;
        drop(parts.permit);
        drop(parts.counted);
        self.remove(parts.held.lease).await;
    }

    /// Deletes a folder in which no process runs.
    async fn remove(&self, lease: Lease) {
        let store = self.store.clone();
        // If that fails, the clean-up deletes it after this bridge has ended.
        let removed = tokio::task::spawn_blocking(move || store.discard(&lease)).await;
        if let Ok(Err(error)) = removed {
            tracing::warn!(%error, "directory of an unused warm process not deleted");
        }
    }
}

/// The files that a child was started from.
struct MadeOf {
    installed: Option<Arc<Resolved>>,
    /// `None` if pinned packages determine the code.
    code: Option<Sources>,
}

impl MadeOf {
    /// The files that a start would use now.
    async fn read(context: &Context, spec: &Arc<ServerSpec>) -> Self {
        let installed = context.children.launches().state_of(spec).installed();
        let pinned = (installed.as_ref()).is_some_and(|found| found.identity.is_some());
        let spec = spec.clone();
        let read = move || match &spec.transport {
            Transport::Stdio(command) if !pinned => Some(Sources::of_command(command)),
            _ => None,
        };
        let code = tokio::task::spawn_blocking(read).await;
        let code = code.expect("reading files does not panic");
        Self { installed, code }
    }

    /// Whether a start would use the same packages now.
    fn is_current(&self, context: &Context, spec: &ServerSpec) -> bool {
        let what = |found: &Resolved| {
            let start = (found.program.clone(), found.args.clone(), found.env.clone());
            (found.identity.clone(), start)
        };
        let installed = context.children.launches().state_of(spec).installed();
        match (&self.installed, installed) {
            (None, None) => true,
            (Some(then), Some(now)) => {
                Arc::ptr_eq(then, &now) || then.identity.is_some() && what(then) == what(&now)
            }
            _ => false,
        }
    }

    /// Whether, in addition, the files have not changed.
    async fn holds(&self, context: &Arc<Context>, spec: &Arc<ServerSpec>) -> bool {
        if !self.is_current(context, spec) {
            return false;
        }
        if let Some(found) = &self.installed
            && !found.locked
            && !found.holds()
        {
            return false;
        }
        if self.code.is_none() {
            return true;
        }
        Self::read(context, spec).await.code == self.code
    }
}

#[cfg(test)]
mod demand_tests {
    use super::*;

    const IDLE: Duration = Duration::from_secs(600);

    /// The wanted number after this number of arrivals, one each `every`.
    fn after(arrivals: u32, every: Duration, start: Duration) -> usize {
        let mut now = Instant::now();
        let mut demand = Demand::new(now);
        demand.started(start);
        for _ in 0..arrivals {
            now += every;
            demand.arrived(now);
        }
        demand.wanted(IDLE, now)
    }

    #[test]
    fn one_for_who_comes_now_and_then() {
        assert_eq!(after(1, IDLE, Duration::from_secs(2)), 1);
        assert_eq!(after(9, IDLE, Duration::from_secs(2)), 1);
    }

    #[test]
    fn as_many_as_come_while_one_starts_and_some_more() {
        let every = Duration::from_millis(400);
        assert_eq!(after(200, every, Duration::from_millis(30)), 1);
        let slow = after(200, every, Duration::from_secs(1));
        assert!((5..=6).contains(&slow), "{slow}");
    }

    #[test]
    fn a_burst_is_seen_within_seconds() {
        let wanted = after(10, Duration::from_millis(100), Duration::from_secs(2));
        assert!(wanted >= 3, "{wanted}");
    }

    #[test]
    fn nobody_for_long_and_none_is_kept() {
        let now = Instant::now();
        let mut demand = Demand::new(now);
        demand.arrived(now);
        assert_eq!(demand.wanted(IDLE, now + IDLE / 2), 1);
        assert_eq!(demand.wanted(IDLE, now + IDLE), 0);
    }

    #[test]
    fn fewer_as_fewer_come() {
        let mut now = Instant::now();
        let mut demand = Demand::new(now);
        demand.started(Duration::from_secs(2));
        for _ in 0..100 {
            now += Duration::from_millis(100);
            demand.arrived(now);
        }
        let busy = demand.wanted(IDLE, now);
        let later = demand.wanted(IDLE, now + Duration::from_secs(120));
        assert!(busy > 10 && later < busy / 2, "{busy}, then {later}");
        assert_eq!(demand.wanted(IDLE, now + Duration::from_secs(400)), 1);
    }
}
