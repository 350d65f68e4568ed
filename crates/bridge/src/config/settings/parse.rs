//! From text to one value, for every kind of setting.

use std::{
    net::IpAddr,
    num::{NonZero, NonZeroUsize},
    path::PathBuf,
    time::Duration,
};

use axum::http::HeaderName;
use ipnet::IpNet;
use url::Url;

use super::values::PeerAddress;
use crate::config::{BaseUrl, InvalidBaseUrl, KeyRing};

/// Why a text is not the value: what is wrong, and what to write instead.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Bad {
    pub problem: String,
    pub fix: String,
}

fn bad<T>(problem: impl Into<String>, fix: impl Into<String>) -> Result<T, Bad> {
    Err(Bad {
        problem: problem.into(),
        fix: fix.into(),
    })
}

pub(super) fn path(text: &str) -> Result<PathBuf, Bad> {
    if text.contains('\0') {
        return bad("not a path", "remove the NUL character");
    }
    Ok(PathBuf::from(text))
}

pub(super) fn boolean(text: &str) -> Result<bool, Bad> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "on" => Ok(true),
        "false" | "0" | "no" | "off" => Ok(false),
        _ => bad("not a boolean", "write true or false"),
    }
}

/// One of a few words, in any case.
pub(super) fn choice<T: Copy + 'static>(
    words: &'static [(&str, T)],
) -> impl Fn(&str) -> Result<T, Bad> {
    move |text| {
        let mut known = words.iter();
        let found = known.find(|(word, _)| word.eq_ignore_ascii_case(text));
        found.map(|(_, value)| *value).ok_or_else(|| {
            let words: Vec<_> = words.iter().map(|(word, _)| *word).collect();
            Bad {
                problem: "unknown value".into(),
                fix: format!("use one of {}", words.join(", ")),
            }
        })
    }
}

pub(super) fn key_ring(text: &str) -> Result<KeyRing, Bad> {
    let keys = KeyRing::parse(text);
    keys.or_else(|error| {
        bad(
            error.to_string(),
            "write NAME:KEY,NAME:KEY, or a single KEY",
        )
    })
}

const DAY: u32 = 86_400;
/// Links of ten years are links for ever; more is a slip of the keyboard.
const TEN_YEARS: u32 = 3650 * DAY;

/// More than nothing, at most a day.
pub(super) fn timeout(text: &str) -> Result<Duration, Bad> {
    seconds(text, false, DAY)
}

/// Two seconds to a day: a bridge that is only busy must not count as dead.
pub(super) fn lease(text: &str) -> Result<Duration, Bad> {
    match seconds(text, false, DAY)? {
        time if time >= Duration::from_secs(2) => Ok(time),
        _ => bad("out of range", "write a number of seconds, 2 or more"),
    }
}

/// Nothing to a day.
pub(super) fn grace(text: &str) -> Result<Duration, Bad> {
    seconds(text, true, DAY)
}

/// More than nothing, at most ten years.
pub(super) fn lifetime(text: &str) -> Result<Duration, Bad> {
    seconds(text, false, TEN_YEARS)
}

/// Nothing to ten years.
pub(super) fn retention(text: &str) -> Result<Duration, Bad> {
    seconds(text, true, TEN_YEARS)
}

fn seconds(text: &str, zero: bool, most: u32) -> Result<Duration, Bad> {
    let fix = || {
        let least = if zero { "0 or more" } else { "more than 0" };
        format!("write a number of seconds without a unit, {least} and at most {most}")
    };
    let Ok(number) = text.parse::<f64>() else {
        return bad("not a number of seconds", fix());
    };
    let good = (0.0..=f64::from(most)).contains(&number);
    // Rounds to whole nanoseconds, so a tiny number may turn into none.
    match Duration::try_from_secs_f64(number) {
        Ok(time) if good && (zero || !time.is_zero()) => Ok(time),
        _ => bad("out of range", fix()),
    }
}

/// 1 or more.
pub(super) fn count(text: &str) -> Result<NonZeroUsize, Bad> {
    match text.parse() {
        // Semaphores and vectors are sized by these; a million is beyond any machine.
        Ok(count) if count <= NonZero::new(1_000_000).unwrap_or(count) => Ok(count),
        _ => bad("not a count", "write a whole number from 1 to 1000000"),
    }
}

/// As [`count`], and 0 for none.
pub(super) fn count_or_none(text: &str) -> Result<usize, Bad> {
    if text == "0" {
        Ok(0)
    } else {
        count(text).map(NonZeroUsize::get)
    }
}

/// As [`bytes()`], and 0 for no limit.
pub(super) fn bytes_or_none(text: &str) -> Result<u64, Bad> {
    if text == "0" { Ok(0) } else { bytes(text) }
}

/// Plain bytes, or a number with a unit; more than nothing.
pub(super) fn bytes(text: &str) -> Result<u64, Bad> {
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

/// `number × unit` for a plain decimal number, in whole bytes; without floating point, which
/// would round sizes beyond 2^53.
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

pub(super) fn port(text: &str) -> Result<u16, Bad> {
    let port = text.parse();
    port.or_else(|_| bad("not a port", "write a number from 0 to 65535"))
}

/// An address or a name, without port; brackets around IPv6 are taken off.
pub(super) fn host(text: &str) -> Result<String, Bad> {
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

/// `10.0.0.7`, `bridge-1:9000`, `[fd00::7]:9000`
pub(super) fn peer_address(text: &str) -> Result<PeerAddress, Bad> {
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

pub(super) fn base_url(text: &str) -> Result<BaseUrl, Bad> {
    text.parse().or_else(|error: InvalidBaseUrl| {
        bad(
            error.to_string(),
            "write a URL such as https://chat.example.com or https://chat.example.com/mcpo, or '/' \
             for links relative to the page's origin",
        )
    })
}

/// Where another service answers: no user, query or fragment, which could hold secrets.
pub(super) fn service_url(text: &str) -> Result<Url, Bad> {
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

/// Nothing for `/`, else `/a/b`. As in mcpo, the slashes around it may be left out.
pub(super) fn path_prefix(text: &str) -> Result<String, Bad> {
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

pub(super) fn header_name(text: &str) -> Result<HeaderName, Bad> {
    let fix = "write letters, digits and hyphens, such as X-OpenWebUI-User-Id";
    text.parse().or_else(|_| bad("not a header name", fix))
}

fn items(text: &str) -> impl Iterator<Item = &str> {
    let items = text.split(|c: char| c == ',' || c.is_whitespace());
    items.filter(|item| !item.is_empty())
}

/// Addresses and networks; `none` for an empty list.
pub(super) fn networks(text: &str) -> Result<Vec<IpNet>, Bad> {
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

/// Host names; a port behind one is left out, because `Host` is compared without it.
pub(super) fn hosts(text: &str) -> Result<Vec<String>, Bad> {
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
        host(without_port).map_err(|error| Bad {
            problem: format!("{item} is {}", error.problem),
            fix: "write host names separated by commas, such as mcpo-bridge,chat.example.com"
                .into(),
        })
    };
    items(text).map(one).collect()
}

/// Origins as browsers send them.
pub(super) fn origins(text: &str) -> Result<Vec<String>, Bad> {
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

#[cfg(test)]
mod tests;
