//! JSON-RPC with one child: responses are matched by request number, and no message of the child
//! breaks a call.
//!
//! Recipients of messages other than responses: on stdio, messages are not associated with
//! requests. Progress is routed by its token, listen streams by their subscription, and all other
//! messages go to the newest request in flight, but only while all active requests have one owner.
//! A request that waits for a response of its client is not active. The recipient is never guessed.

use std::{
    collections::{BTreeMap, VecDeque},
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use bridge_model::JobFolderPaths;
use bridge_protocol::{
    RawJson, code, jsonrpc,
    jsonrpc::{Message, Reply, Said},
    meta, method, without_mark,
};
use bytes::{Buf as _, Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    sync::{Notify, mpsc, oneshot},
};
use tokio_util::sync::CancellationToken;

use crate::relative;

/// How long to wait for responses of a child that closed its stdin.
const LAST_ANSWERS: Duration = Duration::from_millis(500);

/// A child's response: its `result`, or its `error` object.
pub type Outcome = Result<RawJson, RawJson>;

/// Rewrites each line of a child before it is parsed.
type Cleaner = Arc<dyn Fn(Bytes) -> Bytes + Send + Sync>;

/// Removes the folder's path from the child's messages: all recipients get relative names.
pub fn without_folder(paths: JobFolderPaths) -> Cleaner {
    let finders = relative::marks(&paths);
    Arc::new(move |line: Bytes| {
        if finders.iter().all(|finder| finder.find(&line).is_none()) {
            return line;
        }
        match RawJson::parse(line.clone()) {
            Ok(whole) => relative::relative(whole, &paths).into_bytes(),
            Err(_) => line,
        }
    })
}

/// Receives each line that is not JSON-RPC, without its end.
type NoiseLog = Arc<dyn Fn(&[u8]) + Send + Sync>;

/// Why there will be no response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Closed {
    /// The child's stdout ended.
    StreamEnded,
    /// The child sent a line above the limit.
    LineTooLong,
}

/// A handle to the connection. Cheap to clone.
#[derive(Clone)]
pub struct Connection {
    shared: Arc<Shared>,
}

struct Shared {
    outgoing: Outgoing,
    numbers: AtomicU64,
    waiting: Mutex<Waiting>,
    closing: CancellationToken,
    /// A request of the child was declined because no client could answer it.
    declined: AtomicBool,
    noise: Mutex<Noise>,
}

/// Lines of a child that were not JSON-RPC.
#[derive(Debug, Default)]
pub struct Noise {
    /// Their number.
    pub lines: u64,
    /// The start of the last line.
    pub last: Box<str>,
}

/// Maximum size of a line in an error message, in bytes.
const QUOTED: usize = 300;

#[derive(Default)]
struct Waiting {
    requests: BTreeMap<u64, InFlight>,
    /// Set when no further request can be answered.
    closed: Option<Closed>,
}

