//! Why a command failed: a message for people and an exit code.

use std::{fmt, process::ExitCode};

use crate::cli::text::{BAD, indented, note, plain};
use crate::config::{ConfigError, Faults};

/// A command that failed.
#[derive(Debug)]
pub struct Failure {
    code: u8,
    /// Empty if the output says it all.
    message: String,
    /// The message needs no word in front of it.
    names_itself: bool,
}

/// SIGINT's number beyond 128, as shells do it.
const INTERRUPTED: u8 = 130;

impl Failure {
    fn new(code: u8, message: String) -> Self {
        Self {
            code,
            message,
            names_itself: false,
        }
    }

    /// Exit code 1: the command failed.
    pub fn failed(message: impl fmt::Display) -> Self {
        let message = message.to_string();
        Self::new(1, message)
    }

    /// Exit code 2: the command line, the settings or the server file are invalid.
    pub fn usage(message: impl fmt::Display) -> Self {
        let message = message.to_string();
        Self::new(2, message)
    }

    /// A signal ended it.
    pub fn interrupted() -> Self {
        Self::new(INTERRUPTED, "interrupted".to_owned())
    }

    /// Without a message, because the output has it.
    pub fn silent(code: u8) -> Self {
        Self::new(code, String::new())
    }

    /// Exit code 2 and all errors; each source is named at the start of its line.
    pub fn faulty(sources: &[ConfigError]) -> Self {
        let sources: Vec<String> = sources.iter().map(ToString::to_string).collect();
        Self {
            names_itself: true,
            ..Self::usage(sources.join("\n"))
        }
    }

    /// Prints the message and gives the exit code.
    pub fn report(self) -> ExitCode {
        if self.names_itself {
            note(plain(&self.message));
        } else if !self.message.is_empty() {
            let message = indented(&self.message, 2);
            note(format_args!("{BAD}error:{BAD:#} {message}"));
        }
        ExitCode::from(self.code)
    }
}

impl From<Faults> for Failure {
    fn from(faults: Faults) -> Self {
        Self::faulty(&[ConfigError::Faulty(faults)])
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::faulty(&[error])
    }
}
