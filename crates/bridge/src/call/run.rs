//! The phases of a call from its first wait to its record. A call ends when its child is settled, whether
//! its caller waits or not.
//!
//! The phases have the names of `docs/architecture.md`, here and in the tracing spans: queue, find child,
//! exchange, settle, publish, record. The endpoint implements the phases before and after them.

use std::{
    future::Future,
    pin::pin,
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bridge_model::{Job, Tenant};
use bridge_process::{BACKLOG, Cancellation, Child, ChildError, End, MessageSink, UserValues};
use bridge_protocol::{
    RawJson,
    jsonrpc::{Reply, Said},
    method,
};
use bridge_state::{Held, Lease, NewChat, StoreError};
use futures_util::{FutureExt as _, future::BoxFuture};
use jiff::Timestamp;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until, timeout, timeout_at},
};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::AbortOnDropHandle,
};
use tracing::Instrument as _;

use super::{
    Answer, Call, CallEngine, CallError, Detached, Incoming, Published, Running,
    ask::CallState,
    attachments::ChatAttachments,
    blocking,
    error::Waited,
    files,
    files::{Before, Folder, PublishInput, PublishResult, not_in_time, snapshot_limits},
    record,
};
use crate::{
    admission::Permit,
    artifacts::{Place, TrackedFiles},
    child::ChildRequest,
    config::{Lang, Mode, ServerSpec},
    openwebui::{Chat, Event},
    session::{
        OpenWorkspace, Room, SessionError, SessionGuard, SharedChild, Start, Turn, Workspace,
    },
};

/// The timeout of a ping to a child that got the cancellation of a call.
const PING_PATIENCE: Duration = Duration::from_secs(5);

impl CallEngine {
    /// Runs the call, as long as the future is polled. If it is dropped, the caller has closed the
    /// connection; the call then ends by itself.
    pub async fn run(self: &Arc<Self>, call: Box<Call>) -> Result<Answer, CallError> {
        let (call, _hang_up) = self.whole(call)?;
        Detached(Some(call)).await
    }

    /// The same for a call that continues while the future is not polled.
    pub async fn run_apart(self: &Arc<Self>, call: Box<Call>) -> Result<Answer, CallError> {
        let (call, _hang_up) = self.whole(call)?;
        self.spawn(call).await
    }

    /// Not async itself, so that the returned future does not contain `work`.
    pub(super) fn spawn<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, CallError>> + Send + 'static,
    ) -> impl Future<Output = Result<T, CallError>> {
        let task = self.running.spawn(work.in_current_span());
        task.map(|done| done.map_err(CallError::internal)?)
    }

    /// Settles a child after the answer of its call was returned.
    fn spawn_settling(&self, settling: impl Future<Output = ()> + Send + 'static) {
        let span = tracing::debug_span!("settle");
        self.running.spawn(settling.instrument(span));
    }

    /// The call up to its end. The guard must be dropped when the caller closes the connection.
    fn whole(
        self: &Arc<Self>,
        call: Box<Call>,
    ) -> Result<(BoxFuture<'static, Result<Answer, CallError>>, DropGuard), CallError> {
        let (mut running, hang_up) = self.begin(call)?;
        let (status, line) = StatusLine::begin(self, &mut running.call).unzip();
        running.status = status.unwrap_or_default();
        let counted = self.running.token();
        let whole = async move {
            let _counted = counted;
            let answer = running.finish().await;
            if let Some(line) = line {
                line.end().await;
            }
            answer
        };
        Ok((whole.boxed(), hang_up))
    }

    /// Starts the clock of a call. The guard must be dropped when the caller closes the connection.
    pub(super) fn begin(
        self: &Arc<Self>,
        call: Box<Call>,
    ) -> Result<(Running, DropGuard), CallError> {
        if self.stopping.is_cancelled() {
            return Err(CallError::ShuttingDown);
        }
        let left = CancellationToken::new();
        let hang_up = left.clone().drop_guard();
        let running = Running {
            engine: self.clone(),
            began_at: Timestamp::now(),
            began: Instant::now(),
            deadline: call.received + call.spec.timeout,
            queue_until: call.received + self.settings.limits.queue_timeout,
            tenant: Tenant::from_caller(&call.caller),
            call,
            asked: AtomicBool::new(false),
            folder: OnceLock::new(),
            left,
            status: Status::default(),
        };
        Ok((running, hang_up))
    }
}

