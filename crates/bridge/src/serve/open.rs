//! The open connections: their time limits, and which of them is closed when there are too many.
//!
//! ```text
//! New ──first whole head──▶ Busy ──answered──▶ Idle ──a byte──▶ Head ──whole──▶ Busy
//! ```
//!
//! Only new connections are counted for their address: all users behind a proxy share its address, and
//! the proxy may open hundreds of connections at once. Below the limit, an address with more new
//! connections than its share therefore loses only those that have been silent for [`SILENCE_LIMIT`]. At
//! the limit, its longest silent connection is closed first, unless the kernel has unread bytes of the
//! client. Such a connection stays open, and the next one is tried.
//!
//! A client sends its head some milliseconds after it has connected, or more where its machine is busy.
//! Where thousands connect at once, each would be closed within that time. So those that have sent a part
//! of a head, and no more, go first, and the others have a grace ([`TableState::grace`]). Connections that
//! come meanwhile wait in the kernel's accept queue, which keeps their heads as well.
//!
//! Times are kept in atomics that one task looks at, because a timer for each request would cost more
//! than the rest.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    sync::{
        Arc, OnceLock,
        atomic::{
            AtomicBool, AtomicU8, AtomicU64,
            Ordering::{Relaxed, SeqCst},
        },
    },
    task::Waker,
    time::Duration,
};

use futures_util::{
    future::{AbortHandle, AbortRegistration},
    task::AtomicWaker,
};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use parking_lot::{Mutex, MutexGuard};
use rustix::net::RecvFlags;
use tokio::{net::TcpStream, time::Instant};
use tokio_rustls::server::TlsStream;

/// Connections above the limit, which are reserved for health checks.
const HEALTH_CONNECTIONS: usize = 32;
/// Bytes per second that a body must arrive with after the first `Limits::body`.
const MIN_BODY_RATE: u64 = 1024;
/// A connection is closed for a new one if its body, or its head with many others of its address, has
/// been silent for this time.
const SILENCE_LIMIT: Duration = Duration::from_secs(2);
/// How long a new connection, or a request above the limit, waits for the first read of the other new
/// connections, which shows whether they are silent.
const FIRST_READ_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections per second that are accepted even if none of the earlier ones sends anything.
const ADMITTED_PER_SECOND: u32 = 8000;
/// The minimum and maximum time that a new connection has for its first byte when there are too many.
const GRACE: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_millis(500);
/// The time that a connection has for the rest of its head when there are too many.
const REST_OF_HEAD: Duration = Duration::from_millis(5);
/// The interval at which waiting for the first read is checked.
const POLL_INTERVAL: Duration = Duration::from_millis(2);
/// The time that a connection without a request has to send one when the bridge stops.
const STOP_GRACE: Duration = Duration::from_millis(500);

/// The limits of connections.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The maximum number of connections.
    pub most: usize,
    /// Connections of one address that have not sent a complete head. Above this number its silent ones are
    /// closed after [`SILENCE_LIMIT`], and first when there are too many connections.
    pub new_per_address: usize,
    /// The time from the first byte of a head, or the start of the connection, to the end of the head.
    pub head: Duration,
    /// The time between two reads of a body.
    pub body: Duration,
    /// The time between two requests, and the time in which a client must read a part of the answer.
    pub idle: Duration,
}

const NEW: u8 = 0;
const BUSY: u8 = 1;
const IDLE: u8 = 2;
const HEAD: u8 = 3;

/// How a request's body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyLength {
    /// After so many bytes.
    Bytes(u64),
    /// With its last chunk.
    Chunked,
    /// Not known yet.
    Unknown,
}

const CHUNKED: u64 = u64::MAX;
const UNKNOWN: u64 = u64::MAX - 1;

/// A stream that can ask the kernel for bytes of the client that have not been read.
///
/// A pending read does not show that there are none: the runtime reads only after epoll reported the socket.
pub trait Unread {
    fn has_unread(&self) -> bool;
}

impl Unread for TcpStream {
    fn has_unread(&self) -> bool {
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        matches!(rustix::net::recv(self, &mut [0; 1], flags), Ok((read, _)) if read > 0)
    }
}

impl<S: Unread> Unread for TlsStream<S> {
    fn has_unread(&self) -> bool {
        self.get_ref().0.has_unread()
    }
}

impl Unread for TokioIo<Upgraded> {
    /// A connection of another replica, which is in no table and not asked to end.
    fn has_unread(&self) -> bool {
        false
    }
}

