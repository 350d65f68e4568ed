//! Whether the wall clock can be trusted. Ages are computed from times that this bridge or another one
//! recorded with its wall clock; to a clock that is hours ahead, everything has expired. So before anything
//! is removed by age, the clock is compared with three others:
//!
//! - the time since the kernel started, which cannot be set: has the wall clock moved differently?
//! - those of the other bridges on the folder, by the times in their records;
//! - that of the filesystem, by the time of a new file (on shared storage it is another machine's).
//!
//! If one of them disagrees, nothing is removed by age, and `/health` reports it.

use std::{
    fs,
    time::{Duration, Instant, SystemTime},
};

use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;

/// Tolerated difference. Synchronized clocks differ by less, and no retention is short enough for this to
/// matter.
pub(super) const TOLERANCE: SignedDuration = SignedDuration::from_secs(60);
/// A clock that was set is trusted again after it has run evenly for this long.
const BELIEVED_AFTER: Duration = Duration::from_secs(3600);

/// What this process knows about its clock.
#[derive(Debug)]
pub(super) struct Clock(Mutex<Trusted>);

#[derive(Debug)]
struct Trusted {
    /// A trusted moment, on both clocks.
    wall: Timestamp,
    up: Duration,
    /// How far the wall clock is off, and since when, by the kernel's time.
    moved: Option<(SignedDuration, Duration)>,
    /// The result of the last comparison.
    doubt: Option<String>,
}

/// Both clocks at one moment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment {
    pub wall: Timestamp,
    /// Time since the kernel started, including suspended time.
    pub up: Duration,
}

impl Moment {
    pub fn now() -> Self {
        Self {
            wall: Timestamp::now(),
            up: uptime(),
        }
    }
}

fn uptime() -> Duration {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    let read = || {
        let text = fs::read_to_string("/proc/uptime").ok()?;
        let seconds = text.split_whitespace().next()?.parse().ok()?;
        Duration::try_from_secs_f64(seconds).ok()
    };
    // This fallback does not count suspended time, so after a suspension the clock looks as if it had been
    // set.
    read().unwrap_or_else(|| START.get_or_init(Instant::now).elapsed())
}

/// The clock of another bridge, as its record shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PeerClock {
    pub host: String,
    /// How far this clock is ahead of it; `None` before its first observed renewal.
    pub ahead: Option<SignedDuration>,
}

/// Why nothing is removed by age now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Doubt {
    /// Another bridge has not been observed to renew its record yet: that takes seconds.
    Unknown(String),
    /// Clocks disagree.
    Disagree(String),
}

impl Doubt {
    pub fn why(&self) -> &str {
        match self {
            Self::Unknown(why) | Self::Disagree(why) => why,
        }
    }
}

impl Clock {
    pub fn at(moment: Moment) -> Self {
        Self(Mutex::new(Trusted {
            wall: moment.wall,
            up: moment.up,
            moved: None,
            doubt: None,
        }))
    }

    /// The trusted time: the wall clock, or if that was set in the meantime, the time that it would otherwise
    /// show.
    pub fn believed(&self, moment: Moment) -> Timestamp {
        let mut state = self.0.lock();
        let passed = moment.up.saturating_sub(state.up);
        let expected = state.wall.saturating_add(passed).unwrap_or(Timestamp::MAX);
        let off = moment.wall.duration_since(expected);
        if off.abs() <= TOLERANCE {
            (state.wall, state.up, state.moved) = (moment.wall, moment.up, None);
            return moment.wall;
        }
        let since = match state.moved {
            Some((before, since)) if (off - before).abs() <= TOLERANCE => since,
            _ => {
                state.moved = Some((off, moment.up));
                moment.up
            }
        };
        if moment.up.saturating_sub(since) >= BELIEVED_AFTER {
            (state.wall, state.up, state.moved) = (moment.wall, moment.up, None);
            return moment.wall;
        }
        expected
    }

    /// Compares all clocks. `None` if they agree.
    pub fn judge(
        &self,
        moment: Moment,
        disk: Option<SystemTime>,
        peers: &[PeerClock],
    ) -> Option<Doubt> {
        self.believed(moment);
        let doubt = self.own(moment, disk).or_else(|| of_peers(peers));
        let mut state = self.0.lock();
        let why = match &doubt {
            Some(Doubt::Disagree(why)) => Some(why.clone()),
            _ => None,
        };
        // The numbers of one disagreement change with each comparison, so only the start and the end are
        // logged.
        if why.is_some() != state.doubt.is_some() {
            if let Some(why) = &why {
                tracing::warn!("{}", warning(why));
            } else {
                tracing::info!("the clocks agree again; clean-up continues");
            }
        }
        state.doubt = why;
        doubt
    }

    fn own(&self, moment: Moment, disk: Option<SystemTime>) -> Option<Doubt> {
        if let Some((off, _)) = self.0.lock().moved {
            let why = format!(
                "this machine's clock was set {} while the bridge was running. If it is correct \
                 now, restart the bridge or wait an hour",
                difference(off, "forward", "back")
            );
            return Some(Doubt::Disagree(why));
        }
        let disk = disk.and_then(|time| Timestamp::try_from(time).ok())?;
        let off = moment.wall.duration_since(disk);
        (off.abs() > TOLERANCE).then(|| {
            Doubt::Disagree(format!(
                "this machine's clock is {} of the clock of the jobs directory's filesystem. \
                 Synchronize both with a time server",
                difference(off, "ahead", "behind")
            ))
        })
    }

