//! A call in a chat: in its workspace, in order, by the chat's own child.

use std::sync::Arc;

use super::{Answer, CallError, Running, files, run::PING_PATIENCE};
use crate::{
    admission::Permit,
    child::{ChildError, End},
    session::{Lent, Place, Turn, Workspace},
    store::Job,
};

impl Running {
    pub(super) async fn stateful(&self) -> (Result<Answer, CallError>, Option<Job>) {
        let (caller, spec, place) = (&self.call.caller, &self.call.spec, &self.call.place);
        let sessions = &self.engine.sessions;
        let opening = async { Ok(sessions.open(place, &caller.principal, &spec.name).await?) };
        let workspace = match self.before(opening).await {
            Ok(workspace) => workspace,
            Err(error) => return (Err(error), None),
        };
        let job = workspace.job.clone();
        let answer = self.in_workspace(place, &workspace).await;
        drop(workspace);
        sessions.call_ended();
        (answer, Some(job))
    }

    async fn in_workspace(
        &self,
        place: &Place,
        workspace: &Arc<Workspace>,
    ) -> Result<Answer, CallError> {
        let engine = &self.engine;
        let spec = &self.call.spec;
        let turn = self.queue(workspace.turn(spec)).await?;
        let admitted = engine
            .admission
            .enter(&self.call.caller.principal, self.deadline);
        let mut permit = Some(self.queue(admitted).await??);
        engine.check_free_disk()?;
        let profile = self.call.profile.clone();
        let finding = engine
            .sessions
            .child(workspace, spec, place.class, profile, self.deadline);
        let found = self.before(async { Ok(finding.await?) }).await?;
        let job = &workspace.job;
        let reply = match self.ask(&found.session.child, job, &mut permit).await {
            Ok(reply) => reply,
            Err(error) => {
                // The chat's turn is held until its child is settled; the caller need not wait.
                self.settle(workspace.clone(), found.session, &error, (turn, permit));
                return Err(error);
            }
        };
        let mut seen = workspace.files.lock().await;
        let (mut answer, snapshot) = self.answer(reply, job, &seen).await?;
        if let Some(snapshot) = snapshot {
            *seen = snapshot;
            if found.replaced {
                answer.notices.insert(0, files::inventory(&seen));
                workspace.loss_told(&spec.name);
            }
        }
        Ok(answer)
    }

    /// Ends or checks a child whose call was given up.
    fn settle(
        &self,
        workspace: Arc<Workspace>,
        session: Lent,
        error: &CallError,
        holds: (Turn, Option<Permit>),
    ) {
        let over = match error {
            CallError::Timeout(_) | CallError::ShuttingDown => {
                Some(End::Terminate(self.engine.children.kill_grace()))
            }
            CallError::Child(ChildError::Died { .. } | ChildError::TooLong { .. }) => {
                Some(End::Kill)
            }
            CallError::Left => None,
            // The child answered, or never got the call.
            _ => return,
        };
        let engine = self.engine.clone();
        self.engine.running.spawn(async move {
            let sessions = &engine.sessions;
            match over {
                Some(how) => {
                    sessions.end_now(&workspace, &session, how).await;
                }
                None if !session.child.answers_ping(PING_PATIENCE).await => {
                    let how = End::Terminate(engine.children.kill_grace());
                    sessions.end_now(&workspace, &session, how).await;
                }
                None => {}
            }
            drop((session, workspace, holds));
            sessions.call_ended();
        });
    }
}
