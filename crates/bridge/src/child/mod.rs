//! Child processes. The seam that everything else sits behind: *give me a ready child for this
//! server, workspace, profile, overlay and deadline*.
//!
//! ```text
//! bridge ── control socket ──▶ supervisor ──▶ child ──▶ whatever it starts
//!    └────────── stdin, stdout, stderr ──────────┘
//! bridge ── HTTP ──▶ remote server: looks the same from outside (`remote`)
//! ```

mod body;
mod cancellation;
mod children;
mod connection;
mod control;
mod envelope;
mod environment;
mod error;
mod failed_starts;
mod fork;
mod handle;
mod hello;
mod launch;
mod lines;
mod log;
mod outgoing;
mod process;
mod profile;
mod reaper;
mod run;
mod short_tmp;
mod subscription;
mod supervisor;
mod tree;

use std::{path::PathBuf, sync::Arc, time::Duration};

use bridge_model::Tenant;
use bridge_state::Job;
use tokio::time::Instant;

use crate::config::{ServerSpec, UserValues};

pub use cancellation::Cancellation;
pub use children::Children;
pub use connection::{BACKLOG, Ear, Heard, Hearing, Listener, Outcome, Replier, STANDING};
pub use control::{Duty, End, ExitStatus};
pub use envelope::{envelop, unfold};
pub use environment::environment_for_installing;
pub use error::ChildError;
pub use fork::Forking;
pub use handle::Child;
pub use hello::{Hello, HelloParts, can_answer, needed};
pub use profile::{Era, Profile};
pub use run::Errand;
pub use supervisor::supervise;

/// What a ready child is asked for.
#[derive(Clone)]
pub struct ChildRequest {
    /// Which server, and so which version of it.
    pub spec: Arc<ServerSpec>,
    /// Where it works.
    pub job: Job,
    /// How it is spoken to.
    pub profile: Profile,
    /// Variables of one call or caller, over the server's own.
    pub overlay: Vec<(String, String)>,
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
