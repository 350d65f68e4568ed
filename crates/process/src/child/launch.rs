//! Starts a child: a supervisor process, three pipes, and the task that owns them. Runs a program for its
//! output. Builds the environment of both.

use std::{
    ffi::{OsStr, OsString},
    io::{IoSlice, pipe},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    process::Stdio,
};

use bridge_model::Job;
use indexmap::IndexMap;
use rustix::{
    net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg},
    process::{Pid, Resource, prlimit},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    net::{
        UnixStream,
        unix::pipe::{Receiver, Sender},
    },
    time::{Instant, timeout_at},
};

use super::{
    ChildError, ExitStatus,
    control::Duty,
    process::{Keeper, Process, Supervisors},
};
use crate::launch::Resolved;

/// A command to run without a shell; nothing is inherited.
#[derive(Clone)]
pub struct Launch {
    /// Looked up in the PATH of `env` unless it contains a slash.
    pub program: String,
    /// Its arguments.
    pub args: Vec<String>,
    /// The complete environment.
    pub env: Vec<(OsString, OsString)>,
    /// The working directory.
    pub cwd: PathBuf,
}

/// The bridge's ends of a child's pipes.
pub struct Pipes {
    /// The child's stdin.
    pub stdin: Sender,
    /// The child's stdout.
    pub stdout: Receiver,
    /// The child's stderr.
    pub stderr: Receiver,
}

/// The child's ends of the pipes: stdin, stdout, stderr.
pub type Stdio3 = [OwnedFd; 3];

/// Both ends of three pipes.
pub fn pipes() -> std::io::Result<(Pipes, Stdio3)> {
    let (child_stdin, stdin) = pipe()?;
    let (stdout, child_stdout) = pipe()?;
    let (stderr, child_stderr) = pipe()?;
    let theirs = [child_stdin.into(), child_stdout.into(), child_stderr.into()];
    let ours = Pipes {
        stdin: Sender::from_owned_fd(stdin.into())?,
        stdout: Receiver::from_owned_fd(stdout.into())?,
        stderr: Receiver::from_owned_fd(stderr.into())?,
    };
    Ok((ours, theirs))
}

/// Starts the child and waits until it runs (not until it responds), at most until `until`: a
/// program on a mount that hangs may never run.
pub async fn start(
    launch: &Launch,
    supervisors: &Supervisors,
    until: Instant,
) -> Result<(Process, Pipes), ChildError> {
    let (pipes, theirs) = pipes().map_err(|error| not_spawned(&error, launch))?;
    let process = supervised(Duty::Child, launch, theirs, supervisors, until).await?;
    Ok((process, pipes))
}

/// Starts a program below a supervisor with this duty.
pub async fn supervised(
    duty: Duty,
    launch: &Launch,
    stdio: Stdio3,
    supervisors: &Supervisors,
    until: Instant,
) -> Result<Process, ChildError> {
    let spawned = spawn(duty, launch, &stdio, supervisors);
    // Only the child may keep its ends: their closing shows that it has ended.
    drop(stdio);
    let (control, supervisor) = spawned.map_err(|error| not_spawned(&error, launch))?;
    let keeper = Keeper::Own(supervisor, supervisors.clone());
    follow(control, keeper, until).await
}

/// Waits for a start in a separate task, which continues if the caller is cancelled.
pub async fn follow(
    control: UnixStream,
    keeper: Keeper,
    until: Instant,
) -> Result<Process, ChildError> {
    let started = tokio::spawn(Process::started(control, keeper, until));
    let interrupted = |error| format!("the start was interrupted: {error}");
    let started = started.await.map_err(interrupted);
    started.map_err(ChildError::not_started)?
}

/// A control socket: the bridge's end, and the supervisor's.
pub fn control() -> std::io::Result<(UnixStream, OwnedFd)> {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    Ok((UnixStream::from_std(ours)?, theirs.into()))
}

fn not_spawned(error: &std::io::Error, launch: &Launch) -> ChildError {
    if error.kind() == std::io::ErrorKind::NotFound && !launch.cwd.is_dir() {
        // Without the path, which may contain a chat's folder.
        let why = "the directory in its cwd does not exist: create it or set another one";
        return ChildError::not_started(why.to_owned());
    }
    ChildError::not_started(format!("cannot start a process: {error}"))
}

type Control = (UnixStream, tokio::process::Child);