impl Connection {
    /// Starts the read and write tasks. `limit` bounds one line from the child, in bytes.
    pub fn open(
        stdin: impl AsyncWrite + Send + Unpin + 'static,
        stdout: impl AsyncRead + Send + Unpin + 'static,
        limit: usize,
        listener: Listener,
        cleaner: Cleaner,
        noise: NoiseLog,
    ) -> Self {
        let shared = Arc::new(Shared {
            outgoing: Outgoing::new(stdin),
            numbers: AtomicU64::new(1),
            waiting: Mutex::default(),
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

    /// Sends a request and waits for the response. Dropping the future cancels the request.
    pub async fn request(&self, method: &str, params: Option<&RawJson>) -> Result<Outcome, Closed> {
        let params = params.map(RawJson::as_bytes);
        let make = |number: u64| jsonrpc::line(Some(&number.to_string()), method, params);
        let cancel = method != method::INITIALIZE;
        let never = CancellationToken::new();
        let reply = self.exchange(make, cancel, &never, None).await?;
        Ok(reply.outcome)
    }

    /// Sends the message that `make` builds for this request's number, and waits for the response.
    /// With `cancel`, dropping the future cancels the request at the child; so does `cancelled`,
    /// but then it still waits for a late response.
    pub async fn exchange(
        &self,
        make: impl FnOnce(u64) -> Bytes,
        cancel: bool,
        cancelled: &CancellationToken,
        sink: Option<MessageSink>,
    ) -> Result<Reply, Closed> {
        let number = self.shared.numbers.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = oneshot::channel();
        let cancellation = sink.as_ref().map(|sink| sink.cancellation.clone());
        let request = InFlight {
            answer: sender,
            sink,
            pending: None,
        };
        {
            let mut waiting = self.shared.waiting.lock();
            if let Some(why) = waiting.closed {
                return Err(why);
            }
            waiting.requests.insert(number, request);
        }
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
        // After a response or the end of the connection there is nothing to cancel.
        unanswered.cancel = false;
        unanswered.waits = reply.is_none();
        let closed = || self.shared.waiting.lock().closed;
        reply.ok_or_else(|| closed().unwrap_or(Closed::StreamEnded))
    }

    /// Sends a whole line, including its newline; lost if the child does not read.
    pub fn send(&self, line: Bytes) {
        self.shared.outgoing.try_send(line);
    }

    /// The same for a line without its newline.
    pub fn tell(&self, line: &[u8]) {
        let mut line = line.to_vec();
        jsonrpc::end_line(&mut line);
        self.send(line.into());
    }

    /// Sends a notification; lost if the child does not read.
    pub fn notify(&self, method: &str, params: Option<&RawJson>) {
        self.send(jsonrpc::line(None, method, params.map(RawJson::as_bytes)));
    }

    /// Whether the child sent this request, with this id.
    pub fn asked(&self, request: &Responder, id: &RawJson) -> bool {
        matches!(&request.way, Way::Message(connection, own)
            if Arc::ptr_eq(&self.shared, &connection.shared) && own == id)
    }

    /// Whether requests can still be answered.
    pub fn is_open(&self) -> bool {
        self.shared.waiting.lock().closed.is_none()
    }

    /// Whether a request of the child was declined because no client could answer it.
    pub fn has_declined(&self) -> bool {
        self.shared.declined.load(Ordering::Relaxed)
    }

    /// The child's lines so far that were not JSON-RPC.
    pub fn noise<T>(&self, read: impl FnOnce(&Noise) -> T) -> T {
        read(&self.shared.noise.lock())
    }

    /// Closes the child's stdin; pending responses still arrive.
    pub fn close_stdin(&self) {
        self.shared.closing.cancel();
    }
}

impl Shared {
    fn take(&self, number: u64) -> Option<InFlight> {
        self.waiting.lock().requests.remove(&number)
    }

    fn recipient(&self, said: &Said) -> Option<u64> {
        recipient(&self.waiting.lock().requests, said)
    }

    fn pending(&self, number: u64) -> Arc<PendingServerRequests> {
        let mut waiting = self.waiting.lock();
        let request = waiting.requests.get_mut(&number);
        let pending = request.map(|request| request.pending.get_or_insert_default().clone());
        pending.unwrap_or_default()
    }

    /// If a recipient is too slow, its request fails: other recipients must not wait for it, and it
    /// must not miss a message without notice.
    fn tell(&self, number: u64, message: ServerMessage) {
        let mut waiting = self.waiting.lock();
        let request = waiting.requests.get(&number);
        let Some(sink) = request.and_then(|request| request.sink.as_ref()) else {
            // Dropping a message may send a response to the child, which must not happen under the
            // lock.
            drop(waiting);
            return;
        };
        if let (Some(witness), ServerMessage::Notification(said)) = (&sink.witness, &message) {
            witness(said);
        }
        let sent = sink.messages.try_send(message);
        let full = matches!(sent, Err(mpsc::error::TrySendError::Full(_)));
        let lost = full.then(|| waiting.requests.remove(&number));
        drop(waiting);
        drop((lost, sent));
    }

    /// All waiting callers are notified because their senders are dropped.
    fn close(&self, why: Closed) {
        let before = {
            let mut waiting = self.waiting.lock();
            waiting.closed = Some(why);
            std::mem::take(&mut waiting.requests)
        };
        drop(before);
        self.closing.cancel();
    }
}

/// Cleans up after a request that was dropped.
struct Unanswered<'a> {
    connection: &'a Connection,
    number: u64,
    waits: bool,
    cancel: bool,
    cancellation: Option<Cancellation>,
}

impl Unanswered<'_> {
    /// The message that cancels it.
    fn line(&self) -> Bytes {
        match &self.cancellation {
            Some(cancellation) => cancellation.line_for(self.number),
            None => jsonrpc::cancelled(self.number),
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
            // The child closed its stdin: new requests fail at once, responses to earlier requests
            // may still arrive.
            shared.outgoing.shut();
            tokio::time::sleep(LAST_ANSWERS).await;
            shared.close(Closed::StreamEnded);
        }
    };
    shared.closing.run_until_cancelled(pump).await;
    shared.outgoing.close();
}

struct Reader<R> {
    lines: LineReader<R>,
    shared: Arc<Shared>,
    listener: Listener,
    cleaner: Cleaner,
    noise: NoiseLog,
}

impl<R: AsyncRead + Unpin> Reader<R> {
    async fn run(mut self) {
        let why = loop {
            match self.lines.next().await {
                Line::Whole(line) => self.read_line(&(self.cleaner)(line)),
                Line::TooLong => break Closed::LineTooLong,
                Line::End => break Closed::StreamEnded,
            }
        };
        self.shared.close(why);
    }

