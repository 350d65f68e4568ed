//! One call of a tool, from its arguments to its answer: the path that every endpoint shares.
//!
//! When its caller hangs up, a call goes on in a task of its own until the child is settled, so that
//! nothing half-done is left to the next call.

mod answer;
mod arguments;
mod ask;
mod attachments;
mod disk_share;
mod error;
mod files;
mod permits;
mod record;
mod run;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{Arc, atomic::AtomicBool},
    task::{Context, Poll},
};

use axum::http::HeaderMap;
use bridge_model::{Caller, Tenant};
use bridge_process::{Child, MessageSink, Profile};
use bridge_protocol::RawJson;
use bridge_state::ChatStore;
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
pub use disk_share::DiskShares;
pub use error::{CallError, Waited, rpc_words};
pub use files::snapshot_limits;
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
type OnChild = Arc<dyn Fn(&Child) + Send + Sync>;

/// One call, checked as far as a endpoint can.
pub struct Call {
    /// Who asks.
    pub caller: Caller,
    /// Which server.
    pub spec: Arc<ServerSpec>,
    /// Where a stateful call works; not looked at for others.
    pub address: WorkspaceAddress,
    /// Its workspace, where that was opened already.
    pub opened: Mutex<Option<OpenWorkspace>>,
    /// What is asked.
    pub ask: Ask,
    /// How a child that is started for this call is spoken to.
    pub profile: Profile,
    /// Who hears what the child says meanwhile; without one, it is told that nobody does.
    pub sink: Option<MessageSink>,
    /// Told which child serves the call, before it is asked.
    pub on_child: Option<OnChild>,
    /// Says when the caller is asked something, and when he has answered.
    pub pending_input: PendingInput,
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
    /// A tool call of a caller who can answer nothing: the OpenAPI endpoint's and the command line's.
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

// A future that runs on by itself once nobody waits for it.

/// Polled by whoever waits, so that nobody has to be woken in between; a task of its own from the
/// moment that he leaves. A panic is an error of the call, as it is of a task.
pub struct Detached<F: Future + Send + Unpin + 'static>(Option<F>)
where
    F::Output: Send;

impl<F: Future + Send + Unpin + 'static> Detached<F>
where
    F::Output: Send,
{
    pub fn new(future: F) -> Self {
        Self(Some(future))
    }
}

impl<T: Send, F> Future for Detached<F>
where
    F: Future<Output = Result<T, CallError>> + Send + Unpin + 'static,
{
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let running = self.0.as_mut().expect("polled after its end");
        let polled = catch_unwind(AssertUnwindSafe(|| Pin::new(running).poll(context)));
        let polled = polled.unwrap_or_else(|panic| Poll::Ready(Err(panicked(&*panic))));
        if polled.is_ready() {
            self.0 = None;
        }
        polled
    }
}

impl<F: Future + Send + Unpin + 'static> Drop for Detached<F>
where
    F::Output: Send,
{
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

/// Work on the disk.
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
        let answer = Detached::new(Box::pin(async { Ok::<_, CallError>(7) })).await;
        assert_eq!(answer.unwrap(), 7);
        let broken = async {
            assert!(tokio::runtime::Handle::try_current().is_err(), "on purpose");
            Ok::<(), _>(())
        };
        let error = Detached::new(Box::pin(broken)).await.unwrap_err();
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
        let waiting = Detached::new(running.track_future(Box::pin(work)));
        let waited = tokio::time::timeout(std::time::Duration::ZERO, waiting).await;
        assert!(waited.is_err() && running.len() == 1);
        go.send(()).unwrap();
        running.close();
        running.wait().await;
        assert!(done.load(Ordering::Relaxed));
    }

    #[test]
    fn without_a_runtime_it_just_ends() {
        drop(Detached::new(Box::pin(async { Ok::<(), CallError>(()) })));
    }
}
