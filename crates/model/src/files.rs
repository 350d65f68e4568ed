//! Opens files in folders that children can reach.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use rustix::fs::OFlags;

fn safe_flags() -> i32 {
    // A child may have put a link or a FIFO where our file was.
    (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed()
}

fn only_regular(file: File) -> io::Result<File> {
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        let kind = io::ErrorKind::InvalidData;
        Err(io::Error::new(kind, "not a regular file"))
    }
}

/// Opens an existing regular file for reading; its last name may not be a link.
pub fn open_read(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(safe_flags())
        .open(path)?;
    only_regular(file)
}

/// Opens a regular file for appending (0600 where new); its last name may not be a link.
pub fn open_append(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(safe_flags())
        .open(path)?;
    only_regular(file)
}
