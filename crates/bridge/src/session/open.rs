//! Opening and closing a workspace: its binding, its lease, what lies in it.

use std::sync::Arc;

use bridge_model::{BootTime, Caller, Principal, ServerName, SessionId, Tenant, WorkspaceKey};
use bridge_process::{Child, ChildError, Profile, UserValues};
use bridge_state::{Acquired, ChatStore, Lease, LiveSession, NewChat, PrincipalHash, StoreError};
use futures_util::FutureExt as _;
use jiff::Timestamp;
use tokio::{
    sync::{OwnedMutexGuard, oneshot},
    task::JoinHandle,
    time::Instant,
};

use super::{
    Class, Entry, Lent, OpenWorkspace, Session, SessionError, Sessions, Workspace, end::Whose,
    pool::Spare,
};
use crate::{
    admission,
    artifacts::{Snapshot, SnapshotError},
    child::ChildRequest,
    config::{Mode, ServerSpec, Transport, WorkspaceScope},
};

impl Sessions {
    /// The workspace at an address, made where there is none. Held open while the `Arc` lives.
    pub async fn open(
        self: &Arc<Self>,
        address: &WorkspaceAddress,
        principal: &Principal,
    ) -> Result<Arc<Workspace>, SessionError> {
        self.open_for(address, principal, None).await
    }

    /// The same for a child that works there first: an address without a folder may get one in which such a child is
    /// ready.
    async fn open_for(
        self: &Arc<Self>,
        address: &WorkspaceAddress,
        principal: &Principal,
        wants: Option<&Arc<Wants>>,
    ) -> Result<Arc<Workspace>, SessionError> {
        loop {
            let entry = self.entries().entry(address.key).or_default().clone();
            let open = entry.open().clone();
            if let Some(workspace) = open
                && self.still_held(&workspace).await
            {
                return Ok(workspace);
            }
            match self.opened(entry, address, principal, wants).await {
                // Idle children, with four descriptors each, make room.
                Err(error) if error.is_lack_of_room() => {
                    let why = error.to_string();
                    if !self.relieve(None, Tenant::bridge(), why).await {
                        return Err(error);
                    }
                }
                opened => return opened,
            }
        }
    }

    async fn opened(
        self: &Arc<Self>,
        entry: Arc<Entry>,
        address: &WorkspaceAddress,
        principal: &Principal,
        wants: Option<&Arc<Wants>>,
    ) -> Result<Arc<Workspace>, SessionError> {
        let wants = wants.cloned();
        let (reply, opened) = oneshot::channel();
        let (sessions, address) = (self.clone(), address.clone());
        let (principal, key) = (principal.clone(), address.key);
        // A task of its own: a caller who hangs up must not leave a lease that nobody knows of.
        self.tasks.spawn(async move {
            let opened = sessions.open_entry(entry, address, principal, wants).await;
            if reply.send(opened).is_err() {
                sessions.call_ended(key);
            }
        });
        opened.await.expect("opening a folder does not panic")
    }

    async fn open_entry(
        self: &Arc<Self>,
        entry: Arc<Entry>,
        address: WorkspaceAddress,
        principal: Principal,
        wants: Option<Arc<Wants>>,
    ) -> Result<Arc<Workspace>, SessionError> {
        let key = address.key;
        let gate = entry.gate.lock().await;
        if let Some(workspace) = entry.open().clone() {
            return Ok(workspace);
        }
        let opened = if let Some(adopted) = self.adopted(&address, &principal, wants).await {
            Ok(adopted)
        } else {
            let sessions = self.clone();
            let read = move || sessions.read(&address, &principal);
            let opened = tokio::task::spawn_blocking(read).await;
            opened.expect("opening a folder does not panic")
        };
        if let Ok(workspace) = &opened {
            *entry.open() = Some(workspace.clone());
        }
        drop(gate);
        if opened.is_err() {
            self.forget(key, entry);
        }
        opened
    }

