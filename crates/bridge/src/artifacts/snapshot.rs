//! Snapshots of a workspace: the difference of two shows what a call created or changed.
//!
//! Files in `work/` are published whenever a call changed them. The snapshot also contains files that are
//! published only if the call names them ([`Place`]): hidden files of `work/`, and `home/` and `tmp/`.

use std::{
    collections::{BTreeMap, HashMap},
    ffi::OsStr,
    hash::{DefaultHasher, Hash, Hasher},
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use bridge_model::Job;
use rustix::{
    fs::{AtFlags, Dir, FileType, Stat, fstat, statat},
    io::Errno,
};

use super::{Area, Place, RelativePath, paths, sqlite};

/// Caches of tools: never published, including their content.
const SKIPPED_NAMES: [&str; 2] = ["__pycache__", "node_modules"];

/// Caches outside the plain files of `work/`, never published either.
const CACHE_NAMES: [&str; 7] = [
    ".git",
    ".npm",
    ".tox",
    ".venv",
    ".yarn",
    ".pnpm-store",
    "site-packages",
];

/// Never published: hidden files, and the locks that office programs put beside an open document.
const SKIPPED_PREFIXES: [&str; 2] = [".", "~$"];

/// Files that are still being written: never published.
const SKIPPED_SUFFIXES: [&str; 3] = [".tmp", ".part", ".crdownload"];

/// The limits of a scan. A workspace that exceeds them is full (507).
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Number of files, folders and other entries.
    pub entries: u64,
    /// Nesting depth of folders.
    pub depth: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            entries: 100_000,
            depth: 64,
        }
    }
}

/// The disk usage of a workspace, hidden and skipped files included.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Allocated bytes: a sparse file counts by its blocks.
    pub bytes: u64,
    /// Number of files, folders and other entries.
    pub entries: u64,
}

/// The state of one regular file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct FileState {
    pub(super) size: u64,
    modified: (i64, i64),
    /// Changes with every write, even if a program sets the mtime back.
    changed: (i64, i64),
    identity: Identity,
    /// For a database: a hash that changes with its log or journal.
    sidecars: u64,
}

/// Device and inode.
type Identity = (u64, u64);

/// A regular file that may be published.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    pub(super) state: FileState,
    pub(super) allocated: u64,
}

/// The regular files that may be published, by path, and the disk usage of the workspace.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// The disk usage of the workspace; the entries are those of `work/`.
    pub usage: Usage,
    /// The part of the bytes that is in `home/` and `tmp/`.
    pub aside_bytes: u64,
    pub(super) files: BTreeMap<Place, Entry>,
    /// Files that are published only if a call names them. Caches are left out.
    pub(super) aside: BTreeMap<Place, Entry>,
    /// The allocated bytes of the other entries, if the walk records them.
    pub(super) others: BTreeMap<Place, u64>,
    /// The number of names in this workspace of each file with hard links.
    pub(super) names: HashMap<Identity, u64>,
    /// Whether `work/` exceeds the limits of a scan.
    pub over: bool,
    /// Why `home/` or `tmp/` exceeds them, if it does: nothing of that part is in `aside`.
    pub over_aside: Option<String>,
}

/// Why no snapshot was taken.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// A limit on entries was exceeded.
    #[error(
        "the workspace contains more than {0} files (MCPO_MAX_WORKSPACE_FILES): delete some of them"
    )]
    TooManyEntries(u64),
    /// The limit on the depth was exceeded.
    #[error("the workspace contains folders nested more than {0} levels deep: delete them")]
    TooDeep(usize),
    /// The folder itself cannot be read.
    #[error("the workspace cannot be read: {0}")]
    Io(#[from] io::Error),
}

impl Snapshot {
    /// Scans `work` alone, without following links or entering other filesystems. Entries that are
    /// removed meanwhile, or cannot be read, are left out.
    pub fn take(work: &Path, limits: &Limits) -> Result<Self, SnapshotError> {
        let mut found = Self::default();
        found.walk(work, Area::Work, limits, None)?;
        Ok(found)
    }

