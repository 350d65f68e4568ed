//! What a fork parent is made of.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use bridge_state::Job;

use super::plan::Plan;
use crate::{
    child::{Profile, launch::Launch},
    config::ServerSpec,
    launch::Resolved,
};

/// What is needed to make a parent.
pub struct Wanted {
    pub spec: Arc<ServerSpec>,
    pub found: Arc<Resolved>,
    pub profile: Profile,
    pub plan: Plan,
    pub launch: Launch,
    pub job: Scratch,
}

/// A folder that goes when this is dropped, and beside it the parent's program, in whose path its
/// name is not.
pub struct Scratch {
    pub job: Job,
    pub program: PathBuf,
}

impl Scratch {
    /// Makes one.
    pub fn within(folder: &Path) -> std::io::Result<Self> {
        let program = folder.join(format!("fork-{}", uuid::Uuid::new_v4()));
        let job = Job::scratch(folder)?;
        Ok(Self { job, program })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.program);
        let _ = std::fs::remove_dir_all(self.job.folder());
    }
}
