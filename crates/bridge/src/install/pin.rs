//! The exact versions and hashes that are installed for a command.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use bridge_model::{FieldHasher, ServerName, hex};
use bridge_process::launch::{NodeSet, PythonSet};
use bridge_protocol::utf8;
use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::config::{LARGEST_FILE, read_bounded};

/// Versions that were chosen once, so that the same ones are installed again. Contains no secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// The command line that it was chosen for: [`wanted_python`] or [`wanted_node`].
    pub wanted: String,
    /// The platform: wheels differ by system and processor.
    pub platform: String,
    /// The packages.
    #[serde(flatten)]
    pub packages: Packages,
}

/// The packages of a pin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Packages {
    /// For `uv pip sync`.
    Python {
        /// The interpreter's version.
        python: String,
        /// Lines of a requirements file, each with its hashes.
        requirements: Vec<String>,
    },
    /// For `npm ci`.
    Node {
        /// A package-lock.json.
        package_lock: Value,
    },
}

impl Pin {
    /// Identifies the installed content. Equal digests make equal environments.
    pub fn digest(&self) -> String {
        let mut hash = FieldHasher::new("mcpo-bridge environment v1");
        hash.text(&self.platform);
        match &self.packages {
            Packages::Python {
                python,
                requirements,
            } => {
                hash.text("python");
                hash.text(python);
                hash.list(requirements);
                // A folder has no hash: its current content is part of the digest of the request.
                if requirements.iter().any(|line| !line.contains("--hash=")) {
                    hash.text(&self.wanted);
                }
            }
            Packages::Node { package_lock } => {
                hash.text("node");
                hash.text(&package_lock.to_string());
            }
        }
        short_name(hash)
    }

    /// Name and version of each package, sorted by name.
    pub fn versions(&self) -> Vec<(String, String)> {
        let mut versions: Vec<(String, String)> = match &self.packages {
            Packages::Python { requirements, .. } => requirements
                .iter()
                .map(|line| python_version(line))
                .collect(),
            Packages::Node { package_lock } => node_versions(package_lock),
        };
        versions.sort();
        versions.dedup();
        versions
    }
}

fn python_version(line: &str) -> (String, String) {
    let (name, rest) = line.split_once("==").unwrap_or((line, ""));
    let version = rest.split([' ', ';']).next().unwrap_or_default();
    let name = name.split([' ', '[']).next().unwrap_or_default();
    (name.to_owned(), version.to_owned())
}

fn node_versions(lock: &Value) -> Vec<(String, String)> {
    let packages = lock["packages"].as_object().into_iter().flatten();
    let named = packages.filter_map(|(path, package)| {
        let (_, name) = path.rsplit_once("node_modules/")?;
        let version = package["version"].as_str().unwrap_or_default();
        Some((name.to_owned(), version.to_owned()))
    });
    named.collect()
}

/// The system and processor of this process.
pub fn platform() -> String {
    let libc = if cfg!(target_env = "musl") {
        "musl"
    } else {
        "gnu"
    };
    format!("{}-{}-{libc}", std::env::consts::OS, std::env::consts::ARCH)
}

/// Digest of the packages that a command line requests, including the content of local files.
pub fn wanted_python(set: &PythonSet) -> String {
    let mut hash = FieldHasher::new("mcpo-bridge python v1");
    hash.text(set.python.as_deref().unwrap_or_default());
    hash.list(&set.requirements);
    hash.list(&set.choosing);
    hash.list(&set.fetching);
    for source in &set.sources {
        hash.text(&stamp(source));
    }
    short_name(hash)
}

/// Digest of the packages that a command line requests.
pub fn wanted_node(set: &NodeSet) -> String {
    let mut hash = FieldHasher::new("mcpo-bridge node v1");
    hash.list(&set.packages);
    hash.list(&set.fetching);
    short_name(hash)
}

