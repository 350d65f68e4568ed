//! What each caller's workspaces and links take of the disk.

use std::collections::HashMap;

use super::{PrincipalHash, Store, StoreError, link};
use crate::model::JobId;

/// Bytes, by whose they are: as they were counted, and what came since.
#[derive(Debug, Default)]
pub struct DiskUsage {
    of_principal: HashMap<PrincipalHash, u64>,
    of_job: HashMap<JobId, u64>,
    all: u64,
}

impl DiskUsage {
    /// A workspace takes so many bytes now.
    pub fn note_job(&mut self, owner: &PrincipalHash, job: JobId, bytes: u64) {
        let before = self.of_job.insert(job, bytes).unwrap_or_default();
        let own = self.of_principal.entry(owner.clone()).or_default();
        *own = own.saturating_sub(before).saturating_add(bytes);
        self.all = self.all.saturating_sub(before).saturating_add(bytes);
    }

    /// A link with so many bytes was made.
    pub fn note_link(&mut self, owner: &PrincipalHash, bytes: u64) {
        let own = self.of_principal.entry(owner.clone()).or_default();
        *own = own.saturating_add(bytes);
        self.all = self.all.saturating_add(bytes);
    }

    /// All that is this caller's.
    pub fn of(&self, owner: &PrincipalHash) -> u64 {
        self.of_principal.get(owner).copied().unwrap_or_default()
    }

    /// What one workspace takes.
    pub fn of_job(&self, job: JobId) -> u64 {
        self.of_job.get(&job).copied().unwrap_or_default()
    }

    /// Everybody's.
    pub fn all(&self) -> u64 {
        self.all
    }
}

impl Store {
    /// Counts, by the records of all workspaces and links. What cannot be read is left out.
    pub fn disk_usage(&self) -> Result<DiskUsage, StoreError> {
        let mut usage = DiskUsage::default();
        for job in self.jobs()? {
            if let (Some(owner), Some(bytes)) = (&job.metadata.principal, job.metadata.bytes) {
                usage.note_job(owner, job.metadata.job_id, bytes);
            }
        }
        self.each_link(|folder| {
            let read = folder.and_then(|folder| link::read(&folder));
            match read {
                Ok(Some(artifact)) if artifact.gone_at.is_none() => {
                    usage.note_link(&artifact.principal, artifact.size);
                }
                Ok(_) => {}
                Err(error) => tracing::debug!(%error, "a link was not counted"),
            }
        });
        Ok(usage)
    }
}
