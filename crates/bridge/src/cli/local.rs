//! The bridge's parts in a command's own process: everything but the listening.

use std::{
    fs,
    fs::DirBuilder,
    future::Future,
    num::NonZeroUsize,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use bridge_model::ServerName;
use bridge_state::{ChatStore, Membership};
use futures_util::future::join_all;
use indexmap::IndexMap;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use tokio::{
    signal::unix::{SignalKind, signal},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use super::{Failure, SettingsArgs, output};
use crate::{
    app::App,
    catalog::{Learnt, Offer, learn},
    child::Forking,
    config::{self, Loaded, ServerSpec, Settings},
    launches::Launching,
    telemetry::LogGuard,
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

/// The settings, the log and the store of a command that works on a bridge's jobs folder. Hold the guard
/// until the command is done.
pub fn open(settings: &SettingsArgs) -> Result<(Settings, LogGuard, ChatStore), Failure> {
    let settings = settings.resolve()?;
    let log = output::start(&settings.log)?;
    let store = open_store(&settings.jobs_dir)?;
    Ok((settings, log, store))
}

/// The settings, the log and the servers of a command that starts them; with a name only this server.
pub fn load(
    settings: &SettingsArgs,
    only: Option<&str>,
) -> Result<(Settings, LogGuard, Loaded), Failure> {
    let settings = settings.resolve()?;
    let mut config = config::load(&settings.config_file, &settings)?;
    let log = output::start(&settings.log)?;
    if let Some(name) = only {
        let Some(spec) = config.servers.shift_remove(name) else {
            let names = config.servers.keys().map(ServerName::as_str);
            let names = names.collect::<Vec<_>>().join(", ");
            return Err(Failure::usage(format!(
                "the server file has no server '{name}'; it has: {names}"
            )));
        };
        config.servers = IndexMap::from([(spec.name.clone(), spec)]);
    }
    Ok((settings, log, config))
}

// Starting servers side by side to learn what they offer, in a jobs folder of its own.

/// For `tools/list` with all its pages, past the start timeout.
const LIST_TIME: Duration = Duration::from_secs(30);

/// Between two steps of the display.
const TICK: Duration = Duration::from_millis(100);

/// What became of one server.
pub struct Surveyed {
    /// Its config.
    pub spec: Arc<ServerSpec>,
    /// What it offers, or the error with the server's last output.
    pub outcome: Result<Offer, String>,
    /// How it was started.
    pub launching: Launching,
    /// How further processes of it would come to be, where that was asked.
    pub forking: Option<Forking>,
    /// From its start to its list of tools.
    pub took: Duration,
}

/// Starts every server of `config`, and where `fork` says so its fork parent; the order stays. A failing one takes nothing from the others.
pub async fn survey(
    mut settings: Settings,
    config: Loaded,
    fork: bool,
) -> Result<Vec<Surveyed>, Failure> {
    let folder = Folder::new()?;
    settings.jobs_dir = folder.jobs();
    // Side by side: a server that waited for its turn would seem slower than it is.
    let servers = NonZeroUsize::new(config.servers.len()).unwrap_or(NonZeroUsize::MIN);
    settings.limits.max_starts = settings.limits.max_starts.max(servers);
    let specs: Vec<_> = config.servers.values().cloned().collect();
    let local = Local::new(settings, config)?;
    local.app.installer.follow(specs.clone()).await;
    let display = MultiProgress::new();
    let each = specs.into_iter().map(|spec| {
        let bar = line(&display, &spec);
        one(&local, spec, fork, bar)
    });
    let surveyed = until_signal(join_all(each)).await;
    let _ = display.clear();
    local.end().await;
    surveyed
}

/// By when a server that is started now must have listed its tools.
fn deadline(app: &App) -> tokio::time::Instant {
    tokio::time::Instant::now() + app.settings.limits.start_timeout + LIST_TIME
}

impl Local {
    /// Starts a server and asks what it offers; the error has the server's last output.
    pub async fn learn(&self, spec: &Arc<ServerSpec>) -> Result<Learnt, String> {
        let (app, stop) = (&self.app, CancellationToken::new());
        let (children, store) = (&app.engine.children, &app.store);
        let learnt = learn(spec, children, store, deadline(app), &stop).await;
        learnt.map_err(|error| error.to_string())
    }
}

async fn one(local: &Local, spec: Arc<ServerSpec>, fork: bool, bar: ProgressBar) -> Surveyed {
    let began = Instant::now();
    let (app, deadline) = (&local.app, deadline(&local.app));
    let learnt = local.learn(&spec).await;
    let took = began.elapsed();
    let outcome = learnt.map(|learnt| Offer::new(spec.clone(), Arc::new(learnt)));
    bar.finish_with_message(if outcome.is_ok() { "ready" } else { "failed" });
    let launching = app.installer.launches().state_of(&spec);
    let forking = match &outcome {
        Ok(_) if fork => Some(app.engine.children.forking(&spec, deadline).await),
        _ => None,
    };
    Surveyed {
        spec,
        outcome,
        launching,
        forking,
        took,
    }
}

/// One line of the display; without a terminal on stderr nothing is shown.
pub fn line(display: &MultiProgress, spec: &ServerSpec) -> ProgressBar {
    let bar = display.add(ProgressBar::new_spinner());
    if let Ok(style) = ProgressStyle::with_template("{spinner} {prefix}: {msg} ({elapsed})") {
        bar.set_style(style);
    }
    bar.set_prefix(spec.name.to_string());
    bar.set_message("starting");
    bar.enable_steady_tick(TICK);
    bar
}

/// A temporary folder that goes when this is dropped.
pub struct Folder(PathBuf);

impl Folder {
    /// Makes one.
    pub fn new() -> Result<Self, Failure> {
        let path = std::env::temp_dir().join(format!("mcpo-bridge-{}", uuid::Uuid::new_v4()));
        let made = DirBuilder::new().mode(0o700).create(&path);
        made.map_err(|error| {
            let path = path.display();
            Failure::failed(format!(
                "cannot create the temporary directory {path}: {error}; set TMPDIR to a writable \
                 directory"
            ))
        })?;
        Ok(Self(path))
    }

    /// For a jobs folder.
    pub fn jobs(&self) -> PathBuf {
        self.0.join("jobs")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // After an interruption a child that is being killed may still write.
        for _ in 0..ATTEMPTS {
            match fs::remove_dir_all(&self.0) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {}
                _ => return,
            }
            std::thread::sleep(PAUSE);
        }
    }
}

const ATTEMPTS: usize = 40;

const PAUSE: Duration = Duration::from_millis(50);
