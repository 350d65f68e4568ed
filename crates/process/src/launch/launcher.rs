//! Parses a launcher's command line in the same way as the launcher does.
//!
//! An argument that is not fully understood is never guessed: such a command runs as written, and
//! `check` reports the argument.

use std::path::{Path, PathBuf};

use url::Url;

use self::Use::{Choose, Fetch, From, Module, Python, Script, Skip, With};
use crate::spec::CommandSpec;

/// Why a command runs as written: a clause for users, without values.
pub type Reason = String;

/// A command that was parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParsedCommand {
    /// The index of the server's own arguments among those of the command.
    pub rest: usize,
    /// What must be installed before the start.
    pub what: What,
}

/// What must be installed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// Python packages in a separate environment.
    Python(PythonSet),
    /// npm packages in a separate folder.
    Node(NodeSet),
    /// Nothing: an existing interpreter runs this.
    Interpreter(Target),
}

/// Python packages, and which part of them is run.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PythonSet {
    /// The `uv` to use: a path, or a name to find in PATH.
    pub uv: String,
    /// The interpreter, as an argument of `--python`.
    pub python: Option<String>,
    /// Requirements for `uv pip compile`.
    pub requirements: Vec<String>,
    /// A script whose inline metadata contains further requirements.
    pub script: Option<PathBuf>,
    /// Options for version resolution.
    pub choosing: Vec<String>,
    /// Options for version resolution and for installation: indexes, builds.
    pub fetching: Vec<String>,
    /// The local files and folders among the requirements: if they change, the result of the
    /// installation may change.
    pub sources: Vec<PathBuf>,
    /// What to run.
    pub run: Run,
}

/// What to run in an environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Run {
    /// A console script of a package.
    Script(String),
    /// `python -m`.
    Module(String),
    /// `python FILE`.
    File(PathBuf),
}

impl Default for Run {
    fn default() -> Self {
        Self::Script(String::new())
    }
}

/// What Python runs, for code that imports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A function of a module: a console script.
    Function {
        /// The dotted module name.
        module: String,
        /// The function's name in the module, possibly dotted.
        function: String,
    },
    /// `python -m`.
    Module(String),
    /// `python FILE`.
    File(PathBuf),
}

/// npm packages, and which of their programs is run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeSet {
    /// The `npm` to use: a path, or a name to find in PATH.
    pub npm: String,
    /// Packages for `npm install`; all from the registry.
    pub packages: Vec<String>,
    /// The name of the first package, whose program is the default.
    pub main: String,
    /// The program of one of the packages; if absent, the program of the first.
    pub bin: Option<String>,
    /// Options of npm: the registry.
    pub fetching: Vec<String>,
}

/// Parses the command. `on_path` reports whether a program with that name can be found.
pub fn read(
    command: &CommandSpec,
    on_path: &dyn Fn(&str) -> bool,
) -> Result<ParsedCommand, Reason> {
    let name = file_name(&command.program);
    let wanted = match name {
        "uvx" => read_uv_tool_run(command, 0, &sibling(&command.program, "uv")),
        "uv" => read_uv(command, &command.program),
        "pipx" => read_pipx(command),
        "npx" => packages(command, 0, &sibling(&command.program, "npm"), on_path),
        "npm" => read_npm_exec(command, on_path),
        _ if is_interpreter(name) => {
            let (target, rest) = python_target(&command.args)?;
            let what = What::Interpreter(target);
            Ok(ParsedCommand { rest, what })
        }
        _ => Err("its command is not a package launcher".to_owned()),
    }?;
    let launcher = command.args.get(..wanted.rest).unwrap_or_default();
    if launcher.iter().any(|arg| arg.contains("{MCPO_")) {
        return Err("its packages depend on the workspace: they contain {MCPO_…}".to_owned());
    }
    Ok(wanted)
}

/// Whether this module parses command lines of this program.
pub fn is_launcher(program: &str) -> bool {
    let name = file_name(program);
    ["uvx", "uv", "pipx", "npx", "npm"].contains(&name) || is_interpreter(name)
}

fn file_name(program: &str) -> &str {
    let name = Path::new(program).file_name();
    name.and_then(|name| name.to_str()).unwrap_or_default()
}

/// The path of another program in the same installation.
fn sibling(program: &str, other: &str) -> String {
    match program.rsplit_once('/') {
        Some((folder, _)) => format!("{folder}/{other}"),
        None => other.to_owned(),
    }
}

// `npx` and `npm exec`.

/// Options that do not change what is installed.
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

