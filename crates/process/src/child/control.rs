//! The words between the bridge and a child's supervisor, over one stream socket.
//!
//! ```text
//! bridge → supervisor   one byte with three descriptors: the child's stdin, stdout, stderr
//! supervisor → bridge   "pid 4711"             the child runs
//!                       "fail <why>"           it could not be started; the end
//! bridge → supervisor   "until <time>"         milliseconds of CLOCK_BOOTTIME at which everything is
//!                                              killed, unless a later time is said before; 0 takes
//!                                              it back
//! bridge → supervisor   "end <wait> <grace>"   milliseconds before SIGTERM, and then before SIGKILL
//! supervisor → bridge   "exit code 0" | "exit signal 9"   after nothing of the tree is left
//! supervisor → bridge   "by 4710"              before "pid", from one that the bridge did not start
//! bridge → nursery      "sweep"                a supervisor below it is gone: what it left goes too
//! ```
//! The end of the stream, whichever way, means: kill everything now.

use std::{ffi::OsStr, time::Duration};

use bridge_model::BootTime;

/// The hidden subcommand that turns this binary into a supervisor.
pub const SUPERVISE: &str = "__supervise";
/// The same above a fork parent, whose end leaves those that were forked from it.
pub const NURSERY: &str = "__nursery";
/// The same for a child that was forked already, by the process that becomes its supervisor.
pub const ADOPT: &str = "__adopt";
/// Asks a nursery to look for what a supervisor left.
pub const SWEEP: &str = "sweep";

/// How a child left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    /// It returned this code.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
    /// Its supervisor vanished before it could say.
    Unknown,
    /// A remote server's session is over; no supervisor says so.
    SessionOver,
}

impl std::fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(signal) => write!(f, "exit signal {signal}"),
            Self::Unknown => f.write_str("exit status unknown"),
            Self::SessionOver => f.write_str("session ended"),
        }
    }
}

/// What a supervisor reports.
#[derive(Debug, PartialEq, Eq)]
pub enum Report {
    /// The supervisor's own process id.
    By(u32),
    /// The child runs under this process id.
    Started(u32),
    /// It could not be started, and why.
    Failed(String),
    /// The child and everything below it is gone.
    Exited(ExitStatus),
}

impl Report {
    /// One line, without its newline.
    pub fn to_line(&self) -> String {
        match self {
            Self::By(pid) => format!("by {pid}"),
            Self::Started(pid) => format!("pid {pid}"),
            Self::Failed(why) => format!("fail {}", why.replace('\n', " ")),
            Self::Exited(status) => status.to_string(),
        }
    }

    /// Reads what [`Report::to_line`] wrote; `None` for anything else.
    pub fn from_line(line: &str) -> Option<Self> {
        if let Some(why) = line.strip_prefix("fail ") {
            return Some(Self::Failed(why.to_owned()));
        }
        if let Some(pid) = line.strip_prefix("by ") {
            return pid.parse().ok().map(Self::By);
        }
        if let Some(pid) = line.strip_prefix("pid ") {
            return pid.parse().ok().map(Self::Started);
        }
        let status = if let Some(code) = line.strip_prefix("exit code ") {
            ExitStatus::Code(code.parse().ok()?)
        } else if let Some(signal) = line.strip_prefix("exit signal ") {
            ExitStatus::Signal(signal.parse().ok()?)
        } else {
            (line == "exit status unknown").then_some(ExitStatus::Unknown)?
        };
        Some(Self::Exited(status))
    }
}

/// The line that says how long the bridge's right to run children lasts.
pub fn until_line(until: Option<BootTime>) -> String {
    format!("until {}\n", until.map_or(0, BootTime::to_millis))
}

/// The time of such a line, none where there is no end; `None` for anything else.
#[expect(
    clippy::option_option,
    reason = "a line that is no such line is not one without an end"
)]
pub fn until_of(line: &str) -> Option<Option<BootTime>> {
    let time = line.strip_prefix("until ")?.parse().ok()?;
    Some((time != 0).then(|| BootTime::from_millis(time)))
}

/// How a child is asked to end. Its stdin is closed first, unless it is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Time to leave by itself, then SIGTERM, the same time again, then SIGKILL.
    Gracefully(Duration),
    /// SIGTERM at once, this time, then SIGKILL: for a call past its deadline.
    Terminate(Duration),
    /// SIGKILL at once: for a child whose answer is already in.
    Kill,
}

impl End {
    /// The line that asks for it.
    pub fn to_line(self) -> String {
        let (wait, grace) = match self {
            Self::Gracefully(time) => (time, time),
            Self::Terminate(grace) => (Duration::ZERO, grace),
            Self::Kill => (Duration::ZERO, Duration::ZERO),
        };
        format!("end {} {}\n", wait.as_millis(), grace.as_millis())
    }

    /// How long it may take, both times together.
    pub fn longest(self) -> Duration {
        match self {
            Self::Gracefully(time) => time * 2,
            Self::Terminate(grace) => grace,
            Self::Kill => Duration::ZERO,
        }
    }

    /// The two times of an `end` line; `None` for anything else.
    pub fn times(line: &str) -> Option<(Duration, Duration)> {
        let (wait, grace) = line.strip_prefix("end ")?.split_once(' ')?;
        let millis = |text: &str| text.parse().ok().map(Duration::from_millis);
        Some((millis(wait)?, millis(grace)?))
    }
}

/// What a supervisor is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Duty {
    /// One child, which it starts.
    Child,
    /// A fork parent, which it starts, and what comes of that.
    Nursery,
    /// One child that is there.
    Adopted,
}

impl Duty {
    /// As said by the first argument of the command line.
    pub fn named(word: &OsStr) -> Option<Self> {
        let duties = [
            (SUPERVISE, Self::Child),
            (NURSERY, Self::Nursery),
            (ADOPT, Self::Adopted),
        ];
        let duty = duties.into_iter().find(|(name, _)| word == *name);
        duty.map(|(_, duty)| duty)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_survive_the_line() {
        for report in [
            Report::By(6),
            Report::Started(7),
            Report::Failed("No such file".into()),
            Report::Exited(ExitStatus::Code(-1)),
            Report::Exited(ExitStatus::Signal(9)),
            Report::Exited(ExitStatus::Unknown),
        ] {
            assert_eq!(Report::from_line(&report.to_line()), Some(report));
        }
        assert_eq!(Report::from_line("exit code nine"), None);
    }

    #[test]
    fn an_end_of_the_right_to_run_survives_the_line() {
        let until = BootTime::from_millis(86_400_007);
        assert_eq!(
            until_of(until_line(Some(until)).trim_end()),
            Some(Some(until))
        );
        assert_eq!(until_of(until_line(None).trim_end()), Some(None));
        assert_eq!(until_of("end 0 0"), None);
    }

    #[test]
    fn an_end_says_both_times() {
        let times = |end: End| End::times(end.to_line().trim_end()).unwrap();
        let second = Duration::from_secs(1);
        assert_eq!(times(End::Gracefully(second)), (second, second));
        assert_eq!(times(End::Terminate(second)), (Duration::ZERO, second));
        assert_eq!(times(End::Kill), (Duration::ZERO, Duration::ZERO));
    }
}
