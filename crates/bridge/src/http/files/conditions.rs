//! Which bytes a request wants (RFC 9110, chapters 13 and 14).

use std::ops::RangeInclusive;

use axum::http::{HeaderMap, HeaderName, Method, header};
use bridge_state::Artifact;
use jiff::fmt::rfc2822::DateTimeParser;

use super::headers::{etag, http_date};

/// The answer's shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selection {
    /// 200.
    Whole,
    /// 206.
    Part(RangeInclusive<u64>),
    /// 304.
    NotModified,
    /// 416.
    OutOfRange,
}

/// Several ranges at once are answered with the whole, as the standard allows.
pub fn select(artifact: &Artifact, method: &Method, headers: &HeaderMap) -> Selection {
    if is_unmodified(artifact, headers) {
        return Selection::NotModified;
    }
    let Some(range) = text(headers, &header::RANGE) else {
        return Selection::Whole;
    };
    if method != Method::GET || !range_still_holds(artifact, headers) {
        return Selection::Whole;
    }
    // What cannot be read is ignored, also by the standard.
    let Ok(ranges) = http_range_header::parse_range_header(range) else {
        return Selection::Whole;
    };
    match ranges.validate(artifact.size).as_deref() {
        Ok([part]) if !range.contains(',') => Selection::Part(part.clone()),
        Ok(_) => Selection::Whole,
        Err(_) => Selection::OutOfRange,
    }
}

fn is_unmodified(artifact: &Artifact, headers: &HeaderMap) -> bool {
    if headers.contains_key(header::IF_NONE_MATCH) {
        let own = etag(artifact);
        return headers
            .get_all(header::IF_NONE_MATCH)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .map(|tag| tag.trim().trim_start_matches("W/"))
            .any(|tag| tag == "*" || tag == own);
    }
    text(headers, &header::IF_MODIFIED_SINCE)
        .and_then(|date| DateTimeParser::new().parse_timestamp(date).ok())
        .is_some_and(|date| artifact.created_at.as_second() <= date.as_second())
}

fn range_still_holds(artifact: &Artifact, headers: &HeaderMap) -> bool {
    let Some(known) = text(headers, &header::IF_RANGE) else {
        return !headers.contains_key(header::IF_RANGE);
    };
    known == etag(artifact) || known == http_date(artifact.created_at)
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}
