//! Launchers' work, done once: `uvx`, `npx` and the like choose versions, fetch packages and then
//! start a program, at every start. Here their command lines are read, the packages installed into
//! environments below `MCPO_TOOLS_DIR`, and the programs started directly.
//!
//! ```text
//! command line ──launcher──▶ Wanted ──lock file, or chosen once──▶ Pin ──▶ environment ──▶ Resolved
//!      └── not understood, or it cannot be installed: runs as written
//! ```
//! Who starts children asks [`Launches`](crate::launches::Launches), which answers at once; [`Installer`]
//! keeps it true.

mod folder;
mod installer;
mod node;
mod pin;
mod python;

pub use installer::{InstallRequest, Installer, InstallerSettings, Step};
pub use pin::{LockFile, Pin};

/// Below a tools folder.
const INSTALLED: &str = "installed";
