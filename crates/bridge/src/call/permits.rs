//! What a call holds while its child works: its turn in the folder, and its place among the running
//! calls. Both are others' while its caller is asked something.

use std::sync::Arc;

use bridge_model::Tenant;

use super::{CallError, Running, snapshot_limits};
use crate::{
    admission::Place,
    artifacts,
    artifacts::{Snapshot, changed, changed_aside},
    config::ServerSpec,
    session::{SharedChild, Turn, Workspace},
};

/// A call of a `shared` server holds at most a place beside others, one of a `stateless` server no
/// turn.
#[derive(Default)]
pub struct Holds {
    permit: Option<Place>,
    seat: Option<Seat>,
    admitted: bool,
    beside: Option<Beside>,
}

/// A place beside other calls on a shared child.
struct Beside {
    child: Arc<SharedChild>,
    place: Option<Place>,
}

/// A call's place in its workspace.
struct Seat {
    workspace: Arc<Workspace>,
    turn: Option<Turn>,
    /// What it had changed when it gave its turn away: its own, whoever looks next.
    changed: Vec<artifacts::Place>,
}

impl Holds {
    /// A place among the running calls.
    pub fn permit(permit: Place) -> Self {
        Self {
            permit: Some(permit),
            admitted: true,
            ..Self::default()
        }
    }

    /// With a turn.
    pub fn in_turn(permit: Place, workspace: &Arc<Workspace>, turn: Turn) -> Self {
        let seat = Seat {
            workspace: workspace.clone(),
            turn: Some(turn),
            changed: Vec::new(),
        };
        Self {
            seat: Some(seat),
            ..Self::permit(permit)
        }
    }

    /// A place beside others on this child.
    pub async fn beside(child: &Arc<SharedChild>, tenant: &Tenant) -> Self {
        let beside = Beside {
            child: child.clone(),
            place: Some(child.place(tenant).await),
        };
        Self {
            beside: Some(beside),
            ..Self::default()
        }
    }

    /// Gives all of it away. What the call changed until now stays its own.
    pub(super) async fn give_away(&mut self, running: &Running) {
        self.permit = None;
        if let Some(beside) = &mut self.beside {
            beside.place = None;
        }
        let Some(seat) = &mut self.seat else { return };
        let Some(turn) = seat.turn.take() else { return };
        if running.call.ask.is_tool_call() {
            let mut seen = seat.workspace.files.lock().await;
            let job = seat.workspace.job.clone();
            let limits = snapshot_limits(&running.engine.settings);
            let look = move || Snapshot::of(&job, &limits);
            // What cannot be looked through now is told by the look after the call.
            if let Ok(Ok(now)) = tokio::task::spawn_blocking(look).await {
                let own = changed(&seen, &now).into_iter().map(|file| file.path);
                seat.changed.extend(own.map(artifacts::Place::work));
                seat.changed.extend(changed_aside(&seen, &now));
                *seen = now;
            }
        }
        drop(turn);
    }

    /// Gives the place among the running calls away, and no more.
    pub(super) fn step_aside(&mut self) {
        self.permit = None;
    }

    /// Has it back.
    pub(super) fn step_in(&mut self, permit: Place) {
        self.permit = Some(permit);
    }

    /// Waits for all of it, the turn first; the folder must still be ours then.
    pub(super) async fn take_back(&mut self, running: &Running) -> Result<(), CallError> {
        self.take_turn(&running.call.spec).await;
        if let Some(beside) = self.beside.as_mut().filter(|beside| beside.place.is_none()) {
            beside.place = Some(beside.child.place(&running.tenant).await);
        }
        if self.admitted && self.permit.is_none() {
            self.permit = Some(running.admitted().await);
        }
        match &self.seat {
            Some(seat) => running.still_ours(&seat.workspace).await,
            None => Ok(()),
        }
    }

    /// Waits for the turn, where the call needs one and has none.
    pub(super) async fn take_turn(&mut self, spec: &ServerSpec) {
        if let Some(seat) = self.seat.as_mut().filter(|seat| seat.turn.is_none()) {
            seat.turn = Some(seat.workspace.turn(spec).await);
        }
    }

    /// What the folder took before the call, if it has one that can be looked through.
    pub(super) fn used(&self) -> Option<u64> {
        let Some(seat) = &self.seat else {
            // That of a `stateless` call is its own.
            return self.beside.is_none().then_some(0);
        };
        let seen = seat.workspace.files.try_lock().ok()?;
        let known = !seen.is_over() && seen.over_aside().is_none();
        known.then(|| seen.usage().bytes)
    }

    /// The folder as it was before the call: of what it changed itself before it gave its turn away
    /// nothing is known.
    pub(super) fn before(&self, seen: &Snapshot) -> Snapshot {
        let mut before = seen.clone();
        for place in self.seat.iter().flat_map(|seat| &seat.changed) {
            before.forget(place);
        }
        before
    }
}
