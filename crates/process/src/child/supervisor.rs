//! The process between the bridge and each child: `mcpo-bridge __supervise -- PROGRAM ARGS…`.
//!
//! It is the child's parent and a subreaper, so all processes that the child starts, including
//! grandchildren of `uvx` and `npx` and processes in other sessions, remain its descendants and are
//! ended with the child. When the bridge ends for any reason, the control socket closes and the
//! whole tree is killed. The tree is also killed when the bridge's lease expires and no later time
//! was sent: the bridge was stopped, or could not renew its lease, and another bridge may soon work
//! in the folder.
//!
//! ```text
//! Running ──"end"──▶ Waiting ──time──▶ Terminating (SIGTERM sent) ──time──▶ Killing
//!    │                   └── tree gone ──▶ done ◀── tree gone ──┴──────────────┘
//!    └── child exits, or the socket closes ──▶ Killing
//! ```
//! Once the child itself has ended, only its own process group gets the rest of the grace period to
//! exit; processes that left the group are killed at once.
//!
//! The supervisor has the child's environment, working directory and arguments, and passes them on
//! unread.
//!
//! Fork parents (`fork/`) need two more duties. A *nursery* supervises a fork parent; when the
//! parent has ended, the nursery does not end its other descendants, the supervisors of forked
//! children. Such a supervisor *adopts* its child: it was forked from the parent, forked the child
//! itself, and then executed this program.

use std::{
    collections::HashMap,
    ffi::{OsStr, OsString},
    io::{IoSliceMut, Read as _, Write as _},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{ffi::OsStrExt as _, net::UnixStream, process::CommandExt as _},
    },
    process::{Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use bridge_model::BootTime;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg},
    process::{
        DumpableBehavior, Pid, PidfdFlags, Signal, WaitOptions, kill_process, kill_process_group,
        pidfd_open, set_dumpable_behavior, wait,
    },
};

use super::control::{Duty, ExitStatus, Order, Report};

/// The interval between attempts to reap processes while the tree is ending.
const TICK: Duration = Duration::from_millis(10);

/// The interval between kills starts at [`TICK`] and grows: each kill reads all of `/proc`, and
/// processes that do not end at once are blocked in the kernel.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// The time between the kill of the child and the first search for other processes.
const KILLED: Duration = Duration::from_millis(5);

/// Maximum wait for an order or an exit while the child runs and nothing is due.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// The times of a nursery's searches after it was asked to search: the processes of a killed
/// supervisor are reparented to it only after the bridge has noticed that supervisor's end.
const SWEEPS: [Duration; 5] = [
    Duration::ZERO,
    Duration::from_millis(20),
    Duration::from_millis(100),
    Duration::from_millis(500),
    Duration::from_secs(3),
];

/// The kernel's out-of-memory killer chooses children (1000 = first), never the bridge.
const OOM_SCORE: &str = "800";

const OOM_FILE: &str = "/proc/self/oom_score_adj";

/// Runs as supervisor of `argv` until all processes of the child have ended.
pub fn supervise(duty: Duty, argv: &[OsString]) -> ExitCode {
    let Ok(control) = std::io::stdin().as_fd().try_clone_to_owned() else {
        return ExitCode::FAILURE;
    };
    let mut bridge = Bridge {
        control: control.into(),
        pending: Vec::new(),
    };
    let started = match duty {
        Duty::Child | Duty::Nursery => start(&bridge.control, argv),
        Duty::Adopted => adopt(argv).inspect(|_| bridge.report(&Report::By(std::process::id()))),
    };
    match started {
        Ok(child) => {
            bridge.report(&Report::Started(pid_number(child)));
            let status = Supervisor::new(child, duty).run(&mut bridge);
            bridge.report(&Report::Exited(status));
            ExitCode::SUCCESS
        }
        Err(error) => {
            let program = argv.first().map(|name| name.display().to_string());
            let program = program.unwrap_or_default();
            let why = format!("cannot start '{program}': {error}");
            bridge.report(&Report::Failed(why));
            ExitCode::FAILURE
        }
    }
}

