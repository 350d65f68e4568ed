//! Removes the workspace's absolute path from responses: users and models get relative names.
//!
//! It works on the JSON text, so that all other bytes stay unchanged. It searches for the random
//! job id; around the id it matches the folder's path in the spellings that a child may print:
//! slashes escaped once or several times (JSON within JSON), characters as `\u…`, `%…` in `file://`
//! URLs.

use std::{borrow::Cow, fmt::Write, ops::Range, path::Path};

use bridge_model::{JobFolderPaths, JobId};
use bridge_protocol::RawJson;
use memchr::memmem::Finder;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

/// Finders for the part that every text with a path of the folder contains, and that has only one
/// spelling.
pub fn marks(folder: &JobFolderPaths) -> Vec<Finder<'static>> {
    let id = folder.canonical.file_name();
    let short = folder.short_tmp.as_deref().and_then(short_parts);
    let short = short.map(|(_, name, _)| name);
    let marks = id.into_iter().filter_map(|id| id.to_str()).chain(short);
    marks
        .map(|mark| Finder::new(mark.as_bytes()).into_owned())
        .collect()
}

/// The parent of the links' folder, the folder's name, and the link's name.
fn short_parts(link: &Path) -> Option<(&Path, &str, &str)> {
    let folder = link.parent()?;
    let name = folder.file_name()?.to_str()?;
    Some((folder.parent()?, name, link.file_name()?.to_str()?))
}

/// Replaces the folder's absolute path in all JSON strings of `raw` by a name relative to `work/`;
/// all other bytes stay unchanged. Does not copy if nothing matches.
pub fn relative(raw: RawJson, folder: &JobFolderPaths) -> RawJson {
    let Some(rewriter) = Rewriter::new(folder) else {
        return raw;
    };
    let mut answer = raw;
    // In rare cases the removal of one path creates another; each round makes the text shorter.
    while let Some(shorter) = rewriter.rewrite(answer.as_bytes()) {
        match RawJson::parse(shorter.into()) {
            Ok(rewritten) => answer = rewritten,
            Err(error) => {
                // No test reaches this; a wrong path is better than an invalid response.
                tracing::error!(%error, "workspace path not removed from a response");
                return answer;
            }
        }
    }
    answer
}

/// The same for plain text, such as the last lines of a log. Outside of paths the workspace's id is
/// replaced by its digest, because readers of the text must not learn the id.
pub fn relative_text(text: &str, folder: &JobFolderPaths) -> String {
    let Some(rewriter) = Rewriter::new(folder) else {
        return text.to_owned();
    };
    let mut text = text.to_owned();
    while let Some(shorter) = rewriter.rewrite(text.as_bytes()) {
        text = String::from_utf8_lossy(&shorter).into_owned();
    }
    let id = String::from_utf8_lossy(&rewriter.job.name);
    let digest = id
        .parse()
        .map_or_else(|_| "…".to_owned(), |id: JobId| format!("{id:?}"));
    text.replace(&*id, &digest)
}

struct Rewriter {
    job: Mark,
    /// The folder of the link to the job's `tmp/`.
    short: Option<Mark>,
}

/// A name to search for, which is the last component of a path.
struct Mark {
    name: Vec<u8>,
    finder: Finder<'static>,
    /// Spellings of the parent folder with a trailing slash.
    parents: Vec<Vec<u8>>,
    /// The name of the link that follows, for the link to `tmp/`.
    link: Option<Vec<u8>>,
}

impl Mark {
    fn new(name: &str, parents: Vec<Vec<u8>>, link: Option<&str>) -> Self {
        Self {
            name: name.into(),
            finder: Finder::new(name).into_owned(),
            parents,
            link: link.map(Into::into),
        }
    }

    /// The paths that contain the name, and their replacements.
    fn mentions(&self, text: &[u8]) -> Vec<(Range<usize>, &'static str)> {
        let found = self.finder.find_iter(text);
        found.filter_map(|at| self.mention(text, at)).collect()
    }

    fn mention(&self, text: &[u8], at: usize) -> Option<(Range<usize>, &'static str)> {
        let mut end = at + self.name.len();
        if let Some(link) = &self.link {
            end = slash_on(text, end)?;
            end += text[end..].starts_with(link).then_some(link.len())?;
        }
        if continues_name(&text[end..]) {
            return None;
        }
        let start = before(text, at, &self.parents)?;
        let (end, name) = match &self.link {
            Some(_) => (end, "../tmp"),
            None => within(text, end),
        };
        Some((start..end, name))
    }
}