impl Running {
    async fn finish(self) -> Result<Answer, CallError> {
        // Boxed, so that a call of the smallest mode needs no memory for the others.
        let mut answer = match self.call.spec.mode {
            Mode::Stateful => Box::pin(self.stateful()).await,
            Mode::Stateless => Box::pin(self.stateless()).await,
            Mode::Shared => self.shared().await,
        };
        self.call.pending_input.end();
        if self.has_asked() && self.call.ask.is_tool_call() {
            answer = answer.map_err(CallError::after_asking);
        }
        record::record(&self, &answer).await;
        if let Ok(answer) = &answer {
            self.attach(answer).await;
        }
        answer
    }

    /// Whether the child got the request.
    pub(super) fn has_asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }

    /// The call is recorded in this folder.
    pub(super) fn record_in(&self, folder: Lease) {
        let _ = self.folder.set(folder);
    }

    /// Waits for something before the child gets the request; the wait may be cancelled at any point.
    pub(super) async fn before<T>(
        &self,
        wait: impl Future<Output = Result<T, CallError>>,
    ) -> Result<T, CallError> {
        let mut wait = pin!(wait);
        // A future that is ready at once needs no timer.
        if let Some(outcome) = wait.as_mut().now_or_never() {
            return outcome;
        }
        tokio::select! {
            biased;
            outcome = wait => outcome,
            () = self.left.cancelled() => Err(CallError::Left),
            () = self.engine.ending.cancelled() => Err(CallError::ShuttingDown),
            () = sleep_until(self.deadline) => Err(self.timed_out(None)),
        }
    }

    /// Waits for a turn or a permit, up to the queue timeout; rejected when the bridge stops.
    #[tracing::instrument(level = "debug", skip_all)]
    pub(super) async fn queue<T>(&self, turn: impl Future<Output = T>) -> Result<T, CallError> {
        let (engine, mut turn) = (&self.engine, pin!(turn));
        self.status
            .waits(engine.settings.lang, || engine.admission.load().1);
        // A turn that is free at once needs no queue entry.
        let turn = match turn.as_mut().now_or_never() {
            Some(turn) => Ok(turn),
            None => Box::pin(self.in_queue(turn)).await,
        };
        self.status.set(None);
        turn
    }

    /// Waits in the queue; rejected if a caller with fewer waiting calls needs the room.
    async fn in_queue<T>(&self, turn: impl Future<Output = T>) -> Result<T, CallError> {
        let (engine, waiting) = (&self.engine, &self.engine.admission.waiting);
        let full = || {
            let most = waiting.most();
            CallError::Busy(format!(
                "the queue is full ({most} calls, MCPO_MAX_WAITING), and no other caller has more \
                 calls in it than this one"
            ))
        };
        let ticket = waiting.join(&self.tenant).map_err(|_| full())?;
        let bounded = async {
            let turn = timeout_at(self.queue_until, turn).await;
            turn.map_err(|_| Self::busy(engine.settings.limits.queue_timeout))
        };
        tokio::select! {
            biased;
            turn = self.before(bounded) => turn,
            () = ticket.displaced() => Err(full()),
            () = engine.stopping.cancelled() => Err(CallError::ShuttingDown),
        }
    }

    /// A permit among the running calls.
    pub(super) fn admitted(&self) -> impl Future<Output = Permit> + use<> {
        self.engine.admission.enter(&self.call.spec, &self.tenant)
    }

    fn busy(waited: Duration) -> CallError {
        let seconds = waited.as_secs_f64();
        CallError::Busy(format!(
            "no running call finished within {seconds} s, and other calls are ahead in the queue \
             (MCPO_QUEUE_TIMEOUT)"
        ))
    }

    /// Sends the request to the child and waits for its answer. If it fails, the caller of this function
    /// settles the child.
    ///
    /// While the child's request for input is pending, the call's timeout is suspended and other calls use
    /// its turn and permits; the call gets them back before the child gets the input.
    async fn ask(
        &self,
        child: &Child,
        job: &Job,
        permits: &mut CallPermits,
    ) -> Result<Reply, CallError> {
        if let Some(on_child) = &self.call.on_child {
            on_child(child);
        }
        let quiet = child.noise_lines();
        self.asked.store(true, Ordering::Relaxed);
        let cancelled = CancellationToken::new();
        let exchange = self.exchange(child, job, &cancelled);
        let mut answer = pin!(exchange.instrument(tracing::debug_span!("exchange")));
        let watched = permits.used().filter(|_| self.is_watched());
        let mut watch = watched.map(|before| Box::pin(self.overfull(job, before)));
        let mut deadline = self.deadline;
        let mut state = self.call.pending_input.watch();
        let error = loop {
            let now = state.now();
            let began = Instant::now();
            let until = match now {
                CallState::InputPending => {
                    permits.release(self).await;
                    began + self.engine.settings.limits.input_timeout
                }
                // Another call may hold the turn for the whole timeout of a call.
                CallState::Returning => began + self.call.spec.timeout,
                CallState::Running | CallState::Ended => deadline,
            };
            let back = async {
                match now {
                    CallState::Returning => permits.take_back(self).await,
                    _ => std::future::pending().await,
                }
            };
            let overfull = async {
                match &mut watch {
                    // In the other states other calls may fill the folder.
                    Some(watch) if matches!(now, CallState::Running) => watch.await,
                    _ => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                reply = &mut answer => return reply,
                () = self.left.cancelled() => break CallError::Left,
                () = self.engine.ending.cancelled() => return Err(CallError::ShuttingDown),
                over = overfull => return Err(over),
                () = sleep_until(until) => match now {
                    CallState::InputPending => {
                        break CallError::Unanswered(self.engine.settings.limits.input_timeout);
                    }
                    CallState::Returning => break Self::busy(self.call.spec.timeout),
                    _ => return Err(self.timed_out(self.noise_since(child, quiet))),
                },
                back = back => match back {
                    Ok(()) => self.call.pending_input.resume(),
                    Err(error) => break error,
                },
                () = state.changed() => {}
            }
            if !matches!(now, CallState::Running) {
                deadline += began.elapsed();
            }
        };
        // A late answer may still write files, which must not count as the next call's.
        cancelled.cancel();
        let _ = timeout(self.engine.children.kill_grace(), &mut answer).await;
        Err(error)
    }

    pub(super) fn timed_out(&self, noise: Option<Box<str>>) -> CallError {
        let time = self.call.spec.timeout;
        CallError::Timeout(Waited { time, noise })
    }

    /// The child's output since then that was not JSON-RPC. The output of a shared child may belong to
    /// another call.
    fn noise_since(&self, child: &Child, lines: u64) -> Option<Box<str>> {
        let own = self.call.spec.mode != Mode::Shared && child.noise_lines() > lines;
        own.then(|| child.noise())
    }

    /// The answer, with links to the files that a tool call left in `folder`.
    async fn answer(
        &self,
        reply: Reply,
        folder: Option<Folder>,
        permits: &CallPermits,
    ) -> Result<Answer, CallError> {
        let outcome = match &reply.outcome {
            Ok(result) => result.clone(),
            Err(error) => {
                let error = error.clone();
                return Err(CallError::Rpc { error, reply });
            }
        };
        let (files, notices) = match folder.filter(|_| self.call.ask.is_tool_call()) {
            Some(folder) => self.publish(folder, permits, &outcome).await?,
            None => (Published::default(), Vec::new()),
        };
        Ok(Answer {
            reply,
            outcome,
            files,
            notices,
        })
    }

    #[tracing::instrument(level = "debug", skip_all)]
    async fn publish(
        &self,
        folder: Folder,
        permits: &CallPermits,
        outcome: &RawJson,
    ) -> PublishResult {
        // The tool has answered: a disk that hangs delays neither the answer nor the chat.
        let until = Instant::now() + self.call.spec.timeout;
        let Ok(seen) = timeout_at(until, folder.files.clone().lock_owned()).await else {
            return Ok(not_in_time());
        };
        let input = PublishInput {
            folder,
            before: permits.before(&seen),
            principal: self.call.caller.principal.clone(),
            spec: self.call.spec.clone(),
            tool: self.call.ask.label().into(),
            arguments: self.call.ask.arguments().cloned(),
            result: outcome.clone(),
        };
        self.engine.publish(input, seen, until, &self.left).await
    }
}

