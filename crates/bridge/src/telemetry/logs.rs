//! The log: one JSON object per line, or text for people on a terminal.
//!
//! Lines are written by threads behind bounded queues ([`Queue`]): a reader of stdout that stops reading
//! blocks no request. Callers must not log arguments or secrets: this module does not filter them.

mod line;
#[cfg(test)]
pub(super) mod testing;

use std::{
    fs::{File, OpenOptions},
    io,
    io::{IsTerminal as _, Write},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::Duration,
};

use line::{Fields, Format, Line};
use parking_lot::{Condvar, Mutex};
use tracing::{Event, Subscriber, level_filters::LevelFilter, span};
use tracing_subscriber::{
    filter::Targets,
    layer::{Context, Layer, SubscriberExt as _},
    registry::{LookupSpan, Registry},
    util::SubscriberInitExt as _,
};

use super::AUDIT;
use crate::config::{Log, LogFormat, LogLevel};

/// The target of errors that stop the bridge: they are logged as CRITICAL at every level.
/// `tracing::error!(target: CRITICAL, …)`.
pub const CRITICAL: &str = "critical";

/// Why the log could not be started.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The directory of `MCPO_LOG_FILE` does not exist.
    #[error(
        "MCPO_LOG_FILE: the directory of {} does not exist: create it or set another file",
        .0.display()
    )]
    NoFolder(PathBuf),
    /// `MCPO_LOG_FILE` cannot be written.
    #[error(
        "MCPO_LOG_FILE: cannot open {} for appending ({error}): fix its permissions or set another \
         file",
        path.display()
    )]
    Open {
        /// The file.
        path: PathBuf,
        /// The system's error.
        error: io::Error,
    },
    /// The writer thread cannot be started.
    #[error("cannot start the thread that writes the log: {0}")]
    Thread(io::Error),
    /// The log was started already in this process.
    #[error("logging was initialized twice in one process")]
    AlreadyStarted,
}

/// Keeps the log running. Dropping it writes the queued lines, for 2 s at most; drop it last.
#[derive(Debug)]
#[must_use = "the log's last lines are written when this is dropped"]
pub struct LogGuard {
    _drains: Vec<Drain>,
}

/// Starts the log of the service: to stdout, and to the file if one is set.
pub fn init(log: &Log) -> Result<LogGuard, LogError> {
    let terminal = io::stdout().is_terminal();
    start(log, log.level, Box::new(io::stdout()), terminal)
}

/// Starts the log of a command: to stderr, because stdout is its output. INFO is meant for the service, so a
/// command logs only warnings unless DEBUG is set. Audit lines are always written.
pub fn init_for_command(log: &Log) -> Result<LogGuard, LogError> {
    let level = match log.level {
        LogLevel::Info => LogLevel::Warning,
        other => other,
    };
    let terminal = io::stderr().is_terminal();
    start(log, level, Box::new(io::stderr()), terminal)
}

fn start(
    log: &Log,
    level: LogLevel,
    out: Box<dyn Write + Send>,
    terminal: bool,
) -> Result<LogGuard, LogError> {
    let mut outputs: Vec<Output> = vec![(out, format(log.format, terminal))];
    if let Some(path) = &log.file {
        outputs.push((Box::new(open(path)?), Format::Json));
    }
    let (subscriber, guard) = build(level, outputs)?;
    let started = subscriber.try_init();
    started.map_err(|_| LogError::AlreadyStarted)?;
    Ok(guard)
}

type Output = (Box<dyn Write + Send>, Format);

fn build(
    level: LogLevel,
    outputs: Vec<Output>,
) -> Result<(impl Subscriber + Send + Sync, LogGuard), LogError> {
    let (mut sinks, mut drains) = (Vec::new(), Vec::new());
    for (out, format) in outputs {
        let (queue, drain) = Queue::start(out, format).map_err(LogError::Thread)?;
        sinks.push(Sink { queue, format });
        drains.push(drain);
    }
    let subscriber = Registry::default()
        .with(filter(level))
        .with(LogLayer { sinks });
    Ok((subscriber, LogGuard { _drains: drains }))
}

fn format(wanted: LogFormat, terminal: bool) -> Format {
    let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let colour = terminal && !plain;
    match wanted {
        LogFormat::Text => Format::Text { colour },
        LogFormat::Auto if terminal => Format::Text { colour },
        LogFormat::Auto | LogFormat::Json => Format::Json,
    }
}

