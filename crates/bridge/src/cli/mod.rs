//! The command line: one file for each command.
//!
//! Results are written to stdout, everything else to stderr. Exit codes: 0 success, 1 failure, 2 usage error.
//!
//! Settings are accepted before and after a command, and every command accepts all of them; its `--help`
//! shows the most relevant ones, so that it fits on a screen.

mod call;
mod check;
mod gc;
mod healthcheck;
mod init;
mod install;
mod jobs;
mod local;
mod openwebui;
mod output;
mod serve;
mod sessions;
mod tools;

use std::{fmt, process::ExitCode};

use clap::{
    ArgMatches, Args as _, CommandFactory as _, FromArgMatches as _, Parser, Subcommand,
    error::{ContextKind, ContextValue, ErrorKind},
    parser::ValueSource,
};
use local::Local;
use output::{BAD, indented, note, plain, print_json};
use serve::ServeArgs;

use crate::config::{ConfigError, Faults, SettingsArgs, json_schema};

/// Runs MCP servers for many users: one process and folder per chat, generated files as expiring download
/// links
#[derive(Parser)]
#[command(
    name = "mcpo-bridge",
    after_help = HELP,
    override_usage = "mcpo-bridge [OPTIONS]\n       mcpo-bridge [OPTIONS] <COMMAND> [OPTIONS]"
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: ServeArgs,
}

const HELP: &str = "\
Without a command the bridge starts: `mcpo-bridge --config mcp-servers.json --port 8080`, or with a \
single server at the root: `mcpo-bridge --port 8080 -- uvx mcp-server-time`.

Every setting is available as a flag and as an environment variable: see `mcpo-bridge serve --help`.

Examples:
  mcpo-bridge init                      # create a server file
  mcpo-bridge check --config mcp-servers.json
  mcpo-bridge serve --config mcp-servers.json
  mcpo-bridge call time get_current_time --arg timezone=Asia/Tokyo

Exit codes: 0 success, 1 failure, 2 invalid command line, settings or server file.";

#[derive(Subcommand)]
enum Command {
    /// Start the bridge (default)
    #[command(after_help = serve::HELP)]
    Serve(ServeArgs),
    /// Validate settings and server file, start every server once and report all problems
    #[command(after_help = check::HELP)]
    Check(check::CheckArgs),
    /// Install the servers' packages and lock their versions
    #[command(after_help = install::HELP)]
    Install(install::InstallArgs),
    /// List the tools each server offers
    #[command(after_help = tools::HELP)]
    Tools(tools::ToolsArgs),
    /// Call a tool
    #[command(after_help = call::HELP)]
    Call(call::CallArgs),
    /// Create a commented server file
    #[command(after_help = init::HELP)]
    Init(init::InitArgs),
    /// List live chat sessions
    #[command(after_help = sessions::HELP)]
    Sessions(sessions::SessionsArgs),
    /// List and inspect workspaces, revoke links
    #[command(subcommand)]
    Jobs(jobs::JobsCommand),
    /// Delete expired data, or everything of one user
    #[command(after_help = gc::HELP)]
    Gc(gc::GcArgs),
    /// Check the health of a running bridge
    #[command(after_help = healthcheck::HELP)]
    Healthcheck(healthcheck::HealthcheckArgs),
    /// Manage the connections in Open WebUI
    #[command(subcommand)]
    Openwebui(openwebui::OpenWebUiCommand),
    /// Print the JSON Schema of the server file
    #[command(after_help = CONFIG_SCHEMA_HELP)]
    ConfigSchema,
}

