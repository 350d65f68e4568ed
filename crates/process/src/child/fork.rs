//! Fork parents: processes that have imported the modules of a Python server, and are forked to
//! start the server's processes.
//!
//! ```text
//! bridge ─┬─ nursery (supervisor) ── parent (server/) ─┬─ supervisor ── server
//!         │                                              └─ supervisor ── server
//!         └──── control socket of each supervisor, pipes of each server
//! ```
//! A process is forked before any code of the server except imports has run. A module is not
//! imported in the parent if its import creates state that must not be shared (`server/`).

use std::{
    ffi::OsStr,
    fs,
    fs::{DirBuilder, File},
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{ffi::OsStrExt as _, fs::DirBuilderExt as _},
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bridge_model::{Job, JobId};
use bridge_protocol::{era::Era, method};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, recv, socketpair};
use serde::{Deserialize, Serialize};
use tokio::{
    io::Interest,
    net::UnixStream,
    time::{Instant, timeout, timeout_at},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    ChildError, End,
    connection::Connection,
    control::Duty,
    hello, launch,
    launch::{Launch, Pipes},
    log::ServerLog,
    process::{Handle, Keeper, Process, Supervisors, Sweeper},
};
use crate::{
    launch::{Kind, Resolved, Target as Installed, python_target},
    spec::{Profile, ResolvedCommand},
};

// A running fork parent.

/// The time for a parent to exit after its socket was closed.
const LEAVE: Duration = Duration::from_secs(5);

/// The common settings of all fork parents.
#[derive(Clone)]
pub struct Means {
    /// The supervisors of all children.
    pub supervisors: Supervisors,
    /// The timeout of a start, including the handshake.
    pub start_timeout: Duration,
    /// Maximum size of one message from a process, in bytes.
    pub max_message: usize,
}

/// A process that has imported a server's modules. Dropping it ends the process, but not the
/// processes that were forked from it.
pub struct Parent {
    plan: Plan,
    socket: Socket,
    sweeper: Sweeper,
    _retired: DropGuard,
    means: Means,
    /// The imported modules.
    pub loaded: Loaded,
}

