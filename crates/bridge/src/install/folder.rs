//! `{MCPO_TOOLS_DIR}/installed`: environments and pins on disk. Several bridges may share the folder.
//!
//! ```text
//! environments/{digest of its pin}/      staged and then renamed: complete or absent
//!     environment.json                   its record
//! pins/{digest of a command}.json        versions chosen for a command that is in no lock file
//! staging/{uuid}/                        environments and pins that are being created
//! ```
//! Equal pins make equal environments, so the second of two bridges discards its own. The content of an
//! environment does not change after the rename; the modification time of `used` is its last use.

use std::{
    ffi::OsString,
    fs,
    fs::{DirBuilder, File},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use bridge_process::{ChildError, ExitStatus, Launch, environment_for_installing};
use bridge_state::read_within;
use indexmap::IndexMap;
use rustix::fs::{Timespec, Timestamps, UTIME_NOW, futimens};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use uuid::Uuid;

use super::{
    INSTALLED,
    pin::{LockFile, Pin, platform},
};
use crate::child::Children;

/// Age at which unused environments and pins are removed.
const UNUSED: Duration = Duration::from_secs(30 * 86_400);

/// Age at which a staging folder counts as abandoned.
const GIVEN_UP: Duration = Duration::from_secs(86_400);

/// The current time of the filesystem.
const NOW: Timestamps = Timestamps {
    last_access: Timespec {
        tv_sec: 0,
        tv_nsec: UTIME_NOW,
    },
    last_modification: Timespec {
        tv_sec: 0,
        tv_nsec: UTIME_NOW,
    },
};

/// Maximum size of a record or pin: it names each package and its hashes.
const LARGEST: u64 = 64 * 1024 * 1024;

const RECORD: &str = "environment.json";

const USED: &str = "used";

/// The folder of environments and pins.
#[derive(Debug, Clone)]
pub struct Folder {
    root: PathBuf,
    /// Fallback for pins and environments that are missing here.
    ahead: Option<Preinstalled>,
}

/// The content of `environment.json`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Record {
    /// The installed versions.
    pub pin: Pin,
    /// Console scripts: name → `module:function`.
    #[serde(default)]
    pub scripts: std::collections::BTreeMap<String, String>,
}

impl Folder {
    /// A folder below `tools_dir`, which may not exist yet; `ahead` is the preinstalled folder.
    pub fn new(tools_dir: &Path, ahead: Option<Preinstalled>) -> Self {
        let root = tools_dir.join(INSTALLED);
        Self { root, ahead }
    }

    /// The pin of the preinstalled lock file for this command line.
    pub fn pinned_ahead(&self, wanted: &str) -> Option<Pin> {
        self.ahead.as_ref()?.pin(wanted)
    }

    /// Fails if users other than this one and root can write the folders: their content must not be run.
    pub fn is_ours(&self) -> Result<(), String> {
        is_ours(&self.root, "MCPO_TOOLS_DIR")?;
        match &self.ahead {
            Some(ahead) => is_ours(&ahead.root, "MCPO_PREINSTALLED_DIR"),
            None => Ok(()),
        }
    }

    /// The environment of this pin, if it exists and is complete.
    pub fn environment(&self, pin: &Pin) -> Option<(PathBuf, Record)> {
        let ahead = self.ahead.as_ref().map(|ahead| &ahead.root);
        let mut roots = std::iter::once(&self.root).chain(ahead);
        roots.find_map(|root| environment(root, pin))
    }

