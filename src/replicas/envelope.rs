//! What goes with a forwarded request: who calls, signed for one request to one replica.

use std::sync::Arc;

use axum::http::{HeaderName, HeaderValue, Method};
use jsonwebtoken::{Algorithm, Header, Validation, decode, encode};
use serde::{Deserialize, Serialize};

use super::PeerKey;
use crate::{
    model::{Caller, Guest, Hop},
    store::InstanceId,
};

/// Carries the envelope. From anybody without the key it is refused.
pub static PEER_HEADER: HeaderName = HeaderName::from_static("x-mcpo-peer");
/// Servers bound their headers; only a client's declared capabilities can be long.
const LONGEST: usize = 64 * 1024;

/// A caller whom another replica has proven, and what of his may be done with it.
#[derive(Debug, Serialize, Deserialize)]
pub struct Envelope {
    /// The replica that it is for: no other takes it.
    aud: String,
    method: String,
    /// Path and query.
    target: String,
    /// SHA-256 of the body, lower-case hex.
    body: String,
    hop: Hop,
    caller: Caller,
    guest: Option<Arc<Guest>>,
}

/// Why an envelope is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// Not signed with our key, or for another request.
    Forged,
    /// For a replica that is no longer here.
    Misdirected,
}

impl Envelope {
    /// For one request; of its body the digest.
    pub fn new(
        to: InstanceId,
        (method, target, body): (&Method, &str, String),
        caller: &Caller,
        hop: Hop,
        guest: Option<Arc<Guest>>,
    ) -> Self {
        Self {
            aud: to.to_string(),
            method: method.to_string(),
            target: target.to_owned(),
            body,
            hop,
            caller: caller.clone(),
            guest,
        }
    }

    /// As a header's value; `None` where it is too long for one.
    pub fn seal(&self, key: &PeerKey) -> Option<HeaderValue> {
        let sealed = encode(&Header::new(Algorithm::HS256), self, &key.sign).ok()?;
        let mut value = HeaderValue::try_from(sealed).ok()?;
        value.set_sensitive(true);
        (value.len() <= LONGEST).then_some(value)
    }

    /// Opens an envelope that came with a request to `own`. Its body is checked by
    /// [`Self::caller_of`].
    pub fn open(
        value: &HeaderValue,
        key: &PeerKey,
        own: InstanceId,
        (method, target): (&Method, &str),
    ) -> Result<Self, Refused> {
        let mut validation = Validation::new(Algorithm::HS256);
        validation.set_required_spec_claims(&["aud"]);
        // Clocks of different hosts are not compared: it holds for one request to one run of one
        // replica instead.
        validation.validate_exp = false;
        validation.validate_aud = false;
        let opened = decode::<Self>(value.as_bytes(), &key.verify, &validation);
        let envelope = opened.map_err(|_| Refused::Forged)?.claims;
        if envelope.aud != own.to_string() {
            return Err(Refused::Misdirected);
        }
        if envelope.method != method.as_str() || envelope.target != target {
            return Err(Refused::Forged);
        }
        Ok(envelope)
    }

    /// Who calls, if the body of this digest is the one that was signed.
    pub fn caller_of(self, body: &str) -> Result<Caller, Refused> {
        if self.body != body {
            return Err(Refused::Forged);
        }
        Ok(Caller {
            forwarded: Some((self.hop, self.guest)),
            ..self.caller
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::{Principal, UserInfo},
        replicas::Payload,
    };

    fn digest(body: &'static [u8]) -> String {
        Payload::Whole(bytes::Bytes::from_static(body)).digest()
    }

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

    fn sealed(to: InstanceId, key: &PeerKey) -> HeaderValue {
        let request = (&Method::POST, "/mcpo/excel/write?a=1", digest(b"{}"));
        Envelope::new(to, request, &alice(), Hop::Lease, None)
            .seal(key)
            .unwrap()
    }

    #[test]
    fn the_caller_arrives_as_he_was_proven() {
        let (key, own) = (PeerKey::of(b"secret"), InstanceId::random());
        let request = (&Method::POST, "/mcpo/excel/write?a=1");
        let opened = Envelope::open(&sealed(own, &key), &key, own, request).unwrap();
        let caller = opened.caller_of(&digest(b"{}")).unwrap();
        assert_eq!(caller.principal, alice().principal);
        assert_eq!(caller.user, alice().user);
        assert!(caller.trusted);
        assert_eq!(caller.chat, alice().chat);
        assert_eq!(caller.hop(), Some(Hop::Lease));
    }

    #[test]
    fn it_holds_for_one_request_to_one_replica_and_with_one_key() {
        let (key, own) = (PeerKey::of(b"secret"), InstanceId::random());
        let sealed = sealed(own, &key);
        let open = |key: &[u8], own, method, target| {
            let key = PeerKey::of(key);
            Envelope::open(&sealed, &key, own, (method, target)).map(|_| ())
        };
        let target = "/mcpo/excel/write?a=1";
        assert_eq!(open(b"secret", own, &Method::POST, target), Ok(()));
        let forged = Err(Refused::Forged);
        assert_eq!(open(b"another", own, &Method::POST, target), forged);
        assert_eq!(open(b"secret", own, &Method::GET, target), forged);
        assert_eq!(
            open(b"secret", own, &Method::POST, "/mcpo/excel/read"),
            forged
        );
        let other = InstanceId::random();
        let misdirected = open(b"secret", other, &Method::POST, target);
        assert_eq!(misdirected, Err(Refused::Misdirected));
        let opened = Envelope::open(&sealed, &key, own, (&Method::POST, target)).unwrap();
        assert_eq!(
            opened.caller_of(&digest(b"{ }")).unwrap_err(),
            Refused::Forged
        );
    }

    #[test]
    fn an_unsigned_one_is_forged() {
        let (key, own) = (PeerKey::of(b"secret"), InstanceId::random());
        let whole = sealed(own, &key);
        let parts: Vec<&str> = whole.to_str().unwrap().split('.').collect();
        // {"alg":"none"}
        let unsigned = format!("eyJhbGciOiJub25lIn0.{}.", parts[1]);
        for value in [unsigned, String::new(), "a.b.c".to_owned()] {
            let value = HeaderValue::try_from(value).unwrap();
            let opened = Envelope::open(&value, &key, own, (&Method::POST, "/"));
            assert_eq!(opened.unwrap_err(), Refused::Forged);
        }
    }
}
