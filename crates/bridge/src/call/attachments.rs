//! Files of the chat: files attached by the user are copied into the folder before a call, and new ones are
//! attached to the message after it. This requires the user's own token in the call. Errors here do not
//! fail the call: the answer contains a notice.

use std::{collections::HashSet, fs::File, sync::Arc, time::Duration};

use bridge_model::{Job, Principal};
use bridge_process::Child;
use bridge_protocol::{RawJson, jsonrpc::Reply, method};
use bridge_state::{Artifact, ChatStore, Done, Held, Lease, StagedFile, StoreError};
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};

use super::{
    Answer, Call, CallEngine, CallError, Notice, Published, Running, answer::DiskLimit, blocking,
    record,
};
use crate::{
    artifacts::{RelativePath, TrackedFiles, numbered, open_link, safe_name},
    config::{Embed, Mode},
    openwebui::{Attachment, Chat, Event, Failure, MessageAttachments},
    session::Workspace,
};

/// Timeout of all downloads before one call.
const FETCH_TIME: Duration = Duration::from_secs(60);

impl CallEngine {
    /// The chat in Open WebUI from which a tool was called.
    pub(super) fn chat_of(&self, call: &Call) -> Option<Chat> {
        let caller = &call.caller;
        let openwebui = self.openwebui.clone().filter(|_| call.ask.is_tool_call())?;
        Chat::new(openwebui, caller.token.clone()?, caller.chat.clone()?)
    }
}

impl Running {
    fn chat(&self) -> Option<Chat> {
        self.engine.chat_of(&self.call)
    }

    /// Copies new attachments of the chat into the workspace, once for each message.
    pub(super) async fn bring_all(&self, workspace: &Workspace) -> Result<Vec<Notice>, CallError> {
        let message = self.call.caller.message.as_deref();
        let first = |_: &Chat| workspace.begin_attachments(message);
        let Some(chat) = self.chat().filter(first) else {
            return Ok(Vec::new());
        };
        let (engine, job) = (&self.engine, workspace.job.id());
        let store = engine.store.clone();
        let known = blocking(move || store.attachments(job)).await?;
        let wanted = |file: &Attachment| !known.contains_key(&file.id);
        let mut fetched = self.fetch(&chat, wanted).await?;
        let (ids, files): (Vec<_>, Vec<_>) = fetched.files.drain(..).unzip();
        let owner = &self.call.caller.principal;
        let names = match engine.take_in(owner, workspace, files).await {
            Ok(names) => names,
            Err(error) => {
                fetched.refused.push(error.to_string());
                Vec::new()
            }
        };
        if !names.is_empty() {
            let (store, lease) = (engine.store.clone(), workspace.lease.clone());
            let done = Done {
                attachments: ids.into_iter().zip(names.clone()).collect(),
                ..Done::default()
            };
            blocking(move || store.commit(&lease, done)).await?;
        }
        Ok(fetched.notices(names))
    }

    /// Fetches the attachments that the arguments name, for a folder of this call alone.
    pub(super) async fn fetch_named(&self) -> Result<ChatAttachments, CallError> {
        let arguments = self.call.ask.arguments();
        let arguments: Value = arguments
            .and_then(|raw| raw.read().ok())
            .unwrap_or_default();
        let mut named = HashSet::new();
        collect_names(&arguments, &mut named);
        match self.chat().filter(|_| !named.is_empty()) {
            Some(chat) => {
                let wanted = |file: &Attachment| named.contains(file.name.as_str());
                self.fetch(&chat, wanted).await
            }
            None => Ok(ChatAttachments::default()),
        }
    }

    /// Copies them into the folder.
    pub(super) async fn put_named(
        &self,
        held: &Held,
        seen: &mut TrackedFiles,
        mut fetched: ChatAttachments,
    ) -> Vec<Notice> {
        let files: Vec<_> = fetched.files.drain(..).map(|(_, file)| file).collect();
        let (owner, folder) = (&self.call.caller.principal, (&held.job, &held.lease));
        if let Err(error) = self.engine.put(owner, folder, seen, files).await {
            fetched.refused.push(error.to_string());
        }
        fetched.notices(Vec::new())
    }

    async fn fetch(
        &self,
        chat: &Chat,
        wanted: impl Fn(&Attachment) -> bool,
    ) -> Result<ChatAttachments, CallError> {
        let mut fetched = ChatAttachments::default();
        let fetching = async {
            let until = Instant::now() + FETCH_TIME;
            let listed = timeout_at(until, chat.attachments()).await;
            let listed = match listed.unwrap_or(Err(Failure::Silent)) {
                Ok(listed) => listed,
                // The chat belongs to another user, or no longer exists.
                Err(Failure::Refused(_)) => return Ok(()),
                Err(failure) => {
                    fetched.refuse("list of attached files", &failure);
                    return Ok(());
                }
            };
            for attachment in listed.into_iter().filter(wanted) {
                let file = timeout_at(until, self.fetch_one(chat, &attachment)).await;
                match file.unwrap_or(Err(Failure::Silent)) {
                    Ok(file) => fetched.files.push((attachment.id, file)),
                    Err(failure) => fetched.refuse(&attachment.name, &failure),
                }
            }
            Ok(())
        };
        self.before(fetching).await?;
        Ok(fetched)
    }

