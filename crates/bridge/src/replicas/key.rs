//! The shared secret for the mutual authentication of replicas.

use std::sync::Arc;

use bridge_state::{ChatStore, StoreError};
use ring::{
    hkdf::{HKDF_SHA256, Salt},
    signature::{Ed25519KeyPair, KeyPair as _},
};
use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, Error, ServerConfig, SignatureScheme,
    client::{
        AlwaysResolvesClientRawPublicKeys, Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, ring as provider, verify_tls13_signature_with_raw_key},
    pki_types::{
        CertificateDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime,
        alg_id::ED25519,
    },
    server::{
        AlwaysResolvesServerRawPublicKeys, NoServerSessionStorage,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::CertifiedKey,
    version::TLS13,
};

use crate::config::Secret;

/// The protocol inside the encrypted connection. An incompatible change gets another number, so that older
/// replicas are refused in the handshake.
const PROTOCOL: &[u8] = b"mcpo-bridge-peer/1";
/// The purpose of the derivation of [`PeerKey`]: the secret itself signs and encrypts nothing.
const PURPOSE: &[u8] = b"mcpo-bridge peer channel 1: ed25519 seed";
/// DER of an Ed25519 private key, up to its 32 bytes (RFC 8410, section 7).
const PKCS8_PREFIX: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];

/// Both sides of the connections between replicas: TLS 1.3 in which each side proves by a signature
/// over this handshake that it has the key pair that is derived from the shared secret. The traffic
/// cannot be read, changed or replayed by others, and a man in the middle learns nothing from a relayed
/// connection.
pub struct PeerKey {
    /// The configuration of the connecting side.
    pub(super) client: Arc<ClientConfig>,
    /// The configuration of the accepting side.
    pub(super) server: Arc<ServerConfig>,
    /// The secret is stored in the jobs folder, where children can read it.
    pub(super) in_jobs_folder: bool,
}

impl PeerKey {
    /// The key from the settings, else the one from the jobs folder.
    pub fn new(given: Option<&Secret>, store: &ChatStore) -> Result<Self, StoreError> {
        Ok(match given {
            Some(secret) => Self::from_secret(secret.expose().as_bytes()),
            None => Self {
                in_jobs_folder: true,
                ..Self::from_secret(&store.peer_key()?)
            },
        })
    }

    /// The key that is derived from these bytes.
    pub fn from_secret(secret: &[u8]) -> Self {
        let seed = seed(secret);
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed).expect("a seed has 32 bytes");
        let public = rustls::sign::public_key_to_spki(&ED25519, pair.public_key())
            .as_ref()
            .to_vec();
        let private = PrivatePkcs8KeyDer::from([&PKCS8_PREFIX[..], &seed].concat());
        let signing = provider::sign::any_eddsa_type(&private).expect("it is an Ed25519 key");
        let own = vec![CertificateDer::from(public.clone())];
        let certified = Arc::new(CertifiedKey::new(own, signing));
        let provider = Arc::new(provider::default_provider());
        let holder = Arc::new(Holder {
            public,
            provider: provider.clone(),
        });
        let with_tls13 = "ring has cipher suites for TLS 1.3";
        let mut client = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&TLS13])
            .expect(with_tls13)
            .dangerous()
            .with_custom_certificate_verifier(holder.clone())
            .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(
                certified.clone(),
            )));
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .expect(with_tls13)
            .with_client_cert_verifier(holder)
            .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(certified)));
        // Each connection is authenticated by itself: no tickets, no early data.
        client.resumption = Resumption::disabled();
        server.send_tls13_tickets = 0;
        server.session_storage = Arc::new(NoServerSessionStorage {});
        client.enable_sni = false;
        client.alpn_protocols = vec![PROTOCOL.to_vec()];
        server.alpn_protocols = vec![PROTOCOL.to_vec()];
        Self {
            client: Arc::new(client),
            server: Arc::new(server),
            in_jobs_folder: false,
        }
    }
}

fn seed(secret: &[u8]) -> [u8; 32] {
    let mut seed = [0; 32];
    let derived = Salt::new(HKDF_SHA256, &[]).extract(secret);
    let filled = derived
        .expand(&[PURPOSE], HKDF_SHA256)
        .and_then(|okm| okm.fill(&mut seed));
    filled.expect("as many bytes as the hash has");
    seed
}

/// Accepts a peer that has the private key of `public`, on either side of the handshake.
#[derive(Debug)]
struct Holder {
    public: Vec<u8>,
    provider: Arc<CryptoProvider>,
}

impl Holder {
    fn is_shown(&self, shown: &CertificateDer<'_>) -> Result<(), Error> {
        if shown.as_ref() == self.public {
            return Ok(());
        }
        Err(Error::General(OTHER_KEY.to_owned()))
    }

