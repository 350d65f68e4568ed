//! `{MCPO_TOOLS_DIR}/installed`: environments and pins on disk, which several bridges may share.
//!
//! ```text
//! environments/{digest of its pin}/      made aside and renamed: whole or not there
//!     environment.json                   what it is
//! pins/{digest of a command}.json        what was chosen for a command that is in no lock file
//! staging/{uuid}/                        what is being made
//! ```
//! Equal pins make equal environments, so whoever comes second throws his away. Nothing in an
//! environment is changed once it stands; its time of use is that of `used`.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use bridge_state::read_within;
use rustix::fs::{Timespec, Timestamps, UTIME_NOW, futimens};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{INSTALLED, pin::Pin, preinstalled::Preinstalled};

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
    /// Below this tools folder, which need not be there yet.
    pub fn within(tools_dir: &Path) -> Self {
        Self {
            root: tools_dir.join(INSTALLED),
            ahead: None,
        }
    }

    /// The same, with what was installed ahead.
    #[must_use]
    pub fn over(self, ahead: Option<Preinstalled>) -> Self {
        Self { ahead, ..self }
    }

    /// What was installed ahead for such a command line.
    pub fn pinned_ahead(&self, wanted: &str) -> Option<Pin> {
        self.ahead.as_ref()?.pin(wanted)
    }

    /// Whether what lies there may be run: nobody but us and root can have put it there.
    pub fn is_ours(&self) -> Result<(), String> {
        is_ours(&self.root, "MCPO_TOOLS_DIR")?;
        let ahead = self.ahead.as_ref();
        ahead.map_or(Ok(()), |ahead| {
            is_ours(ahead.root(), "MCPO_PREINSTALLED_DIR")
        })
    }

    /// The environment of this pin, if it is there and whole.
    pub fn environment(&self, pin: &Pin) -> Option<(PathBuf, Record)> {
        let ahead = self.ahead.as_ref().map(Preinstalled::root);
        let roots = std::iter::once(self.root.as_path()).chain(ahead);
        roots.into_iter().find_map(|root| environment(root, pin))
    }

    fn path(&self, pin: &Pin) -> PathBuf {
        environment_path(&self.root, pin)
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
        let place = self.path(&record.pin);
        for _ in 0..2 {
            match fs::rename(&stage.path, &place) {
                Ok(()) => return Ok(place),
                Err(_) if environment(&self.root, &record.pin).is_some() => return Ok(place),
                // One that cannot be read may be whole, and in use.
                Err(error) if is_unreadable(&place) => return Err(error),
                // One that is broken: out of the way with it.
                Err(_) => {
                    let aside = self.root.join("staging").join(Uuid::new_v4().to_string());
                    fs::rename(&place, &aside)?;
                    let _ = fs::remove_dir_all(aside);
                }
            }
        }
        Err(io::Error::other(
            "the environment could not be put in its place",
        ))
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

    /// Removes what nobody used for long, and what was begun and given up. All times are those of
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
            // Renamed first: half an environment must not be found.
            let aside = self.root.join("staging").join(Uuid::new_v4().to_string());
            if fs::rename(&path, &aside).is_ok() {
                removed += 1;
                let _ = fs::remove_dir_all(aside);
            }
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
        "{} may be written by others than user {own}: remove it, or set {setting} to a folder of \
         your own",
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

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, os::unix::fs::PermissionsExt as _};

    use super::{super::pin::Packages, *};

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
        let folder = Folder::within(tools.path());
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
        let folder = Folder::within(tools.path());
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
        let folder = Folder::within(tools.path());
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
        let folder = Folder::within(tools.path());
        assert!(folder.is_ours().is_ok(), "nothing there is fine");
        drop(folder.stage().unwrap());
        assert!(folder.is_ours().is_ok());
        let root = tools.path().join("installed");
        fs::set_permissions(&root, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(folder.is_ours().unwrap_err().contains("MCPO_TOOLS_DIR"));
    }
}
