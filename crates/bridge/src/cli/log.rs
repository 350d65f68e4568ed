//! The log of a command: to stderr, because stdout is its output.

use super::Failure;
use crate::{
    config::Log,
    telemetry::{LogGuard, init_for_command},
};

/// Starts it; hold the guard until the command is done.
pub fn start(log: &Log) -> Result<LogGuard, Failure> {
    init_for_command(log).map_err(|error| Failure::usage(error.to_string()))
}
