//! One line of the log: its fields, and the two output formats.

use std::{
    cell::Cell,
    error::Error,
    fmt::{self, Write as _},
    ops::Range,
};

use jiff::Timestamp;
use tracing::{
    Event, Level, Metadata,
    field::{Field, Visit},
};

use super::CRITICAL;
use crate::telemetry::{AUDIT, audit::FILES};

/// Maximum bytes of one text: the output of children and the input of clients may be long.
const TEXT_LIMIT: usize = 8 * 1024;

/// Initial capacity: number of fields, and bytes of their values. An audit line with the fields of its span
/// has the most.
const MOST_FIELDS: usize = 24;
const USUAL_TEXT: usize = 512;
/// Initial bytes for a span: an id, a method and a route.
const USUAL_SPAN: usize = 128;

/// The format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// For machines.
    Json,
    /// For people.
    Text { colour: bool },
}

/// The fields of an event or a span.
#[derive(Debug, Default)]
pub struct Fields {
    /// All values, concatenated.
    texts: String,
    entries: Vec<Entry>,
    /// Whether the field [`FILES`] holds JSON, which is inserted into the line as is.
    audit: bool,
}

#[derive(Debug)]
struct Entry {
    name: &'static str,
    /// Range of the value in `texts`.
    value: Range<usize>,
    /// Whether the value is JSON already, for example a number.
    json: bool,
}

/// An event with the fields of its spans.
#[derive(Debug)]
pub struct Line {
    now: Timestamp,
    level: &'static str,
    target: &'static str,
    room: Room,
}

/// The reusable buffers of a line.
#[derive(Debug, Default)]
struct Room {
    fields: Fields,
    rendered: String,
}

impl Room {
    fn usual() -> Self {
        Self {
            fields: Fields::with_room(MOST_FIELDS, USUAL_TEXT),
            rendered: String::with_capacity(2 * USUAL_TEXT),
        }
    }

    /// Clears the buffers for the next line; `None` if they have grown too large to keep.
    fn cleared(mut self) -> Option<Self> {
        self.fields.texts.clear();
        self.fields.entries.clear();
        self.rendered.clear();
        let room = self.fields.texts.capacity();
        let room = room.max(self.rendered.capacity());
        (room <= TEXT_LIMIT).then_some(self)
    }
}

thread_local! {
    /// The buffers of this thread's last line.
    static ROOM: Cell<Option<Room>> = const { Cell::new(None) };
}

/// Fields of lines from the `log` crate: their target and their source location.
const OF_LOG: &str = "log.";
const LOG_TARGET: &str = "log.target";
const MESSAGE: &str = "message";
/// The kind of a line. In text it is omitted if it equals the target.
const EVENT: &str = "event";
/// The leading fields of each line; other fields cannot replace them.
const FIRST: [&str; 4] = ["timestamp", "level", MESSAGE, "target"];

impl Line {
    pub fn from_event(event: &Event<'_>) -> Self {
        let metadata = event.metadata();
        let mut room = ROOM.take().unwrap_or_else(Room::usual);
        room.fields.audit = metadata.target() == AUDIT;
        event.record(&mut room.fields);
        Self {
            now: Timestamp::now(),
            level: level(metadata),
            target: metadata.target(),
            room,
        }
    }

    /// Adds the fields of `outer` that the line does not have yet.
    pub fn add(&mut self, outer: &Fields) {
        for entry in &outer.entries {
            if self.room.fields.get(entry.name).is_none() {
                self.room.fields.copy(outer, entry);
            }
        }
    }

    /// The formatted line, including its line end.
    pub fn render(&mut self, format: Format) -> &str {
        let mut line = std::mem::take(&mut self.room.rendered);
        line.clear();
        match format {
            Format::Json => self.json(&mut line),
            Format::Text { colour } => self.text(&mut line, colour),
        }
        self.room.rendered = line;
        &self.room.rendered
    }

    fn message(&self) -> &str {
        self.room.fields.get(MESSAGE).unwrap_or_default()
    }

    fn target(&self) -> &str {
        self.room.fields.get(LOG_TARGET).unwrap_or(self.target)
    }

