//! `metadata.json`: what the store knows of a workspace. Never the chat id or the user's name.

use std::{collections::BTreeMap, fs, io, path::PathBuf};

use bridge_model::{Job, JobId};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{PrincipalHash, Store, StoreError, error::is_absent, files, lock::FileLock};

/// Where a workspace is in its life: created → running ⇄ idle → ended | failed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobStatus {
    /// No call has run yet.
    #[default]
    Created,
    /// A call is being executed.
    Running,
    /// A session lives, no call runs.
    Idle,
    /// No session lives; kept until retention is over.
    Ended,
    /// As `Ended`, and the last call failed; `error` says why.
    Failed,
}

/// A child that works in the workspace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveSession {
    /// The server's name.
    pub server: String,
    /// Its own among the children of the lease's instance.
    #[serde(default)]
    pub number: u64,
    /// The child's process id, on the host of the lease's instance; none for a remote server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// When it was started.
    pub started_at: Timestamp,
}

/// The file's content. Fields of other versions survive in `other`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Metadata {
    /// The folder's name.
    pub job_id: JobId,
    /// Workspace keys (hashes, hex) bound to this folder.
    #[serde(default)]
    pub session_keys: Vec<String>,
    /// Whose it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub principal: Option<PrincipalHash>,
    /// It is nobody's: made for a process that waits for whom it will work for.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unclaimed: bool,
    /// The servers that worked in it.
    #[serde(default)]
    pub server_names: Vec<String>,
    /// ISO 8601.
    pub created_at: Timestamp,
    /// The end of the last call: retention counts from here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_call_at: Option<Timestamp>,
    /// What `work/`, `home/` and `tmp/` took of the disk then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Where it is in its life.
    #[serde(default)]
    pub status: JobStatus,
    /// Why the last call failed, if it did. No secrets, no arguments.
    #[serde(default)]
    pub error: Option<String>,
    /// The children that work in it.
    #[serde(default)]
    pub live_sessions: Vec<LiveSession>,
    /// Attached files of the chat that were brought here: their ids in Open WebUI, and their names.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub attachments: BTreeMap<String, String>,
    /// Fields that this version does not know.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

impl Metadata {
    pub(super) fn empty(job_id: JobId, created_at: Timestamp) -> Self {
        Self {
            job_id,
            session_keys: Vec::new(),
            principal: None,
            unclaimed: false,
            server_names: Vec::new(),
            created_at,
            last_call_at: None,
            bytes: None,
            status: JobStatus::default(),
            error: None,
            live_sessions: Vec::new(),
            attachments: BTreeMap::new(),
            other: Map::new(),
        }
    }
}

impl Store {
    /// Reads the metadata. Where its file is torn or missing, that is logged and what can be seen of
    /// the folder is returned. Where it cannot be read, that is an error: what is there may be whole.
    pub fn metadata(&self, job: &Job) -> Result<Metadata, StoreError> {
        self.read_metadata(job).map(|(metadata, _)| metadata)
    }

    /// The same, and whether it is the file's content.
    #[allow(clippy::unused_self)] // where the records lie is the store's to know
    pub(super) fn read_metadata(&self, job: &Job) -> Result<(Metadata, Kept), StoreError> {
        let why = match read(job) {
            Ok(Some(metadata)) if metadata.job_id == job.id() => return Ok((metadata, Kept::Yes)),
            Ok(Some(_)) => "it is of another workspace".to_owned(),
            Ok(None) => "it is not there".to_owned(),
            Err(error) if is_torn(job, &error) => error.to_string(),
            Err(error) => return Err(files::at("read", &path(job))(error)),
        };
        tracing::warn!(
            job = ?job.id(),
            why,
            "metadata.json is broken: whose the workspace is is not known until its chat is heard \
             of again"
        );
        self.metadata_of_folder(job)
    }

