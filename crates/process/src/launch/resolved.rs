//! An installed command: how it is started, and what is known of what runs.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::SystemTime,
};

use super::launcher::Target;

/// How a server is started without its launcher. Where a member says so, it is of the command as
/// written in the server file.
#[derive(Debug)]
pub struct Resolved {
    /// What is started: a path, or a name to be found in PATH.
    pub program: String,
    /// In front of the server's own arguments.
    pub args: Vec<String>,
    /// Those begin here among the arguments as written.
    pub rest: usize,
    /// Variables beside the usual ones; the server's own win.
    pub env: Vec<(OsString, OsString)>,
    /// A folder to put in front of PATH.
    pub path: Option<PathBuf>,
    /// What runs.
    pub kind: Kind,
    /// Equal identities run the same code. `None` where nobody can tell: an interpreter with
    /// whatever lies around.
    pub identity: Option<String>,
    /// Name and version of the package whose program it is, where it has any.
    pub main: Option<(String, String)>,
    /// The lock file says what it is.
    pub locked: bool,
    /// Its environment.
    pub folder: Option<PathBuf>,
    /// Local files that it was made of, as they were then.
    pub sources: Vec<(PathBuf, Seen)>,
    /// It was seen to start.
    pub proven: AtomicBool,
}

/// What runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// Python code.
    Python {
        /// The interpreter to import with: that of the environment, or the one as written.
        interpreter: PathBuf,
        /// What it runs. `None` for a program of a package that is no Python function.
        target: Option<Target>,
    },
    /// JavaScript for Node.
    Node,
    /// Something else.
    Other,
}

/// A file as it was seen: when it was changed, and how long it was.
pub type Seen = Option<(SystemTime, u64)>;

/// Looks at a local source.
pub fn seen(path: &Path) -> Seen {
    let of = |path: &Path| {
        let found = fs::metadata(path).ok()?;
        Some((found.modified().ok()?, found.len()))
    };
    if path.is_dir() {
        let parts = ["pyproject.toml", "setup.py", "setup.cfg", "src"];
        return parts.iter().filter_map(|part| of(&path.join(part))).max();
    }
    of(path)
}

impl Resolved {
    /// Whether it is still there, and made of what its sources are now. Two looks at the disk.
    pub fn holds(&self) -> bool {
        let there = self.folder.is_none() || Path::new(self.executable()).exists();
        there && self.sources.iter().all(|(path, then)| seen(path) == *then)
    }

    /// The file that must be there.
    fn executable(&self) -> &str {
        match self.args.first() {
            Some(script) if script.starts_with('/') => script,
            _ => &self.program,
        }
    }

    /// It was seen to start.
    pub fn trust(&self) {
        self.proven.store(true, Ordering::Relaxed);
    }

    /// Whether a start that fails speaks against it: not once it was seen to start.
    pub fn is_doubtful(&self) -> bool {
        self.folder.is_some() && !self.locked && !self.proven.load(Ordering::Relaxed)
    }
}
