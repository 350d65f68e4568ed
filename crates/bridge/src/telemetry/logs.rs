//! The log: one JSON object per line, or text for people on a terminal.
//!
//! Writers are threads behind bounded queues ([`queue`]): a reader of stdout who stops reading
//! stalls nobody. Callers must not log arguments or secrets; nothing here could tell.

mod layer;
mod line;
mod queue;

use std::{
    fs::{File, OpenOptions},
    io::{self, IsTerminal as _, Write},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use tracing::{Subscriber, level_filters::LevelFilter};
use tracing_subscriber::{
    filter::Targets, layer::SubscriberExt as _, registry::Registry, util::SubscriberInitExt as _,
};

use self::{
    layer::{LogLayer, Sink},
    line::Format,
    queue::{Drain, Queue},
};
use crate::{
    config::{Log, LogFormat, LogLevel},
    telemetry::AUDIT,
};

/// The target of errors that stop the bridge: they are written as CRITICAL at every level.
/// `tracing::error!(target: CRITICAL, …)`.
pub const CRITICAL: &str = "critical";

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// `MCPO_LOG_FILE` is in a folder that is not there.
    #[error("MCPO_LOG_FILE: the folder of {} is not there: make it or name another file", .0.display())]
    NoFolder(PathBuf),
    /// `MCPO_LOG_FILE` cannot be written.
    #[error("MCPO_LOG_FILE: {} cannot be opened for appending ({error}): fix its permissions or name another file", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// The thread that writes cannot be started.
    #[error("cannot start the thread that writes the log: {0}")]
    Thread(io::Error),
    /// There is one already in this process.
    #[error("the log was started twice in one process")]
    AlreadyStarted,
}

/// Keeps the log going. Dropping it writes out what is queued, for 2 s at most; do so last.
#[derive(Debug)]
#[must_use = "the log's last lines are written when this is dropped"]
pub struct LogGuard {
    _drains: Vec<Drain>,
}

/// Starts the log of a process that serves: to stdout, and to the file if one is set.
pub fn init(log: &Log) -> Result<LogGuard, LogError> {
    let format = format(log.format, io::stdout().is_terminal());
    let mut outputs: Vec<Output> = vec![(Box::new(io::stdout()), format)];
    if let Some(path) = &log.file {
        outputs.push((Box::new(open(path)?), Format::Json));
    }
    let (subscriber, guard) = build(log.level, outputs)?;
    subscriber
        .try_init()
        .map_err(|_| LogError::AlreadyStarted)?;
    Ok(guard)
}

/// Starts the log of a command: to stderr, because stdout is its answer. INFO is for services: of
/// a command's own doings only warnings are worth a line, unless DEBUG is asked for. Audit lines
/// are always written.
pub fn init_for_command(log: &Log) -> Result<LogGuard, LogError> {
    let level = match log.level {
        LogLevel::Info => LogLevel::Warning,
        other => other,
    };
    let format = format(log.format, io::stderr().is_terminal());
    let mut outputs: Vec<Output> = vec![(Box::new(io::stderr()), format)];
    if let Some(path) = &log.file {
        outputs.push((Box::new(open(path)?), Format::Json));
    }
    let (subscriber, guard) = build(level, outputs)?;
    subscriber
        .try_init()
        .map_err(|_| LogError::AlreadyStarted)?;
    Ok(guard)
}

type Output = (Box<dyn Write + Send>, Format);

fn build(
    level: LogLevel,
    outputs: Vec<Output>,
) -> Result<(impl Subscriber + Send + Sync, LogGuard), LogError> {
    let (mut sinks, mut drains) = (Vec::new(), Vec::new());
    for (out, format) in outputs {
        let (queue, drain) = Queue::start(out, line::losses(format)).map_err(LogError::Thread)?;
        sinks.push(Sink { queue, format });
        drains.push(drain);
    }
    let subscriber = Registry::default()
        .with(filter(level))
        .with(LogLayer::new(sinks));
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

/// What the targets of our own lines begin with: the names of our crates.
const OWN: [&str; 2] = ["mcpo_bridge", "bridge_"];

/// Our own lines from `level` on. Of libraries only what may need a hand: their INFO is noise.
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

/// For appending, so that a rotation by copy and truncate works. A file that is there keeps its
/// permissions: the operator may have opened it to a log shipper.
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

#[cfg(test)]
pub(super) mod testing;
#[cfg(test)]
mod tests;
