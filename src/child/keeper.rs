//! The supervisor of a child as a process: one that the bridge started, or one that was forked.

use std::{io, os::fd::OwnedFd, time::Duration};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::{net::unix::pipe::Receiver, sync::watch, time::timeout};

use super::{process::Sweeper, reaper::Supervisors, tree};
use crate::boot_time::BootTime;

/// How long the end of a supervisor is waited for.
const REAPED: Duration = Duration::from_secs(5);

/// A child's supervisor.
pub enum Keeper {
    /// Started here, and so reaped here.
    Own(tokio::process::Child, Supervisors),
    /// Forked from a fork parent, below whose nursery it is.
    Forked(Option<Handle>, Sweeper, Supervisors),
}

/// A process that is not our child.
pub struct Handle {
    pid: u32,
    fd: OwnedFd,
    /// The same: no pipe, but like one it can be read once it is over.
    end: Receiver,
}

impl Keeper {
    /// A forked one said its number, at a time when it was certainly there.
    pub fn is(&mut self, pid: u32) {
        if let Self::Forked(handle @ None, ..) = self {
            *handle = Handle::of(pid).ok();
        }
    }

    /// When it kills what it holds, unless a later time is said before.
    pub fn leashed(&self) -> watch::Receiver<Option<BootTime>> {
        match self {
            Self::Own(_, supervisors) | Self::Forked(_, _, supervisors) => supervisors.leashed(),
        }
    }

    /// Kills it, having killed what is below it: as long as it is there, all of that can be found.
    pub async fn kill(mut self) {
        let pid = match &self {
            Self::Own(supervisor, _) => supervisor.id(),
            Self::Forked(handle, ..) => handle.as_ref().map(|handle| handle.pid),
        };
        if let Some(pid) = pid {
            let _ = tokio::task::spawn_blocking(move || tree::kill_below(pid)).await;
        }
        self.send_kill();
        let strays = match &self {
            Self::Own(_, supervisors) => Err(supervisors.clone()),
            Self::Forked(_, sweeper, _) => Ok(sweeper.clone()),
        };
        self.reap().await;
        match strays {
            Err(supervisors) => supervisors.look_for_strays(),
            Ok(sweeper) => sweeper.sweep(),
        }
    }

    /// One that said its last word ends at once; one that lost its socket is killed.
    pub async fn reap(mut self) {
        let pid = match &self {
            Self::Own(supervisor, _) => supervisor.id(),
            Self::Forked(..) => None,
        };
        if timeout(REAPED, self.wait()).await.is_err() {
            self.send_kill();
            // One that even so does not go is the kernel's; its end cannot be waited for.
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
    /// The number must be of a process that cannot have been reaped.
    pub fn of(pid: u32) -> io::Result<Self> {
        let number = Pid::from_raw(pid.cast_signed()).ok_or(io::ErrorKind::InvalidInput)?;
        let fd = pidfd_open(number, PidfdFlags::empty())?;
        let end = Receiver::from_owned_fd_unchecked(fd.try_clone()?)?;
        Ok(Self { pid, fd, end })
    }

    /// Gone already is as good.
    pub fn kill(&self) {
        let _ = pidfd_send_signal(&self.fd, Signal::KILL);
    }

    /// It has ended; its parent reaps it.
    pub async fn gone(&self) {
        let _ = self.end.readable().await;
    }
}