/// Whether a remote server rejected the request because it no longer has the session: the call may then be
/// repeated in a new one.
fn is_unread(reply: &Result<Reply, CallError>) -> bool {
    let unread = |error: &CallError| {
        matches!(
            error,
            CallError::Child(ChildError::Unanswered { unread: true, .. })
        )
    };
    reply.as_ref().err().is_some_and(unread)
}

// A call in a chat: in its workspace, in order, by the chat's own child.

/// A lease is not checked again for this time after a check: other replicas do not consider this one dead
/// within such a short time. Measured by a clock that runs while the machine is suspended.
const LEASE_TRUSTED: Duration = Duration::from_millis(500);

impl Running {
    async fn stateful(&self) -> Result<Answer, CallError> {
        let workspace = self.open().await?;
        let lease = workspace.lease.clone();
        let answer = self.in_workspace(&workspace).await;
        let held = self.check_lease(&workspace).await;
        let key = workspace.key;
        drop(workspace);
        self.engine.sessions.call_ended(key);
        // If the folder belongs to another replica now, neither answer nor record is valid.
        held?;
        self.record_in(lease);
        answer
    }

    pub(super) async fn open(&self) -> Result<Arc<Workspace>, CallError> {
        let (caller, address) = (&self.call.caller, &self.call.address);
        let sessions = &self.engine.sessions;
        let opening = async {
            let opened = self.call.opened.lock().take();
            match opened.and_then(OpenWorkspace::take) {
                Some(workspace) => Ok(workspace),
                None => Ok(sessions.open(address, &caller.principal, None).await?),
            }
        };
        self.before(opening).await
    }

