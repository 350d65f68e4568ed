//! The files of a workspace as the calls have seen them: a look costs what has changed since the last one.
//!
//! ```text
//! walk: watch each folder, then read it ──▶ look: read the events, and the state of the files that
//!   ▲                                             they name or that may be open for writing
//!   └────────────── any doubt ──────────────────────┘
//! ```
//! inotify reports what is created, opened, written, renamed or removed in a watched folder. It does not
//! report writes through a mapping, so a file that was opened since the walk is read in every look: a
//! mapping needs a file that was opened. It reports a file only in the folder by whose name it was opened,
//! so files with several names are not tracked, and neither are databases, whose companions belong to them.
//!
//! Doubts that cause a walk: a lost event, a renamed folder, a file with several names or of a database,
//! too many folders, an exceeded limit, and a filesystem that other hosts or hypervisors may write to.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    ffi::OsStr,
    fs,
    fs::DirEntry,
    io,
    mem::MaybeUninit,
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
    sync::Arc,
};

use bridge_model::Job;
use parking_lot::Mutex;
use rustix::{
    fs::{
        AtFlags, FileType, Stat, fstatfs,
        inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags},
        statat,
    },
    io::Errno,
};

use super::{
    Area, Place, RelativePath, paths,
    snapshot::{
        Entry, FileState, Limits, Offer, Snapshot, SnapshotError, allocated, changed,
        changed_aside, entry, offer_at,
    },
    sqlite,
};

/// The maximum number of watched folders of a workspace. With more, each look is a walk.
const MAX_FOLDERS: usize = 512;

/// The maximum number of events of a workspace between two looks.
const MAX_EVENTS: usize = 10_000;

/// The number of files that may be open before the processes are searched for those that are.
const PRUNE_AT: usize = 512;

/// The size of the buffer for events. Each has 16 bytes and a name.
const BUFFER: usize = 16 * 1024;

/// Filesystems that only this host writes to, by their magic number (`statfs(2)`): ext2 to ext4, XFS, Btrfs,
/// ZFS, F2FS, tmpfs and overlayfs.
const LOCAL: [u32; 7] = [
    0xef53,
    0x5846_5342,
    0x9123_683e,
    0x2fc1_2fc1,
    0xf2f5_2010,
    0x0102_1994,
    0x794c_7630,
];

/// The files of a workspace: their state at the last look, and what changed since the last call.
#[derive(Debug, Default)]
pub struct TrackedFiles {
    now: Snapshot,
    /// The files that differ from the state in which the last call left them, with that state.
    earlier: BTreeMap<Place, Option<FileState>>,
    watcher: Option<Arc<Watcher>>,
    watch: Option<Watch>,
    /// Files that were opened since the walk, and so may be open.
    opened: BTreeSet<Place>,
    /// With more of them, those that are not open any more are removed.
    prune_at: usize,
    /// The number of entries of each area.
    entries: BTreeMap<Area, u64>,
}

impl TrackedFiles {
    /// No files yet. Without a watcher each look is a walk.
    pub fn new(watcher: Option<Arc<Watcher>>) -> Self {
        Self {
            watcher,
            ..Self::default()
        }
    }

    /// The files of a workspace in which no process runs. If it exceeds the limits, its files are unknown.
    pub fn open(
        watcher: Option<Arc<Watcher>>,
        job: &Job,
        limits: &Limits,
    ) -> Result<Self, SnapshotError> {
        let mut files = Self::new(watcher);
        match files.look(job, limits) {
            Ok(()) => files.opened.clear(),
            // Only a tool can delete the superfluous files.
            Err(SnapshotError::TooManyEntries(_) | SnapshotError::TooDeep(_)) => files.set_over(),
            Err(error) => return Err(error),
        }
        files.accept();
        Ok(files)
    }

    /// The state at the last look.
    pub fn now(&self) -> &Snapshot {
        &self.now
    }

    /// Reads what has changed since the last look. Blocks on the disk.
    pub fn look(&mut self, job: &Job, limits: &Limits) -> Result<(), SnapshotError> {
        match self.update(job, limits) {
            Some(()) => Ok(()),
            None => self.walk(job, limits),
        }
    }

    /// Forgets the files, because the workspace exceeds the limits. Compared with this state, nothing counts as
    /// changed.
    pub fn set_over(&mut self) {
        self.watch = None;
        self.now = Snapshot::over();
    }

