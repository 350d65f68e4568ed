//! Several replicas on one jobs folder: requests are forwarded to the replica that they belong to.
//!
//! ```text
//! client ──▶ any replica ──▶ the one that has the chat's lease           [`ForwardReason::Lease`]
//!                       └──▶ the one that made the protocol session  ──▶  the one with the lease
//!                            or stores the pending call         [`ForwardReason::Session`]
//! ```
//! A request that was forwarded by a lease is not forwarded again, and one that was forwarded by a session only
//! by a lease, so there are no loops. It is sent within an encrypted connection with mutual authentication by
//! the key that all replicas share ([`channel`]), and contains an [`Envelope`]: the caller, as authenticated by the
//! first replica. Records and leases in the jobs folder are not trusted: they only tell where to connect,
//! and a server that does not have the key gets no requests. Answers are streamed byte by byte; if one side
//! disconnects, the connection to the other side is closed as well.

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
    session::{ChildSpec, OpenWorkspace, SessionError, Sessions, WorkspaceAddress},
    telemetry::Metrics,
};

pub use channel::{
    EnvelopeError, Fingerprint, OverChannel, PEER_HEADER, fingerprint, is_asked_for, origin,
    switching,
};
pub use forward::{
    Exit, Forward, Forwarding, Located, Payload, RoutableSessionId, again, reachable_at,
};
pub use key::PeerKey;

/// The state of the other replicas.
pub struct Replicas {
    key: PeerKey,
    client: channel::PeerClient,
    certificates: channel::Known,
    store: Arc<ChatStore>,
    sessions: Arc<Sessions>,
    metrics: Arc<Metrics>,
    path_prefix: String,
    /// How long a call waits for a replica that does not respond to be considered dead.
    silence: Duration,
    /// How long a call waits for a draining replica.
    patience: Duration,
    others: watch::Sender<Arc<[Peer]>>,
    known: Mutex<Known>,
    draining: AtomicBool,
    next: AtomicUsize,
}

/// The records of the other replicas in the folder, and the results of their authentication.
#[derive(Default)]
struct Known {
    seen: Others,
    /// The replicas that have the peer key.
    proven: HashSet<InstanceId>,
    /// Why the other replicas are not trusted.
    unproven: HashMap<InstanceId, String>,
}

/// The warning if several replicas run.
const KEY_IN_FOLDER: &str = "several replicas share the jobs directory and their peer key is \
                             stored in it, where a malicious server could read it and impersonate \
                             any user: set the same MCPO_PEER_KEY for all replicas (see \"Between \
                             bridges\" in docs/security.md)";

/// Another replica for a request.
#[derive(Debug, Clone)]
pub struct Elsewhere {
    /// The replica.
    pub to: InstanceId,
    /// Its address; `None` if it has none.
    pub address: Option<String>,
    /// It is stopping: it releases its leases as its calls end.
    pub draining: bool,
    /// Why the request belongs to that replica.
    pub reason: ForwardReason,
    /// The protocol session of the request, if this replica is its home.
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

    /// Reads the records of the other replicas, so that silence is detected in time. Blocks on the disk.
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

    /// Authenticates the replicas that have not been authenticated yet. Until then they are not in
    /// [`Self::others`], because any process that can write to the jobs folder can make a record.
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

    /// The other replicas that accept calls and have proven that they have the peer key.
    pub fn others(&self) -> Arc<[Peer]> {
        self.others.borrow().clone()
    }

    /// The number of replicas that may take over chats if this one is silent, according to the folder:
    /// includes unreachable, stopping and unauthenticated ones.
    pub fn neighbours(&self) -> usize {
        self.known.lock().seen.alive
    }

    /// Whether another replica accepts calls, according to its record; it may be unauthenticated.
    pub fn may_have_others(&self) -> bool {
        !self.known.lock().seen.peers.is_empty()
    }

    /// Warnings for operators.
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

