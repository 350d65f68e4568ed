//! The command line: one file for each command.
//!
//! Answers go to stdout, everything else to stderr. Exit codes: 0 done, 1 failed, 2 told wrongly.

mod call;
mod check;
mod config_schema;
mod failure;
mod gc;
mod healthcheck;
mod init;
mod install;
mod jobs;
mod local;
mod log;
mod openwebui;
mod output;
mod serve;
mod sessions;
mod survey;
mod text;
mod tools;

use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

use crate::config::SettingsArgs;

use failure::Failure;
use local::Local;

/// Runs MCP servers for many people: a process and a folder for each chat, and what tools wrote as
/// expiring download links.
#[derive(Parser)]
#[command(
    name = "mcpo-bridge",
    about,
    long_about = None,
    after_help = HELP,
    args_conflicts_with_subcommands = true,
    override_usage = "mcpo-bridge [OPTIONS]\n       mcpo-bridge <COMMAND> [OPTIONS]"
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: serve::ServeArgs,
}

const HELP: &str = "\
Without a command it serves: `mcpo-bridge --config mcp-servers.json --port 8080`, or one server at
the root: `mcpo-bridge --port 8080 -- uvx mcp-server-time`.
Every setting is a flag and a variable: see `mcpo-bridge serve --help`.

Examples:
  mcpo-bridge init                      # a server file to start from
  mcpo-bridge check --config mcp-servers.json
  mcpo-bridge serve --config mcp-servers.json
  mcpo-bridge call time get_current_time --arg timezone=Asia/Tokyo

Exit codes: 0 done, 1 failed, 2 the command line, the settings or the server file are faulty.";

#[derive(Subcommand)]
enum Command {
    /// Serves; also what happens without a command
    #[command(after_help = serve::HELP)]
    Serve(serve::ServeArgs),
    /// Checks the settings and the server file, starts every server once and names every fault
    #[command(after_help = check::HELP)]
    Check(check::CheckArgs),
    /// Installs what servers need, and locks its versions
    #[command(after_help = install::HELP)]
    Install(install::InstallArgs),
    /// Lists the tools that are offered
    #[command(after_help = tools::HELP)]
    Tools(tools::ToolsArgs),
    /// Calls one tool
    #[command(after_help = call::HELP)]
    Call(call::CallArgs),
    /// Writes a commented server file to start from
    #[command(after_help = init::HELP)]
    Init(init::InitArgs),
    /// Lists the processes that live for chats
    #[command(after_help = sessions::HELP)]
    Sessions(sessions::SessionsArgs),
    /// Lists and shows workspaces, and takes links back
    #[command(subcommand)]
    Jobs(jobs::JobsCommand),
    /// Cleans up what has expired, or all that a user has
    #[command(after_help = gc::HELP)]
    Gc(gc::GcArgs),
    /// Asks a running bridge whether it is well
    #[command(after_help = healthcheck::HELP)]
    Healthcheck(healthcheck::HealthcheckArgs),
    /// What an administrator of Open WebUI needs
    #[command(subcommand)]
    Openwebui(openwebui::OpenWebUiCommand),
    /// Prints the JSON Schema of the server file
    #[command(after_help = config_schema::HELP)]
    ConfigSchema,
}