    /// Scans all folders that a workspace's children may write to. Only `work/` must be readable and
    /// within the limits; errors of the other folders are in [`Snapshot::over_aside`].
    pub fn look(job: &Job, limits: &Limits) -> Result<Self, SnapshotError> {
        Self::look_with(job, limits, None)
    }

    /// The same; `entered` is called with each folder before its entries are read.
    pub(super) fn look_with(
        job: &Job,
        limits: &Limits,
        mut entered: Option<&mut Entered<'_>>,
    ) -> Result<Self, SnapshotError> {
        let mut found = Self::default();
        found.walk(&job.work(), Area::Work, limits, entered.as_deref_mut())?;
        for area in [Area::Home, Area::Tmp] {
            let before = found.usage.bytes;
            let walked = found.walk(&area.folder_in(job), area, limits, entered.as_deref_mut());
            found.aside_bytes += found.usage.bytes - before;
            let what = match walked {
                // A child may have removed the folder.
                Ok(()) | Err(SnapshotError::Io(_)) => continue,
                Err(SnapshotError::TooDeep(most)) => {
                    format!("folders nested more than {most} levels deep")
                }
                Err(SnapshotError::TooManyEntries(most)) => {
                    format!("more than {most} files (MCPO_MAX_WORKSPACE_FILES)")
                }
            };
            found.aside.retain(|place, _| place.area != area);
            found.over_aside = Some(format!("the chat's {} contains {what}", area.name()));
        }
        Ok(found)
    }

    fn walk(
        &mut self,
        root: &Path,
        area: Area,
        limits: &Limits,
        entered: Option<&mut Entered<'_>>,
    ) -> Result<(), SnapshotError> {
        let top = paths::open_dir(root)?;
        let root = top.try_clone()?;
        self.walk_below(top, (area, None), limits, entered)?;
        self.join_databases(root.as_fd(), area);
        Ok(())
    }

    /// Adds the content of a folder, without that of other filesystems.
    pub(super) fn walk_below(
        &mut self,
        folder: OwnedFd,
        (area, path): (Area, Option<RelativePath>),
        limits: &Limits,
        entered: Option<&mut Entered<'_>>,
    ) -> Result<(), SnapshotError> {
        let mut walk = Walk {
            device: fstat(&folder).map_err(io::Error::from)?.st_dev,
            limits,
            area,
            entries: 0,
            found: self,
            entered,
        };
        walk.run(folder, path)
    }

    /// The snapshot of a tree that exceeds the limits. Compared with it, nothing counts as changed,
    /// because its files are unknown.
    pub fn over() -> Self {
        Self {
            over: true,
            ..Self::default()
        }
    }

    /// Adds a file that no call created, so that it is not new in the next snapshot.
    pub fn note(&mut self, work: &Path, path: &RelativePath) -> io::Result<()> {
        let top = paths::open_dir(work)?;
        let stat = fstat(paths::open_file(top.as_fd(), path)?)?;
        self.usage.entries += 1;
        self.usage.bytes += allocated(&stat);
        self.files.insert(Place::work(path.clone()), entry(&stat));
        Ok(())
    }

    /// Whether there is a publishable file at this path.
    pub fn has(&self, place: &Place) -> bool {
        self.files.contains_key(place)
    }

    /// The publishable files, in order of path.
    pub fn files(&self) -> impl Iterator<Item = &RelativePath> {
        self.files.keys().map(|place| &place.path)
    }

    /// The same with their sizes in bytes.
    pub fn sizes(&self) -> impl Iterator<Item = (&RelativePath, u64)> {
        let files = self.files.iter();
        files.map(|(place, entry)| (&place.path, entry.state.size))
    }

    /// The number of names that a file with hard links has in the workspace.
    pub(super) fn names_of(&self, file: &Stat) -> u64 {
        self.names.get(&identity(file)).copied().unwrap_or(0)
    }

    /// The files that are published so.
    pub(super) fn offered(&mut self, offer: Offer) -> Option<&mut BTreeMap<Place, Entry>> {
        match offer {
            Offer::Always => Some(&mut self.files),
            Offer::Named => Some(&mut self.aside),
            Offer::Never => None,
        }
    }

