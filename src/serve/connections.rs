//! Connections: taken, served, and in the end let finish what they have begun.
//!
//! As `axum::serve` does it, but see [`PollAgain`].

use std::{convert::Infallible, net::SocketAddr};

use axum::{response::Response, serve::Listener};
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
    let open = TaskTracker::new();
    loop {
        let (stream, peer) = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stopping.cancelled() => break,
        };
        let answer = answer.clone();
        let service = service_fn(move |request| {
            let answered = answer(peer, request);
            async { Ok::<_, Infallible>(answered.await) }
        });
        let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
        let stopping = stopping.clone();
        open.spawn(async move {
            let mut connection = PollAgain::new(connection);
            let served = tokio::select! {
                served = &mut connection => served,
                () = stopping.cancelled() => {
                    connection.inner().graceful_shutdown();
                    connection.await
                }
            };
            if let Err(error) = served {
                tracing::debug!(%peer, %error, "a connection broke");
            }
        });
    }
    drop(listener);
    open.close();
    open.wait().await;
}