/// Starts the child in a separate process group, with the three descriptors that the bridge sends.
fn start(control: &UnixStream, argv: &[OsString]) -> std::io::Result<Pid> {
    let [stdin, stdout, stderr] = receive_stdio(control)?;
    let (program, args) = argv.split_first().ok_or(std::io::ErrorKind::InvalidInput)?;
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    // A core dump in `work/` would be offered as the tool's file.
    let none = rustix::process::Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    let _ = rustix::process::setrlimit(rustix::process::Resource::Core, none);
    let own_score = std::fs::read_to_string(OOM_FILE).unwrap_or_default();
    set_oom_score(OOM_SCORE);
    let child = Command::new(program)
        .args(args)
        .process_group(0)
        .stdin(Stdio::from(stdin))
        .stdout(Stdio::from(stdout))
        .stderr(Stdio::from(stderr))
        .spawn();
    set_oom_score(own_score.trim());
    // Reaped by process id, because orphans that are reparented to this process are reaped by the
    // same call.
    let child = child?;
    Pid::from_raw(child.id().cast_signed()).ok_or_else(|| std::io::ErrorKind::Other.into())
}

/// Children inherit this process's score. The file belongs to root while the process is not
/// dumpable.
fn set_oom_score(score: &str) {
    let _ = set_dumpable_behavior(DumpableBehavior::Dumpable);
    let _ = std::fs::write(OOM_FILE, score);
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
}

/// Adopts a child of this process. The child waits for a byte that this process writes to stdout.
fn adopt(argv: &[OsString]) -> std::io::Result<Pid> {
    let pid = argv.first().and_then(|word| word.to_str()?.parse().ok());
    let child = pid
        .and_then(Pid::from_raw)
        .ok_or(std::io::ErrorKind::InvalidInput)?;
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    rustix::io::write(std::io::stdout(), b"!")?;
    Ok(child)
}

/// Receives a byte whenever a child of this process ends (SIGCHLD). Writing never blocks.
fn ends() -> std::io::Result<UnixStream> {
    let (ours, signals) = UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    signal_hook::low_level::pipe::register(signal_hook::consts::SIGCHLD, signals)?;
    Ok(ours)
}

fn receive_stdio(control: &UnixStream) -> std::io::Result<[OwnedFd; 3]> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0_u8; 1];
    recvmsg(
        control,
        &mut [IoSliceMut::new(&mut byte)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let received = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors.collect::<Vec<_>>()),
        _ => None,
    });
    received
        .and_then(|descriptors| descriptors.try_into().ok())
        .ok_or_else(|| std::io::Error::other("the bridge passed no stdio"))
}

/// The other end of the control socket.
struct Bridge {
    control: UnixStream,
    pending: Vec<u8>,
}

impl Bridge {
    fn report(&mut self, report: &Report) {
        // If the bridge has ended, the next read detects that.
        let line = report.to_line() + "\n";
        let _ = self.control.write_all(line.as_bytes());
    }

    /// Reads available data after `poll` reported it; `None` if the bridge has ended. Unknown lines
    /// are skipped.
    fn orders(&mut self) -> Option<Vec<Order>> {
        let mut buffer = [0_u8; 256];
        match self.control.read(&mut buffer) {
            Ok(0) | Err(_) => return None,
            Ok(count) => self.pending.extend_from_slice(&buffer[..count]),
        }
        let end = self.pending.iter().rposition(|byte| *byte == b'\n');
        let lines: Vec<u8> = self.pending.drain(..end.map_or(0, |end| end + 1)).collect();
        let text = String::from_utf8_lossy(&lines);
        Some(text.lines().filter_map(Order::from_line).collect())
    }
}

/// The state of the tree's termination.
#[derive(Clone, Copy)]
enum Phase {
    Running,
    /// stdin is closed; SIGTERM is sent at the instant, and then the grace period starts.
    Waiting(Instant, Duration),
    /// SIGTERM was sent; SIGKILL is sent at the instant.
    Terminating(Instant),
    Killing,
}

struct Supervisor {
    child: Pid,
    duty: Duty,
    status: Option<ExitStatus>,
    phase: Phase,
    orders_may_come: bool,
    /// When everything is killed, unless the bridge sends a later time before.
    until: Option<BootTime>,
    next_kill: Instant,
    pause: Duration,
    /// The times of the next searches, the earliest last.
    sweeps: Vec<Instant>,
    /// Readable once a descendant has ended, including orphans of the child.
    ended: Option<UnixStream>,
}

