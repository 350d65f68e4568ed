//! JSON-RPC with one child: answers matched by number, nothing the child says breaks a call.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{mpsc, oneshot},
};
use tokio_util::sync::CancellationToken;

use super::{
    Cancellation,
    frame::{self, Line, LineReader, Message, Reply, Said},
    hearing::{self, Heard, Hearing, InFlight, Listener, Replier},
    outgoing::{Outgoing, Shut},
};
use crate::model::RawJson;

/// How long answers are waited for from a child that closed its stdin.
const LAST_ANSWERS: Duration = Duration::from_millis(500);

/// A child's answer: its `result`, or its `error` object.
pub type Outcome = Result<RawJson, RawJson>;

/// Rewrites each line of a child's before it is read.
pub type Cleaner = Arc<dyn Fn(Bytes) -> Bytes + Send + Sync>;

/// Takes lines that are no JSON-RPC.
pub trait NoiseLog: Send + Sync + 'static {
    /// One line, without its end.
    fn noise(&self, line: &[u8]);
}

/// Why there will be no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Closed {
    /// The child's stdout ended.
    StreamEnded,
    /// The child sent a line above the limit.
    LineTooLong,
}

/// A handle to the conversation. Cheap to clone.
#[derive(Clone)]
pub struct Connection {
    shared: Arc<Shared>,
}

struct Shared {
    outgoing: Outgoing,
    numbers: AtomicU64,
    waiting: Mutex<Waiting>,
    closing: CancellationToken,
    /// It asked something when nobody could answer.
    declined: AtomicBool,
    noise: Mutex<Noise>,
}

/// Lines of a child's that were no JSON-RPC.
#[derive(Debug, Default)]
pub struct Noise {
    /// How many there were.
    pub lines: u64,
    /// The beginning of the last.
    pub last: Box<str>,
}

/// Bytes of a line that are kept for an error message.
const QUOTED: usize = 300;

enum Waiting {
    Open(BTreeMap<u64, InFlight>),
    Closed(Closed),
}

impl Connection {
    /// Starts the tasks that read and write. `limit` bounds one line from the child, in bytes.
    pub fn open(
        stdin: impl AsyncWrite + Send + Unpin + 'static,
        stdout: impl AsyncRead + Send + Unpin + 'static,
        limit: usize,
        listener: Listener,
        cleaner: Cleaner,
        noise: Arc<impl NoiseLog>,
    ) -> Self {
        let shared = Arc::new(Shared {
            outgoing: Outgoing::new(stdin),
            numbers: AtomicU64::new(1),
            waiting: Mutex::new(Waiting::Open(BTreeMap::new())),
            closing: CancellationToken::new(),
            declined: AtomicBool::new(false),
            noise: Mutex::default(),
        });
        tokio::spawn(write(shared.clone()));
        let reader = Reader {
            lines: LineReader::new(stdout, limit),
            shared: shared.clone(),
            listener,
            cleaner,
            noise,
        };
        tokio::spawn(reader.run());
        Self { shared }
    }

    /// Asks and waits. Dropping the future tells the child that nobody waits any more.
    pub async fn request(&self, method: &str, params: Option<&RawJson>) -> Result<Outcome, Closed> {
        let make = |number: u64| {
            frame::line(
                Some(&number.to_string()),
                method,
                params.map(RawJson::as_bytes),
            )
        };
        let reply = self
            .exchange(
                make,
                method != "initialize",
                &CancellationToken::new(),
                None,
            )
            .await?;
        Ok(reply.outcome)
    }

