//! `mcpo-bridge check`: validates settings and server file, and starts every server once.

mod fork;
mod launch;
mod report;

use clap::Args;
use serde::Serialize;

use super::{
    Failure, SettingsArgs,
    local::block_on,
    log,
    output::{OutputArgs, print_json},
    survey::survey,
    text::{terminal_width, wrapped},
};
use crate::config::{self, ConfigError, Fault, Faults, Loaded, Settings, remedy};

use report::{Report, ServerReport};

/// What `--help` adds.
pub const HELP: &str = "\
Starts all servers concurrently in a temporary directory, each within MCPO_START_TIMEOUT, and ends them again. \
Sessions of a running bridge are not affected.

Tokens are an estimate of what the tools add to every request of a model: the bytes of each tool's name, \
description (with usage_guide) and converted schema, divided by 4.

Exit codes: 0 success, 1 a server failed, 2 invalid settings or server file.

Examples:
  mcpo-bridge check
  mcpo-bridge check --config ./mcp-servers.json --start-timeout 120
  mcpo-bridge check --no-start          # in CI, where no server is installed
  mcpo-bridge check --json | jq '.servers[] | select(.status == \"failed\")'";

/// The arguments of `check`.
#[derive(Args)]
pub struct CheckArgs {
    /// Only validate the settings and the server file, without starting servers
    #[arg(long)]
    no_start: bool,
    /// Also show the tokens of each tool, and how processes are started
    #[arg(long)]
    verbose: bool,
    #[command(flatten)]
    output: OutputArgs,
}

/// The JSON output when there is no report.
#[derive(Serialize)]
struct Refused {
    ok: bool,
    faults: Vec<PlacedFault>,
}

#[derive(Serialize)]
struct PlacedFault {
    /// The file, or "settings".
    origin: String,
    #[serde(flatten)]
    fault: Fault,
}

/// Checks, prints, and fails if a server did.
pub fn run(args: &CheckArgs, settings: &SettingsArgs) -> Result<(), Failure> {
    let output = args.output;
    let (settings, config) = match load(settings) {
        Ok(loaded) => loaded,
        Err(faults) if output.is_json() => {
            print_json(&refused(faults))?;
            return Err(Failure::silent(2));
        }
        Err(faults) => {
            return Err(Failure::faulty(&faults));
        }
    };
    let _log = log::start(&settings.log)?;
    let path = settings.config_file.clone();
    let mut warnings = settings.warnings.clone();
    warnings.extend(config.warnings.iter().cloned());
    let servers = if args.no_start {
        let specs = config.servers.values();
        specs.map(|spec| ServerReport::skipped(spec)).collect()
    } else {
        let surveyed = block_on(survey(settings, config, true))?;
        surveyed.iter().map(ServerReport::of).collect()
    };
    let report = Report::new(path, warnings, servers);
    output.print(&report, |report| {
        wrapped(&report.text(args.verbose), terminal_width())
    })?;
    if report.ok {
        Ok(())
    } else {
        Err(Failure::silent(1))
    }
}

/// Reads both sources, so that one run reports the errors of both.
fn load(args: &SettingsArgs) -> Result<(Settings, Loaded), Vec<ConfigError>> {
    let path = args.config_file();
    match args.resolve() {
        Ok(settings) => match config::load(&settings.config_file, &settings) {
            Ok(config) => Ok((settings, config)),
            Err(error) => Err(vec![error]),
        },
        Err(faults) => {
            let mut all = vec![ConfigError::Faulty(faults)];
            if let Ok(defaults) = SettingsArgs::default().resolve() {
                let path = path.unwrap_or_else(|| defaults.config_file.clone());
                all.extend(config::load(&path, &defaults).err());
            }
            Err(all)
        }
    }
}

fn refused(errors: Vec<ConfigError>) -> Refused {
    let placed = |Faults { origin, faults }: Faults| {
        let origin = move || origin.clone();
        faults.into_iter().map(move |fault| PlacedFault {
            origin: origin(),
            fault,
        })
    };
    let faults = errors.into_iter().flat_map(|error| match error {
        ConfigError::Faulty(faults) => placed(faults),
        ConfigError::Unreadable { path, source } => {
            let fault = Fault::new("", format!("cannot be read ({source})"), remedy(&source));
            placed(Faults {
                origin: path,
                faults: vec![fault],
            })
        }
    });
    Refused {
        ok: false,
        faults: faults.collect(),
    }
}
