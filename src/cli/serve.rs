//! `mcpo-bridge serve`

use std::{path::PathBuf, process::ExitCode};

use clap::Args;

use super::{Failure, SettingsArgs};
use crate::{
    serve::{self, Ended, ServeError},
    telemetry,
};

/// What `--help` adds.
pub const HELP: &str = "\
Every flag is also a variable, and every variable a flag; a flag wins. An empty variable counts as
unset. Secrets are better given by variable or file.

SIGHUP, or a change of the server file, reloads it. SIGTERM stops taking calls, lets running ones
finish within MCPO_SHUTDOWN_GRACE and ends every process; a second signal ends at once.

Examples:
  mcpo-bridge serve --config mcp-servers.json
  MCPO_API_KEY_FILE=/run/secrets/key mcpo-bridge serve --host 0.0.0.0 --base-url https://files.example";

/// What `serve` is told.
#[derive(Args)]
pub struct ServeArgs {
    #[command(flatten)]
    settings: SettingsArgs,
    /// Write the bound address here once calls are taken (for port 0)
    #[arg(long, value_name = "PATH", hide = true)]
    port_file: Option<PathBuf>,
}

/// Runs the service until a signal ends it.
pub fn run(args: ServeArgs) -> ExitCode {
    let settings = match args.settings.resolve() {
        Ok(settings) => settings,
        Err(faults) => return Failure::from(faults).tell(),
    };
    let _log = match telemetry::init(&settings.log) {
        Ok(guard) => guard,
        Err(error) => return Failure::told_wrongly(error).tell(),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    let ended = runtime.map_err(ServeError::from).and_then(|runtime| {
        let ended = runtime.block_on(serve::serve(settings, args.port_file));
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
                ServeError::Config(_) => ExitCode::from(2),
                _ => ExitCode::FAILURE,
            }
        }
    }
}
