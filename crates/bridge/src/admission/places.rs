//! Places that tenants share.
//!
//! A free place goes to the tenant who holds the fewest; among equals to the one who was served
//! longest ago; then to who waits longest.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use bridge_model::Tenant;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::oneshot;

/// Where nobody is known to be one person, he may be so many.
const MANY: usize = 4;

/// Beyond so many tenants who were served, those who hold nothing and wait for nothing are forgotten.
const REMEMBERED: usize = 1000;

/// A number of places, which may be lowered and raised.
#[derive(Clone)]
pub struct Places {
    state: Arc<Mutex<State>>,
}

/// One place. Dropping it lets the next in.
pub struct Place {
    places: Places,
    tenant: Tenant,
}

/// How many places one tenant may hold.
#[derive(Debug, Clone, Copy)]
pub struct Share {
    /// One user.
    user: usize,
    /// Others, each of whom may be many people.
    others: usize,
    /// The places beyond a user's share are for tenants who hold none: several who have much to do
    /// leave them to others, too.
    reserving: bool,
}

/// Three of four, and never all where there are two or more.
pub fn three_quarters(places: usize) -> usize {
    if places < 2 {
        return places;
    }
    places - (places / 4).max(1)
}

impl Share {
    /// One may hold all places.
    pub fn all() -> Self {
        Self::each(usize::MAX)
    }

    /// One may hold so many.
    pub fn each(most: usize) -> Self {
        Self {
            user: most,
            others: most,
            reserving: false,
        }
    }

    /// One may hold so many; the rest is kept for those who hold none.
    pub fn reserving(most: usize) -> Self {
        Self {
            reserving: true,
            ..Self::each(most)
        }
    }
}

struct State {
    limit: usize,
    share: Share,
    total: usize,
    held: HashMap<Tenant, usize>,
    /// In the order in which each tenant came.
    queues: HashMap<Tenant, VecDeque<Waiter>>,
    came: u64,
    /// When each tenant was last served: a count, not a time.
    served: HashMap<Tenant, u64>,
    serving: u64,
}

struct Waiter {
    came: u64,
    turn: oneshot::Sender<Place>,
}

