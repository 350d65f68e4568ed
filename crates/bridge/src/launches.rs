//! How each server is started now: as written, or from its environment.
//!
//! ```text
//! Installing ──done──▶ Installed ──does not start──▶ AsWritten
//!     ├── cannot be installed ──▶ AsWritten
//!     └── cannot be installed, and is locked ──▶ Refused ──tried again──▶ Installed
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
    /// By its launcher, and why; `None` where there is nothing to install at all.
    AsWritten(Option<Arc<str>>),
    /// Its environment is being made.
    Installing {
        /// Until it is there, nothing else may run.
        locked: bool,
    },
    /// From its environment.
    Installed(Arc<Resolved>),
    /// Not at all: what is locked cannot be installed, and why.
    Refused(Arc<str>),
}

/// All servers, as the server file has them now and as it had them before: calls and sessions of
/// then may still go on.
#[derive(Default)]
pub struct Launches(Mutex<Entries>);

type Entries = HashMap<(ServerName, SpecVersion), Entry>;

struct Entry {
    state: watch::Sender<Launching>,
    /// It stands in the server file.
    current: bool,
}

impl Launches {
    /// How this server is started now.
    pub fn state_of(&self, spec: &ServerSpec) -> Launching {
        let watch = self.watch(spec);
        watch.map_or(Launching::AsWritten(None), |watch| watch.borrow().clone())
    }

    /// What to start it from; `None`: as written. Waits where only locked packages may run, at most
    /// to `until`; the error says why they cannot.
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

    /// Says how it is started from now on.
    pub fn set(&self, spec: &ServerSpec, state: Launching) {
        if let Some(entry) = self.lock().get(&key(spec)) {
            entry.state.send_replace(state);
        }
    }

    /// A start failed. Says whether that speaks against the environment, in which it was never
    /// seen to start: then it runs as written from now on.
    pub fn doubt(&self, spec: &ServerSpec, why: &str) -> bool {
        let doubtful =
            matches!(self.state_of(spec), Launching::Installed(found) if found.is_doubtful());
        if doubtful {
            let why = format!("it failed to start from its installed environment: {why}");
            self.set(spec, Launching::AsWritten(Some(why.into())));
        }
        doubtful
    }

    /// It was seen to start.
    pub fn trust(&self, spec: &ServerSpec) {
        if let Launching::Installed(found) = self.state_of(spec) {
            found.trust();
        }
    }

    /// Takes these servers over; what is known of unchanged ones stays. Nothing of the others is
    /// started before somebody says how.
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

    /// What is started from environments.
    pub fn installed(&self) -> Vec<Arc<Resolved>> {
        let entries = self.lock();
        let states = entries.values().map(|entry| entry.state.borrow().clone());
        let installed = states.filter_map(|state| match state {
            Launching::Installed(resolved) => Some(resolved),
            _ => None,
        });
        installed.collect()
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