    async fn in_workspace(&self, workspace: &Arc<Workspace>) -> Result<Answer, CallError> {
        let (engine, spec) = (&self.engine, &self.call.spec);
        let turn = self.queue(workspace.turn(spec)).await?;
        let brought = self.bring_all(workspace).await?;
        let permit = self.queue(self.admitted()).await?;
        let mut permits = CallPermits::in_turn(permit, workspace, turn);
        self.check_lease(workspace).await?;
        // The built-in server deletes files, and writes none.
        if !spec.is_files_server() {
            engine.check_free_disk()?;
        }
        let (job, mut repeated) = (&workspace.job, false);
        let (session, replaced, reply) = loop {
            let room = self.room(workspace, &mut permits).await?;
            let session = self.find_child(workspace, room).await?;
            let replaced = workspace.has_loss(&spec.name);
            self.check_lease(workspace).await?;
            let reply = self.ask(&session.child, job, &mut permits).await;
            if repeated || !is_unread(&reply) {
                break (session, replaced, reply);
            }
            repeated = true;
            let (sessions, how) = (&engine.sessions, End::Kill);
            sessions.end_now(workspace, &session, how).await;
        };
        let reply = match reply {
            Ok(reply) => reply,
            Err(error) => {
                // The call keeps the chat's turn until its child is settled; the caller need not wait.
                self.settle(workspace.clone(), session, &error, permits);
                return Err(error);
            }
        };
        // If a child answers before it got the requested input, it may do so in another call's turn.
        let late = permits.take_turn(spec);
        let _ = timeout(spec.timeout, late).await;
        self.check_lease(workspace).await?;
        let folder = Folder {
            job: job.clone(),
            lease: workspace.lease.clone(),
            paths: session.child.parts.paths.clone(),
            files: workspace.files.clone(),
        };
        let mut answer = self.answer(reply, Some(folder), &permits).await?;
        answer.notices.extend(brought);
        if replaced && self.call.ask.is_tool_call() {
            // If a scan hangs and holds the lock, the next answer contains the notice.
            if let Ok(seen) = workspace.files.try_lock() {
                answer.notices.insert(0, files::inventory(seen.now()));
                workspace.loss_told(&spec.name);
            }
        }
        Ok(answer)
    }

    /// Whether the lease is still held, after a wait in which the bridge may have been suspended.
    pub(super) async fn check_lease(&self, workspace: &Arc<Workspace>) -> Result<(), CallError> {
        if workspace.held_at().elapsed() < LEASE_TRUSTED && !workspace.is_lost() {
            return Ok(());
        }
        self.still_held(workspace).await
    }

    /// Whether the lease is held now.
    pub(super) async fn still_held(&self, workspace: &Arc<Workspace>) -> Result<(), CallError> {
        if self.engine.sessions.still_held(workspace).await {
            Ok(())
        } else if self.has_asked() {
            Err(CallError::Fenced)
        } else {
            Err(CallError::TakenOver)
        }
    }

