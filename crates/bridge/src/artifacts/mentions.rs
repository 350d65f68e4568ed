//! Finds the files that a call names: in its arguments, and in its answer, in which the folder's own
//! path is already relative ([`bridge_process::relative()`]).
//!
//! This module does not read the disk. Files that the call has written are searched for in its texts
//! ([`Mentions::names`]). Other paths are judged by their text alone ([`Mentions::outside`]), so that an
//! answer does not reveal whether a file exists.

use std::borrow::Cow;

use bridge_process::percent_encoded;
use bridge_protocol::RawJson;
use percent_encoding::percent_decode_str;
use serde_json::Value;

use super::{Area, Place};

/// Maximum length, in bytes, of texts that are searched for paths outside the folder; longer texts are
/// documents.
const PROSE: usize = 4096;
/// Maximum length, in bytes, of a path in a notice.
const SHOWN: usize = 200;

/// Words in the names of tools that write files.
const WRITING: &str = "append copy create download draw dump edit export generate insert make move output \
                       print put record render save screenshot store update write";
/// Words in answers that report a written file.
const WRITTEN: &str = "copied created downloaded dumped exported generated moved output printed recorded \
                       rendered saved stored saving writing written wrote \
                       保存 出力 作成 生成 書き エクスポート ダウンロード";

/// The texts of a call and its answer.
pub struct Mentions {
    asked: Vec<String>,
    answered: Vec<String>,
    /// Whether the tool's name contains a word of [`WRITING`].
    writes: bool,
}

impl Mentions {
    /// The texts of a call of `tool`. In both parts the folder's path must already be relative.
    pub fn in_call(tool: &str, arguments: Option<&RawJson>, result: &RawJson) -> Self {
        let (mut asked, mut answered) = (Vec::new(), Vec::new());
        if let Some(arguments) = arguments {
            collect(arguments.approximate(), false, &mut asked);
        }
        collect(result.approximate(), true, &mut answered);
        Self {
            asked,
            answered,
            writes: has_word(tool, WRITING),
        }
    }

    /// Whether a file is named: by a path from the working directory, by `~`, by `$TMPDIR`, as part of a
    /// `file:` URI, or by a folder that contains it. `alone`: also by its file name alone, because no
    /// other file has that name.
    pub fn names(&self, place: &Place, alone: bool) -> bool {
        let path = place.path.display();
        let mut forms = spellings(place.area, &path);
        for (at, _) in path.match_indices('/') {
            forms.extend(spellings(place.area, &path[..at]));
        }
        let name = place.path.name();
        let hidden_home =
            place.area == Area::Home && path.split('/').any(|part| part.starts_with('.'));
        if alone && !hidden_home && name.trim_start_matches('.').contains('.') {
            forms.push(name.into_owned());
        }
        // The forms in a URI.
        let escaped = forms.iter().map(|form| percent_encoded(form).into_owned());
        forms.extend(escaped.collect::<Vec<_>>());
        let mut texts = self.asked.iter().chain(&self.answered);
        texts.any(|text| forms.iter().any(|form| holds(text, form)))
    }

    /// Paths outside the folder, as written in the call, to which the call reports a write. Does not
    /// depend on what exists there.
    pub fn outside(&self) -> Vec<String> {
        let saved = self.writes || self.answered.iter().any(|text| says_written(text));
        let asked = self.asked.iter().map(|text| text.trim());
        let asked: Vec<&str> = asked.filter(|text| is_outside(text)).collect();
        let mut found: Vec<&str> = Vec::new();
        if saved {
            found.extend(&asked);
        }
        for text in self.answered.iter().filter(|text| text.len() <= PROSE) {
            let text = text.trim();
            if is_whole(text) && is_outside(text) {
                if saved || asked.contains(&text) {
                    found.push(text);
                }
                continue;
            }
            for line in text.lines() {
                for (at, path) in paths(line) {
                    if asked.contains(&path) || says_written(&line[..at]) {
                        found.push(path);
                    }
                }
            }
        }
        let mut shown: Vec<String> = Vec::new();
        for path in found {
            let path = path.replace(char::is_control, "_");
            let path = path[..path.floor_char_boundary(SHOWN)].to_owned();
            if !shown.contains(&path) {
                shown.push(path);
            }
        }
        shown
    }
}

/// All texts at any depth, including those of JSON within texts.
fn collect(value: Value, by_answer: bool, texts: &mut Vec<String>) {
    match value {
        Value::String(text) => {
            if text.trim_start().starts_with(['{', '['])
                && let Ok(inner) = serde_json::from_str::<Value>(&text)
            {
                return collect(inner, by_answer, texts);
            }
            texts.push(text);
        }
        Value::Array(items) => {
            for item in items {
                collect(item, by_answer, texts);
            }
        }
        Value::Object(members) => {
            for (name, member) in members {
                // Base64 contains slashes, but no paths.
                if !(by_answer && matches!(&*name, "data" | "blob") && member.is_string()) {
                    collect(member, by_answer, texts);
                }
            }
        }
        _ => {}
    }
}

