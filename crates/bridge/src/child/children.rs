//! Where children come from: a permit among the starts, a process or a remote session, first words.

use std::{
    collections::{HashMap, HashSet},
    path::Path,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bridge_model::{BootTime, Job, JobFolderPaths, ServerName, Tenant};
use bridge_process::{
    Body, Child, ChildError, ChildParts, CommandSpec, Connection, Done, End, Launch, Listener,
    Pipes, Process, Profile, RemoteSpec, ResolvedCommand, ServerLog, ShortName, ShortTmp,
    Supervisors, UserValues, environment,
    fork::{Means, Plan, Scratch},
    is_news,
    launch::Resolved,
    processor_time, remote,
    remote::{Outbound, RemoteOptions, ToolSchema},
    signal_descendants, without_folder,
};
use bridge_protocol::{RawJson, era::Era, jsonrpc::Said, method};
use parking_lot::{Mutex, MutexGuard};
use rustix::process::Signal;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{OwnedSemaphorePermit, broadcast, oneshot},
    time::Instant,
};
use tokio_util::{
    sync::CancellationToken,
    task::{AbortOnDropHandle, TaskTracker},
};

use super::{
    ChildRequest, ChildSettings, Forking,
    fork::{ForkServers, Ready, Wanted},
};
use crate::{
    admission::{Permit, Permits, Share},
    config::{Mode, ServerSpec, SpecVersion, Transport},
    launches::Launches,
    telemetry::Metrics,
};

/// A cold start holds its permit among the concurrent starts no longer than this.
const START_PERMIT_WAIT: Duration = Duration::from_secs(10);

/// A start that used no processor time for so long gives its permit back: it waits for something,
/// and servers that hang must not keep others from starting.
const IDLE_START: Duration = Duration::from_millis(250);

/// Pieces of news that a slow listener may have waiting; he loses the oldest.
const NEWS: usize = 256;

/// Making one connection to a remote server.
const CONNECT: Duration = Duration::from_secs(10);

/// A remote server may be silent for a call's time, for as long as its caller may be asked
/// something meanwhile, and this.
const SPARE: Duration = Duration::from_secs(60);

/// A start whose process does not exist yet gives its permit back after this: what would make the
/// process, such as a fork parent or a mount, does not answer.
const LAUNCH: Duration = Duration::from_secs(5);

/// Finds the input schema of a server's tool.
type Schemas = Arc<dyn Fn(&ServerName, &str) -> Option<RawJson> + Send + Sync>;

/// Ends something idle where the system has no room for a start of this tenant's, and why; `false`
/// if nothing is idle.
type MakeRoom =
    Arc<dyn Fn(Tenant, String) -> futures_util::future::BoxFuture<'static, bool> + Send + Sync>;

/// What the packages of a local server are started from; `None`: the command is run as written.
#[derive(Default)]
struct Installed(Option<Arc<Resolved>>);

/// What a start holds while it is at work.
#[expect(dead_code, reason = "held, not used")]
enum StartPermit {
    /// One of those that all share.
    Shared(Permit),
    /// One of the pool's own.
    OfPool(OwnedSemaphorePermit),
}

/// What a start is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum StartKind {
    /// A process that somebody needs.
    Needed,
    /// Finding out whether the server speaks a revision.
    Trial,
}

/// Where children come from.
pub struct Children {
    settings: ChildSettings,
    starts: Permits,
    supervisors: Supervisors,
    metrics: Arc<Metrics>,
    launches: Launches,
    forks: Arc<ForkServers>,
    failed_starts: FailedStarts,
    /// Read when the first remote server is reached.
    outbound: Arc<OnceLock<Outbound>>,
    remotes: TaskTracker,
    schemas: OnceLock<Schemas>,
    room_makers: OnceLock<MakeRoom>,
    numbers: AtomicU64,
    short_tmp: Arc<ShortTmp>,
    /// Servers that refused every revision before 2026-07-28.
    modern_only: Mutex<HashSet<SpecVersion>>,
}

/// How a child spells the folder that it works in, and the short name for as long as it lives.
struct Folder {
    paths: JobFolderPaths,
    short: Option<Arc<ShortName>>,
}