    fn read_line(&self, line: &Bytes) {
        if let Some(message) = jsonrpc::message(line) {
            return self.dispatch(message);
        }
        let messages = jsonrpc::messages(line);
        if messages.is_empty() {
            let last = String::from_utf8_lossy(&line[..line.len().min(QUOTED)]);
            {
                let mut kept = self.shared.noise.lock();
                kept.lines += 1;
                kept.last = last.into();
            }
            (self.noise)(line);
        }
        for message in messages {
            self.dispatch(message);
        }
    }

    fn dispatch(&self, message: Message) {
        match message {
            // An unknown number means a duplicate or late response.
            Message::Response { number, reply } => {
                if let Some(request) = self.shared.take(number) {
                    let _ = request.answer.send(reply);
                }
            }
            Message::Request(said) => self.on_request(said),
            Message::Notification(said) => self.on_notification(said),
        }
    }

    fn on_request(&self, said: Said) {
        let Some(id) = said.id.clone() else { return };
        let connection = Connection {
            shared: self.shared.clone(),
        };
        let responder = Responder::new(connection, id);
        if &*said.method == method::PING {
            return responder.result(&RawJson::empty_object());
        }
        // Without a recipient, dropping the responder declines the request.
        if let Some(number) = self.shared.recipient(&said) {
            let responder = responder.count(self.shared.pending(number));
            let message = ServerMessage::Request(said, responder);
            self.shared.tell(number, message);
        } else {
            self.shared.declined.store(true, Ordering::Relaxed);
        }
    }

    fn on_notification(&self, said: Said) {
        let recipient = self.shared.recipient(&said);
        // A message of one subscription has no other recipient.
        let of_all = || subscription(&said).is_none();
        if (recipient.is_none() || is_news(&said.method)) && of_all() {
            (self.listener)(&said);
        }
        if let Some(number) = recipient {
            self.shared.tell(number, ServerMessage::Notification(said));
        }
    }
}

/// Requests that a child sends at once arrive within this time.
const AT_ONCE: Duration = Duration::from_millis(100);

/// Maximum number of messages that wait for a slow recipient; above it, the recipient's request
/// fails.
pub const BACKLOG: usize = 16 * 1024;

/// The owner of long-lived requests, such as subscriptions: they never count as active requests
/// that may receive a request of the child.
pub const LONG_LIVED: u64 = u64::MAX;

/// Receives messages that a child sends while one request is in flight.
#[derive(Clone)]
pub struct MessageSink {
    /// Requests with the same owner may receive each other's messages.
    pub owner: u64,
    /// The receiver.
    pub messages: mpsc::Sender<ServerMessage>,
    /// Set when the client cancels the request.
    pub cancellation: Cancellation,
    /// Gets notifications before the recipient does; if it is set, the request asks for progress.
    pub witness: Option<Listener>,
}

/// A message of a child to one recipient.
pub enum ServerMessage {
    /// A request; the response is sent through the responder.
    Request(Said, Responder),
    /// A notification.
    Notification(Said),
}

/// Receives notifications for all callers: changed lists, updated resources.
pub type Listener = Arc<dyn Fn(&Said) + Send + Sync>;

/// Responds to a request of a child. If it is dropped without a response, it declines the request.
pub struct Responder {
    way: Way,
    /// The child's key for the request, if it has one.
    pub key: Option<Box<str>>,
    /// The pending requests of the bridge's request for which the child sent this one.
    pending: Option<Arc<PendingServerRequests>>,
}

/// How to send a response to the child.
enum Way {
    /// As the response to its request with this id.
    Message(Connection, RawJson),
    /// In the next round of the bridge's request.
    Round(oneshot::Sender<RawJson>),
    Answered,
}

/// The child's unanswered requests for one of the bridge's requests, and when the last one arrived.
#[derive(Default)]
pub struct PendingServerRequests(Mutex<(usize, Option<Instant>)>);

impl PendingServerRequests {
    fn waits(&self) -> bool {
        self.0.lock().0 > 0
    }

    fn asked_just_now(&self) -> bool {
        let (count, last) = *self.0.lock();
        count > 0 && last.is_some_and(|last| last.elapsed() < AT_ONCE)
    }
}

/// For notifications to a child. It does not keep the child alive.
pub type WeakNotifier = Connection;

impl Responder {
    /// Sends the child a message that is not the response.
    pub fn tell(&self, line: &Bytes) {
        if let Way::Message(connection, _) = &self.way {
            connection.tell(line);
        }
    }

    /// For a request that the child sent with this id.
    pub fn new(connection: Connection, id: RawJson) -> Self {
        Self {
            way: Way::Message(connection, id),
            key: None,
            pending: None,
        }
    }

