//! One call of a tool, from its arguments to its answer: the path that every door shares.
//!
//! A call runs in a task of its own: when its caller hangs up, the task goes on until the child is
//! settled, so that nothing half-done is left to the next call.

mod answer;
mod arguments;
mod error;
mod files;
mod record;
mod run;
mod shared;
mod stateful;
mod stateless;

use std::sync::Arc;

use tokio::time::Instant;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    admission::Admission,
    child::Children,
    config::{ServerSpec, Settings},
    model::{Caller, RawJson},
    session::{Place, Sessions, SharedChildren},
    store::Store,
    telemetry::Metrics,
};

pub use answer::{Answer, Notice};
pub use error::CallError;
pub use files::{Link, Published, snapshot_limits};

/// What every call needs.
pub struct CallEngine {
    /// Limits and texts.
    pub settings: Arc<Settings>,
    /// Places for running calls.
    pub admission: Admission,
    /// Fresh processes.
    pub children: Arc<Children>,
    /// Bound processes.
    pub sessions: Arc<Sessions>,
    /// Processes for everyone.
    pub shared: Arc<SharedChildren>,
    /// Folders and links.
    pub store: Arc<Store>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Running calls, for a shutdown that waits for them.
    pub running: TaskTracker,
    /// Set when no call may begin any more; those that wait for their turn are sent away.
    pub stopping: CancellationToken,
    /// Set when running calls have had their time.
    pub ending: CancellationToken,
}

/// One call, checked as far as a door can.
pub struct Call {
    /// Who asks.
    pub caller: Caller,
    /// Which server.
    pub spec: Arc<ServerSpec>,
    /// Where a stateful call works; not looked at for others.
    pub place: Place,
    /// Which tool, as the server spells it.
    pub tool: Box<str>,
    /// A JSON object.
    pub arguments: RawJson,
    /// For logs and the journal.
    pub request_id: Box<str>,
}

/// A call under way: what its stages share.
struct Running {
    engine: Arc<CallEngine>,
    call: Call,
    deadline: Instant,
    /// The caller hung up.
    left: CancellationToken,
}
