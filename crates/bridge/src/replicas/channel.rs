//! Connections to other replicas, through the port that clients use:
//!
//! ```text
//! GET / HTTP/1.1, Upgrade: mcpo-bridge-peer ──▶
//!                                           ◀── 101 Switching Protocols
//! TLS 1.3 handshake with mutual authentication by the peer key (see [`PeerKey`])
//! HTTP/1.1 requests and answers, encrypted
//! ```
//! If the other replica serves HTTPS, the upgrade request is sent within HTTPS.

use std::{
    collections::HashSet,
    fmt, io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::Body,
    http::{
        HeaderName, HeaderValue, Method, Request, StatusCode, Uri,
        header::{CONNECTION, HOST, UPGRADE},
        uri::Scheme,
    },
    response::{IntoResponse as _, Response},
};
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use bridge_model::{Caller, ForwardReason, RemoteSession, hex};
use bridge_state::InstanceId;
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
use parking_lot::Mutex;
use rustls::pki_types::{CertificateDer, ServerName};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tower::Service;

use super::PeerKey;
use crate::pinned::Pinned;

/// The protocol name in the `Upgrade` header.
const NAME: &str = "mcpo-bridge-peer";

/// Connect timeout: in the same network a connection is established at once, or the other replica is gone.
pub(super) const CONNECT: Duration = Duration::from_secs(2);

/// Idle timeout, short enough that no idle connection remains when a replica has restarted.
const POOL_IDLE: Duration = Duration::from_secs(4);

/// An HTTP client for other replicas.
pub(super) type PeerClient = Client<Connector, Body>;

/// An extension of requests from such a connection: their sender has the peer key.
#[derive(Debug, Clone, Copy)]
pub struct OverChannel;

/// Whether a request asks for an upgrade to a connection between replicas.
pub fn is_asked_for<B>(request: &Request<B>) -> bool {
    request.method() == Method::GET
        && request
            .headers()
            .get(UPGRADE)
            .is_some_and(|name| name == NAME)
}

/// The response to that request.
pub fn switching() -> Response {
    let headers = [(CONNECTION, "upgrade"), (UPGRADE, NAME)];
    (StatusCode::SWITCHING_PROTOCOLS, headers).into_response()
}

pub(super) fn client(key: &PeerKey, certificates: &Known) -> PeerClient {
    let connector = Connector {
        proof: TlsConnector::from(key.client.clone()),
        outer: TlsConnector::from(Arc::new(certificates.pinned().client())),
    };
    Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(POOL_IDLE)
        .retry_canceled_requests(false)
        .build(connector)
}

/// Why there is no connection.
#[derive(Debug, Clone, thiserror::Error)]
pub enum NoChannel {
    /// No response from that address, or not in time.
    #[error("{0}")]
    Unreachable(String),
    /// The server at that address is not a replica with the same key.
    #[error("it cannot prove that it is a replica of this service: {0}")]
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

/// Opens connections to authenticated replicas.
#[derive(Clone)]
pub struct Connector {
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
        // The name is arbitrary: only the key identifies the other side.
        let name = ServerName::try_from("peer").expect("it is a name");
        let proven = self.proof.connect(name, TokioIo::new(upgraded)).await;
        let proven = proven.map_err(|error| unproven(&error))?;
        Ok(Channel(TokioIo::new(proven)))
    }
}

/// A side that closes the connection within the handshake may be stopping.
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
    // It ends with the upgrade, or when the sender is dropped.
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
            "it returns {status} to a replica of this version"
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
            connected.unwrap_or_else(|_| Err(NoChannel::unreachable("no response")))
        })
    }
}

/// A connection for hyper's client.
pub struct Channel(TokioIo<TlsStream<TokioIo<Upgraded>>>);

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

// The metadata of a forwarded request: its caller, and the replica for which it is. It is sent only
// within a connection with mutual authentication by the peer key ([`super::channel`]).

/// The header with the envelope. Outside of such a connection it is refused.
pub static PEER_HEADER: HeaderName = HeaderName::from_static("x-mcpo-peer");

/// Maximum length of an envelope. Servers limit their headers; only a client's declared capabilities can be long.
const LONGEST: usize = 64 * 1024;

/// A caller that another replica has authenticated, and the replica for which the request is.
#[derive(Debug, Serialize, Deserialize)]
pub struct Envelope {
    /// The replica for which the request is: others refuse it.
    pub to: InstanceId,
    // Renaming a member on the wire would break rolling updates of replicas.
    /// Why the request was forwarded to that replica.
    #[serde(rename = "hop")]
    pub reason: ForwardReason,
    /// The caller, as authenticated by the sending replica.
    pub caller: Caller,
    /// The protocol session of the request.
    #[serde(rename = "guest")]
    pub remote_session: Option<Arc<RemoteSession>>,
}

/// Why an envelope is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EnvelopeError {
    /// It is not a valid envelope.
    Broken,
    /// It is for a replica that no longer runs here.
    Misdirected,
}

impl Envelope {
    /// The header value; `None` if it is too long.
    pub fn written(&self) -> Option<HeaderValue> {
        let text = BASE64_URL_SAFE_NO_PAD.encode(serde_json::to_vec(self).ok()?);
        let mut value = HeaderValue::try_from(text).ok()?;
        value.set_sensitive(true);
        (value.len() <= LONGEST).then_some(value)
    }

