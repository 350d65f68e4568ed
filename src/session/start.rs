//! Choosing or starting the child that serves a call.

use std::sync::{Arc, PoisonError};

use jiff::Timestamp;
use tokio::{sync::OwnedSemaphorePermit, time::Instant};

use super::{Class, Lent, Session, SessionError, Sessions, Workspace};
use crate::{
    child::{ChildRequest, End, Profile},
    config::ServerSpec,
    store::LiveSession,
};

/// A child for one call.
pub struct Found {
    /// The child, in use.
    pub session: Lent,
    /// A child of this server worked here before and is gone, and with it what it held in memory.
    pub replaced: bool,
}

impl Sessions {
    /// The child that serves this call: an idle one, else a new one while there may be more, else
    /// the least busy.
    pub async fn child(
        self: &Arc<Self>,
        workspace: &Arc<Workspace>,
        spec: &Arc<ServerSpec>,
        class: Class,
        profile: Profile,
        deadline: Instant,
    ) -> Result<Found, SessionError> {
        let slot = workspace.slot(spec);
        let _gate = slot.gate.lock().await;
        self.drop_unfit(workspace, spec).await;
        let sessions = slot.sessions();
        let idle = sessions.iter().find(|session| session.in_flight() == 0);
        let may_start = sessions.len() < spec.max_processes_per_chat;
        let least = || sessions.iter().min_by_key(|session| session.in_flight());
        if let Some(session) = idle.or_else(|| if may_start { None } else { least() }) {
            return Ok(Found {
                session: session.lend(class),
                replaced: false,
            });
        }
        let place = self.place(deadline).await?;
        let child = self.children.ready(ChildRequest {
            spec: spec.clone(),
            job: workspace.job.clone(),
            profile,
            overlay: Vec::new(),
            deadline,
            listener: (self.listener)(&spec.name),
        });
        let child = child.await?;
        let first = sessions.is_empty();
        let session = Arc::new(Session::new(
            child,
            spec.clone(),
            place,
            self.metrics.session_live(),
            class,
        ));
        let lent = session.lend(class);
        slot.sessions
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(session.clone());
        self.changed.notify_one();
        let worked_before = workspace.note_worked(&spec.name);
        self.note_started(workspace, &session).await;
        Ok(Found {
            session: lent,
            replaced: worked_before && first,
        })
    }

    /// Dead children, and those of an older config, make room.
    async fn drop_unfit(self: &Arc<Self>, workspace: &Arc<Workspace>, spec: &Arc<ServerSpec>) {
        let version = spec.version();
        for session in workspace.slot(spec).sessions() {
            if !session.child.is_alive() {
                self.end_now(workspace, &session, End::Kill).await;
            } else if session.version != version && session.in_flight() == 0 {
                self.end_with_care(workspace, &session).await;
            }
        }
    }

    /// A place among the live children; the least recently used idle session makes room.
    async fn place(
        self: &Arc<Self>,
        deadline: Instant,
    ) -> Result<OwnedSemaphorePermit, SessionError> {
        if let Some(place) = self.population.try_place() {
            return Ok(place);
        }
        let mut place = std::pin::pin!(self.population.place());
        let until = deadline.min(Instant::now() + self.settings.patience);
        let wait = async {
            loop {
                let sessions = self.clone();
                // A task of its own: an end once begun is finished, whoever gets the place.
                let evicting = tokio::spawn(async move { sessions.evict_one().await });
                let room = async {
                    if !evicting.await.unwrap_or(false) {
                        self.changed.notified().await;
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
    async fn note_started(self: &Arc<Self>, workspace: &Arc<Workspace>, session: &Arc<Session>) {
        let live = LiveSession {
            server: session.spec.name.as_str().to_owned(),
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
