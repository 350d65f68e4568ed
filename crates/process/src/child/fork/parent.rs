//! A running fork parent: started, taught what to import, and then asked for processes.

use std::{
    ffi::OsStr,
    fs::File,
    io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::{ffi::OsStrExt as _, net::UnixStream},
    },
    sync::Arc,
    time::Duration,
};

use bridge_protocol::method;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::{
    Scratch,
    plan::Plan,
    program,
    wire::{self, Begin, Loaded, Order, Socket, Word},
};
use crate::child::{
    ChildError, End, Profile,
    connection::Connection,
    hello,
    launch::{self, Launch, Pipes},
    log::ServerLog,
    process::{Handle, Keeper, Process, Sweeper},
    reaper::Supervisors,
};

/// What a parent that is told to end by the end of its socket gets.
const LEAVE: Duration = Duration::from_secs(5);

/// What parents are made with.
#[derive(Clone)]
pub struct Means {
    /// Those of all children.
    pub supervisors: Supervisors,
    /// Bounds a start, handshake included.
    pub start_timeout: Duration,
    /// Bytes of one message from a process.
    pub max_message: usize,
}

/// A process that has imported what a server needs. Dropping it ends it; what was forked from it
/// lives on.
pub struct Parent {
    plan: Plan,
    socket: Socket,
    sweeper: Sweeper,
    retired: CancellationToken,
    means: Means,
    /// What it imported.
    pub loaded: Loaded,
}

impl Drop for Parent {
    fn drop(&mut self) {
        self.retired.cancel();
    }
}

impl Parent {
    /// Starts one in a folder of its own. `launch` is how a process of this server would be started
    /// there. The error says why it cannot be.
    pub async fn start(
        plan: Plan,
        launch: Launch,
        folder: &Scratch,
        name: &str,
        profile: &Profile,
        means: Means,
    ) -> Result<Self, String> {
        let written = program::write(&folder.program);
        written.map_err(|error| format!("no folder for its program: {error}"))?;
        let job = &folder.job;
        let log = ServerLog::new(name, job.server_log());
        let said = |error: ChildError| error.without_folder(&job.paths()).to_string();
        let own = Launch {
            args: [
                plan.options.clone(),
                vec![folder.program.display().to_string()],
            ]
            .concat(),
            program: plan.program.clone(),
            ..launch.clone()
        };
        let (socket, theirs) = Socket::pair().map_err(|error| error.to_string())?;
        let (pipes, mut stdio) = launch::pipes().map_err(|error| error.to_string())?;
        stdio.stdin = theirs;
        drop(pipes.stdin);
        let until = Instant::now() + means.start_timeout;
        let process = launch::nursery(&own, stdio, &means.supervisors, until);
        let process = process.await.map_err(said)?;
        tokio::spawn(log.clone().follow(pipes.stdout));
        tokio::spawn(log.clone().follow(pipes.stderr));
        let retired = CancellationToken::new();
        let mut parent = Self {
            sweeper: process.sweeper(),
            socket,
            retired: retired.clone(),
            means,
            loaded: Loaded {
                modules: 0,
                left_out: Vec::new(),
                sources: Vec::new(),
            },
            plan,
        };
        // Until it is fit, all of it ends with this future.
        let begin = Order::Begin(Begin {
            target: &parent.plan.target,
            name: parent.plan.name(),
            written: &parent.plan.written,
            argv: &parent.plan.argv,
            env: pairs(&launch),
            sentinel: job.id().to_string(),
            learnt: job.folder().join("learnt"),
        });
        let lost = |error: io::Error| format!("its fork parent is gone: {error}");
        // It forks supervisors, and cannot read what program its own is: that one is not dumpable.
        let program = File::open("/proc/self/exe").map_err(|error| error.to_string())?;
        let sent = parent.socket.send(&begin, &[program.as_fd()]).await;
        sent.map_err(lost)?;
        let own_argv = parent.plan.argv.clone();
        let handshake = |learn| parent.handshake(&launch, &own_argv, learn, &log, profile);
        handshake(true).await.map_err(said)?;
        parent
            .socket
            .send(&Order::Preload {}, &[])
            .await
            .map_err(lost)?;
        // Imports again and again while it finds modules that it must leave out.
        let until = Instant::now() + parent.means.start_timeout * 4;
        parent.loaded = match timeout_at(until, parent.socket.next()).await {
            Ok(Some(Word::Ready(loaded))) => loaded,
            Ok(Some(Word::Unfit(why))) => return Err(why),
            Ok(None) => return Err(format!("its imports fail before a fork; {}", log.tail())),
            Err(_) => return Err("its imports take too long".to_owned()),
        };
        let handshake = parent.handshake(&launch, &own_argv, false, &log, profile);
        handshake.await.map_err(said)?;
        tokio::spawn(keep(Arc::new(process), retired));
        Ok(parent)
    }

