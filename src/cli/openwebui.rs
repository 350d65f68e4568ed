//! `mcpo-bridge openwebui`: what an administrator of Open WebUI needs from here.

mod admin;
mod connection;
mod connections;
mod grants;
mod marker;
mod plan;
mod sync;

use clap::Subcommand;

use super::Failure;

/// What can be asked.
#[derive(Subcommand)]
pub enum OpenWebUiCommand {
    /// Prints the connections of Open WebUI to this config's servers
    #[command(after_help = connections::HELP)]
    Connections(connections::ConnectionsArgs),
    /// Brings the connections of a running Open WebUI up to this config
    #[command(after_help = sync::HELP)]
    Sync(sync::SyncArgs),
}

/// Runs the command.
pub fn run(command: OpenWebUiCommand) -> Result<(), Failure> {
    match command {
        OpenWebUiCommand::Connections(args) => connections::run(args),
        OpenWebUiCommand::Sync(args) => sync::run(args),
    }
}