impl Parent {
    /// Starts one in a separate folder. `launch` starts a process of this server there. The error
    /// is the reason why no parent can be used.
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
        let mut own = launch.clone();
        own.program.clone_from(&plan.program);
        own.args.clone_from(&plan.options);
        own.args.push(folder.program.display().to_string());
        let (socket, theirs) = Socket::pair().map_err(|error| error.to_string())?;
        let (pipes, mut stdio) = launch::pipes().map_err(|error| error.to_string())?;
        stdio[0] = theirs;
        drop(pipes.stdin);
        let until = Instant::now() + means.start_timeout;
        let process = launch::supervised(Duty::Nursery, &own, stdio, &means.supervisors, until);
        let process = process.await.map_err(said)?;
        tokio::spawn(log.clone().follow(pipes.stdout));
        tokio::spawn(log.clone().follow(pipes.stderr));
        let retired = CancellationToken::new();
        let mut parent = Self {
            sweeper: process.sweeper(),
            socket,
            _retired: retired.clone().drop_guard(),
            means,
            loaded: Loaded::default(),
            plan,
        };
        // Until it is ready, dropping this future ends all its processes.
        let begin = Order::Begin {
            target: &parent.plan.target,
            name: parent.plan.name(),
            written: &parent.plan.written,
            argv: &parent.plan.argv,
            env: pairs(&launch),
            sentinel: job.id().to_string(),
            learnt: job.folder().join("learnt"),
        };
        let lost = |error: io::Error| format!("its fork parent is not running: {error}");
        // The parent forks supervisors, but cannot open its own supervisor's executable, which is
        // not dumpable.
        let program = File::open("/proc/self/exe").map_err(|error| error.to_string())?;
        let sent = parent.socket.send(&begin, &[program.as_fd()]).await;
        sent.map_err(lost)?;
        let own_argv = parent.plan.argv.clone();
        let handshake = |learn| parent.handshake(&launch, &own_argv, learn, &log, profile);
        handshake(true).await.map_err(said)?;
        let sent = parent.socket.send(&Order::Preload {}, &[]).await;
        sent.map_err(lost)?;
        // It repeats its imports while it finds modules that it must not import.
        let until = Instant::now() + parent.means.start_timeout * 4;
        parent.loaded = match timeout_at(until, parent.socket.next()).await {
            Ok(Some(Reply::Ready(loaded))) => loaded,
            Ok(Some(Reply::Unsupported(why))) => return Err(why),
            Ok(None) => return Err(format!("its imports fail when preloaded; {}", log.tail())),
            Err(_) => return Err("preloading its imports takes too long".to_owned()),
        };
        let handshake = parent.handshake(&launch, &own_argv, false, &log, profile);
        handshake.await.map_err(said)?;
        tokio::spawn(keep(Arc::new(process), retired));
        Ok(parent)
    }

    /// Whether it runs the same program.
    pub fn runs(&self, plan: &Plan) -> bool {
        let own = &self.plan;
        (&own.program, &own.options, &own.target) == (&plan.program, &plan.options, &plan.target)
    }

    /// Waits until it has ended.
    pub async fn gone(&self) {
        while self.socket.next().await.is_some() {}
    }

    /// Forks a process as `launch` specifies; with `learn`, the process records its imports.
    pub async fn fork(
        &self,
        launch: &Launch,
        argv: &[String],
        learn: bool,
        until: Instant,
    ) -> Result<(Process, Pipes), ChildError> {
        let failed = |error: io::Error| {
            ChildError::not_started(format!("its fork parent accepts no requests: {error}"))
        };
        let (ours, control) = launch::control().map_err(failed)?;
        let (pipes, theirs) = launch::pipes().map_err(failed)?;
        let order = Order::Fork {
            cwd: &launch.cwd.to_string_lossy(),
            env: pairs(launch),
            argv,
            learn,
        };
        let [stdin, stdout, stderr] = theirs.each_ref().map(AsFd::as_fd);
        let with = [stdin, stdout, stderr, control.as_fd()];
        let sent = timeout_at(until, self.socket.send(&order, &with)).await;
        sent.map_err(io::Error::from).flatten().map_err(failed)?;
        // Only the parent may keep the other ends: their closing shows that it has ended.
        drop((theirs, control));
        let keeper = Keeper::Forked(None, self.sweeper.clone(), self.means.supervisors.clone());
        let process = launch::follow(ours, keeper, until).await?;
        Ok((process, pipes))
    }

    /// Starts a process, lists its tools, and kills it.
    async fn handshake(
        &self,
        launch: &Launch,
        argv: &[String],
        learn: bool,
        log: &ServerLog,
        profile: &Profile,
    ) -> Result<(), ChildError> {
        let until = Instant::now() + self.means.start_timeout;
        let (process, pipes) = self.fork(launch, argv, learn, until).await?;
        tokio::spawn(log.clone().follow(pipes.stderr));
        let noise = log.clone();
        let connection = Connection::open(
            pipes.stdin,
            pipes.stdout,
            self.means.max_message,
            Arc::new(|_| {}),
            Arc::new(|line| line),
            Arc::new(move |line: &[u8]| noise.noise(line)),
        );
        let greeting = async {
            let hello = hello::introduce(&connection, profile).await;
            let hello = hello.map_err(|_| not_ready(log))??;
            let params =
                (hello.era == Era::Modern).then(|| hello::modern_params(None, &Profile::modern()));
            let listed = connection.request(method::TOOLS_LIST, params.as_ref());
            // A server without tools responds with an error, after the same imports.
            listed.await.map(drop).map_err(|_| not_ready(log))
        };
        let greeted = timeout_at(until, greeting).await;
        process.ask_to_end(End::Kill);
        process.gone().await;
        greeted.unwrap_or(Err(ChildError::Timeout))
    }
}

/// The environment in a message: each byte as the character with its number, because JSON has no
/// byte strings.
fn pairs(launch: &Launch) -> Vec<(String, String)> {
    let latin1 = |text: &OsStr| text.as_bytes().iter().copied().map(char::from).collect();
    let env = launch.env.iter();
    env.map(|(name, value)| (latin1(name), latin1(value)))
        .collect()
}

fn not_ready(log: &ServerLog) -> ChildError {
    let why = "the forked process exited before it was ready".to_owned();
    ChildError::failed_start(why, log.last_words())
}

/// Keeps the nursery while any of its processes lives.
async fn keep(nursery: Arc<Process>, retired: CancellationToken) {
    let parent = Handle::open(nursery.pid());
    tokio::select! {
        _ = nursery.gone() => return,
        () = retired.cancelled() => {}
    }
    // The socket is closed: the parent exits by itself, unless it hangs.
    if let Ok(parent) = parent
        && timeout(LEAVE, parent.gone()).await.is_err()
    {
        parent.kill();
    }
    nursery.gone().await;
}

// The parts of a server's command line, and whether forking can run it.

/// The code that a fork parent runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// A file, possibly a program of a package.
    File(String),
    /// A module, as with `-m`.
    Module(String),
}