/// Prefixes of the targets of the bridge's own lines: the names of its crates.
const OWN: [&str; 2] = ["mcpo_bridge", "bridge_"];

/// The bridge's own lines from `level` on. For libraries, INFO is logged only with DEBUG, because it is
/// noise.
fn filter(level: LogLevel) -> Targets {
    let (own, others) = match level {
        LogLevel::Debug => (LevelFilter::DEBUG, LevelFilter::INFO),
        LogLevel::Info => (LevelFilter::INFO, LevelFilter::WARN),
        LogLevel::Warning => (LevelFilter::WARN, LevelFilter::WARN),
        LogLevel::Error => (LevelFilter::ERROR, LevelFilter::ERROR),
        LogLevel::Critical => (LevelFilter::OFF, LevelFilter::OFF),
    };
    Targets::new()
        .with_default(others)
        .with_targets(OWN.map(|prefix| (prefix, own)))
        .with_target(AUDIT, LevelFilter::INFO)
        .with_target(CRITICAL, LevelFilter::ERROR)
}

/// Opens the file for appending, so that rotation by copy and truncate works. An existing file keeps its
/// permissions: the administrator may have given a log shipper access.
fn open(path: &Path) -> Result<File, LogError> {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    if !folder.is_none_or(Path::is_dir) {
        return Err(LogError::NoFolder(path.to_owned()));
    }
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
        .map_err(|error| LogError::Open {
            path: path.to_owned(),
            error,
        })
}

// Formats tracing's spans and events as lines.

/// One output of the log.
#[derive(Debug)]
struct Sink {
    pub queue: Queue,
    pub format: Format,
}

/// Writes each event to all sinks.
#[derive(Debug)]
struct LogLayer {
    sinks: Vec<Sink>,
}

impl<S> Layer<S> for LogLayer
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn on_new_span(
        &self,
        attributes: &span::Attributes<'_>,
        id: &span::Id,
        context: Context<'_, S>,
    ) {
        if let Some(span) = context.span(id) {
            let mut fields = Fields::of_span(attributes.metadata().fields().len());
            attributes.record(&mut fields);
            span.extensions_mut().insert(fields);
        }
    }

    fn on_record(&self, id: &span::Id, values: &span::Record<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(fields) = span.extensions_mut().get_mut::<Fields>()
        {
            fields.record_again(|fields| values.record(fields));
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut line = Line::from_event(event);
        // From the innermost span outwards: the innermost one has priority.
        for span in context.event_scope(event).into_iter().flatten() {
            if let Some(fields) = span.extensions().get::<Fields>() {
                line.add(fields);
            }
        }
        let limit = match event.metadata().target() {
            AUDIT => AUDIT_LIMIT,
            _ => ORDINARY_LIMIT,
        };
        for sink in &self.sinks {
            sink.queue.push(line.render(sink.format), limit);
        }
    }
}

// A thread that writes lines, and its bounded queue.
//
// A full pipe must neither block the threads that serve requests nor easily lose audit lines, so pushing
// never waits, and the queue is bounded in bytes, with a reserve for audit lines only (hours of calls at a
// usual rate). Lines that do not fit are counted, and the count is logged as soon as the writer can write
// again. Existing crates bound lines, not bytes, and have no such reserve.

/// Queued bytes beyond which lines are dropped.
const ORDINARY_LIMIT: usize = 8 * 1024 * 1024;

/// Queued bytes beyond which audit lines are dropped.
const AUDIT_LIMIT: usize = 64 * 1024 * 1024;

/// How long the first queued line waits for others: at thousands of lines per second, a write and a wake-up
/// for each line would cost more than the lines themselves.
const LINGER: Duration = Duration::from_millis(2);

/// How long a slow reader is waited for when the process ends.
const LAST_CALL: Duration = Duration::from_secs(2);

/// The input of the queue.
#[derive(Debug)]
struct Queue(Arc<Shared>);

