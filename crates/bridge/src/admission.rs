//! Concurrency limits and the queues in front of them.
//!
//! [`Permits`] is a semaphore that divides its permits among [`Tenant`]s; [`Waiting`] bounds the number of
//! waiting calls. Calls of one user never take all permits, and never the whole queue.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    num::NonZeroUsize,
    sync::Arc,
};

use bridge_model::{ServerName, Tenant};
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::config::{Limits, ServerSpec, Transport};

/// The running calls and the waiting calls.
#[derive(Clone)]
pub struct Admission {
    /// All calls that wait, for any reason.
    pub waiting: Waiting,
    running: Permits,
    /// A remote server uses no processors of this machine, so calls that wait for its answer take no permit
    /// from local calls. Each remote server has its own permits.
    elsewhere: Arc<Mutex<HashMap<ServerName, Permits>>>,
    per_server: usize,
}

impl Admission {
    /// Creates the permits; no call runs yet.
    pub fn new(limits: &Limits) -> Self {
        let most = limits.max_concurrent.get();
        let per_user = limits.max_concurrent_per_user;
        let per_user = per_user.map_or_else(|| three_quarters(most), NonZeroUsize::get);
        Self {
            waiting: Waiting::new(limits.max_waiting.get()),
            running: Permits::new(most, Share::reserving(per_user)),
            elsewhere: Arc::default(),
            per_server: limits.server_calls_per_user.get(),
        }
    }

    /// A permit for a call to this server; dropping it lets the next call run.
    pub fn enter(
        &self,
        spec: &ServerSpec,
        tenant: &Tenant,
    ) -> impl Future<Output = Permit> + use<> {
        match spec.transport {
            Transport::Stdio(_) => self.running.enter(tenant),
            Transport::Remote(_) => self.of_server(&spec.name).enter(tenant),
        }
    }

    fn of_server(&self, server: &ServerName) -> Permits {
        let mut elsewhere = self.elsewhere.lock();
        let permits = elsewhere.entry(server.clone());
        let new = || Permits::side_by_side(None, self.per_server);
        permits.or_insert_with(new).clone()
    }

    /// The number of calls that local processes work on, and of those that wait for a permit.
    pub fn load(&self) -> (usize, usize) {
        self.running.load()
    }
}

// Permits shared among tenants.
//
// A free permit goes to the tenant with the fewest permits; among equals to the one served least recently;
// then to the one that waits longest.

/// A tenant that is not an identified user may stand for this many users.
const MANY: usize = 4;

/// If more tenants than this were served, those without permits and waiting calls are forgotten.
const REMEMBERED: usize = 1000;

/// A number of permits that can be lowered and raised.
#[derive(Clone)]
pub struct Permits {
    state: Arc<Mutex<PermitsState>>,
}

/// One permit. Dropping it lets the next call run.
pub struct Permit {
    permits: Permits,
    tenant: Tenant,
}

/// The number of permits that one tenant may hold.
#[derive(Debug, Clone, Copy)]
pub struct Share {
    /// The share of one user.
    user: usize,
    /// The share of other tenants, each of which may stand for many users.
    others: usize,
    /// Whether the permits beyond a user's share are reserved for tenants that hold none, so that several
    /// busy tenants leave some, too.
    reserving: bool,
}

/// Three quarters, but never all if there are two or more.
pub fn three_quarters(permits: usize) -> usize {
    if permits < 2 {
        return permits;
    }
    permits - (permits / 4).max(1)
}

impl Share {
    /// One tenant may hold all permits.
    pub fn all() -> Self {
        Self::each(usize::MAX)
    }

    /// One tenant may hold at most this number.
    pub fn each(most: usize) -> Self {
        Self {
            user: most,
            others: most,
            reserving: false,
        }
    }

    /// One tenant may hold at most this number; the rest is reserved for tenants that hold none.
    pub fn reserving(most: usize) -> Self {
        Self {
            reserving: true,
            ..Self::each(most)
        }
    }
}

struct PermitsState {
    limit: usize,
    share: Share,
    total: usize,
    held: HashMap<Tenant, usize>,
    /// The waiting calls of each tenant, in order of arrival.
    queues: HashMap<Tenant, VecDeque<Waiter>>,
    came: u64,
    /// When each tenant was last served: a sequence number, not a timestamp.
    served: HashMap<Tenant, u64>,
    serving: u64,
}

struct Waiter {
    came: u64,
    turn: oneshot::Sender<Permit>,
}

