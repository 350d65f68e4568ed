//! Ending sessions: idle ones, the least recently used, those of removed servers, all of them.

use std::{
    cmp::Reverse,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bridge_model::{Tenant, WorkspaceKey};
use bridge_process::End;
use bridge_protocol::{RawJson, method};
use bridge_state::{ChatStore, Lease, StoreError};
use parking_lot::MutexGuard;
use tokio::time::Instant;

use super::{Class, Ending, ONE_CALL_IDLE, Session, Sessions, Turn, Workspace, agenda::Agenda};
use crate::config::ServerSpec;

/// The longest that `before_end` may take.
const SAVE_TIME: Duration = Duration::from_secs(30);

/// The housekeeper rests so long between two looks, unless somebody wakes it.
const REST: Duration = Duration::from_secs(1);

impl Sessions {
    /// Ends idle sessions and closes unused workspaces, until dropped.
    pub async fn keep_house(self: &Arc<Self>) {
        let mut round = Instant::now() + self.settings.cleanup_interval;
        loop {
            let next = self.agenda().next();
            let wake = next.map_or(round, |next| next.min(round));
            let _ = tokio::time::timeout_at(wake, self.house.notified()).await;
            let now = Instant::now();
            let mut keys = self.agenda().take(now);
            if now >= round {
                keys.extend(self.entries().keys());
                round = now + self.settings.cleanup_interval;
            }
            for key in keys {
                let next = self.look_after(key, now);
                // A call that ends later is looked at by itself.
                self.agenda()
                    .set(key, next.map(|next| next.max(now + REST)));
            }
        }
    }

    /// Ends what is over in a workspace, and closes it where nobody works there. Returns when the
    /// next idle time is over; one that is over while a call works beside it is looked at when that
    /// call ends.
    fn look_after(self: &Arc<Self>, key: WorkspaceKey, now: Instant) -> Option<Instant> {
        let entry = self.entries().get(&key).cloned()?;
        let workspace = entry.open().clone();
        let next = workspace.and_then(|workspace| self.end_idle(&workspace, now));
        if entry.is_unused() {
            drop(self.close_soon(key, entry));
        }
        next
    }

    fn end_idle(self: &Arc<Self>, workspace: &Arc<Workspace>, now: Instant) -> Option<Instant> {
        let draining = self.draining.load(Ordering::Relaxed);
        // A dead child needs no idle time, and a bridge that is about to end has none to give.
        let over = |session: &Session| {
            !session.child.is_alive()
                || session.in_flight() == 0 && (draining || session.idle_end(ONE_CALL_IDLE) <= now)
        };
        let mut next: Option<Instant> = None;
        for session in workspace.sessions() {
            if !over(&session) {
                let end = session.idle_end(ONE_CALL_IDLE);
                if session.in_flight() == 0 {
                    next = Some(next.map_or(end, |next| next.min(end)));
                }
                continue;
            }
            // A call may have used it before we had the turn.
            let turn = workspace.turn_if_idle().filter(|_| over(&session));
            if let Some(turn) = turn {
                let (sessions, workspace) = (self.clone(), workspace.clone());
                // A slow end must not hold up the others'.
                self.tasks.spawn(async move {
                    sessions.end_with_care(&workspace, &session).await;
                    let key = workspace.key;
                    drop((turn, workspace));
                    sessions.call_ended(key);
                });
            }
        }
        next
    }

    fn agenda(&self) -> MutexGuard<'_, Agenda> {
        self.agenda.lock()
    }

    /// From now on sessions end as they get idle, so that other replicas can go on with their chats.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
        self.pool.stop();
        let keys: Vec<_> = self.entries().keys().copied().collect();
        for key in keys {
            self.call_ended(key);
        }
    }

    /// Ends an idle session so that a child of this tenant gets its place; `false` if there is none
    /// that has to give way. In the caller's `own` workspace he has the turn.
    pub(super) async fn evict_one(
        self: &Arc<Self>,
        own: Option<(Arc<Workspace>, Ending)>,
        whose: &Whose,
    ) -> bool {
        let rule = if self.population.at_share(whose) {
            Rule::OwnOnly
        } else {
            Rule::MoreThan(self.population.held_by(&whose.tenant, whose.remote))
        };
        if !matches!(rule, Rule::OwnOnly) && !whose.remote && self.pool.make_room().await {
            return true;
        }
        self.end_one(own, whose, rule).await
    }

    /// The same where the system has no room for one more child: a process of the pool's goes
    /// first. `false` if nothing is idle.
    pub async fn relieve(
        self: &Arc<Self>,
        own: Option<(Arc<Workspace>, Ending)>,
        tenant: Tenant,
        why: String,
    ) -> bool {
        let sessions = self.clone();
        // A task of its own: an end once begun is finished.
        let relieving = self.tasks.spawn(async move {
            let whose = Whose {
                tenant,
                remote: false,
            };
            let relieved =
                sessions.pool.make_room().await || sessions.end_one(own, &whose, Rule::Any).await;
            if relieved {
                tracing::warn!(
                    error = why,
                    "a process could not be started; an idle one was ended"
                );
            }
            relieved
        });
        relieving.await.unwrap_or(false)
    }

    async fn end_one(
        self: &Arc<Self>,
        own: Option<(Arc<Workspace>, Ending)>,
        whose: &Whose,
        rule: Rule,
    ) -> bool {
        let Some(taken) = self.take_idle(own, whose, rule) else {
            return false;
        };
        let session = &taken.session;
        tracing::debug!(server = %session.spec.name, "session gives up its place");
        let how = self.save(&taken.workspace, session).await;
        self.end_unbound(&taken.workspace, session, how).await;
        let key = taken.workspace.key;
        drop(taken);
        self.call_ended(key);
        true
    }

    fn take_idle(
        &self,
        own: Option<(Arc<Workspace>, Ending)>,
        whose: &Whose,
        rule: Rule,
    ) -> Option<Taken> {
        let held = |tenant: &Tenant| self.population.held_by(tenant, whose.remote);
        let open = self.workspaces().into_iter();
        let idle = open.flat_map(|workspace| {
            let sessions = workspace.sessions().into_iter();
            sessions.map(move |session| (workspace.clone(), session))
        });
        let idle = idle
            .filter(|(_, session)| session.in_flight() == 0 && session.is_remote() == whose.remote);
        let mut idle: Vec<_> = idle
            .filter_map(|(workspace, session)| {
                let idle = Idle {
                    alive: session.child.is_alive(),
                    own: session.tenant == whose.tenant,
                    held: held(&session.tenant),
                    class: session.class(),
                    last_used: session.last_used(),
                };
                let rank = idle.rank(rule)?;
                Some((rank, workspace, session))
            })
            .collect();
        idle.sort_by_key(|(rank, ..)| *rank);
        let (own, mut ending) = own.unzip();
        for (_, workspace, session) in idle {
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
                    let key = workspace.key;
                    drop(workspace);
                    sessions.call_ended(key);
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
            let key = workspace.key;
            drop((ending, session, workspace));
            sessions.call_ended(key);
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
        drop(session.give_up_place());
        let (server, child) = (session.spec.name.clone(), session.child.number());
        let pid = session.child.pid();
        tracing::debug!(%server, pid, %status, "session ended");
        let note = move |store: &ChatStore, lease: &Lease| store.session_ended(lease, child);
        self.note(workspace, note).await;
    }

    /// Notes something of the workspace; a failure is logged, since the session itself goes on.
    pub(super) async fn note(
        &self,
        workspace: &Workspace,
        note: impl FnOnce(&ChatStore, &Lease) -> Result<(), StoreError> + Send + 'static,
    ) {
        if workspace.is_lost() {
            return;
        }
        let (store, lease) = (self.store.clone(), workspace.lease.clone());
        let write = move || note(&store, &lease);
        if let Ok(Err(error)) = tokio::task::spawn_blocking(write).await {
            tracing::warn!(job = ?workspace.job.id(), %error, "metadata not written");
        }
    }

    /// A call or a child ended there, so a session may be idle, or the workspace unused.
    pub fn call_ended(&self, at: WorkspaceKey) {
        self.look_at(at);
        self.room.notify_waiters();
    }

    /// Something began or ended there.
    pub(super) fn look_at(&self, key: WorkspaceKey) {
        self.agenda().add(key);
        self.house.notify_one();
    }
}

