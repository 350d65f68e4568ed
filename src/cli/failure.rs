//! Why a command did not do what it was asked: a message for people and an exit code.

use std::{fmt, process::ExitCode};

use super::output::{BAD, indented, note};
use crate::config::{ConfigError, Faults};

/// The end of a command that failed.
#[derive(Debug)]
pub struct Failure {
    code: u8,
    /// Empty where the answer itself says it all.
    message: String,
}

/// SIGINT's number beyond 128, as shells do it.
const INTERRUPTED: u8 = 130;

impl Failure {
    /// Exit code 1: it was tried and did not work.
    pub fn failed(message: impl fmt::Display) -> Self {
        let message = message.to_string();
        Self { code: 1, message }
    }

    /// Exit code 2: the command line, the settings or the server file are wrong.
    pub fn told_wrongly(message: impl fmt::Display) -> Self {
        let message = message.to_string();
        Self { code: 2, message }
    }

    /// A signal ended it.
    pub fn interrupted() -> Self {
        Self {
            code: INTERRUPTED,
            message: "interrupted".to_owned(),
        }
    }

    /// The same with nothing to say, because the answer has said it.
    pub fn silent(code: u8) -> Self {
        let message = String::new();
        Self { code, message }
    }

    /// Says it and gives the exit code.
    pub fn tell(self) -> ExitCode {
        if !self.message.is_empty() {
            note(format_args!(
                "{BAD}error:{BAD:#} {}",
                indented(&self.message, 2)
            ));
        }
        ExitCode::from(self.code)
    }
}

impl From<Faults> for Failure {
    fn from(faults: Faults) -> Self {
        Self::told_wrongly(faults)
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::told_wrongly(error)
    }
}
