//! A call in a chat: in its workspace, in order, by the chat's own child.

use std::sync::Arc;

use super::{Answer, CallError, Running, files, holds::Holds, run::PING_PATIENCE};
use crate::{
    child::{ChildError, End},
    session::{Found, Lent, Place, Workspace},
    store::Job,
};

impl Running {
    pub(super) async fn stateful(&self) -> (Result<Answer, CallError>, Option<Job>) {
        let workspace = match self.open().await {
            Ok(workspace) => workspace,
            Err(error) => return (Err(error), None),
        };
        let job = workspace.job.clone();
        let answer = self.in_workspace(&self.call.place, &workspace).await;
        drop(workspace);
        self.engine.sessions.call_ended();
        (answer, Some(job))
    }

    pub(super) async fn open(&self) -> Result<Arc<Workspace>, CallError> {
        let (caller, place) = (&self.call.caller, &self.call.place);
        let sessions = &self.engine.sessions;
        let opening = async { Ok(sessions.open(place, &caller.principal).await?) };
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
        let admitted = engine
            .admission
            .enter(&self.call.caller.principal, self.queue_until);
        let permit = self.queue(admitted).await??;
        let mut holds = Holds::in_turn(permit, workspace, turn);
        engine.check_free_disk()?;
        let mut found = self.find(place, workspace).await?;
        let job = &workspace.job;
        let mut reply = self.ask(&found.session.child, job, &mut holds).await;
        if matches!(&reply, Err(error) if error.is_unheard()) {
            // Nothing was done yet: the same in a new session, whose news are told as ever.
            let (sessions, how) = (&engine.sessions, End::Kill);
            sessions.end_now(workspace, &found.session, how).await;
            found = self.find(place, workspace).await?;
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
        let mut seen = workspace.files.lock().await;
        let before = holds.before(&seen);
        let mut answer = self.answer(reply, job, before, &mut seen).await?;
        answer.notices.extend(brought);
        if found.replaced && self.call.ask.is_tool_call() {
            answer.notices.insert(0, files::inventory(&seen));
            workspace.loss_told(&spec.name);
        }
        Ok(answer)
    }

    pub(super) async fn find(
        &self,
        place: &Place,
        workspace: &Arc<Workspace>,
    ) -> Result<Found, CallError> {
        let (spec, profile) = (&self.call.spec, self.call.profile.clone());
        let sessions = &self.engine.sessions;
        let until = (self.queue_until, self.deadline);
        let finding = sessions.child(workspace, spec, place.class, profile, until);
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
            CallError::Timeout(_) | CallError::ShuttingDown => {
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
        self.engine.running.spawn(async move {
            let sessions = &engine.sessions;
            if let Some(how) = over {
                sessions.end_now(&workspace, &session, how).await;
            } else {
                // Beside another call it might be too busy for a ping.
                holds.take_turn(&spec).await;
                if !session.child.answers_ping(PING_PATIENCE).await {
                    let how = End::Terminate(engine.children.kill_grace());
                    sessions.end_now(&workspace, &session, how).await;
                }
            }
            drop((session, workspace, holds));
            sessions.call_ended();
        });
    }
}
