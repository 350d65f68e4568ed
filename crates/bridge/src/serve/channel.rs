//! The accepting side of connections between replicas (`replicas/channel.rs`).

use std::{net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use axum::{http::StatusCode, response::Response};
use futures_util::future::AbortHandle;
use hyper::{Request, body::Incoming, upgrade::OnUpgrade};
use hyper_util::rt::TokioIo;
use rustls::ServerConfig;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{connections::one, open::Connection};
use crate::replicas::{OverChannel, switching};

/// Handshake timeout. Replicas finish their handshake at once.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Maximum number of concurrent handshakes. A client without the key cannot get further than a handshake.
const HANDSHAKES: usize = 64;
/// The maximum number of bytes of a head, and of a body that are read ahead: the head of a client's request, and
/// the envelope.
const BUFFER: usize = 512 * 1024;

/// Accepts connections from other replicas.
#[derive(Clone)]
pub struct Channels {
    proof: TlsAcceptor,
    permits: Arc<Semaphore>,
    open: TaskTracker,
    stopping: CancellationToken,
}

impl Channels {
    /// `proof` is the TLS configuration for mutual authentication.
    pub fn new(proof: Arc<ServerConfig>, stopping: CancellationToken) -> Self {
        Self {
            proof: TlsAcceptor::from(proof),
            permits: Arc::new(Semaphore::new(HANDSHAKES)),
            open: TaskTracker::new(),
            stopping,
        }
    }

    /// Upgrades a connection, or answers 503 if too many handshakes are in progress. `answer` handles the
    /// requests of an authenticated peer.
    pub fn open<F>(
        &self,
        peer: SocketAddr,
        request: Request<Incoming>,
        answer: impl Fn(SocketAddr, Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    ) -> Response
    where
        F: Future<Output = Response> + Send + 'static,
    {
        let Ok(permit) = self.permits.clone().try_acquire_owned() else {
            let mut response = Response::default();
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            return response;
        };
        let upgrade = hyper::upgrade::on(request);
        let channels = self.clone();
        self.open.spawn(async move {
            channels.run(peer, upgrade, permit, answer).await;
        });
        switching()
    }

    async fn run<F>(
        self,
        peer: SocketAddr,
        upgrade: OnUpgrade,
        permit: OwnedSemaphorePermit,
        answer: impl Fn(SocketAddr, Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    ) where
        F: Future<Output = Response> + Send + 'static,
    {
        let proof = async {
            let upgraded = upgrade.await.map_err(std::io::Error::other)?;
            self.proof.accept(TokioIo::new(upgraded)).await
        };
        let proven = tokio::select! {
            proven = timeout(HANDSHAKE, proof) => proven,
            () = self.stopping.cancelled() => return,
        };
        drop(permit);
        let stream = match proven {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                tracing::warn!(
                    %peer,
                    %error,
                    "connection of another replica rejected: all replicas on a jobs directory \
                     need the same MCPO_PEER_KEY"
                );
                return;
            }
            Err(_) => return,
        };
        let answer = move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(OverChannel);
            answer(peer, request)
        };
        let (stop, stops) = AbortHandle::new_pair();
        let connection = Connection::untracked(peer);
        let mut serving = pin!(one(stream, &connection, stops, BUFFER, answer));
        tokio::select! {
            () = &mut serving => {}
            () = self.stopping.cancelled() => {
                stop.abort();
                serving.await;
            }
        }
    }

    /// Waits until all connections have ended; cancel the token of [`Self::new`] first.
    pub async fn ended(&self) {
        self.open.close();
        self.open.wait().await;
    }
}
