//! Ends sessions: idle ones, the least recently used, those of removed servers, or all of them.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, HashMap, HashSet},
    mem,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bridge_model::{BootTime, Tenant, WorkspaceKey};
use bridge_process::End;
use bridge_protocol::{RawJson, method};
use bridge_state::{ChatStore, Lease, StoreError};
use futures_util::{StreamExt as _, stream};
use tokio::{task::JoinHandle, time::Instant};

use super::{Class, Ending, ONE_CALL_IDLE, Session, Sessions, Turn, Workspace};
use crate::{
    admission::{Permit, Permits, Share, three_quarters},
    config::{ServerSpec, Transport},
};

/// Timeout of `before_end`.
const SAVE_TIME: Duration = Duration::from_secs(30);

/// Minimum interval between two checks of a workspace, unless something has ended there.
const REST: Duration = Duration::from_secs(1);

impl Sessions {
    /// Ends idle sessions and closes unused workspaces, until dropped.
    pub async fn keep_house(self: &Arc<Self>) {
        let mut round = Instant::now() + self.settings.cleanup_interval;
        loop {
            let next = self.agenda.lock().next();
            let wake = next.map_or(round, |next| next.min(round));
            let _ = tokio::time::timeout_at(wake, self.house.notified()).await;
            let now = Instant::now();
            let mut keys = self.agenda.lock().take(now);
            if now >= round {
                keys.extend(self.workspaces.lock().keys());
                round = now + self.settings.cleanup_interval;
            }
            for key in keys {
                let next = self.look_after(key, now);
                // The end of a call causes its own check.
                let next = next.map(|next| next.max(now + REST));
                self.agenda.lock().set(key, next);
            }
        }
    }

    /// Ends the sessions of a workspace whose idle time is over, and closes it if it is unused.
    /// Returns the end of the next idle time; the end of a call causes another check.
    fn look_after(self: &Arc<Self>, key: WorkspaceKey, now: Instant) -> Option<Instant> {
        let entry = self.workspaces.lock().get(&key).cloned()?;
        let workspace = entry.open.lock().clone();
        let next = workspace.and_then(|workspace| self.end_idle(&workspace, now));
        if entry.is_unused() {
            drop(self.close_soon(key, entry));
        }
        next
    }

