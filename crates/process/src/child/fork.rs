//! Fork parents: a process that has imported a Python server's modules, from which its processes are
//! forked.
//!
//! ```text
//! bridge ─┬─ nursery (supervisor) ── parent (server/) ─┬─ supervisor ── server
//!         │                                              └─ supervisor ── server
//!         └──── control socket of each supervisor, pipes of each server
//! ```
//! A process is forked before anything of the server's own has run but imports, and whatever an import
//! leaves behind that must not be shared keeps that module out of the parent (`server/`).

use std::{
    ffi::OsStr,
    fs,
    fs::{DirBuilder, File},
    io,
    io::IoSlice,
    mem::MaybeUninit,
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
        unix::{ffi::OsStrExt as _, fs::DirBuilderExt as _},
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bridge_model::{Job, JobId};
use bridge_protocol::method;
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags,
    SocketType, recv, sendmsg, socketpair,
};
use serde::{Deserialize, Serialize};
use tokio::{
    io::Interest,
    net::UnixStream,
    time::{Instant, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;

use super::{
    ChildError, End, Profile,
    connection::Connection,
    hello, launch,
    launch::{Launch, Pipes},
    log::ServerLog,
    process::{Handle, Keeper, Process, Supervisors, Sweeper},
};
use crate::{
    launch::{Kind, Resolved, Target as Installed, python_target},
    spec::ResolvedCommand,
};

// A running fork parent: started, taught what to import, and then asked for processes.

/// What a parent that is told to end by the end of its socket gets.
const LEAVE: Duration = Duration::from_secs(5);

/// What parents are made with.
#[derive(Clone)]
pub struct Means {
    /// Those of all children.
    pub supervisors: Supervisors,
    /// Bounds a start, handshake included.
    pub start_timeout: Duration,
    /// Bytes of one message from a process.
    pub max_message: usize,
}

/// A process that has imported what a server needs. Dropping it ends it; what was forked from it
/// lives on.
pub struct Parent {
    plan: Plan,
    socket: Socket,
    sweeper: Sweeper,
    retired: CancellationToken,
    means: Means,
    /// What it imported.
    pub loaded: Loaded,
}

impl Drop for Parent {
    fn drop(&mut self) {
        self.retired.cancel();
    }
}

impl Parent {
    /// Starts one in a folder of its own. `launch` is how a process of this server would be started
    /// there. The error says why it cannot be.
    pub async fn start(
        plan: Plan,
        launch: Launch,
        folder: &Scratch,
        name: &str,
        profile: &Profile,
        means: Means,
    ) -> Result<Self, String> {
        let written = write_program(&folder.program);
        written.map_err(|error| format!("cannot create the directory of its program: {error}"))?;
        let job = &folder.job;
        let log = ServerLog::new(name, job.server_log());
        let said = |error: ChildError| error.without_folder(&job.paths()).to_string();
        let own = Launch {
            args: [
                plan.options.clone(),
                vec![folder.program.display().to_string()],
            ]
            .concat(),
            program: plan.program.clone(),
            ..launch.clone()
        };
        let (socket, theirs) = Socket::pair().map_err(|error| error.to_string())?;
        let (pipes, mut stdio) = launch::pipes().map_err(|error| error.to_string())?;
        stdio.stdin = theirs;
        drop(pipes.stdin);
        let until = Instant::now() + means.start_timeout;
        let process = launch::nursery(&own, stdio, &means.supervisors, until);
        let process = process.await.map_err(said)?;
        tokio::spawn(log.clone().follow(pipes.stdout));
        tokio::spawn(log.clone().follow(pipes.stderr));
        let retired = CancellationToken::new();
        let mut parent = Self {
            sweeper: process.sweeper(),
            socket,
            retired: retired.clone(),
            means,
            loaded: Loaded {
                modules: 0,
                left_out: Vec::new(),
                sources: Vec::new(),
            },
            plan,
        };
        // Until it is fit, all of it ends with this future.
        let begin = Order::Begin(Begin {
            target: &parent.plan.target,
            name: parent.plan.name(),
            written: &parent.plan.written,
            argv: &parent.plan.argv,
            env: pairs(&launch),
            sentinel: job.id().to_string(),
            learnt: job.folder().join("learnt"),
        });
        let lost = |error: io::Error| format!("its fork parent is not running: {error}");
        // It forks supervisors, and cannot read what program its own is: that one is not dumpable.
        let program = File::open("/proc/self/exe").map_err(|error| error.to_string())?;
        let sent = parent.socket.send(&begin, &[program.as_fd()]).await;
        sent.map_err(lost)?;
        let own_argv = parent.plan.argv.clone();
        let handshake = |learn| parent.handshake(&launch, &own_argv, learn, &log, profile);
        handshake(true).await.map_err(said)?;
        parent
            .socket
            .send(&Order::Preload {}, &[])
            .await
            .map_err(lost)?;
        // Imports again and again while it finds modules that it must leave out.
        let until = Instant::now() + parent.means.start_timeout * 4;
        parent.loaded = match timeout_at(until, parent.socket.next()).await {
            Ok(Some(Word::Ready(loaded))) => loaded,
            Ok(Some(Word::Unfit(why))) => return Err(why),
            Ok(None) => return Err(format!("its imports fail when preloaded; {}", log.tail())),
            Err(_) => return Err("preloading its imports takes too long".to_owned()),
        };
        let handshake = parent.handshake(&launch, &own_argv, false, &log, profile);
        handshake.await.map_err(said)?;
        tokio::spawn(keep(Arc::new(process), retired));
        Ok(parent)
    }

    /// Whether this is what it runs.
    pub fn runs(&self, plan: &Plan) -> bool {
        let same = |plan: &Plan| {
            (
                plan.program.clone(),
                plan.options.clone(),
                plan.target.clone(),
            )
        };
        same(&self.plan) == same(plan)
    }

    /// A process of its own, as `launch` says.
    pub async fn fork(
        &self,
        launch: &Launch,
        argv: &[String],
        until: Instant,
    ) -> Result<(Process, Pipes), ChildError> {
        self.forked(launch, argv, false, until).await
    }

    /// Waits until it is gone.
    pub async fn gone(&self) {
        while self.socket.next().await.is_some() {}
    }

    async fn forked(
        &self,
        launch: &Launch,
        argv: &[String],
        learn: bool,
        until: Instant,
    ) -> Result<(Process, Pipes), ChildError> {
        let failed = |error: io::Error| {
            ChildError::not_started(format!("its fork parent accepts no requests: {error}"))
        };
        let (ours, control) = std::os::unix::net::UnixStream::pair().map_err(failed)?;
        ours.set_nonblocking(true).map_err(failed)?;
        let ours = tokio::net::UnixStream::from_std(ours).map_err(failed)?;
        let control = OwnedFd::from(control);
        let (pipes, theirs) = launch::pipes().map_err(failed)?;
        let order = Order::Fork(Fork {
            cwd: &launch.cwd.to_string_lossy(),
            env: pairs(launch),
            argv,
            learn,
        });
        let [stdin, stdout, stderr] = theirs.all();
        let with = [stdin, stdout, stderr, control.as_fd()];
        let sent = timeout_at(until, self.socket.send(&order, &with)).await;
        sent.map_err(io::Error::from).flatten().map_err(failed)?;
        // The other end must be the parent's alone: its end is how we learn that it is gone.
        drop((theirs, control));
        let keeper = Keeper::Forked(None, self.sweeper.clone(), self.means.supervisors.clone());
        let process = launch::follow(ours, keeper, until).await?;
        Ok((process, pipes))
    }

    /// A process that is asked what it offers and then killed.
    async fn handshake(
        &self,
        launch: &Launch,
        argv: &[String],
        learn: bool,
        log: &ServerLog,
        profile: &Profile,
    ) -> Result<(), ChildError> {
        let until = Instant::now() + self.means.start_timeout;
        let (process, pipes) = self.forked(launch, argv, learn, until).await?;
        tokio::spawn(log.clone().follow(pipes.stderr));
        let connection = Connection::open(
            pipes.stdin,
            pipes.stdout,
            self.means.max_message,
            Arc::new(|_| {}),
            Arc::new(|line| line),
            Arc::new(log.clone()),
        );
        let greeting = async {
            let hello = hello::introduce(&connection, profile).await;
            let hello = hello.map_err(|_| not_ready(log))??;
            let params = (hello.era == bridge_protocol::era::Era::Modern)
                .then(|| super::hello::modern_params(None, &Profile::modern()));
            let listed = connection
                .request(method::TOOLS_LIST, params.as_ref())
                .await;
            // A server without tools refuses, and imported what it needs to do so.
            listed.map(drop).map_err(|_| not_ready(log))
        };
        let greeted = timeout_at(until, greeting).await;
        process.ask_to_end(End::Kill);
        process.gone().await;
        greeted.unwrap_or(Err(ChildError::Timeout))
    }
}

/// The environment as it goes over the wire.
fn pairs(launch: &Launch) -> Vec<(String, String)> {
    let latin = |text: &OsStr| latin1(text.as_bytes());
    let env = launch.env.iter();
    env.map(|(name, value)| (latin(name), latin(value)))
        .collect()
}

fn not_ready(log: &ServerLog) -> ChildError {
    let said = log.tail();
    ChildError::NotStarted {
        why: "the forked process exited before it was ready".to_owned(),
        said: if said.is_empty() {
            said
        } else {
            format!("; last output: {said}")
        },
        refused: false,
    }
}

/// Holds the nursery for as long as anything lives below it.
async fn keep(nursery: Arc<Process>, retired: CancellationToken) {
    let parent = Handle::open(nursery.pid());
    tokio::select! {
        _ = nursery.gone() => return,
        () = retired.cancelled() => {}
    }
    // The socket is closed: it ends by itself, unless it hangs.
    if let Ok(parent) = parent
        && timeout(LEAVE, parent.gone()).await.is_err()
    {
        parent.kill();
    }
    nursery.gone().await;
}

// Whether a server's command line can be run by forking, and what of it then is what.

/// What a fork parent runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// A file; that of a package's program is one too.
    File(String),
    /// As with `-m`.
    Module(String),
}

/// A command line of Python, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The interpreter.
    pub program: String,
    /// Its own options.
    pub options: Vec<String>,
    /// What it runs.
    pub target: Target,
    /// What stands for the target.
    pub written: Vec<String>,
    /// The server's own arguments.
    pub argv: Vec<String>,
}

