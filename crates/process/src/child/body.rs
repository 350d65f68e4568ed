//! What is behind a child: a process tree of ours, or a conversation with a remote server.

use std::time::Duration;

use bridge_protocol::RawJson;
use futures_util::FutureExt as _;
use tokio::time::timeout;

use super::{
    control::{End, ExitStatus},
    process::Process,
    tree,
};
use crate::remote::{Failed, RemoteHandle};

/// What is behind a child. Dropping it ends it at once.
pub enum Body {
    /// A process and all below it.
    Local(Process),
    /// A server somewhere else; its session there is the child.
    Remote(RemoteHandle),
}

impl Body {
    /// The process id, where there is one.
    pub fn pid(&self) -> Option<u32> {
        match self {
            Self::Local(process) => Some(process.pid()),
            Self::Remote(_) => None,
        }
    }

    /// Whether it has not ended; a remote server's session neither was told to.
    pub fn is_there(&self) -> bool {
        match self {
            Self::Local(process) => process.exit_status().is_none(),
            Self::Remote(remote) => !remote.is_over(),
        }
    }

    /// Bytes of this machine's memory: proportional set size. Reads all of `/proc`: blocks.
    pub fn memory(&self) -> u64 {
        self.pid().map_or(0, tree::memory)
    }

    /// Reads an error object: that a remote server gave no answer.
    pub fn failed(&self, error: &RawJson) -> Option<Failed> {
        match self {
            Self::Local(_) => None,
            Self::Remote(remote) => remote.failed(error),
        }
    }

    /// Waits until nothing of it is left, without keeping it alive.
    pub fn gone(&self) -> impl Future<Output = ExitStatus> + Send + use<> {
        match self {
            Self::Local(process) => process.gone().left_future(),
            Self::Remote(remote) => {
                let gone = remote.gone().map(|()| ExitStatus::SessionOver);
                gone.right_future()
            }
        }
    }

    /// Ends it, its stdin being closed, and waits until nothing of it is left. A remote server's
    /// last word is waited for only as long as a process would be.
    pub async fn end(&self, how: End) -> ExitStatus {
        let remote = match self {
            Self::Local(process) => {
                process.ask_to_end(how);
                return process.gone().await;
            }
            Self::Remote(remote) => remote,
        };
        let (before, after) = match how {
            End::Gracefully(time) => (time, time),
            End::Terminate(grace) => (Duration::ZERO, grace),
            End::Kill => (Duration::ZERO, Duration::ZERO),
        };
        if timeout(before, remote.gone()).await.is_err() {
            remote.hang_up();
            let _ = timeout(after, remote.gone()).await;
        }
        ExitStatus::SessionOver
    }
}
