//! A future that wakes itself is polled again at once.
//!
//! A hyper connection does so for each request with a body: whoever reads the body wakes the
//! connection that reads it from the socket, and both are one task. For tokio such a wake-up is a
//! task to be scheduled anew, for which it wakes an idle thread: some 20 µs of processor time, and the
//! connection may move to that thread.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use futures_util::task::AtomicWaker;

/// Polls in a row, before others have a turn.
const MOST: usize = 16;

const IDLE: u8 = 0;
const POLLING: u8 = 1;
const WOKEN: u8 = 2;

/// See the module.
pub struct PollAgain<F> {
    future: Pin<Box<F>>,
    bell: Arc<Bell>,
    waker: Waker,
}

/// What the future has for a waker.
#[derive(Default)]
struct Bell {
    state: AtomicU8,
    task: AtomicWaker,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let woken =
            self.state
                .compare_exchange(POLLING, WOKEN, Ordering::AcqRel, Ordering::Acquire);
        // While it is polled, or to be polled again, whoever polls it looks.
        if woken == Err(IDLE) {
            self.task.wake();
        }
    }
}

impl<F: Future> PollAgain<F> {
    pub fn new(future: F) -> Self {
        let bell = Arc::new(Bell::default());
        Self {
            future: Box::pin(future),
            waker: bell.clone().into(),
            bell,
        }
    }

    /// The future itself.
    pub fn inner(&mut self) -> Pin<&mut F> {
        self.future.as_mut()
    }
}

impl<F: Future> Future for PollAgain<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let Self {
            future,
            bell,
            waker,
        } = &mut *self;
        bell.task.register(context.waker());
        for _ in 0..MOST {
            bell.state.store(POLLING, Ordering::Release);
            let polled = future.as_mut().poll(&mut Context::from_waker(waker));
            if polled.is_ready() {
                return polled;
            }
            let quiet =
                bell.state
                    .compare_exchange(POLLING, IDLE, Ordering::AcqRel, Ordering::Acquire);
            if quiet.is_ok() {
                return Poll::Pending;
            }
        }
        bell.state.store(IDLE, Ordering::Release);
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, sync::atomic::AtomicUsize, thread, time::Duration};

    use super::*;

    #[derive(Default)]
    struct Rings(AtomicUsize);

    impl Wake for Rings {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Wakes itself so many times before it is ready.
    fn restless(times: usize) -> impl Future<Output = usize> {
        let mut polls = 0;
        poll_fn(move |context| {
            polls += 1;
            if polls > times {
                return Poll::Ready(polls);
            }
            context.waker().wake_by_ref();
            Poll::Pending
        })
    }

    #[test]
    fn its_own_wake_ups_reach_nobody_and_many_of_them_let_others_in() {
        let rings = Arc::new(Rings::default());
        let waker = rings.clone().into();
        let mut context = Context::from_waker(&waker);
        let mut some = PollAgain::new(restless(MOST - 1));
        assert_eq!(Pin::new(&mut some).poll(&mut context), Poll::Ready(MOST));
        assert_eq!(rings.0.load(Ordering::Relaxed), 0);
        let mut many = PollAgain::new(restless(MOST));
        assert_eq!(Pin::new(&mut many).poll(&mut context), Poll::Pending);
        assert_eq!(rings.0.load(Ordering::Relaxed), 1);
        assert_eq!(
            Pin::new(&mut many).poll(&mut context),
            Poll::Ready(MOST + 1)
        );
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn no_wake_up_of_others_is_lost() {
        for _ in 0..2_000 {
            let (sender, answer) = tokio::sync::oneshot::channel();
            let mut restless = Some(Box::pin(restless(3)));
            let mut answer = Box::pin(answer);
            let both = poll_fn(move |context| {
                if let Some(future) = &mut restless
                    && future.as_mut().poll(context).is_ready()
                {
                    restless = None;
                }
                answer.as_mut().poll(context)
            });
            let waiting = tokio::spawn(PollAgain::new(both));
            thread::yield_now();
            tokio::spawn(async move { sender.send(7) });
            let got = tokio::time::timeout(Duration::from_secs(30), waiting).await;
            assert_eq!(got.expect("it is woken").unwrap(), Ok(7));
        }
    }
}
