//! Which of a request's headers servers may get: never our own key, and of what names the user only
//! what was believed.

use std::net::IpAddr;

use axum::http::{
    HeaderMap, HeaderName,
    header::{AUTHORIZATION, COOKIE},
};

use super::{Identity, SESSION_HEADER, keys};
use crate::config::ServerSpec;

impl Identity {
    /// The headers of an authenticated request that its server gets; `None` where the server's
    /// config forwards nothing.
    pub fn forwarded(
        &self,
        spec: &ServerSpec,
        headers: &HeaderMap,
        peer: IpAddr,
    ) -> Option<HeaderMap> {
        let forwarding = spec.forwarding.as_ref()?;
        let chosen = forwarding.choose(headers).into_iter();
        let mut forwarded: HeaderMap = HeaderMap::new();
        for (name, value) in chosen.filter(|(name, _)| self.may_leave(name, headers, peer)) {
            forwarded.append(name, value);
        }
        Some(forwarded)
    }

    fn may_leave(&self, name: &HeaderName, headers: &HeaderMap, peer: IpAddr) -> bool {
        let names = &self.names;
        let plain = [
            &names.user_id,
            &names.user_name,
            &names.user_email,
            &names.user_role,
        ];
        if *name == self.names.key || *name == SESSION_HEADER {
            return false;
        }
        let session = self.openwebui.is_some();
        let proven = session && keys::user_token(&self.keys, headers).is_some();
        if *name == COOKIE {
            // Open WebUI can be told to send the user's, with his token in it.
            return !session;
        }
        if *name == AUTHORIZATION {
            // The user's own token for Open WebUI is nobody's but ours to use.
            return !proven && !keys::authorization_is_ours(&self.keys, headers);
        }
        if *name == names.user_jwt {
            // Whoever came this far with a token had it verified.
            return self.tokens.is_some();
        }
        let trusted = || {
            let keyed = matches!(self.check_key(headers), keys::KeyCheck::Valid(_));
            keyed || self.is_near(headers, peer)
        };
        if plain.contains(&name) {
            return self.tokens.is_none() && !proven && trusted();
        }
        if *name == names.chat_id || *name == names.message_id {
            return proven
                || trusted()
                || (self.tokens.is_some() && headers.contains_key(&names.user_jwt));
        }
        true
    }
}
