//! Publishes the files that a call left on disk, and checks the size of its folder.

use std::{io::Write as _, sync::Arc, time::Duration};

use bridge_model::{Job, JobFolderPaths, JobId, Principal};
use bridge_process::relative;
use bridge_protocol::RawJson;
use bridge_state::{ChatStore, DiskUsage, Lease, PrincipalHash};
use serde_json::Value;
use tokio::{
    sync::{Mutex, OwnedMutexGuard, oneshot},
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;

use super::{
    CallEngine, CallError, Notice, Published, Running,
    answer::{DiskLimit, UsedShare},
    attachments::put_under_free_name,
    blocking,
};
use crate::{
    artifacts,
    artifacts::{
        Embedded, Mentions, Patience, Place, PublishError, Publisher, RelativePath, Snapshot,
        SnapshotError, TrackedFiles, numbered,
    },
    config::{Mode, ServerSpec, Settings, WorkspaceScope},
    session::Workspace,
};

/// The name of the zip that holds several files of one call.
const ARCHIVE: &str = "files.zip";

/// Maximum number of names in a notice; the others are only counted.
const LISTED: usize = 20;

/// Maximum number of paths outside of the folder in a notice.
const LISTED_OUTSIDE: usize = 5;

/// Maximum length, in bytes, of answers that are searched for paths outside of the folder.
const SEARCHED: usize = 1 << 18;

/// A disk access that began in time may end this much later.
const LAST_STEP: Duration = Duration::from_secs(2);

impl CallEngine {
    /// Publishes the files that the call changed, and accepts them. Copying stops at `until`, or when the
    /// caller has `left`: then nothing is linked, and all changes are new to the next call.
    pub(super) async fn publish(
        self: &Arc<Self>,
        input: PublishInput,
        mut files: OwnedMutexGuard<TrackedFiles>,
        until: Instant,
        left: &CancellationToken,
    ) -> PublishResult {
        let given_up = left.child_token();
        let stop = given_up.clone().drop_guard();
        let (send, receive) = oneshot::channel();
        let (engine, left) = (self.clone(), left.clone());
        // The task keeps the folder's lock until it is done: no other call scans the folder meanwhile, and
        // none copies again what this one does not finish.
        tokio::task::spawn_blocking(move || {
            let patience = Patience::until(until, given_up);
            let result = engine.publish_now(&input, &mut files, &patience);
            let unsent = if left.is_cancelled() {
                Some(result)
            } else {
                files.accept();
                drop(files);
                send.send(result).err()
            };
            if let Some(Ok((published, _))) = unsent {
                engine.take_back(&published);
            }
        });
        // A disk that hangs delays neither the answer nor the chat.
        let result = timeout_at(until + LAST_STEP, receive).await;
        drop(stop);
        if let Ok(received) = result {
            return received.unwrap_or(Err(CallError::Left));
        }
        self.metrics.files_given_up(1);
        Ok(not_in_time())
    }

    fn publish_now(
        &self,
        input: &PublishInput,
        files: &mut TrackedFiles,
        patience: &Patience,
    ) -> PublishResult {
        let limits = snapshot_limits(&self.settings);
        let mut refused = Vec::new();
        let mut places = self.unpack(input, &mut refused);
        match files.look(&input.folder.job, &limits) {
            Ok(()) => {}
            // The tool has finished, so its result is returned nevertheless.
            Err(SnapshotError::Io(error)) => {
                let why = format!("cannot read the chat's folder: {error}");
                return Ok(not_linked(why));
            }
            // Only the call that exceeded the limit fails; later ones may be about to delete files.
            Err(over) => {
                files.set_over();
                let over = over.to_string();
                return if input.may_be_full() {
                    Ok(not_linked(over))
                } else {
                    Err(CallError::DiskFull(over))
                };
            }
        }
        let snapshot = files.now();
        let mut notices = Vec::from_iter(self.room(input, snapshot)?);
        if let [Notice::Full { limit, .. }] = &*notices
            && limit.share.is_some()
        {
            // The copies for the links would take as much disk space again.
            return Ok((Published::default(), notices));
        }
        let named = named_files(&input.spec.file_path_fields, &input.result);
        let named = named.into_iter().map(Place::work);
        let named = named.filter(|place| snapshot.has(place));
        let (changed, aside) = files.changed(&input.before.changed);
        for place in changed.into_iter().chain(named) {
            if !places.contains(&place) {
                places.push(place);
            }
        }
        let mentions = mentions(input, !aside.is_empty());
        if let Some(mentions) = &mentions {
            let alone = |place: &Place| {
                let name = place.path.name();
                !snapshot.files().any(|path| path.name() == name)
            };
            let named = |place: &Place| mentions.names(place, alone(place));
            places.extend(aside.into_iter().filter(named));
        }
        self.limit_files(&mut places, "more files", &mut refused);
        let published = self.link(input, &places, snapshot, patience, &mut refused);
        let linked = published.all().map(|artifact| artifact.size).sum();
        self.disk.note_links(&input.principal, linked);
        if !refused.is_empty() {
            notices.push(Notice::NotLinked(refused));
        }
        notices.extend(mentions.and_then(|mentions| outside(&mentions, &published)));
        Ok((published, notices))
    }

    fn limit_files<T>(&self, files: &mut Vec<T>, what: &str, refused: &mut Vec<String>) {
        let limit = self.settings.files.max_per_call;
        if files.len() > limit {
            let more = files.len() - limit;
            refused.push(format!("{more} {what} (MCPO_MAX_FILES_PER_CALL)"));
            files.truncate(limit);
        }
    }

    fn link(
        &self,
        input: &PublishInput,
        places: &[Place],
        snapshot: &Snapshot,
        patience: &Patience,
        refused: &mut Vec<String>,
    ) -> Published {
        let publisher = Publisher {
            store: &self.store,
            job: &input.folder.job,
            lease: &input.folder.lease,
            principal: &input.principal,
            server: &input.spec.name,
            tool: &input.tool,
            ttl: self.settings.files.expiry,
            max_bytes: self.settings.files.max_workspace_bytes,
            patience,
        };
        let mut published = Published::default();
        for (index, place) in places.iter().enumerate() {
            let error = match publisher.publish(place, snapshot) {
                Ok(artifact) => {
                    published.files.push(artifact);
                    continue;
                }
                Err(error) => error,
            };
            // The snapshot contains the file, so no later call copies it again by itself.
            let over = error.is_disk_full() || matches!(error, PublishError::GivenUp(_));
            if !over {
                refused.push(error.to_string());
                continue;
            }
            let rest = places.len() - index;
            self.metrics.files_given_up(rest as u64);
            let mut why = error.to_string();
            if rest > 1 {
                why = format!("{why}; {} more files were skipped", rest - 1);
            }
            if self.gives_links(&input.spec) {
                why.push_str(" (to try again, call get_link of the server files)");
            }
            refused.push(why);
            return published;
        }
        if published.files.len() > 1 {
            match publisher.publish_archive(ARCHIVE, &published.files) {
                Ok(archive) => published.archive = Some(Box::new(archive)),
                Err(error) => refused.push(error.to_string()),
            }
        }
        published
    }

    /// Whether a link can be requested later, because the built-in server works in the same folder.
    fn gives_links(&self, spec: &ServerSpec) -> bool {
        let of_chat = spec.mode == Mode::Stateful && spec.workspace == WorkspaceScope::Chat;
        of_chat && self.has_files_server()
    }

    fn has_files_server(&self) -> bool {
        self.settings.files.server && self.settings.stateful.enabled
    }

    /// Stores the files that the answer contains in the folder, and returns their places.
    fn unpack(&self, input: &PublishInput, refused: &mut Vec<String>) -> Vec<Place> {
        let mut files = artifacts::embedded(&input.result);
        self.limit_files(&mut files, "more files in the answer", refused);
        let (mut places, mut used) = (Vec::new(), input.before.bytes);
        let limit = self.disk.limit(&input.principal, input.folder.job.id());
        for file in files {
            used = used.saturating_add(file.bytes.len() as u64);
            let placed = if used > limit.bytes {
                Err(format!("with this file {}", limit.exceeded_by(used)))
            } else {
                self.check_free_disk()
                    .and_then(|()| self.free_path(input, &file))
                    .map_err(|error| error.to_string())
            };
            match placed {
                Ok(path) => places.push(Place::work(path)),
                Err(why) => refused.push(format!("{} in the answer: {why}", file.name)),
            }
        }
        places
    }

    /// A free path with the file's name, and a number if another file has that name.
    fn free_path(&self, input: &PublishInput, file: &Embedded) -> Result<RelativePath, CallError> {
        let is_it = |name: &String| {
            let path = input.folder.job.work().join(name);
            let found = std::fs::symlink_metadata(&path);
            found.is_ok_and(|it| it.is_file() && it.len() == file.bytes.len() as u64)
                && std::fs::read(&path).is_ok_and(|bytes| bytes == file.bytes)
        };
        let name = if is_it(&file.name) {
            // The file has the same content as after an earlier answer.
            file.name.clone()
        } else {
            let staged = self.store.blobs().stage()?;
            let data = staged.data();
            let written = data.and_then(|mut data| data.write_all(&file.bytes));
            written.map_err(CallError::internal)?;
            put_under_free_name(
                &self.store,
                &input.folder.lease,
                &staged,
                numbered(&file.name),
            )?
        };
        RelativePath::parse(name).map_err(CallError::internal)
    }

    /// Removes links that are in no answer.
    fn take_back(&self, published: &Published) {
        self.metrics.files_given_up(published.all().count() as u64);
        for artifact in published.all() {
            if let Err(error) = self.store.remove_link(&artifact.token) {
                tracing::warn!(%error, "link not revoked");
            }
        }
    }
}

/// The result if the disk did not respond in time.
pub(super) fn not_in_time() -> (Published, Vec<Notice>) {
    not_linked("the disk did not respond in time".to_owned())
}

/// The result without links, for this reason.
fn not_linked(why: String) -> (Published, Vec<Notice>) {
    (Published::default(), vec![Notice::NotLinked(vec![why])])
}

/// The paths in the call; `None` if they are not needed.
fn mentions(input: &PublishInput, wanted: bool) -> Option<Mentions> {
    let holds = |raw: &RawJson| raw.as_bytes().iter().any(|byte| b"/~\\".contains(byte));
    let arguments = input.arguments.as_ref();
    let useful = input.result.as_bytes().len() <= SEARCHED
        && (holds(&input.result) || arguments.is_some_and(holds));
    (wanted || useful).then(|| {
        let arguments = arguments.map(|raw| relative(raw.clone(), &input.folder.paths));
        Mentions::in_call(&input.tool, arguments.as_ref(), &input.result)
    })
}

/// Leaves out paths to a file whose name has a link, because that is probably the same file.
fn outside(mentions: &Mentions, published: &Published) -> Option<Notice> {
    let linked = |path: &String| {
        let name = path.rsplit(['/', '\\']).next().unwrap_or_default();
        published.files.iter().any(|file| file.name == name)
    };
    let mut paths = mentions.outside();
    paths.retain(|path| !linked(path));
    let more = paths.len().saturating_sub(LISTED_OUTSIDE);
    paths.truncate(LISTED_OUTSIDE);
    (!paths.is_empty()).then_some(Notice::Outside { paths, more })
}

/// Some file names of a workspace, for a model whose server was restarted.
pub fn inventory(snapshot: &Snapshot) -> Notice {
    let names = snapshot.files().map(|path| path.display().into_owned());
    let names: Vec<String> = names.collect();
    let more = names.len().saturating_sub(LISTED);
    Notice::MemoryLost {
        files: names.into_iter().take(LISTED).collect(),
        more,
    }
}

/// The files that the configured fields of a result name, at any depth.
fn named_files(fields: &[String], result: &RawJson) -> Vec<RelativePath> {
    let mut found = Vec::new();
    if fields.is_empty() {
        return found;
    }
    let Ok(result) = result.read::<Value>() else {
        return found;
    };
    collect(fields, &result["structuredContent"], &mut found);
    for block in result["content"].as_array().into_iter().flatten() {
        let text = block["text"].as_str().unwrap_or_default();
        if let Ok(value) = serde_json::from_str::<Value>(text) {
            collect(fields, &value, &mut found);
        }
    }
    found
}

fn collect(fields: &[String], value: &Value, found: &mut Vec<RelativePath>) {
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                if fields.contains(name) {
                    let one = member.as_str().into_iter();
                    let many = member.as_array().into_iter().flatten();
                    let paths = one.chain(many.filter_map(Value::as_str));
                    found.extend(paths.filter_map(|path| RelativePath::parse(path).ok()));
                }
                collect(fields, member, found);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| collect(fields, item, found)),
        _ => {}
    }
}