impl Permits {
    /// Creates `limit` permits.
    pub fn new(limit: usize, share: Share) -> Self {
        let state = PermitsState {
            limit: limit.max(1),
            share,
            total: 0,
            held: HashMap::new(),
            queues: HashMap::new(),
            came: 0,
            served: HashMap::new(),
            serving: 0,
        };
        Self {
            state: Arc::new(Mutex::new(state)),
        }
    }

    /// For concurrent calls of one server: as many as it allows, of which one user may not take all. Without
    /// a limit, each user gets `each`, so that the user's further calls wait here and not in the server
    /// ahead of others' calls.
    pub fn side_by_side(limit: Option<usize>, each: usize) -> Self {
        match limit {
            Some(limit) => Self::new(limit, Share::reserving(three_quarters(limit))),
            None => Self::new(
                usize::MAX,
                Share {
                    user: each,
                    others: each.saturating_mul(MANY),
                    reserving: false,
                },
            ),
        }
    }

    /// Waits for a permit. The order of the calls to this function decides, not the first poll of the
    /// future.
    pub fn enter(&self, tenant: &Tenant) -> impl Future<Output = Permit> + use<> {
        let entering = self.try_enter(tenant).ok_or_else(|| self.join(tenant));
        let permits = self.clone();
        async move {
            match entering {
                Ok(permit) => permit,
                Err(turn) => {
                    let permit = turn.await;
                    drop(permits);
                    permit.expect("who waits keeps the places")
                }
            }
        }
    }

    /// A permit, if one is free now.
    pub fn try_enter(&self, tenant: &Tenant) -> Option<Permit> {
        self.try_enter_leaving(0, tenant)
    }

    /// The same, unless it would be the last free permit.
    pub fn try_enter_spare(&self, tenant: &Tenant) -> Option<Permit> {
        self.try_enter_leaving(1, tenant)
    }

    fn try_enter_leaving(&self, free: usize, tenant: &Tenant) -> Option<Permit> {
        let mut state = self.state.lock();
        // A tenant that already waits gets no permit here, so that no waiting call is overtaken.
        if state.total.saturating_add(free) >= state.limit || !state.may_enter(tenant) {
            return None;
        }
        state.take(tenant);
        drop(state);
        Some(self.permit(tenant))
    }

    fn join(&self, tenant: &Tenant) -> oneshot::Receiver<Permit> {
        let (turn, granted) = oneshot::channel();
        // A permit may have become free since the check.
        self.change(|state| {
            state.came += 1;
            let came = state.came;
            let queue = state.queues.entry(tenant.clone()).or_default();
            queue.retain(|waiter| !waiter.turn.is_closed());
            queue.push_back(Waiter { came, turn });
        });
        granted
    }

    /// The number of held permits and of waiting calls.
    pub fn load(&self) -> (usize, usize) {
        let state = self.state.lock();
        let waiting = state.queues.values().flatten();
        let waiting = waiting.filter(|waiter| !waiter.turn.is_closed());
        (state.total, waiting.count())
    }

    /// The number of permits.
    pub fn limit(&self) -> usize {
        self.state.lock().limit
    }

    /// The number of permits that this tenant holds.
    pub fn held_by(&self, tenant: &Tenant) -> usize {
        self.state.lock().held_by(tenant)
    }

    /// Whether this tenant holds its whole share.
    pub fn is_at_share(&self, tenant: &Tenant) -> bool {
        let state = self.state.lock();
        state.held_by(tenant) >= state.most(tenant)
    }

    /// Whether more permits are held than the limit allows.
    pub fn is_over(&self) -> bool {
        let state = self.state.lock();
        state.total > state.limit
    }

    /// Whether more than half of the permits are free.
    pub fn has_leisure(&self) -> bool {
        let state = self.state.lock();
        state.total * 2 < state.limit
    }

    /// Lowers or raises the number of permits. Excess permits are removed when they are released.
    pub fn set_limit(&self, limit: usize, share: Share) {
        self.change(|state| {
            state.limit = limit.max(1);
            state.share = share;
        });
    }

    fn permit(&self, tenant: &Tenant) -> Permit {
        Permit {
            permits: self.clone(),
            tenant: tenant.clone(),
        }
    }

    /// Gives the permits that are free after a change to the next tenants in line.
    fn change(&self, change: impl FnOnce(&mut PermitsState)) {
        let mut state = self.state.lock();
        change(&mut state);
        // Under the same lock, so that a new call overtakes no waiting call.
        let next = std::iter::from_fn(|| state.next()).collect::<Vec<_>>();
        drop(state);
        for (tenant, waiter) in next {
            // If the waiter gave up, the permit is dropped and thereby returned.
            let _ = waiter.turn.send(self.permit(&tenant));
        }
    }
}

