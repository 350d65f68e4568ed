//! A clock for leases: all processes of a machine share it, and it continues while the machine is
//! suspended. The clock of `Instant` stops then, while other machines' clocks continue.

use std::{ops::Add, time::Duration};

use rustix::time::{ClockId, clock_gettime};

/// A point in time on the clock `CLOCK_BOOTTIME`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct BootTime(Duration);

impl BootTime {
    /// The current time.
    pub fn now() -> Self {
        let now = clock_gettime(ClockId::Boottime);
        Self(now.try_into().unwrap_or_default())
    }

    /// The time since then; zero if it is in the future.
    pub fn elapsed(self) -> Duration {
        Self::now().0.saturating_sub(self.0)
    }

    /// The time until then; zero if it has passed.
    pub fn remaining(self) -> Duration {
        self.0.saturating_sub(Self::now().0)
    }

    /// For another process of the same machine.
    pub fn to_millis(self) -> u64 {
        u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX)
    }

    /// From the value that another process sent.
    pub fn from_millis(millis: u64) -> Self {
        Self(Duration::from_millis(millis))
    }
}

impl Add<Duration> for BootTime {
    type Output = Self;
    fn add(self, time: Duration) -> Self {
        Self(self.0.saturating_add(time))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_counts_from_the_machines_start_with_what_was_slept() {
        let uptime = std::fs::read_to_string("/proc/uptime").unwrap();
        let seconds: f64 = uptime.split(' ').next().unwrap().parse().unwrap();
        // The kernel reports `uptime` by the same clock.
        let since = BootTime(Duration::from_secs_f64(seconds)).elapsed();
        assert!(since < Duration::from_secs(30), "{since:?}");
        let later = BootTime::now() + Duration::from_secs(60);
        assert!(later.remaining() > Duration::from_secs(30));
        assert_eq!(later.elapsed(), Duration::ZERO);
        let said = BootTime::from_millis(later.to_millis());
        assert!(said <= later && said + Duration::from_millis(1) > later);
    }
}