    /// The warning for `/health`.
    pub fn warning(&self) -> Option<String> {
        self.0.lock().doubt.as_deref().map(warning)
    }
}

fn of_peers(peers: &[PeerClock]) -> Option<Doubt> {
    let far = |peer: &&PeerClock| peer.ahead.is_some_and(|ahead| ahead.abs() > TOLERANCE);
    if let Some(PeerClock {
        host,
        ahead: Some(ahead),
    }) = peers.iter().find(far)
    {
        return Some(Doubt::Disagree(format!(
            "this machine's clock is {} of the clock of a replica on {host}, which uses the same \
             jobs directory. Synchronize both with a time server",
            difference(*ahead, "ahead", "behind")
        )));
    }
    let unknown = peers.iter().find(|peer| peer.ahead.is_none())?;
    Some(Doubt::Unknown(format!(
        "the clock of a replica on {}, which uses the same jobs directory, is not known yet",
        unknown.host
    )))
}

fn difference(off: SignedDuration, ahead: &str, behind: &str) -> String {
    let direction = if off.is_negative() { behind } else { ahead };
    format!("{} s {direction}", off.abs().as_secs())
}

fn warning(why: &str) -> String {
    format!("clean-up by age is paused: {why}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3600;

    /// `up` seconds after the start, with a wall clock that is off by `off`.
    fn at(up: u64, off: i64) -> Moment {
        let wall = Timestamp::from_second(1_800_000_000).unwrap();
        let passed = SignedDuration::from_secs(up.cast_signed() + off);
        Moment {
            wall: wall + passed,
            up: Duration::from_secs(1000 + up),
        }
    }

    fn clock() -> Clock {
        Clock::at(at(0, 0))
    }

    fn disagrees(doubt: Option<&Doubt>) -> bool {
        matches!(doubt, Some(Doubt::Disagree(_)))
    }

    #[test]
    fn a_clock_that_is_set_and_set_back_is_not_believed_meanwhile() {
        for off in [3 * HOUR.cast_signed(), -2 * 86_400, 100 * 31_536_000] {
            let clock = clock();
            assert_eq!(clock.judge(at(10, 0), None, &[]), None);
            assert!(
                disagrees(clock.judge(at(20, off), None, &[]).as_ref()),
                "{off}"
            );
            assert_eq!(clock.believed(at(21, off)), at(21, 0).wall);
            assert!(clock.warning().unwrap().contains("was set"));
            assert_eq!(clock.judge(at(25, 0), None, &[]), None);
            assert_eq!(clock.warning(), None);
        }
    }

    #[test]
    fn a_clock_that_is_corrected_and_runs_evenly_is_believed_in_the_end() {
        let clock = clock();
        let off = 3 * HOUR.cast_signed();
        assert!(disagrees(clock.judge(at(10, off), None, &[]).as_ref()));
        assert!(disagrees(
            clock.judge(at(HOUR, off + 5), None, &[]).as_ref()
        ));
        assert_eq!(clock.judge(at(HOUR + 10, off), None, &[]), None);
        assert_eq!(clock.believed(at(HOUR + 11, off)), at(HOUR + 11, off).wall);
    }

    #[test]
    fn a_clock_that_drifts_is_followed() {
        let clock = clock();
        for day in 1..100 {
            let moment = at(day * 86_400, day.cast_signed() * 30);
            assert_eq!(clock.judge(moment, None, &[]), None);
        }
    }

    #[test]
    fn the_filesystems_clock_and_the_others_must_agree() {
        let clock = clock();
        let moment = at(10, 0);
        let disk = |off: i64| {
            Some(SystemTime::from(
                moment.wall + SignedDuration::from_secs(off),
            ))
        };
        assert_eq!(clock.judge(moment, disk(-30), &[]), None);
        assert!(disagrees(clock.judge(moment, disk(-7200), &[]).as_ref()));
        assert!(clock.warning().unwrap().contains("7200 s ahead"));
        let peer = |ahead: Option<i64>| PeerClock {
            host: "far".to_owned(),
            ahead: ahead.map(SignedDuration::from_secs),
        };
        assert_eq!(clock.judge(moment, None, &[peer(Some(3))]), None);
        let unknown = clock.judge(moment, None, &[peer(Some(3)), peer(None)]);
        assert!(matches!(unknown, Some(Doubt::Unknown(_))));
        assert_eq!(clock.warning(), None, "seconds are no news");
        let far = clock.judge(moment, None, &[peer(None), peer(Some(-7200))]);
        assert!(far.unwrap().why().contains("7200 s behind"));
    }

    #[test]
    fn the_kernel_tells_its_time() {
        let before = uptime();
        assert!(before > Duration::ZERO);
        assert!(uptime() >= before);
    }
}