impl PermitsState {
    fn held_by(&self, tenant: &Tenant) -> usize {
        self.held.get(tenant).copied().unwrap_or(0)
    }

    fn most(&self, tenant: &Tenant) -> usize {
        let most = if tenant.is_user() {
            self.share.user
        } else {
            self.share.others
        };
        most.max(1)
    }

    fn may_enter(&self, tenant: &Tenant) -> bool {
        let held = self.held_by(tenant);
        let reserve = if self.share.reserving && held > 0 {
            self.limit.saturating_sub(self.most(tenant))
        } else {
            0
        };
        held < self.most(tenant) && self.total < self.limit.saturating_sub(reserve)
    }

    fn take(&mut self, tenant: &Tenant) {
        self.total += 1;
        *self.held.entry(tenant.clone()).or_default() += 1;
        self.serving += 1;
        self.served.insert(tenant.clone(), self.serving);
        if self.served.len() > REMEMBERED {
            let (held, queues) = (&self.held, &self.queues);
            self.served
                .retain(|tenant, _| held.contains_key(tenant) || queues.contains_key(tenant));
        }
    }

    fn give_back(&mut self, tenant: &Tenant) {
        self.total -= 1;
        if let Some(count) = self.held.get_mut(tenant) {
            *count -= 1;
            if *count == 0 {
                self.held.remove(tenant);
            }
        }
    }

    /// Takes a permit for the tenant that is next in line, if there is one.
    fn next(&mut self) -> Option<(Tenant, Waiter)> {
        if self.total >= self.limit || self.queues.is_empty() {
            return None;
        }
        self.queues.retain(|_, queue| {
            while queue.front().is_some_and(|waiter| waiter.turn.is_closed()) {
                queue.pop_front();
            }
            !queue.is_empty()
        });
        let rank = |(tenant, queue): &(&Tenant, &VecDeque<Waiter>)| {
            let served = self.served.get(*tenant).copied().unwrap_or(0);
            let came = queue.front().map(|waiter| waiter.came);
            (self.held_by(tenant), served, came)
        };
        let waiting = self.queues.iter();
        let allowed = waiting.filter(|(tenant, _)| self.may_enter(tenant));
        let tenant = allowed.min_by_key(rank)?.0.clone();
        let queue = self.queues.get_mut(&tenant)?;
        let waiter = queue.pop_front()?;
        let last = queue.is_empty();
        self.take(&tenant);
        if last {
            self.queues.remove(&tenant);
        }
        Some((tenant, waiter))
    }
}

impl Permit {
    /// The tenant that holds this permit.
    pub fn tenant(&self) -> &Tenant {
        &self.tenant
    }

    /// Counts the permit against another tenant's share from now on.
    pub fn pass_to(&mut self, tenant: &Tenant) {
        self.permits.change(|state| {
            state.give_back(&self.tenant);
            state.take(tenant);
        });
        self.tenant = tenant.clone();
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.permits.change(|state| state.give_back(&self.tenant));
    }
}

// The waiting calls, whatever they wait for. Each keeps its body in memory.
//
// If there are too many, the newest call of the tenant with the most waiting calls is refused, so that a
// tenant that floods the queue only loses its own calls.

/// All waiting calls.
#[derive(Clone)]
pub struct Waiting {
    state: Arc<Mutex<QueueState>>,
    most: usize,
}

/// A waiting call. Dropping it removes the call from the queue.
pub struct Ticket {
    waiting: Waiting,
    tenant: Tenant,
    number: u64,
    displaced: CancellationToken,
}

/// The queue is full, and no tenant has more waiting calls than this one.
#[derive(Debug, PartialEq, Eq)]
pub struct Full;

#[derive(Default)]
struct QueueState {
    total: usize,
    numbers: u64,
    of: HashMap<Tenant, BTreeMap<u64, CancellationToken>>,
}

impl Waiting {
    /// A queue of at most `most` calls.
    pub fn new(most: usize) -> Self {
        Self {
            state: Arc::default(),
            most: most.max(1),
        }
    }

    /// Adds a call.
    pub fn join(&self, tenant: &Tenant) -> Result<Ticket, Full> {
        let mut state = self.state.lock();
        if state.total >= self.most {
            state.make_room(tenant)?;
        }
        state.numbers += 1;
        state.total += 1;
        let (number, displaced) = (state.numbers, CancellationToken::new());
        let own = state.of.entry(tenant.clone()).or_default();
        own.insert(number, displaced.clone());
        Ok(Ticket {
            waiting: self.clone(),
            tenant: tenant.clone(),
            number,
            displaced,
        })
    }

