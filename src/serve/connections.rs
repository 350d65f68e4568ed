//! Connections: taken, served, and in the end let finish what they have begun.
//!
//! As `axum::serve` does it, but see [`PollAgain`].

use std::{convert::Infallible, net::SocketAddr};

use axum::{
    Router,
    extract::{ConnectInfo, Request},
    response::Response,
    serve::Listener,
};
use hyper::{body::Incoming, server::conn::http1, service::Service};
use hyper_util::rt::TokioIo;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::poll_again::PollAgain;

/// Serves until it is stopped, and then what is under way. Handlers know the other end by
/// `ConnectInfo<SocketAddr>`.
pub async fn serve(
    mut listener: impl Listener<Addr = SocketAddr>,
    router: Router,
    stopping: CancellationToken,
) {
    let open = TaskTracker::new();
    loop {
        let (stream, peer) = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stopping.cancelled() => break,
        };
        let service = Addressed {
            router: router.clone(),
            peer: ConnectInfo(peer),
        };
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

/// The routes, for one connection.
struct Addressed {
    router: Router,
    peer: ConnectInfo<SocketAddr>,
}

impl Service<hyper::Request<Incoming>> for Addressed {
    type Response = Response;
    type Error = Infallible;
    type Future = <Router as tower::Service<Request>>::Future;

    fn call(&self, mut request: hyper::Request<Incoming>) -> Self::Future {
        request.extensions_mut().insert(self.peer);
        let mut router = self.router.clone();
        tower::Service::call(&mut router, request)
    }
}
