//! What a launcher's command line asks for, read as the launcher itself reads it.
//!
//! Whatever is not understood to the letter is not guessed at: such a command runs as written, and
//! `check` says which word it was.

mod npx;
mod options;
mod pipx;
mod python;
mod requirement;
mod uv;

pub use python::target as python_target;

use std::path::{Path, PathBuf};

use crate::spec::CommandSpec;

/// Why a command runs as written: a clause for people, without values.
pub type Why = String;

/// A command that was understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The server's own arguments begin here among those of the command.
    pub rest: usize,
    /// What has to be there before it can be started.
    pub what: What,
}

/// What has to be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// Python packages in an environment of their own.
    Python(PythonSet),
    /// npm packages in a folder of their own.
    Node(NodeSet),
    /// Nothing: an interpreter that is there already runs this.
    Interpreter(Target),
}

/// Python packages, and what of them is run.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PythonSet {
    /// The `uv` that does the work: a path, or a name to be found in PATH.
    pub uv: String,
    /// The interpreter as `--python` takes it.
    pub python: Option<String>,
    /// As `uv pip compile` reads them.
    pub requirements: Vec<String>,
    /// A script whose inline metadata names more of them.
    pub script: Option<PathBuf>,
    /// Options for choosing versions.
    pub choosing: Vec<String>,
    /// Options for choosing versions and for installing: indexes, builds.
    pub fetching: Vec<String>,
    /// Local files and folders among all of these: when they change, so may what is installed.
    pub sources: Vec<PathBuf>,
    /// What is run.
    pub run: Run,
}

/// What of an environment is run.
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

/// What Python runs, for whoever wants to import it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A function of a module: a console script.
    Function {
        /// Dotted.
        module: String,
        /// The name in it, which may be dotted too.
        function: String,
    },
    /// `python -m`.
    Module(String),
    /// `python FILE`.
    File(PathBuf),
}

/// npm packages, and what of them is run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeSet {
    /// The `npm` that does the work: a path, or a name to be found in PATH.
    pub npm: String,
    /// As `npm install` reads them; all from the registry.
    pub packages: Vec<String>,
    /// The name of the first, whose program is run where none is named.
    pub main: String,
    /// A program of one of the packages; without it that of the first.
    pub bin: Option<String>,
    /// Options of npm: the registry.
    pub fetching: Vec<String>,
}

/// Reads the command. `on_path` says whether a program of that name can be found.
pub fn read(command: &CommandSpec, on_path: &dyn Fn(&str) -> bool) -> Result<Wanted, Why> {
    let name = file_name(&command.program);
    let wanted = match name {
        "uvx" => uv::tool_run(command, 0, &beside(&command.program, "uv")),
        "uv" => uv::read(command, &command.program),
        "pipx" => pipx::read(command),
        "npx" => npx::read(command, &beside(&command.program, "npm"), on_path),
        "npm" => npx::exec(command, on_path),
        _ if python::is_interpreter(name) => python::read(command),
        _ => Err("it is no launcher that installs packages".to_owned()),
    }?;
    let launcher = command.args.get(..wanted.rest).unwrap_or_default();
    if launcher.iter().any(|arg| arg.contains("{MCPO_")) {
        return Err("its packages depend on the workspace: {MCPO_…} stands among them".to_owned());
    }
    Ok(wanted)
}

/// Whether this program's command lines are read here.
pub fn is_launcher(program: &str) -> bool {
    let name = file_name(program);
    ["uvx", "uv", "pipx", "npx", "npm"].contains(&name) || python::is_interpreter(name)
}

fn file_name(program: &str) -> &str {
    let name = Path::new(program).file_name();
    name.and_then(|name| name.to_str()).unwrap_or_default()
}

/// Another program of the same installation.
fn beside(program: &str, other: &str) -> String {
    match program.rsplit_once('/') {
        Some((folder, _)) => format!("{folder}/{other}"),
        None => other.to_owned(),
    }
}

#[cfg(test)]
mod tests;
