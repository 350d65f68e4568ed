//! The protocol's own sessions (`Mcp-Session-Id`), for clients of 2024-11-05 to 2025-11-25.
//!
//! They hold what the protocol needs between requests and nothing else: the chat's child and
//! folder belong to the chat, and outlive them.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use serde_json::{Map, Value};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::stream::Outbox;
use crate::{
    child::{Child, Ear, Replier},
    config::Mode,
    model::{Guest, Principal, RawJson, ServerName, SessionId},
    replicas::Abroad,
};

/// A session that nobody used for this long is forgotten; its client then begins anew.
const KEPT: Duration = Duration::from_secs(24 * 3600);
/// Sessions of one principal; the one that was used longest ago makes room.
const MOST: usize = 1000;

/// The log messages that a client gets who asked for none in particular.
const LOG_LEVEL: &str = "info";

/// All sessions of this bridge.
#[derive(Default)]
pub struct McpSessions {
    all: Mutex<HashMap<SessionId, Arc<McpSession>>>,
    owners: AtomicU64,
}

/// One client's session.
pub struct McpSession {
    /// `Mcp-Session-Id`.
    pub id: SessionId,
    /// Whose it is.
    pub principal: Principal,
    /// With which server; none for the endpoint of all servers.
    pub server: Option<ServerName>,
    /// The revision that was agreed on.
    pub version: Box<str>,
    /// What the client can answer.
    pub capabilities: Map<String, Value>,
    /// Tells its requests from others' on a child that several share.
    pub owner: u64,
    /// What goes to the client's GET stream.
    pub outbox: Arc<Outbox>,
    /// Set when it ends.
    pub ended: CancellationToken,
    in_flight: Mutex<HashMap<Vec<u8>, CancellationToken>>,
    asked: Mutex<HashMap<u64, Asked>>,
    asks: AtomicU64,
    followed: Mutex<HashMap<u64, Option<Ear>>>,
    log_level: Mutex<Box<str>>,
    last_used: Mutex<Instant>,
    /// Where else its children live.
    pub abroad: Abroad,
}

struct Asked {
    replier: Replier,
    parked: watch::Sender<bool>,
}

impl McpSessions {
    /// Begins a session.
    pub fn begin(
        &self,
        principal: Principal,
        server: Option<ServerName>,
        version: &str,
        capabilities: Map<String, Value>,
    ) -> Arc<McpSession> {
        let made = Guest {
            id: SessionId::random(),
            server,
            version: version.into(),
            capabilities,
            log_level: LOG_LEVEL.into(),
        };
        let session = Arc::new(McpSession::new(principal, made, self.owner(), 1));
        self.keep(&session);
        session
    }

    /// The session of another replica's that came with a request of its client's. Its questions
    /// have numbers that the home and other replicas do not give.
    pub fn guest(&self, principal: &Principal, guest: &Guest) -> Option<Arc<McpSession>> {
        let known = lock(&self.all).contains_key(&guest.id);
        if !known {
            let apart = Uuid::new_v4().as_u64_pair().0 >> 12 | 1 << 32;
            let session = McpSession::new(principal.clone(), guest.clone(), self.owner(), apart);
            self.keep(&Arc::new(session));
        }
        let found = self.find(&guest.id, principal, guest.server.as_ref())?;
        found.set_log_level(&guest.log_level);
        Some(found)
    }

    fn keep(&self, session: &Arc<McpSession>) {
        let mut all = lock(&self.all);
        all.retain(|_, other| lock(&other.last_used).elapsed() < KEPT);
        let own = all
            .values()
            .filter(|other| other.principal == session.principal);
        let own: Vec<_> = own.cloned().collect();
        if own.len() >= MOST
            && let Some(oldest) = own.iter().min_by_key(|other| *lock(&other.last_used))
        {
            oldest.ended.cancel();
            all.remove(&oldest.id);
        }
        all.entry(session.id.clone())
            .or_insert_with(|| session.clone());
    }

    /// A number that tells one asker from all others.
    pub fn owner(&self) -> u64 {
        self.owners.fetch_add(1, Ordering::Relaxed)
    }

    /// The session, if it is this principal's and for this server. There is no hint of others'.
    pub fn find(
        &self,
        id: &SessionId,
        principal: &Principal,
        server: Option<&ServerName>,
    ) -> Option<Arc<McpSession>> {
        let session = lock(&self.all).get(id)?.clone();
        let theirs = session.principal == *principal && session.server.as_ref() == server;
        theirs.then(|| {
            *lock(&session.last_used) = Instant::now();
            session
        })
    }