impl Children {
    /// No child is started before one is asked for. Two things are noted now: the limit on open
    /// files, which children will get, and which processes are ours already, which are left alone.
    pub fn new(settings: ChildSettings, metrics: Arc<Metrics>) -> Self {
        let starts = Permits::new(settings.max_starts, Share::all());
        let supervisors = Supervisors::new();
        let forks = Arc::new(ForkServers::new(Means {
            supervisors: supervisors.clone(),
            start_timeout: settings.start_timeout,
            max_message: settings.max_message,
        }));
        Self {
            settings,
            starts,
            supervisors,
            forks,
            failed_starts: FailedStarts::default(),
            metrics,
            launches: Launches::default(),
            outbound: Arc::default(),
            remotes: TaskTracker::new(),
            schemas: OnceLock::new(),
            room_makers: OnceLock::new(),
            numbers: AtomicU64::new(1),
            short_tmp: Arc::default(),
            modern_only: Mutex::default(),
        }
    }

    /// How each server is started: as written, or from its environment.
    pub fn launches(&self) -> &Launches {
        &self.launches
    }

    /// What processes are forked from.
    pub fn forks(&self) -> &ForkServers {
        &self.forks
    }

    /// Starts that failed last.
    pub fn failed_starts(&self) -> &FailedStarts {
        &self.failed_starts
    }

    /// Runs a program to its end, at most to `until`. Dropping the future kills all of it.
    pub async fn run(&self, launch: Launch, until: Instant) -> Result<Done, ChildError> {
        bridge_process::run(launch, &self.supervisors, until).await
    }

    /// Remote servers of 2026-07-28 want to see arguments in headers that their tools' schemas mark.
    /// Heard once: the catalogue knows them, and is itself made of children.
    pub fn know_schemas(&self, schemas: Schemas) {
        let _ = self.schemas.set(schemas);
    }

    /// Where the system has no room for one more process, idle ones make room. Heard once: what is
    /// idle is itself made of children.
    pub fn make_room_by(&self, make_room: MakeRoom) {
        let _ = self.room_makers.set(make_room);
    }

    /// Ends processes that lost their supervisor, until dropped.
    pub async fn sweep_strays(&self) {
        self.supervisors.sweep().await;
    }

    /// Says how long this process has the right to run children: at that time they are killed, so that
    /// another bridge can take over what they work in, unless a later one is said before. With `None`
    /// nobody else may.
    pub fn leash(&self, until: Option<BootTime>) {
        self.supervisors.leash(until);
    }

    /// Whether that right has an end: others may take over.
    pub fn is_leashed(&self) -> bool {
        self.supervisors.is_leashed()
    }

    /// What stands still hears of its end, too.
    #[allow(clippy::unused_self)] // which processes are below us is ours to know
    pub fn wake(&self) {
        signal_descendants(Signal::CONT);
    }

    /// Waits until no child is left. Those that nobody holds any more are ending already.
    pub async fn none_left(&self) {
        self.remotes.close();
        self.forks.close().await;
        tokio::join!(self.supervisors.none_left(), self.remotes.wait());
        self.short_tmp.close();
    }

    /// How much time a child gets between SIGTERM and SIGKILL.
    pub fn kill_grace(&self) -> Duration {
        self.settings.kill_grace
    }

    /// A child that has answered `initialize`. On any failure nothing of it is left running; a
    /// child whose caller left is killed behind him.
    pub async fn ready(&self, request: ChildRequest) -> Result<Child, ChildError> {
        self.ready_unless(request, &CancellationToken::new()).await
    }

    /// As [`Children::ready`], but gives up once `stop` is cancelled, and returns when nothing of
    /// the child is left.
    pub async fn ready_unless(
        &self,
        request: ChildRequest,
        stop: &CancellationToken,
    ) -> Result<Child, ChildError> {
        self.ready_as(request, StartKind::Needed, stop).await
    }

    /// As [`Children::ready_unless`], for a server that may not speak the revision in which it is asked: that
    /// it does not start so does not count as a failed start.
    pub async fn try_revision(
        &self,
        request: ChildRequest,
        stop: &CancellationToken,
    ) -> Result<Child, ChildError> {
        self.ready_as(request, StartKind::Trial, stop).await
    }

