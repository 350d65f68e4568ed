//! The permits of a call while its child works: its turn in the folder, and its permit among the running
//! calls. Other calls use both while a request for input is pending.

use std::sync::Arc;

use bridge_model::Tenant;

use super::{CallError, Running, snapshot_limits};
use crate::{
    admission::Permit,
    artifacts,
    artifacts::{Snapshot, changed, changed_aside},
    config::ServerSpec,
    session::{SharedChild, Turn, Workspace},
};

/// A call of a `shared` server has only a permit on the shared child; one of a `stateless` server has no
/// turn.
#[derive(Default)]
pub struct CallPermits {
    /// The permit among the running calls, or on the shared child.
    pub(super) permit: Option<Permit>,
    held: Option<HeldTurn>,
    shared: Option<Arc<SharedChild>>,
}

/// A call's turn in its workspace.
struct HeldTurn {
    workspace: Arc<Workspace>,
    turn: Option<Turn>,
    /// The files that the call had changed when it released its turn: they still count as its own.
    changed: Vec<artifacts::Place>,
}

impl CallPermits {
    /// A permit among the running calls.
    pub fn permit(permit: Permit) -> Self {
        Self {
            permit: Some(permit),
            ..Self::default()
        }
    }

    /// A permit among the running calls, and a turn.
    pub fn in_turn(permit: Permit, workspace: &Arc<Workspace>, turn: Turn) -> Self {
        let held = HeldTurn {
            workspace: workspace.clone(),
            turn: Some(turn),
            changed: Vec::new(),
        };
        Self {
            held: Some(held),
            ..Self::permit(permit)
        }
    }

    /// A permit on this shared child.
    pub async fn on_shared_child(child: &Arc<SharedChild>, tenant: &Tenant) -> Self {
        Self {
            permit: Some(child.permit(tenant).await),
            shared: Some(child.clone()),
            held: None,
        }
    }

    /// Releases all permits. The files that the call has changed until now still count as its own.
    pub(super) async fn release(&mut self, running: &Running) {
        self.permit = None;
        let Some(held) = &mut self.held else { return };
        let Some(turn) = held.turn.take() else { return };
        if running.call.ask.is_tool_call() {
            let mut seen = held.workspace.files.lock().await;
            let job = held.workspace.job.clone();
            let limits = snapshot_limits(&running.engine.settings);
            let look = move || Snapshot::look(&job, &limits);
            // If the folder cannot be scanned now, the scan after the call reports it.
            if let Ok(Ok(now)) = tokio::task::spawn_blocking(look).await {
                held.changed.extend(changed(&seen, &now));
                held.changed.extend(changed_aside(&seen, &now));
                *seen = now;
            }
        }
        drop(turn);
    }

    /// Waits for all permits, the turn first; the lease must still be held then.
    pub(super) async fn take_back(&mut self, running: &Running) -> Result<(), CallError> {
        self.take_turn(&running.call.spec).await;
        if self.permit.is_none() {
            self.permit = Some(match &self.shared {
                Some(child) => child.permit(&running.tenant).await,
                None => running.admitted().await,
            });
        }
        match &self.held {
            Some(held) => running.still_held(&held.workspace).await,
            None => Ok(()),
        }
    }

    /// Waits for the turn, if the call needs one and has none.
    pub(super) async fn take_turn(&mut self, spec: &ServerSpec) {
        if let Some(held) = self.held.as_mut().filter(|held| held.turn.is_none()) {
            held.turn = Some(held.workspace.turn(spec).await);
        }
    }

    /// The size of the folder before the call, if it is known.
    pub(super) fn used(&self) -> Option<u64> {
        let Some(held) = &self.held else {
            // A `stateless` call has its own folder.
            return self.shared.is_none().then_some(0);
        };
        let seen = held.workspace.files.try_lock().ok()?;
        let known = !seen.over && seen.over_aside.is_none();
        known.then(|| seen.usage.bytes)
    }

    /// The snapshot before the call, given the last one: without the files that the call changed before
    /// it released its turn.
    pub(super) fn before(&self, seen: &Snapshot) -> Snapshot {
        let mut before = seen.clone();
        for path in self.held.iter().flat_map(|held| &held.changed) {
            before.forget(path);
        }
        before
    }
}
