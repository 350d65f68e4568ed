//! Starts children: a permit among the starts, a process or a remote session, initialization.

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
use parking_lot::Mutex;
use rustix::process::Signal;
use tokio::{
    io::DuplexStream,
    net::unix::pipe::{Receiver, Sender},
    sync::{OwnedSemaphorePermit, broadcast, oneshot},
    time::Instant,
};
use tokio_util::{
    either::Either,
    task::{AbortOnDropHandle, TaskTracker},
};

use super::{
    ChildRequest, ChildSettings, Forking,
    fork::{ForkServers, ParentStart, Ready},
};
use crate::{
    admission::{Permit, Permits, Share},
    config::{Mode, ServerSpec, SpecVersion, Transport},
    launches::Launches,
    telemetry::Metrics,
};

/// Maximum time that a cold start holds its permit among the concurrent starts.
const START_PERMIT_WAIT: Duration = Duration::from_secs(10);

/// A start that used no processor time for this long releases its permit: it waits for something,
/// and servers that hang must not prevent other starts.
const IDLE_START: Duration = Duration::from_millis(250);

/// Capacity of the channel of notifications; a slow receiver loses the oldest.
const NEWS: usize = 256;

/// Timeout of one connection to a remote server.
const CONNECT: Duration = Duration::from_secs(10);

/// The timeout of a remote server is that of a call, plus that of its caller's input, plus this.
const SPARE: Duration = Duration::from_secs(60);

/// A start whose process does not exist after this time releases its permit: its fork parent or a
/// mount does not respond.
const LAUNCH: Duration = Duration::from_secs(5);

/// Finds the input schema of a server's tool.
type Schemas = Arc<dyn Fn(&ServerName, &str) -> Option<RawJson> + Send + Sync>;

/// Ends an idle session because the system has no room for a start of this tenant; the text is the
/// reason. `false` if none is idle.
type MakeRoom =
    Arc<dyn Fn(Tenant, String) -> futures_util::future::BoxFuture<'static, bool> + Send + Sync>;

/// The permit that a start holds while it is active: one of those that all share, or one of the
/// pool's.
type StartPermit = Either<Permit, OwnedSemaphorePermit>;

/// A process or session, its stdin and its stdout.
type Started = (
    Body,
    Either<Sender, DuplexStream>,
    Either<Receiver, DuplexStream>,
);

/// Starts children.
pub struct Children {
    settings: ChildSettings,
    starts: Permits,
    supervisors: Supervisors,
    metrics: Arc<Metrics>,
    launches: Launches,
    forks: Arc<ForkServers>,
    failed_starts: FailedStarts,
    /// Read when the first remote server is used.
    outbound: Arc<OnceLock<Outbound>>,
    remotes: TaskTracker,
    schemas: OnceLock<Schemas>,
    room_makers: OnceLock<MakeRoom>,
    numbers: AtomicU64,
    short_tmp: Arc<ShortTmp>,
    /// Servers that reject every revision before 2026-07-28.
    modern_only: Mutex<HashSet<SpecVersion>>,
}

/// The spellings of a child's folder, and its short name, which exists while the child lives.
struct Folder {
    paths: JobFolderPaths,
    short: Option<Arc<ShortName>>,
}

impl Children {
    /// Starts no child before one is requested. Records the limit on open files, which children get,
    /// and the processes that already exist below the bridge, which are not ended.
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

    /// How each server is started: as written in the server file, or from its environment.
    pub fn launches(&self) -> &Launches {
        &self.launches
    }

    /// The parents that processes are forked from.
    pub fn forks(&self) -> &ForkServers {
        &self.forks
    }

    /// Recent failed starts.
    pub fn failed_starts(&self) -> &FailedStarts {
        &self.failed_starts
    }

    /// Runs a program to its end, at most to `until`. Dropping the future kills all of it.
    pub async fn run(&self, launch: Launch, until: Instant) -> Result<Done, ChildError> {
        bridge_process::run(launch, &self.supervisors, until).await
    }

    /// Remote servers of 2026-07-28 require arguments in headers that their tools' schemas mark.
    /// Set once, after construction: the catalogue, which knows the schemas, needs children itself.
    pub fn know_schemas(&self, schemas: Schemas) {
        let _ = self.schemas.set(schemas);
    }

