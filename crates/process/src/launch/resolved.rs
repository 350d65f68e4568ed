//! An installed command: how it is started, and what it runs.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::SystemTime,
};

use super::launcher::Target;
use crate::spec::CommandSpec;

/// How a server is started without its launcher.
#[derive(Debug)]
pub struct Resolved {
    /// The program: a path, or a name to be found in PATH.
    pub program: String,
    /// Before the server's own arguments.
    pub args: Vec<String>,
    /// The server's own arguments begin here in the server file.
    pub rest: usize,
    /// Variables in addition to the usual ones; the server's own win.
    pub env: Vec<(OsString, OsString)>,
    /// A folder to put first in PATH.
    pub path: Option<PathBuf>,
    /// What runs.
    pub kind: Kind,
    /// Equal identities run the same code. `None` if that is unknown: an interpreter with local files.
    pub identity: Option<String>,
    /// Name and version of the package that contains the program, if any.
    pub main: Option<(String, String)>,
    /// The lock file determines it.
    pub locked: bool,
    /// Its environment.
    pub folder: Option<PathBuf>,
    /// The local files that it was made of.
    pub sources: Sources,
    /// It has started successfully.
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

/// Local files and folders, as they were when they were read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sources(Vec<(Seen, PathBuf)>);

/// When a file was changed, and its length; `None` if it does not exist.
type Seen = Option<(SystemTime, u64)>;

/// Files that are read next to a script; a folder with more does not belong to one program.
const MOST: usize = 1000;

const DEPTH: usize = 3;

const CODE: [&str; 11] = [
    "py", "js", "mjs", "cjs", "ts", "json", "toml", "rb", "php", "sh", "jar",
];

/// Folders of installed packages.
const PACKAGES: [&str; 3] = ["__pycache__", "node_modules", "site-packages"];

impl Sources {
    /// Reads them now. Blocks on the disk.
    pub fn read(paths: impl IntoIterator<Item = PathBuf>) -> Self {
        let now = |path: PathBuf| (seen(&path), path);
        Self(paths.into_iter().map(now).collect())
    }

    /// The files that a command names, and those next to its script: code that may be edited while
    /// the server is in use. Blocks on the disk.
    pub fn of_command(command: &CommandSpec) -> Self {
        let cwd = command.cwd.as_deref().filter(|cwd| cwd.is_absolute());
        let local = |text: &String| {
            let path = cwd.map_or_else(|| PathBuf::from(text), |cwd| cwd.join(text));
            (path.is_absolute() && path.is_file()).then_some(path)
        };
        // The file that an interpreter runs.
        let script = command.args.iter().find_map(local);
        let program = Some(PathBuf::from(&command.program)).filter(|path| path.is_absolute());
        let mut paths: Vec<_> = program.into_iter().chain(script.clone()).collect();
        for folder in script.iter().filter_map(|path| path.parent()).chain(cwd) {
            let mut siblings = Vec::new();
            if walk(folder, DEPTH, &mut MOST.clone(), &mut siblings).is_some() {
                paths.append(&mut siblings);
            }
        }
        paths.sort();
        Self::read(paths)
    }

    /// Whether they are still the same. Blocks on the disk.
    pub fn hold(&self) -> bool {
        self.0.iter().all(|(then, path)| seen(path) == *then)
    }
}

fn seen(path: &Path) -> Seen {
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

/// `None` if there are too many files.
fn walk(folder: &Path, depth: usize, left: &mut usize, found: &mut Vec<PathBuf>) -> Option<()> {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        *left = left.checked_sub(1)?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let kind = entry.file_type().ok();
        let path = entry.path();
        if name.starts_with('.') || PACKAGES.contains(&&*name) {
            continue;
        }
        if kind.is_some_and(|kind| kind.is_dir()) {
            if depth > 0 && !path.join("pyvenv.cfg").exists() {
                walk(&path, depth - 1, left, found)?;
            }
        } else if path
            .extension()
            .is_some_and(|end| CODE.iter().any(|code| end == *code))
        {
            found.push(path);
        }
    }
    Some(())
}

impl Resolved {
    /// Whether it still exists, and its sources have not changed. Blocks on the disk.
    pub fn holds(&self) -> bool {
        let there = self.folder.is_none() || Path::new(self.executable()).exists();
        there && self.sources.hold()
    }

    /// The file that must exist.
    fn executable(&self) -> &str {
        match self.args.first() {
            Some(script) if script.starts_with('/') => script,
            _ => &self.program,
        }
    }

    /// Records that it has started successfully.
    pub fn trust(&self) {
        self.proven.store(true, Ordering::Relaxed);
    }

    /// Whether a failed start is evidence against it: not once it has started successfully.
    pub fn is_doubtful(&self) -> bool {
        self.folder.is_some() && !self.locked && !self.proven.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod code_tests {
    use indexmap::IndexMap;

    use super::*;

    fn command(script: &Path) -> CommandSpec {
        CommandSpec {
            program: "python3".into(),
            args: vec!["-u".into(), script.display().to_string()],
            env: IndexMap::new(),
            cwd: None,
        }
    }

    #[test]
    fn what_is_beside_a_script_counts_and_data_do_not() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("server.py", "1");
        write("lib/helper.py", "1");
        let command = command(&folder.path().join("server.py"));
        let before = Sources::of_command(&command);
        for ignored in [
            "data.sqlite",
            "lib/__pycache__/helper.json",
            ".git/x.py",
            "a/b/c/d/e.py",
        ] {
            write(ignored, "x");
            assert_eq!(Sources::of_command(&command), before, "{ignored}");
        }
        for changed in ["lib/helper.py", "server.py", "new.py"] {
            let before = Sources::of_command(&command);
            write(changed, "other");
            assert_ne!(Sources::of_command(&command), before, "{changed}");
        }
    }

    #[test]
    fn in_a_folder_of_everything_the_script_alone_counts() {
        let folder = tempfile::tempdir().unwrap();
        for number in 0..=MOST {
            fs::write(folder.path().join(format!("{number}.py")), "").unwrap();
        }
        let script = folder.path().join("0.py");
        let before = Sources::of_command(&command(&script));
        fs::write(folder.path().join("1.py"), "other").unwrap();
        assert_eq!(Sources::of_command(&command(&script)), before);
        fs::write(&script, "other").unwrap();
        assert_ne!(Sources::of_command(&command(&script)), before);
    }
}
