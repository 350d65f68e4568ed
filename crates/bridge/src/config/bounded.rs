//! Reads the administrator's files while the bridge runs: at most a limit of bytes, and without blocking on a
//! writer.

use std::{
    fs::OpenOptions,
    io::{self, Read as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use rustix::fs::OFlags;

/// Reads a regular file of at most `most` bytes; links are followed. The error is a message for people.
pub fn read_bounded(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    // Opening a FIFO would block until its other end is opened.
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let mut content = Vec::new();
    file.take(most + 1).read_to_end(&mut content)?;
    if content.len() as u64 > most {
        return Err(io::Error::other(format!("larger than {most} bytes")));
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_regular_files_within_the_bound_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link, fifo) = (
            folder.path().join("file"),
            folder.path().join("link"),
            folder.path().join("fifo"),
        );
        std::fs::write(&file, "four").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let made = std::process::Command::new("mkfifo").arg(&fifo).status();
        assert!(made.unwrap().success());
        assert_eq!(read_bounded(&link, 4).unwrap(), b"four");
        for (path, most) in [
            (&*file, 3),
            (&*fifo, 9),
            (folder.path(), 9),
            (Path::new("/dev/zero"), 9),
        ] {
            assert!(read_bounded(path, most).is_err(), "{path:?}");
        }
    }
}
