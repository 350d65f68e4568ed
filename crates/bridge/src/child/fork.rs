//! Fork parents: for a Python server a process that has imported its modules, and from which its
//! processes are forked. A process then takes a fraction of the time and memory.
//! [`bridge_process::fork`] runs the parents; this module decides which server has one.
//!
//! ```text
//! (none) ──needed──▶ Starting ──ready──▶ Ready ──idle, sources changed──▶ (none)
//!                        └── failed ──▶ Exec └── exited ──▶ Exec ──pause──▶ (none)
//! ```
//! While a server has no parent, or if it cannot have one, its processes are started separately: no
//! call waits for a parent.

use std::{sync::Arc, time::Duration};

use bridge_model::ServerName;
use bridge_process::{
    Launch, Profile,
    fork::{Means, Parent, Plan, Scratch},
    launch::{Resolved, Sources},
};
use tokio::{sync::watch, time::Instant};

use super::prepared::{self, LONGEST_PAUSE, Prepared};
use crate::{
    config,
    config::{Mode, ServerSpec, SpecVersion, Transport},
};

/// An unused parent ends after this time. Two starts within this time justify a parent.
const IDLE: Duration = Duration::from_secs(900);

/// The delay after the first loss of a parent.
const PAUSE: Duration = Duration::from_secs(5);

type Key = prepared::Key<()>;

/// The parents of all servers.
pub struct ForkServers {
    means: Means,
    prepared: Prepared<(), ParentState>,
}

struct ParentState {
    /// The environment of the parent; `None` if there can be no parent.
    found: Option<Arc<Resolved>>,
    /// Whether the server file requires it.
    asked: bool,
    parent: watch::Sender<ForkState>,
}

fn key(spec: &ServerSpec) -> Key {
    (spec.name.clone(), spec.version(), ())
}

impl ForkServers {
    /// Starts no parent before one is needed.
    pub fn new(means: Means) -> Self {
        Self {
            means,
            prepared: Prepared::default(),
        }
    }

    /// Why processes of this server are never forked; `None` if they can be.
    pub fn refuses(spec: &ServerSpec, found: Option<&Resolved>) -> Option<&'static str> {
        if let Transport::Stdio(command) = &spec.transport
            && command.asks_for_user()
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

    /// The parent to fork from, if there is one. Otherwise, if it is worthwhile, one is started with
    /// the result of `prepare`; the caller does not wait for it.
    pub fn parent(
        self: &Arc<Self>,
        spec: &Arc<ServerSpec>,
        found: &Arc<Resolved>,
        plan: &Plan,
        at_once: bool,
        prepare: impl FnOnce() -> std::io::Result<ParentStart>,
    ) -> Option<Arc<Ready>> {
        let mut entries = self.prepared.lock();
        let key = key(spec);
        let is_same =
            |of: &Option<Arc<Resolved>>| of.as_ref().is_some_and(|of| Arc::ptr_eq(of, found));
        entries.retain(|other, entry| *other != key || is_same(&entry.state.found));
        let now = Instant::now();
        let again = entries
            .get(&key)
            .is_some_and(|entry| now - entry.last < IDLE);
        let entry = entries
            .entry(key.clone())
            .or_insert_with(|| self.entry(spec, Some(found), ForkState::None));
        entry.last = now;
        let state = entry.state.parent.borrow().clone();
        match state {
            ForkState::Ready(ready) if ready.parent.runs(plan) => return Some(ready),
            ForkState::Exec(_, true) if now >= entry.not_before => {}
            ForkState::None => {}
            ForkState::Starting | ForkState::Ready(_) | ForkState::Exec(..) => return None,
        }
        let is_worthwhile = again || at_once || spec.launch == config::Launch::Fork;
        if self.prepared.stopping.is_cancelled() || !is_worthwhile {
            return None;
        }
        match prepare() {
            Ok(start) => {
                entry.state.parent.send_replace(ForkState::Starting);
                let (parent, outdated) = (entry.state.parent.clone(), entry.outdated.clone());
                let life = self.clone().live(start, parent, key);
                let life = async move { outdated.run_until_cancelled_owned(life).await };
                self.prepared.tasks.spawn(life);
            }
            Err(error) => {
                entry.not_before = now + LONGEST_PAUSE;
                let why = format!("cannot create the directory of its fork parent: {error}");
                let state = ForkState::Exec(why.into(), true);
                entry.state.parent.send_replace(state);
            }
        }
        None
    }

    fn entry(
        &self,
        spec: &ServerSpec,
        found: Option<&Arc<Resolved>>,
        state: ForkState,
    ) -> prepared::Entry<ParentState> {
        self.prepared.entry(ParentState {
            found: found.cloned(),
            asked: spec.launch == config::Launch::Fork,
            parent: watch::channel(state).0,
        })
    }

    /// Records why there can be no parent for this server.
    pub fn cannot(&self, spec: &ServerSpec, why: &str) {
        let entry = self.entry(spec, None, ForkState::Exec(why.into(), false));
        self.prepared.lock().entry(key(spec)).or_insert(entry);
    }

    /// Records that the sources have changed: the next start creates another parent.
    pub fn forget(&self, spec: &ServerSpec) {
        self.prepared.lock().remove(&key(spec));
    }

