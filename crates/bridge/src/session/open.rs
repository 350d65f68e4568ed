//! Opening and closing a workspace: its binding, its lease, what lies in it.

use std::sync::Arc;

use bridge_model::{BootTime, Principal, Tenant, WorkspaceKey};
use bridge_state::{Acquired, NewChat, PrincipalHash};
use tokio::{sync::oneshot, task::JoinHandle};

use super::{Claim, Entry, OpenWorkspace, Place, SessionError, Sessions, Wants, Workspace};
use crate::artifacts::{Snapshot, SnapshotError};

impl Sessions {
    /// The workspace of a place, made where there is none. Held open while the `Arc` lives.
    pub async fn open(
        self: &Arc<Self>,
        place: &Place,
        principal: &Principal,
    ) -> Result<Arc<Workspace>, SessionError> {
        self.open_for(place, principal, None).await
    }

    /// The same for a child that works there first: a place without a folder may get one in which such a child is
    /// ready.
    async fn open_for(
        self: &Arc<Self>,
        place: &Place,
        principal: &Principal,
        wants: Option<&Arc<Wants>>,
    ) -> Result<Arc<Workspace>, SessionError> {
        loop {
            let entry = self.entries().entry(place.key).or_default().clone();
            let open = entry.open().clone();
            if let Some(workspace) = open
                && self.still_held(&workspace).await
            {
                return Ok(workspace);
            }
            match self.opened(entry, place, principal, wants).await {
                // Idle children, with four descriptors each, make room.
                Err(error) if error.is_lack_of_room() => {
                    let why = error.to_string();
                    if !self.relieve(None, Tenant::bridge(), why).await {
                        return Err(error);
                    }
                }
                opened => return opened,
            }
        }
    }

    async fn opened(
        self: &Arc<Self>,
        entry: Arc<Entry>,
        place: &Place,
        principal: &Principal,
        wants: Option<&Arc<Wants>>,
    ) -> Result<Arc<Workspace>, SessionError> {
        let wants = wants.cloned();
        let (reply, opened) = oneshot::channel();
        let (sessions, place) = (self.clone(), place.clone());
        let (principal, key) = (principal.clone(), place.key);
        // A task of its own: a caller who hangs up must not leave a lease that nobody knows of.
        self.tasks.spawn(async move {
            let opened = sessions.open_entry(entry, place, principal, wants).await;
            if reply.send(opened).is_err() {
                sessions.call_ended(key);
            }
        });
        opened.await.expect("opening a folder does not panic")
    }

    async fn open_entry(
        self: &Arc<Self>,
        entry: Arc<Entry>,
        place: Place,
        principal: Principal,
        wants: Option<Arc<Wants>>,
    ) -> Result<Arc<Workspace>, SessionError> {
        let key = place.key;
        let gate = entry.gate.lock().await;
        if let Some(workspace) = entry.open().clone() {
            return Ok(workspace);
        }
        let opened = if let Some(adopted) = self.adopted(&place, &principal, wants).await {
            Ok(adopted)
        } else {
            let sessions = self.clone();
            let read = move || sessions.read(&place, &principal);
            let opened = tokio::task::spawn_blocking(read).await;
            opened.expect("opening a folder does not panic")
        };
        if let Ok(workspace) = &opened {
            *entry.open() = Some(workspace.clone());
        }
        drop(gate);
        if opened.is_err() {
            self.forget(key, entry);
        }
        opened
    }

    /// Blocks on the disk.
    fn read(&self, place: &Place, principal: &Principal) -> Result<Arc<Workspace>, SessionError> {
        let store = &self.store;
        let new = NewChat {
            principal: PrincipalHash::from(principal),
            servers: Vec::new(),
        };
        self.prove(place, &new)?;
        let held_at = BootTime::now();
        let found = match store.acquire(&place.key, &new)? {
            Acquired::Mine(held) => held,
            Acquired::Elsewhere(holder) => return Err(SessionError::Elsewhere(holder)),
        };
        let files = match Snapshot::of(&found.job, &self.settings.snapshot) {
            // Opened all the same: only a tool can delete what is too much.
            Err(SnapshotError::TooManyEntries(_) | SnapshotError::TooDeep(_)) => {
                Ok(Snapshot::over())
            }
            taken => taken,
        };
        match files {
            Ok(files) => {
                tracing::debug!(job = ?found.job.id(), "workspace opened");
                let lease = (found.lease, held_at);
                let workspace = Workspace::new(place.key, found.job, lease, files, found.servers);
                Ok(Arc::new(workspace))
            }
            Err(failure) => {
                if let Err(error) = store.release(&found.lease) {
                    tracing::warn!(job = ?found.job.id(), %error, "lease not released");
                }
                Err(failure.into())
            }
        }
    }

