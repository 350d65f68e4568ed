//! Connections: taken, served, and in the end let finish what they have begun.
//!
//! As `axum::serve` does it, but see [`PollAgain`].

use std::{convert::Infallible, net::SocketAddr, sync::Arc};

use axum::serve::Listener;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::poll_again::PollAgain;
use crate::http::Service;

/// Serves until it is stopped, and then what is under way.
pub async fn serve(
    mut listener: impl Listener<Addr = SocketAddr>,
    service: Arc<Service>,
    stopping: CancellationToken,
) {
    let open = TaskTracker::new();
    loop {
        let (stream, peer) = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stopping.cancelled() => break,
        };
        let service = service.clone();
        let answer = service_fn(move |request: hyper::Request<Incoming>| {
            let service = service.clone();
            async move { Ok::<_, Infallible>(service.answer(peer, request).await) }
        });
        let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), answer);
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