    /// Treats a database and its companion files as one file: a log or journal is not published by
    /// itself, and a change of it is a change of the database.
    fn join_databases(&mut self, root: BorrowedFd<'_>, area: Area) {
        let kind = |place: &Place| (place.area == area).then(|| sqlite::kind(root, &place.path))?;
        join(&mut self.files, kind);
        join(&mut self.aside, kind);
    }
}

/// `kind` returns the role of a file for `SQLite` and reads it.
fn join(files: &mut BTreeMap<Place, Entry>, kind: impl Fn(&Place) -> Option<sqlite::Kind>) {
    let candidates = files.keys().filter_map(|key| {
        let main = key.path.sibling(sqlite::main_name(&key.path)?);
        Some((key.clone(), key.area.file(main)))
    });
    for (key, main) in candidates.collect::<Vec<_>>() {
        let of_database = files.contains_key(&main) && kind(&main) == Some(sqlite::Kind::Database);
        if !of_database && kind(&key) != Some(sqlite::Kind::Companion) {
            continue;
        }
        let own = files.remove(&key);
        // The index of a log changes even if the database is only read.
        if !sqlite::is_index(&key.path)
            && let (Some(own), Some(main)) = (own, files.get_mut(&main))
        {
            let mut hash = DefaultHasher::new();
            (own.state, main.state.sidecars).hash(&mut hash);
            main.state.sidecars = hash.finish();
        }
    }
}

/// Regular files that are new in `new` or differ from `old` in size, mtime, ctime or inode, in
/// order of path. A touched file counts as changed: content is not compared.
pub fn changed(old: &Snapshot, new: &Snapshot) -> Vec<Place> {
    if old.over {
        return Vec::new();
    }
    differing(&old.files, &new.files)
}

/// The same for files that are published only if a call names them.
pub fn changed_aside(old: &Snapshot, new: &Snapshot) -> Vec<Place> {
    if old.over || old.over_aside.is_some() {
        return Vec::new();
    }
    differing(&old.aside, &new.aside)
}

fn differing(old: &BTreeMap<Place, Entry>, new: &BTreeMap<Place, Entry>) -> Vec<Place> {
    let differs =
        |(key, entry): &(&Place, &Entry)| old.get(*key).map(|old| old.state) != Some(entry.state);
    let changed = new.iter().filter(differs);
    changed.map(|(key, _)| key.clone()).collect()
}

/// A folder on the current path of the scan.
struct Folder {
    entries: Dir,
    handle: OwnedFd,
    path: Option<RelativePath>,
    offer: Offer,
}

/// Called with a folder: its area, its path in the area, and its descriptor.
pub(super) type Entered<'a> = dyn FnMut(Area, Option<&RelativePath>, BorrowedFd<'_>) + 'a;

/// When a file is published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Offer {
    /// Whenever a call changed it.
    Always,
    /// Only if the call names it.
    Named,
    /// Never; it only counts for the usage.
    Never,
}

struct Walk<'a, 'b> {
    device: u64,
    limits: &'a Limits,
    area: Area,
    entries: u64,
    found: &'a mut Snapshot,
    entered: Option<&'a mut Entered<'b>>,
}

impl Walk<'_, '_> {
    /// Holds one descriptor for each level, so `limits.depth` bounds them.
    fn run(&mut self, top: OwnedFd, path: Option<RelativePath>) -> Result<(), SnapshotError> {
        let depth = path.iter().flat_map(|path| path.as_path().iter()).count();
        self.enter(path.as_ref(), top.as_fd());
        let mut open = vec![Folder {
            entries: Dir::read_from(&top).map_err(io::Error::from)?,
            handle: top,
            offer: offer_at(self.area, path.as_ref()),
            path,
        }];
        while let Some(folder) = open.last_mut() {
            // If reading a folder fails, the folder counts as removed.
            let Some(Ok(entry)) = folder.entries.read() else {
                open.pop();
                continue;
            };
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            if let Some(inner) = self.visit(folder, name)? {
                if depth + open.len() > self.limits.depth {
                    return Err(SnapshotError::TooDeep(self.limits.depth));
                }
                self.enter(inner.path.as_ref(), inner.handle.as_fd());
                open.push(inner);
            }
        }
        Ok(())
    }

