//! One call of a tool, from its arguments to its answer: the path that every endpoint shares.
//!
//! When the caller closes the connection, the call continues as a separate task until the child is
//! settled, so that the next call finds a child and a folder in order.

mod answer;
mod ask;
mod attachments;
mod error;
mod files;
mod record;
mod run;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{Arc, OnceLock, atomic::AtomicBool},
    task::{Context, Poll},
};

use axum::http::HeaderMap;
use bridge_model::{Caller, Tenant};
use bridge_process::{Child, MessageSink, Profile};
use bridge_protocol::RawJson;
use bridge_state::{ChatStore, Lease};
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use parking_lot::Mutex;
use run::Status;
use tokio::{sync::Semaphore, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument as _;

use crate::{
    admission::Admission,
    child::Children,
    config::{ServerSpec, Settings},
    openwebui::OpenWebUi,
    session::{OpenWorkspace, Sessions, SharedChildren, WorkspaceAddress},
    telemetry::{Metrics, RequestId},
};

pub use answer::{Answer, Link, Notice, Published};
pub use ask::{Ask, PendingInput, Relayed};
pub use attachments::Incoming;
pub use error::{CallError, Waited, rpc_words};
pub use files::{DiskShares, snapshot_limits};
pub use record::RecordQueue;

/// The parts of the bridge that calls use.
pub struct CallEngine {
    /// Limits and texts.
    pub settings: Arc<Settings>,
    /// Permits for running calls.
    pub admission: Admission,
    /// Starts processes.
    pub children: Arc<Children>,
    /// Processes of chats.
    pub sessions: Arc<Sessions>,
    /// Processes of `shared` servers.
    pub shared: Arc<SharedChildren>,
    /// The jobs folder.
    pub store: Arc<ChatStore>,
    /// The client of Open WebUI, if the settings name one.
    pub openwebui: Option<Arc<OpenWebUi>>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Running calls: a shutdown waits for them.
    pub running: TaskTracker,
    /// The disk usage of users.
    pub disk: Arc<DiskShares>,
    /// Finished calls that wait to be recorded.
    pub records: RecordQueue,
    /// Allows one scan of a folder at a time while calls run.
    pub measuring: Semaphore,
    /// Cancelled when no more calls may begin; waiting calls are rejected.
    pub stopping: CancellationToken,
    /// Cancelled when the grace period of running calls has ended.
    pub ending: CancellationToken,
}

/// A callback with the child that serves a call.
type OnChild = Arc<dyn Fn(&Child) + Send + Sync>;

/// One call, validated by its endpoint.
pub struct Call {
    /// The caller.
    pub caller: Caller,
    /// The server.
    pub spec: Arc<ServerSpec>,
    /// The workspace of a stateful call; unused in other modes.
    pub address: WorkspaceAddress,
    /// The workspace, if it was opened already.
    pub opened: Mutex<Option<OpenWorkspace>>,
    /// The request to the child.
    pub ask: Ask,
    /// The protocol profile of a child that is started for this call.
    pub profile: Profile,
    /// Receives the child's messages during the call; without one, requests of the child are declined.
    pub sink: Option<MessageSink>,
    /// Called with the child before it gets the request.
    pub on_child: Option<OnChild>,
    /// Whether the call waits for input of its caller.
    pub pending_input: PendingInput,
    /// Files that came with a call of a `stateless` server, with distinct names.
    pub incoming: Mutex<Vec<Incoming>>,
    /// Headers of the caller's request that the server gets; `None` if its config forwards none.
    pub forwarded: Option<HeaderMap>,
    /// The request id for logs and the journal.
    pub request_id: RequestId,
    /// When the request was received.
    pub received: Instant,
}

impl Call {
    /// A tool call of a caller that cannot be asked for input: of the OpenAPI endpoint or the command line.
    pub fn of_tool(
        caller: Caller,
        spec: Arc<ServerSpec>,
        address: WorkspaceAddress,
        name: &str,
        arguments: RawJson,
        request_id: &RequestId,
    ) -> Box<Self> {
        Box::new(Self {
            caller,
            spec,
            address,
            opened: Mutex::default(),
            ask: Ask::Tool {
                name: name.into(),
                arguments,
            },
            profile: Profile::silent(),
            sink: None,
            on_child: None,
            pending_input: PendingInput::never(),
            incoming: Mutex::default(),
            forwarded: None,
            request_id: request_id.clone(),
            received: Instant::now(),
        })
    }
}

/// A running call: the data that its phases share.
struct Running {
    engine: Arc<CallEngine>,
    /// Boxed, because the call is moved many times.
    call: Box<Call>,
    /// The user whose share of permits the call uses.
    tenant: Tenant,
    /// When it began, on both clocks.
    began_at: Timestamp,
    began: Instant,
    deadline: Instant,
    /// The end of all waits for turn, permit and process together.
    queue_until: Instant,
    /// Whether the child got the request: from then on the tool may have acted.
    asked: AtomicBool,
    /// The folder that the call worked in and is recorded in.
    folder: OnceLock<Lease>,
    /// Cancelled when the caller closes the connection.
    left: CancellationToken,
    /// The status line in the chat.
    status: Status,
}

/// A future that continues as a separate task if it is dropped before its end. Until then its owner polls
/// it, which saves a wake-up of another task. A panic is an error of the call, as in a task.
struct Detached<T: Send + 'static>(Option<BoxFuture<'static, Result<T, CallError>>>);

