//! Origins of pages that may send requests to the bridge, including the bridge's own.

use axum::http::{HeaderMap, HeaderName, HeaderValue, header::ORIGIN};
use url::Url;

use crate::config::Listen;

/// Browsers send the relation between the page's origin and the bridge's in this header.
static FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// The settings for the `Origin` header.
#[derive(Debug)]
pub struct Origins {
    /// The bridge's own origins, and those in `MCPO_CORS_ALLOW_ORIGINS`.
    named: Vec<String>,
    /// `MCPO_CORS_ALLOW_ORIGINS=*`.
    any: bool,
    /// `MCPO_ALLOWED_HOSTS=*`.
    any_host: bool,
}

impl Origins {
    /// Must be called after the port is known.
    pub fn new(listen: &Listen) -> Self {
        let mut named = listen.cors_allow_origins.clone();
        named.extend(listen.own_origins());
        Self {
            any: named.iter().any(|origin| origin == "*"),
            any_host: listen.allowed_hosts.iter().any(|host| host == "*"),
            named: named.into_iter().filter(|origin| origin != "*").collect(),
        }
    }

    /// Whether a page of this origin may send requests at all.
    pub fn admits(&self, origin: &HeaderValue) -> bool {
        let is_web = || tuple(origin).is_some();
        self.any || self.names(origin) || (self.any_host && is_web())
    }

    /// Whether the sender may be identified by its address: no page of an origin that is not allowed made a
    /// browser on that machine send the request.
    pub(super) fn vouch(&self, headers: &HeaderMap) -> bool {
        let mut origins = headers.get_all(ORIGIN).iter().peekable();
        if origins.peek().is_some() {
            return origins.all(|origin| self.names(origin));
        }
        // Browsers may omit the origin for requests without a body.
        let mut sites = headers.get_all(&FETCH_SITE).iter();
        sites.all(|site| site == "same-origin" || site == "none")
    }

    fn names(&self, origin: &HeaderValue) -> bool {
        let origin = tuple(origin);
        origin.is_some_and(|origin| self.named.contains(&origin))
    }
}

/// The origin as a string, if it is a web origin in the form that browsers send: no `null`, no other scheme, no
/// path, no user.
fn tuple(origin: &HeaderValue) -> Option<String> {
    let sent = origin.to_str().ok()?;
    let url = Url::parse(sent).ok()?;
    let is_web = matches!(url.scheme(), "http" | "https");
    let origin = url.origin().ascii_serialization();
    (is_web && origin.eq_ignore_ascii_case(sent)).then_some(origin)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::SettingsArgs;

    fn listen() -> Listen {
        SettingsArgs::default().resolve().unwrap().listen
    }

    fn admits(origins: &Origins, origin: &str) -> bool {
        origins.admits(&origin.parse().unwrap())
    }

    #[test]
    fn own_origins_are_those_of_the_own_port_and_the_base_url() {
        let mut listen = listen();
        listen.base_url = "https://files.example/mcpo".parse().unwrap();
        listen.allowed_hosts = ["localhost", "127.0.0.1", "::1", "files.example", "bridge"]
            .map(str::to_owned)
            .to_vec();
        let origins = Origins::new(&listen);
        for (origin, own) in [
            ("http://localhost:8080", true),
            ("http://LOCALHOST:8080", true),
            ("http://127.0.0.1:8080", true),
            ("http://[::1]:8080", true),
            ("https://files.example", true),
            ("http://bridge:8080", true),
            ("http://bridge", true),
            ("https://bridge", true),
            ("http://localhost:3000", false),
            ("http://localhost", false),
            ("https://localhost:8080", false),
            ("foo://localhost:8080", false),
            ("foo://localhost", false),
            ("http://localhost:8080/", false),
            ("http://user@localhost:8080", false),
            ("http://bridge:3000", false),
            ("https://files.example:8443", false),
            ("http://localhost.evil.example:8080", false),
            ("null", false),
            ("", false),
        ] {
            assert_eq!(admits(&origins, origin), own, "{origin}");
        }
    }

    #[test]
    fn with_https_the_own_origin_is_https() {
        let mut listen = listen();
        listen.tls = Some(crate::config::Tls {
            certificate: "c".into(),
            key: "k".into(),
        });
        let origins = Origins::new(&listen);
        assert!(admits(&origins, "https://localhost:8080"));
        assert!(!admits(&origins, "http://127.0.0.1:8080"));
    }

    #[test]
    fn a_star_admits_all_and_names_none() {
        let mut listen = listen();
        listen.cors_allow_origins = vec!["*".to_owned(), "https://chat.example".to_owned()];
        let origins = Origins::new(&listen);
        let vouch = |lines: &[(&'static str, &'static str)]| {
            let lines = lines.iter().map(|(name, value)| {
                (
                    HeaderName::from_static(name),
                    HeaderValue::from_static(value),
                )
            });
            origins.vouch(&lines.collect())
        };
        assert!(admits(&origins, "http://evil.example"));
        for (lines, vouches) in [
            (&[][..], true),
            (&[("origin", "http://evil.example")], false),
            (&[("origin", "null")], false),
            (&[("origin", "*")], false),
            (&[("origin", "https://chat.example")], true),
            (
                &[
                    ("origin", "https://chat.example"),
                    ("sec-fetch-site", "cross-site"),
                ],
                true,
            ),
            (&[("origin", "http://localhost:8080")], true),
            (&[("sec-fetch-site", "same-origin")], true),
            (&[("sec-fetch-site", "none")], true),
            (&[("sec-fetch-site", "same-site")], false),
            (&[("sec-fetch-site", "cross-site")], false),
            (&[("sec-fetch-site", "new-word")], false),
        ] {
            assert_eq!(vouch(lines), vouches, "{lines:?}");
        }
    }

    #[test]
    fn any_host_admits_the_pages_of_all_hosts_and_names_none() {
        let mut listen = listen();
        listen.allowed_hosts.push("*".to_owned());
        let origins = Origins::new(&listen);
        assert!(admits(&origins, "http://evil.example"));
        assert!(!admits(&origins, "foo://evil.example"));
        let evil = HeaderMap::from_iter([(ORIGIN, HeaderValue::from_static("http://a.example"))]);
        assert!(!origins.vouch(&evil));
    }
}
