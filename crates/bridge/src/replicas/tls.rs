//! HTTPS between replicas: each says in its record by which certificate it is known, whatever names
//! stand in that.

use std::{collections::HashSet, sync::Arc};

use bridge_model::hex;
use parking_lot::Mutex;
use rustls::{ClientConfig, pki_types::CertificateDer};
use sha2::{Digest as _, Sha256};

use crate::pinned::Pinned;

/// Of a certificate: its SHA-256.
pub type Fingerprint = [u8; 32];

/// By what a certificate is known.
pub fn fingerprint(certificate: &CertificateDer<'_>) -> Fingerprint {
    Sha256::digest(certificate).into()
}

/// What a record says of the way to its replica: `http://HOST:PORT`, or `https://HOST:PORT#` and the
/// certificate's fingerprint.
pub fn origin(address: &str, certificate: Option<Fingerprint>) -> String {
    match certificate {
        None => format!("http://{address}"),
        Some(certificate) => format!("https://{address}#{}", hex(&certificate)),
    }
}

/// The certificates of replicas, as far as their records were read.
#[derive(Debug, Clone, Default)]
pub struct Known(Arc<Mutex<HashSet<String>>>);

impl Known {
    /// The way to a replica, whose certificate is trusted from now on.
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

    /// How to speak TLS with them.
    pub fn tls(&self) -> ClientConfig {
        self.pinned().client()
    }

    fn pinned(&self) -> Pinned<impl Fn(&CertificateDer<'_>) -> bool + Send + Sync + 'static> {
        let known = self.clone();
        let knows = move |shown: &CertificateDer<'_>| {
            let known = known.0.lock();
            known.contains(&hex(&fingerprint(shown)))
        };
        let other = "its certificate is not the one that its record names";
        Pinned::new(knows, other)
    }
}

#[cfg(test)]
mod tests {
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
