//! What the user attached in the chat, brought into the folder before the call that may need it.
//! Only where the user's own token came with the call. A file that cannot be had fails no call: the
//! answer says so.

use std::{collections::HashSet, fs::File, io::Read as _, sync::Arc, time::Duration};

use bridge_model::{Job, LinkToken, Principal, UserToken};
use bridge_process::Child;
use bridge_protocol::{RawJson, jsonrpc::Reply, method};
use bridge_state::{Artifact, ChatStore, Done, Held, Lease, Link, StagedFile, StoreError};
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::{
    sync::MutexGuard,
    time::{Instant, timeout_at},
};
use tracing::Instrument as _;

use super::{
    Answer, Call, CallEngine, CallError, Notice, Published, Running, blocking,
    disk_share::DiskShares, record,
};
use crate::{
    artifacts::{RelativePath, Snapshot, numbered, safe_name},
    config::{Embed, Mode},
    openwebui::{Attachment, Event, Failure, MessageAttachments, OpenWebUi},
    session::Workspace,
};

/// All downloads before one call.
const FETCH_TIME: Duration = Duration::from_secs(60);

/// A chat that Open WebUI has, and the right to look into it.
struct Access<'a> {
    openwebui: &'a OpenWebUi,
    token: &'a UserToken,
    chat: &'a str,
    until: Instant,
}

impl Running {
    /// Brings what is not there yet, once for each message.
    pub(super) async fn bring_all(&self, workspace: &Workspace) -> Result<Vec<Notice>, CallError> {
        let Some(access) = self.access() else {
            return Ok(Vec::new());
        };
        let message = self.call.caller.message.as_deref();
        if !workspace.begin_attachments(message) {
            return Ok(Vec::new());
        }
        let (store, job) = (self.engine.store.clone(), workspace.job.id());
        let known = blocking(move || store.attachments(job)).await?;
        let mut fetched = ChatAttachments::default();
        let wanted = |file: &Attachment| !known.contains_key(&file.id);
        self.before(async {
            self.fetch(&access, wanted, &mut fetched).await;
            Ok(())
        })
        .await?;
        let (ids, files): (Vec<_>, Vec<_>) = fetched.files.drain(..).unzip();
        if files.is_empty() {
            return Ok(fetched.notices(Vec::new()));
        }
        let names = match self
            .engine
            .take_in(&self.call.caller.principal, workspace, files)
            .await
        {
            Ok(names) => names,
            Err(error) => {
                fetched.refused.push(error.to_string());
                return Ok(fetched.notices(Vec::new()));
            }
        };
        let brought: Vec<_> = ids.into_iter().zip(names.clone()).collect();
        let (store, lease) = (self.engine.store.clone(), workspace.lease.clone());
        let done = Done {
            attachments: brought,
            ..Done::default()
        };
        blocking(move || store.commit(&lease, done)).await?;
        Ok(fetched.notices(names))
    }

    /// Fetches what the arguments name, for a folder that lives for this call alone.
    pub(super) async fn fetch_named(&self) -> Result<ChatAttachments, CallError> {
        let arguments = self.call.ask.arguments();
        let arguments: Value = arguments
            .and_then(|raw| raw.read().ok())
            .unwrap_or_default();
        let mut named = HashSet::new();
        collect_names(&arguments, &mut named);
        let mut fetched = ChatAttachments::default();
        let Some(access) = self.access().filter(|_| !named.is_empty()) else {
            return Ok(fetched);
        };
        let wanted = |file: &Attachment| named.contains(file.name.as_str());
        self.before(async {
            self.fetch(&access, wanted, &mut fetched).await;
            Ok(())
        })
        .await?;
        Ok(fetched)
    }

    /// Puts it there; what is to be said of it.
    pub(super) async fn put_named(
        &self,
        held: &Held,
        seen: &mut Snapshot,
        mut fetched: ChatAttachments,
    ) -> Vec<Notice> {
        let files: Vec<_> = fetched.files.drain(..).map(|(_, file)| file).collect();
        let owner = &self.call.caller.principal;
        if let Err(error) = self
            .engine
            .put(owner, (&held.job, &held.lease), seen, files)
            .await
        {
            fetched.refused.push(error.to_string());
        }
        fetched.notices(Vec::new())
    }

