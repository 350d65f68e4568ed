//! A call in a chat: in its workspace, in order, by the chat's own child.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{Answer, CallError, Running, files, run::PING_PATIENCE};
use crate::{
    admission::Permit,
    child::{ChildError, End},
    session::{Found, Lent, Place, Turn, Workspace},
    store::Job,
};

/// A lease that was seen to be ours is not looked at again so soon: nobody is taken for dead within
/// so short a time.
const LEASE_TRUSTED: Duration = Duration::from_millis(500);

impl Running {
    pub(super) async fn stateful(&self) -> (Result<Answer, CallError>, Option<Job>) {
        let (caller, spec, place) = (&self.call.caller, &self.call.spec, &self.call.place);
        let sessions = &self.engine.sessions;
        let opening = async {
            match place.opened.take() {
                Some(workspace) => Ok(workspace),
                None => Ok(sessions.open(place, &caller.principal, &spec.name).await?),
            }
        };
        let workspace = match self.before(opening).await {
            Ok(workspace) => workspace,
            Err(error) => return (Err(error), None),
        };
        let job = workspace.job.clone();
        let mut answer = self.in_workspace(place, &workspace).await;
        let lost = workspace.is_lost() || self.check_lease(&workspace, self.began).await.is_err();
        drop(workspace);
        sessions.call_ended();
        if lost {
            // The folder is another's: neither the answer counts nor what is recorded of it.
            answer = Err(CallError::Fenced);
            return (answer, None);
        }
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
        let checked = self.check_lease(workspace, self.began).await?;
        engine.check_free_disk()?;
        let mut found = self.find(place, workspace).await?;
        let job = &workspace.job;
        let mut reply = self.ask(&found.session.child, job, &mut permit).await;
        if matches!(&reply, Err(error) if error.is_unheard()) {
            // Nothing was done yet: the same in a new session, whose news are told as ever.
            let (sessions, how) = (&engine.sessions, End::Kill);
            sessions.end_now(workspace, &found.session, how).await;
            found = self.find(place, workspace).await?;
            reply = self.ask(&found.session.child, job, &mut permit).await;
        }
        let reply = match reply {
            Ok(reply) => reply,
            Err(error) => {
                // The chat's turn is held until its child is settled; the caller need not wait.
                self.settle(workspace.clone(), found.session, &error, (turn, permit));
                return Err(error);
            }
        };
        self.check_lease(workspace, checked).await?;
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

    /// After a wait in which the bridge itself may have been stopped: whether the folder is still
    /// ours. Returns when that was known.
    async fn check_lease(
        &self,
        workspace: &Arc<Workspace>,
        known: Instant,
    ) -> Result<Instant, CallError> {
        if known.elapsed() < LEASE_TRUSTED {
            return Ok(known);
        }
        let now = Instant::now();
        let held = self.engine.sessions.still_held(workspace).await;
        held.then_some(now).ok_or(CallError::Fenced)
    }

    async fn find(&self, place: &Place, workspace: &Arc<Workspace>) -> Result<Found, CallError> {
        let (spec, profile) = (&self.call.spec, self.call.profile.clone());
        let sessions = &self.engine.sessions;
        let finding = sessions.child(workspace, spec, place.class, profile, self.deadline);
        self.before(async { Ok(finding.await?) }).await
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
