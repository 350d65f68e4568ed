//! Commands and running processes: command lines, child processes below supervisors, fork parents,
//! and remote servers with the interface of a process.
//!
//! This crate must not know how callers are identified, the jobs folder as a whole, settings,
//! metrics, or the limit on the number of children. It receives a command, a folder, limits, and
//! callbacks for events.
//!
//! ```text
//! bridge ── control socket ──▶ supervisor ──▶ child ──▶ processes that it starts
//!    └────────── stdin, stdout, stderr ──────────┘
//! bridge ── HTTP ──▶ remote server: same interface (`remote`)
//! ```
//!
//! The supervisor is the bridge's own executable: its `main` calls [`supervise`] for a
//! subcommand that [`Duty::named`] recognises.
//!
//! ```
//! use bridge_model::JobId;
//! use bridge_process::{CommandSpec, UserValues, launch};
//! use std::path::Path;
//!
//! // As written in a server file.
//! let command = CommandSpec {
//!     program: "uvx".to_owned(),
//!     args: ["excel-mcp==1.2", "--dir={MCPO_WORKDIR}"].map(str::to_owned).into(),
//!     env: [("USER_MAIL".to_owned(), "{MCPO_USER_EMAIL}".to_owned())].into(),
//!     cwd: None,
//! };
//!
//! // What the launcher would install, and where the server's own arguments start.
//! let wanted = launch::read(&command, &|_| true)?;
//! let launch::What::Python(packages) = wanted.what else {
//!     panic!("uvx runs Python packages")
//! };
//! assert_eq!(packages.requirements, ["excel-mcp==1.2"]);
//! assert_eq!(wanted.rest, 1);
//!
//! // For one workspace and its user, about whom nothing is known here.
//! let resolved = command.resolve(Path::new("/jobs/1/work"), &JobId::random(), &UserValues::default());
//! assert_eq!(resolved.args[1], "--dir=/jobs/1/work");
//! assert_eq!(resolved.env["USER_MAIL"], "");
//! # Ok::<(), launch::Reason>(())
//! ```

mod child;
pub mod launch;
mod relative;
pub mod remote;
mod spec;

pub use child::*;
pub use relative::{percent_encoded, relative, relative_text};
pub use spec::{
    CommandSpec, Profile, RemoteKind, RemoteSpec, ResolvedCommand, USER_PLACEHOLDERS, UserValues,
    asks_for_user, can_answer, needed,
};
