//! Opens and closes workspaces: address, lease and files.

use std::sync::Arc;

use bridge_model::{BootTime, Caller, Principal, ServerName, SessionId, Tenant, WorkspaceKey};
use bridge_process::{Child, ChildError, Profile, UserValues};
use bridge_state::{Acquired, ChatStore, Lease, LiveSession, NewChat, StoreError};
use futures_util::FutureExt as _;
use jiff::Timestamp;
use tokio::{
    sync::{OwnedMutexGuard, oneshot},
    task::JoinHandle,
    time::Instant,
};

use super::{
    Class, Entry, OpenWorkspace, Session, SessionError, SessionGuard, Sessions, Workspace,
    end::Requester, pool::Spare,
};
use crate::{
    admission,
    artifacts::TrackedFiles,
    child::ChildRequest,
    config::{Mode, ServerSpec, Transport, WorkspaceScope},
};

impl Sessions {
    /// The workspace at an address, created if necessary. It stays open while the `Arc` lives. If the
    /// call needs a `child`, a new address may get the folder of a warm child.
    pub async fn open(
        self: &Arc<Self>,
        address: &WorkspaceAddress,
        principal: &Principal,
        child: Option<&Arc<ChildSpec>>,
    ) -> Result<Arc<Workspace>, SessionError> {
        loop {
            let entry = self
                .workspaces
                .lock()
                .entry(address.key)
                .or_default()
                .clone();
            let open = entry.open.lock().clone();
            if let Some(workspace) = open
                && self.still_held(&workspace).await
            {
                return Ok(workspace);
            }
            match self.opened(entry, address, principal, child).await {
                // Ending idle children, which have four descriptors each, frees some.
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
        child: Option<&Arc<ChildSpec>>,
    ) -> Result<Arc<Workspace>, SessionError> {
        let (reply, opened) = oneshot::channel();
        let (sessions, key) = (self.clone(), address.key);
        let (address, principal) = (address.clone(), principal.clone());
        let opening = self
            .clone()
            .open_entry(entry, address, principal, child.cloned());
        // A separate task, because a caller that leaves must not leave an unknown lease behind.
        self.tasks.spawn(async move {
            if reply.send(opening.await).is_err() {
                sessions.call_ended(key);
            }
        });
        opened.await.expect("opening a folder does not panic")
    }

    async fn open_entry(
        self: Arc<Self>,
        entry: Arc<Entry>,
        address: WorkspaceAddress,
        principal: Principal,
        child: Option<Arc<ChildSpec>>,
    ) -> Result<Arc<Workspace>, SessionError> {
        let key = address.key;
        let gate = entry.gate.lock().await;
        if let Some(workspace) = entry.open.lock().clone() {
            return Ok(workspace);
        }
        let opened = if let Some(adopted) = self.adopted(&address, &principal, child).await {
            Ok(adopted)
        } else {
            let sessions = self.clone();
            let read = move || sessions.read(&address, &principal);
            let opened = tokio::task::spawn_blocking(read).await;
            opened.expect("opening a folder does not panic")
        };
        if let Ok(workspace) = &opened {
            *entry.open.lock() = Some(workspace.clone());
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
        let new = NewChat::new(principal, Vec::new());
        self.prove(address, &new)?;
        let held_at = BootTime::now();
        let found = match store.acquire(&address.key, &new)? {
            Acquired::Mine(held) => held,
            Acquired::Elsewhere(holder) => return Err(SessionError::Elsewhere(holder)),
        };
        let (job, lease) = (found.job, found.lease);
        let watcher = self.watcher.clone();
        let files = match TrackedFiles::open(watcher, &job, &self.settings.snapshot) {
            Ok(files) => files,
            Err(failure) => {
                if let Err(error) = store.release(&lease) {
                    tracing::warn!(job = ?job.id(), %error, "lease not released");
                }
                return Err(failure.into());
            }
        };
        tracing::debug!(job = ?job.id(), "workspace opened");
        let lease = (lease, held_at);
        let workspace = Workspace::new(address.key, job, lease, files, found.servers);
        Ok(Arc::new(workspace))
    }

    /// Whether there may be a folder for the address. Blocks on the disk.
    pub(super) fn prove(
        &self,
        address: &WorkspaceAddress,
        new: &NewChat,
    ) -> Result<(), SessionError> {
        let store = &self.store;
        match address.origin {
            KeyOrigin::Presented(session) => {
                let proven = store.exists(&address.key)?;
                if !proven && !store.exists(&session)? {
                    return Err(SessionError::Unknown);
                }
            }
            // For a server with its own folder: the common folder proves the id.
            KeyOrigin::Created(session) if session != address.key => {
                store.ensure(&session, new)?;
            }
            KeyOrigin::Created(_) | KeyOrigin::Derived => {}
        }
        Ok(())
    }

    /// Closes unused workspaces, so that the clean-up can delete them in time. Returns at once; the
    /// handles complete at the end.
    pub(super) fn close_unused(self: &Arc<Self>) -> Vec<JoinHandle<()>> {
        let entries = self.workspaces.lock();
        let unused = entries.iter().filter(|(_, entry)| entry.is_unused());
        let closing = unused.map(|(key, entry)| self.close_soon(*key, entry.clone()));
        closing.collect()
    }

    /// The same for one workspace.
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

    /// Drops the entry of a closed workspace, unless a caller waits for it.
    fn forget(&self, key: WorkspaceKey, entry: Arc<Entry>) {
        let mut entries = self.workspaces.lock();
        // Two handles: the map's and this one. Further ones are only created under the map's lock.
        if entry.open.lock().is_none() && Arc::strong_count(&entry) <= 2 {
            entries.remove(&key);
        }
        // Dropped under the lock, so that of several callers of this function the last one removes
        // it.
        drop(entry);
    }
}

impl Sessions {
    /// Opens a workspace ahead of its call, which then uses this one.
    pub async fn open_ahead(
        self: &Arc<Self>,
        address: &WorkspaceAddress,
        principal: &Principal,
        child: Option<&Arc<ChildSpec>>,
    ) -> Result<OpenWorkspace, SessionError> {
        let workspace = self.open(address, principal, child).await?;
        Ok(OpenWorkspace::new(workspace, self.clone()))
    }
}

impl Entry {
    /// An entry without a workspace counts as unused, too: its opening may have failed.
    pub(super) fn is_unused(&self) -> bool {
        self.open.lock().as_ref().is_none_or(is_unused)
    }

    /// Takes the workspace, so that no further call gets it.
    fn take_unused(&self) -> Option<Arc<Workspace>> {
        self.open.lock().take_if(|workspace| is_unused(workspace))
    }
}

/// Every call holds a handle of the workspace, so another handle means that it is used.
fn is_unused(workspace: &Arc<Workspace>) -> bool {
    Arc::strong_count(workspace) == 1 && workspace.sessions().is_empty()
}

// The session of a call.

/// The address of a stateful call's workspace.
#[derive(Debug, Clone)]
pub struct WorkspaceAddress {
    /// The workspace.
    pub key: WorkspaceKey,
    /// Determines how long a session there is kept, and the order of ends.
    pub class: Class,
    /// The id to return in `X-MCPO-Session`, for a caller without a chat.
    pub session: Option<SessionId>,
    /// Whether the workspace may be created.
    pub origin: KeyOrigin,
}

/// The child that a call needs.
#[derive(Debug, Clone)]
pub struct ChildSpec {
    /// Its server.
    pub spec: Arc<ServerSpec>,
    /// The form of the protocol to use.
    pub profile: Profile,
    /// The tenant whose share it counts against.
    pub tenant: Tenant,
}

impl ChildSpec {
    /// `None` for a server whose children do not work in a chat's folder.
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

/// Where the key of a workspace comes from: this decides whether the workspace may be created.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyOrigin {
    /// It is derived from the principal and a name of the caller: every caller with the key may create
    /// the workspace.
    Derived,
    /// The bridge creates the id now. The key is that of the session without a server.
    Created(WorkspaceKey),
    /// The caller claims that the bridge created the id, so the key of the session or of the address
    /// must have a folder.
    Presented(WorkspaceKey),
}

impl WorkspaceAddress {
    /// The caller's own key, with sessions that last.
    fn free(key: WorkspaceKey) -> Self {
        Self {
            key,
            class: Class::Lasting,
            session: None,
            origin: KeyOrigin::Derived,
        }
    }

    /// A protocol session's own address, for clients that send no chat.
    pub fn of_protocol(principal: &Principal, id: &SessionId, own: Option<&ServerName>) -> Self {
        let name = format!("mcp:{}", id.as_str());
        Self::free(WorkspaceKey::session(principal, &name, own))
    }

    /// User and chat; else `X-MCPO-Session` within its principal; else a new session.
    ///
    /// An anonymous caller may only use ids that the bridge created: `None` for any other.
    pub fn for_caller(caller: &Caller, spec: &ServerSpec) -> Option<Self> {
        if spec.mode != Mode::Stateful {
            return Self::nowhere(caller);
        }
        let own = (spec.workspace == WorkspaceScope::Own).then_some(&spec.name);
        Self::within(caller, own)
    }

    /// The address of a call without a lasting folder.
    fn nowhere(caller: &Caller) -> Option<Self> {
        let named = caller.session.as_deref();
        let ours = |id: &str| id.parse::<SessionId>().is_ok();
        if caller.principal == Principal::Anonymous && !named.is_none_or(ours) {
            return None;
        }
        Some(Self::free(WorkspaceKey::nowhere()))
    }

    /// The same for the common folder of the chat's servers, or for a server's own folder.
    pub fn within(caller: &Caller, own: Option<&ServerName>) -> Option<Self> {
        let principal = &caller.principal;
        let anonymous = *principal == Principal::Anonymous;
        if let Some(chat) = caller.chat.as_deref().filter(|_| !anonymous) {
            return Some(Self::free(WorkspaceKey::chat(principal, chat, own)));
        }
        if let Some(named) = caller.session.as_deref() {
            let minted = named.parse::<SessionId>().ok();
            if anonymous && minted.is_none() {
                return None;
            }
            // An id in the bridge's format must have been created by the bridge; the check gives no
            // hint at its owner.
            let proven =
                |_: &SessionId| KeyOrigin::Presented(WorkspaceKey::session(principal, named, None));
            return Some(Self {
                origin: minted.as_ref().map_or(KeyOrigin::Derived, proven),
                session: minted,
                ..Self::free(WorkspaceKey::session(principal, named, own))
            });
        }
        let minted = SessionId::random();
        let session = WorkspaceKey::session(principal, minted.as_str(), None);
        Some(Self {
            key: WorkspaceKey::session(principal, minted.as_str(), own),
            class: Class::OneCall,
            origin: KeyOrigin::Created(session),
            session: Some(minted),
        })
    }
}

// A new address gets the folder of a warm child.

/// A workspace, and its first child.
type Adopted = (Arc<Workspace>, Arc<Session>);

impl Sessions {
    /// The address's workspace with a warm child, bound there and idle. `None` if the address has a
    /// folder, or no suitable child is warm: the call then starts its own.
    pub(super) async fn adopted(
        self: &Arc<Self>,
        address: &WorkspaceAddress,
        principal: &Principal,
        child: Option<Arc<ChildSpec>>,
    ) -> Option<Arc<Workspace>> {
        let child = child?;
        if !self.is_new(address).await {
            return None;
        }
        // A tenant that uses its full share gets a permit only after the end of one of its own
        // sessions.
        let permits = self.population.permits_for(&child.spec);
        if permits.is_at_share(&child.tenant) {
            return None;
        }
        let spare = self.pool.take(&child.spec, &child.profile).await?;
        let (sessions, address, principal) = (self.clone(), address.clone(), principal.clone());
        let adopt = move || sessions.adopt(spare, &address, &child, &principal);
        let adopted = tokio::task::spawn_blocking(adopt).await;
        let adopted = adopted.expect("opening a folder does not panic");
        let adopted = adopted.inspect_err(|error| {
            tracing::debug!(%error, "warm process could not be used");
        });
        let (workspace, session) = adopted.ok()??;
        self.note_started(&workspace, &session).await;
        tracing::debug!(job = ?workspace.job.id(), "workspace opened with a warm process");
        Some(workspace)
    }

    /// Whether a new folder would be created for the address.
    async fn is_new(self: &Arc<Self>, address: &WorkspaceAddress) -> bool {
        let (store, key, origin) = (self.store.clone(), address.key, address.origin);
        let look = move || {
            let proven = match origin {
                KeyOrigin::Presented(session) => store.exists(&session)?,
                KeyOrigin::Created(_) | KeyOrigin::Derived => true,
            };
            Ok::<_, StoreError>(proven && !store.exists(&key)?)
        };
        matches!(tokio::task::spawn_blocking(look).await, Ok(Ok(true)))
    }

    /// Blocks on the disk. A child that is not adopted ends when it is dropped.
    fn adopt(
        &self,
        spare: Spare,
        address: &WorkspaceAddress,
        child: &ChildSpec,
        principal: &Principal,
    ) -> Result<Option<Adopted>, SessionError> {
        let new = NewChat::new(principal, Vec::new());
        self.prove(address, &new)?;
        let held_at = BootTime::now();
        if !self.store.claim(spare.lease(), Some(&address.key), &new)? {
            return Ok(None);
        }
        let parts = spare.into_parts();
        let mut permit = parts.permit.expect("it counts as a stateful process");
        permit.pass_to(&child.tenant);
        // As if the first call had started the child: the files that the child has written are new to
        // that call.
        let lease = (parts.held.lease, held_at);
        let files = TrackedFiles::new(self.watcher.clone());
        let workspace = Workspace::new(address.key, parts.held.job, lease, files, []);
        let session = Arc::new(Session::new(
            parts.child,
            child.spec.clone(),
            permit,
            self.metrics.session_live(),
            address.class,
        ));
        drop(workspace.slot(&child.spec).bind(&session, address.class));
        let workspace = Arc::new(workspace);
        Ok(Some((workspace, session)))
    }
}

// The choice or start of the child that serves a call.

/// The right to start a child for a call.
pub struct Start {
    /// Held so that no other call chooses or starts a child of this server in this workspace
    /// meanwhile.
    gate: OwnedMutexGuard<()>,
    permit: admission::Permit,
}

/// Whether a call has to start a child.
pub enum Room {
    /// No, there is one.
    Unneeded,
    /// Yes, and it may start one at once.
    Free(Start),
    /// Yes, but another session, or another start there, has to end first.
    Wanting,
}

impl Sessions {
    /// The child that serves this call: an idle one, else a new one if the limit allows it, else the
    /// least busy. Without the right to start one, waits for a permit among the children until the
    /// first of the instants. The second one limits the whole function.
    pub async fn child(
        self: &Arc<Self>,
        workspace: &Arc<Workspace>,
        spec: &Arc<ServerSpec>,
        (class, profile): (Class, Profile),
        (user, tenant): (&UserValues, &Tenant),
        start: Option<Start>,
        (patience, deadline): (Instant, Instant),
    ) -> Result<SessionGuard, SessionError> {
        let slot = workspace.slot(spec);
        let acquire = || {
            let acquired = slot.acquire(spec, class);
            // A warm child was not recorded before its first call.
            acquired.inspect(|_| workspace.note_worked(&spec.name, true))
        };
        // Another call that starts a child may wait for permits that this call holds.
        if start.is_none()
            && let Ok(session) = acquire()
        {
            return Ok(session);
        }
        let (_gate, permit) = match start {
            Some(start) => (start.gate, Some(start.permit)),
            None => (slot.gate.clone().lock_owned().await, None),
        };
        self.end_unusable(workspace, spec).await;
        let left = match acquire() {
            Ok(session) => return Ok(session),
            Err(left) => left,
        };
        let permit = if let Some(permit) = permit {
            permit
        } else {
            let waiting = self.permit(workspace, spec, tenant);
            let permit = tokio::time::timeout_at(patience.min(deadline), waiting).await;
            permit.map_err(|_| self.full(spec, tenant))?
        };
        let request = ChildRequest {
            user: user.clone(),
            tenant: tenant.clone(),
            listener: (self.listener)(&spec.name),
            ..ChildRequest::of_bridge(spec, &workspace.job, profile, deadline)
        };
        let child = self.started(workspace, request).await?;
        let live = self.metrics.session_live();
        let session = Arc::new(Session::new(child, spec.clone(), permit, live, class));
        let guard = slot.bind(&session, class);
        workspace.note_worked(&spec.name, left);
        self.note_started(workspace, &session).await;
        Ok(guard)
    }

    /// Starts a child; if the system has no descriptors, processes or memory left for it, idle ones
    /// are ended until it has.
    async fn started(
        self: &Arc<Self>,
        own: &Arc<Workspace>,
        request: ChildRequest,
    ) -> Result<Child, ChildError> {
        loop {
            match self.children.ready(request.clone()).await {
                Err(error) if error.is_lack_of_room() => {
                    let own = own.ending_if_none();
                    let tenant = request.tenant.clone();
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
        if slot.can_serve(spec) {
            return Room::Unneeded;
        }
        let Ok(gate) = slot.gate.clone().try_lock_owned() else {
            return Room::Wanting;
        };
        let permit = self.population.permits_for(spec).try_enter(tenant);
        permit.map_or(Room::Wanting, |permit| Room::Free(Start { gate, permit }))
    }

    /// Waits until the call may start a child; `None` if there is one.
    pub async fn make_room(
        self: &Arc<Self>,
        own: &Arc<Workspace>,
        spec: &ServerSpec,
        tenant: &Tenant,
    ) -> Option<Start> {
        let slot = own.slot(spec);
        let gate = slot.gate.clone().lock_owned().await;
        if slot.can_serve(spec) {
            return None;
        }
        let permit = self.permit(own, spec, tenant).await;
        Some(Start { gate, permit })
    }

    /// The error if there is no permit.
    pub fn full(&self, spec: &ServerSpec, tenant: &Tenant) -> SessionError {
        let permits = self.population.permits_for(spec);
        let (limit, held) = (permits.limit(), permits.held_by(tenant));
        if held < limit && permits.is_at_share(tenant) {
            SessionError::ShareFull { held }
        } else {
            SessionError::Full { limit }
        }
    }

    /// Ends children that have exited, and those of an older configuration.
    async fn end_unusable(self: &Arc<Self>, workspace: &Arc<Workspace>, spec: &Arc<ServerSpec>) {
        let version = spec.version();
        for session in workspace.slot(spec).sessions() {
            let outdated = session.version != version && session.in_flight() == 0;
            if outdated || !session.child.is_alive() {
                self.end_under_turn(workspace, session).await;
            }
        }
    }

    /// Waits for a permit among the stateful children. To make room, the least recently used idle
    /// session of the tenant with the most children is ended; in `own` this is possible even while
    /// another call has the turn, which does not need an idle child.
    async fn permit(
        self: &Arc<Self>,
        own: &Arc<Workspace>,
        spec: &ServerSpec,
        tenant: &Tenant,
    ) -> admission::Permit {
        let mut permit = std::pin::pin!(self.population.permits_for(spec).enter(tenant));
        let requester = Requester {
            tenant: tenant.clone(),
            remote: matches!(spec.transport, Transport::Remote(_)),
        };
        loop {
            // Checked first, so that no session ends if a permit is free.
            if let Some(permit) = permit.as_mut().now_or_never() {
                return permit;
            }
            let mut freed = std::pin::pin!(self.room.notified());
            // Registered before the check, so that a call that ends meanwhile is noticed.
            freed.as_mut().enable();
            let own = own.ending_if_none();
            let (sessions, requester) = (self.clone(), requester.clone());
            // A separate task, so that an end that has begun is finished, whichever call gets the
            // permit.
            let evicting = self
                .tasks
                .spawn(async move { sessions.evict_one(own, &requester).await });
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

    /// Waits in a task for the child's end, which frees a permit, and records the child in the folder,
    /// for `mcpo-bridge sessions`.
    async fn note_started(self: &Arc<Self>, workspace: &Workspace, session: &Session) {
        let (gone, sessions) = (session.child.gone(), Arc::downgrade(self));
        let key = workspace.key;
        self.look_at(key);
        tokio::spawn(async move {
            gone.await;
            if let Some(sessions) = sessions.upgrade() {
                sessions.call_ended(key);
            }
        });
        let live = LiveSession {
            server: session.spec.name.as_str().to_owned(),
            number: session.child.parts.number,
            pid: session.child.parts.body.pid(),
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
            origin: KeyOrigin::Derived,
        }
    }

    fn server() -> ServerName {
        "echo".parse().unwrap()
    }

    /// Whether the lease of the chat's folder is held.
    fn leased(store: &ChatStore, chat: &str) -> bool {
        let key = key(chat).to_hex();
        let mut chats = store.chats().unwrap().into_iter();
        chats.any(|chat| chat.metadata.session_keys == [key.clone()] && chat.leased_by.is_some())
    }

    async fn open(sessions: &Arc<Sessions>) -> Result<Arc<Workspace>, SessionError> {
        let address = address(key("c"));
        sessions.open(&address, &alice(), None).await
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
        // Polled once: the opening has begun, and its caller does not wait for it.
        let given_up = sessions
            .open(&address(key("c")), &alice(), None)
            .now_or_never();
        assert!(given_up.is_none());
        sessions.tasks.close();
        sessions.tasks.wait().await;
        assert!(leased(&store, "c"), "the opening went on");
        close(&sessions).await;
        assert!(!leased(&store, "c"));
        assert!(sessions.workspaces.lock().is_empty());
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
        assert!(sessions.workspaces.lock().is_empty());
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
        assert!(opened.files.lock().await.now().over);
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
        let entry = sessions.workspaces.lock().get(&key("c")).unwrap().clone();
        let _gate = entry.gate.lock().await;
        assert_eq!(sessions.workspaces().len(), 1);
    }

    #[tokio::test]
    async fn the_others_folder_proves_an_id_that_was_minted_for_a_server_of_its_own() {
        let folder = Folder::new();
        let sessions = sessions(&folder, Arc::new(folder.open()));
        let session = |own| WorkspaceKey::session(&alice(), "s", own);
        let (all, own) = (session(None), session(Some(&server())));
        let claimed = |key, origin| WorkspaceAddress {
            origin,
            ..address(key)
        };
        for stranger in [own, all] {
            let address = claimed(stranger, KeyOrigin::Presented(all));
            let opened = sessions.open(&address, &alice(), None).await;
            assert!(matches!(opened, Err(SessionError::Unknown)));
        }
        let minted = claimed(own, KeyOrigin::Created(all));
        let first = sessions.open(&minted, &alice(), None).await.unwrap();
        let again = claimed(own, KeyOrigin::Presented(all));
        let again = sessions.open(&again, &alice(), None).await.unwrap();
        assert_eq!(first.job.id(), again.job.id());
        let other = claimed(all, KeyOrigin::Presented(all));
        let other = sessions.open(&other, &alice(), None).await.unwrap();
        assert_ne!(first.job.id(), other.job.id());
    }
}