    async fn ready_as(
        &self,
        request: ChildRequest,
        kind: StartKind,
        stop: &CancellationToken,
    ) -> Result<Child, ChildError> {
        loop {
            let (wanted, tenant) = (request.clone(), request.tenant.clone());
            match Box::pin(self.begin(wanted, None, kind, stop)).await {
                Err(error) if error.is_lack_of_room() && !stop.is_cancelled() => {
                    let relieved = match self.room_makers.get() {
                        Some(make_room) => make_room(tenant, error.brief()).await,
                        None => false,
                    };
                    if !relieved {
                        return Err(error);
                    }
                }
                started => return started,
            }
        }
    }

    /// As [`Children::ready_unless`], for nobody who waits: it takes no permit among the starts, so
    /// that no other start ever waits for it. It holds `permit`, one of its caller's own, as long as
    /// a start holds one.
    pub async fn ready_aside(
        &self,
        request: ChildRequest,
        permit: OwnedSemaphorePermit,
        stop: &CancellationToken,
    ) -> Result<Child, ChildError> {
        let permit = StartPermit::OfPool(permit);
        Box::pin(self.begin(request, Some(permit), StartKind::Needed, stop)).await
    }

    /// Whether more than half of the permits among the starts are free.
    pub fn has_leisure(&self) -> bool {
        self.starts.has_leisure()
    }

    async fn begin(
        &self,
        request: ChildRequest,
        permit: Option<StartPermit>,
        kind: StartKind,
        stop: &CancellationToken,
    ) -> Result<Child, ChildError> {
        let spec = request.spec.clone();
        let deadline = request.deadline;
        // A start that its caller gave up says nothing about the server.
        let given_up = || stop.is_cancelled() || Instant::now() >= deadline;
        let resolved = self.resolved(&request, stop).await;
        if resolved.is_err() && !given_up() {
            self.failed_starts.note(&spec, &resolved);
        }
        let resolved = resolved.inspect_err(|_| self.metrics.child_start_failed(&spec.name))?;
        let permit = match permit {
            None if resolved.is_some() => Some(self.permit(&request, stop).await?),
            permit => permit,
        };
        let (launched, pid) = oneshot::channel();
        // Held until ready, but neither for ever nor longer than the caller stays.
        let permit = permit.map(|permit| AbortOnDropHandle::new(tokio::spawn(hold(permit, pid))));
        let began = Instant::now();
        let folder = self.folder(&request).await;
        let paths = folder.paths.clone();
        let until = request.deadline.min(began + self.settings.start_timeout);
        let started = self.start(request, resolved, folder, until, launched, stop);
        let started = Box::pin(started).await;
        drop(permit);
        let started = started.map_err(|error| error.without_folder(&paths));
        if started.is_ok() || kind == StartKind::Needed && !given_up() {
            self.failed_starts.note(&spec, &started);
        }
        match &started {
            Ok(_) => self.metrics.child_started(&spec.name, began.elapsed()),
            Err(_) => self.metrics.child_start_failed(&spec.name),
        }
        started
    }

    /// What a local process is started from; `None` for a remote server. The packages of a locked
    /// server may still be on their way: that is waited for before a permit among the starts is
    /// taken, which others could use meanwhile.
    async fn resolved(
        &self,
        request: &ChildRequest,
        stop: &CancellationToken,
    ) -> Result<Option<Installed>, ChildError> {
        if let Transport::Remote(_) = &request.spec.transport {
            return Ok(None);
        }
        let until = request
            .deadline
            .min(Instant::now() + self.settings.start_timeout);
        let ready = self.launches.ready(&request.spec, until);
        let Some(found) = stop.run_until_cancelled(ready).await else {
            return Err(stopped());
        };
        let found = found.map_err(|why| ChildError::not_started(why.to_string()))?;
        // What was changed behind our back is its launcher's to judge.
        let found = found.filter(|found| found.locked || found.holds());
        Ok(Some(Installed(found)))
    }