/// The start of a path that continues from one of `parents` to the name at `at`.
fn before(text: &[u8], at: usize, parents: &[Vec<u8>]) -> Option<usize> {
    parents
        .iter()
        .filter_map(|parent| match_back(&text[..at], parent))
        .find_map(|start| beginning(text, start))
}

impl Rewriter {
    fn new(folder: &JobFolderPaths) -> Option<Self> {
        let id = folder.canonical.file_name()?.to_str()?;
        let mut parents = Vec::new();
        for path in [&folder.canonical, &folder.configured] {
            parents.extend(spellings(path.parent()?));
        }
        parents.sort();
        parents.dedup();
        let short = |(parent, name, link)| Mark::new(name, spellings(parent), Some(link));
        Some(Self {
            job: Mark::new(id, parents, None),
            short: folder.short_tmp.as_deref().and_then(short_parts).map(short),
        })
    }

    /// `None` if there is nothing to replace.
    fn rewrite(&self, text: &[u8]) -> Option<Vec<u8>> {
        let mut out: Option<Vec<u8>> = None;
        let mut kept = 0;
        let mut mentions = self.job.mentions(text);
        if let Some(short) = &self.short {
            mentions.extend(short.mentions(text));
            mentions.sort_by_key(|(found, _)| found.start);
        }
        for (found, name) in mentions {
            if found.start < kept {
                continue;
            }
            let out = out.get_or_insert_with(|| Vec::with_capacity(text.len()));
            out.extend_from_slice(&text[kept..found.start]);
            out.extend_from_slice(name.as_bytes());
            kept = found.end;
        }
        let mut out = out?;
        out.extend_from_slice(&text[kept..]);
        Some(out)
    }
}

/// A path as `pathlib` and `url` encode it in a URI.
pub fn percent_encoded(path: &str) -> Cow<'_, str> {
    /// The characters that they encode.
    const IN_URL: &AsciiSet = &CONTROLS
        .add(b' ')
        .add(b'"')
        .add(b'#')
        .add(b'%')
        .add(b'<')
        .add(b'>')
        .add(b'?')
        .add(b'[')
        .add(b'\\')
        .add(b']')
        .add(b'^')
        .add(b'`')
        .add(b'{')
        .add(b'|')
        .add(b'}');
    utf8_percent_encode(path, IN_URL).into()
}

/// Escaped, `\u`-escaped and percent-encoded.
fn spellings(path: &Path) -> Vec<Vec<u8>> {
    let Some(text) = path.to_str() else {
        return Vec::new();
    };
    let text = text.trim_end_matches('/');
    let quoted = serde_json::to_string(text).unwrap_or_default();
    let escaped = &quoted[1..quoted.len() - 1];
    let mut ascii = String::new();
    for unit in escaped.encode_utf16() {
        match u8::try_from(unit) {
            Ok(letter) if letter.is_ascii() => ascii.push(letter.into()),
            _ => drop(write!(ascii, "\\u{unit:04x}")),
        }
    }
    let url = percent_encoded(text);
    [escaped, &ascii, &url]
        .map(|text| format!("{text}/").into_bytes())
        .into()
}

/// The start of `pattern` if it is at the end of `text`. Slashes and backslashes may be escaped any
/// number of times, and slashes may be doubled.
fn match_back(text: &[u8], pattern: &[u8]) -> Option<usize> {
    let mut at = text.len();
    for (index, expected) in pattern.iter().enumerate().rev() {
        at = match expected {
            b'/' => {
                let mut start = slash_back(text, at)?;
                // The first slash is not doubled: the two slashes of `file://` may precede it.
                while index > 0
                    && let Some(more) = slash_back(text, start)
                {
                    start = more;
                }
                start
            }
            b'\\' => {
                let start = skip_backslashes_back(text, at);
                (start < at).then_some(start)?
            }
            letter => {
                let last = at.checked_sub(1)?;
                text[last].eq_ignore_ascii_case(letter).then_some(last)?
            }
        };
    }
    Some(at)
}

/// The position before a slash that ends at `end`, and before its escapes.
fn slash_back(text: &[u8], end: usize) -> Option<usize> {
    let last = end.checked_sub(1)?;
    (text[last] == b'/').then(|| skip_backslashes_back(text, last))
}

fn skip_backslashes_back(text: &[u8], end: usize) -> usize {
    let run = text[..end].iter().rev().take_while(|byte| **byte == b'\\');
    end - run.count()
}