/// The folder of a call.
pub(super) struct Folder {
    pub job: Job,
    pub lease: Lease,
    /// Its paths as seen by its children.
    pub paths: JobFolderPaths,
    /// Its files.
    pub files: Arc<Mutex<TrackedFiles>>,
}

/// The folder before the call.
pub(super) struct Before {
    /// It exceeded the limits of a scan.
    pub over: bool,
    /// Its `home/` or `tmp/` exceeded them.
    pub over_aside: bool,
    /// Its disk usage.
    pub bytes: u64,
    /// The files that the call changed before it released its turn: they still count as its own.
    pub changed: Vec<Place>,
}

/// A call whose files are to be published.
pub(super) struct PublishInput {
    pub folder: Folder,
    pub before: Before,
    pub principal: Principal,
    pub spec: Arc<ServerSpec>,
    pub tool: Box<str>,
    pub arguments: Option<RawJson>,
    /// The result, with paths relative to the folder.
    pub result: RawJson,
}

impl PublishInput {
    /// Whether a full folder does not fail the call: it was full before, or the built-in server, which
    /// deletes files, was called.
    fn may_be_full(&self) -> bool {
        self.before.over || self.spec.is_files_server()
    }
}

/// Links and notices, or the error of the call.
pub(super) type PublishResult = Result<(Published, Vec<Notice>), CallError>;