    async fn folder(&self, request: &ChildRequest) -> Folder {
        let mut paths = request.job.paths();
        let short = match &request.spec.transport {
            Transport::Stdio(_) => {
                let (names, job) = (self.short_tmp.clone(), request.job.clone());
                let named = tokio::task::spawn_blocking(move || names.name_for(&job));
                named.await.ok().flatten()
            }
            Transport::Remote(_) => None,
        };
        paths.short_tmp = short.as_ref().map(|name| name.path().to_owned());
        Folder { paths, short }
    }

    /// The profile in which a server's children are spoken to, where the wanted one is of a form
    /// that it is known not to speak.
    pub fn spoken(&self, spec: &ServerSpec, wanted: Profile) -> Profile {
        if self.modern_only().contains(&spec.version()) {
            Profile::modern()
        } else {
            wanted
        }
    }

    /// The server's children are spoken to in the form of 2026-07-28 from now on.
    pub fn speaks_modern_only(&self, spec: &ServerSpec) {
        tracing::debug!(server = %spec.name, "server supports only revision 2026-07-28");
        self.modern_only().insert(spec.version());
    }

    fn modern_only(&self) -> MutexGuard<'_, HashSet<SpecVersion>> {
        self.modern_only.lock()
    }

    /// A permit among the concurrent starts. The wait is bounded as a start is, and beside it.
    async fn permit(
        &self,
        request: &ChildRequest,
        stop: &CancellationToken,
    ) -> Result<StartPermit, ChildError> {
        let longest = Instant::now() + self.settings.start_timeout;
        let until = request.deadline.min(longest);
        let permit = tokio::time::timeout_at(until, self.starts.enter(&request.tenant));
        match stop.run_until_cancelled(permit).await {
            Some(Ok(permit)) => Ok(StartPermit::Shared(permit)),
            Some(Err(_)) => Err(ChildError::TooManyStarts),
            None => Err(stopped()),
        }
    }

    async fn start(
        &self,
        request: ChildRequest,
        resolved: Option<Installed>,
        folder: Folder,
        until: Instant,
        launched: oneshot::Sender<u32>,
        stop: &CancellationToken,
    ) -> Result<Child, ChildError> {
        let began = Instant::now();
        let log = ServerLog::new(request.spec.name.as_str(), request.job.server_log());
        let (news, _) = broadcast::channel(NEWS);
        let listener = with_news(request.listener.clone(), news.clone(), request.spec.mode);
        let (body, connection) = match &request.spec.transport {
            Transport::Stdio(command) => {
                let Installed(found) = resolved.unwrap_or_default();
                let heard = (&log, &listener);
                let local = self.local(command, found, &request, &folder, until, heard);
                let found = Box::pin(local).await?;
                let _ = launched.send(found.0.pid().unwrap_or_default());
                found
            }
            // It uses nothing of this machine that starts side by side would contend for, so it has
            // no permit among them.
            Transport::Remote(remote) => {
                self.remote(remote, &request, &folder, &log, &listener)
                    .await?
            }
        };
        let limit = self.settings.max_message;
        let mode = request.spec.mode;
        let child = ChildParts {
            number: self.numbers.fetch_add(1, Ordering::Relaxed),
            body,
            connection,
            log,
            paths: folder.paths,
            short_tmp: folder.short,
            limit,
            news,
            counted: Box::new(self.metrics.child_live(mode)),
        };
        let profile = self.spoken(&request.spec, request.profile);
        let greeting = Box::pin(child.introduce(&profile));
        let greeting = tokio::time::timeout_at(until, greeting);
        let failure = match stop.run_until_cancelled(greeting).await {
            Some(Ok(Ok(Ok(hello)))) => {
                if profile.era == Era::Legacy && hello.era == Era::Modern {
                    self.speaks_modern_only(&request.spec);
                }
                let listener = (mode != Mode::Stateless).then_some(listener);
                return Ok(child.into_child(hello, listener));
            }
            Some(Ok(Ok(Err(refused)))) => {
                // Another program may answer under the same name today.
                self.modern_only().remove(&request.spec.version());
                match refused.error().and_then(|raw| child.body.failed(raw)) {
                    Some(failed) => ChildError::not_started(failed.why),
                    None => refused.into(),
                }
            }
            Some(Ok(Err(closed))) => match child.closed(closed).await {
                ChildError::Died { status, said } => {
                    let why = format!("the process exited before it was ready ({status})");
                    let refused = false;
                    ChildError::NotStarted { why, said, refused }
                }
                other => other,
            },
            Some(Err(_)) => {
                let waited = until.saturating_duration_since(began).as_secs_f64();
                let why = format!("no response to initialize within {waited:.0} s");
                ChildError::NotStarted {
                    why,
                    said: child.log.last_words(),
                    refused: false,
                }
            }
            None => stopped(),
        };
        child.end(End::Kill).await;
        Err(match &request.spec.transport {
            Transport::Remote(remote) => {
                failure.of_remote(&remote.url.origin().ascii_serialization())
            }
            Transport::Stdio(_) => failure,
        })
    }

    async fn local(
        &self,
        command: &CommandSpec,
        installed: Option<Arc<Resolved>>,
        request: &ChildRequest,
        folder: &Folder,
        until: Instant,
        (log, listener): (&ServerLog, &Listener),
    ) -> Result<(Body, Connection), ChildError> {
        let resolved = command.resolve(&request.job.work(), &request.job.id(), &request.user);
        let fork = self.fork_from(request, command, &resolved, installed.as_ref());
        let job = &request.job;
        let tmp = folder.paths.short_tmp.clone();
        let tmp = tmp.unwrap_or_else(|| job.tmp());
        let launch = self.launch(resolved, installed.as_deref(), job, &tmp);
        let forked = match &fork {
            Some(fork) => self.forked(&request.spec, fork, &launch, until).await,
            None => None,
        };
        let (process, pipes) = match forked {
            Some(forked) => forked,
            None => bridge_process::start(&launch, &self.supervisors, until).await?,
        };
        tokio::spawn(log.clone().follow(pipes.stderr));
        let connection = self.converse(pipes.stdin, pipes.stdout, folder, log, listener);
        Ok((Body::Local(process), connection))
    }

    async fn remote(
        &self,
        spec: &RemoteSpec,
        request: &ChildRequest,
        folder: &Folder,
        log: &ServerLog,
        listener: &Listener,
    ) -> Result<(Body, Connection), ChildError> {
        let outbound = self.outbound.clone();
        // Reads the system's certificates from disk.
        let read = move || outbound.get_or_init(Outbound::from_environment).clone();
        let outbound = tokio::task::spawn_blocking(read)
            .await
            .map_err(|error| ChildError::not_started(error.to_string()))?;
        let options = RemoteOptions {
            outbound,
            connect_timeout: CONNECT,
            idle_timeout: request.spec.timeout.max(self.settings.start_timeout)
                + self.settings.input_timeout
                + SPARE,
            max_message: self.settings.max_message,
            tool_schema: self.tool_schema(&request.spec.name),
        };
        let pipes = remote::connect(&spec.for_user(&request.user), options)
            .map_err(|error| ChildError::not_started(error.to_string()))?;
        self.remotes.spawn(pipes.handle.gone());
        let connection = self.converse(pipes.stdin, pipes.stdout, folder, log, listener);
        Ok((Body::Remote(pipes.handle), connection))
    }

    fn tool_schema(&self, server: &ServerName) -> Option<ToolSchema> {
        let (schemas, server) = (self.schemas.get()?.clone(), server.clone());
        Some(Arc::new(move |tool| schemas(&server, tool)))
    }

    fn converse(
        &self,
        stdin: impl AsyncWrite + Send + Unpin + 'static,
        stdout: impl AsyncRead + Send + Unpin + 'static,
        folder: &Folder,
        log: &ServerLog,
        listener: &Listener,
    ) -> Connection {
        Connection::open(
            stdin,
            stdout,
            self.settings.max_message,
            listener.clone(),
            without_folder(folder.paths.clone()),
            Arc::new({
                let log = log.clone();
                move |line: &[u8]| log.noise(line)
            }),
        )
    }

    fn launch(
        &self,
        command: ResolvedCommand,
        installed: Option<&Resolved>,
        job: &Job,
        tmp: &Path,
    ) -> Launch {
        let env = environment(
            &command.program,
            installed,
            job,
            tmp,
            &self.settings.tools_dir,
            command.env,
        );
        let (program, args) = match installed {
            Some(found) => {
                let own = command.args.into_iter().skip(found.rest);
                let args = found.args.iter().cloned().chain(own).collect();
                (found.program.clone(), args)
            }
            None => (command.program, command.args),
        };
        Launch {
            program,
            args,
            env,
            cwd: command.cwd,
        }
    }
}

