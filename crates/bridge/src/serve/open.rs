//! The connections that are open: how long each may do nothing, and which one goes where there are too
//! many.
//!
//! ```text
//! New ──first whole head──▶ Busy ──answered──▶ Idle ──a byte──▶ Head ──whole──▶ Busy
//! ```
//!
//! Only a new connection counts for its address: behind a proxy all users have one. Such a proxy may
//! also open hundreds at once. While there is room, an address with more than its share therefore loses
//! only connections that have been silent for [`SILENT`]; where there is none, its longest silent one
//! is closed first, unless bytes of its client are found that had not been read yet. Such a connection
//! stays, and there is one more than the limit: so as many are closed as it takes.
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
use parking_lot::{Mutex, MutexGuard};
use rustix::net::RecvFlags;
use tokio::{net::TcpStream, time::Instant};
use tokio_rustls::server::TlsStream;

/// Connections beyond all others, for those who ask how the bridge is.
const BEYOND: usize = 32;
/// Bytes of a body in each second that its sender is waited for, beyond the first idle time.
const LEAST_RATE: u64 = 1024;
/// A body whose sender is silent for so long may make room for others.
const SILENT: Duration = Duration::from_secs(2);
/// A new connection that nobody has read from yet is waited for so long: then it is known whether it is
/// silent. A request waits as long for a place.
const UNREAD: Duration = Duration::from_secs(5);
/// So many connections are admitted in each second even if none of those before them sends anything.
const ADMITTED_PER_SECOND: u32 = 8000;
/// The least and the most time that a new connection has to send something, where there are too many.
const GRACE: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_millis(500);
/// The time for the rest of a head.
const REST_OF_HEAD: Duration = Duration::from_millis(5);
/// Between two looks whether somebody has read from them.
const LOOK: Duration = Duration::from_millis(2);
/// A connection that has not begun a request is given so long when the bridge stops.
const STOPPING: Duration = Duration::from_millis(500);

/// What is allowed.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections.
    pub most: usize,
    /// Connections of one address that have not sent a whole head yet. Beyond these its silent ones are
    /// closed after [`SILENT`], and first where room is needed.
    pub new_per_address: usize,
    /// From a head's first byte, or the connection's beginning, to the head's end.
    pub head: Duration,
    /// A silence in a body.
    pub body: Duration,
    /// Between two requests, and a client that does not read.
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
    /// Not said yet.
    Unknown,
}

const CHUNKED: u64 = u64::MAX;
const UNKNOWN: u64 = u64::MAX - 1;

/// A stream that knows whether its client has sent something that nobody has read.
///
/// A read that finds nothing does not: the runtime tries none before it has heard from the kernel.
pub trait Unread {
    fn has_unread(&self) -> bool;
}

impl Unread for TcpStream {
    fn has_unread(&self) -> bool {
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        matches!(rustix::net::recv(self, &mut [0; 1], flags), Ok((read, _)) if read > 0)
    }
}

impl Unread for TlsStream<TcpStream> {
    fn has_unread(&self) -> bool {
        self.get_ref().0.has_unread()
    }
}

/// One connection.
pub struct Connection {
    peer: SocketAddr,
    clock: Instant,
    stage: AtomicU8,
    /// Milliseconds of `clock` when the stage began.
    since: AtomicU64,
    /// When bytes came or went for the last time.
    moved: AtomicU64,
    /// A part of the next head was read.
    head_begun: AtomicBool,
    /// The client has been looked for, and had sent nothing.
    silent: AtomicBool,
    /// It ends unless its client has sent something meanwhile.
    asked_to_end: AtomicBool,
    /// Wakes the task that reads heads; registered when it first finds none to read.
    head_reader: AtomicWaker,
    /// Since when a write waits for the client, plus one; 0 while none does.
    unread: AtomicU64,
    body: AtomicU64,
    /// Since when the body's next bytes are waited for, plus one; 0 while they are not.
    waiting: AtomicU64,
    /// Milliseconds that this body was waited for before.
    waited: AtomicU64,
    received: AtomicU64,
    late: AtomicBool,
    upgraded: AtomicBool,
    reader: AtomicWaker,
    /// Ends the task with the connection.
    task: OnceLock<tokio::task::AbortHandle>,
    ended: AtomicBool,
    stop: OnceLock<AbortHandle>,
    /// The number at which the table has it, until its first head is whole.
    table: OnceLock<(Arc<Table>, u64)>,
}

