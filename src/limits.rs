//! What the system grants this process.

use std::num::NonZeroUsize;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Threads that serve requests: a quarter of the processors is left to the children, without whom
/// there is nothing to pass on. More threads than there are free processors push each other away.
/// `None` where tokio's own variable says how many.
pub fn worker_threads() -> Option<usize> {
    let given = std::env::var_os("TOKIO_WORKER_THREADS").is_some();
    let processors = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    (!given).then_some(processors - processors / 4)
}

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
