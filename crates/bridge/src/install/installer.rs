//! Keeps [`Launches`] up to date: finds installed environments, and installs missing ones.

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::Duration,
};

use bridge_model::{FieldHasher, ServerName};
use bridge_process::{
    CommandSpec, launch,
    launch::{Kind, ParsedCommand, Resolved, Target, What},
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
    pin::{platform, short_name, wanted_node, wanted_python},
    python,
};
use crate::{
    child::Children,
    config::{ServerSpec, Transport},
    launches::{Launches, Launching},
};

/// Maximum number of concurrent installations: they wait for the network, and then compile.
const AT_ONCE: usize = 2;

/// The settings of an installer.
#[derive(Debug, Clone)]
pub struct InstallerSettings {
    /// Folder of the environments; absolute.
    pub tools_dir: PathBuf,
    /// Folder that was installed in advance and is only read; absolute.
    pub preinstalled_dir: Option<PathBuf>,
    /// The lock file.
    pub lock_file: PathBuf,
    /// Install missing environments in the background. If false, only locked ones are installed.
    pub in_background: bool,
}

/// The step of an installation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Versions are being chosen.
    Choosing,
    /// Packages are being installed and compiled.
    Installing,
}

/// The lock file, or its error.
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

/// A background installation.
pub struct Running {
    /// The version of the server, its packages and its pin.
    pub of: String,
    /// Dropping it cancels the installation.
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

    /// Sets the function that is called when a server is started from a different environment than before.
    pub fn on_change(&self, changed: impl Fn(&ServerName) + Send + Sync + 'static) {
        let _ = self.changed.set(Box::new(changed));
    }

    /// How servers are started now.
    pub fn launches(&self) -> &Launches {
        self.children.launches()
    }

    /// Warnings for the administrator: entries of the lock file that are ignored.
    pub fn warnings(&self) -> Vec<String> {
        self.warnings.lock().clone()
    }

    /// Applies these servers. When it returns, servers that were installed before start from their
    /// environments; the others are installed in the background.
    pub async fn follow(self: &Arc<Self>, specs: Vec<Arc<ServerSpec>>) {
        self.launches().follow(&specs);
        let this = self.clone();
        let checked = tokio::task::spawn_blocking(move || {
            let lock = LockFile::read(&this.settings.lock_file).map_err(|error| error.to_string());
            let checked = specs.into_iter().map(|spec| {
                let checked = this.check(&spec, &lock);
                (spec, checked)
            });
            checked.collect::<Vec<_>>()
        });
        let Ok(checked) = checked.await else { return };
        let mut warnings = Vec::new();
        let names: Vec<_> = checked.iter().map(|(spec, _)| spec.name.clone()).collect();
        self.running.lock().retain(|name, _| names.contains(name));
        for (spec, (checked, warning)) in checked {
            warnings.extend(warning.map(|why| format!("server '{}': {why}", spec.name)));
            self.apply(&spec, checked);
        }
        for warning in &warnings {
            tracing::warn!("{warning}");
        }
        *self.warnings.lock() = warnings;
    }

    /// The installation that this server needs; the error is the reason why it runs as written, `None` if
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

