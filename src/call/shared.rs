//! A call by the one child that everybody shares: no folder of its own, no files.

use super::{Answer, CallError, Published, Running, arguments, run::PING_PATIENCE};
use crate::{artifacts, store::Job};

impl Running {
    pub(super) async fn shared(&self) -> (Result<Answer, CallError>, Option<Job>) {
        (self.by_shared_child().await, None)
    }

    async fn by_shared_child(&self) -> Result<Answer, CallError> {
        let shared = &self.engine.shared;
        let finding = shared.child(&self.call.spec, self.deadline);
        let found = self.before(async { Ok(finding.await?) }).await?;
        let params = arguments::params(&self.call, &found.job.work())?;
        match self.ask(&found.child, &params).await {
            Ok(result) => {
                let outcome = artifacts::relative(result, &found.job.paths());
                let files = Published::default();
                Ok(Answer {
                    outcome,
                    files,
                    notices: Vec::new(),
                })
            }
            Err(error) => {
                if matches!(
                    error,
                    CallError::Timeout(_) | CallError::Left | CallError::ShuttingDown
                ) {
                    // That call alone is cancelled; the child is ended only if it hangs.
                    let (shared, found) = (shared.clone(), found.clone());
                    self.engine.running.spawn(async move {
                        shared.check(&found, PING_PATIENCE).await;
                    });
                }
                Err(error.with_relative_paths(&found.job))
            }
        }
    }
}