/// Waits on drop until everything is written, 2 s at most.
#[derive(Debug)]
struct Drain(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<QueueState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct QueueState {
    waiting: Batch,
    /// Bytes that the thread is currently writing.
    in_hand: usize,
    lost: u64,
    closing: bool,
    ended: bool,
}

#[derive(Debug, Default)]
struct Batch {
    text: Vec<u8>,
    lines: u64,
}

impl Queue {
    /// Starts the thread, which ends after the drain is dropped.
    pub fn start(out: impl Write + Send + 'static, format: Format) -> io::Result<(Self, Drain)> {
        let shared = Arc::new(Shared::default());
        let ours = shared.clone();
        thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || ours.write_all(out, format))?;
        Ok((Self(shared.clone()), Drain(shared)))
    }

    /// Queues a whole line, or counts it as lost if more than `limit` bytes would be queued. Does not wait
    /// for the writer.
    pub fn push(&self, line: &str, limit: usize) {
        let mut state = self.0.state.lock();
        if state.in_hand + state.waiting.text.len() + line.len() > limit {
            state.lost += 1;
            return;
        }
        state.waiting.text.extend_from_slice(line.as_bytes());
        state.waiting.lines += 1;
        let first = state.waiting.lines == 1;
        drop(state);
        // The first queued line has woken the writer already.
        if first {
            self.0.changed.notify_all();
        }
    }
}

impl Shared {
    fn write_all(&self, mut out: impl Write, format: Format) {
        while let Some((mut batch, lost)) = self.next() {
            if lost > 0 {
                batch
                    .text
                    .extend_from_slice(line::losses(lost, format).as_bytes());
            }
            let written = out.write_all(&batch.text).and_then(|()| out.flush());
            let mut state = self.state.lock();
            state.in_hand = 0;
            if written.is_err() {
                // A disk may get free space again; a closed pipe stays closed, which does not stop the
                // bridge.
                state.lost += lost + batch.lines;
            }
        }
        self.state.lock().ended = true;
        self.changed.notify_all();
    }

    /// Waits for lines. `None` if all are written and the queue is closed.
    fn next(&self) -> Option<(Batch, u64)> {
        let idle = |state: &mut QueueState| state.waiting.lines == 0 && !state.closing;
        let mut state = self.state.lock();
        self.changed.wait_while(&mut state, idle);
        let open = |state: &mut QueueState| !state.closing;
        self.changed.wait_while_for(&mut state, open, LINGER);
        if state.waiting.lines == 0 {
            return None;
        }
        let batch = std::mem::take(&mut state.waiting);
        state.in_hand = batch.text.len();
        Some((batch, std::mem::take(&mut state.lost)))
    }
}

impl Drop for Drain {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.closing = true;
        self.0.changed.notify_all();
        let writing = |state: &mut QueueState| !state.ended;
        // A slower reader loses the remaining lines.
        self.0
            .changed
            .wait_while_for(&mut state, writing, LAST_CALL);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::{testing::*, *};

    fn log(file: Option<PathBuf>) -> Log {
        Log {
            level: LogLevel::Info,
            file,
            format: LogFormat::Auto,
        }
    }

    fn levels(level: LogLevel) -> Vec<String> {
        let lines = lines_of(level, || {
            tracing::trace!("t");
            tracing::debug!("d");
            tracing::info!("i");
            tracing::warn!("w");
            tracing::error!("e");
            tracing::error!(target: CRITICAL, "c");
            tracing::info!(target: AUDIT, "a");
            tracing::info!(target: "a_library", "li");
            tracing::warn!(target: "a_library", "lw");
            tracing::error!(target: "a_library", "le");
        });
        let of = |line: &serde_json::Value, key: &str| line[key].as_str().unwrap().to_owned();
        let lines = lines.iter();
        lines
            .map(|line| of(line, "message") + " " + &of(line, "level"))
            .collect()
    }