/// Without `pre_exec`: it would force `fork`, whose cost grows with the bridge's memory.
fn spawn(
    duty: Duty,
    launch: &Launch,
    stdio: &Stdio3,
    supervisors: &Supervisors,
) -> std::io::Result<Control> {
    let (ours, theirs) = control()?;
    let mut command = std::process::Command::new("/proc/self/exe");
    std::os::unix::process::CommandExt::arg0(&mut command, "mcpo-bridge");
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    command
        .arg(duty.word())
        .arg(&launch.program)
        .args(&launch.args)
        .env_clear()
        .envs(launch.env.iter().map(|(name, value)| (name, value)))
        .current_dir(&launch.cwd)
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let supervisor = supervisors.spawn(command)?;
    // The supervisor waits for its stdio before it starts anything.
    let pid = supervisor
        .id()
        .and_then(|pid| Pid::from_raw(pid.cast_signed()));
    let _ = prlimit(pid, Resource::Nofile, supervisors.open_files);
    send_with(&ours, b"!", &stdio.each_ref().map(AsFd::as_fd))?;
    Ok((ours, supervisor))
}

/// Sends a message with at most four descriptors.
pub fn send_with(
    socket: impl AsFd,
    message: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> std::io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    let message = [IoSlice::new(message)];
    sendmsg(socket, &message, &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

// A program that is run until it exits, for its output: below a supervisor like every child, so
// that it always ends with the bridge.

/// Maximum size of the output that is kept of each stream, in bytes; the rest is read and
/// discarded.
const KEPT: u64 = 32 * 1024 * 1024;

/// The result of a program.
pub struct Done {
    /// The exit status.
    pub status: ExitStatus,
    /// The output on stdout.
    pub stdout: Vec<u8>,
    /// The output on stderr.
    pub stderr: Vec<u8>,
}

/// Runs a program until it exits, or until `until`. Dropping the future kills its process tree.
pub async fn run(
    launch: Launch,
    supervisors: &Supervisors,
    until: Instant,
) -> Result<Done, ChildError> {
    let (process, pipes) = start(&launch, supervisors, until).await?;
    drop(pipes.stdin);
    let all = async {
        let (stdout, stderr) = tokio::join!(read(pipes.stdout), read(pipes.stderr));
        let status = process.gone().await;
        Done {
            status,
            stdout,
            stderr,
        }
    };
    let done = timeout_at(until, all).await;
    done.map_err(|_| ChildError::Timeout)
}

async fn read(mut from: impl AsyncRead + Unpin) -> Vec<u8> {
    let mut kept = Vec::new();
    let _ = (&mut from).take(KEPT).read_to_end(&mut kept).await;
    let _ = tokio::io::copy(&mut from, &mut tokio::io::sink()).await;
    kept
}

// A child's environment, which is never inherited.

/// The bridge's environment variables that every child gets.
const PASSED: &[&str] = &[
    "PATH",
    "LANG",
    "LANGUAGE",
    "LC_ALL",
    "LC_CTYPE",
    "TZ",
    "TERM",
    // Certificate authorities of company networks.
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "NODE_EXTRA_CA_CERTS",
];

/// The environment variables that only launchers get, because they download packages. Proxy URLs
/// may contain passwords.
const PASSED_TO_LAUNCHERS: &[&str] = &[
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "all_proxy",
    "no_proxy",
];

/// Prefixes of the launchers' own settings: package indexes, mirrors, timeouts.
const LAUNCHER_PREFIXES: &[&str] = &["UV_", "PIP_", "NPM_CONFIG_", "npm_config_", "PIPX_"];

const LAUNCHERS: &[&str] = &[
    "uvx", "uv", "npx", "npm", "pnpm", "pnpx", "bunx", "bun", "pipx", "deno", "yarn",
];

/// Launcher caches that all children share, so that a second start is fast.
const CACHES: &[(&str, &str)] = &[
    ("UV_CACHE_DIR", "uv/cache"),
    ("UV_TOOL_DIR", "uv/tools"),
    ("UV_PYTHON_INSTALL_DIR", "uv/python"),
    ("PIPX_HOME", "pipx"),
    ("npm_config_cache", "npm"),
    ("NODE_COMPILE_CACHE", "node-compile-cache"),
    ("DENO_DIR", "deno"),
    ("BUN_INSTALL_CACHE_DIR", "bun"),
];

/// Which of the bridge's own environment variables a program gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Passed {
    /// The variables for every child.
    Little,
    /// Also proxies: for a server whose launcher would have passed them on.
    Network,
    /// Also package indexes.
    Launcher,
}

/// The complete environment of a child with this program; `tmp` is the path of its job's `tmp/`.
/// Later entries take precedence: the variables of its installed environment, the server's own
/// `env`, then the variables with its folder's paths.
pub fn environment(
    program: &str,
    installed: Option<&Resolved>,
    job: &Job,
    tmp: &Path,
    tools_dir: &Path,
    own: impl IntoIterator<Item = (String, String)>,
) -> Vec<(OsString, OsString)> {
    let passed = match (is_launcher(program), installed) {
        (false, _) => Passed::Little,
        (true, Some(_)) => Passed::Network,
        (true, None) => Passed::Launcher,
    };
    let mut env = base(passed, tools_dir, &job.home(), tmp);
    let needed = installed.into_iter().flat_map(|found| found.env.clone());
    env.extend(needed);
    let own = own.into_iter();
    env.extend(own.map(|(name, value)| (name.into(), value.into())));
    if let Some(first) = installed.and_then(|found| found.path.as_ref()) {
        let path = env.get(OsStr::new("PATH")).cloned().unwrap_or_default();
        let parts = std::iter::once(first.clone()).chain(std::env::split_paths(&path));
        if let Ok(path) = std::env::join_paths(parts) {
            env.insert("PATH".into(), path);
        }
    }
    env.insert("MCPO_WORKDIR".into(), job.work().into());
    env.insert("MCPO_JOB_ID".into(), job.id().to_string().into());
    env.into_iter().collect()
}

/// The environment of package managers that the bridge runs. Of the server's own variables it
/// contains only package manager settings, because package managers must not get the server's
/// secrets.
pub fn environment_for_installing(
    tools_dir: &Path,
    scratch: &Path,
    own: &IndexMap<String, String>,
) -> Vec<(OsString, OsString)> {
    let mut env = base(Passed::Launcher, tools_dir, scratch, scratch);
    let theirs = own.iter().filter(|(name, value)| {
        passes(OsStr::new(name), Passed::Launcher) && !value.contains("{MCPO_")
    });
    env.extend(theirs.map(|(name, value)| (name.into(), value.into())));
    env.into_iter().collect()
}

fn base(passed: Passed, tools_dir: &Path, home: &Path, tmp: &Path) -> IndexMap<OsString, OsString> {
    let mut env: IndexMap<OsString, OsString> = std::env::vars_os()
        .filter(|(name, _)| passes(name, passed))
        .collect();
    let caches = CACHES
        .iter()
        .map(|(name, folder)| ((*name).into(), tools_dir.join(folder).into()));
    env.extend(caches);
    env.insert("npm_config_update_notifier".into(), "false".into());
    env.insert("HOME".into(), home.into());
    env.insert("TMPDIR".into(), tmp.into());
    env
}

fn passes(name: &OsStr, passed: Passed) -> bool {
    let Some(name) = name.to_str() else {
        return false;
    };
    let setting = |prefix: &&str| name.starts_with(*prefix);
    PASSED.contains(&name)
        || passed != Passed::Little && PASSED_TO_LAUNCHERS.contains(&name)
        || passed == Passed::Launcher && LAUNCHER_PREFIXES.iter().any(setting)
}

fn is_launcher(program: &str) -> bool {
    let name = Path::new(program).file_name().and_then(OsStr::to_str);
    name.is_some_and(|name| LAUNCHERS.contains(&name))
}

#[cfg(test)]
mod environment_tests {
    use super::*;

    #[test]
    fn secrets_of_ours_never_pass() {
        for secret in [
            "MCPO_API_KEY",
            "MCPO_JWT_SECRET",
            "AWS_SECRET_ACCESS_KEY",
            "HOME",
            "USER",
        ] {
            assert!(!passes(OsStr::new(secret), Passed::Launcher), "{secret}");
        }
        assert!(passes(OsStr::new("PATH"), Passed::Little));
    }

    #[test]
    fn only_launchers_learn_the_proxy_and_the_index() {
        for name in ["HTTPS_PROXY", "UV_INDEX_URL", "npm_config_registry"] {
            assert!(passes(OsStr::new(name), Passed::Launcher), "{name}");
            assert!(!passes(OsStr::new(name), Passed::Little), "{name}");
        }
        assert!(passes(OsStr::new("HTTPS_PROXY"), Passed::Network));
        assert!(!passes(OsStr::new("UV_INDEX_URL"), Passed::Network));
        assert!(is_launcher("/usr/local/bin/uvx"));
        assert!(!is_launcher("python3"));
    }

    #[test]
    fn of_a_servers_secrets_package_managers_see_none() {
        let own = [
            ("API_TOKEN", "hunter2"),
            ("UV_INDEX_URL", "https://index.example"),
            ("UV_CACHE_DIR", "{MCPO_WORKDIR}/cache"),
        ];
        let own = own.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let env = environment_for_installing(Path::new("/t"), Path::new("/s"), &own.into());
        let value = |name: &str| {
            let found = env.iter().find(|(known, _)| known == name);
            found.map(|(_, value)| value.to_str().unwrap().to_owned())
        };
        assert_eq!(value("API_TOKEN"), None);
        assert_eq!(value("UV_INDEX_URL").unwrap(), "https://index.example");
        assert_eq!(value("UV_CACHE_DIR").unwrap(), "/t/uv/cache");
        assert_eq!(value("HOME").unwrap(), "/s");
    }
}
