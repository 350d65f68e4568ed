//! Several bridges on one jobs folder: a request that belongs to another one goes there.
//!
//! ```text
//! client ──▶ any replica ──▶ the one that holds the chat's lease          [`ForwardReason::Lease`]
//!                       └──▶ the one that made the protocol session  ──▶  the one with the lease
//!                            or keeps the call that waits       [`ForwardReason::Session`]
//! ```
//! A request that came by a lease never goes on, and one that came by a session only by a lease:
//! there are no loops. It travels within an encrypted connection whose both ends have proven that they
//! hold the key that all replicas share ([`channel`]), and carries an [`Envelope`]: who calls, as the
//! first replica proved it. Records and leases in the jobs folder are not believed so far: they say
//! where to ask, and who does not prove the key there gets nothing. Answers come back byte by byte, as
//! they are written; who hangs up at one end hangs up at the other.

mod channel;
mod forward;
mod key;

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::http::HeaderValue;
use bridge_model::{Caller, ForwardReason, RemoteSession};
use bridge_state::{ChatStore, Holder, InstanceId, Others, Peer, StoreError};
use channel::Envelope;
use futures_util::future::join_all;
use parking_lot::Mutex;
use rustls::ServerConfig;
use tokio::sync::watch;

use crate::{
    call::CallError,
    config::{Mode, Settings},
    session::{OpenWorkspace, SessionError, Sessions, Wants, WorkspaceAddress},
    telemetry::Metrics,
};

pub use channel::{
    EnvelopeError, Fingerprint, OverChannel, PEER_HEADER, Payload, fingerprint, is_asked_for,
    origin, switching,
};
pub use forward::{Exit, Forward, Forwarding, Located, RoutableSessionId, again, reachable_at};
pub use key::PeerKey;

/// What a bridge knows of the others.
pub struct Replicas {
    key: PeerKey,
    client: channel::PeerClient,
    certificates: channel::Known,
    store: Arc<ChatStore>,
    sessions: Arc<Sessions>,
    metrics: Arc<Metrics>,
    path_prefix: String,
    /// How long a call waits for a replica that does not answer to be taken for dead.
    silence: Duration,
    /// How long a call waits for one that is about to end.
    patience: Duration,
    others: watch::Sender<Arc<[Peer]>>,
    known: Mutex<Known>,
    draining: AtomicBool,
    next: AtomicUsize,
}

/// The records of the others in the folder, and what they have proven.
#[derive(Default)]
struct Known {
    seen: Others,
    /// Those that hold the peer key.
    proven: HashSet<InstanceId>,
    /// Why the others are not trusted.
    unproven: HashMap<InstanceId, String>,
}

/// Said where several bridges run.
const KEY_IN_FOLDER: &str = "several replicas share the jobs directory and their peer key is \
                             stored in it, where a malicious server could read it and impersonate \
                             any user: set the same MCPO_PEER_KEY for all replicas (see \"Between \
                             bridges\" in docs/security.md)";

/// A request belongs elsewhere.
#[derive(Debug, Clone)]
pub struct Elsewhere {
    /// The replica.
    pub to: InstanceId,
    /// Its address; `None` where it cannot be reached.
    pub address: Option<String>,
    /// It is about to end: its leases come free as its calls end.
    pub draining: bool,
    /// By what the request belongs there.
    pub reason: ForwardReason,
    /// The protocol session that goes with it, where that is ours.
    pub remote_session: Option<Arc<RemoteSession>>,
}

impl Replicas {
    /// No other replica is known before the first [`Self::watch`].
    pub fn new(
        settings: &Settings,
        key: PeerKey,
        store: Arc<ChatStore>,
        sessions: Arc<Sessions>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let ttl = store.ttl();
        let certificates = channel::Known::default();
        Self {
            client: channel::client(&key, &certificates),
            key,
            certificates,
            store,
            sessions,
            metrics,
            path_prefix: settings.listen.path_prefix.clone(),
            silence: ttl * 3 / 2 + Duration::from_secs(2),
            patience: settings.limits.queue_timeout,
            others: watch::Sender::new(Arc::from([])),
            known: Mutex::default(),
            draining: AtomicBool::new(false),
            next: AtomicUsize::new(0),
        }
    }

    /// Reads the records of the others, so that silence is noticed in time. Blocks on the disk.
    pub fn watch(&self) -> Result<(), StoreError> {
        let seen = self.store.others()?;
        let mut known = self.known.lock();
        let is_there = |id: &InstanceId| seen.peers.iter().any(|peer| peer.instance == *id);
        known.proven.retain(is_there);
        known.unproven.retain(|id, _| is_there(id));
        known.seen = seen;
        self.publish(&known);
        Ok(())
    }

