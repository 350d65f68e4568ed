//! Replaces `${VAR}`, `${VAR:-default}` and `${file:PATH}` in strings of the file.
//!
//! `$${` is replaced by a literal `${`. Every other `$`, doubled or not, is literal, because it is common in
//! passwords and regular expressions.

use std::collections::BTreeSet;

use bridge_protocol::{RawJson, utf8};
use bytes::Bytes;
use serde_json::Value;

use super::{Path, read_bounded};
use crate::config::Fault;

/// Secrets are short; a larger file is a mistake, such as a device without an end.
const LARGEST_FILE: u64 = 1024 * 1024;

/// Looks a variable up.
pub(super) type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The result of replacing the references in a string.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Text {
    pub text: String,
    /// Whether a part came from a file, so the text is a secret.
    pub secret: bool,
}

/// Replaces the references in `text`; reports all errors, without their location. They contain names, never
/// values.
pub(super) fn interpolate(text: &str, lookup: Lookup) -> Result<Text, Vec<Fault>> {
    let mut out = String::with_capacity(text.len());
    let mut faults = Vec::new();
    let mut secret = false;
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        let (before, from) = rest.split_at(at);
        let inner = &from[2..];
        if let Some(before) = before.strip_suffix('$') {
            out.push_str(before);
            out.push_str("${");
            rest = inner;
            continue;
        }
        out.push_str(before);
        let Some((reference, after)) = inner.split_once('}') else {
            let fix = "add the \"}\", or write $${ for a literal ${";
            faults.push(Fault::new("", "\"${\" without \"}\"", fix));
            break;
        };
        match resolve(reference, lookup) {
            Ok(value) => out.push_str(&value),
            Err(fault) => faults.push(fault),
        }
        secret |= reference.starts_with("file:");
        rest = after;
    }
    out.push_str(rest);
    if faults.is_empty() {
        Ok(Text { text: out, secret })
    } else {
        Err(faults)
    }
}

fn resolve(reference: &str, lookup: Lookup) -> Result<String, Fault> {
    if let Some(path) = reference.strip_prefix("file:") {
        return read(path);
    }
    let (name, default) = match reference.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (reference, None),
    };
    if !is_variable(name) {
        let problem = "invalid reference; expected ${VAR}, ${VAR:-default} or ${file:PATH}";
        let fix = "use one of these forms, or $${ for a literal ${";
        return Err(Fault::new("", problem, fix));
    }
    match (lookup(name), default) {
        // As in a shell, `:-` treats an empty variable as unset.
        (Some(value), Some(default)) if value.is_empty() => Ok(default.into()),
        (Some(value), _) => Ok(value),
        (None, Some(default)) => Ok(default.into()),
        (None, None) => Err(Fault::new(
            "",
            format!("the variable {name} is not set"),
            format!("set {name} in the bridge's environment, or write ${{{name}:-default}}"),
        )),
    }
}

fn read(path: &str) -> Result<String, Fault> {
    let problem =
        match read_bounded(std::path::Path::new(path), LARGEST_FILE).map(String::from_utf8) {
            Err(error) => format!("cannot read the file {path}: {error}"),
            Ok(Err(_)) => format!("the file {path} is not UTF-8"),
            Ok(Ok(text)) => {
                let text = text
                    .trim_start_matches('\u{feff}')
                    .trim_end_matches(['\n', '\r']);
                if !text.is_empty() {
                    return Ok(text.to_owned());
                }
                format!("the file {path} is empty")
            }
        };
    let fix = "mount a readable text file that contains the value";
    Err(Fault::new("", problem, fix))
}

fn is_variable(name: &str) -> bool {
    let good = |c: char| c.is_ascii_alphanumeric() || c == '_';
    name.chars().all(good) && name.starts_with(|c: char| !c.is_ascii_digit())
}

// Detects duplicate keys in JSON: `serde_json` silently keeps the last one, while a reader of the file may
// notice only the first.

/// A value, and the paths of duplicate keys.
#[derive(Debug)]
pub(super) struct Parsed {
    pub value: Value,
    pub duplicates: Vec<String>,
}

/// Parses one value, in any encoding that a byte order mark indicates.
pub(super) fn parse(bytes: &[u8]) -> Result<Parsed, serde_json::Error> {
    let bytes = utf8(Bytes::copy_from_slice(bytes));
    let value = serde_json::from_slice(&bytes)?;
    let json = RawJson::parse(bytes)?;
    let mut duplicates = Vec::new();
    note_duplicates(&json, &Path::root(), &mut duplicates);
    Ok(Parsed { value, duplicates })
}

