//! What is in the folder, for the command line.

use bridge_model::{Job, JobId};

use super::{InstanceId, LiveSession, Metadata, Store, StoreError, files};

/// One workspace.
#[derive(Debug, Clone)]
pub struct JobSummary {
    /// The folder.
    pub job: Job,
    /// What is known of it.
    pub metadata: Metadata,
    /// The living instance that works in it.
    pub leased_by: Option<InstanceId>,
}

/// One live child, here or on another replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionSummary {
    /// Where it works.
    pub job: JobId,
    /// Who runs it.
    pub instance: InstanceId,
    /// The child.
    pub session: LiveSession,
}

impl Store {
    /// All workspaces, oldest first. Unreadable ones are logged and left out.
    pub fn jobs(&self) -> Result<Vec<JobSummary>, StoreError> {
        let names = files::names_in(self.root()).map_err(files::at("list", self.root()))?;
        let ids = names
            .into_iter()
            .flatten()
            .filter_map(|name| name.parse().ok());
        let mut jobs: Vec<_> = ids
            .filter_map(|id| match self.summary(id) {
                Ok(summary) => summary,
                Err(error) => {
                    tracing::warn!(job = ?id, %error, "a workspace cannot be listed");
                    None
                }
            })
            .collect();
        jobs.sort_by_key(|summary| summary.metadata.created_at);
        Ok(jobs)
    }

    /// One workspace, if it exists. A folder that is nobody's yet is none.
    pub fn summary(&self, id: JobId) -> Result<Option<JobSummary>, StoreError> {
        let Some(job) = self.job(id)? else {
            return Ok(None);
        };
        let metadata = self.metadata(&job)?;
        if metadata.unclaimed {
            return Ok(None);
        }
        Ok(Some(JobSummary {
            metadata,
            leased_by: self.leased_by(&job)?,
            job,
        }))
    }

    /// The children that live under fresh leases.
    pub fn sessions(&self) -> Result<Vec<SessionSummary>, StoreError> {
        let jobs = self.jobs()?.into_iter();
        Ok(jobs
            .filter_map(|job| job.leased_by.map(|instance| (job, instance)))
            .flat_map(|(job, instance)| {
                let sessions = job.metadata.live_sessions.into_iter();
                sessions.map(move |session| SessionSummary {
                    job: job.job.id(),
                    instance,
                    session,
                })
            })
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Folder, key, later, new_job};

    #[test]
    fn sessions_count_only_under_a_living_lease() {
        let folder = Folder::new();
        let session = LiveSession {
            server: "excel".into(),
            number: 1,
            pid: Some(7),
            started_at: folder.now,
        };
        let open = |store: &Store| {
            let job = store
                .open_workspace(&key("c"), &new_job(), folder.now)
                .unwrap()
                .job;
            let live = vec![session.clone()];
            store
                .update_metadata(&job, |metadata| metadata.live_sessions = live)
                .unwrap();
        };
        folder.crash(open);
        let store = folder.open();
        assert_eq!(store.sessions().unwrap(), []);
        assert_eq!(store.jobs().unwrap().len(), 1);
        open(&store);
        assert_eq!(store.sessions().unwrap()[0].session, session);
    }

    #[test]
    fn workspaces_are_listed_oldest_first() {
        let folder = Folder::new();
        let store = folder.open();
        for seconds in [5, 1, 3] {
            store
                .create_job(&new_job(), later(folder.now, seconds))
                .unwrap();
        }
        std::fs::create_dir(folder.path().join("lost+found")).unwrap();
        let jobs = store.jobs().unwrap();
        assert_eq!(jobs.len(), 3);
        assert!(jobs.is_sorted_by_key(|job| job.metadata.created_at));
    }
}
