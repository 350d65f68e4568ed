//! One Python package as a launcher's command line names it.

use std::path::{Path, PathBuf};

use url::Url;

use super::Why;

/// As `uv pip compile` reads it.
#[derive(Debug, PartialEq, Eq)]
pub struct Requirement {
    pub text: String,
    /// The package's name as it was written; none for a path or a URL.
    pub name: Option<String>,
    /// Where it lies, if on this machine.
    pub source: Option<PathBuf>,
}

/// Reads `name`, `name[extra]>=1`, `name@1.2`, `name@latest`, a path or the URL of an archive.
/// Paths start from `cwd`, the folder that the server names; without one they start from a
/// workspace, and then there is nothing to install.
pub fn read(text: &str, cwd: Option<&Path>) -> Result<Requirement, Why> {
    let text = text.trim();
    if let Some(place) = text.find("://") {
        return url(text, place);
    }
    let (name, rest) = split_name(text);
    if name.is_empty() || is_path(text) {
        return path(text, cwd);
    }
    let (extras, version) = match rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((extras, version)) => (format!("[{extras}]"), version),
        None => (String::new(), rest),
    };
    let plain = |version: &str| Requirement {
        text: format!("{name}{extras}{version}"),
        name: Some(name.to_owned()),
        source: None,
    };
    match version.trim_start().strip_prefix('@') {
        Some("latest") => Ok(plain("")),
        Some(version) if version.starts_with(|c: char| c.is_ascii_digit()) => {
            Ok(plain(&format!("=={version}")))
        }
        Some(_) => Err("what stands behind @ is no version".to_owned()),
        None => Ok(plain(version)),
    }
}

/// Splits `a,b[c,d]>=1,<2` into packages.
pub fn split(list: &str) -> Vec<String> {
    let mut parts: Vec<String> = Vec::new();
    let mut depth = 0_usize;
    let mut current = String::new();
    for letter in list.chars() {
        match letter {
            '[' | '(' => depth += 1,
            ']' | ')' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                parts.push(std::mem::take(&mut current));
                continue;
            }
            _ => {}
        }
        current.push(letter);
    }
    parts.push(current);
    let mut packages: Vec<String> = Vec::new();
    for part in parts {
        let more = part.trim_start().starts_with(['<', '>', '=', '~', '!']);
        match packages.last_mut() {
            Some(last) if more => *last = format!("{last},{}", part.trim()),
            _ => packages.push(part.trim().to_owned()),
        }
    }
    packages.retain(|package| !package.is_empty());
    packages
}

fn split_name(text: &str) -> (&str, &str) {
    let of_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let end = text.find(|c| !of_name(c)).unwrap_or(text.len());
    if text.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        text.split_at(end)
    } else {
        ("", text)
    }
}

fn is_path(text: &str) -> bool {
    let archive = [".whl", ".tar.gz", ".zip"].iter();
    text.contains('/') || archive.clone().any(|end| text.ends_with(end))
}

fn url(text: &str, place: usize) -> Result<Requirement, Why> {
    let scheme_at = text[..place].rfind([' ', '@']).map_or(0, |at| at + 1);
    let scheme = &text[scheme_at..place];
    if scheme.contains('+') {
        return Err(format!(
            "a package comes by {scheme}, which has no versions to pin"
        ));
    }
    let address = Url::parse(&text[scheme_at..]);
    let address = address.map_err(|_| "a package's URL cannot be read".to_owned())?;
    if !["http", "https"].contains(&address.scheme()) {
        return Err(format!("a package comes by {scheme}"));
    }
    without_password(&address)?;
    let name = match split_name(text) {
        (name, _) if scheme_at > 0 && !name.is_empty() => Some(name.to_owned()),
        _ => None,
    };
    Ok(Requirement {
        text: text.to_owned(),
        name,
        source: None,
    })
}

/// What is installed is written down: no password may be in it.
pub fn without_password(address: &Url) -> Result<(), Why> {
    if address.username().is_empty() && address.password().is_none() {
        return Ok(());
    }
    Err("a URL among its arguments holds a password: give it in a variable".to_owned())
}

fn path(text: &str, cwd: Option<&Path>) -> Result<Requirement, Why> {
    if text.contains(['[', ';', '#', '~']) {
        return Err("a package's path is written in a way that is not understood".to_owned());
    }
    let path = absolute(Path::new(text), cwd)?;
    let found = path.canonicalize();
    let found = found.map_err(|error| format!("a package's path cannot be read ({error})"))?;
    let Some(text) = found.to_str() else {
        return Err("a package's path is not UTF-8".to_owned());
    };
    Ok(Requirement {
        text: text.to_owned(),
        name: None,
        source: Some(found),
    })
}

/// A path among a launcher's arguments.
pub fn absolute(path: &Path, cwd: Option<&Path>) -> Result<PathBuf, Why> {
    if path.is_absolute() {
        return Ok(path.to_owned());
    }
    match cwd.filter(|cwd| cwd.is_absolute()) {
        Some(cwd) => Ok(cwd.join(path)),
        None => Err("a path among its arguments starts from the workspace".to_owned()),
    }
}
