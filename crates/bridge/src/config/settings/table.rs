//! The table of the settings, as clap holds it.

use clap::{Arg, Args, Command};

use super::args::SettingsArgs;

/// A command with the settings and nothing else.
pub(super) fn settings_command() -> Command {
    SettingsArgs::augment_args(Command::new("settings"))
}

pub(super) fn flag_of(arg: &Arg) -> String {
    format!("--{}", arg.get_long().unwrap_or_default())
}

pub(super) fn variable_of(arg: &Arg) -> String {
    let name = arg
        .get_env()
        .map(|name| name.to_string_lossy().into_owned());
    name.unwrap_or_default()
}

pub(super) fn default_of(arg: &Arg) -> Option<String> {
    let default = arg.get_default_values().first()?;
    Some(default.to_string_lossy().into_owned())
}