/// For whom room is made.
#[derive(Clone)]
pub struct Whose {
    /// Whose child wants it.
    pub tenant: Tenant,
    /// For a session with a server elsewhere: only such sessions make room for it.
    pub remote: bool,
}

/// Whose idle sessions may make room.
#[derive(Debug, Clone, Copy)]
enum Rule {
    /// His own: he has as many as one may.
    OwnOnly,
    /// Those of tenants who have more than so many, which is what he has, and his own.
    MoreThan(usize),
    /// Anybody's.
    Any,
}

/// An idle session, as far as it matters who gives way.
struct Idle {
    alive: bool,
    /// Of the tenant for whom room is made.
    own: bool,
    /// How many children its tenant has.
    held: usize,
    class: Class,
    last_used: Instant,
}

impl Idle {
    /// The least gives way first: the dead; then those of callers without a chat; then those of who
    /// has the most, the least recently used first. `None`: it does not.
    fn rank(&self, rule: Rule) -> Option<(bool, Class, Reverse<usize>, bool, Instant)> {
        let gives_way = self.own
            || match rule {
                Rule::OwnOnly => false,
                Rule::MoreThan(own_count) => !self.alive || self.held > own_count,
                Rule::Any => true,
            };
        let held = match rule {
            // With the one that is to come.
            Rule::MoreThan(own_count) if self.own => own_count + 1,
            _ => self.held,
        };
        // Among equals the tenant's own goes, or two would go on ending each other's.
        gives_way.then_some((
            self.alive,
            self.class,
            Reverse(held),
            !self.own,
            self.last_used,
        ))
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
    let call = session.child.request(method::TOOLS_CALL, Some(&params));
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Which of these idle sessions gives way for one more of a tenant who has so many: by whose it
    /// is, how many that one has, and when it was used.
    fn gives_way(
        idle: &[(&'static str, usize, u64)],
        newcomer: (&str, usize),
    ) -> Option<(&'static str, u64)> {
        let began = Instant::now();
        let ranked = idle.iter().filter_map(|(whose, held, used)| {
            let idle = Idle {
                alive: true,
                own: *whose == newcomer.0,
                held: *held,
                class: Class::Lasting,
                last_used: began + Duration::from_secs(*used),
            };
            Some((idle.rank(Rule::MoreThan(newcomer.1))?, (*whose, *used)))
        });
        ranked.min().map(|(_, one)| one)
    }

    #[test]
    fn who_holds_the_most_makes_room() {
        let idle = [("bob", 1, 1), ("mallory", 9, 5), ("mallory", 9, 3)];
        assert_eq!(gives_way(&idle, ("carol", 0)), Some(("mallory", 3)));
        assert_eq!(gives_way(&idle, ("bob", 1)), Some(("mallory", 3)));
        assert_eq!(gives_way(&idle, ("mallory", 9)), Some(("mallory", 3)));
    }

    #[test]
    fn where_the_system_has_no_room_anybody_may_make_it_and_who_has_the_most_does() {
        let rank = |own, held, used| {
            let idle = Idle {
                alive: true,
                own,
                held,
                class: Class::Lasting,
                last_used: Instant::now() + Duration::from_secs(used),
            };
            (idle.rank(Rule::Any), idle.rank(Rule::OwnOnly))
        };
        let (bob, mallory, own) = (rank(false, 1, 1), rank(false, 5, 9), rank(true, 3, 5));
        assert!(mallory.0 < own.0 && own.0 < bob.0);
        assert!(mallory.1.is_none() && bob.1.is_none() && own.1.is_some());
    }

    #[test]
    fn nobody_takes_from_who_has_no_more_than_he() {
        let idle = [("bob", 1, 1), ("carol", 2, 2)];
        assert_eq!(gives_way(&idle, ("mallory", 2)), None);
        assert_eq!(gives_way(&idle, ("dave", 1)), Some(("carol", 2)));
        // Taking turns at each other's would not end.
        let equal = [("bob", 3, 1), ("dave", 2, 2)];
        assert_eq!(gives_way(&equal, ("dave", 2)), Some(("dave", 2)));
        let all_with_one = [("bob", 1, 7), ("carol", 1, 2)];
        assert_eq!(gives_way(&all_with_one, ("dave", 0)), Some(("carol", 2)));
    }
}