impl Supervisor {
    fn new(child: Pid, duty: Duty) -> Self {
        Self {
            child,
            duty,
            status: None,
            phase: Phase::Running,
            orders_may_come: true,
            until: None,
            next_kill: Instant::now(),
            pause: TICK,
            sweeps: Vec::new(),
            ended: ends().ok(),
        }
    }

    fn run(mut self, bridge: &mut Bridge) -> ExitStatus {
        let pidfd = pidfd_open(self.child, PidfdFlags::empty()).ok();
        loop {
            if self.reap() {
                return self.status.unwrap_or(ExitStatus::Unknown);
            }
            if self.until.is_some_and(|until| until.remaining().is_zero()) {
                self.until = None;
                self.kill_all();
            }
            self.advance();
            if self.sweeps.pop_if(|at| Instant::now() >= *at).is_some() {
                self.sweep();
            }
            let watched = pidfd.as_ref().filter(|_| self.status.is_none());
            if self.orders_wait(bridge.control.as_fd(), watched.map(OwnedFd::as_fd)) {
                if let Some(orders) = bridge.orders() {
                    for order in orders {
                        self.follow(order);
                    }
                } else {
                    self.orders_may_come = false;
                    self.kill_all();
                }
            }
        }
    }

    fn follow(&mut self, order: Order) {
        match order {
            Order::End(wait, grace) => self.end(wait, grace),
            // An expired time is never extended: another bridge may already work in the folder.
            Order::Until(until) => {
                if self.until.is_none_or(|until| !until.remaining().is_zero()) {
                    self.until = until;
                }
            }
            Order::Sweep => {
                let now = Instant::now();
                self.sweeps = SWEEPS.iter().rev().map(|after| now + *after).collect();
            }
        }
    }