    #[test]
    fn lines_of_each_of_our_crates_are_ours() {
        let lines = lines_of(LogLevel::Info, || {
            tracing::info!(target: "mcpo_bridge::serve", "one");
            tracing::info!(target: "bridge_state::lease", "two");
        });
        assert_eq!(lines.len(), 2, "{lines:?}");
        for crate_name in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/..")).unwrap() {
            let crate_name = crate_name.unwrap().file_name().into_string().unwrap();
            let target = match crate_name.as_str() {
                "bridge" => "mcpo_bridge".to_owned(),
                name => format!("bridge_{name}"),
            };
            assert!(OWN.iter().any(|own| target.starts_with(own)), "{target}");
        }
    }

    #[test]
    fn each_level_shows_what_it_should_and_audit_lines_always() {
        let own = ["d DEBUG", "i INFO", "w WARNING", "e ERROR"];
        let always = ["c CRITICAL", "a INFO"];
        let others = ["li INFO", "lw WARNING", "le ERROR"];
        for (level, from, others_from) in [
            (LogLevel::Debug, 0, 0),
            (LogLevel::Info, 1, 1),
            (LogLevel::Warning, 2, 1),
            (LogLevel::Error, 3, 2),
            (LogLevel::Critical, 4, 3),
        ] {
            let expected = [&own[from..], &always, &others[others_from..]].concat();
            assert_eq!(levels(level), expected, "{level:?}");
        }
    }

    #[test]
    fn a_line_has_the_four_names_first_then_its_fields_then_its_spans() {
        let log = Captured::json(LogLevel::Info);
        tracing::dispatcher::with_default(&log.dispatch, || {
            let _outer =
                tracing::info_span!("request", request_id = "r1", late = tracing::field::Empty)
                    .entered();
            tracing::Span::current().record("late", 7);
            let _inner = tracing::info_span!("call", tool = "of the span").entered();
            tracing::warn!(
                tool = "of the event",
                count = 3,
                level = "fake",
                ok = true,
                "done"
            );
        });
        let text = log.into_text();
        let (start, rest) = text.split_once("Z\",").unwrap();
        let time: jiff::Timestamp = (start[r#"{"timestamp":""#.len()..].to_owned() + "Z")
            .parse()
            .unwrap();
        assert!(time.duration_until(jiff::Timestamp::now()).as_secs().abs() < 60);
        assert_eq!(start.rsplit_once('.').unwrap().1.len(), 3, "{start}");
        assert_eq!(
            rest,
            r#""level":"WARNING","message":"done","target":"mcpo_bridge::telemetry::logs::tests","#
                .to_owned()
                + r#""tool":"of the event","count":3,"ok":true,"request_id":"r1","late":7}"#
                + "\n"
        );
    }

    #[test]
    fn nothing_that_others_chose_can_forge_a_line_or_steer_a_terminal() {
        let evil = "a\nINFO b\r\x1b[31m\u{9b}2J\u{202e}\"\u{2028}é日本";
        for text in [
            text_of(LogLevel::Info, || tracing::info!(name = evil, "{evil}")),
            {
                let log = Captured::json(LogLevel::Info);
                tracing::dispatcher::with_default(&log.dispatch, || {
                    tracing::info!(name = evil, "{evil}");
                });
                log.into_text()
            },
        ] {
            assert_eq!(text.matches('\n').count(), 1, "{text:?}");
            let bad = |c: char| c != '\n' && (c.is_control() || "\u{202e}\u{2028}".contains(c));
            assert!(!text.contains(bad), "{text:?}");
            assert!(text.contains("é日本"));
        }
        let lines = lines_of(LogLevel::Info, || tracing::info!(name = evil, "{evil}"));
        assert_eq!(lines[0]["name"], evil);
        assert_eq!(lines[0]["message"], evil);
    }

    #[test]
    fn text_is_for_people() {
        let text = text_of(LogLevel::Info, || {
            tracing::info!(server = "excel", why = "no such file", n = 2, "not ready");
        });
        let (_, rest) = text.split_once("Z ").unwrap();
        assert_eq!(
            rest,
            "INFO     mcpo_bridge::telemetry::logs::tests not ready server=excel why=\"no such file\" n=2\n"
        );
    }

    #[test]
    fn a_flood_in_one_field_is_cut() {
        let lines = lines_of(LogLevel::Info, || {
            tracing::info!(said = "é".repeat(100_000), "child");
        });
        let said = lines[0]["said"].as_str().unwrap();
        assert!(said.len() < 10_000 && said.ends_with("é…"));
    }

    #[test]
    fn an_error_is_written_with_its_causes() {
        let inner = io::Error::other("inner");
        let outer = LogError::Open {
            path: "/x".into(),
            error: inner,
        };
        let lines = lines_of(LogLevel::Info, || {
            tracing::info!(error = &outer as &dyn std::error::Error, "failed");
        });
        assert!(lines[0]["error"].as_str().unwrap().contains("inner"));
    }

    #[test]
    fn the_format_follows_the_terminal_only_when_it_may() {
        assert_eq!(format(LogFormat::Auto, false), Format::Json);
        assert_eq!(format(LogFormat::Json, true), Format::Json);
        assert_eq!(
            format(LogFormat::Text, false),
            Format::Text { colour: false }
        );
        assert!(matches!(format(LogFormat::Auto, true), Format::Text { .. }));
    }

    #[test]
    fn a_new_log_file_is_private_and_an_old_one_is_continued() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bridge.log");
        for _ in 0..2 {
            writeln!(open(&path).unwrap(), "{{}}").unwrap();
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "{}\n{}\n");
        let mode = path.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_log_file_that_cannot_be_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("none/bridge.log");
        let error = init(&log(Some(path))).unwrap_err();
        assert!(matches!(error, LogError::NoFolder(_)));
        assert!(error.to_string().contains("none/bridge.log"), "{error}");
        let error = init(&log(Some(folder.path().to_owned()))).unwrap_err();
        assert!(matches!(error, LogError::Open { .. }), "{error}");
        assert!(open(Path::new("")).is_err());
    }
}

