//! What a call left on disk becomes links.

use std::{io::Write as _, path::Path, sync::Arc, time::Duration};

use bridge_model::{Job, JobFolderPaths, Principal};
use bridge_process::relative;
use bridge_protocol::RawJson;
use bridge_state::Lease;
use serde_json::Value;
use tokio::{
    sync::{OwnedMutexGuard, oneshot},
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;

use super::{
    CallEngine, CallError, Notice, Published, Running, attachments::put_under_free_name, blocking,
    disk_share::DiskLimit,
};
use crate::{
    artifacts,
    artifacts::{
        ChangedFile, Embedded, Mentions, Origin, Patience, Place, PublishError, RelativePath,
        Snapshot, SnapshotError, numbered, publish, publish_archive,
    },
    config::{Mode, ServerSpec, Settings, WorkspaceScope},
    session::Workspace,
};

/// The name of the zip that holds several files of one call.
const ARCHIVE: &str = "files.zip";

/// Names that a notice lists before it only counts.
const LISTED: usize = 20;

/// Paths outside of the folder that a notice lists.
const LISTED_OUTSIDE: usize = 5;

/// Answers that are longer are not searched for paths outside of the folder.
const SEARCHED: usize = 1 << 18;

/// A step of the disk that began in time may end after it.
const LAST_STEP: std::time::Duration = std::time::Duration::from_secs(2);

/// A look at the folder after a call.
struct Found {
    /// What lies there now; the next look compares with it.
    snapshot: Snapshot,
    /// The links.
    published: Published,
    /// What the caller should know.
    notices: Vec<Notice>,
    /// The call has left more than may lie there, and why it fails for that.
    refused: Option<String>,
}

impl Found {
    /// Nothing is linked, for this reason.
    fn nothing(snapshot: Snapshot, why: Notice) -> Self {
        Self {
            snapshot,
            published: Published::default(),
            notices: vec![why],
            refused: None,
        }
    }

    /// Nothing is linked, and the call fails.
    fn refused(snapshot: Snapshot, why: String) -> Self {
        Self {
            snapshot,
            published: Published::default(),
            notices: Vec::new(),
            refused: Some(why),
        }
    }
}

impl CallEngine {
    /// Publishes what the call changed, and brings `seen` up to date. The copies stop at `until`, or
    /// when nobody waits any more because the caller `left`: then nothing is linked, and all of it is
    /// new to the next call.
    pub(super) async fn publish(
        self: &Arc<Self>,
        look: Look,
        mut seen: OwnedMutexGuard<Snapshot>,
        until: Instant,
        left: &CancellationToken,
    ) -> Looked {
        let given_up = left.child_token();
        let stop = given_up.clone().drop_guard();
        let (tell, told) = oneshot::channel();
        let (engine, left) = (self.clone(), left.clone());
        // It keeps the folder until it is done: no other call looks meanwhile, and none begins what
        // this one does not finish.
        tokio::task::spawn_blocking(move || {
            let found = engine.publish_now(&look, &Patience::until(until, given_up));
            if left.is_cancelled() {
                engine.take_back(&found.published);
                return;
            }
            *seen = found.snapshot;
            drop(seen);
            let looked = match found.refused {
                Some(why) => Err(CallError::DiskFull(why)),
                None => Ok((found.published, found.notices)),
            };
            if let Err(Ok((published, _))) = tell.send(looked) {
                engine.take_back(&published);
            }
        });
        // A disk that hangs holds up neither the answer nor the chat.
        let looked = timeout_at(until + LAST_STEP, told).await;
        drop(stop);
        match looked {
            Ok(Ok(looked)) => looked,
            Ok(Err(_)) => Err(CallError::Left),
            Err(_) => {
                self.metrics.files_given_up(1);
                Ok(not_in_time())
            }
        }
    }

    fn publish_now(&self, look: &Look, patience: &Patience) -> Found {
        let limits = snapshot_limits(&self.settings);
        let (job, before, spec) = (&look.job, &look.before, &look.maker.spec);
        let mut refused = Vec::new();
        let mut places = self.unpack(look, &mut refused);
        let snapshot = match Snapshot::look(job, &limits) {
            Ok(snapshot) => snapshot,
            // The tool has done its work: its result is not lost for that.
            Err(SnapshotError::Io(error)) => {
                let why = format!("cannot read the chat's folder: {error}");
                return Found::nothing(before.clone(), Notice::NotLinked(vec![why]));
            }
            // The call that made it so fails; later ones may be about to delete files.
            Err(over) if before.is_over() || spec.is_files_server() => {
                let why = Notice::NotLinked(vec![over.to_string()]);
                return Found::nothing(Snapshot::over(), why);
            }
            Err(over) => return Found::refused(Snapshot::over(), over.to_string()),
        };
        let mut notices = Vec::new();
        match self.room(look, &snapshot) {
            Room::Enough => {}
            Room::Over(notice) => {
                if let Notice::Full { limit, .. } = &notice
                    && limit.share.is_some()
                {
                    // Links take as much again.
                    return Found::nothing(snapshot, notice);
                }
                notices.push(notice);
            }
            Room::Refused(why) => return Found::refused(snapshot, why),
        }
        let changed = artifacts::changed(before, &snapshot);
        let changed = changed.into_iter().map(|ChangedFile { path, .. }| path);
        let named = named_files(&spec.file_path_fields, &look.result);
        let named = named.into_iter().filter(|path| snapshot.has(path));
        for place in changed.chain(named).map(Place::work) {
            if !places.contains(&place) {
                places.push(place);
            }
        }
        let aside = artifacts::changed_aside(before, &snapshot);
        let mentions = mentions(look, !aside.is_empty());
        if let Some(mentions) = &mentions {
            let alone = |place: &Place| {
                let name = place.path.name();
                !snapshot.files().any(|path| path.name() == name)
            };
            places.extend(
                aside
                    .into_iter()
                    .filter(|place| mentions.names(place, alone(place))),
            );
        }
        let limit = self.settings.files.max_per_call;
        if places.len() > limit {
            refused.push(format!(
                "{} more files (MCPO_MAX_FILES_PER_CALL)",
                places.len() - limit
            ));
            places.truncate(limit);
        }
        let published = self.link(look, &places, &snapshot, patience, &mut refused);
        let linked = published.all().map(|artifact| artifact.size).sum();
        self.disk.note_links(&look.maker.principal, linked);
        if !refused.is_empty() {
            notices.push(Notice::NotLinked(refused));
        }
        notices.extend(mentions.and_then(|mentions| outside(&mentions, &published)));
        Found {
            snapshot,
            published,
            notices,
            refused: None,
        }
    }

    fn link(
        &self,
        look: &Look,
        places: &[Place],
        snapshot: &Snapshot,
        patience: &Patience,
        refused: &mut Vec<String>,
    ) -> Published {
        let (job, maker) = (&look.job, &look.maker);
        let origin = Origin {
            lease: &look.lease,
            principal: &maker.principal,
            server: &maker.spec.name,
            tool: &maker.tool,
            ttl: self.settings.files.expiry,
            max_bytes: self.settings.files.max_workspace_bytes,
        };
        let mut published = Published::default();
        for (index, place) in places.iter().enumerate() {
            let now = self.store.now();
            let error = match publish(&self.store, job, place, snapshot, &origin, patience, now) {
                Ok(artifact) => {
                    published.files.push(artifact);
                    continue;
                }
                Err(error) => error,
            };
            // It is known from now on, and no later call begins it again unasked.
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
            if self.gives_links(&maker.spec) {
                why.push_str(" (to try again, call get_link of the server files)");
            }
            refused.push(why);
            return published;
        }
        if published.files.len() > 1 {
            let (files, now) = (&published.files, self.store.now());
            let packed = publish_archive(&self.store, ARCHIVE, files, &origin, patience, now);
            match packed {
                Ok(archive) => published.archive = Some(Box::new(archive)),
                Err(error) => refused.push(error.to_string()),
            }
        }
        published
    }

    /// Whether a later link can be asked for: the built-in server works in the folder, too.
    fn gives_links(&self, spec: &ServerSpec) -> bool {
        let settings = &self.settings;
        let offered = settings.files.server && settings.stateful.enabled;
        offered && spec.mode == Mode::Stateful && spec.workspace == WorkspaceScope::Chat
    }

    /// Puts files that came in the answer itself into the folder, and returns where they are.
    fn unpack(&self, look: &Look, refused: &mut Vec<String>) -> Vec<Place> {
        let mut files = artifacts::embedded(&look.result);
        let limit = self.settings.files.max_per_call;
        if files.len() > limit {
            refused.push(format!(
                "{} more files in the answer (MCPO_MAX_FILES_PER_CALL)",
                files.len() - limit
            ));
            files.truncate(limit);
        }
        let (mut places, mut used) = (Vec::new(), look.before.usage().bytes);
        let limit = self.disk.limit(&look.maker.principal, look.job.id());
        for file in files {
            used = used.saturating_add(file.bytes.len() as u64);
            let placed = if used > limit.bytes {
                Err(format!("with this file {}", limit.exceeded_by(used)))
            } else if let Err(error) = self.check_free_disk() {
                Err(error.to_string())
            } else {
                self.free_path(look, &file)
                    .map_err(|error| error.to_string())
            };
            match placed {
                Ok(path) => places.push(Place::work(path)),
                Err(why) => refused.push(format!("{} in the answer: {why}", file.name)),
            }
        }
        places
    }

    /// Under its name, or a number where another file has that.
    fn free_path(&self, look: &Look, file: &Embedded) -> Result<RelativePath, CallError> {
        let internal = |error: &dyn std::fmt::Display| CallError::Internal(error.to_string());
        let is_it = |name: &String| {
            let path = look.job.work().join(name);
            let length =
                std::fs::symlink_metadata(&path).map(|found| (found.is_file(), found.len()));
            length.is_ok_and(|found| found == (true, file.bytes.len() as u64))
                && std::fs::read(&path).is_ok_and(|bytes| bytes == file.bytes)
        };
        let name = if is_it(&file.name) {
            // The same answer as before.
            file.name.clone()
        } else {
            let staged = self.store.blobs().stage()?;
            let written = staged
                .data()
                .and_then(|mut data| data.write_all(&file.bytes));
            written.map_err(|error| internal(&error))?;
            put_under_free_name(&self.store, &look.lease, &staged, numbered(&file.name))?
        };
        RelativePath::parse(name).map_err(|error| internal(&error))
    }

    /// Links that nobody was told of are as if they had never been.
    fn take_back(&self, published: &Published) {
        self.metrics.files_given_up(published.all().count() as u64);
        for artifact in published.all() {
            if let Err(error) = self.store.remove_link(&artifact.token) {
                tracing::warn!(%error, "link not revoked");
            }
        }
    }
}

/// What is said where the disk did not answer.
pub(super) fn not_in_time() -> (Published, Vec<Notice>) {
    let why = "the disk did not respond in time".to_owned();
    (Published::default(), vec![Notice::NotLinked(vec![why])])
}

/// What the call names; `None` where that is of no use.
fn mentions(look: &Look, wanted: bool) -> Option<Mentions> {
    let holds = |raw: &RawJson| raw.as_bytes().iter().any(|byte| b"/~\\".contains(byte));
    let arguments = look.arguments.as_ref();
    let useful = look.result.as_bytes().len() <= SEARCHED
        && (holds(&look.result) || arguments.is_some_and(holds));
    (wanted || useful).then(|| {
        let arguments = arguments.map(|raw| relative(raw.clone(), &look.paths));
        Mentions::in_call(&look.maker.tool, arguments.as_ref(), &look.result)
    })
}

/// A file of that name that has a link is the one that was meant.
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

/// Some names of what lies in a workspace, for a model that lost its place.
pub fn inventory(snapshot: &Snapshot) -> Notice {
    let names: Vec<String> = snapshot
        .files()
        .map(|path| path.display().into_owned())
        .collect();
    let more = names.len().saturating_sub(LISTED);
    Notice::MemoryLost {
        files: names.into_iter().take(LISTED).collect(),
        more,
    }
}

/// The files that the configured fields of a result name, wherever in it they are.
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
                    let many = member
                        .as_array()
                        .into_iter()
                        .flatten()
                        .filter_map(Value::as_str);
                    let paths = one.chain(many).map(Path::new);
                    found.extend(paths.filter_map(|path| RelativePath::parse(path).ok()));
                }
                collect(fields, member, found);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| collect(fields, item, found)),
        _ => {}
    }
}

