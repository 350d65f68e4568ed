//! Ending sessions: idle ones, the least recently used, those of removed servers, all of them.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{ONE_CALL_IDLE, Session, Sessions, Workspace};
use crate::{child::End, config::ServerSpec, model::RawJson, store::Metadata};

/// The longest that `before_end` may take.
const SAVE_TIME: Duration = Duration::from_secs(30);

impl Sessions {
    /// Ends idle sessions and closes unused workspaces, until dropped.
    pub async fn keep_house(self: &Arc<Self>) {
        loop {
            let sessions = self
                .workspaces()
                .into_iter()
                .flat_map(|workspace| workspace.sessions());
            let idle = sessions.filter(|session| session.in_flight() == 0);
            let next = idle.map(|session| session.idle_end(ONE_CALL_IDLE)).min();
            let latest = Instant::now() + self.settings.cleanup_interval;
            let wake = next.map_or(latest, |next| next.min(latest));
            let _ = tokio::time::timeout_at(wake, self.changed.notified()).await;
            self.end_idle();
            drop(self.close_unused());
        }
    }

    fn end_idle(self: &Arc<Self>) {
        let now = Instant::now();
        for workspace in self.workspaces() {
            for session in workspace.sessions() {
                let over = session.in_flight() == 0 && session.idle_end(ONE_CALL_IDLE) <= now;
                // A dead child needs no idle time.
                if !over && session.child.is_alive() {
                    continue;
                }
                if let Some(turn) = workspace.turn_if_idle() {
                    let (sessions, workspace) = (self.clone(), workspace.clone());
                    // A slow end must not hold up the others'.
                    tokio::spawn(async move {
                        sessions.end_with_care(&workspace, &session).await;
                        drop((turn, workspace));
                        sessions.changed.notify_one();
                    });
                }
            }
        }
    }

    /// Ends the idle session that was used longest ago, callers without a chat first; `false` if
    /// none is idle.
    pub(super) async fn evict_one(self: &Arc<Self>) -> bool {
        let open = self.workspaces().into_iter();
        let mut idle: Vec<_> = open
            .flat_map(|workspace| {
                let sessions = workspace.sessions().into_iter();
                sessions.map(move |session| (workspace.clone(), session))
            })
            .filter(|(_, session)| session.in_flight() == 0)
            .collect();
        idle.sort_by_key(|(_, session)| (session.class(), session.last_used()));
        for (workspace, session) in idle {
            let Some(_turn) = workspace.turn_if_idle() else {
                continue;
            };
            tracing::debug!(server = %session.spec.name, "session gives up its place");
            if self.end_with_care(&workspace, &session).await {
                return true;
            }
        }
        false
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
                tokio::spawn(async move {
                    let turn = workspace.turn(&alone(&session.spec)).await;
                    sessions.end_with_care(&workspace, &session).await;
                    drop((turn, workspace));
                    sessions.changed.notify_one();
                });
            }
        }
    }

    /// Ends every session at once, saving what can be saved, and closes all workspaces.
    pub async fn end_all(self: &Arc<Self>) {
        let mut ending = Vec::new();
        for workspace in self.workspaces() {
            for session in workspace.sessions() {
                let (sessions, workspace) = (self.clone(), workspace.clone());
                ending.push(tokio::spawn(async move {
                    sessions.end_with_care(&workspace, &session).await;
                }));
            }
        }
        for end in ending {
            let _ = end.await;
        }
        for closed in self.close_unused() {
            let _ = closed.await;
        }
    }

    /// Lets it save (`before_end`), then ends it. The caller holds the workspace's turn.
    pub(super) async fn end_with_care(
        self: &Arc<Self>,
        workspace: &Arc<Workspace>,
        session: &Arc<Session>,
    ) -> bool {
        if session.child.is_alive() {
            save(session).await;
        }
        let grace = self.children.kill_grace();
        self.end_now(workspace, session, End::Gracefully(grace))
            .await
    }

    /// Unbinds it, ends it and waits until nothing is left; `false` if somebody did already.
    pub async fn end_now(
        self: &Arc<Self>,
        workspace: &Arc<Workspace>,
        session: &Arc<Session>,
        how: End,
    ) -> bool {
        if !workspace.unbind(session) {
            return false;
        }
        let status = session.child.end(how).await;
        if let Some(place) = session.give_up_place() {
            self.population.give_back(place);
        }
        let (server, pid) = (session.spec.name.clone(), session.child.pid());
        tracing::debug!(%server, pid, %status, "session ended");
        self.update_metadata(workspace, move |metadata| {
            let other = |live: &crate::store::LiveSession| live.pid != pid;
            metadata.live_sessions.retain(other);
        })
        .await;
        true
    }

    /// Changes the metadata; a failure is logged, since the session itself goes on.
    pub async fn update_metadata(
        self: &Arc<Self>,
        workspace: &Arc<Workspace>,
        change: impl FnOnce(&mut Metadata) + Send + 'static,
    ) {
        let (store, job) = (self.store.clone(), workspace.job.clone());
        let write = move || store.update_metadata(&job, change).map(drop);
        if let Ok(Err(error)) = tokio::task::spawn_blocking(write).await {
            tracing::warn!(job = ?workspace.job.id(), %error, "metadata not written");
        }
    }

    /// Wakes the housekeeper: a call ended, so a session is idle or a workspace unused.
    pub fn call_ended(&self) {
        self.changed.notify_one();
    }
}

async fn save(session: &Session) {
    let Some(before_end) = &session.spec.before_end else {
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
