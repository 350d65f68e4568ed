//! The call as a task: it ends when the child is settled, whether its caller waits or not.

use std::{future::Future, sync::Arc, time::Duration};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::{Answer, Call, CallEngine, CallError, Running, record};
use crate::{
    child::{Child, ChildError},
    config::Mode,
    model::RawJson,
};

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
    pub(super) async fn ask(&self, child: &Child, params: &RawJson) -> Result<RawJson, CallError> {
        tokio::select! {
            answer = child.request("tools/call", Some(params)) => match answer {
                Ok(Ok(result)) => Ok(result),
                Ok(Err(error)) => Err(CallError::Rpc(error)),
                Err(ChildError::Timeout) => Err(CallError::Timeout(self.call.spec.timeout)),
                Err(error) => Err(CallError::Child(error)),
            },
            () = self.left.cancelled() => Err(CallError::Left),
            () = self.engine.ending.cancelled() => Err(CallError::ShuttingDown),
            () = tokio::time::sleep_until(self.deadline) => {
                Err(CallError::Timeout(self.call.spec.timeout))
            }
        }
    }
}