/// `npm exec [OPTIONS] -- PACKAGE …`
fn read_npm_exec(
    command: &CommandSpec,
    on_path: &dyn Fn(&str) -> bool,
) -> Result<ParsedCommand, Reason> {
    let args = &command.args;
    if !matches!(args.first().map(String::as_str), Some("exec" | "x")) {
        return Err("not `npm exec`".to_owned());
    }
    let wanted = packages(command, 1, &command.program, on_path)?;
    // npm continues to search for its own options until it finds `--`.
    let own = &args[wanted.rest..];
    let ended = args[..wanted.rest].iter().any(|word| word == "--");
    if !ended && own.iter().any(|word| word.starts_with('-')) {
        return Err(
            "options after the package belong to npm: put -- before the package".to_owned(),
        );
    }
    Ok(wanted)
}

/// `npx [OPTIONS] PACKAGE …`, whose options start at `at`.
fn packages(
    command: &CommandSpec,
    mut at: usize,
    npm: &str,
    on_path: &dyn Fn(&str) -> bool,
) -> Result<ParsedCommand, Reason> {
    if command.cwd.is_some() {
        return Err("it has a cwd, and npx prefers packages installed there".to_owned());
    }
    let args = &command.args;
    let mut named = Vec::new();
    let mut fetching = Vec::new();
    let target = loop {
        let word = args.get(at).ok_or("no package given")?;
        at += 1;
        if word == "--" {
            at += 1;
            break args.get(at - 1).ok_or("no package given")?;
        }
        let Some(option) = word.strip_prefix('-') else {
            break word;
        };
        let option = option.trim_start_matches('-');
        let (name, inline) = split_value(option);
        let mut value = || value_of(name, inline, args, &mut at);
        match name {
            "p" | "package" => named.push(value()?),
            "registry" => {
                let address = value()?;
                let invalid = |_| "its registry is not a URL".to_owned();
                without_password(&Url::parse(&address).map_err(invalid)?)?;
                fetching.push(format!("--registry={address}"));
            }
            _ if SKIPPED.contains(&name) && inline.is_none() => {}
            "yes" if inline == Some("true") => {}
            _ => return Err(unknown(&format!("--{name}"))),
        }
    };
    let bin = (!named.is_empty()).then(|| target.clone());
    if bin.is_none() {
        named.push(target.clone());
        if on_path(target) {
            return Err(format!(
                "'{target}' is already installed, and npx prefers it"
            ));
        }
    } else if target.contains('/') {
        return Err("a plain program's name must follow --package".to_owned());
    }
    let names = named.iter().map(|package| package_name(package));
    let main = names.collect::<Result<Vec<_>, _>>()?.swap_remove(0);
    Ok(ParsedCommand {
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
fn package_name(package: &str) -> Result<String, Reason> {
    let scoped = package.starts_with('@');
    let body = package.strip_prefix('@').unwrap_or(package);
    let (name, version) = body.split_once('@').unwrap_or((body, ""));
    let of_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '~');
    let is_good =
        |part: &str| !part.is_empty() && part.chars().all(of_name) && !part.starts_with(['.', '-']);
    let parts: Vec<_> = name.split('/').collect();
    let is_name = parts.len() == 1 + usize::from(scoped) && parts.into_iter().all(is_good);
    let mut archives = [".tgz", ".tar", ".tar.gz"].iter();
    if !is_name || archives.any(|end| package.ends_with(end)) || version.contains([':', '/']) {
        return Err("a package is not from the registry".to_owned());
    }
    Ok(format!("{}{name}", if scoped { "@" } else { "" }))
}

// Options before a command, parsed as clap and argparse do.

/// The effect of an option on an installation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// It does not change what is installed, or only how often versions are resolved.
    Skip,
    /// The interpreter.
    Python,
    /// The package whose program is run.
    From,
    /// Additional packages.
    With,
    /// For version resolution.
    Choose,
    /// For version resolution and for installation.
    Fetch,
    /// The next argument is a module.
    Module,
    /// The next argument is a script.
    Script,
}

/// A known option.
#[derive(Debug, Clone, Copy)]
struct Known {
    long: &'static str,
    short: Option<char>,
    value: bool,
    meaning: Use,
}

/// An option without a value.
const fn flag(long: &'static str, short: Option<char>, meaning: Use) -> Known {
    Known {
        value: false,
        ..valued(long, short, meaning)
    }
}

/// An option with a value.
const fn valued(long: &'static str, short: Option<char>, meaning: Use) -> Known {
    let value = true;
    Known {
        long,
        short,
        value,
        meaning,
    }
}

/// An option in a command line.
#[derive(Debug)]
struct Given {
    option: &'static Known,
    /// Empty if the option takes no value.
    value: String,
}

impl Given {
    /// The arguments that pass the option to another command of the tool.
    fn words(&self) -> Vec<String> {
        let value = self.option.value.then(|| self.value.clone());
        let flag = format!("--{}", self.option.long);
        std::iter::once(flag).chain(value).collect()
    }
}

/// The value of the last of these options with this meaning.
fn last_value(given: &[Given], meaning: Use) -> Option<&str> {
    let last = given.iter().rfind(|given| given.option.meaning == meaning);
    last.map(|given| given.value.as_str())
}

/// Parses options from `args[at..]` up to the first argument that is not an option, and returns the
/// index of that argument. A `--` is skipped.
fn read_options(
    args: &[String],
    mut at: usize,
    known: &[&'static [Known]],
) -> Result<(Vec<Given>, usize), Reason> {
    let find = |option: String, is_it: &dyn Fn(&Known) -> bool| {
        let mut all = known.iter().copied().flatten();
        all.find(|known| is_it(known))
            .ok_or_else(|| unknown(&option))
    };
    let mut given = Vec::new();
    while let Some(word) = args.get(at) {
        if word == "--" {
            return Ok((given, at + 1));
        }
        if let Some(long) = word.strip_prefix("--") {
            let (name, inline) = split_value(long);
            let option = find(format!("--{name}"), &|known| known.long == name)?;
            at += 1;
            let value = take(option, inline, args, &mut at)?;
            given.push(Given { option, value });
        } else if word.len() > 1 && word.starts_with('-') {
            let mut letters = word[1..].chars();
            at += 1;
            while let Some(letter) = letters.next() {
                let option = find(format!("-{letter}"), &|known| known.short == Some(letter))?;
                let mut inline = None;
                if option.value {
                    let rest = std::mem::replace(&mut letters, "".chars()).as_str();
                    inline = (!rest.is_empty()).then(|| rest.strip_prefix('=').unwrap_or(rest));
                }
                let value = take(option, inline, args, &mut at)?;
                given.push(Given { option, value });
            }
        } else {
            break;
        }
    }
    Ok((given, at))
}

/// Splits `name=value`.
fn split_value(option: &str) -> (&str, Option<&str>) {
    match option.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (option, None),
    }
}

/// The value of an option: the part after its `=`, or the next argument.
fn value_of(
    name: &str,
    inline: Option<&str>,
    args: &[String],
    at: &mut usize,
) -> Result<String, Reason> {
    let value = inline.or_else(|| {
        *at += 1;
        args.get(*at - 1).map(String::as_str)
    });
    let value = value.ok_or_else(|| format!("--{name} has no value"))?;
    Ok(value.to_owned())
}

fn take(
    known: &Known,
    inline: Option<&str>,
    args: &[String],
    at: &mut usize,
) -> Result<String, Reason> {
    match inline {
        _ if known.value => value_of(known.long, inline, args, at),
        None => Ok(String::new()),
        Some(_) => Err(unknown(&format!("--{}=…", known.long))),
    }
}

fn unknown(option: &str) -> Reason {
    format!("the bridge does not support the option {option} for installation")
}

// `pipx run`. `uv` is used instead, and must be installed too.

const PIPX_GLOBAL: &[Known] = &[
    flag("quiet", Some('q'), Skip),
    flag("verbose", Some('v'), Skip),
];

const PIPX_RUN: &[Known] = &[
    flag("no-cache", None, Skip),
    valued("spec", None, From),
    valued("with", None, With),
    valued("python", None, Python),
    flag("fetch-missing-python", None, Skip),
    valued("index-url", Some('i'), Fetch),
];

/// `pipx run [OPTIONS] APP …`
fn read_pipx(command: &CommandSpec) -> Result<ParsedCommand, Reason> {
    let args = &command.args;
    let (_, at) = read_options(args, 0, &[PIPX_GLOBAL])?;
    if args.get(at).map(String::as_str) != Some("run") {
        return Err("not `pipx run`".to_owned());
    }
    let (given, at) = read_options(args, at + 1, &[PIPX_GLOBAL, PIPX_RUN])?;
    let app = args.get(at).ok_or("no package given")?;
    let cwd = command.cwd.as_deref();
    let spec = last_value(&given, From);
    let main = read_requirement(spec.unwrap_or(app), cwd)?;
    let name = if spec.is_some() {
        app.clone()
    } else {
        let name = main.name.clone();
        name.ok_or("a path or URL does not determine the program")?
    };
    let mut set = PythonSet::run_by("uv", Run::Script(name));
    set.add(main);
    for given in given {
        match given.option.meaning {
            Python => set.python = Some(given.value),
            With => set.add(read_requirement(&given.value, cwd)?),
            Fetch => {
                let invalid = |_| "its index is not a URL".to_owned();
                without_password(&Url::parse(&given.value).map_err(invalid)?)?;
                set.fetching.extend(given.words());
            }
            _ => {}
        }
    }
    // pipx skips a first `--`.
    let dashes = args.get(at + 1).is_some_and(|word| word == "--");
    Ok(ParsedCommand {
        rest: at + 1 + usize::from(dashes),
        what: What::Python(set),
    })
}

// `python -m MODULE` and `python FILE`: nothing must be installed.

/// `python`, `python3`, `python3.12`.
fn is_interpreter(name: &str) -> bool {
    let version = name.strip_prefix("python");
    version.is_some_and(|version| version.chars().all(|c| c.is_ascii_digit() || c == '.'))
}

/// What an interpreter runs with these arguments, and how many arguments specify it.
pub fn python_target(args: &[String]) -> Result<(Target, usize), Reason> {
    let mut at = 0;
    while let Some(word) = args.get(at) {
        at += 1;
        if let Some(module) = word.strip_prefix("-m") {
            let next = || args.get(at).map(String::as_str);
            let (module, behind) = match module {
                "" => (next(), at + 1),
                joined => (Some(joined), at),
            };
            let module = module.ok_or("-m without a module")?;
            return Ok((Target::Module(module.to_owned()), behind));
        }
        match word.as_str() {
            "-W" | "-X" => at += 1,
            "-" | "-c" => return Err("the interpreter runs neither a module nor a file".to_owned()),
            flag if flag.starts_with("-W") || flag.starts_with("-X") => {}
            flag if flag.starts_with('-') => {
                let known = |c: char| "bBdEhiIOPqsSuvVx".contains(c);
                if flag.starts_with("--") || !flag[1..].chars().all(known) {
                    return Err(format!("the interpreter option {flag} is not supported"));
                }
            }
            file => return Ok((Target::File(PathBuf::from(file)), at)),
        }
    }
    Err("the interpreter runs neither a module nor a file".to_owned())
}

// One Python package in a launcher's command line.

/// A requirement for `uv pip compile`.
#[derive(Debug, PartialEq, Eq)]
struct Requirement {
    pub text: String,
    /// The package's name as written; `None` for a path or a URL.
    pub name: Option<String>,
    /// Its local path, if any.
    pub source: Option<PathBuf>,
}

/// Parses `name`, `name[extra]>=1`, `name@1.2`, `name@latest`, a path or the URL of an archive.
/// Paths are relative to `cwd`, the folder that the server configures; without it they are relative
/// to a workspace, and then nothing can be installed.
fn read_requirement(text: &str, cwd: Option<&Path>) -> Result<Requirement, Reason> {
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
        Some(_) => Err("invalid version after @".to_owned()),
        None => Ok(plain(version)),
    }
}

