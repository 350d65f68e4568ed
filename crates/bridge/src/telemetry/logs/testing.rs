//! Captures the log of one test in memory.

use std::{
    io::{self, Write},
    sync::Arc,
};

use parking_lot::Mutex;
use serde_json::Value;
use tracing::Dispatch;

use super::{LogGuard, build, line::Format};
use crate::config::LogLevel;

/// Use `dispatch` as the dispatcher, then read the captured log.
pub struct Captured {
    pub dispatch: Dispatch,
    text: Shared,
    guard: LogGuard,
}

#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Vec<u8>>>);

impl Write for Shared {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(text);
        Ok(text.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Captured {
    pub fn json(level: LogLevel) -> Self {
        Self::new(level, Format::Json)
    }

    pub fn text(level: LogLevel) -> Self {
        Self::new(level, Format::Text { colour: false })
    }

    fn new(level: LogLevel, format: Format) -> Self {
        let text = Shared::default();
        let (subscriber, guard) = build(level, vec![(Box::new(text.clone()), format)]).unwrap();
        Self {
            dispatch: Dispatch::new(subscriber),
            text,
            guard,
        }
    }

    /// The captured log as text.
    pub fn into_text(self) -> String {
        drop(self.guard);
        String::from_utf8(std::mem::take(&mut *self.text.0.lock())).unwrap()
    }

    /// The captured lines as JSON.
    pub fn into_lines(self) -> Vec<Value> {
        let text = self.into_text();
        let lines = text.lines();
        lines
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }
}

/// The lines that `run` logs.
pub fn lines_of(level: LogLevel, run: impl FnOnce()) -> Vec<Value> {
    let log = Captured::json(level);
    tracing::dispatcher::with_default(&log.dispatch, run);
    log.into_lines()
}

/// The text that `run` logs.
pub fn text_of(level: LogLevel, run: impl FnOnce()) -> String {
    let log = Captured::text(level);
    tracing::dispatcher::with_default(&log.dispatch, run);
    log.into_text()
}
