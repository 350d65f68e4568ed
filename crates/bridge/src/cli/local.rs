//! The bridge's parts in a command's own process: everything but the listening.

use std::{future::Future, path::Path, sync::Arc, time::Duration};

use bridge_state::{ChatStore, Membership};
use tokio::{
    signal::unix::{SignalKind, signal},
    task::JoinSet,
};

use super::Failure;
use crate::{
    app::App,
    config::{Loaded, Settings},
};

/// How long each thing that still runs may keep a command that is done.
const LEAVE: Duration = Duration::from_secs(2);

/// The parts, and the tasks that they need.
pub struct Local {
    /// The parts.
    pub app: Arc<App>,
    tasks: JoinSet<()>,
}

impl Local {
    /// Puts them together on the jobs folder of `settings`. Must be called within a runtime.
    pub fn new(mut settings: Settings, config: Loaded) -> Result<Self, Failure> {
        // A command has no time to install anything: it uses what is there.
        settings.install = false;
        let store = ChatStore::open(&settings.jobs_dir, &Membership::default());
        let app = App::new(settings, store.map_err(Failure::failed)?, config);
        let app = app.map_err(Failure::failed)?;
        let mut tasks = JoinSet::new();
        let engine = app.engine.clone();
        tasks.spawn(async move { engine.children.sweep_strays().await });
        tasks.spawn(beat(app.store.clone()));
        Ok(Self { app, tasks })
    }

    /// Ends every child and gives all leases back.
    pub async fn end(mut self) {
        let engine = &self.app.engine;
        engine.stopping.cancel();
        engine.running.close();
        engine.running.wait().await;
        tokio::join!(
            engine.sessions.end_all(),
            engine.shared.end_all(),
            self.app.installer.close()
        );
        // The sessions of remote servers are still being closed.
        let _ = tokio::time::timeout(LEAVE, engine.children.none_left()).await;
        self.tasks.shutdown().await;
    }
}

/// A bridge on another host must see that this process lives.
async fn beat(store: Arc<ChatStore>) {
    let mut timer = tokio::time::interval(store.renew_every());
    loop {
        timer.tick().await;
        let store = store.clone();
        let _ = tokio::task::spawn_blocking(move || store.renew()).await;
    }
}

/// Runs a command's asynchronous part to its end.
pub fn block_on<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("cannot start threads: {error}")))?;
    let done = runtime.block_on(work);
    // Tasks hold the store, which cleans up when it is dropped; but a disk that hangs must not
    // keep a command that has its answer.
    runtime.shutdown_timeout(LEAVE);
    done
}

/// Gives `work` up at SIGINT and SIGTERM, so that what it started can be ended in good order.
pub async fn until_signal<T>(work: impl Future<Output = T>) -> Result<T, Failure> {
    let listen = |kind| {
        signal(kind).map_err(|error| Failure::failed(format!("cannot listen for signals: {error}")))
    };
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut terminate = listen(SignalKind::terminate())?;
    tokio::select! {
        done = work => Ok(done),
        _ = interrupt.recv() => Err(Failure::interrupted()),
        _ = terminate.recv() => Err(Failure::interrupted()),
    }
}

/// Opens the jobs folder that a bridge works in. A folder that is not there is not made: it would
/// only hide that another one was meant.
pub fn open_store(jobs_dir: &Path) -> Result<ChatStore, Failure> {
    if !jobs_dir.exists() {
        let path = jobs_dir.display();
        return Err(Failure::failed(format!(
            "jobs directory {path} does not exist; set --jobs-dir / MCPO_JOBS_DIR to the directory that the \
             bridge uses"
        )));
    }
    ChatStore::open(jobs_dir, &Membership::default()).map_err(Failure::failed)
}
