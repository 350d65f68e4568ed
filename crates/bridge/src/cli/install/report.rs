//! What `install` did, for people and machines.

use std::fmt::Write as _;

use bridge_process::launch::Resolved;
use serde::Serialize;

use super::{Installed, changes::Changes};
use crate::{
    cli::text::{BAD, BOLD, DIM, GOOD, counted, indented},
    install::Pin,
};

/// A package that is installed.
#[derive(Debug, Serialize)]
pub struct Package {
    name: String,
    version: String,
}

impl From<(String, String)> for Package {
    fn from((name, version): (String, String)) -> Self {
        Self { name, version }
    }
}

/// What became of one server.
#[derive(Debug, Serialize)]
#[serde(tag = "status", rename_all = "snake_case")]
pub enum Outcome {
    /// Its environment exists.
    Installed {
        #[serde(skip_serializing_if = "Option::is_none")]
        package: Option<Package>,
        packages: Vec<Package>,
    },
    /// Other versions will be used.
    Upgrade {
        #[serde(skip_serializing_if = "Option::is_none")]
        package: Option<Package>,
        changes: Changes,
    },
    /// There is nothing to install: an interpreter, a program, a remote server.
    Nothing,
    /// Its launcher starts it.
    AsWritten { why: String },
    /// It could not be installed.
    Failed { why: String },
}

impl Outcome {
    /// Its environment is there.
    pub fn installed(resolved: &Resolved, pin: &Pin) -> Self {
        Self::Installed {
            package: resolved.main.clone().map(Package::from),
            packages: pin.versions().into_iter().map(Package::from).collect(),
        }
    }

    /// Other versions are to be used.
    pub fn upgrade(main: Option<(String, String)>, changes: Changes) -> Self {
        Self::Upgrade {
            package: main.map(Package::from),
            changes,
        }
    }

    /// For the display.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Installed { .. } => "installed",
            Self::Upgrade { .. } => "compared",
            Self::Nothing | Self::AsWritten { .. } => "not installed",
            Self::Failed { .. } => "failed",
        }
    }

    /// It could not be installed.
    pub fn failed(why: String) -> Self {
        Self::Failed { why }
    }

    /// Whether it needs confirmation.
    pub fn is_upgrade(&self) -> bool {
        matches!(self, Self::Upgrade { .. })
    }
}

/// Everything.
#[derive(Serialize)]
pub struct Report<'a> {
    /// Nothing failed.
    pub ok: bool,
    servers: Vec<Line<'a>>,
}

#[derive(Serialize)]
struct Line<'a> {
    server: &'a str,
    #[serde(flatten)]
    outcome: &'a Outcome,
    /// Why it is not in the lock file although it is installed.
    #[serde(skip_serializing_if = "Option::is_none")]
    unlocked: Option<&'static str>,
}

const FOLDER: &str = "not locked: one of its packages is a directory, which has no version";

impl<'a> Report<'a> {
    /// Sums up.
    pub fn new(installed: &'a [Installed]) -> Self {
        let lines = installed.iter().map(|one| Line {
            server: one.spec.name.as_str(),
            outcome: &one.outcome,
            unlocked: one.asked.as_ref().and_then(|asked| {
                let open = one.pin.is_some() && !asked.lockable;
                open.then_some(FOLDER)
            }),
        });
        let failed = |one: &Installed| matches!(one.outcome, Outcome::Failed { .. });
        Self {
            ok: !installed.iter().any(failed),
            servers: lines.collect(),
        }
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for line in &self.servers {
            line.write(&mut text);
        }
        text
    }
}

impl Line<'_> {
    fn write(&self, text: &mut String) {
        let _ = write!(text, "{BOLD}{}{BOLD:#}: ", self.server);
        let version = |package: &Option<Package>| match package {
            Some(Package { name, version }) => format!("{name} {version}"),
            None => "packages".to_owned(),
        };
        let _ = match self.outcome {
            Outcome::Installed { package, packages } => writeln!(
                text,
                "{GOOD}installed{GOOD:#}, {} {DIM}({}){DIM:#}",
                version(package),
                counted(packages.len(), "package"),
            ),
            Outcome::Upgrade { package, changes } => {
                let _ = writeln!(text, "upgrade to {}", version(package));
                changes.write(text);
                Ok(())
            }
            Outcome::Nothing => writeln!(text, "nothing to install"),
            Outcome::AsWritten { why } => writeln!(
                text,
                "not installed, starts with its own command line: {}",
                indented(why, 2)
            ),
            Outcome::Failed { why } => writeln!(text, "{BAD}failed{BAD:#}: {}", indented(why, 2)),
        };
        if let Some(why) = self.unlocked {
            let _ = writeln!(text, "  {DIM}{why}{DIM:#}");
        }
    }
}
