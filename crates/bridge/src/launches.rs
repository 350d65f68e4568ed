//! How each server is currently started: as written in the server file, or from its environment.
//!
//! ```text
//! Installing ──done──▶ Installed ──does not start──▶ AsWritten
//!     ├── cannot be installed ──▶ AsWritten
//!     └── cannot be installed, and is locked ──▶ Refused ──retry──▶ Installed
//! ```

use std::{collections::HashMap, sync::Arc};

use bridge_model::ServerName;
use bridge_process::launch::Resolved;
use parking_lot::Mutex;
use tokio::{sync::watch, time::Instant};

use crate::config::{ServerSpec, SpecVersion};

/// How a server is started.
#[derive(Debug, Clone)]
pub enum Launching {
    /// By its launcher, with the reason; `None` if there is nothing to install.
    AsWritten(Option<Arc<str>>),
    /// Its environment is being installed.
    Installing {
        /// Whether nothing else may run until it is installed.
        locked: bool,
    },
    /// From its environment.
    Installed(Arc<Resolved>),
    /// Not at all: the locked packages cannot be installed, for this reason.
    Refused(Arc<str>),
}

/// All servers of the current server file and of earlier ones, whose calls and sessions may still
/// run.
#[derive(Default)]
pub struct Launches(Mutex<Entries>);

type Entries = HashMap<(ServerName, SpecVersion), Entry>;

impl Launching {
    /// The environment, if it is started from one.
    pub fn installed(self) -> Option<Arc<Resolved>> {
        match self {
            Self::Installed(resolved) => Some(resolved),
            _ => None,
        }
    }
}

struct Entry {
    state: watch::Sender<Launching>,
    /// Whether it is in the current server file.
    current: bool,
}

impl Launches {
    /// How this server is currently started.
    pub fn state_of(&self, spec: &ServerSpec) -> Launching {
        let watch = self.watch(spec);
        watch.map_or(Launching::AsWritten(None), |watch| watch.borrow().clone())
    }

    /// The environment to start it from; `None`: as written. If only locked packages may run, waits
    /// for them, at most to `until`; the error says why they cannot run.
    pub async fn ready(
        &self,
        spec: &ServerSpec,
        until: Instant,
    ) -> Result<Option<Arc<Resolved>>, Arc<str>> {
        let Some(mut watch) = self.watch(spec) else {
            return Ok(None);
        };
        let settled = |state: &Launching| !matches!(state, Launching::Installing { locked: true });
        let state = match tokio::time::timeout_at(until, watch.wait_for(settled)).await {
            Ok(Ok(state)) => state.clone(),
            Ok(Err(_)) => return Ok(None),
            Err(_) => return Err("its locked packages are still being installed".into()),
        };
        match state {
            Launching::Installed(resolved) => Ok(Some(resolved)),
            Launching::Refused(why) => Err(why),
            Launching::AsWritten(_) | Launching::Installing { .. } => Ok(None),
        }
    }

    /// Sets how it is started from now on.
    pub fn set(&self, spec: &ServerSpec, state: Launching) {
        if let Some(entry) = self.lock().get(&key(spec)) {
            entry.state.send_replace(state);
        }
    }

    /// Records a failed start. Returns whether it indicates a fault of the environment, from which
    /// the server never started successfully: it then runs as written from now on.
    pub fn doubt(&self, spec: &ServerSpec, why: &str) -> bool {
        let found = self.state_of(spec).installed();
        let doubtful = found.is_some_and(|found| found.is_doubtful());
        if doubtful {
            let why = format!("it failed to start from its installed environment: {why}");
            self.set(spec, Launching::AsWritten(Some(why.into())));
        }
        doubtful
    }

    /// Records a successful start.
    pub fn trust(&self, spec: &ServerSpec) {
        if let Some(found) = self.state_of(spec).installed() {
            found.trust();
        }
    }

    /// Adds these servers; the state of unchanged ones is kept. New ones are not started before
    /// [`Launches::set`].
    pub fn follow(&self, specs: &[Arc<ServerSpec>]) {
        let mut entries = self.lock();
        entries.retain(|_, entry| std::mem::take(&mut entry.current));
        for spec in specs {
            let entry = entries.entry(key(spec)).or_insert_with(|| Entry {
                state: watch::channel(Launching::Installing { locked: true }).0,
                current: true,
            });
            entry.current = true;
        }
    }

    /// The environments that servers are started from.
    pub fn installed(&self) -> Vec<Arc<Resolved>> {
        let entries = self.lock();
        let states = entries.values().map(|entry| entry.state.borrow().clone());
        states.filter_map(Launching::installed).collect()
    }

    fn watch(&self, spec: &ServerSpec) -> Option<watch::Receiver<Launching>> {
        let entries = self.lock();
        Some(entries.get(&key(spec))?.state.subscribe())
    }

    fn lock(&self) -> parking_lot::MutexGuard<'_, Entries> {
        self.0.lock()
    }
}

fn key(spec: &ServerSpec) -> (ServerName, SpecVersion) {
    (spec.name.clone(), spec.version())
}
