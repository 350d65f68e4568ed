//! `mcpo-bridge openwebui`: what an administrator of Open WebUI needs from here.

mod admin;
mod connection;
mod connections;
mod grants;
mod marker;
mod plan;
mod sync;

use clap::{Args, Subcommand};

use super::{Failure, SettingsArgs, output::print};

/// What can be asked.
#[derive(Subcommand)]
pub enum OpenWebUiCommand {
    /// Prints the connections of Open WebUI to this config's servers
    #[command(after_help = connections::HELP)]
    Connections(connections::ConnectionsArgs),
    /// Brings the connections of a running Open WebUI up to this config
    #[command(after_help = sync::HELP)]
    Sync(sync::SyncArgs),
    /// Prints the path of openapi.json for connections that send no key when they fetch it
    #[command(after_help = SPEC_PATH)]
    SpecPath(SpecPathArgs),
}

const SPEC_PATH: &str = "\
A connection with auth type session sends the user's token and, in a custom header, our key; but when
Open WebUI fetches openapi.json it sends neither. With MCPO_STRICT_AUTH, put the printed path in the
place of openapi.json in the connection. It opens documents and nothing else, and changes with the key.

Examples:
  mcpo-bridge openwebui spec-path --api-key-file key.txt";

/// What `spec-path` is told.
#[derive(Args)]
pub struct SpecPathArgs {
    #[command(flatten)]
    settings: SettingsArgs,
}

/// Runs the command.
pub fn run(command: OpenWebUiCommand) -> Result<(), Failure> {
    match command {
        OpenWebUiCommand::Connections(args) => connections::run(args),
        OpenWebUiCommand::Sync(args) => sync::run(args),
        OpenWebUiCommand::SpecPath(args) => spec_path(args),
    }
}

fn spec_path(args: SpecPathArgs) -> Result<(), Failure> {
    let settings = args.settings.resolve()?;
    let keys = &settings.access.keys;
    if keys.is_empty() {
        let why = "no API key is set, so openapi.json needs none either: set MCPO_API_KEY or \
                   MCPO_API_KEY_FILE as the bridge has it";
        return Err(Failure::told_wrongly(why));
    }
    let one = keys.names().count() == 1;
    for (name, secret) in keys.document_secrets() {
        let path = format!("{secret}/openapi.json");
        let line = if one { path } else { format!("{name}\t{path}") };
        print(&format!("{line}\n"))?;
    }
    Ok(())
}