/// The limits of a snapshot.
pub fn snapshot_limits(settings: &Settings) -> artifacts::Limits {
    let entries = settings.files.max_workspace_files as u64;
    artifacts::Limits {
        entries,
        ..artifacts::Limits::default()
    }
}

// The size of a chat's folder, checked before, during and after a call.

/// Delay of the first scan during a call, and minimum interval between two.
const WATCH: Duration = Duration::from_secs(1);

/// The pause after a scan is this many times its duration, so that large folders and slow disks are not
/// kept busy.
const REST: u32 = 20;

/// During a call the folder may exceed its limit by one part in this many: programs that save a file
/// have two copies of it for a moment.
const LEEWAY: u64 = 4;

impl CallEngine {
    /// Checks the size of the folder after a call. Only the call that exceeded the limit fails: others may
    /// list or delete files of a full folder. They get the notice.
    fn room(&self, input: &PublishInput, after: &Snapshot) -> Result<Option<Notice>, CallError> {
        let before = &input.before;
        let used = after.usage.bytes;
        let (owner, job) = (&input.principal, input.folder.job.id());
        self.disk.note_folder(owner, job, used);
        let limit = self.disk.limit(owner, job);
        if let Some(what) = &after.over_aside {
            let why = format!("{what}: {}", self.way_out());
            if input.may_be_full() || before.over_aside {
                return Ok(Some(Notice::NotLinked(vec![why])));
            }
            return Err(CallError::DiskFull(why));
        }
        if used <= limit.bytes {
            return Ok(None);
        }
        if input.may_be_full() || used <= before.bytes {
            return Ok(Some(Notice::Full { used, limit }));
        }
        Err(CallError::DiskFull(self.too_much(&limit, after)))
    }

