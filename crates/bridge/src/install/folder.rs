//! `{MCPO_TOOLS_DIR}/installed`: environments and pins on disk, which several bridges may share.
//!
//! ```text
//! environments/{digest of its pin}/      made aside and renamed: whole or not there
//!     environment.json                   what it is
//! pins/{digest of a command}.json        what was chosen for a command that is in no lock file
//! staging/{uuid}/                        what is being made
//! ```
//! Equal pins make equal environments, so the second of two bridges discards its own. Nothing in an
//! environment is changed once it is in place; its time of use is that of `used`.

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

/// Environments and pins that no bridge used for so long are removed.
const UNUSED: Duration = Duration::from_secs(30 * 86_400);

/// What is being made for longer than this was given up.
const GIVEN_UP: Duration = Duration::from_secs(86_400);

/// The clock of the filesystem.
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

/// A record names each package and its hashes.
const LARGEST: u64 = 64 * 1024 * 1024;

const RECORD: &str = "environment.json";

const USED: &str = "used";

/// The folder.
#[derive(Debug, Clone)]
pub struct Folder {
    root: PathBuf,
    /// Looked at where something is not here.
    ahead: Option<Preinstalled>,
}

/// What an environment says of itself.
#[derive(Debug, Serialize, Deserialize)]
pub struct Record {
    /// What is in it.
    pub pin: Pin,
    /// Console scripts: name → `module:function`.
    #[serde(default)]
    pub scripts: std::collections::BTreeMap<String, String>,
}

impl Folder {
    /// Below this tools folder, which need not be there yet, and with what was installed ahead.
    pub fn new(tools_dir: &Path, ahead: Option<Preinstalled>) -> Self {
        let root = tools_dir.join(INSTALLED);
        Self { root, ahead }
    }

    /// What was installed ahead for such a command line.
    pub fn pinned_ahead(&self, wanted: &str) -> Option<Pin> {
        self.ahead.as_ref()?.pin(wanted)
    }

    /// Whether what is there may be run: only this user and root can have written it.
    pub fn is_ours(&self) -> Result<(), String> {
        is_ours(&self.root, "MCPO_TOOLS_DIR")?;
        match &self.ahead {
            Some(ahead) => is_ours(&ahead.root, "MCPO_PREINSTALLED_DIR"),
            None => Ok(()),
        }
    }

    /// The environment of this pin, if it is there and whole.
    pub fn environment(&self, pin: &Pin) -> Option<(PathBuf, Record)> {
        let ahead = self.ahead.as_ref().map(|ahead| &ahead.root);
        let mut roots = std::iter::once(&self.root).chain(ahead);
        roots.find_map(|root| environment(root, pin))
    }

    /// A folder to make an environment in. Goes when dropped.
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

    /// Puts a finished environment in its place.
    pub fn keep(&self, stage: &Stage, record: &Record) -> io::Result<PathBuf> {
        let text = serde_json::to_vec_pretty(record)?;
        fs::write(stage.path.join(RECORD), text)?;
        File::create(stage.path.join(USED))?;
        let place = environment_path(&self.root, &record.pin);
        for _ in 0..2 {
            match fs::rename(&stage.path, &place) {
                Ok(()) => return Ok(place),
                Err(_) if environment(&self.root, &record.pin).is_some() => return Ok(place),
                // One that cannot be read may be whole, and in use.
                Err(error) if is_unreadable(&place) => return Err(error),
                // One that is broken: out of the way with it.
                Err(_) => self.take_away(&place)?,
            }
        }
        let why = "the environment could not be moved into place";
        Err(io::Error::other(why))
    }

    /// Removes an environment. Renamed first: half of one must not be found.
    fn take_away(&self, environment: &Path) -> io::Result<()> {
        let aside = self.root.join("staging").join(Uuid::new_v4().to_string());
        fs::rename(environment, &aside)?;
        let _ = fs::remove_dir_all(aside);
        Ok(())
    }

    /// What was chosen for this command before.
    /// What cannot be read is an error: something else may be chosen, and that would be written
    /// over it.
    pub fn pin(&self, command: &str) -> io::Result<Option<Pin>> {
        match read_within(&self.pin_file(command), LARGEST) {
            Ok(text) => Ok(serde_json::from_slice(&text).ok()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Remembers what was chosen.
    pub fn set_pin(&self, command: &str, pin: &Pin) -> io::Result<()> {
        let stage = self.stage()?;
        let staged = stage.path.join("pin.json");
        fs::write(&staged, serde_json::to_vec_pretty(pin)?)?;
        fs::rename(staged, self.pin_file(command))
    }

    fn pin_file(&self, command: &str) -> PathBuf {
        self.root.join("pins").join(format!("{command}.json"))
    }

    /// Notes that these are in use. A folder that cannot be written is never cleaned either.
    pub fn touch<'a>(&self, environments: impl Iterator<Item = &'a Path>, pins: &[String]) {
        let stamps = environments.map(|path| path.join(USED));
        let pins = pins.iter().map(|command| self.pin_file(command));
        for path in stamps.chain(pins) {
            // By the filesystem's clock: bridges of several hosts may share the folder.
            let _ = File::options()
                .append(true)
                .open(path)
                .and_then(|file| Ok(futimens(&file, &NOW)?));
        }
    }

    /// Removes what was unused for long, and what was begun and abandoned. All times are those of
    /// the filesystem: no host's clock is compared with another's.
    pub fn sweep(&self) -> usize {
        self.now().map_or(0, |now| self.sweep_at(now))
    }

    /// The time as the filesystem tells it; none where nothing can be made there.
    fn now(&self) -> Option<SystemTime> {
        // What is not there yet need not be made for this.
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
    // A group may be all that users of a shared volume have in common.
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
    // Its interpreter may have gone with an update of the system.
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

/// A folder in which something is made; what is left of it goes when this is dropped.
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

// Running the package managers: their environment, and what they say when they fail.

/// Bounds one step: large packages over a slow line, or a build.
const STEP: Duration = Duration::from_secs(1800);

/// The end of what a package manager says, in lines.
const LAST_LINES: usize = 6;

/// Why something could not be installed: for people, without passwords.
pub type Failed = String;

/// Runs package managers for one server.
pub struct Work<'a> {
    children: &'a Children,
    env: Vec<(OsString, OsString)>,
    cwd: PathBuf,
    /// Where the environment is made.
    pub stage: &'a Path,
}

impl<'a> Work<'a> {
    /// `own` are the server's variables, of which only the package managers' own settings are
    /// taken. Their temporary files are in a folder below `stage`.
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

    /// A program with its output, or what it said last.
    pub async fn run(&self, program: &str, args: Vec<String>) -> Result<String, Failed> {
        self.run_in(program, args, &self.cwd).await
    }

    /// The same in another folder.
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

    /// Removes its temporary files.
    pub fn leave(&self) -> std::io::Result<()> {
        std::fs::remove_dir_all(&self.cwd)
    }

    /// Whether the variables of the package managers say something of their own.
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

/// `https://user:password@host` → `https://…@host`.
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

// What `mcpo-bridge install` put somewhere ahead, such as into an image: read, never written. A
// tools folder of its own, with the lock file in it.

/// The lock file's name there.
const LOCK: &str = "mcp-servers.lock.json";

/// The folder, which does not change while we run.
#[derive(Debug, Clone)]
pub struct Preinstalled {
    /// Where its environments lie.
    root: PathBuf,
    lock: LockFile,
}

impl Preinstalled {
    /// Reads its lock file; without one, nothing is there. Blocks.
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

    /// What was chosen for a command line, whatever its server is called.
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
        // Its interpreter went with an update.
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
