//! Where a fork parent works.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use bridge_model::{Job, JobId};

/// A folder that goes when this is dropped, and beside it the parent's program, in whose path its
/// name is not.
pub struct Scratch {
    /// A folder like a workspace, which is in no list.
    pub job: Job,
    /// Where the parent's program is written.
    pub program: PathBuf,
}

impl Scratch {
    /// Makes one.
    pub fn within(folder: &Path) -> io::Result<Self> {
        let program = folder.join(format!("fork-{}", uuid::Uuid::new_v4()));
        let within = fs::canonicalize(folder)?;
        let job = Job::below(&within, &within, JobId::random());
        for folder in [job.folder(), &job.work(), &job.home(), &job.tmp()] {
            DirBuilder::new().mode(0o700).create(folder)?;
        }
        Ok(Self { job, program })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.program);
        let _ = fs::remove_dir_all(self.job.folder());
    }
}
