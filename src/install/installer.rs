//! Keeps [`Launches`] true: looks at what is there, and installs what is not.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use tokio::sync::Semaphore;
use tokio_util::{
    sync::CancellationToken,
    task::{AbortOnDropHandle, TaskTracker},
};

use super::{
    Asked, Launches, LockFile, Pin, Resolved,
    folder::{Folder, Record},
    launcher::What,
    node,
    preinstalled::Preinstalled,
    python,
    settle::as_it_is,
    work::{Failed, Work},
};
use crate::{child::Children, config::ServerSpec, model::ServerName};

/// Installations side by side: they wait for the network, and then compile.
const AT_ONCE: usize = 2;

/// What an installer is told.
#[derive(Debug, Clone)]
pub struct InstallerSettings {
    /// Environments lie below it; absolute.
    pub tools_dir: PathBuf,
    /// What was installed ahead and is only read; absolute.
    pub preinstalled_dir: Option<PathBuf>,
    /// What is locked.
    pub lock_file: PathBuf,
    /// Install what is not there, beside the calls. Without it only what is locked.
    pub in_background: bool,
}

/// Where an installation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Versions are being chosen.
    Choosing,
    /// Packages are being installed and compiled.
    Installing,
}

/// The lock file, or what is wrong with it.
pub type Lock = Result<Option<LockFile>, String>;
type Changed = Box<dyn Fn(&ServerName) + Send + Sync>;

/// Keeps the launches of all servers true.
pub struct Installer {
    pub(super) settings: InstallerSettings,
    pub(super) folder: Folder,
    children: Arc<Children>,
    pub(super) places: Arc<Semaphore>,
    pub(super) running: Mutex<HashMap<ServerName, Running>>,
    pub(super) changed: OnceLock<Changed>,
    warnings: Mutex<Vec<String>>,
    pub(super) pins: Mutex<Vec<String>>,
    pub(super) tasks: TaskTracker,
    pub(super) stop: CancellationToken,
}

/// An installation beside the calls.
pub struct Running {
    /// For what.
    pub of: String,
    /// Dropping it ends the installation.
    pub _task: AbortOnDropHandle<Option<()>>,
}

