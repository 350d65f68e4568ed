//! Options in front of a command, as clap and argparse read them.

use super::Why;

/// What an option means to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// It changes nothing of what is installed, or only how often it is looked for.
    Skip,
    /// The interpreter.
    Python,
    /// The package whose program is run.
    From,
    /// More packages.
    With,
    /// For choosing versions.
    Choose,
    /// For choosing versions and for installing them.
    Fetch,
    /// What follows is a module.
    Module,
    /// What follows is a script.
    Script,
}

/// One option.
#[derive(Debug, Clone, Copy)]
pub struct Known {
    pub long: &'static str,
    pub short: Option<char>,
    pub value: bool,
    pub meaning: Use,
}

/// Without a value.
pub const fn flag(long: &'static str, short: Option<char>, meaning: Use) -> Known {
    let value = false;
    Known {
        long,
        short,
        value,
        meaning,
    }
}

/// With a value.
pub const fn valued(long: &'static str, short: Option<char>, meaning: Use) -> Known {
    let value = true;
    Known {
        long,
        short,
        value,
        meaning,
    }
}

/// An option as it was given.
#[derive(Debug, PartialEq, Eq)]
pub struct Given {
    pub meaning: Use,
    pub long: &'static str,
    /// Empty where it takes none.
    pub value: String,
}

impl Given {
    /// The words that say the same to another command of the tool.
    pub fn words(&self, with_value: bool) -> Vec<String> {
        let flag = format!("--{}", self.long);
        if with_value {
            vec![flag, self.value.clone()]
        } else {
            vec![flag]
        }
    }
}

/// Reads options from `args[at..]` up to the first word that is none, and gives its place. A `--`
/// is passed over.
pub fn read(
    args: &[String],
    mut at: usize,
    known: &[&[Known]],
) -> Result<(Vec<(Given, bool)>, usize), Why> {
    let all = || known.iter().flat_map(|table| table.iter());
    let mut given = Vec::new();
    while let Some(word) = args.get(at) {
        if word == "--" {
            return Ok((given, at + 1));
        }
        if let Some(long) = word.strip_prefix("--") {
            let (name, inline) = match long.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (long, None),
            };
            let found = all().find(|known| known.long == name);
            let found = found.ok_or_else(|| unknown(&format!("--{name}")))?;
            at += 1;
            let value = take(found, inline, args, &mut at)?;
            given.push((of(found, value), found.value));
        } else if word.len() > 1 && word.starts_with('-') {
            let mut letters = word[1..].chars();
            at += 1;
            while let Some(letter) = letters.next() {
                let found = all().find(|known| known.short == Some(letter));
                let found = found.ok_or_else(|| unknown(&format!("-{letter}")))?;
                let rest = letters.as_str();
                if !found.value {
                    given.push((of(found, String::new()), false));
                    continue;
                }
                let inline = rest.strip_prefix('=').unwrap_or(rest);
                let inline = (!rest.is_empty()).then(|| inline.to_owned());
                let value = take(found, inline, args, &mut at)?;
                given.push((of(found, value), true));
                break;
            }
        } else {
            break;
        }
    }
    Ok((given, at))
}

fn of(known: &Known, value: String) -> Given {
    Given {
        meaning: known.meaning,
        long: known.long,
        value,
    }
}

fn take(
    known: &Known,
    inline: Option<String>,
    args: &[String],
    at: &mut usize,
) -> Result<String, Why> {
    match (known.value, inline) {
        (true, Some(value)) => Ok(value),
        (true, None) => {
            let value = args.get(*at).cloned();
            *at += 1;
            value.ok_or_else(|| format!("--{} has no value", known.long))
        }
        (false, None) => Ok(String::new()),
        (false, Some(_)) => Err(unknown(&format!("--{}=…", known.long))),
    }
}

fn unknown(option: &str) -> Why {
    format!("the bridge does not install ahead with the option {option}")
}
