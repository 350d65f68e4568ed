//! A thread that writes lines, and the bounded queue in front of it.
//!
//! A full pipe must neither stall the threads that serve everybody nor lose audit lines easily, so
//! pushing never waits, and what waits is bounded in bytes, with a reserve that only audit lines
//! may fill (hours of calls at a usual rate). What does not fit is counted, and the count is
//! written as soon as something can be. Ready-made writers bound lines, not bytes, and know no
//! reserve.

use parking_lot::{Condvar, Mutex, MutexGuard};

use std::{io::Write, sync::Arc, thread, time::Duration};

/// Bytes that wait before lines are dropped.
const ORDINARY_LIMIT: usize = 8 * 1024 * 1024;
/// Bytes that wait before audit lines are dropped.
const AUDIT_LIMIT: usize = 64 * 1024 * 1024;
/// How long the first waiting line waits for others: a write and a wake-up for each line cost more
/// than the lines where there are thousands a second.
const LINGER: Duration = Duration::from_millis(2);
/// What the end of the process gives a slow reader.
const LAST_CALL: Duration = Duration::from_secs(2);

/// Which limit holds for a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Worth {
    Ordinary,
    Audit,
}

impl Worth {
    fn limit(self) -> usize {
        match self {
            Self::Ordinary => ORDINARY_LIMIT,
            Self::Audit => AUDIT_LIMIT,
        }
    }
}

/// Where lines go in.
#[derive(Debug)]
pub struct Queue(Arc<Shared>);

/// Dropping it waits until everything is written, 2 s at most.
#[derive(Debug)]
pub struct Drain(Arc<Shared>);

/// The line that tells how many were lost.
pub type Report = Box<dyn Fn(u64) -> String + Send>;

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    waiting: Batch,
    /// Bytes that the thread is writing now.
    in_hand: usize,
    lost: u64,
    closing: bool,
    ended: bool,
}

#[derive(Debug, Default)]
struct Batch {
    text: Vec<u8>,
    lines: u64,
}

impl Queue {
    /// Starts the thread, which ends after the drain is dropped.
    pub fn start(
        out: impl Write + Send + 'static,
        report: Report,
    ) -> std::io::Result<(Self, Drain)> {
        let shared = Arc::new(Shared::default());
        let ours = shared.clone();
        thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || ours.write_all(out, &report))?;
        Ok((Self(shared.clone()), Drain(shared)))
    }

    /// Adds a whole line, or counts it as lost. Never waits for the writer.
    pub fn push(&self, line: &str, worth: Worth) {
        let mut state = self.0.lock();
        if state.in_hand + state.waiting.text.len() + line.len() > worth.limit() {
            state.lost += 1;
            return;
        }
        state.waiting.text.extend_from_slice(line.as_bytes());
        state.waiting.lines += 1;
        let first = state.waiting.lines == 1;
        drop(state);
        // Whoever waits for lines was woken by the first of them.
        if first {
            self.0.changed.notify_all();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    fn write_all(&self, mut out: impl Write, report: &Report) {
        while let Some((mut batch, lost)) = self.next() {
            if lost > 0 {
                batch.text.extend_from_slice(report(lost).as_bytes());
            }
            let written = out.write_all(&batch.text).and_then(|()| out.flush());
            let mut state = self.lock();
            state.in_hand = 0;
            if written.is_err() {
                // A disk may get room again; a closed pipe stays closed, and that is not our end.
                state.lost += lost + batch.lines;
            }
        }
        self.lock().ended = true;
        self.changed.notify_all();
    }

    /// Waits for lines. `None` once all are written and no more are to come.
    fn next(&self) -> Option<(Batch, u64)> {
        let idle = |state: &mut State| state.waiting.lines == 0 && !state.closing;
        let mut state = self.lock();
        self.changed.wait_while(&mut state, idle);
        let open = |state: &mut State| !state.closing;
        self.changed.wait_while_for(&mut state, open, LINGER);
        if state.waiting.lines == 0 {
            return None;
        }
        let batch = std::mem::take(&mut state.waiting);
        state.in_hand = batch.text.len();
        Some((batch, std::mem::take(&mut state.lost)))
    }
}

impl Drop for Drain {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.closing = true;
        self.0.changed.notify_all();
        let writing = |state: &mut State| !state.ended;
        // Whoever does not read for so long does not get the rest.
        self.0
            .changed
            .wait_while_for(&mut state, writing, LAST_CALL);
    }
}

#[cfg(test)]
mod tests {
    use std::{io, sync::mpsc};

    use super::*;

    /// Tells that a write began, then waits until somebody reads.
    struct SlowPipe {
        began: mpsc::Sender<()>,
        reader: mpsc::SyncSender<String>,
    }

    impl Write for SlowPipe {
        fn write(&mut self, text: &[u8]) -> io::Result<usize> {
            self.began.send(()).ok();
            let read = String::from_utf8_lossy(text).into_owned();
            self.reader.send(read).map_err(io::Error::other)?;
            Ok(text.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn report() -> Report {
        Box::new(|count| format!("lost {count}\n"))
    }

    /// What is read in the end if nobody reads while `push` runs.
    fn read_after(push: impl FnOnce(&Queue)) -> String {
        let (began, first_write) = mpsc::channel();
        let (reader, from) = mpsc::sync_channel(0);
        let (queue, drain) = Queue::start(SlowPipe { began, reader }, report()).unwrap();
        queue.push("first\n", Worth::Ordinary);
        first_write.recv().unwrap();
        push(&queue);
        let reader = thread::spawn(move || from.iter().collect::<String>());
        drop(drain);
        reader.join().unwrap()
    }

    #[test]
    fn a_reader_who_stops_loses_lines_but_stalls_nobody_and_audit_lines_stay() {
        let line = "x".repeat(1024 * 1024 - 1) + "\n";
        let read = read_after(|queue| {
            for _ in 0..20 {
                queue.push(&line, Worth::Ordinary);
            }
            queue.push("audit\n", Worth::Audit);
        });
        // The first line is still in hand, so the eighth of these does not fit.
        assert_eq!(read.matches("x\n").count(), 7);
        assert!(read.ends_with("x\naudit\nlost 13\n"));
    }

    #[test]
    fn the_reserve_for_audit_lines_is_bounded_too() {
        let line = "x".repeat(AUDIT_LIMIT / 4 - 1) + "\n";
        let read = read_after(|queue| {
            for _ in 0..6 {
                queue.push(&line, Worth::Audit);
            }
        });
        assert_eq!(read.matches("x\n").count(), 3);
        assert!(read.ends_with("x\nlost 3\n"));
    }

    #[test]
    fn what_could_not_be_written_is_told_later() {
        struct FullOnce(mpsc::Sender<String>, bool);
        impl Write for FullOnce {
            fn write(&mut self, text: &[u8]) -> io::Result<usize> {
                let first = !std::mem::replace(&mut self.1, true);
                let text_sent = String::from_utf8_lossy(text).into_owned();
                self.0.send(text_sent).unwrap();
                if first {
                    return Err(io::ErrorKind::StorageFull.into());
                }
                Ok(text.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (to, from) = mpsc::channel();
        let (queue, drain) = Queue::start(FullOnce(to, false), report()).unwrap();
        queue.push("one\n", Worth::Ordinary);
        assert_eq!(from.recv().unwrap(), "one\n");
        queue.push("two\n", Worth::Ordinary);
        drop(drain);
        assert_eq!(from.iter().collect::<String>(), "two\nlost 1\n");
    }
}