/// Changes when a local package or script changes: for a file its content, for a folder the modification
/// times that uv uses.
pub fn stamp(source: &Path) -> String {
    if let Ok(content) = fs::read(source) {
        let mut hash = FieldHasher::new("file");
        hash.bytes(&content);
        return short_name(hash);
    }
    let mut hash = FieldHasher::new("folder");
    for name in ["pyproject.toml", "setup.py", "setup.cfg", "src"] {
        let changed = fs::metadata(source.join(name)).and_then(|found| found.modified());
        hash.text(&format!("{:?}", changed.ok()));
    }
    short_name(hash)
}

/// Lower-case hex, 40 characters: enough to name a folder.
pub fn short_name(hash: FieldHasher) -> String {
    hex(&hash.finish()[..20])
}

// The lock file: the versions of each server. It is stored next to the server file.

/// The format version that this release writes and reads.
const VERSION: u32 = 1;

const NOTE: &str = "Written by `mcpo-bridge install`. The bridge installs exactly these versions.";

/// The content of the lock file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LockFile {
    /// Pins by the server names of the server file.
    pub servers: IndexMap<String, Pin>,
}

#[derive(Serialize, Deserialize)]
struct Written {
    #[serde(rename = "//", default)]
    note: String,
    version: u32,
    servers: IndexMap<String, Pin>,
}

/// Why the lock file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LockFileError {
    /// It cannot be read or written.
    #[error("the lock file {path}: {source}")]
    Io {
        /// The path as configured.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// Its content is invalid.
    #[error(
        "the lock file {path} is invalid ({why}): write it again with `mcpo-bridge install`, or \
         remove it"
    )]
    Broken {
        /// The path as configured.
        path: PathBuf,
        /// The problem.
        why: String,
    },
}

impl LockFile {
    /// Reads the file; `None` if there is none.
    pub fn read(path: &Path) -> Result<Option<Self>, LockFileError> {
        let text = match read_bounded(path, LARGEST_FILE) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => {
                let path = path.to_owned();
                return Err(LockFileError::Io { path, source });
            }
        };
        let broken = |why: String| LockFileError::Broken {
            path: path.to_owned(),
            why,
        };
        let text = utf8(text.into());
        let written: Written =
            serde_json::from_slice(&text).map_err(|error| broken(error.to_string()))?;
        if written.version != VERSION {
            let theirs = written.version;
            return Err(broken(format!("version {theirs} instead of {VERSION}")));
        }
        Ok(Some(Self {
            servers: written.servers,
        }))
    }

    /// Writes the file atomically.
    pub fn write(&self, path: &Path) -> Result<(), LockFileError> {
        let failed = |source| LockFileError::Io {
            path: path.to_owned(),
            source,
        };
        let written = Written {
            note: NOTE.to_owned(),
            version: VERSION,
            servers: self.servers.clone(),
        };
        let text = serde_json::to_string_pretty(&written).map_err(|error| failed(error.into()))?;
        let staged = path.with_extension(format!("{}.tmp", std::process::id()));
        fs::write(&staged, text + "\n")
            .and_then(|()| fs::rename(&staged, path))
            .map_err(|error| {
                let _ = fs::remove_file(&staged);
                failed(error)
            })
    }

    /// The pin of this server, if it was locked for this command and this platform; the error is the reason
    /// why the entry is ignored.
    pub fn entry(&self, server: &ServerName, wanted: &str) -> Option<Result<Pin, String>> {
        let pin = self.servers.get(server.as_str())?;
        if pin.wanted != wanted {
            return Some(Err(
                "the lock file was written for another command line: run `mcpo-bridge install`"
                    .to_owned(),
            ));
        }
        if pin.platform != platform() {
            return Some(Err(format!(
                "the lock file was written for {} and this is {}: run `mcpo-bridge install` here",
                pin.platform,
                platform()
            )));
        }
        Some(Ok(pin.clone()))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pin(requirements: &[&str]) -> Pin {
        Pin {
            wanted: "w".into(),
            platform: platform(),
            packages: Packages::Python {
                python: "3.11.2".into(),
                requirements: requirements.iter().map(ToString::to_string).collect(),
            },
        }
    }

    #[test]
    fn versions_are_read_from_both_kinds() {
        let python = pin(&[
            "b[x]==2.0 --hash=sha256:aa --hash=sha256:bb",
            "a==1.0 ; python_version < '4' --hash=sha256:cc",
        ]);
        let own = |list: &[(&str, &str)]| -> Vec<(String, String)> {
            let list = list.iter();
            list.map(|(a, b)| ((*a).into(), (*b).into())).collect()
        };
        assert_eq!(python.versions(), own(&[("a", "1.0"), ("b", "2.0")]));
        let package_lock = json!({"packages": {
            "": {"dependencies": {"x": "^1"}},
            "node_modules/x": {"version": "1.2.3"},
            "node_modules/x/node_modules/@s/y": {"version": "4.0.0"},
        }});
        let node = Pin {
            packages: Packages::Node { package_lock },
            ..pin(&[])
        };
        assert_eq!(node.versions(), own(&[("@s/y", "4.0.0"), ("x", "1.2.3")]));
    }

    #[test]
    fn the_digest_follows_what_is_installed() {
        let base = pin(&["a==1 --hash=sha256:aa"]);
        let renamed = Pin {
            wanted: "other".into(),
            ..base.clone()
        };
        assert_eq!(base.digest(), renamed.digest());
        assert_ne!(base.digest(), pin(&["a==2 --hash=sha256:aa"]).digest());
        let folder = pin(&["a @ file:///srv/a"]);
        let changed = Pin {
            wanted: "other".into(),
            ..folder.clone()
        };
        assert_ne!(folder.digest(), changed.digest());
        let elsewhere = Pin {
            platform: "linux-riscv64-gnu".into(),
            ..base.clone()
        };
        assert_ne!(base.digest(), elsewhere.digest());
    }

    #[test]
    fn a_pin_survives_its_file() {
        let base = pin(&["a==1 --hash=sha256:aa"]);
        let text = serde_json::to_string(&base).unwrap();
        assert_eq!(serde_json::from_str::<Pin>(&text).unwrap(), base);
    }

    #[test]
    fn a_changed_script_asks_for_other_packages() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("s.py");
        let set = PythonSet {
            sources: vec![file.clone()],
            ..PythonSet::default()
        };
        std::fs::write(&file, "a").unwrap();
        let before = wanted_python(&set);
        std::fs::write(&file, "b").unwrap();
        assert_ne!(wanted_python(&set), before);
    }
}