    /// Whether no other replica uses the folder, according to the records at this moment: one that has just started
    /// may have a chat already.
    pub async fn is_alone(&self) -> bool {
        if self.may_have_others() {
            return false;
        }
        let store = self.store.clone();
        let found = tokio::task::spawn_blocking(move || store.others()).await;
        matches!(found, Ok(Ok(others)) if others.peers.is_empty())
    }

    /// From now on new chats are opened by other replicas, if there are any.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Whether this replica is draining.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Opens the workspace of a call here, or forwards the call to its replica. If the workspace cannot be opened for
    /// another reason, the call itself reports the error.
    pub async fn enter_or_forward<E: From<CallError>>(
        &self,
        caller: &Caller,
        mode: Mode,
        address: &WorkspaceAddress,
        child: Option<&Arc<ChildSpec>>,
        request: impl Fn() -> Option<Forward>,
    ) -> Result<Option<OpenWorkspace>, Exit<E>> {
        let mut forwarding = self.forwarding(caller, request);
        loop {
            match self.enter(caller, mode, address, child).await {
                Ok(opened) => return Ok(opened),
                Err(elsewhere) => forwarding.to(&elsewhere).await?,
            }
        }
    }

    /// Opens the workspace of a call here, or returns the replica that it belongs to.
    pub async fn enter(
        &self,
        caller: &Caller,
        mode: Mode,
        address: &WorkspaceAddress,
        child: Option<&Arc<ChildSpec>>,
    ) -> Result<Option<OpenWorkspace>, Elsewhere> {
        if self.is_draining() {
            return self.leave(caller, mode, address).await.map(|()| None);
        }
        if mode != Mode::Stateful {
            return Ok(None);
        }
        let sessions = &self.sessions;
        match sessions.open_ahead(address, &caller.principal, child).await {
            Ok(opened) => Ok(Some(opened)),
            Err(SessionError::Elsewhere(holder)) => Err(holder.into()),
            Err(_) => Ok(None),
        }
    }

    /// The replica that runs a chat's calls now, if it is another one; acquires no lease. For requests before a
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

    /// A draining replica opens nothing: the request is forwarded to the holder, or to any other replica.
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
        // Without another replica, this one continues as long as it can.
        self.another().map_or(Ok(()), Err)
    }

    /// Another replica for a request that no replica has forwarded, if this one does not know the offer of
    /// its servers yet.
    pub fn anyone_for(&self, caller: &Caller) -> Option<Elsewhere> {
        let came_first = caller.forward_reason().is_none();
        came_first.then(|| self.another())?
    }

    /// The other replicas in turn.
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

    /// The replica in an id. `None` if it has ended, since its state has ended with it.
    pub async fn home(&self, id: InstanceId) -> Option<Elsewhere> {
        let store = self.store.clone();
        let look = move || store.is_alive(id).then(|| store.peer(id));
        let peer = tokio::task::spawn_blocking(look).await.ok().flatten()?;
        let address = peer.map(|peer| peer.address);
        Some(Elsewhere::at(id, address, ForwardReason::Session))
    }

    /// Reads the envelope of a request that another replica has forwarded.
    pub fn read(&self, value: &HeaderValue) -> Result<Caller, EnvelopeError> {
        Envelope::read(value, self.own())
    }

    /// The id of this replica.
    pub fn own(&self) -> InstanceId {
        self.store.instance()
    }

    /// Waits until a replica has ended or is silent.
    async fn gone(&self, id: InstanceId) {
        let mut others = self.others.subscribe();
        loop {
            let store = self.store.clone();
            // A draining replica does not accept new calls, but still answers.
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

    /// The call's error if the other replica was not reachable; nothing was done.
    pub fn unreachable(&self, why: Option<&str>) -> CallError {
        let why = why.map(|why| format!(": {why}")).unwrap_or_default();
        CallError::Elsewhere(format!(
            "this chat runs on another replica ({}), which cannot be reached{why}; the call was \
             not started",
            self.to
        ))
    }
}
