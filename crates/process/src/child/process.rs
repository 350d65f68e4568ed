//! The bridge's side of a supervisor: one task owns it, everybody else sends it messages.
//!
//! ```text
//! Running ──end()──▶ Ending ──"exit …"──▶ Gone
//!    └──────────── "exit …", or the socket closes ─┘
//! Ending ──no word in time──▶ the supervisor is killed ──▶ Gone
//! ```

use std::{collections::HashSet, io, os::fd::OwnedFd, process::Command, sync::Arc, time::Duration};

use bridge_model::BootTime;
use parking_lot::Mutex;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, pidfd_open, pidfd_send_signal, waitpid,
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf, pipe::Receiver},
    },
    sync::{Notify, mpsc, watch},
    time::{Instant, sleep_until, timeout, timeout_at},
};

use super::{
    ChildError,
    control::{End, ExitStatus, Report, SWEEP, until_line},
    supervisor,
};

/// What a supervisor gets beyond the times of an end before it is taken for stuck.
const SPARE: Duration = Duration::from_secs(2);

/// A running child process tree. Dropping it kills the tree.
pub struct Process {
    pid: u32,
    orders: mpsc::UnboundedSender<Order>,
    exit: watch::Receiver<Option<ExitStatus>>,
}

enum Order {
    End(End),
    Sweep,
}

/// Asks a nursery to look for what a supervisor left. Does not keep it alive.
#[derive(Clone)]
pub struct Sweeper(mpsc::WeakUnboundedSender<Order>);

impl Sweeper {
    /// A nursery that is gone left nothing.
    pub fn sweep(&self) {
        if let Some(orders) = self.0.upgrade() {
            let _ = orders.send(Order::Sweep);
        }
    }
}

impl Process {
    /// Waits for the supervisor's first word. One that has said nothing at `until` is killed.
    pub async fn started(
        control: UnixStream,
        mut keeper: Keeper,
        until: Instant,
    ) -> Result<Self, ChildError> {
        let (read, write) = control.into_split();
        let mut reports = BufReader::new(read).lines();
        let first = timeout_at(until, first_report(&mut reports, &mut keeper)).await;
        let owner = Owner {
            reports,
            control: write,
            keeper,
        };
        let pid = match first {
            Ok(Some(Report::Started(pid))) => pid,
            Ok(other) => {
                owner.reap().await;
                let why = match other {
                    Some(Report::Failed(why)) => why,
                    _ => "its supervisor exited before the start".to_owned(),
                };
                return Err(ChildError::not_started(why));
            }
            Err(_) => {
                // Even its end can take long where the kernel waits for a mount.
                tokio::spawn(owner.kill());
                let why = "the program did not start in time".to_owned();
                return Err(ChildError::not_started(why));
            }
        };
        let (orders, inbox) = mpsc::unbounded_channel();
        let (gone, exit) = watch::channel(None);
        tokio::spawn(owner.run(inbox, gone));
        Ok(Self { pid, orders, exit })
    }

    /// The process id of the child itself.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// How it left; `None` while it lives.
    pub fn exit_status(&self) -> Option<ExitStatus> {
        *self.exit.borrow()
    }

    /// Asks it to end; the first word counts, later ones only hasten it.
    pub fn ask_to_end(&self, how: End) {
        let _ = self.orders.send(Order::End(how));
    }

    /// For what its supervisor should look for.
    pub fn sweeper(&self) -> Sweeper {
        Sweeper(self.orders.downgrade())
    }

    /// Waits until nothing of the tree is left, without keeping it alive.
    pub fn gone(&self) -> impl Future<Output = ExitStatus> + Send + use<> {
        let mut exit = self.exit.clone();
        async move {
            let status = exit
                .wait_for(Option::is_some)
                .await
                .ok()
                .and_then(|status| *status);
            status.unwrap_or(ExitStatus::Unknown)
        }
    }
}

async fn next_report(reports: &mut Lines<BufReader<OwnedReadHalf>>) -> Option<Report> {
    loop {
        let line = reports.next_line().await.ok().flatten()?;
        if let Some(report) = Report::from_line(&line) {
            return Some(report);
        }
    }
}

/// A supervisor that the bridge did not start says first who it is.
async fn first_report(
    reports: &mut Lines<BufReader<OwnedReadHalf>>,
    keeper: &mut Keeper,
) -> Option<Report> {
    loop {
        match next_report(reports).await? {
            Report::By(pid) => keeper.is(pid),
            other => return Some(other),
        }
    }
}

struct Owner {
    reports: Lines<BufReader<OwnedReadHalf>>,
    control: OwnedWriteHalf,
    keeper: Keeper,
}

