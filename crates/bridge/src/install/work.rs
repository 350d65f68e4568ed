//! Running the package managers: their environment, and what they say when they fail.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    time::Duration,
};

use bridge_process::{ChildError, Errand, ExitStatus, environment_for_installing};
use indexmap::IndexMap;
use tokio::time::Instant;

use crate::child::Children;

/// Bounds one step: large packages over a slow line, or a build.
const STEP: Duration = Duration::from_secs(1800);
/// The end of what a package manager says, in lines.
const LAST_LINES: usize = 6;

/// Why something could not be installed: for people, without passwords.
pub type Failed = String;

/// Runs package managers for one server.
pub struct Work<'a> {
    children: &'a Children,
    env: Vec<(OsString, OsString)>,
    cwd: PathBuf,
}

impl<'a> Work<'a> {
    /// `own` are the server's variables, of which only the package managers' own settings are
    /// taken; `scratch` is for their temporary files.
    pub fn new(
        children: &'a Children,
        tools_dir: &Path,
        own: &IndexMap<String, String>,
        scratch: &Path,
    ) -> Result<Self, Failed> {
        let cwd = scratch.join("scratch");
        std::fs::create_dir(&cwd).map_err(|error| format!("no folder to work in: {error}"))?;
        Ok(Self {
            children,
            env: environment_for_installing(tools_dir, &cwd, own),
            cwd,
        })
    }

    /// A program with its output, or what it said last.
    pub async fn run(&self, program: &str, args: Vec<String>) -> Result<String, Failed> {
        self.run_in(program, args, &self.cwd).await
    }

    /// The same in another folder.
    pub async fn run_in(
        &self,
        program: &str,
        args: Vec<String>,
        cwd: &Path,
    ) -> Result<String, Failed> {
        let what = args.iter().take_while(|arg| !arg.starts_with('-')).take(2);
        let what = what.fold(program.to_owned(), |what, arg| format!("{what} {arg}"));
        let errand = Errand {
            program: program.to_owned(),
            args,
            env: self.env.clone(),
            cwd: cwd.to_owned(),
        };
        let done = self.children.run(errand, Instant::now() + STEP).await;
        let done = done.map_err(|error| match error {
            ChildError::NotStarted { why, .. } => why,
            _ => format!("`{what}` took longer than {} s", STEP.as_secs()),
        })?;
        if done.status == ExitStatus::Code(0) {
            return Ok(String::from_utf8_lossy(&done.stdout).into_owned());
        }
        let said = last_words(&String::from_utf8_lossy(&done.stderr));
        Err(format!("`{what}` failed ({}){said}", done.status))
    }

    /// Removes its temporary files.
    pub fn leave(&self) -> std::io::Result<()> {
        std::fs::remove_dir_all(&self.cwd)
    }

    /// Whether the variables of the package managers say something of their own.
    pub fn says(&self, name: &str) -> bool {
        self.env.iter().any(|(known, _)| known == name)
    }
}

fn last_words(said: &str) -> String {
    let lines: Vec<&str> = said.lines().map(str::trim_end).collect();
    let lines: Vec<&str> = lines.into_iter().filter(|line| !line.is_empty()).collect();
    let last = &lines[lines.len().saturating_sub(LAST_LINES)..];
    if last.is_empty() {
        return String::new();
    }
    format!(": {}", without_passwords(&last.join("\n")))
}

/// `https://user:password@host` → `https://…@host`.
fn without_passwords(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, behind) = rest.split_at(at + 3);
        out.push_str(before);
        let end = behind
            .find(|c: char| c.is_whitespace() || matches!(c, '/' | '`' | '"' | '\''))
            .unwrap_or(behind.len());
        rest = match behind[..end].rfind('@') {
            Some(at) => {
                out.push('…');
                &behind[at..]
            }
            None => behind,
        };
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_password_is_told() {
        let said = "error: https://joe:hunter2@pypi.example/simple failed\n  at `http://t@h/`\n\n";
        let told = last_words(said);
        assert_eq!(
            told,
            ": error: https://…@pypi.example/simple failed\n  at `http://…@h/`"
        );
        assert_eq!(
            without_passwords("https://a.example/x@1"),
            "https://a.example/x@1"
        );
    }
}
