//! A call in a chat: in its workspace, in order, by the chat's own child.

use std::{sync::Arc, time::Duration};

use bridge_process::{ChildError, End, UserValues};
use bridge_state::Lease;

use super::{
    Answer, CallError, Running, files,
    holds::Holds,
    run::{Folder, PING_PATIENCE},
};
use crate::{
    artifacts::Snapshot,
    session::{Found, Lent, OpenWorkspace, Place, Room, Start, Workspace},
};

/// A lease that was seen to be ours is not looked at again so soon: nobody is taken for dead within
/// so short a time. By a clock that counts what the machine was suspended.
const LEASE_TRUSTED: Duration = Duration::from_millis(500);

impl Running {
    pub(super) async fn stateful(&self) -> (Result<Answer, CallError>, Option<Lease>) {
        let workspace = match self.open().await {
            Ok(workspace) => workspace,
            Err(error) => return (Err(error), None),
        };
        let lease = workspace.lease.clone();
        let mut answer = self.in_workspace(&self.call.place, &workspace).await;
        let held = self.check_lease(&workspace).await;
        let key = workspace.key;
        drop(workspace);
        self.engine.sessions.call_ended(key);
        if let Err(lost) = held {
            // The folder is another's: neither the answer counts nor what is recorded of it.
            answer = Err(lost);
            return (answer, None);
        }
        (answer, Some(lease))
    }

    pub(super) async fn open(&self) -> Result<Arc<Workspace>, CallError> {
        let (caller, place) = (&self.call.caller, &self.call.place);
        let sessions = &self.engine.sessions;
        let opening = async {
            let opened = self.call.opened.lock().take();
            match opened.and_then(OpenWorkspace::take) {
                Some(workspace) => Ok(workspace),
                None => Ok(sessions.open(place, &caller.principal).await?),
            }
        };
        self.before(opening).await
    }

    async fn in_workspace(
        &self,
        place: &Place,
        workspace: &Arc<Workspace>,
    ) -> Result<Answer, CallError> {
        let engine = &self.engine;
        let spec = &self.call.spec;
        let turn = self.queue(workspace.turn(spec)).await?;
        let brought = self.bring_all(workspace).await?;
        let permit = self.queue(self.admitted()).await?;
        let mut holds = Holds::in_turn(permit, workspace, turn);
        self.check_lease(workspace).await?;
        engine.check_free_disk_for(spec)?;
        let room = self.room(workspace, &mut holds).await?;
        let mut found = self.find(place, workspace, room).await?;
        self.check_lease(workspace).await?;
        let job = &workspace.job;
        let mut reply = self.ask(&found.session.child, job, &mut holds).await;
        if matches!(&reply, Err(error) if error.is_unheard()) {
            // Nothing was done yet: the same in a new session, whose news are told as ever.
            let (sessions, how) = (&engine.sessions, End::Kill);
            sessions.end_now(workspace, &found.session, how).await;
            let room = self.room(workspace, &mut holds).await?;
            found = self.find(place, workspace, room).await?;
            reply = self.ask(&found.session.child, job, &mut holds).await;
        }
        let reply = match reply {
            Ok(reply) => reply,
            Err(error) => {
                // The chat's turn is held until its child is settled; the caller need not wait.
                self.settle(workspace.clone(), found.session, &error, holds);
                return Err(error);
            }
        };
        // A child that answers without waiting for its caller does so in another call's turn.
        let late = holds.take_turn(spec);
        let _ = tokio::time::timeout(spec.timeout, late).await;
        self.check_lease(workspace).await?;
        let paths = found.session.child.paths().clone();
        let folder = Folder {
            job: job.clone(),
            lease: workspace.lease.clone(),
            paths,
            files: workspace.files.clone(),
        };
        let before = |seen: &Snapshot| holds.before(seen);
        let mut answer = self.answer(reply, folder, before).await?;
        answer.notices.extend(brought);
        if found.replaced && self.call.ask.is_tool_call() {
            // A look that hangs keeps it; then the next answer says so.
            if let Ok(seen) = workspace.files.try_lock() {
                answer.notices.insert(0, files::inventory(&seen));
                workspace.loss_told(&spec.name);
            }
        }
        Ok(answer)
    }

