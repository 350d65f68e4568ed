//! Keeps [`Launches`] up to date: finds what is installed, and installs what is missing.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::Duration,
};

use bridge_model::{FieldHasher, ServerName};
use bridge_process::{
    CommandSpec, launch,
    launch::{Kind, Resolved, Sources, Target, Wanted, What},
};
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio_util::{
    sync::CancellationToken,
    task::{AbortOnDropHandle, TaskTracker},
};

use super::{
    LockFile, Pin,
    folder::{Failed, Folder, Preinstalled, Record, Work},
    node,
    pin::{short_name, wanted_node, wanted_python},
    python,
};
use crate::{
    child::Children,
    config::{ServerSpec, Transport},
    launches::{Launches, Launching},
};

/// Installations side by side: they wait for the network, and then compile.
const AT_ONCE: usize = 2;

/// The settings of an installer.
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
type Lock = Result<Option<LockFile>, String>;

type Changed = Box<dyn Fn(&ServerName) + Send + Sync>;

/// Keeps the launches of all servers up to date.
pub struct Installer {
    pub(super) settings: InstallerSettings,
    pub(super) folder: Folder,
    children: Arc<Children>,
    pub(super) permits: Arc<Semaphore>,
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
            folder: Folder::new(
                &settings.tools_dir,
                settings.preinstalled_dir.as_deref().map(Preinstalled::open),
            ),
            settings,
            children,
            permits: Arc::new(Semaphore::new(AT_ONCE)),
            running: Mutex::default(),
            changed: OnceLock::new(),
            warnings: Mutex::default(),
            pins: Mutex::default(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        }
    }

    /// Sets the function that is called when a server is started from another environment than before.
    pub fn on_change(&self, changed: impl Fn(&ServerName) + Send + Sync + 'static) {
        let _ = self.changed.set(Box::new(changed));
    }

    /// How servers are started now.
    pub fn launches(&self) -> &Launches {
        self.children.launches()
    }

    /// What an operator should look at: entries of the lock file that do not count.
    pub fn warnings(&self) -> Vec<String> {
        self.warnings.lock().clone()
    }

    /// Takes the servers over. When it returns, those that were installed before are started from
    /// their environments; the others are installed beside the calls.
    pub async fn follow(self: &Arc<Self>, specs: Vec<Arc<ServerSpec>>) {
        self.launches().follow(&specs);
        let this = self.clone();
        let looked = tokio::task::spawn_blocking(move || {
            let lock = LockFile::read(&this.settings.lock_file).map_err(|error| error.to_string());
            let looks = specs.into_iter().map(|spec| {
                let look = this.look(&spec, &lock);
                (spec, look)
            });
            looks.collect::<Vec<_>>()
        });
        let Ok(looked) = looked.await else { return };
        let mut warnings = Vec::new();
        let names: Vec<_> = looked.iter().map(|(spec, _)| spec.name.clone()).collect();
        self.running.lock().retain(|name, _| names.contains(name));
        for (spec, (look, warning)) in looked {
            warnings.extend(warning.map(|why| format!("server '{}': {why}", spec.name)));
            self.settle(&spec, look);
        }
        for warning in &warnings {
            tracing::warn!("{warning}");
        }
        *self.warnings.lock() = warnings;
    }

    /// What can be installed for this server; the error says why it runs as written, `None` if
    /// there is nothing to install. Blocks on files.
    pub fn asked(
        &self,
        spec: &ServerSpec,
        lock: Option<&LockFile>,
    ) -> Result<InstallRequest, Option<String>> {
        let Transport::Stdio(command) = &spec.transport else {
            return Err(None);
        };
        if !launch::is_launcher(&command.program) {
            return Err(None);
        }
        if !spec.install {
            return Err(Some("\"install\" is false in the server file".to_owned()));
        }
        let wanted = launch::read(command, &|name| is_on_path(command, name)).map_err(Some)?;
        let (digest, lockable) = match &wanted.what {
            What::Python(set) => {
                let lockable = set.sources.iter().all(|source| source.is_file());
                (wanted_python(set), lockable)
            }
            What::Node(set) => (wanted_node(set), true),
            What::Interpreter(_) => (String::new(), false),
        };
        let entry = lock.and_then(|lock| lock.entry(&spec.name, &digest));
        let ahead = self.folder.pinned_ahead(&digest);
        let (locked, mut warning) = match (entry, ahead) {
            (Some(Ok(pin)), _) | (_, Some(pin)) => (Some(pin), None),
            (Some(Err(why)), None) => (None, Some(why)),
            (None, None) => (None, None),
        };
        if lock.is_some() && lockable && locked.is_none() && warning.is_none() {
            warning = Some("not in the lock file: run `mcpo-bridge install`".to_owned());
        }
        let is_locked = locked.is_some();
        let chosen = || {
            let pin = self.folder.pin(&chosen_for(command, &digest));
            pin.map_err(|error| Some(format!("cannot read its resolved versions: {error}")))
        };
        let pin = match locked {
            Some(pin) => Some(pin),
            None => chosen()?,
        };
        Ok(InstallRequest {
            pin,
            wanted,
            command: command.clone(),
            digest,
            locked: is_locked,
            lockable,
            warning,
        })
    }

    /// Installs it, unless it is there already. With `anew`, versions are chosen again. What was
    /// chosen is remembered by [`Installer::remember`] only.
    pub async fn install(
        &self,
        asked: &InstallRequest,
        anew: bool,
        step: &(dyn Fn(Step) + Sync),
    ) -> Result<(Pin, Resolved), Failed> {
        self.folder.is_ours()?;
        let known = asked.pin.as_ref().filter(|_| !anew);
        let made = match known.and_then(|pin| self.folder.environment(pin)) {
            Some(found) => Ok(found),
            None => self.make(asked, known, anew, step).await,
        };
        let (folder, record) = match made {
            // What was chosen once may be gone, or the interpreter that it was chosen for.
            Err(_) if known.is_some() && !asked.locked => {
                self.make(asked, None, true, step).await?
            }
            other => other?,
        };
        let resolved = resolve(asked, &folder, &record)?;
        Ok((record.pin, resolved))
    }

    /// Remembers what was chosen for a command that is in no lock file. Blocks.
    pub fn remember(&self, asked: &InstallRequest, pin: &Pin) {
        // Without it the same is chosen again, from the caches.
        let _ = self.folder.set_pin(&asked.chosen_for(), pin);
    }

    /// Environments in use are noted as such, and those that were unused for long removed, unless
    /// the clock is in doubt. Blocks.
    pub fn keep_house(&self, clock_is_right: bool) {
        let installed = self.launches().installed();
        let folders = installed.iter().filter_map(|found| found.folder.as_deref());
        let pins = self.pins.lock().clone();
        self.folder.touch(folders, &pins);
        if !clock_is_right {
            return;
        }
        let removed = self.folder.sweep();
        if removed > 0 {
            tracing::info!(removed, "unused environments deleted");
        }
    }

    /// Stops installing; when it returns nothing of it is left running.
    pub async fn close(&self) {
        self.stop.cancel();
        self.running.lock().clear();
        self.tasks.close();
        self.tasks.wait().await;
    }

    async fn make(
        &self,
        asked: &InstallRequest,
        pin: Option<&Pin>,
        anew: bool,
        step: &(dyn Fn(Step) + Sync),
    ) -> Result<(PathBuf, Record), Failed> {
        let stage = self.folder.stage();
        let stage = stage.map_err(|error| {
            let path = self.settings.tools_dir.display();
            format!("cannot write {path} ({error}): set MCPO_TOOLS_DIR to another directory")
        })?;
        let own = &asked.command.env;
        let work = Work::new(&self.children, &self.settings.tools_dir, own, stage.path())?;
        let pin = if let Some(pin) = pin {
            pin.clone()
        } else {
            step(Step::Choosing);
            match &asked.wanted.what {
                What::Python(set) => python::choose(set, &work, anew).await?,
                What::Node(set) => node::choose(set, &work, anew).await?,
                What::Interpreter(_) => return Err("nothing to install".to_owned()),
            }
        };
        step(Step::Installing);
        let record = match &asked.wanted.what {
            What::Python(set) => match self.folder.environment(&pin) {
                Some(found) => return Ok(found),
                None => python::install(set, &pin, &work).await?,
            },
            What::Node(set) => node::install(set, &pin, &work).await?,
            What::Interpreter(_) => return Err("nothing to install".to_owned()),
        };
        let kept = work
            .leave()
            .and_then(|()| self.folder.keep(&stage, &record));
        let folder = kept.map_err(|error| format!("cannot store the environment: {error}"))?;
        Ok((folder, record))
    }
}