    /// Blocks on the disk.
    fn read(
        &self,
        address: &WorkspaceAddress,
        principal: &Principal,
    ) -> Result<Arc<Workspace>, SessionError> {
        let store = &self.store;
        let new = NewChat {
            principal: PrincipalHash::from(principal),
            servers: Vec::new(),
        };
        self.prove(address, &new)?;
        let held_at = BootTime::now();
        let found = match store.acquire(&address.key, &new)? {
            Acquired::Mine(held) => held,
            Acquired::Elsewhere(holder) => return Err(SessionError::Elsewhere(holder)),
        };
        let files = match Snapshot::look(&found.job, &self.settings.snapshot) {
            // Opened all the same: only a tool can delete what is too much.
            Err(SnapshotError::TooManyEntries(_) | SnapshotError::TooDeep(_)) => {
                Ok(Snapshot::over())
            }
            taken => taken,
        };
        match files {
            Ok(files) => {
                tracing::debug!(job = ?found.job.id(), "workspace opened");
                let lease = (found.lease, held_at);
                let workspace = Workspace::new(address.key, found.job, lease, files, found.servers);
                Ok(Arc::new(workspace))
            }
            Err(failure) => {
                if let Err(error) = store.release(&found.lease) {
                    tracing::warn!(job = ?found.job.id(), %error, "lease not released");
                }
                Err(failure.into())
            }
        }
    }

    /// Whether there may be a folder for the address. Blocks on the disk.
    pub(super) fn prove(
        &self,
        address: &WorkspaceAddress,
        new: &NewChat,
    ) -> Result<(), SessionError> {
        let store = &self.store;
        match address.claim {
            Claim::Proven(session) => {
                let proven = store.exists(&address.key)?;
                if !proven && !store.exists(&session)? {
                    return Err(SessionError::Unknown);
                }
            }
            // A server with a folder of its own comes first: the others' folder proves the id.
            Claim::Minted(session) if session != address.key => {
                store.ensure(&session, new)?;
            }
            Claim::Minted(_) | Claim::Free => {}
        }
        Ok(())
    }

    /// Closes workspaces in which nobody works, so that the collector may have them in time.
    /// Returns at once; the handles tell when it is done.
    pub(super) fn close_unused(self: &Arc<Self>) -> Vec<JoinHandle<()>> {
        let entries = self.entries();
        let unused = entries.iter().filter(|(_, entry)| entry.is_unused());
        let closing = unused.map(|(key, entry)| self.close_soon(*key, entry.clone()));
        closing.collect()
    }

    /// The same for one of them.
    pub(super) fn close_soon(
        self: &Arc<Self>,
        key: WorkspaceKey,
        entry: Arc<Entry>,
    ) -> JoinHandle<()> {
        let sessions = self.clone();
        self.tasks
            .spawn(async move { sessions.close(key, entry).await })
    }

    async fn close(self: &Arc<Self>, key: WorkspaceKey, entry: Arc<Entry>) {
        let gate = entry.gate.lock().await;
        if let Some(workspace) = entry.take_unused() {
            let sessions = self.clone();
            let release = move || sessions.release(&workspace);
            let _ = tokio::task::spawn_blocking(release).await;
        }
        drop(gate);
        self.forget(key, entry);
    }

    /// Blocks on the disk.
    fn release(&self, workspace: &Workspace) {
        if let Err(error) = self.store.close(&workspace.lease) {
            tracing::warn!(job = ?workspace.job.id(), %error, "workspace not closed cleanly");
        }
    }

    /// Drops the entry of a closed workspace, unless somebody waits at it.
    fn forget(&self, key: WorkspaceKey, entry: Arc<Entry>) {
        let mut entries = self.entries();
        // Two handles: the map's and ours. Others are only made under the map's lock.
        if entry.open().is_none() && Arc::strong_count(&entry) <= 2 {
            entries.remove(&key);
        }
        // Under the lock, so that of several who forget it the last one sees that he is.
        drop(entry);
    }
}