/// One connection.
pub struct Connection {
    peer: SocketAddr,
    clock: Instant,
    stage: AtomicU8,
    /// The start of the stage, in milliseconds of `clock`.
    since: AtomicU64,
    /// The time of the last read or write.
    moved: AtomicU64,
    /// A part of the next head has been read.
    head_begun: AtomicBool,
    /// The last read found nothing.
    silent: AtomicBool,
    /// It is closed at the next read that finds nothing.
    asked_to_end: AtomicBool,
    /// Wakes the task that reads heads. Registered by the first read that finds nothing.
    head_reader: AtomicWaker,
    /// The time since when a write is blocked, plus one; 0 if none is.
    unread: AtomicU64,
    body: AtomicU64,
    /// The time since when a read of the body is blocked, plus one; 0 if none is.
    waiting: AtomicU64,
    /// The milliseconds for which earlier reads of this body were blocked.
    waited: AtomicU64,
    received: AtomicU64,
    late: AtomicBool,
    upgraded: AtomicBool,
    reader: AtomicWaker,
    /// Aborts the task that serves the connection.
    task: OnceLock<tokio::task::AbortHandle>,
    ended: AtomicBool,
    stop: OnceLock<AbortHandle>,
    /// Its table, and its number there.
    table: OnceLock<(Arc<Table>, u64)>,
}

impl Connection {
    /// A connection that is in no table.
    pub fn untracked(peer: SocketAddr) -> Arc<Self> {
        Arc::new(Self::new(peer))
    }

    fn new(peer: SocketAddr) -> Self {
        Self {
            peer,
            clock: Instant::now(),
            stage: AtomicU8::new(NEW),
            since: AtomicU64::new(0),
            moved: AtomicU64::new(0),
            head_begun: AtomicBool::new(false),
            silent: AtomicBool::new(false),
            asked_to_end: AtomicBool::new(false),
            head_reader: AtomicWaker::new(),
            unread: AtomicU64::new(0),
            body: AtomicU64::new(UNKNOWN),
            waiting: AtomicU64::new(0),
            waited: AtomicU64::new(0),
            received: AtomicU64::new(0),
            late: AtomicBool::new(false),
            upgraded: AtomicBool::new(false),
            reader: AtomicWaker::new(),
            task: OnceLock::new(),
            ended: AtomicBool::new(false),
            stop: OnceLock::new(),
            table: OnceLock::new(),
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.clock.elapsed().as_millis()).unwrap_or(u64::MAX - 1)
    }

    fn enter(&self, stage: u8) {
        self.since.store(self.now(), Relaxed);
        self.stage.store(stage, Relaxed);
    }

    /// Records that bytes were read.
    pub fn note_received(&self) {
        let now = self.now();
        self.moved.store(now, Relaxed);
        self.silent.store(false, Relaxed);
        if self.asked_to_end.load(SeqCst) {
            self.cancel_end();
        }
        let waiting = self.waiting.swap(0, Relaxed);
        if waiting > 0 {
            self.waited
                .fetch_add(now.saturating_sub(waiting - 1), Relaxed);
        }
    }

    /// Records that the TLS handshake continues. It is polled when bytes arrived, or to close it.
    pub fn note_handshake(&self) {
        if !self.asked_to_end.load(SeqCst) {
            self.moved.store(self.now(), Relaxed);
        }
    }

    /// Records that a part of a head was read.
    pub fn note_head_read(&self) {
        self.head_begun.store(true, Relaxed);
        if self.stage.load(Relaxed) == IDLE {
            self.enter(HEAD);
        }
    }

    /// Records that a read of a head, or of a TLS handshake, is pending. Returns whether the connection is
    /// to be closed: this was requested, and the kernel has no unread bytes.
    pub fn ends_before_head(&self, reader: &Waker, stream: &impl Unread) -> bool {
        self.head_reader.register(reader);
        self.silent.store(true, Relaxed);
        if !self.asked_to_end.load(SeqCst) || self.stage.load(Relaxed) == BUSY {
            return false;
        }
        let ends = !stream.has_unread();
        if !ends {
            self.cancel_end();
        }
        ends
    }

    /// Records that what follows is discarded. Returns whether the connection is to be closed at once, for
    /// which `reader` is woken.
    pub fn ends_early(&self, reader: &Waker) -> bool {
        self.head_reader.register(reader);
        self.silent.store(true, Relaxed);
        self.asked_to_end.load(SeqCst)
    }

    /// Records that a read of a body is pending.
    pub fn waits_for_body(&self, reader: &Waker) {
        self.reader.register(reader);
        if self.waiting.load(Relaxed) == 0 {
            self.waiting.store(self.now() + 1, Relaxed);
        }
    }