/// How its program is started from this environment.
fn resolve(asked: &InstallRequest, folder: &Path, record: &Record) -> Result<Resolved, Failed> {
    let rest = asked.wanted.rest;
    let mut resolved = match &asked.wanted.what {
        What::Python(set) => python::resolve(set, folder, record, rest)?,
        What::Node(set) => node::resolve(set, folder, record, rest)?,
        What::Interpreter(target) => as_it_is(&asked.command, target),
    };
    resolved.locked = asked.locked;
    Ok(resolved)
}

/// Until what is locked is tried again; it doubles up to [`LONGEST_PAUSE`].
const PAUSE_LOCKED: Duration = Duration::from_secs(10);

/// Until the rest is: it runs as written meanwhile.
const PAUSE: Duration = Duration::from_secs(300);

const LONGEST_PAUSE: Duration = Duration::from_secs(3600);

/// An installation holds its permit among those side by side no longer than this.
const INSTALL_PERMIT_WAIT: Duration = Duration::from_secs(30);

/// What a look at a server's command line and at the disk tells.
pub enum Look {
    /// There is nothing to install, or not here; and why.
    AsWritten(Option<String>),
    /// It is there.
    Installed(Box<Resolved>),
    /// It can be installed.
    Missing(Box<InstallRequest>),
    /// It is locked, and cannot be had.
    Refused(String),
}