    /// For a request that was part of a result, under this key.
    pub fn of_round(key: &str, answer: oneshot::Sender<RawJson>) -> Self {
        Self {
            way: Way::Round(answer),
            key: Some(key.into()),
            pending: None,
        }
    }

    /// Counts among the pending requests for one of the bridge's requests.
    #[must_use]
    pub fn count(mut self, pending: Arc<PendingServerRequests>) -> Self {
        {
            let mut counted = pending.0.lock();
            *counted = (counted.0 + 1, Some(Instant::now()));
        }
        self.pending = Some(pending);
        self
    }

    /// Responds with `result`.
    pub fn result(mut self, result: &RawJson) {
        match std::mem::replace(&mut self.way, Way::Answered) {
            Way::Message(connection, id) => {
                connection.send(jsonrpc::answer(&id, "result", result.as_str()));
            }
            Way::Round(answer) => {
                let _ = answer.send(result.clone());
            }
            Way::Answered => {}
        }
    }

    /// Responds with an error.
    pub fn refuse(mut self, code: i64, message: &str) {
        self.send_error(code, message);
        self.way = Way::Answered;
    }

    fn send_error(&self, code: i64, message: &str) {
        if let Way::Message(connection, id) = &self.way {
            let error = serde_json::json!({"code": code, "message": message}).to_string();
            connection.send(jsonrpc::answer(id, "error", &error));
        }
    }

    /// Forwards a client's whole response, whose id is `id` within the line.
    pub fn relay(mut self, line: &bytes::Bytes, id: &RawJson) {
        if let Way::Message(connection, own) = &self.way {
            connection.tell(&jsonrpc::splice(line, &[(id, own.as_bytes())]));
            self.way = Way::Answered;
            return;
        }
        // A round cannot carry an error, which declines the request.
        let whole = RawJson::parse(line.clone()).ok();
        if let Some(result) = whole.and_then(|whole| whole.member("result")) {
            self.result(&result);
        }
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        if let Some(pending) = &self.pending {
            let mut pending = pending.0.lock();
            pending.0 = pending.0.saturating_sub(1);
        }
        let message = "the client does not support this request";
        self.send_error(code::METHOD_NOT_FOUND, message);
    }
}

/// A request of the bridge that waits for its response.
struct InFlight {
    answer: oneshot::Sender<Reply>,
    /// Receives the child's other messages.
    sink: Option<MessageSink>,
    /// The child's requests for it, if any.
    pending: Option<Arc<PendingServerRequests>>,
}

/// The number of the request that gets a message.
fn recipient(waiting: &BTreeMap<u64, InFlight>, said: &Said) -> Option<u64> {
    let named = named_request(said);
    if said.id.is_none() && (&*said.method == method::PROGRESS || named.is_some()) {
        // A token that is not in flight belongs to an ended call.
        return named.filter(|number| waiting.contains_key(number));
    }
    if is_news(&said.method) {
        return None;
    }
    let pending = |request: &InFlight, is: fn(&PendingServerRequests) -> bool| {
        request.pending.as_deref().is_some_and(is)
    };
    let is_active = |request: &InFlight| {
        let owner = request.sink.as_ref().map(|sink| sink.owner);
        !pending(request, PendingServerRequests::waits) && owner != Some(LONG_LIVED)
    };
    let active = waiting.values().any(is_active);
    let may_get = |(_, request): &(&u64, &InFlight)| {
        if active {
            is_active(request)
        } else {
            pending(request, PendingServerRequests::asked_just_now)
        }
    };
    // The newest such request, if all have the same owner.
    let mut owners = waiting
        .iter()
        .rev()
        .filter(may_get)
        .map(|(number, request)| (*number, request.sink.as_ref().map(|sink| sink.owner)));
    let (newest, owner) = owners.next()?;
    owner?;
    owners.all(|(_, other)| other == owner).then_some(newest)
}

/// The subscription that a message belongs to.
fn subscription(said: &Said) -> Option<RawJson> {
    let id = said.param(&["_meta", meta::SUBSCRIPTION_ID]);
    id.filter(|id| id.as_bytes() != b"null")
}

/// The number of the bridge's request that the params name: a progress token or a subscription.
fn named_request(said: &Said) -> Option<u64> {
    let named = subscription(said).or_else(|| said.param(&[meta::PROGRESS_TOKEN]));
    jsonrpc::number(named?.as_str())
}

/// Whether a notification is for all callers rather than for a request in flight.
pub fn is_news(method: &str) -> bool {
    method.ends_with("/list_changed") || method == method::RESOURCE_UPDATED
}

// Messages to a child: whole lines, in the order in which they were sent.
//
// The sender writes at once, including lines that others have sent meanwhile, so that no task must
// be woken. Only data that does not fit into the child's pipe is written by a task that waits for
// space.
//
// ```text
// send ──▶ waiting lines ──the sender that holds the pipe──▶ child
//                                └──pipe full──▶ the task holds it until nothing waits
// ```

/// Maximum number of lines that wait for a child that reads slowly; above it, senders wait.
const MOST: usize = 256;

/// Maximum number of lines in one write.
const BATCH: usize = 64;

type Stdin = Box<dyn AsyncWrite + Send + Unpin>;

/// The queue and pipe to one child's stdin.
pub struct Outgoing {
    lines: Mutex<Lines>,
    pipe: Mutex<Pipe>,
    /// Signals that the task has data to write.
    stuck: Notify,
    room: Notify,
}

#[derive(Default)]
struct Lines {
    waiting: VecDeque<Bytes>,
    closed: bool,
}

struct Pipe {
    /// `None` while the task writes, and after the end.
    stdin: Option<Stdin>,
    /// The rest of a partial write.
    rest: Bytes,
}

/// The child accepts no more data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shut;

impl Outgoing {
    pub fn new(stdin: impl AsyncWrite + Send + Unpin + 'static) -> Self {
        Self {
            lines: Mutex::default(),
            pipe: Mutex::new(Pipe {
                stdin: Some(Box::new(stdin)),
                rest: Bytes::new(),
            }),
            stuck: Notify::new(),
            room: Notify::new(),
        }
    }

