//! The process between the bridge and each child: `mcpo-bridge __supervise -- PROGRAM ARGS…`.
//!
//! It is the child's parent and a subreaper, so whatever the child starts, grandchildren of `uvx`
//! and `npx` and `setsid` runaways included, stays below it and is ended with it. When the bridge
//! dies, however it dies, the control socket closes and the whole tree is killed. So it is when the
//! bridge has bound its own silence and breaks that: another may work in the folder by then.
//!
//! ```text
//! Running ──"end"──▶ Waiting ──time──▶ Terminating (SIGTERM sent) ──time──▶ Killing
//!    │                   └── tree gone ──▶ done ◀── tree gone ──┴──────────────┘
//!    └── child exits, or the socket closes ──▶ Killing
//! ```
//! Once the child itself has ended, only its own process group gets the rest of the time to leave;
//! what left the group is a runaway and killed at once.
//!
//! Environment, working directory and arguments are the child's own: they were given to this
//! process, which passes them on unread.

use std::{
    ffi::OsString,
    io::{IoSliceMut, Read as _, Write as _},
    mem::MaybeUninit,
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
        unix::{net::UnixStream, process::CommandExt as _},
    },
    process::{Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg},
    process::{Pid, PidfdFlags, Signal, WaitOptions, pidfd_open, wait},
};

use super::{
    control::{End, ExitStatus, Report, silence_of},
    tree,
};

/// How often ended processes are reaped while the tree is ending.
const TICK: Duration = Duration::from_millis(10);
/// Kills follow each other after [`TICK`] and then ever more slowly: each reads all of `/proc`, and
/// what does not go at once waits for the kernel.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// How often orphans that ended by themselves are reaped while the child runs.
const REAP: Duration = Duration::from_secs(10);
/// The kernel's out-of-memory killer takes children (1000 = first), never the bridge.
const OOM_SCORE: &str = "800";

/// Runs as supervisor of `argv` until nothing of the child is left.
pub fn supervise(argv: &[OsString]) -> ExitCode {
    let Ok(control) = std::io::stdin().as_fd().try_clone_to_owned() else {
        return ExitCode::FAILURE;
    };
    let mut bridge = Bridge {
        control: control.into(),
        pending: Vec::new(),
    };
    match start(&bridge.control, argv) {
        Ok(child) => {
            bridge.report(&Report::Started(tree::number(child)));
            let status = Supervisor::new(child).run(&mut bridge);
            bridge.report(&Report::Exited(status));
            ExitCode::SUCCESS
        }
        Err(error) => {
            let program = argv
                .first()
                .map(|name| name.display().to_string())
                .unwrap_or_default();
            bridge.report(&Report::Failed(format!(
                "cannot start '{program}': {error}"
            )));
            ExitCode::FAILURE
        }
    }
}

/// Starts the child in a process group of its own on the three descriptors that the bridge sends.
fn start(control: &UnixStream, argv: &[OsString]) -> std::io::Result<Pid> {
    let [stdin, stdout, stderr] = receive_stdio(control)?;
    let (program, args) = argv.split_first().ok_or(std::io::ErrorKind::InvalidInput)?;
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    // A core dump in `work/` would be handed out as the tool's file.
    let none = rustix::process::Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    let _ = rustix::process::setrlimit(rustix::process::Resource::Core, none);
    let own_score = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default();
    let _ = std::fs::write("/proc/self/oom_score_adj", OOM_SCORE);
    let child = Command::new(program)
        .args(args)
        .process_group(0)
        .stdin(Stdio::from(stdin))
        .stdout(Stdio::from(stdout))
        .stderr(Stdio::from(stderr))
        .spawn();
    let _ = std::fs::write("/proc/self/oom_score_adj", own_score.trim());
    // Waited for by number: orphans that come to us are reaped by the same call.
    let child = child?;
    Pid::from_raw(child.id().cast_signed()).ok_or_else(|| std::io::ErrorKind::Other.into())
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
        .ok_or_else(|| std::io::Error::other("the bridge sent no stdio"))
}

/// The other end of the control socket.
struct Bridge {
    control: UnixStream,
    pending: Vec<u8>,
}

/// What the bridge wants.
enum Order {
    End(Duration, Duration),
    Silence(Duration),
    Gone,
}

impl Bridge {
    fn report(&mut self, report: &Report) {
        // A bridge that is gone needs no report; its absence is seen by the next read.
        let _ = self
            .control
            .write_all(format!("{}\n", report.to_line()).as_bytes());
    }

    /// Reads what is there after poll said so. Unknown lines are skipped.
    fn order(&mut self) -> Option<Order> {
        let mut buffer = [0_u8; 256];
        match self.control.read(&mut buffer) {
            Ok(0) | Err(_) => return Some(Order::Gone),
            Ok(count) => self.pending.extend_from_slice(&buffer[..count]),
        }
        let end = self.pending.iter().rposition(|byte| *byte == b'\n')?;
        let lines: Vec<u8> = self.pending.drain(..=end).collect();
        let text = String::from_utf8_lossy(&lines);
        let end = text.lines().rev().find_map(End::times);
        end.map(|(wait, grace)| Order::End(wait, grace))
            .or_else(|| text.lines().rev().find_map(silence_of).map(Order::Silence))
    }
}

