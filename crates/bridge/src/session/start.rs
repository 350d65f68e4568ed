//! Choosing or starting the child that serves a call.

use std::sync::Arc;

use bridge_model::Tenant;
use bridge_process::{Child, ChildError, Profile, UserValues};
use bridge_state::{ChatStore, Lease, LiveSession};
use futures_util::FutureExt as _;
use jiff::Timestamp;
use tokio::{sync::OwnedMutexGuard, time::Instant};

use super::{Class, Lent, Session, SessionError, Sessions, Workspace, end::Whose};
use crate::{
    admission,
    child::ChildRequest,
    config::{ServerSpec, Transport},
};

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
    place: admission::Place,
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
    /// the least busy. Without a right to start one, a place among the children is waited for until
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
        let (_gate, place) = match start {
            Some(start) => (start.gate, Some(start.place)),
            None => (slot.gate.clone().lock_owned().await, None),
        };
        self.drop_unfit(workspace, spec).await;
        let left = match slot.lend(spec, class) {
            Ok(session) => return Ok(Self::found(workspace, session)),
            Err(left) => left,
        };
        let place = if let Some(place) = place {
            place
        } else {
            let waiting = self.place(workspace, spec, tenant);
            let place = tokio::time::timeout_at(patience.min(deadline), waiting).await;
            place.map_err(|_| self.full(spec, tenant))?
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
            place,
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
        let place = self.population.of(spec).try_enter(tenant);
        place.map_or(Room::Wanting, |place| Room::Free(Start { gate, place }))
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
        let place = self.place(own, spec, tenant).await;
        Some(Start { gate, place })
    }

    /// Why there is no place.
    pub fn full(&self, spec: &ServerSpec, tenant: &Tenant) -> SessionError {
        let places = self.population.of(spec);
        let (limit, held) = (places.limit(), places.held_by(tenant));
        if held < limit && places.is_at_share(tenant) {
            SessionError::ShareFull { held }
        } else {
            SessionError::Full { limit }
        }
    }

    /// Its death frees a place, and its end is the beginning of an idle time.
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

    /// Waits for a place among the live children; the least recently used idle session of who holds
    /// the most makes room, in `own` also while somebody has the turn there: an idle child is in
    /// nobody's way.
    async fn place(
        self: &Arc<Self>,
        own: &Arc<Workspace>,
        spec: &ServerSpec,
        tenant: &Tenant,
    ) -> admission::Place {
        let mut place = std::pin::pin!(self.population.of(spec).enter(tenant));
        let whose = Whose {
            tenant: tenant.clone(),
            remote: matches!(spec.transport, Transport::Remote(_)),
        };
        loop {
            // First, so that nothing is ended for a place that is free.
            if let Some(place) = place.as_mut().now_or_never() {
                return place;
            }
            let mut freed = std::pin::pin!(self.room.notified());
            // Before the look: a call that ends during it is heard.
            freed.as_mut().enable();
            let ending = own.ending_if_none();
            let own = ending.map(|ending| (own.clone(), ending));
            let (sessions, whose) = (self.clone(), whose.clone());
            // A task of its own: an end once begun is finished, whoever gets the place.
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
                place = &mut place => return place,
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
