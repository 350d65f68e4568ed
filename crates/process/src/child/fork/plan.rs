//! Whether a server's command line can be run by forking, and what of it then is what.

use serde::Serialize;

use crate::{
    launch::{Kind, Resolved, Target as Installed, python_target},
    spec::ResolvedCommand,
};

/// What a fork parent runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// A file; that of a package's program is one too.
    File(String),
    /// As with `-m`.
    Module(String),
}

/// A command line of Python, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The interpreter.
    pub program: String,
    /// Its own options.
    pub options: Vec<String>,
    /// What it runs.
    pub target: Target,
    /// What stands for the target.
    pub written: Vec<String>,
    /// The server's own arguments.
    pub argv: Vec<String>,
}

impl Plan {
    /// The error says why each process must be started anew.
    pub fn of(command: &ResolvedCommand, found: Option<&Resolved>) -> Result<Self, String> {
        let Some(found) = found else {
            return Err("its packages are not installed, or it is no Python server".to_owned());
        };
        let Kind::Python { target, .. } = &found.kind else {
            return Err("it is no Python server".to_owned());
        };
        if target.is_none() {
            return Err("its program is no Python function".to_owned());
        }
        // What follows `rest` is the server's own; without an environment that is everything.
        let own = command.args.get(found.rest..).unwrap_or_default();
        let args: Vec<String> = found.args.iter().chain(own).cloned().collect();
        let (target, behind) = python_target(&args)?;
        let (target, words) = match target {
            Installed::Module(name) => {
                let joined = args[behind - 1] != "-m" && args[behind - 1].starts_with("-m");
                (Target::Module(name), if joined { 1 } else { 2 })
            }
            Installed::File(path) if path.is_absolute() => {
                (Target::File(path.display().to_string()), 1)
            }
            Installed::File(path) => {
                let path = path.display();
                return Err(format!(
                    "{path} is looked for in the working folder: write its whole path"
                ));
            }
            Installed::Function { .. } => return Err("it runs no file".to_owned()),
        };
        let options = args[..behind - words].to_vec();
        if let Some(odd) = options.iter().find(|option| {
            !option.starts_with("-W") && !option.starts_with("-X") && option.contains(['i', 'x'])
        }) {
            return Err(format!(
                "the interpreter's option {odd} does not go with it"
            ));
        }
        Ok(Self {
            program: found.program.clone(),
            options,
            target,
            written: args[behind - words..behind].to_vec(),
            argv: args[behind..].to_vec(),
        })
    }

    /// `sys.argv[0]` before the target has run.
    pub fn name(&self) -> &str {
        match &self.target {
            Target::File(path) => path,
            Target::Module(_) => "-m",
        }
    }
}
