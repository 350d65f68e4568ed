//! Sessions: a child bound to server + user + chat, in that chat's workspace.
//!
//! ```text
//! (none) ──call──▶ Starting ──ready──▶ Busy ⇄ Idle ──idle, LRU, reload, shutdown──▶ Ending ──▶ (none)
//!                      └── failed ──▶ (none) ◀── died, timed out ──┘
//! ```
//! After the end of a session, the next call in its chat starts another one in the same folder. During a
//! start only the chat's own locks are held, which order its calls.

mod end;
mod open;
mod pool;
mod shared;
mod workspace;

use std::{
    collections::HashMap,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use bridge_model::{ServerName, WorkspaceKey};
use bridge_process::{ChildError, Listener};
use bridge_state::{ChatStore, Holder, StoreError};
use end::{Agenda, Population};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::task::TaskTracker;
use workspace::Ending;

use crate::{
    artifacts::{Limits, SnapshotError, Watcher},
    child::Children,
    telemetry::Metrics,
};

pub use open::{ChildSpec, Room, Start, WorkspaceAddress};
pub use pool::{Pool, PoolSettings};
pub use shared::{SharedChild, SharedChildren};
pub use workspace::{Class, OpenWorkspace, Session, SessionGuard, Turn, Workspace};

/// Idle time of a session of a caller without a chat.
pub const ONE_CALL_IDLE: Duration = Duration::from_secs(60);

/// Why a call got no session.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The child failed.
    #[error(transparent)]
    Child(#[from] ChildError),
    /// The caller has no session with this id.
    #[error("session not found")]
    Unknown,
    /// Another replica serves this workspace.
    #[error(transparent)]
    Elsewhere(Holder),
    /// The folder failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The folder contains too many files.
    #[error(transparent)]
    Files(#[from] SnapshotError),
    /// All permits for stateful processes are in use, and all processes are busy.
    #[error("all {limit} stateful processes are busy (MCPO_STATEFUL_MAX_TOTAL_PROCESSES)")]
    Full {
        /// The maximum number.
        limit: usize,
    },
    /// All processes of one user are busy.
    #[error(
        "all {held} stateful processes allowed for one user are busy \
         (MCPO_STATEFUL_MAX_PROCESSES_PER_USER)"
    )]
    ShareFull {
        /// The number of these processes.
        held: usize,
    },
}

impl SessionError {
    /// Whether the system has no descriptors, processes or memory left for a session.
    pub fn is_lack_of_room(&self) -> bool {
        match self {
            Self::Child(error) => error.is_lack_of_room(),
            Self::Store(error) => error.is_lack_of_descriptors(),
            _ => false,
        }
    }
}

/// The limits of sessions.
#[derive(Debug, Clone)]
pub struct SessionSettings {
    /// Maximum number of stateful children.
    pub max_total: usize,
    /// Maximum number of one user's children, if configured.
    pub max_per_user: Option<usize>,
    /// Maximum interval between two clean-ups.
    pub cleanup_interval: Duration,
    /// The limits of a folder's files.
    pub snapshot: Limits,
    /// The limits of the pool.
    pub pool: PoolSettings,
}

/// All sessions of this bridge.
pub struct Sessions {
    settings: SessionSettings,
    children: Arc<Children>,
    store: Arc<ChatStore>,
    watcher: Option<Arc<Watcher>>,
    workspaces: Mutex<HashMap<WorkspaceKey, Arc<Entry>>>,
    population: Arc<Population>,
    /// Warm children.
    pub pool: Arc<Pool>,
    /// Wakes the clean-up: a session became idle, began or exited, or a workspace became unused.
    house: Notify,
    /// The workspaces that the clean-up checks next.
    agenda: Mutex<Agenda>,
    /// Wakes calls that wait for a permit: a session may have become idle.
    room: Notify,
    /// Work that no caller can cancel: a shutdown waits for it.
    tasks: TaskTracker,
    metrics: Arc<Metrics>,
    listener: Arc<dyn Fn(&ServerName) -> Listener + Send + Sync>,
    /// Whether the bridge is about to end.
    draining: AtomicBool,
}

/// A workspace being opened, used or closed.
#[derive(Default)]
struct Entry {
    /// Held while the workspace is opened or closed.
    gate: tokio::sync::Mutex<()>,
    open: Mutex<Option<Arc<Workspace>>>,
}

impl Sessions {
    /// `listener` creates the receiver of notifications of a server's children.
    pub fn new(
        settings: SessionSettings,
        children: Arc<Children>,
        store: Arc<ChatStore>,
        metrics: Arc<Metrics>,
        listener: Arc<dyn Fn(&ServerName) -> Listener + Send + Sync>,
    ) -> Self {
        let population = Arc::new(Population::new(settings.max_total, settings.max_per_user));
        let pool = Arc::new(Pool::new(
            settings.pool.clone(),
            children.clone(),
            store.clone(),
            metrics.clone(),
            population.clone(),
            listener.clone(),
        ));
        Self {
            settings,
            children,
            store,
            watcher: Watcher::new(),
            workspaces: Mutex::default(),
            population,
            pool,
            house: Notify::new(),
            agenda: Mutex::default(),
            room: Notify::new(),
            tasks: TaskTracker::new(),
            metrics,
            listener,
            draining: AtomicBool::new(false),
        }
    }

    /// The number of stateful children.
    pub fn count(&self) -> usize {
        self.workspaces()
            .iter()
            .map(|workspace| workspace.sessions().len())
            .sum()
    }

    /// Lowers the limit on live children, or raises it again up to the one of the settings.
    pub fn cap(&self, limit: usize) {
        self.population.set_limit(limit);
    }

    /// The open workspaces.
    fn workspaces(&self) -> Vec<Arc<Workspace>> {
        let entries = self.workspaces.lock();
        let open = entries
            .values()
            .filter_map(|entry| entry.open.lock().clone());
        open.collect()
    }
}
