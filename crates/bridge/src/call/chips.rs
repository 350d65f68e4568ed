//! New files in the chat itself: attached to the message that is being answered, beside the links in
//! the text. Only where the user's own token came with the call. Nothing here fails a call.

use std::{collections::HashSet, fs::File, io::Read as _, time::Duration};

use bridge_model::{LinkToken, UserToken};
use bridge_state::{Artifact, ChatStore, Link, StoreError};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};

use super::{Answer, Running};
use crate::{
    call::detached::blocking,
    config::Embed,
    openwebui::{Beside, Event, Failure, OpenWebUi},
};

/// All uploads of one call: the model waits for its answer meanwhile.
const PATIENCE: Duration = Duration::from_secs(30);

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
        let until = Instant::now() + PATIENCE;
        // Boxed, as few calls have anything to attach.
        let attaching = Box::pin(async {
            let files = &answer.files.files;
            let shown = self.shown(openwebui, token, files, until).await;
            let before = openwebui.beside(token, chat, message).await;
            let before = before.inspect_err(|failure| {
                tracing::debug!(%failure, "what the message shows already is not known");
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
            tracing::warn!(%failure, "files are not attached in the chat; their links work");
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
            let uploaded = timeout_at(until, self.chip(openwebui, token, file)).await;
            match uploaded.unwrap_or(Err(Failure::Silent)) {
                Ok(chip) => shown.chips.push(chip),
                Err(failure) => {
                    tracing::warn!(%failure, "a file is not attached in the chat; its link works");
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
            Ok(None) => Err(Failure::Disk("the file is gone".into())),
            Err(error) => Err(Failure::Disk(error.to_string().into())),
        }
    }

    async fn chip(
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
    chips: Vec<Value>,
    pages: Vec<Value>,
}

impl Shown {
    /// With what the message showed `before`, if that is known: whoever looks at the chat now sees
    /// only what the last event has.
    fn events(self, before: Option<Beside>) -> impl Iterator<Item = Event> {
        let Self { chips, mut pages } = self;
        let all = before.is_some();
        let before = before.unwrap_or_default();
        let latest = (!before.files.is_empty()).then(|| latest(&chips, before.files));
        let files = (!chips.is_empty()).then_some(Event::Files(chips));
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