    /// What can be seen of the folder itself.
    #[allow(clippy::unused_self)] // where the records lie is the store's to know
    pub(super) fn metadata_of_folder(&self, job: &Job) -> Result<(Metadata, Kept), StoreError> {
        let found = match fs::symlink_metadata(job.folder()) {
            Ok(found) => found,
            Err(error) if is_absent(&error) => return Err(StoreError::JobGone),
            Err(error) => return Err(files::at("look at", job.folder())(error)),
        };
        let of = |time: io::Result<std::time::SystemTime>| {
            let time = time.ok().and_then(|time| Timestamp::try_from(time).ok());
            time.unwrap_or(Timestamp::UNIX_EPOCH)
        };
        let mut metadata =
            Metadata::empty(job.id(), of(found.created().or_else(|_| found.modified())));
        // Every record that we write or remove there changes the folder: the nearest thing to the
        // end of the last call.
        metadata.last_call_at = Some(of(found.modified()));
        Ok((metadata, Kept::No))
    }

    /// Changes the metadata as one step, also among replicas; returns what was written.
    pub fn update_metadata(
        &self,
        job: &Job,
        change: impl FnOnce(&mut Metadata),
    ) -> Result<Metadata, StoreError> {
        let _lock = FileLock::job(job)?;
        self.refuse_others(job)?;
        let (mut metadata, kept) = self.read_metadata(job)?;
        change(&mut metadata);
        let path = path(job);
        if matches!(kept, Kept::No) {
            // What is left of it may tell an operator whose it was.
            let _ = fs::rename(&path, path.with_file_name(BROKEN));
        }
        files::write_json(&path, &metadata, self.staging()).map_err(files::at("write", &path))?;
        Ok(metadata)
    }
}

/// Whether metadata is what the file says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kept {
    Yes,
    /// The file is torn or missing: it was put together from what can be seen.
    No,
}

const FILE: &str = "metadata.json";
/// What a torn file is kept as.
const BROKEN: &str = "metadata.broken.json";

fn path(job: &Job) -> PathBuf {
    job.folder().join(FILE)
}

fn read(job: &Job) -> io::Result<Option<Metadata>> {
    files::read_json(&path(job))
}

/// A file of ours that is torn, and not something else in its place, which is left alone.
fn is_torn(job: &Job, error: &io::Error) -> bool {
    let regular = || fs::symlink_metadata(path(job)).is_ok_and(|found| found.is_file());
    error.kind() == io::ErrorKind::InvalidData && regular()
}