fn spellings(area: Area, path: &str) -> Vec<String> {
    let starts: &[&str] = match area {
        Area::Work => &["", "./"],
        Area::Home => &["../home/", "~/", "$HOME/", "${HOME}/"],
        Area::Tmp => &["../tmp/", "$TMPDIR/", "${TMPDIR}/"],
    };
    let spelled = starts.iter().map(|start| format!("{start}{path}"));
    spelled.collect()
}

/// Whether a text contains this path as a whole.
fn holds(text: &str, path: &str) -> bool {
    memchr::memmem::find_iter(text.as_bytes(), path).any(|at| {
        let before = text[..at].bytes().next_back();
        let scheme = text[..at].strip_suffix("file:").is_some();
        let begins = scheme
            || before
                .is_none_or(|byte| !byte.is_ascii_alphanumeric() && !b"/\\.-_~%$}".contains(&byte));
        begins && !goes_on(&text[at + path.len()..])
    })
}

/// Whether `rest` continues a name.
fn goes_on(rest: &str) -> bool {
    let mut bytes = rest.bytes();
    let first = bytes.next();
    let second = bytes
        .next()
        .is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'.');
    match first {
        Some(b'.' | b'~' | b'+' | b'@' | b'%' | b'/' | b'\\') => second,
        Some(byte) => byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'),
        None => false,
    }
}

/// Whether a text is a path and nothing else: names may contain spaces, and sentences may begin with a
/// path.
fn is_whole(text: &str) -> bool {
    let extension = text.rsplit_once('.').map_or("", |(_, end)| end);
    let extended = (1..=10).contains(&extension.len())
        && extension.bytes().all(|byte| byte.is_ascii_alphanumeric());
    !text.contains(char::is_whitespace) || extended && !text.contains(": ") && !text.contains('\n')
}

fn says_written(text: &str) -> bool {
    has_word(text, WRITTEN)
}

fn has_word(text: &str, words: &str) -> bool {
    let text = text.to_lowercase();
    words.split_whitespace().any(|word| text.contains(word))
}

/// The paths in a line that may lie outside, and their offsets.
fn paths(line: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    let (mut before, mut end) = (None, 0);
    for (at, letter) in line.char_indices() {
        let last = before.replace(letter);
        let begins = last.is_none_or(|last| {
            !last.is_ascii() || last.is_ascii_whitespace() || "\"'`([{<=:>,;".contains(last)
        });
        if at < end || !begins || !begins_path(&line[at..]) {
            continue;
        }
        let rest = &line[at..];
        let length = match last {
            Some(quote @ ('"' | '\'' | '`')) => rest.find(quote),
            _ => None,
        };
        let length = length.or_else(|| {
            rest.find(|c: char| c.is_whitespace() || "\"'`<>|*?、。，「」（）".contains(c))
        });
        let path = &rest[..length.unwrap_or(rest.len())];
        let path = path.trim_end_matches(['.', ',', ';', ':', '!', ')', ']', '}']);
        end = at + path.len();
        if is_outside(path) {
            found.push((at, path));
        }
    }
    found
}

fn begins_path(text: &str) -> bool {
    let drive = text.as_bytes();
    let drive = matches!(drive, [letter, b':', b'\\' | b'/', next, ..]
        if letter.is_ascii_alphabetic() && *next != b'/');
    drive
        || text.starts_with('/') && !text.starts_with("//")
        || text.starts_with('~')
        || text.starts_with("../")
        || text.starts_with("file:/")
}

/// Whether a path leads out of the chat's folder, by its text alone.
fn is_outside(text: &str) -> bool {
    if text.len() > PROSE || text.contains('\n') || !begins_path(text) {
        return false;
    }
    let path: Cow<'_, str> = match text.strip_prefix("file:") {
        Some(uri) => {
            let uri = uri.strip_prefix("//").unwrap_or(uri);
            let path = uri.find('/').map_or(uri, |slash| &uri[slash..]);
            percent_decode_str(path).decode_utf8_lossy()
        }
        None => text.into(),
    };
    if let Some(absolute) = path.strip_prefix('/') {
        // A single name is a route or a folder, and devices are not files.
        let mut parts = absolute.split('/').filter(|part| !part.is_empty());
        let first = parts.next().unwrap_or_default();
        return parts.next().is_some() && !matches!(first, "dev" | "proc" | "sys");
    }
    if let Some(home) = path.strip_prefix('~') {
        // `~` alone is the chat's own home; `~name` is the home of another user.
        let others = home.find('/').is_some_and(|slash| slash > 0);
        return others || home.starts_with('/') && leaves("../home", home);
    }
    if path.starts_with("../") {
        return leaves("", &path);
    }
    true
}

