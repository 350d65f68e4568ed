//! A running child, for the code that uses it: its connection, and its process tree or its session with a
//! remote server.
//!
//! A process tree is below a supervisor. One task owns the bridge's side of it, and all others send messages
//! to that task.
//!
//! ```text
//! Running ──end()──▶ Ending ──"exit …"──▶ Gone
//!    └──────────── "exit …", or the socket closes ─┘
//! Ending ──no report in time──▶ the supervisor is killed ──▶ Gone
//! ```

use std::{collections::HashSet, io, os::fd::OwnedFd, process::Command, sync::Arc, time::Duration};

use bridge_model::{BootTime, JobFolderPaths};
use bridge_protocol::{
    RawJson,
    era::Era,
    jsonrpc::{Reply, Said},
    method,
};
use bytes::Bytes;
use futures_util::FutureExt as _;
use parking_lot::Mutex;
use reqwest::header::HeaderMap;
use rustix::process::{
    Pid, PidfdFlags, Resource, Rlimit, Signal, WaitOptions, getrlimit, pidfd_open,
    pidfd_send_signal, waitpid,
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf, pipe::Receiver},
    },
    sync::{Notify, broadcast, mpsc, watch},
    time::{Instant, sleep_until, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;

use super::{
    ChildError, Hello, MessageSink, Outcome, WeakNotifier,
    connection::{Closed, Connection, Listener},
    control::{End, ExitStatus, Order, Report},
    hello,
    hello::{HelloParts, Refused},
    log::ServerLog,
    short_tmp::ShortName,
    subscription::Subscriptions,
    supervisor,
};
use crate::{
    relative::relative_text,
    remote::{Failed, PerRequestHeadersGuard, RemoteHandle},
    spec::Profile,
};

/// How long a failed call waits for the exit status of the child.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// A running, initialised server: a process, whose whole tree is killed when this is dropped, or a
/// session with a remote server, which is closed then.
pub struct Child {
    /// Its process, its connection and its log.
    pub parts: ChildParts,
    /// The response to `initialize` or `server/discover`.
    pub hello: Hello,
    /// For children of 2026-07-28, which send notifications only on request.
    subscriptions: Option<Subscriptions>,
}

/// The parts of a child that exist before it has answered `initialize`. Dropping it ends the child.
pub struct ChildParts {
    /// Unique among all children of this bridge.
    pub number: u64,
    /// The process or session.
    pub body: Body,
    /// The JSON-RPC connection.
    pub connection: Connection,
    /// The log of its stderr.
    pub log: ServerLog,
    /// The spellings of its folder's path.
    pub paths: JobFolderPaths,
    /// Held as long as the child lives.
    pub short_tmp: Option<Arc<ShortName>>,
    /// Maximum size of one message from it, in bytes.
    pub limit: usize,
    /// The receivers of notifications that belong to no request.
    pub news: broadcast::Sender<Said>,
    /// The metric that counts it, dropped with it.
    pub counted: Box<dyn Send + Sync>,
}

impl Child {
    /// The protocol era of the child.
    pub fn era(&self) -> Era {
        self.hello.era
    }

    /// Whether it can still answer calls.
    pub fn is_alive(&self) -> bool {
        self.parts.connection.is_open() && self.parts.body.is_there()
    }

    /// Sends a request of the bridge, in the child's form of the protocol. Dropping the future
    /// cancels the request at the child.
    pub async fn request(
        &self,
        method: &str,
        params: Option<&RawJson>,
    ) -> Result<Outcome, ChildError> {
        let uri = params.and_then(|params| params.member("uri")?.read().ok());
        if let Some(done) = self.instead_of(method, uri).await {
            return done.map(|()| Ok(RawJson::empty_object()));
        }
        let enveloped;
        let params = match self.era() {
            Era::Legacy => params,
            Era::Modern => {
                enveloped = hello::modern_params(params, &Profile::modern());
                Some(&enveloped)
            }
        };
        match self.parts.connection.request(method, params).await {
            Ok(Err(error)) => self.own_words(error).map(Err),
            Ok(outcome) => Ok(outcome),
            Err(closed) => Err(self.parts.closed(closed).await),
        }
    }

    /// Sends the message that `make` builds for this request's number. Dropping the future, or
    /// `cancelled`, cancels the request at the child; after `cancelled` it still waits for a late
    /// response. Other messages that the child sends meanwhile go to `sink`.
    pub async fn exchange(
        &self,
        make: impl FnOnce(u64) -> Bytes,
        cancelled: &CancellationToken,
        sink: Option<MessageSink>,
    ) -> Result<Reply, ChildError> {
        let exchange = self.parts.connection.exchange(make, true, cancelled, sink);
        match exchange.await {
            Ok(reply) => {
                if let Err(error) = &reply.outcome {
                    self.own_words(error.clone())?;
                }
                Ok(reply)
            }
            Err(closed) => Err(self.parts.closed(closed).await),
        }
    }

    /// Sends these headers with the request of this number until the returned guard is dropped.
    /// `None` for a process, which has no headers.
    pub fn with_request_headers(
        &self,
        number: u64,
        headers: HeaderMap,
    ) -> Option<PerRequestHeadersGuard> {
        match &self.parts.body {
            Body::Local(_) => None,
            Body::Remote(remote) => Some(remote.per_request_headers.join(number, headers)),
        }
    }

    /// The error, unless it only means that a remote server did not respond.
    fn own_words(&self, error: RawJson) -> Result<RawJson, ChildError> {
        match self.parts.body.failed(&error) {
            None => Ok(error),
            Some(Failed { why, unread }) => Err(ChildError::Unanswered { why, unread }),
        }
    }

    /// Its future notifications that belong to no request.
    pub fn news(&self) -> broadcast::Receiver<Said> {
        self.parts.news.subscribe()
    }

    /// Emulates a method that children of 2026-07-28 no longer have; `None` for all other methods
    /// and children.
    pub async fn instead_of(
        &self,
        method: &str,
        uri: Option<String>,
    ) -> Option<Result<(), ChildError>> {
        if self.era() == Era::Legacy {
            return None;
        }
        match (method, &self.subscriptions, uri) {
            // Each later request carries the log level.
            (method::PING | method::SET_LEVEL, ..) => Some(Ok(())),
            (method::RESOURCES_SUBSCRIBE, Some(subscriptions), Some(uri)) => {
                Some(subscriptions.to_resource(&uri).await)
            }
            (method::RESOURCES_UNSUBSCRIBE, Some(subscriptions), Some(uri)) => {
                subscriptions.end_resource(&uri);
                Some(Ok(()))
            }
            _ => None,
        }
    }

    /// The number of its lines so far that were not JSON-RPC.
    pub fn noise_lines(&self) -> u64 {
        self.parts.connection.noise(|noise| noise.lines)
    }

    /// The last such line, without the workspace's path.
    pub fn noise(&self) -> Box<str> {
        let last = self.parts.connection.noise(|noise| noise.last.clone());
        relative_text(&last, &self.parts.paths).into()
    }

    /// For sending notifications later.
    pub fn notifier(&self) -> WeakNotifier {
        self.parts.connection.clone()
    }

    /// Whether it responds within `patience`.
    pub async fn answers_ping(&self, patience: Duration) -> bool {
        let (method, params) = match self.era() {
            Era::Legacy => (method::PING, None),
            // Modern servers have no ping, but must always answer this.
            Era::Modern => (
                method::DISCOVER,
                Some(hello::modern_params(None, &Profile::modern())),
            ),
        };
        let ping = self.parts.connection.request(method, params.as_ref());
        match timeout(patience, ping).await {
            Ok(Ok(Err(error))) => self.parts.body.failed(&error).is_none(),
            answer => matches!(answer, Ok(Ok(_))),
        }
    }

    /// Waits until its process tree has ended, without keeping it alive.
    pub fn gone(&self) -> impl Future<Output = ExitStatus> + Send + use<> {
        self.parts.body.gone()
    }

    /// Ends it and waits until its process tree has ended.
    pub async fn end(&self, how: End) -> ExitStatus {
        self.parts.end(how).await
    }
}

impl ChildParts {
    /// Sends `initialize` or `server/discover`. The child is ready once it has answered.
    pub async fn introduce(&self, profile: &Profile) -> Result<Result<Hello, Refused>, Closed> {
        hello::introduce(&self.connection, profile).await
    }

    /// The child with this response. A child of 2026-07-28 sends its notifications to `listener`,
    /// if there is one.
    pub fn into_child(self, hello: Hello, listener: Option<Listener>) -> Child {
        let listener = listener.filter(|_| hello.era == Era::Modern);
        let subscriptions = listener.map(|listener| {
            let (parts, _) = HelloParts::read(&hello.raw);
            Subscriptions::open(self.connection.clone(), &parts, listener)
        });
        Child {
            parts: self,
            hello,
            subscriptions,
        }
    }

    /// Ends it and waits until its process tree has ended.
    pub async fn end(&self, how: End) -> ExitStatus {
        // A child whose stdin is closed starts to exit by itself, which is useless if it is killed.
        if how != End::Kill {
            self.connection.close_stdin();
        }
        let status = self.body.end(how).await;
        self.connection.close_stdin();
        status
    }

    /// The error for a response that will never arrive.
    pub async fn closed(&self, why: Closed) -> ChildError {
        match why {
            Closed::LineTooLong => ChildError::TooLong { limit: self.limit },
            Closed::StreamEnded => {
                // The process exits directly after the end of the stream, unless the child only
                // closed its stdout.
                let gone = timeout(LAST_WORDS, self.body.gone()).await;
                if gone.is_ok() && self.body.pid().is_some() {
                    // Its last output is in the pipe, and no process is left that could write more.
                    let _ = timeout(LAST_WORDS, self.log.heard_out()).await;
                }
                let died = ChildError::Died {
                    status: gone.unwrap_or(ExitStatus::Unknown),
                    said: self.log.last_words(),
                };
                died.without_folder(&self.paths)
            }
        }
    }
}

// A child's process tree, or its session with a remote server.

/// The process or session of a child. Dropping it ends it at once.
pub enum Body {
    /// A process and its descendants.
    Local(Process),
    /// A session with a remote server.
    Remote(RemoteHandle),
}

impl Body {
    /// The process id, if it is a process.
    pub fn pid(&self) -> Option<u32> {
        match self {
            Self::Local(process) => Some(process.pid()),
            Self::Remote(_) => None,
        }
    }

    /// Whether it is still running; for a remote session, also that it was not asked to end.
    pub fn is_there(&self) -> bool {
        match self {
            Self::Local(process) => process.exit_status().is_none(),
            Self::Remote(remote) => !remote.is_over(),
        }
    }

    /// Memory of the process and its descendants: proportional set size, in bytes; 0 for a remote
    /// server. Reads all of `/proc`: blocks.
    pub fn memory(&self) -> u64 {
        self.pid().map_or(0, supervisor::memory)
    }

    /// Whether an error object means that a remote server did not respond, and why.
    pub fn failed(&self, error: &RawJson) -> Option<Failed> {
        match self {
            Self::Local(_) => None,
            Self::Remote(remote) => remote.mark.failed(error),
        }
    }

    /// Waits until it has ended completely, without keeping it alive.
    pub fn gone(&self) -> impl Future<Output = ExitStatus> + Send + use<> {
        match self {
            Self::Local(process) => process.gone().left_future(),
            Self::Remote(remote) => {
                let gone = remote.gone().map(|()| ExitStatus::SessionOver);
                gone.right_future()
            }
        }
    }

    /// Ends it after its stdin was closed, and waits until it has ended completely. It waits for
    /// the last messages of a remote server no longer than for the exit of a process.
    pub async fn end(&self, how: End) -> ExitStatus {
        let remote = match self {
            Self::Local(process) => {
                process.ask_to_end(how);
                return process.gone().await;
            }
            Self::Remote(remote) => remote,
        };
        let (before, after) = how.times();
        if timeout(before, remote.gone()).await.is_err() {
            remote.hang_up();
            let _ = timeout(after, remote.gone()).await;
        }
        ExitStatus::SessionOver
    }
}

// The bridge's side of a supervisor.

/// Time beyond the grace periods after which a supervisor counts as stuck.
const SPARE: Duration = Duration::from_secs(2);

/// A running child process tree. Dropping it kills the tree.
pub struct Process {
    pid: u32,
    orders: mpsc::UnboundedSender<Order>,
    exit: watch::Receiver<Option<ExitStatus>>,
}

/// Asks a nursery to search for processes that a supervisor left behind. Does not keep the nursery
/// alive.
#[derive(Clone)]
pub struct Sweeper(mpsc::WeakUnboundedSender<Order>);

impl Sweeper {
    /// Does nothing if the nursery has ended: then no processes are left.
    pub fn sweep(&self) {
        if let Some(orders) = self.0.upgrade() {
            let _ = orders.send(Order::Sweep);
        }
    }
}

impl Process {
    /// Waits for the supervisor's first report. A supervisor without a report at `until` is killed.
    pub async fn started(
        control: UnixStream,
        keeper: Keeper,
        until: Instant,
    ) -> Result<Self, ChildError> {
        let (read, write) = control.into_split();
        let mut owner = Owner {
            reports: BufReader::new(read).lines(),
            control: write,
            keeper,
        };
        let why = match timeout_at(until, owner.first_report()).await {
            Ok(Some(Report::Started(pid))) => {
                let (orders, inbox) = mpsc::unbounded_channel();
                let (gone, exit) = watch::channel(None);
                tokio::spawn(owner.run(inbox, gone));
                return Ok(Self { pid, orders, exit });
            }
            Ok(other) => {
                owner.reap().await;
                match other {
                    Some(Report::Failed(why)) => why,
                    _ => "its supervisor exited before the start".to_owned(),
                }
            }
            Err(_) => {
                // Even killing it can take long while the kernel waits for a mount.
                tokio::spawn(owner.kill());
                "the program did not start in time".to_owned()
            }
        };
        Err(ChildError::not_started(why))
    }

    /// The process id of the child itself.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The exit status; `None` while it runs.
    pub fn exit_status(&self) -> Option<ExitStatus> {
        *self.exit.borrow()
    }

    /// Asks it to end; the first order counts, later ones can only shorten the grace periods.
    pub fn ask_to_end(&self, how: End) {
        let (wait, grace) = how.times();
        let _ = self.orders.send(Order::End(wait, grace));
    }

    /// A handle that asks its supervisor to search for left processes.
    pub fn sweeper(&self) -> Sweeper {
        Sweeper(self.orders.downgrade())
    }

    /// Waits until the process tree has ended, without keeping it alive.
    pub fn gone(&self) -> impl Future<Output = ExitStatus> + Send + use<> {
        let mut exit = self.exit.clone();
        async move {
            let status = exit.wait_for(Option::is_some).await.map(|status| *status);
            status.ok().flatten().unwrap_or(ExitStatus::Unknown)
        }
    }
}

async fn next_report(reports: &mut Lines<BufReader<OwnedReadHalf>>) -> Option<Report> {
    loop {
        let line = reports.next_line().await.ok().flatten()?;
        if let Some(report) = Report::from_line(&line) {
            return Some(report);
        }
    }
}

struct Owner {
    reports: Lines<BufReader<OwnedReadHalf>>,
    control: OwnedWriteHalf,
    keeper: Keeper,
}

impl Owner {
    /// A supervisor that the bridge did not start first reports its process id.
    async fn first_report(&mut self) -> Option<Report> {
        loop {
            match (next_report(&mut self.reports).await?, &mut self.keeper) {
                // The process certainly exists at this time.
                (Report::By(pid), Keeper::Forked(handle @ None, ..)) => {
                    *handle = Handle::open(pid).ok();
                }
                (Report::By(_), _) => {}
                (other, _) => return Some(other),
            }
        }
    }

    async fn run(
        mut self,
        mut inbox: mpsc::UnboundedReceiver<Order>,
        gone: watch::Sender<Option<ExitStatus>>,
    ) {
        let mut asked_to_end: Option<Instant> = None;
        let mut handles = true;
        let mut leash = self.keeper.supervisors().leash.subscribe();
        let until = *leash.borrow_and_update();
        if until.is_some() {
            self.send(Order::Until(until)).await;
        }
        let status = loop {
            tokio::select! {
                report = next_report(&mut self.reports) => match report {
                    Some(Report::Exited(status)) => break status,
                    Some(_) => {}
                    None => break ExitStatus::Unknown,
                },
                order = inbox.recv(), if handles => {
                    handles = order.is_some();
                    // The last handle was dropped: the child is no longer needed.
                    let order = order.unwrap_or(Order::End(Duration::ZERO, Duration::ZERO));
                    self.send(order).await;
                    if let Order::End(wait, grace) = order {
                        let over = Instant::now() + wait + grace + SPARE;
                        asked_to_end = Some(asked_to_end.map_or(over, |before| before.min(over)));
                    }
                }
                // Sent only on a change: if the bridge's renewals fail, the last time that was
                // sent passes.
                Ok(()) = leash.changed() => {
                    let until = *leash.borrow_and_update();
                    self.send(Order::Until(until)).await;
                }
                () = at(asked_to_end) => break ExitStatus::Unknown,
            }
        };
        match status {
            ExitStatus::Unknown => self.kill().await,
            _ => self.reap().await,
        }
        gone.send_replace(Some(status));
    }

    /// Errors are ignored: the end of the supervisor is detected at the read half of the socket.
    async fn send(&mut self, order: Order) {
        let line = order.to_line() + "\n";
        let _ = self.control.write_all(line.as_bytes()).await;
    }

    /// For a supervisor that does not respond, for example because its child stopped it.
    async fn kill(mut self) {
        self.keeper.kill().await;
    }

    async fn reap(self) {
        let mut keeper = self.keeper;
        drop(self.control);
        keeper.reap().await;
    }
}

/// Waits until that time; forever if there is none.
async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// Maximum wait for the end of a supervisor.
const REAPED: Duration = Duration::from_secs(5);

/// A child's supervisor.
pub enum Keeper {
    /// Started by the bridge, which must reap it.
    Own(tokio::process::Child, Supervisors),
    /// Forked from a fork parent, and a descendant of its nursery.
    Forked(Option<Handle>, Sweeper, Supervisors),
}

/// A process that is not a child of the bridge.
pub struct Handle {
    pid: u32,
    fd: OwnedFd,
    /// A duplicate of the descriptor: it becomes readable once the process has ended.
    end: Receiver,
}

impl Keeper {
    fn supervisors(&self) -> &Supervisors {
        match self {
            Self::Own(_, supervisors) | Self::Forked(_, _, supervisors) => supervisors,
        }
    }

    /// Kills it after its descendants: while it exists, all of them can be found.
    async fn kill(&mut self) {
        let pid = match self {
            Self::Own(supervisor, _) => supervisor.id(),
            Self::Forked(handle, ..) => handle.as_ref().map(|handle| handle.pid),
        };
        if let Some(pid) = pid {
            let _ = tokio::task::spawn_blocking(move || supervisor::kill_below(pid)).await;
        }
        self.send_kill();
        self.reap().await;
        match self {
            Self::Own(_, supervisors) => supervisors.look_for_strays(),
            Self::Forked(_, sweeper, _) => sweeper.sweep(),
        }
    }

    /// A supervisor that has sent its last report ends at once; one that lost its socket is killed.
    async fn reap(&mut self) {
        let pid = match self {
            Self::Own(supervisor, _) => supervisor.id(),
            Self::Forked(..) => None,
        };
        if timeout(REAPED, self.wait()).await.is_err() {
            self.send_kill();
            // If it still does not end, it is blocked in the kernel, and waiting longer is useless.
            let _ = timeout(REAPED, self.wait()).await;
        }
        if let Self::Own(_, supervisors) = self {
            supervisors.forget(pid);
        }
    }

    fn send_kill(&mut self) {
        match self {
            Self::Own(supervisor, _) => drop(supervisor.start_kill()),
            Self::Forked(Some(handle), ..) => handle.kill(),
            Self::Forked(None, ..) => {}
        }
    }

    async fn wait(&mut self) {
        match self {
            Self::Own(supervisor, _) => drop(supervisor.wait().await),
            Self::Forked(Some(handle), ..) => handle.gone().await,
            Self::Forked(None, ..) => {}
        }
    }
}

impl Handle {
    /// `pid` must belong to a process that cannot have been reaped yet.
    pub fn open(pid: u32) -> io::Result<Self> {
        let number = Pid::from_raw(pid.cast_signed()).ok_or(io::ErrorKind::InvalidInput)?;
        let fd = pidfd_open(number, PidfdFlags::empty())?;
        let end = Receiver::from_owned_fd_unchecked(fd.try_clone()?)?;
        Ok(Self { pid, fd, end })
    }

    /// Does nothing if it has already ended.
    pub fn kill(&self) {
        let _ = pidfd_send_signal(&self.fd, Signal::KILL);
    }

    /// Waits until it has ended; its parent reaps it.
    pub async fn gone(&self) {
        let _ = self.end.readable().await;
    }
}

// The bridge is a subreaper too (and may be PID 1 of a container): when a supervisor is killed, its
// descendants are reparented to the bridge, which kills them.

/// The regular interval between two searches for stray processes.
const ROUND: Duration = Duration::from_secs(5);

/// The interval after a kill: the children of the killed processes are then reparented to the
/// bridge.
const NEXT_LOOK: Duration = Duration::from_millis(50);

/// The bridge's intended child processes, and the settings that all of them get.
#[derive(Clone)]
pub struct Supervisors {
    known: Arc<Mutex<HashSet<u32>>>,
    stray: Arc<Notify>,
    ended: Arc<Notify>,
    /// Children that this process had before it became the bridge: they are never killed.
    guests: Arc<Mutex<HashSet<u32>>>,
    /// When supervisors kill their processes, unless a later time is sent before.
    leash: Arc<watch::Sender<Option<BootTime>>>,
    /// The limit on open files for children. It does not depend on the bridge's own raised limit,
    /// because programs that use `select` fail above the usual 1024.
    pub open_files: Rlimit,
}

impl Supervisors {
    /// Without supervisors. Existing children of this process are never killed.
    #[expect(
        clippy::new_without_default,
        reason = "it reads which processes exist, and the limit on open files"
    )]
    pub fn new() -> Self {
        let guests = supervisor::children_and_zombies(std::process::id());
        Self {
            known: Arc::default(),
            stray: Arc::default(),
            ended: Arc::default(),
            guests: Arc::new(Mutex::new(guests.into_iter().collect())),
            leash: Arc::new(watch::Sender::new(None)),
            open_files: getrlimit(Resource::Nofile),
        }
    }

    /// Supervisors kill their processes at that time, unless a later time is sent before; with
    /// `None`, only once the bridge has ended.
    pub fn leash(&self, until: Option<BootTime>) {
        self.leash.send_if_modified(|now| {
            let new = *now != until;
            *now = until;
            new
        });
    }

    /// Whether such a time is set.
    pub fn is_leashed(&self) -> bool {
        self.leash.borrow().is_some()
    }

    /// Spawns under the lock, so that no search takes the new process for a stray (0.2 ms).
    pub fn spawn(&self, command: Command) -> io::Result<tokio::process::Child> {
        let mut known = self.known.lock();
        let child = tokio::process::Command::from(command)
            .kill_on_drop(true)
            .spawn()?;
        known.extend(child.id());
        Ok(child)
    }

    /// Must be called once a supervisor was reaped.
    pub fn forget(&self, pid: Option<u32>) {
        if let Some(pid) = pid {
            self.known.lock().remove(&pid);
        }
        self.ended.notify_waiters();
    }

    /// Called when a supervisor ended without its last report: starts a search for its processes at
    /// once.
    pub fn look_for_strays(&self) {
        self.stray.notify_one();
    }

    /// Waits until no supervisor is left, and so no child.
    pub async fn none_left(&self) {
        loop {
            let mut ended = std::pin::pin!(self.ended.notified());
            // Registered before the check, because otherwise the last end could be missed.
            ended.as_mut().enable();
            if self.known.lock().is_empty() {
                return;
            }
            ended.await;
        }
    }

    /// Becomes a subreaper and ends stray processes until the future is dropped.
    pub async fn sweep(&self) {
        let _ = rustix::process::set_child_subreaper(Some(rustix::process::getpid()));
        let mut pause = ROUND;
        loop {
            let _ = timeout(pause, self.stray.notified()).await;
            let supervisors = self.clone();
            // Reads all of /proc.
            let round = tokio::task::spawn_blocking(move || {
                let children = supervisor::children_and_zombies(std::process::id());
                children
                    .into_iter()
                    .filter(|pid| supervisors.end_stray(*pid))
                    .count()
            });
            let any = round.await.is_ok_and(|ended| ended > 0);
            pause = if any { NEXT_LOOK } else { ROUND };
        }
    }

    /// Returns whether the process was a stray.
    fn end_stray(&self, pid: u32) -> bool {
        // Checked again under the lock: since the list was read it may have become a supervisor, or
        // have ended. From then on its number is not reused, because only the bridge reaps it.
        let known = self.known.lock();
        let process = supervisor::read(pid).filter(|process| process.parent == std::process::id());
        let Some(process) = process.filter(|_| !known.contains(&pid)) else {
            return false;
        };
        drop(known);
        let mut guests = self.guests.lock();
        if process.zombie {
            guests.remove(&pid);
        } else if guests.contains(&pid) {
            return false;
        } else {
            tracing::warn!(
                pid,
                name = supervisor::name(pid),
                "orphaned process killed: its supervisor exited"
            );
            let below = supervisor::descendants(pid);
            below.for_each(|pid| supervisor::send_signal(pid, Signal::KILL));
            supervisor::send_signal(pid, Signal::KILL);
        }
        if let Some(pid) = Pid::from_raw(pid.cast_signed()) {
            let _ = waitpid(Some(pid), WaitOptions::NOHANG);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A supervisor that sends only the given report.
    fn silent(supervisors: &Supervisors) -> (UnixStream, UnixStream, tokio::process::Child) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut command = std::process::Command::new("sleep");
        command.arg("1000");
        (ours, theirs, supervisors.spawn(command).unwrap())
    }

    #[tokio::test]
    async fn a_program_that_never_begins_to_run_is_given_up() {
        let supervisors = Supervisors::new();
        let (ours, _theirs, supervisor) = silent(&supervisors);
        let until = Instant::now() + Duration::from_millis(20);
        let keeper = Keeper::Own(supervisor, supervisors.clone());
        let started = Process::started(ours, keeper, until).await;
        assert!(matches!(started, Err(ChildError::NotStarted { .. })));
        supervisors.none_left().await;
    }

    #[tokio::test]
    async fn a_supervisor_that_does_not_answer_is_killed() {
        let supervisors = Supervisors::new();
        let (ours, mut theirs, supervisor) = silent(&supervisors);
        theirs.write_all(b"pid 4711\n").await.unwrap();
        let until = Instant::now() + Duration::from_secs(60);
        let keeper = Keeper::Own(supervisor, supervisors.clone());
        let started = Process::started(ours, keeper, until).await;
        let process = started.ok().unwrap();
        process.ask_to_end(End::Kill);
        let gone = timeout(Duration::from_secs(30), process.gone()).await;
        assert_eq!(gone.unwrap(), ExitStatus::Unknown);
        supervisors.none_left().await;
    }
}

#[cfg(test)]
mod reaper_tests {
    use super::*;

    fn sleeper() -> std::process::Child {
        Command::new("sleep").arg("1000").spawn().unwrap()
    }

    #[test]
    fn strangers_are_killed_and_those_who_were_here_before_are_not() {
        let mut guest = sleeper();
        let supervisors = Supervisors::new();
        let mut stranger = sleeper();
        assert!(!supervisors.end_stray(guest.id()));
        assert!(guest.try_wait().unwrap().is_none());
        assert!(supervisors.end_stray(stranger.id()));
        // Reaped by `end_stray` or here.
        let _ = stranger.wait();
        assert!(supervisor::read(stranger.id()).is_none());
        guest.kill().unwrap();
        guest.wait().unwrap();
    }

    #[tokio::test]
    async fn a_supervisor_is_no_stray() {
        let supervisors = Supervisors::new();
        let mut command = Command::new("sleep");
        command.arg("1000");
        let supervisor = supervisors.spawn(command).unwrap();
        assert!(!supervisors.end_stray(supervisor.id().unwrap()));
    }
}
