//! Lines of a byte stream, each one message.

use bridge_protocol::without_mark;
use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// What a reader found.
pub enum Line {
    /// One line without its end.
    Whole(Bytes),
    /// The line is longer than the limit: the stream cannot be followed further.
    TooLong,
    /// The stream ended.
    End,
}

/// Bytes that lines are read into together.
const BLOCK: usize = 16 * 1024;
/// Bytes that a read has room for, at least.
const LEAST_READ: usize = 2 * 1024;

/// Splits a stream at newlines, without copying lines out of the buffer.
pub struct LineReader<R> {
    input: R,
    buffer: BytesMut,
    searched: usize,
    limit: usize,
}

impl<R: AsyncRead + Unpin> LineReader<R> {
    /// `limit` in bytes bounds one line, and so this reader's memory.
    pub fn new(input: R, limit: usize) -> Self {
        Self {
            input,
            buffer: BytesMut::with_capacity(BLOCK),
            searched: 0,
            limit,
        }
    }

    /// The next line that is not blank. Cancel-safe.
    pub async fn next(&mut self) -> Line {
        loop {
            if let Some(length) = memchr::memchr(b'\n', &self.buffer[self.searched..]) {
                let line = self.buffer.split_to(self.searched + length + 1).freeze();
                self.searched = 0;
                self.leave_large_block(line.len());
                let line = line.slice_ref(without_mark(&line));
                if line.is_empty() {
                    continue;
                }
                if line.len() > self.limit {
                    return Line::TooLong;
                }
                return Line::Whole(line);
            }
            self.searched = self.buffer.len();
            if self.searched > self.limit {
                self.buffer = BytesMut::new();
                self.searched = 0;
                return Line::TooLong;
            }
            // Small lines share a block; doubling keeps the copies of a growing one few.
            if self.buffer.capacity() - self.searched < LEAST_READ {
                self.buffer.reserve(self.searched.max(BLOCK));
            }
            match self.input.read_buf(&mut self.buffer).await {
                Ok(0) | Err(_) => return self.last_line(),
                Ok(_) => {}
            }
        }
    }

    /// The rest of a large line's allocation would keep all of it for as long as this reader waits. What
    /// came behind the line goes into a new block.
    fn leave_large_block(&mut self, line: usize) {
        if line > BLOCK {
            let mut block = BytesMut::with_capacity(self.buffer.len().max(BLOCK));
            block.extend_from_slice(&self.buffer);
            self.buffer = block;
        }
    }

    /// What was said before the end without a newline still counts.
    fn last_line(&mut self) -> Line {
        self.searched = 0;
        let rest = self.buffer.split().freeze();
        let rest = rest.slice_ref(without_mark(&rest));
        if rest.is_empty() {
            Line::End
        } else {
            Line::Whole(rest)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_are_split_trimmed_and_bounded() {
        let input: &[u8] = b"\xef\xbb\xbf\n\xef\xbb\xbf one \r\n\ntwo\n\xef\xbb\xbflast";
        let mut reader = LineReader::new(input, 100);
        for expected in ["one", "two", "last"] {
            let Line::Whole(line) = reader.next().await else {
                panic!("{expected}")
            };
            assert_eq!(line, expected);
        }
        assert!(matches!(reader.next().await, Line::End));
        let long = [b'x'; 1000];
        assert!(matches!(
            LineReader::new(&long[..], 100).next().await,
            Line::TooLong
        ));
    }

    /// A reader that waits for the next line holds no more than a block, and what came already.
    #[tokio::test]
    async fn a_large_line_is_given_back_while_the_reader_waits() {
        let mut input = vec![b'x'; 1_000_000];
        input.extend_from_slice(b"\nsmall\nhal");
        let mut reader = LineReader::new(&input[..], 2_000_000);
        let Line::Whole(large) = reader.next().await else {
            panic!("a line")
        };
        let Line::Whole(small) = reader.next().await else {
            panic!("a line")
        };
        assert_eq!((large.len(), &small[..]), (1_000_000, &b"small"[..]));
        assert!(large.is_unique(), "the reader holds on to the large line");
        assert!(
            reader.buffer.capacity() <= BLOCK,
            "{}",
            reader.buffer.capacity()
        );
        assert_eq!(reader.buffer, "hal");
    }
}
