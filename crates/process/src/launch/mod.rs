//! How a server's program is started: what its command line requests from a launcher, and the
//! replacement command once that is installed. The installer and the code that starts processes
//! both use this module.

mod launcher;
mod resolved;

pub use launcher::*;
pub use resolved::{Kind, Resolved, Sources};