    /// The files that changed since the last call, in order of path: those that are published whenever they
    /// changed, and those that are published only if the call names them. `also` changed earlier and count.
    pub fn changed(&self, also: &[Place]) -> (Vec<Place>, Vec<Place>) {
        let differ = |files: &BTreeMap<Place, Entry>| {
            let mut places: BTreeSet<Place> = BTreeSet::new();
            for (place, earlier) in &self.earlier {
                let state = files.get(place).map(|entry| entry.state);
                if state.is_some() && state != *earlier {
                    places.insert(place.clone());
                }
            }
            places.extend(
                also.iter()
                    .filter(|place| files.contains_key(*place))
                    .cloned(),
            );
            places.into_iter().collect()
        };
        (differ(&self.now.files), differ(&self.now.aside))
    }

    /// Later calls are compared with the present state.
    pub fn accept(&mut self) {
        self.earlier.clear();
    }

    /// Adds a file of `work/` that no call created, so that it is not new for the next call.
    pub fn note(&mut self, work: &Path, path: &RelativePath) -> io::Result<()> {
        self.now.note(work, path)?;
        *self.entries.entry(Area::Work).or_default() += 1;
        self.earlier.remove(&Place::work(path.clone()));
        Ok(())
    }

    fn walk(&mut self, job: &Job, limits: &Limits) -> Result<(), SnapshotError> {
        // It goes on until the new one is complete.
        let mut old = self.watch.take();
        let mut watch = self.watcher.as_ref().and_then(|watcher| {
            let work = paths::open_dir(&job.work()).ok()?;
            is_local(work.as_fd()).then(|| Watch::new(watcher.clone()))
        });
        let new = match &mut watch {
            Some(watch) => {
                let mut entered = |area, path: Option<&RelativePath>, folder: BorrowedFd<'_>| {
                    watch.add(area, path, folder);
                };
                Snapshot::look_with(job, limits, Some(&mut entered))?
            }
            None => Snapshot::look(job, limits)?,
        };
        let changed = changed(&self.now, &new).into_iter();
        let changed: Vec<Place> = changed.chain(changed_aside(&self.now, &new)).collect();
        for place in &changed {
            self.remember(place);
        }
        self.watch = watch.filter(|watch| watch.is_complete() && is_trackable(&new));
        let known = old.as_mut().and_then(Watch::opened);
        match (&self.watch, known) {
            (None, _) => self.opened.clear(),
            (_, Some(opened)) => self.opened.extend(opened.into_iter().chain(changed)),
            (_, None) => self.opened = all(&new).cloned().collect(),
        }
        self.prune_at = PRUNE_AT;
        self.entries.clear();
        for place in all(&new) {
            *self.entries.entry(place.area).or_default() += 1;
        }
        self.now = new;
        Ok(())
    }

    /// Keeps the state of a file before it changes.
    fn remember(&mut self, place: &Place) {
        if !self.earlier.contains_key(place) {
            let entry = self
                .now
                .files
                .get(place)
                .or_else(|| self.now.aside.get(place));
            let state = entry.map(|entry| entry.state);
            self.earlier.insert(place.clone(), state);
        }
    }

    /// Applies the events since the last look; `None` if a walk is necessary.
    fn update(&mut self, job: &Job, limits: &Limits) -> Option<()> {
        let events = self.watch.as_mut()?.take()?;
        if events.files.is_empty() && events.folders.is_empty() && self.opened.is_empty() {
            return Some(());
        }
        let mut folders = Folders::new(job);
        let mut parents = BTreeSet::new();
        self.opened.extend(events.files);
        for place in &events.folders {
            self.forget_below(place);
            self.read(place, &mut folders, &mut parents, limits)?;
        }
        for place in self.opened.clone() {
            self.read(&place, &mut folders, &mut parents, limits)?;
        }
        for place in parents {
            let stat = folders.stat(&place);
            if let (Some(stat), Some(bytes)) = (stat, self.now.others.get_mut(&place)) {
                let old = std::mem::replace(bytes, allocated(&stat));
                self.count(place.area, old, allocated(&stat));
            }
        }
        let now = &self.now;
        self.opened.retain(|place| has(now, place));
        if self.opened.len() > self.prune_at {
            let open = open_files(job);
            self.opened.retain(|place| open.contains(place));
            self.prune_at = PRUNE_AT + 2 * self.opened.len();
        }
        let most = self.entries.values().max().copied().unwrap_or(0);
        (most <= limits.entries).then_some(())
    }

    /// Reads the state of one entry, and the content of a folder that is new.
    fn read(
        &mut self,
        place: &Place,
        folders: &mut Folders<'_>,
        parents: &mut BTreeSet<Place>,
        limits: &Limits,
    ) -> Option<()> {
        let stat = folders.stat(place);
        let kind = stat
            .as_ref()
            .map(|stat| FileType::from_raw_mode(stat.st_mode));
        if kind == Some(FileType::Directory) && self.now.others.contains_key(place) {
            return Some(());
        }
        let known = has(&self.now, place);
        if known != stat.is_some()
            && let Some(parent) = parent(place)
        {
            parents.insert(parent);
        }
        let offer = offer_at(place.area, Some(&place.path));
        match (&stat, kind) {
            (Some(stat), Some(FileType::RegularFile)) => {
                if stat.st_nlink > 1 || sqlite::main_name(&place.path).is_some() {
                    return None;
                }
                let new = entry(stat);
                let old = self
                    .now
                    .offered(offer)
                    .and_then(|files| files.get(place).copied());
                if old.map(|old| old.state) != Some(new.state) && offer != Offer::Never {
                    self.remember(place);
                }
                if old.is_none() {
                    self.remove(place);
                    self.count_entry(place.area);
                }
                let before = old.map_or(0, |old| old.allocated);
                self.count(place.area, before, new.allocated);
                match self.now.offered(offer) {
                    Some(files) => drop(files.insert(place.clone(), new)),
                    None => drop(self.now.others.insert(place.clone(), new.allocated)),
                }
            }
            (Some(stat), Some(kind)) => {
                self.remove(place);
                let bytes = if kind == FileType::Directory {
                    allocated(stat)
                } else {
                    0
                };
                self.count_entry(place.area);
                self.count(place.area, 0, bytes);
                self.now.others.insert(place.clone(), bytes);
                if kind == FileType::Directory {
                    self.read_folder(place, folders, limits)?;
                }
            }
            _ => self.remove(place),
        }
        Some(())
    }

    fn read_folder(
        &mut self,
        place: &Place,
        folders: &mut Folders<'_>,
        limits: &Limits,
    ) -> Option<()> {
        // A folder that cannot be opened has been removed, or is closed to this user: the walk decides.
        let folder = folders.open(place)?;
        let watch = self.watch.as_mut()?;
        let mut found = Snapshot::default();
        let mut entered = |area, path: Option<&RelativePath>, folder: BorrowedFd<'_>| {
            watch.add(area, path, folder);
        };
        let from = (place.area, Some(place.path.clone()));
        let walked = found.walk_below(folder, from, limits, Some(&mut entered));
        if walked.is_err() || !self.watch.as_ref()?.is_complete() || !is_trackable(&found) {
            return None;
        }
        for place in all(&found) {
            self.remove(place);
            self.count_entry(place.area);
        }
        for place in found.files.keys().chain(found.aside.keys()) {
            self.remember(place);
            self.opened.insert(place.clone());
        }
        self.count(place.area, 0, found.usage.bytes);
        self.now.files.append(&mut found.files);
        self.now.aside.append(&mut found.aside);
        self.now.others.append(&mut found.others);
        Some(())
    }

    /// Removes a folder and what is in it.
    fn forget_below(&mut self, folder: &Place) {
        let now = &self.now;
        let below = |place: &&Place| {
            place.area == folder.area && place.path.as_path().starts_with(folder.path.as_path())
        };
        let files = now
            .files
            .range(folder..)
            .map(|(place, _)| place)
            .take_while(below);
        let aside = now
            .aside
            .range(folder..)
            .map(|(place, _)| place)
            .take_while(below);
        let others = now
            .others
            .range(folder..)
            .map(|(place, _)| place)
            .take_while(below);
        let places: Vec<Place> = files.chain(aside).chain(others).cloned().collect();
        for place in &places {
            self.remove(place);
        }
    }

    fn remove(&mut self, place: &Place) {
        if self.now.files.contains_key(place) || self.now.aside.contains_key(place) {
            self.remember(place);
        }
        let file = self
            .now
            .files
            .remove(place)
            .or_else(|| self.now.aside.remove(place));
        let file = file.map(|entry| entry.allocated);
        if let Some(bytes) = file.or_else(|| self.now.others.remove(place)) {
            self.now.usage.entries -= u64::from(place.area == Area::Work);
            *self.entries.entry(place.area).or_default() -= 1;
            self.count(place.area, bytes, 0);
        }
    }

    fn count_entry(&mut self, area: Area) {
        self.now.usage.entries += u64::from(area == Area::Work);
        *self.entries.entry(area).or_default() += 1;
    }

    fn count(&mut self, area: Area, old: u64, new: u64) {
        let change = |bytes: &mut u64| *bytes = (*bytes + new).saturating_sub(old);
        change(&mut self.now.usage.bytes);
        if area != Area::Work {
            change(&mut self.now.aside_bytes);
        }
    }
}

