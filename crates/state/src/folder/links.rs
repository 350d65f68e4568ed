//! Published files on disk: below a random token, the record `meta.json` and the bytes `data`.
//!
//! The bytes, a *blob*, are staged first: written to a file that only this process uses. A commit then moves
//! them with their record to the folder of the link, in one step. A blob is immutable. Currently each has
//! exactly one link and is stored in the link's folder.

use std::{
    borrow::Cow,
    collections::HashMap,
    fs::{self, File},
    io::{self, Read, Seek as _, SeekFrom},
    ops::RangeInclusive,
    os::{
        fd::{AsFd as _, BorrowedFd},
        unix::fs::{FileExt as _, MetadataExt as _},
    },
    path::{Path, PathBuf},
    time::Duration,
};

use bridge_model::{JobId, LinkToken, hex, open_read};
use jiff::Timestamp;
use parking_lot::Mutex;
use rustix::{
    fs::{AtFlags, CWD, Mode, OFlags, RenameFlags, linkat, open, renameat_with},
    io::Errno,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::{
    ChatStore,
    files::{self, FileLock, StoreError, is_absent, is_disk_full, remove_tree},
    lease::Lease,
    record::PrincipalHash,
};

// Bytes.

/// The file name of a blob in its link's folder.
const DATA: &str = "data";

/// A file for bytes to be written, private to this process. Removed on drop.
#[derive(Debug)]
pub struct StagedFile {
    path: PathBuf,
    data: File,
}

impl StagedFile {
    /// The file: initially empty, open for reading and writing.
    pub fn file(&mut self) -> &mut File {
        &mut self.data
    }

    /// Another handle of the file, which shares its position.
    pub fn data(&self) -> io::Result<File> {
        self.data.try_clone()
    }

    /// A handle at the beginning of the file, with an independent position.
    pub fn read(&self) -> io::Result<File> {
        File::open(&self.path)
    }

    fn put_into(&self, folder: BorrowedFd<'_>, name: &str) -> Result<(), Errno> {
        let new = RenameFlags::NOREPLACE;
        match renameat_with(CWD, &self.path, folder, name, new) {
            // Some network filesystems do not support this; a hard link never replaces a file either.
            Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {
                linkat(CWD, &self.path, folder, name, AtFlags::empty())
            }
            done => done,
        }
    }
}

impl Drop for StagedFile {
    fn drop(&mut self) {
        match fs::remove_file(&self.path) {
            Err(error) if !is_absent(&error) => {
                tracing::warn!(%error, "attached file not deleted; it remains until the bridge exits");
            }
            _ => {}
        }
    }
}

/// Bytes on disk with their hash, without a link yet. Removed on drop.
#[derive(Debug)]
pub struct Blob {
    /// Becomes the folder of its link.
    folder: PathBuf,
    file: StagedFile,
    sha256: String,
}

impl Blob {
    /// SHA-256 of the bytes, in lower-case hex.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// The folder of the bytes until it is moved.
    fn folder(&self) -> &Path {
        &self.folder
    }

    fn stamp(&self) -> io::Result<Stamp> {
        Stamp::from_file(&self.file.data)
    }
}

impl Drop for Blob {
    fn drop(&mut self) {
        if let Err(error) = remove_tree(&self.folder) {
            tracing::warn!(%error, "unpublished copy not deleted; it remains until the bridge exits");
        }
    }
}

/// Identifies the bytes of a link for [`BlobStore::get`](crate::BlobStore::get).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobId {
    token: LinkToken,
    sha256: String,
    stamp: Option<Stamp>,
}