    fn too_much(&self, limit: &DiskLimit, now: &Snapshot) -> String {
        let (used, aside) = (now.usage.bytes, now.aside_bytes);
        let why = limit.exceeded_by(used);
        let way_out = match limit.share {
            None => self.way_out(),
            Some(_) => "delete files here or in other chats, or wait until their links expire",
        };
        format!("{why} ({aside} in home/ and tmp/): {way_out}")
    }

    fn way_out(&self) -> &'static str {
        if self.has_files_server() {
            "delete files (delete_file of the server files; clear_temporary_files for home/ and \
             tmp/) or start a new chat"
        } else {
            "delete files or start a new chat"
        }
    }

    /// With too little free disk space no call begins.
    pub(super) fn check_free_disk(&self) -> Result<(), CallError> {
        let floor = self.settings.files.min_free_disk_bytes;
        let free = self.store.free_bytes()?;
        if free < floor {
            return Err(CallError::DiskFull(format!(
                "the disk of the workspaces has only {free} bytes free; at least {floor} are \
                 required (MCPO_MIN_FREE_DISK_BYTES)"
            )));
        }
        Ok(())
    }

    /// Takes a new snapshot of a folder, so that the next call is judged by its own changes.
    pub(super) async fn scan_again(self: &Arc<Self>, workspace: &Workspace) {
        let mut files = workspace.files.clone().lock_owned().await;
        let (job, limits) = (workspace.job.clone(), snapshot_limits(&self.settings));
        blocking(move || {
            match files.look(&job, &limits) {
                Ok(()) => {}
                Err(SnapshotError::Io(error)) => {
                    return tracing::debug!(%error, "folder not scanned");
                }
                Err(_) => files.set_over(),
            }
            files.accept();
        })
        .await;
    }

    /// A snapshot during a call.
    async fn measure(&self, job: &Job) -> Result<Snapshot, SnapshotError> {
        // One scan at a time, because nothing waits for it.
        let Ok(_permit) = self.measuring.acquire().await else {
            return Ok(Snapshot::default());
        };
        let (job, mut limits) = (job.clone(), snapshot_limits(&self.settings));
        limits.entries = limits.entries.saturating_add(limits.entries / LEEWAY);
        blocking(move || Snapshot::look(&job, &limits)).await
    }
}

