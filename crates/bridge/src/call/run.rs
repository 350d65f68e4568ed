//! The call from its first wait to its record: it ends when the child is settled, whether its caller
//! waits or not.

use std::{
    future::Future,
    pin::pin,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bridge_model::{Job, JobFolderPaths, Tenant};
use bridge_process::{BACKLOG, Cancellation, Child, ChildError, End, MessageSink, UserValues};
use bridge_protocol::{
    RawJson,
    jsonrpc::{Reply, Said},
    method,
};
use bridge_state::{Held, Lease, NewChat, PrincipalHash, StoreError};
use futures_util::FutureExt as _;
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::Instrument as _;

use super::{
    Answer, Call, CallEngine, CallError, Detached, Incoming, Published, Running,
    ask::CallState,
    attachments::ChatAttachments,
    blocking,
    error::Waited,
    files,
    files::{Look, Looked, Maker, not_in_time},
    permits::CallPermits,
    record,
};
use crate::{
    artifacts::Snapshot,
    child::ChildRequest,
    config::{Lang, Mode},
    openwebui::{Event, OpenWebUi},
    session::{
        Found, Lent, OpenWorkspace, Room, SessionError, SharedChild, Spare, Start, Workspace,
        WorkspaceAddress,
    },
};

/// How long a child that was told of a cancelled call may take to answer a ping.
const PING_PATIENCE: Duration = Duration::from_secs(5);

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
            tenant: Tenant::from_caller(&call.caller),
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
        self.call.pending_input.end();
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

    /// A permit among the running calls.
    pub(super) fn admitted(&self) -> impl Future<Output = crate::admission::Permit> + use<> {
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
            "no running call finished within {seconds} s, and other calls are ahead in the queue \
             (MCPO_QUEUE_TIMEOUT)"
        ))
    }

    fn sent_away(most: usize) -> CallError {
        CallError::Busy(format!(
            "the queue is full ({most} calls, MCPO_MAX_WAITING), and no other caller has more \
             calls in it than this one"
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
        permits: &mut CallPermits,
    ) -> Result<Reply, CallError> {
        if let Some(on_child) = &self.call.on_child {
            on_child(child);
        }
        let quiet = child.noise_lines();
        self.asked.store(true, Ordering::Relaxed);
        let cancelled = CancellationToken::new();
        let mut answer = pin!(self.exchange(child, job, &cancelled));
        let watched = permits.used().filter(|_| self.is_watched());
        let mut watch = watched.map(|before| Box::pin(self.overfull(job, before)));
        let mut deadline = self.deadline;
        let mut state = self.call.pending_input.watch();
        let error = loop {
            let now = state.now();
            let began = Instant::now();
            let until = match now {
                CallState::InputPending => {
                    permits.give_away(self).await;
                    began + self.engine.settings.limits.input_timeout
                }
                // Others may have the turn, as long as a call of theirs may take.
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
                    // Meanwhile others may fill the folder.
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
                () = tokio::time::sleep_until(until) => match now {
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

// A call in a chat: in its workspace, in order, by the chat's own child.

/// A lease that was seen to be ours is not looked at again so soon: nobody is taken for dead within
/// so short a time. By a clock that counts what the machine was suspended.
const LEASE_TRUSTED: Duration = Duration::from_millis(500);

impl Running {
    pub(super) async fn stateful(&self) -> (Result<Answer, CallError>, Option<Lease>) {
        let workspace = match self.open().await {
            Ok(workspace) => workspace,
            Err(error) => return (Err(error), None),
        };
        let lease = workspace.lease.clone();
        let mut answer = self.in_workspace(&self.call.address, &workspace).await;
        let held = self.check_lease(&workspace).await;
        let key = workspace.key;
        drop(workspace);
        self.engine.sessions.call_ended(key);
        if let Err(lost) = held {
            // The folder is another's: neither the answer counts nor what is recorded of it.
            answer = Err(lost);
            return (answer, None);
        }
        (answer, Some(lease))
    }

    pub(super) async fn open(&self) -> Result<Arc<Workspace>, CallError> {
        let (caller, address) = (&self.call.caller, &self.call.address);
        let sessions = &self.engine.sessions;
        let opening = async {
            let opened = self.call.opened.lock().take();
            match opened.and_then(OpenWorkspace::take) {
                Some(workspace) => Ok(workspace),
                None => Ok(sessions.open(address, &caller.principal).await?),
            }
        };
        self.before(opening).await
    }

    async fn in_workspace(
        &self,
        address: &WorkspaceAddress,
        workspace: &Arc<Workspace>,
    ) -> Result<Answer, CallError> {
        let engine = &self.engine;
        let spec = &self.call.spec;
        let turn = self.queue(workspace.turn(spec)).await?;
        let brought = self.bring_all(workspace).await?;
        let permit = self.queue(self.admitted()).await?;
        let mut permits = CallPermits::in_turn(permit, workspace, turn);
        self.check_lease(workspace).await?;
        engine.check_free_disk_for(spec)?;
        let room = self.room(workspace, &mut permits).await?;
        let mut found = self.find(address, workspace, room).await?;
        self.check_lease(workspace).await?;
        let job = &workspace.job;
        let mut reply = self.ask(&found.session.child, job, &mut permits).await;
        if matches!(&reply, Err(error) if error.is_unheard()) {
            // Nothing was done yet: the same in a new session, whose news are told as ever.
            let (sessions, how) = (&engine.sessions, End::Kill);
            sessions.end_now(workspace, &found.session, how).await;
            let room = self.room(workspace, &mut permits).await?;
            found = self.find(address, workspace, room).await?;
            reply = self.ask(&found.session.child, job, &mut permits).await;
        }
        let reply = match reply {
            Ok(reply) => reply,
            Err(error) => {
                // The chat's turn is held until its child is settled; the caller need not wait.
                self.settle(workspace.clone(), found.session, &error, permits);
                return Err(error);
            }
        };
        // A child that answers without waiting for its caller does so in another call's turn.
        let late = permits.take_turn(spec);
        let _ = tokio::time::timeout(spec.timeout, late).await;
        self.check_lease(workspace).await?;
        let paths = found.session.child.paths().clone();
        let folder = Folder {
            job: job.clone(),
            lease: workspace.lease.clone(),
            paths,
            files: workspace.files.clone(),
        };
        let before = |seen: &Snapshot| permits.before(seen);
        let mut answer = self.answer(reply, folder, before).await?;
        answer.notices.extend(brought);
        if found.replaced && self.call.ask.is_tool_call() {
            // A look that hangs keeps it; then the next answer says so.
            if let Ok(seen) = workspace.files.try_lock() {
                answer.notices.insert(0, files::inventory(&seen));
                workspace.loss_told(&spec.name);
            }
        }
        Ok(answer)
    }

    /// After a wait in which the bridge itself may have been stopped: whether the folder is still
    /// ours.
    pub(super) async fn check_lease(&self, workspace: &Arc<Workspace>) -> Result<(), CallError> {
        if workspace.held_at().elapsed() < LEASE_TRUSTED && !workspace.is_lost() {
            return Ok(());
        }
        self.still_ours(workspace).await
    }

    /// Whether the folder is still ours, now.
    pub(super) async fn still_ours(&self, workspace: &Arc<Workspace>) -> Result<(), CallError> {
        let held = self.engine.sessions.still_held(workspace).await;
        if held {
            Ok(())
        } else if self.has_asked() {
            Err(CallError::Fenced)
        } else {
            Err(CallError::TakenOver)
        }
    }

    /// The right to start a child, where the call has to. While it waits for that, the call's permit
    /// among the running ones is others'.
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
                permits.step_aside();
                let making = sessions.make_room(workspace, spec, &self.tenant);
                let start = self.queue(making).await.map_err(|error| match error {
                    CallError::Busy(_) => sessions.full(spec, &self.tenant).into(),
                    other => other,
                })?;
                permits.step_in(self.queue(self.admitted()).await?);
                Ok(start)
            }
        }
    }

    pub(super) async fn find(
        &self,
        address: &WorkspaceAddress,
        workspace: &Arc<Workspace>,
        room: Option<Start>,
    ) -> Result<Found, CallError> {
        let (spec, profile) = (&self.call.spec, self.call.profile.clone());
        let sessions = &self.engine.sessions;
        let user = UserValues::from_caller(&self.call.caller);
        let until = (self.queue_until, self.deadline);
        let whose = (&user, &self.tenant);
        let what = (address.class, profile);
        let finding = sessions.child(workspace, spec, what, whose, room, until);
        self.before(async { Ok(finding.await?) }).await
    }

    /// Ends or checks a child whose call was given up.
    fn settle(
        &self,
        workspace: Arc<Workspace>,
        session: Lent,
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
            // The child is well; it heard that nobody waits any more.
            CallError::Left | CallError::Unanswered(_) | CallError::Busy(_) => None,
            // The child answered, or never got the call.
            _ => return,
        };
        let (engine, spec) = (self.engine.clone(), self.call.spec.clone());
        let filled = matches!(error, CallError::OverQuota(_));
        self.engine.running.spawn(async move {
            let sessions = &engine.sessions;
            if let Some(how) = over {
                sessions.end_now(&workspace, &session, how).await;
                if filled {
                    // What this call wrote is not the next one's.
                    engine.look_anew(&workspace).await;
                }
            } else {
                // Beside another call it might be too busy for a ping.
                permits.take_turn(&spec).await;
                if !session.child.answers_ping(PING_PATIENCE).await {
                    let how = End::Terminate(engine.children.kill_grace());
                    sessions.end_now(&workspace, &session, how).await;
                }
            }
            let key = workspace.key;
            drop((session, workspace, permits));
            sessions.call_ended(key);
        });
    }
}

// A call by a fresh child in a fresh folder; nothing of the child is left after the answer.

/// What must lie in the folder before the child starts.
struct GivenFiles {
    incoming: Vec<Incoming>,
    named: ChatAttachments,
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
        let mut permits = CallPermits::permit(permit);
        let (answer, child) = self.in_new_folder(&held, child, files, &mut permits).await;
        let (engine, lease) = (self.engine.clone(), held.lease.clone());
        let over = async move {
            if let Some((child, how)) = child {
                child.end(how).await;
            }
            drop(permits);
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
        permits: &mut CallPermits,
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
        let mut reply = self.ask(&child, job, permits).await;
        if matches!(&reply, Err(error) if error.is_unheard()) {
            // It was ready ahead, and its session is lost. Nothing was done yet.
            child.end(End::Kill).await;
            child = match self.fresh_child(job).await {
                Ok(child) => child,
                Err(error) => return (Err(error), None),
            };
            reply = self.ask(&child, job, permits).await;
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
            user: UserValues::from_caller(&self.call.caller),
            tenant: self.tenant.clone(),
            deadline: self.deadline,
            listener: Arc::new(|_| {}),
        });
        self.before(async { ready.await.map_err(CallError::Child) })
            .await
    }
}

// A call by the one child that everybody shares: no folder of its own, no files.

impl Running {
    pub(super) async fn shared(&self) -> (Result<Answer, CallError>, Option<Lease>) {
        (self.by_shared_child().await, None)
    }

    async fn by_shared_child(&self) -> Result<Answer, CallError> {
        let shared = &self.engine.shared;
        let mut found = self.find_shared().await?;
        let mut permits = self
            .queue(CallPermits::on_shared_child(&found, &self.tenant))
            .await?;
        let mut reply = self.ask(&found.child, &found.job, &mut permits).await;
        if matches!(&reply, Err(error) if error.is_unheard()) {
            // Nothing was done yet: the same in a new session. Calls of others may still be answered
            // in the old one, or be refused there as this one was.
            shared.forget(&found);
            found = self.find_shared().await?;
            permits = self
                .queue(CallPermits::on_shared_child(&found, &self.tenant))
                .await?;
            reply = self.ask(&found.child, &found.job, &mut permits).await;
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

// What a call is doing, as a line under the message in the chat: its wait for a turn, and what its
// server says of its progress. Only where the user's own token came with the call.

/// Short calls show nothing, and a chatty server no more than a line a second.
const EVERY: Duration = Duration::from_secs(1);

/// The last word, which takes the line away: the answer waits for it.
const LAST: Duration = Duration::from_secs(3);

/// Letters of a server's own words.
const LONGEST: usize = 200;

/// The line of one call. Cheap to clone; says nothing where nobody would see it.
#[derive(Clone, Default)]
pub struct Status(Option<Arc<watch::Sender<Option<String>>>>);

/// What shows the line, until the call ends.
pub struct Shown {
    status: Status,
    shower: Option<JoinHandle<()>>,
    follower: Option<JoinHandle<()>>,
}

impl Status {
    /// Sets the line; `None` where there is nothing to say.
    pub fn set(&self, line: Option<String>) {
        if let Some(status) = &self.0 {
            status.send_if_modified(|now| {
                let differs = *now != line;
                *now = line;
                differs
            });
        }
    }

    /// The call waits for its turn, as others do.
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

impl Shown {
    /// Begins to show what `call` is doing, if there is a chat that shows it.
    pub fn begin(engine: &CallEngine, call: &mut Call) -> Self {
        let nobody = Self {
            status: Status::default(),
            shower: None,
            follower: None,
        };
        let caller = &call.caller;
        let (Some(openwebui), Some(token)) = (engine.openwebui.clone(), caller.token.clone())
        else {
            return nobody;
        };
        let (Some(chat), Some(message)) = (caller.chat.clone(), caller.message.clone()) else {
            return nobody;
        };
        if !OpenWebUi::keeps(&chat) || !call.ask.is_tool_call() {
            return nobody;
        }
        let (status, lines) = watch::channel(None);
        let status = Status(Some(Arc::new(status)));
        let show = async move |event: Event| {
            let told = openwebui.tell(&token, &chat, &message, &event).await;
            if let Err(failure) = told {
                tracing::debug!(%failure, "status not shown in the chat");
            }
        };
        let shower = tokio::spawn(show_lines(lines, show));
        let follower = follow(call, &status);
        Self {
            status,
            shower: Some(shower),
            follower,
        }
    }

    /// The line itself.
    pub fn status(&self) -> Status {
        self.status.clone()
    }

    /// Takes the line away.
    pub async fn end(mut self) {
        if let Some(follower) = self.follower.take() {
            follower.abort();
        }
        self.status = Status::default();
        if let Some(mut shower) = self.shower.take()
            && timeout(LAST, &mut shower).await.is_err()
        {
            shower.abort();
        }
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        for task in [self.follower.take(), self.shower.take()]
            .into_iter()
            .flatten()
        {
            task.abort();
        }
    }
}

/// Ends when every sender of lines is gone.
async fn show_lines(mut lines: watch::Receiver<Option<String>>, show: impl AsyncFn(Event)) {
    let (mut next, mut shown) = (Instant::now() + EVERY, None);
    while lines.changed().await.is_ok() {
        tokio::select! {
            () = sleep_until(next) => {}
            () = closed(&mut lines) => break,
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

async fn closed(lines: &mut watch::Receiver<Option<String>>) {
    let mut other = lines.clone();
    while other.changed().await.is_ok() {}
}

/// Has the line say what the child says of its progress. Where nobody else hears the child, it is
/// heard here; its questions are declined by their drop, since a chat cannot be asked.
fn follow(call: &mut Call, status: &Status) -> Option<JoinHandle<()>> {
    let mut recipient = None;
    if call.sink.is_none() {
        let mut owner = [0; 8];
        getrandom::fill(&mut owner).ok()?;
        let (sender, mut messages) = mpsc::channel(BACKLOG);
        call.sink = Some(MessageSink {
            // Any number that no other caller has.
            owner: u64::from_le_bytes(owner) >> 1 | 1 << 62,
            messages: sender,
            cancellation: Cancellation::default(),
            witness: None,
        });
        recipient = Some(tokio::spawn(async move {
            while messages.recv().await.is_some() {}
        }));
    }
    if let Some(sink) = &mut call.sink {
        // A child that is still being settled keeps no line up.
        let status = status.0.as_ref().map(Arc::downgrade);
        sink.witness = Some(Arc::new(move |said| {
            let status = status.as_ref().and_then(Weak::upgrade);
            if let (Some(status), Some(line)) = (status, line_of(said)) {
                Status(Some(status)).set(Some(line));
            }
        }));
    }
    recipient
}

/// The server's words, and how far it is.
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
    let words: String = words
        .chars()
        .filter(|c| !c.is_control())
        .take(LONGEST)
        .collect();
    Some(match words.trim() {
        "" if far.is_empty() => return None,
        "" => far,
        words if far.is_empty() => words.to_owned(),
        words => format!("{words} ({far})"),
    })
}
