//! The ends of the pipes: lines in, lines out.

use std::{collections::HashMap, time::Duration};

use bytes::Bytes;
use futures_util::FutureExt as _;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, DuplexStream},
    sync::mpsc,
    task::{AbortHandle, JoinSet},
};

use super::message::Outgoing;

/// Messages that wait for a reader which is slow; then the network waits.
const WAITING: usize = 64;
/// How long answers on their way are waited for after the end of stdin.
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

    /// The next message; `None` once the bridge closed the pipe. Cancel-safe. The bridge bounds
    /// what it writes.
    pub async fn next(&mut self) -> Option<Outgoing> {
        loop {
            // Cancelled between two reads, `line` keeps what was read.
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

/// Takes whole lines from many sides.
#[derive(Clone)]
pub struct Output(mpsc::Sender<Bytes>);

impl Output {
    /// An output, and the lines that [`pump`] writes.
    pub fn new() -> (Self, mpsc::Receiver<Bytes>) {
        let (sender, lines) = mpsc::channel(WAITING);
        (Self(sender), lines)
    }

    /// One line with its newline. Lost where nobody reads any more.
    pub async fn line(&self, line: Bytes) {
        let _ = self.0.send(line).await;
    }
}

/// Writes lines until no output is left, or nobody reads; then the pipe ends.
pub async fn pump(mut lines: mpsc::Receiver<Bytes>, mut stdout: DuplexStream) {
    while let Some(line) = lines.recv().await {
        if stdout.write_all(&line).await.is_err() {
            return;
        }
    }
}

/// After the session was lost: what is under way may still land, and what comes meanwhile is refused
/// unread, so that its sender may send it in a new session.
pub async fn wind_up(
    input: &mut Input,
    flights: &mut Flights,
    output: &Output,
    refusal: impl Fn(&str) -> Bytes,
) {
    let refusing = async {
        while let Some(message) = input.next().await {
            if let Some(id) = message.id() {
                output.line(refusal(id)).await;
            }
        }
    };
    tokio::select! {
        () = flights.land_all() => {}
        () = refusing => {}
    }
    // What lies in the pipe already.
    while let Some(Some(message)) = input.next().now_or_never() {
        if let Some(id) = message.id() {
            output.line(refusal(id)).await;
        }
    }
}

/// What is on its way to the server. Dropping it drops the requests.
#[derive(Default)]
pub struct Flights {
    tasks: JoinSet<Landed>,
    requests: HashMap<Box<str>, Flight>,
}

struct Flight {
    task: AbortHandle,
    is_modern: bool,
}

/// What a task leaves behind.
pub enum Landed {
    /// The request with this id has its answer.
    Answered(Box<str>),
    /// The server knows that the request with this id is cancelled.
    Cancelled(Box<str>),
    /// Nothing.
    Done,
}

impl Flights {
    /// Runs a request, until it lands or is cancelled.
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

    /// Runs anything else.
    pub fn other(&mut self, task: impl Future<Output = Landed> + Send + 'static) {
        self.tasks.spawn(task);
    }

    /// Whether a request is under way; if so, whether it is of a modern revision.
    pub fn is_modern(&self, id: &str) -> Option<bool> {
        self.requests.get(id).map(|flight| flight.is_modern)
    }

    /// Drops a request: its connection closes.
    pub fn cancel(&mut self, id: &str) {
        if let Some(flight) = self.requests.remove(id) {
            flight.task.abort();
        }
    }

    /// Waits for one task, and clears up after it; false if there is none.
    pub async fn land(&mut self) -> bool {
        match self.tasks.join_next().await {
            None => return false,
            Some(Ok(Landed::Answered(id))) => drop(self.requests.remove(&id)),
            Some(Ok(Landed::Cancelled(id))) => self.cancel(&id),
            Some(Ok(Landed::Done) | Err(_)) => {}
        }
        true
    }

    /// Waits for what is still under way, but not for long.
    pub async fn land_all(&mut self) {
        let all = async { while self.land().await {} };
        let _ = tokio::time::timeout(LAST_ANSWERS, all).await;
    }
}