    /// Lets those prove themselves that were seen and have not yet. Until then they are not among
    /// [`Self::others`]: anything that writes in the jobs folder can make a record.
    pub async fn prove(&self) {
        let strangers: Vec<Peer> = {
            let known = self.known.lock();
            let peers = known.seen.peers.iter();
            let strangers = peers.filter(|peer| !known.proven.contains(&peer.instance));
            strangers.cloned().collect()
        };
        join_all(strangers.iter().map(|peer| self.challenge(peer))).await;
    }

    fn has_proven(&self, id: InstanceId) {
        let mut known = self.known.lock();
        known.unproven.remove(&id);
        if known.proven.insert(id) {
            self.publish(&known);
        }
    }

    fn has_not_proven(&self, id: InstanceId, address: &str, why: &str) {
        let address = self.certificates.way(address);
        let text = format!(
            "the jobs directory contains a record of a replica ({id}, {address}) that this one \
             does not trust: {why}; all replicas on a jobs directory need the same MCPO_PEER_KEY \
             and the same version"
        );
        let mut known = self.known.lock();
        if known.proven.remove(&id) {
            self.publish(&known);
        }
        if known.unproven.insert(id, text.clone()).is_none() {
            tracing::warn!("{text}");
        }
    }

    fn publish(&self, known: &Known) {
        let peers = known.seen.peers.iter();
        let proven = peers.filter(|peer| known.proven.contains(&peer.instance));
        let proven: Arc<[Peer]> = proven.cloned().collect();
        if *self.others.borrow() != proven {
            self.others.send_replace(proven);
        }
    }

    /// Those that take calls and have proven that they hold the peer key, without this one.
    pub fn others(&self) -> Arc<[Peer]> {
        self.others.borrow().clone()
    }

    /// How many there are that may take chats over when this one falls silent, as far as the folder
    /// says: also those that cannot be reached, are about to end or have proven nothing.
    pub fn neighbours(&self) -> usize {
        self.known.lock().seen.alive
    }

    /// Whether there is one, by its record, that takes calls; it need not have proven itself yet.
    pub fn may_have_others(&self) -> bool {
        !self.known.lock().seen.peers.is_empty()
    }

    /// What operators should know.
    pub fn warnings(&self) -> Vec<String> {
        let known = self.known.lock();
        let mut warnings: Vec<String> = known.unproven.values().cloned().collect();
        warnings.sort();
        if known.seen.alive > 0 && self.key.in_jobs_folder {
            warnings.push(KEY_IN_FOLDER.to_owned());
        }
        warnings
    }

    /// The TLS configuration for connections of other replicas.
    pub fn proof(&self) -> Arc<ServerConfig> {
        self.key.server.clone()
    }

    /// Whether no other replica works on the folder, by its records at this moment: one that has just started
    /// may hold a chat already.
    pub async fn is_alone(&self) -> bool {
        if self.may_have_others() {
            return false;
        }
        let store = self.store.clone();
        let found = tokio::task::spawn_blocking(move || store.others()).await;
        matches!(found, Ok(Ok(others)) if others.peers.is_empty())
    }

    /// From now on what is new goes to others, where there are any.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Whether this bridge is about to end.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Opens the workspace of a call here, or has the call answered by the replica that it belongs to. A workspace that
    /// cannot be opened for another reason is left for the call itself to fail at.
    pub async fn enter_or_forward<E: From<CallError>>(
        &self,
        caller: &Caller,
        mode: Mode,
        address: &WorkspaceAddress,
        wants: Option<&Arc<Wants>>,
        request: impl Fn() -> Option<Forward>,
    ) -> Result<Option<OpenWorkspace>, Exit<E>> {
        let mut forwarding = self.forwarding(caller, request);
        loop {
            match self.enter(caller, mode, address, wants).await {
                Ok(opened) => return Ok(opened),
                Err(elsewhere) => forwarding.to(&elsewhere).await?,
            }
        }
    }

    /// Opens the workspace of a call here, or says where it belongs.
    pub async fn enter(
        &self,
        caller: &Caller,
        mode: Mode,
        address: &WorkspaceAddress,
        wants: Option<&Arc<Wants>>,
    ) -> Result<Option<OpenWorkspace>, Elsewhere> {
        if self.is_draining() {
            return self.leave(caller, mode, address).await.map(|()| None);
        }
        if mode != Mode::Stateful {
            return Ok(None);
        }
        let sessions = &self.sessions;
        match sessions.open_ahead(address, &caller.principal, wants).await {
            Ok(opened) => Ok(Some(opened)),
            Err(SessionError::Elsewhere(holder)) => Err(holder.into()),
            Err(_) => Ok(None),
        }
    }

