//! How many children of a kind should be ready: as many as lately came within the time that one
//! takes to start.

use std::time::Duration;

use tokio::time::Instant;

/// A burst is followed within this, and a quiet time is believed after the other.
const FAST: Duration = Duration::from_secs(10);
const SLOW: Duration = Duration::from_secs(60);
/// Arrivals come in heaps.
const SAFETY: f64 = 2.0;
/// Until one was started.
const START: Duration = Duration::from_secs(1);

/// Who came lately, and how long a start takes.
pub struct Demand {
    fast: Decaying,
    slow: Decaying,
    start: Option<Duration>,
    last: Instant,
}

/// A count of arrivals of which each fades.
struct Decaying {
    over: Duration,
    count: f64,
    at: Instant,
}

impl Demand {
    /// Nobody came so far.
    pub fn new(now: Instant) -> Self {
        let decaying = |over| Decaying {
            over,
            count: 0.0,
            at: now,
        };
        Self {
            fast: decaying(FAST),
            slow: decaying(SLOW),
            start: None,
            last: now,
        }
    }

    /// Somebody came.
    pub fn arrived(&mut self, now: Instant) {
        self.fast.add(now);
        self.slow.add(now);
        self.last = now;
    }

    /// A start took so long.
    pub fn started(&mut self, took: Duration) {
        self.start = Some(self.start.map_or(took, |before| (before * 3 + took) / 4));
    }

    /// When somebody came last.
    pub fn last(&self) -> Instant {
        self.last
    }

    /// How many should be ready; none once nobody came for `idle`.
    pub fn wanted(&self, idle: Duration, now: Instant) -> usize {
        if now.duration_since(self.last) >= idle {
            return 0;
        }
        let rate = self.fast.rate(now).max(self.slow.rate(now));
        let within = rate * self.start.unwrap_or(START).as_secs_f64() * SAFETY;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a small number that is not negative"
        )]
        let wanted = within.ceil() as usize;
        wanted.max(1)
    }
}

impl Decaying {
    fn count(&self, now: Instant) -> f64 {
        let age = now.duration_since(self.at).as_secs_f64();
        self.count * (-age / self.over.as_secs_f64()).exp()
    }

    fn add(&mut self, now: Instant) {
        self.count = self.count(now) + 1.0;
        self.at = now;
    }

    /// A second.
    fn rate(&self, now: Instant) -> f64 {
        self.count(now) / self.over.as_secs_f64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: Duration = Duration::from_secs(600);

    /// What is wanted after so many arrivals, one each `every`.
    fn after(arrivals: u32, every: Duration, start: Duration) -> usize {
        let mut now = Instant::now();
        let mut demand = Demand::new(now);
        demand.started(start);
        for _ in 0..arrivals {
            now += every;
            demand.arrived(now);
        }
        demand.wanted(IDLE, now)
    }

    #[test]
    fn one_for_who_comes_now_and_then() {
        assert_eq!(after(1, IDLE, Duration::from_secs(2)), 1);
        assert_eq!(after(9, IDLE, Duration::from_secs(2)), 1);
    }

    #[test]
    fn as_many_as_come_while_one_starts_and_some_more() {
        let every = Duration::from_millis(400);
        assert_eq!(after(200, every, Duration::from_millis(30)), 1);
        let slow = after(200, every, Duration::from_secs(1));
        assert!((5..=6).contains(&slow), "{slow}");
    }

    #[test]
    fn a_burst_is_seen_within_seconds() {
        let wanted = after(10, Duration::from_millis(100), Duration::from_secs(2));
        assert!(wanted >= 3, "{wanted}");
    }

    #[test]
    fn nobody_for_long_and_none_is_kept() {
        let now = Instant::now();
        let mut demand = Demand::new(now);
        demand.arrived(now);
        assert_eq!(demand.wanted(IDLE, now + IDLE / 2), 1);
        assert_eq!(demand.wanted(IDLE, now + IDLE), 0);
    }

    #[test]
    fn fewer_as_fewer_come() {
        let mut now = Instant::now();
        let mut demand = Demand::new(now);
        demand.started(Duration::from_secs(2));
        for _ in 0..100 {
            now += Duration::from_millis(100);
            demand.arrived(now);
        }
        let busy = demand.wanted(IDLE, now);
        let later = demand.wanted(IDLE, now + Duration::from_secs(120));
        assert!(busy > 10 && later < busy / 2, "{busy}, then {later}");
        assert_eq!(demand.wanted(IDLE, now + Duration::from_secs(400)), 1);
    }
}