impl Sessions {
    /// Opens a workspace ahead of its call, which then works there and nowhere else.
    pub async fn open_ahead(
        self: &Arc<Self>,
        address: &WorkspaceAddress,
        principal: &Principal,
        wants: Option<&Arc<Wants>>,
    ) -> Result<OpenWorkspace, SessionError> {
        let workspace = self.open_for(address, principal, wants).await?;
        Ok(OpenWorkspace::new(workspace, self.clone()))
    }
}

impl Entry {
    /// An entry without a workspace counts too: what was begun there may have failed.
    pub(super) fn is_unused(&self) -> bool {
        self.open().as_ref().is_none_or(is_unused)
    }

    /// Nobody gets the workspace any more.
    fn take_unused(&self) -> Option<Arc<Workspace>> {
        self.open().take_if(|workspace| is_unused(workspace))
    }
}

/// Every call holds the workspace; one more handle than ours means work.
fn is_unused(workspace: &Arc<Workspace>) -> bool {
    Arc::strong_count(workspace) == 1 && workspace.sessions().is_empty()
}

// Which session a call belongs to.

/// Where a stateful call works.
#[derive(Debug, Clone)]
pub struct WorkspaceAddress {
    /// The workspace.
    pub key: WorkspaceKey,
    /// How long a session there is kept, and in which order it is given up.
    pub class: Class,
    /// The id to return in `X-MCPO-Session`, for a caller without a chat.
    pub session: Option<SessionId>,
    /// What its key says of the caller's right to it.
    pub claim: Claim,
}

/// A child as a call needs it.
#[derive(Debug, Clone)]
pub struct Wants {
    /// Of which server.
    pub spec: Arc<ServerSpec>,
    /// How it is spoken to.
    pub profile: Profile,
    /// Against whose share it counts.
    pub tenant: Tenant,
}

impl Wants {
    /// None of a server whose children work in no chat's folder.
    pub fn for_caller(
        spec: &Arc<ServerSpec>,
        profile: &Profile,
        caller: &Caller,
    ) -> Option<Arc<Self>> {
        (spec.mode == Mode::Stateful).then(|| {
            Arc::new(Self {
                spec: spec.clone(),
                profile: profile.clone(),
                tenant: Tenant::from_caller(caller),
            })
        })
    }
}

/// Whether a workspace may be made for a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// By anybody who has the key: it comes from who he is and what he named himself.
    Free,
    /// We mint the id now. The key is the session's, without a server of its own.
    Minted(WorkspaceKey),
    /// He says that we minted the id: the session's key or the address's must have a folder.
    Proven(WorkspaceKey),
}

impl WorkspaceAddress {
    /// A protocol session's own address, for clients that send no chat.
    pub fn of_protocol(principal: &Principal, id: &SessionId, own: Option<&ServerName>) -> Self {
        let key = WorkspaceKey::session(principal, &format!("mcp:{}", id.as_str()), own);
        Self {
            key,
            class: Class::Lasting,
            session: None,
            claim: Claim::Free,
        }
    }

    /// User and chat; else `X-MCPO-Session` within its principal; else a session of its own.
    ///
    /// An anonymous caller may use only ids that we minted: `None` means his id is not one.
    pub fn for_caller(caller: &Caller, spec: &ServerSpec) -> Option<Self> {
        if spec.mode != Mode::Stateful {
            return Self::nowhere(caller);
        }
        let own = (spec.workspace == WorkspaceScope::Own).then_some(&spec.name);
        Self::within(caller, own)
    }

    /// Of a call that works in no folder that is kept, so that no session of the caller's is short-lived
    /// there.
    fn nowhere(caller: &Caller) -> Option<Self> {
        let named = caller.session.as_deref();
        let ours = |id: &str| id.parse::<SessionId>().is_ok();
        if caller.principal == Principal::Anonymous && !named.is_none_or(ours) {
            return None;
        }
        Some(Self {
            key: WorkspaceKey::nowhere(),
            class: Class::Lasting,
            session: None,
            claim: Claim::Free,
        })
    }