impl Installer {
    /// Blocks on files.
    pub(super) fn look(&self, spec: &ServerSpec, locks: &Lock) -> (Look, Option<String>) {
        let file = locks.as_ref().ok().and_then(Option::as_ref);
        let asked = match (self.asked(spec, file), locks) {
            (Err(why), _) => return (Look::AsWritten(why), None),
            (Ok(asked), Err(why)) if asked.lockable => return (Look::Refused(why.clone()), None),
            (Ok(asked), _) => asked,
        };
        if let What::Interpreter(target) = &asked.wanted.what {
            let found = as_it_is(&asked.command, target);
            return (Look::Installed(Box::new(found)), None);
        }
        let warning = asked.warning.clone();
        if let Err(why) = self.folder.is_ours() {
            let look = if asked.locked {
                Look::Refused(why)
            } else {
                Look::AsWritten(Some(why))
            };
            return (look, warning);
        }
        let command = asked.chosen_for();
        let mut pins = self.pins.lock();
        if !pins.contains(&command) {
            pins.push(command);
        }
        drop(pins);
        let pin = asked.pin.as_ref();
        let there = pin.and_then(|pin| self.folder.environment(pin));
        let look = match there.map(|(folder, record)| resolve(&asked, &folder, &record)) {
            Some(Ok(resolved)) => Look::Installed(Box::new(resolved)),
            Some(Err(why)) if asked.locked => Look::Refused(why),
            Some(Err(why)) => Look::AsWritten(Some(why)),
            None => Look::Missing(Box::new(asked)),
        };
        (look, warning)
    }

    /// Says how the server is started from now on.
    pub(super) fn settle(self: &Arc<Self>, spec: &Arc<ServerSpec>, look: Look) {
        let before = self.launches().state_of(spec);
        let state = match look {
            Look::AsWritten(why) => Launching::AsWritten(why.map(Into::into)),
            Look::Refused(why) => {
                tracing::error!(
                    server = %spec.name,
                    error = %why,
                    "the locked version of a server cannot be started"
                );
                Launching::Refused(why.into())
            }
            Look::Installed(resolved) => {
                self.installed(spec, *resolved);
                return;
            }
            Look::Missing(asked) if asked.locked || self.settings.in_background => {
                self.behind(spec, *asked, &before);
                return;
            }
            Look::Missing(_) => {
                let why = "not installed yet: run `mcpo-bridge install`";
                Launching::AsWritten(Some(why.into()))
            }
        };
        self.running.lock().remove(&spec.name);
        self.launches().set(spec, state);
    }

    fn installed(&self, spec: &ServerSpec, resolved: Resolved) {
        let before = self.launches().state_of(spec);
        let same = matches!(&before, Launching::Installed(before)
            if before.identity == resolved.identity && before.locked == resolved.locked);
        if same {
            return;
        }
        if resolved.folder.is_some() {
            tracing::info!(
                server = %spec.name,
                locked = resolved.locked,
                "using the installed environment"
            );
        }
        self.launches()
            .set(spec, Launching::Installed(Arc::new(resolved)));
        if let Some(changed) = self.changed.get() {
            changed(&spec.name);
        }
    }

    /// Installs beside the calls, unless that is under way already.
    fn behind(self: &Arc<Self>, spec: &Arc<ServerSpec>, asked: InstallRequest, before: &Launching) {
        let pin = asked.pin.as_ref().map(Pin::digest).unwrap_or_default();
        let of = format!("{:?} {} {pin}", spec.version(), asked.digest);
        let mut running = self.running.lock();
        let under_way = running.get(&spec.name).is_some_and(|task| task.of == of);
        if under_way && !matches!(before, Launching::Installed(_)) {
            return;
        }
        let locked = asked.locked;
        self.launches().set(spec, Launching::Installing { locked });
        let task = self.clone().until_installed(spec.clone(), asked);
        let task = self.stop.clone().run_until_cancelled_owned(task);
        let task = AbortOnDropHandle::new(self.tasks.spawn(task));
        running.insert(spec.name.clone(), Running { of, _task: task });
    }