    /// Sends what `make` writes for the number of this request, and waits for the answer. With
    /// `cancel`, dropping the future tells the child that nobody waits any more; so does
    /// `cancelled`, but then a late answer is still waited for.
    pub async fn exchange(
        &self,
        make: impl FnOnce(u64) -> Bytes,
        cancel: bool,
        cancelled: &CancellationToken,
        hearing: Option<Hearing>,
    ) -> Result<Reply, Closed> {
        let number = self.shared.numbers.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = oneshot::channel();
        let cancellation = hearing.as_ref().map(|hearing| hearing.cancellation.clone());
        self.shared.expect(
            number,
            InFlight {
                answer: sender,
                hearing,
                asks: None,
            },
        )?;
        let mut unanswered = Unanswered {
            connection: self,
            number,
            waits: true,
            cancel,
            cancellation,
        };
        let sent = self.shared.outgoing.send(make(number)).await;
        let reply = match sent {
            Ok(()) => {
                let mut answer = std::pin::pin!(answer);
                tokio::select! {
                    biased;
                    reply = &mut answer => reply.ok(),
                    () = cancelled.cancelled() => {
                        self.send(unanswered.line());
                        unanswered.cancel = false;
                        answer.await.ok()
                    }
                }
            }
            Err(Shut) => None,
        };
        // Answered or closed: there is nothing left to cancel, and an answer waits no more.
        unanswered.cancel = false;
        unanswered.waits = reply.is_none();
        reply.ok_or_else(|| self.shared.closed())
    }

    /// Sends a whole line, its end included; lost where the child takes nothing in.
    pub fn send(&self, line: Bytes) {
        self.shared.outgoing.try_send(line);
    }

    /// Says something that needs no answer; lost where the child takes nothing in.
    pub fn notify(&self, method: &str, params: Option<&RawJson>) {
        self.send(frame::line(None, method, params.map(RawJson::as_bytes)));
    }

    /// Whether both are with the same child.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }

    /// Whether requests can still be answered.
    pub fn is_open(&self) -> bool {
        matches!(&*self.shared.lock(), Waiting::Open(_))
    }

    /// Whether the child asked something when nobody could answer.
    pub fn has_declined(&self) -> bool {
        self.shared.declined.load(Ordering::Relaxed)
    }

    /// What the child said so far that was no JSON-RPC.
    pub fn noise<T>(&self, read: impl FnOnce(&Noise) -> T) -> T {
        let noise = self.shared.noise.lock();
        read(&noise.unwrap_or_else(PoisonError::into_inner))
    }

    /// Ends the child's stdin; answers on their way still arrive.
    pub fn close_stdin(&self) {
        self.shared.closing.cancel();
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn expect(&self, number: u64, request: InFlight) -> Result<(), Closed> {
        match &mut *self.lock() {
            Waiting::Open(waiting) => {
                waiting.insert(number, request);
                Ok(())
            }
            Waiting::Closed(why) => Err(*why),
        }
    }

    fn take(&self, number: u64) -> Option<InFlight> {
        match &mut *self.lock() {
            Waiting::Open(waiting) => waiting.remove(&number),
            Waiting::Closed(_) => None,
        }
    }

    fn hearer(&self, said: &Said) -> Option<u64> {
        match &*self.lock() {
            Waiting::Open(waiting) => hearing::hearer(waiting, said),
            Waiting::Closed(_) => None,
        }
    }

    fn asks(&self, number: u64) -> Arc<hearing::Asks> {
        let Waiting::Open(waiting) = &mut *self.lock() else {
            return Arc::default();
        };
        let request = waiting.get_mut(&number);
        let asks = request.map(|request| request.asks.get_or_insert_default().clone());
        asks.unwrap_or_default()
    }

    /// A hearer who is too far behind loses his request: others must not wait for him, and he must
    /// not miss a message without knowing.
    fn tell(&self, number: u64, heard: Heard) {
        let mut waiting = self.lock();
        let Waiting::Open(requests) = &mut *waiting else {
            return;
        };
        let hearing = requests
            .get(&number)
            .and_then(|request| request.hearing.as_ref());
        let full = hearing.map(|hearing| {
            if let (Some(witness), Heard::Told(said)) = (&hearing.witness, &heard) {
                witness(said);
            }
            hearing.heard.try_send(heard)
        });
        // What is dropped may answer the child, and must not do so under the lock.
        let dropped = match full {
            Some(Err(mpsc::error::TrySendError::Full(heard))) => {
                (requests.remove(&number), Some(heard))
            }
            Some(Err(mpsc::error::TrySendError::Closed(heard))) => (None, Some(heard)),
            _ => (None, None),
        };
        drop(waiting);
        drop(dropped);
    }

    fn closed(&self) -> Closed {
        match &*self.lock() {
            Waiting::Closed(why) => *why,
            Waiting::Open(_) => Closed::StreamEnded,
        }
    }

    /// Everybody who waits is told, by the drop of his sender.
    fn close(&self, why: Closed) {
        let before = std::mem::replace(&mut *self.lock(), Waiting::Closed(why));
        drop(before);
        self.closing.cancel();
    }
}

/// Cleans up after a request whose caller went away.
struct Unanswered<'a> {
    connection: &'a Connection,
    number: u64,
    waits: bool,
    cancel: bool,
    cancellation: Option<Cancellation>,
}

