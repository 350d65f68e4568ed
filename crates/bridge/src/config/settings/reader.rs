//! Reads raw values one after another and keeps the faults, so that all are told at once.

use std::fs;

use clap::{Arg, Command};

use super::{
    parse::Bad,
    table::{default_of, flag_of, settings_command, variable_of},
};
use crate::config::{Fault, Secret};

/// The faults so far, and the table that knows names and defaults.
pub(super) struct Reader {
    table: Command,
    pub faults: Vec<Fault>,
}

/// What clap leaves in a field.
pub(super) trait Raw {
    /// The text without the white space around it; none where it is empty.
    fn text(self) -> Option<String>;
}

impl Raw for Option<String> {
    fn text(self) -> Option<String> {
        let text = self?.trim().to_owned();
        (!text.is_empty()).then_some(text)
    }
}

/// A repeated flag is a longer list.
impl Raw for Vec<String> {
    fn text(self) -> Option<String> {
        Some(self.join(",")).text().filter(|text| text != ",")
    }
}

impl Reader {
    pub(super) fn new() -> Self {
        Self {
            table: settings_command(),
            faults: Vec::new(),
        }
    }

    fn arg(&self, id: &str) -> &Arg {
        let mut args = self.table.get_arguments();
        args.find(|arg| arg.get_id() == id)
            .unwrap_or_else(|| panic!("{id} is a field of SettingsArgs"))
    }

    /// `--port / MCPO_PORT`
    pub(super) fn place(&self, id: &str) -> String {
        let arg = self.arg(id);
        format!("{} / {}", flag_of(arg), variable_of(arg))
    }

    /// A setting with a default. After a fault it is the default, so that reading goes on.
    pub(super) fn required<T>(
        &mut self,
        id: &str,
        raw: impl Raw,
        parse: impl Fn(&str) -> Result<T, Bad>,
    ) -> T {
        self.optional(id, raw, &parse).unwrap_or_else(|| {
            let default = default_of(self.arg(id)).unwrap_or_default();
            parse(&default).unwrap_or_else(|bad| panic!("{id}: default: {}", bad.problem))
        })
    }

    /// A setting without a default, or with one that is worked out.
    pub(super) fn optional<T>(
        &mut self,
        id: &str,
        raw: impl Raw,
        parse: impl Fn(&str) -> Result<T, Bad>,
    ) -> Option<T> {
        let text = raw.text()?;
        match parse(&text) {
            Ok(value) => Some(value),
            Err(bad) => {
                let fault = Fault::new(self.place(id), bad.problem, bad.fix);
                // A URL may carry a password, whatever it was meant for.
                let shown = !text.contains('@');
                self.faults
                    .push(if shown { fault.with_value(text) } else { fault });
                None
            }
        }
    }

    /// A secret, from its value or from the file of the setting `{id}_file`.
    pub(super) fn secret(&mut self, id: &str, raw: impl Raw, file: impl Raw) -> Option<Secret> {
        let file_id = format!("{id}_file");
        let secret = match (raw.text(), file.text()) {
            (None, None) => return None,
            (Some(text), None) => Ok(text),
            (None, Some(file)) => read_secret(&file).map_err(|problem| {
                let fix = "mount a readable file with the secret in it, or unset the setting";
                Fault::new(self.place(&file_id), problem, fix).with_value(file)
            }),
            (Some(_), Some(_)) => Err(Fault::new(
                self.place(&file_id),
                format!("{} is set, too", self.place(id)),
                "set one of the two",
            )),
        };
        secret
            .map(Secret::new)
            .map_err(|fault| self.faults.push(fault))
            .ok()
    }
}

fn read_secret(path: &str) -> Result<String, String> {
    let text = fs::read_to_string(path).map_err(|error| format!("cannot be read: {error}"))?;
    let text = text
        .trim_start_matches('\u{feff}')
        .trim_end_matches(['\n', '\r']);
    if text.trim().is_empty() {
        return Err("the file is empty".into());
    }
    Ok(text.to_owned())
}
