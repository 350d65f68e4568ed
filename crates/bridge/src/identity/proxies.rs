//! Detects requests that a proxy has forwarded: the address of their TCP peer does not identify their sender.
//!
//! A list of header names cannot be complete, so words within a name count, at any position. A client
//! without a proxy has no reason to send any of these.

use std::collections::HashSet;

use axum::http::{HeaderMap, header::HeaderName};

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

#[cfg(test)]
mod tests {
    use super::*;

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
}
