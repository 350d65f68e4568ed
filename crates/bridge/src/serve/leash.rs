//! How long this bridge has the right to run children: three quarters of the time to live from the
//! last renewal that was really written, where others may take its chats over; alone, without end.
//!
//! The others count a whole time to live from when they saw that renewal, which was later. What is
//! left between is for supervisors to notice and kill. A renewal that is written late or not at all
//! (a stopped process, a machine that was suspended, a folder that hangs or fails) so ends the
//! children before anybody else starts some.

use std::time::Duration;

use bridge_model::BootTime;
use parking_lot::Mutex;

/// What is known of it.
pub struct Leash {
    ttl: Duration,
    state: Mutex<State>,
}

struct State {
    confirmed: BootTime,
    neighbours: bool,
}

impl Leash {
    /// The record was written just before.
    pub fn new(ttl: Duration) -> Self {
        Self {
            ttl,
            state: Mutex::new(State {
                confirmed: BootTime::now(),
                neighbours: false,
            }),
        }
    }

    /// A renewal that began at `sent` was written, and can be read.
    pub fn confirm(&self, sent: BootTime) -> Option<BootTime> {
        self.change(|state| state.confirmed = state.confirmed.max(sent))
    }

    /// Whether there are others. Where they cannot be seen, what was seen last goes on.
    pub fn neighbours(&self, any: bool) -> Option<BootTime> {
        self.change(|state| state.neighbours = any)
    }

    fn change(&self, change: impl FnOnce(&mut State)) -> Option<BootTime> {
        let mut state = self.state.lock();
        change(&mut state);
        state.neighbours.then(|| state.confirmed + self.ttl * 3 / 4)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(20);

    #[test]
    fn alone_nothing_ends_it() {
        let leash = Leash::new(TTL);
        assert_eq!(leash.neighbours(false), None);
        assert_eq!(leash.confirm(BootTime::now()), None);
    }

    #[test]
    fn among_others_it_ends_before_they_may_take_over_unless_a_renewal_is_confirmed() {
        let leash = Leash::new(TTL);
        let first = BootTime::from_millis(1_000_000_000_000);
        leash.confirm(first);
        let until = leash.neighbours(true).unwrap();
        assert!(until > first + TTL / 2 && until < first + TTL);
        // However often the others are looked at.
        assert_eq!(leash.neighbours(true), Some(until));
        let second = first + TTL / 4;
        assert_eq!(leash.confirm(second), Some(until + TTL / 4));
        // One that was begun earlier and took its time says nothing new.
        assert_eq!(leash.confirm(first), Some(until + TTL / 4));
        assert_eq!(leash.neighbours(false), None);
    }
}