/// Identity and change time of a file. Every change of its bytes updates `changed` (ctime), the only time
/// that no program can set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn from_file(file: &File) -> io::Result<Self> {
        let found = file.metadata()?;
        Ok(Self {
            inode: found.ino(),
            size: found.size(),
            modified: (found.mtime(), found.mtime_nsec()),
            changed: (found.ctime(), found.ctime_nsec()),
        })
    }

    /// Whether the bytes of the open file are unchanged since it was stamped. Removing the file also changes
    /// its time, but not its bytes.
    pub fn still_holds(&self, file: &File) -> io::Result<bool> {
        let now = Self::from_file(file)?;
        let removed = file.metadata()?.nlink() == 0;
        Ok(now == *self || removed && (now.size, now.modified) == (self.size, self.modified))
    }
}

/// The bytes of a blob, or a range of them, open for reading. They remain readable if the link ends in the
/// meantime.
#[derive(Debug)]
pub struct OpenBlob {
    file: File,
    stamp: Stamp,
    left: u64,
}

impl OpenBlob {
    /// The open file at the beginning of the range, and the stamp that must still hold after the last byte
    /// was read.
    pub fn into_parts(self) -> (File, Stamp) {
        (self.file, self.stamp)
    }
}

impl From<OpenBlob> for File {
    fn from(blob: OpenBlob) -> Self {
        blob.file
    }
}

impl Read for OpenBlob {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = (&mut self.file).take(self.left).read(buffer)?;
        self.left -= read as u64;
        Ok(read)
    }
}

/// Blobs that were hashed again because the stamp in their record does not match: an earlier version wrote
/// it, or the folder was copied.
#[derive(Debug, Default)]
pub(super) struct Hashed(Mutex<HashMap<LinkToken, Stamp>>);

impl Hashed {
    /// Maximum number of entries.
    const MOST: usize = 10_000;

    fn knows(&self, token: &LinkToken, stamp: Stamp) -> bool {
        self.0.lock().get(token) == Some(&stamp)
    }

    fn note(&self, token: &LinkToken, stamp: Stamp) {
        let mut map = self.0.lock();
        if map.len() >= Self::MOST {
            map.clear();
        }
        map.insert(token.clone(), stamp);
    }
}

fn sha256(file: &File) -> io::Result<String> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 256 * 1024];
    let mut at = 0;
    loop {
        let read = file.read_at(&mut buffer, at)?;
        if read == 0 {
            return Ok(hex(&hash.finalize()));
        }
        hash.update(&buffer[..read]);
        at += read as u64;
    }
}

/// Removes the bytes in a link's folder. Absent is fine.
fn delete_bytes(folder: &Path) -> io::Result<()> {
    remove_tree(&folder.join(DATA))
}

/// Immutable bytes: written once, read in ranges. The clean-up and [`ChatStore::revoke`] delete them.
#[derive(Debug)]
pub struct BlobStore<'a>(pub(super) &'a ChatStore);