impl Running {
    /// Whether the size of the folder is checked during the call.
    pub(super) fn is_watched(&self) -> bool {
        self.call.ask.is_tool_call() && !self.call.spec.is_files_server()
    }

    /// Resolves when the folder is far larger than its limit and than `before`: the call then fails.
    pub(super) async fn overfull(&self, job: &Job, before: u64) -> CallError {
        let (engine, owner) = (&self.engine, &self.call.caller.principal);
        let limit = engine.disk.limit(owner, job.id());
        let most = before
            .max(limit.bytes)
            .saturating_add(engine.settings.files.max_workspace_bytes / LEEWAY);
        let mut pause = WATCH;
        loop {
            tokio::time::sleep(pause).await;
            let began = Instant::now();
            match engine.measure(job).await {
                Ok(now) if now.usage.bytes > most => {
                    return CallError::OverQuota(engine.too_much(&limit, &now));
                }
                Ok(now) => {
                    if let Some(what) = &now.over_aside {
                        let why = format!("{what}: {}", engine.way_out());
                        return CallError::OverQuota(why);
                    }
                }
                Err(SnapshotError::Io(error)) => {
                    tracing::debug!(%error, "folder size not measured");
                }
                Err(over) => return CallError::OverQuota(over.to_string()),
            }
            pause = WATCH.max(began.elapsed() * REST);
        }
    }
}

