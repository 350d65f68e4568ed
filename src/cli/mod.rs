//! The command line.

mod serve;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::SettingsArgs;

/// Runs MCP servers for many people: a process and a folder for each chat, and what tools wrote as
/// expiring download links.
#[derive(Parser)]
#[command(name = "mcpo-bridge", version, about, long_about = None)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: serve::ServeArgs,
}

#[derive(Subcommand)]
enum Command {
    /// Serves; also what happens without a command
    Serve(serve::ServeArgs),
}

/// Parses, runs, returns the exit code: 0 done, 1 failed, 2 told wrongly.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match cli.command {
        Some(Command::Serve(args)) => serve::run(args),
        None => serve::run(cli.serve),
    }
}