impl Plan {
    /// The error says why each process must be started anew.
    pub fn new(command: &ResolvedCommand, found: Option<&Resolved>) -> Result<Self, String> {
        let Some(found) = found else {
            return Err("its packages are not installed, or it is not a Python server".to_owned());
        };
        let Kind::Python { target, .. } = &found.kind else {
            return Err("not a Python server".to_owned());
        };
        if target.is_none() {
            return Err("its program is not a Python function".to_owned());
        }
        // What follows `rest` is the server's own; without an environment that is everything.
        let own = command.args.get(found.rest..).unwrap_or_default();
        let args: Vec<String> = found.args.iter().chain(own).cloned().collect();
        let (target, behind) = python_target(&args)?;
        let (target, words) = match target {
            Installed::Module(name) => {
                let joined = args[behind - 1] != "-m" && args[behind - 1].starts_with("-m");
                (Target::Module(name), if joined { 1 } else { 2 })
            }
            Installed::File(path) if path.is_absolute() => {
                (Target::File(path.display().to_string()), 1)
            }
            Installed::File(path) => {
                let path = path.display();
                return Err(format!(
                    "{path} is relative to the working directory: write the full path"
                ));
            }
            Installed::Function { .. } => return Err("it does not run a file".to_owned()),
        };
        let options = args[..behind - words].to_vec();
        if let Some(odd) = options.iter().find(|option| {
            !option.starts_with("-W") && !option.starts_with("-X") && option.contains(['i', 'x'])
        }) {
            return Err(format!(
                "the interpreter option {odd} is not supported for forking"
            ));
        }
        Ok(Self {
            program: found.program.clone(),
            options,
            target,
            written: args[behind - words..behind].to_vec(),
            argv: args[behind..].to_vec(),
        })
    }

