//! The tables of `docs/configuration.md`, and the tests that keep them complete.

use std::{collections::BTreeSet, fmt::Write as _, fs, path::Path};

use super::reader::{Setting, Unset, table};

/// The tables of `docs/configuration.md`, between their markers.
fn markdown() -> String {
    let mut text = String::new();
    let mut heading = "";
    for setting in table() {
        if setting.heading != heading {
            heading = setting.heading;
            let head =
                "| Variable | Flag | Value | Default | What it does |\n|---|---|---|---|---|";
            let _ = write!(text, "\n### {heading}\n\n{head}\n");
        }
        let short = setting.short.map(|short| format!(", `-{short}`"));
        let default = match setting.default {
            Unset::None => "none".to_owned(),
            Unset::Value(value) => format!("`{value}`"),
            Unset::Computed(words) => words.to_owned(),
        };
        let cells = [
            format!("`{}`", setting.variable()),
            format!("`{}`{}", setting.flag(), short.unwrap_or_default()),
            setting.value.to_owned(),
            default,
            setting.help,
        ];
        // A bar would end the cell.
        let cells = cells.map(|cell| cell.replace('|', "\\|"));
        let _ = writeln!(text, "| {} |", cells.join(" | "));
    }
    text
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
fn every_setting_says_what_it_does_in_which_unit() {
    let table = table();
    assert!(table.len() > 70, "{}", table.len());
    for setting in &table {
        assert!(setting.help.len() > 10, "{setting:?}");
        assert!(
            !setting.value.is_empty() && !setting.heading.is_empty(),
            "{setting:?}"
        );
        assert!(!setting.help.contains("  "), "{setting:?}");
    }
    let names: BTreeSet<_> = table.iter().map(Setting::variable).collect();
    assert_eq!(names.len(), table.len());
}

#[test]
fn a_declaration_gives_flag_variable_and_default() {
    let table = table();
    let find = |variable: &str| {
        let mut found = table
            .iter()
            .filter(|setting| setting.variable() == variable);
        found.next().unwrap_or_else(|| panic!("{variable}"))
    };
    let port = find("MCPO_PORT");
    assert_eq!(
        (&*port.flag(), port.short, port.value),
        ("--port", Some('p'), "PORT")
    );
    assert_eq!(port.default, Unset::Value("8080"));
    assert_eq!(find("MCPO_CONFIG_FILE").flag(), "--config", "mcpo's name");
    assert_eq!(
        find("MCPO_FILE_RETENTION").default,
        Unset::Computed("the file expiry")
    );
    for secret in ["MCPO_API_KEY", "MCPO_JWT_SECRET", "MCPO_PEER_KEY"] {
        let file = find(&format!("{secret}_FILE"));
        assert!(find(secret).arg().is_hide_env_values_set(), "{secret}");
        assert!(file.help.contains(&find(secret).flag()), "{file:?}");
    }
}