    /// How processes of this server are started, once that is decided.
    pub async fn settled(&self, spec: &ServerSpec, until: Instant) -> Forking {
        let parent = {
            let entries = self.prepared.lock();
            entries
                .get(&key(spec))
                .map(|entry| entry.state.parent.subscribe())
        };
        let Some(mut parent) = parent else {
            return Forking::NotYet;
        };
        let settled = parent.wait_for(|state| !matches!(state, ForkState::Starting));
        match tokio::time::timeout_at(until, settled).await {
            Ok(Ok(state)) => state.forking(),
            _ => Forking::NotYet,
        }
    }

    /// Whether it is not decided yet how processes of this server are started.
    pub fn is_undecided(&self, spec: &ServerSpec) -> bool {
        let entries = self.prepared.lock();
        let forking = |entry: &prepared::Entry<ParentState>| entry.state.parent.borrow().forking();
        entries
            .get(&key(spec))
            .is_none_or(|entry| forking(entry) == Forking::NotYet)
    }

    /// Warnings about servers that should be forked but are not.
    pub fn warnings(&self) -> Vec<String> {
        let entries = self.prepared.lock();
        let asked = entries.iter().filter(|(_, entry)| entry.state.asked);
        let warning = |((name, ..), entry): (&Key, &prepared::Entry<ParentState>)| {
            let Forking::Starts(why) = entry.state.parent.borrow().forking() else {
                return None;
            };
            Some(format!("server '{name}': processes are not forked: {why}"))
        };
        asked.filter_map(warning).collect()
    }

    /// Stops using this parent, because a process could not be forked from it.
    pub fn give_up(&self, spec: &ServerSpec, parent: &Arc<Ready>, why: &str) {
        self.retire(&key(spec), parent, Some(why));
    }

    /// Stops using a parent; `why` it was lost.
    fn retire(&self, key: &Key, ready: &Arc<Ready>, why: Option<&str>) {
        let mut entries = self.prepared.lock();
        let Some(entry) = entries.get_mut(key) else {
            return;
        };
        let is_used = matches!(&*entry.state.parent.borrow(), ForkState::Ready(used) if Arc::ptr_eq(used, ready));
        if is_used {
            let state = why.map_or(ForkState::None, |why| ForkState::Exec(why.into(), true));
            if why.is_some() {
                entry.failed(PAUSE);
            }
            entry.state.parent.send_replace(state);
        }
    }

    /// Ends the parents of removed or changed servers, but no process that was forked from them.
    pub fn follow(&self, current: impl Fn(&ServerName) -> Option<SpecVersion>) {
        self.prepared.follow(current);
    }

    /// Ends all parents.
    pub async fn close(&self) {
        self.prepared.end_all().await;
    }

    async fn live(self: Arc<Self>, start: ParentStart, state: watch::Sender<ForkState>, key: Key) {
        let (spec, found, means) = (&start.spec, &start.found, self.means.clone());
        let (name, began) = (spec.name.as_str(), Instant::now());
        let (folder, profile) = (&start.folder, &start.profile);
        let made = Parent::start(start.plan, start.launch, folder, name, profile, means);
        let parent = match made.await {
            Ok(parent) => parent,
            Err(why) => {
                tracing::warn!(
                    server = %spec.name,
                    %why,
                    "processes cannot be forked and are started directly"
                );
                state.send_replace(ForkState::Exec(why.into(), false));
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
        let sources = Sources::read(loaded.sources.iter().cloned());
        let ready = Arc::new(Ready { parent, sources });
        state.send_replace(ForkState::Ready(ready.clone()));
        let lost = loop {
            let last = self.prepared.lock().get(&key).map(|entry| entry.last);
            let Some(last) = last.filter(|last| found.holds() && last.elapsed() < IDLE) else {
                break None;
            };
            tokio::select! {
                () = ready.parent.gone() => break Some("its fork parent exited"),
                () = tokio::time::sleep_until(last + IDLE) => {}
            }
        };
        if let Some(why) = lost {
            tracing::warn!(
                server = %spec.name,
                %why,
                "fork parent failed; processes are started without forking for now"
            );
        }
        self.retire(&key, &ready, lost);
    }
}

/// How processes of a server are started now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Forking {
    /// Forked from a parent with this number of modules; each process imports some others itself.
    Forks {
        modules: usize,
        left_out: Vec<String>,
    },
    /// Started separately, for this reason.
    Starts(Arc<str>),
    /// Started separately, because no parent was needed yet.
    NotYet,
}

/// See the diagram of this module.
#[derive(Clone)]
enum ForkState {
    None,
    Starting,
    Ready(Arc<Ready>),
    /// Processes are started separately, for this reason; whether a parent is tried again later.
    Exec(Arc<str>, bool),
}

/// A parent to fork from, and the state of its sources when it was started.
pub struct Ready {
    pub parent: Parent,
    pub sources: Sources,
}

impl ForkState {
    fn forking(&self) -> Forking {
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

/// The arguments of a parent's start.
pub struct ParentStart {
    pub spec: Arc<ServerSpec>,
    pub found: Arc<Resolved>,
    pub profile: Profile,
    pub plan: Plan,
    pub launch: Launch,
    /// Deleted when the parent is no longer used.
    pub folder: Scratch,
}