fn all(files: &Snapshot) -> impl Iterator<Item = &Place> {
    let offered = files.files.keys().chain(files.aside.keys());
    offered.chain(files.others.keys())
}

fn has(files: &Snapshot, place: &Place) -> bool {
    files.files.contains_key(place)
        || files.aside.contains_key(place)
        || files.others.contains_key(place)
}

/// Whether events report all changes of these files.
fn is_trackable(files: &Snapshot) -> bool {
    let mut places = files.files.keys().chain(files.aside.keys());
    files.names.is_empty()
        && files.over_aside.is_none()
        && !files.over
        && places.all(|place| sqlite::main_name(&place.path).is_none())
}

fn is_local(folder: BorrowedFd<'_>) -> bool {
    let magic = fstatfs(folder).map(|found| found.f_type);
    magic.is_ok_and(|magic| u32::try_from(magic).is_ok_and(|magic| LOCAL.contains(&magic)))
}

/// The files of a workspace that a process has open or mapped. Processes that this user cannot read, such as
/// the bridge, are omitted.
fn open_files(job: &Job) -> HashSet<Place> {
    let id = job.id().to_string();
    let mut found = HashSet::new();
    let mut note = |path: &[u8]| {
        let path = path.strip_suffix(b" (deleted)").unwrap_or(path);
        let path = Path::new(OsStr::from_bytes(path));
        let mut names = path.iter();
        if names.any(|name| name == OsStr::new(&id))
            && let Some(area) = names.next().and_then(Area::named)
            && let Ok(path) = RelativePath::parse(names.as_path())
        {
            found.insert(area.file(path));
        }
    };
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let is_process = |entry: &DirEntry| entry.file_name().as_bytes()[0].is_ascii_digit();
    for process in processes.filter(is_process) {
        let path = process.path();
        let files = fs::read_dir(path.join("fd"))
            .into_iter()
            .flatten()
            .flatten();
        for target in files.filter_map(|file| fs::read_link(file.path()).ok()) {
            note(target.as_os_str().as_bytes());
        }
        // Lines of six fields; the last is the path.
        let maps = fs::read(path.join("maps")).unwrap_or_default();
        for line in maps.split(|byte| *byte == b'\n') {
            if let Some(start) = line.iter().position(|byte| *byte == b'/') {
                note(&line[start..]);
            }
        }
    }
    found
}

