//! How many calls run at once, and whose turn it is.
//!
//! A place goes to the principal with the fewest running calls; among equals to the one who was
//! served longest ago; then to who waits longest. One heavy user cannot starve the others.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{sync::oneshot, time::Instant};

use crate::model::Principal;

/// Each waiting call keeps its body in memory: beyond this many, callers are sent away at once.
const LONGEST_QUEUE: usize = 1000;

/// The calls that may run at once, and the queue in front of them.
#[derive(Clone)]
pub struct Admission {
    state: Arc<Mutex<State>>,
    patience: Duration,
}

/// No place came free in time.
#[derive(Debug, thiserror::Error)]
#[error("{running} calls are running and none ended within {waited:?}")]
pub struct Busy {
    /// How many calls run.
    pub running: usize,
    /// How long the caller waited.
    pub waited: Duration,
}

/// One running call. Dropping it lets the next one in.
pub struct Permit {
    state: Arc<Mutex<State>>,
    principal: Principal,
}

struct State {
    limit: usize,
    total: usize,
    running: HashMap<Principal, usize>,
    queue: VecDeque<Waiter>,
    /// When each principal that matters to the queue was last served: a count, not a time.
    served: HashMap<Principal, u64>,
    serving: u64,
}

struct Waiter {
    principal: Principal,
    turn: oneshot::Sender<Permit>,
}

impl Admission {
    /// `limit` calls at once; nobody waits longer than `patience`.
    pub fn new(limit: usize, patience: Duration) -> Self {
        let state = State {
            limit: limit.max(1),
            total: 0,
            running: HashMap::new(),
            queue: VecDeque::new(),
            served: HashMap::new(),
            serving: 0,
        };
        Self {
            state: Arc::new(Mutex::new(state)),
            patience,
        }
    }

    /// Waits for a place, until the patience or the deadline ends.
    pub async fn enter(&self, principal: &Principal, deadline: Instant) -> Result<Permit, Busy> {
        let (turn, granted) = oneshot::channel();
        {
            let mut state = lock(&self.state);
            state.queue.retain(|waiter| !waiter.turn.is_closed());
            if state.queue.len() >= LONGEST_QUEUE {
                return Err(Busy {
                    running: state.total,
                    waited: Duration::ZERO,
                });
            }
            state.queue.push_back(Waiter {
                principal: principal.clone(),
                turn,
            });
        }
        hand_out(&self.state);
        let began = Instant::now();
        let until = deadline.min(began + self.patience);
        if let Ok(Ok(permit)) = tokio::time::timeout_at(until, granted).await {
            return Ok(permit);
        }
        let running = lock(&self.state).total;
        Err(Busy {
            running,
            waited: began.elapsed(),
        })
    }

    /// Running and waiting calls.
    pub fn load(&self) -> (usize, usize) {
        let mut state = lock(&self.state);
        state.queue.retain(|waiter| !waiter.turn.is_closed());
        (state.total, state.queue.len())
    }
}

fn lock(state: &Mutex<State>) -> std::sync::MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Gives free places to those whose turn it is. A permit that nobody takes comes back by its drop,
/// outside the lock.
fn hand_out(shared: &Arc<Mutex<State>>) {
    loop {
        let mut state = lock(shared);
        let Some(waiter) = state.next() else { return };
        state.total += 1;
        *state.running.entry(waiter.principal.clone()).or_default() += 1;
        drop(state);
        let permit = Permit {
            state: shared.clone(),
            principal: waiter.principal,
        };
        // A waiter who gave up returns his permit, and that hands out again.
        let _ = waiter.turn.send(permit);
    }
}

impl State {
    fn next(&mut self) -> Option<Waiter> {
        self.queue.retain(|waiter| !waiter.turn.is_closed());
        if self.total >= self.limit {
            return None;
        }
        let rank = |waiter: &Waiter| {
            let running = self.running.get(&waiter.principal).copied().unwrap_or(0);
            let served = self.served.get(&waiter.principal).copied().unwrap_or(0);
            (running, served)
        };
        let ranks = self.queue.iter().map(rank).enumerate();
        let (index, _) = ranks.min_by_key(|(index, rank)| (*rank, *index))?;
        let waiter = self.queue.remove(index)?;
        self.note_served(&waiter.principal);
        Some(waiter)
    }
}

impl State {
    /// Remembered only while somebody waits: without a queue nobody is before anybody.
    fn note_served(&mut self, principal: &Principal) {
        if self.queue.is_empty() {
            self.served.clear();
        }
        self.serving += 1;
        self.served.insert(principal.clone(), self.serving);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut state = lock(&self.state);
        state.total -= 1;
        if let Some(count) = state.running.get_mut(&self.principal) {
            *count -= 1;
            if *count == 0 {
                state.running.remove(&self.principal);
            }
        }
        drop(state);
        hand_out(&self.state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(name: &str) -> Principal {
        Principal::User(name.into())
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(1000)
    }

    #[tokio::test(start_paused = true)]
    async fn a_heavy_user_does_not_starve_the_others() {
        let admission = Admission::new(2, Duration::from_secs(60));
        let first = admission.enter(&user("heavy"), soon()).await.unwrap();
        let second = admission.enter(&user("heavy"), soon()).await.unwrap();
        let (order, mut came) = tokio::sync::mpsc::unbounded_channel();
        for name in ["heavy", "heavy", "light"] {
            let (admission, order) = (admission.clone(), order.clone());
            tokio::spawn(async move {
                let permit = admission.enter(&user(name), soon()).await.unwrap();
                order.send((name, permit)).ok();
            });
            tokio::task::yield_now().await;
        }
        drop(first);
        let (name, _permit) = came.recv().await.unwrap();
        assert_eq!(name, "light");
        drop(second);
        assert_eq!(came.recv().await.unwrap().0, "heavy");
    }

    #[tokio::test(start_paused = true)]
    async fn the_wait_is_bounded_and_leaves_nothing_behind() {
        let admission = Admission::new(1, Duration::from_secs(60));
        let only = admission.enter(&user("a"), soon()).await.unwrap();
        let before = Instant::now();
        let busy = admission.enter(&user("b"), soon()).await.err().unwrap();
        assert_eq!(before.elapsed().as_secs(), 60);
        assert_eq!(busy.running, 1);
        assert_eq!(admission.load(), (1, 0));
        drop(only);
        assert_eq!(admission.load(), (0, 0));
        assert!(admission.enter(&user("b"), soon()).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn the_deadline_bounds_the_wait_too() {
        let admission = Admission::new(1, Duration::from_secs(60));
        let _only = admission.enter(&user("a"), soon()).await.unwrap();
        let deadline = Instant::now() + Duration::from_secs(5);
        let before = Instant::now();
        assert!(admission.enter(&user("b"), deadline).await.is_err());
        assert_eq!(before.elapsed().as_secs(), 5);
    }
}