    /// Creates a folder in which an environment can be built. Removed on drop.
    pub fn stage(&self) -> io::Result<Stage> {
        let parent = self.root.join("staging");
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o755);
        for part in ["staging", "environments", "pins"] {
            builder.create(self.root.join(part))?;
        }
        let path = parent.join(Uuid::new_v4().to_string());
        builder.recursive(false).create(&path)?;
        Ok(Stage { path })
    }

    /// Moves a finished environment to its final path.
    pub fn keep(&self, stage: &Stage, record: &Record) -> io::Result<PathBuf> {
        let text = serde_json::to_vec_pretty(record)?;
        fs::write(stage.path.join(RECORD), text)?;
        File::create(stage.path.join(USED))?;
        let place = environment_path(&self.root, &record.pin);
        for _ in 0..2 {
            match fs::rename(&stage.path, &place) {
                Ok(()) => return Ok(place),
                Err(_) if environment(&self.root, &record.pin).is_some() => return Ok(place),
                // An unreadable environment may be complete and in use.
                Err(error) if is_unreadable(&place) => return Err(error),
                // Remove a broken environment and try again.
                Err(_) => self.take_away(&place)?,
            }
        }
        let why = "the environment could not be moved into place";
        Err(io::Error::other(why))
    }

    /// Removes an environment. It is renamed first, so that no bridge finds a partial one.
    fn take_away(&self, environment: &Path) -> io::Result<()> {
        let aside = self.root.join("staging").join(Uuid::new_v4().to_string());
        fs::rename(environment, &aside)?;
        let _ = fs::remove_dir_all(aside);
        Ok(())
    }

    /// The versions that were chosen for this command before. A file that cannot be read is an error:
    /// otherwise other versions could be chosen and overwrite it.
    pub fn pin(&self, command: &str) -> io::Result<Option<Pin>> {
        match read_within(&self.pin_file(command), LARGEST) {
            Ok(text) => Ok(serde_json::from_slice(&text).ok()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Saves the chosen versions.
    pub fn set_pin(&self, command: &str, pin: &Pin) -> io::Result<()> {
        let stage = self.stage()?;
        let staged = stage.path.join("pin.json");
        fs::write(&staged, serde_json::to_vec_pretty(pin)?)?;
        fs::rename(staged, self.pin_file(command))
    }

    fn pin_file(&self, command: &str) -> PathBuf {
        self.root.join("pins").join(format!("{command}.json"))
    }

    /// Sets their last use to now. Errors are ignored: a folder that cannot be written is not swept either.
    pub fn touch<'a>(&self, environments: impl Iterator<Item = &'a Path>, pins: &[String]) {
        let stamps = environments.map(|path| path.join(USED));
        let pins = pins.iter().map(|command| self.pin_file(command));
        for path in stamps.chain(pins) {
            // The filesystem's clock: bridges on several hosts may share the folder.
            let _ = File::options()
                .append(true)
                .open(path)
                .and_then(|file| Ok(futimens(&file, &NOW)?));
        }
    }

    /// Removes environments and pins that were unused for long, and abandoned staging folders. All times are
    /// those of the filesystem, so the clocks of different hosts are not compared.
    pub fn sweep(&self) -> usize {
        self.now().map_or(0, |now| self.sweep_at(now))
    }

    /// The current time of the filesystem; `None` if nothing can be created in the folder.
    fn now(&self) -> Option<SystemTime> {
        // A missing folder is not created for this.
        let stage = self.root.is_dir().then(|| self.stage().ok())??;
        let made = fs::symlink_metadata(&stage.path);
        made.and_then(|made| made.modified()).ok()
    }

    fn sweep_at(&self, now: SystemTime) -> usize {
        let old = |path: &Path, age: Duration| {
            let changed = fs::symlink_metadata(path).and_then(|found| found.modified());
            changed.is_ok_and(|changed| now.duration_since(changed).is_ok_and(|past| past > age))
        };
        let entries = |part: &str| {
            let entries = fs::read_dir(self.root.join(part));
            let entries = entries.into_iter().flatten().flatten();
            entries.map(|entry| entry.path())
        };
        let unused = entries("environments").filter(|path| old(&path.join(USED), UNUSED));
        let mut removed = 0;
        for path in unused {
            removed += usize::from(self.take_away(&path).is_ok());
        }
        for path in entries("pins").filter(|path| old(path, UNUSED)) {
            removed += usize::from(fs::remove_file(path).is_ok());
        }
        for path in entries("staging").filter(|path| old(path, GIVEN_UP)) {
            removed += usize::from(fs::remove_dir_all(path).is_ok());
        }
        removed
    }
}

fn is_ours(root: &Path, setting: &str) -> Result<(), String> {
    let found = match fs::symlink_metadata(root) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(format!("{} cannot be used ({error})", root.display())),
    };
    let own = rustix::process::geteuid().as_raw();
    let trusted = found.is_dir() && (found.uid() == own || found.uid() == 0);
    // On a shared volume, a group may be all that its users have in common.
    if trusted && found.mode() & 0o002 == 0 {
        return Ok(());
    }
    Err(format!(
        "{} is writable by users other than {own}: remove it, or set {setting} to a directory \
         that only this user can write",
        root.display()
    ))
}