fn note_duplicates(json: &RawJson, path: &Path, found: &mut Vec<String>) {
    let mut seen = BTreeSet::new();
    for member in json.members().into_iter().flatten() {
        let key: String = member.name.read().unwrap_or_default();
        let path = path.key(&key);
        // Comment keys may be repeated for comments of several lines.
        let comment = super::schema::is_comment(&key);
        if !seen.insert(key) && !comment {
            found.push(path.to_string());
        }
        note_duplicates(&member.value, &path, found);
    }
    for (index, item) in json.elements().into_iter().flatten().enumerate() {
        note_duplicates(&item, &path.index(index), found);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lookup(name: &str) -> Option<String> {
        match name {
            "SET" => Some("value".into()),
            "EMPTY" => Some(String::new()),
            "NESTED" => Some("${SET}".into()),
            _ => None,
        }
    }

    fn text(from: &str) -> String {
        interpolate(from, &lookup).unwrap().text
    }

    #[test]
    fn variables_and_defaults() {
        assert_eq!(text("a ${SET} b ${SET}"), "a value b value");
        assert_eq!(text("${EMPTY}|${EMPTY:-d}|${UNSET:-d}|${UNSET:-}"), "|d|d|");
        assert_eq!(text("${UNSET:-a:-b/c$d}"), "a:-b/c$d");
        assert_eq!(text("${NESTED}"), "${SET}", "a value is never read again");
    }

    #[test]
    fn other_dollars_are_dollars() {
        for same in ["$", "$$", "cost: 5$", "$SET", "^a$", "$$SET", "a}b{"] {
            assert_eq!(text(same), same);
        }
        assert_eq!(text("$${SET}"), "${SET}");
        assert_eq!(text("$$${SET}"), "$${SET}");
    }

    #[test]
    fn all_that_fails_is_told_by_name() {
        let faults = interpolate("${ONE} ${TWO} ${input:x} ${", &lookup).unwrap_err();
        let problems: Vec<_> = faults.iter().map(|fault| fault.problem.as_str()).collect();
        assert_eq!(problems.len(), 4);
        assert!(problems[0].contains("ONE") && problems[1].contains("TWO"));
        assert!(interpolate("${}", &lookup).is_err());
        assert!(interpolate("${1X}", &lookup).is_err());
    }

    #[test]
    fn files_are_read_without_their_last_line_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        std::fs::write(path("s"), "se\ncret\r\n").unwrap();
        std::fs::write(path("empty"), "\n").unwrap();
        let read = interpolate(&format!("Bearer ${{file:{}}}", path("s")), &lookup).unwrap();
        assert_eq!((read.text.as_str(), read.secret), ("Bearer se\ncret", true));
        for bad in ["empty", "missing"] {
            assert!(interpolate(&format!("${{file:{}}}", path(bad)), &lookup).is_err());
        }
    }

    proptest! {
        #[test]
        fn never_panics_and_leaves_plain_text_alone(from in "[$a{}:\\-é]{0,20}") {
            let read = interpolate(&from, &lookup);
            if !from.contains("${") {
                prop_assert_eq!(read.unwrap().text, from);
            }
        }
    }
}

#[cfg(test)]
mod json_text_tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_every_key_that_stands_twice() {
        let text = br#"{"a":{"b":1,"b":2},"l":[{"c":1},{"c":1,"c":1}],"a":3,"//":1,"//":2}"#;
        let parsed = parse(text).unwrap();
        assert_eq!(parsed.duplicates, ["a.b", "l[1].c", "a"]);
    }

    #[test]
    fn a_byte_order_mark_is_no_fault_and_a_second_value_is() {
        assert!(parse(b"\xef\xbb\xbf{}").is_ok());
        assert!(parse(b"\xff\xfe{\0}\0").is_ok());
        assert!(parse(b"{} {}").is_err());
        assert!(parse("[".repeat(100_000).as_bytes()).is_err());
    }

    proptest! {
        #[test]
        fn reads_what_serde_json_reads(text in r#"[\[\]{},:" a0-9.\\]{0,30}"#) {
            let ours = parse(text.as_bytes()).ok().map(|parsed| parsed.value);
            let theirs = serde_json::from_str::<Value>(&text).ok();
            prop_assert_eq!(ours, theirs);
        }
    }
}