impl Unanswered<'_> {
    /// What tells the child of it.
    fn line(&self) -> Bytes {
        match &self.cancellation {
            Some(cancellation) => cancellation.line_for(self.number),
            None => frame::cancelled(self.number),
        }
    }
}

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        let waited = self.waits && self.connection.shared.take(self.number).is_some();
        if self.cancel && waited {
            self.connection.send(self.line());
        }
    }
}

async fn write(shared: Arc<Shared>) {
    let pump = async {
        if shared.outgoing.write_left().await.is_err() {
            // The child closed its stdin: who asks now is told at once, who asked before may have
            // an answer on its way.
            shared.outgoing.shut();
            tokio::time::sleep(LAST_ANSWERS).await;
            shared.close(Closed::StreamEnded);
        }
    };
    shared.closing.run_until_cancelled(pump).await;
    shared.outgoing.close();
}

struct Reader<R, N> {
    lines: LineReader<R>,
    shared: Arc<Shared>,
    listener: Listener,
    cleaner: Cleaner,
    noise: Arc<N>,
}

impl<R: AsyncRead + Unpin, N: NoiseLog> Reader<R, N> {
    async fn run(mut self) {
        let why = loop {
            match self.lines.next().await {
                Line::Whole(line) => self.hear(&(self.cleaner)(line)),
                Line::TooLong => break Closed::LineTooLong,
                Line::End => break Closed::StreamEnded,
            }
        };
        self.shared.close(why);
    }

    fn hear(&self, line: &Bytes) {
        if let Some(message) = frame::message(line) {
            return self.take_in(message);
        }
        let messages = frame::messages(line);
        if messages.is_empty() {
            let last = String::from_utf8_lossy(&line[..line.len().min(QUOTED)]);
            let kept = self.shared.noise.lock();
            let mut kept = kept.unwrap_or_else(PoisonError::into_inner);
            kept.lines += 1;
            kept.last = last.into();
            drop(kept);
            self.noise.noise(line);
        }
        for message in messages {
            self.take_in(message);
        }
    }

    fn take_in(&self, message: Message) {
        match message {
            // An unknown number is an answer given twice, or too late: nobody waits for it.
            Message::Response { number, reply } => {
                if let Some(request) = self.shared.take(number) {
                    let _ = request.answer.send(reply);
                }
            }
            Message::Request(said) => self.asked(said),
            Message::Notification(said) => self.told(said),
        }
    }

    fn asked(&self, said: Said) {
        let Some(id) = said.id.clone() else { return };
        let connection = Connection {
            shared: self.shared.clone(),
        };
        let replier = Replier::new(connection, id);
        if &*said.method == "ping" {
            return replier.result(&RawJson::empty_object());
        }
        // Where nobody can be asked, the replier's drop declines.
        if let Some(number) = self.shared.hearer(&said) {
            let asks = self.shared.asks(number);
            self.shared
                .tell(number, Heard::Asked(said, replier.count(asks)));
        } else {
            self.shared.declined.store(true, Ordering::Relaxed);
        }
    }

    fn told(&self, said: Said) {
        let hearer = self.shared.hearer(&said);
        // What is for one subscription is for its hearer alone, or for nobody any more.
        let of_all = || !hearing::is_of_subscription(&said);
        if (hearer.is_none() || hearing::is_news(&said.method)) && of_all() {
            (self.listener)(&said);
        }
        if let Some(number) = hearer {
            self.shared.tell(number, Heard::Told(said));
        }
    }
}

#[cfg(test)]
mod tests;
