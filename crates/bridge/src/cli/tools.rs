//! `mcpo-bridge tools`: the tools that callers may use.

use std::fmt::Write as _;

use clap::Args;
use serde::Serialize;
use serde_json::{Map, Value};

use super::{
    Failure, SettingsArgs,
    local::{Surveyed, load, survey, with_temporary_jobs},
    output::{BOLD, OutputArgs, one_line},
};

/// Text after the options in `--help`.
pub const HELP: &str = "\
Starts the servers in a temporary directory and ends them again. Tools excluded by enabledTools and disabledTools \
are not listed. --json prints the full definitions, including schemas.

Examples:
  mcpo-bridge tools
  mcpo-bridge tools excel
  mcpo-bridge tools excel --json | jq '.[].tools[].inputSchema'";

/// Maximum length of a description in the list.
const SHOWN: usize = 100;

/// The arguments of `tools`.
#[derive(Args)]
pub struct ToolsArgs {
    /// Only this server
    #[arg(value_name = "SERVER")]
    server: Option<String>,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Serialize)]
struct Listed {
    server: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    tools: Vec<Map<String, Value>>,
}

/// Lists the tools, and fails if a server failed.
pub fn run(args: &ToolsArgs, settings: &SettingsArgs) -> Result<(), Failure> {
    let (settings, _log, config) = load(settings, args.server.as_deref())?;
    let surveyed = with_temporary_jobs(|jobs| survey(settings, jobs, config, false))?;
    let listed: Vec<Listed> = surveyed.iter().map(Listed::from_surveyed).collect();
    args.output.print(&listed, |listed| text(listed))?;
    let failed = surveyed.iter().filter_map(|server| {
        let error = server.outcome.as_ref().err()?;
        Some(format!("{}: {error}", server.spec.name))
    });
    let failed: Vec<String> = failed.collect();
    if failed.is_empty() {
        Ok(())
    } else {
        Err(Failure::failed(failed.join("\n")))
    }
}

impl Listed {
    fn from_surveyed(surveyed: &Surveyed) -> Self {
        let (error, tools) = match &surveyed.outcome {
            Ok(offer) => (
                None,
                offer.tools().map(|tool| tool.object.clone()).collect(),
            ),
            Err(error) => (Some(error.clone()), Vec::new()),
        };
        Self {
            server: surveyed.spec.name.to_string(),
            error,
            tools,
        }
    }
}

fn text(listed: &[Listed]) -> String {
    let mut text = String::new();
    for server in listed.iter().filter(|server| server.error.is_none()) {
        let _ = writeln!(text, "{BOLD}{}{BOLD:#}", server.server);
        let said = |tool: &Map<String, Value>, key: &str| {
            let value = tool.get(key).and_then(Value::as_str);
            one_line(value.unwrap_or_default(), SHOWN)
        };
        let names: Vec<String> = server.tools.iter().map(|tool| said(tool, "name")).collect();
        let width = names.iter().map(|name| name.chars().count()).max();
        let width = width.unwrap_or(0);
        for (tool, name) in server.tools.iter().zip(names) {
            let line = format!("  {name:width$}  {}", said(tool, "description"));
            let _ = writeln!(text, "{}", line.trim_end());
        }
    }
    text
}
