//! Rules between settings: invalid combinations, and warnings.

use std::{net::IpAddr, path::PathBuf};

use super::{
    BaseUrl, Listen, Secret, Settings,
    parse::{Tls, is_loopback},
    reader::Reader,
};
use crate::config::{Fault, RESERVED_NAMES};

/// A certificate with its key; setting only one of them is an error.
pub(super) fn both(
    r: &mut Reader<'_>,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
) -> Option<Tls> {
    const CERTIFICATE: &str = "--ssl-certfile / MCPO_SSL_CERTFILE";
    const KEY: &str = "--ssl-keyfile / MCPO_SSL_KEYFILE";
    let (given, missing) = match (certificate, key) {
        (Some(certificate), Some(key)) => return Some(Tls { certificate, key }),
        (None, None) => return None,
        (Some(_), None) => (CERTIFICATE, KEY),
        (None, Some(_)) => (KEY, CERTIFICATE),
    };
    let fix = "give both a certificate and its key, or neither";
    let fault = Fault::new(given, format!("{missing} is not set"), fix);
    r.faults.push(fault);
    None
}

/// The accepted host names: lower case, no port, IPv6 without brackets. `*` accepts any.
pub(super) fn allowed_hosts(host: &str, base_url: &BaseUrl, named: Vec<String>) -> Vec<String> {
    let loopback = ["localhost", "127.0.0.1", "::1"].map(str::to_owned);
    let own = (!is_unspecified(host)).then(|| host.to_owned());
    let all = loopback.into_iter().chain(own).chain(base_url.host());
    let mut allowed: Vec<String> = Vec::new();
    for name in all.chain(named) {
        if !allowed.contains(&name) {
            allowed.push(name);
        }
    }
    allowed
}

fn is_unspecified(host: &str) -> bool {
    host.parse::<IpAddr>()
        .is_ok_and(|address| address.is_unspecified())
}

/// Combinations of valid settings that are errors.
pub(super) fn faults(settings: &Settings, known: &[Fault]) -> Vec<Fault> {
    // An invalid API key is reported already; a second error that there is none would be wrong.
    let bad_key = known
        .iter()
        .any(|fault| fault.location.starts_with("--api-key"));
    let exposed = unprotected(settings).filter(|_| !bad_key);
    exposed
        .into_iter()
        .chain(root_path(&settings.listen))
        .collect()
}

fn is_exposed(settings: &Settings) -> bool {
    settings.access.keys.is_empty() && !is_loopback(&settings.listen.host)
}

fn unprotected(settings: &Settings) -> Option<Fault> {
    (is_exposed(settings) && !settings.access.allow_unauthenticated).then(|| {
        let fault = Fault::new(
            "--host / MCPO_HOST",
            "listening beyond loopback without an API key lets everyone call every tool",
            "set MCPO_API_KEY or MCPO_API_KEY_FILE, or confirm with MCPO_ALLOW_UNAUTHENTICATED=true",
        );
        fault.with_value(&settings.listen.host)
    })
}

/// Routes are served with and without the root path: if it began like one of the bridge's routes, a path
/// would be ambiguous.
fn root_path(listen: &Listen) -> Option<Fault> {
    let inner = listen.root_path.strip_prefix(&listen.path_prefix)?;
    let first = inner.strip_prefix('/')?.split('/').next()?;
    RESERVED_NAMES.contains(&first).then(|| {
        let fault = Fault::new(
            "--root-path / MCPO_ROOT_PATH",
            format!("conflicts with the bridge's own routes below {}/{first}", listen.path_prefix),
            "let the proxy strip another prefix, such as /tools; to serve everything below a prefix, \
             set MCPO_PATH_PREFIX",
        );
        fault.with_value(&listen.root_path)
    })
}