    /// `sys.argv[0]` before the target has run.
    pub fn name(&self) -> &str {
        match &self.target {
            Target::File(path) => path,
            Target::Module(_) => "-m",
        }
    }
}

// The program of a fork parent, in Python: written beside its folder, and removed with it.

macro_rules! files {
    ($($name:literal),*) => { [$(($name, include_str!(concat!("fork/server/", $name)))),*] };
}

const FILES: [(&str, &str); 8] = files![
    "__main__.py",
    "mcpo_fork/__init__.py",
    "mcpo_fork/captured.py",
    "mcpo_fork/draws.py",
    "mcpo_fork/parent.py",
    "mcpo_fork/process.py",
    "mcpo_fork/state.py",
    "mcpo_fork/watch.py"
];

/// Writes it into a new folder.
fn write_program(folder: &Path) -> io::Result<()> {
    std::fs::create_dir(folder)?;
    std::fs::create_dir(folder.join("mcpo_fork"))?;
    let mut files = FILES.iter();
    files.try_for_each(|(name, text)| std::fs::write(folder.join(name), text))
}

// Where a fork parent works.

/// A folder that goes when this is dropped, and beside it the parent's program, in whose path its
/// name is not.
pub struct Scratch {
    /// A folder like a workspace, which is in no list.
    pub job: Job,
    /// Where the parent's program is written.
    pub program: PathBuf,
}

