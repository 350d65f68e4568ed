//! Child processes. The seam that everything else sits behind: *give me a ready child for this
//! server, workspace, profile and deadline*. What a child is, and how it runs, is in
//! [`bridge_process`]; here is which one is started when, and what is known of each server's starts.

mod children;
mod fork;

use std::{path::PathBuf, sync::Arc, time::Duration};

use bridge_model::{Job, Tenant};
use bridge_process::{Listener, Profile, UserValues};
use tokio::time::Instant;

use crate::config::ServerSpec;

pub use children::Children;
pub use fork::Forking;

/// What a ready child is asked for.
#[derive(Clone)]
pub struct ChildRequest {
    /// Which server, and so which version of it.
    pub spec: Arc<ServerSpec>,
    /// Where it works.
    pub job: Job,
    /// How it is spoken to.
    pub profile: Profile,
    /// The user for whom it works, where it is one.
    pub user: UserValues,
    /// Against whose share its start counts.
    pub tenant: Tenant,
    /// When the caller stops waiting.
    pub deadline: Instant,
    /// Hears the child's notifications.
    pub listener: Listener,
}

/// Limits and places that all children share.
#[derive(Debug, Clone)]
pub struct ChildSettings {
    /// Launcher caches.
    pub tools_dir: PathBuf,
    /// Where folders may be made that end with this process.
    pub scratch: PathBuf,
    /// Bounds a start, handshake included.
    pub start_timeout: Duration,
    /// Bytes of one message from a child.
    pub max_message: usize,
    /// Cold starts side by side.
    pub max_starts: usize,
    /// How long a caller may be asked something.
    pub input_timeout: Duration,
    /// Between SIGTERM and SIGKILL.
    pub kill_grace: Duration,
}
