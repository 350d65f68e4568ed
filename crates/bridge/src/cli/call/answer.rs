//! The result of a call, for people and machines.

use std::{fmt::Write as _, path::PathBuf};

use bridge_openapi::result_body;
use bridge_protocol::RawJson;
use bridge_state::Artifact;
use indicatif::HumanBytes;
use serde::Serialize;
use serde_json::Value;

use crate::{
    app::App,
    call::{Answer, Link},
    cli::{
        Failure,
        output::{Format, print, print_json},
        text::{BOLD, DIM, ODD, indented, plain},
    },
    config::ServerSpec,
};

#[derive(Serialize)]
struct Printed {
    /// As an HTTP caller gets it; none if the tool failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<RawJson>,
    files: Vec<File>,
    #[serde(skip_serializing_if = "Option::is_none")]
    archive: Option<Link>,
    #[serde(skip_serializing_if = "Option::is_none")]
    notice: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    post_instruction: Option<String>,
}

#[derive(Serialize)]
struct File {
    #[serde(flatten)]
    link: Link,
    /// As long as its workspace exists.
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<PathBuf>,
}

/// Prints it; a failed tool is a failure with the tool's own message.
pub fn print_answer(
    answer: &Answer,
    spec: &ServerSpec,
    app: &App,
    format: Format,
) -> Result<(), Failure> {
    let (result, failure) = match result_body(&answer.outcome) {
        Ok(result) => (Some(result), None),
        Err(failure) => (None, Some(failure)),
    };
    let files = answer.files.files.iter().map(|file| File {
        link: Link::of(file, &app.settings),
        path: place(file, app),
    });
    let files: Vec<File> = files.collect();
    let archive = answer.files.archive.as_ref();
    let instruction = spec.post_instruction.clone();
    let printed = Printed {
        result,
        archive: archive.map(|file| Link::of(file, &app.settings)),
        notice: answer.notice(app.settings.lang),
        post_instruction: instruction.filter(|_| !files.is_empty()),
        files,
    };
    match format {
        Format::Json => print_json(&printed)?,
        Format::Text => print(&printed.text())?,
    }
    failure.map_or(Ok(()), |failure| Err(Failure::failed(failure)))
}

fn place(file: &Artifact, app: &App) -> Option<PathBuf> {
    let chat = app.store.chat(file.job).ok().flatten()?;
    let path = chat.job.work().join(&file.path);
    path.exists().then_some(path)
}

impl Printed {
    fn text(&self) -> String {
        let mut text = String::new();
        if let Some(result) = &self.result {
            let _ = writeln!(text, "{}", readable(result));
        }
        for file in &self.files {
            let size = HumanBytes(file.link.size);
            let name = plain(&file.link.name);
            let _ = writeln!(text, "{BOLD}{name}{BOLD:#} {DIM}({size}){DIM:#}");
            let _ = writeln!(text, "  link: {}", file.link.url);
            if let Some(path) = &file.path {
                let path = path.to_string_lossy();
                let _ = writeln!(text, "  file: {}", plain(&path));
            }
        }
        if let Some(archive) = &self.archive {
            let _ = writeln!(text, "{BOLD}all files{BOLD:#}\n  link: {}", archive.url);
        }
        if let Some(notice) = &self.notice {
            let _ = writeln!(text, "{ODD}note:{ODD:#} {}", indented(notice, 2));
        }
        text
    }
}

/// A text as it is, other JSON indented; what cannot be read without loss as it came.
fn readable(result: &RawJson) -> String {
    let text = match result.read::<Value>() {
        Ok(Value::String(text)) => text,
        Ok(value) => format!("{value:#}"),
        Err(_) => result.as_str().to_owned(),
    };
    plain(text.trim_end()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(json: &str) -> String {
        readable(&RawJson::parse(json.to_owned().into()).unwrap())
    }

    #[test]
    fn texts_are_shown_bare_and_json_indented() {
        assert_eq!(shown(r#""two\nlines\n""#), "two\nlines");
        assert_eq!(
            shown(r#"{"b":[1],"a":2}"#),
            "{\n  \"b\": [\n    1\n  ],\n  \"a\": 2\n}"
        );
        assert_eq!(shown("1e400"), "1e400");
        assert_eq!(shown(r#""\u001b[31mred""#), "\u{fffd}[31mred");
    }
}
