//! Which headers of a caller's request a server gets.

use axum::http::{HeaderMap, HeaderName, HeaderValue};

/// `client_header_forwarding` of a server, enabled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeaderForwarding {
    allowed: Vec<Pattern>,
    denied: Vec<Pattern>,
}

/// A header's name in lower case, or how such names begin.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Pattern {
    Exactly(String),
    Beginning(String),
}

/// They prove who the user is, so nobody gets them unless they are named in full.
const CREDENTIALS: [&str; 3] = ["authorization", "cookie", "proxy-authorization"];

/// They belong to one connection and one body, or to the protocol that is spoken on it.
const FRAMING: [&str; 17] = [
    "accept",
    "accept-encoding",
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "expect",
    "host",
    "keep-alive",
    "last-event-id",
    "origin",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
];

impl HeaderForwarding {
    /// `whitelist` and `blacklist` as mcpo has them: names, or beginnings of names with a `*`. No
    /// whitelist is one with `*`.
    pub fn new(whitelist: Vec<String>, blacklist: Vec<String>) -> Self {
        let patterns = |list: Vec<String>| list.iter().map(|text| Pattern::of(text)).collect();
        let mut allowed: Vec<Pattern> = patterns(whitelist);
        if allowed.is_empty() {
            allowed.push(Pattern::Beginning(String::new()));
        }
        Self {
            allowed,
            denied: patterns(blacklist),
        }
    }

    /// The headers of `headers` that are passed on; of one that was sent twice, all values.
    pub fn choose(&self, headers: &HeaderMap) -> Vec<(HeaderName, HeaderValue)> {
        let chosen = headers.iter().filter(|(name, _)| self.takes(name.as_str()));
        chosen
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect()
    }

    fn takes(&self, name: &str) -> bool {
        let framing = FRAMING.contains(&name) || name.starts_with("mcp-");
        let named = |pattern: &Pattern| match pattern {
            Pattern::Exactly(whole) => whole == name,
            Pattern::Beginning(_) => false,
        };
        let fits = |pattern: &Pattern| match pattern {
            Pattern::Exactly(whole) => whole == name,
            Pattern::Beginning(start) => name.starts_with(start.as_str()),
        };
        let allowed = if CREDENTIALS.contains(&name) {
            self.allowed.iter().any(named)
        } else {
            self.allowed.iter().any(fits)
        };
        !framing && allowed && !self.denied.iter().any(fits)
    }
}

impl Pattern {
    fn of(text: &str) -> Self {
        let text = text.trim().to_ascii_lowercase();
        match text.strip_suffix('*') {
            Some(start) => Self::Beginning(start.to_owned()),
            None => Self::Exactly(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(whitelist: &[&str], blacklist: &[&str]) -> Vec<String> {
        let list = |list: &[&str]| list.iter().map(|&text| text.to_owned()).collect();
        let mut headers = HeaderMap::new();
        for name in [
            "authorization",
            "content-length",
            "cookie",
            "host",
            "mcp-session-id",
            "x-tenant-id",
            "x-tenant-key",
            "x-trace",
        ] {
            headers.insert(name, HeaderValue::from_static("v"));
        }
        let forwarding = HeaderForwarding::new(list(whitelist), list(blacklist));
        let chosen = forwarding.choose(&headers);
        let mut names: Vec<_> = chosen.iter().map(|(name, _)| name.to_string()).collect();
        names.sort();
        names
    }

    #[test]
    fn names_and_beginnings_choose_in_any_case() {
        assert_eq!(chosen(&["X-Trace"], &[]), ["x-trace"]);
        assert_eq!(
            chosen(&["X-Tenant-*"], &[]),
            ["x-tenant-id", "x-tenant-key"]
        );
        assert_eq!(
            chosen(&["X-*"], &["x-tenant-K*"]),
            ["x-tenant-id", "x-trace"]
        );
    }

    #[test]
    fn credentials_go_on_only_where_they_are_named() {
        let all = ["x-tenant-id", "x-tenant-key", "x-trace"];
        assert_eq!(chosen(&[], &[]), all);
        assert_eq!(chosen(&["*"], &[]), all);
        assert_eq!(chosen(&["auth*"], &[]), [""; 0]);
        assert_eq!(chosen(&["Authorization"], &[]), ["authorization"]);
        assert_eq!(chosen(&["Authorization"], &["*"]), [""; 0]);
    }

    #[test]
    fn what_frames_a_message_never_goes_on() {
        let named = ["Host", "Content-Length", "Mcp-Session-Id"];
        assert_eq!(chosen(&named, &[]), [""; 0]);
    }
}