// A look at the folder after a call.

/// Which call left the files.
#[derive(Clone)]
pub struct Maker {
    /// Whose call it was.
    pub principal: Principal,
    /// The server.
    pub spec: Arc<ServerSpec>,
    /// The tool.
    pub tool: Box<str>,
}

/// What is looked for after a call, and where.
pub struct Look {
    /// The folder.
    pub job: Job,
    /// The right to write there.
    pub lease: Lease,
    /// How its children spell it.
    pub paths: JobFolderPaths,
    /// What lay there before the call.
    pub before: Snapshot,
    /// Whose files they are.
    pub maker: Maker,
    /// What the call was given.
    pub arguments: Option<RawJson>,
    /// What it answered, the folder's path taken out.
    pub result: RawJson,
}

/// Links and what is to be said of them, or why the call fails.
pub type Looked = Result<(Published, Vec<Notice>), CallError>;

/// What a look through a workspace may find.
pub fn snapshot_limits(settings: &Settings) -> artifacts::Limits {
    let entries = settings.files.max_workspace_files as u64;
    artifacts::Limits {
        entries,
        ..artifacts::Limits::default()
    }
}

// How much of the disk a chat's folder takes: looked at before, while and after a call.

/// The first look while a call runs, and the least time between two.
const WATCH: Duration = Duration::from_secs(1);