    fn verify(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let public = SubjectPublicKeyInfoDer::from(shown.as_ref());
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature_with_raw_key(message, &public, signed, algorithms)
    }

    fn schemes(&self) -> Vec<SignatureScheme> {
        let algorithms = &self.provider.signature_verification_algorithms;
        algorithms.supported_schemes()
    }
}

/// The error for a peer with another key.
const OTHER_KEY: &str = "it uses a different peer key";

fn no_tls12() -> Error {
    Error::General("TLS 1.2 is not supported between replicas".to_owned())
}

impl ServerCertVerifier for Holder {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.is_shown(end_entity)
            .map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verify(message, shown, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

impl ClientCertVerifier for Holder {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.is_shown(end_entity)
            .map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verify(message, shown, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use rustls::{ClientConnection, ServerConnection};

    use super::*;

    /// Whether the handshake succeeds, with the bytes that both sides sent.
    fn meet(
        client: &PeerKey,
        server: &PeerKey,
    ) -> Result<(ClientConnection, ServerConnection), Error> {
        let name = ServerName::try_from("peer").unwrap();
        let mut client = ClientConnection::new(client.client.clone(), name).unwrap();
        let mut server = ServerConnection::new(server.server.clone()).unwrap();
        while client.is_handshaking()
            || server.is_handshaking()
            || client.wants_write()
            || server.wants_write()
        {
            carry(&mut client, &mut server)?;
            carry(&mut server, &mut client)?;
        }
        Ok((client, server))
    }

    fn carry<A, B, DA, DB>(from: &mut A, to: &mut B) -> Result<(), Error>
    where
        A: std::ops::DerefMut<Target = rustls::ConnectionCommon<DA>>,
        B: std::ops::DerefMut<Target = rustls::ConnectionCommon<DB>>,
        DA: rustls::SideData,
        DB: rustls::SideData,
    {
        let mut wire = Vec::new();
        while from.wants_write() {
            from.write_tls(&mut wire).unwrap();
        }
        let mut wire = wire.as_slice();
        while !wire.is_empty() {
            to.read_tls(&mut wire).unwrap();
            to.process_new_packets()?;
        }
        Ok(())
    }

    #[test]
    fn both_ends_prove_the_same_secret() {
        let (one, two) = (
            PeerKey::from_secret(b"secret"),
            PeerKey::from_secret(b"secret"),
        );
        let (client, server) = meet(&one, &two).unwrap();
        assert_eq!(client.alpn_protocol(), Some(PROTOCOL));
        assert!(server.peer_certificates().is_some());
    }

    #[test]
    fn an_end_with_another_secret_is_refused_by_either_side() {
        let (one, two) = (
            PeerKey::from_secret(b"secret"),
            PeerKey::from_secret(b"another"),
        );
        let refused = meet(&one, &two).unwrap_err();
        assert_eq!(refused, Error::General(OTHER_KEY.to_owned()));
        // A client that accepts any server is refused by the server.
        let mut credulous = ClientConfig::clone(&two.client);
        credulous
            .dangerous()
            .set_certificate_verifier(Arc::new(Holder {
                public: seed_public(b"secret"),
                provider: Arc::new(provider::default_provider()),
            }));
        let credulous = PeerKey {
            client: Arc::new(credulous),
            ..two
        };
        let refused = meet(&credulous, &one).unwrap_err();
        assert_eq!(refused, Error::General(OTHER_KEY.to_owned()));
    }

    fn seed_public(secret: &[u8]) -> Vec<u8> {
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed(secret)).unwrap();
        rustls::sign::public_key_to_spki(&ED25519, pair.public_key())
            .as_ref()
            .to_vec()
    }

    #[test]
    fn an_end_that_shows_the_public_key_alone_is_refused() {
        let (one, two) = (
            PeerKey::from_secret(b"secret"),
            PeerKey::from_secret(b"another"),
        );
        let private = PrivatePkcs8KeyDer::from([&PKCS8_PREFIX[..], &seed(b"another")].concat());
        let signing = provider::sign::any_eddsa_type(&private).unwrap();
        let shown = vec![CertificateDer::from(seed_public(b"secret"))];
        let forged = Arc::new(CertifiedKey::new(shown, signing));
        let mut server = ServerConfig::clone(&two.server);
        server.cert_resolver = Arc::new(AlwaysResolvesServerRawPublicKeys::new(forged));
        let forger = PeerKey {
            server: Arc::new(server),
            ..two
        };
        let refused = meet(&one, &forger).unwrap_err();
        assert!(
            matches!(refused, Error::InvalidCertificate(_)),
            "{refused:?}"
        );
    }
}
