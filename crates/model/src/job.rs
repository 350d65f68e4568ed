//! A workspace folder and the paths in it.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use rustix::fs::OFlags;

use super::JobId;

/// A workspace folder that existed when this value was created. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Job {
    id: JobId,
    folder: PathBuf,
    configured: PathBuf,
}

impl Job {
    /// The workspace with this id below `root`, which the configuration spells `configured`.
    pub fn below(root: &Path, configured: &Path, id: JobId) -> Self {
        let name = id.to_string();
        Self {
            id,
            folder: root.join(&name),
            configured: configured.join(&name),
        }
    }

    /// The id, which is the folder's name.
    pub fn id(&self) -> JobId {
        self.id
    }
    /// The folder itself; children use only `work`, `home` and `tmp` in it.
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
    /// The log of the children's stderr (0600, created on first use, limited by the writer).
    pub fn server_log(&self) -> PathBuf {
        self.folder.join("server.log")
    }
    /// The folder's spellings, which are removed from the output of children.
    pub fn paths(&self) -> JobFolderPaths {
        JobFolderPaths {
            canonical: self.folder.clone(),
            configured: self.configured.clone(),
            short_tmp: None,
        }
    }
}

/// The absolute paths under which a child may print its workspace folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobFolderPaths {
    /// With symbolic links in the jobs folder's path resolved, as `getcwd` returns it.
    pub canonical: PathBuf,
    /// With the jobs folder as written in the configuration.
    pub configured: PathBuf,
    /// A symbolic link to its `tmp/`, which is the `TMPDIR` of its children.
    pub short_tmp: Option<PathBuf>,
}

// Opening files in folders that children can write.

fn open(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    // A child may have replaced the bridge's file by a symbolic link or a FIFO.
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let file = options.custom_flags(flags).open(path)?;
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        let kind = io::ErrorKind::InvalidData;
        Err(io::Error::new(kind, "not a regular file"))
    }
}

/// Opens an existing regular file for reading; the last path component must not be a symbolic link.
pub fn open_read(path: &Path) -> io::Result<File> {
    open(path, OpenOptions::new().read(true))
}

/// Opens a regular file for appending (created with 0600); the last path component must not be a
/// symbolic link.
pub fn open_append(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    open(path, options.append(true).create(true).mode(0o600))
}