    /// The maximum number of waiting calls.
    pub fn most(&self) -> usize {
        self.most
    }
}

impl QueueState {
    /// Refuses the newest call of the tenant with the most waiting calls, unless the new call's tenant would
    /// then have as many.
    fn make_room(&mut self, newcomer: &Tenant) -> Result<(), Full> {
        let own = self.of.get(newcomer).map_or(0, BTreeMap::len);
        let greediest = self.of.iter_mut().max_by_key(|(_, calls)| calls.len());
        let (_, calls) = greediest
            .filter(|(_, calls)| calls.len() > own + 1)
            .ok_or(Full)?;
        let (_, displaced) = calls.pop_last().ok_or(Full)?;
        self.total -= 1;
        displaced.cancel();
        Ok(())
    }
}

impl Ticket {
    /// Waits until this call is refused in favour of a tenant with fewer calls.
    pub async fn displaced(&self) {
        self.displaced.cancelled().await;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut state = self.waiting.state.lock();
        let Some(own) = state.of.get_mut(&self.tenant) else {
            return;
        };
        let waited = own.remove(&self.number).is_some();
        if own.is_empty() {
            state.of.remove(&self.tenant);
        }
        if waited {
            state.total -= 1;
        }
    }
}

#[cfg(test)]
mod permits_tests {
    use bridge_model::{Caller, Principal};
    use futures_util::FutureExt as _;

    use super::*;

    fn user(name: &str) -> Tenant {
        Tenant::from_caller(&Caller {
            principal: Principal::User(name.into()),
            ..Caller::nobody([127, 0, 0, 1].into())
        })
    }

    fn take(permits: &Permits, tenant: &Tenant, count: usize) -> Vec<Permit> {
        let taken = std::iter::from_fn(|| permits.try_enter(tenant));
        let taken: Vec<_> = taken.take(count).collect();
        assert_eq!(taken.len(), count);
        taken
    }

    #[tokio::test]
    async fn a_place_goes_to_who_holds_the_fewest() {
        let permits = Permits::new(2, Share::all());
        let (heavy, light) = (user("heavy"), user("light"));
        let mut held = take(&permits, &heavy, 2);
        let mut first = Box::pin(permits.enter(&heavy));
        let mut later = Box::pin(permits.enter(&light));
        assert!(first.as_mut().now_or_never().is_none());
        held.pop();
        assert!(first.as_mut().now_or_never().is_none());
        let _light = later.as_mut().now_or_never().expect("before the heavy one");
        held.pop();
        assert!(first.as_mut().now_or_never().is_some());
        assert_eq!(permits.load(), (1, 0));
    }

    #[tokio::test]
    async fn of_one_place_the_next_is_who_was_not_served_last() {
        let permits = Permits::new(1, Share::all());
        let held = take(&permits, &user("heavy"), 1);
        let mut first = Box::pin(permits.enter(&user("heavy")));
        let mut later = Box::pin(permits.enter(&user("light")));
        drop(held);
        assert!(first.as_mut().now_or_never().is_none());
        let light = later.as_mut().now_or_never().expect("before the heavy one");
        let mut again = Box::pin(permits.enter(&user("light")));
        drop(light);
        assert!(again.as_mut().now_or_never().is_none());
        assert!(first.as_mut().now_or_never().is_some());
    }

    #[tokio::test]
    async fn who_was_served_is_not_remembered_for_ever() {
        let permits = Permits::new(1, Share::all());
        for number in 0..3 * REMEMBERED {
            drop(permits.try_enter(&user(&number.to_string())));
        }
        assert!(permits.state.lock().served.len() <= REMEMBERED);
    }

    #[tokio::test]
    async fn nobody_holds_all_places_while_others_may_come() {
        for limit in 2..40 {
            let permits = Permits::new(limit, Share::reserving(three_quarters(limit)));
            let users = ["a", "b", "c"].map(user);
            let held: Vec<_> = users
                .iter()
                .flat_map(|user| std::iter::from_fn(|| permits.try_enter(user)).collect::<Vec<_>>())
                .collect();
            let most = users.iter().map(|user| permits.held_by(user)).max();
            assert_eq!(most, Some(three_quarters(limit)), "of {limit}");
            let newcomer = permits.try_enter(&user("d"));
            assert_eq!(newcomer.is_some(), held.len() < limit, "of {limit}");
            assert!(limit < 16 || newcomer.is_some(), "of {limit}");
        }
        assert_eq!(three_quarters(1), 1);
        assert_eq!(three_quarters(2), 1);
        assert_eq!(three_quarters(8), 6);
    }

