//! The call as a task: it ends when the child is settled, whether its caller waits or not.

use std::{future::Future, sync::Arc, time::Duration};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::{Answer, Call, CallEngine, CallError, Published, Running, files::Maker, record};
use crate::{
    admission::Permit,
    artifacts::Snapshot,
    child::{Child, ChildError, Reply},
    config::Mode,
    store::Job,
};

/// How long a caller who was asked something may take to answer.
const LONGEST_PARK: Duration = Duration::from_secs(600);
/// How long a child that was told of a cancelled call may take to answer a ping.
pub const PING_PATIENCE: Duration = Duration::from_secs(5);

impl CallEngine {
    /// Runs the call. Dropping the future means that the caller hung up.
    pub async fn run(self: &Arc<Self>, call: Call) -> Result<Answer, CallError> {
        if self.stopping.is_cancelled() {
            return Err(CallError::ShuttingDown);
        }
        let left = CancellationToken::new();
        let _hang_up = left.clone().drop_guard();
        let deadline = Instant::now() + call.spec.timeout;
        let running = Running {
            engine: self.clone(),
            call,
            deadline,
            left,
        };
        let task = self.running.spawn(running.finish().in_current_span());
        task.await
            .unwrap_or_else(|error| Err(CallError::Internal(error.to_string())))
    }
}

impl Running {
    async fn finish(self) -> Result<Answer, CallError> {
        let began = record::Began::now();
        let outcome = match self.call.spec.mode {
            Mode::Stateful => self.stateful().await,
            Mode::Stateless => self.stateless().await,
            Mode::Shared => self.shared().await,
        };
        let (answer, job) = outcome;
        record::record(&self, &began, &answer, job.as_ref()).await;
        if let Ok(answer) = &answer {
            self.attach(answer).await;
        }
        answer
    }

    /// Waits for something before the child is asked: it may be given up at any point.
    pub(super) async fn before<T>(
        &self,
        wait: impl Future<Output = Result<T, CallError>>,
    ) -> Result<T, CallError> {
        tokio::select! {
            outcome = wait => outcome,
            () = self.left.cancelled() => Err(CallError::Left),
            () = self.engine.ending.cancelled() => Err(CallError::ShuttingDown),
            () = tokio::time::sleep_until(self.deadline) => {
                Err(CallError::Timeout(self.call.spec.timeout))
            }
        }
    }

    /// Waits for its turn: bounded, and then 429; sent away when the bridge stops.
    pub(super) async fn queue<T>(&self, turn: impl Future<Output = T>) -> Result<T, CallError> {
        tokio::select! {
            biased;
            () = self.engine.stopping.cancelled() => Err(CallError::ShuttingDown),
            turn = self.bounded(turn) => turn,
        }
    }

    async fn bounded<T>(&self, turn: impl Future<Output = T>) -> Result<T, CallError> {
        let patience = self.engine.settings.limits.queue_timeout;
        let bounded = async {
            tokio::time::timeout(patience, turn).await.map_err(|_| {
                let seconds = patience.as_secs_f64();
                CallError::Busy(format!(
                    "other calls of this chat are running and none ended within {seconds} s \
                     (MCPO_QUEUE_TIMEOUT)"
                ))
            })
        };
        self.before(bounded).await
    }

    /// Asks the child. The caller of this settles the child after a timeout or a hang-up.
    ///
    /// While the caller is asked something himself (`parked`), the call's clock stands still and
    /// its place among the running calls is another's; both come back with his answer.
    pub(super) async fn ask(
        &self,
        child: &Child,
        job: &Job,
        permit: &mut Option<Permit>,
    ) -> Result<Reply, CallError> {
        if let Some(on_child) = &self.call.on_child {
            on_child(child);
        }
        let cancelled = CancellationToken::new();
        let mut answer = Box::pin(self.exchange(child, job, &cancelled));
        let mut deadline = self.deadline;
        let mut parked = self.call.parked.clone();
        loop {
            let is_parked = *parked.borrow_and_update();
            let until = if is_parked {
                Instant::now() + LONGEST_PARK
            } else {
                deadline
            };
            let began = Instant::now();
            if is_parked {
                permit.take();
            }
            tokio::select! {
                reply = &mut answer => return reply,
                () = self.left.cancelled() => {
                    // A late answer may still write files, which must not be the next call's.
                    cancelled.cancel();
                    let grace = self.engine.children.kill_grace();
                    let _ = tokio::time::timeout(grace, &mut answer).await;
                    return Err(CallError::Left);
                }
                () = self.engine.ending.cancelled() => return Err(CallError::ShuttingDown),
                () = tokio::time::sleep_until(until) => {
                    return Err(CallError::Timeout(self.call.spec.timeout));
                }
                Ok(()) = parked.changed() => if is_parked {
                    deadline += began.elapsed();
                    let principal = &self.call.caller.principal;
                    *permit = Some(self.engine.admission.enter(principal, deadline).await?);
                }
            }
        }
    }

    pub(super) fn reply(&self, reply: Result<Reply, ChildError>) -> Result<Reply, CallError> {
        match reply {
            Ok(reply) => Ok(reply),
            Err(ChildError::Timeout) => Err(CallError::Timeout(self.call.spec.timeout)),
            Err(error) => Err(CallError::Child(error)),
        }
    }

    /// What the call left in its folder, as an answer; only tool calls are looked after.
    pub(super) async fn answer(
        &self,
        reply: Reply,
        job: &Job,
        before: &Snapshot,
    ) -> Result<(Answer, Option<Snapshot>), CallError> {
        let outcome = match &reply.outcome {
            Ok(result) => result.clone(),
            Err(error) => {
                return Err(CallError::Rpc {
                    error: error.clone(),
                    reply,
                });
            }
        };
        if !self.call.ask.is_tool_call() {
            let (files, notices) = (Published::default(), Vec::new());
            return Ok((
                Answer {
                    reply,
                    outcome,
                    files,
                    notices,
                },
                None,
            ));
        }
        let maker = Maker {
            principal: self.call.caller.principal.clone(),
            spec: self.call.spec.clone(),
            tool: self.call.ask.label().into(),
        };
        let looked = self
            .engine
            .publish(job, before.clone(), maker, &outcome)
            .await?;
        let (files, notices) = (looked.published, looked.notice.into_iter().collect());
        Ok((
            Answer {
                reply,
                outcome,
                files,
                notices,
            },
            Some(looked.snapshot),
        ))
    }
}
