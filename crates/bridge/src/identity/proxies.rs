//! Whether a request passed a proxy: then the address of its TCP peer says nothing about who sent it.
//!
//! No list of header names is ever complete, so words of a name count, wherever they stand in it. A
//! client that comes directly has no reason to send any of these.

use axum::http::{HeaderMap, header::HeaderName};

/// Words that stand for forwarding, or for what the request was before it: `Via`,
/// `X-Original-Url`, `X-Proxy-User`, `X-Remote-User`, `X-Request-Start`.
const FORWARDING: [&str; 16] = [
    "real",
    "connecting",
    "via",
    "proxy",
    "proxied",
    "original",
    "remote",
    "gateway",
    "ingress",
    "edge",
    "cdn",
    "surrogate",
    "scheme",
    "loop",
    "queue",
    "waf",
];

/// Products and services that stand in front of others' programs.
const PRODUCTS: [&str; 44] = [
    "akamai",
    "ali",
    "amz",
    "amzn",
    "apisix",
    "appengine",
    "appgw",
    "apigw",
    "arr",
    "authelia",
    "authentik",
    "azure",
    "caddy",
    "cf",
    "cloud",
    "cloudflare",
    "cloudfront",
    "envoy",
    "fastly",
    "fd",
    "fly",
    "google",
    "goog",
    "haproxy",
    "heroku",
    "incap",
    "istio",
    "kong",
    "linkerd",
    "l5d",
    "netlify",
    "nf",
    "nginx",
    "ngrok",
    "pomerium",
    "railway",
    "render",
    "squid",
    "sucuri",
    "tailscale",
    "traefik",
    "tyk",
    "varnish",
    "vercel",
];

/// How a word ends that names an address: `ip` alone, or written together with whose it is.
const ADDRESSES: [&str; 4] = ["addr", "address", "ipv4", "ipv6"];
const WHOSE: [&str; 12] = [
    "client",
    "real",
    "remote",
    "true",
    "user",
    "source",
    "src",
    "origin",
    "connecting",
    "socket",
    "peer",
    "host",
];

/// Names that have none of these words.
const WHOLE: [&str; 8] = [
    "early-data",
    "front-end-https",
    "client-cert",
    "client-cert-chain",
    "x-client-cert",
    "x-host",
    "x-request-start",
    "x-auth-request-user",
];

/// Whether any header betrays a proxy.
pub(super) fn passed_a_proxy(headers: &HeaderMap) -> bool {
    headers.keys().any(betrays_a_proxy)
}

fn betrays_a_proxy(name: &HeaderName) -> bool {
    let name = name.as_str();
    WHOLE.contains(&name)
        || name.starts_with("x-auth-request-")
        || name.starts_with("x-ssl-")
        || name.starts_with("ssl-")
        || name.split(['-', '_', '.']).any(is_a_proxys_word)
}

fn is_a_proxys_word(word: &str) -> bool {
    word.starts_with("forward")
        || FORWARDING.contains(&word)
        || PRODUCTS.contains(&word)
        || names_an_address(word)
}

fn names_an_address(word: &str) -> bool {
    if word == "ip" || ADDRESSES.iter().any(|end| word.ends_with(end)) {
        return true;
    }
    let whose = word.strip_suffix("ip");
    whose.is_some_and(|whose| WHOSE.iter().any(|end| whose.ends_with(end)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn betrays(name: &str) -> bool {
        betrays_a_proxy(&HeaderName::from_bytes(name.as_bytes()).unwrap())
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
