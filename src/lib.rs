//! `mcpo-bridge` runs MCP servers for many people: a process and a folder for each chat, and
//! what tools wrote as expiring download links.
//!
//! The tree tells the story of a request: `http` → `identity` → `catalog` → `session` →
//! `admission` → `child` → `artifacts` → answer. `docs/architecture.md` walks one call through it.

mod model;
mod openapi;

/// Runs the command line of this process and returns its exit code.
pub fn main() -> std::process::ExitCode {
    std::process::ExitCode::SUCCESS
}
