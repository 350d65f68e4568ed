//! Published artifacts on disk: `meta.json` and the immutable `data` under a random token.

use std::{
    borrow::Cow,
    collections::HashMap,
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use bridge_model::{JobId, LinkToken, hex, open_read};
use jiff::Timestamp;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::{Store, files, record::PrincipalHash, remove::remove_tree};
use crate::error::{StoreError, is_absent, is_disk_full};

/// One version of one file, behind its own link.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Artifact {
    /// The capability.
    pub token: LinkToken,
    /// The file's own name, for people: UTF-8, no control characters, no separators.
    pub name: String,
    /// Where it lay under `work/`, for people; `/` between the parts.
    pub path: String,
    /// `[A-Za-z0-9._-]` only, extension kept: the last part of the URL.
    pub ascii_name: String,
    /// Bytes.
    pub size: u64,
    /// From the name's extension.
    pub mime_type: String,
    /// Of the bytes; lower-case hex.
    pub sha256: String,
    /// When the link was handed out.
    pub created_at: Timestamp,
    /// When it ends.
    pub expires_at: Timestamp,
    /// When the bytes went; the record is then a tombstone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gone_at: Option<Timestamp>,
    /// Why they went.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gone: Option<GoneReason>,
    /// The workspace that it came from.
    pub job: JobId,
    /// The server whose call made it.
    pub server: String,
    /// The tool that made it.
    pub tool: String,
    /// Whose it is.
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

/// Why a link's bytes are gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GoneReason {
    /// `MCPO_FILE_EXPIRY` passed.
    Expired,
    /// Somebody took the link back.
    Revoked,
}

/// What a token leads to.
#[derive(Debug)]
pub enum Link {
    /// The bytes, open for reading; they stay readable if the link ends meanwhile.
    Live(Box<Artifact>, Bytes),
    /// It existed: 410.
    Gone(GoneReason),
    /// It never existed, or its tombstone is over: 404.
    Unknown,
}

/// How long a link that ended answers 410 before it is as if it had never been.
pub const TOMBSTONE: Duration = Duration::from_hours(7 * 24);

/// An artifact in the making. Dropped unpublished, it leaves nothing behind.
#[derive(Debug)]
pub struct StagedLink {
    folder: PathBuf,
    data: File,
    published: bool,
}

impl StagedLink {
    /// The bytes to come: empty, open for reading and writing.
    pub fn data(&mut self) -> &mut File {
        &mut self.data
    }

    /// Makes it reachable under `artifact.token`, whose hash must be that of the bytes. When this
    /// returns, both are on the disk: a link is a promise.
    pub fn publish(mut self, store: &Store, artifact: &Artifact) -> Result<(), StoreError> {
        if let Some(job) = store.job(artifact.job)? {
            store.refuse_others(&job)?;
        }
        store.sync_records(artifact.job)?;
        self.show(store, artifact)
            .map_err(files::at("publish", &self.folder))?;
        self.published = true;
        Ok(())
    }

    fn show(&self, store: &Store, artifact: &Artifact) -> io::Result<()> {
        let target = store.link_folder(&artifact.token);
        let shard = target.parent().unwrap_or(&target);
        self.data.sync_all()?;
        let record = Published {
            artifact: Cow::Borrowed(artifact),
            stamp: Some(Stamp::of(&self.data)?),
        };
        let meta = self.folder.join(META);
        files::write_json(&meta, &record, store.staging())?;
        files::sync_file(&meta)?;
        files::sync_dir(&self.folder)?;
        let new = !shard.is_dir();
        files::make_dir(shard)?;
        fs::rename(&self.folder, &target)?;
        files::sync_dir(shard)?;
        if new {
            files::sync_dir(&store.bridge("artifacts"))?;
        }
        Ok(())
    }
}

/// The record, with what tells that the bytes are those that were hashed.
#[derive(Serialize, Deserialize)]
struct Published<'a> {
    #[serde(flatten)]
    artifact: Cow<'a, Artifact>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    stamp: Option<Stamp>,
}

/// Which file it is, and when it was changed last. Every change of its bytes shows in `changed`,
/// the one time that no program can set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(file: &File) -> io::Result<Self> {
        let found = file.metadata()?;
        Ok(Self {
            inode: found.ino(),
            size: found.size(),
            modified: (found.mtime(), found.mtime_nsec()),
            changed: (found.ctime(), found.ctime_nsec()),
        })
    }

    /// Whether the bytes of an open file were changed since it was stamped. The end of its link
    /// changes the time, too, and nothing of the bytes.
    pub fn still_holds(&self, file: &File) -> io::Result<bool> {
        let now = Self::of(file)?;
        let removed = file.metadata()?.nlink() == 0;
        Ok(now == *self || removed && (now.size, now.modified) == (self.size, self.modified))
    }
}

