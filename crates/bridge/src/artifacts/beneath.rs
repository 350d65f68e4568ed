//! Opens a file below a folder that its owner may be changing under our hands.

use std::{
    ffi::OsStr,
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, openat, openat2, unlinkat},
    io::Errno,
};

use super::RelativePath;

/// How often a path is tried again that others renamed while it was being resolved.
const ATTEMPTS: usize = 8;

/// Opens a folder whose last name is no link.
pub fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    dir_at(CWD, path).map_err(Into::into)
}

/// Opens a folder in a folder; a link is refused.
pub fn dir_at<P: rustix::path::Arg>(
    parent: BorrowedFd<'_>,
    name: P,
) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
    openat(parent, name, flags, Mode::empty())
}

/// Opens whatever is there for reading, without waiting and without following a link in any part.
/// It may be no regular file: look before reading.
pub fn open_file(root: BorrowedFd<'_>, path: &RelativePath) -> io::Result<File> {
    let resolve = ResolveFlags::BENEATH
        | ResolveFlags::NO_SYMLINKS
        | ResolveFlags::NO_MAGICLINKS
        | ResolveFlags::NO_XDEV;
    for _ in 0..ATTEMPTS {
        match openat2(root, path.as_path(), file_flags(), Mode::empty(), resolve) {
            Ok(file) => return Ok(file.into()),
            Err(Errno::AGAIN | Errno::INTR) => {}
            // Old container runtimes do not let the call through.
            Err(Errno::NOSYS | Errno::PERM) => return step_by_step(root, path),
            Err(error) => return Err(error.into()),
        }
    }
    Err(Errno::AGAIN.into())
}

/// Removes a file. No part of its path may be a link, and the last one no folder.
pub fn remove_file(work: &Path, path: &RelativePath) -> io::Result<()> {
    let root = open_dir(work)?;
    let mut parts: Vec<&OsStr> = path.as_path().iter().collect();
    let name = parts.pop().ok_or(io::ErrorKind::NotFound)?;
    let mut held: Option<OwnedFd> = None;
    for part in parts {
        let parent = held.as_ref().map_or(root.as_fd(), AsFd::as_fd);
        held = Some(dir_at(parent, part)?);
    }
    let parent = held.as_ref().map_or(root.as_fd(), AsFd::as_fd);
    Ok(unlinkat(parent, name, AtFlags::empty())?)
}

fn file_flags() -> OFlags {
    OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::NOCTTY | OFlags::CLOEXEC
}

/// The same by hand: each part is opened in the folder just opened, so a swapped one is refused.
fn step_by_step(root: BorrowedFd<'_>, path: &RelativePath) -> io::Result<File> {
    let mut parts: Vec<&OsStr> = path.as_path().iter().collect();
    let name = parts.pop().ok_or(io::ErrorKind::NotFound)?;
    let mut held: Option<OwnedFd> = None;
    for part in parts {
        let parent = held.as_ref().map_or(root, AsFd::as_fd);
        held = Some(dir_at(parent, part)?);
    }
    let parent = held.as_ref().map_or(root, AsFd::as_fd);
    let file = openat(parent, name, file_flags(), Mode::empty())?;
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Read, os::unix::fs::symlink};

    use super::*;

    fn read(opened: io::Result<File>) -> io::Result<String> {
        let mut text = String::new();
        opened?.read_to_string(&mut text)?;
        Ok(text)
    }

    #[test]
    fn both_ways_open_plain_files_and_refuse_links_in_any_part() {
        let dir = tempfile::tempdir().unwrap();
        let work = dir.path().join("work");
        fs::create_dir_all(work.join("a/b")).unwrap();
        fs::create_dir(dir.path().join("workbook")).unwrap();
        fs::write(work.join("a/b/file"), "inside").unwrap();
        fs::write(dir.path().join("secret"), "outside").unwrap();
        fs::write(dir.path().join("workbook/secret"), "outside").unwrap();
        symlink("../secret", work.join("link")).unwrap();
        symlink("..", work.join("up")).unwrap();
        symlink("../workbook", work.join("sibling")).unwrap();
        symlink("a/b/file", work.join("inner")).unwrap();
        let root = open_dir(&work).unwrap();
        for way in [open_file, step_by_step] {
            let open = |path: &str| read(way(root.as_fd(), &RelativePath::parse(path).unwrap()));
            assert_eq!(open("a/b/file").unwrap(), "inside");
            for bad in [
                "link",
                "up/secret",
                "sibling/secret",
                "inner",
                "missing",
                "a/b/file/x",
            ] {
                assert!(open(bad).is_err(), "{bad}");
            }
        }
    }

    #[test]
    fn a_fifo_does_not_make_us_wait() {
        let dir = tempfile::tempdir().unwrap();
        rustix::fs::mkfifoat(CWD, dir.path().join("fifo"), Mode::RUSR | Mode::WUSR).unwrap();
        let root = open_dir(dir.path()).unwrap();
        let path = RelativePath::parse("fifo").unwrap();
        let opened = open_file(root.as_fd(), &path).unwrap();
        assert!(!opened.metadata().unwrap().is_file());
    }

    #[test]
    fn a_linked_work_folder_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        symlink("/etc", dir.path().join("work")).unwrap();
        assert!(open_dir(&dir.path().join("work")).is_err());
    }
}
