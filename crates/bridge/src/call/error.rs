//! Errors of calls. `http::problem` has the status of each.

use std::time::Duration;

use bridge_process::{ChildError, ExitStatus};
use bridge_protocol::{RawJson, jsonrpc::Reply};
use bridge_state::StoreError;
use serde_json::Value;

use crate::{error_table::ErrorKind, session::SessionError};

/// The warning for a request that the tool got without returning a result: repeating the call may
/// execute it twice.
const MAY_BE_DONE: &str = "the call may have been executed, partly or completely: check the \
                           chat's files, or the data that the tool changes, before you repeat it";

/// The message of a JSON-RPC error object, whatever its form.
pub fn rpc_words(error: &Value) -> String {
    let said = match error {
        Value::Object(members) => members.get("message").unwrap_or(error),
        other => other,
    };
    match said {
        Value::String(text) => text.clone(),
        nothing if nothing.is_null() || *nothing == serde_json::json!({}) => {
            "the server returned no message".to_owned()
        }
        other => other.to_string(),
    }
}

/// The errors that can end a call without a result of the tool.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The child failed.
    #[error(transparent)]
    Child(ChildError),
    /// The server answered with a JSON-RPC error object.
    #[error("the server returned an error")]
    Rpc {
        /// The object.
        error: RawJson,
        /// The whole answer that contains it.
        reply: Reply,
    },
    /// The deadline passed; the child was ended if it is the chat's own.
    #[error("no response within {} s{}", .0.time.as_secs_f64(), .0.said())]
    Timeout(Waited),
    /// The caller did not answer the server's request for input; the child continues without the call.
    #[error(
        "the request for input was not answered within {} s (MCPO_INPUT_TIMEOUT)",
        .0.as_secs_f64()
    )]
    Unanswered(Duration),
    /// The caller closed the connection.
    #[error("the client disconnected")]
    Left,
    /// Too many calls are running and waiting.
    #[error("{0}; try again in a moment")]
    Busy(String),
    /// The free disk space is below the minimum, or the disk became full.
    #[error("{0}")]
    DiskFull(String),
    /// The call was ended because its folder far exceeded the limit.
    #[error("the call was cancelled: {0}")]
    OverQuota(String),
    /// The session id was not issued to this caller.
    #[error("session not found")]
    UnknownSession,
    /// Another replica serves this chat.
    #[error("{0}")]
    Elsewhere(String),
    /// Another replica took the chat over, or may have, while this one did not respond, or could not
    /// reach the jobs folder. The child had got the request.
    #[error(
        "another replica took over this chat, or may have, because this one did not respond; {may}",
        may = MAY_BE_DONE
    )]
    Fenced,
    /// The same before the child got the request.
    #[error(
        "another replica took over this chat, or may have, because this one did not respond; this \
         call was not started"
    )]
    TakenOver,
    /// The replica that ran the call exited, or stopped responding, before it answered.
    #[error(
        "the replica that ran this call stopped before it responded ({0}); {may}",
        may = MAY_BE_DONE
    )]
    ReplicaLost(String),
    /// The tool had got the request when this error occurred: it may have acted.
    #[error("{0}; {may}", may = MAY_BE_DONE)]
    Unfinished(Box<CallError>),
    /// The server requests input from a caller that does not support it.
    #[error(
        "the server requests input from the user ({asked}), which this client does not support: \
         use an MCP client that declares the capability"
    )]
    Unanswerable {
        /// The methods of the questions.
        asked: String,
    },
    /// The server asked for input in more rounds than allowed.
    #[error("the server still requests input after {0} rounds")]
    TooManyRounds(usize),
    /// The bridge is stopping.
    #[error("the bridge is shutting down")]
    ShuttingDown,
    /// An argument names a path that leaves the workspace.
    #[error("{field}: expected a file name within the chat's folder")]
    BadPath {
        /// The name of the argument.
        field: String,
    },
    /// The jobs folder failed.
    #[error("{0}")]
    Internal(String),
}

/// How important a failed call is for the administrator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Caused by the caller or by a limit.
    Expected,
    /// The server failed, or something that the bridge depends on.
    Failure,
    /// The bridge itself failed.
    Fault,
}

/// A wait for an answer.
#[derive(Debug)]
pub struct Waited {
    /// The timeout.
    pub time: Duration,
    /// The child's output during the wait that was not JSON-RPC.
    pub noise: Option<Box<str>>,
}

impl Waited {
    fn said(&self) -> String {
        let said = self.noise.as_deref().map(str::trim);
        said.map_or_else(String::new, |line| {
            format!("; the server wrote to stdout, but not JSON-RPC: {line}")
        })
    }
}

impl CallError {
    pub(super) fn internal(error: impl std::fmt::Display) -> Self {
        Self::Internal(error.to_string())
    }

