//! TLS with peers that are identified by their certificate, regardless of the names in it.

use std::{fmt, sync::Arc};

use rustls::{
    ClientConfig, DigitallySignedStruct, Error, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};

/// Trusts the certificates that `knows` accepts, if the peer proves that it has the private key.
pub struct Pinned<F> {
    knows: F,
    /// The error for all others.
    otherwise: &'static str,
    provider: Arc<CryptoProvider>,
}

impl<F> Pinned<F>
where
    F: Fn(&CertificateDer<'_>) -> bool + Send + Sync + 'static,
{
    /// Creates it; other certificates are rejected with the error `otherwise`.
    pub fn new(knows: F, otherwise: &'static str) -> Self {
        Self {
            knows,
            otherwise,
            provider: Arc::new(ring::default_provider()),
        }
    }

    /// The TLS configuration of a client.
    pub fn client(self) -> ClientConfig {
        ClientConfig::builder_with_provider(self.provider.clone())
            .with_safe_default_protocol_versions()
            .expect("ring offers the versions that rustls has by default")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(self))
            .with_no_client_auth()
    }
}

impl<F> fmt::Debug for Pinned<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pinned").finish_non_exhaustive()
    }
}

impl<F> ServerCertVerifier for Pinned<F>
where
    F: Fn(&CertificateDer<'_>) -> bool + Send + Sync,
{
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if (self.knows)(end_entity) {
            return Ok(ServerCertVerified::assertion());
        }
        Err(Error::General(self.otherwise.to_owned()))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let algorithms = &self.provider.signature_verification_algorithms;
        algorithms.supported_schemes()
    }
}