/// The bytes of a link: open for reading, and those that were published.
#[derive(Debug)]
pub struct Bytes {
    file: File,
    stamp: Stamp,
}

impl Bytes {
    /// The open file, from its beginning, and what it must look like to the end.
    pub fn into_parts(self) -> (File, Stamp) {
        (self.file, self.stamp)
    }
}

impl From<Bytes> for File {
    fn from(bytes: Bytes) -> Self {
        bytes.file
    }
}

impl Read for Bytes {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.file.read(buffer)
    }
}

impl Seek for Bytes {
    fn seek(&mut self, position: SeekFrom) -> io::Result<u64> {
        self.file.seek(position)
    }
}

/// Files whose bytes were hashed anew, since their record does not vouch for them: it is of an
/// earlier version, or the folder was copied.
#[derive(Debug, Default)]
pub(super) struct Hashed(Mutex<HashMap<LinkToken, Stamp>>);

/// So many are remembered.
const HASHED: usize = 10_000;

impl Hashed {
    fn knows(&self, token: &LinkToken, stamp: Stamp) -> bool {
        self.0.lock().get(token) == Some(&stamp)
    }

    fn note(&self, token: &LinkToken, stamp: Stamp) {
        let mut map = self.0.lock();
        if map.len() >= HASHED {
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
            break;
        }
        hash.update(&buffer[..read]);
        at += read as u64;
    }
    Ok(hex(&hash.finalize()))
}

impl Drop for StagedLink {
    fn drop(&mut self) {
        if self.published {
            return;
        }
        if let Err(error) = remove_tree(&self.folder) {
            tracing::warn!(%error, "an unpublished copy stays until this bridge ends");
        }
    }
}

/// So many workspaces are remembered as being on the disk.
const SYNCED: usize = 100_000;
const META: &str = "meta.json";
const DATA: &str = "data";

impl Store {
    /// Begins an artifact.
    pub fn stage_link(&self) -> Result<StagedLink, StoreError> {
        self.in_whole_folder(|| self.stage_link_once())
    }

    fn stage_link_once(&self) -> Result<StagedLink, StoreError> {
        let folder = self.staging().join(format!("link-{}", Uuid::new_v4()));
        let data = files::make_dir(&folder).and_then(|()| files::create_new(&folder.join(DATA)));
        match data {
            Ok(data) => Ok(StagedLink {
                folder,
                data,
                published: false,
            }),
            Err(error) => {
                let _ = remove_tree(&folder);
                Err(files::at("make", &folder)(error))
            }
        }
    }

    /// Follows a token. Expiry counts from the clock alone, not from when GC comes by.
    pub fn link(&self, token: &LinkToken, now: Timestamp) -> Result<Link, StoreError> {
        let folder = self.link_folder(token);
        let Some(Published { artifact, stamp }) = read_published(&folder)? else {
            return Ok(Link::Unknown);
        };
        let artifact = artifact.into_owned();
        let (reason, ended) = match (artifact.gone_at, artifact.gone) {
            (Some(at), reason) => (reason.unwrap_or(GoneReason::Expired), at),
            (None, _) if artifact.expires_at <= now => (GoneReason::Expired, artifact.expires_at),
            (None, _) => match open_read(&folder.join(DATA)) {
                Ok(data) => {
                    let bytes = self.check(&artifact, stamp, data);
                    let bytes = bytes.map_err(files::at("serve", &folder.join(DATA)))?;
                    return Ok(Link::Live(Box::new(artifact), bytes));
                }
                // Ended between the two looks.
                Err(error) if is_absent(&error) => (GoneReason::Expired, now),
                Err(error) => return Err(files::at("open", &folder.join(DATA))(error)),
            },
        };
        if is_over(ended, TOMBSTONE, now) {
            return Ok(Link::Unknown);
        }
        Ok(Link::Gone(reason))
    }

    /// Holds the bytes against the hash that was published. They need not be read for that where
    /// the file is the same and was not changed since it was hashed.
    fn check(&self, artifact: &Artifact, stamp: Option<Stamp>, file: File) -> io::Result<Bytes> {
        let now = Stamp::of(&file)?;
        if Some(now) != stamp && !self.hashed.knows(&artifact.token, now) {
            let same = sha256(&file)? == artifact.sha256 && Stamp::of(&file)? == now;
            if !same {
                let why = "its bytes are not those that were published: somebody changed them, or \
                           the disk did";
                return Err(io::Error::new(io::ErrorKind::InvalidData, why));
            }
            self.hashed.note(&artifact.token, now);
        }
        Ok(Bytes { file, stamp: now })
    }

