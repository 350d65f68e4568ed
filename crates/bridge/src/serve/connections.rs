//! Connections: taken, served within their limits, and in the end let finish what they have begun.
//!
//! As `axum::serve` does it, but see [`PollAgain`], [`super::open`] and [`super::wire`].

use std::{
    convert::Infallible,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::{Body, HttpBody as _},
    http::StatusCode,
    response::Response,
};
use bytes::Bytes;
use futures_util::future::{AbortRegistration, Abortable};
use http_body::{Frame, SizeHint};
use hyper::{Request, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    open::{Admitted, BodyLength, Connection, Limits, Table},
    poll_again::PollAgain,
    tls::Acceptor,
    wire::Wire,
};
use crate::http::Overfull;

/// Bytes of a head, and read ahead of a body.
const BUFFER: usize = 128 * 1024;
/// Where no file descriptor is free, or requests are finished before a stop.
const PAUSE: Duration = Duration::from_millis(100);

/// Serves until it is stopped, and then what is under way. `answer` is told where a request came from.
pub async fn serve<F>(
    listener: TcpListener,
    tls: Option<watch::Receiver<Acceptor>>,
    limits: Limits,
    answer: impl Fn(SocketAddr, Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    stopping: CancellationToken,
) where
    F: Future<Output = Response> + Send + 'static,
{
    let (open, table) = (TaskTracker::new(), Table::new(limits));
    let keeper = tokio::spawn(table.clone().keep_time());
    loop {
        let (stream, peer) = tokio::select! {
            accepted = accept(&listener) => accepted,
            () = stopping.cancelled() => break,
        };
        let (connection, held, beyond) = match table.admit(peer).await {
            Admitted::In(connection, held) => (connection, held, false),
            Admitted::Beyond(connection, held) => (connection, held, true),
            Admitted::Full => continue,
        };
        // Without this an answer can wait 40 ms for the client's acknowledgement.
        let _ = stream.set_nodelay(true);
        let bell = Table::stops(&connection);
        let acceptor = tls.as_ref().map(|current| current.borrow().clone());
        let (here, answer, table) = (connection.clone(), answer.clone(), table.clone());
        let answer = move |mut request: Request<Incoming>| {
            let (answer, table) = (answer.clone(), table.clone());
            async move {
                if beyond && !table.has_room().await {
                    request.extensions_mut().insert(Overfull);
                }
                answer(peer, request).await
            }
        };
        let task = open.spawn(async move {
            let _held = held;
            match acceptor {
                None => one(stream, &here, bell, answer).await,
                Some(acceptor) => match acceptor.accept(stream).await {
                    Ok(stream) => one(stream, &here, bell, answer).await,
                    Err(error) => tracing::debug!(%peer, %error, "no TLS"),
                },
            }
        });
        connection.runs_in(task.abort_handle());
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
                tracing::debug!(%error, "a connection was not accepted");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Serves one connection to its end.
async fn one<S, F>(
    stream: S,
    here: &Arc<Connection>,
    bell: AbortRegistration,
    answer: impl Fn(Request<Incoming>) -> F,
) where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    F: Future<Output = Response>,
{
    let service = service_fn(|request: Request<Incoming>| {
        here.begin(match request.body().size_hint().exact() {
            Some(length) => BodyLength::Bytes(length),
            None => BodyLength::Chunked,
        });
        let (answered, connection) = (answer(request), here.clone());
        async {
            let response = answered.await;
            if response.status() == StatusCode::SWITCHING_PROTOCOLS {
                connection.upgrade();
            }
            Ok::<_, Infallible>(response.map(|body| Answer { body, connection }))
        }
    });
    let stream = TokioIo::new(Wire::new(stream, here.clone()));
    let connection = http1::Builder::new()
        // Its own limit for heads would be one for idle connections, too.
        .header_read_timeout(None)
        .max_buf_size(BUFFER)
        .serve_connection(stream, service)
        .with_upgrades();
    let mut connection = PollAgain::new(connection);
    let served = match Abortable::new(&mut connection, bell).await {
        Ok(served) => served,
        Err(_stopping) => {
            connection.inner().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        tracing::debug!(%error, "a connection broke");
    }
}

/// The body of an answer, whose connection is idle once hyper has taken all of it.
struct Answer {
    body: Body,
    connection: Arc<Connection>,
}

impl hyper::body::Body for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.connection.answered();
    }
}
