//! A future that runs on by itself once nobody waits for it.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    task::{Context, Poll},
};

use tracing::Instrument as _;

use super::CallError;

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
    CallError::Internal(format!("panicked: {}", text.unwrap_or("without a word")))
}

/// Work on the disk.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let done = tokio::task::spawn_blocking(work).await;
    done.expect("work on the disk does not panic")
}

#[cfg(test)]
mod tests {
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
