//! Leases that were lost: this bridge did not answer for so long that another has taken a folder
//! over. Its children here end at once, and nothing more is written there in its name.

use std::sync::Arc;

use super::{Sessions, Workspace};
use crate::child::End;

impl Sessions {
    /// Whether we may still work there; where not, its children are ended before this returns.
    pub async fn still_held(self: &Arc<Self>, workspace: &Arc<Workspace>) -> bool {
        let (store, lease) = (self.store.clone(), workspace.lease.clone());
        let held = tokio::task::spawn_blocking(move || store.holds(&lease)).await;
        match held {
            Ok(Ok(false)) => {
                self.fence(workspace).await;
                false
            }
            // A folder that cannot be read now is nobody else's for that.
            Ok(Err(error)) => {
                tracing::warn!(job = ?workspace.job.id(), %error, "the lease cannot be read");
                true
            }
            Ok(Ok(true)) | Err(_) => true,
        }
    }

    /// Looks at the lease of every open workspace: after each renewal, and before the first one
    /// after a time in which others may have taken this bridge for dead.
    pub async fn check_leases(self: &Arc<Self>) {
        self.pool.check_leases().await;
        for workspace in self.workspaces() {
            self.still_held(&workspace).await;
        }
    }

    async fn fence(self: &Arc<Self>, workspace: &Arc<Workspace>) {
        if workspace.lose() {
            tracing::warn!(
                job = ?workspace.job.id(),
                fence = workspace.lease.fence,
                "another bridge has taken this chat over: its processes here are ended"
            );
        }
        for entry in self.entries().values() {
            let _ = entry.open().take_if(|open| Arc::ptr_eq(open, workspace));
        }
        for session in workspace.sessions() {
            self.end_now(workspace, &session, End::Kill).await;
        }
        self.call_ended(workspace.key);
    }
}
