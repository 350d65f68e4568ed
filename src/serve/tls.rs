//! HTTPS: handshakes beside each other, and connections that are through them.

use std::{
    fmt, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rustls::{
    ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc, watch},
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    config::Tls,
    replicas::{Fingerprint, fingerprint},
};

/// Whoever says nothing for so long is no client.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Handshakes at the same time; more wait in the system's queue.
const HANDSHAKES: usize = 256;
/// As axum does where no file descriptor is free.
const PAUSE: Duration = Duration::from_secs(1);

/// Why HTTPS cannot be served.
#[derive(Debug, thiserror::Error)]
#[error("{}: {problem}; {fix} ({variable})", .path.display())]
pub struct TlsError {
    path: PathBuf,
    problem: String,
    fix: &'static str,
    variable: &'static str,
}

impl TlsError {
    fn certificate(path: &Path, problem: impl fmt::Display) -> Self {
        Self {
            path: path.to_owned(),
            problem: problem.to_string(),
            fix: "name a PEM file with the certificate and those that signed it",
            variable: "MCPO_SSL_CERTFILE",
        }
    }

    fn key(path: &Path, problem: impl fmt::Display) -> Self {
        Self {
            path: path.to_owned(),
            problem: problem.to_string(),
            fix: "name a PEM file with the certificate's private key, without a passphrase",
            variable: "MCPO_SSL_KEYFILE",
        }
    }
}

/// A certificate and its key, read and found to belong together.
#[derive(Clone)]
pub struct Acceptor {
    acceptor: TlsAcceptor,
    fingerprint: Fingerprint,
}

impl Acceptor {
    /// Reads both files: blocks.
    pub fn load(tls: &Tls) -> Result<Self, TlsError> {
        let (certificate, key) = (&tls.certificate, &tls.key);
        let no_certificate = |error| TlsError::certificate(certificate, error);
        let chain = CertificateDer::pem_file_iter(certificate).map_err(no_certificate)?;
        let chain: Result<Vec<_>, _> = chain.collect();
        let chain = chain.map_err(no_certificate)?;
        if chain.is_empty() {
            return Err(TlsError::certificate(
                certificate,
                "it holds no certificate",
            ));
        }
        let private = PrivateKeyDer::from_pem_file(key);
        let private = private.map_err(|error| TlsError::key(key, error))?;
        let fingerprint = fingerprint(&chain[0]);
        // The provider is named here, since a process-wide one would be a global.
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("ring offers the versions that rustls has by default")
            .with_no_client_auth()
            .with_single_cert(chain, private);
        let mut config = config.map_err(|error| TlsError::key(key, error))?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self {
            acceptor: TlsAcceptor::from(Arc::new(config)),
            fingerprint,
        })
    }

    /// By what other bridges know the certificate.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }
}

/// Gives connections whose handshake is done: a slow one keeps nobody waiting.
pub struct Listener {
    through: mpsc::Receiver<(TlsStream<TcpStream>, SocketAddr)>,
    address: SocketAddr,
    _accepting: AbortOnDropHandle<()>,
}

impl Listener {
    /// Begins to take connections, each with the certificate that is current then.
    pub fn new(listener: TcpListener, current: watch::Receiver<Acceptor>) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let (done, through) = mpsc::channel(1);
        let accepting = tokio::spawn(accept(listener, current, done));
        Ok(Self {
            through,
            address,
            _accepting: AbortOnDropHandle::new(accepting),
        })
    }
}

async fn accept(
    listener: TcpListener,
    current: watch::Receiver<Acceptor>,
    done: mpsc::Sender<(TlsStream<TcpStream>, SocketAddr)>,
) {
    let places = Arc::new(Semaphore::new(HANDSHAKES));
    while let Ok(place) = places.clone().acquire_owned().await {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::debug!(%error, "a connection was not accepted");
                sleep(PAUSE).await;
                continue;
            }
        };
        let acceptor = current.borrow().acceptor.clone();
        let done = done.clone();
        tokio::spawn(async move {
            let _ = stream.set_nodelay(true);
            match timeout(HANDSHAKE, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => drop(done.send((stream, peer)).await),
                Ok(Err(error)) => tracing::debug!(%peer, %error, "no TLS"),
                Err(_) => tracing::debug!(%peer, "no TLS in time"),
            }
            drop(place);
        });
    }
}

