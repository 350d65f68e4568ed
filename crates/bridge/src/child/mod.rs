//! Child processes: a ready child for a server, workspace, profile and deadline. [`bridge_process`]
//! runs them; this module decides which child is started when, and records each server's starts.

mod children;
mod fork;
mod prepared;

use std::{path::PathBuf, sync::Arc, time::Duration};

use bridge_model::{Job, Tenant};
use bridge_process::{Listener, Profile, UserValues};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

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
    /// Stops the start when cancelled: the child and its processes end before the error is returned.
    pub stop: CancellationToken,
    /// Whether the server may not support the profile's revision: if it does not, this does not count
    /// as a failed start.
    pub is_trial: bool,
}

impl ChildRequest {
    /// A child that the bridge itself needs: without a user, and without a receiver of notifications.
    pub fn of_bridge(
        spec: &Arc<ServerSpec>,
        job: &Job,
        profile: Profile,
        deadline: Instant,
    ) -> Self {
        Self {
            spec: spec.clone(),
            job: job.clone(),
            profile,
            user: UserValues::default(),
            tenant: Tenant::bridge(),
            deadline,
            listener: Arc::new(|_| {}),
            stop: CancellationToken::new(),
            is_trial: false,
        }
    }
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