    /// Whether this is what it runs.
    pub fn runs(&self, plan: &Plan) -> bool {
        let same = |plan: &Plan| {
            (
                plan.program.clone(),
                plan.options.clone(),
                plan.target.clone(),
            )
        };
        same(&self.plan) == same(plan)
    }

    /// A process of its own, as `launch` says.
    pub async fn fork(
        &self,
        launch: &Launch,
        argv: &[String],
        until: Instant,
    ) -> Result<(Process, Pipes), ChildError> {
        self.forked(launch, argv, false, until).await
    }

    /// Waits until it is gone.
    pub async fn gone(&self) {
        while self.socket.next().await.is_some() {}
    }

    async fn forked(
        &self,
        launch: &Launch,
        argv: &[String],
        learn: bool,
        until: Instant,
    ) -> Result<(Process, Pipes), ChildError> {
        let failed = |error: io::Error| {
            ChildError::not_started(format!("its fork parent takes no order: {error}"))
        };
        let (ours, control) = UnixStream::pair().map_err(failed)?;
        ours.set_nonblocking(true).map_err(failed)?;
        let ours = tokio::net::UnixStream::from_std(ours).map_err(failed)?;
        let control = OwnedFd::from(control);
        let (pipes, theirs) = launch::pipes().map_err(failed)?;
        let order = Order::Fork(wire::Fork {
            cwd: &launch.cwd.to_string_lossy(),
            env: pairs(launch),
            argv,
            learn,
        });
        let [stdin, stdout, stderr] = theirs.all();
        let with = [stdin, stdout, stderr, control.as_fd()];
        let sent = timeout_at(until, self.socket.send(&order, &with)).await;
        sent.map_err(io::Error::from).flatten().map_err(failed)?;
        // The other end must be the parent's alone: its end is how we learn that it is gone.
        drop((theirs, control));
        let keeper = Keeper::Forked(None, self.sweeper.clone(), self.means.supervisors.clone());
        let process = launch::follow(ours, keeper, until).await?;
        Ok((process, pipes))
    }

    /// A process that is asked what it offers and then killed.
    async fn handshake(
        &self,
        launch: &Launch,
        argv: &[String],
        learn: bool,
        log: &ServerLog,
        profile: &Profile,
    ) -> Result<(), ChildError> {
        let until = Instant::now() + self.means.start_timeout;
        let (process, pipes) = self.forked(launch, argv, learn, until).await?;
        tokio::spawn(log.clone().follow(pipes.stderr));
        let connection = Connection::open(
            pipes.stdin,
            pipes.stdout,
            self.means.max_message,
            Arc::new(|_| {}),
            Arc::new(|line| line),
            Arc::new(log.clone()),
        );
        let greeting = async {
            let hello = hello::introduce(&connection, profile).await;
            let hello = hello.map_err(|_| not_ready(log))??;
            let params = (hello.era == bridge_protocol::era::Era::Modern)
                .then(|| crate::child::envelope::params(None, &Profile::modern()));
            let listed = connection
                .request(method::TOOLS_LIST, params.as_ref())
                .await;
            // A server without tools refuses, and imported what it needs to do so.
            listed.map(drop).map_err(|_| not_ready(log))
        };
        let greeted = timeout_at(until, greeting).await;
        process.ask_to_end(End::Kill);
        process.gone().await;
        greeted.unwrap_or(Err(ChildError::Timeout))
    }
}

/// The environment as it goes over the wire.
fn pairs(launch: &Launch) -> Vec<(String, String)> {
    let latin = |text: &OsStr| wire::latin(text.as_bytes());
    let env = launch.env.iter();
    env.map(|(name, value)| (latin(name), latin(value)))
        .collect()
}

fn not_ready(log: &ServerLog) -> ChildError {
    let said = log.tail();
    ChildError::NotStarted {
        why: "forked, it ended before it was ready".to_owned(),
        said: if said.is_empty() {
            said
        } else {
            format!("; its last words: {said}")
        },
        refused: false,
    }
}

/// Holds the nursery for as long as anything lives below it.
async fn keep(nursery: Arc<Process>, retired: CancellationToken) {
    let parent = Handle::of(nursery.pid());
    tokio::select! {
        _ = nursery.gone() => return,
        () = retired.cancelled() => {}
    }
    // The socket is closed: it ends by itself, unless it hangs.
    if let Ok(parent) = parent
        && timeout(LEAVE, parent.gone()).await.is_err()
    {
        parent.kill();
    }
    nursery.gone().await;
}