impl Places {
    /// So many places.
    pub fn new(limit: usize, share: Share) -> Self {
        let state = State {
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

    /// For calls that one server works on side by side: as many as it allows, and one user not all
    /// of them; where it says nothing, so many of each user, that his calls wait here and not in the
    /// server in front of others'.
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

    /// Waits for a place; the order of the calls to this counts.
    pub fn enter(&self, tenant: &Tenant) -> impl Future<Output = Place> + use<> {
        let entering = self.try_enter(tenant).ok_or_else(|| self.join(tenant));
        let places = self.clone();
        async move {
            match entering {
                Ok(place) => place,
                Err(turn) => {
                    let place = turn.await;
                    drop(places);
                    place.expect("who waits keeps the places")
                }
            }
        }
    }

    /// A place that is free now.
    pub fn try_enter(&self, tenant: &Tenant) -> Option<Place> {
        let mut state = self.lock();
        // Who waits may not have one now, or had got it: nobody is overtaken.
        if !state.may_enter(tenant) {
            return None;
        }
        state.take(tenant);
        drop(state);
        Some(self.place(tenant))
    }

    /// The same, unless it would be the last one.
    pub fn try_enter_spare(&self, tenant: &Tenant) -> Option<Place> {
        let mut state = self.lock();
        if state.total.saturating_add(1) >= state.limit || !state.may_enter(tenant) {
            return None;
        }
        state.take(tenant);
        drop(state);
        Some(self.place(tenant))
    }

    fn join(&self, tenant: &Tenant) -> oneshot::Receiver<Place> {
        let (turn, granted) = oneshot::channel();
        // One may have come free since the look.
        self.change(|state| {
            state.came += 1;
            let came = state.came;
            let queue = state.queues.entry(tenant.clone()).or_default();
            queue.retain(|waiter| !waiter.turn.is_closed());
            queue.push_back(Waiter { came, turn });
        });
        granted
    }

    /// Places held, and how many wait for one.
    pub fn load(&self) -> (usize, usize) {
        let state = self.lock();
        let waiting = state.queues.values().flatten();
        let waiting = waiting.filter(|waiter| !waiter.turn.is_closed());
        (state.total, waiting.count())
    }

    /// How many places there are.
    pub fn limit(&self) -> usize {
        self.lock().limit
    }

    /// How many places this tenant holds.
    pub fn held_by(&self, tenant: &Tenant) -> usize {
        self.lock().held_by(tenant)
    }

    /// Whether this tenant holds as many as one may.
    pub fn is_at_share(&self, tenant: &Tenant) -> bool {
        let state = self.lock();
        state.held_by(tenant) >= state.most(tenant)
    }

    /// Whether more places are held than there should be.
    pub fn is_over(&self) -> bool {
        let state = self.lock();
        state.total > state.limit
    }

    /// Whether more than half of the places are free.
    pub fn has_leisure(&self) -> bool {
        let state = self.lock();
        state.total * 2 < state.limit
    }

    /// Lowers or raises the number of places. Those that are too many go as they come back.
    pub fn set_limit(&self, limit: usize, share: Share) {
        self.change(|state| {
            state.limit = limit.max(1);
            state.share = share;
        });
    }

    fn place(&self, tenant: &Tenant) -> Place {
        Place {
            places: self.clone(),
            tenant: tenant.clone(),
        }
    }

    /// Gives the places that are free after a change to those whose turn it is.
    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.lock();
        change(&mut state);
        // Under the same lock, so that who comes now overtakes nobody.
        let next = std::iter::from_fn(|| state.next()).collect::<Vec<_>>();
        drop(state);
        for (tenant, waiter) in next {
            // Who gave up returns his place by its drop.
            let _ = waiter.turn.send(self.place(&tenant));
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

impl State {
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

    /// Whose turn it is now, if it is anybody's; the place is taken.
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

impl Place {
    /// Whose it is.
    pub fn tenant(&self) -> &Tenant {
        &self.tenant
    }

    /// It counts against somebody else's share from now on.
    pub fn pass_to(&mut self, tenant: &Tenant) {
        self.places.change(|state| {
            state.give_back(&self.tenant);
            state.take(tenant);
        });
        self.tenant = tenant.clone();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.change(|state| state.give_back(&self.tenant));
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;
    use bridge_model::{Caller, Principal};

    fn user(name: &str) -> Tenant {
        Tenant::of(&Caller {
            principal: Principal::User(name.into()),
            ..Caller::nobody([127, 0, 0, 1].into())
        })
    }

    fn take(places: &Places, tenant: &Tenant, count: usize) -> Vec<Place> {
        let taken = std::iter::from_fn(|| places.try_enter(tenant));
        let taken: Vec<_> = taken.take(count).collect();
        assert_eq!(taken.len(), count);
        taken
    }

    #[tokio::test]
    async fn a_place_goes_to_who_holds_the_fewest() {
        let places = Places::new(2, Share::all());
        let (heavy, light) = (user("heavy"), user("light"));
        let mut held = take(&places, &heavy, 2);
        let mut first = Box::pin(places.enter(&heavy));
        let mut later = Box::pin(places.enter(&light));
        assert!(first.as_mut().now_or_never().is_none());
        held.pop();
        assert!(first.as_mut().now_or_never().is_none());
        let _light = later.as_mut().now_or_never().expect("before the heavy one");
        held.pop();
        assert!(first.as_mut().now_or_never().is_some());
        assert_eq!(places.load(), (1, 0));
    }

    #[tokio::test]
    async fn of_one_place_the_next_is_who_was_not_served_last() {
        let places = Places::new(1, Share::all());
        let held = take(&places, &user("heavy"), 1);
        let mut first = Box::pin(places.enter(&user("heavy")));
        let mut later = Box::pin(places.enter(&user("light")));
        drop(held);
        assert!(first.as_mut().now_or_never().is_none());
        let light = later.as_mut().now_or_never().expect("before the heavy one");
        let mut again = Box::pin(places.enter(&user("light")));
        drop(light);
        assert!(again.as_mut().now_or_never().is_none());
        assert!(first.as_mut().now_or_never().is_some());
    }

    #[tokio::test]
    async fn who_was_served_is_not_remembered_for_ever() {
        let places = Places::new(1, Share::all());
        for number in 0..3 * REMEMBERED {
            drop(places.try_enter(&user(&number.to_string())));
        }
        assert!(places.lock().served.len() <= REMEMBERED);
    }

    #[tokio::test]
    async fn nobody_holds_all_places_while_others_may_come() {
        for limit in 2..40 {
            let places = Places::new(limit, Share::reserving(three_quarters(limit)));
            let users = ["a", "b", "c"].map(user);
            let held: Vec<_> = users
                .iter()
                .flat_map(|user| std::iter::from_fn(|| places.try_enter(user)).collect::<Vec<_>>())
                .collect();
            let most = users.iter().map(|user| places.held_by(user)).max();
            assert_eq!(most, Some(three_quarters(limit)), "of {limit}");
            let newcomer = places.try_enter(&user("d"));
            assert_eq!(newcomer.is_some(), held.len() < limit, "of {limit}");
            assert!(limit < 16 || newcomer.is_some(), "of {limit}");
        }
        assert_eq!(three_quarters(1), 1);
        assert_eq!(three_quarters(2), 1);
        assert_eq!(three_quarters(8), 6);
    }

    #[tokio::test]
    async fn who_gave_up_is_passed_over_and_costs_no_place() {
        let places = Places::new(1, Share::all());
        let held = take(&places, &user("a"), 1);
        let gone = places.enter(&user("b"));
        let mut waits = Box::pin(places.enter(&user("c")));
        assert_eq!(places.load(), (1, 2));
        drop(gone);
        assert_eq!(places.load(), (1, 1));
        drop(held);
        let place = waits.as_mut().now_or_never().expect("its turn");
        // Granted and never taken: it comes back.
        let granted = places.enter(&user("d"));
        drop(place);
        drop(granted);
        assert_eq!(places.load(), (0, 0));
    }

    #[tokio::test]
    async fn of_each_users_calls_so_many_are_side_by_side() {
        let places = Places::side_by_side(None, 2);
        let _alice = take(&places, &user("alice"), 2);
        assert!(places.try_enter(&user("alice")).is_none());
        let _bob = take(&places, &user("bob"), 2);
        let many = Tenant::of(&Caller::nobody([192, 0, 2, 1].into()));
        let _many = take(&places, &many, 8);
        assert!(places.try_enter(&many).is_none());
        let few = Places::side_by_side(Some(4), 100);
        let _alice = take(&few, &user("alice"), 3);
        assert!(few.try_enter(&user("alice")).is_none());
        assert!(few.try_enter(&user("bob")).is_some());
    }

    #[tokio::test]
    async fn places_that_are_too_many_go_as_they_come_back() {
        let places = Places::new(3, Share::all());
        let mut held = take(&places, &user("a"), 3);
        places.set_limit(1, Share::all());
        assert!(places.is_over());
        let mut waits = Box::pin(places.enter(&user("b")));
        for _ in 0..2 {
            held.pop();
            assert!(waits.as_mut().now_or_never().is_none());
        }
        assert!(!places.is_over());
        held.pop();
        let _b = waits.as_mut().now_or_never().expect("the one that is left");
        assert!(places.try_enter(&user("a")).is_none());
        places.set_limit(2, Share::all());
        assert!(places.try_enter(&user("a")).is_some());
    }

    #[tokio::test]
    async fn a_place_that_is_passed_on_counts_for_its_new_holder() {
        let places = Places::new(4, Share::each(1));
        let mut place = places.try_enter_spare(&Tenant::bridge()).unwrap();
        place.pass_to(&user("a"));
        assert_eq!(places.held_by(&Tenant::bridge()), 0);
        assert!(places.is_at_share(&user("a")));
        assert!(places.try_enter(&user("a")).is_none());
        drop(place);
        assert_eq!(places.load(), (0, 0));
        let _two = ["b", "c"].map(|name| places.try_enter_spare(&user(name)).unwrap());
        let _third = places.try_enter_spare(&user("d")).unwrap();
        assert!(places.try_enter_spare(&user("e")).is_none(), "the last one");
    }
}