/// Warnings about settings that weaken the bridge or break its links, one sentence each.
pub(super) fn warnings(settings: &Settings) -> Vec<String> {
    let (listen, access) = (&settings.listen, &settings.access);
    let any = |list: &[String]| list.iter().any(|item| item == "*");
    let short = |secret: &Option<Secret>| secret.as_ref().is_some_and(|it| it.expose().len() < 32);
    let every_network = access
        .trusted_proxies
        .iter()
        .any(|network| network.prefix_len() == 0);
    let session_documents = access.strict_auth && settings.openwebui.url.is_some();
    let simple = [
        (
            any(&listen.cors_allow_origins) && access.keys.is_empty(),
            "MCPO_CORS_ALLOW_ORIGINS=* without an API key: any web page opened in a browser that can \
             reach the bridge can call every tool and read the files of anonymous callers; list the \
             allowed origins, or set MCPO_API_KEY",
        ),
        (
            every_network,
            "MCPO_TRUSTED_PROXIES contains every address: user headers of every caller are trusted",
        ),
        (
            session_documents && !access.keys.is_empty(),
            "documents require the API key (MCPO_STRICT_AUTH), but Open WebUI sends no key when it \
             fetches openapi.json for a connection with auth type session: add its address to \
             MCPO_TRUSTED_PROXIES, or use the output of `mcpo-bridge openwebui spec-path` as the \
             connection's path",
        ),
        (
            short(&settings.replicas.key),
            "MCPO_PEER_KEY has fewer than 32 bytes, so it can be guessed",
        ),
        (
            short(&access.jwt_secret),
            "MCPO_JWT_SECRET has fewer than 32 bytes, so it can be guessed from a token",
        ),
        (
            any(&listen.allowed_hosts),
            "MCPO_ALLOWED_HOSTS=* disables the protection against DNS rebinding",
        ),
    ];
    let exposed = is_exposed(settings).then(|| {
        format!(
            "everyone who reaches {}:{} can call every tool: MCPO_ALLOW_UNAUTHENTICATED is set and \
             there is no API key",
            listen.host, listen.port
        )
    });
    let internal = listen.base_url.internal_host().map(|host| {
        format!(
            "MCPO_BASE_URL = {}: download links start with it, but users' browsers probably cannot \
             reach '{host}'; set it to the URL under which browsers reach the bridge",
            listen.base_url
        )
    });
    let simple = simple.into_iter().filter(|(applies, _)| *applies);
    let simple = simple.map(|(_, text)| text.to_owned());
    let detailed = [exposed, proxied_without_key(settings), internal];
    detailed.into_iter().flatten().chain(simple).collect()
}

/// Whether the settings show that a proxy on this machine forwards requests to a bridge on loopback, while
/// users are trusted by address.
fn proxied_without_key(settings: &Settings) -> Option<String> {
    let (listen, access) = (&settings.listen, &settings.access);
    let mut trusted = access.trusted_proxies.iter();
    let by_address = access.keys.is_empty()
        && access.jwt_secret.is_none()
        && trusted.any(|net| net.addr().is_loopback());
    if !by_address || !is_loopback(&listen.host) {
        return None;
    }
    let beyond = |host: &str| !is_loopback(host);
    let sign = match listen.base_url.host() {
        None => "MCPO_BASE_URL = /".to_owned(),
        Some(host) if beyond(&host) => format!("MCPO_BASE_URL = {}", listen.base_url),
        Some(_) if !listen.root_path.is_empty() => format!("MCPO_ROOT_PATH = {}", listen.root_path),
        Some(_) => {
            let host = listen.allowed_hosts.iter().find(|host| beyond(host))?;
            format!("MCPO_ALLOWED_HOSTS contains {host}")
        }
    };
    Some(format!(
        "{sign} suggests that a proxy on this machine forwards requests, but there is no API key: behind a \
         proxy that adds no X-Forwarded-For or Via header (plain proxy_pass of nginx, ssh -R, socat), \
         everyone counts as a local program whose user headers are trusted; set MCPO_API_KEY, or \
         MCPO_TRUSTED_PROXIES=none"
    ))
}
