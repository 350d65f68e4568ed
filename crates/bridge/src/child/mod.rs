//! Child processes: a ready child for a server, workspace, profile and deadline. [`bridge_process`]
//! runs them; this module decides which child is started when, and records each server's starts.

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
    /// The server and its version.
    pub spec: Arc<ServerSpec>,
    /// Its folder.
    pub job: Job,
    /// The form of the protocol to use.
    pub profile: Profile,
    /// The values of the user, if the caller is a user.
    pub user: UserValues,
    /// The tenant whose share its start counts against.
    pub tenant: Tenant,
    /// The end of the caller's wait.
    pub deadline: Instant,
    /// Receives the child's notifications.
    pub listener: Listener,
}

/// Limits and folders that all children share.
#[derive(Debug, Clone)]
pub struct ChildSettings {
    /// Launcher caches.
    pub tools_dir: PathBuf,
    /// Folder for temporary folders, deleted with this process.
    pub scratch: PathBuf,
    /// Timeout of a start, including the handshake.
    pub start_timeout: Duration,
    /// Maximum size of one message from a child, in bytes.
    pub max_message: usize,
    /// Maximum number of concurrent cold starts.
    pub max_starts: usize,
    /// Timeout of a caller's answer to a child's request for input.
    pub input_timeout: Duration,
    /// Delay between SIGTERM and SIGKILL.
    pub kill_grace: Duration,
}