/// What a shared child says to nobody in particular may be about anybody: only what concerns
/// everybody goes on. Late progress has a number of ours, which says nothing to anyone.
fn with_news(listener: Listener, news: broadcast::Sender<Said>, mode: Mode) -> Listener {
    Arc::new(move |said| {
        listener(said);
        let of_one_caller = mode != Mode::Shared && &*said.method != method::PROGRESS;
        if of_one_caller || is_news(&said.method) {
            // Nobody listening is fine.
            let _ = news.send(said.clone());
        }
    })
}

fn stopped() -> ChildError {
    ChildError::not_started("the bridge is stopping".to_owned())
}

/// Holds a permit among the starts while the child with this id is at work on its start.
async fn hold(permit: StartPermit, pid: oneshot::Receiver<u32>) {
    let working = async {
        let Ok(Ok(pid)) = tokio::time::timeout(LAUNCH, pid).await else {
            return;
        };
        let mut before = None;
        loop {
            tokio::time::sleep(IDLE_START).await;
            let used = tokio::task::spawn_blocking(move || processor_time(pid))
                .await
                .ok();
            if used == before {
                return;
            }
            before = used;
        }
    };
    let _ = tokio::time::timeout(START_PERMIT_WAIT, working).await;
    drop(permit);
}

// Processes that are forked instead of started.

