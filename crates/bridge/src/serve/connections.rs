//! Accepts connections, serves them within their limits, and finishes their requests when the bridge stops.
//!
//! Like `axum::serve`, with limits ([`super::open`], [`super::wire`]) and fewer wake-ups ([`PollAgain`]).

use std::{
    convert::Infallible,
    future::poll_fn,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use axum::{body::HttpBody as _, http::StatusCode, response::Response};
use futures_util::{
    future::{AbortRegistration, Abortable},
    task::AtomicWaker,
};
use hyper::{Request, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tokio_rustls::{Accept, server::TlsStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    open::{Admission, BodyLength, Connection, Limits, Table, Unread},
    tls::Acceptor,
    wire::Wire,
};
use crate::{body::guarded, http::Overfull};

/// The maximum number of bytes of a head, and of a body that are read ahead.
const BUFFER: usize = 128 * 1024;

/// The interval of retries without a free file descriptor, and of checks whether all requests have ended.
const PAUSE: Duration = Duration::from_millis(100);

/// Serves until `stopping`, then finishes the requests that have begun.
pub async fn serve<F>(
    listener: TcpListener,
    tls: Option<watch::Receiver<Acceptor>>,
    limits: Limits,
    answer: impl Fn(SocketAddr, Request<Incoming>) -> F + Send + Sync + 'static,
    stopping: CancellationToken,
) where
    F: Future<Output = Response> + Send + 'static,
{
    let answer = Arc::new(answer);
    let (open, table) = (TaskTracker::new(), Table::new(limits));
    let keeper = tokio::spawn(table.clone().keep_time());
    loop {
        let (stream, peer) = tokio::select! {
            accepted = accept(&listener) => accepted,
            () = stopping.cancelled() => break,
        };
        let (connection, held, beyond) = match table.admit(peer).await {
            Admission::Accepted(connection, held) => (connection, held, false),
            Admission::OverLimit(connection, held) => (connection, held, true),
            Admission::Rejected => continue,
        };
        // Without this an answer can be delayed by 40 ms, until the client's acknowledgement.
        let _ = stream.set_nodelay(true);
        let abort = Table::stops(&connection);
        let acceptor = tls.as_ref().map(|current| current.borrow().clone());
        let (here, answer, table) = (connection.clone(), answer.clone(), table.clone());
        let answer = move |mut request: Request<Incoming>| {
            let (answer, beyond) = (answer.clone(), beyond.then(|| table.clone()));
            async move {
                if let Some(table) = beyond
                    && !table.has_room().await
                {
                    request.extensions_mut().insert(Overfull);
                }
                answer(peer, request).await
            }
        };
        let task = open.spawn(async move {
            let _held = held;
            match acceptor {
                None => one(stream, &here, abort, BUFFER, answer).await,
                Some(acceptor) => match handshake(acceptor.accept(stream), &here).await {
                    Ok(stream) => one(stream, &here, abort, BUFFER, answer).await,
                    Err(error) => tracing::debug!(%peer, %error, "TLS handshake failed"),
                },
            }
        });
        connection.set_task(task.abort_handle());
    }
    drop(listener);
    table.stop();
    open.close();
    loop {
        tokio::select! {
            () = open.wait() => break,
            () = tokio::time::sleep(PAUSE) => table.end_unbegun(),
        }
    }
    keeper.abort();
}

async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            Err(error) => {
                tracing::debug!(%error, "connection not accepted");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// The TLS handshake, which fails when its connection is to be closed and the client has sent no more bytes.
async fn handshake(
    mut accept: Accept<TcpStream>,
    here: &Connection,
) -> io::Result<TlsStream<TcpStream>> {
    poll_fn(|context| {
        here.note_handshake();
        let polled = Pin::new(&mut accept).poll(context);
        if polled.is_ready() {
            here.note_received();
        } else if let Some(stream) = accept.get_ref()
            && here.ends_before_head(context.waker(), stream)
        {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        polled
    })
    .await
}

/// Serves one connection until it ends, and after `abort` until its request is answered. `buffer` is the
/// maximum number of bytes of a head, and of a body that are read ahead.
pub async fn one<S, F>(
    stream: S,
    here: &Arc<Connection>,
    abort: AbortRegistration,
    buffer: usize,
    answer: impl Fn(Request<Incoming>) -> F,
) where
    S: AsyncRead + AsyncWrite + Unread + Send + Unpin + 'static,
    F: Future<Output = Response>,
{
    let answer = &answer;
    let service = service_fn(|request: Request<Incoming>| {
        here.begin_request(match request.body().size_hint().exact() {
            Some(length) => BodyLength::Bytes(length),
            None => BodyLength::Chunked,
        });
        let connection = here.clone();
        async move {
            let response = answer(request).await;
            if response.status() == StatusCode::SWITCHING_PROTOCOLS {
                connection.upgrade();
            }
            Ok::<_, Infallible>(response.map(|body| guarded(body, Answered(connection))))
        }
    });
    let stream = TokioIo::new(Wire::new(stream, here.clone()));
    let connection = http1::Builder::new()
        // hyper's own timeout for heads would also apply to idle connections.
        .header_read_timeout(None)
        .max_buf_size(buffer)
        .serve_connection(stream, service)
        .with_upgrades();
    let mut connection = PollAgain::new(connection);
    let served = match Abortable::new(&mut connection, abort).await {
        Ok(served) => served,
        Err(_stopping) => {
            connection.inner().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        tracing::debug!(%error, "connection failed");
    }
}

/// Held by the body of an answer: the connection is idle when hyper has dropped it.
struct Answered(Arc<Connection>);

impl Drop for Answered {
    fn drop(&mut self) {
        self.0.end_request();
    }
}

// A future that wakes itself is polled again at once.
//
// A hyper connection wakes itself for each request with a body: the reader of the body wakes the
// connection that reads it from the socket, and both are one task. To tokio such a wake-up is a
// task to schedule, for which it wakes an idle thread: some 20 µs of processor time, and the connection
// may move to that thread.

/// The maximum number of consecutive polls, before other tasks run.
const MOST: usize = 16;

const IDLE: u8 = 0;

const POLLING: u8 = 1;

const WOKEN: u8 = 2;

/// Polls a future again at once if it woke itself.
struct PollAgain<F> {
    future: Pin<Box<F>>,
    signal: Arc<PollSignal>,
    waker: Waker,
}

/// The waker of the future.
#[derive(Default)]
struct PollSignal {
    state: AtomicU8,
    task: AtomicWaker,
}

impl Wake for PollSignal {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let woken =
            self.state
                .compare_exchange(POLLING, WOKEN, Ordering::AcqRel, Ordering::Acquire);
        // During a poll, `poll` reads the state itself.
        if woken == Err(IDLE) {
            self.task.wake();
        }
    }
}

impl<F: Future> PollAgain<F> {
    pub fn new(future: F) -> Self {
        let signal = Arc::new(PollSignal::default());
        Self {
            future: Box::pin(future),
            waker: signal.clone().into(),
            signal,
        }
    }

    /// The wrapped future.
    pub fn inner(&mut self) -> Pin<&mut F> {
        self.future.as_mut()
    }
}

impl<F: Future> Future for PollAgain<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let Self {
            future,
            signal,
            waker,
        } = &mut *self;
        signal.task.register(context.waker());
        for _ in 0..MOST {
            signal.state.store(POLLING, Ordering::Release);
            let polled = future.as_mut().poll(&mut Context::from_waker(waker));
            if polled.is_ready() {
                return polled;
            }
            let quiet =
                signal
                    .state
                    .compare_exchange(POLLING, IDLE, Ordering::AcqRel, Ordering::Acquire);
            if quiet.is_ok() {
                return Poll::Pending;
            }
        }
        signal.state.store(IDLE, Ordering::Release);
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

#[cfg(test)]
mod poll_again_tests {
    use std::{future::poll_fn, sync::atomic::AtomicUsize, thread, time::Duration};

    use super::*;

    #[derive(Default)]
    struct Rings(AtomicUsize);

    impl Wake for Rings {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A future that wakes itself `times` times before it is ready.
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
