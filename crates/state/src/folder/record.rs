//! The records of a chat in its folder: `metadata.json`, and one line per call in `journal.jsonl`. They never
//! contain the chat's id or the user's name. The sizes in them add up to the disk usage of each owner.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use bridge_model::{FieldHasher, Job, JobId, Principal, hex, open_append};
use bridge_protocol::RawJson;
use jiff::Timestamp;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Map, Value};

use super::{
    ChatStore,
    files::{self, FileLock, StoreError, is_absent},
};

/// The owner of a chat or a link as written to disk: SHA-256 of the principal, in lower-case hex. Enough to
/// find a user's data, but it does not reveal the user.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PrincipalHash(Box<str>);

impl From<&Principal> for PrincipalHash {
    fn from(principal: &Principal) -> Self {
        let (kind, name) = principal.tagged();
        let mut hash = FieldHasher::new("mcpo-bridge principal v1");
        hash.text(kind);
        hash.text(name);
        Self(hex(&hash.finish()).into())
    }
}

/// The status of a chat: created → running ⇄ idle → ended | failed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobStatus {
    /// No call has run yet.
    #[default]
    Created,
    /// A call is being executed.
    Running,
    /// A session is live, no call is running.
    Idle,
    /// No session is live; kept until the retention ends.
    Ended,
    /// Like `Ended`, and the last call failed; `error` has the reason.
    Failed,
}

/// A process that runs in the chat.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveSession {
    /// The server's name.
    pub server: String,
    /// Its number among the children of the lease's instance.
    #[serde(default)]
    pub number: u64,
    /// The child's process id, on the host of the lease's instance; `None` for a remote server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// The time of its start.
    pub started_at: Timestamp,
}

/// The content of `metadata.json`. Fields of other versions are kept in `other`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Metadata {
    /// The folder's name.
    pub job_id: JobId,
    /// Keys (hashes, hex) that refer to this folder.
    #[serde(default)]
    pub session_keys: Vec<String>,
    /// The owner.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub principal: Option<PrincipalHash>,
    /// It has no owner yet: it was created for a process that waits for its first caller.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unclaimed: bool,
    /// The servers that ran in it.
    #[serde(default)]
    pub server_names: Vec<String>,
    /// The time of its creation, ISO 8601.
    pub created_at: Timestamp,
    /// The end of the last call: the retention starts here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_call_at: Option<Timestamp>,
    /// The disk usage of `work/`, `home/` and `tmp/` at that time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// The status.
    #[serde(default)]
    pub status: JobStatus,
    /// The error of the last call, if it failed. Contains no secrets and no arguments.
    #[serde(default)]
    pub error: Option<String>,
    /// The live children.
    #[serde(default)]
    pub live_sessions: Vec<LiveSession>,
    /// Attached files that were copied into the chat: their ids in Open WebUI, and their names.
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

impl ChatStore {
    /// Reads the metadata. If the file is corrupt or missing, this is logged and the metadata is derived from
    /// the folder. If it cannot be read, that is an error: the file may be intact.
    pub(super) fn metadata(&self, job: &Job) -> Result<Metadata, StoreError> {
        self.read_metadata(job).map(|(metadata, _)| metadata)
    }

    /// The same, and whether it is the file's content.
    #[allow(clippy::unused_self)] // where the records are is an internal detail of the store
    pub(super) fn read_metadata(&self, job: &Job) -> Result<(Metadata, Kept), StoreError> {
        let why = match read(job) {
            Ok(Some(metadata)) if metadata.job_id == job.id() => return Ok((metadata, Kept::Yes)),
            Ok(Some(_)) => "it belongs to another workspace".to_owned(),
            Ok(None) => "it does not exist".to_owned(),
            Err(error) if is_torn(job, &error) => error.to_string(),
            Err(error) => return Err(files::at("read", &path(job))(error)),
        };
        tracing::warn!(
            job = ?job.id(),
            why,
            "metadata.json is corrupt; the owner of the chat is unknown until its next call"
        );
        self.metadata_of_folder(job)
    }

    /// The metadata that can be derived from the folder itself.
    #[allow(clippy::unused_self)] // where the records are is an internal detail of the store
    pub(super) fn metadata_of_folder(&self, job: &Job) -> Result<(Metadata, Kept), StoreError> {
        let found = match fs::symlink_metadata(job.folder()) {
            Ok(found) => found,
            Err(error) if is_absent(&error) => return Err(StoreError::JobGone),
            Err(error) => return Err(files::at("inspect", job.folder())(error)),
        };
        let of = |time: io::Result<std::time::SystemTime>| {
            let time = time.ok().and_then(|time| Timestamp::try_from(time).ok());
            time.unwrap_or(Timestamp::UNIX_EPOCH)
        };
        let mut metadata =
            Metadata::empty(job.id(), of(found.created().or_else(|_| found.modified())));
        // Every record that the store writes or removes in the folder changes its modification time, so that
        // is the best estimate of the end of the last call.
        metadata.last_call_at = Some(of(found.modified()));
        Ok((metadata, Kept::No))
    }

