//! The request headers that servers may get: never an API key of the bridge, and of the headers that identify
//! the user only trusted ones.

use std::{net::IpAddr, sync::Arc};

use axum::http::{
    HeaderMap, HeaderName,
    header::{AUTHORIZATION, COOKIE},
};
use bridge_model::Caller;
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, percent_encode};

use super::{Identity, Refusal, SESSION_HEADER, token};
use crate::config::ServerSpec;

impl Identity {
    /// The headers of an authenticated request for its server; `None` if the server's config forwards no
    /// headers.
    pub fn forwarded(
        &self,
        spec: &ServerSpec,
        headers: &HeaderMap,
        caller: &Caller,
    ) -> Option<HeaderMap> {
        let forwarding = spec.forwarding.as_ref()?;
        let chosen = forwarding.choose(headers).into_iter();
        // Another replica has checked the headers of requests that it forwarded: only it had the caller's credentials.
        let looked_at = caller.forward_reason().is_some();
        let may = |name: &HeaderName| looked_at || self.may_leave(name, headers, caller.address);
        let mut forwarded: HeaderMap = HeaderMap::new();
        for (name, value) in chosen.filter(|(name, _)| may(name)) {
            forwarded.append(name, value);
        }
        Some(forwarded)
    }

    /// The headers of an authenticated request for any of these servers, for the replica that sends the
    /// request to one of them.
    pub fn forwarded_to_any<'a>(
        &self,
        specs: impl Iterator<Item = &'a Arc<ServerSpec>>,
        headers: &HeaderMap,
        caller: &Caller,
    ) -> HeaderMap {
        let forwarded = specs.filter_map(|spec| self.forwarded(spec, headers, caller));
        let forwarded: Vec<HeaderMap> = forwarded.collect();
        let mut all = HeaderMap::new();
        for (name, value) in headers {
            if forwarded.iter().any(|some| some.contains_key(name)) {
                all.append(name.clone(), value.clone());
            }
        }
        all
    }

    fn may_leave(&self, name: &HeaderName, headers: &HeaderMap, peer: IpAddr) -> bool {
        let names = &self.names;
        if *name == self.names.key || *name == SESSION_HEADER {
            return false;
        }
        let session = self.openwebui.is_some();
        let proven = session && token::user_token(&self.keys, headers).is_some();
        if *name == COOKIE {
            // Open WebUI can be configured to send the user's cookies, which contain the user's token.
            return !session;
        }
        if *name == AUTHORIZATION {
            // The user's own token for Open WebUI is only for the bridge.
            return !proven && !token::authorization_is_ours(&self.keys, headers);
        }
        if *name == names.user_jwt {
            // A token has been verified before.
            return self.tokens.is_some();
        }
        let trusted = || self.is_trusted(headers, peer);
        if *name == names.user_groups {
            return trusted();
        }
        let plain = [
            &names.user_id,
            &names.user_name,
            &names.user_email,
            &names.user_role,
        ];
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

// Reads identity headers without a change to their bytes.

/// Maximum length of a value. Ids are stored and hashed; real ones are much shorter.
const LONGEST: usize = 1024;

/// Maximum length of a list: a user may be in many groups.
const LONGEST_LIST: usize = 16 * 1024;

/// The prefix of a value that is not UTF-8, which is stored percent-encoded. Header values cannot
/// contain DEL, so the prefix is unambiguous.
const NOT_UTF8: char = '\u{7f}';

/// The value of a header that was sent at most once, without the white space around it. An empty value counts
/// as absent: Open WebUI sends empty headers for unknown values.
pub(super) fn text(headers: &HeaderMap, name: &HeaderName) -> Result<Option<Box<str>>, Refusal> {
    let bytes = bytes(headers, name);
    if bytes.len() > LONGEST {
        return Err(bad(name, "longer than 1024 bytes"));
    }
    Ok(match std::str::from_utf8(bytes) {
        Ok("") => None,
        Ok(text) => Some(text.into()),
        Err(_) => Some(format!("{NOT_UTF8}{}", percent_encode(bytes, NON_ALPHANUMERIC)).into()),
    })
}

/// The names in a header that was sent at most once: separated by commas, each percent-encoded if
/// necessary, as in Open WebUI's `{{USER_GROUPS}}`; or a JSON list, in which a name may contain a
/// comma.
pub(super) fn list(headers: &HeaderMap, name: &HeaderName) -> Result<Vec<Box<str>>, Refusal> {
    let bytes = bytes(headers, name);
    let bad = |why| bad(name, why);
    if bytes.len() > LONGEST_LIST {
        return Err(bad("longer than 16 KiB"));
    }
    let text = std::str::from_utf8(bytes).map_err(|_| bad("not UTF-8"))?;
    let names: Vec<String> = if text.starts_with('[') {
        serde_json::from_str(text).map_err(|_| bad("not a JSON list of strings"))?
    } else {
        let parts = text.split(',');
        parts.map(|part| percent_decoded(part).into()).collect()
    };
    let names = names.iter().map(|name| name.trim());
    let names = names.filter(|name| !name.is_empty());
    Ok(names.map(Into::into).collect())
}

fn bytes<'h>(headers: &'h HeaderMap, name: &HeaderName) -> &'h [u8] {
    let value = headers.get(name);
    value.map_or(b"", |value| value.as_bytes().trim_ascii())
}

fn bad(header: &HeaderName, why: &'static str) -> Refusal {
    let header = header.to_string();
    Refusal::BadHeader { header, why }
}

/// Refuses a request that contains one of `names` twice, even with equal values.
pub(super) fn refuse_duplicates(headers: &HeaderMap, names: &[HeaderName]) -> Result<(), Refusal> {
    if headers.keys_len() == headers.len() {
        return Ok(());
    }
    let twice = |name: &&HeaderName| headers.get_all(*name).iter().nth(1).is_some();
    let header = names.iter().find(twice).map(HeaderName::to_string);
    header.map_or(Ok(()), |header| Err(Refusal::DuplicateHeader { header }))
}

/// Decodes Open WebUI's percent-encoding of names; a text that cannot be decoded stays unchanged.
pub(super) fn percent_decoded(text: &str) -> Box<str> {
    let decoded = percent_decode_str(text).decode_utf8();
    decoded.map_or_else(|_| text.into(), Into::into)
}