fn parent(place: &Place) -> Option<Place> {
    let path = RelativePath::parse(place.path.as_path().parent()?).ok()?;
    Some(place.area.file(path))
}

/// The folders of a workspace that a look opens, each once. No path leads through a link.
struct Folders<'a> {
    job: &'a Job,
    open: HashMap<(Area, Option<RelativePath>), Option<OwnedFd>>,
}

impl<'a> Folders<'a> {
    fn new(job: &'a Job) -> Self {
        Self {
            job,
            open: HashMap::new(),
        }
    }

    fn stat(&mut self, place: &Place) -> Option<Stat> {
        let name = place.path.as_path().file_name()?;
        let above = parent(place).map(|parent| parent.path);
        let folder = self.folder(place.area, above.as_ref())?;
        statat(folder, name, AtFlags::SYMLINK_NOFOLLOW).ok()
    }

    fn open(&mut self, place: &Place) -> Option<OwnedFd> {
        let name = place.path.as_path().file_name()?;
        let above = parent(place).map(|parent| parent.path);
        let folder = self.folder(place.area, above.as_ref())?;
        paths::dir_at(folder, name).ok()
    }

    fn folder(&mut self, area: Area, path: Option<&RelativePath>) -> Option<BorrowedFd<'_>> {
        let key = (area, path.cloned());
        let job = self.job;
        let folder = self.open.entry(key).or_insert_with(|| {
            let mut folder = paths::open_dir(&area.folder_in(job)).ok()?;
            for name in path.into_iter().flat_map(|path| path.as_path().iter()) {
                folder = paths::dir_at(folder.as_fd(), name).ok()?;
            }
            Some(folder)
        });
        folder.as_ref().map(AsFd::as_fd)
    }
}

// The events of all workspaces, which share one inotify instance: a user has few of them.

/// The inotify instance of this process.
#[derive(Debug)]
pub struct Watcher {
    inotify: OwnedFd,
    watches: Mutex<Watches>,
}

