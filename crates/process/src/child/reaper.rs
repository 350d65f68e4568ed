//! The bridge is a subreaper too (and may be PID 1 of a container): when a supervisor is killed,
//! what it held comes to the bridge, which ends it. Nothing survives its supervisor.

use std::{collections::HashSet, io, process::Command, sync::Arc, time::Duration};

use bridge_model::BootTime;
use parking_lot::Mutex;
use rustix::process::{Pid, Signal, WaitOptions, waitpid};
use tokio::sync::{Notify, watch};

use super::tree;

/// How often strays are looked for when nobody said there are some.
const ROUND: Duration = Duration::from_secs(5);
/// After a kill: the killed ones' own children come to us next.
const NEXT_LOOK: Duration = Duration::from_millis(50);

/// The processes that are our children on purpose.
#[derive(Clone)]
pub struct Supervisors {
    known: Arc<Mutex<HashSet<u32>>>,
    stray: Arc<Notify>,
    ended: Arc<Notify>,
    /// What whoever started this process had started before, in its place: not ours to end.
    guests: Arc<Mutex<HashSet<u32>>>,
    /// When supervisors kill what they hold, unless a later time is said before.
    leash: Arc<watch::Sender<Option<BootTime>>>,
}

impl Supervisors {
    /// None yet. Children that this process has by now are left alone.
    #[expect(
        clippy::new_without_default,
        reason = "it looks at the processes that are there"
    )]
    pub fn new() -> Self {
        let guests = tree::children_and_zombies(std::process::id());
        Self {
            known: Arc::default(),
            stray: Arc::default(),
            ended: Arc::default(),
            guests: Arc::new(Mutex::new(guests.into_iter().collect())),
            leash: Arc::new(watch::Sender::new(None)),
        }
    }

    /// Supervisors kill what they hold at that time, unless a later one is said before; with `None`,
    /// only once the bridge has ended.
    pub fn leash(&self, until: Option<BootTime>) {
        self.leash.send_if_modified(|now| {
            let new = *now != until;
            *now = until;
            new
        });
    }

    /// Whether they do.
    pub fn is_leashed(&self) -> bool {
        self.leash.borrow().is_some()
    }

    /// What is said there.
    pub fn leashed(&self) -> watch::Receiver<Option<BootTime>> {
        self.leash.subscribe()
    }

    /// Spawns under the lock, so that no round can take the newcomer for a stray (0.2 ms).
    pub fn spawn(&self, command: Command) -> io::Result<tokio::process::Child> {
        let mut known = self.lock();
        let child = tokio::process::Command::from(command)
            .kill_on_drop(true)
            .spawn()?;
        known.extend(child.id());
        Ok(child)
    }

    /// To be called once a supervisor was waited for.
    pub fn forget(&self, pid: Option<u32>) {
        if let Some(pid) = pid {
            self.lock().remove(&pid);
        }
        self.ended.notify_waiters();
    }

    /// A supervisor ended without its last word: what it left is looked for at once.
    pub fn look_for_strays(&self) {
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

    fn lock(&self) -> parking_lot::MutexGuard<'_, HashSet<u32>> {
        self.known.lock()
    }

    /// Becomes a subreaper and ends strays until the future is dropped.
    pub async fn sweep(&self) {
        let _ = rustix::process::set_child_subreaper(Some(rustix::process::getpid()));
        let mut pause = ROUND;
        loop {
            let _ = tokio::time::timeout(pause, self.stray.notified()).await;
            let supervisors = self.clone();
            // Reads all of /proc.
            let round = tokio::task::spawn_blocking(move || supervisors.end_strays());
            pause = if round.await.unwrap_or(false) {
                NEXT_LOOK
            } else {
                ROUND
            };
        }
    }

    /// Says whether there were any.
    fn end_strays(&self) -> bool {
        let mut any = false;
        for pid in tree::children_and_zombies(std::process::id()) {
            any |= self.end_stray(pid);
        }
        any
    }

    fn end_stray(&self, pid: u32) -> bool {
        // Looked at again under the lock: since the list was made it may have become a supervisor,
        // or have gone. Afterwards its number stays its own, because nobody else reaps it.
        let known = self.lock();
        let process = tree::read(pid).filter(|process| process.parent == std::process::id());
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
                name = tree::name(pid),
                "killed: its supervisor is gone"
            );
            for below in tree::descendants(pid) {
                tree::send(below, Signal::KILL);
            }
            tree::send(pid, Signal::KILL);
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
        // Reaped by that or by this.
        let _ = stranger.wait();
        assert!(tree::read(stranger.id()).is_none());
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
