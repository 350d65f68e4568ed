//! What goes with a forwarded request: who calls, and which replica is to answer. It travels only
//! within a connection whose both ends have proven the peer key ([`super::channel`]).

use std::sync::Arc;

use axum::http::{HeaderName, HeaderValue};
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use bridge_model::{Caller, Guest, Hop};
use bridge_state::InstanceId;
use serde::{Deserialize, Serialize};

/// Carries the envelope. Outside of such a connection it is refused.
pub static PEER_HEADER: HeaderName = HeaderName::from_static("x-mcpo-peer");
/// Servers bound their headers; only a client's declared capabilities can be long.
const LONGEST: usize = 64 * 1024;

/// A caller whom another replica has proven, and what of his may be done with it.
#[derive(Debug, Serialize, Deserialize)]
pub struct Envelope {
    /// The replica that it is for: no other takes it.
    to: InstanceId,
    hop: Hop,
    caller: Caller,
    guest: Option<Arc<Guest>>,
}

/// Why an envelope is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// It is none.
    Broken,
    /// For a replica that is no longer here.
    Misdirected,
}

impl Envelope {
    /// For one request.
    pub fn new(to: InstanceId, caller: &Caller, hop: Hop, guest: Option<Arc<Guest>>) -> Self {
        Self {
            to,
            hop,
            caller: caller.clone(),
            guest,
        }
    }

    /// As a header's value; `None` where it is too long for one.
    pub fn written(&self) -> Option<HeaderValue> {
        let text = BASE64_URL_SAFE_NO_PAD.encode(serde_json::to_vec(self).ok()?);
        let mut value = HeaderValue::try_from(text).ok()?;
        value.set_sensitive(true);
        (value.len() <= LONGEST).then_some(value)
    }

    /// Who calls, by an envelope that came to `own`.
    pub fn read(value: &HeaderValue, own: InstanceId) -> Result<Caller, Refused> {
        let text = BASE64_URL_SAFE_NO_PAD.decode(value.as_bytes());
        let text = text.map_err(|_| Refused::Broken)?;
        let envelope: Self = serde_json::from_slice(&text).map_err(|_| Refused::Broken)?;
        if envelope.to != own {
            return Err(Refused::Misdirected);
        }
        Ok(Caller {
            forwarded: Some((envelope.hop, envelope.guest)),
            ..envelope.caller
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bridge_model::{Principal, UserInfo};

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

    #[test]
    fn the_caller_arrives_as_he_was_proven() {
        let own = InstanceId::random();
        let written = Envelope::new(own, &alice(), Hop::Lease, None).written();
        let caller = Envelope::read(&written.unwrap(), own).unwrap();
        assert_eq!(caller.principal, alice().principal);
        assert_eq!(caller.user, alice().user);
        assert!(caller.trusted);
        assert_eq!(caller.chat, alice().chat);
        assert_eq!(caller.hop(), Some(Hop::Lease));
    }

    #[test]
    fn it_is_for_one_replica() {
        let written = Envelope::new(InstanceId::random(), &alice(), Hop::Lease, None).written();
        let read = Envelope::read(&written.unwrap(), InstanceId::random());
        assert_eq!(read.unwrap_err(), Refused::Misdirected);
    }

    #[test]
    fn what_is_none_is_refused() {
        for value in ["", "x", "eyJhbGciOiJub25lIn0.eyJhdWQiOiJ4In0."] {
            let read = Envelope::read(&HeaderValue::from_static(value), InstanceId::random());
            assert_eq!(read.unwrap_err(), Refused::Broken);
        }
    }
}