    /// If the system has no room for another process, idle ones are ended by this callback. Set once,
    /// after construction: the sessions need children themselves.
    pub fn make_room_by(&self, make_room: MakeRoom) {
        let _ = self.room_makers.set(make_room);
    }

    /// Ends processes that lost their supervisor, until dropped.
    pub async fn sweep_strays(&self) {
        self.supervisors.sweep().await;
    }

    /// Sets the time until which this process may run children: at that time they are killed, so that
    /// another bridge can take over their folders, unless a later time is set before. With `None` no
    /// other bridge may take over.
    pub fn leash(&self, until: Option<BootTime>) {
        self.supervisors.leash(until);
    }

    /// Whether that time is limited, because other bridges may take over.
    pub fn is_leashed(&self) -> bool {
        self.supervisors.is_leashed()
    }

    /// Resumes stopped processes, so that they can end.
    #[allow(clippy::unused_self)] // the processes below the bridge belong to this type
    pub fn wake(&self) {
        signal_descendants(Signal::CONT);
    }

    /// Waits until no child is left. Children without an owner are already ending.
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

    /// A child that has answered `initialize`. On any failure none of its processes is left running;
    /// if the future is dropped, the child is killed.
    pub async fn ready(&self, request: ChildRequest) -> Result<Child, ChildError> {
        loop {
            match Box::pin(self.begin(request.clone(), None)).await {
                Err(error) if error.is_lack_of_room() && !request.stop.is_cancelled() => {
                    let tenant = request.tenant.clone();
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

    /// As [`Children::ready`], without a caller that waits: it takes no permit among the starts, so
    /// that it delays no other start. It holds `permit`, provided by its caller, as a start holds
    /// one.
    pub async fn ready_aside(
        &self,
        request: ChildRequest,
        permit: OwnedSemaphorePermit,
    ) -> Result<Child, ChildError> {
        Box::pin(self.begin(request, Some(Either::Right(permit)))).await
    }

    /// Whether more than half of the permits among the starts are free.
    pub fn has_leisure(&self) -> bool {
        self.starts.has_leisure()
    }

    async fn begin(
        &self,
        request: ChildRequest,
        permit: Option<StartPermit>,
    ) -> Result<Child, ChildError> {
        let (spec, stop) = (request.spec.clone(), request.stop.clone());
        let (deadline, is_trial) = (request.deadline, request.is_trial);
        // A start that its caller abandoned says nothing about the server.
        let given_up = || stop.is_cancelled() || Instant::now() >= deadline;
        let is_local = matches!(spec.transport, Transport::Stdio(_));
        let resolved = self.resolved(&request).await;
        if resolved.is_err() && !given_up() {
            self.failed_starts.note(&spec, &resolved);
        }
        let resolved = resolved.inspect_err(|_| self.metrics.child_start_failed(&spec.name))?;
        let permit = match permit {
            None if is_local => Some(self.permit(&request).await?),
            permit => permit,
        };
        let (launched, pid) = oneshot::channel();
        // Held until the child is ready, but for a limited time, and not longer than the caller
        // waits.
        let permit = permit.map(|permit| AbortOnDropHandle::new(tokio::spawn(hold(permit, pid))));
        let began = Instant::now();
        let folder = self.folder(&request).await;
        let paths = folder.paths.clone();
        let until = self.until(&request);
        let started = self.start(request, resolved, folder, until, launched);
        let started = Box::pin(started).await;
        drop(permit);
        let started = started.map_err(|error| error.without_folder(&paths));
        if started.is_ok() || !is_trial && !given_up() {
            self.failed_starts.note(&spec, &started);
        }
        match &started {
            Ok(_) => self.metrics.child_started(&spec.name, began.elapsed()),
            Err(_) => self.metrics.child_start_failed(&spec.name),
        }
        started
    }

    /// The installed environment that a local process is started from, if there is one. The packages
    /// of a locked server may still be installing: this waits for them before it takes a permit among
    /// the starts, which others can use meanwhile.
    async fn resolved(&self, request: &ChildRequest) -> Result<Option<Arc<Resolved>>, ChildError> {
        if let Transport::Remote(_) = &request.spec.transport {
            return Ok(None);
        }
        let ready = self.launches.ready(&request.spec, self.until(request));
        let Some(found) = request.stop.run_until_cancelled(ready).await else {
            return Err(stopped());
        };
        let found = found.map_err(|why| ChildError::not_started(why.to_string()))?;
        // If an environment was modified, the launcher is used instead.
        Ok(found.filter(|found| found.locked || found.holds()))
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

    /// The profile for a server's children: `wanted`, unless the server is known not to support its
    /// form of the protocol.
    pub fn spoken(&self, spec: &ServerSpec, wanted: Profile) -> Profile {
        if self.modern_only.lock().contains(&spec.version()) {
            Profile::modern()
        } else {
            wanted
        }
    }

    /// Sets that the server's children use the form of 2026-07-28 from now on.
    pub fn speaks_modern_only(&self, spec: &ServerSpec) {
        tracing::debug!(server = %spec.name, "server supports only revision 2026-07-28");
        self.modern_only.lock().insert(spec.version());
    }

    /// A permit among the concurrent starts. The wait has the same limit as a start, in addition to
    /// it.
    async fn permit(&self, request: &ChildRequest) -> Result<StartPermit, ChildError> {
        let permit = self.starts.enter(&request.tenant);
        let permit = tokio::time::timeout_at(self.until(request), permit);
        match request.stop.run_until_cancelled(permit).await {
            Some(Ok(permit)) => Ok(Either::Left(permit)),
            Some(Err(_)) => Err(ChildError::TooManyStarts),
            None => Err(stopped()),
        }
    }

    /// The time at which a start that begins now must have finished.
    fn until(&self, request: &ChildRequest) -> Instant {
        let longest = Instant::now() + self.settings.start_timeout;
        request.deadline.min(longest)
    }

    async fn start(
        &self,
        request: ChildRequest,
        resolved: Option<Arc<Resolved>>,
        folder: Folder,
        until: Instant,
        launched: oneshot::Sender<u32>,
    ) -> Result<Child, ChildError> {
        let began = Instant::now();
        let log = ServerLog::new(request.spec.name.as_str(), request.job.server_log());
        let (news, _) = broadcast::channel(NEWS);
        let listener = with_news(request.listener.clone(), news.clone(), request.spec.mode);
        let (body, stdin, stdout) = match &request.spec.transport {
            Transport::Stdio(command) => {
                let local = self.local(command, resolved, &request, &folder, until, &log);
                let local = Box::pin(local).await?;
                let _ = launched.send(local.0.pid().unwrap_or_default());
                local
            }
            // A remote session uses no resources of this machine that concurrent starts compete for,
            // so it has no permit among them.
            Transport::Remote(remote) => self.remote(remote, &request).await?,
        };
        let limit = self.settings.max_message;
        let cleaner = without_folder(folder.paths.clone());
        let noise = log.clone();
        let noise = Arc::new(move |line: &[u8]| noise.noise(line));
        let connection = Connection::open(stdin, stdout, limit, listener.clone(), cleaner, noise);
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
        let failure = match request.stop.run_until_cancelled(greeting).await {
            Some(Ok(Ok(Ok(hello)))) => {
                if profile.era == Era::Legacy && hello.era == Era::Modern {
                    self.speaks_modern_only(&request.spec);
                }
                let listener = (mode != Mode::Stateless).then_some(listener);
                return Ok(child.into_child(hello, listener));
            }
            Some(Ok(Ok(Err(refused)))) => {
                // The name may now belong to another program.
                self.modern_only.lock().remove(&request.spec.version());
                let error = refused.error.as_ref();
                match error.and_then(|raw| child.body.failed(raw)) {
                    Some(failed) => ChildError::not_started(failed.why),
                    None => refused.into(),
                }
            }
            Some(Ok(Err(closed))) => match child.closed(closed).await {
                ChildError::Died { status, said } => {
                    let why = format!("the process exited before it was ready ({status})");
                    ChildError::failed_start(why, said)
                }
                other => other,
            },
            Some(Err(_)) => {
                let waited = until.saturating_duration_since(began).as_secs_f64();
                let why = format!("no response to initialize within {waited:.0} s");
                ChildError::failed_start(why, child.log.last_words())
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
        log: &ServerLog,
    ) -> Result<Started, ChildError> {
        let resolved = command.resolve(&request.job.work(), &request.job.id(), &request.user);
        let fork = self.fork_from(request, command, &resolved, installed.as_ref());
        let job = &request.job;
        let (tmp, short) = (job.tmp(), folder.paths.short_tmp.as_ref());
        let launch = self.launch(resolved, installed.as_deref(), job, short.unwrap_or(&tmp));
        let forked = match &fork {
            Some(fork) => self.forked(&request.spec, fork, &launch, until).await,
            None => None,
        };
        let (process, pipes) = match forked {
            Some(forked) => forked,
            None => bridge_process::start(&launch, &self.supervisors, until).await?,
        };
        tokio::spawn(log.clone().follow(pipes.stderr));
        let (stdin, stdout) = (Either::Left(pipes.stdin), Either::Left(pipes.stdout));
        Ok((Body::Local(process), stdin, stdout))
    }

    async fn remote(
        &self,
        spec: &RemoteSpec,
        request: &ChildRequest,
    ) -> Result<Started, ChildError> {
        let outbound = self.outbound.clone();
        // Reads the system's certificates from disk.
        let read = move || outbound.get_or_init(Outbound::from_environment).clone();
        let outbound = tokio::task::spawn_blocking(read)
            .await
            .map_err(|error| ChildError::not_started(error.to_string()))?;
        let (schemas, server) = (self.schemas.get().cloned(), request.spec.name.clone());
        let options = RemoteOptions {
            outbound,
            connect_timeout: CONNECT,
            idle_timeout: request.spec.timeout.max(self.settings.start_timeout)
                + self.settings.input_timeout
                + SPARE,
            max_message: self.settings.max_message,
            tool_schema: schemas
                .map(|schemas| -> ToolSchema { Arc::new(move |tool| schemas(&server, tool)) }),
        };
        let pipes = remote::connect(&spec.for_user(&request.user), options);
        let pipes = pipes.map_err(ChildError::not_started)?;
        self.remotes.spawn(pipes.handle.gone());
        let (stdin, stdout) = (Either::Right(pipes.stdin), Either::Right(pipes.stdout));
        Ok((Body::Remote(pipes.handle), stdin, stdout))
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

/// Messages of a shared child that belong to no request may concern any caller: only those for all
/// callers are forwarded. Late progress contains an internal number.
fn with_news(listener: Listener, news: broadcast::Sender<Said>, mode: Mode) -> Listener {
    Arc::new(move |said| {
        listener(said);
        let of_one_caller = mode != Mode::Shared && &*said.method != method::PROGRESS;
        if of_one_caller || is_news(&said.method) {
            // Sending fails if there are no receivers.
            let _ = news.send(said.clone());
        }
    })
}

fn stopped() -> ChildError {
    ChildError::not_started("the bridge is stopping".to_owned())
}

/// Holds a permit among the starts while the process with this id is starting.
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

// Forked processes.

/// Timeout of a fork: it takes milliseconds, and if it takes longer, the parent does not run.
const LONGEST_FORK: Duration = Duration::from_secs(10);

impl Children {
    /// How processes of this server are started; starts a fork parent if one is allowed.
    pub async fn forking(&self, spec: &Arc<ServerSpec>, until: Instant) -> Forking {
        let Transport::Stdio(command) = &spec.transport else {
            return Forking::NotYet;
        };
        let found = self.launches.ready(spec, until).await.ok().flatten();
        if let Some(why) = ForkServers::refuses(spec, found.as_deref()) {
            return Forking::Starts(why.into());
        }
        // Whether it can be forked does not depend on its folder.
        let plan = Scratch::within(&self.settings.scratch).map_err(|error| error.to_string());
        let plan = plan.and_then(|folder| {
            let job = &folder.job;
            let command = command.resolve(&job.work(), &job.id(), &UserValues::default());
            Plan::new(&command, found.as_deref())
        });
        match (plan, &found) {
            (Ok(plan), Some(found)) => {
                let prepare = || self.parent_for(spec, command, found);
                let _ = self.forks.parent(spec, found, &plan, true, prepare);
                self.forks.settled(spec, until).await
            }
            (Err(why), _) => Forking::Starts(why.into()),
            (Ok(_), None) => Forking::NotYet,
        }
    }

    /// Starts the fork parent of this server, if one is allowed, and waits for it.
    pub async fn prepare(&self, spec: &Arc<ServerSpec>, until: Instant) {
        if self.forks.is_undecided(spec) {
            self.forking(spec, until).await;
        }
    }

    /// The parent to fork the process from, and the process's arguments; `None` starts it separately.
    fn fork_from(
        &self,
        request: &ChildRequest,
        command: &CommandSpec,
        resolved: &ResolvedCommand,
        found: Option<&Arc<Resolved>>,
    ) -> Option<(Arc<Ready>, Vec<String>)> {
        let spec = &request.spec;
        if ForkServers::refuses(spec, found.map(Arc::as_ref)).is_some() {
            return None;
        }
        let plan = Plan::new(resolved, found.map(Arc::as_ref));
        let plan = plan.inspect_err(|why| self.forks.cannot(spec, why)).ok()?;
        let found = found?;
        let prepare = || self.parent_for(spec, command, found);
        let parent = self.forks.parent(spec, found, &plan, false, prepare)?;
        if !parent.sources.hold() {
            self.forks.forget(spec);
            return None;
        }
        Some((parent, plan.argv))
    }

    /// A process that cannot be forked is started separately, as are further ones for a while.
    async fn forked(
        &self,
        spec: &ServerSpec,
        (parent, argv): &(Arc<Ready>, Vec<String>),
        launch: &Launch,
        until: Instant,
    ) -> Option<(Process, Pipes)> {
        // If the parent is stopped, enough time must remain to start the process separately.
        let now = Instant::now();
        let patience = (until.saturating_duration_since(now) / 4).min(LONGEST_FORK);
        let forked = parent
            .parent
            .fork(launch, argv, false, now + patience)
            .await;
        forked
            .inspect_err(|error| {
                // The parent does not cause a lack of room.
                if !error.is_lack_of_room() {
                    self.forks.give_up(spec, parent, &error.brief());
                }
            })
            .ok()
    }

    fn parent_for(
        &self,
        spec: &Arc<ServerSpec>,
        command: &CommandSpec,
        found: &Arc<Resolved>,
    ) -> std::io::Result<ParentStart> {
        let folder = Scratch::within(&self.settings.scratch)?;
        let job = &folder.job;
        let command = command.resolve(&job.work(), &job.id(), &UserValues::default());
        let plan = Plan::new(&command, Some(found)).map_err(std::io::Error::other)?;
        // The long path contains the text that identifies modules which store it.
        let launch = self.launch(command, Some(found), job, &job.tmp());
        Ok(ParentStart {
            spec: spec.clone(),
            found: found.clone(),
            profile: self.spoken(spec, Profile::silent()),
            plan,
            launch,
            folder,
        })
    }
}

// Recent failed starts, for `/health`: the catalogue knows the lists that a server had earlier, not
// whether a process of it can be started now.

/// How long a failed start counts for the whole machine: a later start that would end the state is
/// not guaranteed.
const SHORT: Duration = Duration::from_secs(30);

/// Failures by server, and for the machine.
#[derive(Default)]
pub struct FailedStarts(Mutex<Failed>);

#[derive(Default)]
struct Failed {
    servers: HashMap<ServerName, (SpecVersion, Arc<str>)>,
    short: Option<(std::time::Instant, Arc<str>)>,
}

impl FailedStarts {
    /// Records the result of a start. An abandoned start says nothing about the server, and a process
    /// that rejects a revision of the protocol has started: each `shared` server is asked for the
    /// newest one once.
    pub fn note<T>(&self, spec: &ServerSpec, started: &Result<T, ChildError>) {
        let mut failed = self.0.lock();
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

    /// The error of the last start of this server, if it failed.
    pub fn last_of(&self, spec: &ServerSpec) -> Option<Arc<str>> {
        let failed = self.0.lock();
        let (version, why) = failed.servers.get(&spec.name)?;
        (*version == spec.version()).then(|| why.clone())
    }

    /// The error of recent starts, if no process of any server could be started.
    pub fn shortage(&self) -> Option<Arc<str>> {
        let failed = self.0.lock();
        let (at, why) = failed.short.as_ref()?;
        (at.elapsed() < SHORT).then(|| why.clone())
    }
}