    async fn fetch_one(&self, chat: &Chat, attachment: &Attachment) -> Result<Incoming, Failure> {
        let store = self.engine.store.clone();
        let staged = blocking(move || {
            let staged = store.blobs().stage().map_err(Failure::disk)?;
            let data = staged.data().map_err(Failure::disk)?;
            Ok((staged, data))
        });
        let (file, data) = staged.await?;
        let limit = self.engine.settings.files.max_upload_bytes;
        Ok(Incoming {
            size: chat.download(&attachment.id, data, limit).await?,
            name: attachment.name.clone(),
            file,
        })
    }
}

/// Fetched files by Open WebUI's ids, and errors.
#[derive(Default)]
pub(super) struct ChatAttachments {
    files: Vec<(String, Incoming)>,
    refused: Vec<String>,
}

impl ChatAttachments {
    /// Whether no file was fetched.
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

/// The last segments of all texts: the file name of a path, or the text itself.
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

// New files are attached to the message that is being generated, in addition to the links in its text.

/// Timeout of all uploads of one call, for which its answer waits.
const UPLOAD_TIME: Duration = Duration::from_secs(30);

/// A larger page is only attached, not shown.
const LONGEST_PAGE: u64 = 1024 * 1024;

impl Running {
    /// Attaches the published files.
    pub(super) async fn attach(&self, answer: &Answer) {
        let files = &answer.files.files;
        let chat = self.chat().filter(|_| !files.is_empty());
        let (Some(chat), Some(message)) = (chat, &self.call.caller.message) else {
            return;
        };
        // Boxed, because few calls have anything to attach.
        let attaching = Box::pin(async {
            let shown = self.upload(&chat, files).await;
            let before = chat.message_attachments(message).await;
            let before = before.inspect_err(|failure| {
                tracing::debug!(
                    %failure,
                    "the files that the message already shows cannot be read"
                );
            });
            for event in shown.events(before.ok()) {
                chat.tell(message, &event).await?;
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

    /// The files that Open WebUI accepted in time, in their order, and the pages among them.
    async fn upload(&self, chat: &Chat, files: &[Artifact]) -> NewAttachments {
        let until = Instant::now() + UPLOAD_TIME;
        let mut shown = NewAttachments::default();
        for file in files {
            let uploaded = timeout_at(until, self.chat_file(chat, file)).await;
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
        let data = self.open_artifact(file).await.ok()?;
        blocking(move || std::io::read_to_string(data).ok()).await
    }

    async fn open_artifact(&self, file: &Artifact) -> Result<File, Failure> {
        let (store, link) = (self.engine.store.clone(), file.token.clone());
        let opened = blocking(move || open_link(&store, &link)).await;
        let data = opened.map_err(Failure::disk)?;
        data.ok_or_else(|| Failure::disk("the file no longer exists"))
    }

    async fn chat_file(&self, chat: &Chat, file: &Artifact) -> Result<Value, Failure> {
        let limit = self.engine.settings.files.max_upload_bytes;
        if file.size > limit {
            return Err(Failure::TooLarge(limit));
        }
        let data = self.open_artifact(file).await?;
        let (name, kind, size) = (&file.name, &file.mime_type, file.size);
        let id = chat.upload(name, kind, data, size).await?;
        if kind.starts_with("image/") && self.call.spec.embed.contains(&Embed::Image) {
            let url = format!("/api/v1/files/{id}/content");
            return Ok(json!({"type": "image", "id": id, "name": name, "url": url, "size": size}));
        }
        Ok(json!({"type": "file", "id": id, "name": name, "url": id, "size": size}))
    }
}

/// The new attachments of the message.
#[derive(Default)]
struct NewAttachments {
    chat_files: Vec<Value>,
    pages: Vec<Value>,
}

impl NewAttachments {
    /// Includes the attachments that the message had `before`, if they are known: browsers that show the
    /// chat now show only those of the last event.
    fn events(mut self, before: Option<MessageAttachments>) -> impl Iterator<Item = Event> {
        let (chat_files, all) = (self.chat_files, before.is_some());
        let before = before.unwrap_or_default();
        let latest = (!before.files.is_empty()).then(|| latest(&chat_files, before.files));
        let files = (!chat_files.is_empty()).then_some(Event::Files(chat_files));
        let latest = latest.filter(|_| files.is_some()).map(Event::AllFiles);
        let new = !self.pages.is_empty();
        self.pages.extend(before.pages);
        let pages = new.then_some(Event::Pages(self.pages, all));
        files.into_iter().chain(latest).chain(pages)
    }
}

/// The files of both; if there are several versions of one name, the latest.
fn latest(new: &[Value], before: Vec<Value>) -> Vec<Value> {
    let mut names = HashSet::new();
    let all = new.iter().cloned().chain(before);
    all.filter(|file| match file["name"].as_str() {
        Some(name) => names.insert(name.to_owned()),
        None => true,
    })
    .collect()
}

// Subscriptions. No request to the child touches the folder, so a subscription takes no turn and no permit,
// and does not wait for long calls of the chat.

impl CallEngine {
    /// Finds or starts the call's child, passes it to `on_child` and subscribes to `resources`, whether the
    /// child supports subscriptions or not. A `stateless` server has no child to subscribe to.
    pub async fn attach(
        self: &Arc<Self>,
        call: Box<Call>,
        resources: Vec<String>,
    ) -> Result<(), CallError> {
        let (running, _hang_up) = self.begin(call)?;
        let attaching = async move {
            let attached = running.attached(resources).await;
            let answer = attached.map(|()| nothing());
            record::record(&running, &answer).await;
            answer.map(drop)
        };
        self.spawn(attaching).await
    }
}

impl Running {
    async fn attached(&self, resources: Vec<String>) -> Result<(), CallError> {
        match self.call.spec.mode {
            Mode::Stateful => return self.attached_in_chat(resources).await,
            Mode::Stateless => {}
            Mode::Shared => {
                let found = self.find_shared().await?;
                self.subscribe(resources, found, |found| &found.child);
            }
        }
        Ok(())
    }

    async fn attached_in_chat(&self, resources: Vec<String>) -> Result<(), CallError> {
        let workspace = self.open().await?;
        let lease = workspace.lease.clone();
        let found = self.find_child(&workspace, None).await;
        let held = self.check_lease(&workspace).await;
        let attached = held.and(found).map(|session| {
            let kept = (session, workspace);
            self.subscribe(resources, kept, |(session, _)| &session.child);
        });
        self.engine.sessions.call_ended(self.call.address.key);
        if !matches!(attached, Err(CallError::Fenced | CallError::TakenOver)) {
            self.record_in(lease);
        }
        attached
    }

    /// Passes the child on, and subscribes in the background, because a busy child answers late. `kept`
    /// keeps the child alive until it has answered.
    fn subscribe<K: Send + Sync + 'static>(
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
                    // A server without subscriptions still sends notifications about its lists.
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

/// The answer in the record of a subscription.
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

// Files uploaded to a workspace: no call created them, so no call links them.

/// A received file.
pub struct Incoming {
    /// Its name given by the sender.
    pub name: String,
    /// Its content.
    pub file: StagedFile,
    /// Its size in bytes.
    pub size: u64,
}

impl CallEngine {
    /// Stores files in a workspace and returns their names there.
    pub async fn take_in(
        &self,
        owner: &Principal,
        workspace: &Workspace,
        files: Vec<Incoming>,
    ) -> Result<Vec<String>, CallError> {
        // With the lock, so that no call counts these files as its own.
        let mut seen = workspace.files.lock().await;
        let (job, lease) = (&workspace.job, &workspace.lease);
        self.put(owner, (job, lease), &mut seen, files).await
    }

    /// The same for a folder that no other call uses.
    pub(super) async fn put(
        &self,
        owner: &Principal,
        (job, lease): (&Job, &Lease),
        seen: &mut TrackedFiles,
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
            let limit = disk.limit(&owner, job.id());
            let names = put_all(&store, (&job, &lease), &mut now, files, &limit);
            disk.note_folder(&owner, job.id(), now.now().usage.bytes);
            (names, now)
        })
        .await;
        *seen = now;
        names
    }

    fn check_entries(&self, seen: &TrackedFiles, files: &[Incoming]) -> Result<(), CallError> {
        let (limits, usage) = (&self.settings.files, seen.now().usage);
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

fn put_all(
    store: &ChatStore,
    (job, lease): (&Job, &Lease),
    seen: &mut TrackedFiles,
    files: Vec<Incoming>,
    limit: &DiskLimit,
) -> Result<Vec<String>, CallError> {
    let coming = files.iter().map(|file| file.size);
    let bytes = coming.fold(seen.now().usage.bytes, u64::saturating_add);
    if bytes > limit.bytes {
        let why = limit.exceeded_by(bytes);
        return Err(CallError::DiskFull(format!("with these files {why}")));
    }
    let mut names = Vec::with_capacity(files.len());
    for incoming in files {
        let wanted = safe_name(&incoming.name);
        let name = put_under_free_name(store, lease, &incoming.file, numbered(&wanted))?;
        let path = RelativePath::parse(&name).map_err(CallError::internal)?;
        // A child may have removed it already.
        if let Err(error) = seen.note(&job.work(), &path) {
            tracing::debug!(%error, "an attached file no longer exists");
        }
        names.push(name);
    }
    Ok(names)
}

/// Maximum number of names that are tried for a file.
const ATTEMPTS: usize = 1000;

/// Stores a file in a chat's folder under the first name that is free, and returns that name.
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
