//! Which of a request's headers servers may get: never our own key, and of what names the user only
//! what was believed.

use std::{net::IpAddr, sync::Arc};

use axum::http::{
    HeaderMap, HeaderName,
    header::{AUTHORIZATION, COOKIE},
};
use bridge_model::Caller;

use super::{Identity, SESSION_HEADER, keys};
use crate::config::ServerSpec;

impl Identity {
    /// The headers of an authenticated request that its server gets; `None` where the server's
    /// config forwards nothing.
    pub fn forwarded(
        &self,
        spec: &ServerSpec,
        headers: &HeaderMap,
        caller: &Caller,
    ) -> Option<HeaderMap> {
        let forwarding = spec.forwarding.as_ref()?;
        let chosen = forwarding.choose(headers).into_iter();
        // What another replica sent on was looked through there, where the caller's proofs were.
        let looked_at = caller.hop().is_some();
        let may = |name: &HeaderName| looked_at || self.may_leave(name, headers, caller.address);
        let mut forwarded: HeaderMap = HeaderMap::new();
        for (name, value) in chosen.filter(|(name, _)| may(name)) {
            forwarded.append(name, value);
        }
        Some(forwarded)
    }

    /// The headers of an authenticated request that any of these servers gets, for the replica that
    /// asks one of them.
    pub fn forwarded_to_any<'a>(
        &self,
        specs: impl Iterator<Item = &'a Arc<ServerSpec>>,
        headers: &HeaderMap,
        caller: &Caller,
    ) -> HeaderMap {
        let mut all = HeaderMap::new();
        for some in specs.filter_map(|spec| self.forwarded(spec, headers, caller)) {
            for name in some.keys() {
                if all.contains_key(name) {
                    continue;
                }
                for value in some.get_all(name) {
                    all.append(name.clone(), value.clone());
                }
            }
        }
        all
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
        if *name == names.user_groups {
            return trusted();
        }
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