impl Owner {
    async fn run(
        mut self,
        mut inbox: mpsc::UnboundedReceiver<Order>,
        gone: watch::Sender<Option<ExitStatus>>,
    ) {
        let mut asked_to_end: Option<Instant> = None;
        let mut handles = true;
        let mut leash = self.keeper.leashed();
        let until = *leash.borrow_and_update();
        if until.is_some() {
            self.say(&until_line(until)).await;
        }
        let status = loop {
            tokio::select! {
                report = next_report(&mut self.reports) => match report {
                    Some(Report::Exited(status)) => break Some(status),
                    Some(_) => {}
                    None => break Some(ExitStatus::Unknown),
                },
                order = inbox.recv(), if handles => {
                    handles = order.is_some();
                    // No handle is left: nobody can want it any more.
                    let order = match order {
                        Some(Order::End(order)) => order,
                        Some(Order::Sweep) => {
                            self.say(&format!("{SWEEP}\n")).await;
                            continue;
                        }
                        None => End::Kill,
                    };
                    self.say(&order.to_line()).await;
                    let over = Instant::now() + order.longest() + SPARE;
                    asked_to_end = Some(asked_to_end.map_or(over, |before| before.min(over)));
                }
                // By nothing but this: a bridge whose renewals fail lets it end.
                Ok(()) = leash.changed() => {
                    let until = *leash.borrow_and_update();
                    self.say(&until_line(until)).await;
                }
                () = at(asked_to_end) => break None,
            }
        };
        match status {
            Some(ExitStatus::Unknown) | None => self.kill().await,
            Some(_) => self.reap().await,
        }
        gone.send_replace(Some(status.unwrap_or(ExitStatus::Unknown)));
    }

    /// One that is gone is seen by its silence.
    async fn say(&mut self, line: &str) {
        let _ = self.control.write_all(line.as_bytes()).await;
    }

    /// For a supervisor that does not do its work, because its child stopped it, say.
    async fn kill(self) {
        self.keeper.kill().await;
        drop(self.control);
    }

    async fn reap(self) {
        drop(self.control);
        self.keeper.reap().await;
    }
}

/// Waits for that moment; for ever where there is none.
async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

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
            *handle = Handle::open(pid).ok();
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
            let _ = tokio::task::spawn_blocking(move || supervisor::kill_below(pid)).await;
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
    pub fn open(pid: u32) -> io::Result<Self> {
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

// The bridge is a subreaper too (and may be PID 1 of a container): when a supervisor is killed,
// what it held comes to the bridge, which ends it. Nothing survives its supervisor.

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
        let guests = supervisor::children_and_zombies(std::process::id());
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
        for pid in supervisor::children_and_zombies(std::process::id()) {
            any |= self.end_stray(pid);
        }
        any
    }

    fn end_stray(&self, pid: u32) -> bool {
        // Looked at again under the lock: since the list was made it may have become a supervisor,
        // or have gone. Afterwards its number stays its own, because nobody else reaps it.
        let known = self.lock();
        let process = supervisor::read(pid).filter(|process| process.parent == std::process::id());
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
                name = supervisor::name(pid),
                "orphaned process killed: its supervisor exited"
            );
            for below in supervisor::descendants(pid) {
                supervisor::send_signal(below, Signal::KILL);
            }
            supervisor::send_signal(pid, Signal::KILL);
        }
        if let Some(pid) = Pid::from_raw(pid.cast_signed()) {
            let _ = waitpid(Some(pid), WaitOptions::NOHANG);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::{Supervisors, *};

    /// A supervisor that says what it is given and otherwise nothing.
    fn silent(supervisors: &Supervisors) -> (UnixStream, UnixStream, tokio::process::Child) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut command = std::process::Command::new("sleep");
        command.arg("1000");
        (ours, theirs, supervisors.spawn(command).unwrap())
    }

    #[tokio::test]
    async fn a_program_that_never_begins_to_run_is_given_up() {
        let supervisors = Supervisors::new();
        let (ours, _theirs, supervisor) = silent(&supervisors);
        let until = Instant::now() + Duration::from_millis(20);
        let keeper = Keeper::Own(supervisor, supervisors.clone());
        let started = Process::started(ours, keeper, until).await;
        assert!(matches!(started, Err(ChildError::NotStarted { .. })));
        supervisors.none_left().await;
    }

    #[tokio::test]
    async fn a_supervisor_that_does_not_answer_is_killed() {
        let supervisors = Supervisors::new();
        let (ours, mut theirs, supervisor) = silent(&supervisors);
        theirs.write_all(b"pid 4711\n").await.unwrap();
        let until = Instant::now() + Duration::from_secs(60);
        let keeper = Keeper::Own(supervisor, supervisors.clone());
        let started = Process::started(ours, keeper, until).await;
        let process = started.ok().unwrap();
        process.ask_to_end(End::Kill);
        let gone = timeout(Duration::from_secs(30), process.gone()).await;
        assert_eq!(gone.unwrap(), ExitStatus::Unknown);
        supervisors.none_left().await;
    }
}

#[cfg(test)]
mod reaper_tests {
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
        assert!(supervisor::read(stranger.id()).is_none());
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
