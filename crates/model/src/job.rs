//! A workspace folder and the paths in it.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use rustix::fs::OFlags;

use super::JobId;

/// A workspace folder that existed when this was made. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Job {
    id: JobId,
    folder: PathBuf,
    configured: PathBuf,
}

impl Job {
    /// The one with this id below `root`, which the operator spells `configured`.
    pub fn below(root: &Path, configured: &Path, id: JobId) -> Self {
        let name = id.to_string();
        Self {
            id,
            folder: root.join(&name),
            configured: configured.join(&name),
        }
    }

    /// Its id, the folder's name.
    pub fn id(&self) -> JobId {
        self.id
    }
    /// The folder itself; only `work`, `home` and `tmp` in it are the children's.
    pub fn folder(&self) -> &Path {
        &self.folder
    }
    /// The children's working directory, where artifacts are found.
    pub fn work(&self) -> PathBuf {
        self.folder.join("work")
    }
    /// The children's `HOME`.
    pub fn home(&self) -> PathBuf {
        self.folder.join("home")
    }
    /// The children's `TMPDIR`.
    pub fn tmp(&self) -> PathBuf {
        self.folder.join("tmp")
    }
    /// Where the children's stderr goes (0600, made on first use, capped by the writer).
    pub fn server_log(&self) -> PathBuf {
        self.folder.join("server.log")
    }
    /// The folder's spellings, which are taken out of what children say.
    pub fn paths(&self) -> JobFolderPaths {
        JobFolderPaths {
            canonical: self.folder.clone(),
            configured: self.configured.clone(),
            short_tmp: None,
        }
    }
}

/// The absolute spellings under which a child may name its workspace folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobFolderPaths {
    /// With links in the jobs folder's path resolved: what `getcwd` says.
    pub canonical: PathBuf,
    /// With the jobs folder as the operator wrote it.
    pub configured: PathBuf,
    /// A link to its `tmp/`, which its children have for `TMPDIR`.
    pub short_tmp: Option<PathBuf>,
}

// Opens files in folders that children can reach.

fn safe_flags() -> i32 {
    // A child may have put a link or a FIFO where our file was.
    (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed()
}

fn only_regular(file: File) -> io::Result<File> {
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        let kind = io::ErrorKind::InvalidData;
        Err(io::Error::new(kind, "not a regular file"))
    }
}

/// Opens an existing regular file for reading; its last name may not be a link.
pub fn open_read(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(safe_flags())
        .open(path)?;
    only_regular(file)
}

/// Opens a regular file for appending (0600 where new); its last name may not be a link.
pub fn open_append(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(safe_flags())
        .open(path)?;
    only_regular(file)
}
