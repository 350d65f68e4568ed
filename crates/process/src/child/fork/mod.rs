//! Fork parents: a process that has imported a Python server's modules, from which its processes are
//! forked.
//!
//! ```text
//! bridge ─┬─ nursery (supervisor) ── parent (server/) ─┬─ supervisor ── server
//!         │                                              └─ supervisor ── server
//!         └──── control socket of each supervisor, pipes of each server
//! ```
//! A process is forked before anything of the server's own has run but imports, and whatever an import
//! leaves behind that must not be shared keeps that module out of the parent (`server/`).

mod parent;
mod plan;
mod program;
mod scratch;
mod wire;

pub use parent::{Means, Parent};
pub use plan::{Plan, Target};
pub use scratch::Scratch;
pub use wire::Loaded;