    /// Requests its end. Its task closes it unless the kernel has bytes that a busy bridge has not read yet.
    fn ask_to_end(&self) {
        self.asked_to_end.store(true, SeqCst);
        self.head_reader.wake();
    }

    /// Withdraws the request to end, because the client has sent something.
    fn cancel_end(&self) {
        if let Some((table, number)) = self.table.get() {
            table.lock().cancel_end(*number, self);
        }
    }

    /// Records that bytes of the body were read.
    pub fn note_body_read(&self, bytes: u64) {
        self.received.fetch_add(bytes, Relaxed);
    }

    /// Whether the body has exceeded its time.
    pub fn is_late(&self) -> bool {
        self.late.load(Relaxed)
    }

    /// Records a write, and whether it was blocked.
    pub fn note_write(&self, taken: bool) {
        if taken {
            if self.unread.load(Relaxed) != 0 {
                self.unread.store(0, Relaxed);
            }
            self.moved.store(self.now(), Relaxed);
        } else if self.unread.load(Relaxed) == 0 {
            self.unread.store(self.now() + 1, Relaxed);
        }
    }

    /// Records that a complete head has been read.
    pub fn begin_request(&self, body: BodyLength) {
        if self.stage.load(Relaxed) == NEW
            && let Some((table, number)) = self.table.get()
        {
            table.lock().forget_new(*number);
        }
        self.body.store(
            match body {
                BodyLength::Bytes(length) => length.min(UNKNOWN - 1),
                BodyLength::Chunked => CHUNKED,
                BodyLength::Unknown => UNKNOWN,
            },
            Relaxed,
        );
        self.waiting.store(0, Relaxed);
        self.waited.store(0, Relaxed);
        self.received.store(0, Relaxed);
        self.head_begun.store(false, Relaxed);
        self.enter(BUSY);
    }

    /// How the body of the last head ends. Returned once.
    pub fn body(&self) -> BodyLength {
        match self.body.swap(UNKNOWN, Relaxed) {
            UNKNOWN => BodyLength::Unknown,
            CHUNKED => BodyLength::Chunked,
            length => BodyLength::Bytes(length),
        }
    }

    /// Records that the bytes that follow are not HTTP.
    pub fn upgrade(&self) {
        self.upgraded.store(true, Relaxed);
    }

    /// Whether the bytes that follow are not HTTP.
    pub fn is_upgraded(&self) -> bool {
        self.upgraded.load(Relaxed)
    }

    /// Records that the answer has been passed to hyper.
    pub fn end_request(&self) {
        // A part of the next head may have been read with the request.
        let begun = self.head_begun.load(Relaxed);
        self.enter(if begun { HEAD } else { IDLE });
    }

    /// Sets the task that serves the connection.
    pub fn set_task(&self, task: tokio::task::AbortHandle) {
        let _ = self.task.set(task);
    }

    /// Closes it at once, even if there are unread bytes.
    fn abort(&self) {
        if let Some(task) = self.task.get() {
            task.abort();
        }
    }

    /// The next read of the body fails.
    fn end_body(&self) {
        self.late.store(true, Relaxed);
        self.reader.wake();
    }

    fn silence(&self) -> Duration {
        Duration::from_millis(self.now().saturating_sub(self.moved.load(Relaxed)))
    }

    fn age(&self) -> Duration {
        Duration::from_millis(self.now().saturating_sub(self.since.load(Relaxed)))
    }

    /// For how long a read of the body has been blocked.
    fn body_silence(&self) -> Option<Duration> {
        let since = self.waiting.load(Relaxed).checked_sub(1)?;
        Some(Duration::from_millis(self.now().saturating_sub(since)))
    }

    /// Which limit it has exceeded.
    fn overdue(&self, limits: &Limits) -> Option<Overdue> {
        let unread = self.unread.load(Relaxed).checked_sub(1);
        let unread = unread.map(|since| Duration::from_millis(self.now().saturating_sub(since)));
        if unread.is_some_and(|unread| unread > limits.idle) {
            return Some(Overdue::Answer);
        }
        match self.stage.load(Relaxed) {
            NEW | HEAD => (self.age() > limits.head).then_some(Overdue::Head),
            IDLE => (self.age().min(self.silence()) > limits.idle).then_some(Overdue::Idle),
            _ => {
                let silence = self.body_silence()?;
                let waited = Duration::from_millis(self.waited.load(Relaxed)) + silence;
                let earned = Duration::from_secs(self.received.load(Relaxed) / MIN_BODY_RATE);
                let late = silence > limits.body || waited > limits.body + earned;
                late.then_some(Overdue::Body)
            }
        }
    }
}