    /// Sends a whole line, including its newline; waits while the queue is full.
    pub async fn send(&self, line: Bytes) -> Result<(), Shut> {
        let mut line = Some(line);
        loop {
            let mut room = std::pin::pin!(self.room.notified());
            // Registered before the check, because otherwise a notification could be missed.
            room.as_mut().enable();
            if self.push(&mut line)? {
                self.flush();
                return Ok(());
            }
            room.await;
        }
    }

    /// Sends a line, which is lost if the child does not read.
    pub fn try_send(&self, line: Bytes) {
        if self.push(&mut Some(line)) == Ok(true) {
            self.flush();
        }
    }

    /// True once the line is in the queue.
    fn push(&self, line: &mut Option<Bytes>) -> Result<bool, Shut> {
        let mut lines = self.lines.lock();
        if lines.closed {
            return Err(Shut);
        }
        let room = lines.waiting.len() < MOST;
        if room {
            lines.waiting.extend(line.take());
        }
        Ok(room)
    }

    /// Writes the queued lines, unless another sender is writing; that sender checks the queue
    /// again afterwards.
    fn flush(&self) {
        loop {
            let Some(mut pipe) = self.pipe.try_lock() else {
                return;
            };
            let Pipe { stdin, rest } = &mut *pipe;
            let Some(open) = stdin else { return };
            if !self.write_now(open, rest) {
                self.stuck.notify_one();
                return;
            }
            drop(pipe);
            // A sender that queued a line meanwhile found the pipe locked.
            if self.lines.lock().waiting.is_empty() {
                return;
            }
        }
    }

    /// False if the task must write the rest.
    fn write_now(&self, stdin: &mut Stdin, rest: &mut Bytes) -> bool {
        let mut context = Context::from_waker(Waker::noop());
        loop {
            if rest.is_empty() {
                *rest = self.next();
            }
            if rest.is_empty() {
                return true;
            }
            match Pin::new(&mut *stdin).poll_write(&mut context, rest) {
                Poll::Ready(Ok(written @ 1..)) => rest.advance(written),
                _ => return false,
            }
        }
    }

    /// The next data to write; empty if the queue is empty.
    fn next(&self) -> Bytes {
        let mut lines = self.lines.lock();
        let full = lines.waiting.len() >= MOST;
        let many = lines.waiting.len().min(BATCH);
        let next = match many {
            0 => Bytes::new(),
            1 => lines.waiting.pop_front().unwrap_or_default(),
            _ => {
                let batch: Vec<Bytes> = lines.waiting.drain(..many).collect();
                batch.concat().into()
            }
        };
        drop(lines);
        if full {
            self.room.notify_waiters();
        }
        next
    }

    /// Writes the data that senders could not write, until the child accepts no more.
    pub async fn write_left(&self) -> std::io::Result<()> {
        loop {
            self.stuck.notified().await;
            let taken = {
                let mut pipe = self.pipe.lock();
                let rest = std::mem::take(&mut pipe.rest);
                pipe.stdin.take().map(|stdin| (stdin, rest))
            };
            let Some((mut stdin, mut rest)) = taken else {
                continue;
            };
            while !rest.is_empty() {
                stdin.write_all(&rest).await?;
                rest = self.next();
            }
            self.pipe.lock().stdin = Some(stdin);
            // Lines that were queued while the task held the pipe.
            self.flush();
        }
    }

    /// Accepts no more lines.
    pub fn shut(&self) {
        self.lines.lock().closed = true;
        self.room.notify_waiters();
    }

