//! What belongs to none of a client's requests, for the GET stream of its session.
//!
//! A session may have several such streams at once: a client that lost one without a word opens
//! another. The protocol wants each message on one of them only: the newest gets them, and the ones
//! before it wait for its end.

use std::{collections::VecDeque, sync::Arc};

use bridge_protocol::sse::event;
use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, mpsc};

use super::stream::{PING, PING_EVERY};

/// Events that a stream can be resumed from.
const KEPT: usize = 256;
/// Bytes of these.
const KEPT_BYTES: usize = 4 * 1024 * 1024;

/// The messages, kept for a while so that a stream can be resumed.
#[derive(Default)]
pub struct Outbox {
    events: Mutex<Events>,
    more: Notify,
}

#[derive(Default)]
struct Events {
    kept: VecDeque<(u64, Bytes)>,
    bytes: usize,
    last: u64,
    /// The last one that a stream got.
    sent: u64,
    /// Open streams; the last one gets what comes.
    streams: Vec<u64>,
    opened: u64,
}

/// One stream. Dropped, the one before it gets what comes.
struct Open {
    outbox: Arc<Outbox>,
    number: u64,
    /// The last event that it need not send.
    seen: u64,
    /// Another one was opened since.
    waits: bool,
}

impl Drop for Open {
    fn drop(&mut self) {
        let number = self.number;
        self.outbox.lock().streams.retain(|other| *other != number);
        self.outbox.more.notify_waiters();
    }
}

impl Open {
    /// The next event, if it is this stream's to send.
    fn next(&mut self) -> Option<Bytes> {
        let mut events = self.outbox.events.lock();
        if events.streams.last() != Some(&self.number) {
            self.waits = true;
            return None;
        }
        if std::mem::take(&mut self.waits) {
            self.seen = self.seen.max(events.sent);
        }
        let mut new = events.kept.iter().filter(|(number, _)| *number > self.seen);
        let (number, event) = new.next()?.clone();
        self.seen = number;
        events.sent = events.sent.max(number);
        Some(event)
    }

    async fn send(mut self, reader: mpsc::Sender<Bytes>) {
        let outbox = self.outbox.clone();
        loop {
            let mut more = std::pin::pin!(outbox.more.notified());
            // Listening begins before looking, or an event in between could be missed.
            more.as_mut().enable();
            while let Some(event) = self.next() {
                if reader.send(event).await.is_err() {
                    return;
                }
            }
            tokio::select! {
                () = more => {}
                () = reader.closed() => return,
                () = tokio::time::sleep(PING_EVERY) => {
                    if reader.send(PING).await.is_err() {
                        return;
                    }
                }
            }
        }
    }
}

impl Outbox {
    /// Adds a message.
    pub fn push(&self, line: &[u8]) {
        let mut events = self.lock();
        events.last += 1;
        let event = event(Some(events.last), line);
        events.bytes += event.len();
        let number = events.last;
        events.kept.push_back((number, event));
        while events.kept.len() > KEPT || events.bytes > KEPT_BYTES {
            let Some((_, event)) = events.kept.pop_front() else {
                break;
            };
            events.bytes -= event.len();
        }
        drop(events);
        self.more.notify_waiters();
    }

    /// Opens a stream that goes on after an event, or, without one, begins with what comes next.
    /// The future sends until the reader is gone.
    pub fn open(
        self: &Arc<Self>,
        after: Option<u64>,
        reader: mpsc::Sender<Bytes>,
    ) -> impl Future<Output = ()> + Send + use<> {
        let mut events = self.lock();
        events.opened += 1;
        let number = events.opened;
        events.streams.push(number);
        let seen = after.unwrap_or(events.last);
        drop(events);
        let open = Open {
            outbox: self.clone(),
            number,
            seen,
            waits: false,
        };
        open.send(reader)
    }

    fn lock(&self) -> MutexGuard<'_, Events> {
        self.events.lock()
    }
}
