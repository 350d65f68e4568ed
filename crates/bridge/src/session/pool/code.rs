//! The local files that a server's command names, and what lies beside its script: what somebody may
//! be working on, and expects to run.

use std::{
    fs,
    path::{Path, PathBuf},
    time::SystemTime,
};

use bridge_process::CommandSpec;

/// What is looked at beside a script; a folder with more is no program's own.
const MOST: usize = 1000;
const DEPTH: usize = 3;
const CODE: [&str; 11] = [
    "py", "js", "mjs", "cjs", "ts", "json", "toml", "rb", "php", "sh", "jar",
];
/// Packages, which are installed and not written.
const PACKAGES: [&str; 3] = ["__pycache__", "node_modules", "site-packages"];

/// A file as it was.
type File = (PathBuf, SystemTime, u64);

/// The files of a command, as they were. Blocks on the disk.
#[derive(Debug, PartialEq, Eq)]
pub struct Code(Vec<File>);

impl Code {
    /// As they are now.
    pub fn of(command: &CommandSpec) -> Self {
        let mut files = Vec::new();
        let cwd = command.cwd.as_deref().filter(|cwd| cwd.is_absolute());
        let local = |text: &String| {
            let path = cwd.map_or_else(|| PathBuf::from(text), |cwd| cwd.join(text));
            (path.is_absolute() && path.is_file()).then_some(path)
        };
        // What an interpreter runs.
        let script = command.args.iter().find_map(local);
        let program = Path::new(&command.program);
        let program = program.is_absolute().then(|| program.to_owned());
        files.extend(program.iter().chain(&script).filter_map(|path| file(path)));
        for folder in script.iter().filter_map(|path| path.parent()).chain(cwd) {
            let mut beside = Vec::new();
            if walk(folder, DEPTH, &mut MOST.clone(), &mut beside).is_some() {
                files.append(&mut beside);
            }
        }
        files.sort();
        Self(files)
    }
}

fn file(path: &Path) -> Option<File> {
    let found = fs::metadata(path).ok()?;
    Some((path.to_owned(), found.modified().ok()?, found.len()))
}

/// `None` where there is more than is looked at.
fn walk(folder: &Path, depth: usize, left: &mut usize, found: &mut Vec<File>) -> Option<()> {
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
            found.extend(file(&path));
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
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
        let before = Code::of(&command);
        for ignored in [
            "data.sqlite",
            "lib/__pycache__/helper.json",
            ".git/x.py",
            "a/b/c/d/e.py",
        ] {
            write(ignored, "x");
            assert_eq!(Code::of(&command), before, "{ignored}");
        }
        for changed in ["lib/helper.py", "server.py", "new.py"] {
            let before = Code::of(&command);
            write(changed, "other");
            assert_ne!(Code::of(&command), before, "{changed}");
        }
    }

    #[test]
    fn in_a_folder_of_everything_the_script_alone_counts() {
        let folder = tempfile::tempdir().unwrap();
        for number in 0..=MOST {
            fs::write(folder.path().join(format!("{number}.py")), "").unwrap();
        }
        let script = folder.path().join("0.py");
        let before = Code::of(&command(&script));
        fs::write(folder.path().join("1.py"), "other").unwrap();
        assert_eq!(Code::of(&command(&script)), before);
        fs::write(&script, "other").unwrap();
        assert_ne!(Code::of(&command(&script)), before);
    }
}
