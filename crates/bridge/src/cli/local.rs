//! The parts of the bridge in a command's own process: everything except the HTTP server.

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

/// Timeout for each remaining task after a command is done.
const LEAVE: Duration = Duration::from_secs(2);

/// The parts of the bridge, and the tasks that they need.
pub struct Local {
    /// The parts.
    pub app: Arc<App>,
    tasks: JoinSet<()>,
}

impl Local {
    /// Creates the parts on the jobs folder of `settings`. Must be called within a runtime.
    pub fn new(mut settings: Settings, config: Loaded) -> Result<Self, Failure> {
        // A command has no time to install packages: it uses existing environments.
        settings.install = false;
        let store = ChatStore::open(&settings.jobs_dir, &Membership::default());
        let app = App::new(settings, store.map_err(Failure::failed)?, config);
        let app = app.map_err(Failure::failed)?;
        let mut tasks = JoinSet::new();
        let engine = app.core.engine.clone();
        tasks.spawn(async move { engine.children.sweep_strays().await });
        tasks.spawn(beat(app.store.clone()));
        Ok(Self { app, tasks })
    }

    /// Ends all children and releases all leases.
    pub async fn end(mut self) {
        let engine = &self.app.core.engine;
        engine.stopping.cancel();
        engine.running.close();
        engine.running.wait().await;
        tokio::join!(
            engine.sessions.end_all(),
            engine.shared.end_all(),
            self.app.installer.close()
        );
        // The sessions of remote servers may still be closing.
        let _ = tokio::time::timeout(LEAVE, engine.children.none_left()).await;
        self.tasks.shutdown().await;
    }
}

/// Renews this instance's record, so that bridges on other hosts see that the process is alive.
async fn beat(store: Arc<ChatStore>) {
    let mut timer = tokio::time::interval(store.renew_every());
    loop {
        timer.tick().await;
        let store = store.clone();
        let _ = tokio::task::spawn_blocking(move || store.renew()).await;
    }
}

/// Runs a command's asynchronous part until it is done.
pub fn block_on<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("cannot start threads: {error}")))?;
    let done = runtime.block_on(work);
    // Tasks hold the store, which cleans up on drop; but a disk that hangs must not block a command that is
    // done.
    runtime.shutdown_timeout(LEAVE);
    done
}

/// Cancels `work` on SIGINT and SIGTERM, so that the caller can end what it started.
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

/// Opens a bridge's jobs folder. A missing folder is not created: that would hide a wrong path.
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

/// The settings, the log and the servers of a command that starts them; with a name, only this server.
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

// Starts servers concurrently to query their tools, in a temporary jobs folder.

/// Timeout of `tools/list` with all its pages, after the start timeout.
const LIST_TIME: Duration = Duration::from_secs(30);

/// Refresh interval of the display.
const TICK: Duration = Duration::from_millis(100);

/// The result of one server.
pub struct Surveyed {
    /// Its configuration.
    pub spec: Arc<ServerSpec>,
    /// Its offer, or the error with the server's last output.
    pub outcome: Result<Offer, String>,
    /// How it was started.
    pub launching: Launching,
    /// How its further processes would be started, if that was requested.
    pub forking: Option<Forking>,
    /// Time from its start to its list of tools.
    pub took: Duration,
}

/// Starts all servers of `config`, and with `fork` their fork parents; keeps the order. The failure of one
/// does not affect the others.
pub async fn survey(
    mut settings: Settings,
    jobs: PathBuf,
    config: Loaded,
    fork: bool,
) -> Result<Vec<Surveyed>, Failure> {
    settings.jobs_dir = jobs;
    // All at the same time: a server that waits for a permit would seem slower than it is.
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

/// The deadline by which a server that is started now must have listed its tools.
fn deadline(app: &App) -> tokio::time::Instant {
    tokio::time::Instant::now() + app.core.settings.limits.start_timeout + LIST_TIME
}

impl Local {
    /// Starts a server and queries its offer; the error has the server's last output.
    pub async fn learn(&self, spec: &Arc<ServerSpec>) -> Result<Learnt, String> {
        let (app, stop) = (&self.app, CancellationToken::new());
        let (children, store) = (&app.core.engine.children, &app.store);
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
        Ok(_) if fork => Some(app.core.engine.children.forking(&spec, deadline).await),
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

/// Runs a command's asynchronous part with a path for a temporary jobs folder, which is removed when no task of
/// the command writes to it any more.
pub fn with_temporary_jobs<T, F>(work: impl FnOnce(PathBuf) -> F) -> Result<T, Failure>
where
    F: Future<Output = Result<T, Failure>>,
{
    let folder = Folder::new()?;
    block_on(work(folder.0.join("jobs")))
}

/// A temporary folder, removed on drop.
struct Folder(PathBuf);

impl Folder {
    /// Creates the folder.
    fn new() -> Result<Self, Failure> {
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
}

impl Drop for Folder {
    fn drop(&mut self) {
        // After an interruption, a child that is being killed may still write files.
        for _ in 0..ATTEMPTS {
            if fs::remove_dir_all(&self.0).is_ok() || !self.0.exists() {
                return;
            }
            std::thread::sleep(PAUSE);
        }
    }
}

const ATTEMPTS: usize = 40;

const PAUSE: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_task_writes_after_the_command_is_done_is_removed() {
        let folder = with_temporary_jobs(async |jobs: PathBuf| {
            let folder = jobs.parent().expect("its folder").to_owned();
            tokio::task::spawn_blocking(move || {
                std::thread::sleep(PAUSE);
                fs::create_dir_all(jobs)
            });
            Ok(folder)
        });
        assert!(!folder.expect("done").exists());
    }
}