    /// The attached files that were copied into the chat.
    pub fn attachments(&self, job: JobId) -> Result<BTreeMap<String, String>, StoreError> {
        Ok(self.metadata(&self.job_at(job))?.attachments)
    }

    /// Changes the metadata atomically, also across replicas; returns the new metadata.
    pub(super) fn update_metadata(
        &self,
        job: &Job,
        fence: u64,
        change: impl FnOnce(&mut Metadata),
    ) -> Result<Metadata, StoreError> {
        let _lock = FileLock::job(job)?;
        self.refuse_fenced(job, fence)?;
        let (mut metadata, kept) = self.read_metadata(job)?;
        change(&mut metadata);
        if kept == Kept::No {
            // The remains of the file may show the owner to an administrator.
            let _ = fs::rename(path(job), job.folder().join(BROKEN));
        }
        self.write_metadata(job, &metadata)?;
        Ok(metadata)
    }

    /// Replaces the metadata. The caller holds the folder's lock.
    pub(super) fn write_metadata(&self, job: &Job, metadata: &Metadata) -> Result<(), StoreError> {
        let path = path(job);
        files::write_json(&path, metadata, self.staging()).map_err(files::at("write", &path))
    }
}

/// Whether metadata is the content of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kept {
    Yes,
    /// The file is corrupt or missing: the metadata was derived from the folder.
    No,
}

const FILE: &str = "metadata.json";
/// Name under which a corrupt file is kept.
const BROKEN: &str = "metadata.broken.json";

fn path(job: &Job) -> PathBuf {
    job.folder().join(FILE)
}

fn read(job: &Job) -> io::Result<Option<Metadata>> {
    files::read_json(&path(job))
}

/// Whether the record is a corrupt regular file. Anything else at its path is not touched.
fn is_torn(job: &Job, error: &io::Error) -> bool {
    let regular = || fs::symlink_metadata(path(job)).is_ok_and(|found| found.is_file());
    error.kind() == io::ErrorKind::InvalidData && regular()
}

/// Whether the chat has records of live processes. An unreadable record counts as having some.
pub(super) fn has_live_sessions(job: &Job) -> Result<bool, StoreError> {
    match read(job) {
        Ok(found) => Ok(found.is_some_and(|metadata| !metadata.live_sessions.is_empty())),
        Err(error) if files::is_broken(&error) => Ok(true),
        Err(error) => Err(files::at("read", &path(job))(error)),
    }
}

/// How much of a call is recorded (`MCPO_JOURNAL`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JournalMode {
    /// Including requests and responses, each truncated at 64 KiB.
    Full,
    /// Without requests and responses.
    Metadata,
    /// Nothing.
    Off,
}

/// One call, as written to its line on disk.
#[derive(Debug, Clone, Serialize)]
pub struct JournalEntry<'a> {
    /// The time of its arrival.
    pub at: Timestamp,
    /// Time from arrival to answer.
    #[serde(rename = "duration_ms", serialize_with = "milliseconds")]
    pub duration: Duration,
    /// The request id of the logs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<&'a str>,
    /// The server's name.
    pub server: &'a str,
    /// The tool's name.
    pub tool: &'a str,
    /// `ok`, `tool_error`, `timeout`, … as in the audit log.
    pub outcome: &'a str,
    /// The error, if it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<&'a str>,
    /// The arguments.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request: Option<JournalBody<'a>>,
    /// The result.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response: Option<JournalBody<'a>>,
    /// Files that it created or changed, by display name.
    pub files: &'a [String],
}

const BODY_LIMIT: usize = 64 * 1024;
const FILE_LIMIT: u64 = 16 * 1024 * 1024;

/// A complete body, or its beginning with the marker `"cut": true`.
#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
pub enum JournalBody<'a> {
    /// The complete body.
    Whole(&'a RawJson),
    /// The beginning of a long body.
    Cut {
        /// Always `true`.
        cut: bool,
        /// The complete length.
        bytes: usize,
        /// The text that is kept.
        head: Cow<'a, str>,
    },
}

impl<'a> From<&'a RawJson> for JournalBody<'a> {
    fn from(body: &'a RawJson) -> Self {
        match body.as_bytes() {
            bytes if bytes.len() <= BODY_LIMIT => Self::Whole(body),
            bytes => Self::Cut {
                cut: true,
                bytes: bytes.len(),
                head: String::from_utf8_lossy(&bytes[..BODY_LIMIT]),
            },
        }
    }
}