#[derive(Debug, Default)]
struct Watches {
    /// The folder of each watch descriptor, with the number of its workspace.
    folders: HashMap<i32, (u64, Area, Option<RelativePath>)>,
    workspaces: HashMap<u64, Events>,
    last: u64,
}

/// What happened in a workspace since the last look.
#[derive(Debug, Default)]
struct Events {
    /// The watch descriptors of its folders.
    descriptors: HashSet<i32>,
    files: BTreeSet<Place>,
    /// Folders that were created or removed.
    folders: BTreeSet<Place>,
    /// Events were lost.
    lost: bool,
    /// A walk is necessary for another reason.
    doubt: bool,
}

impl Watcher {
    /// `None` if the system has none left.
    pub fn new() -> Option<Arc<Self>> {
        match inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK) {
            Ok(inotify) => Some(Arc::new(Self {
                inotify,
                watches: Mutex::default(),
            })),
            Err(error) => {
                tracing::info!(
                    %error,
                    "workspaces are scanned after each call: no inotify instance \
                     (fs.inotify.max_user_instances)"
                );
                None
            }
        }
    }

    /// Reads all events until now.
    fn read_events(&self, watches: &mut Watches) {
        let mut buffer = [MaybeUninit::uninit(); BUFFER];
        let mut reader = Reader::new(&self.inotify, &mut buffer);
        loop {
            match reader.next() {
                Ok(event) => {
                    let name = event
                        .file_name()
                        .map(|name| OsStr::from_bytes(name.to_bytes()));
                    watches.note(event.wd(), event.events(), name);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => return watches.lose_all(),
            }
        }
    }
}

impl Watches {
    fn lose_all(&mut self) {
        self.workspaces
            .values_mut()
            .for_each(|events| events.lost = true);
    }

    fn note(&mut self, descriptor: i32, what: ReadFlags, name: Option<&OsStr>) {
        if what.contains(ReadFlags::QUEUE_OVERFLOW) {
            return self.lose_all();
        }
        let Some((workspace, area, folder)) = self.folders.get(&descriptor) else {
            return;
        };
        let Some(events) = self.workspaces.get_mut(workspace) else {
            return;
        };
        let Some(name) = name else {
            let changed = ReadFlags::DELETE_SELF | ReadFlags::MOVE_SELF | ReadFlags::ATTRIB;
            events.doubt |= folder.is_none() && what.intersects(changed);
            if what.contains(ReadFlags::IGNORED) {
                events.descriptors.remove(&descriptor);
                self.folders.remove(&descriptor);
            }
            return;
        };
        let place = area.file(RelativePath::entry(folder.as_ref(), name));
        if !what.contains(ReadFlags::ISDIR) {
            events.files.insert(place);
        } else if what.intersects(ReadFlags::CREATE | ReadFlags::DELETE) {
            events.folders.insert(place);
        } else if what.intersects(ReadFlags::MOVED_FROM | ReadFlags::MOVED_TO | ReadFlags::ATTRIB) {
            events.doubt = true;
        }
        if events.files.len() + events.folders.len() > MAX_EVENTS {
            events.files.clear();
            events.folders.clear();
            events.lost = true;
        }
    }
}

/// The watched folders of one workspace.
#[derive(Debug)]
struct Watch {
    watcher: Arc<Watcher>,
    workspace: u64,
    areas: HashSet<Area>,
    failed: bool,
}

impl Watch {
    fn new(watcher: Arc<Watcher>) -> Self {
        let mut watches = watcher.watches.lock();
        watches.last += 1;
        let workspace = watches.last;
        watches.workspaces.insert(workspace, Events::default());
        drop(watches);
        Self {
            watcher,
            workspace,
            areas: HashSet::new(),
            failed: false,
        }
    }

    /// Watches a folder. The walk reads it afterwards, so that no change is missed.
    fn add(&mut self, area: Area, path: Option<&RelativePath>, folder: BorrowedFd<'_>) {
        if self.failed {
            return;
        }
        let flags = WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::MODIFY
            | WatchFlags::ATTRIB
            | WatchFlags::OPEN
            | WatchFlags::MOVED_FROM
            | WatchFlags::MOVED_TO
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF;
        // Its path may lead to another folder by now.
        let own = format!("/proc/self/fd/{}", folder.as_raw_fd());
        let mut watches = self.watcher.watches.lock();
        let added = inotify::add_watch(&self.watcher.inotify, own, flags);
        let workspace = self.workspace;
        let count = watches.workspaces.get_mut(&workspace).map(|events| {
            events.descriptors.extend(added.ok());
            events.descriptors.len()
        });
        match added {
            Ok(descriptor) if count.is_some_and(|count| count <= MAX_FOLDERS) => {
                let folder = (workspace, area, path.cloned());
                watches.folders.insert(descriptor, folder);
                if path.is_none() {
                    self.areas.insert(area);
                }
            }
            _ => self.failed = true,
        }
    }

