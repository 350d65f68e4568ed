//! A call by a fresh child in a fresh folder; nothing of the child is left after the answer.

use jiff::Timestamp;

use super::{Answer, CallError, Running, arguments, files};
use crate::{
    artifacts::{self, Snapshot},
    child::{Child, ChildRequest, End, Profile},
    model::RawJson,
    store::{Job, Lease, LeaseError, NewJob, PrincipalHash},
};

impl Running {
    pub(super) async fn stateless(&self) -> (Result<Answer, CallError>, Option<Job>) {
        let admitted = self
            .engine
            .admission
            .enter(&self.call.caller.principal, self.deadline);
        // Held until the child is gone.
        let permit = match self.before(async { Ok(admitted.await?) }).await {
            Ok(permit) => permit,
            Err(error) => return (Err(error), None),
        };
        let (job, lease) = match self.new_folder().await {
            Ok(made) => made,
            Err(error) => return (Err(error), None),
        };
        let answer = self.in_fresh_folder(&job).await;
        drop(permit);
        let store = self.engine.store.clone();
        let release = move || store.release(&lease);
        if let Ok(Err(error)) = tokio::task::spawn_blocking(release).await {
            tracing::warn!(%error, "lease not released");
        }
        (answer, Some(job))
    }

    async fn new_folder(&self) -> Result<(Job, Lease), CallError> {
        self.engine.check_free_disk()?;
        let store = self.engine.store.clone();
        let principal = PrincipalHash::from(&self.call.caller.principal);
        let server = self.call.spec.name.clone();
        let make = move || {
            let new = NewJob {
                principal,
                key: None,
                servers: &[server],
            };
            let job = store.create_job(&new, Timestamp::now())?;
            let lease = store
                .acquire(&job, Timestamp::now())
                .map_err(|error| match error {
                    LeaseError::Store(error) => CallError::from(error),
                    elsewhere @ LeaseError::Elsewhere { .. } => {
                        CallError::Elsewhere(elsewhere.to_string())
                    }
                })?;
            Ok((job, lease))
        };
        tokio::task::spawn_blocking(make)
            .await
            .expect("making a folder does not panic")
    }

    async fn in_fresh_folder(&self, job: &Job) -> Result<Answer, CallError> {
        let params = arguments::params(&self.call, &job.work())?;
        let ready = self.engine.children.ready(ChildRequest {
            spec: self.call.spec.clone(),
            job: job.clone(),
            profile: Profile::silent(),
            overlay: Vec::new(),
            deadline: self.deadline,
            listener: std::sync::Arc::new(|_, _| {}),
        });
        let ready = async { ready.await.map_err(CallError::Child) };
        let child = self.before(ready).await?;
        let outcome = self.ask_once(&child, &params).await;
        let outcome = outcome.map_err(|error| error.with_relative_paths(job))?;
        let result = artifacts::relative(outcome, &job.paths());
        let maker = files::Maker {
            principal: self.call.caller.principal.clone(),
            spec: self.call.spec.clone(),
            tool: self.call.tool.clone(),
        };
        let looked = self
            .engine
            .publish(job, Snapshot::default(), maker, &result)
            .await?;
        let notices = looked.notice.into_iter().collect();
        Ok(Answer {
            outcome: result,
            files: looked.published,
            notices,
            session: None,
        })
    }

    /// The answer is in, or will never come: the child has nothing left to do. A late one gets the
    /// time between SIGTERM and SIGKILL.
    async fn ask_once(&self, child: &Child, params: &RawJson) -> Result<RawJson, CallError> {
        let outcome = self.ask(child, params).await;
        let how = match &outcome {
            Err(CallError::Timeout(_)) => End::Terminate(self.engine.children.kill_grace()),
            _ => End::Kill,
        };
        child.end(how).await;
        outcome
    }
}
