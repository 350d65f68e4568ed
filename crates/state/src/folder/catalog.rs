//! The last known catalogues of servers, so that a restarted bridge need not query the servers first. One
//! file for each server name; this module does not interpret the content.

use std::{
    fs::{self, File},
    io,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use bridge_model::{ServerName, hex};
use jiff::Timestamp;
use sha2::{Digest as _, Sha256};

use super::{
    ChatStore,
    files::{self, StoreError},
};

/// A catalogue fits into a message; a larger file was not written by the store.
const LIMIT: u64 = 256 * 1024 * 1024;
/// Entries that were neither written nor read for this long are removed.
const UNUSED: Duration = Duration::from_secs(30 * 86_400);

impl ChatStore {
    /// The entry of this server; `None` if there is none.
    pub fn catalog_entry(&self, server: &ServerName) -> io::Result<Option<Vec<u8>>> {
        let path = self.catalog_file(server);
        let Some(content) = files::present(files::read_within(&path, LIMIT))? else {
            return Ok(None);
        };
        // Tells the clean-up that the entry is in use.
        let file = File::options().append(true).open(&path);
        let _ = file.and_then(|file| file.set_modified(SystemTime::now()));
        Ok(Some(content))
    }

    /// Saves the entry, replacing the previous one.
    pub fn keep_catalog_entry(
        &self,
        server: &ServerName,
        content: &[u8],
    ) -> Result<(), StoreError> {
        let path = self.catalog_file(server);
        files::write_whole(&path, content, self.staging()).map_err(files::at("write", &path))
    }

    /// Removes entries that were unused for long.
    pub(super) fn sweep_catalog(&self, now: Timestamp) -> (u64, Vec<StoreError>) {
        let now = SystemTime::from(now);
        let folder = self.bridge("catalog");
        let names = match files::names_in(&folder) {
            Ok(names) => names,
            Err(error) => return (0, vec![error]),
        };
        let mut removed = 0;
        let mut errors = Vec::new();
        for path in names.into_iter().map(|name| folder.join(name)) {
            let changed = fs::symlink_metadata(&path).and_then(|found| found.modified());
            let unused = |changed| now.duration_since(changed).is_ok_and(|past| past > UNUSED);
            if !changed.is_ok_and(unused) {
                continue;
            }
            match files::present(fs::remove_file(&path)) {
                Ok(found) => removed += u64::from(found.is_some()),
                Err(error) => errors.push(files::at("remove", &path)(error)),
            }
        }
        (removed, errors)
    }

    /// A server name may contain characters that a file name may not, so the file is named by a digest.
    fn catalog_file(&self, server: &ServerName) -> PathBuf {
        let digest = hex(&Sha256::digest(server.as_str())[..16]);
        self.bridge("catalog").join(format!("{digest}.json"))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;
    use crate::testing::{Folder, later};

    #[test]
    fn an_entry_is_private_and_kept_until_it_is_unused_for_long() {
        let folder = Folder::new();
        let store = folder.open();
        let server: ServerName = "../x".replace('/', "_").parse().unwrap();
        assert!(store.catalog_entry(&server).unwrap().is_none());
        store.keep_catalog_entry(&server, b"old").unwrap();
        store.keep_catalog_entry(&server, b"new").unwrap();
        assert_eq!(store.catalog_entry(&server).unwrap().unwrap(), b"new");
        let mode = fs::metadata(store.catalog_file(&server)).unwrap().mode();
        assert_eq!(mode & 0o777, 0o600);
        let now = Timestamp::now();
        assert_eq!(store.sweep_catalog(now).0, 0);
        let long = UNUSED.as_secs().cast_signed() + 60;
        assert_eq!(store.sweep_catalog(later(now, long)).0, 1);
        assert!(store.catalog_entry(&server).unwrap().is_none());
    }
}
