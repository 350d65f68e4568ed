//! Fork servers: for a Python server a parent that has imported its modules, from which its
//! processes are forked. A process costs a fraction of the time and of the memory then.
//! [`bridge_process::fork`] has the parents; here is which server has one.
//!
//! ```text
//! (none) ──asked for──▶ Starting ──fit──▶ Ready ──idle, sources changed──▶ (none)
//!                          └── unfit ──▶ Exec     └── gone ──▶ Exec ──pause──▶ (none)
//! ```
//! While there is no parent, and wherever there can be none, processes are started each by itself: nobody
//! ever waits for a parent.

use std::{collections::HashMap, path::PathBuf, sync::Arc, time::Duration};

use bridge_model::ServerName;
use bridge_process::{
    Launch, Profile, asks_for_user,
    fork::{Means, Parent, Plan, Scratch},
    launch::{Resolved, Seen, seen},
};
use parking_lot::{Mutex, MutexGuard};
use tokio::{sync::watch, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    config,
    config::{Mode, ServerSpec, SpecVersion, Transport},
};

/// A parent that nobody asked anything for so long ends; and this is how near to each other two
/// starts must be for a parent to be worth it by itself.
const IDLE: Duration = Duration::from_secs(900);

/// The parents of all servers.
pub struct ForkServers {
    means: Means,
    entries: Mutex<HashMap<(ServerName, SpecVersion), Entry>>,
    tasks: TaskTracker,
    closed: CancellationToken,
}

struct Entry {
    of: Option<Arc<Resolved>>,
    /// The server file asks for it.
    asked: bool,
    state: watch::Sender<ForkState>,
    last: Instant,
    lost: u32,
    /// Ends its task, and with that the parent.
    outdated: CancellationToken,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.outdated.cancel();
    }
}

impl ForkServers {
    /// No parent is started before one is asked for.
    pub fn new(means: Means) -> Self {
        Self {
            means,
            entries: Mutex::default(),
            tasks: TaskTracker::new(),
            closed: CancellationToken::new(),
        }
    }