/// The parts of a Python command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The interpreter.
    pub program: String,
    /// The interpreter's options.
    pub options: Vec<String>,
    /// The code to run.
    pub target: Target,
    /// The arguments that name the target.
    pub written: Vec<String>,
    /// The server's own arguments.
    pub argv: Vec<String>,
}

impl Plan {
    /// Parses a command. The error is the reason why each process must be started separately.
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
        // The server's own arguments follow `rest`; without an installed environment all arguments
        // are its own.
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

    /// The value of `sys.argv[0]` before the target runs.
    pub fn name(&self) -> &str {
        match &self.target {
            Target::File(path) => path,
            Target::Module(_) => "-m",
        }
    }
}

// The program of a fork parent, in Python: written next to its folder, and deleted with it.

macro_rules! files {
    ($($name:literal),*) => { [$(($name, include_str!(concat!("fork/server/", $name)))),*] };
}

const FILES: [(&str, &str); 8] = files![
    "__main__.py",
    "mcpo_fork/__init__.py",
    "mcpo_fork/captured.py",
    "mcpo_fork/imports.py",
    "mcpo_fork/parent.py",
    "mcpo_fork/process.py",
    "mcpo_fork/randomness.py",
    "mcpo_fork/state.py"
];

/// Writes the program into a new folder.
fn write_program(folder: &Path) -> io::Result<()> {
    std::fs::create_dir(folder)?;
    std::fs::create_dir(folder.join("mcpo_fork"))?;
    let mut files = FILES.iter();
    files.try_for_each(|(name, text)| std::fs::write(folder.join(name), text))
}

// The folder of a fork parent.

/// A folder that is deleted when this is dropped; next to it is the parent's program, whose path
/// does not contain the folder's name.
pub struct Scratch {
    /// A folder like a workspace, but in no list of workspaces.
    pub job: Job,
    /// The folder of the parent's program.
    pub program: PathBuf,
}

impl Scratch {
    /// Creates the folder.
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

// The messages between the bridge and a fork parent; `server/mcpo_fork/parent.py` is the other side.

/// Maximum size of one message from a parent, in bytes.
const MOST: usize = 1 << 18;

/// A message to a parent.
#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum Order<'a> {
    /// The code to run.
    Begin {
        /// A module, a script or an entry point.
        #[serde(flatten)]
        target: &'a Target,
        /// `sys.argv[0]`.
        name: &'a str,
        /// The arguments that name the target.
        written: &'a [String],
        /// The server's own arguments, as used in the parent's folder.
        argv: &'a [String],
        /// The environment of its interpreter: each byte as the character with its number.
        env: Vec<(String, String)>,
        /// The text that no module may store.
        sentinel: String,
        /// The file in which processes record their imports.
        learnt: PathBuf,
    },
    /// Forks a new process.
    Fork {
        /// Its working directory.
        cwd: &'a str,
        /// See `Begin`.
        env: Vec<(String, String)>,
        /// The server's own arguments.
        argv: &'a [String],
        /// Whether it records its imports.
        learn: bool,
    },
    /// Imports the modules that processes have recorded so far.
    Preload {},
}

/// A message of a parent.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Reply {
    Ready(Loaded),
    Unsupported(String),
}

/// The modules that a parent imported.
#[derive(Debug, Default, Deserialize)]
pub struct Loaded {
    /// Their number.
    pub modules: usize,
    /// The modules that each process imports itself, with the reasons.
    pub left_out: Vec<String>,
    /// Files that may change while the bridge runs.
    pub sources: Vec<PathBuf>,
}

/// The bridge's end. The type is that of a stream socket, but the socket preserves message
/// boundaries.
struct Socket(UnixStream);

impl Socket {
    /// Creates the bridge's end and the parent's end.
    pub fn pair() -> io::Result<(Self, OwnedFd)> {
        let kind = SocketType::SEQPACKET;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
        let ours = std::os::unix::net::UnixStream::from(ours);
        ours.set_nonblocking(true)?;
        Ok((Self(UnixStream::from_std(ours)?), theirs))
    }

    /// Sends a message with descriptors; it arrives completely or not at all.
    pub async fn send(&self, order: &Order<'_>, with: &[BorrowedFd<'_>]) -> io::Result<()> {
        let text = serde_json::to_vec(order)?;
        let send = || launch::send_with(&self.0, &text, with);
        self.0.async_io(Interest::WRITABLE, send).await
    }

    /// The next message; `None` once the parent has ended.
    pub async fn next(&self) -> Option<Reply> {
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