impl Connection {
    /// One that is in no table.
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

    /// Bytes came.
    pub fn came(&self) {
        let now = self.now();
        self.moved.store(now, Relaxed);
        self.silent.store(false, Relaxed);
        if self.asked_to_end.load(SeqCst) {
            self.stay();
        }
        let waiting = self.waiting.swap(0, Relaxed);
        if waiting > 0 {
            self.waited
                .fetch_add(now.saturating_sub(waiting - 1), Relaxed);
        }
    }

    /// The TLS handshake is taken up: its client has sent more of it, unless the connection is to end.
    pub fn handshake_goes_on(&self) {
        if !self.asked_to_end.load(SeqCst) {
            self.moved.store(self.now(), Relaxed);
        }
    }

    /// A part of a head was read.
    pub fn read_of_head(&self) {
        self.head_begun.store(true, Relaxed);
        if self.stage.load(Relaxed) == IDLE {
            self.enter(HEAD);
        }
    }

    /// The runtime knows of nothing to read of a head, or of a TLS handshake. Whether the connection ends
    /// here: it was asked to, and its client has indeed sent nothing.
    pub fn ends_before_head(&self, reader: &Waker, stream: &impl Unread) -> bool {
        self.head_reader.register(reader);
        self.silent.store(true, Relaxed);
        if !self.asked_to_end.load(SeqCst) || self.stage.load(Relaxed) == BUSY {
            return false;
        }
        let ends = !stream.has_unread();
        if !ends {
            self.stay();
        }
        ends
    }

    /// Nothing of a body is there to read.
    pub fn waits_for_body(&self, reader: &Waker) {
        self.reader.register(reader);
        if self.waiting.load(Relaxed) == 0 {
            self.waiting.store(self.now() + 1, Relaxed);
        }
    }

    /// Closes it unless its client has sent bytes that were not read yet, because the bridge is busy: its
    /// task looks once more.
    fn ask_to_end(&self) {
        self.asked_to_end.store(true, SeqCst);
        self.head_reader.wake();
    }

    /// It was asked to end, and its client had sent something.
    fn stay(&self) {
        if let Some((table, number)) = self.table.get() {
            table.lock().stays(*number, self);
        }
    }

    /// So many bytes of the body were read.
    pub fn read_of_body(&self, bytes: u64) {
        self.received.fetch_add(bytes, Relaxed);
    }

    /// The body's time is over.
    pub fn is_late(&self) -> bool {
        self.late.load(Relaxed)
    }

    /// A write was tried: the client took something, or it did not.
    pub fn wrote(&self, taken: bool) {
        if taken {
            if self.unread.load(Relaxed) != 0 {
                self.unread.store(0, Relaxed);
            }
            self.moved.store(self.now(), Relaxed);
        } else if self.unread.load(Relaxed) == 0 {
            self.unread.store(self.now() + 1, Relaxed);
        }
    }

