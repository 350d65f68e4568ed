//! `npx` and `npm exec`.

use super::{NodeSet, Wanted, What, Why, requirement};
use crate::spec::CommandSpec;

/// Options that change nothing of what is installed.
const SKIPPED: &[&str] = &[
    "y",
    "yes",
    "q",
    "quiet",
    "s",
    "silent",
    "d",
    "verbose",
    "prefer-online",
    "prefer-offline",
    "no-update-notifier",
    "no-fund",
    "no-audit",
];

/// `npx [OPTIONS] PACKAGE …`
pub fn read(
    command: &CommandSpec,
    npm: &str,
    on_path: &dyn Fn(&str) -> bool,
) -> Result<Wanted, Why> {
    packages(command, 0, npm, on_path)
}

/// `npm exec [OPTIONS] -- PACKAGE …`
pub fn exec(command: &CommandSpec, on_path: &dyn Fn(&str) -> bool) -> Result<Wanted, Why> {
    let args = &command.args;
    if !matches!(args.first().map(String::as_str), Some("exec" | "x")) {
        return Err("it is not `npm exec`".to_owned());
    }
    let wanted = packages(command, 1, &command.program, on_path)?;
    // npm goes on looking for its own options until it meets `--`.
    let own = &args[wanted.rest..];
    let ended = args[..wanted.rest].iter().any(|word| word == "--");
    if !ended && own.iter().any(|word| word.starts_with('-')) {
        return Err("options behind the package are npm's own: put -- in front of it".to_owned());
    }
    Ok(wanted)
}

fn packages(
    command: &CommandSpec,
    mut at: usize,
    npm: &str,
    on_path: &dyn Fn(&str) -> bool,
) -> Result<Wanted, Why> {
    if command.cwd.is_some() {
        return Err("it has a cwd, and npx prefers what is installed there".to_owned());
    }
    let args = &command.args;
    let mut named = Vec::new();
    let mut fetching = Vec::new();
    let target = loop {
        let word = args.get(at).ok_or("no package is named")?;
        at += 1;
        if word == "--" {
            at += 1;
            break args.get(at - 1).ok_or("no package is named")?;
        }
        let Some(option) = word.strip_prefix('-') else {
            break word;
        };
        let option = option.trim_start_matches('-');
        let (name, inline) = match option.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (option, None),
        };
        let mut value = || {
            inline.clone().map_or_else(
                || {
                    at += 1;
                    let value = args.get(at - 1).cloned();
                    value.ok_or_else(|| format!("--{name} has no value"))
                },
                Ok,
            )
        };
        match name {
            "p" | "package" => named.push(value()?),
            "registry" => {
                let address = value()?;
                let parsed = url::Url::parse(&address);
                let parsed = parsed.map_err(|_| "its registry is no URL".to_owned())?;
                requirement::without_password(&parsed)?;
                fetching.push(format!("--registry={address}"));
            }
            _ if SKIPPED.contains(&name) && inline.is_none() => {}
            "yes" if inline.as_deref() == Some("true") => {}
            _ => {
                return Err(format!(
                    "the bridge does not install ahead with the option --{name}"
                ));
            }
        }
    };
    let bin = (!named.is_empty()).then(|| target.clone());
    if bin.is_none() {
        named.push(target.clone());
        if on_path(target) {
            return Err(format!(
                "'{target}' is installed already, and npx prefers that"
            ));
        }
    } else if target.contains('/') {
        return Err("a plain program's name must follow --package".to_owned());
    }
    let mut names = Vec::new();
    for package in &named {
        names.push(package_name(package)?);
    }
    let main = names.swap_remove(0);
    Ok(Wanted {
        rest: at,
        what: What::Node(NodeSet {
            npm: npm.to_owned(),
            packages: named,
            main,
            bin,
            fetching,
        }),
    })
}

/// The name in `name`, `name@1.2`, `@scope/name@^1`.
fn package_name(package: &str) -> Result<String, Why> {
    let refused = || Err("a package does not come from the registry".to_owned());
    let scoped = package.starts_with('@');
    let body = package.strip_prefix('@').unwrap_or(package);
    let (name, version) = body.split_once('@').unwrap_or((body, ""));
    let of_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '~');
    let mut parts = name.split('/');
    let good =
        |part: &str| !part.is_empty() && part.chars().all(of_name) && !part.starts_with(['.', '-']);
    let count = if scoped { 2 } else { 1 };
    if parts.clone().count() != count || !parts.all(good) {
        return refused();
    }
    let archive = [".tgz", ".tar", ".tar.gz"]
        .iter()
        .any(|end| package.ends_with(end));
    if archive || version.contains([':', '/']) {
        return refused();
    }
    let at = if scoped { "@" } else { "" };
    Ok(format!("{at}{name}"))
}
