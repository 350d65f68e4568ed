//! The ends of the pipes: lines in, lines out.

use std::{collections::HashMap, time::Duration};

use bytes::Bytes;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, DuplexStream},
    sync::mpsc,
    task::{AbortHandle, JoinSet},
};

use super::message::Outgoing;

/// Maximum number of messages that wait for a slow reader; above it, reading from the network
/// waits.
const WAITING: usize = 64;
/// How long to wait for responses after the end of stdin.
const LAST_ANSWERS: Duration = Duration::from_secs(2);

/// Reads the messages of the bridge.
pub struct Input {
    stdin: BufReader<DuplexStream>,
    line: Vec<u8>,
}

impl Input {
    /// Reads from this end of the pipe.
    pub fn new(stdin: DuplexStream) -> Self {
        Self {
            stdin: BufReader::new(stdin),
            line: Vec::new(),
        }
    }

    /// The next message; `None` once the bridge has closed the pipe. Cancel-safe. The bridge limits
    /// the size of its messages.
    pub async fn next(&mut self) -> Option<Outgoing> {
        loop {
            // If cancelled between two reads, `line` keeps the data that was read.
            let read = self.stdin.read_until(b'\n', &mut self.line).await;
            let line = Bytes::from(std::mem::take(&mut self.line));
            let line = line.slice_ref(line.trim_ascii());
            if let Some(message) = Outgoing::read(&line) {
                return Some(message);
            }
            if !matches!(read, Ok(1..)) {
                return None;
            }
        }
    }
}

/// Accepts whole lines from several senders.
#[derive(Clone)]
pub struct Output(mpsc::Sender<Bytes>);

impl Output {
    /// An output, and the lines that [`pump`] writes.
    pub fn new() -> (Self, mpsc::Receiver<Bytes>) {
        let (sender, lines) = mpsc::channel(WAITING);
        (Self(sender), lines)
    }

    /// Writes one line with its newline. Lost if the reader is gone.
    pub async fn line(&self, line: Bytes) {
        let _ = self.0.send(line).await;
    }
}

/// Writes lines until no [`Output`] is left or the reader has ended; then the pipe ends.
pub async fn pump(mut lines: mpsc::Receiver<Bytes>, mut stdout: DuplexStream) {
    while let Some(line) = lines.recv().await {
        if stdout.write_all(&line).await.is_err() {
            return;
        }
    }
}

/// The messages in flight to the server. Dropping it drops the requests.
#[derive(Default)]
pub struct Flights {
    tasks: JoinSet<Landed>,
    requests: HashMap<Box<str>, Flight>,
}

struct Flight {
    task: AbortHandle,
    is_modern: bool,
}

/// The result of a task.
pub enum Landed {
    /// The request with this id was answered.
    Answered(Box<str>),
    /// The cancellation of the request with this id was sent.
    Cancelled(Box<str>),
    /// Any other task ended.
    Done,
}

impl Flights {
    /// Runs a request until it is answered or cancelled.
    pub fn request(
        &mut self,
        id: Box<str>,
        is_modern: bool,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        let key = id.clone();
        let task = self.tasks.spawn(async move {
            task.await;
            Landed::Answered(id)
        });
        self.requests.insert(key, Flight { task, is_modern });
    }

    /// Runs any other task.
    pub fn other(&mut self, task: impl Future<Output = Landed> + Send + 'static) {
        self.tasks.spawn(task);
    }

    /// Whether the request is in flight; if so, whether it is of a modern revision.
    pub fn is_modern(&self, id: &str) -> Option<bool> {
        self.requests.get(id).map(|flight| flight.is_modern)
    }

    /// Drops a request, which closes its connection.
    pub fn cancel(&mut self, id: &str) {
        if let Some(flight) = self.requests.remove(id) {
            flight.task.abort();
        }
    }

    /// Waits for one task and removes it; false if there is none.
    pub async fn land(&mut self) -> bool {
        match self.tasks.join_next().await {
            None => return false,
            Some(Ok(Landed::Answered(id))) => drop(self.requests.remove(&id)),
            Some(Ok(Landed::Cancelled(id))) => self.cancel(&id),
            Some(Ok(Landed::Done) | Err(_)) => {}
        }
        true
    }

    /// Waits for the remaining tasks, up to a limit.
    pub async fn land_all(&mut self) {
        let all = async { while self.land().await {} };
        let _ = tokio::time::timeout(LAST_ANSWERS, all).await;
    }
}