    /// A whole head has come.
    pub fn begin(&self, body: BodyLength) {
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

    /// How the last head's body ends; said once.
    pub fn body(&self) -> BodyLength {
        match self.body.swap(UNKNOWN, Relaxed) {
            UNKNOWN => BodyLength::Unknown,
            CHUNKED => BodyLength::Chunked,
            length => BodyLength::Bytes(length),
        }
    }

    /// What follows is no HTTP.
    pub fn upgrade(&self) {
        self.upgraded.store(true, Relaxed);
    }

    /// Whether what follows is no HTTP.
    pub fn is_upgraded(&self) -> bool {
        self.upgraded.load(Relaxed)
    }

    /// The answer was handed over.
    pub fn answered(&self) {
        // The next head may have come with the request that was answered.
        let begun = self.head_begun.load(Relaxed);
        self.enter(if begun { HEAD } else { IDLE });
    }

    /// How it is ended.
    pub fn runs_in(&self, task: tokio::task::AbortHandle) {
        let _ = self.task.set(task);
    }

    /// Closes it whatever its client has sent.
    fn abort(&self) {
        if let Some(task) = self.task.get() {
            task.abort();
        }
    }

    /// Whoever reads the body gets an error.
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

    /// For how long the body's sender has said nothing while it was waited for.
    fn body_silence(&self) -> Option<Duration> {
        let since = self.waiting.load(Relaxed).checked_sub(1)?;
        Some(Duration::from_millis(self.now().saturating_sub(since)))
    }

    /// What its limits ask for now.
    fn overdue(&self, limits: &Limits) -> Option<Overdue> {
        let unread = self.unread.load(Relaxed).checked_sub(1);
        let unread = unread.map(|since| Duration::from_millis(self.now().saturating_sub(since)));
        if unread.is_some_and(|unread| unread > limits.idle) {
            return Some(Overdue::Head);
        }
        match self.stage.load(Relaxed) {
            NEW | HEAD => (self.age() > limits.head).then_some(Overdue::Head),
            IDLE => (self.age().min(self.silence()) > limits.idle).then_some(Overdue::Idle),
            _ => {
                let silence = self.body_silence()?;
                let waited = Duration::from_millis(self.waited.load(Relaxed)) + silence;
                let earned = Duration::from_secs(self.received.load(Relaxed) / LEAST_RATE);
                let late = silence > limits.body || waited > limits.body + earned;
                late.then_some(Overdue::Body)
            }
        }
    }
}

/// Whose time is over.
#[derive(Debug, PartialEq, Eq)]
enum Overdue {
    /// A head that does not come, or an answer that nobody reads.
    Head,
    /// A connection without a request.
    Idle,
    /// A body.
    Body,
}

/// What becomes of a connection that comes.
pub enum Admitted {
    /// It is served.
    In(Arc<Connection>, Held),
    /// It may ask how the bridge is, and nothing else.
    Beyond(Arc<Connection>, Held),
    /// All places are taken by those who are being served.
    Full,
}

/// What was done about too many connections.
enum Room {
    /// There are few enough.
    Made,
    /// Those that could be ended have not been read from yet.
    Later,
    /// All others are being served.
    None,
}

/// All of them.
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
    /// Those in `open` that were told to end, and whose tasks are on their way out.
    ending: usize,
    warned: bool,
}

/// A connection's place in the table.
pub struct Held {
    table: Arc<Table>,
    number: u64,
}

impl Drop for Held {
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

    /// Counts one as ended; none twice.
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

