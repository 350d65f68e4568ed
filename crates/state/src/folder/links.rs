//! Published files on disk: the record `meta.json` and the bytes `data` under a random token.

use std::{
    borrow::Cow,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use bridge_model::{JobId, LinkToken};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{
    ChatStore,
    blobs::{self, Blob, BlobId, Stamp},
    files::{self, StoreError, is_disk_full},
    lease::Lease,
    record::PrincipalHash,
};

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

    pub(super) fn link_folder(&self, token: &LinkToken) -> PathBuf {
        let name = token.as_str();
        self.bridge("artifacts").join(&name[..2]).join(name)
    }
}

/// Updates the record first, so that no record refers to deleted bytes. On a full disk the order is reversed,
/// because the record may need the space of the bytes.
fn end_in_order(folder: &Path, write: impl Fn() -> io::Result<()>) -> io::Result<()> {
    match write() {
        Err(error) if is_disk_full(&error) => {
            blobs::delete(folder)?;
            write()
        }
        other => other.and_then(|()| blobs::delete(folder)),
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
    use std::io::Read as _;

    use super::{blobs::DATA, *};
    use crate::testing::{self, Folder, alice, artifact, later};

    #[test]
    fn a_link_from_a_workspace_that_another_took_over_is_not_made() {
        let folder = Folder::new();
        let (one, two) = (folder.open(), folder.open());
        let job = one
            .create_job(&crate::testing::new_chat(), folder.now)
            .unwrap();
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