    /// The same for the folder that the chat's servers share, or for one of a server's own.
    pub fn within(caller: &Caller, own: Option<&ServerName>) -> Option<Self> {
        let principal = &caller.principal;
        let anonymous = *principal == Principal::Anonymous;
        if let Some(chat) = caller.chat.as_deref().filter(|_| !anonymous) {
            let key = WorkspaceKey::chat(principal, chat, own);
            return Some(Self {
                key,
                class: Class::Lasting,
                session: None,
                claim: Claim::Free,
            });
        }
        if let Some(named) = caller.session.as_deref() {
            let minted = named.parse::<SessionId>().ok();
            if anonymous && minted.is_none() {
                return None;
            }
            // What looks like one of ours is one of ours, or nobody's: no hint whose it is.
            let claim = match minted {
                Some(_) => Claim::Proven(WorkspaceKey::session(principal, named, None)),
                None => Claim::Free,
            };
            return Some(Self {
                key: WorkspaceKey::session(principal, named, own),
                class: Class::Lasting,
                session: minted,
                claim,
            });
        }
        let minted = SessionId::random();
        let session = WorkspaceKey::session(principal, minted.as_str(), None);
        let of_server = |server| WorkspaceKey::session(principal, minted.as_str(), Some(server));
        Some(Self {
            key: own.map_or(session, of_server),
            class: Class::OneCall,
            claim: Claim::Minted(session),
            session: Some(minted),
        })
    }
}

// A new address gets the folder in which its first child is ready.

/// A workspace, and who was there first.
struct Adopted {
    workspace: Arc<Workspace>,
    session: Arc<Session>,
}

impl Sessions {
    /// The address's workspace around a child of the pool's, bound there and idle. `None` where the
    /// address has a folder, or no such child is ready: then everything goes its usual way.
    pub(super) async fn adopted(
        self: &Arc<Self>,
        address: &WorkspaceAddress,
        principal: &Principal,
        wants: Option<Arc<Wants>>,
    ) -> Option<Arc<Workspace>> {
        let wants = wants?;
        let stateful = wants.spec.mode == Mode::Stateful;
        if !stateful || !self.is_new(address).await {
            return None;
        }
        // Who holds as many as he may gets one when one of his own has ended.
        if self
            .population
            .permits_for(&wants.spec)
            .is_at_share(&wants.tenant)
        {
            return None;
        }
        let spare = self.pool.take(&wants.spec, &wants.profile).await?;
        let (sessions, address, principal) = (self.clone(), address.clone(), principal.clone());
        let adopt = move || sessions.adopt(spare, &address, &wants, &principal);
        let adopted = tokio::task::spawn_blocking(adopt).await;
        let adopted = adopted.expect("opening a folder does not panic");
        let adopted = adopted.inspect_err(|error| {
            tracing::debug!(%error, "warm process could not be used");
        });
        let Adopted { workspace, session } = adopted.ok()??;
        self.watch(&workspace, &session);
        self.note_started(&workspace, &session).await;
        tracing::debug!(job = ?workspace.job.id(), "workspace opened with a warm process");
        Some(workspace)
    }

    /// Whether a folder would be made for the address.
    async fn is_new(self: &Arc<Self>, address: &WorkspaceAddress) -> bool {
        let (store, key, claim) = (self.store.clone(), address.key, address.claim);
        let look = move || {
            let proven = match claim {
                Claim::Proven(session) => store.exists(&session)?,
                Claim::Minted(_) | Claim::Free => true,
            };
            Ok::<_, StoreError>(proven && !store.exists(&key)?)
        };
        matches!(tokio::task::spawn_blocking(look).await, Ok(Ok(true)))
    }