    /// The caller of an envelope that was sent to `own`.
    pub fn read(value: &HeaderValue, own: InstanceId) -> Result<Caller, EnvelopeError> {
        let text = BASE64_URL_SAFE_NO_PAD.decode(value.as_bytes());
        let text = text.map_err(|_| EnvelopeError::Broken)?;
        let envelope: Self = serde_json::from_slice(&text).map_err(|_| EnvelopeError::Broken)?;
        if envelope.to != own {
            return Err(EnvelopeError::Misdirected);
        }
        Ok(Caller {
            forwarded: Some((envelope.reason, envelope.remote_session)),
            ..envelope.caller
        })
    }
}

// HTTPS between replicas: the record of each contains its certificate's fingerprint; the names in the
// certificate are ignored.

/// The SHA-256 of a certificate.
pub type Fingerprint = [u8; 32];

/// The fingerprint of a certificate.
pub fn fingerprint(certificate: &CertificateDer<'_>) -> Fingerprint {
    Sha256::digest(certificate).into()
}

/// The origin of a replica for its record: `http://HOST:PORT`, or `https://HOST:PORT#` and the
/// certificate's fingerprint.
pub fn origin(address: &str, certificate: Option<Fingerprint>) -> String {
    match certificate {
        None => format!("http://{address}"),
        Some(certificate) => format!("https://{address}#{}", hex(&certificate)),
    }
}

/// The certificates in the records of replicas that have been read.
#[derive(Debug, Clone, Default)]
pub struct Known(Arc<Mutex<HashSet<String>>>);

impl Known {
    /// The URL of a replica, whose certificate is trusted from now on.
    pub fn way<'a>(&self, origin: &'a str) -> &'a str {
        let Some((way, certificate)) = origin.split_once('#') else {
            return origin;
        };
        let mut known = self.0.lock();
        if !known.contains(certificate) {
            known.insert(certificate.to_owned());
        }
        way
    }

    /// A TLS configuration that trusts them.
    fn pinned(&self) -> Pinned<impl Fn(&CertificateDer<'_>) -> bool + Send + Sync + 'static> {
        let known = self.clone();
        let knows = move |shown: &CertificateDer<'_>| {
            let known = known.0.lock();
            known.contains(&hex(&fingerprint(shown)))
        };
        let other = "its certificate differs from the one in its record";
        Pinned::new(knows, other)
    }
}

#[cfg(test)]
mod envelope_tests {
    use bridge_model::{Principal, UserInfo};

    use super::*;

    fn alice() -> Caller {
        Caller {
            principal: Principal::User("alice".into()),
            user: UserInfo {
                name: Some("アリス".into()),
                groups: vec!["sales".into()],
                ..UserInfo::default()
            },
            trusted: true,
            chat: Some("c".into()),
            message: None,
            token: None,
            session: None,
            address: "10.0.0.9".parse().unwrap(),
            forwarded: None,
        }
    }

    fn envelope(to: InstanceId) -> Envelope {
        Envelope {
            to,
            reason: ForwardReason::Lease,
            caller: alice(),
            remote_session: None,
        }
    }

    #[test]
    fn the_caller_arrives_as_he_was_proven() {
        let own = InstanceId::random();
        let written = envelope(own).written();
        let caller = Envelope::read(&written.unwrap(), own).unwrap();
        assert_eq!(caller.principal, alice().principal);
        assert_eq!(caller.user, alice().user);
        assert!(caller.trusted);
        assert_eq!(caller.chat, alice().chat);
        assert_eq!(caller.forward_reason(), Some(ForwardReason::Lease));
    }

    #[test]
    fn it_is_for_one_replica() {
        let written = envelope(InstanceId::random()).written();
        let read = Envelope::read(&written.unwrap(), InstanceId::random());
        assert_eq!(read.unwrap_err(), EnvelopeError::Misdirected);
    }

    #[test]
    fn what_is_none_is_refused() {
        for value in ["", "x", "eyJhbGciOiJub25lIn0.eyJhdWQiOiJ4In0."] {
            let read = Envelope::read(&HeaderValue::from_static(value), InstanceId::random());
            assert_eq!(read.unwrap_err(), EnvelopeError::Broken);
        }
    }
}

#[cfg(test)]
mod tls_tests {
    use rustls::{
        client::danger::ServerCertVerifier as _,
        pki_types::{ServerName, UnixTime},
    };

    use super::*;

    #[test]
    fn only_certificates_that_a_record_names_are_trusted() {
        let made = || rcgen::generate_simple_self_signed(["elsewhere".to_owned()]).unwrap();
        let (named, other) = (made().cert.der().clone(), made().cert.der().clone());
        let known = Known::default();
        let verifier = known.pinned();
        let trusts = |certificate: &CertificateDer<'_>| {
            let name = ServerName::try_from("10.0.0.5").unwrap();
            let now = UnixTime::now();
            let verified = verifier.verify_server_cert(certificate, &[], &name, &[], now);
            verified.is_ok()
        };
        assert!(!trusts(&named));
        let origin = origin("10.0.0.5:8080", Some(fingerprint(&named)));
        assert_eq!(known.way(&origin), "https://10.0.0.5:8080");
        assert!(trusts(&named) && !trusts(&other));
    }

    #[test]
    fn without_a_certificate_it_is_http() {
        let origin = origin("bridge-1:8080", None);
        assert_eq!(Known::default().way(&origin), "http://bridge-1:8080");
    }
}