    /// The permit to start a child, if one must be started. While the call waits for it, another one uses
    /// its permit among the running calls.
    async fn room(
        &self,
        workspace: &Arc<Workspace>,
        permits: &mut CallPermits,
    ) -> Result<Option<Start>, CallError> {
        let (sessions, spec) = (&self.engine.sessions, &self.call.spec);
        match sessions.room(workspace, spec, &self.tenant) {
            Room::Unneeded => Ok(None),
            Room::Free(start) => Ok(Some(start)),
            Room::Wanting => {
                permits.permit = None;
                let making = sessions.make_room(workspace, spec, &self.tenant);
                let start = self.queue(making).await.map_err(|error| match error {
                    CallError::Busy(_) => sessions.full(spec, &self.tenant).into(),
                    other => other,
                })?;
                permits.permit = Some(self.queue(self.admitted()).await?);
                Ok(start)
            }
        }
    }

    #[tracing::instrument(level = "debug", skip_all)]
    pub(super) async fn find_child(
        &self,
        workspace: &Arc<Workspace>,
        room: Option<Start>,
    ) -> Result<SessionGuard, CallError> {
        let (spec, sessions) = (&self.call.spec, &self.engine.sessions);
        let user = UserValues::from_caller(&self.call.caller);
        let until = (self.queue_until, self.deadline);
        let whose = (&user, &self.tenant);
        let what = (self.call.address.class, self.call.profile.clone());
        let finding = sessions.child(workspace, spec, what, whose, room, until);
        self.before(async { Ok(finding.await?) }).await
    }

    /// Ends or checks a child whose call has failed.
    fn settle(
        &self,
        workspace: Arc<Workspace>,
        session: SessionGuard,
        error: &CallError,
        mut permits: CallPermits,
    ) {
        let over = match error {
            CallError::Timeout(_) | CallError::ShuttingDown | CallError::OverQuota(_) => {
                Some(End::Terminate(self.engine.children.kill_grace()))
            }
            CallError::Child(ChildError::Died { .. } | ChildError::TooLong { .. }) => {
                Some(End::Kill)
            }
            // The child works, and got the cancellation.
            CallError::Left | CallError::Unanswered(_) | CallError::Busy(_) => None,
            // The child answered, or never got the request.
            _ => return,
        };
        let (engine, spec) = (self.engine.clone(), self.call.spec.clone());
        let filled = matches!(error, CallError::OverQuota(_));
        let settling = async move {
            let sessions = &engine.sessions;
            if let Some(how) = over {
                sessions.end_now(&workspace, &session, how).await;
                if filled {
                    // The files written by this call must not count as the next call's.
                    engine.scan_again(&workspace).await;
                }
            } else {
                // During another call the child might be too busy for a ping.
                permits.take_turn(&spec).await;
                if !session.child.answers_ping(PING_PATIENCE).await {
                    let how = End::Terminate(engine.children.kill_grace());
                    sessions.end_now(&workspace, &session, how).await;
                }
            }
            let key = workspace.key;
            drop((session, workspace, permits));
            sessions.call_ended(key);
        };
        self.engine.spawn_settling(settling);
    }
}

// A call by a new child in a new folder; both are removed before the answer is returned.

impl Running {
    async fn stateless(&self) -> Result<Answer, CallError> {
        let incoming = std::mem::take(&mut *self.call.incoming.lock());
        // Before the permit, because Open WebUI may be slow.
        let named = self.fetch_named().await?;
        let permit = self.queue(self.admitted()).await?;
        let empty = incoming.is_empty() && named.is_empty();
        let (held, mut child) = self.new_folder(empty).await?;
        self.record_in(held.lease.clone());
        let mut permits = CallPermits::permit(permit);
        let files = (incoming, named);
        let answer = self
            .in_new_folder(&held, &mut child, files, &mut permits)
            .await;
        let how = match &answer {
            Err(CallError::Timeout(_)) => End::Terminate(self.engine.children.kill_grace()),
            _ => End::Kill,
        };
        let (engine, lease) = (self.engine.clone(), held.lease);
        // A slow child gets the time between SIGTERM and SIGKILL; its caller does not wait for it.
        self.engine.spawn_settling(async move {
            if let Some(child) = child {
                child.end(how).await;
            }
            drop(permits);
            let release = move || engine.store.release(&lease);
            if let Ok(Err(error)) = tokio::task::spawn_blocking(release).await {
                tracing::warn!(%error, "lease not released");
            }
        });
        answer
    }

