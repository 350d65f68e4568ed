//! The bridge is a subreaper too (and may be PID 1 of a container): when a supervisor is killed,
//! what it held comes to the bridge, which ends it. Nothing survives its supervisor.

use std::{
    collections::HashSet,
    io,
    process::Command,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use tokio::sync::Notify;

use super::tree;

/// How often strays are looked for when nobody said there are some.
const ROUND: Duration = Duration::from_secs(5);

/// The processes that are our children on purpose.
#[derive(Clone, Default)]
pub struct Supervisors {
    known: Arc<Mutex<HashSet<u32>>>,
    stray: Arc<Notify>,
    ended: Arc<Notify>,
}

impl Supervisors {
    /// Spawns under the lock, so that no round can take the newcomer for a stray (0.2 ms).
    pub fn spawn(&self, command: Command) -> io::Result<tokio::process::Child> {
        let mut known = self
            .known
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let child = tokio::process::Command::from(command)
            .kill_on_drop(true)
            .spawn()?;
        known.extend(child.id());
        Ok(child)
    }

    /// To be called once a supervisor was waited for; looks at once for what it left.
    pub fn forget(&self, pid: Option<u32>) {
        let mut known = self
            .known
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(pid) = pid {
            known.remove(&pid);
        }
        drop(known);
        self.ended.notify_waiters();
        self.stray.notify_one();
    }

    /// Waits until no supervisor, and so no child, is left.
    pub async fn none_left(&self) {
        loop {
            let mut ended = std::pin::pin!(self.ended.notified());
            // Listening begins before looking, or the last end could be missed.
            ended.as_mut().enable();
            if self.lock().is_empty() {
                return;
            }
            ended.await;
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashSet<u32>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Becomes a subreaper and ends strays until the future is dropped.
    pub async fn sweep(&self) {
        let _ = rustix::process::set_child_subreaper(Some(rustix::process::getpid()));
        loop {
            let _ = tokio::time::timeout(ROUND, self.stray.notified()).await;
            self.end_strays();
        }
    }

    fn end_strays(&self) {
        let known = self
            .known
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        for pid in tree::children_and_zombies(std::process::id()) {
            let Some(stray) = Pid::from_raw(pid.cast_signed()).filter(|_| !known.contains(&pid))
            else {
                continue;
            };
            for pid in tree::descendants(pid) {
                let _ = Pid::from_raw(pid.cast_signed()).map(|pid| kill_process(pid, Signal::KILL));
            }
            let _ = kill_process(stray, Signal::KILL);
            let _ = waitpid(Some(stray), WaitOptions::NOHANG);
            // Its own children come to us next; a killed one may need a moment to be reaped.
            self.stray.notify_one();
        }
    }
}
