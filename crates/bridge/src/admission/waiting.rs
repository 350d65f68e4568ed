//! The calls that wait for their turn, whatever they wait for. Each keeps its body in memory.
//!
//! Where there are too many, the last one of the tenant who has the most is sent away, so that one
//! who floods the queue only loses calls of his own.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use bridge_model::Tenant;
use parking_lot::{Mutex, MutexGuard};
use tokio_util::sync::CancellationToken;

/// All calls that wait.
#[derive(Clone)]
pub struct Waiting {
    state: Arc<Mutex<State>>,
    most: usize,
}

/// A call that waits. Dropped, it waits no more.
pub struct Ticket {
    waiting: Waiting,
    tenant: Tenant,
    number: u64,
    displaced: CancellationToken,
}

/// As many wait as may, and nobody has more than this caller.
#[derive(Debug, PartialEq, Eq)]
pub struct Full;

#[derive(Default)]
struct State {
    total: usize,
    numbers: u64,
    of: HashMap<Tenant, BTreeMap<u64, CancellationToken>>,
}

impl Waiting {
    /// At most so many.
    pub fn new(most: usize) -> Self {
        Self {
            state: Arc::default(),
            most: most.max(1),
        }
    }

    /// One more waits.
    pub fn join(&self, tenant: &Tenant) -> Result<Ticket, Full> {
        let mut state = self.lock();
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

    /// How many may wait.
    pub fn most(&self) -> usize {
        self.most
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

impl State {
    /// Sends the last call of the tenant with the most away, unless this one would have as many.
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
    /// Waits until the call has to make room for somebody who has fewer.
    pub async fn displaced(&self) {
        self.displaced.cancelled().await;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut state = self.waiting.lock();
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
mod tests {
    use super::*;
    use bridge_model::{Caller, Principal};

    fn user(name: &str) -> Tenant {
        Tenant::of(&Caller {
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
        assert_eq!(waiting.lock().total, 4);
        drop(others);
        assert!(waiting.lock().of.is_empty());
        assert_eq!(waiting.lock().total, 0);
    }

    #[test]
    fn among_equals_who_came_first_stays() {
        let waiting = Waiting::new(3);
        let join = |name: &str| waiting.join(&user(name));
        let _three = ["a", "b", "c"].map(|name| join(name).unwrap());
        assert_eq!(join("d").err(), Some(Full));
    }
}