    /// A folder for this call alone; if it needs no files, perhaps with a warm child.
    async fn new_folder(&self, empty: bool) -> Result<(Held, Option<Child>), CallError> {
        self.engine.check_free_disk()?;
        let store = self.engine.store.clone();
        let servers = vec![self.call.spec.name.clone()];
        let new = NewChat::new(&self.call.caller.principal, servers);
        let spare = if empty {
            let pool = &self.engine.sessions.pool;
            let taking = pool.take(&self.call.spec, &self.call.profile);
            self.before(taking.map(Ok)).await?
        } else {
            None
        };
        let make = move || {
            if let Some(Ok(parts)) = spare.map(|spare| spare.claim(&new)) {
                return Ok((parts.held, Some(parts.child)));
            }
            Ok((store.create(&new)?, None))
        };
        let made: Result<_, StoreError> = blocking(make).await;
        Ok(made.map_err(SessionError::from)?)
    }

    /// `child` is the warm child, if any, and afterwards the child that must be ended.
    async fn in_new_folder(
        &self,
        held: &Held,
        child: &mut Option<Child>,
        (incoming, named): (Vec<Incoming>, ChatAttachments),
        permits: &mut CallPermits,
    ) -> Result<Answer, CallError> {
        let (job, mut seen) = (&held.job, TrackedFiles::default());
        let owner = &self.call.caller.principal;
        let put = self
            .engine
            .put(owner, (job, &held.lease), &mut seen, incoming);
        put.await?;
        let brought = self.put_named(held, &mut seen, named).await;
        let mut repeated = false;
        let (reply, paths) = loop {
            let running = match child {
                Some(child) => child,
                None => child.insert(self.new_child(job).await?),
            };
            let reply = self.ask(running, job, permits).await;
            if repeated || !is_unread(&reply) {
                break (reply?, running.parts.paths.clone());
            }
            repeated = true;
            end_now(child).await;
        };
        // The folder is scanned after the child's end, so that the child cannot change it any more.
        end_now(child).await;
        let folder = Folder {
            job: job.clone(),
            lease: held.lease.clone(),
            paths,
            files: Arc::new(tokio::sync::Mutex::new(seen)),
        };
        let mut answer = self.answer(reply, Some(folder), permits).await?;
        answer.notices.extend(brought);
        Ok(answer)
    }

    async fn new_child(&self, job: &Job) -> Result<Child, CallError> {
        let (spec, profile) = (&self.call.spec, self.call.profile.clone());
        let ready = self.engine.children.ready(ChildRequest {
            user: UserValues::from_caller(&self.call.caller),
            tenant: self.tenant.clone(),
            ..ChildRequest::of_bridge(spec, job, profile, self.deadline)
        });
        self.before(ready.map(|child| child.map_err(CallError::Child)))
            .await
    }
}

async fn end_now(child: &mut Option<Child>) {
    if let Some(child) = child.take() {
        child.end(End::Kill).await;
    }
}

// A call by the child that all callers share: without its own folder, and without files.

impl Running {
    async fn shared(&self) -> Result<Answer, CallError> {
        let (shared, mut repeated) = (&self.engine.shared, false);
        let (found, reply) = loop {
            let found = self.find_shared().await?;
            let permits = CallPermits::on_shared_child(&found, &self.tenant);
            let mut permits = self.queue(permits).await?;
            let reply = self.ask(&found.child, &found.job, &mut permits).await;
            if repeated || !is_unread(&reply) {
                break (found, reply);
            }
            // Other calls in the old session may still be answered, or rejected like this one.
            repeated = true;
            shared.forget(&found);
        };
        if let Err(
            CallError::Timeout(_)
            | CallError::Unanswered(_)
            | CallError::Left
            | CallError::ShuttingDown,
        ) = &reply
        {
            // Only this call is cancelled; the child is ended if it does not answer a ping.
            let shared = shared.clone();
            self.engine.spawn_settling(async move {
                shared.check(&found, PING_PATIENCE).await;
            });
        }
        self.answer(reply?, None, &CallPermits::default()).await
    }

    pub(super) async fn find_shared(&self) -> Result<Arc<SharedChild>, CallError> {
        let shared = &self.engine.shared;
        let how = (&self.call.profile, &self.tenant);
        let finding = shared.child(&self.call.spec, how, self.deadline);
        self.before(async { Ok(finding.await?) }).await
    }
}

// The permits of a call while its child works: its turn in the folder, and its permit among the running
// calls. Other calls use both while a request for input is pending.

/// A call of a `shared` server has only a permit on the shared child; one of a `stateless` server has no
/// turn.
#[derive(Default)]
struct CallPermits {
    /// The permit among the running calls, or on the shared child.
    permit: Option<Permit>,
    held: Option<HeldTurn>,
    shared: Option<Arc<SharedChild>>,
}

