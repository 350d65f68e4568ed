//! Choosing or starting the child that serves a call.

use std::sync::Arc;

use futures_util::FutureExt as _;
use jiff::Timestamp;
use tokio::{sync::OwnedSemaphorePermit, time::Instant};

use super::{Class, Lent, Session, SessionError, Sessions, Workspace};
use crate::{
    child::{ChildRequest, Profile},
    config::{ServerSpec, UserValues},
    store::LiveSession,
};

/// A child for one call.
pub struct Found {
    /// The child, in use.
    pub session: Lent,
    /// A child of this server worked here before and is gone, and with it what it held in memory.
    /// True until [`Workspace::loss_told`], so that a call that fails does not swallow the news.
    pub replaced: bool,
}

impl Sessions {
    /// The child that serves this call: an idle one, else a new one while there may be more, else
    /// the least busy. A place among the processes is waited for until the first of the instants,
    /// and all of it is over by the second.
    pub async fn child(
        self: &Arc<Self>,
        workspace: &Arc<Workspace>,
        spec: &Arc<ServerSpec>,
        class: Class,
        profile: Profile,
        user: &UserValues,
        (patience, deadline): (Instant, Instant),
    ) -> Result<Found, SessionError> {
        let slot = workspace.slot(spec);
        let _gate = slot.gate.lock().await;
        self.drop_unfit(workspace, spec).await;
        let left = match slot.lend(spec, class) {
            Ok(session) => {
                // One that was ready before its first call.
                workspace.note_worked(&spec.name, true);
                let replaced = workspace.has_loss(&spec.name);
                return Ok(Found { session, replaced });
            }
            Err(left) => left,
        };
        let place = self.place(workspace, patience.min(deadline)).await?;
        let child = self.children.ready(ChildRequest {
            spec: spec.clone(),
            job: workspace.job.clone(),
            profile,
            overlay: Vec::new(),
            user: user.clone(),
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
        self.watch(&session);
        workspace.note_worked(&spec.name, left);
        self.note_started(workspace, &session).await;
        Ok(Found {
            session: lent,
            replaced: workspace.has_loss(&spec.name),
        })
    }

    /// Its death frees a place, and its end is the beginning of an idle time.
    pub(super) fn watch(self: &Arc<Self>, session: &Session) {
        let (gone, sessions) = (session.child.gone(), Arc::downgrade(self));
        self.house.notify_one();
        tokio::spawn(async move {
            gone.await;
            if let Some(sessions) = sessions.upgrade() {
                sessions.call_ended();
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

    /// A place among the live children; the least recently used idle session makes room, in `own`
    /// also while somebody has the turn there: an idle child is in nobody's way.
    async fn place(
        self: &Arc<Self>,
        own: &Arc<Workspace>,
        until: Instant,
    ) -> Result<OwnedSemaphorePermit, SessionError> {
        if let Some(place) = self.population.try_place() {
            return Ok(place);
        }
        let mut place = std::pin::pin!(self.population.place());
        let wait = async {
            loop {
                // First, so that nothing is ended for a place that is free.
                if let Some(place) = place.as_mut().now_or_never() {
                    return place.expect("never closed");
                }
                let mut freed = std::pin::pin!(self.room.notified());
                // Before the look: a call that ends during it is heard.
                freed.as_mut().enable();
                let ending = own.ending_if_none();
                let own = ending.map(|ending| (own.clone(), ending));
                let sessions = self.clone();
                // A task of its own: an end once begun is finished, whoever gets the place.
                let evicting = self
                    .tasks
                    .spawn(async move { sessions.evict_one(own).await });
                let room = async {
                    if !evicting.await.unwrap_or(false) {
                        freed.await;
                    }
                };
                tokio::select! {
                    biased;
                    place = &mut place => return place.expect("never closed"),
                    () = room => {}
                }
            }
        };
        let limit = self.population.limit();
        tokio::time::timeout_at(until, wait)
            .await
            .map_err(|_| SessionError::Full { limit })
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
        self.update_metadata(workspace, move |metadata| {
            if !metadata.server_names.contains(&live.server) {
                metadata.server_names.push(live.server.clone());
            }
            metadata.live_sessions.push(live);
        })
        .await;
    }
}
