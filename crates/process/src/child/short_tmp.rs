//! Short names for the folders of temporary files.
//!
//! The path of a Unix socket has at most 107 bytes, and programs create theirs several folders
//! below `TMPDIR`. A chat's own `tmp/` is too deep for that, so its children get a symbolic link to
//! it of at most [`LONGEST`] bytes: their files are still on the volume of the jobs folder, and
//! count there.
//!
//! ```text
//! /tmp/mb-k3x9qa/      0700, locked by this bridge as long as it runs
//!   1 -> {MCPO_JOBS_DIR}/{job-id}/tmp
//! ```
//! A link is removed with the last child of its workspace, the folder with the bridge. The folder
//! of a bridge that was killed is removed by the next bridge, because its lock is then free. (The
//! lock also prevents `systemd-tmpfiles` from removing the folder.)

use std::{
    collections::HashMap,
    fs, io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::DirBuilderExt,
    },
    path::{Path, PathBuf},
    sync::{Arc, Weak},
};

use bridge_model::{Job, JobId};
use parking_lot::Mutex;
use rustix::{
    fs::{
        AtFlags, CWD, Dir, FileType, FlockOperation, Mode, OFlags, flock, fstat, openat, statat,
        symlinkat, unlinkat,
    },
    process::geteuid,
};

/// Maximum size of a `TMPDIR`, in bytes.
pub const LONGEST: usize = 24;
/// Where the folder may be created, in order of preference.
const BASES: [&str; 3] = ["/tmp", "/var/tmp", "/dev/shm"];
const PREFIX: &str = "mb-";
const RANDOM: usize = 6;
const ATTEMPTS: usize = 16;

/// The short names of one bridge's workspaces.
#[derive(Default)]
pub struct ShortTmp {
    state: Mutex<Names>,
}

#[derive(Default)]
struct Names {
    folder: Option<Arc<Folder>>,
    /// Whether the warning that none could be created was logged.
    warned: bool,
    number: u64,
    by_job: HashMap<JobId, Weak<ShortName>>,
}

/// A folder of links, which is removed when this is dropped.
struct Folder {
    path: PathBuf,
    handle: OwnedFd,
}

/// A link to a workspace's `tmp/`, which is removed when this is dropped.
pub struct ShortName {
    path: PathBuf,
    folder: Arc<Folder>,
}

impl ShortName {
    /// The link.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl ShortTmp {
    /// The short name of a workspace's `tmp/`, the same for all its children; `None` if its path is
    /// short enough, or no folder can be created. Blocks on the disk.
    pub fn name_for(&self, job: &Job) -> Option<Arc<ShortName>> {
        let target = job.tmp();
        if target.as_os_str().len() <= LONGEST {
            return None;
        }
        let mut state = self.state.lock();
        if let Some(name) = state.by_job.get(&job.id()).and_then(Weak::upgrade) {
            return Some(name);
        }
        match state.make(&target) {
            Ok(name) => {
                let name = Arc::new(name);
                state.by_job.retain(|_, name| name.strong_count() > 0);
                state.by_job.insert(job.id(), Arc::downgrade(&name));
                Some(name)
            }
            Err(error) => {
                if !std::mem::replace(&mut state.warned, true) {
                    tracing::warn!(
                        %error,
                        "cannot create a short TMPDIR in /tmp, /var/tmp or /dev/shm: servers with \
                         Unix sockets in it may fail"
                    );
                }
                None
            }
        }
    }

    /// Removes all links; called when no child uses one.
    pub fn close(&self) {
        if let Some(folder) = self.state.lock().folder.take() {
            folder.remove();
        }
    }
}

