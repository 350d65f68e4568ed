//! A path that stays within its folder, as far as text can say.

use std::{
    borrow::Cow,
    ffi::OsStr,
    path::{Component, Path, PathBuf},
};

use super::names;

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
        let mut parts = self.0.iter().map(names::display);
        let first = parts.next().unwrap_or_default();
        parts.fold(first, |path, part| Cow::Owned(format!("{path}/{part}")))
    }

    /// The last part, for people.
    pub fn name(&self) -> Cow<'_, str> {
        self.0.file_name().map(names::display).unwrap_or_default()
    }

    /// Another name in the folder that this one is in.
    pub(super) fn sibling(&self, name: &OsStr) -> Self {
        Self(self.0.with_file_name(name))
    }

    /// An entry of the folder `parent`, or of the top folder, as a directory listing named it.
    pub(super) fn entry(parent: Option<&Self>, name: &OsStr) -> Self {
        Self(parent.map_or_else(|| name.into(), |parent| parent.0.join(name)))
    }
}

impl AsRef<Self> for RelativePath {
    fn as_ref(&self) -> &Self {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_below_the_folder_pass() {
        for (path, clean) in [("a", "a"), ("./a//b/", "a/b"), ("..a/b..", "..a/b..")] {
            let parsed = RelativePath::parse(path).unwrap();
            assert_eq!(parsed.as_path(), Path::new(clean));
            assert_eq!(parsed.display(), clean);
        }
        for bad in [
            "",
            ".",
            "/",
            "/etc/passwd",
            "..",
            "a/../../b",
            "a/..",
            "a\0b",
        ] {
            assert!(RelativePath::parse(bad).is_err(), "{bad}");
        }
    }
}
