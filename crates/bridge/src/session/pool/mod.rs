//! The ready pool: children that are started and greeted before anybody needs them, each for one
//! caller. Whoever takes one gets its folder with it, in which it has been from its birth.
//!
//! ```text
//! (none) ──demand──▶ Starting ──ready──▶ Ready ──taken──▶ a chat's, or one call's
//!                        └── failed ──▶ (none) ◀── died, outdated, idle, no room ──┘
//! ```
//! None is ever given out twice, or given back. Who finds none starts a child of his own at once.

mod code;
mod demand;
mod refill;
mod spare;

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use bridge_model::ServerName;
use bridge_process::{Listener, Profile, asks_for_user};
use bridge_state::ChatStore;
use parking_lot::{Mutex, MutexGuard};
use tokio::{
    sync::{Notify, Semaphore},
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::population::Population;
use crate::{
    child::Children,
    config::{Mode, ServerSpec, SpecVersion, Transport},
    telemetry::Metrics,
};
use demand::Demand;

pub use spare::Spare;

/// How long a ready child may take to show that it still answers; a fresh one takes longer.
const PING: Duration = Duration::from_secs(1);
/// Forms of speech of one server that are kept apart.
const PROFILES: usize = 8;
/// After a child that did not start, or died unused; doubles with each.
const PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(600);

/// What the pool is bounded by.
#[derive(Debug, Clone)]
pub struct PoolSettings {
    /// Children of all servers; none where it is 0.
    pub max: usize,
    /// A server for which nobody came for so long has none.
    pub idle: Duration,
    /// None while less memory is free.
    pub min_free_memory: u64,
    /// None is started while less disk is free.
    pub min_free_disk: u64,
    /// Starts of the pool's side by side.
    pub starts: usize,
}

/// All ready children of this bridge.
pub struct Pool {
    settings: PoolSettings,
    home: Arc<Home>,
    kinds: Mutex<Kinds>,
    /// The servers as they are now; calls may still go on with what they were.
    current: Mutex<HashMap<ServerName, SpecVersion>>,
    /// Places of the pool's own starts, held while a start is at work.
    starts: Arc<Semaphore>,
    /// Wakes the one who fills.
    wake: Notify,
    /// Wakes those who wait for a start to be over.
    settled: Notify,
    /// Nothing is started any more.
    stopping: CancellationToken,
}

/// What a ready child lives by.
struct Home {
    children: Arc<Children>,
    store: Arc<ChatStore>,
    population: Arc<Population>,
    metrics: Arc<Metrics>,
    listener: Arc<dyn Fn(&ServerName) -> Listener + Send + Sync>,
    /// Starts and ends: a shutdown waits for them.
    tasks: TaskTracker,
}

/// Children that can stand for each other: of one server as it is now, and spoken to alike.
type Key = (ServerName, SpecVersion, Box<str>);

type Kinds = HashMap<Key, Kind>;

/// Those of one key.
struct Kind {
    spec: Arc<ServerSpec>,
    profile: Profile,
    demand: Demand,
    /// The oldest first.
    ready: VecDeque<Spare>,
    starting: usize,
    not_before: Instant,
    pause: Duration,
    /// Ends its starts.
    outdated: CancellationToken,
}

impl Drop for Kind {
    fn drop(&mut self) {
        self.outdated.cancel();
    }
}

impl Kind {
    fn new(spec: &Arc<ServerSpec>, profile: Profile, stopping: &CancellationToken) -> Self {
        let now = Instant::now();
        Self {
            spec: spec.clone(),
            profile,
            demand: Demand::new(now),
            ready: VecDeque::new(),
            starting: 0,
            not_before: now,
            pause: PAUSE,
            outdated: stopping.child_token(),
        }
    }

    fn count(&self) -> usize {
        self.ready.len() + self.starting
    }

    /// A child did not start, or died unused.
    fn failed(&mut self, now: Instant) {
        self.not_before = now + self.pause;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
    }
}

impl Pool {
    /// Nothing is started before somebody asks, and [`Pool::fill`] runs.
    pub fn new(
        settings: PoolSettings,
        children: Arc<Children>,
        store: Arc<ChatStore>,
        metrics: Arc<Metrics>,
        population: Arc<Population>,
        listener: Arc<dyn Fn(&ServerName) -> Listener + Send + Sync>,
    ) -> Self {
        let home = Home {
            children,
            store,
            population,
            metrics,
            listener,
            tasks: TaskTracker::new(),
        };
        Self {
            starts: Arc::new(Semaphore::new(settings.starts.max(1))),
            settings,
            home: Arc::new(home),
            kinds: Mutex::default(),
            current: Mutex::default(),
            wake: Notify::new(),
            settled: Notify::new(),
            stopping: CancellationToken::new(),
        }
    }

    /// A ready child for a new chat or for one call, if there is one that was made for it; nobody
    /// else gets it. Who asks is counted: for the next there may be one.
    pub async fn take(&self, spec: &Arc<ServerSpec>, profile: &Profile) -> Option<Spare> {
        let (key, profile) = self.key(spec, profile)?;
        self.note_arrival(&key, spec, profile);
        let found = self.find(&key, spec).await;
        self.home.metrics.pool_asked(&spec.name, found.is_some());
        self.wake.notify_one();
        found
    }

    async fn find(&self, key: &Key, spec: &Arc<ServerSpec>) -> Option<Spare> {
        let until = Instant::now() + PING;
        while Instant::now() < until {
            let spare = self.lock().get_mut(key)?.ready.pop_front()?;
            let fit = spare.is_fit(spec).await;
            let mut kinds = self.lock();
            let Some(kind) = kinds.get_mut(key) else {
                continue;
            };
            if fit {
                kind.pause = PAUSE;
                return Some(spare);
            }
            tracing::debug!(server = %spec.name, "a process that was ready is of no use");
            kind.failed(Instant::now());
            if spare.child().was_declined() {
                // It asks its caller at its start: none of its kind can do without him.
                kind.not_before = Instant::now() + LONGEST_PAUSE;
            }
        }
        None
    }

    /// Which children would do; `None` where each needs its caller from the beginning.
    fn key(&self, spec: &Arc<ServerSpec>, profile: &Profile) -> Option<(Key, Profile)> {
        let Transport::Stdio(command) = &spec.transport else {
            return None;
        };
        let off = self.settings.max == 0 || spec.pool == Some(0) || self.stopping.is_cancelled();
        let of_user = command.env.values().any(|value| asks_for_user(value));
        if off || of_user || spec.mode == Mode::Shared {
            return None;
        }
        let profile = self.home.children.spoken(spec, profile.clone());
        // Unlike those of shared children, they hear the very revision that the caller asks for.
        let said = format!("{} {}", profile.protocol_version, profile.key());
        Some(((spec.name.clone(), spec.version(), said.into()), profile))
    }

    /// Of too many kinds of one server the one that was asked for longest ago is given up.
    fn note_arrival(&self, key: &Key, spec: &Arc<ServerSpec>, profile: Profile) {
        if lock(&self.current).get(&key.0) != Some(&key.1) {
            return;
        }
        let mut given_up = None;
        let mut kinds = self.lock();
        if !kinds.contains_key(key) {
            let alike = kinds.iter().filter(|((server, ..), _)| *server == key.0);
            let alike: Vec<_> = alike.map(|(key, kind)| (kind.demand.last(), key)).collect();
            if alike.len() >= PROFILES
                && let Some((_, oldest)) = alike.into_iter().min_by_key(|(last, _)| *last)
            {
                let oldest = oldest.clone();
                given_up = kinds.remove(&oldest);
            }
            let kind = Kind::new(spec, profile, &self.stopping);
            kinds.insert(key.clone(), kind);
        }
        if let Some(kind) = kinds.get_mut(key) {
            kind.demand.arrived(Instant::now());
        }
        drop(kinds);
        drop(given_up);
    }

    /// Gives a place among the stateful processes back: that of the child that was wanted longest
    /// ago, or else of one that is starting. `false` if the pool holds none.
    pub async fn make_room(&self) -> bool {
        let mut settled = std::pin::pin!(self.settled.notified());
        // Before the look: a start that ends during it is heard.
        settled.as_mut().enable();
        let spare = {
            let mut kinds = self.lock();
            let stateful = kinds
                .values_mut()
                .filter(|kind| kind.spec.mode == Mode::Stateful && kind.count() > 0);
            let kind = stateful.min_by_key(|kind| (kind.ready.is_empty(), kind.demand.last()));
            let Some(kind) = kind else { return false };
            kind.not_before = Instant::now() + PAUSE;
            let spare = kind.ready.pop_front();
            if spare.is_none() {
                kind.outdated.cancel();
                kind.outdated = self.stopping.child_token();
            }
            spare
        };
        match spare {
            Some(spare) => self.home.end(spare.into_parts()).await,
            None => settled.await,
        }
        true
    }

    /// Takes these servers over; ends the children of those that are gone or changed.
    pub fn follow<'a>(&self, specs: impl Iterator<Item = &'a Arc<ServerSpec>>) {
        let current: HashMap<_, _> = specs
            .map(|spec| (spec.name.clone(), spec.version()))
            .collect();
        lock(&self.current).clone_from(&current);
        let outdated = |(name, version, _): &Key, _: &mut Kind| current.get(name) != Some(version);
        let gone: Vec<_> = self.lock().extract_if(outdated).collect();
        drop(gone);
        self.wake.notify_one();
    }

    /// Ends those whose folder another bridge has taken over.
    pub async fn check_leases(&self) {
        let leases: Vec<_> = {
            let kinds = self.lock();
            let ready = kinds.values().flat_map(|kind| &kind.ready);
            ready.map(|spare| spare.lease().clone()).collect()
        };
        if leases.is_empty() {
            return;
        }
        let store = self.home.store.clone();
        let look = move || {
            let lost = leases.into_iter();
            lost.filter(|lease| matches!(store.holds(lease), Ok(false)))
                .collect::<Vec<_>>()
        };
        let lost = tokio::task::spawn_blocking(look).await.unwrap_or_default();
        let mut ended: Vec<VecDeque<Spare>> = Vec::new();
        for kind in self.lock().values_mut() {
            let ready = std::mem::take(&mut kind.ready).into_iter();
            let (unfit, fit) = ready.partition(|spare| lost.contains(spare.lease()));
            kind.ready = fit;
            ended.push(unfit);
        }
    }

    /// Keeps none any more.
    pub fn stop(&self) {
        self.stopping.cancel();
        let kinds = std::mem::take(&mut *self.lock());
        drop(kinds);
    }

    /// The same, and waits until nothing of them is left.
    pub async fn end_all(&self) {
        self.stop();
        self.home.tasks.close();
        self.home.tasks.wait().await;
    }

    /// How many are ready.
    pub fn count(&self) -> usize {
        self.lock().values().map(|kind| kind.ready.len()).sum()
    }

    fn lock(&self) -> MutexGuard<'_, Kinds> {
        lock(&self.kinds)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock()
}
