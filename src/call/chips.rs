//! New files in the chat itself: attached to the message that is being answered, beside the links in
//! the text. Only where the user's own token came with the call. Nothing here fails a call.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};

use super::{Answer, Running};
use crate::{
    model::UserToken,
    openwebui::{Event, Failure, OpenWebUi},
    store::{Artifact, Link},
};

/// All uploads of one call: the model waits for its answer meanwhile.
const PATIENCE: Duration = Duration::from_secs(30);

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
        let attaching = async {
            let chips = self
                .chips(openwebui, token, &answer.files.files, until)
                .await;
            if chips.is_empty() {
                return Ok(());
            }
            let event = Event::Files(chips);
            openwebui.tell(token, chat, message, &event).await
        };
        let attached = tokio::select! {
            attached = attaching => attached,
            () = self.left.cancelled() => return,
            () = self.engine.ending.cancelled() => return,
        };
        if let Err(failure) = attached {
            tracing::warn!(%failure, "files are not attached in the chat; their links work");
        }
    }

    /// The files that Open WebUI took in time, in their order.
    async fn chips(
        &self,
        openwebui: &OpenWebUi,
        token: &UserToken,
        files: &[Artifact],
        until: Instant,
    ) -> Vec<Value> {
        let mut chips = Vec::new();
        for file in files {
            let uploaded = timeout_at(until, self.chip(openwebui, token, file)).await;
            match uploaded.unwrap_or(Err(Failure::Silent)) {
                Ok(chip) => chips.push(chip),
                Err(failure) => {
                    tracing::warn!(%failure, "a file is not attached in the chat; its link works");
                }
            }
        }
        chips
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
        let (store, link) = (self.engine.store.clone(), file.token.clone());
        let open = move || store.link(&link, Timestamp::now());
        let data = match tokio::task::spawn_blocking(open).await {
            Ok(Ok(Link::Live(_, data))) => data,
            Ok(Err(error)) => return Err(Failure::Disk(error.to_string().into())),
            _ => return Err(Failure::Disk("the file is gone".into())),
        };
        let (name, kind, size) = (&file.name, &file.mime_type, file.size);
        let id = openwebui.upload(token, name, kind, data, size).await?;
        Ok(json!({"type": "file", "id": id, "name": name, "url": id, "size": size}))
    }
}
