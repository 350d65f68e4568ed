//! Connections to other replicas, to the port that everybody uses:
//!
//! ```text
//! GET / HTTP/1.1, Upgrade: mcpo-bridge-peer ──▶
//!                                           ◀── 101 Switching Protocols
//! TLS 1.3 handshake, in which both sides prove the peer key (see [`PeerKey`])
//! HTTP/1.1 requests and answers, encrypted
//! ```
//! Where the other serves HTTPS, the first line is said within that.

use std::{
    fmt, io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::Body,
    http::{
        HeaderValue, Method, Request, StatusCode, Uri,
        header::{CONNECTION, HOST, UPGRADE},
        uri::Scheme,
    },
    response::Response,
};
use futures_util::future::BoxFuture;
use hyper::{
    client::conn::http1,
    rt::{Read, ReadBufCursor, Write},
    upgrade::Upgraded,
};
use hyper_util::{
    client::legacy::{
        Client,
        connect::{Connected, Connection},
    },
    rt::{TokioExecutor, TokioIo, TokioTimer},
};
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tower::Service;

use super::{PeerKey, tls::Known};

/// What is asked for in place of HTTP.
const NAME: &str = "mcpo-bridge-peer";
/// In the same network a connection is there at once, or the other is gone.
pub(super) const CONNECT: Duration = Duration::from_secs(2);
/// Idle connections are given up so soon that a restarted replica meets none.
const POOL_IDLE: Duration = Duration::from_secs(4);

/// Speaks to other replicas.
pub(super) type PeerClient = Client<Connector, Body>;

/// Marks a request that came through such a connection: who sent it holds the peer key.
#[derive(Debug, Clone, Copy)]
pub struct OverChannel;

/// Whether a connection is to become one between replicas.
pub fn is_asked_for<B>(request: &Request<B>) -> bool {
    request.method() == Method::GET
        && request
            .headers()
            .get(UPGRADE)
            .is_some_and(|name| name == NAME)
}

/// The answer to that.
pub fn switching() -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static(NAME));
    response
}

pub(super) fn client(key: &PeerKey, certificates: &Known) -> PeerClient {
    let connector = Connector {
        proof: TlsConnector::from(key.client()),
        outer: TlsConnector::from(Arc::new(certificates.tls())),
    };
    Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(POOL_IDLE)
        .retry_canceled_requests(false)
        .build(connector)
}

/// Why there is no connection.
#[derive(Debug, Clone, thiserror::Error)]
pub(super) enum NoChannel {
    /// Nothing answers there, or not in time.
    #[error("{0}")]
    Unreachable(String),
    /// Something answers that is no bridge with our key.
    #[error("it does not prove that it is a bridge of this service: {0}")]
    Unproven(String),
}

impl NoChannel {
    fn unreachable(error: impl fmt::Display) -> Self {
        Self::Unreachable(error.to_string())
    }

    fn unproven(error: impl fmt::Display) -> Self {
        Self::Unproven(error.to_string())
    }
}

/// Makes connections whose other end has proven itself.
#[derive(Clone)]
pub(super) struct Connector {
    proof: TlsConnector,
    outer: TlsConnector,
}

impl Connector {
    async fn connect(self, to: Uri) -> Result<Channel, NoChannel> {
        let host = to.host().unwrap_or_default();
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let outside = to.scheme() == Some(&Scheme::HTTPS);
        let port = to.port_u16().unwrap_or(if outside { 443 } else { 80 });
        let stream = TcpStream::connect((host, port)).await;
        let stream = stream.map_err(NoChannel::unreachable)?;
        let _ = stream.set_nodelay(true);
        let upgraded = if outside {
            let name = ServerName::try_from(host.to_owned());
            let name = name.map_err(NoChannel::unreachable)?;
            let stream = self.outer.connect(name, stream).await;
            upgrade(&to, stream.map_err(|error| unproven(&error))?).await?
        } else {
            upgrade(&to, stream).await?
        };
        // Any name will do: the key alone tells who it is.
        let name = ServerName::try_from("peer").expect("it is a name");
        let proven = self.proof.connect(name, TokioIo::new(upgraded)).await;
        let proven = proven.map_err(|error| unproven(&error))?;
        Ok(Channel(TokioIo::new(proven)))
    }
}

/// An end that hangs up within the handshake may just be ending.
fn unproven(error: &io::Error) -> NoChannel {
    match error.get_ref().and_then(|inner| inner.downcast_ref()) {
        Some(error) => match error {
            rustls::Error::General(text) => NoChannel::unproven(text),
            other => NoChannel::unproven(other),
        },
        None => NoChannel::unreachable(error),
    }
}

async fn upgrade<S>(to: &Uri, stream: S) -> Result<Upgraded, NoChannel>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let shaken = http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = shaken.map_err(NoChannel::unreachable)?;
    // It ends with the upgrade, or with the sender.
    tokio::spawn(connection.with_upgrades());
    let host = to.authority().map_or("", |authority| authority.as_str());
    let asked = Request::get("/")
        .header(HOST, host)
        .header(CONNECTION, "upgrade")
        .header(UPGRADE, NAME)
        .body(Body::empty())
        .map_err(NoChannel::unreachable)?;
    let answer = sender.send_request(asked).await;
    let answer = answer.map_err(NoChannel::unreachable)?;
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        let status = answer.status();
        return Err(NoChannel::unproven(format!(
            "it answers {status} to a bridge of this version"
        )));
    }
    let upgraded = hyper::upgrade::on(answer).await;
    upgraded.map_err(NoChannel::unreachable)
}

impl Service<Uri> for Connector {
    type Response = Channel;
    type Error = NoChannel;
    type Future = BoxFuture<'static, Result<Channel, NoChannel>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), NoChannel>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        let connector = self.clone();
        Box::pin(async move {
            let connected = tokio::time::timeout(CONNECT, connector.connect(to)).await;
            connected.unwrap_or_else(|_| Err(NoChannel::unreachable("it does not answer")))
        })
    }
}

/// A connection as hyper's client takes it.
pub(super) struct Channel(TokioIo<TlsStream<TokioIo<Upgraded>>>);

impl Connection for Channel {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl Read for Channel {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl Write for Channel {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, buffer)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(context, buffers)
    }
}