/// A fork takes milliseconds: one that takes longer has a parent that does not run.
const LONGEST_FORK: Duration = Duration::from_secs(10);

/// What a process is forked from, and its own arguments.
pub struct Fork {
    parent: Arc<Ready>,
    argv: Vec<String>,
}

impl Children {
    /// How processes of this server come to be; a fork parent is made where there may be one.
    pub async fn forking(&self, spec: &Arc<ServerSpec>, until: Instant) -> Forking {
        let Transport::Stdio(command) = &spec.transport else {
            return Forking::NotYet;
        };
        let found = self.launches.ready(spec, until).await.ok().flatten();
        if let Some(why) = ForkServers::refuses(spec, found.as_deref()) {
            return Forking::Starts(why.into());
        }
        // Where it would work makes no difference to what can be forked.
        let plan = self.scratch().map_err(|error| error.to_string());
        let plan = plan.and_then(|job| {
            let command = command.resolve(&job.job.work(), &job.job.id(), &UserValues::default());
            Plan::new(&command, found.as_deref())
        });
        match (plan, &found) {
            (Ok(plan), Some(found)) => {
                let want = || self.parent_for(spec, command, found);
                let _ = self.forks.parent(spec, found, &plan, true, want);
                self.forks.settled(spec, until).await
            }
            (Err(why), _) => Forking::Starts(why.into()),
            (Ok(_), None) => Forking::NotYet,
        }
    }

    /// Makes what processes of this server are forked from, where there may be one, and waits for it.
    pub async fn prepare(&self, spec: &Arc<ServerSpec>, until: Instant) {
        if self.forks.is_undecided(spec) {
            self.forking(spec, until).await;
        }
    }

    /// What to fork the process from, and its own arguments; `None`: it is started by itself.
    fn fork_from(
        &self,
        request: &ChildRequest,
        command: &CommandSpec,
        resolved: &ResolvedCommand,
        found: Option<&Arc<Resolved>>,
    ) -> Option<Fork> {
        let spec = &request.spec;
        if ForkServers::refuses(spec, found.map(|found| &**found)).is_some() {
            return None;
        }
        let plan = match Plan::new(resolved, found.map(|found| &**found)) {
            Ok(plan) => plan,
            Err(why) => {
                self.forks.cannot(spec, &why);
                return None;
            }
        };
        let found = found?;
        let want = || self.parent_for(spec, command, found);
        let parent = self.forks.parent(spec, found, &plan, false, want)?;
        if !parent.sources.hold() {
            self.forks.forget(spec);
            return None;
        }
        Some(Fork {
            parent,
            argv: plan.argv,
        })
    }

