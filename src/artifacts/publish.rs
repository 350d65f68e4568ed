//! Copies a file out of a workspace to where only its link reaches it.

use std::{
    fmt::Write,
    fs::File,
    io::{self, Read, Seek},
    os::fd::AsFd,
    time::Duration,
};

use jiff::Timestamp;
use rustix::{
    fs::{FileType, fstat, ioctl_ficlone},
    io::Errno,
};
use sha2::{Digest, Sha256};

use super::{RelativePath, Snapshot, beneath, names, snapshot::is_same};
use crate::{
    model::{LinkToken, Principal, ServerName},
    store::{Artifact, Job, PrincipalHash, StagedLink, Store, StoreError},
};

/// Which call made the files.
#[derive(Debug, Clone, Copy)]
pub struct Origin<'a> {
    /// Whose call it was.
    pub principal: &'a Principal,
    /// The server.
    pub server: &'a ServerName,
    /// The tool.
    pub tool: &'a str,
    /// How long the link lives (`MCPO_FILE_EXPIRY`).
    pub ttl: Duration,
    /// The largest file that is published, in bytes.
    pub max_bytes: u64,
}

/// Why a file got no link.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// It vanished, or its path leads through a symbolic link or out of the workspace.
    #[error("{0}: no such file in the workspace")]
    NotFound(String),
    /// A folder, FIFO, socket or device.
    #[error("{0}: not a regular file")]
    NotAFile(String),
    /// It has a name outside the workspace too.
    #[error("{0}: hard links to files outside the workspace are not published")]
    LinkedElsewhere(String),
    /// Somebody kept writing to it.
    #[error("{0}: the file kept changing while it was copied")]
    Unstable(String),
    /// Over `max_bytes`.
    #[error("{name}: larger than the {limit} bytes that may be published")]
    TooLarge {
        /// The file.
        name: String,
        /// Bytes.
        limit: u64,
    },
    /// The filesystem refused; nothing half-written is left.
    #[error("{name}: cannot publish: {source}")]
    Io {
        /// The file.
        name: String,
        /// What the system said.
        source: io::Error,
    },
    /// The store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl PublishError {
    /// The disk or the quota is full (HTTP 507).
    pub fn is_disk_full(&self) -> bool {
        match self {
            Self::Io { source, .. } => crate::store::is_disk_full(source),
            Self::Store(error) => error.is_disk_full(),
            _ => false,
        }
    }
}

/// How often a file is copied that changes meanwhile.
const ATTEMPTS: usize = 3;
const CHUNK: usize = 256 * 1024;

/// Publishes one version of one file of `job`. `snapshot` is the newest one of its `work/`: a file
/// with several names is published only if it holds all of them.
pub fn publish(
    store: &Store,
    job: &Job,
    path: &RelativePath,
    snapshot: &Snapshot,
    origin: &Origin<'_>,
    now: Timestamp,
) -> Result<Artifact, PublishError> {
    let name = path.display();
    let source = Source::open(job, path, snapshot)?;
    let mut staged = store.stage_link()?;
    source.copy_to(staged.data(), origin.max_bytes, &name, copy_bytes)?;
    seal(store, staged, path, job, origin, now)
}

/// Describes what was staged and gives it its link.
pub(super) fn seal(
    store: &Store,
    mut staged: StagedLink,
    path: &RelativePath,
    job: &Job,
    origin: &Origin<'_>,
    now: Timestamp,
) -> Result<Artifact, PublishError> {
    let name = path.name().into_owned();
    let (size, sha256) = digest(staged.data()).map_err(failed(&name))?;
    let artifact = Artifact {
        token: LinkToken::random(),
        path: path.display().into_owned(),
        ascii_name: names::ascii(&name),
        size,
        mime_type: names::mime_type(&name),
        sha256,
        created_at: now,
        expires_at: now.saturating_add(origin.ttl).unwrap_or(Timestamp::MAX),
        gone_at: None,
        gone: None,
        job: job.id(),
        server: origin.server.to_string(),
        tool: origin.tool.to_owned(),
        principal: PrincipalHash::from(origin.principal),
        name,
        other: serde_json::Map::new(),
    };
    staged.publish(store, &artifact)?;
    Ok(artifact)
}

