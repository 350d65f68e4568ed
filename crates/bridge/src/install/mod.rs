//! Replaces launchers: `uvx`, `npx` and similar programs resolve versions, fetch packages and then start a
//! program, at every start. The bridge parses their command lines, installs the packages once into
//! environments below `MCPO_TOOLS_DIR`, and starts the programs directly.
//!
//! ```text
//! command line ──parse──▶ ParsedCommand ──lock file, or chosen once──▶ Pin ──▶ environment ──▶ Resolved
//!      └── not understood, or not installable: runs as written
//! ```
//! Code that starts children asks [`Launches`](crate::launches::Launches), which does not wait; [`Installer`]
//! keeps it up to date.

mod folder;
mod installer;
mod node;
mod pin;
mod python;

pub use installer::{InstallRequest, Installer, InstallerSettings, Step};
pub use pin::{LockFile, Pin};

/// The folder below a tools folder.
const INSTALLED: &str = "installed";
