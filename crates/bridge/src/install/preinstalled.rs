//! What `mcpo-bridge install` put somewhere ahead, such as into an image: read, never written. A
//! tools folder of its own, with the lock file in it.

use std::path::{Path, PathBuf};

use super::{
    lock_file::LockFile,
    pin::{Pin, platform},
};
use crate::install::INSTALLED;

/// The lock file's name there.
const LOCK: &str = "mcp-servers.lock.json";

/// The folder, which does not change while we run.
#[derive(Debug, Clone)]
pub struct Preinstalled {
    root: PathBuf,
    lock: LockFile,
}

impl Preinstalled {
    /// Reads its lock file; without one, nothing is there. Blocks.
    pub fn open(dir: &Path) -> Self {
        let read = LockFile::read(&dir.join(LOCK));
        let lock = read.unwrap_or_else(|error| {
            tracing::error!(%error, "what was installed ahead does not count");
            None
        });
        Self {
            root: dir.join(INSTALLED),
            lock: lock.unwrap_or_default(),
        }
    }

    /// Where its environments lie.
    pub fn root(&self) -> &Path {
        &self.root
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
    use std::fs;

    use super::{super::pin::Packages, *};

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