impl Installer {
    /// Does nothing before [`Installer::follow`].
    pub fn new(settings: InstallerSettings, children: Arc<Children>) -> Self {
        Self {
            folder: Folder::within(&settings.tools_dir)
                .over(settings.preinstalled_dir.as_deref().map(Preinstalled::open)),
            settings,
            children,
            places: Arc::new(Semaphore::new(AT_ONCE)),
            running: Mutex::default(),
            changed: OnceLock::new(),
            warnings: Mutex::default(),
            pins: Mutex::default(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        }
    }

    /// Who is told when a server is started from another environment than before.
    pub fn on_change(&self, changed: impl Fn(&ServerName) + Send + Sync + 'static) {
        let _ = self.changed.set(Box::new(changed));
    }

    /// How servers are started now.
    pub fn launches(&self) -> &Launches {
        self.children.launches()
    }

    /// What an operator should look at: entries of the lock file that do not count.
    pub fn warnings(&self) -> Vec<String> {
        lock(&self.warnings).clone()
    }

    /// Takes the servers over. When it returns, those that were installed before are started from
    /// their environments; the others are installed beside the calls.
    pub async fn follow(self: &Arc<Self>, specs: Vec<Arc<ServerSpec>>) {
        self.launches().follow(&specs);
        let this = self.clone();
        let looked = tokio::task::spawn_blocking(move || {
            let lock = this.read_lock();
            let looks = specs.into_iter().map(|spec| {
                let look = this.look(&spec, &lock);
                (spec, look)
            });
            looks.collect::<Vec<_>>()
        });
        let Ok(looked) = looked.await else { return };
        let mut warnings = Vec::new();
        let names: Vec<_> = looked.iter().map(|(spec, _)| spec.name.clone()).collect();
        lock(&self.running).retain(|name, _| names.contains(name));
        for (spec, (look, warning)) in looked {
            warnings.extend(warning.map(|why| format!("server '{}': {why}", spec.name)));
            self.settle(&spec, look);
        }
        for warning in &warnings {
            tracing::warn!("{warning}");
        }
        *lock(&self.warnings) = warnings;
    }

    /// What can be installed for this server; the error says why it runs as written, `None` if
    /// there is nothing to install. Blocks on files.
    pub fn asked(
        &self,
        spec: &ServerSpec,
        lock: Option<&LockFile>,
    ) -> Result<Asked, Option<String>> {
        Asked::read(spec, lock, &self.folder)
    }

    /// Installs it, unless it is there already. With `anew`, versions are chosen again. What was
    /// chosen is remembered by [`Installer::remember`] only.
    pub async fn install(
        &self,
        asked: &Asked,
        anew: bool,
        step: &(dyn Fn(Step) + Sync),
    ) -> Result<(Pin, Resolved), Failed> {
        self.folder.is_ours()?;
        let known = asked.pin.as_ref().filter(|_| !anew);
        let made = match known {
            Some(pin) => match self.folder.environment(pin) {
                Some((_, record)) => Ok(record),
                None => self.make(asked, Some(pin), anew, step).await,
            },
            None => self.make(asked, None, anew, step).await,
        };
        let record = match made {
            // What was chosen once may be gone, or the interpreter that it was chosen for.
            Err(_) if known.is_some() && !asked.locked => {
                self.make(asked, None, true, step).await?
            }
            other => other?,
        };
        let resolved = self.resolve(asked, &record)?;
        Ok((record.pin, resolved))
    }

    /// Remembers what was chosen for a command that is in no lock file. Blocks.
    pub fn remember(&self, asked: &Asked, pin: &Pin) {
        // Without it the same is chosen again, from the caches.
        let _ = self.folder.set_pin(&asked.chosen_for(), pin);
    }

    /// Environments in use are noted as such, and those that nobody used for long removed, unless
    /// the clock is in doubt. Blocks.
    pub fn keep_house(&self, clock_is_right: bool) {
        let installed = self.launches().installed();
        let folders = installed.iter().filter_map(|found| found.folder.as_deref());
        let pins = lock(&self.pins).clone();
        self.folder.touch(folders, &pins);
        if !clock_is_right {
            return;
        }
        let removed = self.folder.sweep();
        if removed > 0 {
            tracing::info!(removed, "environments that nobody used any more are gone");
        }
    }

    /// Stops installing; when it returns nothing of it is left running.
    pub async fn close(&self) {
        self.stop.cancel();
        lock(&self.running).clear();
        self.tasks.close();
        self.tasks.wait().await;
    }

    fn read_lock(&self) -> Lock {
        let read = LockFile::read(&self.settings.lock_file);
        read.map_err(|error| error.to_string())
    }

    async fn make(
        &self,
        asked: &Asked,
        pin: Option<&Pin>,
        anew: bool,
        step: &(dyn Fn(Step) + Sync),
    ) -> Result<Record, Failed> {
        let stage = self.folder.stage();
        let stage = stage.map_err(|error| {
            let path = self.settings.tools_dir.display();
            format!("{path} cannot be written ({error}): set MCPO_TOOLS_DIR to another folder")
        })?;
        let own = &asked.command.env;
        let work = Work::new(&self.children, &self.settings.tools_dir, own, stage.path())?;
        let record = match &asked.wanted.what {
            What::Python(set) => {
                let pin = if let Some(pin) = pin {
                    pin.clone()
                } else {
                    step(Step::Choosing);
                    python::choose(set, &work, stage.path(), anew).await?
                };
                step(Step::Installing);
                if let Some((_, record)) = self.folder.environment(&pin) {
                    return Ok(record);
                }
                python::install(set, &pin, &work, stage.path()).await?
            }
            What::Node(set) => {
                let pin = if let Some(pin) = pin {
                    pin.clone()
                } else {
                    step(Step::Choosing);
                    node::choose(set, &work, stage.path(), anew).await?
                };
                step(Step::Installing);
                node::install(set, &pin, &work, stage.path()).await?
            }
            What::Interpreter(_) => return Err("there is nothing to install".to_owned()),
        };
        let kept = work
            .leave()
            .and_then(|()| self.folder.keep(&stage, &record));
        kept.map_err(|error| format!("the environment cannot be kept: {error}"))?;
        Ok(record)
    }

    pub(super) fn resolve(&self, asked: &Asked, record: &Record) -> Result<Resolved, Failed> {
        let (folder, record) = self
            .folder
            .environment(&record.pin)
            .ok_or("its environment is gone")?;
        let rest = asked.wanted.rest;
        let mut resolved = match &asked.wanted.what {
            What::Python(set) => python::resolve(set, &folder, &record, rest)?,
            What::Node(set) => node::resolve(set, &folder, &record, rest)?,
            What::Interpreter(target) => as_it_is(&asked.command, target),
        };
        resolved.locked = asked.locked;
        Ok(resolved)
    }
}

/// What is behind it is whole whoever panicked.
pub fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