    fn end_idle(self: &Arc<Self>, workspace: &Arc<Workspace>, now: Instant) -> Option<Instant> {
        let draining = self.draining.load(Ordering::Relaxed);
        // A child that has exited needs no idle time, and during a shutdown all idle sessions end.
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
            // A call may have used it before this task got the turn.
            if let Some(turn) = workspace.turn_if_idle().filter(|_| over(&session)) {
                // A slow end must not delay other ends.
                self.spawn_end(workspace, async move |sessions, workspace| {
                    sessions.end_with_care(&workspace, &session).await;
                    drop(turn);
                });
            }
        }
        next
    }

    /// Ends something in a workspace in a task, which a shutdown waits for.
    fn spawn_end<F: Future<Output = ()> + Send + 'static>(
        self: &Arc<Self>,
        workspace: &Arc<Workspace>,
        end: impl FnOnce(Arc<Self>, Arc<Workspace>) -> F,
    ) -> JoinHandle<()> {
        let (sessions, key) = (self.clone(), workspace.key);
        let end = end(self.clone(), workspace.clone());
        self.tasks.spawn(async move {
            end.await;
            sessions.call_ended(key);
        })
    }

    /// From now on sessions end when they become idle, so that other replicas can continue their
    /// chats.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
        self.pool.stop();
        let keys: Vec<_> = self.workspaces.lock().keys().copied().collect();
        for key in keys {
            self.call_ended(key);
        }
    }

    /// Ends an idle session so that a child of this tenant gets its permit; `false` if no session has
    /// to end. In the caller's `own` workspace the caller has the turn.
    pub(super) async fn evict_one(
        self: &Arc<Self>,
        own: Option<(Arc<Workspace>, Ending)>,
        requester: &Requester,
    ) -> bool {
        let permits = self.population.permits(requester.remote);
        let rule = if permits.is_at_share(&requester.tenant) {
            Rule::OwnOnly
        } else {
            Rule::MoreThan(permits.held_by(&requester.tenant))
        };
        if !matches!(rule, Rule::OwnOnly) && !requester.remote && self.pool.make_room().await {
            return true;
        }
        self.end_one(own, requester, rule).await
    }

    /// The same if the system has no room for another child: a warm process ends first. `false` if
    /// nothing is idle.
    pub async fn relieve(
        self: &Arc<Self>,
        own: Option<(Arc<Workspace>, Ending)>,
        tenant: Tenant,
        why: String,
    ) -> bool {
        let sessions = self.clone();
        // A separate task, so that an end that has begun is finished.
        let relieving = self.tasks.spawn(async move {
            let remote = false;
            let requester = Requester { tenant, remote };
            let relieved = sessions.pool.make_room().await
                || sessions.end_one(own, &requester, Rule::Any).await;
            if relieved {
                tracing::warn!(
                    error = why,
                    "a process could not be started; an idle one was stopped"
                );
            }
            relieved
        });
        relieving.await.unwrap_or(false)
    }

    async fn end_one(
        self: &Arc<Self>,
        own: Option<(Arc<Workspace>, Ending)>,
        requester: &Requester,
        rule: Rule,
    ) -> bool {
        let Some(taken) = self.take_idle(own, requester, rule) else {
            return false;
        };
        let session = &taken.session;
        tracing::debug!(server = %session.spec.name, "idle session stopped to make room");
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
        requester: &Requester,
        rule: Rule,
    ) -> Option<Taken> {
        let permits = self.population.permits(requester.remote);
        let mut idle = Vec::new();
        for workspace in self.workspaces() {
            for session in workspace.sessions() {
                let facts = Idle {
                    alive: session.child.is_alive(),
                    own: session.tenant == requester.tenant,
                    held: permits.held_by(&session.tenant),
                    class: session.class(),
                    last_used: session.last_used(),
                };
                let is_idle = session.in_flight() == 0 && session.is_remote() == requester.remote;
                if let Some(rank) = facts.rank(rule).filter(|_| is_idle) {
                    idle.push((rank, workspace.clone(), session));
                }
            }
        }
        idle.sort_by_key(|(rank, ..)| *rank);
        let (own, mut ending) = own.unzip();
        for (_, workspace, session) in idle {
            // In the caller's own workspace, the caller has the turn.
            let inside = own.as_ref().is_some_and(|own| Arc::ptr_eq(own, &workspace));
            let turn = workspace.turn_if_idle();
            let may = if inside {
                ending.is_some()
            } else {
                turn.is_some()
            };
            if may && workspace.unbind_idle(&session) {
                return Some(Taken {
                    session,
                    workspace,
                    _turn: turn,
                    _ending: ending.take().filter(|_| inside),
                });
            }
        }
        None
    }

    /// Ends the sessions of servers that are gone or changed, after their calls.
    pub fn end_outdated(self: &Arc<Self>, current: impl Fn(&Session) -> bool) {
        for workspace in self.workspaces() {
            let mut sessions = workspace.sessions();
            sessions.retain(|session| !current(session));
            for session in sessions {
                self.spawn_end(&workspace, async move |sessions, workspace| {
                    sessions.end_when_unused(&workspace, &session).await;
                });
            }
        }
    }

    /// Ends a session in its turn. A call with pending input uses the session without a turn.
    async fn end_when_unused(self: &Arc<Self>, workspace: &Arc<Workspace>, session: &Arc<Session>) {
        loop {
            let mut ended = std::pin::pin!(self.room.notified());
            // Registered before the check, so that a call that ends meanwhile is noticed.
            ended.as_mut().enable();
            let turn = workspace.turn_alone().await;
            if session.in_flight() == 0 || !session.child.is_alive() {
                self.end_with_care(workspace, session).await;
                return;
            }
            drop(turn);
            ended.await;
        }
    }

    /// Ends every session at once, with `before_end`, and closes all workspaces.
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
        // Waits also for ends that began before.
        self.tasks.close();
        self.tasks.wait().await;
        for closed in self.close_unused() {
            let _ = closed.await;
        }
        self.pool.end_all().await;
    }

    /// Ends a session in the workspace in which the caller has a turn. If the caller is cancelled, the
    /// end continues, and the next turn waits for it.
    pub(super) async fn end_under_turn(
        self: &Arc<Self>,
        workspace: &Arc<Workspace>,
        session: Arc<Session>,
    ) {
        let ending = workspace.ending().await;
        let end = self.spawn_end(workspace, async move |sessions, workspace| {
            if !session.child.is_alive() {
                sessions.end_now(&workspace, &session, End::Kill).await;
            } else if workspace.unbind_idle(&session) {
                let how = sessions.save(&workspace, &session).await;
                sessions.end_unbound(&workspace, &session, how).await;
            }
            drop(ending);
        });
        let _ = end.await;
    }

    /// Unbinds it, calls `before_end` and ends it. The caller has the workspace's turn.
    async fn end_with_care(self: &Arc<Self>, workspace: &Arc<Workspace>, session: &Arc<Session>) {
        if workspace.unbind(session) {
            let how = self.save(workspace, session).await;
            self.end_unbound(workspace, session, how).await;
        }
    }

    /// Unbinds it, ends it and waits until its processes are gone; `false` if it was unbound before.
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
        drop(session.give_up_permit());
        let (server, child) = (session.spec.name.clone(), session.child.parts.number);
        let pid = session.child.parts.body.pid();
        tracing::debug!(%server, pid, %status, "session ended");
        let note = move |store: &ChatStore, lease: &Lease| store.session_ended(lease, child);
        self.note(workspace, note).await;
    }

    /// Writes metadata of the workspace; a failure is logged, because the session itself continues.
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
            tracing::warn!(job = ?workspace.job.id(), %error, "workspace metadata not written");
        }
    }

    /// A call or a child has ended there: a session may be idle, or the workspace unused.
    pub fn call_ended(&self, at: WorkspaceKey) {
        self.look_at(at);
        self.room.notify_waiters();
    }

    /// Schedules a check: something has begun or ended there.
    pub(super) fn look_at(&self, key: WorkspaceKey) {
        self.agenda.lock().add(key);
        self.house.notify_one();
    }
}

