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
        let permit = match self.queue(admitted).await {
            Ok(Ok(permit)) => permit,
            Ok(Err(busy)) => return (Err(busy.into()), None),
            Err(error) => return (Err(error), None),
        };
        let (job, lease) = match self.new_folder().await {
            Ok(made) => made,
            Err(error) => return (Err(error), None),
        };
        let (answer, child) = self.in_fresh_folder(&job).await;
        let engine = self.engine.clone();
        let over = async move {
            if let Some((child, how)) = child {
                child.end(how).await;
            }
            drop(permit);
            let release = move || engine.store.release(&lease);
            if let Ok(Err(error)) = tokio::task::spawn_blocking(release).await {
                tracing::warn!(%error, "lease not released");
            }
        };
        // A late child gets the time between SIGTERM and SIGKILL; its caller need not wait for it.
        self.engine.running.spawn(over);
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

    async fn in_fresh_folder(
        &self,
        job: &Job,
    ) -> (Result<Answer, CallError>, Option<(Child, End)>) {
        let (child, params) = match self.fresh_child(job).await {
            Ok(ready) => ready,
            Err(error) => return (Err(error), None),
        };
        match self.ask(&child, &params).await {
            Ok(result) => {
                // The answer is in, so the child has nothing left to do; only then is its folder
                // looked through.
                child.end(End::Kill).await;
                (self.look_through(job, result).await, None)
            }
            Err(error) => {
                let how = match error {
                    CallError::Timeout(_) => End::Terminate(self.engine.children.kill_grace()),
                    _ => End::Kill,
                };
                (Err(error.with_relative_paths(job)), Some((child, how)))
            }
        }
    }

    async fn fresh_child(&self, job: &Job) -> Result<(Child, RawJson), CallError> {
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
        Ok((self.before(ready).await?, params))
    }

    async fn look_through(&self, job: &Job, result: RawJson) -> Result<Answer, CallError> {
        let outcome = artifacts::relative(result, &job.paths());
        let maker = files::Maker {
            principal: self.call.caller.principal.clone(),
            spec: self.call.spec.clone(),
            tool: self.call.tool.clone(),
        };
        let before = Snapshot::default();
        let looked = self.engine.publish(job, before, maker, &outcome).await?;
        Ok(Answer {
            outcome,
            files: looked.published,
            notices: looked.notice.into_iter().collect(),
        })
    }
}