/// A time limit that is exceeded.
#[derive(Debug, PartialEq, Eq)]
enum Overdue {
    /// Of a head.
    Head,
    /// Of an answer that the client does not read.
    Answer,
    /// Of a connection between two requests.
    Idle,
    /// Of a body.
    Body,
}

/// The decision about a new connection.
pub enum Admission {
    /// Its requests are served.
    Accepted(Arc<Connection>, TableEntry),
    /// Only health checks are served.
    OverLimit(Arc<Connection>, TableEntry),
    /// It is closed: all connections have requests that are being answered.
    Rejected,
}

/// The result of closing connections for a new one.
enum Eviction {
    /// The number is within the limit.
    Done,
    /// Some new connections have not had the time for their first byte.
    Pending,
    /// All connections have requests that are being answered.
    Impossible,
}

/// The open connections.
pub struct Table {
    limits: Limits,
    state: Mutex<TableState>,
}

#[derive(Default)]
struct TableState {
    next: u64,
    open: HashMap<u64, Arc<Connection>>,
    new: BTreeMap<u64, IpAddr>,
    new_of: HashMap<IpAddr, BTreeSet<u64>>,
    /// The number of those in `open` that are being closed.
    ending: usize,
    warned: bool,
}

/// Removes a connection from the table when it is dropped.
pub struct TableEntry {
    table: Arc<Table>,
    number: u64,
}

impl Drop for TableEntry {
    fn drop(&mut self) {
        let mut state = self.table.lock();
        state.forget_new(self.number);
        if let Some(connection) = state.open.remove(&self.number)
            && connection.ended.load(Relaxed)
        {
            state.ending = state.ending.saturating_sub(1);
        }
    }
}

impl TableState {
    fn forget_new(&mut self, number: u64) {
        let Some(address) = self.new.remove(&number) else {
            return;
        };
        if let Some(numbers) = self.new_of.get_mut(&address) {
            numbers.remove(&number);
            if numbers.is_empty() {
                self.new_of.remove(&address);
            }
        }
    }

    /// Counts a connection as being closed, at most once.
    fn count_as_ending(&mut self, number: u64) -> Option<Arc<Connection>> {
        self.forget_new(number);
        let connection = self.open.get(&number)?;
        let goes_now = !connection.ended.swap(true, Relaxed);
        self.ending += usize::from(goes_now);
        Some(connection.clone())
    }

    fn ask_to_end(&mut self, number: u64) {
        if let Some(connection) = self.count_as_ending(number) {
            connection.ask_to_end();
        }
    }

    fn abort(&mut self, number: u64) {
        if let Some(connection) = self.count_as_ending(number) {
            connection.abort();
        }
    }

    /// Counts a connection as open again.
    fn cancel_end(&mut self, number: u64, connection: &Connection) {
        if !connection.asked_to_end.swap(false, SeqCst) {
            return;
        }
        if connection.ended.swap(false, Relaxed) {
            self.ending -= 1;
        }
        if connection.stage.load(Relaxed) == NEW {
            let address = connection.peer.ip().to_canonical();
            self.new.insert(number, address);
            self.new_of.entry(address).or_default().insert(number);
        }
    }

    /// Closes connections that have exceeded a limit.
    fn keep_time(&mut self, limits: &Limits) {
        let open = self.open.iter();
        let overdue = open.filter_map(|(number, open)| Some((*number, open.overdue(limits)?)));
        for (number, overdue) in overdue.collect::<Vec<_>>() {
            match overdue {
                Overdue::Head | Overdue::Answer => {
                    tracing::debug!(peer = %self.open[&number].peer, "connection timed out");
                    self.abort(number);
                }
                Overdue::Idle => self.ask_to_end(number),
                Overdue::Body => self.open[&number].end_body(),
            }
        }
    }

    /// The time that a new connection has for its first byte when there are too many.
    fn grace(&self) -> Duration {
        let new = u32::try_from(self.new.len()).unwrap_or(u32::MAX);
        let grace = Duration::from_secs(1) * new / ADMITTED_PER_SECOND;
        grace.clamp(*GRACE.start(), *GRACE.end())
    }

    /// Whether a new connection has time left for its first byte, or has not been read from.
    fn has_unread_new(&self) -> bool {
        self.new.keys().any(|number| {
            let connection = self.open.get(number);
            connection.is_some_and(|new| new.silent.load(Relaxed) || new.age() < FIRST_READ_TIMEOUT)
        })
    }