    /// Counts an entry; if it is a folder, returns it to be scanned.
    fn visit(
        &mut self,
        folder: &Folder,
        name: &std::ffi::CStr,
    ) -> Result<Option<Folder>, SnapshotError> {
        let Ok(stat) = statat(&folder.handle, name, AtFlags::SYMLINK_NOFOLLOW) else {
            return Ok(None);
        };
        self.entries += 1;
        if self.area == Area::Work {
            self.found.usage.entries += 1;
        }
        if self.entries > self.limits.entries {
            return Err(SnapshotError::TooManyEntries(self.limits.entries));
        }
        let os_name = OsStr::from_bytes(name.to_bytes());
        let offer = offer_of(os_name, folder.offer);
        let path = || RelativePath::entry(folder.path.as_ref(), os_name);
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                self.found.usage.bytes += allocated(&stat);
                self.record(path, allocated(&stat));
                Ok(self.go_down(folder, name, path(), offer))
            }
            FileType::RegularFile => {
                self.count_file(&stat);
                match self.found.offered(offer) {
                    Some(files) => drop(files.insert(self.area.file(path()), entry(&stat))),
                    None => self.record(path, allocated(&stat)),
                }
                Ok(None)
            }
            _ => {
                self.record(path, 0);
                Ok(None)
            }
        }
    }

    fn enter(&mut self, path: Option<&RelativePath>, folder: BorrowedFd<'_>) {
        if let Some(entered) = &mut self.entered {
            entered(self.area, path, folder);
        }
    }

    fn record(&mut self, path: impl Fn() -> RelativePath, allocated: u64) {
        if self.entered.is_some() {
            let place = self.area.file(path());
            self.found.others.insert(place, allocated);
        }
    }

    fn count_file(&mut self, stat: &Stat) {
        if stat.st_nlink > 1 {
            let names = self.found.names.entry(identity(stat)).or_default();
            *names += 1;
            if *names > 1 {
                return;
            }
        }
        self.found.usage.bytes += allocated(stat);
    }

    fn go_down(
        &self,
        folder: &Folder,
        name: &std::ffi::CStr,
        path: RelativePath,
        offer: Offer,
    ) -> Option<Folder> {
        let open = || -> Result<_, Errno> {
            let handle = paths::dir_at(folder.handle.as_fd(), name)?;
            // A mount in a workspace belongs to the administrator; its files are not created by calls.
            let inside = fstat(&handle)?.st_dev == self.device;
            inside
                .then(|| Dir::read_from(&handle).map(|entries| (entries, handle)))
                .transpose()
        };
        let (entries, handle) = open().ok()??;
        Some(Folder {
            entries,
            handle,
            path: Some(path),
            offer,
        })
    }
}

/// When an entry at this path is published, or one of the top folder.
pub(super) fn offer_at(area: Area, path: Option<&RelativePath>) -> Offer {
    let top = match area {
        Area::Work => Offer::Always,
        Area::Home | Area::Tmp => Offer::Named,
    };
    let names = path.into_iter().flat_map(|path| path.as_path().iter());
    names.fold(top, |folder, name| offer_of(name, folder))
}

/// When an entry with this name is published; `folder` is the rule of its folder.
fn offer_of(name: &OsStr, folder: Offer) -> Offer {
    let name = name.as_bytes();
    let ends = |suffix: &str| {
        let start = name.len().checked_sub(suffix.len());
        start.is_some_and(|start| name[start..].eq_ignore_ascii_case(suffix.as_bytes()))
    };
    if SKIPPED_NAMES.iter().any(|skip| name == skip.as_bytes()) {
        return Offer::Never;
    }
    let hidden = SKIPPED_PREFIXES
        .iter()
        .any(|skip| name.starts_with(skip.as_bytes()))
        || SKIPPED_SUFFIXES.iter().any(|skip| ends(skip));
    let offer = if hidden {
        folder.max(Offer::Named)
    } else {
        folder
    };
    // `.cache`, `Code Cache`, `_cacache`, `.pytest_cache`; a plain folder of this name is the user's.
    let cache = ["cache", "caches"].iter().any(|end| ends(end))
        || CACHE_NAMES.iter().any(|skip| name == skip.as_bytes());
    if offer == Offer::Named && cache {
        return Offer::Never;
    }
    offer
}

