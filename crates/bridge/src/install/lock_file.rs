//! The lock file: what is installed for each server, to be kept beside the server file.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use bridge_model::ServerName;
use bridge_protocol::utf8;
use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

use super::pin::{Pin, platform};
use crate::config::{LARGEST_FILE, read_bounded};

/// The layout that this version writes and reads.
const VERSION: u32 = 1;
const NOTE: &str = "Written by `mcpo-bridge install`. What it names is installed exactly so.";

/// What is read from the lock file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LockFile {
    /// By the names in the server file.
    pub servers: IndexMap<String, Pin>,
}

#[derive(Serialize, Deserialize)]
struct Written {
    #[serde(rename = "//", default)]
    note: String,
    version: u32,
    servers: IndexMap<String, Pin>,
}

/// Why there is no lock file though one is there.
#[derive(Debug, thiserror::Error)]
pub enum LockFileError {
    /// It cannot be read or written.
    #[error("the lock file {path}: {source}")]
    Io {
        /// As named.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It holds something else.
    #[error(
        "the lock file {path} is not one ({why}): write it anew with `mcpo-bridge install`, or \
         remove it"
    )]
    Broken {
        /// As named.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

impl LockFile {
    /// Reads it; `None` where there is none.
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
            return Err(broken(format!("it is of version {theirs}, not {VERSION}")));
        }
        Ok(Some(Self {
            servers: written.servers,
        }))
    }

    /// Writes it whole.
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

    /// What is locked for this server, if it was locked for this command and this machine; else
    /// what is wrong about it.
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
    use super::{super::pin::Packages, *};

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