fn environment(root: &Path, pin: &Pin) -> Option<(PathBuf, Record)> {
    let path = environment_path(root, pin);
    let text = read_within(&path.join(RECORD), LARGEST).ok()?;
    let record: Record = serde_json::from_slice(&text).ok()?;
    // An update of the system may have removed the interpreter.
    let python = path.join("venv");
    let whole = !python.exists() || python.join("bin/python").exists();
    whole.then_some((path, record))
}

fn is_unreadable(environment: &Path) -> bool {
    let read = read_within(&environment.join(RECORD), LARGEST);
    read.is_err_and(|error| error.kind() != io::ErrorKind::NotFound)
}

fn environment_path(root: &Path, pin: &Pin) -> PathBuf {
    root.join("environments").join(pin.digest())
}

/// A staging folder. Removed on drop, with its content.
#[derive(Debug)]
pub struct Stage {
    path: PathBuf,
}

impl Stage {
    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

// Running the package managers: their environment and their error output.

/// Timeout of one step: large packages over a slow network, or a build.
const STEP: Duration = Duration::from_secs(1800);

/// Lines of a package manager's error output that are reported.
const LAST_LINES: usize = 6;

/// Why an installation failed: a message for people, without passwords.
pub type Failed = String;

/// Runs package managers for one server.
pub struct Work<'a> {
    children: &'a Children,
    env: Vec<(OsString, OsString)>,
    cwd: PathBuf,
    /// The folder in which the environment is created.
    pub stage: &'a Path,
}

impl<'a> Work<'a> {
    /// `own` are the server's variables; only the settings of the package managers are taken from them.
    /// Temporary files are in a folder below `stage`.
    pub fn new(
        children: &'a Children,
        tools_dir: &Path,
        own: &IndexMap<String, String>,
        stage: &'a Path,
    ) -> Result<Self, Failed> {
        let cwd = stage.join("scratch");
        std::fs::create_dir(&cwd)
            .map_err(|error| format!("cannot create a working directory: {error}"))?;
        Ok(Self {
            children,
            env: environment_for_installing(tools_dir, &cwd, own),
            cwd,
            stage,
        })
    }

    /// Runs a program and returns its stdout; the error has the end of its stderr.
    pub async fn run(&self, program: &str, args: Vec<String>) -> Result<String, Failed> {
        self.run_in(program, args, &self.cwd).await
    }

    /// The same as [`Work::run`], in another working directory.
    pub async fn run_in(
        &self,
        program: &str,
        args: Vec<String>,
        cwd: &Path,
    ) -> Result<String, Failed> {
        let what = args.iter().take_while(|arg| !arg.starts_with('-')).take(2);
        let what = what.fold(program.to_owned(), |what, arg| format!("{what} {arg}"));
        let errand = Launch {
            program: program.to_owned(),
            args,
            env: self.env.clone(),
            cwd: cwd.to_owned(),
        };
        let done = self.children.run(errand, Instant::now() + STEP).await;
        let done = done.map_err(|error| match error {
            ChildError::NotStarted { why, .. } => why,
            _ => format!("`{what}` took longer than {} s", STEP.as_secs()),
        })?;
        if done.status == ExitStatus::Code(0) {
            return Ok(String::from_utf8_lossy(&done.stdout).into_owned());
        }
        let said = last_words(&String::from_utf8_lossy(&done.stderr));
        Err(format!("`{what}` failed ({}){said}", done.status))
    }