    /// Blocks on the disk. What is not adopted ends by its drop.
    fn adopt(
        &self,
        spare: Spare,
        address: &WorkspaceAddress,
        wants: &Wants,
        principal: &Principal,
    ) -> Result<Option<Adopted>, SessionError> {
        let new = NewChat {
            principal: PrincipalHash::from(principal),
            servers: Vec::new(),
        };
        self.prove(address, &new)?;
        let held_at = BootTime::now();
        if !self.store.claim(spare.lease(), Some(&address.key), &new)? {
            return Ok(None);
        }
        let parts = spare.into_parts();
        let mut permit = parts.permit.expect("it counts as a stateful process");
        permit.pass_to(&wants.tenant);
        // As in a folder whose child is started by its first call: what it wrote since its birth is
        // new to that call.
        let lease = (parts.held.lease, held_at);
        let workspace = Workspace::new(address.key, parts.held.job, lease, Snapshot::default(), []);
        let session = Arc::new(Session::new(
            parts.child,
            wants.spec.clone(),
            permit,
            self.metrics.session_live(),
            address.class,
        ));
        drop(workspace.slot(&wants.spec).bind(&session, address.class));
        let workspace = Arc::new(workspace);
        Ok(Some(Adopted { workspace, session }))
    }
}

// Choosing or starting the child that serves a call.

/// A child for one call.
pub struct Found {
    /// The child, in use.
    pub session: Lent,
    /// A child of this server worked here before and is gone, and with it what it held in memory.
    /// True until [`Workspace::loss_told`], so that a call that fails does not swallow the news.
    pub replaced: bool,
}

/// The right to start a child for a call.
pub struct Start {
    /// Nobody else chooses or starts a child of this server in this workspace meanwhile.
    gate: OwnedMutexGuard<()>,
    permit: admission::Permit,
}

/// Whether a call has to start a child.
pub enum Room {
    /// One is there.
    Unneeded,
    /// It may at once.
    Free(Start),
    /// Somebody has to end first, or another start there has to.
    Wanting,
}

impl Sessions {
    /// The child that serves this call: an idle one, else a new one while there may be more, else
    /// the least busy. Without a right to start one, a permit among the children is waited for until
    /// the first of the instants. All of it is over by the second.
    pub async fn child(
        self: &Arc<Self>,
        workspace: &Arc<Workspace>,
        spec: &Arc<ServerSpec>,
        (class, profile): (Class, Profile),
        (user, tenant): (&UserValues, &Tenant),
        start: Option<Start>,
        (patience, deadline): (Instant, Instant),
    ) -> Result<Found, SessionError> {
        let slot = workspace.slot(spec);
        // Who starts another one may wait for what this call holds.
        if start.is_none()
            && let Ok(session) = slot.lend(spec, class)
        {
            return Ok(Self::found(workspace, session));
        }
        let (_gate, permit) = match start {
            Some(start) => (start.gate, Some(start.permit)),
            None => (slot.gate.clone().lock_owned().await, None),
        };
        self.drop_unfit(workspace, spec).await;
        let left = match slot.lend(spec, class) {
            Ok(session) => return Ok(Self::found(workspace, session)),
            Err(left) => left,
        };
        let permit = if let Some(permit) = permit {
            permit
        } else {
            let waiting = self.permit(workspace, spec, tenant);
            let permit = tokio::time::timeout_at(patience.min(deadline), waiting).await;
            permit.map_err(|_| self.full(spec, tenant))?
        };
        let child = self.started(workspace, || ChildRequest {
            spec: spec.clone(),
            job: workspace.job.clone(),
            profile: profile.clone(),
            user: user.clone(),
            tenant: tenant.clone(),
            deadline,
            listener: (self.listener)(&spec.name),
        });
        let child = child.await?;
        let session = Arc::new(Session::new(
            child,
            spec.clone(),
            permit,
            self.metrics.session_live(),
            class,
        ));
        let lent = slot.bind(&session, class);
        self.watch(workspace, &session);
        workspace.note_worked(&spec.name, left);
        self.note_started(workspace, &session).await;
        Ok(Found {
            session: lent,
            replaced: workspace.has_loss(&spec.name),
        })
    }

