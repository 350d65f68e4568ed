//! `mcpo-bridge serve`

use std::{
    io::{self, IsTerminal as _},
    net::SocketAddr,
    path::PathBuf,
    process::ExitCode,
};

use clap::Args;

use super::{
    Failure, SettingsArgs,
    output::print,
    text::{BOLD, counted, note},
};
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
Every setting is available as a flag and as an environment variable; the flag wins. An empty variable counts as \
unset. Prefer variables or files for secrets.

SIGHUP or a change of the server file reloads it. On SIGTERM the bridge accepts no more calls, lets running calls \
finish within MCPO_SHUTDOWN_GRACE and ends all server processes; a second signal exits immediately.

Command lines of mcpo work unchanged; docs/mcpo.md lists the differences.

Examples:
  mcpo-bridge --port 8000 --api-key top-secret -- uvx mcp-server-time
  mcpo-bridge serve --config mcp-servers.json
  MCPO_API_KEY_FILE=/run/secrets/key mcpo-bridge serve --host 0.0.0.0 --base-url https://files.example";

/// The arguments of `serve`.
#[derive(Args)]
pub struct ServeArgs {
    #[command(flatten)]
    settings: SettingsArgs,
    #[command(flatten)]
    given: GivenArgs,
    /// Version in the OpenAPI document at the root; without a value, print the program's version and exit
    #[arg(
        long = "version", short = 'v', short_alias = 'V', id = "document_version", value_name = "TEXT",
        num_args = 0..=1, default_missing_value = "", help_heading = "Documents"
    )]
    version: Option<String>,
    /// Write the bound address to this file once the bridge accepts calls (for port 0)
    #[arg(long, value_name = "PATH", hide = true)]
    port_file: Option<PathBuf>,
}

impl ServeArgs {
    /// With these settings: flags may also stand before the command.
    pub fn with(self, settings: SettingsArgs) -> Self {
        Self { settings, ..self }
    }
}

/// Runs the service until a signal ends it.
pub fn run(args: ServeArgs) -> ExitCode {
    if args.version.as_deref() == Some("") {
        let printed = print(concat!("mcpo-bridge ", env!("CARGO_PKG_VERSION"), "\n"));
        return printed.map_or_else(Failure::report, |()| ExitCode::SUCCESS);
    }
    allocator::give_back_large_blocks();
    let port_file = args.port_file.clone();
    let settings = match settings(args) {
        Ok(settings) => settings,
        Err(faults) => return Failure::from(faults).report(),
    };
    let _log = match telemetry::init(&settings.log) {
        Ok(guard) => guard,
        Err(error) => return Failure::usage(error).report(),
    };
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    if let Some(threads) = limits::worker_threads() {
        runtime.worker_threads(threads);
    }
    let runtime = runtime.enable_all().build();
    let ended = runtime.map_err(ServeError::from).and_then(|runtime| {
        let ended = runtime.block_on(serve::serve(settings, port_file, banner));
        // Blocked tasks must not delay the exit.
        runtime.shutdown_background();
        ended
    });
    match ended {
        Ok(Ended::Cleanly) => ExitCode::SUCCESS,
        Ok(Ended::AtOnce) => ExitCode::FAILURE,
        Err(error) => {
            // On stderr for the user who started it, and in the log.
            eprintln!("mcpo-bridge: {error}");
            tracing::error!("{error}");
            match error {
                ServeError::Config(_) | ServeError::Tls(_) => ExitCode::from(2),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

/// On a terminal: where the bridge is, and how to stop it.
fn banner(settings: &Settings, address: SocketAddr, servers: usize) {
    if !io::stderr().is_terminal() {
        return;
    }
    let listen = &settings.listen;
    let scheme = if listen.tls.is_some() {
        "https"
    } else {
        "http"
    };
    let local = if address.ip().is_unspecified() || address.ip().is_loopback() {
        format!("localhost:{}", address.port())
    } else {
        address.to_string()
    };
    let names: Vec<&str> = settings.access.keys.names().collect();
    let keys = if names.is_empty() {
        "none: no key is required".to_owned()
    } else {
        names.join(", ")
    };
    let config = match &settings.command_line.server {
        Some(_) => "the command line".to_owned(),
        None => settings.config_file.display().to_string(),
    };
    let (prefix, servers) = (&listen.path_prefix, counted(servers, "server"));
    note(format_args!(
        "{BOLD}mcpo-bridge {}{BOLD:#}\n\
         \x20 Listening on  {scheme}://{address}{prefix}\n\
         \x20 Docs          {scheme}://{local}{prefix}/docs\n\
         \x20 Config        {config} ({servers})\n\
         \x20 API keys      {keys}\n\
         Press Ctrl+C to stop.",
        env!("CARGO_PKG_VERSION"),
    ));
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
            "{file} is ignored because a server is given on the command line"
        ));
    }
    Ok(settings)
}