impl BlobStore<'_> {
    /// Creates a staged file.
    pub fn stage(&self) -> Result<StagedFile, StoreError> {
        self.0.in_whole_folder(|| {
            let path = self.0.staging().join(format!("in-{}", Uuid::new_v4()));
            let data = files::create_new(&path).map_err(files::at("make", &path))?;
            Ok(StagedFile { path, data })
        })
    }

    /// Moves a file with this hash (SHA-256, lower-case hex) into a folder of its own. The bytes are synced
    /// to disk when this returns, and are kept as long as the blob or a [committed](ChatStore::commit) link
    /// to it exists.
    pub fn put(&self, file: StagedFile, sha256: &str) -> Result<Blob, StoreError> {
        let mut blob = Blob {
            folder: self.0.staging().join(format!("link-{}", Uuid::new_v4())),
            file,
            sha256: sha256.to_owned(),
        };
        let path = blob.folder.join(DATA);
        files::make_dir(&blob.folder)
            .and_then(|()| fs::rename(&blob.file.path, &path))
            .map_err(files::at("make", &path))?;
        blob.file.path = path;
        let synced = blob.file.data.sync_all();
        synced.map_err(files::at("sync", &blob.file.path))?;
        Ok(blob)
    }

    /// Opens the bytes, or a range of them; `None` if they no longer exist. Fails if they differ from the
    /// bytes that were stored.
    pub fn get(
        &self,
        id: &BlobId,
        range: Option<RangeInclusive<u64>>,
    ) -> Result<Option<OpenBlob>, StoreError> {
        let path = self.0.link_folder(&id.token).join(DATA);
        let file = files::present(open_read(&path)).map_err(files::at("open", &path))?;
        let Some(file) = file else {
            return Ok(None);
        };
        let opened = self.check(id, file).and_then(|mut blob| {
            if let Some(range) = range {
                blob.file.seek(SeekFrom::Start(*range.start()))?;
                let length = range.end().saturating_add(1).saturating_sub(*range.start());
                blob.left = blob.left.saturating_sub(*range.start()).min(length);
            }
            Ok(blob)
        });
        opened.map(Some).map_err(files::at("serve", &path))
    }

    /// Compares the bytes with the published hash. They are not read if the file is the same and unchanged
    /// since it was hashed.
    fn check(&self, id: &BlobId, file: File) -> io::Result<OpenBlob> {
        let stamp = Stamp::from_file(&file)?;
        if Some(stamp) != id.stamp && !self.0.hashed.knows(&id.token, stamp) {
            let same = sha256(&file)? == id.sha256 && Stamp::from_file(&file)? == stamp;
            if !same {
                let why = "its content differs from the published content: it was changed, or the \
                           disk is damaged";
                return Err(io::Error::new(io::ErrorKind::InvalidData, why));
            }
            self.0.hashed.note(&id.token, stamp);
        }
        let left = stamp.size;
        Ok(OpenBlob { file, stamp, left })
    }
}

impl ChatStore {
    /// Moves the file to `name` in the chat's `work/`; `name` is a single path component. `false` if the name
    /// exists. Replaces nothing and follows no links.
    pub fn put_file(
        &self,
        lease: &Lease,
        staged: &StagedFile,
        name: &str,
    ) -> Result<bool, StoreError> {
        let job = self.job_at(lease.job);
        let _lock = FileLock::job(&job)?;
        self.refuse_fenced(&job, lease.fence)?;
        let work = job.work();
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
        let folder = open(&work, flags, Mode::empty());
        let folder = folder.map_err(|error| files::at("open", &work)(error.into()))?;
        match staged.put_into(folder.as_fd(), name) {
            Ok(()) => Ok(true),
            Err(Errno::EXIST) => Ok(false),
            Err(error) => Err(files::at("place a file in", &work)(error.into())),
        }
    }
}

// Links.

/// One version of one file, with its link.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Artifact {
    /// The secret part of the URL, which grants access.
    pub token: LinkToken,
    /// The file's name for display: UTF-8, no control characters, no separators.
    pub name: String,
    /// Its path below `work/` for display; `/` between the parts.
    pub path: String,
    /// `[A-Za-z0-9._-]` only, extension kept: the last part of the URL.
    pub ascii_name: String,
    /// Size in bytes.
    pub size: u64,
    /// Derived from the name's extension.
    pub mime_type: String,
    /// SHA-256 of the bytes; lower-case hex.
    pub sha256: String,
    /// When the link was created.
    pub created_at: Timestamp,
    /// When the link expires.
    pub expires_at: Timestamp,
    /// When the bytes were deleted; the record is then a tombstone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gone_at: Option<Timestamp>,
    /// Why they were deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gone: Option<GoneReason>,
    /// The workspace that the file came from.
    pub job: JobId,
    /// The server that created it.
    pub server: String,
    /// The tool that created it.
    pub tool: String,
    /// The owner.
    pub principal: PrincipalHash,
    /// Fields that this version does not know.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

impl Artifact {
    /// `{base}/files/{token}/{ascii-name}`; `base` is `MCPO_BASE_URL`, `/` or empty for links
    /// relative to the origin.
    pub fn url(&self, base: &str) -> String {
        let base = base.trim_end_matches('/');
        format!("{base}/files/{}/{}", self.token.as_str(), self.ascii_name)
    }
}

