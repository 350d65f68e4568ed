//! How further processes of a server come to be, and why not otherwise.

use serde::Serialize;

use crate::{
    child::Forking,
    cli::text::{counted, plain},
};

/// What `check` says of it.
#[derive(Serialize)]
#[serde(tag = "how", rename_all = "snake_case")]
pub enum Processes {
    /// From a parent that has so many modules.
    Forked {
        modules: usize,
        /// What each imports itself, with the reason.
        left_out: Vec<String>,
    },
    /// Each by itself.
    Started { why: String },
}

impl Processes {
    /// `None` where it is no question.
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

    /// For people.
    pub fn text(&self) -> String {
        match self {
            Self::Forked { modules, left_out } => {
                let modules = counted(*modules, "module");
                let own = if left_out.is_empty() {
                    String::new()
                } else {
                    format!("; each imports itself: {}", plain(&left_out.join(", ")))
                };
                format!("its processes are forked from one with {modules}{own}")
            }
            Self::Started { why } => {
                format!("its processes are started each by itself: {}", plain(why))
            }
        }
    }
}