impl Scratch {
    /// Makes one.
    pub fn within(folder: &Path) -> io::Result<Self> {
        let program = folder.join(format!("fork-{}", uuid::Uuid::new_v4()));
        let within = fs::canonicalize(folder)?;
        let job = Job::below(&within, &within, JobId::random());
        for folder in [job.folder(), &job.work(), &job.home(), &job.tmp()] {
            DirBuilder::new().mode(0o700).create(folder)?;
        }
        Ok(Self { job, program })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.program);
        let _ = fs::remove_dir_all(self.job.folder());
    }
}

// The words between the bridge and a fork parent; `server/mcpo_fork/parent.py` has the other side.

/// Bytes of one message from a parent.
const MOST: usize = 1 << 18;

/// What a parent is told.
#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Order<'a> {
    /// What runs.
    Begin(Begin<'a>),
    /// A new process.
    Fork(Fork<'a>),
    /// Import what the processes so far imported.
    Preload {},
}

/// What runs.
#[derive(Serialize)]
pub struct Begin<'a> {
    /// A module, a script or an entry point.
    #[serde(flatten)]
    pub target: &'a Target,
    /// `sys.argv[0]`.
    pub name: &'a str,
    /// What stands for that on the command line.
    pub written: &'a [String],
    /// The server's own arguments, as they are in the parent's own folder.
    pub argv: &'a [String],
    /// The environment that its interpreter was given; see [`Fork::env`].
    pub env: Vec<(String, String)>,
    /// What no module may keep.
    pub sentinel: String,
    /// The file in which processes write down what they import.
    pub learnt: PathBuf,
}

/// A new process.
#[derive(Serialize)]
pub struct Fork<'a> {
    /// Its working folder.
    pub cwd: &'a str,
    /// Bytes, each as the character of its number.
    pub env: Vec<(String, String)>,
    /// The server's own arguments.
    pub argv: &'a [String],
    /// It writes down what it imports.
    pub learn: bool,
}

/// What a parent says.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Word {
    Ready(Loaded),
    Unfit(String),
}

/// What a parent imported.
#[derive(Debug, Deserialize)]
pub struct Loaded {
    /// How many modules it has.
    pub modules: usize,
    /// What each process imports itself, with the reason.
    pub left_out: Vec<String>,
    /// Files that may change while the bridge runs.
    pub sources: Vec<PathBuf>,
}

/// Our end. Of a stream it has nothing but the type: messages stay apart.
struct Socket(UnixStream);

impl Socket {
    /// Ours, and the parent's.
    pub fn pair() -> io::Result<(Self, OwnedFd)> {
        let kind = SocketType::SEQPACKET;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
        let ours = std::os::unix::net::UnixStream::from(ours);
        ours.set_nonblocking(true)?;
        Ok((Self(UnixStream::from_std(ours)?), theirs))
    }

    /// Sends a message with descriptors; it arrives whole or not at all.
    pub async fn send(&self, order: &Order<'_>, with: &[BorrowedFd<'_>]) -> io::Result<()> {
        let text = serde_json::to_vec(order)?;
        let send = || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            if !with.is_empty() {
                ancillary.push(SendAncillaryMessage::ScmRights(with));
            }
            let text = [IoSlice::new(&text)];
            sendmsg(&self.0, &text, &mut ancillary, SendFlags::NOSIGNAL).map_err(io::Error::from)
        };
        self.0.async_io(Interest::WRITABLE, send).await?;
        Ok(())
    }

    /// The next word; `None` once the parent is gone.
    pub async fn next(&self) -> Option<Word> {
        let receive = || {
            let mut buffer = vec![0; MOST];
            let (count, _) = recv(self.0.as_fd(), &mut buffer, RecvFlags::empty())?;
            buffer.truncate(count);
            Ok(buffer)
        };
        let text = self.0.async_io(Interest::READABLE, receive).await.ok()?;
        serde_json::from_slice(&text).ok()
    }
}

/// Bytes, each as the character of its number: JSON knows no others.
fn latin1(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| char::from(*byte)).collect()
}
