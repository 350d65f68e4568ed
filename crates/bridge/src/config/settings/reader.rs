//! Reads settings from flags and variables, one declaration after another. Reading without any values returns
//! the table of all settings, from which the flags, `--help` and the docs are generated.

use std::{collections::BTreeMap, fs};

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches, parser::ValueSource};

use super::Settings;
use crate::config::Fault;

/// Declares a section of settings: its struct, and how each field is read with the reader `$r`. The doc
/// comment of a field that is a setting is its help text. A field's expression can use the fields above it.
macro_rules! section {
    (
        $(#[doc = $about:literal])+
        pub struct $name:ident($r:ident, $heading:literal) {
            $( $(#[doc = $help:literal])+ $field:ident: $type:ty = $read:expr, )+
        }
    ) => {
        $(#[doc = $about])+
        #[derive(Debug, Clone)]
        #[allow(clippy::struct_field_names, reason = "workspaces have files, too")]
        pub struct $name {
            $( $(#[doc = $help])+ pub $field: $type, )+
        }

        impl $name {
            fn read($r: &mut Reader<'_>) -> Self {
                let outer = $r.enter($heading);
                $(
                    $r.describe(concat!($($help),+));
                    let $field: $type = $read;
                )+
                $r.enter(outer);
                Self { $($field),+ }
            }
        }
    };
}

/// One setting, as shown by `--help`, the docs and errors.
#[derive(Debug)]
pub(super) struct Setting {
    /// The heading of its section.
    pub heading: &'static str,
    /// Without the leading dashes; all but the first are aliases. The last one determines the variable.
    flags: Vec<String>,
    pub short: Option<char>,
    /// The kind of value: `SECONDS`, `BYTES`, `COUNT`, `FILE` …
    pub value: &'static str,
    /// Whether the setting is repeatable and comma-separated.
    list: bool,
    secret: bool,
    /// The help text without the default.
    pub help: String,
    pub default: Unset,
}

/// The meaning of an unset value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unset {
    /// No value.
    None,
    /// This default.
    Value(&'static str),
    /// A computed default with this description.
    Computed(&'static str),
}

impl Setting {
    /// Parses a declaration such as `-p, --port PORT`; a list ends with `...`.
    fn parse(usage: &'static str) -> Self {
        let (flags, value) = usage.rsplit_once(' ').unwrap_or((usage, ""));
        let flags = flags.split(", ");
        let (long, short): (Vec<_>, Vec<_>) = flags.partition(|flag| flag.starts_with("--"));
        Self {
            heading: "",
            flags: long.iter().map(|flag| flag[2..].to_owned()).collect(),
            short: short.first().and_then(|flag| flag.chars().nth(1)),
            value: value.trim_end_matches('.'),
            list: value.ends_with("..."),
            secret: false,
            help: String::new(),
            default: Unset::None,
        }
    }

    /// The name: `port`
    fn name(&self) -> &str {
        self.flags.last().map_or("", String::as_str)
    }

    /// The flag: `--port`
    pub(super) fn flag(&self) -> String {
        format!("--{}", self.flags[0])
    }

    /// The variable: `MCPO_PORT`
    pub(super) fn variable(&self) -> String {
        format!("MCPO_{}", self.name().replace('-', "_").to_uppercase())
    }

    /// The location in errors: `--port / MCPO_PORT`
    fn location(&self) -> String {
        format!("{} / {}", self.flag(), self.variable())
    }

    /// Values are kept as text, so that `resolve` can report all errors at once and treat an empty variable
    /// (Compose passes `${X:-}`) as unset.
    pub(super) fn arg(&self) -> Arg {
        let mut arg = Arg::new(self.name().to_owned())
            .long(self.flags[0].clone())
            .visible_aliases(self.flags[1..].to_owned())
            .env(self.variable())
            .hide_env_values(self.secret)
            .value_name(self.value)
            .help_heading(self.heading);
        if let Some(short) = self.short {
            arg = arg.short(short);
        }
        if self.list {
            arg = arg.action(ArgAction::Append);
        }
        if self.value == "BOOL" {
            arg = arg.num_args(0..=1).require_equals(true);
            arg = arg.default_missing_value("true");
        }
        match self.default {
            Unset::Value(value) => arg.default_value(value).help(self.help.clone()),
            Unset::Computed(words) => arg.help(format!("{} [default: {words}]", self.help)),
            Unset::None => arg.help(format!("{} [default: none]", self.help)),
        }
    }
}

/// All settings, in the order of `--help`.
pub(super) fn table() -> Vec<Setting> {
    let nothing = SettingsArgs::default();
    let mut reader = Reader::new(&nothing);
    Settings::read(&mut reader);
    reader.table
}

/// The values of flags and variables, not validated: texts by the names of settings.
#[derive(Clone, Default)]
pub struct SettingsArgs(BTreeMap<String, Given>);

#[derive(Clone)]
struct Given {
    /// Not empty, without surrounding white space.
    text: String,
    by_flag: bool,
}

impl SettingsArgs {
    pub(super) fn given(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(|given| &*given.text)
    }

    /// Overrides values by the flags of a subcommand.
    pub fn overlay(&mut self, below: Self) {
        let flags = below.0.into_iter().filter(|(_, given)| given.by_flag);
        self.0.extend(flags);
    }

    /// Whether a setting has this name.
    pub fn has(name: &str) -> bool {
        table().iter().any(|setting| setting.name() == name)
    }
}

impl Args for SettingsArgs {
    fn augment_args(command: Command) -> Command {
        command.args(table().iter().map(Setting::arg))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for SettingsArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = table().into_iter().filter_map(|setting| {
            let name = setting.name();
            // A command that only has subcommands has no settings.
            let texts = matches.try_get_many::<String>(name).ok()??;
            let source = matches.value_source(name);
            let text = texts.cloned().collect::<Vec<_>>().join(",");
            let text = text.trim_matches(|c: char| c.is_whitespace() || c == ',' && setting.list);
            let given = Given {
                text: text.to_owned(),
                by_flag: source == Some(ValueSource::CommandLine),
            };
            let set = !text.is_empty() && source != Some(ValueSource::DefaultValue);
            set.then(|| (name.to_owned(), given))
        });
        Ok(Self(given.collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.overlay(Self::from_arg_matches(matches)?);
        Ok(())
    }
}

/// Reads declarations and collects the errors, so that all are reported at once.
pub(super) struct Reader<'a> {
    given: &'a SettingsArgs,
    heading: &'static str,
    help: &'static str,
    table: Vec<Setting>,
    pub faults: Vec<Fault>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(given: &'a SettingsArgs) -> Self {
        Self {
            given,
            heading: "",
            help: "",
            table: Vec::new(),
            faults: Vec::new(),
        }
    }

    /// Sets the heading of the following settings; returns the previous one.
    pub(super) fn enter(&mut self, heading: &'static str) -> &'static str {
        std::mem::replace(&mut self.heading, heading)
    }

    /// Sets the help text of the next setting.
    pub(super) fn describe(&mut self, help: &'static str) -> &mut Self {
        self.help = help;
        self
    }

    /// Declares a setting, such as `-p, --port PORT`, and the parser of its text. The next method call
    /// determines its value when it is unset.
    pub(super) fn setting<T>(
        &mut self,
        usage: &'static str,
        parse: impl Fn(&str) -> Result<T, Fault> + 'static,
    ) -> Declared<'_, 'a, T> {
        let setting = Setting {
            heading: self.heading,
            help: self.help.replace("  ", " ").trim().to_owned(),
            ..Setting::parse(usage)
        };
        Declared {
            reader: self,
            setting,
            file: None,
            parse: Box::new(parse),
        }
    }
}

/// A declared setting that is not in the table yet.
pub(super) struct Declared<'r, 'a, T> {
    reader: &'r mut Reader<'a>,
    setting: Setting,
    /// The `…-file` setting of a secret.
    file: Option<Setting>,
    parse: Parse<T>,
}

type Parse<T> = Box<dyn Fn(&str) -> Result<T, Fault>>;

impl<T> Declared<'_, '_, T> {
    /// Marks it as a secret: it is never shown, and a second setting `…-file` names a file that contains it.
    pub(super) fn secret(mut self) -> Self {
        self.file = Some(Setting {
            heading: self.setting.heading,
            flags: vec![format!("{}-file", self.setting.name())],
            help: format!("File that contains the value of {}", self.setting.flag()),
            ..Setting::parse("--file FILE")
        });
        self.setting.secret = true;
        self
    }

    /// If unset, or after an error, this default is used, so that reading continues.
    pub(super) fn default(self, value: &'static str) -> T {
        let default = (self.parse)(value);
        let name = self.setting.flag();
        self.read(Unset::Value(value)).unwrap_or_else(|| {
            default.unwrap_or_else(|bad| panic!("the default of {name}: {}", bad.problem))
        })
    }

    /// If unset, the function computes the value; `words` describe it.
    pub(super) fn or(self, words: &'static str, value: impl FnOnce() -> T) -> T {
        self.read(Unset::Computed(words)).unwrap_or_else(value)
    }

    /// If unset, there is no value.
    pub(super) fn optional(self) -> Option<T> {
        self.read(Unset::None)
    }

    /// If unset, the value is computed later; `words` describe it.
    pub(super) fn optional_or(self, words: &'static str) -> Option<T> {
        self.read(Unset::Computed(words))
    }

    fn read(mut self, default: Unset) -> Option<T> {
        self.setting.default = default;
        let text = self.text();
        let value = text.and_then(|text| text.map(|text| self.value(&text)).transpose());
        self.reader.table.push(self.setting);
        self.reader.table.extend(self.file);
        value.unwrap_or_else(|fault| {
            self.reader.faults.push(fault);
            None
        })
    }

    fn text(&self) -> Result<Option<String>, Fault> {
        let given = |setting: &Setting| self.reader.given.given(setting.name()).map(str::to_owned);
        let text = given(&self.setting);
        let Some((file, path)) = self
            .file
            .as_ref()
            .and_then(|file| Some((file, given(file)?)))
        else {
            return Ok(text);
        };
        if text.is_some() {
            let problem = format!("{} is set too", self.setting.location());
            return Err(Fault::new(
                file.location(),
                problem,
                "set only one of the two",
            ));
        }
        read_secret(&path).map(Some).map_err(|problem| {
            let fix = "mount a readable file that contains the secret, or unset the setting";
            Fault::new(file.location(), problem, fix).with_value(path)
        })
    }

    fn value(&self, text: &str) -> Result<T, Fault> {
        (self.parse)(text).map_err(|fault| {
            let fault = fault.at(self.setting.location());
            // A URL may contain a password, in any setting.
            if self.setting.secret || text.contains('@') {
                fault
            } else {
                fault.with_value(text)
            }
        })
    }
}

fn read_secret(path: &str) -> Result<String, String> {
    let text =
        fs::read_to_string(path).map_err(|error| format!("cannot read the file: {error}"))?;
    let text = text
        .trim_start_matches('\u{feff}')
        .trim_end_matches(['\n', '\r']);
    if text.trim().is_empty() {
        return Err("the file is empty".into());
    }
    Ok(text.to_owned())
}
