//! Whether a request comes directly from the program at its peer's address: no proxy has forwarded it, and no page
//! of an origin that is not allowed made a browser send it. Otherwise the address does not identify its sender.

use std::collections::HashSet;

use axum::http::{HeaderMap, HeaderName, HeaderValue, header::ORIGIN};
use url::Url;

use crate::config::Listen;

// Requests that a proxy has forwarded.
//
// A list of header names cannot be complete, so words within a name count, at any position. A client
// without a proxy has no reason to send any of these.

/// Words for forwarding, or for the original request: `Via`, `X-Original-Url`, `X-Proxy-User`,
/// `X-Remote-User`, `X-Request-Start`.
const FORWARDING: &str = "\
    real|connecting|via|proxy|proxied|original|remote|gateway|ingress|edge|cdn|surrogate|\
    scheme|loop|queue|waf";

/// Products and services that act as proxies.
const PRODUCTS: &str = "\
    akamai|ali|amz|amzn|apisix|appengine|appgw|apigw|arr|authelia|authentik|azure|caddy|\
    cf|cloud|cloudflare|cloudfront|envoy|fastly|fd|fly|google|goog|haproxy|heroku|incap|\
    istio|kong|linkerd|l5d|netlify|nf|nginx|ngrok|pomerium|railway|render|squid|sucuri|\
    tailscale|traefik|tyk|varnish|vercel";

/// Words for an address, as suffixes: `ip` alone, or after one of [`OWNERS`].
const ADDRESSES: [&str; 4] = ["addr", "address", "ipv4", "ipv6"];
const OWNERS: &str = "\
    client|real|remote|true|user|source|src|origin|connecting|socket|peer|host";

/// Header names of proxies without any of these words.
const WHOLE: &str = "\
    early-data|front-end-https|client-cert|client-cert-chain|x-client-cert|x-host|\
    x-request-start";

/// Detects the headers that proxies add.
pub(super) struct ProxyHeaders {
    names: HashSet<&'static str>,
    words: HashSet<&'static str>,
}

impl ProxyHeaders {
    pub(super) fn new() -> Self {
        let words = [FORWARDING, PRODUCTS].map(|words| words.split('|'));
        Self {
            names: WHOLE.split('|').collect(),
            words: words.into_iter().flatten().collect(),
        }
    }

    /// Whether any header shows that a proxy forwarded the request.
    pub(super) fn are_in(&self, headers: &HeaderMap) -> bool {
        headers.keys().any(|name| self.has(name))
    }

    fn has(&self, name: &HeaderName) -> bool {
        let name = name.as_str();
        let word = |word: &str| {
            word.starts_with("forward") || self.words.contains(word) || names_an_address(word)
        };
        self.names.contains(name)
            || ["x-auth-request-", "x-ssl-", "ssl-"]
                .iter()
                .any(|start| name.starts_with(start))
            || name.split(['-', '_', '.']).any(word)
    }
}

fn names_an_address(word: &str) -> bool {
    let owner = word.strip_suffix("ip");
    ADDRESSES.iter().any(|end| word.ends_with(end))
        || owner.is_some_and(|owner| {
            owner.is_empty() || OWNERS.split('|').any(|end| owner.ends_with(end))
        })
}

// Origins of pages that may send requests to the bridge, including the bridge's own.

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

    fn betrays(name: &str) -> bool {
        ProxyHeaders::new().has(&HeaderName::from_bytes(name.as_bytes()).unwrap())
    }

    #[test]
    fn what_proxies_add_betrays_them() {
        for name in [
            "Forwarded",
            "X-Forwarded",
            "X-Forwarded-For",
            "X-Forwarded-Proto",
            "Forwarded-For",
            "X-Forward-For",
            "X-Original-Forwarded-For",
            "X-Original-Host",
            "X-Original-URI",
            "Via",
            "X-Via",
            "X-Real-IP",
            "X-Real-Port",
            "X-Connecting-Host",
            "True-Client-IP",
            "X-Client-IP",
            "Client-IP",
            "ClientIP",
            "X-ClientIP",
            "X-Cluster-Client-IP",
            "Fastly-Client-IP",
            "Fly-Client-IP",
            "Fly-Region",
            "CF-Connecting-IP",
            "CF-Ray",
            "CF-IPCountry",
            "CF-Visitor",
            "CDN-Loop",
            "DO-Connecting-IP",
            "Ali-CDN-Real-IP",
            "X-Envoy-External-Address",
            "X-Envoy-Expected-Rq-Timeout-Ms",
            "X-Azure-ClientIP",
            "X-Azure-Ref",
            "X-FD-HealthProbe",
            "X-Appengine-User-IP",
            "X-Appengine-Country",
            "X-Amzn-Trace-Id",
            "X-Amz-Cf-Id",
            "X-Cloud-Trace-Context",
            "X-Varnish",
            "X-ProxyUser-Ip",
            "Proxy-Connection",
            "WL-Proxy-Client-IP",
            "X-Remote-Addr",
            "X-Remote-IP",
            "Remote-User",
            "X-Scheme",
            "X-ARR-LOG-ID",
            "X-NF-Client-Connection-IP",
            "X-Vercel-Id",
            "Tailscale-User-Login",
            "X-Kong-Request-Id",
            "X-Traefik-Router",
            "X-Request-Start",
            "X-Auth-Request-Email",
            "SSL-Client-Cert",
            "X-SSL-Client-Verify",
            "Front-End-Https",
            "Early-Data",
            "Max-Forwards",
            "X_Forwarded_For",
        ] {
            assert!(betrays(name), "{name}");
        }
    }

    #[test]
    fn what_clients_and_browsers_send_betrays_nothing() {
        for name in [
            "Host",
            "User-Agent",
            "Accept",
            "Accept-Encoding",
            "Accept-Language",
            "Authorization",
            "Cache-Control",
            "Connection",
            "Content-Length",
            "Content-Type",
            "Cookie",
            "DNT",
            "Expect",
            "If-None-Match",
            "Keep-Alive",
            "Last-Event-ID",
            "Mcp-Protocol-Version",
            "Mcp-Session-Id",
            "Origin",
            "Pragma",
            "Priority",
            "Range",
            "Referer",
            "Sec-Ch-Ua",
            "Sec-Fetch-Site",
            "Sec-GPC",
            "TE",
            "Traceparent",
            "Tracestate",
            "Transfer-Encoding",
            "Baggage",
            "B3",
            "X-B3-TraceId",
            "Sentry-Trace",
            "Upgrade",
            "Upgrade-Insecure-Requests",
            "X-Api-Key",
            "X-MCPO-Key",
            "X-MCPO-Session",
            "X-OpenWebUI-Auth-Type",
            "X-OpenWebUI-Chat-Id",
            "X-OpenWebUI-File-Id",
            "X-OpenWebUI-Message-Id",
            "X-OpenWebUI-User-Email",
            "X-OpenWebUI-User-Groups",
            "X-OpenWebUI-User-Id",
            "X-OpenWebUI-User-Jwt",
            "X-OpenWebUI-User-Name",
            "X-OpenWebUI-User-Role",
            "X-Request-Id",
            "X-Requested-With",
            "X-Stainless-Os",
            "X-Zip",
            "X-Membership",
        ] {
            assert!(!betrays(name), "{name}");
        }
    }

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