/// A call's turn in its workspace.
struct HeldTurn {
    workspace: Arc<Workspace>,
    turn: Option<Turn>,
    /// The files that the call had changed when it released its turn: they still count as its own.
    changed: Vec<Place>,
}

impl CallPermits {
    /// A permit among the running calls.
    fn permit(permit: Permit) -> Self {
        Self {
            permit: Some(permit),
            ..Self::default()
        }
    }

    /// A permit among the running calls, and a turn.
    fn in_turn(permit: Permit, workspace: &Arc<Workspace>, turn: Turn) -> Self {
        let held = HeldTurn {
            workspace: workspace.clone(),
            turn: Some(turn),
            changed: Vec::new(),
        };
        Self {
            held: Some(held),
            ..Self::permit(permit)
        }
    }

    /// A permit on this shared child.
    async fn on_shared_child(child: &Arc<SharedChild>, tenant: &Tenant) -> Self {
        Self {
            permit: Some(child.permit(tenant).await),
            shared: Some(child.clone()),
            held: None,
        }
    }

    /// Releases all permits. The files that the call has changed until now still count as its own.
    async fn release(&mut self, running: &Running) {
        self.permit = None;
        let Some(held) = &mut self.held else { return };
        let Some(turn) = held.turn.take() else { return };
        if running.call.ask.is_tool_call() {
            let mut files = held.workspace.files.clone().lock_owned().await;
            let job = held.workspace.job.clone();
            let limits = snapshot_limits(&running.engine.settings);
            let look = move || {
                files.look(&job, &limits).ok()?;
                let changed = files.changed(&[]);
                files.accept();
                Some(changed)
            };
            // If the folder cannot be scanned now, the scan after the call reports it.
            if let Ok(Some((files, aside))) = tokio::task::spawn_blocking(look).await {
                held.changed.extend(files.into_iter().chain(aside));
            }
        }
        drop(turn);
    }

    /// Waits for all permits, the turn first; the lease must still be held then.
    async fn take_back(&mut self, running: &Running) -> Result<(), CallError> {
        self.take_turn(&running.call.spec).await;
        if self.permit.is_none() {
            self.permit = Some(match &self.shared {
                Some(child) => child.permit(&running.tenant).await,
                None => running.admitted().await,
            });
        }
        match &self.held {
            Some(held) => running.still_held(&held.workspace).await,
            None => Ok(()),
        }
    }

    /// Waits for the turn, if the call needs one and has none.
    async fn take_turn(&mut self, spec: &ServerSpec) {
        if let Some(held) = self.held.as_mut().filter(|held| held.turn.is_none()) {
            held.turn = Some(held.workspace.turn(spec).await);
        }
    }

    /// The size of the folder before the call, if it is known.
    fn used(&self) -> Option<u64> {
        let Some(held) = &self.held else {
            // A `stateless` call has its own folder.
            return self.shared.is_none().then_some(0);
        };
        let files = held.workspace.files.try_lock().ok()?;
        let seen = files.now();
        let known = !seen.over && seen.over_aside.is_none();
        known.then_some(seen.usage.bytes)
    }

    /// The folder before the call, given its files at the last look.
    fn before(&self, files: &TrackedFiles) -> Before {
        let seen = files.now();
        let held = self.held.iter();
        Before {
            over: seen.over,
            over_aside: seen.over_aside.is_some(),
            bytes: seen.usage.bytes,
            changed: held.flat_map(|held| held.changed.clone()).collect(),
        }
    }
}

// The status line under the message in the chat: the call's wait for its turn, and the progress
// notifications of its server. This requires the user's own token in the call.

/// The first line is shown after this time, and later ones at this interval.
const EVERY: Duration = Duration::from_secs(1);

/// Maximum wait of the answer until the line is hidden.
const LAST: Duration = Duration::from_secs(3);

/// Maximum length, in characters, of a server's message.
const LONGEST: usize = 200;

/// The text of the line of one call. Without a chat that shows it, it does nothing.
#[derive(Clone, Default)]
pub struct Status(Option<Arc<watch::Sender<Option<String>>>>);

/// The tasks of one line, which end when this is dropped.
struct StatusLine {
    writer: AbortOnDropHandle<()>,
    reader: Option<AbortOnDropHandle<()>>,
}

impl Status {
    /// Sets the text; `None` if there is nothing to show.
    pub fn set(&self, line: Option<String>) {
        if let Some(status) = &self.0 {
            status.send_if_modified(|now| {
                let differs = *now != line;
                *now = line;
                differs
            });
        }
    }