    #[tokio::test]
    async fn who_gave_up_is_passed_over_and_costs_no_place() {
        let permits = Permits::new(1, Share::all());
        let held = take(&permits, &user("a"), 1);
        let gone = permits.enter(&user("b"));
        let mut waits = Box::pin(permits.enter(&user("c")));
        assert_eq!(permits.load(), (1, 2));
        drop(gone);
        assert_eq!(permits.load(), (1, 1));
        drop(held);
        let permit = waits.as_mut().now_or_never().expect("its turn");
        // Granted but not taken, so the permit is returned.
        let granted = permits.enter(&user("d"));
        drop(permit);
        drop(granted);
        assert_eq!(permits.load(), (0, 0));
    }

    #[tokio::test]
    async fn of_each_users_calls_so_many_are_side_by_side() {
        let permits = Permits::side_by_side(None, 2);
        let _alice = take(&permits, &user("alice"), 2);
        assert!(permits.try_enter(&user("alice")).is_none());
        let _bob = take(&permits, &user("bob"), 2);
        let many = Tenant::from_caller(&Caller::nobody([192, 0, 2, 1].into()));
        let _many = take(&permits, &many, 8);
        assert!(permits.try_enter(&many).is_none());
        let few = Permits::side_by_side(Some(4), 100);
        let _alice = take(&few, &user("alice"), 3);
        assert!(few.try_enter(&user("alice")).is_none());
        assert!(few.try_enter(&user("bob")).is_some());
    }

    #[tokio::test]
    async fn places_that_are_too_many_go_as_they_come_back() {
        let permits = Permits::new(3, Share::all());
        let mut held = take(&permits, &user("a"), 3);
        permits.set_limit(1, Share::all());
        assert!(permits.is_over());
        let mut waits = Box::pin(permits.enter(&user("b")));
        for _ in 0..2 {
            held.pop();
            assert!(waits.as_mut().now_or_never().is_none());
        }
        assert!(!permits.is_over());
        held.pop();
        let _b = waits.as_mut().now_or_never().expect("the one that is left");
        assert!(permits.try_enter(&user("a")).is_none());
        permits.set_limit(2, Share::all());
        assert!(permits.try_enter(&user("a")).is_some());
    }

    #[tokio::test]
    async fn a_place_that_is_passed_on_counts_for_its_new_holder() {
        let permits = Permits::new(4, Share::each(1));
        let mut permit = permits.try_enter_spare(&Tenant::bridge()).unwrap();
        permit.pass_to(&user("a"));
        assert_eq!(permits.held_by(&Tenant::bridge()), 0);
        assert!(permits.is_at_share(&user("a")));
        assert!(permits.try_enter(&user("a")).is_none());
        drop(permit);
        assert_eq!(permits.load(), (0, 0));
        let _two = ["b", "c"].map(|name| permits.try_enter_spare(&user(name)).unwrap());
        let _third = permits.try_enter_spare(&user("d")).unwrap();
        assert!(
            permits.try_enter_spare(&user("e")).is_none(),
            "the last one"
        );
    }
}

#[cfg(test)]
mod waiting_tests {
    use bridge_model::{Caller, Principal};

    use super::*;

    fn user(name: &str) -> Tenant {
        Tenant::from_caller(&Caller {
            principal: Principal::User(name.into()),
            ..Caller::nobody([127, 0, 0, 1].into())
        })
    }

    #[test]
    fn a_newcomer_takes_the_place_of_the_last_of_who_has_the_most() {
        let waiting = Waiting::new(10);
        let join = |name: &str| waiting.join(&user(name));
        let greedy: Vec<_> = std::iter::from_fn(|| join("greedy").ok()).collect();
        assert_eq!(greedy.len(), 10);
        let others: Vec<_> = ["a", "b", "c", "a"].map(|name| join(name).unwrap()).into();
        let displaced = greedy.iter().map(|call| call.displaced.is_cancelled());
        let displaced: Vec<_> = displaced.collect();
        assert_eq!(displaced, [[false; 6].as_slice(), &[true; 4]].concat());
        assert!(others.iter().all(|call| !call.displaced.is_cancelled()));
        assert_eq!(join("greedy").err(), Some(Full));
        drop(greedy);
        assert_eq!(waiting.state.lock().total, 4);
        drop(others);
        assert!(waiting.state.lock().of.is_empty());
        assert_eq!(waiting.state.lock().total, 0);
    }

    #[test]
    fn among_equals_who_came_first_stays() {
        let waiting = Waiting::new(3);
        let join = |name: &str| waiting.join(&user(name));
        let _three = ["a", "b", "c"].map(|name| join(name).unwrap());
        assert_eq!(join("d").err(), Some(Full));
    }
}
