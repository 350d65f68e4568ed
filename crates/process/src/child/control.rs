//! The messages between the bridge and a child's supervisor, over one stream socket.
//!
//! ```text
//! bridge → supervisor   one byte with three descriptors: the child's stdin, stdout, stderr
//! supervisor → bridge   "pid 4711"             the child runs
//!                       "fail <why>"           it could not be started; the end
//! bridge → supervisor   "until <time>"         milliseconds of CLOCK_BOOTTIME at which everything is
//!                                              killed, unless a later time is sent before; 0: never
//! bridge → supervisor   "end <wait> <grace>"   milliseconds before SIGTERM, and then before SIGKILL
//! supervisor → bridge   "exit code 0" | "exit signal 9"   after nothing of the tree is left
//! supervisor → bridge   "by 4710"              before "pid", from one that the bridge did not start
//! bridge → nursery      "sweep"                a supervisor below it is gone: it kills what that left
//! ```
//! The end of the stream, whichever way, means: kill everything now.

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

/// What the bridge asks of a supervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Ends the child: the time before SIGTERM, and then before SIGKILL.
    End(Duration, Duration),
    /// Kills everything at this time, unless a later one is sent before; `None`: never.
    Until(Option<BootTime>),
    /// Asks a nursery to look for what a supervisor left.
    Sweep,
}

impl Order {
    /// One line, without its newline.
    pub fn to_line(self) -> String {
        match self {
            Self::End(wait, grace) => format!("end {} {}", wait.as_millis(), grace.as_millis()),
            Self::Until(until) => format!("until {}", until.map_or(0, BootTime::to_millis)),
            Self::Sweep => "sweep".to_owned(),
        }
    }

    /// Reads what [`Order::to_line`] wrote; `None` for anything else.
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
    /// Time to leave by itself, then SIGTERM, the same time again, then SIGKILL.
    Gracefully(Duration),
    /// SIGTERM at once, this time, then SIGKILL: for a call past its deadline.
    Terminate(Duration),
    /// SIGKILL at once: for a child whose answer is already in.
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
    /// One child, which it starts.
    Child,
    /// A fork parent, which it starts and whose end ends no process forked from it.
    Nursery,
    /// One child that was forked before, by the process that becomes its supervisor.
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
