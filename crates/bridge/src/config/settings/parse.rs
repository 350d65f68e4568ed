//! Parses the text of a setting, for every type of value.

use std::{
    net::IpAddr,
    num::{NonZero, NonZeroUsize},
    path::PathBuf,
    time::Duration,
};

use axum::http::HeaderName;
use bridge_model::ServerName;
use ipnet::IpNet;
use url::Url;

use super::{Limits, Listen, Secret};
use crate::config::{BaseUrl, Fault, InvalidBaseUrl, KeyRing};

/// Why a text is invalid; the reader of the setting adds the location.
fn bad<T>(problem: impl Into<String>, fix: impl Into<String>) -> Result<T, Fault> {
    Err(Fault::new("", problem, fix))
}

pub(super) fn path(text: &str) -> Result<PathBuf, Fault> {
    if text.contains('\0') {
        return bad("not a path", "remove the NUL character");
    }
    Ok(PathBuf::from(text))
}

pub(super) fn boolean(text: &str) -> Result<bool, Fault> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "on" => Ok(true),
        "false" | "0" | "no" | "off" => Ok(false),
        _ => bad("not a boolean", "write true or false"),
    }
}

/// Accepts one of several words, case-insensitively.
pub(super) fn choice<T: Copy + 'static>(
    words: &'static [(&str, T)],
) -> impl Fn(&str) -> Result<T, Fault> {
    move |text| {
        let mut known = words.iter();
        let found = known.find(|(word, _)| word.eq_ignore_ascii_case(text));
        found.map(|(_, value)| *value).ok_or_else(|| {
            let words: Vec<_> = words.iter().map(|(word, _)| *word).collect();
            Fault::new(
                "",
                "unknown value",
                format!("use one of {}", words.join(", ")),
            )
        })
    }
}

pub(super) fn key_ring(text: &str) -> Result<KeyRing, Fault> {
    let keys = KeyRing::parse(text);
    keys.or_else(|error| {
        bad(
            error.to_string(),
            "write NAME:KEY,NAME:KEY, or a single KEY",
        )
    })
}

const DAY: u32 = 86_400;

/// Maximum for links: ten years is practically unlimited, and a larger value is probably a typing error.
const TEN_YEARS: u32 = 3650 * DAY;

/// More than zero, at most a day.
pub(super) fn timeout(text: &str) -> Result<Duration, Fault> {
    seconds(text, false, DAY)
}

/// Two seconds to a day: a bridge that is only busy must not count as dead.
pub(super) fn lease(text: &str) -> Result<Duration, Fault> {
    match seconds(text, false, DAY)? {
        time if time >= Duration::from_secs(2) => Ok(time),
        _ => bad("out of range", "write a number of seconds, 2 or more"),
    }
}

/// Zero to a day.
pub(super) fn grace(text: &str) -> Result<Duration, Fault> {
    seconds(text, true, DAY)
}

/// More than zero, at most ten years.
pub(super) fn lifetime(text: &str) -> Result<Duration, Fault> {
    seconds(text, false, TEN_YEARS)
}

/// Zero to ten years.
pub(super) fn retention(text: &str) -> Result<Duration, Fault> {
    seconds(text, true, TEN_YEARS)
}

fn seconds(text: &str, zero: bool, most: u32) -> Result<Duration, Fault> {
    let fix = || {
        let least = if zero { "0 or more" } else { "more than 0" };
        format!("write a number of seconds without a unit, {least} and at most {most}")
    };
    let Ok(number) = text.parse::<f64>() else {
        return bad("not a number of seconds", fix());
    };
    let good = (0.0..=f64::from(most)).contains(&number);
    // Rounds to whole nanoseconds, so a very small number may become zero.
    match Duration::try_from_secs_f64(number) {
        Ok(time) if good && (zero || !time.is_zero()) => Ok(time),
        _ => bad("out of range", fix()),
    }
}

/// A whole number, at least 1.
pub(super) fn count(text: &str) -> Result<NonZeroUsize, Fault> {
    match text.parse() {
        // Semaphores and vectors have this size; no machine supports more than a million.
        Ok(count) if count <= NonZero::new(1_000_000).unwrap_or(count) => Ok(count),
        _ => bad("not a count", "write a whole number from 1 to 1000000"),
    }
}

/// Like [`count`], and 0 for none.
pub(super) fn count_or_none(text: &str) -> Result<usize, Fault> {
    if text == "0" {
        Ok(0)
    } else {
        count(text).map(NonZeroUsize::get)
    }
}

/// Like [`bytes()`], and 0 for no limit.
pub(super) fn bytes_or_none(text: &str) -> Result<u64, Fault> {
    if text == "0" { Ok(0) } else { bytes(text) }
}

