//! A call by the one child that everybody shares: no folder of its own, no files.

use std::sync::Arc;

use bridge_state::Lease;

use super::{
    Answer, CallError, Published, Running,
    holds::Holds,
    run::{PING_PATIENCE, outcome},
};
use crate::session::SharedChild;

impl Running {
    pub(super) async fn shared(&self) -> (Result<Answer, CallError>, Option<Lease>) {
        (self.by_shared_child().await, None)
    }

    async fn by_shared_child(&self) -> Result<Answer, CallError> {
        let shared = &self.engine.shared;
        let mut found = self.find_shared().await?;
        let mut holds = self.queue(Holds::beside(&found, &self.tenant)).await?;
        let mut reply = self.ask(&found.child, &found.job, &mut holds).await;
        if matches!(&reply, Err(error) if error.is_unheard()) {
            // Nothing was done yet: the same in a new session. Calls of others may still be answered
            // in the old one, or be refused there as this one was.
            shared.forget(&found);
            found = self.find_shared().await?;
            holds = self.queue(Holds::beside(&found, &self.tenant)).await?;
            reply = self.ask(&found.child, &found.job, &mut holds).await;
        }
        match reply {
            Ok(reply) => {
                let (reply, outcome) = outcome(reply)?;
                let (files, notices) = (Published::default(), Vec::new());
                Ok(Answer {
                    reply,
                    outcome,
                    files,
                    notices,
                })
            }
            Err(error) => {
                if matches!(
                    error,
                    CallError::Timeout(_)
                        | CallError::Unanswered(_)
                        | CallError::Left
                        | CallError::ShuttingDown
                ) {
                    // That call alone is cancelled; the child is ended only if it hangs.
                    let shared = shared.clone();
                    self.engine.running.spawn(async move {
                        shared.check(&found, PING_PATIENCE).await;
                    });
                }
                Err(error)
            }
        }
    }

    pub(super) async fn find_shared(&self) -> Result<Arc<SharedChild>, CallError> {
        let shared = &self.engine.shared;
        let how = (&self.call.profile, &self.tenant);
        let finding = shared.child(&self.call.spec, how, self.deadline);
        self.before(async { Ok(finding.await?) }).await
    }
}
