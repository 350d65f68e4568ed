//! Errors of the jobs folder.

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

use bridge_model::{JobId, LinkToken};
use rustix::io::Errno;

/// An error of the jobs folder: the action, the path and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// `MCPO_JOBS_DIR` cannot be used at all.
    #[error("the jobs directory {} {problem}", path.display())]
    Unusable {
        /// The folder as configured.
        path: PathBuf,
        /// The problem and its remedy.
        problem: String,
    },
    /// The workspace folder was removed (retention, `gc --user`) or is not the bridge's.
    #[error("the workspace folder no longer exists; the next call creates a new one")]
    JobGone,
    /// Another instance holds the workspace: this one must not write there.
    #[error("another replica took over the workspace; this one no longer writes to it")]
    Fenced,
    /// The filesystem returned an error.
    #[error("cannot {action} {}: {source}", Redacted(path))]
    Io {
        /// The attempted action.
        action: &'static str,
        /// Its path.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

impl StoreError {
    /// The disk or the quota is full (HTTP 507).
    pub fn is_disk_full(&self) -> bool {
        matches!(self, Self::Io { source, .. } if is_disk_full(source))
    }

    /// Whether a component of the path does not exist.
    pub(super) fn is_absent(&self) -> bool {
        matches!(self, Self::Io { source, .. } if is_absent(source))
    }

    /// Whether this process, or the system, has no file descriptors left.
    pub fn is_lack_of_descriptors(&self) -> bool {
        let number = match self {
            Self::Io { source, .. } => Errno::from_io_error(source),
            _ => None,
        };
        matches!(number, Some(Errno::MFILE | Errno::NFILE))
    }
}

/// A path for logs: readers of logs must neither see a folder's name nor be able to open a link.
struct Redacted<'a>(&'a Path);

impl fmt::Display for Redacted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, part) in self.0.iter().enumerate() {
            let part = part.to_string_lossy();
            if index > 0 && !(index == 1 && self.0.has_root()) {
                f.write_str("/")?;
            }
            if let Ok(id) = part.parse::<JobId>() {
                write!(f, "{id:?}")?;
            } else if let Ok(token) = part.parse::<LinkToken>() {
                write!(f, "{token:?}")?;
            } else {
                f.write_str(&part)?;
            }
        }
        Ok(())
    }
}

/// Whether an error means that no space is left on the device or in the quota.
pub fn is_disk_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

/// Whether the name does not exist, or its folder was removed.
pub fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_show_neither_workspace_names_nor_tokens() {
        let (job, token) = (JobId::random(), LinkToken::random());
        let message = |path: String| {
            let source = io::Error::from(io::ErrorKind::StorageFull);
            let error = StoreError::Io {
                action: "write",
                path: path.into(),
                source,
            };
            assert!(error.is_disk_full());
            error.to_string()
        };
        let shown = message(format!("/jobs/{job}/metadata.json"));
        assert!(
            shown.starts_with(&format!("cannot write /jobs/{job:?}/metadata.json: ")),
            "{shown}"
        );
        assert!(!message(format!("a/{}/data", token.as_str())).contains(token.as_str()));
    }
}
