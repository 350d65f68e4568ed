//! How many stateful children may live: a number of places, which may be lowered and raised.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};

/// Places for live children, given out in the order of asking.
pub struct Population {
    places: Arc<Semaphore>,
    bounds: Mutex<Bounds>,
}

struct Bounds {
    /// Places that exist, those withheld included.
    most: usize,
    /// Places that may be in use.
    limit: usize,
    /// Places taken out of the semaphore; fewer than wanted while too many are in use.
    withheld: usize,
}

impl Population {
    /// `most` places, at least one.
    pub fn new(most: usize) -> Self {
        let most = most.max(1);
        let bounds = Bounds {
            most,
            limit: most,
            withheld: 0,
        };
        Self {
            places: Arc::new(Semaphore::new(most)),
            bounds: Mutex::new(bounds),
        }
    }

    /// How many places there are now.
    pub fn limit(&self) -> usize {
        self.bounds().limit
    }

    /// Whether more places are in use than there should be.
    pub fn is_over(&self) -> bool {
        let bounds = self.bounds();
        bounds.withheld < bounds.most - bounds.limit
    }

    /// Lowers or raises the number of places, from one to as many as there were at first. Places
    /// in use are withdrawn as they come back.
    pub fn set_limit(&self, limit: usize) {
        let mut bounds = self.bounds();
        bounds.limit = limit.clamp(1, bounds.most);
        let wanted = bounds.most - bounds.limit;
        if wanted > bounds.withheld {
            bounds.withheld += self.places.forget_permits(wanted - bounds.withheld);
        } else {
            self.places.add_permits(bounds.withheld - wanted);
            bounds.withheld = wanted;
        }
    }

    /// A place, if one is free and nobody waits for it.
    pub fn try_place(&self) -> Option<OwnedSemaphorePermit> {
        self.places.clone().try_acquire_owned().ok()
    }

    /// A place for what can do without: one is always left to others.
    pub fn try_spare_place(&self) -> Option<OwnedSemaphorePermit> {
        if self.places.available_permits() > 1 {
            self.try_place()
        } else {
            None
        }
    }

    /// Waits for a place; the order of the first poll counts.
    pub fn place(
        &self,
    ) -> impl Future<Output = Result<OwnedSemaphorePermit, AcquireError>> + use<> {
        self.places.clone().acquire_owned()
    }

    /// Takes a place back: for the next who waits, unless there are too many.
    pub fn give_back(&self, place: OwnedSemaphorePermit) {
        let mut bounds = self.bounds();
        if bounds.withheld < bounds.most - bounds.limit {
            bounds.withheld += 1;
            place.forget();
        }
    }

    fn bounds(&self) -> std::sync::MutexGuard<'_, Bounds> {
        self.bounds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn free(population: &Population) -> usize {
        let taken = std::iter::from_fn(|| population.try_place());
        taken.collect::<Vec<_>>().len()
    }

    #[test]
    fn the_same_limit_said_again_takes_no_more_places() {
        let population = Population::new(10);
        for _ in 0..5 {
            population.set_limit(7);
            assert_eq!(free(&population), 7);
        }
    }

    #[test]
    fn a_limit_that_rises_gives_the_places_back() {
        let population = Population::new(10);
        for (limit, places) in [(3, 3), (6, 6), (100, 10), (0, 1), (10, 10)] {
            population.set_limit(limit);
            assert_eq!(free(&population), places);
            assert_eq!(population.limit(), places);
        }
    }

    #[test]
    fn places_in_use_are_withdrawn_as_they_come_back() {
        let population = Population::new(3);
        let mut used: Vec<_> = std::iter::from_fn(|| population.try_place()).collect();
        population.set_limit(1);
        for _ in 0..2 {
            population.give_back(used.pop().unwrap());
            assert_eq!(free(&population), 0);
        }
        population.give_back(used.pop().unwrap());
        assert_eq!(free(&population), 1);
    }
}
