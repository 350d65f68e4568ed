//! The command line of a stdio server, before and after it is given a folder.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use bridge_model::JobId;
use indexmap::IndexMap;

use super::user_values::{UserValues, fill};

/// A program to start: argv, no shell. `${…}` are replaced already, `{MCPO_WORKDIR}` and
/// `{MCPO_JOB_ID}` not yet, nor what is of the user. Holds no NUL anywhere. `Debug` shows no argument and no value.
#[derive(Clone, PartialEq, Eq)]
pub struct CommandSpec {
    /// As written: a path, or a name to be looked up in `PATH`.
    pub program: String,
    /// Arguments; may hold secrets.
    pub args: Vec<String>,
    /// The server's own variables; values may be secrets.
    pub env: IndexMap<String, String>,
    /// Where it starts, if not in the workspace.
    pub cwd: Option<PathBuf>,
}

/// A command for one workspace. `Debug` shows the program only.
#[derive(Clone, PartialEq, Eq)]
pub struct ResolvedCommand {
    /// As written in the file.
    pub program: String,
    /// Arguments, placeholders replaced.
    pub args: Vec<String>,
    /// The server's own variables, placeholders replaced.
    pub env: IndexMap<String, String>,
    /// The folder to start in: the workspace's, unless the file names another. A relative one
    /// starts from the workspace's.
    pub cwd: PathBuf,
}

impl CommandSpec {
    /// Fills in the placeholders of `args`, `env` and `cwd` for one workspace, and in `env` those of
    /// its user. `workdir` should be UTF-8 (our own names are): other bytes become U+FFFD in
    /// arguments.
    pub fn resolve(&self, workdir: &Path, job: &JobId, user: &UserValues) -> ResolvedCommand {
        let folder = workdir.to_string_lossy();
        let job = job.to_string();
        let place = [("{MCPO_WORKDIR}", &*folder), ("{MCPO_JOB_ID}", &*job)];
        let both: Vec<_> = place.into_iter().chain(user.pairs()).collect();
        let fill_place = |text: &str| fill(text, &place);
        let cwd = self.cwd.as_ref().map_or_else(
            || workdir.to_owned(),
            |cwd| workdir.join(fill_place(&cwd.to_string_lossy())),
        );
        ResolvedCommand {
            program: self.program.clone(),
            args: self.args.iter().map(|arg| fill_place(arg)).collect(),
            env: self
                .env
                .iter()
                .map(|(name, value)| (name.clone(), fill(value, &both)))
                .collect(),
            cwd,
        }
    }
}

impl fmt::Debug for CommandSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CommandSpec")
            .field("program", &self.program)
            .field("args", &self.args.len())
            .field("env", &self.env.keys())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for ResolvedCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResolvedCommand")
            .field("program", &self.program)
            .field("env", &self.env.keys())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
