//! Starting a child: a supervisor process, three pipes, and the task that owns both.

use std::{
    ffi::OsString,
    io::{IoSlice, PipeReader, PipeWriter, pipe},
    mem::MaybeUninit,
    os::{fd::AsFd as _, unix::net::UnixStream},
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

use super::{ChildError, control::SUPERVISE, process::Process, reaper::Supervisors};

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
    pub stdin: Sender,
    pub stdout: Receiver,
    pub stderr: Receiver,
}

/// Starts the child and waits until it runs (not until it speaks), at most to `until`: a program on
/// a mount that hangs may never.
pub async fn launch(
    launch: &Launch,
    supervisors: &Supervisors,
    until: Instant,
) -> Result<(Process, Pipes), ChildError> {
    let (control, pipes) = spawn(launch, supervisors)
        .map_err(|error| ChildError::not_started(format!("cannot start a process: {error}")))?;
    // A task of its own: a start whose caller left is still followed to its end.
    let started = Process::started(control.0, control.1, supervisors.clone(), until);
    let started = tokio::spawn(started);
    let process = started.await.unwrap_or_else(|error| {
        Err(ChildError::not_started(format!(
            "its start was interrupted: {error}"
        )))
    })?;
    Ok((process, pipes))
}

type Control = (tokio::net::UnixStream, tokio::process::Child);

/// No `pre_exec` here: it would force `fork`, whose cost grows with our memory.
fn spawn(launch: &Launch, supervisors: &Supervisors) -> std::io::Result<(Control, Pipes)> {
    let (ours, theirs) = UnixStream::pair()?;
    let (child_stdin, stdin) = pipe()?;
    let (stdout, child_stdout) = pipe()?;
    let (stderr, child_stderr) = pipe()?;
    let mut command = std::process::Command::new("/proc/self/exe");
    std::os::unix::process::CommandExt::arg0(&mut command, "mcpo-bridge");
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    command
        .arg(SUPERVISE)
        .arg(&launch.program)
        .args(&launch.args)
        .env_clear()
        .envs(launch.env.iter().map(|(name, value)| (name, value)))
        .current_dir(&launch.cwd)
        .stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let supervisor = supervisors.spawn(command)?;
    // Before it is sent the stdio, which it waits for, it starts nothing.
    let pid = supervisor
        .id()
        .and_then(|pid| Pid::from_raw(pid.cast_signed()));
    let _ = prlimit(pid, Resource::Nofile, launch.open_files);
    send_stdio(&ours, &child_stdin, &child_stdout, &child_stderr)?;
    ours.set_nonblocking(true)?;
    let control = tokio::net::UnixStream::from_std(ours)?;
    let pipes = Pipes {
        stdin: Sender::from_owned_fd(stdin.into())?,
        stdout: Receiver::from_owned_fd(stdout.into())?,
        stderr: Receiver::from_owned_fd(stderr.into())?,
    };
    Ok(((control, supervisor), pipes))
}

fn send_stdio(
    control: &UnixStream,
    stdin: &PipeReader,
    stdout: &PipeWriter,
    stderr: &PipeWriter,
) -> std::io::Result<()> {
    let descriptors = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
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
