//! The output of commands: results to stdout, errors to stderr, colours on a terminal only.

use std::{
    borrow::Cow,
    error::Error,
    fmt::{Display, Write as _},
    io,
    io::Write as _,
};

use anstyle::{AnsiColor, Style};
use clap::{Args, ValueEnum};
use jiff::Timestamp;
use serde::Serialize;

use super::Failure;
use crate::{
    config::Log,
    telemetry::{LogGuard, init_for_command},
};

/// The format of the output.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Text for people
    #[default]
    Text,
    /// JSON
    Json,
}

/// The format of a command's output.
#[derive(Debug, Clone, Copy, Args)]
pub struct OutputArgs {
    /// Output format
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    format: Format,
    /// Same as --format json
    #[arg(long, conflicts_with = "format")]
    json: bool,
}

impl OutputArgs {
    /// Prints `value` as JSON, or the text that `text` returns.
    pub fn print<T: Serialize>(
        self,
        value: &T,
        text: impl FnOnce(&T) -> String,
    ) -> Result<(), Failure> {
        if self.is_json() {
            print_json(value)
        } else {
            print(&text(value))
        }
    }

    /// Whether the output is JSON.
    pub fn is_json(self) -> bool {
        self.json || self.format == Format::Json
    }
}

/// Writes to stdout; colours are removed unless it is a terminal that supports them.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut out = anstream::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        // A reader that stops early (`| head`) is no error.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::failed(format!("cannot write the output: {error}")))
        }
        _ => Ok(()),
    }
}

/// Writes `value` to stdout as indented JSON.
pub fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value);
    let text = text
        .map_err(|error| Failure::failed(format!("cannot convert the output to JSON: {error}")))?;
    print(&format!("{text}\n"))
}

/// The innermost source of an error.
pub fn root_cause<'a>(mut error: &'a (dyn Error + 'static)) -> &'a (dyn Error + 'static) {
    while let Some(source) = error.source() {
        error = source;
    }
    error
}

// Text output: colours, columns, ages, and texts of servers without terminal control characters.

/// Success.
pub const GOOD: Style = AnsiColor::Green.on_default().bold();

/// A failure.
pub const BAD: Style = AnsiColor::Red.on_default().bold();

/// A warning.
pub const ODD: Style = AnsiColor::Yellow.on_default();

/// A name, a heading.
pub const BOLD: Style = Style::new().bold();

/// Details.
pub const DIM: Style = Style::new().dimmed();

/// Writes a line to stderr. Errors are ignored.
pub fn note(text: impl Display) {
    let _ = writeln!(anstream::stderr().lock(), "{text}");
}

/// Writes a warning to stderr.
pub fn warn(text: impl Display) {
    note(format_args!("{ODD}warning:{ODD:#} {text}"));
}

/// A server's text without terminal control characters. Line ends and tabs are kept.
pub fn plain(text: &str) -> Cow<'_, str> {
    let steers = |c: char| c.is_control() && c != '\n' && c != '\t';
    if text.contains(steers) {
        text.replace(steers, "\u{fffd}").into()
    } else {
        text.into()
    }
}

/// The first line of a server's text, at most `most` characters.
pub fn one_line(text: &str, most: usize) -> String {
    let text = plain(text.trim());
    let line = text.lines().next().unwrap_or_default().trim_end();
    let cut = line.chars().nth(most).is_some() || line.len() < text.len();
    let mut line: String = line.chars().take(most).collect();
    if cut {
        line.push('…');
    }
    line
}

/// Indents the lines after the first one.
pub fn indented(text: &str, by: usize) -> String {
    plain(text).replace('\n', &format!("\n{:by$}", ""))
}

/// Width of the terminal if stdout is one.
pub fn terminal_width() -> Option<usize> {
    let size = rustix::termios::tcgetwinsize(std::io::stdout()).ok()?;
    Some(usize::from(size.ws_col)).filter(|columns| *columns > 0)
}