    /// Accepts no more lines, and closes the child's stdin.
    pub fn close(&self) {
        self.shut();
        self.pipe.lock().stdin = None;
    }
}

// Lines of a byte stream; each line is one message.

/// The result of a read.
pub enum Line {
    /// One line without its newline.
    Whole(Bytes),
    /// The line exceeds the limit: the stream cannot be read further.
    TooLong,
    /// The stream ended.
    End,
}

/// Size of a buffer block, in bytes.
const BLOCK: usize = 16 * 1024;

/// Minimum free space for a read, in bytes.
const LEAST_READ: usize = 2 * 1024;

/// Splits a stream at newlines, without copying lines out of the buffer.
pub struct LineReader<R> {
    input: R,
    buffer: BytesMut,
    searched: usize,
    limit: usize,
}

impl<R: AsyncRead + Unpin> LineReader<R> {
    /// `limit` bounds one line, in bytes, and so this reader's memory.
    pub fn new(input: R, limit: usize) -> Self {
        Self {
            input,
            buffer: BytesMut::with_capacity(BLOCK),
            searched: 0,
            limit,
        }
    }

    /// The next line that is not blank. Cancel-safe.
    pub async fn next(&mut self) -> Line {
        loop {
            if let Some(length) = memchr::memchr(b'\n', &self.buffer[self.searched..]) {
                let line = self.buffer.split_to(self.searched + length + 1).freeze();
                self.searched = 0;
                self.leave_large_block(line.len());
                let line = line.slice_ref(without_mark(&line));
                if line.is_empty() {
                    continue;
                }
                if line.len() > self.limit {
                    return Line::TooLong;
                }
                return Line::Whole(line);
            }
            self.searched = self.buffer.len();
            if self.searched > self.limit {
                self.buffer = BytesMut::new();
                self.searched = 0;
                return Line::TooLong;
            }
            // Small lines share a block; doubling limits how often a growing line is copied.
            if self.buffer.capacity() - self.searched < LEAST_READ {
                self.buffer.reserve(self.searched.max(BLOCK));
            }
            match self.input.read_buf(&mut self.buffer).await {
                Ok(0) | Err(_) => return self.last_line(),
                Ok(_) => {}
            }
        }
    }

    /// The rest of the buffer would keep a large line's allocation alive while this reader waits.
    /// Data after the line is copied into a new block.
    fn leave_large_block(&mut self, line: usize) {
        if line > BLOCK {
            let mut block = BytesMut::with_capacity(self.buffer.len().max(BLOCK));
            block.extend_from_slice(&self.buffer);
            self.buffer = block;
        }
    }

    /// A last line without a newline is valid.
    fn last_line(&mut self) -> Line {
        self.searched = 0;
        let rest = self.buffer.split().freeze();
        let rest = rest.slice_ref(without_mark(&rest));
        if rest.is_empty() {
            Line::End
        } else {
            Line::Whole(rest)
        }
    }
}

// Cancellation of a request by its client.

/// Set once, possibly with the client's own message. Clones refer to the same request.
#[derive(Clone, Default)]
pub struct Cancellation {
    token: CancellationToken,
    words: Arc<OnceLock<(Bytes, RawJson)>>,
}

impl Cancellation {
    /// Cancels with a `notifications/cancelled` of the client, within which `id` names the request.
    pub fn cancel(&self, line: &Bytes, id: &RawJson) {
        let _ = self.words.set((line.clone(), id.clone()));
        self.token.cancel();
    }

    /// Waits for the cancellation.
    pub async fn cancelled(&self) {
        self.token.cancelled().await;
    }

    /// The message that cancels the bridge's request with this number: the client's own message
    /// with the id replaced, if there is one.
    pub fn line_for(&self, number: u64) -> Bytes {
        let Some((line, id)) = self.words.get() else {
            return jsonrpc::cancelled(number);
        };
        let mut line = jsonrpc::splice(line, &[(id, number.to_string().as_bytes())]).to_vec();
        jsonrpc::end_line(&mut line);
        line.into()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, DuplexStream, Lines};

    use super::*;

    #[derive(Default)]
    struct KeptNoise(Mutex<Vec<Vec<u8>>>);

    /// The child's side of a connection, controlled by the test.
    struct Played {
        connection: Connection,
        reads: Lines<BufReader<DuplexStream>>,
        writes: DuplexStream,
        noise: Arc<KeptNoise>,
        messages: Arc<Mutex<Vec<String>>>,
    }

