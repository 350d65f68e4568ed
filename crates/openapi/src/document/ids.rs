//! Names of tools in URLs and as operation ids.

use std::collections::{HashMap, HashSet};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// All but RFC 3986's unreserved characters: `/`, spaces and `{` of OpenAPI's templates too.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// What model APIs take as a function's name.
const LONGEST: usize = 64;

/// In front of names that URLs take for steps between folders, encoded or not.
const DOTS: &str = "tool_";

/// A name as one segment of a URL's path, percent-encoded.
pub fn path_segment(name: &str) -> String {
    let front = if is_dots(name) { DOTS } else { "" };
    format!("{front}{}", utf8_percent_encode(name, SEGMENT))
}

/// The name that a segment stands for besides its own: clients cannot ask for `/..`.
pub fn name_of_dots(segment: &str) -> Option<&str> {
    segment.strip_prefix(DOTS).filter(|name| is_dots(name))
}

fn is_dots(name: &str) -> bool {
    matches!(name, "." | "..")
}

/// What FastAPI made of a tool's name in mcpo; others may filter on it.
pub fn mcpo_operation_id(name: &str) -> String {
    format!("tool_{name}_post")
}

/// One id per name, in order: `[A-Za-z0-9_-]{1,64}`, all different. A name that is an id already
/// keeps it, whatever the others are.
pub fn operation_ids<'a>(names: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let names: Vec<&str> = names.into_iter().collect();
    let mapped: Vec<String> = names.iter().map(|name| map(name)).collect();
    let mut taken: HashSet<String> = HashSet::new();
    let exact: Vec<bool> = names
        .iter()
        .zip(&mapped)
        .map(|(name, id)| name == id && taken.insert(id.clone()))
        .collect();
    // What was tried for an id already: thousands of names may come to the same.
    let mut tried: HashMap<String, u64> = HashMap::new();
    let finish = |(id, exact): (String, bool)| {
        if exact || taken.insert(id.clone()) {
            return id;
        }
        let number = tried.entry(id.clone()).or_insert(1);
        loop {
            *number += 1;
            let numbered = with_suffix(&id, *number);
            if taken.insert(numbered.clone()) {
                return numbered;
            }
        }
    };
    mapped.into_iter().zip(exact).map(finish).collect()
}

fn map(name: &str) -> String {
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    let id: String = name
        .chars()
        .map(|c| if allowed(c) { c } else { '_' })
        .take(LONGEST)
        .collect();
    if id.is_empty() { "tool".into() } else { id }
}

fn with_suffix(id: &str, number: u64) -> String {
    let suffix = format!("_{number}");
    let kept = id.len().min(LONGEST - suffix.len());
    format!("{}{suffix}", &id[..kept])
}
