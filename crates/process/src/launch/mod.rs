//! How a server's program is started: what its command line asks a launcher for, and what is started
//! instead where that is installed. What installs and what starts processes both build upon this.

mod launcher;
mod resolved;

pub use launcher::*;
pub use resolved::{Kind, Resolved, Sources};