pub(super) fn allocated(stat: &Stat) -> u64 {
    u64::try_from(stat.st_blocks)
        .unwrap_or(0)
        .saturating_mul(512)
}

fn identity(stat: &Stat) -> Identity {
    (stat.st_dev, stat.st_ino)
}

pub(super) fn entry(stat: &Stat) -> Entry {
    Entry {
        state: state(stat),
        allocated: allocated(stat),
    }
}

/// The integer types of these fields differ by platform.
#[allow(clippy::useless_conversion, clippy::cast_possible_wrap)]
pub(super) fn state(stat: &Stat) -> FileState {
    FileState {
        size: u64::try_from(stat.st_size).unwrap_or(0),
        modified: (stat.st_mtime, stat.st_mtime_nsec as i64),
        changed: (stat.st_ctime, stat.st_ctime_nsec as i64),
        identity: identity(stat),
        sidecars: 0,
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        fs::File,
        os::unix::fs::symlink,
        time::{Duration, SystemTime},
    };

    use bridge_model::JobId;

    use super::*;

    fn look(work: &Path) -> Snapshot {
        Snapshot::take(work, &Limits::default()).unwrap()
    }

    fn names(changed: &[Place]) -> Vec<String> {
        changed.iter().map(Place::display).collect()
    }

    #[test]
    fn created_and_changed_files_are_found_at_any_depth() {
        let dir = tempfile::tempdir().unwrap();
        let work = dir.path();
        fs::create_dir_all(work.join("a/b/c")).unwrap();
        for name in ["same", "a/edited", "deleted"] {
            fs::write(work.join(name), "one").unwrap();
        }
        let before = look(work);
        fs::write(work.join("a/edited"), "two!").unwrap();
        fs::write(work.join("a/b/c/新しい.txt"), "new").unwrap();
        fs::remove_file(work.join("deleted")).unwrap();
        let found = changed(&before, &look(work));
        assert_eq!(names(&found), ["a/b/c/新しい.txt", "a/edited"]);
        assert_eq!(changed(&before, &before), []);
    }

    #[test]
    fn same_size_same_mtime_is_still_found() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a");
        let past = SystemTime::now() - Duration::from_hours(1);
        let write = |text: &str| {
            fs::write(&file, text).unwrap();
            File::options()
                .write(true)
                .open(&file)
                .unwrap()
                .set_modified(past)
                .unwrap();
        };
        write("one");
        let before = look(dir.path());
        // The ctime clock advances with the kernel's timer, so wait for its next tick instead of a fixed
        // time.
        while {
            write("two");
            changed(&before, &look(dir.path())).is_empty()
        } {}
        let after = look(dir.path());
        let old = before.files.values().next().unwrap();
        let new = after.files.values().next().unwrap();
        let (old, new) = (old.state, new.state);
        assert_eq!((old.size, old.modified), (new.size, new.modified));
    }

    #[test]
    fn saving_by_rename_is_found() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("book.xlsx.tmp"), "one").unwrap();
        let before = look(dir.path());
        fs::rename(
            dir.path().join("book.xlsx.tmp"),
            dir.path().join("book.xlsx"),
        )
        .unwrap();
        assert_eq!(names(&changed(&before, &look(dir.path()))), ["book.xlsx"]);
    }

    #[test]
    fn hidden_partial_and_lock_files_are_counted_and_not_named() {
        let dir = tempfile::tempdir().unwrap();
        for folder in [".git", "node_modules/x", "__pycache__"] {
            fs::create_dir_all(dir.path().join(folder)).unwrap();
        }
        let skipped = [
            ".git/config",
            "node_modules/x/a.js",
            "__pycache__/a.pyc",
            ".hidden",
            "~$book.xlsx",
            ".~lock.book.ods#",
            "a.TMP",
            "b.part",
            "c.crdownload",
        ];
        for name in skipped {
            fs::write(dir.path().join(name), "x").unwrap();
        }
        fs::write(dir.path().join("tmp"), "x").unwrap();
        let found = look(dir.path());
        assert_eq!(
            found.files().map(RelativePath::display).collect::<Vec<_>>(),
            ["tmp"]
        );
        assert_eq!(found.usage.entries, 9 + 4 + 1);
    }

    #[test]
    fn links_fifos_and_sockets_are_not_files() {
        let dir = tempfile::tempdir().unwrap();
        let work = dir.path().join("work");
        fs::create_dir(&work).unwrap();
        fs::write(dir.path().join("secret"), "x").unwrap();
        symlink("../secret", work.join("link")).unwrap();
        symlink("..", work.join("up")).unwrap();
        symlink("loop", work.join("loop")).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, work.join("fifo"), rustix::fs::Mode::RUSR).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(work.join("socket")).unwrap();
        assert_eq!(look(&work).files().count(), 0);
        symlink(&work, dir.path().join("linked")).unwrap();
        assert!(Snapshot::take(&dir.path().join("linked"), &Limits::default()).is_err());
    }

    #[test]
    fn odd_names_do_no_harm() {
        let dir = tempfile::tempdir().unwrap();
        for name in [&b"bad\xff.txt"[..], b"line\r\nbreak.txt"] {
            fs::write(dir.path().join(OsStr::from_bytes(name)), "x").unwrap();
        }
        let found = changed(&Snapshot::default(), &look(dir.path()));
        assert_eq!(names(&found), ["bad\u{fffd}.txt", "line__break.txt"]);
    }

    #[test]
    fn usage_counts_blocks_and_hard_links_once() {
        let dir = tempfile::tempdir().unwrap();
        File::create(dir.path().join("sparse"))
            .unwrap()
            .set_len(1 << 40)
            .unwrap();
        let sparse = look(dir.path()).usage.bytes;
        assert!(sparse < 1 << 20);
        fs::write(dir.path().join("full"), vec![1; 1 << 20]).unwrap();
        File::open(dir.path().join("full"))
            .unwrap()
            .sync_all()
            .unwrap();
        let one = look(dir.path()).usage.bytes;
        assert!(one >= sparse + (1 << 20));
        fs::hard_link(dir.path().join("full"), dir.path().join("again")).unwrap();
        let two = look(dir.path()).usage;
        assert_eq!((two.bytes, two.entries), (one, 3));
    }

    #[test]
    fn limits_hold() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("1/2/3")).unwrap();
        let take = |entries, depth| Snapshot::take(dir.path(), &Limits { entries, depth });
        assert!(take(3, 3).is_ok());
        assert!(matches!(take(2, 3), Err(SnapshotError::TooManyEntries(2))));
        assert!(matches!(take(3, 2), Err(SnapshotError::TooDeep(2))));
    }

    #[test]
    fn what_is_hidden_or_beside_the_work_is_kept_apart_and_caches_are_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let job = Job::below(dir.path(), dir.path(), JobId::random());
        for folder in [job.work(), job.home(), job.tmp()] {
            fs::create_dir_all(folder).unwrap();
        }
        let before = Snapshot::look(&job, &Limits::default()).unwrap();
        let put = |path: &str| {
            let path = job.folder().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        };
        for path in [
            "work/plain/cache/a",
            "work/.out/b",
            "work/c.part",
            "work/node_modules/d",
            "work/.x/Code Cache/e",
            "home/f",
            "home/.cache/g",
            "tmp/h/i",
            "tmp/.pytest_cache/j",
        ] {
            put(path);
        }
        let after = Snapshot::look(&job, &Limits::default()).unwrap();
        let plain: Vec<_> = after.files().map(|path| path.display()).collect();
        assert_eq!(plain, ["plain/cache/a"]);
        let aside = changed_aside(&before, &after);
        let aside: Vec<_> = aside.iter().map(Place::display).collect();
        assert_eq!(aside, [".out/b", "c.part", "home/f", "tmp/h/i"]);
        assert_eq!(changed_aside(&after, &after), []);
        assert!(after.aside_bytes > 0 && after.aside_bytes < after.usage.bytes);
    }
}