    /// The number of connections that are not being closed.
    fn count(&self) -> usize {
        self.open.len() - self.ending
    }

    /// Closes the longest silent connections until there are `most` at most.
    fn evict(&mut self, most: usize, share: usize) -> Eviction {
        while self.count() > most {
            if let Some(new) = self.longest_silent_new(share) {
                self.ask_to_end(new);
            } else if self.has_unread_new() {
                return Eviction::Pending;
            } else if let Some(idle) = self.longest_idle() {
                self.ask_to_end(idle);
            } else if let Some(slow) = self.slowest_body() {
                self.abort(slow);
            } else {
                return Eviction::Impossible;
            }
        }
        Eviction::Done
    }

    /// The first of these new connections that has been silent for long enough: one that has sent a part of
    /// its head, otherwise one that has sent nothing. One that has not been read from is not silent.
    fn first_silent<'a>(
        &self,
        numbers: &(impl Iterator<Item = &'a u64> + Clone),
        part_of_head: Duration,
        nothing: Duration,
    ) -> Option<u64> {
        let first = |has_begun: bool, least: Duration| {
            numbers.clone().find(|number| {
                self.open.get(number).is_some_and(|new| {
                    new.head_begun.load(Relaxed) == has_begun
                        && new.silent.load(Relaxed)
                        && new.silence() >= least
                })
            })
        };
        let first = first(true, part_of_head).or_else(|| first(false, nothing));
        first.copied()
    }

    /// The new connection to close, beginning with an address that has more of them than its share.
    fn longest_silent_new(&self, share: usize) -> Option<u64> {
        let grace = self.grace();
        let greatest = self.new_of.values().max_by_key(|numbers| numbers.len());
        greatest
            .filter(|numbers| numbers.len() > share)
            .and_then(|numbers| self.first_silent(&numbers.iter(), REST_OF_HEAD, grace))
            .or_else(|| self.first_silent(&self.new.keys(), REST_OF_HEAD, grace))
    }

    /// The connections that are not being closed.
    fn remaining(&self) -> impl Iterator<Item = (u64, &Connection)> {
        let open = self.open.iter();
        let staying = open.filter(|(_, connection)| !connection.ended.load(Relaxed));
        staying.map(|(number, connection)| (*number, &**connection))
    }

    /// The longest silent connection between two requests, which is closed after the new ones.
    fn longest_idle(&self) -> Option<u64> {
        let idle = self.remaining().filter(|(_, connection)| {
            let stage = connection.stage.load(Relaxed);
            matches!(stage, IDLE | HEAD) && connection.unread.load(Relaxed) == 0
        });
        idle.max_by_key(|(_, connection)| connection.silence())
            .map(|(number, _)| number)
    }

    /// The connection whose body has been silent for longest, which is closed last.
    fn slowest_body(&self) -> Option<u64> {
        let slow = self.remaining().filter_map(|(number, connection)| {
            let silence = connection.body_silence()?;
            (silence > SILENCE_LIMIT).then_some((number, silence))
        });
        slow.max_by_key(|(_, silence)| *silence)
            .map(|(number, _)| number)
    }
}