    fn is_complete(&self) -> bool {
        !self.failed && self.areas.len() == 3
    }

    /// The events since the last call; `None` if a walk is necessary.
    fn take(&mut self) -> Option<Events> {
        let mut watches = self.watcher.watches.lock();
        self.watcher.read_events(&mut watches);
        let events = watches.workspaces.get_mut(&self.workspace)?;
        if self.failed || events.lost || events.doubt {
            return None;
        }
        Some(Events {
            files: std::mem::take(&mut events.files),
            folders: std::mem::take(&mut events.folders),
            ..Events::default()
        })
    }

    /// The files that were opened since the last look; `None` if this is not known.
    fn opened(&mut self) -> Option<BTreeSet<Place>> {
        let mut watches = self.watcher.watches.lock();
        self.watcher.read_events(&mut watches);
        let events = watches.workspaces.get_mut(&self.workspace)?;
        let known = !self.failed && !events.lost;
        known.then(|| std::mem::take(&mut events.files))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut watches = self.watcher.watches.lock();
        let events = watches.workspaces.remove(&self.workspace);
        for descriptor in events.into_iter().flat_map(|events| events.descriptors) {
            // A later watch of the same folder has the same descriptor.
            let own = |folder: &(u64, Area, Option<RelativePath>)| folder.0 == self.workspace;
            if watches.folders.get(&descriptor).is_some_and(own) {
                watches.folders.remove(&descriptor);
                // It fails if the folder is gone.
                let _ = inotify::remove_watch(&self.watcher.inotify, descriptor);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        io::{BufRead as _, BufReader, Seek as _, SeekFrom, Write as _},
        os::unix::fs::{PermissionsExt as _, symlink},
        path::PathBuf,
        process::{Command, Stdio},
        time::{Duration, SystemTime},
    };

    use bridge_model::JobId;

    use super::*;

    fn workspace() -> (tempfile::TempDir, Job) {
        let dir = tempfile::tempdir().unwrap();
        let job = Job::below(dir.path(), dir.path(), JobId::random());
        for folder in [job.work(), job.home(), job.tmp()] {
            fs::create_dir_all(folder).unwrap();
        }
        (dir, job)
    }

    fn tracked(job: &Job) -> TrackedFiles {
        let files = TrackedFiles::open(Watcher::new(), job, &Limits::default()).unwrap();
        let work = paths::open_dir(&job.work()).unwrap();
        assert_eq!(files.watch.is_some(), is_local(work.as_fd()));
        files
    }

    fn states(files: &BTreeMap<Place, Entry>) -> Vec<(String, FileState)> {
        let states = files.iter();
        states
            .map(|(place, entry)| (place.display(), entry.state))
            .collect()
    }

    /// Asserts that a look finds what a walk finds, and returns the changed files.
    #[track_caller]
    fn look(files: &mut TrackedFiles, job: &Job) -> Vec<String> {
        let before = files.now.clone();
        files.look(job, &Limits::default()).unwrap();
        let walked = Snapshot::look(job, &Limits::default()).unwrap();
        assert_eq!(states(&files.now.files), states(&walked.files));
        assert_eq!(states(&files.now.aside), states(&walked.aside));
        assert_eq!(files.now.usage, walked.usage);
        assert_eq!(files.now.aside_bytes, walked.aside_bytes);
        let (mut found, aside) = files.changed(&[]);
        found.extend(aside);
        let mut expected = changed(&before, &walked);
        expected.extend(changed_aside(&before, &walked));
        assert_eq!(found, expected);
        files.accept();
        found.iter().map(Place::display).collect()
    }

    fn is_watched(files: &TrackedFiles) -> bool {
        files.watch.is_some()
    }

    #[test]
    fn a_look_without_changes_reads_no_file_and_changes_are_found_by_their_events() {
        let (_dir, job) = workspace();
        fs::create_dir(job.work().join("a")).unwrap();
        for number in 0..100 {
            fs::write(job.work().join("a").join(number.to_string()), "x").unwrap();
        }
        let mut files = tracked(&job);
        assert_eq!(look(&mut files, &job), [""; 0]);
        assert!(files.opened.is_empty());
        fs::write(job.work().join("a/7"), "changed").unwrap();
        fs::write(job.home().join("new"), "x").unwrap();
        fs::remove_file(job.work().join("a/8")).unwrap();
        assert_eq!(look(&mut files, &job), ["a/7", "home/new"]);
        assert!(!is_watched(&files) || files.opened.len() == 2);
        fs::create_dir_all(job.tmp().join("b/c")).unwrap();
        fs::write(job.tmp().join("b/c/d"), "x").unwrap();
        assert_eq!(look(&mut files, &job), ["tmp/b/c/d"]);
        fs::write(job.tmp().join("b/c/d"), "again").unwrap();
        assert_eq!(look(&mut files, &job), ["tmp/b/c/d"]);
        fs::remove_dir_all(job.tmp().join("b")).unwrap();
        fs::create_dir(job.tmp().join("b")).unwrap();
        fs::write(job.tmp().join("b/e"), "x").unwrap();
        assert_eq!(look(&mut files, &job), ["tmp/b/e"]);
    }

    #[test]
    fn a_file_is_as_the_last_call_left_it_until_its_change_is_accepted() {
        let (_dir, job) = workspace();
        fs::write(job.work().join("a"), "one").unwrap();
        let mut files = tracked(&job);
        fs::write(job.work().join("a"), "three").unwrap();
        files.look(&job, &Limits::default()).unwrap();
        files.look(&job, &Limits::default()).unwrap();
        let a = Place::work(RelativePath::parse("a").unwrap());
        assert_eq!(files.changed(&[]).0, std::slice::from_ref(&a));
        files.accept();
        assert_eq!(files.changed(&[]).0, []);
        assert_eq!(
            files.changed(std::slice::from_ref(&a)).0,
            std::slice::from_ref(&a)
        );
        fs::write(job.work().join("b"), "x").unwrap();
        files
            .note(&job.work(), &RelativePath::parse("b").unwrap())
            .unwrap();
        files.look(&job, &Limits::default()).unwrap();
        assert_eq!(files.changed(&[]).0, []);
        for name in ["a", "b"] {
            fs::remove_file(job.work().join(name)).unwrap();
        }
        assert_eq!(look(&mut files, &job), [""; 0]);
    }

    #[test]
    fn what_events_do_not_tell_is_read_by_a_walk() {
        let (dir, job) = workspace();
        let mut files = tracked(&job);
        let work = job.work();
        fs::write(work.join("a"), "x").unwrap();
        fs::hard_link(work.join("a"), dir.path().join("outside")).unwrap();
        look(&mut files, &job);
        assert!(!is_watched(&files));
        fs::write(dir.path().join("outside"), "by another name").unwrap();
        assert_eq!(look(&mut files, &job), ["a"]);
        fs::remove_file(dir.path().join("outside")).unwrap();
        look(&mut files, &job);
        fs::create_dir(work.join("old")).unwrap();
        fs::write(work.join("old/b"), "x").unwrap();
        look(&mut files, &job);
        fs::rename(work.join("old"), work.join("new")).unwrap();
        assert_eq!(look(&mut files, &job), ["new/b"]);
        fs::write(work.join("new/b"), "in the renamed folder").unwrap();
        assert_eq!(look(&mut files, &job), ["new/b"]);
        fs::rename(&work, dir.path().join("moved")).unwrap();
        fs::create_dir(&work).unwrap();
        fs::write(work.join("c"), "x").unwrap();
        assert_eq!(look(&mut files, &job), ["c"]);
    }

    #[test]
    fn a_file_that_is_open_is_read_in_every_look_and_not_any_more_when_it_is_closed() {
        let (_dir, job) = workspace();
        let mut files = tracked(&job);
        let mut open = File::create(job.work().join("open")).unwrap();
        for number in 0..=PRUNE_AT {
            fs::write(job.work().join(number.to_string()), "x").unwrap();
        }
        look(&mut files, &job);
        if is_watched(&files) {
            let name: Vec<_> = files.opened.iter().map(Place::display).collect();
            assert_eq!(name, ["open"]);
        }
        open.write_all(b"later").unwrap();
        assert_eq!(look(&mut files, &job), ["open"]);
    }

    #[test]
    fn too_many_events_and_folders_are_a_doubt() {
        let (_dir, job) = workspace();
        let mut files = tracked(&job);
        for number in 0..=MAX_EVENTS {
            fs::write(
                job.work().join((number % (MAX_EVENTS + 1)).to_string()),
                "x",
            )
            .unwrap();
        }
        assert_eq!(look(&mut files, &job).len(), MAX_EVENTS + 1);
        for number in 0..MAX_FOLDERS {
            fs::create_dir(job.home().join(number.to_string())).unwrap();
        }
        look(&mut files, &job);
        assert!(!is_watched(&files));
        fs::write(job.home().join("7/x"), "x").unwrap();
        assert_eq!(look(&mut files, &job), ["home/7/x"]);
    }

    /// A sequence of numbers that is the same in each run.
    struct Numbers(u64);

    impl Numbers {
        fn below(&mut self, most: usize) -> usize {
            self.0 = self
                .0
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            usize::try_from(self.0 >> 33).unwrap() % most
        }
    }

    /// The number of the watch: a walk makes another one.
    fn number(files: &TrackedFiles) -> Option<u64> {
        files.watch.as_ref().map(|watch| watch.workspace)
    }

    #[test]
    fn whatever_writers_do_a_look_finds_what_a_walk_finds() {
        let (dir, job) = workspace();
        let mut files = tracked(&job);
        let (watched, mut without_walk) = (is_watched(&files), 0);
        let mut numbers = Numbers(7);
        let mut open: Vec<File> = Vec::new();
        for round in 0..1500 {
            for _ in 0..=numbers.below(4) {
                one_step(&mut numbers, &job, dir.path(), &mut open);
            }
            if round % 3 == 0 {
                open.truncate(3);
            }
            let before = number(&files);
            look(&mut files, &job);
            without_walk += u32::from(before.is_some() && before == number(&files));
        }
        assert!(!watched || without_walk > 300, "{without_walk}");
    }

    /// With `MCPO_HOSTILE_ROUNDS` more rounds: 100,000 take about ten minutes.
    #[test]
    fn what_another_process_does_is_found_as_by_a_walk() {
        let (_dir, job) = workspace();
        let mut files = tracked(&job);
        let script = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../tests/fixtures/hostile_writer.py"
        );
        let mut writer = Command::new("python3")
            .args([OsStr::new(script), job.folder().as_os_str()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut steps = writer.stdin.take().unwrap();
        let mut done = BufReader::new(writer.stdout.take().unwrap());
        let rounds = std::env::var("MCPO_HOSTILE_ROUNDS").map_or(300, |most| most.parse().unwrap());
        let (watched, mut without_walk) = (is_watched(&files), 0);
        for _ in 0..rounds {
            steps.write_all(b"step\n").unwrap();
            let mut line = String::new();
            done.read_line(&mut line).unwrap();
            assert_eq!(line, "done\n");
            let before = number(&files);
            look(&mut files, &job);
            without_walk += u32::from(before.is_some() && before == number(&files));
        }
        drop(steps);
        assert!(writer.wait().unwrap().success());
        assert!(!watched || without_walk > rounds / 4, "{without_walk}");
    }

    fn one_step(numbers: &mut Numbers, job: &Job, outside: &Path, open: &mut Vec<File>) {
        let mut path = || -> PathBuf {
            let tops = [job.work(), job.work(), job.home(), job.tmp()];
            let mut path = tops[numbers.below(4)].clone();
            for _ in 0..numbers.below(3) {
                path.push(["a", ".b", "node_modules"][numbers.below(3)]);
            }
            path.join(["x", "y.tmp", "z", ".w", "a"][numbers.below(5)])
        };
        let (one, two) = (path(), path());
        // Many steps fail, because a file or a folder is not there, or is in the way.
        match numbers.below(16) {
            0..=3 => drop(fs::write(&one, "x".repeat(numbers.below(9000)))),
            4 | 5 => drop(fs::create_dir(&one)),
            6 => drop(fs::remove_file(&one)),
            7 => drop(fs::remove_dir(&one)),
            8 | 9 => drop(fs::rename(&one, &two)),
            10 => drop(symlink(&two, &one)),
            11 => open.extend(File::options().write(true).open(&one)),
            12 => {
                for file in &mut *open {
                    let _ = file.seek(SeekFrom::Start(0));
                    let _ = file.write_all(b"later");
                }
            }
            13 => {
                let past = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
                if let Ok(file) = File::options().write(true).open(&one) {
                    let _ = (&file).write_all(b"in the past");
                    let _ = file.set_modified(past);
                }
            }
            14 => drop(fs::set_permissions(&one, fs::Permissions::from_mode(0o700))),
            _ => {
                let name = outside.join(numbers.below(3).to_string());
                let _ = fs::remove_file(&name);
                if numbers.below(4) == 0 {
                    let _ = fs::hard_link(&one, &name);
                }
            }
        }
    }
}
