//! Several bridges on one jobs folder: a request that belongs to another one goes there.
//!
//! ```text
//! client ──▶ any replica ──▶ the one that holds the chat's lease          [`Hop::Lease`]
//!                       └──▶ the one that made the protocol session  ──▶  the one with the lease
//!                            or parked the call                [`Hop::Session`]
//! ```
//! A request that came by a lease never goes on, and one that came by a session only by a lease:
//! there are no loops. It carries an [`Envelope`]: who calls, as the first replica proved it, signed
//! with a key that all of them share. Answers come back byte by byte, as they are written; who hangs
//! up at one end hangs up at the other.

mod address;
mod envelope;
mod forward;
mod guest;
mod key;
mod payload;
mod run;
mod tls;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::http::{HeaderValue, Method};
use tokio::sync::watch;

use crate::{
    call::CallError,
    config::{Mode, Settings},
    model::{Caller, Guest, Hop},
    session::{Place, SessionError, Sessions},
    store::{InstanceId, LeaseError, Peer, Store, StoreError},
    telemetry::Metrics,
};

pub use address::reachable_at;
pub use envelope::{Envelope, PEER_HEADER, Refused};
pub use forward::{Forward, again};
pub use guest::{Abroad, Homed};
pub use key::PeerKey;
pub use payload::{Payload, Spooled};
pub use run::Routed;
pub use tls::{Fingerprint, fingerprint, origin};

/// What a bridge knows of the others.
pub struct Replicas {
    key: PeerKey,
    client: reqwest::Client,
    certificates: tls::Known,
    store: Arc<Store>,
    sessions: Arc<Sessions>,
    metrics: Arc<Metrics>,
    path_prefix: String,
    /// How long a call waits for a replica that does not answer to be taken for dead.
    silence: Duration,
    /// How long a call waits for one that is about to end.
    patience: Duration,
    others: watch::Sender<Arc<[Peer]>>,
    draining: AtomicBool,
    next: AtomicUsize,
}

/// A request belongs elsewhere.
#[derive(Debug, Clone)]
pub struct Elsewhere {
    /// To whom.
    pub to: InstanceId,
    /// Where that is; none where nobody can reach it.
    pub address: Option<String>,
    /// It is about to end: its leases come free as its calls end.
    pub draining: bool,
    /// By what the request belongs there.
    pub hop: Hop,
    /// The protocol session that goes with it, where that is ours.
    pub guest: Option<Arc<Guest>>,
}

impl Replicas {
    /// Nobody is known before the first [`Self::watch`].
    pub fn new(
        settings: &Settings,
        key: PeerKey,
        store: Arc<Store>,
        sessions: Arc<Sessions>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let ttl = store.instance().ttl();
        let certificates = tls::Known::default();
        Self {
            key,
            client: forward::client(&certificates),
            certificates,
            store,
            sessions,
            metrics,
            path_prefix: settings.listen.path_prefix.clone(),
            silence: ttl * 3 / 2 + Duration::from_secs(2),
            patience: settings.limits.queue_timeout,
            others: watch::Sender::new(Arc::from([])),
            draining: AtomicBool::new(false),
            next: AtomicUsize::new(0),
        }
    }

    /// Looks who is there, so that silence is noticed in time. Blocks on the disk.
    pub fn watch(&self) -> Result<(), StoreError> {
        let found = self.store.watch()?;
        self.others.send_if_modified(|others| {
            let new = **others != *found;
            if new {
                *others = found.into();
            }
            new
        });
        Ok(())
    }

    /// Those that take calls, without this one.
    pub fn others(&self) -> Arc<[Peer]> {
        self.others.borrow().clone()
    }

    /// Whether nobody else works on the folder, by a look at this moment: one that has just started
    /// may hold a chat already.
    pub async fn is_alone(&self) -> bool {
        if !self.others().is_empty() {
            return false;
        }
        let store = self.store.clone();
        let found = tokio::task::spawn_blocking(move || store.watch()).await;
        matches!(found, Ok(Ok(others)) if others.is_empty())
    }

    /// From now on what is new goes to others, where there are any.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Whether this bridge is about to end.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Opens the place of a call here, or says where it belongs. A place that cannot be opened for
    /// another reason is left for the call itself to fail at.
    pub async fn enter(
        &self,
        caller: &Caller,
        mode: Mode,
        place: &mut Place,
    ) -> Result<(), Elsewhere> {
        if self.is_draining() {
            return self.leave(caller, mode, place).await;
        }
        if mode != Mode::Stateful {
            return Ok(());
        }
        let opened = self.sessions.open_ahead(place, &caller.principal).await;
        match opened {
            Err(SessionError::Lease(held)) => elsewhere(held).map_or(Ok(()), Err),
            _ => Ok(()),
        }
    }

