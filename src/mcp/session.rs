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
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::stream::Outbox;
use crate::{
    call::Parking,
    child::{Cancellation, Child, Ear, Replier},
    config::Mode,
    model::{Principal, RawJson, ServerName, SessionId},
};

/// A session that nobody used for this long is forgotten; its client then begins anew.
const KEPT: Duration = Duration::from_secs(24 * 3600);
/// Sessions of one principal; the one that was used longest ago makes room.
const MOST: usize = 1000;
/// Questions that wait for one client.
const MOST_ASKED: usize = 1000;

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
    in_flight: Mutex<Requests>,
    requests: AtomicU64,
    asked: Mutex<HashMap<u64, Asked>>,
    asks: AtomicU64,
    followed: Mutex<HashMap<u64, Option<Ear>>>,
    log_level: Mutex<Box<str>>,
    last_used: Mutex<Instant>,
}

/// Requests under way by the client's id: one that he uses twice at once is of both.
type Requests = HashMap<Vec<u8>, Vec<(u64, Cancellation)>>;

struct Asked {
    replier: Replier,
    parking: Parking,
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
        let session = Arc::new(McpSession {
            id: SessionId::random(),
            principal,
            server,
            version: version.into(),
            capabilities,
            owner: self.owner(),
            outbox: Arc::default(),
            ended: CancellationToken::new(),
            in_flight: Mutex::default(),
            requests: AtomicU64::new(1),
            asked: Mutex::default(),
            asks: AtomicU64::new(1),
            followed: Mutex::default(),
            log_level: Mutex::new(LOG_LEVEL.into()),
            last_used: Mutex::new(Instant::now()),
        });
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
        all.insert(session.id.clone(), session.clone());
        session
    }

    /// A number that tells one asker from all others.
    pub fn owner(&self) -> u64 {
        self.owners.fetch_add(1, Ordering::Relaxed)
    }

    /// The session, if it is this principal's and for this server. There is no hint of others'.
    pub fn find(
        &self,
        id: &str,
        principal: &Principal,
        server: Option<&ServerName>,
    ) -> Option<Arc<McpSession>> {
        let id = id.parse::<SessionId>().ok()?;
        let session = lock(&self.all).get(&id)?.clone();
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
    /// Notes a request, so that its client can cancel it by its id.
    pub fn begin_request(self: &Arc<Self>, id: &RawJson) -> InFlight {
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        let (id, cancellation) = (id.as_bytes().to_vec(), Cancellation::default());
        let mut in_flight = lock(&self.in_flight);
        let same = in_flight.entry(id.clone()).or_default();
        same.push((number, cancellation.clone()));
        drop(in_flight);
        InFlight {
            session: self.clone(),
            id,
            number,
            cancellation,
        }
    }

    /// The client says in this line that he no longer wants the answer to a request of his own.
    pub fn cancel(&self, line: &bytes::Bytes, id: &RawJson) {
        let same = lock(&self.in_flight).get(id.as_bytes()).cloned();
        for (_, cancellation) in same.unwrap_or_default() {
            cancellation.cancel(line, id);
        }
    }

    /// Keeps the way back to a child that asked, under a number of ours. `None`, and the child is
    /// declined, where too much waits for this client already.
    pub fn ask(&self, replier: Replier, parking: Parking) -> Option<u64> {
        let mut asked = lock(&self.asked);
        if asked.len() >= MOST_ASKED {
            drop(asked);
            return None;
        }
        let number = self.asks.fetch_add(1, Ordering::Relaxed);
        parking.park();
        asked.insert(number, Asked { replier, parking });
        Some(number)
    }

    /// Passes a client's answer on to the child that asked, once its call may go on; `false` if
    /// nobody did.
    pub fn answer(&self, line: &bytes::Bytes, id: &RawJson) -> bool {
        let number = id.as_str().trim_matches('"').parse::<u64>().ok();
        let asked = number.and_then(|number| lock(&self.asked).remove(&number));
        let Some(Asked { replier, parking }) = asked else {
            return false;
        };
        let others = lock(&self.asked);
        if others.values().any(|other| other.parking.is_of(&parking)) {
            // The call still waits for its caller; the child may need this answer to ask no more.
            drop(others);
            replier.relay(line, id);
            return true;
        }
        drop(others);
        parking.come_back();
        let (line, id) = (line.clone(), id.clone());
        tokio::spawn(async move {
            parking.resumed().await;
            replier.relay(&line, &id);
        });
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
    number: u64,
    /// Set when the client cancels it.
    pub cancellation: Cancellation,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let mut in_flight = lock(&self.session.in_flight);
        let Some(same) = in_flight.get_mut(&self.id) else {
            return;
        };
        same.retain(|(number, _)| *number != self.number);
        if same.is_empty() {
            in_flight.remove(&self.id);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