/// The caller that needs room.
#[derive(Clone)]
pub struct Requester {
    /// The tenant of its child.
    pub tenant: Tenant,
    /// Whether it is for a session with a remote server: only such sessions make room for it.
    pub remote: bool,
}

/// The tenants whose idle sessions may be ended to make room.
#[derive(Debug, Clone, Copy)]
enum Rule {
    /// Only the requester, because it has its full share.
    OwnOnly,
    /// The requester, and tenants with more children than the requester, which has this number.
    MoreThan(usize),
    /// All tenants.
    Any,
}

/// An idle session, with the properties that determine the order of ends.
struct Idle {
    alive: bool,
    /// Whether it belongs to the requester.
    own: bool,
    /// The number of children of its tenant.
    held: usize,
    class: Class,
    last_used: Instant,
}

impl Idle {
    /// The session with the least rank ends first: exited ones; then those of callers without a chat;
    /// then those of the tenant with the most children, the least recently used first. `None`: it does
    /// not end.
    fn rank(&self, rule: Rule) -> Option<(bool, Class, Reverse<usize>, bool, Instant)> {
        let gives_way = self.own
            || match rule {
                Rule::OwnOnly => false,
                Rule::MoreThan(own_count) => !self.alive || self.held > own_count,
                Rule::Any => true,
            };
        let held = match rule {
            // Including the new child.
            Rule::MoreThan(own_count) if self.own => own_count + 1,
            _ => self.held,
        };
        // Among equals the requester's session ends, otherwise two tenants would end each other's
        // sessions again and again.
        gives_way.then_some((
            self.alive,
            self.class,
            Reverse(held),
            !self.own,
            self.last_used,
        ))
    }
}

/// An idle session that is no longer lent to calls, and the guard that keeps others from its
/// workspace.
struct Taken {
    session: Arc<Session>,
    workspace: Arc<Workspace>,
    _turn: Option<Turn>,
    _ending: Option<Ending>,
}

impl Sessions {
    /// Lets the child save its state (`before_end`), and returns how to end it. If its folder was
    /// taken over, nothing is saved.
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

// The workspaces to check next: those in which something has ended, and those in which an idle time is
// over. A call causes one check of its own workspace, however many workspaces there are.

/// The workspaces to check, and when.
#[derive(Default)]
pub struct Agenda {
    now: HashSet<WorkspaceKey>,
    later: BTreeSet<(Instant, WorkspaceKey)>,
    /// The time of each workspace in `later`.
    due: HashMap<WorkspaceKey, Instant>,
}

impl Agenda {
    /// Schedules a check as soon as possible.
    pub fn add(&mut self, key: WorkspaceKey) {
        self.now.insert(key);
    }