    /// One that cannot be forked is started by itself, as are those after it for a while.
    async fn forked(
        &self,
        spec: &ServerSpec,
        fork: &Fork,
        launch: &Launch,
        until: Instant,
    ) -> Option<(Process, Pipes)> {
        // One that is stopped must leave time to start the process by itself.
        let now = Instant::now();
        let patience = (until.saturating_duration_since(now) / 4).min(LONGEST_FORK);
        let parent = &fork.parent.parent;
        let forked = parent.fork(launch, &fork.argv, false, now + patience).await;
        forked
            .inspect_err(|error| {
                // That is no fault of the parent's.
                if !error.is_lack_of_room() {
                    self.forks.give_up(spec, &fork.parent, &error.brief());
                }
            })
            .ok()
    }

    fn parent_for(
        &self,
        spec: &Arc<ServerSpec>,
        command: &CommandSpec,
        found: &Arc<Resolved>,
    ) -> std::io::Result<Wanted> {
        let job = self.scratch()?;
        let command = command.resolve(&job.job.work(), &job.job.id(), &UserValues::default());
        let plan = Plan::new(&command, Some(found)).map_err(std::io::Error::other)?;
        // By its own path: it holds the word by which modules are found that keep it.
        let tmp = job.job.tmp();
        let launch = self.launch(command, Some(found), &job.job, &tmp);
        Ok(Wanted {
            spec: spec.clone(),
            found: found.clone(),
            profile: self.spoken(spec, Profile::silent()),
            plan,
            launch,
            job,
        })
    }

    fn scratch(&self) -> std::io::Result<Scratch> {
        Scratch::within(&self.settings.scratch)
    }
}

// Starts that failed last, for `/health`: what the catalogue knows of a server is what it once offered,
// and not whether a process of it can be started today.

/// For how long one failed start speaks for the whole machine. Nobody may come while it does, so that
/// no other start takes it back.
const SHORT: Duration = Duration::from_secs(30);

/// By server, and for the machine.
#[derive(Default)]
pub struct FailedStarts(Mutex<Failed>);

#[derive(Default)]
struct Failed {
    servers: HashMap<ServerName, (SpecVersion, Arc<str>)>,
    short: Option<(std::time::Instant, Arc<str>)>,
}

impl FailedStarts {
    /// Notes how a start went. What was given up says nothing, and a process that refuses a revision of
    /// the protocol has started: each `shared` server is asked for the newest once.
    pub fn note<T>(&self, spec: &ServerSpec, started: &Result<T, ChildError>) {
        let mut failed = self.lock();
        match started {
            Ok(_) => {
                failed.servers.remove(&spec.name);
                failed.short = None;
            }
            Err(error @ ChildError::NotStarted { refused: false, .. }) => {
                let why: Arc<str> = error.brief().into();
                if error.is_lack_of_room() {
                    failed.short = Some((std::time::Instant::now(), why.clone()));
                }
                failed
                    .servers
                    .insert(spec.name.clone(), (spec.version(), why));
            }
            Err(_) => {}
        }
    }

    /// Why the last start of this server failed.
    pub fn last_of(&self, spec: &ServerSpec) -> Option<Arc<str>> {
        let failed = self.lock();
        let (version, why) = failed.servers.get(&spec.name)?;
        (*version == spec.version()).then(|| why.clone())
    }

    /// Why no process could be started a moment ago, whatever it was.
    pub fn shortage(&self) -> Option<Arc<str>> {
        let failed = self.lock();
        let (at, why) = failed.short.as_ref()?;
        (at.elapsed() < SHORT).then(|| why.clone())
    }

    fn lock(&self) -> MutexGuard<'_, Failed> {
        self.0.lock()
    }
}