    impl Played {
        fn new() -> Self {
            let (stdin, child_stdin) = tokio::io::duplex(1 << 16);
            let (child_stdout, stdout) = tokio::io::duplex(1 << 16);
            let (noise, messages) = (
                Arc::new(KeptNoise::default()),
                Arc::new(Mutex::new(Vec::new())),
            );
            let notes = messages.clone();
            let listener: Listener =
                Arc::new(move |said| notes.lock().push(said.method.to_string()));
            let connection = Connection::open(
                stdin,
                stdout,
                1000,
                listener,
                Arc::new(|line| line),
                Arc::new({
                    let noise = noise.clone();
                    move |line: &[u8]| noise.0.lock().push(line.to_vec())
                }),
            );
            let reads = BufReader::new(child_stdin).lines();
            Self {
                connection,
                reads,
                writes: child_stdout,
                noise,
                messages,
            }
        }

        async fn hears(&mut self) -> Value {
            serde_json::from_str(&self.reads.next_line().await.unwrap().unwrap()).unwrap()
        }

        async fn says(&mut self, line: &str) {
            self.writes
                .write_all(format!("{line}\n").as_bytes())
                .await
                .unwrap();
        }

        fn asks(&self, method: &'static str) -> tokio::task::JoinHandle<Result<Outcome, Closed>> {
            let connection = self.connection.clone();
            tokio::spawn(async move { connection.request(method, None).await })
        }
    }