    fn access(&self) -> Option<Access<'_>> {
        let caller = &self.call.caller;
        let chat = caller
            .chat
            .as_deref()
            .filter(|chat| OpenWebUi::keeps(chat))?;
        Some(Access {
            openwebui: self.engine.openwebui.as_deref()?,
            token: caller.token.as_ref()?,
            chat,
            until: Instant::now() + FETCH_TIME,
        })
        .filter(|_| self.call.ask.is_tool_call())
    }

    async fn fetch(
        &self,
        access: &Access<'_>,
        wanted: impl Fn(&Attachment) -> bool,
        fetched: &mut ChatAttachments,
    ) {
        let listed = access.openwebui.attachments(access.token, access.chat);
        let listed = match timeout_at(access.until, listed).await {
            Ok(Ok(listed)) => listed,
            // A chat of somebody else's, or one that is gone.
            Ok(Err(Failure::Refused(_))) => return,
            Ok(Err(failure)) => return fetched.refuse("list of attached files", &failure),
            Err(_) => return fetched.refuse("list of attached files", &Failure::Silent),
        };
        for attachment in listed.into_iter().filter(wanted) {
            let file = timeout_at(access.until, self.fetch_one(access, &attachment)).await;
            match file.unwrap_or(Err(Failure::Silent)) {
                Ok(file) => fetched.files.push((attachment.id, file)),
                Err(failure) => fetched.refuse(&attachment.name, &failure),
            }
        }
    }

    async fn fetch_one(
        &self,
        access: &Access<'_>,
        attachment: &Attachment,
    ) -> Result<Incoming, Failure> {
        let store = self.engine.store.clone();
        let staged = blocking(move || {
            let staged = store.blobs().stage().map_err(|error| error.to_string())?;
            let data = staged.data().map_err(|error| error.to_string())?;
            Ok((staged, data))
        });
        let (file, data) = staged
            .await
            .map_err(|why: String| Failure::Disk(why.into()))?;
        let limit = self.engine.settings.files.max_upload_bytes;
        let (openwebui, token) = (access.openwebui, access.token);
        let size = openwebui
            .download(token, &attachment.id, data, limit)
            .await?;
        Ok(Incoming {
            name: attachment.name.clone(),
            file,
            size,
        })
    }
}

/// What came, by Open WebUI's ids, and what did not.
#[derive(Default)]
pub(super) struct ChatAttachments {
    files: Vec<(String, Incoming)>,
    refused: Vec<String>,
}

impl ChatAttachments {
    /// No file came.
    pub(super) fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    fn refuse(&mut self, what: &str, failure: &Failure) {
        tracing::warn!(%failure, "an attached file could not be copied to the chat's folder");
        self.refused.push(format!("{what}: {failure}"));
    }

    fn notices(self, brought: Vec<String>) -> Vec<Notice> {
        let brought = (!brought.is_empty()).then_some(Notice::Brought(brought));
        let refused = (!self.refused.is_empty()).then_some(Notice::NotBrought(self.refused));
        brought.into_iter().chain(refused).collect()
    }
}

/// The last parts of all texts: a path's name, or the text itself.
fn collect_names(value: &Value, names: &mut HashSet<String>) {
    match value {
        Value::String(text) => {
            let name = text.rsplit('/').next().unwrap_or_default();
            names.insert(name.to_owned());
        }
        Value::Array(items) => items.iter().for_each(|item| collect_names(item, names)),
        Value::Object(members) => members.values().for_each(|item| collect_names(item, names)),
        _ => {}
    }
}

// New files in the chat itself: attached to the message that is being answered, beside the links in
// the text. Only where the user's own token came with the call. Nothing here fails a call.

/// All uploads of one call: the model waits for its answer meanwhile.
const LOOK_TIME: Duration = Duration::from_secs(30);

/// A larger page is only attached.
const LONGEST_PAGE: u64 = 1024 * 1024;