// The share of the disk: a chat's folder may grow up to the limit of a folder, or up to the rest of its user's
// share.

/// The disk usage of users.
pub struct DiskShares {
    settings: Arc<Settings>,
    store: Arc<ChatStore>,
    usage: parking_lot::Mutex<DiskUsage>,
}

impl DiskShares {
    /// Starts without usage, until it is counted.
    pub fn new(settings: Arc<Settings>, store: Arc<ChatStore>) -> Self {
        Self {
            settings,
            store,
            usage: parking_lot::Mutex::default(),
        }
    }

    /// Replaces the usage by a new measurement.
    pub fn counted(&self, usage: DiskUsage) {
        *self.usage.lock() = usage;
    }

    /// Records the size of a folder.
    pub fn note_folder(&self, owner: &Principal, job: JobId, bytes: u64) {
        self.usage
            .lock()
            .note_job(&PrincipalHash::from(owner), job, bytes);
    }

    /// Records the size of new links.
    pub fn note_links(&self, owner: &Principal, bytes: u64) {
        if bytes > 0 {
            let owner = PrincipalHash::from(owner);
            self.usage.lock().note_link(&owner, bytes);
        }
    }

    /// The last known size of a folder.
    pub fn of_folder(&self, job: JobId) -> Option<u64> {
        self.usage.lock().of_job(job)
    }

    /// The limit of a folder.
    pub fn limit(&self, owner: &Principal, job: JobId) -> DiskLimit {
        let of_folder = self.settings.files.max_workspace_bytes;
        let share = match owner {
            Principal::User(_) => self.share_of(&PrincipalHash::from(owner), job),
            // Each of them may stand for many users.
            Principal::Key(_) | Principal::Anonymous => None,
        };
        let left = share.map(|share| share.bytes.saturating_sub(share.elsewhere));
        match left {
            Some(left) if left < of_folder => DiskLimit { bytes: left, share },
            _ => DiskLimit {
                bytes: of_folder,
                share: None,
            },
        }
    }

    fn share_of(&self, owner: &PrincipalHash, job: JobId) -> Option<UsedShare> {
        let (elsewhere, all) = {
            let usage = self.usage.lock();
            let elsewhere = usage
                .of_owner(owner)
                .saturating_sub(usage.of_job(job).unwrap_or_default());
            (elsewhere, usage.all())
        };
        let bytes = match self.settings.files.max_user_bytes {
            Some(bytes) => bytes,
            None => self.default_share(all)?,
        };
        Some(UsedShare { bytes, elsewhere })
    }

    /// Three quarters of the space for chats and links: the free space above the minimum, and the space
    /// that they already use.
    fn default_share(&self, all: u64) -> Option<u64> {
        let free = self.store.free_bytes().ok()?;
        let free = free.saturating_sub(self.settings.files.min_free_disk_bytes);
        Some(free.saturating_add(all) / 4 * 3)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn fields_are_found_in_text_and_structure_at_any_depth() {
        let result = RawJson::from_json(&json!({
            "content": [{"type": "text", "text": r#"{"saved":{"file_path":"a.xlsx"}}"#}],
            "structuredContent": {"all": [{"file_path": ["b/c.png", "/etc/passwd", "../x"]}]},
        }));
        let found = named_files(&["file_path".into()], &result);
        let names: Vec<_> = found
            .iter()
            .map(|path| path.display().into_owned())
            .collect();
        assert_eq!(names, ["b/c.png", "a.xlsx"]);
    }
}
