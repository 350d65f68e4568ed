//! Ending sessions: idle ones, the least recently used, those of removed servers, all of them.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::time::Instant;

use super::{Ending, ONE_CALL_IDLE, Session, Sessions, Turn, Workspace};
use crate::{child::End, config::ServerSpec, model::RawJson, store::Metadata};

/// The longest that `before_end` may take.
const SAVE_TIME: Duration = Duration::from_secs(30);

/// The housekeeper rests so long between two looks, unless somebody wakes it.
const REST: Duration = Duration::from_secs(1);

impl Sessions {
    /// Ends idle sessions and closes unused workspaces, until dropped.
    pub async fn keep_house(self: &Arc<Self>) {
        let mut looked = Instant::now();
        loop {
            let latest = looked + self.settings.cleanup_interval;
            let next = self.next_idle_end(looked);
            let wake = next.map_or(latest, |next| next.max(looked + REST).min(latest));
            let _ = tokio::time::timeout_at(wake, self.house.notified()).await;
            looked = Instant::now();
            self.end_idle(looked);
            drop(self.close_unused());
        }
    }

    /// When the next session's time is over. Those whose time was over at the last look are left
    /// out: a call works beside them, and its end wakes the housekeeper.
    fn next_idle_end(&self, looked: Instant) -> Option<Instant> {
        let sessions = self.workspaces().into_iter();
        let idle = sessions
            .flat_map(|workspace| workspace.sessions())
            .filter(|session| session.in_flight() == 0);
        let ends = idle.map(|session| session.idle_end(ONE_CALL_IDLE));
        ends.filter(|end| *end > looked).min()
    }

    fn end_idle(self: &Arc<Self>, now: Instant) {
        let draining = self.draining.load(Ordering::Relaxed);
        // A dead child needs no idle time, and a bridge that is about to end has none to give.
        let over = |session: &Session| {
            !session.child.is_alive()
                || session.in_flight() == 0 && (draining || session.idle_end(ONE_CALL_IDLE) <= now)
        };
        for workspace in self.workspaces() {
            for session in workspace.sessions() {
                if !over(&session) {
                    continue;
                }
                // A call may have used it before we had the turn.
                let turn = workspace.turn_if_idle().filter(|_| over(&session));
                if let Some(turn) = turn {
                    let (sessions, workspace) = (self.clone(), workspace.clone());
                    // A slow end must not hold up the others'.
                    self.tasks.spawn(async move {
                        sessions.end_with_care(&workspace, &session).await;
                        drop((turn, workspace));
                        sessions.call_ended();
                    });
                }
            }
        }
    }