    /// Writes a file into the stage; returns its path.
    pub fn write(&self, name: &str, text: &str) -> Result<PathBuf, Failed> {
        let path = self.stage.join(name);
        match fs::write(&path, text) {
            Ok(()) => Ok(path),
            Err(error) => Err(format!("cannot write {}: {error}", path.display())),
        }
    }

    /// Removes the temporary files.
    pub fn leave(&self) -> std::io::Result<()> {
        std::fs::remove_dir_all(&self.cwd)
    }

    /// Whether the package managers' environment sets this variable.
    pub fn says(&self, name: &str) -> bool {
        self.env.iter().any(|(known, _)| known == name)
    }
}

fn last_words(said: &str) -> String {
    let lines = said.lines().map(str::trim_end);
    let lines: Vec<&str> = lines.filter(|line| !line.is_empty()).collect();
    let last = &lines[lines.len().saturating_sub(LAST_LINES)..];
    if last.is_empty() {
        return String::new();
    }
    format!(": {}", without_passwords(&last.join("\n")))
}

/// Replaces credentials in URLs: `https://user:password@host` → `https://…@host`.
fn without_passwords(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, behind) = rest.split_at(at + 3);
        out.push_str(before);
        let end = behind
            .find(|c: char| c.is_whitespace() || matches!(c, '/' | '`' | '"' | '\''))
            .unwrap_or(behind.len());
        rest = match behind[..end].rfind('@') {
            Some(at) => {
                out.push('…');
                &behind[at..]
            }
            None => behind,
        };
    }
    out + rest
}

// The packages that `mcpo-bridge install` installed in advance, for example into an image. Read-only: a
// separate tools folder that contains the lock file.

/// Name of the lock file in the preinstalled folder.
const LOCK: &str = "mcp-servers.lock.json";

/// The preinstalled folder, which does not change while the bridge runs.
#[derive(Debug, Clone)]
pub struct Preinstalled {
    /// The folder of its environments.
    root: PathBuf,
    lock: LockFile,
}

impl Preinstalled {
    /// Reads the lock file; without one, the folder counts as empty. Blocks.
    pub fn open(dir: &Path) -> Self {
        let read = LockFile::read(&dir.join(LOCK));
        let lock = read.unwrap_or_else(|error| {
            tracing::error!(%error, "preinstalled environments are ignored");
            None
        });
        Self {
            root: dir.join(INSTALLED),
            lock: lock.unwrap_or_default(),
        }
    }

    /// The pin for a command line, for any server name.
    pub fn pin(&self, wanted: &str) -> Option<Pin> {
        let platform = platform();
        let mut pins = self.lock.servers.values();
        let found = pins.find(|pin| pin.wanted == wanted && pin.platform == platform);
        found.cloned()
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, os::unix::fs::PermissionsExt as _};

    use super::*;
    use crate::install::pin::Packages;

    fn record(version: &str) -> Record {
        let pin = Pin {
            wanted: "w".into(),
            platform: "p".into(),
            packages: Packages::Python {
                python: "3.11".into(),
                requirements: vec![format!("a=={version}")],
            },
        };
        let scripts = BTreeMap::new();
        Record { pin, scripts }
    }

    fn made(folder: &Folder, version: &str) -> PathBuf {
        let stage = folder.stage().unwrap();
        fs::write(stage.path().join("x"), version).unwrap();
        folder.keep(&stage, &record(version)).unwrap()
    }

    #[test]
    fn whoever_makes_the_same_second_uses_the_first() {
        let tools = tempfile::tempdir().unwrap();
        let folder = Folder::new(tools.path(), None);
        let first = made(&folder, "1");
        let before = fs::metadata(&first).unwrap().ino();
        assert_eq!(made(&folder, "1"), first);
        assert_eq!(fs::metadata(&first).unwrap().ino(), before);
        let staging = fs::read_dir(tools.path().join("installed/staging")).unwrap();
        assert_eq!(staging.count(), 0, "what lost is thrown away");
    }