    /// Whether there may be a folder for the place. Blocks on the disk.
    pub(super) fn prove(&self, place: &Place, new: &NewChat) -> Result<(), SessionError> {
        let store = &self.store;
        match place.claim {
            Claim::Proven(session) => {
                let proven = store.exists(&place.key)?;
                if !proven && !store.exists(&session)? {
                    return Err(SessionError::Unknown);
                }
            }
            // A server with a folder of its own comes first: the others' folder proves the id.
            Claim::Minted(session) if session != place.key => {
                store.ensure(&session, new)?;
            }
            Claim::Minted(_) | Claim::Free => {}
        }
        Ok(())
    }

    /// Closes workspaces in which nobody works, so that the collector may have them in time.
    /// Returns at once; the handles tell when it is done.
    pub(super) fn close_unused(self: &Arc<Self>) -> Vec<JoinHandle<()>> {
        let entries = self.entries();
        let unused = entries.iter().filter(|(_, entry)| entry.is_unused());
        let closing = unused.map(|(key, entry)| self.close_soon(*key, entry.clone()));
        closing.collect()
    }

    /// The same for one of them.
    pub(super) fn close_soon(
        self: &Arc<Self>,
        key: WorkspaceKey,
        entry: Arc<Entry>,
    ) -> JoinHandle<()> {
        let sessions = self.clone();
        self.tasks
            .spawn(async move { sessions.close(key, entry).await })
    }

    async fn close(self: &Arc<Self>, key: WorkspaceKey, entry: Arc<Entry>) {
        let gate = entry.gate.lock().await;
        if let Some(workspace) = entry.take_unused() {
            let sessions = self.clone();
            let release = move || sessions.release(&workspace);
            let _ = tokio::task::spawn_blocking(release).await;
        }
        drop(gate);
        self.forget(key, entry);
    }

    /// Blocks on the disk.
    fn release(&self, workspace: &Workspace) {
        if let Err(error) = self.store.close(&workspace.lease) {
            tracing::warn!(job = ?workspace.job.id(), %error, "workspace not closed cleanly");
        }
    }

    /// Drops the entry of a closed workspace, unless somebody waits at it.
    fn forget(&self, key: WorkspaceKey, entry: Arc<Entry>) {
        let mut entries = self.entries();
        // Two handles: the map's and ours. Others are only made under the map's lock.
        if entry.open().is_none() && Arc::strong_count(&entry) <= 2 {
            entries.remove(&key);
        }
        // Under the lock, so that of several who forget it the last one sees that he is.
        drop(entry);
    }
}

impl Sessions {
    /// Opens a place ahead of its call, which then works there and nowhere else.
    pub async fn open_ahead(
        self: &Arc<Self>,
        place: &Place,
        principal: &Principal,
        wants: Option<&Arc<Wants>>,
    ) -> Result<OpenWorkspace, SessionError> {
        let workspace = self.open_for(place, principal, wants).await?;
        Ok(OpenWorkspace::new(workspace, self.clone()))
    }
}

impl Entry {
    /// An entry without a workspace counts too: what was begun there may have failed.
    pub(super) fn is_unused(&self) -> bool {
        self.open().as_ref().is_none_or(is_unused)
    }

    /// Nobody gets the workspace any more.
    fn take_unused(&self) -> Option<Arc<Workspace>> {
        self.open().take_if(|workspace| is_unused(workspace))
    }
}

/// Every call holds the workspace; one more handle than ours means work.
fn is_unused(workspace: &Arc<Workspace>) -> bool {
    Arc::strong_count(workspace) == 1 && workspace.sessions().is_empty()
}

#[cfg(test)]
mod tests;
