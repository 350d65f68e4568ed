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
use tokio::{
    sync::{broadcast, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{all::Shown, stream::Outbox};
use crate::{
    child::{Child, Ear, Replier, Said, splice},
    config::Mode,
    model::{Principal, RawJson, ServerName, SessionId},
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
    /// Told to each child that is followed from now on.
    greeting: Mutex<Option<bytes::Bytes>>,
    log_level: Mutex<Box<str>>,
    last_used: Mutex<Instant>,
}

/// What a child asked and the client has not answered.
struct Asked {
    replier: Replier,
    parked: watch::Sender<bool>,
    /// The child's own, for progress with the answer.
    token: Option<RawJson>,
}

impl Asked {
    /// The clock of the request for which it was asked goes on, unless more of it was asked.
    fn is_over(&self, others: &HashMap<u64, Self>) {
        let same = |other: &Self| other.parked.same_channel(&self.parked);
        if !others.values().any(same) {
            self.parked.send_replace(false);
        }
    }
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
            asked: Mutex::default(),
            asks: AtomicU64::new(1),
            followed: Mutex::default(),
            greeting: Mutex::default(),
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

    /// Keeps the way back to a child that asked, under a number of ours, which stands for the
    /// child's progress token, too: several children may use the same.
    pub fn ask(
        &self,
        replier: Replier,
        parked: watch::Sender<bool>,
        token: Option<RawJson>,
    ) -> u64 {
        let number = self.asks.fetch_add(1, Ordering::Relaxed);
        parked.send_replace(true);
        let asked = Asked {
            replier,
            parked,
            token,
        };
        lock(&self.asked).insert(number, asked);
        number
    }

    /// Tells the child that asked how far its client's answer is; `false` if nobody asked.
    pub fn progress(&self, line: &bytes::Bytes, token: &RawJson) -> bool {
        let asked = lock(&self.asked);
        let found = number(token).and_then(|number| asked.get(&number));
        let Some((found, own)) = found.and_then(|found| Some((found, found.token.as_ref()?)))
        else {
            return false;
        };
        let line = splice(line, &[(token, own.as_bytes())]);
        found.replier.tell(&line);
        true
    }

    /// The child no longer wants the answer to what it asked with this id: the line that says so,
    /// with our number for it; `None` where nothing of it is open.
    pub fn withdrawn(&self, said: &Said, ear: &Ear) -> Option<bytes::Bytes> {
        let id = said.params.as_ref()?.member("requestId")?;
        let mut asked = lock(&self.asked);
        let mut open = asked.iter();
        let found = open.find(|(_, asked)| ear.asked(&asked.replier, &id));
        let number = *found?.0;
        let gone = asked.remove(&number)?;
        gone.is_over(&asked);
        drop(asked);
        Some(splice(&said.line, &[(&id, number.to_string().as_bytes())]))
    }

    /// Passes a client's answer on to the child that asked; `false` if nobody did.
    pub fn answer(&self, line: &bytes::Bytes, id: &RawJson) -> bool {
        let mut open = lock(&self.asked);
        let Some(asked) = number(id).and_then(|number| open.remove(&number)) else {
            return false;
        };
        asked.is_over(&open);
        drop(open);
        asked.replier.relay(line, id);
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

    /// Tells this to the session's children, those to come included; the last such line counts.
    pub fn tell_always(&self, line: &bytes::Bytes) {
        *lock(&self.greeting) = Some(line.clone());
        self.tell(line);
    }

    /// Passes on what this child says to nobody in particular, until it or the session ends; from
    /// now on the child hears what the client tells. `shown` is how its resources are called.
    pub fn follow(self: &Arc<Self>, child: &Child, mode: Mode, shown: Option<Shown>) {
        let mut followed = lock(&self.followed);
        followed.retain(|_, ear| ear.as_ref().is_none_or(Ear::is_open));
        let ear = (mode != Mode::Shared).then(|| child.ear());
        let greeting = lock(&self.greeting).clone();
        if let (Some(ear), Some(greeting)) = (&ear, greeting)
            && !followed.contains_key(&child.number())
        {
            ear.tell(&greeting);
        }
        if followed.insert(child.number(), ear).is_some() {
            return;
        }
        drop(followed);
        let (ended, mut news) = (self.ended.clone(), child.news());
        let (session, ear) = (Arc::downgrade(self), child.ear());
        tokio::spawn(ended.run_until_cancelled_owned(async move {
            loop {
                let said = match news.recv().await {
                    Ok(said) => said,
                    Err(broadcast::error::RecvError::Lagged(_)) => continue,
                    Err(broadcast::error::RecvError::Closed) => return,
                };
                let Some(session) = session.upgrade() else {
                    return;
                };
                if let Some(line) = session.told(&said, &ear, shown.as_ref()) {
                    session.outbox.push(&line);
                }
            }
        }));
    }

    /// What a child said, as the client is to read it.
    fn told(&self, said: &Said, ear: &Ear, shown: Option<&Shown>) -> Option<bytes::Bytes> {
        match (&*said.method, shown) {
            ("notifications/cancelled", _) => self.withdrawn(said, ear),
            (_, Some(shown)) => Some(shown.note(said)),
            (_, None) => Some(said.line.clone()),
        }
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

/// A number of ours, as a client writes it.
fn number(id: &RawJson) -> Option<u64> {
    id.as_str().trim_matches('"').parse().ok()
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
