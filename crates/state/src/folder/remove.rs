//! Removes trees that children created: any depth, read-only folders, never through a link.

use std::{
    ffi::CString,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{
        AtFlags, CWD, Dir, FileType, Mode, OFlags, RenameFlags, chmod, openat, renameat_with,
        unlinkat,
    },
    io::Errno,
};
use uuid::Uuid;

/// Removes anything at `path`; no other process may rename the folders above at the same time. Absent is
/// fine.
///
/// Nested folders are first moved up to the top one, so the depth is limited neither by stack nor by
/// descriptors nor by path length. A mount point cannot be moved: it is kept, and an error is returned.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    match unlinkat(CWD, path, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(error) => return Err(error.into()),
    }
    let top = open_forced(CWD, path)?;
    while empty_once(top.as_fd(), top.as_fd())? {}
    unlinkat(CWD, path, AtFlags::REMOVEDIR)?;
    Ok(())
}

/// Makes a folder readable and writable, whatever mode its owner (a child with our uid) set.
pub fn unlock_dir(path: &Path) -> io::Result<()> {
    open_forced(CWD, path).map(drop)
}

fn open_forced<P: rustix::path::Arg>(parent: BorrowedFd<'_>, name: P) -> io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let found = openat(parent, name, flags | OFlags::PATH, Mode::empty())?;
    // fchmod does not work on O_PATH, and chmod by name would follow a link.
    let magic = format!("/proc/self/fd/{}", found.as_raw_fd());
    // If this matters, the next step fails.
    let _ = chmod(magic, Mode::RWXU);
    let readable = openat(&found, c".", flags | OFlags::RDONLY, Mode::empty())?;
    Ok(readable)
}

/// Removes the files of `dir` and moves its folders to `top`. Returns whether there were any entries.
fn empty_once(dir: BorrowedFd<'_>, top: BorrowedFd<'_>) -> io::Result<bool> {
    let is_top = dir.as_raw_fd() == top.as_raw_fd();
    let mut any = false;
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        any = true;
        let is_dir = entry.file_type() == FileType::Directory;
        // Most of the folders that the bridge creates are empty.
        let kind = if is_dir {
            AtFlags::REMOVEDIR
        } else {
            AtFlags::empty()
        };
        if unlinkat(dir, name, kind).is_ok() {
            continue;
        }
        let moved = CString::new(Uuid::new_v4().to_string())?;
        let inner = open_forced(dir, name)?;
        renameat_with(dir, name, top, &moved, RenameFlags::NOREPLACE).or_else(
            |error| match error {
                // Not every filesystem supports the flag; the name is random anyway.
                Errno::INVAL => rustix::fs::renameat(dir, name, top, &moved),
                other => Err(other),
            },
        )?;
        if is_top {
            empty_once(inner.as_fd(), top)?;
            unlinkat(top, &moved, AtFlags::REMOVEDIR)?;
        }
    }
    Ok(any)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    #[test]
    fn removes_read_only_folders_and_spares_what_links_point_to() {
        let dir = tempfile::tempdir().unwrap();
        let (tree, outside) = (dir.path().join("tree"), dir.path().join("outside"));
        fs::create_dir_all(tree.join("a/b")).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("keep"), "x").unwrap();
        fs::write(tree.join("a/b/file"), "x").unwrap();
        std::os::unix::fs::symlink(&outside, tree.join("a/link")).unwrap();
        for locked in ["a/b", "a"] {
            fs::set_permissions(tree.join(locked), fs::Permissions::from_mode(0o000)).unwrap();
        }
        remove_tree(&tree).unwrap();
        assert!(!tree.exists());
        assert!(outside.join("keep").exists());
    }

    #[test]
    fn removes_a_tree_deeper_than_any_path_or_descriptor_limit() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir(&tree).unwrap();
        let name = "d".repeat(100);
        let mut here = rustix::fs::open(&tree, OFlags::DIRECTORY, Mode::empty()).unwrap();
        for _ in 0..1100 {
            rustix::fs::mkdirat(&here, name.as_str(), Mode::RWXU).unwrap();
            here = openat(&here, name.as_str(), OFlags::DIRECTORY, Mode::empty()).unwrap();
        }
        remove_tree(&tree).unwrap();
        assert!(!tree.exists());
    }

    #[test]
    fn removes_the_link_and_not_its_target() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("target")).unwrap();
        std::os::unix::fs::symlink(dir.path().join("target"), dir.path().join("link")).unwrap();
        remove_tree(&dir.path().join("link")).unwrap();
        assert!(dir.path().join("target").exists());
        assert!(!dir.path().join("link").is_symlink());
    }
}