    /// The fields after the leading ones.
    fn rest(&self) -> impl Iterator<Item = (&Entry, &str)> {
        let rest = self.room.fields.entries.iter().filter(|entry| {
            let name = entry.name;
            name != MESSAGE && !name.starts_with(OF_LOG)
        });
        rest.map(|entry| (entry, self.room.fields.text(entry)))
    }

    fn json(&self, line: &mut String) {
        line.push_str("{\"timestamp\":\"");
        push_time(line, self.now);
        line.push_str("\",\"level\":\"");
        line.push_str(self.level);
        line.push_str("\",\"message\":");
        push_json(line, self.message());
        line.push_str(",\"target\":");
        push_json(line, self.target());
        for (entry, value) in self.rest() {
            if FIRST.contains(&entry.name) {
                continue;
            }
            // Field names are literals in the code, so they need no escaping.
            line.push_str(",\"");
            line.push_str(entry.name);
            line.push_str("\":");
            if entry.json {
                push_escaped(line, value);
            } else {
                push_json(line, value);
            }
        }
        line.push_str("}\n");
    }

    fn text(&self, line: &mut String, colour: bool) {
        let paint = |line: &mut String, code: &str, write: &dyn Fn(&mut String)| {
            if colour {
                let _ = write!(line, "\x1b[{code}m");
            }
            write(line);
            if colour {
                line.push_str("\x1b[0m");
            }
        };
        let code = match self.level {
            "CRITICAL" | "ERROR" => "31",
            "WARNING" => "33",
            "INFO" => "32",
            _ => "34",
        };
        paint(line, "2", &|line| push_time(line, self.now));
        line.push(' ');
        paint(line, code, &|line| {
            let _ = write!(line, "{:8}", self.level);
        });
        line.push(' ');
        paint(line, "2", &|line| push_escaped(line, self.target()));
        if self.message() != self.target() {
            line.push(' ');
            push_escaped(line, self.message());
        }
        for (entry, value) in self.rest() {
            if entry.name == EVENT && value == self.target() {
                continue;
            }
            line.push(' ');
            paint(line, "2", &|line| {
                push_escaped(line, entry.name);
                line.push('=');
            });
            if entry.json {
                push_escaped(line, value);
            } else if cannot_be_misread(value) {
                line.push_str(value);
            } else {
                push_json(line, value);
            }
        }
        line.push('\n');
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let room = std::mem::take(&mut self.room);
        // Fails on a thread that is ending, which needs no buffers.
        let _ = ROOM.try_with(|kept| kept.set(room.cleared()));
    }
}

thread_local! {
    /// The last second that this thread formatted, and its text: a second can have thousands of lines.
    static SECOND: Cell<(i64, [u8; SECOND_LENGTH])> = const { Cell::new((i64::MIN, [0; SECOND_LENGTH])) };
}
const SECOND_LENGTH: usize = "2026-07-28T12:00:00".len();

