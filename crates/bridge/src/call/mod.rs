//! One call of a tool, from its arguments to its answer: the path that every door shares.
//!
//! When its caller hangs up, a call goes on in a task of its own until the child is settled, so that
//! nothing half-done is left to the next call.

mod answer;
mod arguments;
mod ask;
mod attach;
mod attachments;
mod chips;
mod detached;
mod disk_share;
mod error;
mod files;
mod holds;
mod incoming;
mod look;
mod meta;
mod parking;
mod published;
mod quota;
mod record;
mod rounds;
mod run;
mod shared;
mod stateful;
mod stateless;
mod status;

use std::sync::{Arc, atomic::AtomicBool};

use axum::http::HeaderMap;
use bridge_model::{Caller, Tenant};
use bridge_process::{Child, Hearing, Profile};
use bridge_protocol::RawJson;
use bridge_state::ChatStore;
use parking_lot::Mutex;
use tokio::{sync::Semaphore, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    admission::Admission,
    child::Children,
    config::{ServerSpec, Settings},
    openwebui::OpenWebUi,
    session::{OpenWorkspace, Place, Sessions, SharedChildren},
    telemetry::{Metrics, RequestId},
};
use status::Status;

pub use answer::{Answer, Notice};
pub use ask::{Ask, Relayed};
pub use disk_share::DiskShares;
pub use error::{CallError, Waited, rpc_words};
pub use incoming::Incoming;
pub use look::snapshot_limits;
pub use parking::Parking;
pub use published::{Link, Published};
pub use record::RecordQueue;

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
    pub store: Arc<ChatStore>,
    /// Where chats show things, if the settings name it.
    pub openwebui: Option<Arc<OpenWebUi>>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Running calls, for a shutdown that waits for them.
    pub running: TaskTracker,
    /// What users have of the disk.
    pub disk: Arc<DiskShares>,
    /// Finished calls that are not written yet.
    pub records: RecordQueue,
    /// Looks at folders while their calls run: one at a time.
    pub measuring: Semaphore,
    /// Set when no call may begin any more; those that wait for their turn are sent away.
    pub stopping: CancellationToken,
    /// Set when running calls have had their time.
    pub ending: CancellationToken,
}

/// Is told which child serves a call.
pub type OnChild = Arc<dyn Fn(&Child) + Send + Sync>;

/// One call, checked as far as a door can.
pub struct Call {
    /// Who asks.
    pub caller: Caller,
    /// Which server.
    pub spec: Arc<ServerSpec>,
    /// Where a stateful call works; not looked at for others.
    pub place: Place,
    /// Its workspace, where that was opened already.
    pub opened: Mutex<Option<OpenWorkspace>>,
    /// What is asked.
    pub ask: Ask,
    /// How a child that is started for this call is spoken to.
    pub profile: Profile,
    /// Who hears what the child says meanwhile; without one, it is told that nobody does.
    pub hearing: Option<Hearing>,
    /// Told which child serves the call, before it is asked.
    pub on_child: Option<OnChild>,
    /// Says when the caller is asked something, and when he has answered.
    pub parking: Parking,
    /// Files that came with a call of a `stateless` server, under names that are free in an empty
    /// folder.
    pub incoming: Mutex<Vec<Incoming>>,
    /// Headers of the caller's request that the server gets; `None` where its config forwards none.
    pub forwarded: Option<HeaderMap>,
    /// For logs and the journal.
    pub request_id: RequestId,
    /// When its time began.
    pub received: Instant,
}

impl Call {
    /// A tool call of a caller who can answer nothing: the OpenAPI door's and the command line's.
    pub fn of_tool(
        caller: Caller,
        spec: Arc<ServerSpec>,
        place: Place,
        name: &str,
        arguments: RawJson,
        request_id: &RequestId,
    ) -> Box<Self> {
        Box::new(Self {
            caller,
            spec,
            place,
            opened: Mutex::default(),
            ask: Ask::Tool {
                name: name.into(),
                arguments,
            },
            profile: Profile::silent(),
            hearing: None,
            on_child: None,
            parking: Parking::never(),
            incoming: Mutex::default(),
            forwarded: None,
            request_id: request_id.clone(),
            received: Instant::now(),
        })
    }
}

/// A call under way: what its stages share.
struct Running {
    engine: Arc<CallEngine>,
    /// Boxed, as a call is handed on many times.
    call: Box<Call>,
    /// Against whose share it counts.
    tenant: Tenant,
    deadline: Instant,
    /// Turn, permit and process are waited for until then, together.
    queue_until: Instant,
    /// The child was asked: from then on the tool may have acted.
    asked: AtomicBool,
    /// The caller hung up.
    left: CancellationToken,
    /// What shows of it in the chat meanwhile.
    status: Status,
}
