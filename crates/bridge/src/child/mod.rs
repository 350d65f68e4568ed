//! Child processes: a ready child for a server, workspace, profile and deadline. [`bridge_process`]
//! runs them; this module decides which one is started when, and records each server's starts.

mod children;
mod fork;
mod prepared;

use std::{path::PathBuf, sync::Arc, time::Duration};

use bridge_model::{Job, Tenant};
use bridge_process::{Listener, Profile, UserValues};
use tokio::time::Instant;

use crate::config::ServerSpec;

pub use children::Children;
pub use fork::Forking;
pub use prepared::{Entry, Key, Prepared};

/// A request for a ready child.
#[derive(Clone)]
pub struct ChildRequest {
    /// The server, and so its version.
    pub spec: Arc<ServerSpec>,
    /// Its folder.
    pub job: Job,
    /// The form of the protocol to use.
    pub profile: Profile,
    /// The values of the user, if the caller is one.
    pub user: UserValues,
    /// The tenant whose share its start counts against.
    pub tenant: Tenant,
    /// The end of the caller's wait.
    pub deadline: Instant,
    /// Receives the child's notifications.
    pub listener: Listener,
}

/// Limits and places that all children share.
#[derive(Debug, Clone)]
pub struct ChildSettings {
    /// Launcher caches.
    pub tools_dir: PathBuf,
    /// For folders that are deleted with this process.
    pub scratch: PathBuf,
    /// Bounds a start, handshake included.
    pub start_timeout: Duration,
    /// Bytes of one message from a child.
    pub max_message: usize,
    /// Concurrent cold starts.
    pub max_starts: usize,
    /// How long a caller may take to answer a child's request.
    pub input_timeout: Duration,
    /// Between SIGTERM and SIGKILL.
    pub kill_grace: Duration,
}