    /// The call waits for its turn behind this number of other calls.
    pub fn waits(&self, lang: Lang, others: impl FnOnce() -> usize) {
        if self.0.is_none() {
            return;
        }
        self.set(Some(match (lang, others()) {
            (Lang::En, 0) => "Waiting in the queue".to_owned(),
            (Lang::En, others) => format!("Waiting in the queue ({others} calls ahead)"),
            (Lang::Ja, 0) => "順番を待っています".to_owned(),
            (Lang::Ja, others) => format!("順番を待っています（前に {others} 件）"),
        }));
    }
}

impl StatusLine {
    /// Begins to show the status of a call, if a chat can show it.
    fn begin(engine: &CallEngine, call: &mut Call) -> Option<(Status, Self)> {
        let (chat, message) = (engine.chat_of(call)?, call.caller.message.clone()?);
        let (status, lines) = watch::channel(None);
        let status = Status(Some(Arc::new(status)));
        let writer = AbortOnDropHandle::new(tokio::spawn(show_lines(lines, chat, message)));
        let reader = follow(call, &status);
        Some((status, Self { writer, reader }))
    }

    /// Hides the line.
    async fn end(self) {
        drop(self.reader);
        let _ = timeout(LAST, self.writer).await;
    }
}

/// Ends when all senders of lines are dropped.
async fn show_lines(mut lines: watch::Receiver<Option<String>>, chat: Chat, message: Box<str>) {
    let show = async |event: Event| {
        if let Err(failure) = chat.tell(&message, &event).await {
            tracing::debug!(%failure, "status not shown in the chat");
        }
    };
    let (mut next, mut shown) = (Instant::now() + EVERY, None);
    // Its wait ends when all senders are dropped.
    let mut senders = lines.clone();
    while lines.changed().await.is_ok() {
        tokio::select! {
            () = sleep_until(next) => {}
            _ = senders.wait_for(|_| false) => break,
        }
        let line = lines.borrow_and_update().clone();
        if let Some(line) = line.filter(|line| shown.as_ref() != Some(line)) {
            show(Event::Status(line.clone(), false)).await;
            shown = Some(line);
            next = Instant::now() + EVERY;
        }
    }
    if let Some(line) = shown {
        show(Event::Status(line, true)).await;
    }
}

/// Shows the progress notifications of the child in the line. If the caller does not receive the child's
/// messages, a task does; the child's requests are declined by their drop, since a chat cannot be asked.
fn follow(call: &mut Call, status: &Status) -> Option<AbortOnDropHandle<()>> {
    let mut reader = None;
    if call.sink.is_none() {
        let (sender, mut messages) = mpsc::channel(BACKLOG);
        call.sink = Some(MessageSink {
            // A number that no other caller uses.
            owner: getrandom::u64().ok()? >> 1 | 1 << 62,
            messages: sender,
            cancellation: Cancellation::default(),
            witness: None,
        });
        let reading = async move { while messages.recv().await.is_some() {} };
        reader = Some(AbortOnDropHandle::new(tokio::spawn(reading)));
    }
    if let Some(sink) = &mut call.sink {
        // Weak, so that a child that is being settled does not keep the line.
        let status = status.0.as_ref().map(Arc::downgrade);
        sink.witness = Some(Arc::new(move |said| {
            let status = status.as_ref().and_then(Weak::upgrade);
            if let (Some(status), Some(line)) = (status, line_of(said)) {
                Status(Some(status)).set(Some(line));
            }
        }));
    }
    reader
}

/// The message and the progress of a progress notification.
fn line_of(said: &Said) -> Option<String> {
    if &*said.method != method::PROGRESS {
        return None;
    }
    let params = said.params.as_ref()?;
    let number = |name: &str| params.member(name)?.read::<f64>().ok();
    let far = match (number("progress"), number("total")) {
        (Some(done), Some(total)) if total > 0.0 => format!("{done}/{total}"),
        (Some(done), _) => done.to_string(),
        (None, _) => String::new(),
    };
    let words = params.member("message").and_then(|words| words.read().ok());
    let words: String = words.unwrap_or_default();
    let words = words.chars().filter(|c| !c.is_control());
    let words: String = words.take(LONGEST).collect();
    Some(match words.trim() {
        "" if far.is_empty() => return None,
        "" => far,
        words if far.is_empty() => words.to_owned(),
        words => format!("{words} ({far})"),
    })
}
