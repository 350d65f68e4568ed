//! The ready pool: children that are started and greeted before anybody needs them, each for one
//! caller. Whoever takes one gets its folder with it, in which it has been from its birth.
//!
//! ```text
//! (none) ──demand──▶ Starting ──ready──▶ Ready ──taken──▶ a chat's, or one call's
//!                        └── failed ──▶ (none) ◀── died, outdated, idle, no room ──┘
//! ```
//! None is ever given out twice, or given back. Who finds none starts a child of his own at once.

use std::{
    cmp::Reverse,
    collections::{HashMap, VecDeque},
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use bridge_model::{ServerName, Tenant};
use bridge_process::{
    Child, ChildError, CommandSpec, End, Listener, Profile, UserValues, asks_for_user,
    launch::Resolved,
};
use bridge_state::{ChatStore, Held, Lease, NewChat, StoreError};
use parking_lot::{Mutex, MutexGuard};
use tokio::{
    runtime::Handle,
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::end::Population;
use crate::{
    admission::Permit,
    child::{ChildRequest, Children},
    config::{Mode, ServerSpec, SpecVersion, Transport},
    launches::Launching,
    memory::available_memory,
    telemetry::{Live, Metrics},
};

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
    /// Permits of the pool's own starts, held while a start is at work.
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
            tracing::debug!(server = %spec.name, "warm process discarded");
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

    /// Gives a permit among the stateful processes back: that of the child that was wanted longest
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

// The local files that a server's command names, and what lies beside its script: what somebody may
// be working on, and expects to run.

/// What is looked at beside a script; a folder with more is no program's own.
const MOST: usize = 1000;

const DEPTH: usize = 3;

const CODE: [&str; 11] = [
    "py", "js", "mjs", "cjs", "ts", "json", "toml", "rb", "php", "sh", "jar",
];

/// Packages, which are installed and not written.
const PACKAGES: [&str; 3] = ["__pycache__", "node_modules", "site-packages"];

/// A file as it was.
type File = (PathBuf, SystemTime, u64);

/// The files of a command, as they were. Blocks on the disk.
#[derive(Debug, PartialEq, Eq)]
pub struct Code(Vec<File>);

impl Code {
    /// As they are now.
    pub fn read(command: &CommandSpec) -> Self {
        let mut files = Vec::new();
        let cwd = command.cwd.as_deref().filter(|cwd| cwd.is_absolute());
        let local = |text: &String| {
            let path = cwd.map_or_else(|| PathBuf::from(text), |cwd| cwd.join(text));
            (path.is_absolute() && path.is_file()).then_some(path)
        };
        // What an interpreter runs.
        let script = command.args.iter().find_map(local);
        let program = Path::new(&command.program);
        let program = program.is_absolute().then(|| program.to_owned());
        files.extend(program.iter().chain(&script).filter_map(|path| file(path)));
        for folder in script.iter().filter_map(|path| path.parent()).chain(cwd) {
            let mut siblings = Vec::new();
            if walk(folder, DEPTH, &mut MOST.clone(), &mut siblings).is_some() {
                files.append(&mut siblings);
            }
        }
        files.sort();
        Self(files)
    }
}

fn file(path: &Path) -> Option<File> {
    let found = fs::metadata(path).ok()?;
    Some((path.to_owned(), found.modified().ok()?, found.len()))
}

/// `None` where there is more than is looked at.
fn walk(folder: &Path, depth: usize, left: &mut usize, found: &mut Vec<File>) -> Option<()> {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        *left = left.checked_sub(1)?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let kind = entry.file_type().ok();
        let path = entry.path();
        if name.starts_with('.') || PACKAGES.contains(&&*name) {
            continue;
        }
        if kind.is_some_and(|kind| kind.is_dir()) {
            if depth > 0 && !path.join("pyvenv.cfg").exists() {
                walk(&path, depth - 1, left, found)?;
            }
        } else if path
            .extension()
            .is_some_and(|end| CODE.iter().any(|code| end == *code))
        {
            found.extend(file(&path));
        }
    }
    Some(())
}

// How many children of a kind should be ready: as many as lately came within the time that one
// takes to start.

/// A burst is followed within this, and a quiet time is believed after the other.
const FAST: Duration = Duration::from_secs(10);

const SLOW: Duration = Duration::from_secs(60);

/// Arrivals come in heaps.
const SAFETY: f64 = 2.0;

/// Until one was started.
const START: Duration = Duration::from_secs(1);

/// Who came lately, and how long a start takes.
struct Demand {
    fast: Decaying,
    slow: Decaying,
    start: Option<Duration>,
    last: Instant,
}

/// A count of arrivals of which each fades.
struct Decaying {
    over: Duration,
    count: f64,
    at: Instant,
}

impl Demand {
    /// Nobody came so far.
    pub fn new(now: Instant) -> Self {
        let decaying = |over| Decaying {
            over,
            count: 0.0,
            at: now,
        };
        Self {
            fast: decaying(FAST),
            slow: decaying(SLOW),
            start: None,
            last: now,
        }
    }

    /// Somebody came.
    pub fn arrived(&mut self, now: Instant) {
        self.fast.add(now);
        self.slow.add(now);
        self.last = now;
    }

    /// A start took so long.
    pub fn started(&mut self, took: Duration) {
        self.start = Some(self.start.map_or(took, |before| (before * 3 + took) / 4));
    }

    /// When somebody came last.
    pub fn last(&self) -> Instant {
        self.last
    }

    /// How many should be ready; none once nobody came for `idle`.
    pub fn wanted(&self, idle: Duration, now: Instant) -> usize {
        if now.duration_since(self.last) >= idle {
            return 0;
        }
        let rate = self.fast.rate(now).max(self.slow.rate(now));
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

impl Decaying {
    fn count(&self, now: Instant) -> f64 {
        let age = now.duration_since(self.at).as_secs_f64();
        self.count * (-age / self.over.as_secs_f64()).exp()
    }

    fn add(&mut self, now: Instant) {
        self.count = self.count(now) + 1.0;
        self.at = now;
    }

    /// A second.
    fn rate(&self, now: Instant) -> f64 {
        self.count(now) / self.over.as_secs_f64()
    }
}

// Keeps the pool as full as it should be: no fuller than recent demand, memory and permits allow,
// and always behind those who wait for a start of their own.

/// A start is bounded by its own time limit.
const NO_DEADLINE: Duration = Duration::from_secs(24 * 60 * 60);

/// A child that has just started may answer its first ping as late as this.
const FIRST_PING: Duration = Duration::from_secs(5);

/// How long what children are forked from is waited for.
const PARENT: Duration = Duration::from_secs(60);

/// A start holds its permit among the pool's for so long while it waits for that.
const PARENT_PERMIT_WAIT: Duration = Duration::from_secs(10);

/// Between two looks while anything is ready, or should be.
const REST: Duration = Duration::from_secs(1);

/// The same while others start.
const SHORT_REST: Duration = Duration::from_millis(50);

/// Memory that came free is left alone for so long.
const MEMORY_PAUSE: Duration = Duration::from_secs(30);

/// Why no child is ready.
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

/// What there is room for now.
struct Room {
    /// Children of all kinds.
    most: usize,
    /// New ones may be started now.
    new: bool,
}

impl Pool {
    /// Starts and ends children as they are needed, until dropped.
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

    /// One look; when the next is due, where it is before somebody comes.
    async fn round(self: &Arc<Self>, no_new_before: &mut Instant) -> Option<Duration> {
        if self.lock().is_empty() {
            return None;
        }
        let now = Instant::now();
        let (memory, disk) = self.free().await;
        let low = memory < self.settings.min_free_memory;
        if low {
            *no_new_before = now + MEMORY_PAUSE;
        }
        // Some room above the floor, or what was just started would be ended again.
        let scarce = memory < self.settings.min_free_memory / 4 * 5;
        let halted = scarce || disk < self.settings.min_free_disk || now < *no_new_before;
        let room = Room {
            most: if low { 0 } else { self.settings.max },
            new: !halted && !self.stopping.is_cancelled(),
        };
        let ended = self.trim(&room, now);
        drop(ended);
        let held_up = self.start_wanted(&room, now);
        Some(if held_up { SHORT_REST } else { REST })
    }

    /// Bytes of memory and of disk.
    async fn free(&self) -> (u64, u64) {
        let store = self.home.store.clone();
        let look = move || (available_memory(), store.free_bytes().unwrap_or(0));
        tokio::task::spawn_blocking(look).await.unwrap_or_default()
    }

    /// Takes out what is dead, outdated or more than is wanted, the oldest first.
    fn trim(&self, room: &Room, now: Instant) -> Vec<Spare> {
        let mut ended = Vec::new();
        let mut kinds = self.lock();
        let over = self.home.population.is_over();
        for kind in kinds.values_mut() {
            for spare in std::mem::take(&mut kind.ready) {
                if !spare.child().is_alive() {
                    tracing::debug!(server = %kind.spec.name, "warm process exited");
                    kind.failed(now);
                    ended.push(spare);
                } else if spare.made_of.is_current(&self.home, &kind.spec) {
                    kind.ready.push_back(spare);
                } else {
                    ended.push(spare);
                }
            }
            let wanted = self.wanted(kind, room, now);
            while kind.ready.len() > wanted {
                ended.extend(kind.ready.pop_front());
            }
            if over && kind.spec.mode == Mode::Stateful {
                ended.extend(kind.ready.pop_front());
            }
        }
        let idle = self.settings.idle;
        kinds.retain(|_, kind| kind.count() > 0 || kind.demand.wanted(idle, now) > 0);
        ended
    }

    fn wanted(&self, kind: &Kind, room: &Room, now: Instant) -> usize {
        let own = kind.spec.pool.unwrap_or(self.settings.max);
        let wanted = kind.demand.wanted(self.settings.idle, now);
        wanted.min(own).min(room.most)
    }

    /// Begins the starts that are due now; whether more are, and wait for other starts.
    fn start_wanted(self: &Arc<Self>, room: &Room, now: Instant) -> bool {
        let mut ended = Vec::new();
        let mut kinds = self.lock();
        while let Some((key, count)) = self.due(&kinds, room, now) {
            if !room.new {
                return false;
            }
            if !self.home.children.has_leisure() {
                return true;
            }
            // Given back while the start only waits, so that it does not hold up those of others.
            let Ok(permit) = self.starts.clone().try_acquire_owned() else {
                return true;
            };
            if kinds.values().map(Kind::count).sum::<usize>() >= room.most {
                // The first of one server is worth more than the last of another.
                let richest = kinds.values_mut().max_by_key(|kind| kind.ready.len());
                match richest.filter(|kind| kind.ready.len() > count + 1) {
                    Some(richest) => ended.extend(richest.ready.pop_front()),
                    None => return false,
                }
            }
            if let Some(kind) = kinds.get_mut(&key) {
                self.start(key, kind, permit);
            }
        }
        false
    }

    /// What is to be started next, and how many of it there are.
    fn due(&self, kinds: &Kinds, room: &Room, now: Instant) -> Option<(Key, usize)> {
        let of_server = |(server, ..): &Key| {
            let same = kinds.iter().filter(|((name, ..), _)| name == server);
            same.map(|(_, kind)| kind.count()).sum::<usize>()
        };
        kinds
            .iter()
            .filter(|(_, kind)| now >= kind.not_before)
            .filter(|(_, kind)| kind.count() < self.wanted(kind, room, now))
            .filter(|(key, kind)| kind.spec.pool.is_none_or(|most| of_server(key) < most))
            .min_by_key(|(_, kind)| (kind.count(), Reverse(kind.demand.last())))
            .map(|(key, kind)| (key.clone(), kind.count()))
    }

    fn start(self: &Arc<Self>, key: Key, kind: &mut Kind, permit: OwnedSemaphorePermit) {
        kind.starting += 1;
        let (spec, profile) = (kind.spec.clone(), kind.profile.clone());
        let (pool, off) = (self.clone(), kind.outdated.clone());
        self.home.tasks.spawn(async move {
            // What it is forked from comes first: the pool can wait for it, and one that was started by
            // itself would hold its memory alone.
            let parent = pool.home.children.prepare(&spec, Instant::now() + PARENT);
            let parent = pool.release_permit_during(off.run_until_cancelled(parent), permit);
            let Some((_, permit)) = off.run_until_cancelled(parent).await else {
                pool.settle(&key, Err(NotMade::CalledOff), Instant::now());
                pool.settled.notify_waiters();
                return;
            };
            let began = Instant::now();
            let made = pool.make(&spec, profile, permit, &off).await;
            pool.settle(&key, made, began);
            pool.settled.notify_waiters();
            pool.wake.notify_one();
        });
    }

    /// Waits for something with a permit among the pool's starts, which is others' meanwhile where
    /// that takes long.
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

    /// What was made is ready, unless nobody wants it any more.
    fn settle(self: &Arc<Self>, key: &Key, made: Result<Spare, NotMade>, began: Instant) {
        let now = Instant::now();
        let mut kinds = self.lock();
        let Some(kind) = kinds.get_mut(key) else {
            drop(kinds);
            drop(made);
            return;
        };
        kind.starting = kind.starting.saturating_sub(1);
        match made {
            Ok(spare) => {
                kind.demand.started(now - began);
                let gone = spare.child().gone();
                kind.ready.push_back(spare);
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
                tracing::debug!(server = %kind.spec.name, %error, "warm process not started");
                kind.failed(now);
            }
        }
    }

    async fn make(
        &self,
        spec: &Arc<ServerSpec>,
        profile: Profile,
        start: OwnedSemaphorePermit,
        off: &CancellationToken,
    ) -> Result<Spare, NotMade> {
        let home = &self.home;
        let permit = match spec.mode {
            Mode::Stateful => Some(
                home.population
                    .try_spare_permit()
                    .ok_or(NotMade::NoPermit)?,
            ),
            Mode::Stateless | Mode::Shared => None,
        };
        let make = {
            let (home, spec) = (home.clone(), spec.clone());
            move || {
                let made_of = MadeOf::now(&home, &spec);
                let made = home.store.create_unclaimed();
                made.map(|held| (made_of, held))
            }
        };
        let made = tokio::task::spawn_blocking(make).await;
        let (made_of, held) = match made.expect("making a folder does not panic") {
            Ok(made) => made,
            Err(error) => return Err(error.into()),
        };
        let request = ChildRequest {
            spec: spec.clone(),
            job: held.job.clone(),
            profile,
            user: UserValues::default(),
            tenant: Tenant::bridge(),
            deadline: Instant::now() + NO_DEADLINE,
            listener: match spec.mode {
                // As a call's own child has it.
                Mode::Stateless => Arc::new(|_| {}),
                _ => (home.listener)(&spec.name),
            },
        };
        let child = match home.children.ready_aside(request, start, off).await {
            Ok(child) => child,
            Err(error) => {
                drop(permit);
                home.remove(held.lease).await;
                let called_off = off.is_cancelled();
                return Err(if called_off {
                    NotMade::CalledOff
                } else {
                    error.into()
                });
            }
        };
        let spare = Spare {
            home: home.clone(),
            made_of,
            parts: Some(SpareParts {
                child,
                held,
                permit,
                counted: Some(home.metrics.pooled(&spec.name)),
            }),
        };
        // A server that answers none cannot be told from one that hangs.
        if spare.child().answers_ping(FIRST_PING).await {
            Ok(spare)
        } else {
            Err(NotMade::Silent)
        }
    }
}

// A child that is ready and nobody's, in a folder of nobody's.

/// A ready child. Dropped, it ends and its folder goes.
pub struct Spare {
    home: Arc<Home>,
    made_of: MadeOf,
    /// `None` once somebody has it.
    parts: Option<SpareParts>,
}

/// What somebody gets who takes it.
pub struct SpareParts {
    /// The process.
    pub child: Child,
    /// Its folder from birth, and our right to it.
    pub held: Held,
    /// Its permit among the stateful processes, where it counts as one.
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

    /// Our right to its folder.
    pub fn lease(&self) -> &Lease {
        &self.parts().held.lease
    }

    /// Makes its folder this principal's. Blocks on the disk.
    pub fn claim(self, new: &NewChat) -> Result<SpareParts, StoreError> {
        self.home.store.claim(self.lease(), None, new)?;
        Ok(self.into_parts())
    }

    /// All of it, for who has claimed its folder.
    pub fn into_parts(mut self) -> SpareParts {
        let mut parts = self.parts.take().expect("once");
        parts.counted = None;
        parts
    }

    /// Whether a caller may have it: it lives, answers, asked nothing of nobody, and is what would
    /// be started now.
    async fn is_fit(&self, spec: &Arc<ServerSpec>) -> bool {
        let child = self.child();
        child.is_alive()
            && !child.was_declined()
            && self.made_of.holds(&self.home, spec).await
            && child.answers_ping(PING).await
            && !child.was_declined()
    }
}

impl Drop for Spare {
    fn drop(&mut self) {
        // Without a runtime the process is about to end, and the drop of the child kills it.
        if let Some(parts) = self.parts.take()
            && let Ok(runtime) = Handle::try_current()
        {
            let home = self.home.clone();
            let end = async move { home.end(parts).await };
            self.home.tasks.spawn_on(end, &runtime);
        }
    }
}

impl Home {
    /// Ends a child that nobody had: it has nothing to save.
    async fn end(&self, parts: SpareParts) {
        parts.child.end(End::Kill).await;
        drop(parts.permit);
        drop(parts.counted);
        self.remove(parts.held.lease).await;
    }

    /// Removes a folder in which nothing runs.
    async fn remove(&self, lease: Lease) {
        let store = self.store.clone();
        // What cannot be removed now is the collector's, once this bridge has ended.
        let removed = tokio::task::spawn_blocking(move || store.discard(&lease)).await;
        if let Ok(Err(error)) = removed {
            tracing::warn!(%error, "directory of an unused warm process not deleted");
        }
    }
}

/// What a child was started from.
struct MadeOf {
    installed: Option<Arc<Resolved>>,
    /// Unless packages say what runs.
    code: Option<Code>,
}

impl MadeOf {
    /// What would be started now. Blocks on the disk.
    fn now(home: &Home, spec: &ServerSpec) -> Self {
        let installed = installed(home, spec);
        let pinned = installed
            .as_ref()
            .is_some_and(|found| found.identity.is_some());
        let code = match &spec.transport {
            Transport::Stdio(command) if !pinned => Some(Code::read(command)),
            _ => None,
        };
        Self { installed, code }
    }

    /// Whether the same packages would be started now.
    fn is_current(&self, home: &Home, spec: &ServerSpec) -> bool {
        match (&self.installed, installed(home, spec)) {
            (None, None) => true,
            (Some(then), Some(now)) => {
                Arc::ptr_eq(then, &now)
                    || (then.identity.is_some()
                        && then.identity == now.identity
                        && (&then.program, &then.args, &then.env)
                            == (&now.program, &now.args, &now.env))
            }
            _ => false,
        }
    }

    /// The same, and nobody has changed the files.
    async fn holds(&self, home: &Arc<Home>, spec: &Arc<ServerSpec>) -> bool {
        if !self.is_current(home, spec) {
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
        let (home, spec) = (home.clone(), spec.clone());
        let now = tokio::task::spawn_blocking(move || Self::now(&home, &spec)).await;
        now.is_ok_and(|now| now.code == self.code)
    }
}

fn installed(home: &Home, spec: &ServerSpec) -> Option<Arc<Resolved>> {
    match home.children.launches().state_of(spec) {
        Launching::Installed(resolved) => Some(resolved),
        _ => None,
    }
}

#[cfg(test)]
mod code_tests {
    use indexmap::IndexMap;

    use super::*;

    fn command(script: &Path) -> CommandSpec {
        CommandSpec {
            program: "python3".into(),
            args: vec!["-u".into(), script.display().to_string()],
            env: IndexMap::new(),
            cwd: None,
        }
    }

    #[test]
    fn what_is_beside_a_script_counts_and_data_do_not() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("server.py", "1");
        write("lib/helper.py", "1");
        let command = command(&folder.path().join("server.py"));
        let before = Code::read(&command);
        for ignored in [
            "data.sqlite",
            "lib/__pycache__/helper.json",
            ".git/x.py",
            "a/b/c/d/e.py",
        ] {
            write(ignored, "x");
            assert_eq!(Code::read(&command), before, "{ignored}");
        }
        for changed in ["lib/helper.py", "server.py", "new.py"] {
            let before = Code::read(&command);
            write(changed, "other");
            assert_ne!(Code::read(&command), before, "{changed}");
        }
    }

    #[test]
    fn in_a_folder_of_everything_the_script_alone_counts() {
        let folder = tempfile::tempdir().unwrap();
        for number in 0..=MOST {
            fs::write(folder.path().join(format!("{number}.py")), "").unwrap();
        }
        let script = folder.path().join("0.py");
        let before = Code::read(&command(&script));
        fs::write(folder.path().join("1.py"), "other").unwrap();
        assert_eq!(Code::read(&command(&script)), before);
        fs::write(&script, "other").unwrap();
        assert_ne!(Code::read(&command(&script)), before);
    }
}

#[cfg(test)]
mod demand_tests {
    use super::*;

    const IDLE: Duration = Duration::from_secs(600);

    /// What is wanted after so many arrivals, one each `every`.
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
