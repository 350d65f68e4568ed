//! `uvx`, `uv tool run` and `uv run`.

use std::path::{Path, PathBuf};

use url::Url;

use super::{
    PythonSet, Run, Wanted, What, Why,
    options::{
        self, Given, Known,
        Use::{Choose, Fetch, From, Module, Python, Script, Skip, With},
        flag, valued,
    },
    requirement,
};
use crate::spec::CommandSpec;

/// What every command of uv takes.
const GLOBAL: &[Known] = &[
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

/// What `uvx` and `uv run` both take to say which packages.
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

const RUN: &[Known] = &[
    flag("no-project", None, Skip),
    flag("no-sync", None, Skip),
    flag("module", Some('m'), Module),
    flag("script", Some('s'), Script),
];

/// `uv … tool run …` and `uv … run …`.
pub fn read(command: &CommandSpec, uv: &str) -> Result<Wanted, Why> {
    let args = &command.args;
    let (given, at) = options::read(args, 0, &[GLOBAL])?;
    let word = |at: usize| args.get(at).map(String::as_str);
    let mut wanted = match (word(at), word(at + 1)) {
        (Some("tool"), Some("run")) => tool_run(command, at + 2, uv)?,
        (Some("run"), _) => run(command, at + 1, uv)?,
        _ => return Err("it is neither `uv run` nor `uv tool run`".to_owned()),
    };
    if let What::Python(set) = &mut wanted.what {
        set.fetching.extend(given.into_iter().flat_map(fetch_words));
    }
    Ok(wanted)
}

fn fetch_words((given, valued): (Given, bool)) -> Vec<String> {
    match given.meaning {
        Fetch => given.words(valued),
        _ => Vec::new(),
    }
}

/// `uvx …`, whose options begin at `at`.
pub fn tool_run(command: &CommandSpec, at: usize, uv: &str) -> Result<Wanted, Why> {
    let (given, at) = options::read(&command.args, at, &[GLOBAL, PACKAGES, TOOL])?;
    let Some(target) = command.args.get(at) else {
        return Err("no package is named".to_owned());
    };
    let cwd = command.cwd.as_deref();
    let mut set = PythonSet {
        uv: uv.to_owned(),
        ..PythonSet::default()
    };
    let from = given.iter().rev().find(|(given, _)| given.meaning == From);
    let main = if let Some((from, _)) = from {
        if target.contains(['@', '=', '<', '>', '[', '/']) {
            return Err("with --from, a plain program's name must follow".to_owned());
        }
        set.run = Run::Script(target.clone());
        requirement::read(&from.value, cwd)?
    } else {
        let main = requirement::read(target, cwd)?;
        let name = main.name.clone().filter(|_| !target.contains("://"));
        let name = name.ok_or("a path or URL without --from does not name its program")?;
        set.run = Run::Script(name);
        main
    };
    if main
        .name
        .as_deref()
        .is_some_and(super::python::is_interpreter)
    {
        return Err("it runs the interpreter itself".to_owned());
    }
    add(&mut set, main);
    gather(&mut set, given, cwd)?;
    Ok(Wanted {
        rest: at + 1,
        what: What::Python(set),
    })
}

/// `uv run …`, whose options begin at `at`.
fn run(command: &CommandSpec, at: usize, uv: &str) -> Result<Wanted, Why> {
    let args = &command.args;
    let (given, at) = options::read(args, at, &[GLOBAL, PACKAGES, RUN])?;
    let Some(target) = args.get(at) else {
        return Err("nothing is named that is to be run".to_owned());
    };
    let cwd = command.cwd.as_deref();
    let has = |meaning| given.iter().any(|(given, _)| given.meaning == meaning);
    let named = |name| given.iter().any(|(given, _)| given.long == name);
    let (is_module, is_script) = (has(Module), has(Script));
    if target == "-" || target.contains("://") {
        return Err("its script is read from elsewhere than a file".to_owned());
    }
    let file = Path::new(target).extension();
    let is_file = !is_module && (is_script || file.is_some_and(|end| end == "py"));
    let mut set = PythonSet {
        uv: uv.to_owned(),
        ..PythonSet::default()
    };
    let mut rest = at + 1;
    if is_module {
        set.run = Run::Module(target.clone());
    } else if is_file {
        let file = requirement::absolute(Path::new(target), cwd)?;
        script(&mut set, &file)?;
        set.run = Run::File(file);
    } else if super::python::is_interpreter(target) {
        let (found, behind) = super::python::target(&args[rest..])?;
        rest += behind;
        set.run = match found {
            super::Target::Module(module) => Run::Module(module),
            super::Target::File(file) => Run::File(requirement::absolute(&file, cwd)?),
            super::Target::Function { .. } => return Err("it runs no module".to_owned()),
        };
    } else {
        set.run = Run::Script(target.clone());
    }
    // A script with inline metadata is on its own; anything else is part of the project around it.
    let in_project = set.script.is_none() && !named("no-project") && cwd.is_some();
    if in_project {
        return Err("it runs within a project, which `uv run` keeps up to date itself".to_owned());
    }
    gather(&mut set, given, cwd)?;
    Ok(Wanted {
        rest,
        what: What::Python(set),
    })
}

/// A script, whose first lines may say what it needs.
fn script(set: &mut PythonSet, file: &Path) -> Result<(), Why> {
    let text = std::fs::read_to_string(file);
    let text = text.map_err(|error| format!("its script cannot be read ({error})"))?;
    let mut lines = text.lines().map(str::trim_end);
    if !lines.any(|line| line == "# /// script") {
        return Ok(());
    }
    if file.with_extension("py.lock").exists() {
        return Err("its script has a lock file of uv's own".to_owned());
    }
    let metadata = lines.take_while(|line| *line != "# ///");
    for line in metadata.map(|line| line.trim_start_matches('#').trim()) {
        if line.starts_with("[tool.uv") {
            return Err("its script has settings of uv's own ([tool.uv])".to_owned());
        }
        let asked = line.strip_prefix("requires-python");
        let asked = asked.and_then(|rest| rest.trim_start().strip_prefix('='));
        if let Some(asked) = asked {
            set.python = Some(quoted(asked.trim()).ok_or("requires-python cannot be read")?);
        }
    }
    set.script = Some(file.to_owned());
    set.sources.push(file.to_owned());
    Ok(())
}

fn quoted(text: &str) -> Option<String> {
    let quote = text.chars().next().filter(|c| matches!(c, '"' | '\''))?;
    let (inside, _) = text[1..].split_once(quote)?;
    Some(inside.to_owned())
}

fn add(set: &mut PythonSet, package: requirement::Requirement) {
    set.requirements.push(package.text);
    set.sources.extend(package.source);
}

fn gather(set: &mut PythonSet, given: Vec<(Given, bool)>, cwd: Option<&Path>) -> Result<(), Why> {
    for (mut given, valued) in given {
        match given.meaning {
            Python => set.python = Some(given.value),
            With => {
                for package in requirement::split(&given.value) {
                    add(set, requirement::read(&package, cwd)?);
                }
            }
            Choose => set.choosing.extend(given.words(valued)),
            Fetch => {
                if valued {
                    given.value = place(&given, cwd)?;
                }
                set.fetching.extend(given.words(valued));
            }
            Skip | From | Module | Script => {}
        }
    }
    if set
        .python
        .as_deref()
        .is_some_and(|python| python.contains('/'))
    {
        let path = requirement::absolute(Path::new(set.python.as_deref().unwrap_or("")), cwd)?;
        set.python = Some(path.display().to_string());
    }
    Ok(())
}

/// The value of an option that may be a URL or a path.
fn place(given: &Given, cwd: Option<&Path>) -> Result<String, Why> {
    let value = &given.value;
    if let Some(at) = value.find("://") {
        let from = value[..at].rfind('=').map_or(0, |at| at + 1);
        let address = Url::parse(&value[from..]);
        let address = address.map_err(|_| format!("--{} is no URL", given.long))?;
        requirement::without_password(&address)?;
        return Ok(value.clone());
    }
    if given.long == "find-links" {
        let path: PathBuf = requirement::absolute(Path::new(value), cwd)?;
        return Ok(path.display().to_string());
    }
    Ok(value.clone())
}
