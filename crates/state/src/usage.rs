//! What each caller's workspaces and links take of the disk: counted by the clean-up, which reads all
//! records anyway.

use std::collections::HashMap;

use bridge_model::JobId;

use super::PrincipalHash;

/// Bytes, by whose they are: as they were counted, and what came since.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
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

    /// What was counted beside it.
    pub(super) fn add(&mut self, other: Self) {
        for (owner, bytes) in other.of_principal {
            let own = self.of_principal.entry(owner).or_default();
            *own = own.saturating_add(bytes);
        }
        self.of_job.extend(other.of_job);
        self.all = self.all.saturating_add(other.all);
    }

    /// All that is this caller's.
    pub fn of(&self, owner: &PrincipalHash) -> u64 {
        self.of_principal.get(owner).copied().unwrap_or_default()
    }

    /// What one workspace takes, if that is known.
    pub fn of_job(&self, job: JobId) -> Option<u64> {
        self.of_job.get(&job).copied()
    }

    /// Everybody's.
    pub fn all(&self) -> u64 {
        self.all
    }
}
