//! What the system grants this process.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the limit on open files as far as it goes: each child takes four, each connection one, and
/// the usual 1024 would end a busy bridge. Returns the limit now in force; `None` for none.
///
/// To be called once [`crate::child::Children`] noted what its children get.
pub fn raise_open_files() -> Option<u64> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    // Refused, all goes on as it was.
    let _ = setrlimit(Resource::Nofile, raised);
    getrlimit(Resource::Nofile).current
}
