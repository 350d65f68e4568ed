//! Keeps the pool as full as it should be: no fuller than recent demand, memory and places allow,
//! and always behind those who wait for a start of their own.

use std::{cmp::Reverse, sync::Arc, time::Duration};

use bridge_model::Tenant;
use bridge_process::{ChildError, Profile, UserValues};
use bridge_state::StoreError;
use tokio::{sync::OwnedSemaphorePermit, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{
    Key, Kind, Kinds, PAUSE, Pool, Spare,
    spare::{MadeOf, Parts},
};
use crate::{
    child::ChildRequest,
    config::{Mode, ServerSpec},
    memory::available_memory,
};

/// A start is bounded by its own time limit.
const NO_DEADLINE: Duration = Duration::from_secs(24 * 60 * 60);
/// A child that has just started may answer its first ping as late as this.
const FIRST_PING: Duration = Duration::from_secs(5);
/// How long what children are forked from is waited for.
const PARENT: Duration = Duration::from_secs(60);
/// A start holds its place among the pool's for so long while it waits for that.
const PARENT_PLACE: Duration = Duration::from_secs(10);
/// Between two looks while anything is ready, or should be.
const REST: Duration = Duration::from_secs(1);
/// The same while others start.
const SHORT_REST: Duration = Duration::from_millis(50);
/// Memory that came free is left alone for so long.
const MEMORY_PAUSE: Duration = Duration::from_secs(30);

/// Why no child is ready.
#[derive(Debug, thiserror::Error)]
enum NotMade {
    #[error("all places for stateful processes are taken")]
    NoPlace,
    #[error("its place is needed, or it is not wanted any more")]
    CalledOff,
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Child(#[from] ChildError),
    #[error("it does not answer a ping")]
    Silent,
}

/// What there is room for now.
struct Room {
    /// Children of all kinds.
    most: usize,
    /// New ones may be started now.
    new: bool,
}

impl Pool {
    /// Starts and ends children as they are needed, until dropped.
    pub async fn fill(self: &Arc<Self>) {
        if self.settings.max == 0 {
            return;
        }
        let mut no_new_before = Instant::now();
        loop {
            let rest = self.round(&mut no_new_before).await;
            let woken = self.wake.notified();
            match rest {
                Some(rest) => drop(tokio::time::timeout(rest, woken).await),
                None => woken.await,
            }
        }
    }

    /// One look; when the next is due, where it is before somebody comes.
    async fn round(self: &Arc<Self>, no_new_before: &mut Instant) -> Option<Duration> {
        if self.lock().is_empty() {
            return None;
        }
        let now = Instant::now();
        let (memory, disk) = self.free().await;
        let low = memory < self.settings.min_free_memory;
        if low {
            *no_new_before = now + MEMORY_PAUSE;
        }
        // Some room above the floor, or what was just started would be ended again.
        let scarce = memory < self.settings.min_free_memory / 4 * 5;
        let halted = scarce || disk < self.settings.min_free_disk || now < *no_new_before;
        let room = Room {
            most: if low { 0 } else { self.settings.max },
            new: !halted && !self.stopping.is_cancelled(),
        };
        let ended = self.trim(&room, now);
        drop(ended);
        let held_up = self.start_wanted(&room, now);
        Some(if held_up { SHORT_REST } else { REST })
    }

    /// Bytes of memory and of disk.
    async fn free(&self) -> (u64, u64) {
        let store = self.home.store.clone();
        let look = move || (available_memory(), store.free_bytes().unwrap_or(0));
        tokio::task::spawn_blocking(look).await.unwrap_or_default()
    }

    /// Takes out what is dead, outdated or more than is wanted, the oldest first.
    fn trim(&self, room: &Room, now: Instant) -> Vec<Spare> {
        let mut ended = Vec::new();
        let mut kinds = self.lock();
        let over = self.home.population.is_over();
        for kind in kinds.values_mut() {
            for spare in std::mem::take(&mut kind.ready) {
                if !spare.child().is_alive() {
                    tracing::debug!(server = %kind.spec.name, "a process that was ready has ended");
                    kind.failed(now);
                    ended.push(spare);
                } else if spare.made_of.is_current(&self.home, &kind.spec) {
                    kind.ready.push_back(spare);
                } else {
                    ended.push(spare);
                }
            }
            let wanted = self.wanted(kind, room, now);
            while kind.ready.len() > wanted {
                ended.extend(kind.ready.pop_front());
            }
            if over && kind.spec.mode == Mode::Stateful {
                ended.extend(kind.ready.pop_front());
            }
        }
        let idle = self.settings.idle;
        kinds.retain(|_, kind| kind.count() > 0 || kind.demand.wanted(idle, now) > 0);
        ended
    }

    fn wanted(&self, kind: &Kind, room: &Room, now: Instant) -> usize {
        let own = kind.spec.pool.unwrap_or(self.settings.max);
        let wanted = kind.demand.wanted(self.settings.idle, now);
        wanted.min(own).min(room.most)
    }

    /// Begins the starts that are due now; whether more are, and wait for other starts.
    fn start_wanted(self: &Arc<Self>, room: &Room, now: Instant) -> bool {
        let mut ended = Vec::new();
        let mut kinds = self.lock();
        while let Some((key, count)) = self.due(&kinds, room, now) {
            if !room.new {
                return false;
            }
            if !self.home.children.has_leisure() {
                return true;
            }
            // Given back while the start only waits, so that it does not hold up those of others.
            let Ok(place) = self.starts.clone().try_acquire_owned() else {
                return true;
            };
            if kinds.values().map(Kind::count).sum::<usize>() >= room.most {
                // The first of one server is worth more than the last of another.
                let richest = kinds.values_mut().max_by_key(|kind| kind.ready.len());
                match richest.filter(|kind| kind.ready.len() > count + 1) {
                    Some(richest) => ended.extend(richest.ready.pop_front()),
                    None => return false,
                }
            }
            if let Some(kind) = kinds.get_mut(&key) {
                self.start(key, kind, place);
            }
        }
        false
    }

    /// What is to be started next, and how many of it there are.
    fn due(&self, kinds: &Kinds, room: &Room, now: Instant) -> Option<(Key, usize)> {
        let of_server = |(server, ..): &Key| {
            let same = kinds.iter().filter(|((name, ..), _)| name == server);
            same.map(|(_, kind)| kind.count()).sum::<usize>()
        };
        kinds
            .iter()
            .filter(|(_, kind)| now >= kind.not_before)
            .filter(|(_, kind)| kind.count() < self.wanted(kind, room, now))
            .filter(|(key, kind)| kind.spec.pool.is_none_or(|most| of_server(key) < most))
            .min_by_key(|(_, kind)| (kind.count(), Reverse(kind.demand.last())))
            .map(|(key, kind)| (key.clone(), kind.count()))
    }

    fn start(self: &Arc<Self>, key: Key, kind: &mut Kind, place: OwnedSemaphorePermit) {
        kind.starting += 1;
        let (spec, profile) = (kind.spec.clone(), kind.profile.clone());
        let (pool, off) = (self.clone(), kind.outdated.clone());
        self.home.tasks.spawn(async move {
            // What it is forked from comes first: the pool can wait for it, and one that was started by
            // itself would hold its memory alone.
            let parent = pool.home.children.prepare(&spec, Instant::now() + PARENT);
            let parent = pool.beside(off.run_until_cancelled(parent), place);
            let Some((_, place)) = off.run_until_cancelled(parent).await else {
                pool.settle(&key, Err(NotMade::CalledOff), Instant::now());
                pool.settled.notify_waiters();
                return;
            };
            let began = Instant::now();
            let made = pool.make(&spec, profile, place, &off).await;
            pool.settle(&key, made, began);
            pool.settled.notify_waiters();
            pool.wake.notify_one();
        });
    }

    /// Waits for something with a place among the pool's starts, which is others' meanwhile where
    /// that takes long.
    async fn beside<T>(
        &self,
        wait: impl Future<Output = T>,
        place: OwnedSemaphorePermit,
    ) -> (T, OwnedSemaphorePermit) {
        let mut wait = std::pin::pin!(wait);
        if let Ok(done) = tokio::time::timeout(PARENT_PLACE, &mut wait).await {
            return (done, place);
        }
        drop(place);
        let done = wait.await;
        let place = self.starts.clone().acquire_owned().await;
        (done, place.expect("never closed"))
    }

    /// What was made is ready, unless nobody wants it any more.
    fn settle(self: &Arc<Self>, key: &Key, made: Result<Spare, NotMade>, began: Instant) {
        let now = Instant::now();
        let mut kinds = self.lock();
        let Some(kind) = kinds.get_mut(key) else {
            drop(kinds);
            drop(made);
            return;
        };
        kind.starting = kind.starting.saturating_sub(1);
        match made {
            Ok(spare) => {
                kind.demand.started(now - began);
                let gone = spare.child().gone();
                kind.ready.push_back(spare);
                let pool = Arc::downgrade(self);
                tokio::spawn(async move {
                    gone.await;
                    if let Some(pool) = pool.upgrade() {
                        pool.wake.notify_one();
                    }
                });
            }
            Err(NotMade::NoPlace | NotMade::CalledOff) => kind.not_before = now + PAUSE,
            Err(error) => {
                tracing::debug!(server = %kind.spec.name, %error, "no process is kept ready");
                kind.failed(now);
            }
        }
    }

    async fn make(
        &self,
        spec: &Arc<ServerSpec>,
        profile: Profile,
        start: OwnedSemaphorePermit,
        off: &CancellationToken,
    ) -> Result<Spare, NotMade> {
        let home = &self.home;
        let place = match spec.mode {
            Mode::Stateful => Some(home.population.try_spare_place().ok_or(NotMade::NoPlace)?),
            Mode::Stateless | Mode::Shared => None,
        };
        let make = {
            let (home, spec) = (home.clone(), spec.clone());
            move || {
                let made_of = MadeOf::now(&home, &spec);
                let made = home.store.create_unclaimed();
                made.map(|held| (made_of, held))
            }
        };
        let made = tokio::task::spawn_blocking(make).await;
        let (made_of, held) = match made.expect("making a folder does not panic") {
            Ok(made) => made,
            Err(error) => return Err(error.into()),
        };
        let request = ChildRequest {
            spec: spec.clone(),
            job: held.job.clone(),
            profile,
            user: UserValues::default(),
            tenant: Tenant::bridge(),
            deadline: Instant::now() + NO_DEADLINE,
            listener: match spec.mode {
                // As a call's own child has it.
                Mode::Stateless => Arc::new(|_| {}),
                _ => (home.listener)(&spec.name),
            },
        };
        let child = match home.children.ready_aside(request, start, off).await {
            Ok(child) => child,
            Err(error) => {
                drop(place);
                home.remove(held.lease).await;
                let called_off = off.is_cancelled();
                return Err(if called_off {
                    NotMade::CalledOff
                } else {
                    error.into()
                });
            }
        };
        let spare = Spare {
            home: home.clone(),
            made_of,
            parts: Some(Parts {
                child,
                held,
                place,
                counted: Some(home.metrics.pooled(&spec.name)),
            }),
        };
        // A server that answers none cannot be told from one that hangs.
        if spare.child().answers_ping(FIRST_PING).await {
            Ok(spare)
        } else {
            Err(NotMade::Silent)
        }
    }
}
