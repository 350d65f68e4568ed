//! A clock for leases: it is the same for all processes of a machine, and goes on while the machine is
//! suspended. The one of `Instant` stands still then, while other machines count.

use std::{ops::Add, time::Duration};

use rustix::time::{ClockId, clock_gettime};

/// A moment by `CLOCK_BOOTTIME`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct BootTime(Duration);

impl BootTime {
    /// This moment.
    pub fn now() -> Self {
        let now = clock_gettime(ClockId::Boottime);
        Self(now.try_into().unwrap_or_default())
    }

    /// How long ago it was; nothing for one that is still to come.
    pub fn elapsed(self) -> Duration {
        Self::now().0.saturating_sub(self.0)
    }

    /// How long it is until then; nothing for one that is over.
    pub fn remaining(self) -> Duration {
        self.0.saturating_sub(Self::now().0)
    }

    /// For another process of this machine.
    pub fn to_millis(self) -> u64 {
        u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX)
    }

    /// As another process said it.
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
        // The kernel says `uptime` by the same clock.
        let since = BootTime(Duration::from_secs_f64(seconds)).elapsed();
        assert!(since < Duration::from_secs(30), "{since:?}");
        let later = BootTime::now() + Duration::from_secs(60);
        assert!(later.remaining() > Duration::from_secs(30));
        assert_eq!(later.elapsed(), Duration::ZERO);
        let said = BootTime::from_millis(later.to_millis());
        assert!(said <= later && said + Duration::from_millis(1) > later);
    }
}