fn milliseconds<S: Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
    time.as_millis().serialize(to)
}

impl JournalEntry<'_> {
    /// The call as a line; empty if the mode records none.
    pub fn line(&self, mode: JournalMode) -> Vec<u8> {
        let without_bodies = || Self {
            request: None,
            response: None,
            ..self.clone()
        };
        let line = match mode {
            JournalMode::Full => serde_json::to_vec(self),
            JournalMode::Metadata => serde_json::to_vec(&without_bodies()),
            JournalMode::Off => return Vec::new(),
        };
        let mut line = line.unwrap_or_default();
        // A body may contain line ends. JSON strings contain no raw ones, so replacing them is safe.
        for byte in &mut line {
            if matches!(byte, b'\n' | b'\r') {
                *byte = b' ';
            }
        }
        line.push(b'\n');
        line
    }
}

impl ChatStore {
    /// Appends lines of [`JournalEntry::line`]. The file is rotated once (`journal.1.jsonl`) at 16 MiB.
    pub(super) fn append_to_journal(
        &self,
        job: &Job,
        fence: u64,
        lines: &[u8],
    ) -> Result<(), StoreError> {
        if lines.is_empty() {
            return Ok(());
        }
        let path = job.folder().join("journal.jsonl");
        let _lock = FileLock::job(job)?;
        self.refuse_fenced(job, fence)?;
        append(&path, lines, FILE_LIMIT).map_err(files::at("append to", &path))
    }
}

fn append(path: &Path, line: &[u8], limit: u64) -> io::Result<()> {
    let mut file = open_append(path)?;
    let size = file.metadata()?.len();
    if size > 0 && size + line.len() as u64 > limit {
        fs::rename(path, path.with_extension("1.jsonl"))?;
        file = open_append(path)?;
    }
    file.write_all(line)
}

// The sum of the sizes in these records and in those of links.

/// Bytes by owner: as counted by the last round, plus later changes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DiskUsage {
    of_principal: HashMap<PrincipalHash, u64>,
    of_job: HashMap<JobId, u64>,
    all: u64,
}

impl DiskUsage {
    /// Records the current size of a chat.
    pub fn note_job(&mut self, owner: &PrincipalHash, job: JobId, bytes: u64) {
        let before = self.of_job.insert(job, bytes).unwrap_or_default();
        let own = self.of_principal.entry(owner.clone()).or_default();
        *own = own.saturating_sub(before).saturating_add(bytes);
        self.all = self.all.saturating_sub(before).saturating_add(bytes);
    }

    /// Adds the size of a new link.
    pub fn note_link(&mut self, owner: &PrincipalHash, bytes: u64) {
        let own = self.of_principal.entry(owner.clone()).or_default();
        *own = own.saturating_add(bytes);
        self.all = self.all.saturating_add(bytes);
    }

    /// Adds the result of another thread.
    pub(super) fn add(&mut self, other: Self) {
        for (owner, bytes) in other.of_principal {
            let own = self.of_principal.entry(owner).or_default();
            *own = own.saturating_add(bytes);
        }
        self.of_job.extend(other.of_job);
        self.all = self.all.saturating_add(other.all);
    }

    /// All bytes of this owner.
    pub fn of_owner(&self, owner: &PrincipalHash) -> u64 {
        self.of_principal.get(owner).copied().unwrap_or_default()
    }

    /// The size of a chat, if known.
    pub fn of_job(&self, job: JobId) -> Option<u64> {
        self.of_job.get(&job).copied()
    }

    /// All bytes.
    pub fn all(&self) -> u64 {
        self.all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Folder, new_chat};

    #[test]
    fn updates_from_many_threads_all_count() {
        let folder = Folder::new();
        let stores = [folder.open(), folder.open()];
        let job = stores[0].create_job(&new_chat(), folder.now).unwrap();
        std::thread::scope(|scope| {
            for number in 0..16 {
                let (store, job) = (&stores[number % 2], &job);
                scope.spawn(move || {
                    let add = |m: &mut Metadata| m.server_names.push(format!("s{number}"));
                    store.update_metadata(job, 0, add).unwrap();
                });
            }
        });
        assert_eq!(stores[0].metadata(&job).unwrap().server_names.len(), 16);
    }