/// A number of bytes, or a number with a unit; more than zero.
pub(super) fn bytes(text: &str) -> Result<u64, Fault> {
    const UNITS: [(&str, u64); 9] = [
        ("KIB", 1 << 10),
        ("MIB", 1 << 20),
        ("GIB", 1 << 30),
        ("TIB", 1 << 40),
        ("KB", 1_000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("TB", 1_000_000_000_000),
        ("B", 1),
    ];
    let upper = text.to_ascii_uppercase();
    let (number, unit) = UNITS
        .iter()
        .find_map(|(name, size)| Some((upper.strip_suffix(name)?, *size)))
        .unwrap_or((&upper, 1));
    match scaled(number.trim(), unit) {
        Some(size) if size > 0 => Ok(size),
        _ => bad(
            "not a size",
            "write bytes, or a number with KiB, MiB, GiB, KB, MB or GB, such as 32MiB",
        ),
    }
}

/// `number × unit` for a plain decimal number, in whole bytes; without floating point, which would round
/// sizes beyond 2^53.
fn scaled(number: &str, unit: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || fraction.len() > 9 || !digits(whole) || !digits(fraction) {
        return None;
    }
    let whole: u128 = whole.parse().ok()?;
    let tenths = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
    let fraction: u128 = format!("0{fraction}").parse().ok()?;
    let unit = u128::from(unit);
    let size = whole.checked_mul(unit)? + fraction * unit / tenths;
    // Sizes are compared with and added to file offsets, which are signed.
    u64::try_from(size)
        .ok()
        .filter(|size| i64::try_from(*size).is_ok())
}

pub(super) fn port(text: &str) -> Result<u16, Fault> {
    let port = text.parse();
    port.or_else(|_| bad("not a port", "write a number from 0 to 65535"))
}

/// An address or a name, without port; brackets around IPv6 are removed.
pub(super) fn host(text: &str) -> Result<String, Fault> {
    let bare = text
        .strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'));
    if let Some(address) = bare {
        if address.parse::<std::net::Ipv6Addr>().is_ok() {
            return Ok(address.to_ascii_lowercase());
        }
    } else if text.parse::<IpAddr>().is_ok() || is_host_name(text) {
        return Ok(text.to_ascii_lowercase());
    }
    let fix = "write it without scheme, port or path, such as 0.0.0.0 or localhost";
    bad("not an address or host name", fix)
}

fn is_host_name(text: &str) -> bool {
    let good = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    (1..=253).contains(&text.len()) && text.chars().all(good)
}

/// A host with an optional port: `10.0.0.7`, `bridge-1:9000`, `[fd00::7]:9000`
pub(super) fn peer_address(text: &str) -> Result<PeerAddress, Fault> {
    let whole = host(text);
    let (name, number) = match (whole, text.rsplit_once(':')) {
        (Ok(host), _) => return Ok(PeerAddress { host, port: None }),
        (Err(bad), None) => return Err(bad),
        (Err(_), Some(parts)) => parts,
    };
    Ok(PeerAddress {
        host: host(name)?,
        port: Some(port(number)?),
    })
}

pub(super) fn base_url(text: &str) -> Result<BaseUrl, Fault> {
    text.parse().or_else(|error: InvalidBaseUrl| {
        bad(
            error.to_string(),
            "write a URL such as https://chat.example.com or https://chat.example.com/mcpo, or '/' \
             for links relative to the page's origin",
        )
    })
}

/// The URL of another service: without user, query or fragment, which could contain secrets.
pub(super) fn service_url(text: &str) -> Result<Url, Fault> {
    let fix = "write a URL such as http://open-webui:8080, without user, query and fragment";
    let Ok(url) = Url::parse(text) else {
        return bad("not a URL", fix);
    };
    let plain = url.username().is_empty() && url.password().is_none();
    let plain = plain && url.query().is_none() && url.fragment().is_none();
    if plain && matches!(url.scheme(), "http" | "https") && url.has_host() {
        return Ok(url);
    }
    bad("not a plain http or https URL", fix)
}

/// Empty for `/`, else `/a/b`. As in mcpo, the surrounding slashes are optional.
pub(super) fn path_prefix(text: &str) -> Result<String, Fault> {
    let path = text.trim_end_matches('/');
    let path = if path.is_empty() || path.starts_with('/') {
        path.to_owned()
    } else {
        format!("/{path}")
    };
    let good = |c: char| c.is_ascii_alphanumeric() || "-._~".contains(c);
    let segment = |part: &str| {
        let dots = part == "." || part == "..";
        !part.is_empty() && !dots && part.chars().all(good)
    };
    let parts = path
        .strip_prefix('/')
        .map(|path| path.split('/').all(segment));
    if path.is_empty() || parts == Some(true) {
        return Ok(path);
    }
    let fix = "write a slash and plain segments, such as /mcpo";
    bad("not a path prefix", fix)
}

pub(super) fn header_name(text: &str) -> Result<HeaderName, Fault> {
    let fix = "write letters, digits and hyphens, such as X-OpenWebUI-User-Id";
    text.parse().or_else(|_| bad("not a header name", fix))
}

fn items(text: &str) -> impl Iterator<Item = &str> {
    let items = text.split(|c: char| c == ',' || c.is_whitespace());
    items.filter(|item| !item.is_empty())
}

/// Addresses and networks; `none` for an empty list.
pub(super) fn networks(text: &str) -> Result<Vec<IpNet>, Fault> {
    if text.eq_ignore_ascii_case("none") {
        return Ok(Vec::new());
    }
    let fix = "write addresses or CIDR separated by commas, such as 10.0.0.0/8,::1/128";
    let network = |item: &str| {
        let address = || item.parse::<IpAddr>().map(IpNet::from);
        let network = item.parse::<IpNet>().or_else(|_| address());
        network.or_else(|_| bad(format!("{item} is not a network"), fix))
    };
    items(text).map(network).collect()
}

/// Host names; a port is removed, because `Host` is compared without it.
pub(super) fn hosts(text: &str) -> Result<Vec<String>, Fault> {
    let one = |item: &str| {
        if item == "*" {
            return Ok(item.to_owned());
        }
        let without_port = match item.rsplit_once(':') {
            Some((host, port)) if !host.contains(':') || host.ends_with(']') => {
                port.parse::<u16>().map_or(item, |_| host)
            }
            _ => item,
        };
        let fix = "write host names separated by commas, such as mcpo-bridge,chat.example.com";
        host(without_port).or_else(|error| bad(format!("{item} is {}", error.problem), fix))
    };
    items(text).map(one).collect()
}

/// Origins in the form that browsers send.
pub(super) fn origins(text: &str) -> Result<Vec<String>, Fault> {
    let fix = "write scheme, host and port separated by commas, such as https://chat.example.com";
    let one = |item: &str| {
        let origin = Url::parse(item).ok().filter(|url| {
            let http = matches!(url.scheme(), "http" | "https");
            http && url.path() == "/" && url.query().is_none() && url.username().is_empty()
        });
        match origin {
            Some(url) => Ok(url.origin().ascii_serialization()),
            None if item == "*" => Ok(item.to_owned()),
            None => bad(format!("{item} is not an origin"), fix),
        }
    };
    items(text).map(one).collect()
}

// Types of settings' values.

/// Servers and variables that are given on the command line, as with mcpo.
#[derive(Debug, Clone, Default)]
pub struct CommandLine {
    /// The single server that replaces the server file.
    pub server: Option<SingleServer>,
    /// Variables for every child, which the server's own override, and for references in the file.
    pub env: Vec<(String, Secret)>,
}

/// A server without a server file. It is served at the root, and by its name like any other.
#[derive(Debug, Clone)]
pub struct SingleServer {
    /// The last component of its URLs below `/mcpo` and `/mcp`.
    pub name: ServerName,
    /// A server file that contains only this server. Secret, because arguments and headers may be.
    pub document: Secret,
}

/// Paths of a certificate and its key.
#[derive(Debug, Clone)]
pub struct Tls {
    /// The certificate chain, the server's own certificate first.
    pub certificate: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

/// A host as in a URL, but without the brackets of IPv6, and an optional port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerAddress {
    /// Name or address.
    pub host: String,
    /// Set if it differs from the listening port.
    pub port: Option<u16>,
}

/// Log levels with Python's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogLevel {
    /// All messages.
    Debug,
    /// Normal operation.
    Info,
    /// Possible problems.
    Warning,
    /// Failures.
    Error,
    /// Errors that stop the bridge.
    Critical,
}