    /// Why processes of this server are not forked whatever may come; `None` if they may be.
    pub fn refuses(spec: &ServerSpec, found: Option<&Resolved>) -> Option<&'static str> {
        if let Transport::Stdio(command) = &spec.transport
            && command.env.values().any(|value| asks_for_user(value))
        {
            return Some("its environment contains user data, which imported modules could keep");
        }
        match spec.launch {
            config::Launch::Exec => Some("its \"launch\" is \"exec\""),
            config::Launch::Fork => None,
            config::Launch::Auto => match found {
                None => Some(
                    "it starts with its own command line; only servers with an installed \
                     environment are forked",
                ),
                Some(found) if found.identity.is_none() => {
                    Some("its packages are not pinned; set \"launch\": \"fork\" to fork anyway")
                }
                Some(_) if spec.mode == Mode::Shared => Some("single shared process"),
                Some(_) => None,
            },
        }
    }

    /// The parent to fork from, if there is one. Otherwise `want` is asked for what one is made of,
    /// where one is wanted, and it is made beside the calls.
    pub fn parent(
        self: &Arc<Self>,
        spec: &Arc<ServerSpec>,
        found: &Arc<Resolved>,
        plan: &Plan,
        at_once: bool,
        want: impl FnOnce() -> std::io::Result<Wanted>,
    ) -> Option<ParentRef> {
        let mut entries = self.lock();
        let key = (spec.name.clone(), spec.version());
        let same = |entry: &Entry| entry.of.as_ref().is_some_and(|of| Arc::ptr_eq(of, found));
        if entries.get(&key).is_some_and(|entry| !same(entry)) {
            entries.remove(&key);
        }
        let now = Instant::now();
        let first = !entries.contains_key(&key);
        let entry = entries.entry(key.clone()).or_insert_with(|| {
            let mut entry = self.entry(spec, ForkState::None);
            entry.of = Some(found.clone());
            entry
        });
        let again = !first && now - entry.last < IDLE;
        entry.last = now;
        let state = entry.state.borrow().clone();
        match state {
            ForkState::Ready(ready) if ready.parent.runs(plan) => return Some(ParentRef(ready)),
            ForkState::Starting | ForkState::Ready(_) | ForkState::Exec(_, None) => return None,
            ForkState::Exec(_, Some(until)) if now < until => return None,
            ForkState::Exec(..) | ForkState::None => {}
        }
        if self.closed.is_cancelled() || !(again || at_once || spec.launch == config::Launch::Fork)
        {
            return None;
        }
        match want() {
            Ok(wanted) => {
                entry.state.send_replace(ForkState::Starting);
                let (state, outdated) = (entry.state.clone(), entry.outdated.clone());
                let (this, lost) = (self.clone(), entry.lost);
                drop(entries);
                self.tasks.spawn(async move {
                    let life = this.clone().live(wanted, state, key, lost);
                    outdated.run_until_cancelled_owned(life).await;
                });
            }
            Err(error) => {
                let why = format!("cannot create the directory of its fork parent: {error}");
                entry
                    .state
                    .send_replace(ForkState::Exec(why.into(), Some(now + LONGEST_PAUSE)));
            }
        }
        None
    }

    fn entry(&self, spec: &ServerSpec, state: ForkState) -> Entry {
        Entry {
            of: None,
            asked: spec.launch == config::Launch::Fork,
            state: watch::channel(state).0,
            last: Instant::now(),
            lost: 0,
            outdated: self.closed.child_token(),
        }
    }

    /// There can be no parent for this server, and why.
    pub fn cannot(&self, spec: &ServerSpec, why: &str) {
        let key = (spec.name.clone(), spec.version());
        let entry = self.entry(spec, ForkState::Exec(why.into(), None));
        self.lock().entry(key).or_insert(entry);
    }

    /// Its sources have changed: the next start makes another parent.
    pub fn forget(&self, spec: &ServerSpec) {
        self.lock().remove(&(spec.name.clone(), spec.version()));
    }

    /// How processes of this server come to be, once that is known.
    pub async fn settled(&self, spec: &ServerSpec, until: Instant) -> Forking {
        let watch = {
            let entries = self.lock();
            let entry = entries.get(&(spec.name.clone(), spec.version()));
            entry.map(|entry| entry.state.subscribe())
        };
        let Some(mut watch) = watch else {
            return Forking::NotYet;
        };
        let settled = watch.wait_for(|state| !matches!(state, ForkState::Starting));
        match tokio::time::timeout_at(until, settled).await {
            Ok(Ok(state)) => state.told(),
            _ => Forking::NotYet,
        }
    }

    /// Whether it is open how processes of this server come to be.
    pub fn is_undecided(&self, spec: &ServerSpec) -> bool {
        let entries = self.lock();
        let entry = entries.get(&(spec.name.clone(), spec.version()));
        entry.is_none_or(|entry| {
            matches!(*entry.state.borrow(), ForkState::None | ForkState::Starting)
        })
    }

    /// Servers that should be forked, and are not.
    pub fn warnings(&self) -> Vec<String> {
        let entries = self.lock();
        let asked = entries.iter().filter(|(_, entry)| entry.asked);
        let told = asked.filter_map(|((name, _), entry)| {
            let Forking::Starts(why) = entry.state.borrow().told() else {
                return None;
            };
            Some(format!("server '{name}': processes are not forked: {why}"))
        });
        told.collect()
    }

    /// A process could not be forked from this parent: it is not asked again.
    pub fn give_up(&self, spec: &ServerSpec, parent: &ParentRef, why: &str) {
        let mut entries = self.lock();
        let key = (spec.name.clone(), spec.version());
        let Some(entry) = entries.get_mut(&key) else {
            return;
        };
        let same = matches!(&*entry.state.borrow(), ForkState::Ready(ready) if Arc::ptr_eq(ready, &parent.0));
        if same {
            let state = lost(why, entry.lost);
            entry.lost += 1;
            entry.state.send_replace(state);
        }
    }

    /// Ends the parents of servers that are not among these. What was forked lives on.
    pub fn follow(&self, current: impl Fn(&ServerName) -> Option<SpecVersion>) {
        self.lock()
            .retain(|(name, version), _| current(name) == Some(*version));
    }

    /// Ends all parents.
    pub async fn close(&self) {
        self.closed.cancel();
        self.lock().clear();
        self.tasks.close();
        self.tasks.wait().await;
    }

    async fn live(
        self: Arc<Self>,
        wanted: Wanted,
        state: watch::Sender<ForkState>,
        key: (ServerName, SpecVersion),
        lost_before: u32,
    ) {
        let Wanted {
            spec,
            found,
            profile,
            plan,
            launch,
            job,
        } = wanted;
        let name = spec.name.as_str();
        let began = Instant::now();
        let made = Parent::start(plan, launch, &job, name, &profile, self.means.clone()).await;
        let parent = match made {
            Ok(parent) => parent,
            Err(why) => {
                tracing::warn!(
                    server = %spec.name,
                    %why,
                    "processes cannot be forked and are started directly"
                );
                state.send_replace(ForkState::Exec(why.into(), None));
                return;
            }
        };
        let loaded = &parent.loaded;
        tracing::info!(
            server = %spec.name,
            modules = loaded.modules,
            left_out = loaded.left_out.len(),
            took = ?began.elapsed(),
            "processes are forked from a preloaded process"
        );
        tracing::debug!(
            server = %spec.name,
            left_out = ?loaded.left_out,
            "modules that are not preloaded"
        );
        let sources = loaded.sources.iter().cloned();
        let sources = sources.map(|path| (path.clone(), seen(&path))).collect();
        let ready = Arc::new(Ready { parent, sources });
        state.send_replace(ForkState::Ready(ready.clone()));
        let end = loop {
            let last = self.lock().get(&key).map(|entry| entry.last);
            let Some(last) = last.filter(|_| found.holds()) else {
                break ForkState::None;
            };
            if last.elapsed() >= IDLE {
                break ForkState::None;
            }
            tokio::select! {
                () = ready.parent.gone() => break lost("its fork parent exited", lost_before),
                () = tokio::time::sleep_until(last + IDLE) => {}
            }
        };
        if let ForkState::Exec(why, _) = &end {
            tracing::warn!(
                server = %spec.name,
                %why,
                "fork parent failed; processes are started without forking for now"
            );
            if let Some(entry) = self.lock().get_mut(&key) {
                entry.lost = lost_before + 1;
            }
        }
        state.send_if_modified(|state| {
            let same = matches!(state, ForkState::Ready(other) if Arc::ptr_eq(other, &ready));
            if same {
                *state = end;
            }
            same
        });
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(ServerName, SpecVersion), Entry>> {
        self.entries.lock()
    }
}