/// Parses the command line, runs the command and returns the exit code: 0 success, 1 failure, 2 usage error.
pub fn main() -> ExitCode {
    let parsed = command().try_get_matches().map_err(with_guess);
    let parsed = parsed.and_then(|matches| {
        misplaced(&matches)?;
        Ok((settings(&matches)?, Cli::from_arg_matches(&matches)?))
    });
    let (settings, cli) = parsed.unwrap_or_else(|error| error.exit());
    let done = match cli.command {
        None => return serve::run(cli.serve.with(settings)),
        Some(Command::Serve(args)) => return serve::run(args.with(settings)),
        Some(Command::Check(args)) => check::run(&args, &settings),
        Some(Command::Install(args)) => install::run(args, &settings),
        Some(Command::Tools(args)) => tools::run(&args, &settings),
        Some(Command::Call(args)) => call::run(args, &settings),
        Some(Command::Init(args)) => init::run(args, &settings),
        Some(Command::Sessions(args)) => sessions::run(&args, &settings),
        Some(Command::Jobs(command)) => jobs::run(command, &settings),
        Some(Command::Gc(args)) => gc::run(args, &settings),
        Some(Command::Healthcheck(args)) => healthcheck::run(&args, &settings),
        Some(Command::Openwebui(command)) => openwebui::run(command, &settings),
        Some(Command::ConfigSchema) => print_json(&json_schema()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

/// The settings that a command's `--help` shows.
fn shown(command: &str) -> &'static [&'static str] {
    match command {
        "check" | "tools" => &["config-file", "tools-dir", "start-timeout", "log-level"],
        "install" => &["config-file", "tools-dir", "lock-file", "start-timeout"],
        "call" => &[
            "config-file",
            "jobs-dir",
            "tools-dir",
            "timeout",
            "log-level",
        ],
        "sessions" | "list" => &["jobs-dir"],
        "show" => &["jobs-dir", "base-url"],
        "revoke" => &["jobs-dir", "log-file"],
        "gc" => &["jobs-dir", "file-retention"],
        "healthcheck" => &["host", "port", "path-prefix"],
        "spec-path" => &["api-key", "api-key-file"],
        "connections" | "sync" => &["config-file", "api-key", "api-key-file"],
        _ => &[],
    }
}

/// The command definition, with the settings in every command.
fn command() -> clap::Command {
    let command = Cli::command().mut_args(|arg| {
        let hidden = arg.get_help_heading().is_some();
        arg.hide(hidden)
    });
    below(command)
}

/// Adds the settings to all subcommands. `serve` has them already, and shows all of them.
fn below(command: clap::Command) -> clap::Command {
    let names = command.get_subcommands().map(clap::Command::get_name);
    let names = names.filter(|name| *name != "serve").map(str::to_owned);
    let names: Vec<String> = names.collect();
    names.iter().fold(command, |command, name| {
        command.mut_subcommand(name, |sub| {
            if sub.has_subcommands() {
                below(sub)
            } else {
                with_settings(sub)
            }
        })
    })
}

fn with_settings(command: clap::Command) -> clap::Command {
    let shown = shown(command.get_name());
    let command = SettingsArgs::augment_args(command).mut_args(|arg| {
        let other = arg.get_help_heading().is_some() && !shown.contains(&arg.get_id().as_str());
        let hidden = other || arg.is_hide_set();
        arg.hide(hidden)
    });
    if shown.is_empty() {
        return command;
    }
    let help = command.get_after_help().map(ToString::to_string);
    command.after_help(format!(
        "All other settings are accepted too: see `mcpo-bridge serve --help`.\n\n{}",
        help.unwrap_or_default()
    ))
}

/// The settings given before and after the command; those after it win.
fn settings(matches: &ArgMatches) -> Result<SettingsArgs, clap::Error> {
    let mut given = SettingsArgs::from_arg_matches(matches)?;
    if let Some((_, below)) = matches.subcommand() {
        given.overlay(settings(below)?);
    }
    Ok(given)
}

/// Only settings are allowed before a command: other flags would be ignored there.
fn misplaced(matches: &ArgMatches) -> Result<(), clap::Error> {
    let Some((name, _)) = matches.subcommand() else {
        return Ok(());
    };
    let definition = Cli::command();
    let given = |id: &str| matches.value_source(id) == Some(ValueSource::CommandLine);
    let mut others = definition.get_arguments().filter(|arg| {
        let id = arg.get_id().as_str();
        !SettingsArgs::has(id) && given(id)
    });
    others.next().map_or(Ok(()), |arg| {
        let flag = arg.get_long().unwrap_or_default();
        let message = format!("--{flag} is not allowed before '{name}': only settings are");
        Err(command().error(ErrorKind::ArgumentConflict, message))
    })
}

/// A word in the place of a command is treated as a mistyped command.
fn with_guess(error: clap::Error) -> clap::Error {
    let word = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(word)) if error.kind() == ErrorKind::UnknownArgument => {
            word.clone()
        }
        _ => return error,
    };
    let definition = command();
    let commands: Vec<&str> = definition
        .get_subcommands()
        .map(clap::Command::get_name)
        .collect();
    let mut before = std::env::args().skip(1).take_while(|given| *given != word);
    if word.starts_with('-') || before.any(|given| commands.contains(&&*given)) {
        return error;
    }
    let close = |name: &&str| strsim::jaro(&word, name);
    let nearest = commands.into_iter().filter(|name| close(name) > 0.7);
    let nearest = nearest.max_by(|one, other| close(one).total_cmp(&close(other)));
    let mut guess = clap::Error::new(ErrorKind::InvalidSubcommand).with_cmd(&definition);
    guess.insert(
        ContextKind::InvalidSubcommand,
        ContextValue::String(word.clone()),
    );
    if let Some(name) = nearest {
        let names = ContextValue::Strings(vec![name.to_owned()]);
        guess.insert(ContextKind::SuggestedSubcommand, names);
    }
    guess
}

