//! The log of a command: to stderr, because stdout is its answer.

use std::{
    fs::OpenOptions,
    io::{self, IsTerminal as _},
    os::unix::fs::OpenOptionsExt as _,
    sync::Arc,
};

use tracing::level_filters::LevelFilter;
use tracing_subscriber::{
    Layer as _, Registry, filter::Targets, fmt, layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

use super::Failure;
use crate::config::{Log, LogFormat, LogLevel};

/// Starts it. INFO is for services: of a command's own doings only warnings are worth a line,
/// unless DEBUG is asked for. Audit lines are always written, to `MCPO_LOG_FILE` too.
pub fn start(log: &Log) -> Result<(), Failure> {
    let terminal = io::stderr().is_terminal();
    let json = match log.format {
        LogFormat::Auto => !terminal,
        LogFormat::Json => true,
        LogFormat::Text => false,
    };
    let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let stderr = if json {
        fmt::layer()
            .json()
            .flatten_event(true)
            .with_writer(io::stderr)
            .boxed()
    } else {
        fmt::layer()
            .with_ansi(terminal && !plain)
            .with_target(false)
            .with_writer(io::stderr)
            .boxed()
    };
    let file = log.file.as_ref().map(|path| {
        let opened = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(path);
        opened
            .map(|file| {
                fmt::layer()
                    .json()
                    .flatten_event(true)
                    .with_writer(Arc::new(file))
            })
            .map_err(|error| {
                let path = path.display();
                Failure::told_wrongly(format!(
                    "MCPO_LOG_FILE: {path} cannot be opened for appending ({error}): fix its \
                     permissions or name another file"
                ))
            })
    });
    let subscriber = Registry::default()
        .with(filter(log.level))
        .with(stderr)
        .with(file.transpose()?);
    subscriber.try_init().map_err(Failure::failed)
}

fn filter(level: LogLevel) -> Targets {
    let (own, others) = match level {
        LogLevel::Debug => (LevelFilter::DEBUG, LevelFilter::INFO),
        LogLevel::Info | LogLevel::Warning => (LevelFilter::WARN, LevelFilter::WARN),
        LogLevel::Error => (LevelFilter::ERROR, LevelFilter::ERROR),
        LogLevel::Critical => (LevelFilter::OFF, LevelFilter::OFF),
    };
    Targets::new()
        .with_default(others)
        .with_target(env!("CARGO_CRATE_NAME"), own)
        .with_target("audit", LevelFilter::INFO)
}