/// Where the tree is on its way out.
#[derive(Clone, Copy)]
enum Phase {
    Running,
    /// stdin is closed; SIGTERM at the instant, and then the grace begins.
    Waiting(Instant, Duration),
    /// SIGTERM was sent; SIGKILL at the instant.
    Terminating(Instant),
    Killing,
}

struct Supervisor {
    child: Pid,
    status: Option<ExitStatus>,
    phase: Phase,
    orders_may_come: bool,
    /// When the bridge is taken for dead unless it says something.
    silent_at: Option<Instant>,
    next_kill: Instant,
    pause: Duration,
}

impl Supervisor {
    fn new(child: Pid) -> Self {
        Self {
            child,
            status: None,
            phase: Phase::Running,
            orders_may_come: true,
            silent_at: None,
            next_kill: Instant::now(),
            pause: TICK,
        }
    }

    fn run(mut self, bridge: &mut Bridge) -> ExitStatus {
        let pidfd = pidfd_open(self.child, PidfdFlags::empty()).ok();
        loop {
            let everything_gone = self.reap();
            if everything_gone {
                return self.status.unwrap_or(ExitStatus::Unknown);
            }
            if self.silent_at.is_some_and(|at| Instant::now() >= at) {
                self.silent_at = None;
                self.kill_all();
            }
            self.advance();
            let watched = pidfd.as_ref().filter(|_| self.status.is_none());
            if self.orders_wait(bridge.control.as_fd(), watched.map(OwnedFd::as_fd)) {
                match bridge.order() {
                    Some(Order::End(wait, grace)) => self.end(wait, grace),
                    Some(Order::Silence(most)) => {
                        self.silent_at = (!most.is_zero()).then(|| Instant::now() + most);
                    }
                    Some(Order::Gone) => {
                        self.orders_may_come = false;
                        self.kill_all();
                    }
                    None => {}
                }
            }
        }
    }

    /// Waits for an order, the child's exit or the next tick; true if an order can be read.
    fn orders_wait(&self, control: BorrowedFd<'_>, child: Option<BorrowedFd<'_>>) -> bool {
        let pause = if matches!(self.phase, Phase::Running) {
            let silent = self
                .silent_at
                .map(|at| at.saturating_duration_since(Instant::now()));
            silent.map_or(REAP, |silent| silent.clamp(TICK, REAP))
        } else {
            TICK
        };
        let pause = Timespec::try_from(pause).ok();
        let mut watched = Vec::with_capacity(2);
        if self.orders_may_come {
            watched.push(PollFd::from_borrowed_fd(control, PollFlags::IN));
        }
        if let Some(child) = child {
            watched.push(PollFd::from_borrowed_fd(child, PollFlags::IN));
        }
        let _ = poll(&mut watched, pause.as_ref());
        self.orders_may_come && watched.first().is_some_and(|fd| !fd.revents().is_empty())
    }

    /// An order only ever hastens the end.
    fn end(&mut self, wait: Duration, grace: Duration) {
        let until = Instant::now() + wait;
        match self.phase {
            Phase::Running => self.phase = Phase::Waiting(until, grace),
            Phase::Waiting(before, other) => {
                self.phase = Phase::Waiting(until.min(before), grace.min(other));
            }
            Phase::Terminating(_) if wait + grace == Duration::ZERO => self.kill_all(),
            Phase::Terminating(_) | Phase::Killing => {}
        }
    }

    fn kill_all(&mut self) {
        self.phase = Phase::Killing;
        (self.next_kill, self.pause) = (Instant::now(), TICK);
    }

    fn advance(&mut self) {
        let now = Instant::now();
        match self.phase {
            Phase::Running if self.status.is_some() => self.kill_all(),
            Phase::Waiting(until, grace) if now >= until => {
                if !grace.is_zero() {
                    tree::signal_descendants(Signal::TERM);
                }
                self.phase = Phase::Terminating(now + grace);
            }
            Phase::Terminating(until) if now >= until => self.kill_all(),
            _ => {}
        }
        let kills = matches!(self.phase, Phase::Killing) || self.status.is_some();
        if kills && now >= self.next_kill {
            if let Phase::Killing = self.phase {
                tree::signal_descendants(Signal::KILL);
            } else {
                tree::kill_descendants_outside(tree::number(self.child));
            }
            self.next_kill = now + self.pause;
            self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Collects every process that ended; true once there is none left.
    fn reap(&mut self) -> bool {
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) if pid == self.child => {
                    let code = status.exit_status().map(ExitStatus::Code);
                    let signal = status.terminating_signal().map(ExitStatus::Signal);
                    self.status = code.or(signal).or(Some(ExitStatus::Unknown));
                }
                Ok(Some(_)) | Err(rustix::io::Errno::INTR) => {}
                Ok(None) => return false,
                Err(_) => return true,
            }
        }
    }
}
