//! What is said of an artifact beside its bytes.

use axum::http::{HeaderMap, HeaderValue, header};
use bridge_state::Artifact;
use jiff::{Timestamp, fmt::rfc2822::DateTimePrinter};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::insert;

/// Nothing of it runs or loads in our origin, should a browser show it in spite of everything.
pub const SANDBOX: &str = "sandbox; default-src 'none'";

/// All of RFC 8187's `attr-char` that is no letter or digit.
const ATTR_CHAR: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'!')
    .remove(b'#')
    .remove(b'$')
    .remove(b'&')
    .remove(b'+')
    .remove(b'-')
    .remove(b'.')
    .remove(b'^')
    .remove(b'_')
    .remove(b'`')
    .remove(b'|')
    .remove(b'~');

/// Everything that holds for the whole, a part and a 304 alike.
pub fn describe(headers: &mut HeaderMap, artifact: &Artifact) {
    protect(headers);
    insert(headers, header::CONTENT_TYPE, &artifact.mime_type);
    insert(headers, header::CONTENT_DISPOSITION, &disposition(artifact));
    insert(headers, header::ETAG, &etag(artifact));
    insert(
        headers,
        header::LAST_MODIFIED,
        &http_date(artifact.created_at),
    );
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    // Kept by the browser, but asked for each time: a link that was taken back stays taken back.
    let cache = HeaderValue::from_static("private, no-cache");
    headers.insert(header::CACHE_CONTROL, cache);
}

/// For whatever is answered below `/files`.
pub fn protect(headers: &mut HeaderMap) {
    for (name, value) in [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CONTENT_SECURITY_POLICY, SANDBOX),
        // The URL is the capability: nobody is told it.
        (header::REFERRER_POLICY, "no-referrer"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    // Open WebUI is another origin, often of the same site: it may show a picture.
    headers.insert(
        "cross-origin-resource-policy",
        HeaderValue::from_static("same-site"),
    );
}

/// RFC 6266: a plain name for the old, the real one for the rest.
fn disposition(artifact: &Artifact) -> String {
    let real = utf8_percent_encode(&artifact.name, ATTR_CHAR);
    let plain = &artifact.ascii_name;
    format!("attachment; filename=\"{plain}\"; filename*=UTF-8''{real}")
}

/// Strong: the bytes themselves.
pub fn etag(artifact: &Artifact) -> String {
    format!("\"{}\"", artifact.sha256)
}

/// RFC 9110's date, to the second.
pub fn http_date(time: Timestamp) -> String {
    let printed = DateTimePrinter::new().timestamp_to_rfc9110_string(&time);
    printed.unwrap_or_default()
}