    /// See [`Severity`]. There is no default, so that each new error is classified.
    pub fn severity(&self) -> Severity {
        match self {
            Self::Child(ChildError::Unsubscribed | ChildError::TooManyStarts)
            | Self::Rpc { .. }
            | Self::Unanswered(_)
            | Self::Left
            | Self::Busy(_)
            | Self::UnknownSession
            | Self::Elsewhere(_)
            | Self::TakenOver
            | Self::Unanswerable { .. }
            | Self::ShuttingDown
            | Self::BadPath { .. } => Severity::Expected,
            Self::Child(_)
            | Self::Timeout(_)
            | Self::DiskFull(_)
            | Self::OverQuota(_)
            | Self::Fenced
            | Self::ReplicaLost(_)
            | Self::TooManyRounds(_) => Severity::Failure,
            Self::Internal(_) => Severity::Fault,
            Self::Unfinished(error) => error.severity().max(Severity::Failure),
        }
    }

    /// The error without the server's own text, for the log.
    pub fn brief(&self) -> String {
        match self {
            Self::Child(error) => error.brief(),
            Self::Unfinished(error) => error.brief(),
            other => other.to_string(),
        }
    }

    /// The exit status of the server's process, if its end failed the call.
    pub fn exit_status(&self) -> Option<ExitStatus> {
        match self {
            Self::Child(ChildError::Died { status, .. }) => Some(*status),
            Self::Unfinished(error) => error.exit_status(),
            _ => None,
        }
    }

    /// The error of a call whose tool got the request before it failed. A temporary refusal would be
    /// taken as advice to repeat it, by programs too.
    #[must_use]
    pub fn after_asking(self) -> Self {
        match self {
            Self::Busy(_)
            | Self::ShuttingDown
            | Self::Timeout(_)
            | Self::Unanswered(_)
            | Self::TooManyRounds(_)
            | Self::DiskFull(_)
            | Self::OverQuota(_)
            | Self::Internal(_)
            | Self::Child(
                ChildError::Died { .. }
                | ChildError::TooLong { .. }
                | ChildError::Unanswered { unread: false, .. }
                | ChildError::Timeout,
            ) => Self::Unfinished(Box::new(self)),
            Self::TakenOver => Self::Fenced,
            other => other,
        }
    }

    /// The row of the error table.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Child(ChildError::NotStarted { .. }) => ErrorKind::NOT_STARTED,
            Self::Child(ChildError::Died { .. }) => ErrorKind::DIED,
            Self::Child(ChildError::Unanswered { .. }) => ErrorKind::REMOTE_FAILED,
            Self::Child(ChildError::TooLong { .. }) => ErrorKind::ANSWER_TOO_LARGE,
            Self::Child(ChildError::Unsubscribed) => ErrorKind::NOT_SUBSCRIBED,
            Self::Unanswerable { .. } => ErrorKind::INPUT_REQUIRED,
            Self::TooManyRounds(_) => ErrorKind::TOO_MANY_ROUNDS,
            Self::Child(ChildError::Timeout) | Self::Timeout(_) => ErrorKind::TIMEOUT,
            Self::Unanswered(_) => ErrorKind::NOT_ANSWERED,
            Self::Rpc { .. } => ErrorKind::RPC_ERROR,
            Self::Left => ErrorKind::CANCELLED,
            Self::Busy(_) | Self::Child(ChildError::TooManyStarts) => ErrorKind::BUSY,
            Self::DiskFull(_) | Self::OverQuota(_) => ErrorKind::DISK_FULL,
            Self::UnknownSession => ErrorKind::UNKNOWN_SESSION,
            Self::Elsewhere(_) | Self::TakenOver => ErrorKind::ELSEWHERE,
            Self::Unfinished(error) => error.kind().after_asking(),
            Self::Fenced => ErrorKind::FENCED,
            Self::ReplicaLost(_) => ErrorKind::REPLICA_LOST,
            Self::ShuttingDown => ErrorKind::SHUTTING_DOWN,
            Self::BadPath { .. } => ErrorKind::BAD_FILE_NAME,
            Self::Internal(_) => ErrorKind::INTERNAL,
        }
    }
}

impl From<StoreError> for CallError {
    fn from(error: StoreError) -> Self {
        if let StoreError::Fenced = error {
            Self::TakenOver
        } else if error.is_disk_full() {
            Self::DiskFull(error.to_string())
        } else {
            Self::internal(error)
        }
    }
}

impl From<SessionError> for CallError {
    fn from(error: SessionError) -> Self {
        match error {
            SessionError::Child(error) => Self::Child(error),
            SessionError::Unknown => Self::UnknownSession,
            SessionError::Elsewhere(error) => Self::Elsewhere(error.to_string()),
            SessionError::Store(error) => error.into(),
            SessionError::Files(error) => Self::DiskFull(error.to_string()),
            SessionError::Full { .. } | SessionError::ShareFull { .. } => {
                Self::Busy(error.to_string())
            }
        }
    }
}