    /// Waits for an order, the child's exit or the next tick; true if an order is readable.
    fn orders_wait(&self, control: BorrowedFd<'_>, child: Option<BorrowedFd<'_>>) -> bool {
        let now = Instant::now();
        let pause = match self.phase {
            Phase::Killing => {
                let kill = self.next_kill.saturating_duration_since(now);
                kill.clamp(Duration::from_millis(1), TICK)
            }
            Phase::Running => {
                let sweep = self
                    .sweeps
                    .last()
                    .map(|at| at.saturating_duration_since(now));
                let next = self.until.map(BootTime::remaining).into_iter().chain(sweep);
                next.min().unwrap_or(LONGEST_WAIT).clamp(TICK, LONGEST_WAIT)
            }
            Phase::Waiting(..) | Phase::Terminating(_) => TICK,
        };
        let pause = Timespec::try_from(pause).ok();
        let ended = self.ended.as_ref().map(AsFd::as_fd);
        let control = Some(control).filter(|_| self.orders_may_come);
        let watched = [control, child, ended].into_iter().flatten();
        let mut watched: Vec<_> = watched
            .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN))
            .collect();
        // If a signal interrupts `poll`, the results are unchanged.
        let _ = poll(&mut watched, pause.as_ref());
        self.orders_may_come && watched.first().is_some_and(|fd| !fd.revents().is_empty())
    }

    /// An order can only shorten the grace periods.
    fn end(&mut self, wait: Duration, grace: Duration) {
        let until = Instant::now() + wait;
        match self.phase {
            Phase::Killing => {}
            _ if (wait + grace).is_zero() => self.kill_all(),
            Phase::Running => self.phase = Phase::Waiting(until, grace),
            Phase::Waiting(before, other) => {
                self.phase = Phase::Waiting(until.min(before), grace.min(other));
            }
            Phase::Terminating(_) => {}
        }
    }

    /// Most children have no descendants outside their process group: all of `/proc` is read only
    /// if processes remain after the group was killed.
    fn kill_all(&mut self) {
        self.phase = Phase::Killing;
        (self.next_kill, self.pause) = (Instant::now(), TICK);
        // Until it is reaped, its process id is not reused.
        if self.status.is_none() {
            let _ = kill_process_group(self.child, Signal::KILL);
            send_signal(pid_number(self.child), Signal::KILL);
            self.next_kill += KILLED;
        }
    }

    fn advance(&mut self) {
        let now = Instant::now();
        match self.phase {
            Phase::Running if self.lets_live() => {}
            Phase::Running if self.status.is_some() => self.kill_all(),
            Phase::Waiting(until, grace) if now >= until => {
                if !grace.is_zero() {
                    signal_descendants(Signal::TERM);
                }
                self.phase = Phase::Terminating(now + grace);
            }
            Phase::Terminating(until) if now >= until => self.kill_all(),
            _ => {}
        }
        let ended = self.status.is_some() && !self.lets_live();
        let kills = matches!(self.phase, Phase::Killing) || ended;
        if kills && now >= self.next_kill {
            if let Phase::Killing = self.phase {
                signal_descendants(Signal::KILL);
            } else {
                // All processes that left the child's process group.
                let group = pid_number(self.child);
                let below = entries_below(std::process::id()).into_iter();
                let outside = below.filter(|process| process.group != group);
                outside.for_each(|process| send_signal(process.pid, Signal::KILL));
            }
            self.next_kill = now + self.pause;
            self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Whether other processes may outlive the child.
    fn lets_live(&self) -> bool {
        self.duty == Duty::Nursery && matches!(self.phase, Phase::Running)
    }

    /// Kills the processes that were reparented to this nursery, except supervisors: orphans of the
    /// fork parent's imports, and of a killed supervisor.
    fn sweep(&self) {
        let child = pid_number(self.child);
        for pid in children_and_zombies(std::process::id()) {
            let parent = pid == child && self.status.is_none();
            if !parent && !is_supervisor(pid) {
                kill_below(pid);
                send_signal(pid, Signal::KILL);
            }
        }
    }

    /// Reaps all processes that have ended; true once no process is left.
    fn reap(&mut self) -> bool {
        // The socket is emptied before the check, so that no exit is missed.
        let mut bytes = [0; 64];
        while let Some(mut ended) = self.ended.as_ref()
            && ended
                .read(&mut bytes)
                .is_ok_and(|count| count == bytes.len())
        {}
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) if pid == self.child => {
                    let code = status.exit_status().map(ExitStatus::Code);
                    let signal = status.terminating_signal().map(ExitStatus::Signal);
                    self.status = code.or(signal).or(Some(ExitStatus::Unknown));
                    if self.duty == Duty::Nursery {
                        self.sweep();
                    }
                }
                Ok(Some(_)) | Err(rustix::io::Errno::INTR) => {}
                Ok(None) => return false,
                Err(_) => return true,
            }
        }
    }
}

// Process trees, read from `/proc`.

/// The process id in the type that other functions take.
fn pid_number(pid: Pid) -> u32 {
    pid.as_raw_nonzero().get().unsigned_abs()
}

/// All visible processes.
fn processes() -> impl Iterator<Item = Entry> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    numbers.filter_map(read)
}

/// The fields of a process that are read.
pub struct Entry {
    /// The process id.
    pub pid: u32,
    /// The parent's process id.
    pub parent: u32,
    /// The process group.
    pub group: u32,
    /// It has ended and was not reaped yet.
    pub zombie: bool,
}

/// The fields of `/proc/PID/stat` from the third on. Field 2, the name, may contain any characters,
/// so the fields are counted from its end.
fn stat(pid: u32) -> Option<Vec<String>> {
    let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    let after_name = &stat[stat.iter().rposition(|byte| *byte == b')')? + 1..];
    let fields = std::str::from_utf8(after_name).ok()?;
    let fields = fields.split_ascii_whitespace();
    Some(fields.map(str::to_owned).collect())
}

/// Reads one process.
pub fn read(pid: u32) -> Option<Entry> {
    let fields = stat(pid)?;
    Some(Entry {
        pid,
        parent: fields.get(1)?.parse().ok()?,
        group: fields.get(2)?.parse().ok()?,
        zombie: fields[0] == "Z",
    })
}

/// The process ids of all living descendants of `root`, parents before their children.
pub fn descendants(root: u32) -> impl Iterator<Item = u32> {
    let below = entries_below(root).into_iter();
    below.map(|process| process.pid)
}