#[cfg(test)]
mod lock_file_tests {
    use super::{Packages, *};

    fn pin() -> Pin {
        Pin {
            wanted: "w".into(),
            platform: platform(),
            packages: Packages::Python {
                python: "3.11.2".into(),
                requirements: vec!["a==1 --hash=sha256:aa".into()],
            },
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mcp-servers.lock.json");
        assert_eq!(LockFile::read(&path).unwrap(), None);
        let lock = LockFile {
            servers: IndexMap::from([("time".to_owned(), pin())]),
        };
        lock.write(&path).unwrap();
        assert_eq!(LockFile::read(&path).unwrap(), Some(lock));
        let left = fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(left, 1, "nothing else is left");
    }

    #[test]
    fn an_entry_counts_for_its_command_and_machine_only() {
        let mut lock = LockFile::default();
        let time: ServerName = "time".parse().unwrap();
        assert!(lock.entry(&time, "w").is_none());
        lock.servers.insert("time".into(), pin());
        assert!(lock.entry(&time, "w").unwrap().is_ok());
        let other = lock.entry(&time, "x").unwrap().unwrap_err();
        assert!(other.contains("another command line"), "{other}");
        lock.servers[0].platform = "plan9-mips-gnu".into();
        let other = lock.entry(&time, "w").unwrap().unwrap_err();
        assert!(other.contains("plan9-mips"), "{other}");
    }

    #[test]
    fn a_broken_file_is_named_with_the_fix() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.lock.json");
        for text in ["{", r#"{"version": 99, "servers": {}}"#] {
            fs::write(&path, text).unwrap();
            let told = LockFile::read(&path).unwrap_err().to_string();
            assert!(told.contains("mcpo-bridge install"), "{told}");
        }
    }
}
