//! What to start and what runs: command lines, processes below supervisors, fork parents, and remote servers
//! that look like processes.
//!
//! This crate must not know how callers are told apart, the jobs folder as a whole, settings, metrics or how
//! many children there may be: it is handed a command, a folder, limits and where to say what happens.
//!
//! ```text
//! bridge ── control socket ──▶ supervisor ──▶ child ──▶ whatever it starts
//!    └────────── stdin, stdout, stderr ──────────┘
//! bridge ── HTTP ──▶ remote server: looks the same from outside (`remote`)
//! ```
//!
//! The supervisor is the program itself: its `main` hands the words of [`Duty::named`] to [`supervise`].
//!
//! ```
//! use bridge_model::JobId;
//! use bridge_process::{CommandSpec, UserValues, launch};
//! use std::path::Path;
//!
//! // As it stands in a server file.
//! let command = CommandSpec {
//!     program: "uvx".to_owned(),
//!     args: ["excel-mcp==1.2", "--dir={MCPO_WORKDIR}"].map(str::to_owned).into(),
//!     env: [("USER_MAIL".to_owned(), "{MCPO_USER_EMAIL}".to_owned())].into(),
//!     cwd: None,
//! };
//!
//! // What the launcher would install, and where the server's own arguments begin.
//! let wanted = launch::read(&command, &|_| true)?;
//! let launch::What::Python(packages) = wanted.what else {
//!     panic!("uvx runs Python packages")
//! };
//! assert_eq!(packages.requirements, ["excel-mcp==1.2"]);
//! assert_eq!(wanted.rest, 1);
//!
//! // For one workspace and its user, of whom nothing is known here.
//! let resolved = command.resolve(Path::new("/jobs/1/work"), &JobId::random(), &UserValues::default());
//! assert_eq!(resolved.args[1], "--dir=/jobs/1/work");
//! assert_eq!(resolved.env["USER_MAIL"], "");
//! # Ok::<(), launch::Why>(())
//! ```

mod child;
pub mod launch;
mod relative;
pub mod remote;
mod spec;

pub use child::*;
pub use relative::{percent_encoded, relative, relative_text};
pub use spec::{
    CommandSpec, RemoteKind, RemoteSpec, ResolvedCommand, USER_PLACEHOLDERS, UserValues,
    asks_for_user,
};
