//! What the user attached in the chat, brought into the folder before the call that may need it.
//! Only where the user's own token came with the call. A file that cannot be had fails no call: the
//! answer says so.

use std::{collections::HashSet, time::Duration};

use bridge_model::UserToken;
use bridge_state::{Done, Held};
use serde_json::Value;
use tokio::time::{Instant, timeout_at};

use super::{CallError, Incoming, Notice, Running};
use crate::{
    artifacts::Snapshot,
    call::detached::blocking,
    openwebui::{Attachment, Failure, OpenWebUi},
    session::Workspace,
};

/// All downloads before one call.
const PATIENCE: Duration = Duration::from_secs(60);

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
        let mut lot = Lot::default();
        let wanted = |file: &Attachment| !known.contains_key(&file.id);
        self.before(async {
            self.fetch(&access, wanted, &mut lot).await;
            Ok(())
        })
        .await?;
        let (ids, files): (Vec<_>, Vec<_>) = lot.files.drain(..).unzip();
        if files.is_empty() {
            return Ok(lot.notices(Vec::new()));
        }
        let names = match self
            .engine
            .take_in(&self.call.caller.principal, workspace, files)
            .await
        {
            Ok(names) => names,
            Err(error) => {
                lot.refused.push(error.to_string());
                return Ok(lot.notices(Vec::new()));
            }
        };
        let brought: Vec<_> = ids.into_iter().zip(names.clone()).collect();
        let (store, lease) = (self.engine.store.clone(), workspace.lease.clone());
        let done = Done {
            attachments: brought,
            ..Done::default()
        };
        blocking(move || store.commit(&lease, done)).await?;
        Ok(lot.notices(names))
    }

    /// Fetches what the arguments name, for a folder that lives for this call alone.
    pub(super) async fn fetch_named(&self) -> Result<Lot, CallError> {
        let arguments = self.call.ask.arguments();
        let arguments: Value = arguments
            .and_then(|raw| raw.read().ok())
            .unwrap_or_default();
        let mut named = HashSet::new();
        collect_names(&arguments, &mut named);
        let mut lot = Lot::default();
        let Some(access) = self.access().filter(|_| !named.is_empty()) else {
            return Ok(lot);
        };
        let wanted = |file: &Attachment| named.contains(file.name.as_str());
        self.before(async {
            self.fetch(&access, wanted, &mut lot).await;
            Ok(())
        })
        .await?;
        Ok(lot)
    }

    /// Puts it there; what is to be said of it.
    pub(super) async fn put_named(
        &self,
        held: &Held,
        seen: &mut Snapshot,
        mut lot: Lot,
    ) -> Vec<Notice> {
        let files: Vec<_> = lot.files.drain(..).map(|(_, file)| file).collect();
        let owner = &self.call.caller.principal;
        if let Err(error) = self
            .engine
            .put(owner, (&held.job, &held.lease), seen, files)
            .await
        {
            lot.refused.push(error.to_string());
        }
        lot.notices(Vec::new())
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
            until: Instant::now() + PATIENCE,
        })
        .filter(|_| self.call.ask.is_tool_call())
    }

    async fn fetch(
        &self,
        access: &Access<'_>,
        wanted: impl Fn(&Attachment) -> bool,
        lot: &mut Lot,
    ) {
        let listed = access.openwebui.attachments(access.token, access.chat);
        let listed = match timeout_at(access.until, listed).await {
            Ok(Ok(listed)) => listed,
            // A chat of somebody else's, or one that is gone.
            Ok(Err(Failure::Refused(_))) => return,
            Ok(Err(failure)) => return lot.refuse("the list of them", &failure),
            Err(_) => return lot.refuse("the list of them", &Failure::Silent),
        };
        for attachment in listed.into_iter().filter(wanted) {
            let fetched = timeout_at(access.until, self.fetch_one(access, &attachment)).await;
            match fetched.unwrap_or(Err(Failure::Silent)) {
                Ok(file) => lot.files.push((attachment.id, file)),
                Err(failure) => lot.refuse(&attachment.name, &failure),
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
pub(super) struct Lot {
    files: Vec<(String, Incoming)>,
    refused: Vec<String>,
}

impl Lot {
    /// No file came.
    pub(super) fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    fn refuse(&mut self, what: &str, failure: &Failure) {
        tracing::warn!(%failure, "an attached file is not in the chat's folder");
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
