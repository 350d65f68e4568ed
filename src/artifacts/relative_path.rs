//! A path that stays within its folder, as far as text can say.

use std::{
    borrow::Cow,
    path::{Component, Path, PathBuf},
};

/// One or more ordinary names: not absolute, no `..`, no `.`, no NUL. May not be UTF-8.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RelativePath(PathBuf);

/// The path leaves its folder or names nothing in it.
#[derive(Debug, thiserror::Error)]
#[error("a path below the workspace is expected, without '..'")]
pub struct InvalidRelativePath;

impl RelativePath {
    /// Checks the path; `./a//b` becomes `a/b`.
    pub fn parse(path: impl AsRef<Path>) -> Result<Self, InvalidRelativePath> {
        let mut clean = PathBuf::new();
        for part in path.as_ref().components() {
            match part {
                Component::Normal(name) if !name.as_encoded_bytes().contains(&0) => {
                    clean.push(name);
                }
                Component::CurDir => {}
                _ => return Err(InvalidRelativePath),
            }
        }
        if clean.as_os_str().is_empty() {
            return Err(InvalidRelativePath);
        }
        Ok(Self(clean))
    }

    /// The path, relative.
    pub fn as_path(&self) -> &Path {
        &self.0
    }

    /// For people: UTF-8 without control characters. Not for opening the file.
    pub fn display(&self) -> Cow<'_, str> {
        todo!()
    }
}