/// Whether processes are noted in a workspace. Where that cannot be known there may be some.
pub(super) fn has_live_sessions(job: &Job) -> Result<bool, StoreError> {
    match read(job) {
        Ok(found) => Ok(found.is_some_and(|metadata| !metadata.live_sessions.is_empty())),
        Err(error) if files::is_broken(&error) => Ok(true),
        Err(error) => Err(files::at("read", &path(job))(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Folder, new_job};

    #[test]
    fn updates_from_many_threads_all_count() {
        let folder = Folder::new();
        let stores = [folder.open(), folder.open()];
        let job = stores[0].create_job(&new_job(), folder.now).unwrap();
        std::thread::scope(|scope| {
            for number in 0..16 {
                let (store, job) = (&stores[number % 2], &job);
                scope.spawn(move || {
                    let add = |m: &mut Metadata| m.server_names.push(format!("s{number}"));
                    store.update_metadata(job, add).unwrap();
                });
            }
        });
        assert_eq!(stores[0].metadata(&job).unwrap().server_names.len(), 16);
    }

    #[test]
    fn what_another_version_wrote_survives() {
        let folder = Folder::new();
        let store = folder.open();
        let job = store.create_job(&new_job(), folder.now).unwrap();
        let path = job.folder().join("metadata.json");
        let mut json: Value = files::read_json(&path).unwrap().unwrap();
        json["from_the_future"] = 7.into();
        files::write_json(&path, &json, store.staging()).unwrap();
        store
            .update_metadata(&job, |metadata| metadata.status = JobStatus::Idle)
            .unwrap();
        let json: Value = files::read_json(&path).unwrap().unwrap();
        assert_eq!(json["from_the_future"], 7);
        assert_eq!(json["status"], "idle");
        assert_eq!(json["created_at"], folder.now.to_string());
    }

    #[test]
    fn a_corrupt_file_is_rebuilt() {
        let folder = Folder::new();
        let store = folder.open();
        let job = store.create_job(&new_job(), folder.now).unwrap();
        let path = job.folder().join("metadata.json");
        for broken in ["", "{\"job_id\":", "[]"] {
            fs::write(&path, broken).unwrap();
            let rebuilt = store.metadata(&job).unwrap();
            assert_eq!(rebuilt.job_id, job.id());
            assert!(
                rebuilt
                    .created_at
                    .duration_since(folder.now)
                    .as_secs()
                    .abs()
                    < 60
            );
        }
        let server = |metadata: &mut Metadata| metadata.server_names = vec!["excel".into()];
        store.update_metadata(&job, server).unwrap();
        assert_eq!(store.metadata(&job).unwrap().server_names, ["excel"]);
        let kept = fs::read_to_string(job.folder().join(BROKEN)).unwrap();
        assert_eq!(kept, "[]", "what is left of it stays for the operator");
    }

    #[test]
    fn a_torn_file_has_its_owner_again_with_the_chats_next_call() {
        use crate::testing::key;
        let folder = Folder::new();
        let open = |store: &Store| {
            let opened = store.open_workspace(&key("c"), &new_job(), folder.now);
            opened.unwrap().job
        };
        let job = folder.crash(open);
        fs::write(path(&job), "").unwrap();
        let store = folder.open();
        assert_eq!(store.metadata(&job).unwrap().principal, None);
        assert_eq!(open(&store).id(), job.id());
        let metadata = store.metadata(&job).unwrap();
        assert_eq!(metadata.principal, Some(new_job().principal));
        assert_eq!(metadata.session_keys, [key("c").to_hex()]);
    }

    #[test]
    fn what_cannot_be_read_is_never_rewritten() {
        use std::os::unix::fs::MetadataExt as _;

        use rustix::fs::{CWD, Mode, mkfifoat};

        let folder = Folder::new();
        let store = folder.open();
        let job = store.create_job(&new_job(), folder.now).unwrap();
        let (path, aside) = (path(&job), job.folder().join("aside"));
        let places: [fn(&std::path::Path); 4] = [
            |path| std::os::unix::fs::symlink("/etc/passwd", path).unwrap(),
            |path| std::os::unix::fs::symlink("metadata.json", path).unwrap(),
            |path| mkfifoat(CWD, path, Mode::RUSR | Mode::WUSR).unwrap(),
            |path| fs::create_dir(path).unwrap(),
        ];
        for put in places {
            fs::rename(&path, &aside).unwrap();
            put(&path);
            let seen = fs::symlink_metadata(&path).unwrap();
            store.metadata(&job).unwrap_err();
            let idle = |metadata: &mut Metadata| metadata.status = JobStatus::Idle;
            store.update_metadata(&job, idle).unwrap_err();
            assert_eq!(fs::symlink_metadata(&path).unwrap().ino(), seen.ino());
            crate::remove::remove_tree(&path).unwrap();
            fs::rename(&aside, &path).unwrap();
            let metadata = store.metadata(&job).unwrap();
            assert_eq!(metadata.principal, Some(new_job().principal));
        }
    }

    #[test]
    fn nothing_is_written_into_a_workspace_that_another_holds() {
        let folder = Folder::new();
        let (one, two) = (folder.open(), folder.open());
        let job = one.create_job(&new_job(), folder.now).unwrap();
        one.acquire(&job, folder.now).unwrap();
        let idle = |metadata: &mut Metadata| metadata.status = JobStatus::Idle;
        let refused = two.update_metadata(&job, idle);
        assert!(matches!(refused, Err(StoreError::TakenOver)), "{refused:?}");
        one.update_metadata(&job, idle).unwrap();
    }
}