    #[tokio::test]
    async fn answers_find_their_request_whatever_comes_between() {
        let mut child = Played::new();
        let (one, two) = (child.asks("one"), child.asks("two"));
        let (first, second) = (child.hears().await, child.hears().await);
        child.says("log line").await;
        child
            .says(r#"{"method":"notifications/message","params":{}}"#)
            .await;
        child.says(r#"{"id":9,"method":"ping"}"#).await;
        child.says(r#"{"id":"r","method":"roots/list"}"#).await;
        child.says(r#"{"id":4711,"result":"nobody asked"}"#).await;
        for asked in [second, first] {
            let (id, method) = (&asked["id"], &asked["method"]);
            child
                .says(&json!({"id": id, "result": method}).to_string())
                .await;
        }
        assert_eq!(one.await.unwrap().unwrap().unwrap().as_str(), r#""one""#);
        assert_eq!(two.await.unwrap().unwrap().unwrap().as_str(), r#""two""#);
        assert_eq!(child.hears().await["result"], json!({}));
        let refused = child.hears().await;
        assert_eq!(
            (&refused["id"], &refused["error"]["code"]),
            (&json!("r"), &json!(-32601))
        );
        assert_eq!(*child.messages.lock(), ["notifications/message"]);
        assert_eq!(*child.noise.0.lock(), [b"log line".to_vec()]);
    }

    #[tokio::test]
    async fn a_caller_who_leaves_is_cancelled() {
        let mut child = Played::new();
        let call = child.asks("slow");
        let asked = child.hears().await;
        call.abort();
        let cancelled = child.hears().await;
        assert_eq!(cancelled["method"], "notifications/cancelled");
        assert_eq!(cancelled["params"]["requestId"], asked["id"]);
    }

    #[tokio::test]
    async fn an_ended_stream_fails_who_waits_and_who_comes_later() {
        let mut child = Played::new();
        let call = child.asks("x");
        child.hears().await;
        drop(child.writes);
        assert_eq!(call.await.unwrap().unwrap_err(), Closed::StreamEnded);
        assert!(!child.connection.is_open());
        assert_eq!(
            child.connection.request("y", None).await.unwrap_err(),
            Closed::StreamEnded
        );
    }

    #[tokio::test]
    async fn a_line_above_the_limit_ends_the_conversation_only() {
        let mut child = Played::new();
        let call = child.asks("x");
        child.hears().await;
        child.says(&"x".repeat(5000)).await;
        assert_eq!(call.await.unwrap().unwrap_err(), Closed::LineTooLong);
    }

    #[tokio::test]
    async fn closing_stdin_lets_the_last_answer_in() {
        let mut child = Played::new();
        let call = child.asks("x");
        let asked = child.hears().await;
        child.connection.close_stdin();
        assert!(child.reads.next_line().await.unwrap().is_none());
        child
            .says(&json!({"id": asked["id"], "result": 1}).to_string())
            .await;
        assert_eq!(call.await.unwrap().unwrap().unwrap().as_str(), "1");
    }

    #[tokio::test(start_paused = true)]
    async fn a_child_that_closed_its_stdin_is_no_longer_asked() {
        let Played {
            connection,
            reads,
            writes: _stdout,
            ..
        } = Played::new();
        drop(reads);
        for _ in 0..2 {
            let asked =
                tokio::time::timeout(Duration::from_secs(60), connection.request("m", None));
            assert_eq!(asked.await.unwrap().unwrap_err(), Closed::StreamEnded);
        }
        assert!(!connection.is_open());
    }
}

#[cfg(test)]
mod outgoing_tests {
    use std::sync::Arc;

    use tokio::io::{AsyncReadExt as _, DuplexStream};

    use super::*;

    fn pipe(room: usize) -> (Arc<Outgoing>, DuplexStream) {
        let (stdin, child) = tokio::io::duplex(room);
        (Arc::new(Outgoing::new(stdin)), child)
    }

    fn line(number: usize) -> Bytes {
        format!("line {number}\n").into()
    }

    #[tokio::test]
    async fn a_line_is_written_by_its_sender() {
        let (outgoing, mut child) = pipe(100);
        outgoing.send(line(1)).await.unwrap();
        outgoing.try_send(line(2));
        let mut read = [0; 14];
        child.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"line 1\nline 2\n");
    }

    #[tokio::test]
    async fn whole_lines_arrive_in_order_at_a_child_that_reads_byte_by_byte() {
        let (outgoing, mut child) = pipe(3);
        let task = outgoing.clone();
        let left = tokio::spawn(async move { task.write_left().await });
        let sender = outgoing.clone();
        let sending = tokio::spawn(async move {
            for number in 0..2 * MOST {
                sender.send(line(number)).await.unwrap();
            }
        });
        let wanted: Vec<Bytes> = (0..2 * MOST).map(line).collect();
        let wanted = wanted.concat();
        let mut read = vec![0; wanted.len()];
        child.read_exact(&mut read).await.unwrap();
        assert_eq!(read, wanted);
        sending.await.unwrap();
        outgoing.close();
        left.abort();
        assert_eq!(child.read(&mut [0]).await.unwrap(), 0);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn lines_of_many_senders_stay_whole() {
        let (outgoing, child) = pipe(64);
        let task = outgoing.clone();
        let left = tokio::spawn(async move { task.write_left().await });
        let senders = (0..8).map(|sender| {
            let outgoing = outgoing.clone();
            tokio::spawn(async move {
                for number in 0..200 {
                    let line = format!("{sender} {number}\n");
                    outgoing.send(line.into()).await.unwrap();
                    tokio::task::yield_now().await;
                }
            })
        });
        let senders: Vec<_> = senders.collect();
        let mut lines = tokio::io::AsyncBufReadExt::lines(tokio::io::BufReader::new(child));
        let mut next = [0; 8];
        for _ in 0..8 * 200 {
            let line = lines.next_line().await.unwrap().unwrap();
            let (sender, number) = line.split_once(' ').unwrap();
            let sender: usize = sender.parse().unwrap();
            assert_eq!(number.parse(), Ok(next[sender]), "{line}");
            next[sender] += 1;
        }
        for sender in senders {
            sender.await.unwrap();
        }
        left.abort();
    }

    #[tokio::test]
    async fn a_child_that_reads_nothing_lets_senders_wait_and_loses_what_need_not_arrive() {
        let (outgoing, child) = pipe(1);
        for number in 0..=MOST {
            outgoing.send(line(number)).await.unwrap();
        }
        outgoing.try_send(line(0));
        let waiting = tokio::spawn({
            let outgoing = outgoing.clone();
            async move { outgoing.send(line(0)).await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        outgoing.shut();
        assert_eq!(waiting.await.unwrap(), Err(Shut));
        drop(child);
        assert!(outgoing.write_left().await.is_err());
    }
}

#[cfg(test)]
mod lines_tests {
    use super::*;

    #[tokio::test]
    async fn lines_are_split_trimmed_and_bounded() {
        let input: &[u8] = b"\xef\xbb\xbf\n\xef\xbb\xbf one \r\n\ntwo\n\xef\xbb\xbflast";
        let mut reader = LineReader::new(input, 100);
        for expected in ["one", "two", "last"] {
            let Line::Whole(line) = reader.next().await else {
                panic!("{expected}")
            };
            assert_eq!(line, expected);
        }
        assert!(matches!(reader.next().await, Line::End));
        let long = [b'x'; 1000];
        assert!(matches!(
            LineReader::new(&long[..], 100).next().await,
            Line::TooLong
        ));
    }

    /// While it waits for the next line, a reader keeps only one block and the data that has
    /// already arrived.
    #[tokio::test]
    async fn a_large_line_is_given_back_while_the_reader_waits() {
        let mut input = vec![b'x'; 1_000_000];
        input.extend_from_slice(b"\nsmall\nhal");
        let mut reader = LineReader::new(&input[..], 2_000_000);
        let Line::Whole(large) = reader.next().await else {
            panic!("a line")
        };
        let Line::Whole(small) = reader.next().await else {
            panic!("a line")
        };
        assert_eq!((large.len(), &small[..]), (1_000_000, &b"small"[..]));
        assert!(large.is_unique(), "the reader holds on to the large line");
        assert!(
            reader.buffer.capacity() <= BLOCK,
            "{}",
            reader.buffer.capacity()
        );
        assert_eq!(reader.buffer, "hal");
    }
}