    /// Schedules the check at this time instead of an earlier schedule; `None`: not until something
    /// ends.
    pub fn set(&mut self, key: WorkspaceKey, at: Option<Instant>) {
        let before = match at {
            Some(at) => self.due.insert(key, at),
            None => self.due.remove(&key),
        };
        if let Some(before) = before {
            self.later.remove(&(before, key));
        }
        if let Some(at) = at {
            self.later.insert((at, key));
        }
    }

    /// The time of the next check.
    pub fn next(&self) -> Option<Instant> {
        self.later.first().map(|(at, _)| *at)
    }

    /// Removes and returns the workspaces whose check is due.
    pub fn take(&mut self, now: Instant) -> HashSet<WorkspaceKey> {
        let mut due = mem::take(&mut self.now);
        while let Some((at, key)) = self.later.first().copied()
            && at <= now
        {
            self.set(key, None);
            due.insert(key);
        }
        due
    }
}

// Lost leases: this bridge did not respond for so long that another one has taken a folder over. Its
// children there end at once, and this bridge writes nothing more to the folder.

/// Number of leases that are read concurrently: network storage has a high latency, but answers many
/// requests at once.
const AT_ONCE: usize = 16;

impl Sessions {
    /// Whether the bridge still holds the lease; if not, its children there are ended before this
    /// returns.
    ///
    /// A lease that cannot be read counts as lost when this has lasted for half of the time to live
    /// and there are other bridges, which may have taken it over.
    pub async fn still_held(self: &Arc<Self>, workspace: &Arc<Workspace>) -> bool {
        let (store, lease) = (self.store.clone(), workspace.lease.clone());
        let looked = BootTime::now();
        let mut look = tokio::task::spawn_blocking(move || store.holds(&lease));
        let read = loop {
            match tokio::time::timeout(self.patience(workspace), &mut look).await {
                Ok(Ok(read)) => break read,
                Ok(Err(_)) => return true,
                // The folder does not respond.
                Err(_) if self.is_too_long_ago(workspace) => {
                    tracing::warn!(
                        job = ?workspace.job.id(),
                        "the lease could not be read in time"
                    );
                    break Ok(false);
                }
                Err(_) => {}
            }
        };
        let held = match read {
            Ok(true) => {
                workspace.seen_held(looked);
                true
            }
            Ok(false) => false,
            Err(error) => {
                tracing::warn!(job = ?workspace.job.id(), %error, "the lease cannot be read");
                !self.is_too_long_ago(workspace)
            }
        };
        if !held {
            self.fence(workspace).await;
        }
        held
    }

    fn is_too_long_ago(&self, workspace: &Workspace) -> bool {
        let most = self.store.ttl() / 2;
        self.children.is_leashed() && workspace.held_at().elapsed() > most
    }

    /// The time until the next check.
    fn patience(&self, workspace: &Workspace) -> Duration {
        let ttl = self.store.ttl();
        let left = (workspace.held_at() + ttl / 2).remaining();
        left.max(ttl / 8)
    }

    /// Checks the lease of every open workspace; called after each renewal.
    pub async fn check_leases(self: &Arc<Self>) {
        let sessions = self.clone();
        let look = stream::iter(self.workspaces()).for_each_concurrent(AT_ONCE, move |workspace| {
            let sessions = sessions.clone();
            async move {
                sessions.still_held(&workspace).await;
            }
        });
        tokio::join!(self.pool.check_leases(), look);
    }

    async fn fence(self: &Arc<Self>, workspace: &Arc<Workspace>) {
        if workspace.lose() {
            tracing::warn!(
                job = ?workspace.job.id(),
                fence = workspace.lease.fence,
                "another replica took over this chat, or may have; its processes here are stopped"
            );
        }
        for entry in self.workspaces.lock().values() {
            let _ = entry
                .open
                .lock()
                .take_if(|open| Arc::ptr_eq(open, workspace));
        }
        for session in workspace.sessions() {
            self.end_now(workspace, &session, End::Kill).await;
        }
        self.call_ended(workspace.key);
    }
}

// The limits on stateful children, in total and per tenant.

/// With fewer permits than this, none is reserved for other tenants.
const FEW: usize = 4;

/// Permits for live children.
pub struct Population {
    /// Processes of this machine.
    local: Permits,
    /// Sessions with remote servers use no processes of this machine, so the two kinds make no room
    /// for each other.
    elsewhere: Permits,
    most: usize,
    /// Limit per tenant, if configured.
    per_user: Option<usize>,
}

impl Population {
    /// Creates `most` permits, at least one; one tenant gets at most `per_user`, or else three
    /// quarters.
    pub fn new(most: usize, per_user: Option<usize>) -> Self {
        let most = most.max(1);
        let share = share(most, per_user);
        Self {
            local: Permits::new(most, share),
            elsewhere: Permits::new(most, share),
            most,
            per_user,
        }
    }

