//! The bridge's side of a supervisor: one task owns it, everybody else sends it messages.
//!
//! ```text
//! Running ──end()──▶ Ending ──"exit …"──▶ Gone
//!    └──────────── "exit …", or the socket closes ─┘
//! Ending ──no word in time──▶ the supervisor is killed ──▶ Gone
//! ```

use std::time::Duration;

use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{mpsc, watch},
    time::{Instant, sleep_until, timeout, timeout_at},
};

use super::{
    ChildError,
    control::{End, ExitStatus, Report, silence_line},
    reaper::Supervisors,
    tree,
};

/// What a supervisor gets beyond the times of an end before it is taken for stuck.
const SPARE: Duration = Duration::from_secs(2);
/// How long the end of a supervisor is waited for.
const REAPED: Duration = Duration::from_secs(5);

/// A running child process tree. Dropping it kills the tree.
pub struct Process {
    pid: u32,
    orders: mpsc::UnboundedSender<End>,
    exit: watch::Receiver<Option<ExitStatus>>,
}

impl Process {
    /// Waits for the supervisor's first word. One that has said nothing at `until` is killed.
    pub async fn started(
        control: UnixStream,
        supervisor: tokio::process::Child,
        supervisors: Supervisors,
        until: Instant,
    ) -> Result<Self, ChildError> {
        let (read, write) = control.into_split();
        let mut reports = BufReader::new(read).lines();
        let first = timeout_at(until, next_report(&mut reports)).await;
        let owner = Owner {
            reports,
            control: write,
            supervisor,
            supervisors,
        };
        let pid = match first {
            Ok(Some(Report::Started(pid))) => pid,
            Ok(other) => {
                owner.reap().await;
                let why = match other {
                    Some(Report::Failed(why)) => why,
                    _ => "its supervisor ended before it started".to_owned(),
                };
                return Err(ChildError::not_started(why));
            }
            Err(_) => {
                // Even its end can take long where the kernel waits for a mount.
                tokio::spawn(owner.kill());
                let why = "the program did not begin to run in time".to_owned();
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
        let _ = self.orders.send(how);
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

struct Owner {
    reports: Lines<BufReader<OwnedReadHalf>>,
    control: OwnedWriteHalf,
    supervisor: tokio::process::Child,
    supervisors: Supervisors,
}

impl Owner {
    async fn run(
        mut self,
        mut inbox: mpsc::UnboundedReceiver<End>,
        gone: watch::Sender<Option<ExitStatus>>,
    ) {
        let mut asked_to_end: Option<Instant> = None;
        let mut handles = true;
        let mut silence = self.supervisors.silence();
        let bounded = *silence.borrow_and_update();
        if bounded.is_some() {
            self.say(&silence_line(bounded)).await;
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
                    let order = order.unwrap_or(End::Kill);
                    self.say(&order.to_line()).await;
                    let over = Instant::now() + order.longest() + SPARE;
                    asked_to_end = Some(asked_to_end.map_or(over, |before| before.min(over)));
                }
                () = due(&mut silence) => {
                    let bounded = *silence.borrow_and_update();
                    self.say(&silence_line(bounded)).await;
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

    /// For a supervisor that does not do its work, because its child stopped it, say. First what is
    /// below it: as long as it is there, all of that can be found.
    async fn kill(mut self) {
        if let Some(pid) = self.supervisor.id() {
            let _ = tokio::task::spawn_blocking(move || tree::kill_below(pid)).await;
        }
        let _ = self.supervisor.start_kill();
        let supervisors = self.supervisors.clone();
        self.reap().await;
        supervisors.look_for_strays();
    }

    /// A supervisor that said its last word ends at once; one that lost its socket is killed.
    async fn reap(mut self) {
        drop(self.control);
        let pid = self.supervisor.id();
        if timeout(REAPED, self.supervisor.wait()).await.is_err() {
            let _ = self.supervisor.start_kill();
            // One that even so does not go is the kernel's; its end cannot be waited for.
            let _ = timeout(REAPED, self.supervisor.wait()).await;
        }
        self.supervisors.forget(pid);
    }
}

/// Waits until the bound on our silence is to be said again, or another.
async fn due(silence: &mut watch::Receiver<Option<Duration>>) {
    let most = *silence.borrow();
    let again = at(most.map(|most| Instant::now() + most / 4));
    tokio::select! {
        changed = silence.changed() => if changed.is_err() {
            std::future::pending::<()>().await;
        },
        () = again => {}
    }
}

/// Waits for that moment; for ever where there is none.
async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let started = Process::started(ours, supervisor, supervisors.clone(), until).await;
        assert!(matches!(started, Err(ChildError::NotStarted { .. })));
        supervisors.none_left().await;
    }

    #[tokio::test]
    async fn a_supervisor_that_does_not_answer_is_killed() {
        let supervisors = Supervisors::new();
        let (ours, mut theirs, supervisor) = silent(&supervisors);
        theirs.write_all(b"pid 4711\n").await.unwrap();
        let until = Instant::now() + Duration::from_secs(60);
        let started = Process::started(ours, supervisor, supervisors.clone(), until).await;
        let process = started.ok().unwrap();
        process.ask_to_end(End::Kill);
        let gone = timeout(Duration::from_secs(30), process.gone()).await;
        assert_eq!(gone.unwrap(), ExitStatus::Unknown);
        supervisors.none_left().await;
    }
}