/// Why a link's bytes were deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GoneReason {
    /// `MCPO_FILE_EXPIRY` passed.
    Expired,
    /// The link was revoked.
    Revoked,
}

/// The result of looking a token up.
#[derive(Debug, Clone, PartialEq)]
pub enum Link {
    /// The file, and the id with which [`BlobStore::get`](crate::BlobStore::get) opens its bytes.
    Live(Box<Artifact>, BlobId),
    /// It existed: 410.
    Gone(GoneReason),
    /// It never existed, or its tombstone has expired: 404.
    Unknown,
}

/// How long a link that ended returns 410; after that it is unknown (404).
pub(super) const TOMBSTONE: Duration = Duration::from_hours(7 * 24);

/// The record, with the stamp that proves that the bytes are those that were hashed.
#[derive(Serialize, Deserialize)]
struct Published<'a> {
    #[serde(flatten)]
    artifact: Cow<'a, Artifact>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    stamp: Option<Stamp>,
}

/// Maximum number of chats remembered as synced to disk.
const SYNCED: usize = 100_000;
const META: &str = "meta.json";

impl ChatStore {
    /// Makes the bytes reachable under `artifact.token`. When this returns, the record is synced to disk too,
    /// so that a returned link survives a crash.
    pub(super) fn publish(
        &self,
        lease: &Lease,
        artifact: &Artifact,
        blob: &Blob,
    ) -> Result<(), StoreError> {
        debug_assert_eq!(artifact.sha256, blob.sha256());
        if let Some(job) = self.job(lease.job)? {
            self.refuse_fenced(&job, lease.fence)?;
        }
        self.sync_records(lease.job)?;
        self.show_link(artifact, blob)
            .map_err(files::at("publish", blob.folder()))
    }

    fn show_link(&self, artifact: &Artifact, blob: &Blob) -> io::Result<()> {
        let (folder, target) = (blob.folder(), self.link_folder(&artifact.token));
        let shard = target.parent().unwrap_or(&target);
        let record = Published {
            artifact: Cow::Borrowed(artifact),
            stamp: Some(blob.stamp()?),
        };
        let meta = folder.join(META);
        files::write_json(&meta, &record, self.staging())?;
        files::sync_file(&meta)?;
        files::sync_dir(folder)?;
        let new = !shard.is_dir();
        files::make_dir(shard)?;
        fs::rename(folder, &target)?;
        files::sync_dir(shard)?;
        if new {
            files::sync_dir(&self.bridge("artifacts"))?;
        }
        Ok(())
    }

    /// Syncs the records of a chat to disk, once in the lifetime of this process. The folder may no longer
    /// exist.
    fn sync_records(&self, id: JobId) -> Result<(), StoreError> {
        let Some(job) = self.job(id)? else {
            return Ok(());
        };
        if self.synced.lock().contains(&id) {
            return Ok(());
        }
        for name in ["metadata.json", "lease"] {
            let path = job.folder().join(name);
            files::sync_file(&path).map_err(files::at("sync", &path))?;
        }
        for folder in [job.folder(), self.root()] {
            files::sync_dir(folder).map_err(files::at("sync", folder))?;
        }
        let mut synced = self.synced.lock();
        if synced.len() >= SYNCED {
            synced.clear();
        }
        synced.insert(id);
        Ok(())
    }

    /// Looks a token up. The clock decides whether a link has expired, not the clean-up.
    pub fn link(&self, token: &LinkToken) -> Result<Link, StoreError> {
        self.link_at(token, self.now())
    }