/// The start including a preceding `file://`; `None` if the path continues to the left.
fn beginning(text: &[u8], start: usize) -> Option<usize> {
    if let Some(authority) = slash_back(text, start).and_then(|at| slash_back(text, at)) {
        let scheme = text[..authority].strip_suffix(b"file:")?;
        return begins_word(scheme).then_some(scheme.len());
    }
    if let Some(scheme) = text[..start].strip_suffix(b"file:") {
        return begins_word(scheme).then_some(scheme.len());
    }
    begins_word(&text[..start]).then_some(start)
}

/// Whether a path can start after `before`, instead of continuing a longer one.
fn begins_word(before: &[u8]) -> bool {
    let Some((last, rest)) = before.split_last() else {
        return true;
    };
    let escape = |letters: usize| {
        let at = before.len().checked_sub(letters + 1);
        at.is_some_and(|at| before[at] == b'\\')
    };
    match last {
        // The letter of an escape sequence is not part of a name: "saved to:\n/tmp/…".
        b'n' | b'r' | b't' | b'b' | b'f' if rest.ends_with(b"\\") => true,
        b'/' | b'.' | b'-' | b'_' | b'~' | b'%' => false,
        letter if letter.is_ascii_alphanumeric() => {
            escape(5) && before[before.len() - 5] == b'u' && letter.is_ascii_hexdigit()
        }
        _ => true,
    }
}

/// Whether `rest` continues the name before it.
fn continues_name(rest: &[u8]) -> bool {
    match rest {
        [b'.' | b'~' | b'+' | b'@' | b'%', next, ..] => next.is_ascii_alphanumeric(),
        [next, ..] => next.is_ascii_alphanumeric() || matches!(next, b'-' | b'_'),
        [] => false,
    }
}

/// The end of the job folder's path, which ends at `end`, with the part to replace, and its
/// replacement.
fn within(text: &[u8], end: usize) -> (usize, &'static str) {
    let work = slash_on(text, end).and_then(|at| {
        let after = at + text[at..].starts_with(b"work").then_some(4)?;
        (!continues_name(&text[after..])).then_some(after)
    });
    let Some(work) = work else {
        // A following full stop would look like a third dot.
        let stop = text[end..].starts_with(b".");
        let name = if stop { "../" } else { ".." };
        return (end, name);
    };
    let Some(inner) = slash_on(text, work) else {
        let stop = text[work..].starts_with(b".");
        let name = if stop { "./" } else { "." };
        return (work, name);
    };
    if begins_name(&text[inner..]) {
        (inner, "")
    } else {
        (work, ".")
    }
}

/// The end of one or more slashes that start at `start`, with their escapes.
fn slash_on(text: &[u8], start: usize) -> Option<usize> {
    let mut end = None;
    let mut at = start;
    loop {
        let run = text[at..].iter().take_while(|byte| **byte == b'\\').count();
        if text.get(at + run) != Some(&b'/') {
            return end;
        }
        at += run + 1;
        end = Some(at);
    }
}

