//! One line of the log: its fields, and the two ways to write it.

use std::{
    borrow::Cow,
    error::Error,
    fmt::{self, Write as _},
};

use jiff::Timestamp;
use serde_json::Value;
use tracing::{
    Event, Level, Metadata,
    field::{Field, Visit},
};

use super::CRITICAL;
use crate::telemetry::audit::{AUDIT, FILES};

/// Bytes of one text; what children and clients say may be long.
const TEXT_LIMIT: usize = 8 * 1024;

/// Fields of a line that take one allocation.
const MOST_FIELDS: usize = 16;

/// How lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// For machines.
    Json,
    /// For people.
    Text { colour: bool },
}

/// What an event or a span says.
#[derive(Debug, Default)]
pub struct Fields {
    values: Vec<(&'static str, Value)>,
    /// The field [`FILES`] holds JSON, which becomes part of the line.
    audit: bool,
}

/// An event with the fields of its spans.
#[derive(Debug)]
pub struct Line {
    timestamp: String,
    level: &'static str,
    target: Cow<'static, str>,
    message: String,
    fields: Vec<(&'static str, Value)>,
}

impl Line {
    pub fn of(event: &Event<'_>) -> Self {
        let metadata = event.metadata();
        let mut fields = Fields {
            // An audit line has the most: more than nearly all others have with their spans'.
            values: Vec::with_capacity(MOST_FIELDS),
            audit: metadata.target() == AUDIT,
        };
        event.record(&mut fields);
        let mut values = fields.values;
        let mut take = |wanted: &str| {
            let at = values.iter().position(|(name, _)| *name == wanted)?;
            Some(into_text(values.remove(at).1))
        };
        let message = take("message");
        // Lines of the `log` crate come with their own target, and where in the code they are.
        let target = take("log.target");
        values.retain(|(name, _)| !name.starts_with("log."));
        Self {
            timestamp: format!("{:.3}", Timestamp::now()),
            level: level(metadata),
            target: target.map_or(Cow::Borrowed(metadata.target()), Cow::Owned),
            message: message.unwrap_or_default(),
            fields: values,
        }
    }

    /// Adds what the line does not say already.
    pub fn add(&mut self, outer: &Fields) {
        for (name, value) in &outer.values {
            if !self.fields.iter().any(|(known, _)| known == name) {
                self.fields.push((name, value.clone()));
            }
        }
    }

    /// The line with its end.
    pub fn render(&self, format: Format) -> String {
        match format {
            Format::Json => self.json(),
            Format::Text { colour } => self.text(colour),
        }
    }

    fn json(&self) -> String {
        let own = [
            ("timestamp", self.timestamp.as_str()),
            ("level", self.level),
            ("message", &self.message),
            ("target", &self.target),
        ];
        let mut line = Vec::with_capacity(512);
        for (name, text) in own {
            member(&mut line, name, &text);
        }
        for (name, value) in &self.fields {
            if !own.iter().any(|(ours, _)| ours == name) {
                member(&mut line, name, value);
            }
        }
        line.extend_from_slice(b"}\n");
        let line = String::from_utf8(line).expect("JSON is UTF-8");
        let text = line.trim_ascii_end();
        if printable(text) {
            line
        } else {
            escaped(text) + "\n"
        }
    }

    fn text(&self, colour: bool) -> String {
        let paint = |code: &str, text: &str| {
            if colour {
                format!("\x1b[{code}m{text}\x1b[0m")
            } else {
                text.to_owned()
            }
        };
        let code = match self.level {
            "CRITICAL" | "ERROR" => "31",
            "WARNING" => "33",
            "INFO" => "32",
            _ => "34",
        };
        let mut line = format!(
            "{} {} {} {}",
            paint("2", &self.timestamp),
            paint(code, &format!("{:8}", self.level)),
            paint("2", &escaped(&self.target)),
            escaped(&self.message),
        );
        for (name, value) in &self.fields {
            let name = paint("2", &format!("{}=", escaped(name)));
            let _ = write!(line, " {name}{}", shown(value));
        }
        line + "\n"
    }
}

/// `{` or `,`, then `"name":value`.
fn member(line: &mut Vec<u8>, name: &str, value: &impl serde::Serialize) {
    line.push(if line.is_empty() { b'{' } else { b',' });
    serde_json::to_writer(&mut *line, name).expect("a text is JSON");
    line.push(b':');
    serde_json::to_writer(line, value).expect("texts and JSON values are JSON");
}

fn level(metadata: &Metadata<'_>) -> &'static str {
    match *metadata.level() {
        Level::ERROR if metadata.target() == CRITICAL => "CRITICAL",
        Level::ERROR => "ERROR",
        Level::WARN => "WARNING",
        Level::INFO => "INFO",
        _ => "DEBUG",
    }
}

/// The line that tells of lost ones.
pub fn losses(format: Format) -> Box<dyn Fn(u64) -> String + Send> {
    Box::new(move |count| {
        let line = Line {
            timestamp: format!("{:.3}", Timestamp::now()),
            level: "ERROR",
            target: module_path!().into(),
            message: "log lines were lost: whoever reads the log is too slow, or its disk is full"
                .to_owned(),
            fields: vec![("lost_lines", count.into())],
        };
        line.render(format)
    })
}

fn into_text(value: Value) -> String {
    match value {
        Value::String(text) => text,
        other => other.to_string(),
    }
}

/// As it is if that cannot be misread, else in quotes.
fn shown(value: &Value) -> String {
    let plain = |c: char| c.is_alphanumeric() || "._-:/@#+%".contains(c);
    match value {
        Value::String(text) if !text.is_empty() && text.chars().all(plain) => text.clone(),
        other => escaped(&other.to_string()),
    }
}

/// Nothing in it is obeyed or hidden, as in nearly all lines.
fn printable(text: &str) -> bool {
    text.bytes().all(|byte| (b' '..=b'~').contains(&byte))
}

/// What a terminal obeys or hides is written as `\uXXXX`: JSON leaves some of it as it is. In JSON
/// such characters stand only within strings, where this is their other spelling.
fn escaped(text: &str) -> String {
    if printable(text) {
        return text.to_owned();
    }
    let mut clean = String::with_capacity(text.len());
    for c in text.chars() {
        let hidden = matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if c.is_control() || hidden {
            let _ = write!(clean, "\\u{:04x}", u32::from(c));
        } else {
            clean.push(c);
        }
    }
    clean
}

fn bounded(mut text: String) -> String {
    if text.len() > TEXT_LIMIT {
        text.truncate(text.floor_char_boundary(TEXT_LIMIT));
        text.push('…');
    }
    text
}

impl Fields {
    /// What is recorded again takes the place of what was there.
    fn insert(&mut self, field: &Field, value: Value) {
        let before = self.values.iter_mut();
        match before.into_iter().find(|(name, _)| *name == field.name()) {
            Some((_, before)) => *before = value,
            None => self.values.push((field.name(), value)),
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.insert(field, bounded(format!("{value:?}")).into());
    }

    fn record_str(&mut self, field: &Field, text: &str) {
        let json = self.audit && field.name() == FILES;
        let value = json.then(|| serde_json::from_str(text).ok()).flatten();
        let value = value.unwrap_or_else(|| bounded(text.to_owned()).into());
        self.insert(field, value);
    }

    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        let mut text = value.to_string();
        let mut source = value.source();
        while let Some(error) = source {
            let _ = write!(text, ": {error}");
            source = error.source();
        }
        self.insert(field, bounded(text).into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.insert(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.insert(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.insert(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.insert(field, value.into());
    }
}