    /// Where a chat's calls run now, if that is elsewhere; takes nothing. For what comes before a
    /// chat's first call.
    pub async fn look(&self, caller: &Caller, mode: Mode, place: &Place) -> Result<(), Elsewhere> {
        if caller.hop().is_some() {
            return Ok(());
        }
        if self.is_draining() {
            return self.leave(caller, mode, place).await;
        }
        if mode != Mode::Stateful {
            return Ok(());
        }
        self.holder(place).await.map_or(Ok(()), Err)
    }

    /// A bridge that is about to end opens nothing: the holder gets it, or anybody else.
    async fn leave(&self, caller: &Caller, mode: Mode, place: &Place) -> Result<(), Elsewhere> {
        if mode == Mode::Stateful
            && let Some(held) = self.holder(place).await
        {
            return Err(held);
        }
        if caller.hop() == Some(Hop::Lease) && mode != Mode::Stateful {
            return Ok(());
        }
        // With nobody else there, work goes on as long as it can.
        self.another().map_or(Ok(()), Err)
    }

    /// Another bridge for a request that has come to this one first, where this one does not know
    /// yet what its servers offer.
    pub fn anyone_for(&self, caller: &Caller) -> Option<Elsewhere> {
        caller.hop().is_none().then(|| self.another()).flatten()
    }

    /// The others in turn.
    fn another(&self) -> Option<Elsewhere> {
        let others = self.others();
        let next = self.next.fetch_add(1, Ordering::Relaxed);
        let peer = others.get(next % others.len().max(1))?;
        Some(Elsewhere {
            to: peer.instance,
            address: Some(peer.address.clone()),
            draining: false,
            hop: Hop::Lease,
            guest: None,
        })
    }

    async fn holder(&self, place: &Place) -> Option<Elsewhere> {
        let (store, key) = (self.store.clone(), place.key);
        let look = move || match store.lookup(&key)? {
            Some(job) => store.check_elsewhere(&job),
            None => Ok(()),
        };
        match tokio::task::spawn_blocking(look).await {
            Ok(Err(held)) => elsewhere(held),
            _ => None,
        }
    }

    /// The replica that an id names. `None` where it has ended, and what it knew with it.
    pub async fn home(&self, id: InstanceId) -> Option<Elsewhere> {
        let store = self.store.clone();
        let look = move || store.is_alive(id).then(|| store.peer(id));
        let peer = tokio::task::spawn_blocking(look).await.ok().flatten()?;
        Some(Elsewhere {
            to: id,
            address: peer.map(|peer| peer.address),
            draining: false,
            hop: Hop::Session,
            guest: None,
        })
    }

    /// Opens the envelope of a request that says to come from another replica.
    pub fn open(
        &self,
        value: &HeaderValue,
        method: &Method,
        target: &str,
    ) -> Result<Envelope, Refused> {
        Envelope::open(value, &self.key, self.own(), (method, target))
    }

    /// What other replicas know this one by.
    pub fn own(&self) -> InstanceId {
        self.store.instance().id()
    }

    /// Waits until a replica has ended or fallen silent.
    async fn gone(&self, id: InstanceId) {
        let mut others = self.others.subscribe();
        loop {
            let store = self.store.clone();
            // Whoever drains is no longer among those who take calls, and yet answers.
            let alive = tokio::task::spawn_blocking(move || store.is_alive(id)).await;
            if matches!(alive, Ok(false)) {
                return;
            }
            let look = tokio::time::sleep(self.store.instance().renew_every());
            tokio::select! {
                _ = others.changed() => {}
                () = look => {}
            }
        }
    }
}

fn elsewhere(error: LeaseError) -> Option<Elsewhere> {
    match error {
        LeaseError::Elsewhere {
            instance,
            address,
            draining,
        } => Some(Elsewhere {
            to: instance,
            address,
            draining,
            hop: Hop::Lease,
            guest: None,
        }),
        LeaseError::Store(_) => None,
    }
}

impl From<&Elsewhere> for CallError {
    fn from(elsewhere: &Elsewhere) -> Self {
        Self::Elsewhere(format!(
            "this chat runs on another bridge ({}), which cannot be reached now",
            elsewhere.to
        ))
    }
}