    /// Sees to it, once in the life of this process, that the records of the workspace of a link
    /// are on the disk. Its folder may be gone by now.
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

    /// Takes a link back: its bytes go at once and it answers 410. `false` if there is none live.
    pub fn revoke(&self, token: &LinkToken, now: Timestamp) -> Result<bool, StoreError> {
        match read(&self.link_folder(token))? {
            Some(artifact) if artifact.gone_at.is_none() && artifact.expires_at > now => {
                self.end_link(artifact, GoneReason::Revoked, now)?;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// The links made from a workspace, tombstones included, oldest first. Reads every record.
    pub fn artifacts_of(&self, job: JobId) -> Result<Vec<Artifact>, StoreError> {
        let (mut found, mut failed) = (Vec::new(), None);
        self.each_link(|link| match link.map(|folder| read(&folder)) {
            Ok(Ok(Some(artifact))) if artifact.job == job => found.push(artifact),
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::warn!(%error, "a link is left out of a list"),
            Err(error) => failed = Some(error),
        });
        found.sort_by_key(|artifact| artifact.created_at);
        failed.map_or(Ok(found), Err)
    }

    /// Takes a link back as if it had never been handed out: record and bytes go, it answers 404.
    /// For links that nobody was told of. Absent is fine.
    pub fn remove_link(&self, token: &LinkToken) -> Result<(), StoreError> {
        let folder = self.link_folder(token);
        let staged = self.staging().join(format!("gone-{}", Uuid::new_v4()));
        match fs::rename(&folder, &staged) {
            Ok(()) => remove_tree(&staged).map_err(files::at("remove", &folder)),
            Err(error) if is_absent(&error) => Ok(()),
            Err(error) => Err(files::at("remove", &folder)(error)),
        }
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
        .map_err(files::at("end the link", &folder))
    }

    /// Visits the folder of every link, in no order.
    pub(super) fn each_link(&self, mut visit: impl FnMut(Result<PathBuf, StoreError>)) {
        let top = self.bridge("artifacts");
        let names = |path: &Path| files::names_in(path).map_err(files::at("list", path));
        let shards = names(&top).unwrap_or_else(|error| {
            visit(Err(error));
            Vec::new()
        });
        for shard in shards.into_iter().flatten() {
            let shard = top.join(shard);
            match names(&shard) {
                Ok(tokens) => tokens
                    .into_iter()
                    .flatten()
                    .filter(|name| name.parse::<LinkToken>().is_ok())
                    .for_each(|name| visit(Ok(shard.join(name)))),
                Err(error) => visit(Err(error)),
            }
        }
    }

    fn link_folder(&self, token: &LinkToken) -> PathBuf {
        let name = token.as_str();
        self.bridge("artifacts").join(&name[..2]).join(name)
    }
}

/// The record first: then nobody is promised bytes that have gone. On a full disk the other way
/// round: the record may need the room that the bytes take.
fn end_in_order(folder: &Path, write: impl Fn() -> io::Result<()>) -> io::Result<()> {
    let data = folder.join(DATA);
    match write() {
        Err(error) if is_disk_full(&error) => {
            remove_tree(&data)?;
            write()
        }
        other => other.and_then(|()| remove_tree(&data)),
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
    use std::io::Write as _;

    use bridge_model::Principal;

    use super::*;
    use crate::testing::{Folder, later};

    const SHA256_OF_BYTES: &str =
        "277089d91c0bdf4f2e6862ba7e4a07605119431f5d13f726dd352b06f1b206a9";

    #[test]
    fn changed_bytes_are_not_served_and_moved_ones_are() {
        let folder = Folder::new();
        let store = folder.open();
        let artifact = publish(&store, folder.now);
        let data = store.link_folder(&artifact.token).join(DATA);
        let link = |store: &Store| store.link(&artifact.token, folder.now);
        // As a backup that was played back: another file with the same bytes.
        fs::copy(&data, data.with_extension("copy")).unwrap();
        fs::rename(data.with_extension("copy"), &data).unwrap();
        for store in [&store, &store, &folder.open()] {
            assert!(matches!(link(store), Ok(Link::Live(..))));
        }
        // By somebody who sets the time back that he can set.
        let modified = fs::metadata(&data).unwrap().modified().unwrap();
        for changed in ["Bytes", "more bytes", ""] {
            fs::write(&data, changed).unwrap();
            let file = File::options().append(true).open(&data).unwrap();
            file.set_modified(modified).unwrap();
            let refused = link(&store).unwrap_err().to_string();
            assert!(
                refused.contains("not those that were published"),
                "{refused}"
            );
        }
        fs::write(&data, "bytes").unwrap();
        assert!(matches!(link(&store), Ok(Link::Live(..))));
        fs::write(&data, "Bytes").unwrap();
        assert!(store.revoke(&artifact.token, folder.now).unwrap());
    }

    #[test]
    fn bytes_that_change_while_they_are_read_are_noticed_and_a_link_that_ends_is_no_change() {
        let folder = Folder::new();
        let store = folder.open();
        for change in [true, false] {
            let artifact = publish(&store, folder.now);
            let data = store.link_folder(&artifact.token).join(DATA);
            let Link::Live(_, bytes) = store.link(&artifact.token, folder.now).unwrap() else {
                panic!("it lives")
            };
            let (file, stamp) = bytes.into_parts();
            if change {
                // A clock of the kernel that stands still between two of its ticks would hide it.
                while fs::metadata(&data).unwrap().ctime_nsec() == stamp.changed.1 {
                    fs::write(&data, "Bytes").unwrap();
                }
            } else {
                store.revoke(&artifact.token, folder.now).unwrap();
            }
            assert_eq!(stamp.still_holds(&file).unwrap(), !change);
        }
    }

    #[test]
    fn a_link_from_a_workspace_that_another_took_over_is_not_made() {
        let folder = Folder::new();
        let (one, two) = (folder.open(), folder.open());
        let job = one
            .create_job(&crate::testing::new_job(), folder.now)
            .unwrap();
        one.acquire(&job, folder.now).unwrap();
        let artifact = Artifact {
            job: job.id(),
            token: LinkToken::random(),
            ..publish(&one, folder.now)
        };
        let publish = |store: &Store| store.stage_link().unwrap().publish(store, &artifact);
        assert!(matches!(publish(&two), Err(StoreError::TakenOver)));
        publish(&one).unwrap();
    }

    fn publish(store: &Store, now: Timestamp) -> Artifact {
        let artifact = Artifact {
            token: LinkToken::random(),
            name: "売上.xlsx".into(),
            path: "売上.xlsx".into(),
            ascii_name: "file.xlsx".into(),
            size: 5,
            mime_type: "text/plain".into(),
            sha256: SHA256_OF_BYTES.into(),
            created_at: now,
            expires_at: later(now, 60),
            gone_at: None,
            gone: None,
            job: JobId::random(),
            server: "excel".into(),
            tool: "write".into(),
            principal: PrincipalHash::from(&Principal::Anonymous),
            other: Map::new(),
        };
        let mut staged = store.stage_link().unwrap();
        staged.data().write_all(b"bytes").unwrap();
        staged.publish(store, &artifact).unwrap();
        artifact
    }

    #[test]
    fn a_link_lives_then_is_gone_then_unknown() {
        let folder = Folder::new();
        let store = folder.open();
        let artifact = publish(&store, folder.now);
        let at = |seconds| {
            store
                .link(&artifact.token, later(folder.now, seconds))
                .unwrap()
        };
        match at(59) {
            Link::Live(found, mut data) => {
                let mut text = String::new();
                data.read_to_string(&mut text).unwrap();
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
        assert!(store.revoke(&artifact.token, folder.now).unwrap());
        assert!(!store.revoke(&artifact.token, folder.now).unwrap());
        let link = store.link(&artifact.token, folder.now).unwrap();
        assert!(matches!(link, Link::Gone(GoneReason::Revoked)));
        assert!(!store.link_folder(&artifact.token).join(DATA).exists());
        assert_eq!(store.artifacts_of(artifact.job).unwrap().len(), 1);
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
        let link = store.link(&artifact.token, folder.now).unwrap();
        assert!(matches!(link, Link::Unknown));
        assert!(!store.link_folder(&artifact.token).exists());
        assert_eq!(fs::read_dir(store.staging()).unwrap().count(), 0);
    }

    #[test]
    fn a_guessed_token_is_unknown_and_a_dropped_copy_leaves_nothing() {
        let folder = Folder::new();
        let store = folder.open();
        drop(store.stage_link().unwrap());
        assert_eq!(fs::read_dir(store.staging()).unwrap().count(), 0);
        let link = store.link(&LinkToken::random(), folder.now).unwrap();
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
