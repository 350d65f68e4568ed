//! What can go wrong in the jobs folder.

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

use bridge_model::{JobId, LinkToken};
use rustix::io::Errno;

/// A failure of the jobs folder: what, where, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// `MCPO_JOBS_DIR` cannot be used at all.
    #[error("the jobs directory {} {problem}", path.display())]
    Unusable {
        /// The folder as configured.
        path: PathBuf,
        /// What is wrong with it, and the fix.
        problem: String,
    },
    /// The workspace folder was removed (retention, `gc --user`) or is no folder of ours.
    #[error("the workspace folder no longer exists; the next call creates a new one")]
    JobGone,
    /// Another instance holds the workspace: nothing is written there in our name.
    #[error("another replica took over the workspace; this one no longer writes to it")]
    Fenced,
    /// The filesystem refused.
    #[error("cannot {action} {}: {source}", Redacted(path))]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl StoreError {
    /// The disk or the quota is full (HTTP 507).
    pub fn is_disk_full(&self) -> bool {
        matches!(self, Self::Io { source, .. } if is_disk_full(source))
    }

    /// A name on the way was not there.
    pub(super) fn is_absent(&self) -> bool {
        matches!(self, Self::Io { source, .. } if is_absent(source))
    }

    /// Whether this process, or the system, may open no more files.
    pub fn is_lack_of_descriptors(&self) -> bool {
        let number = match self {
            Self::Io { source, .. } => Errno::from_io_error(source),
            _ => None,
        };
        matches!(number, Some(Errno::MFILE | Errno::NFILE))
    }
}

/// A path for logs, whose readers must neither learn a folder's name nor open a link.
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

/// Nothing of that name: never there, or its folder went meanwhile.
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
