//! The call from its first wait to its record: it ends when the child is settled, whether its caller
//! waits or not.

use std::{
    future::Future,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bridge_model::{Job, JobFolderPaths, Tenant};
use bridge_process::{Child, ChildError};
use bridge_protocol::{RawJson, jsonrpc::Reply};
use bridge_state::Lease;
use futures_util::FutureExt as _;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::Instrument as _;

use super::{
    Answer, Call, CallEngine, CallError, Published, Running,
    detached::Detached,
    error::Waited,
    files::not_in_time,
    holds::Holds,
    parking::State,
    record,
    status::{Shown, Status},
};
use crate::{
    admission::Place,
    artifacts::Snapshot,
    call::look::{Look, Looked, Maker},
    config::Mode,
};

/// How long a child that was told of a cancelled call may take to answer a ping.
pub const PING_PATIENCE: Duration = Duration::from_secs(5);

impl CallEngine {
    /// Runs the call, as long as the future is polled. Dropping it means that the caller hung up; the
    /// call then ends by itself.
    pub async fn run(self: &Arc<Self>, call: Box<Call>) -> Result<Answer, CallError> {
        let (call, _hang_up) = self.whole(call)?;
        Detached::new(self.running.track_future(call)).await
    }

    /// The same for a call that goes on while nobody polls the future.
    pub async fn run_apart(self: &Arc<Self>, call: Box<Call>) -> Result<Answer, CallError> {
        let (call, _hang_up) = self.whole(call)?;
        let task = self.running.spawn(call.in_current_span());
        task.await
            .unwrap_or_else(|error| Err(CallError::Internal(error.to_string())))
    }

    /// A call to its end, and what tells it by its drop that the caller hung up.
    fn whole(
        self: &Arc<Self>,
        call: Box<Call>,
    ) -> Result<
        (
            impl Future<Output = Result<Answer, CallError>> + Send + Unpin + use<>,
            DropGuard,
        ),
        CallError,
    > {
        let (mut running, hang_up) = self.begin(call)?;
        let shown = Shown::begin(self, &mut running.call);
        running.status = shown.status();
        let whole = Box::pin(async move {
            let answer = running.finish().await;
            shown.end().await;
            answer
        });
        Ok((whole, hang_up))
    }

    /// A call whose clock runs, and what tells it by its drop that the caller hung up.
    pub(super) fn begin(
        self: &Arc<Self>,
        call: Box<Call>,
    ) -> Result<(Running, DropGuard), CallError> {
        if self.stopping.is_cancelled() {
            return Err(CallError::ShuttingDown);
        }
        let left = CancellationToken::new();
        let hang_up = left.clone().drop_guard();
        let (received, patience) = (call.received, self.settings.limits.queue_timeout);
        let running = Running {
            engine: self.clone(),
            deadline: received + call.spec.timeout,
            queue_until: received + patience,
            tenant: Tenant::of(&call.caller),
            call,
            asked: AtomicBool::new(false),
            left,
            status: Status::default(),
        };
        Ok((running, hang_up))
    }
}

impl Running {
    async fn finish(self) -> Result<Answer, CallError> {
        let began = record::Began::now();
        // Boxed, so that a call of the smallest mode takes no memory for the others.
        let outcome = match self.call.spec.mode {
            Mode::Stateful => Box::pin(self.stateful()).await,
            Mode::Stateless => Box::pin(self.stateless()).await,
            Mode::Shared => self.shared().await,
        };
        self.call.parking.end();
        let (mut answer, lease) = outcome;
        if self.has_asked() && self.call.ask.is_tool_call() {
            answer = answer.map_err(CallError::after_asking);
        }
        record::record(&self, &began, &answer, lease.as_ref()).await;
        if let Ok(answer) = &answer {
            self.attach(answer).await;
        }
        answer
    }

    /// Whether the child was asked.
    pub(super) fn has_asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }

    /// Waits for something before the child is asked: it may be given up at any point.
    pub(super) async fn before<T>(
        &self,
        wait: impl Future<Output = Result<T, CallError>>,
    ) -> Result<T, CallError> {
        let mut wait = pin!(wait);
        // What is there at once needs no timer.
        if let Some(outcome) = wait.as_mut().now_or_never() {
            return outcome;
        }
        tokio::select! {
            biased;
            outcome = wait => outcome,
            () = self.left.cancelled() => Err(CallError::Left),
            () = self.engine.ending.cancelled() => Err(CallError::ShuttingDown),
            () = tokio::time::sleep_until(self.deadline) => {
                Err(self.timed_out(None))
            }
        }
    }

    /// Waits for its turn: bounded, and then 429; sent away when the bridge stops.
    pub(super) async fn queue<T>(&self, turn: impl Future<Output = T>) -> Result<T, CallError> {
        let (engine, mut turn) = (&self.engine, pin!(turn));
        self.status
            .waits(engine.settings.lang, || engine.admission.load().1);
        // A turn that is there at once needs nobody to listen.
        let turn = if let Some(turn) = turn.as_mut().now_or_never() {
            Ok(turn)
        } else {
            Box::pin(self.in_queue(turn)).await
        };
        self.status.set(None);
        turn
    }

    /// One of those that wait; it is sent away where it has to make room for a caller who has fewer.
    async fn in_queue<T>(&self, turn: impl Future<Output = T>) -> Result<T, CallError> {
        let (engine, waiting) = (&self.engine, &self.engine.admission.waiting);
        let ticket = waiting.join(&self.tenant);
        let ticket = ticket.map_err(|_| Self::sent_away(waiting.most()))?;
        tokio::select! {
            biased;
            turn = self.bounded(turn) => turn,
            () = ticket.displaced() => Err(Self::sent_away(waiting.most())),
            () = engine.stopping.cancelled() => Err(CallError::ShuttingDown),
        }
    }

    /// A place among the running calls.
    pub(super) fn admitted(&self) -> impl Future<Output = Place> + use<> {
        self.engine.admission.enter(&self.call.spec, &self.tenant)
    }

    async fn bounded<T>(&self, turn: impl Future<Output = T>) -> Result<T, CallError> {
        let patience = self.engine.settings.limits.queue_timeout;
        let bounded = async {
            let turn = tokio::time::timeout_at(self.queue_until, turn).await;
            turn.map_err(|_| Self::busy(patience))
        };
        self.before(bounded).await
    }

    fn busy(waited: Duration) -> CallError {
        let seconds = waited.as_secs_f64();
        CallError::Busy(format!(
            "other calls are in front of this one and none ended within {seconds} s \
             (MCPO_QUEUE_TIMEOUT)"
        ))
    }

    fn sent_away(most: usize) -> CallError {
        CallError::Busy(format!(
            "{most} calls are waiting, which is as many as may (MCPO_MAX_WAITING), and no other \
             caller has more of them than this one"
        ))
    }

    /// Asks the child. The caller of this settles the child after a timeout or a hang-up.
    ///
    /// While the caller is asked something himself, the call's clock stands still and what it holds
    /// is others'; it has it back before the child hears his answer.
    pub(super) async fn ask(
        &self,
        child: &Child,
        job: &Job,
        holds: &mut Holds,
    ) -> Result<Reply, CallError> {
        if let Some(on_child) = &self.call.on_child {
            on_child(child);
        }
        let quiet = child.noise_lines();
        self.asked.store(true, Ordering::Relaxed);
        let cancelled = CancellationToken::new();
        let mut answer = pin!(self.exchange(child, job, &cancelled));
        let watched = holds.used().filter(|_| self.is_watched());
        let mut watch = watched.map(|before| Box::pin(self.overfull(job, before)));
        let mut deadline = self.deadline;
        let mut state = self.call.parking.watch();
        let error = loop {
            let now = state.now();
            let began = Instant::now();
            let until = match now {
                State::Parked => {
                    holds.give_away(self).await;
                    began + self.engine.settings.limits.input_timeout
                }
                // Others may have the turn, as long as a call of theirs may take.
                State::Returning => began + self.call.spec.timeout,
                State::Running | State::Ended => deadline,
            };
            let back = async {
                match now {
                    State::Returning => holds.take_back(self).await,
                    _ => std::future::pending().await,
                }
            };
            let overfull = async {
                match &mut watch {
                    // Meanwhile others may fill the folder.
                    Some(watch) if matches!(now, State::Running) => watch.await,
                    _ => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                reply = &mut answer => return reply,
                () = self.left.cancelled() => break CallError::Left,
                () = self.engine.ending.cancelled() => return Err(CallError::ShuttingDown),
                over = overfull => return Err(over),
                () = tokio::time::sleep_until(until) => match now {
                    State::Parked => {
                        break CallError::Unanswered(self.engine.settings.limits.input_timeout);
                    }
                    State::Returning => break Self::busy(self.call.spec.timeout),
                    _ => return Err(self.timed_out(self.noise_since(child, quiet))),
                },
                back = back => match back {
                    Ok(()) => self.call.parking.resume(),
                    Err(error) => break error,
                },
                () = state.changed() => {}
            }
            if !matches!(now, State::Running) {
                deadline += began.elapsed();
            }
        };
        // A late answer may still write files, which must not be the next call's.
        cancelled.cancel();
        let grace = self.engine.children.kill_grace();
        let _ = tokio::time::timeout(grace, &mut answer).await;
        Err(error)
    }

    fn timed_out(&self, noise: Option<Box<str>>) -> CallError {
        let time = self.call.spec.timeout;
        CallError::Timeout(Waited { time, noise })
    }

    /// What the child said since then that was no JSON-RPC. A shared one may have said it of somebody
    /// else's call.
    fn noise_since(&self, child: &Child, lines: u64) -> Option<Box<str>> {
        let own = self.call.spec.mode != Mode::Shared && child.noise_lines() > lines;
        own.then(|| child.noise())
    }

    pub(super) fn reply(&self, reply: Result<Reply, ChildError>) -> Result<Reply, CallError> {
        match reply {
            Ok(reply) => Ok(reply),
            Err(ChildError::Timeout) => Err(self.timed_out(None)),
            Err(error) => Err(CallError::Child(error)),
        }
    }

    /// What the call left in its folder, as an answer; only tool calls are looked after. `before` makes
    /// what lay there before the call of what did at the last look.
    pub(super) async fn answer(
        &self,
        reply: Reply,
        folder: Folder,
        before: impl FnOnce(&Snapshot) -> Snapshot,
    ) -> Result<Answer, CallError> {
        let (reply, outcome) = outcome(reply)?;
        let (files, notices) = if self.call.ask.is_tool_call() {
            self.files(folder, before, &outcome).await?
        } else {
            (Published::default(), Vec::new())
        };
        Ok(Answer {
            reply,
            outcome,
            files,
            notices,
        })
    }

    async fn files(
        &self,
        folder: Folder,
        before: impl FnOnce(&Snapshot) -> Snapshot,
        outcome: &RawJson,
    ) -> Looked {
        // The tool has answered; a disk that hangs must hold up neither that nor the chat.
        let until = Instant::now() + self.call.spec.timeout;
        let Ok(seen) = tokio::time::timeout_at(until, folder.files.lock_owned()).await else {
            return Ok(not_in_time());
        };
        let look = Look {
            job: folder.job,
            lease: folder.lease,
            paths: folder.paths,
            before: before(&seen),
            maker: Maker {
                principal: self.call.caller.principal.clone(),
                spec: self.call.spec.clone(),
                tool: self.call.ask.label().into(),
            },
            arguments: self.call.ask.arguments().cloned(),
            result: outcome.clone(),
        };
        self.engine.publish(look, seen, until, &self.left).await
    }
}

/// Where a call worked, and what lay there at the last look.
pub(super) struct Folder {
    pub job: Job,
    pub lease: Lease,
    pub paths: JobFolderPaths,
    pub files: Arc<tokio::sync::Mutex<Snapshot>>,
}

/// A reply with its result; the child's error is the call's.
pub(super) fn outcome(reply: Reply) -> Result<(Reply, RawJson), CallError> {
    match reply.outcome.clone() {
        Ok(result) => Ok((reply, result)),
        Err(error) => Err(CallError::Rpc { error, reply }),
    }
}