pub(super) fn failed(name: &str) -> impl Fn(io::Error) -> PublishError {
    move |source| PublishError::Io {
        name: name.to_owned(),
        source,
    }
}

/// An open regular file of a workspace that nobody outside shares.
struct Source {
    file: File,
}

impl Source {
    fn open(job: &Job, path: &RelativePath, snapshot: &Snapshot) -> Result<Self, PublishError> {
        let name = || path.display().into_owned();
        let root = beneath::open_dir(&job.work()).map_err(failed(&name()))?;
        let file =
            beneath::open_file(root.as_fd(), path).map_err(|error| refusal(name(), error))?;
        let stat = fstat(&file).map_err(|error| failed(&name())(error.into()))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(PublishError::NotAFile(name()));
        }
        #[allow(clippy::useless_conversion)] // not on every platform
        let links = u64::from(stat.st_nlink);
        if links > 1 && snapshot.names_of(&stat) < links {
            return Err(PublishError::LinkedElsewhere(name()));
        }
        Ok(Self { file })
    }

    /// Copies until the file held still. `copy` is the disk, so that tests can fill it.
    fn copy_to(
        &self,
        target: &mut File,
        limit: u64,
        name: &str,
        mut copy: impl FnMut(&File, &mut File, u64) -> io::Result<u64>,
    ) -> Result<(), PublishError> {
        let failed = failed(name);
        let stat = || fstat(&self.file).map_err(|error| failed(error.into()));
        for _ in 0..ATTEMPTS {
            let before = stat()?;
            let size = u64::try_from(before.st_size).unwrap_or(u64::MAX);
            if size > limit {
                let name = name.to_owned();
                return Err(PublishError::TooLarge { name, limit });
            }
            let copied = copy(&self.file, target, size).map_err(&failed)?;
            if copied == size && is_same(&before, &stat()?) {
                return Ok(());
            }
        }
        Err(PublishError::Unstable(name.to_owned()))
    }
}

fn refusal(name: String, error: io::Error) -> PublishError {
    match Errno::from_io_error(&error) {
        Some(Errno::NOENT | Errno::LOOP | Errno::XDEV | Errno::NOTDIR) => {
            PublishError::NotFound(name)
        }
        // A socket, or a device without a driver.
        Some(Errno::NXIO | Errno::NODEV) => PublishError::NotAFile(name),
        _ => failed(&name)(error),
    }
}

/// Fills `target` with the first `size` bytes of `source`, sharing blocks where that is possible.
fn copy_bytes(mut source: &File, target: &mut File, size: u64) -> io::Result<u64> {
    target.set_len(0)?;
    target.rewind()?;
    if ioctl_ficlone(&*target, source).is_ok() {
        // It may have grown since it was measured: what counts is what was cloned.
        return target.metadata().map(|cloned| cloned.len());
    }
    source.rewind()?;
    io::copy(&mut source.take(size), target)
}

/// Size and SHA-256 of the copy itself, not of a file that may have changed since.
fn digest(file: &mut File) -> io::Result<(u64, String)> {
    file.rewind()?;
    let (mut hash, mut size) = (Sha256::new(), 0);
    let mut chunk = vec![0; CHUNK];
    loop {
        let length = match file.read(&mut chunk) {
            Ok(0) => break,
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        hash.update(&chunk[..length]);
        size += length as u64;
    }
    let digest = hash.finalize();
    let mut hex = String::with_capacity(64);
    for byte in &digest {
        let _ = write!(hex, "{byte:02x}");
    }
    Ok((size, hex))
}

#[cfg(test)]
mod tests;