    /// After a wait in which the bridge itself may have been stopped: whether the folder is still
    /// ours.
    pub(super) async fn check_lease(&self, workspace: &Arc<Workspace>) -> Result<(), CallError> {
        if workspace.held_at().elapsed() < LEASE_TRUSTED && !workspace.is_lost() {
            return Ok(());
        }
        self.still_ours(workspace).await
    }

    /// Whether the folder is still ours, now.
    pub(super) async fn still_ours(&self, workspace: &Arc<Workspace>) -> Result<(), CallError> {
        let held = self.engine.sessions.still_held(workspace).await;
        if held {
            Ok(())
        } else if self.has_asked() {
            Err(CallError::Fenced)
        } else {
            Err(CallError::TakenOver)
        }
    }

    /// The right to start a child, where the call has to. While it waits for that, the call's place
    /// among the running ones is others'.
    async fn room(
        &self,
        workspace: &Arc<Workspace>,
        holds: &mut Holds,
    ) -> Result<Option<Start>, CallError> {
        let (sessions, spec) = (&self.engine.sessions, &self.call.spec);
        match sessions.room(workspace, spec, &self.tenant) {
            Room::Unneeded => Ok(None),
            Room::Free(start) => Ok(Some(start)),
            Room::Wanting => {
                holds.step_aside();
                let making = sessions.make_room(workspace, spec, &self.tenant);
                let start = self.queue(making).await.map_err(|error| match error {
                    CallError::Busy(_) => sessions.full(spec, &self.tenant).into(),
                    other => other,
                })?;
                holds.step_in(self.queue(self.admitted()).await?);
                Ok(start)
            }
        }
    }

    pub(super) async fn find(
        &self,
        place: &Place,
        workspace: &Arc<Workspace>,
        room: Option<Start>,
    ) -> Result<Found, CallError> {
        let (spec, profile) = (&self.call.spec, self.call.profile.clone());
        let sessions = &self.engine.sessions;
        let user = UserValues::of(&self.call.caller);
        let until = (self.queue_until, self.deadline);
        let whose = (&user, &self.tenant);
        let what = (place.class, profile);
        let finding = sessions.child(workspace, spec, what, whose, room, until);
        self.before(async { Ok(finding.await?) }).await
    }

    /// Ends or checks a child whose call was given up.
    fn settle(
        &self,
        workspace: Arc<Workspace>,
        session: Lent,
        error: &CallError,
        mut holds: Holds,
    ) {
        let over = match error {
            CallError::Timeout(_) | CallError::ShuttingDown | CallError::OverQuota(_) => {
                Some(End::Terminate(self.engine.children.kill_grace()))
            }
            CallError::Child(ChildError::Died { .. } | ChildError::TooLong { .. }) => {
                Some(End::Kill)
            }
            // The child is well; it heard that nobody waits any more.
            CallError::Left | CallError::Unanswered(_) | CallError::Busy(_) => None,
            // The child answered, or never got the call.
            _ => return,
        };
        let (engine, spec) = (self.engine.clone(), self.call.spec.clone());
        let filled = matches!(error, CallError::OverQuota(_));
        self.engine.running.spawn(async move {
            let sessions = &engine.sessions;
            if let Some(how) = over {
                sessions.end_now(&workspace, &session, how).await;
                if filled {
                    // What this call wrote is not the next one's.
                    engine.look_anew(&workspace).await;
                }
            } else {
                // Beside another call it might be too busy for a ping.
                holds.take_turn(&spec).await;
                if !session.child.answers_ping(PING_PATIENCE).await {
                    let how = End::Terminate(engine.children.kill_grace());
                    sessions.end_now(&workspace, &session, how).await;
                }
            }
            let key = workspace.key;
            drop((session, workspace, holds));
            sessions.call_ended(key);
        });
    }
}
