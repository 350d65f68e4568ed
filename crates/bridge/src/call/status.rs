//! What a call is doing, as a line under the message in the chat: its wait for a turn, and what its
//! server says of its progress. Only where the user's own token came with the call.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use bridge_process::{BACKLOG, Cancellation, Hearing};
use bridge_protocol::{jsonrpc::Said, method};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{Instant, sleep_until, timeout},
};

use super::{Call, CallEngine};
use crate::{
    config::Lang,
    openwebui::{Event, OpenWebUi},
};

/// Short calls show nothing, and a chatty server no more than a line a second.
const EVERY: Duration = Duration::from_secs(1);
/// The last word, which takes the line away: the answer waits for it.
const LAST: Duration = Duration::from_secs(3);
/// Letters of a server's own words.
const LONGEST: usize = 200;

/// The line of one call. Cheap to clone; says nothing where nobody would see it.
#[derive(Clone, Default)]
pub struct Status(Option<Arc<watch::Sender<Option<String>>>>);

/// What shows the line, until the call ends.
pub struct Shown {
    status: Status,
    shower: Option<JoinHandle<()>>,
    follower: Option<JoinHandle<()>>,
}

impl Status {
    /// Sets the line; `None` where there is nothing to say.
    pub fn set(&self, line: Option<String>) {
        if let Some(status) = &self.0 {
            status.send_if_modified(|now| {
                let differs = *now != line;
                *now = line;
                differs
            });
        }
    }

    /// The call waits for its turn, as others do.
    pub fn waits(&self, lang: Lang, others: impl FnOnce() -> usize) {
        if self.0.is_none() {
            return;
        }
        self.set(Some(match (lang, others()) {
            (Lang::En, 0) => "Waiting for a turn".to_owned(),
            (Lang::En, others) => format!("Waiting for a turn ({others} before this call)"),
            (Lang::Ja, 0) => "順番を待っています".to_owned(),
            (Lang::Ja, others) => format!("順番を待っています（前に {others} 件）"),
        }));
    }
}

impl Shown {
    /// Begins to show what `call` is doing, if there is a chat that shows it.
    pub fn begin(engine: &CallEngine, call: &mut Call) -> Self {
        let nobody = Self {
            status: Status::default(),
            shower: None,
            follower: None,
        };
        let caller = &call.caller;
        let (Some(openwebui), Some(token)) = (engine.openwebui.clone(), caller.token.clone())
        else {
            return nobody;
        };
        let (Some(chat), Some(message)) = (caller.chat.clone(), caller.message.clone()) else {
            return nobody;
        };
        if !OpenWebUi::keeps(&chat) || !call.ask.is_tool_call() {
            return nobody;
        }
        let (status, lines) = watch::channel(None);
        let status = Status(Some(Arc::new(status)));
        let show = async move |event: Event| {
            let told = openwebui.tell(&token, &chat, &message, &event).await;
            if let Err(failure) = told {
                tracing::debug!(%failure, "a status is not shown in the chat");
            }
        };
        let shower = tokio::spawn(show_lines(lines, show));
        let follower = follow(call, &status);
        Self {
            status,
            shower: Some(shower),
            follower,
        }
    }

    /// The line itself.
    pub fn status(&self) -> Status {
        self.status.clone()
    }

    /// Takes the line away.
    pub async fn end(mut self) {
        if let Some(follower) = self.follower.take() {
            follower.abort();
        }
        self.status = Status::default();
        if let Some(mut shower) = self.shower.take()
            && timeout(LAST, &mut shower).await.is_err()
        {
            shower.abort();
        }
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        for task in [self.follower.take(), self.shower.take()]
            .into_iter()
            .flatten()
        {
            task.abort();
        }
    }
}

/// Ends when every sender of lines is gone.
async fn show_lines(mut lines: watch::Receiver<Option<String>>, show: impl AsyncFn(Event)) {
    let (mut next, mut shown) = (Instant::now() + EVERY, None);
    while lines.changed().await.is_ok() {
        tokio::select! {
            () = sleep_until(next) => {}
            () = closed(&mut lines) => break,
        }
        let line = lines.borrow_and_update().clone();
        if let Some(line) = line.filter(|line| shown.as_ref() != Some(line)) {
            show(Event::Status(line.clone(), false)).await;
            shown = Some(line);
            next = Instant::now() + EVERY;
        }
    }
    if let Some(line) = shown {
        show(Event::Status(line, true)).await;
    }
}

async fn closed(lines: &mut watch::Receiver<Option<String>>) {
    let mut other = lines.clone();
    while other.changed().await.is_ok() {}
}

/// Has the line say what the child says of its progress. Where nobody else hears the child, it is
/// heard here; its questions are declined by their drop, since a chat cannot be asked.
fn follow(call: &mut Call, status: &Status) -> Option<JoinHandle<()>> {
    let mut hearer = None;
    if call.hearing.is_none() {
        let mut owner = [0; 8];
        getrandom::fill(&mut owner).ok()?;
        let (sender, mut heard) = mpsc::channel(BACKLOG);
        call.hearing = Some(Hearing {
            // Any number that no other caller has.
            owner: u64::from_le_bytes(owner) >> 1 | 1 << 62,
            heard: sender,
            cancellation: Cancellation::default(),
            witness: None,
        });
        hearer = Some(tokio::spawn(async move {
            while heard.recv().await.is_some() {}
        }));
    }
    if let Some(hearing) = &mut call.hearing {
        // A child that is still being settled keeps no line up.
        let status = status.0.as_ref().map(Arc::downgrade);
        hearing.witness = Some(Arc::new(move |said| {
            let status = status.as_ref().and_then(Weak::upgrade);
            if let (Some(status), Some(line)) = (status, line_of(said)) {
                Status(Some(status)).set(Some(line));
            }
        }));
    }
    hearer
}

/// The server's words, and how far it is.
fn line_of(said: &Said) -> Option<String> {
    if &*said.method != method::PROGRESS {
        return None;
    }
    let params = said.params.as_ref()?;
    let number = |name: &str| params.member(name)?.read::<f64>().ok();
    let far = match (number("progress"), number("total")) {
        (Some(done), Some(total)) if total > 0.0 => format!("{done}/{total}"),
        (Some(done), _) => done.to_string(),
        (None, _) => String::new(),
    };
    let words = params.member("message").and_then(|words| words.read().ok());
    let words: String = words.unwrap_or_default();
    let words: String = words
        .chars()
        .filter(|c| !c.is_control())
        .take(LONGEST)
        .collect();
    Some(match words.trim() {
        "" if far.is_empty() => return None,
        "" => far,
        words if far.is_empty() => words.to_owned(),
        words => format!("{words} ({far})"),
    })
}
