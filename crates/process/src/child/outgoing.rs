//! What goes to a child: whole lines, in the order in which they were sent.
//!
//! Whoever sends writes at once, what others have sent meanwhile included, so that nobody has to be
//! woken for it. Only what the child's pipe does not take is left to a task, which waits for room.
//!
//! ```text
//! send ──▶ waiting lines ──whoever holds the pipe──▶ child
//!                                └──pipe full──▶ the task holds it until nothing waits
//! ```

use std::{
    collections::VecDeque,
    pin::Pin,
    task::{Context, Poll, Waker},
};

use bytes::{Buf as _, Bytes};
use parking_lot::{Mutex, MutexGuard};
use tokio::{
    io::{AsyncWrite, AsyncWriteExt as _},
    sync::Notify,
};

/// Lines that wait for a child which reads slowly; then senders wait.
const MOST: usize = 256;
/// Lines written with one call.
const BATCH: usize = 64;

type Stdin = Box<dyn AsyncWrite + Send + Unpin>;

/// The way to one child's stdin.
pub struct Outgoing {
    lines: Mutex<Lines>,
    pipe: Mutex<Pipe>,
    /// There is something for the task.
    stuck: Notify,
    room: Notify,
}

#[derive(Default)]
struct Lines {
    waiting: VecDeque<Bytes>,
    closed: bool,
}

struct Pipe {
    /// Not there while the task writes, and after the end.
    stdin: Option<Stdin>,
    /// What a write has left of what it was given.
    rest: Bytes,
}

/// The child takes nothing more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shut;

impl Outgoing {
    pub fn new(stdin: impl AsyncWrite + Send + Unpin + 'static) -> Self {
        Self {
            lines: Mutex::default(),
            pipe: Mutex::new(Pipe {
                stdin: Some(Box::new(stdin)),
                rest: Bytes::new(),
            }),
            stuck: Notify::new(),
            room: Notify::new(),
        }
    }

    /// Sends a whole line, its end included; waits while too many wait.
    pub async fn send(&self, line: Bytes) -> Result<(), Shut> {
        let mut line = Some(line);
        loop {
            let mut room = std::pin::pin!(self.room.notified());
            // Listening begins before looking, or the last word of it could be missed.
            room.as_mut().enable();
            if self.push(&mut line)? {
                self.flush();
                return Ok(());
            }
            room.await;
        }
    }

    /// Sends one that is lost where the child takes nothing in.
    pub fn try_send(&self, line: Bytes) {
        if self.push(&mut Some(line)) == Ok(true) {
            self.flush();
        }
    }

    /// True once it is among those that wait.
    fn push(&self, line: &mut Option<Bytes>) -> Result<bool, Shut> {
        let mut lines = self.lines();
        if lines.closed {
            return Err(Shut);
        }
        let room = lines.waiting.len() < MOST;
        if room {
            lines.waiting.extend(line.take());
        }
        Ok(room)
    }

    /// Writes what waits, unless somebody else does: he looks again once he has let go.
    fn flush(&self) {
        loop {
            let Some(mut pipe) = self.pipe.try_lock() else {
                return;
            };
            let Pipe { stdin, rest } = &mut *pipe;
            let Some(open) = stdin else { return };
            if !self.write_now(open, rest) {
                self.stuck.notify_one();
                return;
            }
            drop(pipe);
            // Who came meanwhile found the pipe taken, and went.
            if self.lines().waiting.is_empty() {
                return;
            }
        }
    }

    /// False where the task has to do it.
    fn write_now(&self, stdin: &mut Stdin, rest: &mut Bytes) -> bool {
        let mut context = Context::from_waker(Waker::noop());
        loop {
            if rest.is_empty() {
                *rest = self.next();
            }
            if rest.is_empty() {
                return true;
            }
            match Pin::new(&mut *stdin).poll_write(&mut context, rest) {
                Poll::Ready(Ok(written @ 1..)) => rest.advance(written),
                _ => return false,
            }
        }
    }

    /// What is written next; empty if nothing waits.
    fn next(&self) -> Bytes {
        let mut lines = self.lines();
        let full = lines.waiting.len() >= MOST;
        let many = lines.waiting.len().min(BATCH);
        let next = match many {
            0 => Bytes::new(),
            1 => lines.waiting.pop_front().unwrap_or_default(),
            _ => {
                let batch: Vec<Bytes> = lines.waiting.drain(..many).collect();
                batch.concat().into()
            }
        };
        drop(lines);
        if full {
            self.room.notify_waiters();
        }
        next
    }