#[cfg(test)]
mod queue_tests {
    use std::{io, sync::mpsc};

    use super::*;

    /// Signals that a write has begun, then blocks until the test reads.
    struct SlowPipe {
        began: mpsc::Sender<()>,
        reader: mpsc::SyncSender<String>,
    }

    impl Write for SlowPipe {
        fn write(&mut self, text: &[u8]) -> io::Result<usize> {
            self.began.send(()).ok();
            let read = String::from_utf8_lossy(text).into_owned();
            self.reader.send(read).map_err(io::Error::other)?;
            Ok(text.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    const TEXT: Format = Format::Text { colour: false };

    /// The text read afterwards if there is no reader while `push` runs.
    fn read_after(push: impl FnOnce(&Queue)) -> String {
        let (began, first_write) = mpsc::channel();
        let (reader, from) = mpsc::sync_channel(0);
        let (queue, drain) = Queue::start(SlowPipe { began, reader }, TEXT).unwrap();
        queue.push("first\n", ORDINARY_LIMIT);
        first_write.recv().unwrap();
        push(&queue);
        let reader = thread::spawn(move || from.iter().collect::<String>());
        drop(drain);
        reader.join().unwrap()
    }

    #[test]
    fn a_reader_who_stops_loses_lines_but_stalls_nobody_and_audit_lines_stay() {
        let line = "x".repeat(1024 * 1024 - 1) + "\n";
        let read = read_after(|queue| {
            for _ in 0..20 {
                queue.push(&line, ORDINARY_LIMIT);
            }
            queue.push("audit\n", AUDIT_LIMIT);
        });
        // The first line is still being written, so the eighth of these does not fit.
        assert_eq!(read.matches("x\n").count(), 7);
        assert!(read.contains("x\naudit\n"));
        assert!(read.ends_with(" lost_lines=13\n"));
    }

    #[test]
    fn the_reserve_for_audit_lines_is_bounded_too() {
        let line = "x".repeat(AUDIT_LIMIT / 4 - 1) + "\n";
        let read = read_after(|queue| {
            for _ in 0..6 {
                queue.push(&line, AUDIT_LIMIT);
            }
        });
        assert_eq!(read.matches("x\n").count(), 3);
        assert!(read.ends_with(" lost_lines=3\n"));
    }

    #[test]
    fn what_could_not_be_written_is_told_later() {
        struct FullOnce(mpsc::Sender<String>, bool);
        impl Write for FullOnce {
            fn write(&mut self, text: &[u8]) -> io::Result<usize> {
                let first = !std::mem::replace(&mut self.1, true);
                let text_sent = String::from_utf8_lossy(text).into_owned();
                self.0.send(text_sent).unwrap();
                if first {
                    return Err(io::ErrorKind::StorageFull.into());
                }
                Ok(text.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (to, from) = mpsc::channel();
        let (queue, drain) = Queue::start(FullOnce(to, false), TEXT).unwrap();
        queue.push("one\n", ORDINARY_LIMIT);
        assert_eq!(from.recv().unwrap(), "one\n");
        queue.push("two\n", ORDINARY_LIMIT);
        drop(drain);
        let rest: String = from.iter().collect();
        assert!(rest.starts_with("two\n"), "{rest}");
        assert!(rest.ends_with(" lost_lines=1\n"), "{rest}");
    }
}