impl axum::serve::Listener for Listener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        match self.through.recv().await {
            Some(connection) => connection,
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use axum::response::IntoResponse as _;
    use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
    use tempfile::TempDir;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio_rustls::TlsConnector;

    use tokio_util::sync::CancellationToken;

    use super::{super::connections, *};

    fn files() -> (TempDir, Tls, CertificateDer<'static>) {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let tls = Tls {
            certificate: folder.path().join("cert.pem"),
            key: folder.path().join("key.pem"),
        };
        fs::write(&tls.certificate, made.cert.pem()).unwrap();
        fs::write(&tls.key, made.signing_key.serialize_pem()).unwrap();
        (folder, tls, made.cert.der().clone())
    }

    #[tokio::test]
    async fn a_request_comes_through_beside_one_who_says_nothing() {
        let (_folder, tls, certificate) = files();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (_current, acceptor) = watch::channel(Acceptor::load(&tls).unwrap());
        let listener = Listener::new(listener, acceptor).unwrap();
        let say = |peer: SocketAddr, _| async move { peer.to_string().into_response() };
        let stopping = CancellationToken::new();
        let server = tokio::spawn(connections::serve(listener, say, stopping));
        let silent = TcpStream::connect(address).await.unwrap();

        let mut roots = RootCertStore::empty();
        roots.add(certificate).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let stream = TcpStream::connect(address).await.unwrap();
        let own = stream.local_addr().unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let connector = TlsConnector::from(Arc::new(config));
        let mut stream = connector.connect(name, stream).await.unwrap();
        let request = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        stream.write_all(request).await.unwrap();
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(answer.ends_with(&own.to_string()), "{answer}");
        drop(silent);
        server.abort();
    }

    /// The certificate that a server shows to whoever takes any.
    async fn shown(address: SocketAddr, trusted: &[&CertificateDer<'static>]) -> Vec<u8> {
        let mut roots = RootCertStore::empty();
        for certificate in trusted {
            roots.add((*certificate).clone()).unwrap();
        }
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let stream = TcpStream::connect(address).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let connector = TlsConnector::from(Arc::new(config));
        let stream = connector.connect(name, stream).await.unwrap();
        let certificates = stream.get_ref().1.peer_certificates().unwrap();
        certificates[0].to_vec()
    }

    #[tokio::test]
    async fn new_connections_get_the_certificate_that_is_current() {
        let ((_one, tls, old), (_two, renewed, new)) = (files(), files());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let current = watch::Sender::new(Acceptor::load(&tls).unwrap());
        let _listener = Listener::new(listener, current.subscribe()).unwrap();
        assert_eq!(shown(address, &[&old, &new]).await, old.as_ref());
        current.send_replace(Acceptor::load(&renewed).unwrap());
        assert_eq!(shown(address, &[&old, &new]).await, new.as_ref());
    }

    #[test]
    fn a_bad_file_is_named_with_its_setting() {
        let (_folder, tls, _) = files();
        let swapped = Tls {
            certificate: tls.key.clone(),
            key: tls.certificate.clone(),
        };
        let error = Acceptor::load(&swapped).err().unwrap().to_string();
        assert!(
            error.contains("key.pem: it holds no certificate"),
            "{error}"
        );
        assert!(error.contains("MCPO_SSL_CERTFILE"), "{error}");
        let (_other_folder, other, _) = files();
        let mixed = Tls {
            key: other.key,
            ..tls
        };
        let error = Acceptor::load(&mixed).err().unwrap().to_string();
        assert!(error.contains("MCPO_SSL_KEYFILE"), "{error}");
    }
}
