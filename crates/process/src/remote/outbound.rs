//! How the bridge goes out: the system's certificate authorities and proxies.

use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore, crypto::ring};

/// Certificate authorities and proxies. Cheap to clone.
#[derive(Clone)]
pub struct Outbound {
    tls: ClientConfig,
    /// All but tests do.
    asks_proxies: bool,
}

impl Outbound {
    /// Reads the system's certificates, or those that `SSL_CERT_FILE` and `SSL_CERT_DIR` name:
    /// once, at start. `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY` are honoured. Where there are no
    /// certificates, servers behind `http` still work.
    pub fn from_environment() -> Self {
        let found = rustls_native_certs::load_native_certs();
        for error in &found.errors {
            tracing::warn!(%error, "some certificate authorities cannot be read");
        }
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(found.certs);
        Self {
            tls: tls(roots),
            asks_proxies: true,
        }
    }

    /// Trusts nobody and asks no proxy.
    #[cfg(test)]
    pub fn direct() -> Self {
        Self {
            tls: tls(RootCertStore::empty()),
            asks_proxies: false,
        }
    }

    /// A client builder with these.
    pub fn builder(&self) -> reqwest::ClientBuilder {
        let builder = reqwest::Client::builder().tls_backend_preconfigured(self.tls.clone());
        if self.asks_proxies {
            builder
        } else {
            builder.no_proxy()
        }
    }
}

fn tls(roots: RootCertStore) -> ClientConfig {
    // The provider is named here, since a process-wide one would be a global.
    ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring offers the versions that rustls has by default")
        .with_root_certificates(roots)
        .with_no_client_auth()
}