impl<T: Send> Future for Detached<T> {
    type Output = Result<T, CallError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let running = self.0.as_mut().expect("polled after its end");
        let polled = catch_unwind(AssertUnwindSafe(|| running.as_mut().poll(context)));
        let polled = polled.unwrap_or_else(|panic| Poll::Ready(Err(panicked(&*panic))));
        if polled.is_ready() {
            self.0 = None;
        }
        polled
    }
}

impl<T: Send + 'static> Drop for Detached<T> {
    fn drop(&mut self) {
        if let Some(rest) = self.0.take()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(rest.in_current_span());
        }
    }
}

fn panicked(panic: &(dyn std::any::Any + Send)) -> CallError {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    CallError::Internal(format!(
        "internal error (panic): {}",
        text.unwrap_or("no message")
    ))
}

/// Runs blocking work on the disk.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let done = tokio::task::spawn_blocking(work).await;
    done.expect("work on the disk does not panic")
}

#[cfg(test)]
mod detached_tests {
    use std::sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    };

    use tokio_util::task::TaskTracker;

    use super::*;

    #[tokio::test]
    async fn it_answers_whoever_waits_and_a_panic_is_an_error() {
        let answer = Detached(Some(Box::pin(async { Ok(7) }))).await;
        assert_eq!(answer.unwrap(), 7);
        let broken = async {
            assert!(tokio::runtime::Handle::try_current().is_err(), "on purpose");
            Ok(())
        };
        let error = Detached(Some(Box::pin(broken))).await.unwrap_err();
        assert!(error.to_string().contains("on purpose"), "{error}");
    }

    #[tokio::test]
    async fn it_goes_on_when_nobody_waits_any_more() {
        let (running, done) = (TaskTracker::new(), Arc::new(AtomicBool::new(false)));
        let (go, gone) = tokio::sync::oneshot::channel::<()>();
        let ours = done.clone();
        let work = async move {
            gone.await.unwrap();
            ours.store(true, Ordering::Relaxed);
            Ok::<(), CallError>(())
        };
        let waiting = Detached(Some(Box::pin(running.track_future(work))));
        let waited = tokio::time::timeout(std::time::Duration::ZERO, waiting).await;
        assert!(waited.is_err() && running.len() == 1);
        go.send(()).unwrap();
        running.close();
        running.wait().await;
        assert!(done.load(Ordering::Relaxed));
    }

    #[test]
    fn without_a_runtime_it_just_ends() {
        drop(Detached(Some(Box::pin(async { Ok(()) }))));
    }
}
