//! `mcpo-bridge openwebui`: the connections that Open WebUI has to the bridge.

mod admin;
mod connection;
mod connections;
mod grants;
mod marker;
mod plan;
mod sync;

use clap::Subcommand;

use super::{Failure, SettingsArgs, output::print};

/// The commands.
#[derive(Subcommand)]
pub enum OpenWebUiCommand {
    /// Print the connections for a new Open WebUI (`TOOL_SERVER_CONNECTIONS`)
    #[command(after_help = connections::HELP)]
    Connections(connections::ConnectionsArgs),
    /// Update the connections of a running Open WebUI to match this configuration
    #[command(after_help = sync::HELP)]
    Sync(sync::SyncArgs),
    /// Print the path of openapi.json for connections that cannot send a key when fetching the document
    #[command(after_help = SPEC_PATH)]
    SpecPath,
}

const SPEC_PATH: &str = "\
A connection with auth type session sends the user's token and, in a custom header, the API key. When Open \
WebUI fetches openapi.json, it sends neither. With MCPO_STRICT_AUTH, use the printed path instead of \
openapi.json in the connection. The path gives access to documents only, and it changes with the key.

Examples:
  mcpo-bridge openwebui spec-path --api-key-file key.txt";

/// Runs the command.
pub fn run(command: OpenWebUiCommand, settings: &SettingsArgs) -> Result<(), Failure> {
    match command {
        OpenWebUiCommand::Connections(args) => connections::run(args, settings),
        OpenWebUiCommand::Sync(args) => sync::run(args, settings),
        OpenWebUiCommand::SpecPath => spec_path(settings),
    }
}

fn spec_path(settings: &SettingsArgs) -> Result<(), Failure> {
    let settings = settings.resolve()?;
    let keys = &settings.access.keys;
    if keys.is_empty() {
        let why = "no API key is configured, so openapi.json requires none; set MCPO_API_KEY or \
                   MCPO_API_KEY_FILE to the value of the bridge";
        return Err(Failure::usage(why));
    }
    let one = keys.names().count() == 1;
    for (name, secret) in keys.document_secrets() {
        let path = format!("{secret}/openapi.json");
        let line = if one { path } else { format!("{name}\t{path}") };
        print(&format!("{line}\n"))?;
    }
    Ok(())
}