fn entries_below(root: u32) -> Vec<Entry> {
    let mut below: HashMap<u32, Vec<Entry>> = HashMap::new();
    for process in processes().filter(|process| !process.zombie) {
        below.entry(process.parent).or_default().push(process);
    }
    let mut found = below.remove(&root).unwrap_or_default();
    let mut next = 0;
    while let Some(process) = found.get(next) {
        let children = below.remove(&process.pid).unwrap_or_default();
        found.extend(children);
        next += 1;
    }
    found
}

/// Direct children of `root`, including zombies.
pub fn children_and_zombies(root: u32) -> Vec<u32> {
    processes()
        .filter(|process| process.parent == root)
        .map(|process| process.pid)
        .collect()
}

/// Signals all descendants of this process.
pub fn signal_descendants(signal: Signal) {
    descendants(std::process::id()).for_each(|pid| send_signal(pid, signal));
}

/// Kills all descendants of `root`, in rounds: a process that forks quickly may be found only in
/// the next round.
pub fn kill_below(root: u32) {
    const ROUNDS: usize = 20;
    for _ in 0..ROUNDS {
        let mut found = descendants(root).peekable();
        if found.peek().is_none() {
            return;
        }
        found.for_each(|pid| send_signal(pid, Signal::KILL));
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Signals one process; does nothing if it has ended.
pub fn send_signal(pid: u32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid.cast_signed()) {
        let _ = kill_process(pid, signal);
    }
}

/// Whether a process is a supervisor. Another supervisor's executable is readable only with
/// privileges over it (supervisors are not dumpable); then the command line decides. A process can
/// forge its command line, but one that can do so could also run as a supervisor.
fn is_supervisor(pid: u32) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let program = |pid: &str| std::fs::metadata(format!("/proc/{pid}/exe"));
    let same = match (program("self"), program(&pid.to_string())) {
        (Ok(own), Ok(other)) => (own.dev(), own.ino()) == (other.dev(), other.ino()),
        (_, Err(error)) => error.kind() == std::io::ErrorKind::PermissionDenied,
        (Err(_), _) => false,
    };
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let word = line.split(|byte| *byte == 0).nth(1);
    same && word.is_some_and(|word| Duty::named(OsStr::from_bytes(word)).is_some())
}

/// The command's name, truncated by the kernel to 15 bytes.
pub fn name(pid: u32) -> String {
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    name.trim_end().to_owned()
}

/// Processor time of a process and its descendants so far, in the kernel's ticks.
pub fn processor_time(root: u32) -> u64 {
    sum_of_tree(root, |pid| {
        // Fields 14 and 15: user and system time.
        let fields = stat(pid)?;
        let ticks = fields.get(11..13)?.iter();
        Some(ticks.filter_map(|ticks| ticks.parse::<u64>().ok()).sum())
    })
}

/// Proportional set size of a process and its descendants, in bytes. 0 if the kernel does not
/// report it.
pub fn memory(root: u32) -> u64 {
    sum_of_tree(root, |pid| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
        let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(kib * 1024)
    })
}

fn sum_of_tree(root: u32, one: impl Fn(u32) -> Option<u64>) -> u64 {
    let tree = std::iter::once(root).chain(descendants(root));
    tree.filter_map(one).sum()
}

#[cfg(test)]
mod tree_tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_grandchild_is_a_descendant() {
        let script = "sleep 60 & echo $!; wait";
        let mut shell = Command::new("sh")
            .args(["-c", script])
            .stdout(Stdio::piped())
            .spawn()
            .expect("sh runs");
        let mut line = String::new();
        let output = shell.stdout.take().unwrap();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(output), &mut line).unwrap();
        let grandchild: u32 = line.trim().parse().unwrap();
        let found: Vec<_> = descendants(std::process::id()).collect();
        let position = |pid| found.iter().position(|other| *other == pid);
        assert!(position(shell.id()).unwrap() < position(grandchild).unwrap());
        assert!(children_and_zombies(std::process::id()).contains(&shell.id()));
        assert!(memory(shell.id()) > 0);
        let _ = kill_process(
            Pid::from_raw(grandchild.cast_signed()).unwrap(),
            Signal::KILL,
        );
        shell.wait().unwrap();
    }
}