    pub(super) fn link_at(&self, token: &LinkToken, now: Timestamp) -> Result<Link, StoreError> {
        let Some(Published { artifact, stamp }) = read_published(&self.link_folder(token))? else {
            return Ok(Link::Unknown);
        };
        let artifact = artifact.into_owned();
        let (reason, ended) = match (artifact.gone_at, artifact.gone) {
            (Some(at), reason) => (reason.unwrap_or(GoneReason::Expired), at),
            (None, _) if artifact.expires_at <= now => (GoneReason::Expired, artifact.expires_at),
            (None, _) => {
                let blob = BlobId {
                    token: token.clone(),
                    sha256: artifact.sha256.clone(),
                    stamp,
                };
                return Ok(Link::Live(Box::new(artifact), blob));
            }
        };
        if is_over(ended, TOMBSTONE, now) {
            return Ok(Link::Unknown);
        }
        Ok(Link::Gone(reason))
    }

    /// Ends a link: its bytes are deleted at once and it returns 410. `false` if there is no live link.
    pub fn revoke(&self, token: &LinkToken) -> Result<bool, StoreError> {
        self.revoke_at(token, self.now())
    }

    pub(super) fn revoke_at(&self, token: &LinkToken, now: Timestamp) -> Result<bool, StoreError> {
        match read(&self.link_folder(token))? {
            Some(artifact) if artifact.gone_at.is_none() && artifact.expires_at > now => {
                self.end_link(artifact, GoneReason::Revoked, now)?;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// The links made from a chat's files, tombstones included, oldest first. Reads every record.
    pub fn links_of(&self, job: JobId) -> Result<Vec<Artifact>, StoreError> {
        let (mut found, mut failed) = (Vec::new(), None);
        self.each_link(|link| match link.map(|folder| read(&folder)) {
            Ok(Ok(Some(artifact))) if artifact.job == job => found.push(artifact),
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::warn!(%error, "link omitted from a list"),
            Err(error) => failed = Some(error),
        });
        found.sort_by_key(|artifact| artifact.created_at);
        failed.map_or(Ok(found), Err)
    }

    /// Removes a link that was not returned to a caller: record and bytes are deleted, it returns 404. Absent
    /// is fine.
    pub fn remove_link(&self, token: &LinkToken) -> Result<(), StoreError> {
        self.remove_whole(&self.link_folder(token))
    }

    pub(super) fn end_link(
        &self,
        mut artifact: Artifact,
        reason: GoneReason,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let folder = self.link_folder(&artifact.token);
        artifact.gone_at = Some(now.min(artifact.expires_at));
        artifact.gone = Some(reason);
        let meta = folder.join(META);
        end_in_order(&folder, || {
            files::write_json(&meta, &artifact, self.staging())
        })
        .map_err(files::at("revoke the link", &folder))
    }

    /// Visits the folder of every link, in any order.
    pub(super) fn each_link(&self, mut visit: impl FnMut(Result<PathBuf, StoreError>)) {
        self.each_in_shards("artifacts", |link| match link {
            Ok((_, name)) if name.parse::<LinkToken>().is_err() => {}
            link => visit(link.map(|(shard, name)| shard.join(name))),
        });
    }

    fn link_folder(&self, token: &LinkToken) -> PathBuf {
        let name = token.as_str();
        self.bridge("artifacts").join(&name[..2]).join(name)
    }
}

/// Updates the record first, so that no record refers to deleted bytes. On a full disk the order is reversed,
/// because the record may need the space of the bytes.
fn end_in_order(folder: &Path, write: impl Fn() -> io::Result<()>) -> io::Result<()> {
    match write() {
        Err(error) if is_disk_full(&error) => {
            delete_bytes(folder)?;
            write()
        }
        other => other.and_then(|()| delete_bytes(folder)),
    }
}

/// Reads the record in a link's folder.
pub(super) fn read(folder: &Path) -> Result<Option<Artifact>, StoreError> {
    let published = read_published(folder)?;
    Ok(published.map(|published| published.artifact.into_owned()))
}

fn read_published(folder: &Path) -> Result<Option<Published<'static>>, StoreError> {
    let meta = folder.join(META);
    files::read_json(&meta).map_err(files::at("read", &meta))
}

/// Whether `kept` has passed since `from`.
pub(super) fn is_over(from: Timestamp, kept: Duration, now: Timestamp) -> bool {
    now.duration_since(from).unsigned_abs() >= kept && now >= from
}

#[cfg(test)]
mod tests {
    use std::{io::Write as _, os::unix::fs::symlink};

    use bridge_model::Job;

    use super::*;
    use crate::testing::{self, Folder, alice, artifact, later, new_chat};

    fn open(
        store: &ChatStore,
        token: &LinkToken,
        range: Option<RangeInclusive<u64>>,
    ) -> Result<Option<OpenBlob>, StoreError> {
        match store.link_at(token, Timestamp::now())? {
            Link::Live(_, blob) => store.blobs().get(&blob, range),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn changed_bytes_are_not_served_and_moved_ones_are() {
        let folder = Folder::new();
        let store = folder.open();
        let artifact = testing::publish(&store, artifact(&alice(), folder.now, 600)).unwrap();
        let data = store.link_folder(&artifact.token).join(DATA);
        let open = |store: &ChatStore| open(store, &artifact.token, None);
        // Like a restored backup: a different file with the same bytes.
        fs::copy(&data, data.with_extension("copy")).unwrap();
        fs::rename(data.with_extension("copy"), &data).unwrap();
        for store in [&store, &store, &folder.open()] {
            assert!(matches!(open(store), Ok(Some(_))));
        }
        // A program may reset the modification time.
        let modified = fs::metadata(&data).unwrap().modified().unwrap();
        for changed in ["Bytes", "more bytes", ""] {
            fs::write(&data, changed).unwrap();
            let file = File::options().append(true).open(&data).unwrap();
            file.set_modified(modified).unwrap();
            let refused = open(&store).unwrap_err().to_string();
            assert!(
                refused.contains("differs from the published content"),
                "{refused}"
            );
        }
        fs::write(&data, "bytes").unwrap();
        assert!(matches!(open(&store), Ok(Some(_))));
        fs::write(&data, "Bytes").unwrap();
        assert!(store.revoke_at(&artifact.token, folder.now).unwrap());
    }

    #[test]
    fn bytes_that_change_while_they_are_read_are_noticed_and_a_link_that_ends_is_no_change() {
        let folder = Folder::new();
        let store = folder.open();
        for change in [true, false] {
            let artifact = testing::publish(&store, artifact(&alice(), folder.now, 600)).unwrap();
            let data = store.link_folder(&artifact.token).join(DATA);
            let opened = open(&store, &artifact.token, None).unwrap().unwrap();
            let (file, stamp) = opened.into_parts();
            if change {
                // Two changes within one tick of the kernel's clock have the same time.
                while fs::metadata(&data).unwrap().ctime_nsec() == stamp.changed.1 {
                    fs::write(&data, "Bytes").unwrap();
                }
            } else {
                store.revoke_at(&artifact.token, folder.now).unwrap();
            }
            assert_eq!(stamp.still_holds(&file).unwrap(), !change);
        }
    }

    #[test]
    fn a_range_is_read_alone_and_what_is_gone_is_none() {
        let folder = Folder::new();
        let store = folder.open();
        let artifact = testing::publish(&store, artifact(&alice(), folder.now, 600)).unwrap();
        for (range, expected) in [(1..=3, "yte"), (3..=100, "es"), (5..=9, "")] {
            let opened = open(&store, &artifact.token, Some(range)).unwrap();
            let text = io::read_to_string(opened.unwrap()).unwrap();
            assert_eq!(text, expected);
        }
        fs::remove_file(store.link_folder(&artifact.token).join(DATA)).unwrap();
        assert!(open(&store, &artifact.token, None).unwrap().is_none());
    }

    #[test]
    fn a_blob_without_a_link_leaves_nothing() {
        let folder = Folder::new();
        let store = folder.open();
        let staged = store.blobs().stage().unwrap();
        let blob = store.blobs().put(staged, "hash").unwrap();
        assert_eq!(blob.sha256(), "hash");
        drop(blob);
        assert_eq!(fs::read_dir(store.staging()).unwrap().count(), 0);
    }

    fn put(store: &ChatStore, job: &Job, names: &[&str]) -> Result<String, StoreError> {
        let mut staged = store.blobs().stage().unwrap();
        staged.file().write_all(b"new").unwrap();
        let lease = testing::lease(store, job.id());
        for name in names {
            if store.put_file(&lease, &staged, name)? {
                return Ok((*name).to_owned());
            }
        }
        panic!("none of the names is free")
    }

    #[test]
    fn nothing_is_replaced_and_no_link_is_followed() {
        let dir = Folder::new();
        let store = dir.open();
        let job = store.create_job(&new_chat(), Timestamp::now()).unwrap();
        fs::write(job.work().join("a"), "old").unwrap();
        fs::write(dir.outside().join("outside"), "old").unwrap();
        symlink(dir.outside().join("outside"), job.work().join("b")).unwrap();
        symlink(dir.outside().join("nothing"), job.work().join("c")).unwrap();
        assert_eq!(put(&store, &job, &["a", "b", "c", "d"]).unwrap(), "d");
        assert_eq!(fs::read(job.work().join("a")).unwrap(), b"old");
        assert_eq!(fs::read(dir.outside().join("outside")).unwrap(), b"old");
        assert!(!dir.outside().join("nothing").exists());
        assert_eq!(fs::read(job.work().join("d")).unwrap(), b"new");
        let taken = store.blobs().stage().unwrap();
        let lease = testing::lease(&store, job.id());
        assert!(!store.put_file(&lease, &taken, "a").unwrap());
        drop(taken);
        drop(store.blobs().stage().unwrap());
        assert_eq!(fs::read_dir(store.staging()).unwrap().count(), 0);
    }

    #[test]
    fn a_workspace_that_was_taken_over_takes_nothing() {
        let dir = Folder::new();
        let (slow, other) = (dir.open(), dir.open());
        let job = slow.create_job(&new_chat(), Timestamp::now()).unwrap();
        let lease = slow.acquire_lease(&job, dir.now).unwrap();
        assert_eq!(put(&slow, &job, &["a"]).unwrap(), "a");
        slow.release(&lease).unwrap();
        let _taken = other.acquire_lease(&job, dir.now).unwrap();
        let refused = put(&slow, &job, &["b"]).unwrap_err();
        assert!(matches!(refused, StoreError::Fenced), "{refused}");
        assert!(!job.work().join("b").exists());
        let refused = slow.append_to_journal(&job, 0, b"a call\n").unwrap_err();
        assert!(matches!(refused, StoreError::Fenced), "{refused}");
        assert!(!job.folder().join("journal.jsonl").exists());
    }

    #[test]
    fn a_work_folder_that_is_a_link_takes_nothing() {
        let dir = Folder::new();
        let store = dir.open();
        let job = store.create_job(&new_chat(), Timestamp::now()).unwrap();
        fs::remove_dir(job.work()).unwrap();
        fs::create_dir(dir.outside().join("elsewhere")).unwrap();
        symlink(dir.outside().join("elsewhere"), job.work()).unwrap();
        assert!(put(&store, &job, &["a"]).is_err());
    }

    #[test]
    fn a_link_from_a_workspace_that_another_took_over_is_not_made() {
        let folder = Folder::new();
        let (one, two) = (folder.open(), folder.open());
        let job = one.create_job(&new_chat(), folder.now).unwrap();
        one.acquire_lease(&job, folder.now).unwrap();
        let artifact = Artifact {
            job: job.id(),
            token: LinkToken::random(),
            ..publish(&one, folder.now)
        };
        let publish = |store: &ChatStore| testing::publish(store, artifact.clone());
        assert!(matches!(publish(&two), Err(StoreError::Fenced)));
        publish(&one).unwrap();
    }

    fn publish(store: &ChatStore, now: Timestamp) -> Artifact {
        testing::publish(store, artifact(&alice(), now, 60)).unwrap()
    }

    #[test]
    fn a_link_lives_then_is_gone_then_unknown() {
        let folder = Folder::new();
        let store = folder.open();
        let artifact = publish(&store, folder.now);
        let at = |seconds| {
            store
                .link_at(&artifact.token, later(folder.now, seconds))
                .unwrap()
        };
        match at(59) {
            Link::Live(found, blob) => {
                let mut text = String::new();
                let mut bytes = store.blobs().get(&blob, None).unwrap().unwrap();
                bytes.read_to_string(&mut text).unwrap();
                assert_eq!((*found, text.as_str()), (artifact.clone(), "bytes"));
            }
            other => panic!("{other:?}"),
        }
        assert!(matches!(at(60), Link::Gone(GoneReason::Expired)));
        assert!(matches!(at(60 + 7 * 86_400 - 1), Link::Gone(..)));
        assert!(matches!(at(60 + 7 * 86_400), Link::Unknown));
    }

    #[test]
    fn a_revoked_links_bytes_go_at_once() {
        let folder = Folder::new();
        let store = folder.open();
        let artifact = publish(&store, folder.now);
        assert!(store.revoke_at(&artifact.token, folder.now).unwrap());
        assert!(!store.revoke_at(&artifact.token, folder.now).unwrap());
        let link = store.link_at(&artifact.token, folder.now).unwrap();
        assert!(matches!(link, Link::Gone(GoneReason::Revoked)));
        assert!(!store.link_folder(&artifact.token).join(DATA).exists());
        assert_eq!(store.links_of(artifact.job).unwrap().len(), 1);
    }

    #[test]
    fn on_a_full_disk_the_bytes_make_room_for_the_record() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join(DATA);
        fs::write(&data, "bytes").unwrap();
        let full = || {
            if data.exists() {
                Err(io::ErrorKind::StorageFull.into())
            } else {
                fs::write(folder.path().join(META), "{}")
            }
        };
        end_in_order(folder.path(), full).unwrap();
        assert!(folder.path().join(META).exists() && !data.exists());
    }

    #[test]
    fn any_other_failure_leaves_the_bytes_behind_a_living_record() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(DATA), "bytes").unwrap();
        let refused = end_in_order(
            folder.path(),
            || Err(io::ErrorKind::PermissionDenied.into()),
        );
        assert!(refused.is_err() && folder.path().join(DATA).exists());
    }

    #[test]
    fn a_removed_link_was_never_there() {
        let folder = Folder::new();
        let store = folder.open();
        let artifact = publish(&store, folder.now);
        store.remove_link(&artifact.token).unwrap();
        store.remove_link(&artifact.token).unwrap();
        let link = store.link_at(&artifact.token, folder.now).unwrap();
        assert!(matches!(link, Link::Unknown));
        assert!(!store.link_folder(&artifact.token).exists());
        assert_eq!(fs::read_dir(store.staging()).unwrap().count(), 0);
    }

    #[test]
    fn a_guessed_token_is_unknown_and_a_dropped_copy_leaves_nothing() {
        let folder = Folder::new();
        let store = folder.open();
        drop(store.blobs().stage().unwrap());
        assert_eq!(fs::read_dir(store.staging()).unwrap().count(), 0);
        let link = store.link_at(&LinkToken::random(), folder.now).unwrap();
        assert!(matches!(link, Link::Unknown));
    }

    #[test]
    fn urls_work_below_a_base_and_relative_to_the_origin() {
        let folder = Folder::new();
        let artifact = publish(&folder.open(), folder.now);
        let token = artifact.token.as_str();
        for (base, url) in [
            ("http://h:1", format!("http://h:1/files/{token}/file.xlsx")),
            (
                "https://h/x/",
                format!("https://h/x/files/{token}/file.xlsx"),
            ),
            ("/", format!("/files/{token}/file.xlsx")),
        ] {
            assert_eq!(artifact.url(base), url);
        }
    }
}
