//! Opening and closing a workspace: its binding, its lease, what lies in it.

use std::sync::Arc;

use jiff::Timestamp;

use super::{Entry, Place, SessionError, Sessions, Workspace};
use crate::{
    artifacts::Snapshot,
    model::{Principal, ServerName},
    store::{JobStatus, LeaseError, NewJob, PrincipalHash},
};

impl Sessions {
    /// The workspace of a place, made where there is none. Held open while the `Arc` lives.
    pub async fn open(
        self: &Arc<Self>,
        place: &Place,
        principal: &Principal,
        server: &ServerName,
    ) -> Result<Arc<Workspace>, SessionError> {
        let entry = self.entries().entry(place.key).or_default().clone();
        let mut open = entry.0.lock().await;
        if let Some(workspace) = &*open {
            return Ok(workspace.clone());
        }
        let opened = self
            .read(place.clone(), principal.clone(), server.clone())
            .await;
        if let Ok(workspace) = &opened {
            *open = Some(workspace.clone());
        }
        drop(open);
        if opened.is_err() {
            self.forget(place, &entry);
        }
        opened
    }

    async fn read(
        self: &Arc<Self>,
        place: Place,
        principal: Principal,
        server: ServerName,
    ) -> Result<Arc<Workspace>, SessionError> {
        let sessions = self.clone();
        let read = move || {
            let store = &sessions.store;
            if place.must_exist && store.lookup(&place.key)?.is_none() {
                return Err(SessionError::Unknown);
            }
            let principal = PrincipalHash::from(&principal);
            let new = NewJob {
                principal,
                key: Some(place.key),
                servers: &[],
            };
            let found = store
                .open_workspace(&place.key, &new, Timestamp::now())
                .map_err(|error| match error {
                    LeaseError::Store(error) => SessionError::Store(error),
                    elsewhere @ LeaseError::Elsewhere { .. } => SessionError::Lease(elsewhere),
                })?;
            let metadata = store.metadata(&found.job)?;
            let files = Snapshot::take(&found.job.work(), &sessions.settings.snapshot)?;
            let before = metadata.server_names;
            tracing::debug!(job = ?found.job.id(), %server, "workspace opened");
            Ok(Arc::new(Workspace::new(
                found.job,
                found.lease,
                files,
                before,
            )))
        };
        tokio::task::spawn_blocking(read)
            .await
            .expect("opening a folder does not panic")
    }

    /// Closes workspaces in which nobody works, so that the collector may have them in time.
    pub(super) async fn close_unused(self: &Arc<Self>) {
        let entries: Vec<_> = self
            .entries()
            .iter()
            .map(|(key, entry)| (*key, entry.clone()))
            .collect();
        for (key, entry) in entries {
            let Ok(mut open) = entry.0.try_lock() else {
                continue;
            };
            let Some(workspace) = &*open else { continue };
            // Every call holds the workspace; one more handle than ours means work.
            if Arc::strong_count(workspace) > 1 || !workspace.sessions().is_empty() {
                continue;
            }
            let (sessions, workspace) = (self.clone(), workspace.clone());
            let release = move || {
                let store = &sessions.store;
                let ended = store.update_metadata(&workspace.job, |metadata| {
                    metadata.live_sessions.clear();
                    if metadata.status != JobStatus::Failed {
                        metadata.status = JobStatus::Ended;
                    }
                });
                let released = store.release(&workspace.lease);
                for error in ended.err().into_iter().chain(released.err()) {
                    tracing::warn!(job = ?workspace.job.id(), %error, "workspace not closed cleanly");
                }
            };
            let _ = tokio::task::spawn_blocking(release).await;
            *open = None;
            drop(open);
            self.forget_key(key, &entry);
        }
    }

    fn forget(&self, place: &Place, entry: &Arc<Entry>) {
        self.forget_key(place.key, entry);
    }

    /// Drops the entry of a closed workspace, unless somebody waits at it.
    fn forget_key(&self, key: crate::model::WorkspaceKey, entry: &Arc<Entry>) {
        let mut entries = self.entries();
        let closed = entry.0.try_lock().is_ok_and(|open| open.is_none());
        // Two handles: the map's and the caller's.
        if closed && Arc::strong_count(entry) <= 2 {
            entries.remove(&key);
        }
    }
}
