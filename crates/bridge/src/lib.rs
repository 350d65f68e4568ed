//! `mcpo-bridge` runs MCP servers for many users: one process and folder per chat, and generated files as
//! expiring download links.
//!
//! The modules follow the path of a request: `http` → `identity` → `catalog` → `session` → `admission` →
//! `child` → `artifacts` → answer. `docs/architecture.md` describes one call step by step.
//!
//! This crate is the product: it combines the other crates, and none of them imports it. Code that needs
//! no sockets, settings or processes belongs into one of those.
//!
//! ```no_run
//! // The whole program: parse the command line, run, return an exit code.
//! fn main() -> std::process::ExitCode {
//!     mcpo_bridge::main()
//! }
//! ```

mod admission;
mod allocator;
mod app;
mod artifacts;
mod body;
mod call;
mod catalog;
mod child;
mod cli;
mod condition;
mod config;
mod core;
mod error_table;
mod files_server;
mod http;
mod identity;
mod install;
mod launches;
mod limits;
mod mcp;
mod memory;
mod openwebui;
mod pinned;
mod replicas;
mod serve;
mod session;
mod telemetry;

use bridge_process::{Duty, supervise};

/// Runs the command line of this process and returns its exit code.
pub fn main() -> std::process::ExitCode {
    hide_from_children();
    // Descriptors that the starting process left open must not reach children; our own are always closed
    // on exec.
    close_fds::set_fds_cloexec_threadsafe(3, &[]);
    let mut args = std::env::args_os().skip(1);
    let Some(word) = args.next() else {
        return cli::main();
    };
    if let Some(duty) = Duty::named(&word) {
        return supervise(duty, &args.collect::<Vec<_>>());
    }
    if word == config::FILES_SERVER {
        return files_server::serve();
    }
    cli::main()
}

/// Keeps processes of the same user, such as children, from reading this process's environment, memory
/// and descriptors, and from tracing it. The kernel resets this in programs that we execute. It also
/// means that this program leaves no core dump.
fn hide_from_children() {
    use rustix::process::{DumpableBehavior, set_dumpable_behavior};
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
}
