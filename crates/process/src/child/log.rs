//! `server.log`: the output of children other than the protocol, limited so that no child can fill
//! the disk.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, Write as _},
    path::PathBuf,
    sync::Arc,
};

use parking_lot::Mutex;
use tokio::io::AsyncRead;
use tokio_util::sync::CancellationToken;

use super::connection::{Line, LineReader};

/// Size of the log, in bytes, at which it is rotated to `server.log.1`, the only older generation.
const FILE_LIMIT: u64 = 1024 * 1024;
/// Maximum size of one line, in bytes.
const LINE_LIMIT: usize = 8 * 1024;
/// Number of lines that an error message quotes.
const TAIL: usize = 5;

/// The log of one child, in its workspace's file. Cheap to clone.
#[derive(Clone)]
pub struct ServerLog {
    server: Arc<str>,
    state: Arc<Mutex<LogState>>,
    /// Set once stderr was read to its end.
    ended: CancellationToken,
}

struct LogState {
    path: PathBuf,
    file: Option<(File, u64)>,
    tail: VecDeque<String>,
}

impl ServerLog {
    /// Appends to `path` (0600), each line marked with the server's name.
    pub fn new(server: &str, path: PathBuf) -> Self {
        let state = LogState {
            path,
            file: None,
            tail: VecDeque::with_capacity(TAIL),
        };
        Self {
            server: server.into(),
            state: Arc::new(Mutex::new(state)),
            ended: CancellationToken::new(),
        }
    }

    /// Reads stderr to its end; no content stops it.
    pub async fn follow(self, stderr: impl AsyncRead + Unpin) {
        let mut lines = LineReader::new(stderr, LINE_LIMIT);
        loop {
            match lines.next().await {
                Line::Whole(line) => self.noise(&line),
                Line::TooLong => {}
                Line::End => break,
            }
        }
        self.ended.cancel();
    }

    /// Waits until stderr was read to its end.
    pub async fn heard_out(&self) {
        self.ended.cancelled().await;
    }

    /// The last lines, as the end of an error message.
    pub fn last_words(&self) -> String {
        let tail = self.tail();
        if tail.is_empty() {
            tail
        } else {
            format!("; last output: {tail}")
        }
    }

    /// The last lines, for an error message.
    pub fn tail(&self) -> String {
        let tail = &self.state.lock().tail;
        tail.iter()
            .map(String::as_str)
            .collect::<Vec<_>>()
            .join("\n")
    }
}

impl ServerLog {
    /// Appends one line, without its end.
    pub fn noise(&self, line: &[u8]) {
        let text = String::from_utf8_lossy(&line[..line.len().min(LINE_LIMIT)]).into_owned();
        let mut state = self.state.lock();
        if state.tail.len() == TAIL {
            state.tail.pop_front();
        }
        // Kept whole, because a truncated path would not be recognised.
        state.tail.push_back(text.clone());
        // If the log cannot be written, the child must continue. An append of a few KiB goes to the
        // page cache, which is faster than a switch to another thread.
        let _ = state.append(&self.server, &text);
    }
}

impl LogState {
    fn append(&mut self, server: &str, text: &str) -> io::Result<()> {
        let line = format!("[{server}] {text}\n");
        let (mut file, size) = match self.file.take() {
            Some((file, size)) if size < FILE_LIMIT => (file, size),
            Some(_) => {
                let moved = std::fs::rename(&self.path, self.path.with_extension("log.1"));
                let (file, size) = self.open()?;
                if moved.is_err() {
                    // A file of the child prevents the rename: the limit is more important than old
                    // lines.
                    file.set_len(0)?;
                    (file, 0)
                } else {
                    (file, size)
                }
            }
            None => self.open()?,
        };
        file.write_all(line.as_bytes())?;
        self.file = Some((file, size + line.len() as u64));
        Ok(())
    }

    fn open(&self) -> io::Result<(File, u64)> {
        // The child can create a symbolic link or a FIFO there, which must be neither followed nor
        // waited for.
        let file = bridge_model::open_append(&self.path)?;
        let size = file.metadata()?.len();
        Ok((file, size))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_flood_stays_within_two_files_and_the_tail_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("server.log");
        let log = ServerLog::new("excel", path.clone());
        let mut flood = "x".repeat(999) + "\n";
        flood = flood.repeat(4000);
        flood.push_str(&"y".repeat(100_000));
        flood.push_str("\nlast words\n");
        log.clone().follow(flood.as_bytes()).await;
        assert!(log.tail().ends_with("last words"));
        let sizes = std::fs::read_dir(folder.path()).unwrap();
        let total: u64 = sizes
            .map(|entry| entry.unwrap().metadata().unwrap().len())
            .sum();
        assert!(total <= 2 * FILE_LIMIT + 20_000, "{total}");
        assert!(
            std::fs::read_to_string(path)
                .unwrap()
                .contains("[excel] last words")
        );
    }

    #[test]
    fn neither_a_link_nor_a_fifo_in_its_place_is_opened() {
        let folder = tempfile::tempdir().unwrap();
        let (path, outside) = (folder.path().join("server.log"), folder.path().join("out"));
        std::fs::write(&outside, "").unwrap();
        std::os::unix::fs::symlink(&outside, &path).unwrap();
        ServerLog::new("excel", path.clone()).noise(b"line");
        assert_eq!(std::fs::read(&outside).unwrap(), b"");
        std::fs::remove_file(&path).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RWXU).unwrap();
        let log = ServerLog::new("excel", path);
        log.noise(b"line");
        assert_eq!(log.tail(), "line");
    }

    #[test]
    fn a_folder_where_the_old_log_goes_does_not_lift_the_limit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("server.log");
        std::fs::create_dir_all(folder.path().join("server.log.1/x")).unwrap();
        let log = ServerLog::new("excel", path.clone());
        for _ in 0..400 {
            log.noise(&[b'x'; 8000]);
        }
        assert!(std::fs::metadata(path).unwrap().len() <= FILE_LIMIT + 10_000);
    }
}
