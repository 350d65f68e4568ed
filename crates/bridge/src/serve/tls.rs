//! HTTPS: the certificate, and the handshake of one connection.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rustls::{
    ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use sha2::{Digest as _, Sha256};
use tokio::{net::TcpStream, sync::watch};
use tokio_rustls::{Accept, TlsAcceptor};

use crate::{
    app::App,
    config::{Tls, read_bounded},
    replicas::{Fingerprint, fingerprint, origin},
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
            fix: "set a PEM file with the certificate and its chain",
            variable: "MCPO_SSL_CERTFILE",
        }
    }

    fn key(path: &Path, problem: impl fmt::Display) -> Self {
        Self {
            path: path.to_owned(),
            problem: problem.to_string(),
            fix: "set a PEM file with the certificate's private key, without a passphrase",
            variable: "MCPO_SSL_KEYFILE",
        }
    }
}

/// A certificate and its private key, which match.
#[derive(Clone)]
pub struct Acceptor {
    acceptor: TlsAcceptor,
    fingerprint: Fingerprint,
}

impl Acceptor {
    /// Reads both files; blocks.
    pub fn load(tls: &Tls) -> Result<Self, TlsError> {
        let (certificate, key) = (&tls.certificate, &tls.key);
        let no_certificate = |error| TlsError::certificate(certificate, error);
        let chain = CertificateDer::pem_file_iter(certificate).map_err(no_certificate)?;
        let chain: Result<Vec<_>, _> = chain.collect();
        let chain = chain.map_err(no_certificate)?;
        if chain.is_empty() {
            return Err(TlsError::certificate(
                certificate,
                "no certificate in the file",
            ));
        }
        let private = PrivateKeyDer::from_pem_file(key);
        let private = private.map_err(|error| TlsError::key(key, error))?;
        let fingerprint = fingerprint(&chain[0]);
        // An explicit provider, since a process-wide one would be a global.
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

    /// Starts the TLS handshake with a client; the caller limits its time.
    pub fn accept(&self, stream: TcpStream) -> Accept<TcpStream> {
        self.acceptor.accept(stream)
    }

    /// The fingerprint by which other replicas identify the certificate.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }
}

// A renewed certificate takes effect without a restart: open connections keep the old one, and new
// connections get the new one.

/// Poll interval of the files. Notifications would miss bind mounts and Kubernetes' links.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Maximum size of a certificate or key file in bytes, above all real ones.
const LARGEST_FILE: u64 = 1024 * 1024;

/// Watches until the future is dropped. `address` is where other replicas reach this one: they
/// authenticate it by its certificate.
pub async fn watch_certificate(
    app: Arc<App>,
    tls: Tls,
    address: Option<String>,
    current: watch::Sender<Acceptor>,
) {
    let mut taken = digest(&tls).await;
    let mut seen = taken;
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let now = digest(&tls).await;
        // Two files are not replaced at once: content that is the same in two polls is complete.
        let whole = now.is_some() && now == seen;
        seen = now;
        if !whole || now == taken {
            continue;
        }
        taken = now;
        let (app, tls, address) = (app.clone(), tls.clone(), address.clone());
        let take = move || take_over(&app, &tls, address.as_deref());
        if let Ok(Some(acceptor)) = tokio::task::spawn_blocking(take).await {
            current.send_replace(acceptor);
        }
    }
}

async fn digest(tls: &Tls) -> Option<[u8; 32]> {
    let Tls { certificate, key } = tls.clone();
    let read = move || {
        let parts = [certificate, key].map(|path| read_bounded(&path, LARGEST_FILE));
        let digest = parts.into_iter().try_fold(Sha256::new(), |digest, part| {
            Ok::<_, io::Error>(digest.chain_update(part?))
        });
        digest.map(|digest| digest.finalize().into()).ok()
    };
    tokio::task::spawn_blocking(read).await.ok()?
}

fn take_over(app: &App, tls: &Tls, address: Option<&str>) -> Option<Acceptor> {
    let loaded = Acceptor::load(tls);
    let loaded = loaded.inspect_err(|error| {
        tracing::error!(
            %error,
            "the certificate could not be reloaded; the previous one stays active"
        );
    });
    let acceptor = loaded.ok()?;
    // The other replicas get the new fingerprint first: one that does not trust it yet retries.
    if let Some(address) = address {
        let address = origin(address, Some(acceptor.fingerprint()));
        if let Err(error) = app.store.move_to(address) {
            tracing::warn!(%error, "other replicas cannot be notified of the new certificate yet");
        }
    }
    tracing::info!("certificate reloaded");
    Some(acceptor)
}

#[cfg(test)]
mod tests {
    use std::{fs, net::SocketAddr, time::Duration};

    use axum::response::IntoResponse as _;
    use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
    use tempfile::TempDir;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
        sync::watch,
    };
    use tokio_rustls::TlsConnector;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::serve::{connections, open::Limits};

    /// Serves HTTPS, and answers each client with its address.
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

    /// The certificate that the server presents.
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
            error.contains("key.pem: no certificate in the file"),
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
