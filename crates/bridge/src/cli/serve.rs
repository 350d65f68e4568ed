//! `mcpo-bridge serve`

use std::{path::PathBuf, process::ExitCode};

use clap::Args;

use super::{Failure, SettingsArgs, output::print};
use crate::{
    allocator,
    config::{Faults, Settings},
    limits,
    serve::{self, Ended, ServeError},
    telemetry,
};

mod given;

use given::GivenArgs;

/// What `--help` adds.
pub const HELP: &str = "\
Every flag is also a variable, and every variable a flag; a flag wins. An empty variable counts as
unset. Secrets are better given by variable or file.

SIGHUP, or a change of the server file, reloads it. SIGTERM stops taking calls, lets running ones
finish within MCPO_SHUTDOWN_GRACE and ends every process; a second signal ends at once.

A command line of mcpo works as it is: docs/mcpo.md tells what is different.

Examples:
  mcpo-bridge --port 8000 --api-key top-secret -- uvx mcp-server-time
  mcpo-bridge serve --config mcp-servers.json
  MCPO_API_KEY_FILE=/run/secrets/key mcpo-bridge serve --host 0.0.0.0 --base-url https://files.example";

/// What `serve` is told.
#[derive(Args)]
pub struct ServeArgs {
    #[command(flatten)]
    settings: SettingsArgs,
    #[command(flatten)]
    given: GivenArgs,
    /// The version that the document at the root names; without one, print the program's own
    #[arg(
        long = "version", short = 'v', short_alias = 'V', id = "document_version", value_name = "TEXT",
        num_args = 0..=1, default_missing_value = "", help_heading = "Documents"
    )]
    version: Option<String>,
    /// Write the bound address here once calls are taken (for port 0)
    #[arg(long, value_name = "PATH", hide = true)]
    port_file: Option<PathBuf>,
}

/// Runs the service until a signal ends it.
pub fn run(args: ServeArgs) -> ExitCode {
    if args.version.as_deref() == Some("") {
        let printed = print(concat!("mcpo-bridge ", env!("CARGO_PKG_VERSION"), "\n"));
        return printed.map_or_else(Failure::tell, |()| ExitCode::SUCCESS);
    }
    allocator::give_back_large_blocks();
    let port_file = args.port_file.clone();
    let settings = match settings(args) {
        Ok(settings) => settings,
        Err(faults) => return Failure::from(faults).tell(),
    };
    let _log = match telemetry::init(&settings.log) {
        Ok(guard) => guard,
        Err(error) => return Failure::told_wrongly(error).tell(),
    };
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    if let Some(threads) = limits::worker_threads() {
        runtime.worker_threads(threads);
    }
    let runtime = runtime.enable_all().build();
    let ended = runtime.map_err(ServeError::from).and_then(|runtime| {
        let ended = runtime.block_on(serve::serve(settings, port_file));
        // Whatever still blocks must not keep a process that was told to end.
        runtime.shutdown_background();
        ended
    });
    match ended {
        Ok(Ended::Cleanly) => ExitCode::SUCCESS,
        Ok(Ended::AtOnce) => ExitCode::FAILURE,
        Err(error) => {
            // For whoever started it by hand; the log's reader finds it there too.
            eprintln!("mcpo-bridge: {error}");
            tracing::error!("{error}");
            match error {
                ServeError::Config(_) | ServeError::Tls(_) => ExitCode::from(2),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

fn settings(args: ServeArgs) -> Result<Settings, Faults> {
    let file = args.settings.config_file();
    let mut settings = args.settings.resolve()?;
    settings.documents.version = args.version;
    settings.command_line = args.given.resolve(settings.documents.name.as_deref())?;
    if let (Some(file), Some(_)) = (file, &settings.command_line.server)
        && file.is_file()
    {
        let file = file.display();
        settings.warnings.push(format!(
            "{file} is not read, because a server is given on the command line"
        ));
    }
    Ok(settings)
}