/// Splits `a,b[c,d]>=1,<2` into requirements.
fn split_requirements(list: &str) -> Vec<String> {
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
    let mut archives = [".whl", ".tar.gz", ".zip"].iter();
    text.contains('/') || archives.any(|end| text.ends_with(end))
}

fn url(text: &str, place: usize) -> Result<Requirement, Reason> {
    let scheme_at = text[..place].rfind([' ', '@']).map_or(0, |at| at + 1);
    let scheme = &text[scheme_at..place];
    if scheme.contains('+') {
        return Err(format!(
            "a package comes from {scheme}, which has no versions to pin"
        ));
    }
    let address = Url::parse(&text[scheme_at..]);
    let address = address.map_err(|_| "invalid URL of a package".to_owned())?;
    if !["http", "https"].contains(&address.scheme()) {
        return Err(format!("a package comes from {scheme}"));
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

/// Requirements are stored on disk, so they must not contain passwords.
fn without_password(address: &Url) -> Result<(), Reason> {
    if address.username().is_empty() && address.password().is_none() {
        return Ok(());
    }
    Err("a URL in its arguments contains a password: pass it in a variable".to_owned())
}

fn path(text: &str, cwd: Option<&Path>) -> Result<Requirement, Reason> {
    if text.contains(['[', ';', '#', '~']) {
        return Err("unsupported form of a package path".to_owned());
    }
    let path = absolute_path(Path::new(text), cwd)?;
    let unreadable = |error| format!("cannot read a package path ({error})");
    let found = path.canonicalize().map_err(unreadable)?;
    let text = found.to_str().ok_or("a package path is not UTF-8")?;
    Ok(Requirement {
        text: text.to_owned(),
        name: None,
        source: Some(found),
    })
}

/// A path among a launcher's arguments.
fn absolute_path(path: &Path, cwd: Option<&Path>) -> Result<PathBuf, Reason> {
    if path.is_absolute() {
        return Ok(path.to_owned());
    }
    let cwd = cwd.filter(|cwd| cwd.is_absolute());
    let cwd = cwd.ok_or("a path in its arguments is relative to the workspace")?;
    Ok(cwd.join(path))
}

// `uvx`, `uv tool run` and `uv run`.

/// The options of all uv commands.
const UV_GLOBAL: &[Known] = &[
    flag("quiet", Some('q'), Skip),
    flag("verbose", Some('v'), Skip),
    valued("color", None, Skip),
    flag("no-progress", None, Skip),
    flag("no-python-downloads", None, Skip),
    flag("system-certs", None, Fetch),
    flag("native-tls", None, Fetch),
    valued("allow-insecure-host", None, Fetch),
    flag("no-env-file", None, Skip),
];

/// The options of both `uvx` and `uv run` that select packages.
const PACKAGES: &[Known] = &[
    valued("with", Some('w'), With),
    valued("python", Some('p'), Python),
    flag("isolated", None, Skip),
    valued("index", None, Fetch),
    valued("default-index", None, Fetch),
    valued("index-url", Some('i'), Fetch),
    valued("extra-index-url", None, Fetch),
    valued("find-links", Some('f'), Fetch),
    flag("no-index", None, Fetch),
    valued("index-strategy", None, Fetch),
    valued("keyring-provider", None, Fetch),
    flag("upgrade", Some('U'), Skip),
    valued("upgrade-package", Some('P'), Skip),
    valued("resolution", None, Choose),
    valued("prerelease", None, Choose),
    valued("fork-strategy", None, Choose),
    valued("exclude-newer", None, Choose),
    flag("no-sources", None, Choose),
    flag("reinstall", None, Skip),
    valued("reinstall-package", None, Skip),
    valued("link-mode", None, Skip),
    flag("compile-bytecode", None, Skip),
    valued("config-setting", Some('C'), Fetch),
    flag("no-build-isolation", None, Fetch),
    flag("no-build", None, Fetch),
    valued("no-build-package", None, Fetch),
    flag("no-binary", None, Fetch),
    valued("no-binary-package", None, Fetch),
    flag("refresh", None, Skip),
    valued("refresh-package", None, Skip),
    flag("no-cache", Some('n'), Skip),
];

const TOOL: &[Known] = &[valued("from", None, From)];

const UV_RUN: &[Known] = &[
    flag("no-project", None, Skip),
    flag("no-sync", None, Skip),
    flag("module", Some('m'), Module),
    flag("script", Some('s'), Script),
];

/// `uv … tool run …` and `uv … run …`.
fn read_uv(command: &CommandSpec, uv: &str) -> Result<ParsedCommand, Reason> {
    let args = &command.args;
    let (given, at) = read_options(args, 0, &[UV_GLOBAL])?;
    let word = |at: usize| args.get(at).map(String::as_str);
    let mut wanted = match (word(at), word(at + 1)) {
        (Some("tool"), Some("run")) => read_uv_tool_run(command, at + 2, uv)?,
        (Some("run"), _) => run(command, at + 1, uv)?,
        _ => return Err("neither `uv run` nor `uv tool run`".to_owned()),
    };
    if let What::Python(set) = &mut wanted.what {
        let fetch = given.iter().filter(|given| given.option.meaning == Fetch);
        set.fetching.extend(fetch.flat_map(Given::words));
    }
    Ok(wanted)
}

/// `uvx …`, whose options start at `at`.
fn read_uv_tool_run(command: &CommandSpec, at: usize, uv: &str) -> Result<ParsedCommand, Reason> {
    let (given, at) = read_options(&command.args, at, &[UV_GLOBAL, PACKAGES, TOOL])?;
    let target = command.args.get(at).ok_or("no package given")?;
    let cwd = command.cwd.as_deref();
    let (main, name) = if let Some(from) = last_value(&given, From) {
        if target.contains(['@', '=', '<', '>', '[', '/']) {
            return Err("with --from, a plain program's name must follow".to_owned());
        }
        (read_requirement(from, cwd)?, target.clone())
    } else {
        let main = read_requirement(target, cwd)?;
        let name = main.name.clone().filter(|_| !target.contains("://"));
        let name = name.ok_or("a path or URL without --from does not determine the program")?;
        (main, name)
    };
    if main.name.as_deref().is_some_and(is_interpreter) {
        return Err("it runs the interpreter itself".to_owned());
    }
    let mut set = PythonSet::run_by(uv, Run::Script(name));
    set.add(main);
    set.gather(given, cwd)?;
    Ok(ParsedCommand {
        rest: at + 1,
        what: What::Python(set),
    })
}

/// `uv run …`, whose options start at `at`.
fn run(command: &CommandSpec, at: usize, uv: &str) -> Result<ParsedCommand, Reason> {
    let args = &command.args;
    let (given, at) = read_options(args, at, &[UV_GLOBAL, PACKAGES, UV_RUN])?;
    let target = args.get(at).ok_or("no command given")?;
    let cwd = command.cwd.as_deref();
    let has = |meaning| last_value(&given, meaning).is_some();
    let named = |name| given.iter().any(|given| given.option.long == name);
    let is_module = has(Module);
    if target == "-" || target.contains("://") {
        return Err("its script is not a file".to_owned());
    }
    let file = Path::new(target).extension();
    let is_file = !is_module && (has(Script) || file.is_some_and(|end| end == "py"));
    let mut set = PythonSet::run_by(uv, Run::Script(target.clone()));
    let mut rest = at + 1;
    if is_module {
        set.run = Run::Module(target.clone());
    } else if is_file {
        let file = absolute_path(Path::new(target), cwd)?;
        set.read_script(&file)?;
        set.run = Run::File(file);
    } else if is_interpreter(target) {
        let (found, behind) = python_target(&args[rest..])?;
        rest += behind;
        set.run = match found {
            Target::Module(module) => Run::Module(module),
            Target::File(file) => Run::File(absolute_path(&file, cwd)?),
            Target::Function { .. } => return Err("it does not run a module".to_owned()),
        };
    }
    // A script with inline metadata is independent; anything else is part of the surrounding
    // project.
    let in_project = set.script.is_none() && !named("no-project") && cwd.is_some();
    if in_project {
        return Err("it runs in a project, which `uv run` keeps up to date".to_owned());
    }
    set.gather(given, cwd)?;
    Ok(ParsedCommand {
        rest,
        what: What::Python(set),
    })
}

impl PythonSet {
    fn run_by(uv: &str, run: Run) -> Self {
        Self {
            uv: uv.to_owned(),
            run,
            ..Self::default()
        }
    }

    fn add(&mut self, package: Requirement) {
        self.requirements.push(package.text);
        self.sources.extend(package.source);
    }

    /// Parses the inline metadata of a script, if any.
    fn read_script(&mut self, file: &Path) -> Result<(), Reason> {
        let text = std::fs::read_to_string(file);
        let text = text.map_err(|error| format!("cannot read its script ({error})"))?;
        let mut lines = text.lines().map(str::trim_end);
        if !lines.any(|line| line == "# /// script") {
            return Ok(());
        }
        if file.with_extension("py.lock").exists() {
            return Err("its script has its own uv lock file".to_owned());
        }
        let metadata = lines.take_while(|line| *line != "# ///");
        for line in metadata.map(|line| line.trim_start_matches('#').trim()) {
            if line.starts_with("[tool.uv") {
                return Err("its script has uv settings ([tool.uv])".to_owned());
            }
            let asked = line.strip_prefix("requires-python");
            let asked = asked.and_then(|rest| rest.trim_start().strip_prefix('='));
            if let Some(asked) = asked {
                self.python = Some(quoted(asked.trim()).ok_or("invalid requires-python")?);
            }
        }
        self.script = Some(file.to_owned());
        self.sources.push(file.to_owned());
        Ok(())
    }

    /// Applies the options of uv.
    fn gather(&mut self, given: Vec<Given>, cwd: Option<&Path>) -> Result<(), Reason> {
        for mut given in given {
            match given.option.meaning {
                Python if given.value.contains('/') => {
                    let path = absolute_path(Path::new(&given.value), cwd)?;
                    self.python = Some(path.display().to_string());
                }
                Python => self.python = Some(given.value),
                With => {
                    for package in split_requirements(&given.value) {
                        self.add(read_requirement(&package, cwd)?);
                    }
                }
                Choose => self.choosing.extend(given.words()),
                Fetch => {
                    given.value = url_or_path(&given, cwd)?;
                    self.fetching.extend(given.words());
                }
                Skip | From | Module | Script => {}
            }
        }
        Ok(())
    }
}

fn quoted(text: &str) -> Option<String> {
    let quote = text.chars().next().filter(|c| matches!(c, '"' | '\''))?;
    let (inside, _) = text[1..].split_once(quote)?;
    Some(inside.to_owned())
}

/// The value of an option that takes a URL or a path.
fn url_or_path(given: &Given, cwd: Option<&Path>) -> Result<String, Reason> {
    let value = &given.value;
    if let Some(at) = value.find("://") {
        let from = value[..at].rfind('=').map_or(0, |at| at + 1);
        let address = Url::parse(&value[from..]);
        let address = address.map_err(|_| format!("--{} is not a URL", given.option.long))?;
        without_password(&address)?;
        return Ok(value.clone());
    }
    if given.option.long == "find-links" {
        let path = absolute_path(Path::new(value), cwd)?;
        return Ok(path.display().to_string());
    }
    Ok(value.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(line: &str) -> CommandSpec {
        // Spaces within a word are written as `␣`.
        let mut words = line.split(' ').map(|word| word.replace('␣', " "));
        CommandSpec {
            program: words.next().unwrap(),
            args: words.collect(),
            env: indexmap::IndexMap::new(),
            cwd: None,
        }
    }

    fn read_line(line: &str) -> Result<ParsedCommand, Reason> {
        read(&command(line), &|name| name == "installed-globally")
    }

    /// The relevant parts of a Python set, in one line.
    fn python(line: &str) -> String {
        let wanted = read_line(line).unwrap_or_else(|why| panic!("{line}: {why}"));
        let What::Python(set) = wanted.what else {
            panic!("{line}: not Python")
        };
        let run = match set.run {
            Run::Script(name) => name,
            Run::Module(name) => format!("-m {name}"),
            Run::File(path) => path.display().to_string(),
        };
        let mut parts = vec![set.requirements.join(" "), run, wanted.rest.to_string()];
        parts.extend(set.python.map(|python| format!("py {python}")));
        let options = [set.choosing, set.fetching].concat();
        parts.extend((!options.is_empty()).then(|| options.join(" ")));
        parts.join(" | ")
    }

    fn node(line: &str) -> String {
        let wanted = read_line(line).unwrap_or_else(|why| panic!("{line}: {why}"));
        let What::Node(set) = wanted.what else {
            panic!("{line}: not Node")
        };
        let (packages, rest) = (set.packages.join(" "), wanted.rest);
        let bin = set.bin.unwrap_or_else(|| "-".to_owned());
        format!("{packages} | {} | {bin} | {rest}", set.main)
    }

    #[test]
    fn uvx_is_read_as_uvx_reads_it() {
        for (line, expected) in [
            (
                "uvx mcp-server-time",
                "mcp-server-time | mcp-server-time | 1",
            ),
            (
                "uvx mcp-server-time --local-timezone UTC",
                "mcp-server-time | mcp-server-time | 1",
            ),
            (
                "uvx -q mcp-server-time -q",
                "mcp-server-time | mcp-server-time | 2",
            ),
            (
                "uvx -- mcp-server-time -- x",
                "mcp-server-time | mcp-server-time | 2",
            ),
            (
                "uvx mcp_server_time@latest",
                "mcp_server_time | mcp_server_time | 1",
            ),
            ("uvx excel@2.2.2 stdio", "excel==2.2.2 | excel | 1"),
            ("uvx excel==2.2.2 stdio", "excel==2.2.2 | excel | 1"),
            ("uvx excel[all]@2.2 x", "excel[all]==2.2 | excel | 1"),
            ("uvx excel[a,b]>=1,<2", "excel[a,b]>=1,<2 | excel | 1"),
            ("uvx --python >=3.11 excel", "excel | excel | 3 | py >=3.11"),
            ("uvx -p3.12 excel", "excel | excel | 2 | py 3.12"),
            ("uvx -p=3.12 excel", "excel | excel | 2 | py 3.12"),
            ("uvx --python=3.12 excel", "excel | excel | 2 | py 3.12"),
            ("uvx --with mcp<2 excel", "excel mcp<2 | excel | 3"),
            (
                "uvx -w mcp>=1,<2,pillow[x,y] excel",
                "excel mcp>=1,<2 pillow[x,y] | excel | 3",
            ),
            (
                "uvx --from office==2.0.7 ppt_mcp_server",
                "office==2.0.7 | ppt_mcp_server | 3",
            ),
            ("uvx --from=office[x]@2 ppt", "office[x]==2 | ppt | 2"),
            ("/opt/bin/uvx excel", "excel | excel | 1"),
            ("uv tool run --from a b c", "a | b | 5"),
            ("uv --quiet tool run a", "a | a | 4"),
            (
                "uvx --index https://pypi.example/simple --prerelease allow a",
                "a | a | 5 | --prerelease allow --index https://pypi.example/simple",
            ),
            ("uvx -U --refresh --isolated -vv a", "a | a | 5"),
            ("pipx run cowsay==6 --help", "cowsay==6 | cowsay | 2"),
            ("pipx run --spec cowsay==6 moo -- -x", "cowsay==6 | moo | 5"),
            (
                "pipx run --python 3.11 cowsay",
                "cowsay | cowsay | 4 | py 3.11",
            ),
            (
                "uv run --with mcp python -m server --x",
                "mcp | -m server | 6",
            ),
            ("uv run --with mcp -m server --x", "mcp | -m server | 5"),
            ("uv run --with mcp /srv/none -v", "mcp | /srv/none | 4"),
        ] {
            assert_eq!(python(line), expected, "{line}");
        }
    }

    #[test]
    fn the_uv_beside_a_uvx_does_its_work() {
        let What::Python(set) = read_line("/opt/bin/uvx a").unwrap().what else {
            panic!()
        };
        assert_eq!(set.uv, "/opt/bin/uv");
    }

    #[test]
    fn what_is_not_understood_runs_as_written() {
        for (line, why) in [
            ("uvx", "no package"),
            ("uvx git+https://example.com/x.git", "git+https"),
            ("uvx --from git+https://example.com/x.git x", "git+https"),
            ("uvx --with x␣@␣git+ssh://example.com/x.git x", "git+ssh"),
            ("uvx --from https://u:p@example.com/x.whl x", "password"),
            ("uvx --index https://u:p@example.com/ x", "password"),
            ("uvx --index name=https://u:p@example.com/ x", "password"),
            ("uvx --env-file .env x", "--env-file"),
            ("uvx --brand-new-option x", "--brand-new-option"),
            ("uvx -Z x", "-Z"),
            ("uvx --directory /x y", "--directory"),
            ("uvx python", "interpreter"),
            ("uvx python@3.12", "interpreter"),
            ("uvx ./pkg", "workspace"),
            ("uvx --from ./pkg x", "workspace"),
            ("uvx --find-links wheels x", "workspace"),
            ("uvx https://example.com/x.whl", "without --from"),
            ("uvx x@feature", "invalid version"),
            ("uvx --with {MCPO_WORKDIR}/x.whl x", "path"),
            ("uvx x{MCPO_JOB_ID}", "workspace"),
            ("uv sync", "neither"),
            ("uv run --script server.py", "workspace"),
            ("uv run -", "not a file"),
            ("uv run", "no command"),
            ("uv --directory /x run y", "--directory"),
            ("uv run --project /x y", "--project"),
            ("pipx install x", "pipx run"),
            ("pipx run --pip-args x y", "--pip-args"),
            ("npx", "no package"),
            ("npx -c echo", "--c"),
            ("npx --no-install x", "--no-install"),
            ("npx --yes=false x", "--yes"),
            ("npx github:user/repo", "registry"),
            ("npx user/repo", "registry"),
            ("npx ./folder", "registry"),
            ("npx pkg.tgz", "registry"),
            ("npx name@npm:other", "registry"),
            ("npx name@https://example.com/x", "registry"),
            ("npx installed-globally", "already"),
            ("npx --registry https://u:p@example.com x", "password"),
            ("npm install x", "npm exec"),
            ("npm exec pkg --flag", "--"),
            ("python3 -c pass", "neither"),
            ("python3", "neither"),
            ("node server.js", "not a package launcher"),
            ("docker run x", "not a package launcher"),
        ] {
            let told = read_line(line).expect_err(line);
            assert!(told.contains(why), "{line}: {told}");
        }
    }

    #[test]
    fn npx_is_read_as_npx_reads_it() {
        for (line, expected) in [
            ("npx -y server", "server | server | - | 2"),
            ("npx -y server@1.2 -y --flag", "server@1.2 | server | - | 2"),
            (
                "npx --yes @scope/server@^1 x",
                "@scope/server@^1 | @scope/server | - | 2",
            ),
            (
                "npx -- @scope/server",
                "@scope/server | @scope/server | - | 2",
            ),
            ("npx -y server -- x", "server | server | - | 2"),
            (
                "npx -p server -p other@2 run",
                "server other@2 | server | run | 5",
            ),
            ("npx --package=server run -p x", "server | server | run | 2"),
            (
                "npx --registry=https://r.example server",
                "server | server | - | 2",
            ),
            ("npm exec -y -- server --flag", "server | server | - | 4"),
            ("npm x server", "server | server | - | 2"),
        ] {
            assert_eq!(node(line), expected, "{line}");
        }
    }

    #[test]
    fn npx_in_a_folder_of_its_own_is_left_alone() {
        let mut command = command("npx server");
        command.cwd = Some("/srv".into());
        assert!(read(&command, &|_| false).unwrap_err().contains("cwd"));
    }

    #[test]
    fn an_interpreter_needs_nothing_installed() {
        for (line, target, rest) in [
            (
                "python3 -m pkg.server --x",
                Target::Module("pkg.server".into()),
                2,
            ),
            ("python3.12 -u -mserver", Target::Module("server".into()), 2),
            (
                "python -X dev -W ignore -IB s.py -m x",
                Target::File("s.py".into()),
                6,
            ),
        ] {
            let wanted = read_line(line).unwrap();
            assert_eq!(wanted.what, What::Interpreter(target), "{line}");
            assert_eq!(wanted.rest, rest, "{line}");
        }
    }

    #[test]
    fn paths_start_from_the_servers_own_folder() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("pkg")).unwrap();
        let mut command = command("uvx --from ./pkg --find-links wheels run");
        command.cwd = Some(folder.path().to_owned());
        let What::Python(set) = read(&command, &|_| false).unwrap().what else {
            panic!()
        };
        let pkg = folder.path().canonicalize().unwrap().join("pkg");
        assert_eq!(set.requirements, [pkg.to_str().unwrap()]);
        assert_eq!(set.sources, [pkg]);
        let wheels = folder.path().join("wheels");
        assert_eq!(set.fetching, ["--find-links", wheels.to_str().unwrap()]);
    }

    #[test]
    fn a_script_brings_its_own_needs() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("server.py");
        let write = |more: &str| {
            let head =
                "#!/usr/bin/env python3\n# /// script\n# requires-python = \">=3.11\" # new\n";
            std::fs::write(&file, format!("{head}{more}# ///\nprint()\n")).unwrap();
        };
        write("# dependencies = [\"mcp\"]\n");
        let line = format!("uv run --quiet --script {} --x", file.display());
        let wanted = read_line(&line).unwrap();
        assert_eq!(wanted.rest, 4);
        let What::Python(set) = wanted.what else {
            panic!()
        };
        assert_eq!(
            (set.script, set.python.as_deref()),
            (Some(file.clone()), Some(">=3.11"))
        );
        assert_eq!(
            (set.run, set.sources),
            (Run::File(file.clone()), vec![file.clone()])
        );
        write("# [tool.uv]\n# index-url = \"x\"\n");
        assert!(read_line(&line).unwrap_err().contains("[tool.uv]"));
    }
}