    /// Installs the environment, unless it exists. With `anew`, versions are chosen again. Chosen versions
    /// are saved only by [`Installer::remember`].
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
            // A version that was chosen before may have been withdrawn, or its interpreter removed.
            Err(_) if known.is_some() && !asked.locked => {
                self.make(asked, None, true, step).await?
            }
            other => other?,
        };
        let resolved = resolve(asked, &folder, &record)?;
        Ok((record.pin, resolved))
    }

    /// Saves the versions that were chosen for a command that is in no lock file. Blocks.
    pub fn remember(&self, asked: &InstallRequest, pin: &Pin) {
        // On an error the same versions are chosen again, from the caches.
        let _ = self.folder.set_pin(&asked.chosen_for(), pin);
    }

    /// Sets the last use of environments in use, and removes those that were unused for long, unless the
    /// clock is unreliable. Blocks.
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

    /// Stops installing; when it returns, no process of an installation is running.
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
            let (packages, wanted) = match &asked.wanted.what {
                What::Python(set) => (python::choose(set, &work, anew).await?, wanted_python(set)),
                What::Node(set) => (node::choose(set, &work, anew).await?, wanted_node(set)),
                What::Interpreter(_) => return Err("nothing to install".to_owned()),
            };
            Pin {
                wanted,
                platform: platform(),
                packages,
            }
        };
        step(Step::Installing);
        let mut scripts = BTreeMap::new();
        match &asked.wanted.what {
            What::Python(set) => match self.folder.environment(&pin) {
                Some(found) => return Ok(found),
                None => scripts = python::install(set, &pin, &work).await?,
            },
            What::Node(set) => node::install(set, &pin, &work).await?,
            What::Interpreter(_) => return Err("nothing to install".to_owned()),
        }
        let record = Record { pin, scripts };
        let kept = work
            .leave()
            .and_then(|()| self.folder.keep(&stage, &record));
        let folder = kept.map_err(|error| format!("cannot store the environment: {error}"))?;
        Ok((folder, record))
    }
}

/// How the program is started from this environment.
fn resolve(asked: &InstallRequest, folder: &Path, record: &Record) -> Result<Resolved, Failed> {
    let command = match &asked.wanted.what {
        What::Python(set) => python::resolve(set, folder, record)?,
        What::Node(set) => node::resolve(set, folder, record)?,
        What::Interpreter(target) => return Ok(as_it_is(&asked.command, target)),
    };
    Ok(Resolved {
        rest: asked.wanted.rest,
        folder: Some(folder.to_owned()),
        locked: asked.locked,
        ..command
    })
}

/// Initial delay before a locked installation is retried; it doubles up to [`LONGEST_PAUSE`].
const PAUSE_LOCKED: Duration = Duration::from_secs(10);

/// Initial delay for all others: they run as written in the meantime.
const PAUSE: Duration = Duration::from_secs(300);

const LONGEST_PAUSE: Duration = Duration::from_secs(3600);

/// An installation holds its concurrency permit at most this long.
const INSTALL_PERMIT_WAIT: Duration = Duration::from_secs(30);

/// The result of checking a server's command line and the disk.
enum Checked {
    /// How it is started.
    Known(Launching),
    /// Its environment can be installed.
    Missing(Box<InstallRequest>),
}

/// Without its environment, a server runs as written, unless its packages are locked.
fn without_environment(locked: bool, why: String) -> Launching {
    if locked {
        Launching::Refused(why.into())
    } else {
        Launching::AsWritten(Some(why.into()))
    }
}

impl Installer {
    /// Checks the server's command line and the disk. The second value is a warning. Blocks on files.
    fn check(&self, spec: &ServerSpec, locks: &Lock) -> (Checked, Option<String>) {
        let file = locks.as_ref().ok().and_then(Option::as_ref);
        let known = |state| (Checked::Known(state), None);
        let asked = match (self.asked(spec, file), locks) {
            (Err(why), _) => return known(Launching::AsWritten(why.map(Into::into))),
            (Ok(asked), Err(why)) if asked.lockable => {
                return known(Launching::Refused(why.as_str().into()));
            }
            (Ok(asked), _) => asked,
        };
        if let What::Interpreter(target) = &asked.wanted.what {
            let found = as_it_is(&asked.command, target);
            return known(Launching::Installed(Arc::new(found)));
        }
        let warning = asked.warning.clone();
        if let Err(why) = self.folder.is_ours() {
            let state = without_environment(asked.locked, why);
            return (Checked::Known(state), warning);
        }
        let command = asked.chosen_for();
        let mut pins = self.pins.lock();
        if !pins.contains(&command) {
            pins.push(command);
        }
        drop(pins);
        let pin = asked.pin.as_ref();
        let there = pin.and_then(|pin| self.folder.environment(pin));
        let checked = match there.map(|(folder, record)| resolve(&asked, &folder, &record)) {
            Some(Ok(resolved)) => Checked::Known(Launching::Installed(Arc::new(resolved))),
            Some(Err(why)) => Checked::Known(without_environment(asked.locked, why)),
            None => Checked::Missing(Box::new(asked)),
        };
        (checked, warning)
    }