    /// From now on sessions end as they get idle, so that other replicas can go on with their chats.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
        self.pool.stop();
        self.call_ended();
    }

    /// Ends the idle session that was used longest ago, the dead first and then those of callers
    /// without a chat; `false` if none is idle. In the caller's `own` workspace he has the turn.
    pub(super) async fn evict_one(self: &Arc<Self>, own: Option<(Arc<Workspace>, Ending)>) -> bool {
        if self.pool.make_room().await {
            return true;
        }
        let Some(taken) = self.take_idle(own) else {
            return false;
        };
        let session = &taken.session;
        tracing::debug!(server = %session.spec.name, "session gives up its place");
        let how = self.save(&taken.workspace, session).await;
        self.end_unbound(&taken.workspace, session, how).await;
        drop(taken);
        self.call_ended();
        true
    }

    fn take_idle(&self, own: Option<(Arc<Workspace>, Ending)>) -> Option<Taken> {
        let open = self.workspaces().into_iter();
        let mut idle: Vec<_> = open
            .flat_map(|workspace| {
                let sessions = workspace.sessions().into_iter();
                sessions.map(move |session| (workspace.clone(), session))
            })
            .filter(|(_, session)| session.in_flight() == 0)
            .collect();
        idle.sort_by_key(|(_, session)| {
            let alive = session.child.is_alive();
            (alive, session.class(), session.last_used())
        });
        let (own, mut ending) = own.unzip();
        for (workspace, session) in idle {
            let inside = own.as_ref().is_some_and(|own| Arc::ptr_eq(own, &workspace));
            let right = if inside {
                ending.take().map(Right::Beside)
            } else {
                workspace.turn_if_idle().map(Right::Alone)
            };
            let Some(right) = right else { continue };
            if workspace.unbind_idle(&session) {
                return Some(Taken {
                    session,
                    workspace,
                    _right: right,
                });
            }
            if let Right::Beside(unused) = right {
                ending = Some(unused);
            }
        }
        None
    }

    /// Ends the sessions of servers that are no longer configured, or otherwise, as their calls end.
    pub fn end_outdated(self: &Arc<Self>, current: impl Fn(&Session) -> bool) {
        for workspace in self.workspaces() {
            for session in workspace
                .sessions()
                .into_iter()
                .filter(|session| !current(session))
            {
                let (sessions, workspace) = (self.clone(), workspace.clone());
                self.tasks.spawn(async move {
                    sessions.end_when_unused(&workspace, &session).await;
                    drop(workspace);
                    sessions.call_ended();
                });
            }
        }
    }

    /// Ends a session in its turn. A call whose caller was asked something uses it without a turn.
    async fn end_when_unused(self: &Arc<Self>, workspace: &Arc<Workspace>, session: &Arc<Session>) {
        loop {
            let mut ended = std::pin::pin!(self.room.notified());
            // Before the look: a call that ends during it is heard.
            ended.as_mut().enable();
            let turn = workspace.turn(&alone(&session.spec)).await;
            if session.in_flight() == 0 || !session.child.is_alive() {
                self.end_with_care(workspace, session).await;
                return;
            }
            drop(turn);
            ended.await;
        }
    }

    /// Ends every session at once, saving what can be saved, and closes all workspaces.
    pub async fn end_all(self: &Arc<Self>) {
        self.pool.stop();
        for workspace in self.workspaces() {
            for session in workspace.sessions() {
                let (sessions, workspace) = (self.clone(), workspace.clone());
                self.tasks.spawn(async move {
                    sessions.end_with_care(&workspace, &session).await;
                });
            }
        }
        // Ends that others began are among them.
        self.tasks.close();
        self.tasks.wait().await;
        for closed in self.close_unused() {
            let _ = closed.await;
        }
        self.pool.end_all().await;
    }

    /// Ends a session in the workspace where the caller has a turn. The end goes on where the
    /// caller is given up, and then keeps the next turn waiting.
    pub(super) async fn end_under_turn(
        self: &Arc<Self>,
        workspace: &Arc<Workspace>,
        session: Arc<Session>,
    ) {
        let ending = workspace.ending().await;
        let (sessions, workspace) = (self.clone(), workspace.clone());
        let end = self.tasks.spawn(async move {
            if !session.child.is_alive() {
                sessions.end_now(&workspace, &session, End::Kill).await;
            } else if workspace.unbind_idle(&session) {
                let how = sessions.save(&workspace, &session).await;
                sessions.end_unbound(&workspace, &session, how).await;
            }
            drop((ending, session, workspace));
            sessions.call_ended();
        });
        let _ = end.await;
    }

    /// Unbinds it, lets it save (`before_end`) and ends it. The caller holds the workspace's turn.
    async fn end_with_care(self: &Arc<Self>, workspace: &Arc<Workspace>, session: &Arc<Session>) {
        if workspace.unbind(session) {
            let how = self.save(workspace, session).await;
            self.end_unbound(workspace, session, how).await;
        }
    }

    /// Unbinds it, ends it and waits until nothing is left; `false` if somebody did already.
    pub async fn end_now(
        self: &Arc<Self>,
        workspace: &Arc<Workspace>,
        session: &Arc<Session>,
        how: End,
    ) -> bool {
        let unbound = workspace.unbind(session);
        if unbound {
            self.end_unbound(workspace, session, how).await;
        }
        unbound
    }

    async fn end_unbound(
        self: &Arc<Self>,
        workspace: &Arc<Workspace>,
        session: &Arc<Session>,
        how: End,
    ) {
        let status = session.child.end(how).await;
        if let Some(place) = session.give_up_place() {
            self.population.give_back(place);
        }
        let (server, child) = (session.spec.name.clone(), session.child.number());
        let pid = session.child.pid();
        tracing::debug!(%server, pid, %status, "session ended");
        self.update_metadata(workspace, move |metadata| {
            let other = |live: &crate::store::LiveSession| live.number != child;
            metadata.live_sessions.retain(other);
        })
        .await;
    }

    /// Changes the metadata; a failure is logged, since the session itself goes on.
    pub async fn update_metadata(
        self: &Arc<Self>,
        workspace: &Arc<Workspace>,
        change: impl FnOnce(&mut Metadata) + Send + 'static,
    ) {
        if workspace.is_lost() {
            return;
        }
        let (store, job) = (self.store.clone(), workspace.job.clone());
        let write = move || store.update_metadata(&job, change).map(drop);
        if let Ok(Err(error)) = tokio::task::spawn_blocking(write).await {
            tracing::warn!(job = ?workspace.job.id(), %error, "metadata not written");
        }
    }

    /// A call or a child ended, so a session may be idle, or a workspace unused.
    pub fn call_ended(&self) {
        self.house.notify_one();
        self.room.notify_waiters();
    }
}

/// An idle session that nobody else gets any more.
struct Taken {
    session: Arc<Session>,
    workspace: Arc<Workspace>,
    _right: Right,
}

/// What lets us end a session in a workspace. Dropping it lets others work there.
enum Right {
    Alone(#[expect(dead_code, reason = "held, not used")] Turn),
    Beside(Ending),
}

impl Sessions {
    /// Lets the child save what it holds (`before_end`), and says how to end it. One whose folder
    /// is another's by now saves nothing.
    async fn save(self: &Arc<Self>, workspace: &Arc<Workspace>, session: &Session) -> End {
        if !self.still_held(workspace).await {
            return End::Kill;
        }
        save(session).await;
        End::Gracefully(self.children.kill_grace())
    }
}

async fn save(session: &Session) {
    let alive = session.child.is_alive();
    let Some(before_end) = session.spec.before_end.as_ref().filter(|_| alive) else {
        return;
    };
    let name = serde_json::Value::from(before_end.tool.as_str());
    let params = format!(
        r#"{{"name":{name},"arguments":{}}}"#,
        before_end.arguments.as_str()
    );
    let Ok(params) = RawJson::parse(params.into()) else {
        return;
    };
    let call = session.child.request("tools/call", Some(&params));
    let outcome = tokio::time::timeout(SAVE_TIME.min(session.spec.timeout), call).await;
    if !matches!(outcome, Ok(Ok(Ok(_)))) {
        tracing::warn!(server = %session.spec.name, tool = before_end.tool, "before_end failed");
    }
}

/// The same server, but alone in the workspace while it ends.
fn alone(spec: &ServerSpec) -> ServerSpec {
    ServerSpec {
        concurrency: None,
        ..spec.clone()
    }
}