    /// One that was asked to end goes on.
    fn stays(&mut self, number: u64, connection: &Connection) {
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

    /// Ends whatever is overdue.
    fn keep_time(&mut self, limits: &Limits) {
        let open = self.open.iter();
        let overdue = open.filter_map(|(number, open)| Some((*number, open.overdue(limits)?)));
        for (number, overdue) in overdue.collect::<Vec<_>>() {
            match overdue {
                Overdue::Head => {
                    tracing::debug!(peer = %self.open[&number].peer, "connection timed out");
                    self.abort(number);
                }
                Overdue::Idle => self.ask_to_end(number),
                Overdue::Body => self.open[&number].end_body(),
            }
        }
    }

    /// How long a new connection may send nothing although there are too many.
    fn grace(&self) -> Duration {
        let new = u32::try_from(self.new.len()).unwrap_or(u32::MAX);
        let grace = Duration::from_secs(1) * new / ADMITTED_PER_SECOND;
        grace.clamp(*GRACE.start(), *GRACE.end())
    }

    /// Some new connection has time to say something, or nobody has read from it yet.
    fn is_to_be_read(&self) -> bool {
        self.new.keys().any(|number| {
            let connection = self.open.get(number);
            connection.is_some_and(|new| new.silent.load(Relaxed) || new.age() < UNREAD)
        })
    }

    /// All but those that are about to end.
    fn count(&self) -> usize {
        self.open.len() - self.ending
    }

    /// Ends the longest silent ones, until there are no more than `most`.
    fn make_room(&mut self, most: usize, share: usize) -> Room {
        while self.count() > most {
            if let Some(new) = self.longest_silent_new(share) {
                self.ask_to_end(new);
            } else if self.is_to_be_read() {
                return Room::Later;
            } else if let Some(idle) = self.longest_idle() {
                self.ask_to_end(idle);
            } else if let Some(slow) = self.slowest_body() {
                self.abort(slow);
            } else {
                return Room::None;
            }
        }
        Room::Made
    }

    /// Of these new connections the first that has been silent for long enough: one that has sent a part
    /// of its head, or else one that has sent nothing. One that was not read from yet is not silent.
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

    /// The new connection that is closed when there are too many, beginning with an address that has
    /// more of them than its share.
    fn longest_silent_new(&self, share: usize) -> Option<u64> {
        let grace = self.grace();
        let greatest = self.new_of.values().max_by_key(|numbers| numbers.len());
        greatest
            .filter(|numbers| numbers.len() > share)
            .and_then(|numbers| self.first_silent(&numbers.iter(), REST_OF_HEAD, grace))
            .or_else(|| self.first_silent(&self.new.keys(), REST_OF_HEAD, grace))
    }

    /// Those that were not told to end.
    fn staying(&self) -> impl Iterator<Item = (u64, &Connection)> {
        let open = self.open.iter();
        let staying = open.filter(|(_, connection)| !connection.ended.load(Relaxed));
        staying.map(|(number, connection)| (*number, &**connection))
    }

    /// After the new ones: the longest silent of those between two requests.
    fn longest_idle(&self) -> Option<u64> {
        let idle = self.staying().filter(|(_, connection)| {
            let stage = connection.stage.load(Relaxed);
            matches!(stage, IDLE | HEAD) && connection.unread.load(Relaxed) == 0
        });
        idle.max_by_key(|(_, connection)| connection.silence())
            .map(|(number, _)| number)
    }

    /// After these: the longest silent of those whose bodies do not come.
    fn slowest_body(&self) -> Option<u64> {
        let slow = self.staying().filter_map(|(number, connection)| {
            let silence = connection.body_silence()?;
            (silence > SILENT).then_some((number, silence))
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

    fn try_admit(self: &Arc<Self>, peer: SocketAddr) -> Option<Admitted> {
        let mut state = self.lock();
        let address = peer.ip().to_canonical();
        if let Some(numbers) = state.new_of.get(&address)
            && numbers.len() >= self.limits.new_per_address
            && let Some(number) = state.first_silent(&numbers.iter(), SILENT, SILENT)
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
            match state.make_room(
                self.limits.most.saturating_sub(1),
                self.limits.new_per_address,
            ) {
                Room::Made => {}
                Room::Later => return None,
                Room::None if state.count() >= self.limits.most + BEYOND => {
                    return Some(Admitted::Full);
                }
                Room::None => beyond = true,
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
        let held = Held { table, number };
        Some(if beyond {
            Admitted::Beyond(connection, held)
        } else {
            Admitted::In(connection, held)
        })
    }

    /// Whether a connection that came beyond the limit is within it now, or is after a moment.
    pub async fn has_room(&self) -> bool {
        let until = Instant::now() + UNREAD;
        loop {
            let room = self
                .lock()
                .make_room(self.limits.most, self.limits.new_per_address);
            match room {
                Room::Made => return true,
                Room::Later if Instant::now() < until => tokio::time::sleep(LOOK).await,
                Room::Later | Room::None => return false,
            }
        }
    }

    /// Waits until a connection that comes is admitted, or is known to find no place.
    pub async fn admit(self: &Arc<Self>, peer: SocketAddr) -> Admitted {
        loop {
            match self.try_admit(peer) {
                Some(admitted) => return admitted,
                None => tokio::time::sleep(LOOK).await,
            }
        }
    }

    /// Looks at all of them again and again.
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

    /// Each connection is told when the bridge stops. One token for all would be locked by all of them for
    /// each request, since whoever waits for one looks at it whenever he is polled.
    pub fn stops(connection: &Connection) -> AbortRegistration {
        let (bell, ring) = AbortHandle::new_pair();
        let _ = connection.stop.set(bell);
        ring
    }

    /// Tells all that the bridge stops. Requests that have come are answered.
    pub fn stop(&self) {
        for connection in self.all() {
            if let Some(bell) = connection.stop.get() {
                bell.abort();
            }
        }
    }

    /// After that: nobody waits for what has not begun, or does not go on.
    pub fn end_unbegun(&self) {
        for connection in self.all() {
            match connection.stage.load(Relaxed) {
                // What is left of an answer is on its way.
                _ if connection.unread.load(Relaxed) != 0 => {}
                NEW | HEAD | IDLE if connection.silence() > STOPPING => connection.ask_to_end(),
                BUSY if connection.body_silence() > Some(SILENT) => connection.end_body(),
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

    /// A connection whose task waits for ever.
    fn open(table: &Arc<Table>, last: u8) -> Arc<Connection> {
        let Some(Admitted::In(connection, held) | Admitted::Beyond(connection, held)) =
            table.try_admit(peer(last))
        else {
            panic!("no place")
        };
        let task = tokio::spawn(async move {
            let _held = held;
            std::future::pending::<()>().await;
        });
        connection.runs_in(task.abort_handle());
        connection
    }

    /// One with a request that is being answered.
    fn open_busy(table: &Arc<Table>, last: u8) -> Arc<Connection> {
        let connection = open(table, last);
        connection.begin(BodyLength::Bytes(0));
        connection
    }

    /// One between two requests.
    fn open_idle(table: &Arc<Table>, last: u8) -> Arc<Connection> {
        let connection = open_busy(table, last);
        connection.answered();
        connection
    }

    fn ended(connection: &Connection) -> bool {
        connection.ended.load(Relaxed)
    }

    /// A client of which the runtime has heard nothing, and whether it has sent something.
    struct Client {
        has_sent: bool,
    }

    impl Unread for Client {
        fn has_unread(&self) -> bool {
            self.has_sent
        }
    }

    /// Its task finds nothing to read.
    fn look(connection: &Connection) -> bool {
        connection.ends_before_head(Waker::noop(), &Client { has_sent: false })
    }

    /// One that says nothing, and is as old.
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
        let first = open_silent(&table, 1, SILENT).await;
        let other = open_silent(&table, 2, SILENT).await;
        let second = open(&table, 1);
        assert!(!ended(&first), "within its share");
        let third = open(&table, 1);
        assert!(ended(&first) && !ended(&second) && !ended(&third) && !ended(&other));
    }

    #[tokio::test(start_paused = true)]
    async fn over_the_total_an_address_with_more_than_its_share_is_the_first_to_lose() {
        let table = table(4, 2);
        let modest = open_silent(&table, 1, SILENT).await;
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
        let silent = || open_silent(&table, 1, SILENT);
        let (stays, first, second) = (silent().await, silent().await, silent().await);
        let third = silent().await;
        assert!(ended(&stays));
        stays.came();
        stays.begin(BodyLength::Bytes(0));
        assert!(matches!(table.admit(peer(1)).await, Admitted::In(..)));
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
        assert!(matches!(table.admit(peer(2)).await, Admitted::Beyond(..)));
        assert!(!ended(&unread), "its client may have sent a request");
        look(&unread);
        assert!(matches!(table.admit(peer(2)).await, Admitted::In(..)));
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
        half_a_head.read_of_head();
        for (waits, goes) in [(5, half_a_head), (120, &new[0]), (0, &new[1])] {
            if waits > 0 {
                tokio::time::advance(Duration::from_millis(waits - 1)).await;
                assert!(table.try_admit(peer(2)).is_none());
                tokio::time::advance(Duration::from_millis(1)).await;
            }
            assert!(!ended(goes));
            open(&table, 2).begin(BodyLength::Bytes(0));
            assert!(ended(goes));
        }
        assert_eq!(new.iter().filter(|connection| ended(connection)).count(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn those_that_were_ended_for_their_age_have_made_room_already() {
        let table = table(3, 8);
        let idle = open_idle(&table, 1);
        let half_heads = [open_idle(&table, 2), open(&table, 3)];
        half_heads[0].read_of_head();
        tokio::time::advance(table.limits.head + Duration::from_millis(1)).await;
        idle.came();
        table.lock().keep_time(&table.limits);
        assert!(half_heads.iter().all(|connection| ended(connection)));
        assert!(matches!(table.admit(peer(4)).await, Admitted::In(..)));
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
            connection.begin(BodyLength::Bytes(0));
            assert!(!look(connection), "its request is being answered");
            connection.answered();
            assert!(look(connection));
        }
        assert_eq!(table.lock().ending, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn one_beyond_the_total_is_within_it_once_another_has_ended() {
        let table = table(2, 2);
        let (first, _second) = (open_busy(&table, 1), open_busy(&table, 1));
        assert!(matches!(table.admit(peer(2)).await, Admitted::Beyond(..)));
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
        let older = open_silent(&table, 3, SILENT).await;
        let newer = open_silent(&table, 4, SILENT).await;
        busy.begin(BodyLength::Bytes(0));
        idle.begin(BodyLength::Bytes(0));
        idle.answered();
        for (goes, stays) in [(&older, &newer), (&newer, &idle), (&idle, &busy)] {
            let new = open(&table, 5);
            assert!(ended(goes) && !ended(stays));
            new.begin(BodyLength::Bytes(0));
        }
        tokio::task::yield_now().await;
        for _ in 0..BEYOND {
            let Admitted::Beyond(connection, held) = table.admit(peer(6)).await else {
                panic!("it may ask how the bridge is")
            };
            connection.begin(BodyLength::Bytes(0));
            std::mem::forget(held);
        }
        assert!(matches!(table.admit(peer(7)).await, Admitted::Full));
        assert!(!ended(&busy));
    }

    #[tokio::test]
    async fn a_body_is_late_after_a_silence_and_below_the_least_rate() {
        let connection = Connection::untracked(peer(1));
        let limits = Limits {
            body: Duration::from_secs(30),
            ..table(1, 1).limits
        };
        connection.begin(BodyLength::Bytes(1_000_000));
        let waker = Waker::noop();
        // Nobody has waited for it: it is not the sender who is slow.
        assert_eq!(connection.overdue(&limits), None);
        connection.waits_for_body(waker);
        assert_eq!(connection.overdue(&limits), None);
        // Two minutes for 200 KiB are slow, and honest.
        connection.waited.store(120_000, Relaxed);
        connection.read_of_body(200 * 1024);
        assert_eq!(connection.overdue(&limits), None);
        connection.waited.store(300_000, Relaxed);
        assert_eq!(connection.overdue(&limits), Some(Overdue::Body));
    }
}
