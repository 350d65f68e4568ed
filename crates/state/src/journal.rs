//! `journal.jsonl`: one line for each call of a workspace, for the operator.

use std::{
    borrow::Cow,
    fs,
    io::{self, Write},
    path::Path,
};

use bridge_model::{Job, open_append};
use bridge_protocol::RawJson;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Store, StoreError, files, lock::FileLock};

/// How much of a call is kept (`MCPO_JOURNAL`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JournalMode {
    /// Requests and responses too, each cut at 64 KiB.
    #[default]
    Full,
    /// Without requests and responses.
    Metadata,
    /// Nothing.
    Off,
}

/// One call.
#[derive(Debug, Clone)]
pub struct JournalEntry<'a> {
    /// When it arrived.
    pub at: Timestamp,
    /// From arrival to answer.
    pub duration: std::time::Duration,
    /// The request id of the logs.
    pub request_id: Option<&'a str>,
    /// The server's name.
    pub server: &'a str,
    /// The tool's name.
    pub tool: &'a str,
    /// `ok`, `tool_error`, `timeout`, … as in the audit log.
    pub outcome: &'a str,
    /// Why, if it failed.
    pub error: Option<&'a str>,
    /// The arguments.
    pub request: Option<&'a RawJson>,
    /// The result.
    pub response: Option<&'a RawJson>,
    /// Files that it made or changed, by display name.
    pub files: &'a [String],
}

const BODY_LIMIT: usize = 64 * 1024;
const FILE_LIMIT: u64 = 16 * 1024 * 1024;

/// The line on disk.
#[derive(Serialize)]
struct Line<'a> {
    at: Timestamp,
    duration_ms: u128,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<&'a str>,
    server: &'a str,
    tool: &'a str,
    outcome: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request: Option<Body<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response: Option<Body<'a>>,
    files: &'a [String],
}

/// A body as it was, or its beginning with the marker `"cut": true`.
#[derive(Serialize)]
#[serde(untagged)]
enum Body<'a> {
    Whole(&'a RawJson),
    Cut {
        cut: bool,
        bytes: usize,
        head: Cow<'a, str>,
    },
}

impl<'a> Body<'a> {
    fn of(body: &'a RawJson) -> Self {
        let bytes = body.as_bytes();
        if bytes.len() <= BODY_LIMIT {
            return Self::Whole(body);
        }
        Self::Cut {
            cut: true,
            bytes: bytes.len(),
            head: String::from_utf8_lossy(&bytes[..BODY_LIMIT]),
        }
    }
}

impl JournalEntry<'_> {
    /// The call as a line; nothing where none is kept.
    pub fn line(&self, mode: JournalMode) -> Vec<u8> {
        if mode == JournalMode::Off {
            return Vec::new();
        }
        let bodies = mode == JournalMode::Full;
        let line = Line {
            at: self.at,
            duration_ms: self.duration.as_millis(),
            request_id: self.request_id,
            server: self.server,
            tool: self.tool,
            outcome: self.outcome,
            error: self.error,
            request: self.request.filter(|_| bodies).map(Body::of),
            response: self.response.filter(|_| bodies).map(Body::of),
            files: self.files,
        };
        let mut line = serde_json::to_vec(&line).unwrap_or_default();
        // A body may be spread over lines. Within JSON strings there are no raw line ends.
        for byte in &mut line {
            if matches!(byte, b'\n' | b'\r') {
                *byte = b' ';
            }
        }
        line.push(b'\n');
        line
    }
}

impl Store {
    /// Appends lines of [`JournalEntry::line`]. The file is rotated once (`journal.1.jsonl`) at 16 MiB.
    pub fn append_to_journal(&self, job: &Job, lines: &[u8]) -> Result<(), StoreError> {
        if lines.is_empty() {
            return Ok(());
        }
        let path = job.folder().join("journal.jsonl");
        let _lock = FileLock::job(job)?;
        self.refuse_others(job)?;
        append(&path, lines, FILE_LIMIT).map_err(files::at("append to", &path))
    }
}

fn append(path: &Path, line: &[u8], limit: u64) -> io::Result<()> {
    let mut file = open_append(path)?;
    let size = file.metadata()?.len();
    if size > 0 && size + line.len() as u64 > limit {
        fs::rename(path, path.with_extension("1.jsonl"))?;
        file = open_append(path)?;
    }
    file.write_all(line)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::testing::{Folder, new_job};

    fn entry<'a>(request: &'a RawJson, response: &'a RawJson) -> JournalEntry<'a> {
        JournalEntry {
            at: Timestamp::UNIX_EPOCH,
            duration: std::time::Duration::from_millis(12),
            request_id: None,
            server: "excel",
            tool: "write",
            outcome: "ok",
            error: None,
            request: Some(request),
            response: Some(response),
            files: &[],
        }
    }

    fn raw(text: &str) -> RawJson {
        RawJson::parse(text.to_owned().into()).unwrap()
    }

    #[test]
    fn one_line_for_each_call_whatever_the_bodies_look_like() {
        let folder = Folder::new();
        let store = folder.open();
        let job = store.create_job(&new_job(), folder.now).unwrap();
        let (pretty, long) = (
            raw("{\n \"a\": 1.0\r\n}"),
            raw(&format!("\"{}\"", "売".repeat(50_000))),
        );
        for mode in [JournalMode::Full, JournalMode::Metadata, JournalMode::Off] {
            let line = entry(&pretty, &long).line(mode);
            store.append_to_journal(&job, &line).unwrap();
        }
        let text = fs::read_to_string(job.folder().join("journal.jsonl")).unwrap();
        let lines: Vec<Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(lines.len(), 2);
        assert!(text.contains("1.0"));
        assert_eq!(lines[0]["response"]["cut"], true);
        assert_eq!(lines[0]["response"]["bytes"], long.as_bytes().len());
        assert!(text.len() < 2 * BODY_LIMIT);
        assert!(lines[1].get("request").is_none());
    }

    #[test]
    fn rotates_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal.jsonl");
        for line in ["one\n", "two\n", "three\n"] {
            append(&path, line.as_bytes(), 8).unwrap();
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), "three\n");
        let old = fs::read_to_string(dir.path().join("journal.1.jsonl")).unwrap();
        assert_eq!(old, "one\ntwo\n");
    }
}