    fn found(workspace: &Workspace, session: Lent) -> Found {
        let server = &session.spec.name;
        // One that was ready before its first call.
        workspace.note_worked(server, true);
        let replaced = workspace.has_loss(server);
        Found { session, replaced }
    }

    /// A child; where the system has no descriptors, processes or memory left for one, idle ones
    /// end until it has.
    async fn started(
        self: &Arc<Self>,
        own: &Arc<Workspace>,
        request: impl Fn() -> ChildRequest,
    ) -> Result<Child, ChildError> {
        loop {
            let wanted = request();
            let tenant = wanted.tenant.clone();
            match self.children.ready(wanted).await {
                Err(error) if error.is_lack_of_room() => {
                    let ending = own.ending_if_none();
                    let own = ending.map(|ending| (own.clone(), ending));
                    if !self.relieve(own, tenant, error.brief()).await {
                        return Err(error);
                    }
                }
                started => return started,
            }
        }
    }

    /// Whether a call has to start a child, and may do so now.
    pub fn room(&self, workspace: &Workspace, spec: &ServerSpec, tenant: &Tenant) -> Room {
        let slot = workspace.slot(spec);
        if slot.would_lend(spec) {
            return Room::Unneeded;
        }
        let Ok(gate) = slot.gate.clone().try_lock_owned() else {
            return Room::Wanting;
        };
        let permit = self.population.permits_for(spec).try_enter(tenant);
        permit.map_or(Room::Wanting, |permit| Room::Free(Start { gate, permit }))
    }

    /// Waits until the call may start a child; `None` once one is there.
    pub async fn make_room(
        self: &Arc<Self>,
        own: &Arc<Workspace>,
        spec: &ServerSpec,
        tenant: &Tenant,
    ) -> Option<Start> {
        let slot = own.slot(spec);
        let gate = slot.gate.clone().lock_owned().await;
        if slot.would_lend(spec) {
            return None;
        }
        let permit = self.permit(own, spec, tenant).await;
        Some(Start { gate, permit })
    }

    /// Why there is no permit.
    pub fn full(&self, spec: &ServerSpec, tenant: &Tenant) -> SessionError {
        let permits = self.population.permits_for(spec);
        let (limit, held) = (permits.limit(), permits.held_by(tenant));
        if held < limit && permits.is_at_share(tenant) {
            SessionError::ShareFull { held }
        } else {
            SessionError::Full { limit }
        }
    }

    /// Its death frees a permit, and its end is the beginning of an idle time.
    pub(super) fn watch(self: &Arc<Self>, workspace: &Workspace, session: &Session) {
        let (gone, sessions) = (session.child.gone(), Arc::downgrade(self));
        let key = workspace.key;
        self.look_at(key);
        tokio::spawn(async move {
            gone.await;
            if let Some(sessions) = sessions.upgrade() {
                sessions.call_ended(key);
            }
        });
    }

    /// Dead children, and those of an older config, make room.
    async fn drop_unfit(self: &Arc<Self>, workspace: &Arc<Workspace>, spec: &Arc<ServerSpec>) {
        let version = spec.version();
        for session in workspace.slot(spec).sessions() {
            let outdated = session.version != version && session.in_flight() == 0;
            if outdated || !session.child.is_alive() {
                self.end_under_turn(workspace, session).await;
            }
        }
    }