/// The format of the log on standard output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Text on a terminal, JSON otherwise.
    Auto,
    /// One JSON object per line.
    Json,
    /// Text.
    Text,
}

/// The language of texts for users.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lang {
    /// English.
    En,
    /// Japanese.
    Ja,
}

impl Listen {
    /// Sets the port that the system chose for port 0; updates a default base URL accordingly.
    pub fn bound_to(&mut self, port: u16) {
        if self.base_url == BaseUrl::local(self.port, self.tls.is_some()) {
            self.base_url = BaseUrl::local(port, self.tls.is_some());
        }
        self.port = port;
    }

    /// The origins of the bridge's own pages: its port with each of its host names, the base URL, and the
    /// default ports of HTTP and HTTPS with configured hosts, where a proxy may listen.
    pub fn own_origins(&self) -> Vec<String> {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let mut own = Vec::from_iter(self.base_url.origin());
        for host in self.allowed_hosts.iter().filter(|host| *host != "*") {
            let shown = if host.contains(':') {
                format!("[{host}]")
            } else {
                host.clone()
            };
            let mut urls = vec![format!("{scheme}://{shown}:{}", self.port)];
            let is_base = self.base_url.host().as_ref() == Some(host);
            if !is_loopback(host) && !is_base {
                urls.extend([format!("http://{shown}"), format!("https://{shown}")]);
            }
            // Removes the scheme's default port, as browsers do.
            let parsed = urls.iter().filter_map(|url| Url::parse(url).ok());
            own.extend(parsed.map(|url| url.origin().ascii_serialization()));
        }
        own
    }
}

