//! Arguments of a call: makes paths absolute in the fields that the config names.

use std::path::Path;

use bridge_process::percent_encoded;
use bridge_protocol::RawJson;
use indexmap::IndexMap;
use percent_encoding::percent_decode_str;
use serde_json::{
    Value,
    value::{RawValue, to_raw_value},
};

use super::CallError;
use crate::artifacts::RelativePath;

/// Makes the named top-level arguments absolute, whether one name or a list, in fields of `paths` and
/// of `uris`; all others keep their bytes. `None` if nothing changes.
pub fn resolve(
    paths: &[String],
    uris: &[String],
    arguments: &RawJson,
    work: &Path,
) -> Result<Option<RawJson>, CallError> {
    let paths = paths.iter().map(|field| (field, false));
    let uris = uris.iter().map(|field| (field, true));
    let mut fields = paths.chain(uris).peekable();
    if fields.peek().is_none() {
        return Ok(None);
    }
    let Ok(mut members) = arguments.read::<IndexMap<String, Box<RawValue>>>() else {
        return Ok(None);
    };
    for (field, as_uri) in fields {
        let Some(member) = members.get_mut(field) else {
            continue;
        };
        let bad = || CallError::BadPath {
            field: field.clone(),
        };
        let one = |name: &str| absolute(name, as_uri, work).ok_or_else(bad);
        let resolved = match serde_json::from_str::<Value>(member.get()) {
            Ok(Value::String(name)) => Value::from(one(&name)?),
            Ok(Value::Array(items)) => {
                let items = items.into_iter().map(|item| match item {
                    Value::String(name) => one(&name).map(Value::from),
                    other => Ok(other),
                });
                Value::Array(items.collect::<Result<_, _>>()?)
            }
            _ => continue,
        };
        *member = to_raw_value(&resolved).map_err(|_| bad())?;
    }
    let resolved = RawJson::from_value(&members);
    resolved.map(Some).map_err(CallError::internal)
}

/// `None` for a path that leaves the folder. `as_uri`: also a plain path becomes a URI.
fn absolute(name: &str, as_uri: bool, work: &Path) -> Option<String> {
    if let Some(file) = after_scheme(name, "file:") {
        return Some(uri(&within_uri(&path_of_uri(file)?, work)?));
    }
    let mut elsewhere = ["http:", "https:", "data:"].into_iter();
    if !as_uri {
        within(name, work)
    } else if elsewhere.any(|scheme| after_scheme(name, scheme).is_some()) {
        Some(name.to_owned())
    } else {
        Some(uri(&within(name, work)?))
    }
}

/// Schemes are case-insensitive.
fn after_scheme<'a>(text: &'a str, scheme: &str) -> Option<&'a str> {
    let (start, rest) = text.split_at_checked(scheme.len())?;
    start.eq_ignore_ascii_case(scheme).then_some(rest)
}

/// The path after `file:`, with or without an authority, and with any number of slashes, because models
/// do not know the folder's path.
fn path_of_uri(rest: &str) -> Option<String> {
    let path = rest.strip_prefix("//").map_or(rest, |behind| {
        after_scheme(behind, "localhost/").unwrap_or(behind)
    });
    let path = percent_decode_str(path).decode_utf8().ok()?;
    Some(path.into_owned())
}

fn uri(path: &str) -> String {
    format!("file://{}", percent_encoded(path))
}

/// The path of a URI always begins with a slash, so such a path is also taken relative to the folder.
fn within_uri(path: &str, work: &Path) -> Option<String> {
    within(path, work).or_else(|| within(path.trim_start_matches('/'), work))
}

/// The full path of a file in the folder.
fn within(name: &str, work: &Path) -> Option<String> {
    let path = Path::new(name);
    let inside = path.strip_prefix(work).unwrap_or(path);
    let inside = RelativePath::parse(inside).ok()?;
    work.join(inside.as_path()).to_str().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORK: &str = "/jobs/x/wörk";

    fn one(name: &str, as_uri: bool) -> Option<String> {
        absolute(name, as_uri, Path::new(WORK))
    }

    #[test]
    fn names_become_paths_and_paths_that_leave_are_refused() {
        assert_eq!(one("a b/c.xlsx", false).unwrap(), "/jobs/x/wörk/a b/c.xlsx");
        assert_eq!(one("a:b.xlsx", false).unwrap(), "/jobs/x/wörk/a:b.xlsx");
        assert_eq!(one("/jobs/x/wörk/a", false).unwrap(), "/jobs/x/wörk/a");
        for bad in ["../x", "/etc/passwd", "a/../../b", "", "/jobs/x/wörk/../y"] {
            assert_eq!(one(bad, false), None, "{bad}");
        }
    }

    #[test]
    fn uris_stay_uris_and_within_the_folder() {
        for name in [
            "file:a b.docx",
            "file:a%20b.docx",
            "file:./a b.docx",
            "file:/a%20b.docx",
            "file:///a%20b.docx",
            "file://./a b.docx",
            "file://a b.docx",
            "file://localhost/a b.docx",
            "FILE://LOCALHOST/a%20b.docx",
            "file:///jobs/x/w%C3%B6rk/a%20b.docx",
        ] {
            for as_uri in [false, true] {
                let expected = "file:///jobs/x/w%C3%B6rk/a%20b.docx";
                assert_eq!(one(name, as_uri).as_deref(), Some(expected), "{name}");
            }
        }
        for bad in [
            "file:",
            "file:../x",
            "file:///../x",
            "file:///a/%2e%2e/%2e%2e/x",
            "file://localhost/../x",
            "file:%00",
            "file:%ff",
        ] {
            assert_eq!(one(bad, false), None, "{bad}");
        }
        let elsewhere = one("file:///etc/passwd", false).unwrap();
        assert_eq!(elsewhere, "file:///jobs/x/w%C3%B6rk/etc/passwd");
    }

    #[test]
    fn a_field_of_uris_gets_one_for_a_name_and_passes_those_of_pages() {
        assert_eq!(
            one("a.docx", true).unwrap(),
            "file:///jobs/x/w%C3%B6rk/a.docx"
        );
        for same in ["https://example.com/a?b#c", "HTTP://x", "data:text/plain,a"] {
            assert_eq!(one(same, true).unwrap(), same);
        }
        assert_eq!(one("../x", true), None);
    }

    #[test]
    fn lists_are_resolved_and_the_rest_stays_as_it_came() {
        let resolved = |text: &str| {
            let arguments = RawJson::parse(text.to_owned().into()).unwrap();
            let raw = resolve(&["file".into()], &[], &arguments, Path::new("/w")).unwrap();
            raw.map(|raw| raw.as_str().to_owned())
        };
        let out = resolved(r#"{"n":1.0,"file":"a b/c.xlsx","m":1e400}"#).unwrap();
        assert_eq!(out, r#"{"n":1.0,"file":"/w/a b/c.xlsx","m":1e400}"#);
        let out = resolved(r#"{"file":["a",7,"file:b"]}"#).unwrap();
        assert_eq!(out, r#"{"file":["/w/a",7,"file:///w/b"]}"#);
        assert_eq!(resolved(r#"{"file":7}"#).unwrap(), r#"{"file":7}"#);
        assert_eq!(resolved("[]"), None);
    }
}