// Where a server's fork parent is.

/// After a parent was lost; doubles with each.
const PAUSE: Duration = Duration::from_secs(5);

pub const LONGEST_PAUSE: Duration = Duration::from_secs(600);

/// How processes of a server come to be now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Forking {
    /// By forking, from a parent with so many modules; some are imported by each process itself.
    Forks {
        modules: usize,
        left_out: Vec<String>,
    },
    /// Each by itself, and why.
    Starts(Arc<str>),
    /// Each by itself: nobody asked for more so far.
    NotYet,
}

/// As the module above draws it.
#[derive(Clone)]
pub enum ForkState {
    None,
    Starting,
    Ready(Arc<Ready>),
    Exec(Arc<str>, Option<Instant>),
}

/// A parent, and what its sources were when it was made.
pub struct Ready {
    pub parent: Parent,
    pub sources: Vec<(PathBuf, Seen)>,
}

/// It is gone; so many were before.
pub fn lost(why: &str, times: u32) -> ForkState {
    let pause = PAUSE.saturating_mul(1 << times.min(10)).min(LONGEST_PAUSE);
    ForkState::Exec(why.into(), Some(Instant::now() + pause))
}

impl ForkState {
    /// As others are told.
    pub fn told(&self) -> Forking {
        match self {
            Self::Ready(ready) => {
                let loaded = &ready.parent.loaded;
                let (modules, left_out) = (loaded.modules, loaded.left_out.clone());
                Forking::Forks { modules, left_out }
            }
            Self::Exec(why, _) => Forking::Starts(why.clone()),
            Self::None | Self::Starting => Forking::NotYet,
        }
    }
}

/// A parent to fork from.
#[derive(Clone)]
pub struct ParentRef(pub Arc<Ready>);

impl ParentRef {
    /// The files that it was made of are as they were. Looks at the disk.
    pub fn holds(&self) -> bool {
        self.0
            .sources
            .iter()
            .all(|(path, then)| seen(path) == *then)
    }

    /// The parent itself.
    pub fn parent(&self) -> &Parent {
        &self.0.parent
    }
}

// What a fork parent is made of.

/// What is needed to make a parent.
pub struct Wanted {
    pub spec: Arc<ServerSpec>,
    pub found: Arc<Resolved>,
    pub profile: Profile,
    pub plan: Plan,
    pub launch: Launch,
    pub job: Scratch,
}