    /// The permits of children of this server.
    pub fn permits_for(&self, spec: &ServerSpec) -> &Permits {
        self.permits(matches!(spec.transport, Transport::Remote(_)))
    }

    /// The permits of sessions with remote servers if `remote`, else of processes.
    pub fn permits(&self, remote: bool) -> &Permits {
        if remote { &self.elsewhere } else { &self.local }
    }

    /// Whether more processes run than the limit allows.
    pub fn is_over(&self) -> bool {
        self.local.is_over()
    }

    /// Sets the limit of processes, between one and the original one.
    pub fn set_limit(&self, limit: usize) {
        let limit = limit.clamp(1, self.most);
        self.local.set_limit(limit, share(limit, self.per_user));
    }

    /// A permit for a warm process; the last free one is left for calls.
    pub fn try_spare_permit(&self) -> Option<Permit> {
        self.local.try_enter_spare(&Tenant::bridge())
    }
}

fn share(limit: usize, per_user: Option<usize>) -> Share {
    let usual = if limit < FEW {
        limit
    } else {
        three_quarters(limit)
    };
    Share::each(per_user.unwrap_or(usual))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The idle session that ends to make room for `newcomer`, a tenant and its number of children.
    /// Each entry of `idle` has the tenant, its number of children, and the time of the last use.
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
        // Ending each other's sessions in turn would never stop.
        let equal = [("bob", 3, 1), ("dave", 2, 2)];
        assert_eq!(gives_way(&equal, ("dave", 2)), Some(("dave", 2)));
        let all_with_one = [("bob", 1, 7), ("carol", 1, 2)];
        assert_eq!(gives_way(&all_with_one, ("dave", 0)), Some(("carol", 2)));
    }
}

#[cfg(test)]
mod agenda_tests {
    use std::time::Duration;

    use bridge_model::Principal;

    use super::*;

    #[test]
    fn a_call_costs_one_look_at_its_own_workspace() {
        let key = |chat: &str| WorkspaceKey::chat(&Principal::Anonymous, chat, None);
        let began = Instant::now();
        let after = |seconds| began + Duration::from_secs(seconds);
        let mut agenda = Agenda::default();
        for chat in 0..1000 {
            agenda.set(key(&chat.to_string()), Some(after(100 + chat)));
        }
        agenda.add(key("500"));
        assert_eq!(agenda.take(after(1)), [key("500")].into());
        agenda.set(key("500"), Some(after(2000)));
        assert_eq!(agenda.take(after(1)), [].into());
        assert_eq!(agenda.next(), Some(after(100)));
        assert_eq!(agenda.take(after(101)), [key("0"), key("1")].into());
        assert_eq!(agenda.take(after(1500)).len(), 997, "each of the rest once");
        assert_eq!(agenda.next(), Some(after(2000)));
        agenda.set(key("500"), None);
        assert_eq!(agenda.next(), None);
        assert!(agenda.due.is_empty());
    }
}

#[cfg(test)]
mod population_tests {
    use super::*;

    fn free(population: &Population) -> usize {
        let taken = std::iter::from_fn(|| population.local.try_enter(&Tenant::bridge()));
        taken.collect::<Vec<_>>().len()
    }

    #[test]
    fn one_tenant_leaves_a_quarter_to_others_where_there_is_one() {
        for (permits, own) in [(1, 1), (3, 3), (4, 3), (8, 6), (100, 75)] {
            assert_eq!(free(&Population::new(permits, None)), own, "of {permits}");
        }
        assert_eq!(free(&Population::new(8, Some(8))), 8);
        assert_eq!(free(&Population::new(8, Some(2))), 2);
    }

    #[test]
    fn a_limit_is_lowered_and_raised_as_far_as_it_was() {
        let population = Population::new(10, Some(10));
        for (limit, permits) in [(7, 7), (7, 7), (3, 3), (6, 6), (100, 10), (0, 1), (10, 10)] {
            population.set_limit(limit);
            assert_eq!(free(&population), permits);
        }
    }
}
