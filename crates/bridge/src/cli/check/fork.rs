//! How further processes of a server are started, and why.

use serde::Serialize;

use crate::{
    child::Forking,
    cli::text::{counted, plain},
};

/// As `check` shows it.
#[derive(Serialize)]
#[serde(tag = "how", rename_all = "snake_case")]
pub enum Processes {
    /// From a parent that has imported so many modules.
    Forked {
        modules: usize,
        /// Modules that each process imports itself, with the reason.
        left_out: Vec<String>,
    },
    /// As a new process.
    Started { why: String },
}

impl Processes {
    /// `None` where it is not known.
    pub fn of(forking: &Forking) -> Option<Self> {
        match forking {
            Forking::Forks { modules, left_out } => Some(Self::Forked {
                modules: *modules,
                left_out: left_out.clone(),
            }),
            Forking::Starts(why) => Some(Self::Started {
                why: why.to_string(),
            }),
            Forking::NotYet => None,
        }
    }

    /// For people, with the details where `verbose`.
    pub fn text(&self, verbose: bool) -> String {
        match self {
            Self::Forked { modules, left_out } => {
                let modules = counted(*modules, "module");
                let own = match (left_out.is_empty(), verbose) {
                    (true, _) => String::new(),
                    (false, false) => "; details with --verbose".to_owned(),
                    (false, true) => {
                        format!("; not preloaded: {}", plain(&left_out.join(", ")))
                    }
                };
                format!("start: forked from a preloaded process ({modules}){own}")
            }
            Self::Started { why } => format!("start: new process each time ({})", plain(why)),
        }
    }
}