    #[test]
    fn unknown_fields_survive() {
        let folder = Folder::new();
        let store = folder.open();
        let job = store.create_job(&new_chat(), folder.now).unwrap();
        let path = job.folder().join("metadata.json");
        let mut json: Value = files::read_json(&path).unwrap().unwrap();
        json["from_the_future"] = 7.into();
        files::write_json(&path, &json, store.staging()).unwrap();
        store
            .update_metadata(&job, 0, |metadata| metadata.status = JobStatus::Idle)
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
        let job = store.create_job(&new_chat(), folder.now).unwrap();
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
        store.update_metadata(&job, 0, server).unwrap();
        assert_eq!(store.metadata(&job).unwrap().server_names, ["excel"]);
        let kept = fs::read_to_string(job.folder().join(BROKEN)).unwrap();
        assert_eq!(kept, "[]", "what is left of it stays for the operator");
    }

    #[test]
    fn a_torn_file_has_its_owner_again_with_the_chats_next_call() {
        use crate::testing::key;
        let folder = Folder::new();
        let open = |store: &ChatStore| {
            let opened = store.acquire_chat(&key("c"), &new_chat(), folder.now);
            opened.unwrap().job
        };
        let job = folder.crash(open);
        fs::write(path(&job), "").unwrap();
        let store = folder.open();
        assert_eq!(store.metadata(&job).unwrap().principal, None);
        assert_eq!(open(&store).id(), job.id());
        let metadata = store.metadata(&job).unwrap();
        assert_eq!(metadata.principal, Some(new_chat().principal));
        assert_eq!(metadata.session_keys, [key("c").to_hex()]);
    }

    #[test]
    fn what_cannot_be_read_is_never_rewritten() {
        use std::os::unix::fs::MetadataExt as _;

        use rustix::fs::{CWD, Mode, mkfifoat};

        let folder = Folder::new();
        let store = folder.open();
        let job = store.create_job(&new_chat(), folder.now).unwrap();
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
            store.update_metadata(&job, 0, idle).unwrap_err();
            assert_eq!(fs::symlink_metadata(&path).unwrap().ino(), seen.ino());
            crate::remove_tree(&path).unwrap();
            fs::rename(&aside, &path).unwrap();
            let metadata = store.metadata(&job).unwrap();
            assert_eq!(metadata.principal, Some(new_chat().principal));
        }
    }

    #[test]
    fn nothing_is_written_into_a_workspace_that_another_holds() {
        let folder = Folder::new();
        let (one, two) = (folder.open(), folder.open());
        let job = one.create_job(&new_chat(), folder.now).unwrap();
        one.acquire_lease(&job, folder.now).unwrap();
        let idle = |metadata: &mut Metadata| metadata.status = JobStatus::Idle;
        let refused = two.update_metadata(&job, 0, idle);
        assert!(matches!(refused, Err(StoreError::Fenced)), "{refused:?}");
        one.update_metadata(&job, 0, idle).unwrap();
    }

    fn entry<'a>(request: &'a RawJson, response: &'a RawJson) -> JournalEntry<'a> {
        JournalEntry {
            at: Timestamp::UNIX_EPOCH,
            duration: std::time::Duration::from_millis(12),
            request_id: None,
            server: "excel",
            tool: "write",
            outcome: "ok",
            error: None,
            request: Some(request.into()),
            response: Some(response.into()),
            files: &[],
        }
    }

    fn raw(text: &str) -> RawJson {
        RawJson::parse(text.to_owned().into()).unwrap()
    }

    #[test]
    fn one_line_for_each_call_whatever_the_bodies_look_like() {
        let folder = Folder::new();
        let store = folder.open();
        let job = store.create_job(&new_chat(), folder.now).unwrap();
        let (pretty, long) = (
            raw("{\n \"a\": 1.0\r\n}"),
            raw(&format!("\"{}\"", "売".repeat(50_000))),
        );
        for mode in [JournalMode::Full, JournalMode::Metadata, JournalMode::Off] {
            let line = entry(&pretty, &long).line(mode);
            store.append_to_journal(&job, 0, &line).unwrap();
        }
        let text = fs::read_to_string(job.folder().join("journal.jsonl")).unwrap();
        let lines: Vec<Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(lines.len(), 2);
        assert!(text.contains("1.0"));
        assert_eq!(lines[0]["response"]["cut"], true);
        assert_eq!(lines[0]["response"]["bytes"], long.as_bytes().len());
        assert!(text.len() < 2 * BODY_LIMIT);
        assert!(lines[1].get("request").is_none());
    }

    #[test]
    fn rotates_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal.jsonl");
        for line in ["one\n", "two\n", "three\n"] {
            append(&path, line.as_bytes(), 8).unwrap();
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), "three\n");
        let old = fs::read_to_string(dir.path().join("journal.1.jsonl")).unwrap();
        assert_eq!(old, "one\ntwo\n");
    }
}