impl Names {
    fn make(&mut self, target: &Path) -> io::Result<ShortName> {
        // Another program may have removed the folder.
        self.folder.take_if(|folder| !folder.is_there());
        let folder = match &self.folder {
            Some(folder) => folder.clone(),
            None => self.folder.insert(Arc::new(Folder::make()?)).clone(),
        };
        loop {
            self.number += 1;
            if folder.link(self.number).as_os_str().len() > LONGEST {
                self.number = 1;
            }
            match symlinkat(target, &folder.handle, self.number.to_string()) {
                Ok(()) => {
                    let path = folder.link(self.number);
                    return Ok(ShortName { path, folder });
                }
                Err(rustix::io::Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl Drop for ShortName {
    fn drop(&mut self) {
        let name = self.path.file_name().unwrap_or_default();
        let _ = unlinkat(&self.folder.handle, name, AtFlags::empty());
    }
}

impl Folder {
    fn make() -> io::Result<Self> {
        let mut failure = io::Error::from(io::ErrorKind::NotFound);
        for base in BASES.map(Path::new) {
            sweep(base);
            match Self::make_in(base) {
                Ok(folder) => return Ok(folder),
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    fn make_in(base: &Path) -> io::Result<Self> {
        for _ in 0..ATTEMPTS {
            let random = uuid::Uuid::new_v4().simple().to_string();
            let path = base.join(format!("{PREFIX}{}", &random[..RANDOM]));
            match fs::DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(error) => return Err(error),
            }
            // Until it is locked, another bridge that starts may remove it.
            let Ok(handle) = open_dir(&path) else {
                continue;
            };
            let folder = Self { path, handle };
            if lock(&folder.handle) && folder.is_there() {
                return Ok(folder);
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }

    fn remove(&self) {
        if self.is_there() {
            clear(&self.path, &self.handle);
        }
    }

    fn link(&self, number: u64) -> PathBuf {
        self.path.join(number.to_string())
    }

    /// Whether the path still refers to this folder.
    fn is_there(&self) -> bool {
        let named = statat(CWD, &self.path, AtFlags::SYMLINK_NOFOLLOW);
        let held = fstat(&self.handle);
        matches!((named, held), (Ok(named), Ok(held))
            if (named.st_dev, named.st_ino) == (held.st_dev, held.st_ino))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        self.remove();
    }
}

/// Removes the folders of this user's bridges that have ended.
fn sweep(base: &Path) {
    let Ok(entries) = fs::read_dir(base) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(random) = name.to_str().and_then(|name| name.strip_prefix(PREFIX)) else {
            continue;
        };
        let like_ours = random.len() == RANDOM && random.bytes().all(|b| b.is_ascii_alphanumeric());
        if !like_ours {
            continue;
        }
        let path = entry.path();
        let Ok(handle) = open_dir(&path) else {
            continue;
        };
        let own = fstat(&handle).is_ok_and(|stat| {
            stat.st_uid == geteuid().as_raw() && Mode::from_raw_mode(stat.st_mode) == Mode::RWXU
        });
        if own && lock(&handle) {
            tracing::debug!(
                path = %path.display(),
                "stale link directory of a previous bridge deleted"
            );
            clear(&path, &handle);
        }
    }
}

/// Removes a folder that contains only links; any other folder stays.
fn clear(path: &Path, handle: &OwnedFd) {
    for entry in Dir::read_from(handle).into_iter().flatten().flatten() {
        let is_link = statat(handle, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW)
            .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Symlink);
        if is_link {
            let _ = unlinkat(handle, entry.file_name(), AtFlags::empty());
        }
    }
    let _ = unlinkat(CWD, path, AtFlags::REMOVEDIR);
}

fn open_dir(path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
    openat(CWD, path, flags, Mode::empty())
}

fn lock(handle: &OwnedFd) -> bool {
    flock(handle.as_fd(), FlockOperation::NonBlockingLockExclusive).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(within: &Path) -> Job {
        let job = Job::below(within, within, JobId::random());
        fs::create_dir_all(job.tmp()).unwrap();
        job
    }

    #[test]
    fn a_workspace_has_one_short_name_which_leads_to_its_own_folder_and_goes() {
        let dir = tempfile::tempdir().unwrap();
        let (names, job, other) = (ShortTmp::default(), job(dir.path()), job(dir.path()));
        let one = names.name_for(&job).expect("a name");
        assert!(one.path().as_os_str().len() <= LONGEST, "{:?}", one.path());
        fs::write(one.path().join("a"), "x").unwrap();
        assert!(job.tmp().join("a").exists());
        let again = names.name_for(&job).expect("a name");
        assert_eq!(again.path(), one.path());
        let second = names.name_for(&other).expect("a name");
        assert_ne!(second.path(), one.path());
        let folder = one.path().parent().unwrap().to_owned();
        let mode = std::os::unix::fs::MetadataExt::mode(&fs::metadata(&folder).unwrap());
        assert_eq!(mode & 0o777, 0o700);
        let path = one.path().to_owned();
        drop((one, again));
        assert!(!path.is_symlink());
        drop((second, names));
        assert!(!folder.exists());
        assert!(job.tmp().join("a").exists());
    }

    #[test]
    fn only_what_an_ended_bridge_left_is_swept() {
        let base = tempfile::tempdir().unwrap();
        let live = Folder::make_in(base.path()).unwrap();
        symlinkat("/nowhere", &live.handle, "1").unwrap();
        let dead = base.path().join("mb-dead00");
        let strangers = ["mb-x", "mb-ABC.12", "other"].map(|name| base.path().join(name));
        for folder in strangers.iter().chain([&dead]) {
            fs::DirBuilder::new().mode(0o700).create(folder).unwrap();
        }
        std::os::unix::fs::symlink("/nowhere", dead.join("1")).unwrap();
        let open = base.path().join("mb-open00");
        fs::DirBuilder::new().mode(0o755).create(&open).unwrap();
        sweep(base.path());
        assert!(!dead.exists());
        assert!(live.path.join("1").is_symlink());
        assert!(
            strangers
                .iter()
                .chain([&open])
                .all(|folder| folder.exists())
        );
    }

    #[test]
    fn a_folder_that_was_cleared_away_is_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let names = ShortTmp::default();
        let one = names.name_for(&job(dir.path())).expect("a name");
        let folder = one.path().parent().unwrap().to_owned();
        fs::remove_dir_all(&folder).unwrap();
        let two = names.name_for(&job(dir.path())).expect("a name");
        assert_ne!(two.path().parent(), Some(&*folder));
        assert!(two.path().exists());
    }
}
