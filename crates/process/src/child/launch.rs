//! Starting a child: a supervisor process, three pipes, and the task that owns both.

use std::{
    ffi::OsString,
    io::{IoSlice, pipe},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::PathBuf,
    process::Stdio,
};

use rustix::{
    net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg},
    process::{Pid, Resource, Rlimit, prlimit},
};
use tokio::{
    net::unix::pipe::{Receiver, Sender},
    time::Instant,
};

use super::{
    ChildError,
    control::{NURSERY, SUPERVISE},
    process::Process,
    reaper::Supervisors,
};
use crate::child::process::Keeper;

/// A command as it will be run: no shell, nothing inherited.
#[derive(Clone)]
pub struct Launch {
    /// Looked up in the PATH of `env` unless it holds a slash.
    pub program: String,
    /// Its arguments.
    pub args: Vec<String>,
    /// The whole environment.
    pub env: Vec<(OsString, OsString)>,
    /// The working directory.
    pub cwd: PathBuf,
    /// The limit on open files: programs that use `select` break beyond the usual 1024.
    pub open_files: Rlimit,
}

/// Our ends of a child's pipes.
pub struct Pipes {
    /// What it reads.
    pub stdin: Sender,
    /// What it writes.
    pub stdout: Receiver,
    /// What it writes beside that.
    pub stderr: Receiver,
}

/// The child's ends of them.
pub struct Stdio3 {
    pub stdin: OwnedFd,
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
}

impl Stdio3 {
    /// In the order of their numbers.
    pub fn all(&self) -> [BorrowedFd<'_>; 3] {
        [&self.stdin, &self.stdout, &self.stderr].map(AsFd::as_fd)
    }
}

/// Both ends of three pipes.
pub fn pipes() -> std::io::Result<(Pipes, Stdio3)> {
    let (child_stdin, stdin) = pipe()?;
    let (stdout, child_stdout) = pipe()?;
    let (stderr, child_stderr) = pipe()?;
    let ours = Pipes {
        stdin: Sender::from_owned_fd(stdin.into())?,
        stdout: Receiver::from_owned_fd(stdout.into())?,
        stderr: Receiver::from_owned_fd(stderr.into())?,
    };
    let theirs = Stdio3 {
        stdin: child_stdin.into(),
        stdout: child_stdout.into(),
        stderr: child_stderr.into(),
    };
    Ok((ours, theirs))
}

/// Starts the child and waits until it runs (not until it speaks), at most to `until`: a program on
/// a mount that hangs may never.
pub async fn start(
    launch: &Launch,
    supervisors: &Supervisors,
    until: Instant,
) -> Result<(Process, Pipes), ChildError> {
    let (pipes, theirs) = pipes().map_err(|error| not_spawned(&error, launch))?;
    let process = supervised(SUPERVISE, launch, theirs, supervisors, until).await?;
    Ok((process, pipes))
}

/// Starts a fork parent: its stdin is a socket, and its end leaves those forked from it.
pub async fn nursery(
    launch: &Launch,
    stdio: Stdio3,
    supervisors: &Supervisors,
    until: Instant,
) -> Result<Process, ChildError> {
    supervised(NURSERY, launch, stdio, supervisors, until).await
}

async fn supervised(
    duty: &str,
    launch: &Launch,
    stdio: Stdio3,
    supervisors: &Supervisors,
    until: Instant,
) -> Result<Process, ChildError> {
    let spawned = spawn(duty, launch, &stdio, supervisors);
    // What the child has must be the child's alone: its end is how we learn that it is gone.
    drop(stdio);
    let (control, supervisor) = spawned.map_err(|error| not_spawned(&error, launch))?;
    let keeper = Keeper::Own(supervisor, supervisors.clone());
    follow(control, keeper, until).await
}

/// A task of its own: a start whose caller left is still followed to its end.
pub async fn follow(
    control: tokio::net::UnixStream,
    keeper: Keeper,
    until: Instant,
) -> Result<Process, ChildError> {
    let started = tokio::spawn(Process::started(control, keeper, until));
    started.await.unwrap_or_else(|error| {
        Err(ChildError::not_started(format!(
            "its start was interrupted: {error}"
        )))
    })
}

fn not_spawned(error: &std::io::Error, launch: &Launch) -> ChildError {
    if error.kind() == std::io::ErrorKind::NotFound && !launch.cwd.is_dir() {
        // Without the path, which may be a chat's.
        let why = "the folder that its cwd names does not exist: make it, or name another";
        return ChildError::not_started(why.to_owned());
    }
    ChildError::not_started(format!("cannot start a process: {error}"))
}

type Control = (tokio::net::UnixStream, tokio::process::Child);

/// No `pre_exec` here: it would force `fork`, whose cost grows with our memory.
fn spawn(
    duty: &str,
    launch: &Launch,
    stdio: &Stdio3,
    supervisors: &Supervisors,
) -> std::io::Result<Control> {
    let (ours, theirs) = UnixStream::pair()?;
    let mut command = std::process::Command::new("/proc/self/exe");
    std::os::unix::process::CommandExt::arg0(&mut command, "mcpo-bridge");
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    command
        .arg(duty)
        .arg(&launch.program)
        .args(&launch.args)
        .env_clear()
        .envs(launch.env.iter().map(|(name, value)| (name, value)))
        .current_dir(&launch.cwd)
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let supervisor = supervisors.spawn(command)?;
    // Before it is sent the stdio, which it waits for, it starts nothing.
    let pid = supervisor
        .id()
        .and_then(|pid| Pid::from_raw(pid.cast_signed()));
    let _ = prlimit(pid, Resource::Nofile, launch.open_files);
    send_stdio(&ours, stdio)?;
    ours.set_nonblocking(true)?;
    Ok((tokio::net::UnixStream::from_std(ours)?, supervisor))
}

fn send_stdio(control: &UnixStream, stdio: &Stdio3) -> std::io::Result<()> {
    let descriptors = stdio.all();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
    sendmsg(
        control,
        &[IoSlice::new(b"!")],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    )?;
    Ok(())
}