    /// Where a chat's calls run now, if that is elsewhere; takes nothing. For what comes before a
    /// chat's first call.
    pub async fn elsewhere(
        &self,
        caller: &Caller,
        mode: Mode,
        address: &WorkspaceAddress,
    ) -> Result<(), Elsewhere> {
        if caller.forward_reason().is_some() {
            return Ok(());
        }
        if self.is_draining() {
            return self.leave(caller, mode, address).await;
        }
        if mode != Mode::Stateful {
            return Ok(());
        }
        self.holder(address).await.map_or(Ok(()), Err)
    }

    /// A bridge that is about to end opens nothing: the request goes to the holder, or to any other replica.
    async fn leave(
        &self,
        caller: &Caller,
        mode: Mode,
        address: &WorkspaceAddress,
    ) -> Result<(), Elsewhere> {
        if mode == Mode::Stateful
            && let Some(held) = self.holder(address).await
        {
            return Err(held);
        }
        if caller.forward_reason() == Some(ForwardReason::Lease) && mode != Mode::Stateful {
            return Ok(());
        }
        // Without another replica, work goes on as long as it can.
        self.another().map_or(Ok(()), Err)
    }

    /// Another bridge for a request that has come to this one first, where this one does not know
    /// yet what its servers offer.
    pub fn anyone_for(&self, caller: &Caller) -> Option<Elsewhere> {
        let came_first = caller.forward_reason().is_none();
        came_first.then(|| self.another())?
    }

    /// The others in turn.
    fn another(&self) -> Option<Elsewhere> {
        let others = self.others();
        let next = self.next.fetch_add(1, Ordering::Relaxed);
        others.get(next % others.len().max(1)).map(Elsewhere::peer)
    }

    async fn holder(&self, address: &WorkspaceAddress) -> Option<Elsewhere> {
        let (store, key) = (self.store.clone(), address.key);
        let holder = tokio::task::spawn_blocking(move || store.holder(&key)).await;
        holder.ok()?.ok()?.map(Elsewhere::from)
    }

    /// The replica that an id names. `None` where it has ended, and what it knew with it.
    pub async fn home(&self, id: InstanceId) -> Option<Elsewhere> {
        let store = self.store.clone();
        let look = move || store.is_alive(id).then(|| store.peer(id));
        let peer = tokio::task::spawn_blocking(look).await.ok().flatten()?;
        let address = peer.map(|peer| peer.address);
        Some(Elsewhere::at(id, address, ForwardReason::Session))
    }

    /// Reads the envelope of a request that another replica has sent here.
    pub fn read(&self, value: &HeaderValue) -> Result<Caller, EnvelopeError> {
        Envelope::read(value, self.own())
    }

    /// What other replicas know this one by.
    pub fn own(&self) -> InstanceId {
        self.store.instance()
    }

    /// Waits until a replica has ended or fallen silent.
    async fn gone(&self, id: InstanceId) {
        let mut others = self.others.subscribe();
        loop {
            let store = self.store.clone();
            // A draining replica is no longer among those that take calls, and yet answers.
            let alive = tokio::task::spawn_blocking(move || store.is_alive(id)).await;
            if matches!(alive, Ok(false)) {
                return;
            }
            let look = tokio::time::sleep(self.store.renew_every());
            tokio::select! {
                _ = others.changed() => {}
                () = look => {}
            }
        }
    }
}

impl From<Holder> for Elsewhere {
    fn from(holder: Holder) -> Self {
        Self {
            draining: holder.draining,
            ..Self::at(holder.instance, holder.address, ForwardReason::Lease)
        }
    }
}

impl Elsewhere {
    fn at(to: InstanceId, address: Option<String>, reason: ForwardReason) -> Self {
        Self {
            to,
            address,
            draining: false,
            reason,
            remote_session: None,
        }
    }

    fn peer(peer: &Peer) -> Self {
        let address = Some(peer.address.clone());
        Self::at(peer.instance, address, ForwardReason::Lease)
    }

    /// The call's error, where the other could not be asked; nothing was done.
    pub fn unreachable(&self, why: Option<&str>) -> CallError {
        let why = why.map(|why| format!(": {why}")).unwrap_or_default();
        CallError::Elsewhere(format!(
            "this chat runs on another replica ({}), which cannot be reached{why}; the call was \
             not started",
            self.to
        ))
    }
}
