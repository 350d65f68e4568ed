//! The program of a fork parent, in Python: written beside its folder, and removed with it.

use std::{io, path::Path};

macro_rules! files {
    ($($name:literal),*) => { [$(($name, include_str!(concat!("server/", $name)))),*] };
}

const FILES: [(&str, &str); 8] = files![
    "__main__.py",
    "mcpo_fork/__init__.py",
    "mcpo_fork/captured.py",
    "mcpo_fork/draws.py",
    "mcpo_fork/parent.py",
    "mcpo_fork/process.py",
    "mcpo_fork/state.py",
    "mcpo_fork/watch.py"
];

/// Writes it into a new folder.
pub fn write(folder: &Path) -> io::Result<()> {
    std::fs::create_dir(folder)?;
    std::fs::create_dir(folder.join("mcpo_fork"))?;
    let mut files = FILES.iter();
    files.try_for_each(|(name, text)| std::fs::write(folder.join(name), text))
}
