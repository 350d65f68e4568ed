//! `mcpo-bridge check`: validates settings and server file, and starts every server once.

use std::{fmt::Write as _, path::PathBuf};

use bridge_openapi::{ArgumentRules, request_schema};
use bridge_process::launch::{Kind, Target};
use bridge_protocol::Tool;
use clap::Args;
use indicatif::HumanBytes;
use serde::Serialize;
use serde_json::{Value, json};

use super::{
    Failure, SettingsArgs,
    local::{Surveyed, survey, with_temporary_jobs},
    output,
    output::{
        BAD, BOLD, DIM, GOOD, ODD, OutputArgs, counted, indented, plain, print_json,
        terminal_width, wrapped,
    },
};
use crate::{
    catalog::Offer,
    child::Forking,
    config,
    config::{ConfigError, Fault, Faults, Loaded, Mode, ServerSpec, Settings, remedy},
    launches::Launching,
};

/// Text after the options in `--help`.
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

/// An error in the JSON output when there is no report.
#[derive(Serialize)]
struct LocatedFault {
    /// The file, or "settings".
    origin: String,
    #[serde(flatten)]
    fault: Fault,
}

/// Checks, prints the report, and fails if a server failed.
pub fn run(args: &CheckArgs, settings: &SettingsArgs) -> Result<(), Failure> {
    let output = args.output;
    let (settings, config) = match load(settings) {
        Ok(loaded) => loaded,
        Err(faults) if output.is_json() => {
            print_json(&json!({"ok": false, "faults": located(faults)}))?;
            return Err(Failure::silent(2));
        }
        Err(faults) => return Err(Failure::faulty(&faults)),
    };
    let _log = output::start(&settings.log)?;
    let path = settings.config_file.clone();
    let mut warnings = settings.warnings.clone();
    warnings.extend(config.warnings.iter().cloned());
    let servers = if args.no_start {
        let specs = config.servers.values();
        specs.map(|spec| ServerReport::skipped(spec)).collect()
    } else {
        let surveyed = with_temporary_jobs(|jobs| survey(settings, jobs, config, true))?;
        surveyed.iter().map(ServerReport::from_surveyed).collect()
    };
    let servers: Vec<ServerReport> = servers;
    let report = Report {
        ok: servers.iter().all(|server| server.status != Status::Failed),
        config_file: path,
        warnings,
        servers,
    };
    output.print(&report, |report| {
        wrapped(&report.text(args.verbose), terminal_width())
    })?;
    Failure::unless(report.ok)
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

fn located(errors: Vec<ConfigError>) -> Vec<LocatedFault> {
    let faults = errors.into_iter().flat_map(|error| {
        let (origin, faults) = match error {
            ConfigError::Faulty(Faults { origin, faults }) => (origin, faults),
            ConfigError::Unreadable { path, source } => {
                let problem = format!("cannot be read ({source})");
                (path, vec![Fault::new("", problem, remedy(&source))])
            }
        };
        let faults = faults.into_iter().map(move |fault| (origin.clone(), fault));
        faults.map(|(origin, fault)| LocatedFault { origin, fault })
    });
    faults.collect()
}

// How further processes of a server are started, with the reason.

/// The JSON output; `None` if it is unknown.
fn forking_json(forking: &Forking) -> Option<Value> {
    match forking {
        Forking::Forks { modules, left_out } => {
            Some(json!({"how": "forked", "modules": modules, "left_out": left_out}))
        }
        Forking::Starts(why) => Some(json!({"how": "started", "why": why})),
        Forking::NotYet => None,
    }
}

/// The text output, with details if `verbose`; `None` if it is unknown.
fn forking_text(forking: &Forking, verbose: bool) -> Option<String> {
    Some(match forking {
        Forking::Forks { modules, left_out } => {
            let modules = counted(*modules, "module");
            let own = match (left_out.is_empty(), verbose) {
                (true, _) => String::new(),
                (false, false) => "; details with --verbose".to_owned(),
                (false, true) => format!("; not preloaded: {}", plain(&left_out.join(", "))),
            };
            format!("start: forked from a preloaded process ({modules}){own}")
        }
        Forking::Starts(why) => format!("start: new process each time ({})", plain(why)),
        Forking::NotYet => return None,
    })
}

// How a server is launched, with the reason.

/// The result, as `check` shows it.
#[derive(Serialize)]
pub struct Launch {
    how: How,
    /// The package that contains its program.
    #[serde(skip_serializing_if = "Option::is_none")]
    package: Option<String>,
    /// The part of the package that runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    runs: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
}

#[derive(Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
enum How {
    /// From an environment whose versions are in the lock file.
    Locked,
    /// From an environment whose versions were chosen when it was created.
    Installed,
    /// By its launcher.
    AsWritten,
    /// Not at all.
    Refused,
}

impl Launch {
    /// `None` if there is nothing to install.
    pub fn from_launching(launching: &Launching) -> Option<Self> {
        let (how, found, why) = match launching {
            Launching::Installed(found) if found.folder.is_none() => return None,
            Launching::Installed(found) if found.locked => (How::Locked, Some(found), None),
            Launching::Installed(found) => (How::Installed, Some(found), None),
            Launching::AsWritten(why) => (How::AsWritten, None, Some(why.as_deref()?)),
            Launching::Installing { .. } => (How::AsWritten, None, Some("it is being installed")),
            Launching::Refused(why) => (How::Refused, None, Some(&**why)),
        };
        let main = found.and_then(|found| found.main.as_ref());
        Some(Self {
            how,
            package: main.map(|(name, version)| format!("{name} {version}")),
            runs: found.and_then(|found| runs(&found.kind)),
            why: why.map(str::to_owned),
        })
    }

    /// The text output.
    pub fn text(&self) -> String {
        let package = self.package.as_deref().unwrap_or("installed packages");
        let why = plain(self.why.as_deref().unwrap_or_default());
        match self.how {
            How::Locked => format!("launch: {package}, installed and locked"),
            How::Installed => format!("launch: {package}, installed"),
            How::AsWritten => format!("launch: own command line ({why})"),
            How::Refused => format!("launch: refused ({why})"),
        }
    }
}

fn runs(kind: &Kind) -> Option<String> {
    match kind {
        Kind::Python { target, .. } => Some(match target.as_ref()? {
            Target::Function { module, function } => format!("python {module}:{function}"),
            Target::Module(module) => format!("python -m {module}"),
            Target::File(path) => format!("python {}", path.display()),
        }),
        Kind::Node => Some("node".to_owned()),
        Kind::Other => None,
    }
}

// The report of `check`, as text and JSON.

/// Number of tools that small models can still handle.
const MANY_TOOLS: usize = 15;

/// Estimated bytes of English and JSON per token.
const BYTES_PER_TOKEN: usize = 4;

/// The report.
#[derive(Serialize)]
pub struct Report {
    /// True if no server failed.
    pub ok: bool,
    config_file: PathBuf,
    /// Warnings about the settings and the server file.
    warnings: Vec<String>,
    servers: Vec<ServerReport>,
}

/// The result of one server.
#[derive(Serialize)]
pub struct ServerReport {
    name: String,
    status: Status,
    mode: Mode,
    /// The error, with the server's last output.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(flatten)]
    found: Option<Found>,
    start_seconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    launch: Option<Launch>,
    #[serde(skip)]
    forking: Option<Forking>,
    #[serde(skip_serializing_if = "Option::is_none")]
    processes: Option<Value>,
    warnings: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    Ok,
    Failed,
    /// Not started, because of --no-start.
    Skipped,
}

#[derive(Serialize)]
struct Found {
    title: String,
    version: String,
    tools_offered: usize,
    tools_all: usize,
    tokens_estimate: usize,
    memory_bytes: u64,
    /// In the server's order.
    tools: Vec<ToolCost>,
}

/// One tool, and its cost in every request of a model that may use it.
#[derive(Serialize)]
struct ToolCost {
    name: String,
    tokens_estimate: usize,
}

impl Report {
    /// The text output, with details if `verbose`.
    pub fn text(&self, verbose: bool) -> String {
        let mut text = String::new();
        for warning in &self.warnings {
            let _ = writeln!(text, "{ODD}warning:{ODD:#} {}", indented(warning, 2));
        }
        for server in &self.servers {
            server.write(&mut text, verbose);
        }
        let path = self.config_file.display();
        let servers = counted(self.servers.len(), "server");
        let failed = self.servers.iter();
        let failed = failed.filter(|server| server.status == Status::Failed);
        let _ = match failed.count() {
            0 if !self.servers.iter().any(|one| one.status == Status::Skipped) => {
                let all = if self.servers.len() == 1 { "" } else { "all " };
                writeln!(text, "{GOOD}{all}{servers} OK{GOOD:#} ({path})")
            }
            0 => writeln!(
                text,
                "{GOOD}configuration valid{GOOD:#}, {servers} not started ({path})"
            ),
            failed => writeln!(text, "{BAD}{failed} of {servers} failed{BAD:#} ({path})"),
        };
        text
    }
}

impl ServerReport {
    /// The result of a server that was not started.
    pub fn skipped(spec: &ServerSpec) -> Self {
        Self {
            name: spec.name.to_string(),
            status: Status::Skipped,
            mode: spec.mode,
            error: None,
            found: None,
            start_seconds: None,
            launch: None,
            forking: None,
            processes: None,
            warnings: Vec::new(),
        }
    }

    /// The result of a server that was started.
    pub fn from_surveyed(surveyed: &Surveyed) -> Self {
        let base = Self {
            start_seconds: Some((surveyed.took.as_secs_f64() * 1000.0).round() / 1000.0),
            launch: Launch::from_launching(&surveyed.launching),
            forking: surveyed.forking.clone(),
            processes: surveyed.forking.as_ref().and_then(forking_json),
            ..Self::skipped(&surveyed.spec)
        };
        match &surveyed.outcome {
            Ok(offer) => Self {
                status: Status::Ok,
                found: Some(Found::from_offer(offer)),
                warnings: warnings(offer),
                ..base
            },
            Err(error) => Self {
                status: Status::Failed,
                error: Some(error.clone()),
                ..base
            },
        }
    }

    fn write(&self, text: &mut String, verbose: bool) {
        let name = &self.name;
        let mode = self.mode.as_str();
        let _ = write!(text, "{BOLD}{name}{BOLD:#} {DIM}({mode}){DIM:#}: ");
        let _ = match (&self.found, &self.error) {
            (Some(found), _) => write!(text, "{GOOD}ok{GOOD:#}, {}", found.text()),
            (None, Some(error)) => write!(text, "{BAD}failed{BAD:#}: {}", indented(error, 2)),
            (None, None) => write!(text, "not started"),
        };
        text.push('\n');
        let costs = self.found.iter().flat_map(|found| &found.tools);
        let cost = |tool: &ToolCost| format!("{} {}", plain(&tool.name), tool.tokens_estimate);
        let costs: Vec<String> = costs.map(cost).collect();
        if verbose && !costs.is_empty() {
            let costs = costs.join(", ");
            let _ = writeln!(text, "  {DIM}estimated tokens per tool:{DIM:#} {costs}");
        }
        if let Some(launch) = &self.launch {
            let _ = writeln!(text, "  {DIM}{}{DIM:#}", indented(&launch.text(), 4));
        }
        let forking = self.forking.as_ref();
        if let Some(processes) = forking.and_then(|forking| forking_text(forking, verbose)) {
            let _ = writeln!(text, "  {DIM}{}{DIM:#}", indented(&processes, 4));
        }
        for warning in &self.warnings {
            let _ = writeln!(text, "  {ODD}warning:{ODD:#} {}", indented(warning, 4));
        }
    }
}

impl Found {
    fn from_offer(offer: &Offer) -> Self {
        let guide = offer.spec.usage_guide.as_deref();
        let cost = |tool: &Tool| ToolCost {
            name: tool.name.to_string(),
            tokens_estimate: tokens(std::iter::once(tool), guide),
        };
        Self {
            title: offer.title().to_owned(),
            version: offer.learnt.hello.server_info.version.clone(),
            tools_offered: offer.tools().len(),
            tools_all: offer.learnt.tools.len(),
            tokens_estimate: tokens(offer.tools(), guide),
            memory_bytes: offer.learnt.memory,
            tools: offer.tools().map(cost).collect(),
        }
    }

    fn text(&self) -> String {
        format!(
            "{} of {} offered, about {} tokens, {} memory ({} {})",
            self.tools_offered,
            counted(self.tools_all, "tool"),
            self.tokens_estimate,
            HumanBytes(self.memory_bytes),
            plain(&self.title),
            plain(&self.version),
        )
    }
}

/// The estimated tokens of the tools in every request of a model that may use them.
fn tokens<'a>(tools: impl Iterator<Item = &'a Tool>, guide: Option<&str>) -> usize {
    let guide = guide.map_or(0, str::len);
    let bytes = tools.map(|tool| {
        let description = tool.description().map_or(0, str::len);
        let schema = request_schema(tool).schema.to_string();
        tool.name.len() + description + guide + schema.len()
    });
    bytes.sum::<usize>().div_ceil(BYTES_PER_TOKEN)
}