impl Running {
    /// Attaches what the call published.
    pub(super) async fn attach(&self, answer: &Answer) {
        let caller = &self.call.caller;
        let (Some(openwebui), Some(token)) = (&self.engine.openwebui, &caller.token) else {
            return;
        };
        let (Some(chat), Some(message)) = (&caller.chat, &caller.message) else {
            return;
        };
        if answer.files.files.is_empty() || !OpenWebUi::keeps(chat) {
            return;
        }
        let until = Instant::now() + LOOK_TIME;
        // Boxed, as few calls have anything to attach.
        let attaching = Box::pin(async {
            let files = &answer.files.files;
            let shown = self.shown(openwebui, token, files, until).await;
            let before = openwebui.message_attachments(token, chat, message).await;
            let before = before.inspect_err(|failure| {
                tracing::debug!(
                    %failure,
                    "the files that the message already shows cannot be read"
                );
            });
            for event in shown.events(before.ok()) {
                openwebui.tell(token, chat, message, &event).await?;
            }
            Ok::<(), Failure>(())
        });
        let attached = tokio::select! {
            attached = attaching => attached,
            () = self.left.cancelled() => return,
            () = self.engine.ending.cancelled() => return,
        };
        if let Err(failure) = attached {
            tracing::warn!(
                %failure,
                "files could not be attached to the chat message; their links work"
            );
        }
    }

    /// The files that Open WebUI took in time, in their order, and the pages among them.
    async fn shown(
        &self,
        openwebui: &OpenWebUi,
        token: &UserToken,
        files: &[Artifact],
        until: Instant,
    ) -> Shown {
        let mut shown = Shown::default();
        for file in files {
            let uploaded = timeout_at(until, self.chat_file(openwebui, token, file)).await;
            match uploaded.unwrap_or(Err(Failure::Silent)) {
                Ok(chat_file) => shown.chat_files.push(chat_file),
                Err(failure) => {
                    tracing::warn!(
                        %failure,
                        "a file could not be attached to the chat message; its link works"
                    );
                }
            }
            shown.pages.extend(self.page(file).await.map(Value::from));
        }
        shown
    }

    /// The text of a page that the config lets the chat show.
    async fn page(&self, file: &Artifact) -> Option<String> {
        let wanted = self.call.spec.embed.contains(&Embed::Html);
        if !wanted || file.mime_type != "text/html" || file.size > LONGEST_PAGE {
            return None;
        }
        let mut data = self.open_artifact(file).await.ok()?;
        let read = move || {
            let mut text = String::new();
            data.read_to_string(&mut text).ok().map(|_| text)
        };
        blocking(read).await
    }

    async fn open_artifact(&self, file: &Artifact) -> Result<File, Failure> {
        let (store, link) = (self.engine.store.clone(), file.token.clone());
        match blocking(move || open_link(&store, &link)).await {
            Ok(Some(data)) => Ok(data),
            Ok(None) => Err(Failure::Disk("the file no longer exists".into())),
            Err(error) => Err(Failure::Disk(error.to_string().into())),
        }
    }

    async fn chat_file(
        &self,
        openwebui: &OpenWebUi,
        token: &UserToken,
        file: &Artifact,
    ) -> Result<Value, Failure> {
        let limit = self.engine.settings.files.max_upload_bytes;
        if file.size > limit {
            return Err(Failure::TooLarge(limit));
        }
        let data = self.open_artifact(file).await?;
        let (name, kind, size) = (&file.name, &file.mime_type, file.size);
        let id = openwebui.upload(token, name, kind, data, size).await?;
        if kind.starts_with("image/") && self.call.spec.embed.contains(&Embed::Image) {
            let url = format!("/api/v1/files/{id}/content");
            return Ok(json!({"type": "image", "id": id, "name": name, "url": url, "size": size}));
        }
        Ok(json!({"type": "file", "id": id, "name": name, "url": id, "size": size}))
    }
}

fn open_link(store: &ChatStore, token: &LinkToken) -> Result<Option<File>, StoreError> {
    match store.link(token)? {
        Link::Live(_, blob) => Ok(store.blobs().get(&blob, None)?.map(File::from)),
        Link::Gone(_) | Link::Unknown => Ok(None),
    }
}

/// What shows with the message.
#[derive(Default)]
struct Shown {
    chat_files: Vec<Value>,
    pages: Vec<Value>,
}

impl Shown {
    /// With what the message showed `before`, if that is known: whoever looks at the chat now sees
    /// only what the last event has.
    fn events(self, before: Option<MessageAttachments>) -> impl Iterator<Item = Event> {
        let Self {
            chat_files,
            mut pages,
        } = self;
        let all = before.is_some();
        let before = before.unwrap_or_default();
        let latest = (!before.files.is_empty()).then(|| latest(&chat_files, before.files));
        let files = (!chat_files.is_empty()).then_some(Event::Files(chat_files));
        let latest = latest.filter(|_| files.is_some()).map(Event::AllFiles);
        let new = !pages.is_empty();
        pages.extend(before.pages);
        let pages = new.then_some(Event::Pages(pages, all));
        files.into_iter().chain(latest).chain(pages)
    }
}

