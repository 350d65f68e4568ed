//! Starting servers side by side to learn what they offer, in a jobs folder of its own.

use std::{
    fs::{self, DirBuilder},
    num::NonZeroUsize,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::{Failure, Local, local::until_signal};
use crate::{
    app::App,
    catalog::{Offer, learn},
    child::Forking,
    config::{Loaded, ServerSpec, Settings},
    launches::Launching,
};

/// For `tools/list` with all its pages, past the start timeout.
pub const LIST_TIME: Duration = Duration::from_secs(30);
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
        one(&local.app, spec, fork, bar)
    });
    let surveyed = until_signal(join_all(each)).await;
    let _ = display.clear();
    local.end().await;
    surveyed
}

async fn one(app: &App, spec: Arc<ServerSpec>, fork: bool, bar: ProgressBar) -> Surveyed {
    let began = Instant::now();
    let time = app.settings.limits.start_timeout + LIST_TIME;
    let deadline = tokio::time::Instant::now() + time;
    let learnt = learn(&spec, &app.engine.children, &app.store, deadline).await;
    let took = began.elapsed();
    let outcome = match learnt {
        Ok(learnt) => Ok(Offer::new(spec.clone(), Arc::new(learnt))),
        Err(error) => Err(error.to_string()),
    };
    bar.finish_with_message(match &outcome {
        Ok(_) => "ready",
        Err(_) => "failed",
    });
    let launching = app.installer.launches().of(&spec);
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
            if remove(&self.0) {
                return;
            }
            std::thread::sleep(PAUSE);
        }
    }
}

const ATTEMPTS: usize = 40;
const PAUSE: Duration = Duration::from_millis(50);

fn remove(path: &Path) -> bool {
    match fs::remove_dir_all(path) {
        Ok(()) => true,
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    }
}
