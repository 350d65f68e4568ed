//! The settings as data, for `docs/configuration.md` and the test that holds it to them.

use clap::{Arg, Args, Command};
use serde::Serialize;

use super::args::SettingsArgs;

/// One setting, as the command line defines it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SettingDoc {
    /// The group in `--help`.
    pub group: String,
    /// `--port`
    pub flag: String,
    /// `-p`
    pub short: Option<char>,
    /// `MCPO_PORT`
    pub variable: String,
    /// As text; none where the setting is off unless given.
    pub default: Option<String>,
    /// What the value is: `SECONDS`, `BYTES`, `COUNT`, `FILE` …
    pub unit: String,
    /// One or two sentences, without the default.
    pub help: String,
}

/// Every setting, in the order of `--help`.
pub fn settings_reference() -> Vec<SettingDoc> {
    settings_command().get_arguments().map(describe).collect()
}

/// A command with the settings and nothing else.
pub(super) fn settings_command() -> Command {
    SettingsArgs::augment_args(Command::new("settings"))
}

fn describe(arg: &Arg) -> SettingDoc {
    let text = arg.get_help().map(ToString::to_string).unwrap_or_default();
    let (help, computed) = split_default(&text);
    SettingDoc {
        group: arg.get_help_heading().unwrap_or_default().to_owned(),
        flag: flag_of(arg),
        short: arg.get_short(),
        variable: variable_of(arg),
        default: default_of(arg).or(computed),
        unit: arg
            .get_value_names()
            .and_then(|names| names.first())
            .map(ToString::to_string)
            .unwrap_or_default(),
        help,
    }
}

/// Takes `[default: …]` off the end of a help text.
fn split_default(text: &str) -> (String, Option<String>) {
    let split = text
        .strip_suffix(']')
        .and_then(|text| text.rsplit_once("[default: "));
    match split {
        Some((help, "none")) => (help.trim_end().to_owned(), None),
        Some((help, default)) => (help.trim_end().to_owned(), Some(default.to_owned())),
        None => (text.to_owned(), None),
    }
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_flag_is_its_variable_and_the_other_way_round() {
        for doc in settings_reference() {
            let flag = doc
                .flag
                .trim_start_matches("--")
                .replace('-', "_")
                .to_uppercase();
            let variable = doc.variable.strip_prefix("MCPO_").expect("our prefix");
            // mcpo's own name for the flag; `--config-file` works as well.
            let variable = if variable == "CONFIG_FILE" {
                "CONFIG"
            } else {
                variable
            };
            assert_eq!(variable, flag);
        }
    }

    #[test]
    fn every_setting_says_what_it_does_in_which_unit() {
        let docs = settings_reference();
        assert!(docs.len() > 40, "{}", docs.len());
        for doc in &docs {
            assert!(doc.help.len() > 10, "{doc:?}");
            assert!(!doc.unit.is_empty() && !doc.group.is_empty(), "{doc:?}");
            assert!(!doc.help.contains("[default"), "{doc:?}");
        }
        let names: BTreeSet<_> = docs.iter().map(|doc| &doc.variable).collect();
        assert_eq!(names.len(), docs.len());
    }

    #[test]
    fn defaults_that_are_worked_out_are_told_too() {
        let docs = settings_reference();
        let default = |variable: &str| {
            let doc = docs.iter().find(|doc| doc.variable == variable).unwrap();
            doc.default.clone()
        };
        assert_eq!(default("MCPO_PORT").unwrap(), "8080");
        assert!(default("MCPO_MAX_CONCURRENT").unwrap().starts_with("4 ×"));
        assert_eq!(default("MCPO_FILE_RETENTION").unwrap(), "the file expiry");
        assert_eq!(default("MCPO_API_KEY"), None);
    }

    #[test]
    fn every_secret_has_a_file() {
        let docs = settings_reference();
        let has = |name: &str| docs.iter().any(|doc| doc.variable == name);
        for secret in ["MCPO_API_KEY", "MCPO_JWT_SECRET"] {
            assert!(has(secret) && has(&format!("{secret}_FILE")), "{secret}");
        }
    }
}