/// Breaks lines longer than `width` between words; continuation lines are indented by two more columns.
pub fn wrapped(text: &str, width: Option<usize>) -> String {
    let Some(width) = width else {
        return text.to_owned();
    };
    let columns = |word: &str| {
        anstream::adapter::strip_str(word)
            .to_string()
            .chars()
            .count()
    };
    let mut all = String::new();
    for line in text.lines() {
        let indent = line.len() - line.trim_start().len();
        let mut used = 0;
        for (index, word) in line.split(' ').enumerate() {
            let needed = columns(word);
            if index > indent && used + 1 + needed > width && used > indent + 2 {
                let _ = write!(all, "\n{:1$}", "", indent + 2);
                used = indent + 2;
            } else if index > 0 {
                all.push(' ');
                used += 1;
            }
            all.push_str(word);
            used += needed;
        }
        all.push('\n');
    }
    all
}

/// Rows under headings, in columns; without rows only the headings.
pub fn table<const N: usize>(headings: [&str; N], rows: &[[String; N]]) -> String {
    let wide = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells
            .chain([headings[column].chars().count()])
            .max()
            .unwrap_or(0)
    };
    let widths: [usize; N] = std::array::from_fn(wide);
    let line = |cells: [&str; N]| {
        let padded = cells.iter().zip(widths);
        let padded = padded.map(|(cell, width)| format!("{cell:width$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let mut text = format!("{BOLD}{}{BOLD:#}\n", line(headings));
    for row in rows {
        let cells = std::array::from_fn(|column| row[column].as_str());
        let _ = writeln!(text, "{}", line(cells));
    }
    text
}

/// Seconds since `then`; 0 if it is in the future.
pub fn seconds_since(then: Timestamp, now: Timestamp) -> u64 {
    u64::try_from(now.duration_since(then).as_secs()).unwrap_or(0)
}

/// The time since `then`: `40 s`, `12 min`, `3 h`, `5 d`.
pub fn ago(then: Timestamp, now: Timestamp) -> String {
    match seconds_since(then, now) {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7200 => format!("{} min", seconds / 60),
        seconds @ 7200..172_800 => format!("{} h", seconds / 3600),
        seconds => format!("{} d", seconds / 86_400),
    }
}

/// The time in UTC, to the second.
pub fn time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%SZ").to_string()
}

/// A count with its noun: `3 files`, `1 file`.
pub fn counted(count: usize, thing: &str) -> String {
    let many = if count == 1 { "" } else { "s" };
    format!("{count} {thing}{many}")
}

// The log of a command: on stderr, because stdout is its output.

/// Starts the log; hold the guard until the command is done.
pub fn start(log: &Log) -> Result<LogGuard, Failure> {
    init_for_command(log).map_err(|error| Failure::usage(error.to_string()))
}

#[cfg(test)]
mod text_tests {
    use super::*;

    #[test]
    fn output_of_servers_cannot_control_a_terminal() {
        assert_eq!(
            plain("a\tb\n\u{1b}[2J売上\r"),
            "a\tb\n\u{fffd}[2J売上\u{fffd}"
        );
        assert!(matches!(plain("nothing odd"), Cow::Borrowed(_)));
    }

    #[test]
    fn one_line_shows_that_there_is_more() {
        assert_eq!(one_line("  short\n", 9), "short");
        assert_eq!(one_line("first\nsecond", 9), "first…");
        assert_eq!(one_line("売上報告書です", 3), "売上報…");
        assert_eq!(one_line("", 3), "");
    }

    #[test]
    fn long_lines_break_between_words() {
        let text = format!("  {BOLD}one{BOLD:#} two three four\nshort\nlonger-than-the-line\n");
        let wrapped = wrapped(&text, Some(12));
        let shown = anstream::adapter::strip_str(&wrapped).to_string();
        assert_eq!(
            shown,
            "  one two\n    three\n    four\nshort\nlonger-than-the-line\n"
        );
        assert_eq!(super::wrapped(&text, None), text);
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let row = |a: &str, b: &str| [a.to_owned(), b.to_owned()];
        let text = table(["A", "B"], &[row("long", "x"), row("y", "")]);
        let text = anstream::adapter::strip_str(&text).to_string();
        assert_eq!(text, "A     B\nlong  x\ny\n");
    }

    #[test]
    fn ages_are_shown_in_the_unit_that_fits() {
        let then = Timestamp::UNIX_EPOCH;
        let at = |seconds| then + jiff::SignedDuration::from_secs(seconds);
        let shown = [0, 119, 120, 7199, 7200, 172_800].map(|seconds| ago(then, at(seconds)));
        assert_eq!(shown, ["0 s", "119 s", "2 min", "119 min", "2 h", "2 d"]);
        assert_eq!(ago(at(5), then), "0 s");
    }
}