/// Whether a relative path, starting at a folder given relative to `work/`, ends outside `work/`,
/// `home/` and `tmp/`.
fn leaves(from: &str, path: &str) -> bool {
    let mut stack = vec!["work"];
    for part in from.split('/').chain(path.split('/')) {
        match part {
            "" | "." => {}
            ".." => {
                if stack.pop().is_none() {
                    return true;
                }
            }
            name => stack.push(name),
        }
    }
    !matches!(stack.first(), Some(&"work" | &"home" | &"tmp"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::artifacts::RelativePath;

    fn mentions(tool: &str, arguments: &Value, text: &str) -> Mentions {
        let result = json!({"content": [{"type": "text", "text": text}]});
        Mentions::in_call(
            tool,
            Some(&RawJson::from_json(arguments)),
            &RawJson::from_json(&result),
        )
    }

    fn place(area: Area, path: &str) -> Place {
        Place {
            area,
            path: RelativePath::parse(path).unwrap(),
        }
    }

    #[test]
    fn a_file_is_named_by_each_spelling_and_by_its_folder() {
        for (area, path, text) in [
            (Area::Tmp, "chart.png", "Saved to ../tmp/chart.png."),
            (Area::Tmp, "chart.png", "保存先は../tmp/chart.pngです"),
            (Area::Tmp, "a b/c.png", "see file:../tmp/a%20b/c.png"),
            (
                Area::Tmp,
                "chart.png",
                r#"{"saved": {"to": "../tmp/chart.png"}}"#,
            ),
            (Area::Tmp, "out/a.csv", "Exported to ../tmp/out/"),
            (Area::Tmp, "chart.png", "done: $TMPDIR/chart.png"),
            (Area::Home, "Documents/a.txt", "in ~/Documents/a.txt"),
            (Area::Home, "Documents/a.txt", "in ../home/Documents/a.txt"),
            (
                Area::Work,
                ".playwright-mcp/p.png",
                "![](./.playwright-mcp/p.png)",
            ),
            (
                Area::Work,
                ".playwright-mcp/p.png",
                "\".playwright-mcp/p.png\"",
            ),
            (Area::Work, ".env", "wrote .env"),
            (Area::Work, "..foo.txt", "wrote ..foo.txt"),
        ] {
            let said = mentions("poke", &json!({}), text);
            assert!(said.names(&place(area, path), false), "{text}");
        }
        let said = mentions("poke", &json!({"where": ["~/x.txt"]}), "ok");
        assert!(said.names(&place(Area::Home, "x.txt"), false));
    }

    #[test]
    fn what_is_like_it_does_not_name_it() {
        for text in [
            "../tmp/chart.png.bak",
            "../tmp/chart.pngx",
            "x../tmp/chart.png",
            "/other/tmp/chart.png",
            "../tmp/",
            "chart.png",
        ] {
            let said = mentions("poke", &json!({}), text);
            assert!(!said.names(&place(Area::Tmp, "chart.png"), false), "{text}");
        }
    }

    #[test]
    fn a_name_alone_counts_where_it_is_the_only_one_and_has_an_extension() {
        let said = mentions(
            "poke",
            &json!({"name": "chart.png"}),
            "made out and token.json",
        );
        assert!(said.names(&place(Area::Tmp, "deep/chart.png"), true));
        assert!(!said.names(&place(Area::Tmp, "deep/chart.png"), false));
        assert!(!said.names(&place(Area::Tmp, "deep/out"), true));
        assert!(!said.names(&place(Area::Home, ".config/token.json"), true));
    }

    #[test]
    fn written_paths_outside_are_told_by_their_letters_alone() {
        for (text, path) in [
            ("wrote /tmp/report.docx", "/tmp/report.docx"),
            ("Saved to '/mnt/data/a b.xlsx'.", "/mnt/data/a b.xlsx"),
            ("Saved to ../a.txt", "../a.txt"),
            (
                "saved as file:///srv/x/a%20b.txt",
                "file:///srv/x/a%20b.txt",
            ),
            ("Created C:\\Users\\a\\b.docx", "C:\\Users\\a\\b.docx"),
            ("saved to ~root/x", "~root/x"),
            ("saved to ../../other/work/.env", "../../other/work/.env"),
            ("saved to ../metadata.json", "../metadata.json"),
            ("saved to ../tmp/../lease", "../tmp/../lease"),
            ("/etc/passwd を保存しました: /etc/shadow/x", "/etc/shadow/x"),
        ] {
            assert_eq!(
                mentions("poke", &json!({}), text).outside(),
                [path],
                "{text}"
            );
        }
        for text in [
            "see /etc/passwd",
            "saved to ../tmp/x.png",
            "saved to ~/x.png",
            "saved to report.docx",
            "saved to https://example.com/a/b.png and/or 1/2",
            "written to /dev/null",
            "created route /health",
        ] {
            assert_eq!(
                mentions("poke", &json!({}), text).outside(),
                [""; 0],
                "{text}"
            );
        }
    }

    #[test]
    fn an_argument_counts_where_the_tool_writes_or_the_answer_repeats_it() {
        let outside = json!({"path": "/data/in.csv"});
        assert_eq!(mentions("read_file", &outside, "a,b").outside(), [""; 0]);
        assert_eq!(
            mentions("write_file", &outside, "ok").outside(),
            ["/data/in.csv"]
        );
        let repeated = mentions("poke", &outside, "it is in /data/in.csv now");
        assert_eq!(repeated.outside(), ["/data/in.csv"]);
    }
}
