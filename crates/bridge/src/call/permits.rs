//! What a call holds while its child works: its turn in the folder, and its permit among the running
//! calls. Both are others' while its caller is asked something.

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

/// A call of a `shared` server holds at most a permit beside others, one of a `stateless` server no
/// turn.
#[derive(Default)]
pub struct CallPermits {
    permit: Option<Permit>,
    held: Option<HeldTurn>,
    admitted: bool,
    shared: Option<SharedPermit>,
}

/// A permit beside other calls on a shared child.
struct SharedPermit {
    child: Arc<SharedChild>,
    permit: Option<Permit>,
}

/// A call's turn in its workspace.
struct HeldTurn {
    workspace: Arc<Workspace>,
    turn: Option<Turn>,
    /// What it had changed when it gave its turn away: its own, whoever looks next.
    changed: Vec<artifacts::Place>,
}

impl CallPermits {
    /// A permit among the running calls.
    pub fn permit(permit: Permit) -> Self {
        Self {
            permit: Some(permit),
            admitted: true,
            ..Self::default()
        }
    }

    /// With a turn.
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

    /// A permit beside others on this child.
    pub async fn on_shared_child(child: &Arc<SharedChild>, tenant: &Tenant) -> Self {
        let shared = SharedPermit {
            child: child.clone(),
            permit: Some(child.permit(tenant).await),
        };
        Self {
            shared: Some(shared),
            ..Self::default()
        }
    }

    /// Gives all of it away. What the call changed until now stays its own.
    pub(super) async fn give_away(&mut self, running: &Running) {
        self.permit = None;
        if let Some(shared) = &mut self.shared {
            shared.permit = None;
        }
        let Some(held) = &mut self.held else { return };
        let Some(turn) = held.turn.take() else { return };
        if running.call.ask.is_tool_call() {
            let mut seen = held.workspace.files.lock().await;
            let job = held.workspace.job.clone();
            let limits = snapshot_limits(&running.engine.settings);
            let look = move || Snapshot::look(&job, &limits);
            // What cannot be looked through now is told by the look after the call.
            if let Ok(Ok(now)) = tokio::task::spawn_blocking(look).await {
                let own = changed(&seen, &now).into_iter().map(|file| file.path);
                held.changed.extend(own.map(artifacts::Place::work));
                held.changed.extend(changed_aside(&seen, &now));
                *seen = now;
            }
        }
        drop(turn);
    }

    /// Gives the permit among the running calls away, and no more.
    pub(super) fn step_aside(&mut self) {
        self.permit = None;
    }

    /// Has it back.
    pub(super) fn step_in(&mut self, permit: Permit) {
        self.permit = Some(permit);
    }

    /// Waits for all of it, the turn first; the folder must still be ours then.
    pub(super) async fn take_back(&mut self, running: &Running) -> Result<(), CallError> {
        self.take_turn(&running.call.spec).await;
        if let Some(shared) = self
            .shared
            .as_mut()
            .filter(|shared| shared.permit.is_none())
        {
            shared.permit = Some(shared.child.permit(&running.tenant).await);
        }
        if self.admitted && self.permit.is_none() {
            self.permit = Some(running.admitted().await);
        }
        match &self.held {
            Some(held) => running.still_ours(&held.workspace).await,
            None => Ok(()),
        }
    }

    /// Waits for the turn, where the call needs one and has none.
    pub(super) async fn take_turn(&mut self, spec: &ServerSpec) {
        if let Some(held) = self.held.as_mut().filter(|held| held.turn.is_none()) {
            held.turn = Some(held.workspace.turn(spec).await);
        }
    }

    /// What the folder took before the call, if it has one that can be looked through.
    pub(super) fn used(&self) -> Option<u64> {
        let Some(held) = &self.held else {
            // That of a `stateless` call is its own.
            return self.shared.is_none().then_some(0);
        };
        let seen = held.workspace.files.try_lock().ok()?;
        let known = !seen.is_over() && seen.over_aside().is_none();
        known.then(|| seen.usage().bytes)
    }

    /// The folder as it was before the call: of what it changed itself before it gave its turn away
    /// nothing is known.
    pub(super) fn before(&self, seen: &Snapshot) -> Snapshot {
        let mut before = seen.clone();
        for path in self.held.iter().flat_map(|held| &held.changed) {
            before.forget(path);
        }
        before
    }
}
