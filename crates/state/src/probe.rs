//! Whether the folder can be worked in right now.

use std::{fs, io};

use rustix::fs::{Access, StatVfs, access, statvfs};
use uuid::Uuid;

use super::{Store, StoreError, error::is_absent, files};

/// What the folder's filesystem has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Bytes, for us.
    pub bytes: u64,
}

impl Store {
    /// Does in small what each new chat does: makes a folder and a file with something in it, and
    /// takes both away. The error says what is wrong. Blocks for as long as the disk does.
    pub fn probe(&self) -> Result<Room, StoreError> {
        self.instance.is_shown()?;
        let room = self.statvfs()?;
        access(&self.root, Access::WRITE_OK | Access::EXEC_OK)
            .map_err(|error| files::at("write in", &self.root)(error.into()))?;
        let path = self.staging().join(format!("probe-{}", Uuid::new_v4()));
        let mut made = fs::create_dir(&path);
        if made.as_ref().is_err_and(is_absent) {
            // Others clear it away where this bridge was silent for long.
            self.instance.is_shown()?;
            made = files::make_dir(self.staging()).and_then(|()| fs::create_dir(&path));
        }
        let made = made.and_then(|()| fs::write(path.join("file"), [b'x'; 4096]));
        let removed = match fs::remove_dir_all(&path) {
            Err(error) if is_absent(&error) => Ok(()),
            other => other,
        };
        made.and(removed)
            .map_err(|error| files::at("write in", &self.root)(explained(error, &room)))?;
        Ok(Room {
            bytes: room.f_bavail.saturating_mul(room.f_frsize),
        })
    }

    pub(super) fn statvfs(&self) -> Result<StatVfs, StoreError> {
        statvfs(&self.root).map_err(|error| files::at("measure", &self.root)(error.into()))
    }
}

/// The system says "no space" of names, too.
fn explained(error: io::Error, room: &StatVfs) -> io::Error {
    let full = super::is_disk_full(&error);
    if full && room.f_files > 0 && room.f_favail == 0 {
        let text = format!("{error}: the filesystem has no inodes left for new files");
        return io::Error::new(error.kind(), text);
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Folder;

    #[test]
    fn a_folder_in_the_place_of_ours_is_none_to_work_in() {
        let dir = Folder::new();
        let store = dir.open();
        let aside = dir.outside().join("aside");
        fs::rename(dir.path(), &aside).unwrap();
        assert!(store.probe().is_err(), "it is gone");
        fs::create_dir(dir.path()).unwrap();
        assert!(store.probe().unwrap_err().to_string().contains("replaced"));
        // Another bridge has made its own folders there.
        let other = dir.open();
        assert!(store.probe().unwrap_err().to_string().contains("replaced"));
        other.probe().unwrap();
        drop(other);
        fs::remove_dir_all(dir.path()).unwrap();
        fs::rename(aside, dir.path()).unwrap();
        store.probe().unwrap();
    }

    #[test]
    fn a_probe_leaves_nothing_and_tells_what_is_free() {
        let dir = Folder::new();
        let store = dir.open();
        let room = store.probe().unwrap();
        assert!(room.bytes > 0);
        assert_eq!(fs::read_dir(store.staging()).unwrap().count(), 0);
    }
}