/// The files of both, and of several versions of one name the latest.
fn latest(new: &[Value], before: Vec<Value>) -> Vec<Value> {
    let mut names = HashSet::new();
    let all = new.iter().cloned().chain(before);
    all.filter(|file| match file["name"].as_str() {
        Some(name) => names.insert(name.to_owned()),
        None => true,
    })
    .collect()
}

// A subscription's way to its child. Nothing is asked of the child that touches the folder, so no
// turn is taken, and no place among the running calls: a long call of the chat holds up nobody who
// only wants to hear.

impl CallEngine {
    /// Finds or starts the call's child, shows it to `on_child` and subscribes to `resources`,
    /// whether the child knows how to or not. A `stateless` server has no child to listen to.
    pub async fn attach(
        self: &Arc<Self>,
        call: Box<Call>,
        resources: Vec<String>,
    ) -> Result<(), CallError> {
        let (running, _hang_up) = self.begin(call)?;
        let attaching = async move {
            let began = record::Began::now();
            let (outcome, lease) = running.attached(resources).await;
            let answer = outcome.map(|()| nothing());
            record::record(&running, &began, &answer, lease.as_ref()).await;
            answer.map(drop)
        };
        let task = self.running.spawn(attaching.in_current_span());
        task.await
            .unwrap_or_else(|error| Err(CallError::Internal(error.to_string())))
    }
}

impl Running {
    async fn attached(&self, resources: Vec<String>) -> (Result<(), CallError>, Option<Lease>) {
        match self.call.spec.mode {
            Mode::Stateful => self.attached_in_chat(resources).await,
            Mode::Stateless => (Ok(()), None),
            Mode::Shared => {
                let found = self.find_shared().await;
                let attached = found.map(|found| self.show(resources, found, |found| &found.child));
                (attached, None)
            }
        }
    }

    async fn attached_in_chat(
        &self,
        resources: Vec<String>,
    ) -> (Result<(), CallError>, Option<Lease>) {
        let workspace = match self.open().await {
            Ok(workspace) => workspace,
            Err(error) => return (Err(error), None),
        };
        let lease = workspace.lease.clone();
        let found = self.find(&self.call.address, &workspace, None).await;
        let held = self.check_lease(&workspace).await;
        let attached = held.and(found).map(|found| {
            let kept = (found.session, workspace);
            self.show(resources, kept, |(session, _)| &session.child);
        });
        self.engine.sessions.call_ended(self.call.address.key);
        let ours = !matches!(attached, Err(CallError::Fenced | CallError::TakenOver));
        (attached, ours.then_some(lease))
    }

    /// Shows the child, and subscribes behind the caller's back: a child that is busy answers late.
    /// `kept` keeps the child until it has answered.
    fn show<K: Send + Sync + 'static>(
        &self,
        resources: Vec<String>,
        kept: K,
        child: fn(&K) -> &Child,
    ) {
        if let Some(on_child) = &self.call.on_child {
            on_child(child(&kept));
        }
        if resources.is_empty() {
            return;
        }
        let (engine, patience) = (self.engine.clone(), self.call.spec.timeout);
        let key = self.call.address.key;
        self.engine.running.spawn(async move {
            let asking = async {
                for uri in resources {
                    let params = RawJson::from_json(&json!({"uri": uri}));
                    let asked = child(&kept).request(method::RESOURCES_SUBSCRIBE, Some(&params));
                    // A server without subscriptions still has news of its lists.
                    let _ = asked.await;
                }
            };
            let asking = tokio::time::timeout(patience, asking);
            engine.stopping.run_until_cancelled(asking).await;
            drop(kept);
            engine.sessions.call_ended(key);
        });
    }
}

/// What is recorded of it: nobody was asked, and nothing was answered.
fn nothing() -> Answer {
    let outcome = RawJson::empty_object();
    Answer {
        reply: Reply {
            line: Bytes::from_static(b"{}"),
            id: outcome.clone(),
            outcome: Ok(outcome.clone()),
        },
        outcome,
        files: Published::default(),
        notices: Vec::new(),
    }
}

