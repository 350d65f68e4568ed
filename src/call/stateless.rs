//! A call by a fresh child in a fresh folder; nothing of the child is left after the answer.

use jiff::Timestamp;

use super::{Answer, CallError, Running, holds::Holds};
use crate::{
    artifacts::Snapshot,
    child::{Child, ChildRequest, End},
    config::UserValues,
    session::SessionError,
    store::{Job, Lease, NewJob, PrincipalHash},
};

impl Running {
    pub(super) async fn stateless(&self) -> (Result<Answer, CallError>, Option<Job>) {
        let admitted = self
            .engine
            .admission
            .enter(&self.call.caller.principal, self.queue_until);
        let permit = match self.queue(admitted).await {
            Ok(Ok(permit)) => permit,
            Ok(Err(busy)) => return (Err(busy.into()), None),
            Err(error) => return (Err(error), None),
        };
        let (job, lease) = match self.new_folder().await {
            Ok(made) => made,
            Err(error) => return (Err(error), None),
        };
        let mut holds = Holds::permit(permit);
        let (answer, child) = self.in_fresh_folder(&job, &mut holds).await;
        let engine = self.engine.clone();
        let over = async move {
            if let Some((child, how)) = child {
                child.end(how).await;
            }
            drop(holds);
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
            store.create_leased_job(&new, Timestamp::now())
        };
        let made = tokio::task::spawn_blocking(make).await;
        let made = made.expect("making a folder does not panic");
        Ok(made.map_err(SessionError::from)?)
    }

    async fn in_fresh_folder(
        &self,
        job: &Job,
        holds: &mut Holds,
    ) -> (Result<Answer, CallError>, Option<(Child, End)>) {
        let mut seen = Snapshot::default();
        let incoming = self
            .call
            .incoming
            .lock()
            .map(|mut files| std::mem::take(&mut *files));
        let incoming = incoming.unwrap_or_default();
        if let Err(error) = self.engine.put(job, &mut seen, incoming).await {
            return (Err(error), None);
        }
        let brought = match self.bring_named(job, &mut seen).await {
            Ok(brought) => brought,
            Err(error) => return (Err(error), None),
        };
        let child = match self.fresh_child(job).await {
            Ok(child) => child,
            Err(error) => return (Err(error), None),
        };
        match self.ask(&child, job, holds).await {
            Ok(reply) => {
                // The answer is in, so the child has nothing left to do; only then is its folder
                // looked through.
                child.end(End::Kill).await;
                let mut answer = self.answer(reply, job, seen.clone(), &mut seen).await;
                if let Ok(answer) = &mut answer {
                    answer.notices.extend(brought);
                }
                (answer, None)
            }
            Err(error) => {
                let how = match error {
                    CallError::Timeout(_) => End::Terminate(self.engine.children.kill_grace()),
                    _ => End::Kill,
                };
                (Err(error), Some((child, how)))
            }
        }
    }

    async fn fresh_child(&self, job: &Job) -> Result<Child, CallError> {
        let ready = self.engine.children.ready(ChildRequest {
            spec: self.call.spec.clone(),
            job: job.clone(),
            profile: self.call.profile.clone(),
            overlay: Vec::new(),
            user: UserValues::of(&self.call.caller),
            deadline: self.deadline,
            listener: std::sync::Arc::new(|_| {}),
        });
        self.before(async { ready.await.map_err(CallError::Child) })
            .await
    }
}