    /// Waits for a permit among the live children; the least recently used idle session of who holds
    /// the most makes room, in `own` also while somebody has the turn there: an idle child is in
    /// nobody's way.
    async fn permit(
        self: &Arc<Self>,
        own: &Arc<Workspace>,
        spec: &ServerSpec,
        tenant: &Tenant,
    ) -> admission::Permit {
        let mut permit = std::pin::pin!(self.population.permits_for(spec).enter(tenant));
        let whose = Whose {
            tenant: tenant.clone(),
            remote: matches!(spec.transport, Transport::Remote(_)),
        };
        loop {
            // First, so that nothing is ended for a permit that is free.
            if let Some(permit) = permit.as_mut().now_or_never() {
                return permit;
            }
            let mut freed = std::pin::pin!(self.room.notified());
            // Before the look: a call that ends during it is heard.
            freed.as_mut().enable();
            let ending = own.ending_if_none();
            let own = ending.map(|ending| (own.clone(), ending));
            let (sessions, whose) = (self.clone(), whose.clone());
            // A task of its own: an end once begun is finished, whoever gets the permit.
            let evicting = self
                .tasks
                .spawn(async move { sessions.evict_one(own, &whose).await });
            let room = async {
                if !evicting.await.unwrap_or(false) {
                    freed.await;
                }
            };
            tokio::select! {
                biased;
                permit = &mut permit => return permit,
                () = room => {}
            }
        }
    }