    async fn until_installed(self: Arc<Self>, spec: Arc<ServerSpec>, asked: InstallRequest) {
        let mut pause = if asked.locked { PAUSE_LOCKED } else { PAUSE };
        loop {
            let done = {
                let permit = self.permits.clone().acquire_owned().await;
                // A package index that does not answer must not hold up what comes from others.
                let _place = AbortOnDropHandle::new(tokio::spawn(async move {
                    tokio::time::sleep(INSTALL_PERMIT_WAIT).await;
                    drop(permit);
                }));
                self.install(&asked, false, &|_| {}).await
            };
            let why = match done {
                Ok((pin, resolved)) => {
                    if !asked.locked {
                        self.remember(&asked, &pin);
                    }
                    self.installed(&spec, resolved);
                    return;
                }
                Err(why) => why,
            };
            // In the words of a package manager, from which passwords were taken out.
            let error = why.lines().next().unwrap_or_default();
            if asked.locked {
                tracing::error!(
                    server = %spec.name,
                    error,
                    retry_in = ?pause,
                    "locked packages cannot be installed"
                );
                let why = format!("locked packages cannot be installed: {why}");
                self.launches().set(&spec, Launching::Refused(why.into()));
            } else {
                tracing::warn!(
                    server = %spec.name,
                    error,
                    retry_in = ?pause,
                    "packages cannot be installed; the server uses its own command line"
                );
                self.launches()
                    .set(&spec, Launching::AsWritten(Some(why.into())));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

/// An interpreter as it is written: nothing is installed for it.
fn as_it_is(command: &CommandSpec, target: &Target) -> Resolved {
    Resolved {
        program: command.program.clone(),
        args: Vec::new(),
        rest: 0,
        env: Vec::new(),
        path: None,
        kind: Kind::Python {
            interpreter: PathBuf::from(&command.program),
            target: Some(target.clone()),
        },
        identity: None,
        main: None,
        locked: false,
        folder: None,
        sources: Sources::default(),
        proven: false.into(),
    }
}

// What can be installed for a server of the file, and which versions are known for it.

/// Variables that say where packages come from, or which are chosen.
const CHOOSING: [&str; 9] = [
    "UV_INDEX",
    "UV_DEFAULT_INDEX",
    "UV_INDEX_URL",
    "UV_EXTRA_INDEX_URL",
    "UV_FIND_LINKS",
    "UV_PYTHON",
    "UV_PRERELEASE",
    "npm_config_registry",
    "NPM_CONFIG_REGISTRY",
];

/// What can be installed for a server.
#[derive(Debug, Clone)]
pub struct InstallRequest {
    pub(super) wanted: Wanted,
    pub(super) command: CommandSpec,
    /// Names the command line's packages, in a lock file.
    pub digest: String,
    /// The versions that are known for it: locked ones, or those chosen before.
    pub pin: Option<Pin>,
    /// The lock file says so, or that of what was installed ahead.
    pub locked: bool,
    /// Folders have no versions: they can be installed but not locked.
    pub lockable: bool,
    /// What is wrong with the lock file's entry.
    pub warning: Option<String>,
}

impl InstallRequest {
    /// The same as if nothing were locked.
    #[must_use]
    pub fn unlocked(&self) -> Self {
        Self {
            locked: false,
            ..self.clone()
        }
    }

    /// Names the command, for what was chosen for it where nothing is locked.
    pub(super) fn chosen_for(&self) -> String {
        chosen_for(&self.command, &self.digest)
    }

    /// Whether there is anything to install.
    pub fn is_installable(&self) -> bool {
        !matches!(self.wanted.what, What::Interpreter(_))
    }
}

/// Where packages come from counts too.
fn chosen_for(command: &CommandSpec, digest: &str) -> String {
    let mut hash = FieldHasher::new("mcpo-bridge command v1");
    hash.text(digest);
    for name in CHOOSING {
        let own = command.env.get(name).cloned();
        let value = own.or_else(|| std::env::var(name).ok());
        hash.text(&value.unwrap_or_default());
    }
    short_name(hash)
}

fn is_on_path(command: &CommandSpec, name: &str) -> bool {
    let own = command.env.get("PATH").map(Into::into);
    let path = own.or_else(|| std::env::var_os("PATH"));
    let path = path.unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(name).is_file())
}
