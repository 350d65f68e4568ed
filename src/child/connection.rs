//! JSON-RPC with one child: answers matched by number, nothing the child says breaks a call.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _},
    sync::{mpsc, oneshot},
};
use tokio_util::sync::CancellationToken;

use super::frame::{self, Line, LineReader, Message};
use crate::model::RawJson;

/// Messages that wait for a child which reads slowly; then senders wait.
const OUTGOING: usize = 256;
/// Messages written with one call.
const BATCH: usize = 64;

/// How long answers are waited for from a child that closed its stdin.
const LAST_ANSWERS: Duration = Duration::from_millis(500);

/// A child's answer: its `result`, or its `error` object.
pub type Outcome = Result<RawJson, RawJson>;

/// Is told of what the child says beside answers: method and params of a notification.
pub type Listener = Arc<dyn Fn(&str, Option<&RawJson>) + Send + Sync>;

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
    outgoing: mpsc::Sender<Bytes>,
}

struct Shared {
    numbers: AtomicU64,
    waiting: Mutex<Waiting>,
    closing: CancellationToken,
}

enum Waiting {
    Open(HashMap<u64, oneshot::Sender<Outcome>>),
    Closed(Closed),
}

impl Connection {
    /// Starts the tasks that read and write. `limit` bounds one line from the child, in bytes.
    pub fn open(
        stdin: impl AsyncWrite + Send + Unpin + 'static,
        stdout: impl AsyncRead + Send + Unpin + 'static,
        limit: usize,
        listener: Listener,
        noise: Arc<impl NoiseLog>,
    ) -> Self {
        let (outgoing, lines) = mpsc::channel(OUTGOING);
        let shared = Arc::new(Shared {
            numbers: AtomicU64::new(1),
            waiting: Mutex::new(Waiting::Open(HashMap::new())),
            closing: CancellationToken::new(),
        });
        tokio::spawn(write(stdin, lines, shared.clone()));
        let reader = Reader {
            lines: LineReader::new(stdout, limit),
            shared: shared.clone(),
            outgoing: outgoing.clone(),
            listener,
            noise,
        };
        tokio::spawn(reader.run());
        Self { shared, outgoing }
    }

    /// Asks and waits. Dropping the future tells the child that nobody waits any more.
    pub async fn request(&self, method: &str, params: Option<&RawJson>) -> Result<Outcome, Closed> {
        let number = self.shared.numbers.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = oneshot::channel();
        self.shared.expect(number, sender)?;
        let mut unanswered = Unanswered {
            connection: self,
            number,
            cancel: method != "initialize",
        };
        let line = frame::line(
            Some(&number.to_string()),
            method,
            params.map(RawJson::as_bytes),
        );
        let sent = self.outgoing.send(line).await;
        let outcome = match sent {
            Ok(()) => answer.await.ok(),
            Err(_) => None,
        };
        // Answered or closed: there is nothing left to cancel.
        unanswered.cancel = false;
        outcome.ok_or_else(|| self.shared.closed())
    }

    /// Says something that needs no answer; lost where the child takes nothing in.
    pub fn notify(&self, method: &str, params: Option<&RawJson>) {
        let line = frame::line(None, method, params.map(RawJson::as_bytes));
        let _ = self.outgoing.try_send(line);
    }

    /// Whether requests can still be answered.
    pub fn is_open(&self) -> bool {
        matches!(&*self.shared.lock(), Waiting::Open(_))
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

    fn expect(&self, number: u64, sender: oneshot::Sender<Outcome>) -> Result<(), Closed> {
        match &mut *self.lock() {
            Waiting::Open(waiting) => {
                waiting.insert(number, sender);
                Ok(())
            }
            Waiting::Closed(why) => Err(*why),
        }
    }

    fn take(&self, number: u64) -> Option<oneshot::Sender<Outcome>> {
        match &mut *self.lock() {
            Waiting::Open(waiting) => waiting.remove(&number),
            Waiting::Closed(_) => None,
        }
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
    cancel: bool,
}

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        if self.cancel && self.connection.shared.take(self.number).is_some() {
            let params = format!(
                r#"{{"requestId":{},"reason":"the caller left"}}"#,
                self.number
            );
            let line = frame::line(None, "notifications/cancelled", Some(params.as_bytes()));
            let _ = self.connection.outgoing.try_send(line);
        }
    }
}

async fn write(
    mut stdin: impl AsyncWrite + Unpin,
    mut lines: mpsc::Receiver<Bytes>,
    shared: Arc<Shared>,
) {
    let closing = shared.closing.clone();
    let mut batch = Vec::with_capacity(BATCH);
    let pump = async {
        while lines.recv_many(&mut batch, BATCH).await > 0 {
            let written = match &batch[..] {
                [one] => stdin.write_all(one).await,
                many => stdin.write_all(&many.concat()).await,
            };
            batch.clear();
            if written.is_err() {
                // The child closed its stdin: who asks now is told at once, who asked before may
                // have an answer on its way.
                lines.close();
                tokio::time::sleep(LAST_ANSWERS).await;
                shared.close(Closed::StreamEnded);
                return;
            }
        }
        closing.cancelled().await;
    };
    closing.run_until_cancelled(pump).await;
}

struct Reader<R, N> {
    lines: LineReader<R>,
    shared: Arc<Shared>,
    outgoing: mpsc::Sender<Bytes>,
    listener: Listener,
    noise: Arc<N>,
}

impl<R: AsyncRead + Unpin, N: NoiseLog> Reader<R, N> {
    async fn run(mut self) {
        let why = loop {
            match self.lines.next().await {
                Line::Whole(line) => self.hear(&line),
                Line::TooLong => break Closed::LineTooLong,
                Line::End => break Closed::StreamEnded,
            }
        };
        self.shared.close(why);
    }

    fn hear(&self, line: &Bytes) {
        let messages = frame::messages(line);
        if messages.is_empty() {
            self.noise.noise(line);
        }
        for message in messages {
            match message {
                // An unknown number is an answer given twice, or too late: nobody waits for it.
                Message::Response { id, outcome } => {
                    if let Some(sender) = self.shared.take(id) {
                        let _ = sender.send(outcome);
                    }
                }
                Message::Request { id, method } => self.reply(&id, &method),
                Message::Notification { method, params } => {
                    (self.listener)(&method, params.as_ref());
                }
            }
        }
    }

    fn reply(&self, id: &RawJson, method: &str) {
        let line = if method == "ping" {
            frame::answer(id, "result", "{}")
        } else {
            let message = format!("the client offers no '{method}'");
            let error = serde_json::json!({"code": -32601, "message": message});
            frame::answer(id, "error", &error.to_string())
        };
        // A child that asks faster than it reads is not waited for.
        let _ = self.outgoing.try_send(line);
    }
}

#[cfg(test)]
mod tests;