impl Table {
    pub fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self {
            limits,
            state: Mutex::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, TableState> {
        self.state.lock()
    }

    fn try_admit(self: &Arc<Self>, peer: SocketAddr) -> Option<Admission> {
        let mut state = self.lock();
        let address = peer.ip().to_canonical();
        if let Some(numbers) = state.new_of.get(&address)
            && numbers.len() >= self.limits.new_per_address
            && let Some(number) = state.first_silent(&numbers.iter(), SILENCE_LIMIT, SILENCE_LIMIT)
        {
            state.ask_to_end(number);
        }
        let mut beyond = false;
        if state.count() >= self.limits.most {
            if !std::mem::replace(&mut state.warned, true) {
                tracing::warn!(
                    most = self.limits.most,
                    "connection limit reached: the connections idle for longest are closed \
                     (MCPO_MAX_CONNECTIONS)"
                );
            }
            match state.evict(
                self.limits.most.saturating_sub(1),
                self.limits.new_per_address,
            ) {
                Eviction::Done => {}
                Eviction::Pending => return None,
                Eviction::Impossible if state.count() >= self.limits.most + HEALTH_CONNECTIONS => {
                    return Some(Admission::Rejected);
                }
                Eviction::Impossible => beyond = true,
            }
        }
        let number = state.next;
        state.next += 1;
        let connection = Connection::untracked(peer);
        let _ = connection.table.set((self.clone(), number));
        state.open.insert(number, connection.clone());
        state.new.insert(number, address);
        state.new_of.entry(address).or_default().insert(number);
        let table = self.clone();
        let held = TableEntry { table, number };
        Some(if beyond {
            Admission::OverLimit(connection, held)
        } else {
            Admission::Accepted(connection, held)
        })
    }

    /// Whether the number of connections is within the limit, after waiting for first reads.
    pub async fn has_room(&self) -> bool {
        let until = Instant::now() + FIRST_READ_TIMEOUT;
        loop {
            let room = self
                .lock()
                .evict(self.limits.most, self.limits.new_per_address);
            match room {
                Eviction::Done => return true,
                Eviction::Pending if Instant::now() < until => {
                    tokio::time::sleep(POLL_INTERVAL).await;
                }
                Eviction::Pending | Eviction::Impossible => return false,
            }
        }
    }

    /// Decides about a new connection, after waiting for first reads of others.
    pub async fn admit(self: &Arc<Self>, peer: SocketAddr) -> Admission {
        loop {
            match self.try_admit(peer) {
                Some(admitted) => return admitted,
                None => tokio::time::sleep(POLL_INTERVAL).await,
            }
        }
    }

    /// Enforces the time limits until it is dropped.
    pub async fn keep_time(self: Arc<Self>) {
        let limits = &self.limits;
        let shortest = limits.head.min(limits.body).min(limits.idle);
        let every = (shortest / 4).clamp(Duration::from_millis(20), Duration::from_secs(1));
        loop {
            tokio::time::sleep(every).await;
            let mut state = self.lock();
            state.keep_time(limits);
            state.warned &= state.open.len() >= limits.most;
        }
    }

    fn all(&self) -> Vec<Arc<Connection>> {
        self.lock().open.values().cloned().collect()
    }

    /// The signal by which a connection learns that the bridge stops. With one token for all, each request
    /// would lock it, because a task that waits for a token locks it at each poll.
    pub fn stops(connection: &Connection) -> AbortRegistration {
        let (bell, ring) = AbortHandle::new_pair();
        let _ = connection.stop.set(bell);
        ring
    }

    /// Tells all connections that the bridge stops. Requests that have been read are answered.
    pub fn stop(&self) {
        for connection in self.all() {
            if let Some(bell) = connection.stop.get() {
                bell.abort();
            }
        }
    }

    /// Closes connections without a request, and those whose body is silent. Called after `stop`.
    pub fn end_unbegun(&self) {
        for connection in self.all() {
            match connection.stage.load(Relaxed) {
                // The rest of an answer is being written.
                _ if connection.unread.load(Relaxed) != 0 => {}
                NEW | HEAD | IDLE if connection.silence() > STOP_GRACE => connection.ask_to_end(),
                BUSY if connection.body_silence() > Some(SILENCE_LIMIT) => connection.end_body(),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(last: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, last], 1000))
    }

    fn table(most: usize, new_per_address: usize) -> Arc<Table> {
        let long = Duration::from_mins(10);
        Table::new(Limits {
            most,
            new_per_address,
            head: long,
            body: long,
            idle: long,
        })
    }

    /// A connection whose task never ends.
    fn open(table: &Arc<Table>, last: u8) -> Arc<Connection> {
        let Some(Admission::Accepted(connection, held) | Admission::OverLimit(connection, held)) =
            table.try_admit(peer(last))
        else {
            panic!("no place")
        };
        let task = tokio::spawn(async move {
            let _held = held;
            std::future::pending::<()>().await;
        });
        connection.set_task(task.abort_handle());
        connection
    }

    /// A connection with a request that is being answered.
    fn open_busy(table: &Arc<Table>, last: u8) -> Arc<Connection> {
        let connection = open(table, last);
        connection.begin_request(BodyLength::Bytes(0));
        connection
    }

    /// A connection between two requests.
    fn open_idle(table: &Arc<Table>, last: u8) -> Arc<Connection> {
        let connection = open_busy(table, last);
        connection.end_request();
        connection
    }

    fn ended(connection: &Connection) -> bool {
        connection.ended.load(Relaxed)
    }

    /// A client without readiness events, and whether the kernel has bytes of it.
    struct Client {
        has_sent: bool,
    }

    impl Unread for Client {
        fn has_unread(&self) -> bool {
            self.has_sent
        }
    }

    /// Its task reads and finds nothing.
    fn look(connection: &Connection) -> bool {
        connection.ends_before_head(Waker::noop(), &Client { has_sent: false })
    }

    /// A connection that has been silent for this time.
    async fn open_silent(table: &Arc<Table>, last: u8, silence: Duration) -> Arc<Connection> {
        let connection = open(table, last);
        look(&connection);
        tokio::time::advance(silence).await;
        connection
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_that_opens_many_at_once_loses_none_while_there_is_room() {
        let table = table(100, 2);
        for _ in 0..20 {
            open_busy(&table, 1);
        }
        let burst: Vec<_> = (0..40).map(|_| open(&table, 1)).collect();
        for connection in &burst {
            look(connection);
        }
        open(&table, 1);
        assert!(!burst.iter().any(|connection| ended(connection)));
    }

    #[tokio::test(start_paused = true)]
    async fn beyond_its_share_an_address_loses_who_is_silent_for_long() {
        let table = table(100, 2);
        let first = open_silent(&table, 1, SILENCE_LIMIT).await;
        let other = open_silent(&table, 2, SILENCE_LIMIT).await;
        let second = open(&table, 1);
        assert!(!ended(&first), "within its share");
        let third = open(&table, 1);
        assert!(ended(&first) && !ended(&second) && !ended(&third) && !ended(&other));
    }

    #[tokio::test(start_paused = true)]
    async fn over_the_total_an_address_with_more_than_its_share_is_the_first_to_lose() {
        let table = table(4, 2);
        let modest = open_silent(&table, 1, SILENCE_LIMIT).await;
        let first = open_silent(&table, 2, *GRACE.start()).await;
        open_silent(&table, 2, *GRACE.start()).await;
        open_silent(&table, 2, *GRACE.start()).await;
        open(&table, 3);
        assert!(ended(&first) && !ended(&modest));
    }

    #[tokio::test(start_paused = true)]
    async fn over_the_total_an_address_with_its_share_waits_until_its_new_ones_were_looked_at() {
        let table = table(3, 2);
        let idle = open_idle(&table, 1);
        let (first, second) = (open(&table, 1), open(&table, 1));
        assert!(table.try_admit(peer(1)).is_none());
        look(&second);
        assert!(
            table.try_admit(peer(1)).is_none(),
            "its request may be on its way"
        );
        tokio::time::advance(*GRACE.start()).await;
        let third = open(&table, 1);
        assert!(ended(&second) && !ended(&first) && !ended(&third) && !ended(&idle));
    }

    #[tokio::test(start_paused = true)]
    async fn as_many_are_closed_as_it_takes() {
        let table = table(3, 8);
        let silent = || open_silent(&table, 1, SILENCE_LIMIT);
        let (stays, first, second) = (silent().await, silent().await, silent().await);
        let third = silent().await;
        assert!(ended(&stays));
        stays.note_received();
        stays.begin_request(BodyLength::Bytes(0));
        assert!(matches!(
            table.admit(peer(1)).await,
            Admission::Accepted(..)
        ));
        assert!(ended(&first) && ended(&second) && !ended(&third) && !ended(&stays));
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_beyond_the_total_waits_until_it_is_known_who_is_silent() {
        let table = table(2, 2);
        let (first, _second) = (open_busy(&table, 1), open_busy(&table, 1));
        let beyond = open_busy(&table, 2);
        assert!(!table.has_room().await);
        first.task.get().expect("its task").abort();
        tokio::task::yield_now().await;
        let newest = open(&table, 3);
        let is_read = async {
            tokio::task::yield_now().await;
            look(&newest);
        };
        let (has_room, ()) = tokio::join!(table.has_room(), is_read);
        assert!(has_room && ended(&newest) && !ended(&beyond));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_is_waited_for_makes_room_and_one_that_nobody_read_from_does_not() {
        let table = table(1, 8);
        let unread = open(&table, 1);
        assert!(table.try_admit(peer(2)).is_none());
        assert!(matches!(
            table.admit(peer(2)).await,
            Admission::OverLimit(..)
        ));
        assert!(!ended(&unread), "its client may have sent a request");
        look(&unread);
        assert!(matches!(
            table.admit(peer(2)).await,
            Admission::Accepted(..)
        ));
        assert!(ended(&unread));
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_connection_has_time_to_send_something_and_half_a_head_goes_first() {
        let table = table(1000, 8);
        let new: Vec<_> = (0..1000).map(|_| open(&table, 1)).collect();
        for connection in &new {
            look(connection);
        }
        assert_eq!(table.lock().grace(), Duration::from_millis(125));
        let half_a_head = &new[500];
        half_a_head.note_head_read();
        for (waits, goes) in [(5, half_a_head), (120, &new[0]), (0, &new[1])] {
            if waits > 0 {
                tokio::time::advance(Duration::from_millis(waits - 1)).await;
                assert!(table.try_admit(peer(2)).is_none());
                tokio::time::advance(Duration::from_millis(1)).await;
            }
            assert!(!ended(goes));
            open(&table, 2).begin_request(BodyLength::Bytes(0));
            assert!(ended(goes));
        }
        assert_eq!(new.iter().filter(|connection| ended(connection)).count(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn those_that_were_ended_for_their_age_have_made_room_already() {
        let table = table(3, 8);
        let idle = open_idle(&table, 1);
        let half_heads = [open_idle(&table, 2), open(&table, 3)];
        half_heads[0].note_head_read();
        tokio::time::advance(table.limits.head + Duration::from_millis(1)).await;
        idle.note_received();
        table.lock().keep_time(&table.limits);
        assert!(half_heads.iter().all(|connection| ended(connection)));
        assert!(matches!(
            table.admit(peer(4)).await,
            Admission::Accepted(..)
        ));
        assert!(!ended(&idle));
        tokio::task::yield_now().await;
        let state = table.lock();
        assert_eq!((state.ending, state.open.len()), (0, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_has_sent_its_request_meanwhile_stays() {
        let table = table(2, 8);
        let (new, idle) = (open(&table, 1), open_idle(&table, 2));
        look(&new);
        for (number, connection) in [(0, &new), (1, &idle)] {
            table.lock().ask_to_end(number);
            assert!(ended(connection));
            assert!(!connection.ends_before_head(Waker::noop(), &Client { has_sent: true }));
            assert!(!ended(connection) && !look(connection));
            table.lock().ask_to_end(number);
            connection.begin_request(BodyLength::Bytes(0));
            assert!(!look(connection), "its request is being answered");
            connection.end_request();
            assert!(look(connection));
        }
        assert_eq!(table.lock().ending, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn one_beyond_the_total_is_within_it_once_another_has_ended() {
        let table = table(2, 2);
        let (first, _second) = (open_busy(&table, 1), open_busy(&table, 1));
        assert!(matches!(
            table.admit(peer(2)).await,
            Admission::OverLimit(..)
        ));
        let third = open_busy(&table, 3);
        assert!(!table.has_room().await);
        for connection in [first, third] {
            connection.task.get().expect("its task").abort();
        }
        tokio::task::yield_now().await;
        assert!(table.has_room().await);
    }

    #[tokio::test(start_paused = true)]
    async fn over_the_total_the_longest_silent_goes_first_and_never_who_waits_for_an_answer() {
        let table = table(4, 4);
        let (busy, idle) = (open(&table, 1), open(&table, 2));
        let older = open_silent(&table, 3, SILENCE_LIMIT).await;
        let newer = open_silent(&table, 4, SILENCE_LIMIT).await;
        busy.begin_request(BodyLength::Bytes(0));
        idle.begin_request(BodyLength::Bytes(0));
        idle.end_request();
        for (goes, stays) in [(&older, &newer), (&newer, &idle), (&idle, &busy)] {
            let new = open(&table, 5);
            assert!(ended(goes) && !ended(stays));
            new.begin_request(BodyLength::Bytes(0));
        }
        tokio::task::yield_now().await;
        for _ in 0..HEALTH_CONNECTIONS {
            let Admission::OverLimit(connection, held) = table.admit(peer(6)).await else {
                panic!("it may ask how the bridge is")
            };
            connection.begin_request(BodyLength::Bytes(0));
            std::mem::forget(held);
        }
        assert!(matches!(table.admit(peer(7)).await, Admission::Rejected));
        assert!(!ended(&busy));
    }

    #[tokio::test]
    async fn a_body_is_late_after_a_silence_and_below_the_least_rate() {
        let connection = Connection::untracked(peer(1));
        let limits = Limits {
            body: Duration::from_secs(30),
            ..table(1, 1).limits
        };
        connection.begin_request(BodyLength::Bytes(1_000_000));
        let waker = Waker::noop();
        // No read is blocked: the sender is not slow.
        assert_eq!(connection.overdue(&limits), None);
        connection.waits_for_body(waker);
        assert_eq!(connection.overdue(&limits), None);
        // 200 KiB in two minutes are slow, but above the minimum rate.
        connection.waited.store(120_000, Relaxed);
        connection.note_body_read(200 * 1024);
        assert_eq!(connection.overdue(&limits), None);
        connection.waited.store(300_000, Relaxed);
        assert_eq!(connection.overdue(&limits), Some(Overdue::Body));
    }
}