/// Writes the time in UTC, with milliseconds.
fn push_time(line: &mut String, now: Timestamp) {
    let whole = now.as_second();
    let (known, mut text) = SECOND.get();
    if known != whole {
        let written = format!("{now:.3}");
        let Some(second) = written.as_bytes().first_chunk() else {
            return line.push_str(&written);
        };
        text = *second;
        SECOND.set((whole, text));
    }
    line.push_str(str::from_utf8(&text).unwrap_or_default());
    let part = now.subsec_millisecond().unsigned_abs();
    line.push('.');
    for place in [100, 10, 1] {
        line.extend(char::from_digit(part / place % 10, 10));
    }
    line.push('Z');
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

/// The line that reports lost lines.
pub fn losses(count: u64, format: Format) -> String {
    let mut room = Room::default();
    let lost = "log lines were dropped: the log reader is too slow, or the disk is full";
    room.fields.push(MESSAGE, false, |text| text.push_str(lost));
    room.fields.push_number("lost_lines", count);
    let mut line = Line {
        now: Timestamp::now(),
        level: "ERROR",
        target: module_path!(),
        room,
    };
    line.render(format).to_owned()
}

/// Whether the value is unambiguous without quotes.
fn cannot_be_misread(text: &str) -> bool {
    let plain = |c: char| c.is_alphanumeric() || "._-:/@#+%".contains(c);
    !text.is_empty() && text.chars().all(plain)
}

/// Whether the text has no characters that control a terminal or are invisible, which is true for nearly all
/// texts. The loop has no early exit, so that the compiler can vectorize it.
fn printable(text: &str) -> bool {
    text.bytes()
        .fold(true, |all, byte| all & printable_byte(byte))
}

fn printable_byte(byte: u8) -> bool {
    (b' '..=b'~').contains(&byte)
}

/// Appends the text as a JSON string.
fn push_json(line: &mut String, text: &str) {
    let plain = |byte: u8| printable_byte(byte) && byte != b'"' && byte != b'\\';
    if text.bytes().fold(true, |all, byte| all & plain(byte)) {
        line.push('"');
        line.push_str(text);
        line.push('"');
    } else {
        let quoted = serde_json::to_string(text).expect("a text is JSON");
        push_escaped(line, &quoted);
    }
}

/// Writes characters that control a terminal or are invisible as `\uXXXX`: JSON does not escape all of them.
/// In JSON they occur only within strings, where the escape is equivalent.
fn push_escaped(line: &mut String, text: &str) {
    if printable(text) {
        return line.push_str(text);
    }
    for c in text.chars() {
        let hidden = matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if c.is_control() || hidden {
            let _ = write!(line, "\\u{:04x}", u32::from(c));
        } else {
            line.push(c);
        }
    }
}

impl Fields {
    /// Fields with the usual capacity of a span.
    pub fn of_span(count: usize) -> Self {
        Self::with_room(count, USUAL_SPAN)
    }

    fn with_room(count: usize, bytes: usize) -> Self {
        Self {
            texts: String::with_capacity(bytes),
            entries: Vec::with_capacity(count),
            audit: false,
        }
    }

    fn text(&self, entry: &Entry) -> &str {
        &self.texts[entry.value.clone()]
    }

    fn get(&self, name: &str) -> Option<&str> {
        let entry = self.entries.iter().find(|entry| entry.name == name)?;
        Some(self.text(entry))
    }

    /// Values that are recorded again replace the previous ones.
    pub fn record_again(&mut self, values: impl FnOnce(&mut Self)) {
        let mut new = Self {
            audit: self.audit,
            ..Self::default()
        };
        values(&mut new);
        for entry in &new.entries {
            self.entries.retain(|old| old.name != entry.name);
            self.copy(&new, entry);
        }
    }

    fn copy(&mut self, of: &Self, entry: &Entry) {
        self.push(entry.name, entry.json, |text| text.push_str(of.text(entry)));
    }

    fn push(&mut self, name: &'static str, json: bool, write: impl FnOnce(&mut String)) {
        let start = self.texts.len();
        write(&mut self.texts);
        if !json && self.texts.len() - start > TEXT_LIMIT {
            let end = self.texts.floor_char_boundary(start + TEXT_LIMIT);
            self.texts.truncate(end);
            self.texts.push('…');
        }
        let value = start..self.texts.len();
        self.entries.push(Entry { name, value, json });
    }

    fn push_number(&mut self, name: &'static str, value: impl fmt::Display) {
        self.push(name, true, |text| {
            let _ = write!(text, "{value}");
        });
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.push(field.name(), false, |text| {
            let _ = write!(text, "{value:?}");
        });
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        let json = self.audit && field.name() == FILES;
        self.push(field.name(), json, |text| text.push_str(value));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        self.push(field.name(), false, |text| {
            let _ = write!(text, "{value}");
            let mut source = value.source();
            while let Some(error) = source {
                let _ = write!(text, ": {error}");
                source = error.source();
            }
        });
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.push_number(field.name(), value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.push_number(field.name(), value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        // JSON has no NaN.
        let number = serde_json::Number::from_f64(value).map(|number| number.to_string());
        self.push_number(field.name(), number.as_deref().unwrap_or("null"));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.push_number(field.name(), value);
    }
}