    /// Writes what senders had to leave, until the child takes nothing more.
    pub async fn write_left(&self) -> std::io::Result<()> {
        loop {
            self.stuck.notified().await;
            let taken = {
                let mut pipe = self.pipe();
                let rest = std::mem::take(&mut pipe.rest);
                pipe.stdin.take().map(|stdin| (stdin, rest))
            };
            let Some((mut stdin, mut rest)) = taken else {
                continue;
            };
            while !rest.is_empty() {
                stdin.write_all(&rest).await?;
                rest = self.next();
            }
            self.pipe().stdin = Some(stdin);
            // What came since nobody could hold the pipe.
            self.flush();
        }
    }

    /// Nothing more is taken.
    pub fn shut(&self) {
        self.lines().closed = true;
        self.room.notify_waiters();
    }

    /// The same, and the child reads its end.
    pub fn close(&self) {
        self.shut();
        self.pipe().stdin = None;
    }

    fn lines(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock()
    }

    fn pipe(&self) -> MutexGuard<'_, Pipe> {
        self.pipe.lock()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::io::{AsyncReadExt as _, DuplexStream};

    use super::*;

    fn pipe(room: usize) -> (Arc<Outgoing>, DuplexStream) {
        let (stdin, child) = tokio::io::duplex(room);
        (Arc::new(Outgoing::new(stdin)), child)
    }

    fn line(number: usize) -> Bytes {
        format!("line {number}\n").into()
    }

    #[tokio::test]
    async fn a_line_is_written_by_its_sender() {
        let (outgoing, mut child) = pipe(100);
        outgoing.send(line(1)).await.unwrap();
        outgoing.try_send(line(2));
        let mut read = [0; 14];
        child.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"line 1\nline 2\n");
    }

    #[tokio::test]
    async fn whole_lines_arrive_in_order_at_a_child_that_reads_byte_by_byte() {
        let (outgoing, mut child) = pipe(3);
        let task = outgoing.clone();
        let left = tokio::spawn(async move { task.write_left().await });
        let sender = outgoing.clone();
        let sending = tokio::spawn(async move {
            for number in 0..2 * MOST {
                sender.send(line(number)).await.unwrap();
            }
        });
        let wanted: Vec<Bytes> = (0..2 * MOST).map(line).collect();
        let wanted = wanted.concat();
        let mut read = vec![0; wanted.len()];
        child.read_exact(&mut read).await.unwrap();
        assert_eq!(read, wanted);
        sending.await.unwrap();
        outgoing.close();
        left.abort();
        assert_eq!(child.read(&mut [0]).await.unwrap(), 0);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn lines_of_many_senders_stay_whole() {
        let (outgoing, child) = pipe(64);
        let task = outgoing.clone();
        let left = tokio::spawn(async move { task.write_left().await });
        let senders = (0..8).map(|sender| {
            let outgoing = outgoing.clone();
            tokio::spawn(async move {
                for number in 0..200 {
                    let line = format!("{sender} {number}\n");
                    outgoing.send(line.into()).await.unwrap();
                    tokio::task::yield_now().await;
                }
            })
        });
        let senders: Vec<_> = senders.collect();
        let mut lines = tokio::io::AsyncBufReadExt::lines(tokio::io::BufReader::new(child));
        let mut next = [0; 8];
        for _ in 0..8 * 200 {
            let line = lines.next_line().await.unwrap().unwrap();
            let (sender, number) = line.split_once(' ').unwrap();
            let sender: usize = sender.parse().unwrap();
            assert_eq!(number.parse(), Ok(next[sender]), "{line}");
            next[sender] += 1;
        }
        for sender in senders {
            sender.await.unwrap();
        }
        left.abort();
    }

    #[tokio::test]
    async fn a_child_that_reads_nothing_lets_senders_wait_and_loses_what_need_not_arrive() {
        let (outgoing, child) = pipe(1);
        for number in 0..=MOST {
            outgoing.send(line(number)).await.unwrap();
        }
        outgoing.try_send(line(0));
        let waiting = tokio::spawn({
            let outgoing = outgoing.clone();
            async move { outgoing.send(line(0)).await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        outgoing.shut();
        assert_eq!(waiting.await.unwrap(), Err(Shut));
        drop(child);
        assert!(outgoing.write_left().await.is_err());
    }
}