impl Limits {
    /// [`Self::max_message_bytes`] as a length in memory.
    pub fn max_message(&self) -> usize {
        usize::try_from(self.max_message_bytes).unwrap_or(usize::MAX)
    }
}

/// Whether the host is loopback. A name other than `localhost` may resolve to any address, so it is not.
pub(super) fn is_loopback(host: &str) -> bool {
    let address = host.parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_have_units_of_both_families() {
        for (text, size) in [
            ("1", 1),
            ("1024", 1024),
            ("32MiB", 32 << 20),
            ("32 mib", 32 << 20),
            ("1.5GiB", 3 << 29),
            ("2KB", 2000),
            ("0.5kb", 500),
            ("10B", 10),
        ] {
            assert_eq!(bytes(text).unwrap(), size, "{text}");
        }
        for wrong in [
            "",
            "0",
            "-1",
            "x",
            "MiB",
            "1.2.3",
            "1e3",
            "32M",
            "9EiB",
            "0.1B",
            "99999999999GiB",
            "+5",
        ] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_floor_may_be_none() {
        assert_eq!(bytes_or_none("0").unwrap(), 0);
        assert_eq!(bytes_or_none("1KiB").unwrap(), 1024);
        assert!(bytes_or_none("x").is_err());
    }

    #[test]
    fn durations_are_seconds_within_bounds() {
        assert_eq!(timeout("300").unwrap(), Duration::from_mins(5));
        assert_eq!(timeout("0.25").unwrap(), Duration::from_millis(250));
        assert_eq!(grace("0").unwrap(), Duration::ZERO);
        for wrong in ["0", "-1", "86401", "1e-12", "inf", "NaN", "5m", "", "300s"] {
            assert!(timeout(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn booleans_have_the_usual_spellings() {
        for yes in ["true", "TRUE", "1", "yes", "on"] {
            assert_eq!(boolean(yes), Ok(true));
        }
        for no in ["false", "0", "No", "off"] {
            assert_eq!(boolean(no), Ok(false));
        }
        assert!(boolean("maybe").is_err());
    }

    #[test]
    fn hosts_lose_port_case_and_brackets() {
        let list = hosts("Mcpo-Bridge:8080, chat.example\n[::1]:80,::1,*,10.0.0.1").unwrap();
        assert_eq!(
            list,
            ["mcpo-bridge", "chat.example", "::1", "::1", "*", "10.0.0.1"]
        );
        for wrong in ["http://x", "x/y", "a:b", "[x]"] {
            assert!(hosts(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn origins_are_what_browsers_send() {
        let list = origins("https://Chat.Example/,http://x:3000 *").unwrap();
        assert_eq!(list, ["https://chat.example", "http://x:3000", "*"]);
        for wrong in ["chat.example", "https://x/y", "ftp://x", "null"] {
            assert!(origins(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn networks_may_be_single_addresses_or_none() {
        let list = networks("10.0.0.0/8, 192.168.1.7,::1").unwrap();
        let text: Vec<_> = list.iter().map(ToString::to_string).collect();
        assert_eq!(text, ["10.0.0.0/8", "192.168.1.7/32", "::1/128"]);
        assert_eq!(networks("none").unwrap(), []);
        assert!(networks("10.0.0.0/33").is_err());
    }

    #[test]
    fn a_path_prefix_is_plain() {
        assert_eq!(path_prefix("/").unwrap(), "");
        assert_eq!(path_prefix("/mcpo/").unwrap(), "/mcpo");
        assert_eq!(path_prefix("/a/b").unwrap(), "/a/b");
        assert_eq!(path_prefix("a/b/").unwrap(), "/a/b", "mcpo takes it so");
        for wrong in ["/a//b", "/..", "/a b", "/{x}", "//a"] {
            assert!(path_prefix(wrong).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_a_parser_panic(text in ".{0,40}") {
            let _ = (timeout(&text), retention(&text), bytes(&text), count(&text), port(&text));
            let _ = (hosts(&text), networks(&text), origins(&text), path_prefix(&text));
            let _ = (base_url(&text), header_name(&text), boolean(&text));
        }

        #[test]
        fn whole_bytes_survive(size in 1_u64..=1 << 62) {
            prop_assert_eq!(bytes(&size.to_string()).unwrap(), size);
        }
    }
}
