//! Ending sessions: idle ones, the least recently used, those of removed servers, all of them.

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
use parking_lot::MutexGuard;
use tokio::time::Instant;

use super::{Class, Ending, ONE_CALL_IDLE, Session, Sessions, Turn, Workspace};
use crate::{
    admission::{Permit, Permits, Share, three_quarters},
    config::{ServerSpec, Transport},
};

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

    /// Ends an idle session so that a child of this tenant gets its permit; `false` if there is none
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
        whose: &Whose,
        rule: Rule,
    ) -> bool {
        let Some(taken) = self.take_idle(own, whose, rule) else {
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
                ending.take().map(Right::Unused)
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
            if let Right::Unused(unused) = right {
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
        drop(session.give_up_permit());
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
            tracing::warn!(job = ?workspace.job.id(), %error, "workspace metadata not written");
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
    Unused(Ending),
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

// Which workspaces the housekeeper looks at next: those in which something has ended, and those in
// which an idle time is over. A call costs one look at its own workspace, however many there are.

/// What is to be looked at, and when.
#[derive(Default)]
pub struct Agenda {
    now: HashSet<WorkspaceKey>,
    later: BTreeSet<(Instant, WorkspaceKey)>,
    /// When each of those in `later` is due.
    due: HashMap<WorkspaceKey, Instant>,
}

impl Agenda {
    /// As soon as possible.
    pub fn add(&mut self, key: WorkspaceKey) {
        self.now.insert(key);
    }

    /// At this time, and no longer at the one that was set before; `None`: not until something ends.
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

    /// When the next one is due.
    pub fn next(&self) -> Option<Instant> {
        self.later.first().map(|(at, _)| *at)
    }

    /// Those that are due.
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

// Leases that were lost: this bridge did not answer for so long that another has taken a folder
// over. Its children here end at once, and nothing more is written there in its name.

/// Leases that are read at the same time: storage in a network answers one in a while, and many at
/// once.
const AT_ONCE: usize = 16;

impl Sessions {
    /// Whether we may still work there; where not, its children are ended before this returns.
    ///
    /// A lease that cannot be read is taken for lost once that has lasted for half of the time to
    /// live and others are there: they may have taken it over. Alone, it is nobody else's.
    pub async fn still_held(self: &Arc<Self>, workspace: &Arc<Workspace>) -> bool {
        let (store, lease) = (self.store.clone(), workspace.lease.clone());
        let looked = BootTime::now();
        let mut look = tokio::task::spawn_blocking(move || store.holds(&lease));
        let held = loop {
            let patience = self.patience(workspace);
            match tokio::time::timeout(patience, &mut look).await {
                Ok(held) => break held,
                // The folder hangs.
                Err(_) if self.is_too_long_ago(workspace) => {
                    tracing::warn!(
                        job = ?workspace.job.id(),
                        "the lease could not be read in time"
                    );
                    self.fence(workspace).await;
                    return false;
                }
                Err(_) => {}
            }
        };
        match held {
            Ok(Ok(true)) => {
                workspace.seen_held(looked);
                true
            }
            Ok(Ok(false)) => {
                self.fence(workspace).await;
                false
            }
            Ok(Err(error)) => {
                tracing::warn!(job = ?workspace.job.id(), %error, "the lease cannot be read");
                let held = !self.is_too_long_ago(workspace);
                if !held {
                    self.fence(workspace).await;
                }
                held
            }
            Err(_) => true,
        }
    }

    fn is_too_long_ago(&self, workspace: &Workspace) -> bool {
        let most = self.store.ttl() / 2;
        self.children.is_leashed() && workspace.held_at().elapsed() > most
    }

    /// Until the next look whether it is too long ago.
    fn patience(&self, workspace: &Workspace) -> std::time::Duration {
        let ttl = self.store.ttl();
        let left = (workspace.held_at() + ttl / 2).remaining();
        left.max(ttl / 8)
    }

    /// Looks at the lease of every open workspace: after each renewal.
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
        for entry in self.entries().values() {
            let _ = entry.open().take_if(|open| Arc::ptr_eq(open, workspace));
        }
        for session in workspace.sessions() {
            self.end_now(workspace, &session, End::Kill).await;
        }
        self.call_ended(workspace.key);
    }
}

// How many stateful children may live, and how many of one tenant.

/// With fewer permits than this each is worth too much to be kept for others.
const FEW: usize = 4;

/// Permits for live children.
pub struct Population {
    /// Processes of this machine.
    local: Permits,
    /// Sessions with servers elsewhere use nothing that processes need: neither makes room for the
    /// other.
    elsewhere: Permits,
    most: usize,
    /// Of one tenant, where the settings say so.
    per_user: Option<usize>,
}

impl Population {
    /// `most` permits, at least one; of one tenant `per_user`, or else three of four.
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

    /// Where children of this server have their permits.
    pub fn permits_for(&self, spec: &ServerSpec) -> &Permits {
        self.kind(matches!(spec.transport, Transport::Remote(_)))
    }

    /// How many children a tenant has.
    pub fn held_by(&self, tenant: &Tenant, remote: bool) -> usize {
        self.kind(remote).held_by(tenant)
    }

    /// Whether a tenant has as many as one may.
    pub fn at_share(&self, whose: &Whose) -> bool {
        self.kind(whose.remote).is_at_share(&whose.tenant)
    }

    fn kind(&self, remote: bool) -> &Permits {
        if remote { &self.elsewhere } else { &self.local }
    }

    /// Whether more processes live than there should be.
    pub fn is_over(&self) -> bool {
        self.local.is_over()
    }

    /// Lowers or raises the number of processes, from one to as many as there were at first.
    pub fn set_limit(&self, limit: usize) {
        let limit = limit.clamp(1, self.most);
        self.local.set_limit(limit, share(limit, self.per_user));
    }

    /// A permit for a process that is nobody's yet: one is always left to others.
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
