//! `mcpo-bridge check`: whether the settings and the server file are good and every server works.

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
};
use crate::config::{self, ConfigError, Fault, Faults, Loaded, Settings};

use report::{Report, ServerReport};

/// What `--help` adds.
pub const HELP: &str = "\
Every server is started once in a temporary folder, side by side, each within MCPO_START_TIMEOUT,
and ended again. Sessions of a running bridge are not touched.

Tokens are an estimate of what the offered tools cost a model in every request: the bytes of each
tool's name, description (with usage_guide) and converted schema, divided by 4.

Exit codes: 0 all is well, 1 a server failed, 2 the settings or the server file are faulty.

Examples:
  mcpo-bridge check
  mcpo-bridge check --config ./mcp-servers.json --start-timeout 120
  mcpo-bridge check --no-start          # in CI, where no server is installed
  mcpo-bridge check --json | jq '.servers[] | select(.status == \"failed\")'";

/// What `check` is told.
#[derive(Args)]
pub struct CheckArgs {
    /// Read the settings and the server file only; start nothing
    #[arg(long)]
    no_start: bool,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    settings: SettingsArgs,
}

/// What machines get in place of a report.
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

/// Checks, prints, and fails where a server did.
pub fn run(args: CheckArgs) -> Result<(), Failure> {
    let output = args.output;
    let (settings, config) = match load(args.settings) {
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
    output.print(&report, Report::text)?;
    if report.ok {
        Ok(())
    } else {
        Err(Failure::silent(1))
    }
}

/// Both sources are read, so that one run tells the faults of both.
fn load(args: SettingsArgs) -> Result<(Settings, Loaded), Vec<ConfigError>> {
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
            let fix = "create it with `mcpo-bridge init`, or name another with --config / \
                       MCPO_CONFIG_FILE";
            placed(Faults {
                origin: path,
                faults: vec![Fault::new("", format!("cannot be read ({source})"), fix)],
            })
        }
    });
    Refused {
        ok: false,
        faults: faults.collect(),
    }
}