/// A look is followed by this many times its own length without one, so that large folders and slow
/// disks are not kept busy.
const REST: u32 = 20;

/// While a call runs it may be over by one part in this many: programs that save a file have it twice
/// for a moment.
const LEEWAY: u64 = 4;

/// Whether the folder holds no more than it may.
pub(super) enum Room {
    /// It does not.
    Enough,
    /// It does, and this call did not make it more: it may be what makes room.
    Over(Notice),
    /// This call made it so.
    Refused(String),
}

impl CallEngine {
    /// Looks at what a call left. Only the one that took more than there is fails: whoever lists or
    /// deletes files of a full folder has the answer, and the built-in server always has.
    pub(super) fn room(&self, look: &Look, after: &Snapshot) -> Room {
        let (before, spec, owner) = (&look.before, &look.maker.spec, &look.maker.principal);
        let used = after.usage().bytes;
        let limit = self.disk.limit_with(owner, look.job.id(), used);
        let exempt = before.is_over() || spec.is_files_server();
        if let Some(what) = after.over_aside() {
            if !exempt && before.over_aside().is_none() {
                return Room::Refused(format!("{what}: {}", self.way_out()));
            }
            return Room::Over(Notice::NotLinked(vec![format!(
                "{what}: {}",
                self.way_out()
            )]));
        }
        if used <= limit.bytes {
            return Room::Enough;
        }
        if exempt || used <= before.usage().bytes {
            return Room::Over(Notice::Full { used, limit });
        }
        Room::Refused(self.too_much(&limit, after))
    }

