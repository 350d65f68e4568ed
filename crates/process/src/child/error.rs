//! Why a child did not respond, for callers.

use bridge_model::JobFolderPaths;

use super::control::ExitStatus;
use crate::relative::relative_text;

/// Maximum number of characters that an error quotes of one line of the child.
const QUOTED: usize = 300;

/// Why a child did not respond.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ChildError {
    /// The child did not become ready.
    #[error("the server failed to start: {why}{said}")]
    NotStarted {
        /// What happened, without the server's output.
        why: String,
        /// The server's output: its response, or the last lines of its log.
        said: String,
        /// It responded, and rejected all requested forms of the protocol.
        refused: bool,
    },
    /// It exited while a call waited.
    #[error("the server process exited during the call ({status}){said}")]
    Died {
        /// The exit status.
        status: ExitStatus,
        /// The last lines of its log.
        said: String,
    },
    /// It sent a message above the size limit.
    #[error("the server sent a message larger than {limit} bytes (MCPO_MAX_MESSAGE_BYTES)")]
    TooLong {
        /// The limit.
        limit: usize,
    },
    /// A remote server did not respond.
    #[error("{why}")]
    Unanswered {
        /// What happened, with scheme, host and port of the server.
        why: String,
        /// Its session had ended before the call, which the server did not process; otherwise it may
        /// have processed it.
        unread: bool,
    },
    /// It does not support subscriptions to a resource.
    #[error("the server does not support subscriptions to this resource")]
    Unsubscribed,
    /// The deadline passed.
    #[error("the server did not respond in time")]
    Timeout,
    /// No permit among the concurrent starts became free.
    #[error("too many servers are starting (MCPO_MAX_STARTS); try again in a moment")]
    TooManyStarts,
}

impl ChildError {
    /// The error of a process that did not run, so it has no output.
    pub fn not_started(why: String) -> Self {
        Self::failed_start(why, String::new())
    }

    /// The error of a process that ran, with its output.
    pub fn failed_start(why: String, said: String) -> Self {
        Self::NotStarted {
            why,
            said,
            refused: false,
        }
    }

    /// Adds the remote server's origin, unless the text contains it.
    #[must_use]
    pub fn of_remote(self, origin: &str) -> Self {
        match self {
            Self::NotStarted { why, said, refused } if !why.contains(origin) => Self::NotStarted {
                why: format!("{why} (remote server {origin})"),
                said,
                refused,
            },
            other => other,
        }
    }

    /// Whether the start failed because the system has no descriptors, processes or memory left.
    pub fn is_lack_of_room(&self) -> bool {
        // EAGAIN, ENOMEM, ENFILE, EMFILE: the supervisor reports errors as text.
        const LACKS: [&str; 4] = ["11", "12", "23", "24"];
        let Self::NotStarted { why, .. } = self else {
            return false;
        };
        let lacks = |number: &&str| why.contains(&format!("(os error {number})"));
        LACKS.iter().any(lacks)
    }

    /// The error without the server's output, which may contain confidential data.
    pub fn brief(&self) -> String {
        match self {
            Self::NotStarted { why, .. } => why.clone(),
            Self::Died { status, .. } => format!("the process exited ({status})"),
            other => other.to_string(),
        }
    }

    /// Removes the workspace's path and id from the text: the error is sent to callers, records and
    /// logs, which must not contain them.
    #[must_use]
    pub fn without_folder(self, paths: &JobFolderPaths) -> Self {
        let plain = |text: String| relative_text(&text, paths);
        match self {
            Self::NotStarted { why, said, refused } => Self::NotStarted {
                why: plain(why),
                said: shortened(&plain(said)),
                refused,
            },
            Self::Died { status, said } => Self::Died {
                status,
                said: shortened(&plain(said)),
            },
            other => other,
        }
    }
}

/// Truncates each line to the quotable length.
fn shortened(said: &str) -> String {
    let lines = said.lines();
    let lines = lines.map(|line| line.chars().take(QUOTED).collect::<String>());
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use std::io::Error;

    use super::*;

    #[test]
    fn a_start_that_the_system_has_no_room_for_is_told_from_others() {
        let failed = |number: i32| {
            let error = Error::from_raw_os_error(number);
            ChildError::not_started(format!("cannot start 'server': {error}"))
        };
        for number in [11, 12, 23, 24] {
            assert!(failed(number).is_lack_of_room(), "{number}");
        }
        for number in [1, 2, 13] {
            assert!(!failed(number).is_lack_of_room(), "{number}");
        }
        assert!(!ChildError::Timeout.is_lack_of_room());
    }
}