/// Parses, runs, returns the exit code: 0 done, 1 failed, 2 told wrongly.
pub fn main() -> ExitCode {
    let matches = command().get_matches();
    let cli = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    let done = match cli.command {
        None => return serve::run(cli.serve),
        Some(Command::Serve(args)) => return serve::run(args),
        Some(Command::Check(args)) => check::run(args),
        Some(Command::Install(args)) => install::run(args),
        Some(Command::Tools(args)) => tools::run(args),
        Some(Command::Call(args)) => call::run(args),
        Some(Command::Init(args)) => init::run(args),
        Some(Command::Sessions(args)) => sessions::run(args),
        Some(Command::Jobs(command)) => jobs::run(command),
        Some(Command::Gc(args)) => gc::run(args),
        Some(Command::Healthcheck(args)) => healthcheck::run(args),
        Some(Command::Openwebui(command)) => openwebui::run(command),
        Some(Command::ConfigSchema) => config_schema::run(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.tell(),
    }
}

/// The settings that a command's `--help` shows: those that matter to it most.
const SHOWN: [(&str, &[&str]); 13] = [
    (
        "check",
        &["config", "tools_dir", "start_timeout", "log_level"],
    ),
    (
        "install",
        &["config", "tools_dir", "lock_file", "start_timeout"],
    ),
    (
        "tools",
        &["config", "tools_dir", "start_timeout", "log_level"],
    ),
    (
        "call",
        &["config", "jobs_dir", "tools_dir", "timeout", "log_level"],
    ),
    ("sessions", &["jobs_dir"]),
    ("list", &["jobs_dir"]),
    ("show", &["jobs_dir", "base_url"]),
    ("revoke", &["jobs_dir", "log_file"]),
    ("gc", &["jobs_dir", "file_retention"]),
    ("healthcheck", &["host", "port", "path_prefix"]),
    ("spec-path", &["api_key", "api_key_file"]),
    ("connections", &["config", "api_key", "api_key_file"]),
    ("sync", &["config", "api_key", "api_key_file"]),
];

/// The definition, with a `--help` that fits a screen: only `serve` lists all settings.
fn command() -> clap::Command {
    brief(Cli::command())
}

/// Hides settings, which stand under headings, here and in every command below but `serve`. They
/// work all the same.
fn brief(command: clap::Command) -> clap::Command {
    let name = command.get_name().to_owned();
    let found = SHOWN.iter().find(|(command, _)| *command == name);
    let shown = found.map_or(&[][..], |(_, shown)| *shown);
    let command = command.mut_args(|arg| {
        let hidden = arg.get_help_heading().is_some() && !shown.contains(&arg.get_id().as_str());
        if hidden { arg.hide(true) } else { arg }
    });
    let below = names(&command);
    let below = below.iter().filter(|name| *name != "serve");
    let command = below.fold(command, |command, name| command.mut_subcommand(name, brief));
    if shown.is_empty() {
        return command;
    }
    let help = command.get_after_help().map(ToString::to_string);
    command.after_help(format!(
        "All other settings work here too: see `mcpo-bridge serve --help`.\n\n{}",
        help.unwrap_or_default()
    ))
}

fn names(command: &clap::Command) -> Vec<String> {
    let all = command.get_subcommands();
    all.map(|sub| sub.get_name().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_sound() {
        command().debug_assert();
    }

    #[test]
    fn settings_are_taken_after_every_command_that_reads_them() {
        for line in [
            "check",
            "install",
            "tools",
            "call a b",
            "sessions",
            "jobs list",
            "jobs show x",
            "jobs revoke x",
            "gc",
            "healthcheck",
            "openwebui spec-path",
            "openwebui connections",
            "openwebui sync --url http://x",
        ] {
            let words = line.split(' ');
            let given = ["mcpo-bridge"].into_iter().chain(words);
            let given = given.chain(["--jobs-dir", "d", "--port=7", "--strict-auth"]);
            let matches = command().try_get_matches_from(given);
            assert!(matches.is_ok(), "{line}: {matches:?}");
        }
    }

    #[test]
    fn a_setting_before_the_command_is_refused_and_not_forgotten() {
        let given = ["mcpo-bridge", "--config", "x", "check"];
        assert!(command().try_get_matches_from(given).is_err());
    }

    #[test]
    fn only_serve_lists_every_setting() {
        let help = |name: &str| {
            let mut command = command();
            let sub = command.find_subcommand_mut(name).unwrap();
            sub.render_long_help().to_string()
        };
        assert!(help("serve").contains("--header-user-id"));
        for name in ["check", "install", "call", "sessions", "gc"] {
            let help = help(name);
            assert!(
                help.contains("serve --help") && !help.contains("--header-user-id"),
                "{name}"
            );
            assert!(help.contains("Examples:"), "{name}");
        }
        assert!(
            !command()
                .render_long_help()
                .to_string()
                .contains("--header-user-id")
        );
    }
}