    /// Tells whoever reads the folder (`mcpo-bridge sessions`) that the child works there.
    pub(super) async fn note_started(
        self: &Arc<Self>,
        workspace: &Arc<Workspace>,
        session: &Arc<Session>,
    ) {
        let live = LiveSession {
            server: session.spec.name.as_str().to_owned(),
            number: session.child.number(),
            pid: session.child.pid(),
            started_at: Timestamp::now(),
        };
        let note = move |store: &ChatStore, lease: &Lease| store.session_started(lease, live);
        self.note(workspace, note).await;
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use bridge_model::ServerName;
    use bridge_state::{
        ChatStore, LiveSession,
        testing::{Folder, alice, key, new_chat},
    };
    use futures_util::FutureExt as _;

    use super::*;
    use crate::{
        artifacts::Limits,
        child::{ChildSettings, Children},
        session::{Class, PoolSettings, SessionSettings},
        telemetry::Metrics,
    };

    fn sessions(folder: &Folder, store: Arc<ChatStore>) -> Arc<Sessions> {
        let metrics = Arc::new(Metrics::new());
        let children = ChildSettings {
            tools_dir: folder.outside().to_owned(),
            scratch: folder.outside().to_owned(),
            start_timeout: Duration::from_secs(1),
            max_message: 1024,
            max_starts: 1,
            input_timeout: Duration::from_secs(600),
            kill_grace: Duration::from_secs(1),
        };
        let settings = SessionSettings {
            max_total: 1,
            max_per_user: None,
            cleanup_interval: Duration::from_secs(60),
            snapshot: Limits {
                entries: 3,
                depth: 8,
            },
            pool: PoolSettings {
                max: 0,
                idle: Duration::from_secs(60),
                min_free_memory: 0,
                min_free_disk: 0,
                starts: 1,
            },
        };
        Arc::new(Sessions::new(
            settings,
            Arc::new(Children::new(children, metrics.clone())),
            store,
            metrics,
            Arc::new(|_| Arc::new(|_| {})),
        ))
    }

    fn address(key: WorkspaceKey) -> WorkspaceAddress {
        WorkspaceAddress {
            key,
            class: Class::Lasting,
            session: None,
            claim: Claim::Free,
        }
    }

    fn server() -> ServerName {
        "echo".parse().unwrap()
    }

    /// Whether anybody holds the lease of the chat's folder.
    fn leased(store: &ChatStore, chat: &str) -> bool {
        let key = key(chat).to_hex();
        let mut chats = store.chats().unwrap().into_iter();
        chats.any(|chat| chat.metadata.session_keys == [key.clone()] && chat.leased_by.is_some())
    }

    async fn open(sessions: &Arc<Sessions>) -> Result<Arc<Workspace>, SessionError> {
        let address = address(key("c"));
        sessions.open(&address, &alice()).await
    }

    async fn close(sessions: &Arc<Sessions>) {
        for closed in sessions.close_unused() {
            closed.await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_caller_who_hangs_up_while_it_opens_leaves_neither_lease_nor_entry() {
        let folder = Folder::new();
        let store = Arc::new(folder.open());
        let sessions = sessions(&folder, store.clone());
        // Polled once: the opening has begun, and nobody waits for it.
        let given_up = sessions.open(&address(key("c")), &alice()).now_or_never();
        assert!(given_up.is_none());
        sessions.tasks.close();
        sessions.tasks.wait().await;
        assert!(leased(&store, "c"), "the opening went on");
        close(&sessions).await;
        assert!(!leased(&store, "c"));
        assert!(sessions.entries().is_empty());
    }

    #[tokio::test]
    async fn a_folder_that_cannot_be_opened_is_given_back() {
        let folder = Folder::new();
        let store = Arc::new(folder.open());
        let sessions = sessions(&folder, store.clone());
        let work = open(&sessions).await.unwrap().job.work();
        close(&sessions).await;
        std::fs::remove_dir(&work).unwrap();
        std::fs::write(&work, "").unwrap();
        let failed = open(&sessions).await;
        assert!(matches!(failed, Err(SessionError::Files(_))));
        assert!(!leased(&store, "c"));
        assert!(sessions.entries().is_empty());
    }

    #[tokio::test]
    async fn a_folder_with_too_many_files_opens_and_nothing_in_it_is_new() {
        let folder = Folder::new();
        let store = Arc::new(folder.open());
        let sessions = sessions(&folder, store.clone());
        let work = open(&sessions).await.unwrap().job.work();
        close(&sessions).await;
        for name in ["a", "b", "c", "d"] {
            std::fs::write(work.join(name), "").unwrap();
        }
        let opened = open(&sessions).await.unwrap();
        assert!(opened.files.lock().await.over);
        drop(opened);
        close(&sessions).await;
    }

    #[tokio::test]
    async fn the_sessions_of_a_killed_bridge_are_forgotten() {
        let folder = Folder::new();
        let live = LiveSession {
            server: "echo".into(),
            number: 1,
            pid: Some(1),
            started_at: folder.now,
        };
        folder.crash(
            |store| match store.acquire(&key("c"), &new_chat()).unwrap() {
                Acquired::Mine(held) => store.session_started(&held.lease, live).unwrap(),
                Acquired::Elsewhere(holder) => panic!("{holder}"),
            },
        );
        let store = Arc::new(folder.open());
        let sessions = sessions(&folder, store.clone());
        let workspace = open(&sessions).await.unwrap();
        let chat = store.chat(workspace.job.id()).unwrap().unwrap();
        assert_eq!(chat.metadata.live_sessions, []);
    }

    #[tokio::test]
    async fn a_workspace_whose_entry_is_busy_is_still_seen() {
        let folder = Folder::new();
        let sessions = sessions(&folder, Arc::new(folder.open()));
        let _workspace = open(&sessions).await.unwrap();
        let entry = sessions.entries().get(&key("c")).unwrap().clone();
        let _gate = entry.gate.lock().await;
        assert_eq!(sessions.workspaces().len(), 1);
    }

    #[tokio::test]
    async fn the_others_folder_proves_an_id_that_was_minted_for_a_server_of_its_own() {
        let folder = Folder::new();
        let sessions = sessions(&folder, Arc::new(folder.open()));
        let session = |own| WorkspaceKey::session(&alice(), "s", own);
        let (all, own) = (session(None), session(Some(&server())));
        let claimed = |key, claim| WorkspaceAddress {
            claim,
            ..address(key)
        };
        for stranger in [own, all] {
            let address = claimed(stranger, Claim::Proven(all));
            let opened = sessions.open(&address, &alice()).await;
            assert!(matches!(opened, Err(SessionError::Unknown)));
        }
        let minted = claimed(own, Claim::Minted(all));
        let first = sessions.open(&minted, &alice()).await.unwrap();
        let again = claimed(own, Claim::Proven(all));
        let again = sessions.open(&again, &alice()).await.unwrap();
        assert_eq!(first.job.id(), again.job.id());
        let other = claimed(all, Claim::Proven(all));
        let other = sessions.open(&other, &alice()).await.unwrap();
        assert_ne!(first.job.id(), other.job.id());
    }
}
