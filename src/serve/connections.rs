//! Connections: taken, served, and in the end let finish what they have begun.
//!
//! As `axum::serve` does it, but see [`PollAgain`].

use std::{
    collections::HashMap,
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use axum::{response::Response, serve::Listener};
use futures_util::future::{AbortHandle, AbortRegistration, Abortable};
use hyper::{Request, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::poll_again::PollAgain;

/// Serves until it is stopped, and then what is under way. `answer` is told where a request came from.
pub async fn serve<F>(
    mut listener: impl Listener<Addr = SocketAddr>,
    answer: impl Fn(SocketAddr, Request<Incoming>) -> F + Clone + Send + 'static,
    stopping: CancellationToken,
) where
    F: Future<Output = Response> + Send + 'static,
{
    let (open, bells) = (TaskTracker::new(), Bells::default());
    for number in 0.. {
        let (stream, peer) = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stopping.cancelled() => break,
        };
        let answer = answer.clone();
        let service = service_fn(move |request| {
            let answered = answer(peer, request);
            async { Ok::<_, Infallible>(answered.await) }
        });
        let connection = http1::Builder::new()
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades();
        let (bell, hung) = bells.hang(number);
        open.spawn(async move {
            let mut connection = PollAgain::new(connection);
            let served = match Abortable::new(&mut connection, bell).await {
                Ok(served) => served,
                Err(_stopping) => {
                    connection.inner().graceful_shutdown();
                    connection.await
                }
            };
            drop(hung);
            if let Err(error) = served {
                tracing::debug!(%peer, %error, "a connection broke");
            }
        });
    }
    drop(listener);
    bells.ring();
    open.close();
    open.wait().await;
}

/// Tells each connection that it is to end. One token for all would be locked by all of them for each
/// request, since whoever waits for one looks at it whenever he is polled.
#[derive(Clone, Default)]
struct Bells(Arc<Mutex<HashMap<u64, AbortHandle>>>);

/// Takes a connection's bell down when it has ended.
struct Hung {
    bells: Bells,
    number: u64,
}

impl Bells {
    fn hang(&self, number: u64) -> (AbortRegistration, Hung) {
        let (bell, ring) = AbortHandle::new_pair();
        self.lock().insert(number, bell);
        let bells = self.clone();
        (ring, Hung { bells, number })
    }

    fn ring(&self) {
        self.lock().values().for_each(AbortHandle::abort);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, AbortHandle>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Hung {
    fn drop(&mut self) {
        self.bells.lock().remove(&self.number);
    }
}
