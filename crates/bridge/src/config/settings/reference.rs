//! The settings as data, for `docs/configuration.md` and the tests that hold it to them.

use std::{collections::BTreeSet, fmt::Write as _, fs, path::Path};

use clap::Arg;

use super::table::{default_of, flag_of, settings_command, variable_of};

/// One setting, as the command line defines it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct SettingDoc {
    /// The group in `--help`.
    group: String,
    /// `--port`
    flag: String,
    /// `-p`
    short: Option<char>,
    /// `MCPO_PORT`
    variable: String,
    /// As text; none where the setting is off unless given.
    default: Option<String>,
    /// What the value is: `SECONDS`, `BYTES`, `COUNT`, `FILE` …
    unit: String,
    /// One or two sentences, without the default.
    help: String,
}

/// Every setting, in the order of `--help`.
fn settings_reference() -> Vec<SettingDoc> {
    settings_command().get_arguments().map(describe).collect()
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

/// The table of `docs/configuration.md`, between its markers.
fn markdown() -> String {
    let mut text = String::new();
    let mut group = String::new();
    for doc in settings_reference() {
        if doc.group != group {
            group.clone_from(&doc.group);
            let head =
                "| Variable | Flag | Value | Default | What it does |\n|---|---|---|---|---|";
            let _ = write!(text, "\n### {group}\n\n{head}\n");
        }
        let code = |text: &str| format!("`{text}`");
        let short = doc.short.map(|short| format!(", `-{short}`"));
        let cells = [
            code(&doc.variable),
            code(&doc.flag) + short.as_deref().unwrap_or_default(),
            doc.unit,
            doc.default
                .as_deref()
                .map_or_else(|| "none".to_owned(), shown_default),
            doc.help,
        ];
        // A bar would end the cell.
        let cells = cells.map(|cell| cell.replace('|', "\\|").replace('\n', " "));
        let _ = writeln!(text, "| {} |", cells.join(" | "));
    }
    text
}

/// Values stand as code; what is worked out stands as words.
fn shown_default(default: &str) -> String {
    if default.contains(' ') {
        default.to_owned()
    } else {
        format!("`{default}`")
    }
}

const START: &str = "<!-- settings:start -->";
const END: &str = "<!-- settings:end -->";

/// `UPDATE_DOCS=1 cargo test` writes the table anew; the rest of the page stays.
#[test]
fn the_table_in_the_docs_is_the_programs() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/configuration.md");
    let page = || fs::read_to_string(&file).unwrap_or_default();
    let wanted = format!("{START}\n{}\n{END}", markdown());
    if std::env::var_os("UPDATE_DOCS").is_some() {
        let before = page();
        let cut = before
            .split_once(START)
            .and_then(|(head, rest)| Some((head, rest.split_once(END)?.1)));
        let (head, tail) = cut.unwrap_or(("# Configuration\n\n## Settings\n\n", "\n"));
        fs::write(&file, format!("{head}{wanted}{tail}")).unwrap();
    }
    assert!(
        page().contains(&wanted),
        "run: UPDATE_DOCS=1 cargo test the_table_in_the_docs"
    );
}

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
