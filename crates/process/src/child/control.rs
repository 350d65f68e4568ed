//! The messages between the bridge and a child's supervisor, over one stream socket.
//!
//! ```text
//! bridge → supervisor   one byte with three descriptors: the child's stdin, stdout, stderr
//! supervisor → bridge   "pid 4711"             the child runs
//! supervisor → bridge   "fail <why>"           it could not be started; the last message
//! bridge → supervisor   "until <time>"         milliseconds of CLOCK_BOOTTIME at which everything is
//!                                              killed, unless a later time is sent before; 0: never
//! bridge → supervisor   "end <wait> <grace>"   milliseconds before SIGTERM, and then before SIGKILL
//! supervisor → bridge   "exit code 0" | "exit signal 9"   after all processes of the tree ended
//! supervisor → bridge   "by 4710"              before "pid", if the bridge did not start the supervisor
//! bridge → nursery      "sweep"                a supervisor below it ended: kill its remaining processes
//! ```
//! The end of the stream, for any reason, means: kill everything now.

use std::{ffi::OsStr, time::Duration};

use bridge_model::BootTime;

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    /// It returned this code.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
    /// Its supervisor ended without a report.
    Unknown,
    /// A remote server's session is over; it has no supervisor.
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

/// A report of a supervisor.
#[derive(Debug, PartialEq, Eq)]
pub enum Report {
    /// The supervisor's own process id.
    By(u32),
    /// The child runs under this process id.
    Started(u32),
    /// It could not be started, for this reason.
    Failed(String),
    /// The child and all its descendants have ended.
    Exited(ExitStatus),
}

impl Report {
    /// The report as one line, without its newline.
    pub fn to_line(&self) -> String {
        match self {
            Self::By(pid) => format!("by {pid}"),
            Self::Started(pid) => format!("pid {pid}"),
            Self::Failed(why) => format!("fail {}", why.replace('\n', " ")),
            Self::Exited(status) => status.to_string(),
        }
    }

    /// Parses the output of [`Report::to_line`]; `None` for anything else.
    pub fn from_line(line: &str) -> Option<Self> {
        let (word, rest) = line.split_once(' ')?;
        Some(match word {
            "fail" => Self::Failed(rest.to_owned()),
            "by" => Self::By(rest.parse().ok()?),
            "pid" => Self::Started(rest.parse().ok()?),
            "exit" => Self::Exited(match rest.split_once(' ')? {
                ("code", code) => ExitStatus::Code(code.parse().ok()?),
                ("signal", signal) => ExitStatus::Signal(signal.parse().ok()?),
                ("status", "unknown") => ExitStatus::Unknown,
                _ => return None,
            }),
            _ => return None,
        })
    }
}

/// An order of the bridge to a supervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Ends the child: the time before SIGTERM, and then before SIGKILL.
    End(Duration, Duration),
    /// Kills everything at this time, unless a later time is sent before; `None`: never.
    Until(Option<BootTime>),
    /// Asks a nursery to search for processes that a supervisor left behind.
    Sweep,
}

impl Order {
    /// The order as one line, without its newline.
    pub fn to_line(self) -> String {
        match self {
            Self::End(wait, grace) => format!("end {} {}", wait.as_millis(), grace.as_millis()),
            Self::Until(until) => format!("until {}", until.map_or(0, BootTime::to_millis)),
            Self::Sweep => "sweep".to_owned(),
        }
    }

    /// Parses the output of [`Order::to_line`]; `None` for anything else.
    pub fn from_line(line: &str) -> Option<Self> {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        match word {
            "end" => {
                let (wait, grace) = rest.split_once(' ')?;
                let millis = |text: &str| text.parse().ok().map(Duration::from_millis);
                Some(Self::End(millis(wait)?, millis(grace)?))
            }
            "until" => {
                let time = rest.parse().ok()?;
                let until = (time != 0).then(|| BootTime::from_millis(time));
                Some(Self::Until(until))
            }
            _ => (line == "sweep").then_some(Self::Sweep),
        }
    }
}

/// How a child is asked to end. Its stdin is closed first, unless it is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Time to exit by itself, then SIGTERM, the same time again, then SIGKILL.
    Gracefully(Duration),
    /// SIGTERM at once, this time, then SIGKILL: for a call past its deadline.
    Terminate(Duration),
    /// SIGKILL at once: for a child whose response has already arrived.
    Kill,
}

impl End {
    /// The time before SIGTERM, and then before SIGKILL.
    pub fn times(self) -> (Duration, Duration) {
        match self {
            Self::Gracefully(time) => (time, time),
            Self::Terminate(grace) => (Duration::ZERO, grace),
            Self::Kill => (Duration::ZERO, Duration::ZERO),
        }
    }
}

/// The task of a supervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Duty {
    /// Starts and supervises one child.
    Child,
    /// Starts and supervises a fork parent; when it ends, the processes forked from it continue.
    Nursery,
    /// Supervises one child that the process had forked before it became the supervisor.
    Adopted,
}

impl Duty {
    /// The hidden subcommand of this binary.
    pub fn word(self) -> &'static str {
        match self {
            Self::Child => "__supervise",
            Self::Nursery => "__nursery",
            Self::Adopted => "__adopt",
        }
    }

    /// The duty with this subcommand.
    pub fn named(word: &OsStr) -> Option<Self> {
        let mut all = [Self::Child, Self::Nursery, Self::Adopted].into_iter();
        all.find(|duty| word == duty.word())
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
    fn orders_survive_the_line() {
        let second = Duration::from_secs(1);
        for order in [
            Order::End(second, Duration::ZERO),
            Order::Until(Some(BootTime::from_millis(86_400_007))),
            Order::Until(None),
            Order::Sweep,
        ] {
            assert_eq!(Order::from_line(&order.to_line()), Some(order));
        }
        for line in ["end 0", "until", "sweep up", "pid 7"] {
            assert_eq!(Order::from_line(line), None, "{line}");
        }
    }
}
