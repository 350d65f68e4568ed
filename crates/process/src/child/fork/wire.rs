//! The words between the bridge and a fork parent; `server/mcpo_fork/parent.py` has the other side.

use std::{
    io::{self, IoSlice},
    mem::MaybeUninit,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::PathBuf,
};

use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags,
    SocketType, recv, sendmsg, socketpair,
};
use serde::{Deserialize, Serialize};
use tokio::{io::Interest, net::UnixStream};

/// Bytes of one message from a parent.
const MOST: usize = 1 << 18;

/// What a parent is told.
#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Order<'a> {
    /// What runs.
    Begin(Begin<'a>),
    /// A new process.
    Fork(Fork<'a>),
    /// Import what the processes so far imported.
    Preload {},
}

/// What runs.
#[derive(Serialize)]
pub struct Begin<'a> {
    #[serde(flatten)]
    pub target: &'a super::plan::Target,
    /// `sys.argv[0]`.
    pub name: &'a str,
    /// What stands for that on the command line.
    pub written: &'a [String],
    /// The server's own arguments, as they are in the parent's own folder.
    pub argv: &'a [String],
    /// The environment that its interpreter was given; see [`Fork::env`].
    pub env: Vec<(String, String)>,
    /// What no module may keep.
    pub sentinel: String,
    /// The file in which processes write down what they import.
    pub learnt: PathBuf,
}

/// A new process.
#[derive(Serialize)]
pub struct Fork<'a> {
    pub cwd: &'a str,
    /// Bytes, each as the character of its number.
    pub env: Vec<(String, String)>,
    pub argv: &'a [String],
    /// It writes down what it imports.
    pub learn: bool,
}

/// What a parent says.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Word {
    Ready(Loaded),
    Unfit(String),
}

/// What a parent imported.
#[derive(Debug, Deserialize)]
pub struct Loaded {
    /// How many modules it has.
    pub modules: usize,
    /// What each process imports itself, with the reason.
    pub left_out: Vec<String>,
    /// Files that may change while the bridge runs.
    pub sources: Vec<PathBuf>,
}

/// Our end. Of a stream it has nothing but the type: messages stay apart.
pub struct Socket(UnixStream);

impl Socket {
    /// Ours, and the parent's.
    pub fn pair() -> io::Result<(Self, OwnedFd)> {
        let kind = SocketType::SEQPACKET;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
        let ours = std::os::unix::net::UnixStream::from(ours);
        ours.set_nonblocking(true)?;
        Ok((Self(UnixStream::from_std(ours)?), theirs))
    }

    /// Sends a message with descriptors; it arrives whole or not at all.
    pub async fn send(&self, order: &Order<'_>, with: &[BorrowedFd<'_>]) -> io::Result<()> {
        let text = serde_json::to_vec(order)?;
        let send = || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            if !with.is_empty() {
                ancillary.push(SendAncillaryMessage::ScmRights(with));
            }
            let text = [IoSlice::new(&text)];
            sendmsg(&self.0, &text, &mut ancillary, SendFlags::NOSIGNAL).map_err(io::Error::from)
        };
        self.0.async_io(Interest::WRITABLE, send).await?;
        Ok(())
    }

    /// The next word; `None` once the parent is gone.
    pub async fn next(&self) -> Option<Word> {
        let receive = || {
            let mut buffer = vec![0; MOST];
            let (count, _) = recv(self.0.as_fd(), &mut buffer, RecvFlags::empty())?;
            buffer.truncate(count);
            Ok(buffer)
        };
        let text = self.0.async_io(Interest::READABLE, receive).await.ok()?;
        serde_json::from_slice(&text).ok()
    }
}

/// Bytes, each as the character of its number: JSON knows no others.
pub fn latin(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| char::from(*byte)).collect()
}
