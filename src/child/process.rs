//! The bridge's side of a supervisor: one task owns it, everybody else sends it messages.
//!
//! ```text
//! Running ──end()──▶ Ending ──"exit …"──▶ Gone
//!    └──────────── "exit …", or the socket closes ─┘
//! ```

use std::time::Duration;

use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{mpsc, watch},
};

use super::{
    ChildError,
    control::{End, ExitStatus, Report},
    reaper::Supervisors,
};

/// A running child process tree. Dropping it kills the tree.
pub struct Process {
    pid: u32,
    orders: mpsc::UnboundedSender<End>,
    exit: watch::Receiver<Option<ExitStatus>>,
}

impl Process {
    /// Waits for the supervisor's first word.
    pub async fn started(
        control: UnixStream,
        supervisor: tokio::process::Child,
        supervisors: Supervisors,
    ) -> Result<Self, ChildError> {
        let (read, write) = control.into_split();
        let mut reports = BufReader::new(read).lines();
        let first = next_report(&mut reports).await;
        let owner = Owner {
            reports,
            control: write,
            supervisor,
            supervisors,
        };
        let pid = match first {
            Some(Report::Started(pid)) => pid,
            other => {
                owner.reap().await;
                let why = match other {
                    Some(Report::Failed(why)) => why,
                    _ => "its supervisor ended before it started".to_owned(),
                };
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
        let status = loop {
            tokio::select! {
                report = next_report(&mut self.reports) => match report {
                    Some(Report::Exited(status)) => break status,
                    Some(_) => {}
                    None => break ExitStatus::Unknown,
                },
                order = inbox.recv() => {
                    // No handle is left: nobody can want it any more.
                    let order = order.unwrap_or(End::Kill);
                    let _ = self.control.write_all(order.to_line().as_bytes()).await;
                    if inbox.is_closed() && inbox.is_empty() {
                        break match next_report(&mut self.reports).await {
                            Some(Report::Exited(status)) => status,
                            _ => ExitStatus::Unknown,
                        };
                    }
                }
            }
        };
        self.reap().await;
        gone.send_replace(Some(status));
    }

    /// A supervisor that said its last word ends at once; one that lost its socket is killed.
    async fn reap(mut self) {
        drop(self.control);
        let pid = self.supervisor.id();
        if tokio::time::timeout(Duration::from_secs(5), self.supervisor.wait())
            .await
            .is_err()
        {
            let _ = self.supervisor.kill().await;
        }
        self.supervisors.forget(pid);
    }
}