/// Whether a file name starts here. If in doubt, no: `./name` is also correct.
fn begins_name(rest: &[u8]) -> bool {
    let run = rest.iter().take_while(|byte| **byte == b'\\').count();
    match &rest[run..] {
        [b'u', code @ ..] if run > 0 => {
            code.len() >= 4 && code[..4].iter().all(u8::is_ascii_hexdigit)
        }
        [next, ..] if run == 0 => {
            next.is_ascii_alphanumeric() || !next.is_ascii() || b"._-~$(%+@#".contains(next)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    const ID: &str = "01234567-89ab-4def-8123-456789abcdef";

    fn folder() -> JobFolderPaths {
        JobFolderPaths {
            canonical: format!("/data/jobs/{ID}").into(),
            configured: format!("/srv/mcpo jobs/{ID}").into(),
            short_tmp: Some("/tmp/mb-k3x9qa/7".into()),
        }
    }

    fn rewritten(json: &str) -> String {
        let raw = RawJson::parse(Bytes::from(json.replace("ID", ID))).unwrap();
        relative(raw, &folder()).as_str().replace(ID, "ID")
    }

    #[test]
    fn paths_become_relative_names() {
        for (before, after) in [
            (r#""/data/jobs/ID/work/a/b.xlsx""#, r#""a/b.xlsx""#),
            (r#""/data/jobs/ID/work""#, r#"".""#),
            (r#""/data/jobs/ID/work/""#, r#""./""#),
            (r#""/data/jobs/ID""#, r#""..""#),
            (r#""/data/jobs/ID/""#, r#""../""#),
            (r#""/data/jobs/ID/tmp/x""#, r#""../tmp/x""#),
            (r#""file:///data/jobs/ID/work/x""#, r#""x""#),
            (r#""file:/data/jobs/ID/work/x""#, r#""x""#),
            (r#""file:///srv/mcpo%20jobs/ID/work/x""#, r#""x""#),
            (r#""/srv/mcpo jobs/ID/work/x""#, r#""x""#),
            (r#""/data//jobs/ID//work//x""#, r#""x""#),
            (r#"{"/data/jobs/ID/work/k":[1.0]}"#, r#"{"k":[1.0]}"#),
            (
                r#""Saved to:\n/data/jobs/ID/work/x\nDone""#,
                r#""Saved to:\nx\nDone""#,
            ),
            (
                r#""保存先は/data/jobs/ID/work/売上.xlsxです""#,
                r#""保存先は売上.xlsxです""#,
            ),
            (
                r#""\u306f/data/jobs/ID/work/\u58f2.xlsx""#,
                r#""\u306f\u58f2.xlsx""#,
            ),
            (r#""in /data/jobs/ID/work.""#, r#""in ./.""#),
            (r#""in /data/jobs/ID/work, ok""#, r#""in ., ok""#),
            (
                r#""PWD=/data/jobs/ID/work/a:/data/jobs/ID/work/b""#,
                r#""PWD=a:b""#,
            ),
            (r#""(/data/jobs/ID/work)""#, r#""(.)""#),
            (
                r#""in /tmp/mb-k3x9qa/7/c.png, ok""#,
                r#""in ../tmp/c.png, ok""#,
            ),
            (r#""file:///tmp/mb-k3x9qa/7/c.png""#, r#""../tmp/c.png""#),
            (r#""\/tmp\/mb-k3x9qa\/7\/c.png""#, r#""../tmp\/c.png""#),
            (r#""/tmp/mb-k3x9qa/7""#, r#""../tmp""#),
            (
                r#""/tmp/mb-k3x9qa/7/a:/data/jobs/ID/work/b""#,
                r#""../tmp/a:b""#,
            ),
        ] {
            assert_eq!(rewritten(before), after, "{before}");
        }
    }

    #[test]
    fn escaped_slashes_and_json_within_json_are_seen() {
        for (before, after) in [
            (r#""\/data\/jobs\/ID\/work\/a\/b.xlsx""#, r#""a\/b.xlsx""#),
            (
                r#""{\"p\":\"/data/jobs/ID/work/x\"}""#,
                r#""{\"p\":\"x\"}""#,
            ),
            (
                r#""{\"p\":\"\\/data\\/jobs\\/ID\\/work\\/x\"}""#,
                r#""{\"p\":\"x\"}""#,
            ),
            (r#""{\"p\":\"/data/jobs/ID/work\"}""#, r#""{\"p\":\".\"}""#),
            (r#""file:\/\/\/data\/jobs\/ID\/work\/x""#, r#""x""#),
            (
                r#""{\"p\":\"/data/jobs/ID/work/\\u58f2.xlsx\"}""#,
                r#""{\"p\":\"\\u58f2.xlsx\"}""#,
            ),
            (r#""a\\n/data/jobs/ID/work/x""#, r#""a\\nx""#),
        ] {
            assert_eq!(rewritten(before), after, "{before}");
        }
    }

    #[test]
    fn odd_jobs_folders_are_seen_as_servers_escape_them() {
        let folder = JobFolderPaths {
            canonical: format!("/data/ジョブ\"q/{ID}").into(),
            configured: format!("/{ID}").into(),
            short_tmp: None,
        };
        for before in [
            r#""/data/ジョブ\"q/ID/work/x""#,
            r#""/data/\u30b8\u30e7\u30d6\"q/ID/work/x""#,
            r#""\"/data/\\u30b8\\u30E7\\u30d6\\\"q/ID/work/x\"""#,
            r#""/ID/work/x""#,
        ] {
            let raw = RawJson::parse(before.replace("ID", ID).into()).unwrap();
            let after = relative(raw, &folder);
            assert!(
                matches!(after.as_str(), r#""x""# | r#""\"x\"""#),
                "{before}: {}",
                after.as_str()
            );
        }
    }

    #[test]
    fn what_only_looks_like_it_stays() {
        for same in [
            r#""/data/jobs/IDx/work""#,
            r#""/data/jobs/ID-1/work""#,
            r#""/host/data/jobs/ID/work""#,
            r#""/tmp/mb-k3x9qa/71/c.png""#,
            r#""/var/tmp/mb-k3x9qa/7/c.png""#,
            r#""/tmp/mb-k3x9qa""#,
            r#""http://h/data/jobs/ID/work""#,
            r#""data/jobs/ID/work""#,
            r#""/data/jobs/other/work/x""#,
            r#""job ID is done""#,
            r#"{ "n": 1e400, "s": "\ud83d\ude00" }"#,
        ] {
            assert_eq!(rewritten(same), same);
        }
        assert_eq!(
            rewritten(r#""/data/jobs/ID/workbook/x""#),
            r#""../workbook/x""#
        );
        assert_eq!(
            rewritten(r#""/data/jobs/ID/work.xlsx""#),
            r#""../work.xlsx""#
        );
    }

    #[test]
    fn nothing_is_copied_where_nothing_matches() {
        let bytes = Bytes::from_static(br#"{"text":"nothing of ours","n":1.0}"#);
        let raw = RawJson::parse(bytes.clone()).unwrap();
        let same = relative(raw, &folder()).into_bytes();
        assert_eq!(same.as_ptr(), bytes.as_ptr());
    }

    /// Any text that contains pieces which form or break paths.
    fn texts() -> impl Strategy<Value = String> {
        let piece = prop_oneof![
            Just(format!("/data/jobs/{ID}")),
            Just(format!("/srv/mcpo jobs/{ID}/work")),
            Just(format!("file:///data/jobs/{ID}/work/")),
            Just(ID.to_owned()),
            Just("/data/jobs/".to_owned()),
            Just("/work/".to_owned()),
            Just("/".to_owned()),
            Just("\\".to_owned()),
            Just("\"".to_owned()),
            Just("\n".to_owned()),
            "[a-z. 売]{0,4}",
            any::<String>(),
        ];
        prop::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat())
    }

    fn encode(text: &str, depth: usize, escape_slashes: bool) -> String {
        let mut json = Value::from(text).to_string();
        for _ in 0..depth {
            if escape_slashes {
                json = json.replace('/', "\\/");
            }
            json = Value::from(json).to_string();
        }
        json
    }

    proptest! {
        #[test]
        fn any_answer_stays_json_and_is_done_in_one_go(
            text in texts(), depth in 0_usize..3, slashes: bool,
        ) {
            let raw = RawJson::parse(encode(&text, depth, slashes).into()).unwrap();
            let once = relative(raw, &folder());
            prop_assert!(RawJson::parse(once.clone().into_bytes()).is_ok());
            let twice = relative(once.clone(), &folder());
            prop_assert_eq!(once.as_str(), twice.as_str());
        }

        #[test]
        fn a_path_between_words_never_shows_the_job(
            before in "[ -~売\n\t]{0,20}[ :=(売\n\t\"]", file in "[a-z0-9売. ()/]{0,20}",
            depth in 0_usize..3, slashes: bool,
            part in prop_oneof![Just(""), Just("/"), Just("/work"), Just("/work/"), Just("/tmp/")],
        ) {
            let file = if part.ends_with('/') { file.as_str() } else { "" };
            let text = format!("{before}/data/jobs/{ID}{part}{file} and more");
            let raw = RawJson::parse(encode(&text, depth, slashes).into()).unwrap();
            let after = relative(raw, &folder());
            prop_assert!(!after.as_str().contains(ID), "{}", after.as_str());
        }

        #[test]
        fn without_the_job_every_byte_stays(text: String, depth in 0_usize..3) {
            let json = encode(&text, depth, true);
            let raw = RawJson::parse(json.clone().into()).unwrap();
            let after = relative(raw, &folder());
            prop_assert_eq!(after.as_str(), json);
        }
    }

    #[test]
    fn plain_text_keeps_neither_the_folder_nor_the_id() {
        let text = format!("File \"/data/jobs/{ID}/work/a.py\" in /data/jobs/{ID}: job {ID}\nend");
        let said = relative_text(&text, &folder());
        assert!(said.starts_with("File \"a.py\" in ..: job #"), "{said}");
        assert!(said.ends_with("\nend") && !said.contains(ID), "{said}");
    }
}
