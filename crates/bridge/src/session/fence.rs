//! Leases that were lost: this bridge did not answer for so long that another has taken a folder
//! over. Its children here end at once, and nothing more is written there in its name.

use std::sync::Arc;

use bridge_model::BootTime;
use bridge_process::End;
use futures_util::{StreamExt as _, stream};

use super::{Sessions, Workspace};

/// Leases that are read at the same time: storage in a network answers one in a while, and many at
/// once.
const AT_ONCE: usize = 16;

impl Sessions {
    /// Whether we may still work there; where not, its children are ended before this returns.
    ///
    /// A lease that cannot be read is taken for lost once that has lasted for half of the time to
    /// live and others are there: they may have taken it over. Alone, it is nobody else's.
    pub async fn still_held(self: &Arc<Self>, workspace: &Arc<Workspace>) -> bool {
        let (store, lease) = (self.store.clone(), workspace.lease.clone());
        let looked = BootTime::now();
        let mut look = tokio::task::spawn_blocking(move || store.holds(&lease));
        let held = loop {
            let patience = self.patience(workspace);
            match tokio::time::timeout(patience, &mut look).await {
                Ok(held) => break held,
                // The folder hangs.
                Err(_) if self.is_too_long_ago(workspace) => {
                    tracing::warn!(job = ?workspace.job.id(), "the lease cannot be read in time");
                    self.fence(workspace).await;
                    return false;
                }
                Err(_) => {}
            }
        };
        match held {
            Ok(Ok(true)) => {
                workspace.seen_held(looked);
                true
            }
            Ok(Ok(false)) => {
                self.fence(workspace).await;
                false
            }
            Ok(Err(error)) => {
                tracing::warn!(job = ?workspace.job.id(), %error, "the lease cannot be read");
                let held = !self.is_too_long_ago(workspace);
                if !held {
                    self.fence(workspace).await;
                }
                held
            }
            Err(_) => true,
        }
    }

    fn is_too_long_ago(&self, workspace: &Workspace) -> bool {
        let most = self.store.ttl() / 2;
        self.children.is_leashed() && workspace.held_at().elapsed() > most
    }

    /// Until the next look whether it is too long ago.
    fn patience(&self, workspace: &Workspace) -> std::time::Duration {
        let ttl = self.store.ttl();
        let left = (workspace.held_at() + ttl / 2).remaining();
        left.max(ttl / 8)
    }

    /// Looks at the lease of every open workspace: after each renewal.
    pub async fn check_leases(self: &Arc<Self>) {
        let sessions = self.clone();
        let look = stream::iter(self.workspaces()).for_each_concurrent(AT_ONCE, move |workspace| {
            let sessions = sessions.clone();
            async move {
                sessions.still_held(&workspace).await;
            }
        });
        tokio::join!(self.pool.check_leases(), look);
    }

    async fn fence(self: &Arc<Self>, workspace: &Arc<Workspace>) {
        if workspace.lose() {
            tracing::warn!(
                job = ?workspace.job.id(),
                fence = workspace.lease.fence,
                "another bridge has taken this chat over, or may have: its processes here are ended"
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