fn warnings(offer: &Offer) -> Vec<String> {
    let subject = format!("server '{}': ", offer.spec.name);
    let own = offer.warnings().into_iter();
    // The server's name is omitted, because the report shows it above.
    let own = own.map(|warning| match warning.strip_prefix(&subject) {
        Some(rest) => rest.to_owned(),
        None => warning,
    });
    let mut warnings: Vec<String> = own.collect();
    let offered = offer.tools().len();
    if offered > MANY_TOOLS {
        warnings.push(format!(
            "{offered} tools are offered, but small models handle at most {MANY_TOOLS}; list the useful tools \
             in enabledTools"
        ));
    }
    if offered == 0 {
        warnings.push("no tools are offered; check enabledTools and disabledTools".to_owned());
    }
    for tool in offer.tools() {
        let name = &tool.name;
        let schema = request_schema(tool).warnings.into_iter();
        // Compiled here, because the offer's own rules would log these warnings.
        let rules = ArgumentRules::compile(tool.input_schema());
        let both = schema.chain(rules.warning().map(str::to_owned));
        warnings.extend(both.map(|warning| format!("tool {name}: {warning}")));
    }
    warnings
}

#[cfg(test)]
mod report_tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn tokens_count_what_every_request_carries() {
        let tool = |description: &str| {
            let schema = json!({"type": "object", "properties": {}});
            let tool = json!({"name": "abcd", "description": description, "inputSchema": schema});
            Tool::read(tool).unwrap()
        };
        let plain = tokens([tool("")].iter(), None);
        assert!(plain > 1);
        assert_eq!(tokens([tool(&"x".repeat(400))].iter(), None), plain + 100);
        let guided = tokens([tool(""), tool("")].iter(), Some(&"g".repeat(40)));
        // Rounded up once instead of twice.
        assert!(guided.abs_diff(2 * plain + 20) <= 1, "{guided}");
    }
}