    /// Ends a session and its streams.
    pub fn end(&self, session: &McpSession) {
        lock(&self.all).remove(&session.id);
        session.ended.cancel();
        lock(&session.asked).clear();
    }
}

impl McpSession {
    fn new(principal: Principal, made: Guest, owner: u64, first_ask: u64) -> Self {
        Self {
            id: made.id,
            principal,
            server: made.server,
            version: made.version,
            capabilities: made.capabilities,
            owner,
            outbox: Arc::default(),
            ended: CancellationToken::new(),
            in_flight: Mutex::default(),
            asked: Mutex::default(),
            asks: AtomicU64::new(first_ask),
            followed: Mutex::default(),
            log_level: Mutex::new(made.log_level),
            last_used: Mutex::new(Instant::now()),
            abroad: Abroad::default(),
        }
    }

    /// What another replica needs to go on with it.
    pub fn as_guest(&self) -> Guest {
        Guest {
            id: self.id.clone(),
            server: self.server.clone(),
            version: self.version.clone(),
            capabilities: self.capabilities.clone(),
            log_level: self.log_level(),
        }
    }

    /// Notes a request, so that its client can cancel it by its id.
    pub fn begin_request(self: &Arc<Self>, id: &RawJson) -> InFlight {
        let cancelled = CancellationToken::new();
        lock(&self.in_flight).insert(id.as_bytes().to_vec(), cancelled.clone());
        InFlight {
            session: self.clone(),
            id: id.as_bytes().to_vec(),
            cancelled,
        }
    }

    /// The client no longer wants the answer to a request of its own.
    pub fn cancel(&self, id: &RawJson) {
        if let Some(cancelled) = lock(&self.in_flight).get(id.as_bytes()) {
            cancelled.cancel();
        }
    }

    /// Keeps the way back to a child that asked, under a number of ours.
    pub fn ask(&self, replier: Replier, parked: watch::Sender<bool>) -> u64 {
        let number = self.asks.fetch_add(1, Ordering::Relaxed);
        parked.send_replace(true);
        lock(&self.asked).insert(number, Asked { replier, parked });
        number
    }

    /// Passes a client's answer on to the child that asked; `false` if nobody did.
    pub fn answer(&self, line: &bytes::Bytes, id: &RawJson) -> bool {
        let number = id.as_str().trim_matches('"').parse::<u64>().ok();
        let asked = number.and_then(|number| lock(&self.asked).remove(&number));
        let Some(Asked { replier, parked }) = asked else {
            return false;
        };
        replier.relay(line, id);
        let others = lock(&self.asked);
        if !others
            .values()
            .any(|other| other.parked.same_channel(&parked))
        {
            parked.send_replace(false);
        }
        true
    }

    /// The least log messages that the client wants.
    pub fn log_level(&self) -> Box<str> {
        lock(&self.log_level).clone()
    }

    /// The client wants log messages from this level on.
    pub fn set_log_level(&self, level: &str) {
        *lock(&self.log_level) = level.into();
    }

    /// Passes what the client tells on to its children. A shared child is not told: it would take
    /// one caller's word for everybody's.
    pub fn tell(&self, line: &bytes::Bytes) {
        for ear in lock(&self.followed).values().flatten() {
            ear.tell(line);
        }
    }

    /// Passes on what this child says to nobody in particular, until it or the session ends; from
    /// now on the child hears what the client tells.
    pub fn follow(self: &Arc<Self>, child: &Child, mode: Mode) {
        let mut followed = lock(&self.followed);
        followed.retain(|_, ear| ear.as_ref().is_none_or(Ear::is_open));
        let ear = (mode != Mode::Shared).then(|| child.ear());
        if followed.insert(child.number(), ear).is_some() {
            return;
        }
        drop(followed);
        let (outbox, ended, mut news) = (self.outbox.clone(), self.ended.clone(), child.news());
        tokio::spawn(ended.run_until_cancelled_owned(async move {
            loop {
                match news.recv().await {
                    Ok(said) => outbox.push(&said.line),
                    Err(tokio::sync::broadcast::error::RecvError::Lagged(_)) => {}
                    Err(tokio::sync::broadcast::error::RecvError::Closed) => return,
                }
            }
        }));
    }
}

/// A request under way. Dropping it forgets its id.
pub struct InFlight {
    session: Arc<McpSession>,
    id: Vec<u8>,
    /// Set when the client cancels it.
    pub cancelled: CancellationToken,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        lock(&self.session.in_flight).remove(&self.id);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
