//! An installed command: how to start it, and the code that it runs.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::SystemTime,
};

use super::launcher::Target;
use crate::spec::CommandSpec;

/// How to start a server without its launcher.
#[derive(Debug, Default)]
pub struct Resolved {
    /// The program: a path, or a name to find in PATH.
    pub program: String,
    /// Arguments before the server's own.
    pub args: Vec<String>,
    /// The index of the server's own arguments in the server file's command.
    pub rest: usize,
    /// Environment variables in addition to the usual ones; the server's own take precedence.
    pub env: Vec<(OsString, OsString)>,
    /// A folder to prepend to PATH.
    pub path: Option<PathBuf>,
    /// The kind of code that it runs.
    pub kind: Kind,
    /// Commands with equal identities run the same code. `None` if this is unknown: an interpreter
    /// with local files.
    pub identity: Option<String>,
    /// Name and version of the package that contains the program, if any.
    pub main: Option<(String, String)>,
    /// The lock file determines the versions.
    pub locked: bool,
    /// Its environment.
    pub folder: Option<PathBuf>,
    /// The local files from which it was installed.
    pub sources: Sources,
    /// It has started successfully.
    pub proven: AtomicBool,
}

/// The kind of code that a command runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Kind {
    /// Python code.
    Python {
        /// The interpreter for imports: that of the environment, or the one as written.
        interpreter: PathBuf,
        /// The code to run. `None` if the package's program is not a Python function.
        target: Option<Target>,
    },
    /// JavaScript for Node.
    Node,
    /// Something else.
    #[default]
    Other,
}

/// Local files and folders, with their state at the time of reading.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sources(Vec<(FileState, PathBuf)>);

/// Modification time and length of a file; `None` if it does not exist.
type FileState = Option<(SystemTime, u64)>;

/// Maximum number of files that are read next to a script; a folder with more does not belong to
/// one program.
const MOST: usize = 1000;

const DEPTH: usize = 3;

const CODE: [&str; 11] = [
    "py", "js", "mjs", "cjs", "ts", "json", "toml", "rb", "php", "sh", "jar",
];

/// Folders of installed packages.
const PACKAGES: [&str; 3] = ["__pycache__", "node_modules", "site-packages"];

impl Sources {
    /// Reads their current state. Blocks on the disk.
    pub fn read(paths: impl IntoIterator<Item = PathBuf>) -> Self {
        let now = |path: PathBuf| (file_state(&path), path);
        Self(paths.into_iter().map(now).collect())
    }

    /// The files that a command names, and the files next to its script: code that may be edited
    /// while the server is in use. Blocks on the disk.
    pub fn of_command(command: &CommandSpec) -> Self {
        let cwd = command.cwd.as_deref().filter(|cwd| cwd.is_absolute());
        let local = |text: &String| {
            let path = cwd.map_or_else(|| PathBuf::from(text), |cwd| cwd.join(text));
            (path.is_absolute() && path.is_file()).then_some(path)
        };
        // The script that an interpreter runs.
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

    /// Whether they are unchanged. Blocks on the disk.
    pub fn hold(&self) -> bool {
        self.0.iter().all(|(then, path)| file_state(path) == *then)
    }
}

fn file_state(path: &Path) -> FileState {
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
    /// Whether it still exists and its sources are unchanged. Blocks on the disk.
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

    /// Records a successful start.
    pub fn trust(&self) {
        self.proven.store(true, Ordering::Relaxed);
    }

    /// Whether a failed start may be caused by the installation: not after it has started
    /// successfully.
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