    /// Sets how the server is started from now on.
    fn apply(self: &Arc<Self>, spec: &Arc<ServerSpec>, checked: Checked) {
        let state = match checked {
            Checked::Known(Launching::Installed(resolved)) => {
                return self.installed(spec, resolved);
            }
            Checked::Known(state) => state,
            Checked::Missing(asked) if asked.locked || self.settings.in_background => {
                return self.install_in_background(spec, *asked);
            }
            Checked::Missing(_) => {
                let why = "not installed yet: run `mcpo-bridge install`";
                Launching::AsWritten(Some(why.into()))
            }
        };
        if let Launching::Refused(why) = &state {
            tracing::error!(
                server = %spec.name,
                error = %why,
                "the locked version of a server cannot be started"
            );
        }
        self.running.lock().remove(&spec.name);
        self.launches().set(spec, state);
    }

    fn installed(&self, spec: &ServerSpec, resolved: Arc<Resolved>) {
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
        self.launches().set(spec, Launching::Installed(resolved));
        if let Some(changed) = self.changed.get() {
            changed(&spec.name);
        }
    }

    /// Installs in the background, unless the same installation is already running.
    fn install_in_background(self: &Arc<Self>, spec: &Arc<ServerSpec>, asked: InstallRequest) {
        let before = self.launches().state_of(spec);
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
                // A package index that does not answer must not block installations from other indexes.
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
                    return self.installed(&spec, Arc::new(resolved));
                }
                Err(why) => why,
            };
            // The output of a package manager, without passwords.
            let error = why.lines().next().unwrap_or_default();
            let (server, retry_in) = (&spec.name, pause);
            let why = if asked.locked {
                tracing::error!(%server, error, ?retry_in, "locked packages cannot be installed");
                format!("locked packages cannot be installed: {why}")
            } else {
                tracing::warn!(
                    %server,
                    error,
                    ?retry_in,
                    "packages cannot be installed; the server uses its own command line"
                );
                why
            };
            let state = without_environment(asked.locked, why);
            self.launches().set(&spec, state);
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

/// An interpreter runs as written: nothing is installed for it.
fn as_it_is(command: &CommandSpec, target: &Target) -> Resolved {
    Resolved {
        program: command.program.clone(),
        kind: Kind::Python {
            interpreter: PathBuf::from(&command.program),
            target: Some(target.clone()),
        },
        ..Resolved::default()
    }
}

// Which packages can be installed for a server of the server file, and which versions are known.

/// Variables that select package sources or versions.
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

/// An installation that a server needs.
#[derive(Debug, Clone)]
pub struct InstallRequest {
    pub(super) wanted: ParsedCommand,
    pub(super) command: CommandSpec,
    /// Identifies the command line's packages in a lock file.
    pub digest: String,
    /// The known versions: locked ones, or those chosen before.
    pub pin: Option<Pin>,
    /// The pin comes from the lock file or from that of the preinstalled folder.
    pub locked: bool,
    /// Whether it can be locked: folders have no versions.
    pub lockable: bool,
    /// A problem of the lock file's entry.
    pub warning: Option<String>,
}

impl InstallRequest {
    /// The same request without the locked versions.
    #[must_use]
    pub fn unlocked(&self) -> Self {
        Self {
            locked: false,
            ..self.clone()
        }
    }

    /// Identifies the command, for versions that were chosen without a lock file.
    pub(super) fn chosen_for(&self) -> String {
        chosen_for(&self.command, &self.digest)
    }

    /// Whether there is anything to install.
    pub fn is_installable(&self) -> bool {
        !matches!(self.wanted.what, What::Interpreter(_))
    }
}

/// The digest includes the package sources.
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
