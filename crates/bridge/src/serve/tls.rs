//! HTTPS: the certificate, and the handshake of one connection.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use crate::{
    config::Tls,
    replicas::{Fingerprint, fingerprint},
};

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

    /// Speaks TLS with a client; how long that may take is for who asks.
    pub async fn accept(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        self.acceptor.accept(stream).await
    }

    /// By what other bridges know the certificate.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, net::SocketAddr, time::Duration};

    use axum::response::IntoResponse as _;
    use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
    use tempfile::TempDir;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::{net::TcpListener, sync::watch};
    use tokio_rustls::TlsConnector;
    use tokio_util::sync::CancellationToken;

    use super::{
        super::{connections, open::Limits},
        *,
    };

    /// Serves HTTPS that tells everybody his address.
    async fn server(
        current: watch::Receiver<Acceptor>,
    ) -> (SocketAddr, tokio::task::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let say = |peer: SocketAddr, _| async move { peer.to_string().into_response() };
        let long = Duration::from_mins(10);
        let limits = Limits {
            most: 100,
            new_per_address: 100,
            head: long,
            body: long,
            idle: long,
        };
        let stopping = CancellationToken::new();
        let serving = connections::serve(listener, Some(current), limits, say, stopping);
        (address, tokio::spawn(serving))
    }

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
        let (_current, acceptor) = watch::channel(Acceptor::load(&tls).unwrap());
        let (address, server) = server(acceptor).await;
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
        let current = watch::Sender::new(Acceptor::load(&tls).unwrap());
        let (address, server) = server(current.subscribe()).await;
        assert_eq!(shown(address, &[&old, &new]).await, old.as_ref());
        current.send_replace(Acceptor::load(&renewed).unwrap());
        assert_eq!(shown(address, &[&old, &new]).await, new.as_ref());
        server.abort();
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