    #[test]
    fn a_broken_environment_is_replaced() {
        let tools = tempfile::tempdir().unwrap();
        let folder = Folder::new(tools.path(), None);
        let place = made(&folder, "1");
        fs::write(place.join(RECORD), "{").unwrap();
        assert!(folder.environment(&record("1").pin).is_none());
        made(&folder, "1");
        assert!(folder.environment(&record("1").pin).is_some());
        // An update of the system removed its interpreter.
        fs::create_dir_all(place.join("venv/bin")).unwrap();
        std::os::unix::fs::symlink("/nowhere", place.join("venv/bin/python")).unwrap();
        assert!(folder.environment(&record("1").pin).is_none());
    }

    #[test]
    fn only_what_nobody_used_for_long_is_removed() {
        let tools = tempfile::tempdir().unwrap();
        let folder = Folder::new(tools.path(), None);
        let (old, used) = (made(&folder, "1"), made(&folder, "2"));
        folder.set_pin("old", &record("1").pin).unwrap();
        folder.set_pin("used", &record("2").pin).unwrap();
        let later = SystemTime::now() + UNUSED + Duration::from_secs(60);
        let stamp = |path: &Path| {
            let file = File::options().append(true).open(path).unwrap();
            file.set_modified(later).unwrap();
        };
        stamp(&used.join(USED));
        stamp(&folder.pin_file("used"));
        assert_eq!(folder.sweep(), 0);
        assert_eq!(folder.sweep_at(later), 2);
        assert!(!old.exists() && used.exists());
        assert!(folder.pin("old").unwrap().is_none() && folder.pin("used").unwrap().is_some());
        folder.touch([used.as_path()].into_iter(), &["used".to_owned()]);
        let touched = fs::metadata(used.join(USED)).unwrap().modified().unwrap();
        assert!(touched < later);
    }

    #[test]
    fn what_others_may_write_is_not_run() {
        let tools = tempfile::tempdir().unwrap();
        let folder = Folder::new(tools.path(), None);
        assert!(folder.is_ours().is_ok(), "nothing there is fine");
        drop(folder.stage().unwrap());
        assert!(folder.is_ours().is_ok());
        let root = tools.path().join("installed");
        fs::set_permissions(&root, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(folder.is_ours().unwrap_err().contains("MCPO_TOOLS_DIR"));
    }
}

#[cfg(test)]
mod work_tests {
    use super::*;

    #[test]
    fn no_password_is_told() {
        let said = "error: https://joe:hunter2@pypi.example/simple failed\n  at `http://t@h/`\n\n";
        let told = last_words(said);
        assert_eq!(
            told,
            ": error: https://…@pypi.example/simple failed\n  at `http://…@h/`"
        );
        assert_eq!(
            without_passwords("https://a.example/x@1"),
            "https://a.example/x@1"
        );
    }
}

#[cfg(test)]
mod preinstalled_tests {
    use std::fs;

    use super::*;
    use crate::install::pin::Packages;

    #[test]
    fn a_command_line_is_known_by_what_it_asks_for_on_this_kind_of_machine() {
        let folder = tempfile::tempdir().unwrap();
        let pin = |wanted: &str, platform: String| Pin {
            wanted: wanted.into(),
            platform,
            packages: Packages::Python {
                python: "3.11".into(),
                requirements: Vec::new(),
            },
        };
        let mut lock = LockFile::default();
        let here = pin("a", platform());
        lock.servers.insert("one".into(), here.clone());
        let elsewhere = pin("b", "plan9-mips-gnu".into());
        lock.servers.insert("two".into(), elsewhere);
        lock.write(&folder.path().join(LOCK)).unwrap();
        let ahead = Preinstalled::open(folder.path());
        assert_eq!(ahead.pin("a"), Some(here));
        assert_eq!((ahead.pin("b"), ahead.pin("c")), (None, None));
    }

    #[test]
    fn without_a_good_lock_file_nothing_is_there() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Preinstalled::open(folder.path()).pin("a"), None);
        fs::write(folder.path().join(LOCK), "{").unwrap();
        assert_eq!(Preinstalled::open(folder.path()).pin("a"), None);
    }
}