// Why a command failed: a message for people and an exit code.

/// A command that failed.
#[derive(Debug)]
pub struct Failure {
    code: u8,
    /// Empty if the output already contains the errors.
    message: String,
    /// The message is printed without a prefix.
    names_itself: bool,
}

/// 128 plus the number of SIGINT, as in shells.
const INTERRUPTED: u8 = 130;

impl Failure {
    fn new(code: u8, message: String) -> Self {
        Self {
            code,
            message,
            names_itself: false,
        }
    }

    /// Exit code 1: the command failed.
    pub fn failed(message: impl fmt::Display) -> Self {
        Self::new(1, message.to_string())
    }

    /// Exit code 2: the command line, the settings or the server file are invalid.
    pub fn usage(message: impl fmt::Display) -> Self {
        Self::new(2, message.to_string())
    }

    /// The command was interrupted by a signal.
    pub fn interrupted() -> Self {
        Self::new(INTERRUPTED, "interrupted".to_owned())
    }

    /// A failure without a message, because the output already contains it.
    pub fn silent(code: u8) -> Self {
        Self::new(code, String::new())
    }

    /// Fails without a message unless `good`.
    pub fn unless(good: bool) -> Result<(), Self> {
        if good { Ok(()) } else { Err(Self::silent(1)) }
    }

    /// Exit code 2 with all errors; each line starts with the name of its source.
    pub fn faulty(sources: &[ConfigError]) -> Self {
        let sources: Vec<String> = sources.iter().map(ToString::to_string).collect();
        Self {
            names_itself: true,
            ..Self::usage(sources.join("\n"))
        }
    }

    /// Prints the message and returns the exit code.
    pub fn report(self) -> ExitCode {
        if self.names_itself {
            note(plain(&self.message));
        } else if !self.message.is_empty() {
            let message = indented(&self.message, 2);
            note(format_args!("{BAD}error:{BAD:#} {message}"));
        }
        ExitCode::from(self.code)
    }
}

impl From<Faults> for Failure {
    fn from(faults: Faults) -> Self {
        Self::faulty(&[ConfigError::Faulty(faults)])
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::faulty(&[error])
    }
}

// `mcpo-bridge config-schema`

/// Text after the options in `--help`.
const CONFIG_SCHEMA_HELP: &str = "\
Editors use the schema to complete and validate the server file: save it next to the file, and name it there \
in \"$schema\".

Example:
  mcpo-bridge config-schema > mcp-servers.schema.json";

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
    fn settings_stand_before_and_after_the_command_and_the_last_one_counts() {
        let given = |line: &str| {
            let line = ["mcpo-bridge"].into_iter().chain(line.split(' '));
            settings(&command().try_get_matches_from(line).unwrap()).unwrap()
        };
        let both = given("--port 1 --jobs-dir a jobs list --port 2")
            .resolve()
            .unwrap();
        assert_eq!((both.listen.port, both.jobs_dir.to_str()), (2, Some("a")));
        assert_eq!(given("--port 1 serve").resolve().unwrap().listen.port, 1);
    }

    #[test]
    fn only_settings_stand_before_the_command() {
        for line in ["-e A=B serve", "--type sse check", "--port-file p gc"] {
            let line = ["mcpo-bridge"].into_iter().chain(line.split(' '));
            let matches = command().try_get_matches_from(line).unwrap();
            assert!(misplaced(&matches).is_err(), "{matches:?}");
        }
    }

    #[track_caller]
    fn assert_filled(command: clap::Command) {
        const WIDTH: usize = 60;
        for below in command.get_subcommands() {
            assert_filled(below.clone());
        }
        let help = command.term_width(WIDTH).render_long_help().to_string();
        let lines: Vec<&str> = help.lines().collect();
        for pair in lines.windows(2) {
            let text = |line: &str| !line.is_empty() && !line.starts_with(' ');
            if text(pair[0]) && text(pair[1]) {
                let next = pair[1].split(' ').next().unwrap_or_default();
                let could = pair[0].chars().count() + 1 + next.chars().count();
                assert!(could > WIDTH, "broken by hand: {pair:?}");
            }
        }
    }

    #[test]
    fn paragraphs_of_help_are_as_wide_as_the_terminal() {
        assert_filled(command());
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