// Files that come into a workspace from outside: no call made them, so no call links them.

/// A file that came, and what it is to be called.
pub struct Incoming {
    /// As its sender calls it.
    pub name: String,
    /// Its bytes.
    pub file: StagedFile,
    /// How many.
    pub size: u64,
}

impl CallEngine {
    /// Puts files into a workspace and returns the names that they got there.
    pub async fn take_in(
        &self,
        owner: &Principal,
        workspace: &Workspace,
        files: Vec<Incoming>,
    ) -> Result<Vec<String>, CallError> {
        // While a call's changes are looked for, nothing of somebody else's appears.
        let mut seen: MutexGuard<'_, Snapshot> = workspace.files.lock().await;
        let (job, lease) = (&workspace.job, &workspace.lease);
        self.put(owner, (job, lease), &mut seen, files).await
    }

    /// The same for a folder at which nobody else looks.
    pub(super) async fn put(
        &self,
        owner: &Principal,
        (job, lease): (&Job, &Lease),
        seen: &mut Snapshot,
        files: Vec<Incoming>,
    ) -> Result<Vec<String>, CallError> {
        if files.is_empty() {
            return Ok(Vec::new());
        }
        self.check_entries(seen, &files)?;
        self.check_free_disk()?;
        let (store, disk, owner) = (self.store.clone(), self.disk.clone(), owner.clone());
        let (job, lease, mut now) = (job.clone(), lease.clone(), std::mem::take(seen));
        let (names, now) = blocking(move || {
            let names = check_bytes(&disk, &owner, &job, &now, &files)
                .and_then(|()| put_all(&store, (&job, &lease), &mut now, files));
            disk.note_folder(&owner, job.id(), now.usage().bytes);
            (names, now)
        })
        .await;
        *seen = now;
        names
    }

    fn check_entries(&self, seen: &Snapshot, files: &[Incoming]) -> Result<(), CallError> {
        let (limits, usage) = (&self.settings.files, seen.usage());
        let entries = usage.entries + files.len() as u64;
        if entries > limits.max_workspace_files as u64 {
            return Err(CallError::DiskFull(format!(
                "with these files this chat's folder would contain {entries} entries, more than \
                 the limit of {} (MCPO_MAX_WORKSPACE_FILES)",
                limits.max_workspace_files
            )));
        }
        Ok(())
    }
}

fn check_bytes(
    disk: &DiskShares,
    owner: &Principal,
    job: &Job,
    seen: &Snapshot,
    files: &[Incoming],
) -> Result<(), CallError> {
    let coming = files.iter().map(|file| file.size);
    let bytes = coming.fold(seen.usage().bytes, u64::saturating_add);
    let limit = disk.limit(owner, job.id());
    if bytes <= limit.bytes {
        return Ok(());
    }
    let why = limit.exceeded_by(bytes);
    Err(CallError::DiskFull(format!("with these files {why}")))
}

fn put_all(
    store: &ChatStore,
    (job, lease): (&Job, &Lease),
    seen: &mut Snapshot,
    files: Vec<Incoming>,
) -> Result<Vec<String>, CallError> {
    let mut names = Vec::with_capacity(files.len());
    for incoming in files {
        let wanted = safe_name(&incoming.name);
        let name = put_under_free_name(store, lease, &incoming.file, numbered(&wanted))?;
        let path = RelativePath::parse(&name);
        let path = path.map_err(|error| CallError::Internal(error.to_string()))?;
        // A child may have taken it away already.
        if let Err(error) = seen.note(&job.work(), &path) {
            tracing::debug!(%error, "an attached file no longer exists");
        }
        names.push(name);
    }
    Ok(names)
}

/// How many names are tried for a file.
const ATTEMPTS: usize = 1000;

/// Puts a file into a chat's folder under the first of the names that is free, and returns that one.
pub(super) fn put_under_free_name(
    store: &ChatStore,
    lease: &Lease,
    file: &StagedFile,
    names: impl Iterator<Item = String>,
) -> Result<String, CallError> {
    for name in names.take(ATTEMPTS) {
        if store.put_file(lease, file, &name)? {
            return Ok(name);
        }
    }
    Err(CallError::from(StoreError::Io {
        action: "place a file in",
        path: "work".into(),
        source: std::io::ErrorKind::AlreadyExists.into(),
    }))
}