    fn too_much(&self, limit: &DiskLimit, now: &Snapshot) -> String {
        let (used, aside) = (now.usage().bytes, now.aside_bytes());
        let why = limit.exceeded_by(used);
        let way_out = match limit.share {
            None => self.way_out(),
            Some(_) => "delete files here or in other chats, or wait until their links expire",
        };
        format!("{why} ({aside} in home/ and tmp/): {way_out}")
    }

    fn way_out(&self) -> &'static str {
        if self.settings.files.server && self.settings.stateful.enabled {
            "delete files (delete_file of the server files; clear_temporary_files for home/ and \
             tmp/) or start a new chat"
        } else {
            "delete files or start a new chat"
        }
    }

    /// Below the floor nothing is begun: a full disk would hurt everybody.
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

    /// The same for a call: the built-in server deletes files, and writes none.
    pub(super) fn check_free_disk_for(&self, spec: &ServerSpec) -> Result<(), CallError> {
        if spec.is_files_server() {
            return Ok(());
        }
        self.check_free_disk()
    }

    /// Notes what lies in a folder, so that the next call is held to what it writes itself.
    pub(super) async fn look_anew(self: &Arc<Self>, workspace: &Workspace) {
        let mut seen = workspace.files.lock().await;
        let (job, limits) = (workspace.job.clone(), snapshot_limits(&self.settings));
        match blocking(move || Snapshot::look(&job, &limits)).await {
            Ok(now) => *seen = now,
            Err(SnapshotError::Io(error)) => tracing::debug!(%error, "folder not scanned"),
            Err(_) => *seen = Snapshot::over(),
        }
    }

    /// What the folder takes, as far as it is looked through.
    async fn measure(self: &Arc<Self>, job: &Job) -> Result<Snapshot, SnapshotError> {
        // One look at a time: they are for nobody who waits.
        let Ok(_place) = self.measuring.acquire().await else {
            return Ok(Snapshot::default());
        };
        let (job, mut limits) = (job.clone(), snapshot_limits(&self.settings));
        limits.entries = limits.entries.saturating_add(limits.entries / LEEWAY);
        blocking(move || Snapshot::look(&job, &limits)).await
    }
}

impl Running {
    /// Whether the folder is looked at while the call runs.
    pub(super) fn is_watched(&self) -> bool {
        self.call.ask.is_tool_call() && !self.call.spec.is_files_server()
    }

    /// Ends when the folder holds far more than it may, and than it did `before`: a call that fills
    /// the disk is not waited for.
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
                Ok(now) => {
                    if now.usage().bytes > most {
                        return CallError::OverQuota(engine.too_much(&limit, &now));
                    }
                    if let Some(what) = now.over_aside() {
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
