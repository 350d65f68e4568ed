//! A call by a fresh child in a fresh folder; nothing of the child is left after the answer.

use std::sync::Arc;

use bridge_model::Job;
use bridge_process::{Child, End, UserValues};
use bridge_state::{Held, Lease, NewChat, PrincipalHash, StoreError};

use super::{Answer, CallError, Incoming, Running, attachments::Lot, holds::Holds, run::Folder};
use crate::{
    artifacts::Snapshot,
    call::detached::blocking,
    child::ChildRequest,
    session::{SessionError, Spare},
};

/// What must lie in the folder before the child starts.
struct GivenFiles {
    incoming: Vec<Incoming>,
    named: Lot,
}

impl GivenFiles {
    fn is_none(&self) -> bool {
        self.incoming.is_empty() && self.named.is_empty()
    }
}

impl Running {
    pub(super) async fn stateless(&self) -> (Result<Answer, CallError>, Option<Lease>) {
        // First, since Open WebUI may be slow: nobody else has to wait for it.
        let files = match self.given_files().await {
            Ok(files) => files,
            Err(error) => return (Err(error), None),
        };
        let permit = match self.queue(self.admitted()).await {
            Ok(permit) => permit,
            Err(error) => return (Err(error), None),
        };
        let (held, child) = match self.new_folder(files.is_none()).await {
            Ok(made) => made,
            Err(error) => return (Err(error), None),
        };
        let mut holds = Holds::permit(permit);
        let (answer, child) = self.in_new_folder(&held, child, files, &mut holds).await;
        let (engine, lease) = (self.engine.clone(), held.lease.clone());
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
        (answer, Some(held.lease))
    }

    /// The files that come with the call, and those of the chat that it names.
    async fn given_files(&self) -> Result<GivenFiles, CallError> {
        let incoming = std::mem::take(&mut *self.call.incoming.lock());
        Ok(GivenFiles {
            incoming,
            named: self.fetch_named().await?,
        })
    }

    /// A folder for this call alone; where it needs no files, perhaps with a child that is ready
    /// there.
    async fn new_folder(&self, empty: bool) -> Result<(Held, Option<Child>), CallError> {
        self.engine.check_free_disk()?;
        let store = self.engine.store.clone();
        let principal = PrincipalHash::from(&self.call.caller.principal);
        let server = self.call.spec.name.clone();
        let spare = if empty { self.spare().await? } else { None };
        let make = move || {
            let new = NewChat {
                principal,
                servers: vec![server],
            };
            if let Some(Ok(parts)) = spare.map(|spare| spare.claim(&new)) {
                return Ok((parts.held, Some(parts.child)));
            }
            Ok((store.create(&new)?, None))
        };
        let made: Result<_, StoreError> = blocking(make).await;
        Ok(made.map_err(SessionError::from)?)
    }

    async fn spare(&self) -> Result<Option<Spare>, CallError> {
        let pool = &self.engine.sessions.pool;
        let taking = pool.take(&self.call.spec, &self.call.profile);
        self.before(async { Ok(taking.await) }).await
    }

    async fn in_new_folder(
        &self,
        held: &Held,
        ready: Option<Child>,
        files: GivenFiles,
        holds: &mut Holds,
    ) -> (Result<Answer, CallError>, Option<(Child, End)>) {
        let mut seen = Snapshot::default();
        let (job, owner) = (&held.job, &self.call.caller.principal);
        let put = self
            .engine
            .put(owner, (job, &held.lease), &mut seen, files.incoming);
        if let Err(error) = put.await {
            return (Err(error), None);
        }
        let brought = self.put_named(held, &mut seen, files.named).await;
        let mut child = match ready {
            Some(child) => child,
            None => match self.fresh_child(job).await {
                Ok(child) => child,
                Err(error) => return (Err(error), None),
            },
        };
        let mut reply = self.ask(&child, job, holds).await;
        if matches!(&reply, Err(error) if error.is_unheard()) {
            // It was ready ahead, and its session is lost. Nothing was done yet.
            child.end(End::Kill).await;
            child = match self.fresh_child(job).await {
                Ok(child) => child,
                Err(error) => return (Err(error), None),
            };
            reply = self.ask(&child, job, holds).await;
        }
        match reply {
            Ok(reply) => {
                // The answer is in, so the child has nothing left to do; only then is its folder
                // looked through.
                child.end(End::Kill).await;
                let folder = Folder {
                    job: job.clone(),
                    lease: held.lease.clone(),
                    paths: child.paths().clone(),
                    files: Arc::new(tokio::sync::Mutex::new(seen)),
                };
                let mut answer = self.answer(reply, folder, Snapshot::clone).await;
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
            user: UserValues::of(&self.call.caller),
            tenant: self.tenant.clone(),
            deadline: self.deadline,
            listener: Arc::new(|_| {}),
        });
        self.before(async { ready.await.map_err(CallError::Child) })
            .await
    }
}
