//! A body in parts, taken apart as it comes (RFC 7578): no more of it is held than a part's head, and
//! each byte is looked at a bounded number of times.

use axum::{
    BoxError,
    body::{Body, HttpBody as _},
};
use bytes::{Buf as _, Bytes, BytesMut};
use http_body_util::BodyExt as _;
use memchr::memmem::Finder;

use super::super::{Problem, body::Unread};

/// Bytes in front of the first part.
const PREAMBLE: usize = 64 * 1024;
/// Bytes of a part's head.
const HEAD: usize = 16 * 1024;
/// Headers of a part.
const HEADERS: usize = 32;
const END: &[u8] = b"\r\n\r\n";

/// Reads parts one after another.
pub struct Reader<'b> {
    body: &'b mut Body,
    buffer: BytesMut,
    /// What ends a part, with the line end before it.
    delimiter: Finder<'static>,
    /// Bytes that all of it may have, and that came.
    most: u64,
    came: u64,
    /// Within a part, whose end has not come.
    inside: bool,
    begun: bool,
}

/// A part's head.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Head {
    pub disposition: Vec<u8>,
    pub content_type: Vec<u8>,
}

fn bad(why: &str) -> Problem {
    Problem::bad_part(why)
}

impl<'b> Reader<'b> {
    /// `most` bounds the bytes of all parts together.
    pub fn new(body: &'b mut Body, boundary: &str, most: u64) -> Self {
        let delimiter = format!("\r\n--{boundary}");
        Self {
            body,
            // The first delimiter stands at the beginning, without the line end.
            buffer: BytesMut::from(&b"\r\n"[..]),
            delimiter: Finder::new(&delimiter).into_owned(),
            most,
            came: 0,
            inside: false,
            begun: false,
        }
    }

    /// The next part's head, what is left of the part before it being skipped; `None` after the last.
    pub async fn next(&mut self) -> Result<Option<Head>, Problem> {
        if self.begun {
            while self.chunk().await?.is_some() {}
        } else {
            self.skip_preamble().await?;
        }
        let length = self.delimiter.needle().len();
        self.buffer.advance(length);
        while self.buffer.len() < 2 {
            self.fill().await?;
        }
        if self.buffer.starts_with(b"--") {
            return Ok(None);
        }
        self.begun = true;
        // The line end of the delimiter is part of what is looked for: a head may be empty.
        let mut searched = 0;
        let end = loop {
            if let Some(found) = memchr::memmem::find(&self.buffer[searched..], END) {
                break searched + found;
            }
            searched = self.buffer.len().saturating_sub(END.len() - 1);
            if searched > HEAD {
                return Err(bad(&format!(
                    "the head of a part has more than {HEAD} bytes"
                )));
            }
            self.fill().await?;
        };
        if end > HEAD {
            return Err(bad(&format!(
                "the head of a part has more than {HEAD} bytes"
            )));
        }
        let head = self.buffer.split_to(end + END.len());
        self.inside = true;
        let line = memchr::memmem::find(&head, b"\r\n").unwrap_or(0);
        if !head[..line].iter().all(|byte| matches!(byte, b' ' | b'\t')) {
            return Err(bad("a boundary has something behind it"));
        }
        Head::parse(&head[line + 2..]).map(Some)
    }

    async fn skip_preamble(&mut self) -> Result<(), Problem> {
        let (length, mut skipped) = (self.delimiter.needle().len(), 0);
        loop {
            let found = self.delimiter.find(&self.buffer);
            let gone = found.unwrap_or(self.buffer.len().saturating_sub(length - 1));
            skipped += gone;
            if skipped > PREAMBLE {
                let why = format!("the first part begins after more than {PREAMBLE} bytes");
                return Err(bad(&why));
            }
            self.buffer.advance(gone);
            if found.is_some() {
                return Ok(());
            }
            self.fill().await?;
        }
    }

    /// The part's next bytes; `None` at its end.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, Problem> {
        let length = self.delimiter.needle().len();
        loop {
            if !self.inside {
                return Ok(None);
            }
            if let Some(end) = self.delimiter.find(&self.buffer) {
                self.inside = false;
                if end > 0 {
                    return Ok(Some(self.buffer.split_to(end).freeze()));
                }
                continue;
            }
            let sure = self.buffer.len().saturating_sub(length - 1);
            if sure > 0 {
                return Ok(Some(self.buffer.split_to(sure).freeze()));
            }
            self.fill().await?;
        }
    }

    /// Reads on.
    async fn fill(&mut self) -> Result<(), Problem> {
        loop {
            let Some(frame) = self.body.frame().await else {
                return Err(bad("the body ends within a part"));
            };
            let frame = frame.map_err(|error| Unread::of(BoxError::from(error)))?;
            if let Ok(data) = frame.into_data() {
                self.came = self.came.saturating_add(data.len() as u64);
                if self.came > self.most {
                    return Err(Problem::files_too_large(self.most));
                }
                self.buffer.extend_from_slice(&data);
                return Ok(());
            }
        }
    }

    /// Fails at once where the sender says that it is too much.
    pub fn check_length(&self) -> Result<(), Problem> {
        if self.body.size_hint().lower() > self.most {
            return Err(Problem::files_too_large(self.most));
        }
        Ok(())
    }
}

impl Head {
    fn parse(lines: &[u8]) -> Result<Self, Problem> {
        let mut headers = [httparse::EMPTY_HEADER; HEADERS];
        let parsed = httparse::parse_headers(lines, &mut headers);
        if let Err(error) = parsed {
            return Err(bad(&format!("the head of a part cannot be read: {error}")));
        }
        let value = |name: &str| {
            let mut headers = headers.iter();
            let found = headers.find(|header| header.name.eq_ignore_ascii_case(name));
            found.map_or_else(Vec::new, |header| header.value.to_vec())
        };
        Ok(Self {
            disposition: value("content-disposition"),
            content_type: value("content-type"),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures_util::stream;

    use super::*;

    fn body(sent: &[u8], cut: usize) -> Body {
        let chunks: Vec<_> = sent.chunks(cut).map(Bytes::copy_from_slice).collect();
        let chunks = chunks.into_iter().map(Ok::<_, Infallible>);
        Body::from_stream(stream::iter(chunks))
    }

    async fn parts(sent: &[u8], cut: usize) -> Result<Vec<(String, Vec<u8>)>, Problem> {
        let mut body = body(sent, cut);
        let mut reader = Reader::new(&mut body, "b", 10_000_000);
        let mut found = Vec::new();
        while let Some(head) = reader.next().await? {
            let mut data = Vec::new();
            while let Some(chunk) = reader.chunk().await? {
                data.extend_from_slice(&chunk);
            }
            found.push((String::from_utf8(head.disposition).unwrap(), data));
        }
        Ok(found)
    }

    #[tokio::test]
    async fn parts_are_found_however_the_body_is_cut() {
        let sent = b"preamble\r\n--b \r\nContent-Disposition: one\r\n\r\n1\r\n--x\r\n\r--b\r\n--b\r\n\
            content-type: x\r\nCONTENT-DISPOSITION:two\r\n\r\n\r\n--b\r\n\r\nthree\r\n--b--\r\nepilogue";
        let expected = [
            ("one".to_owned(), b"1\r\n--x\r\n\r--b".to_vec()),
            ("two".to_owned(), Vec::new()),
            (String::new(), b"three".to_vec()),
        ];
        for cut in 1..sent.len() {
            assert_eq!(parts(sent, cut).await.unwrap(), expected, "{cut}");
        }
        assert_eq!(parts(b"--b--\r\n", 100).await.unwrap(), []);
    }

    #[tokio::test]
    async fn what_is_no_part_is_bounded() {
        let long = "x".repeat(200_000);
        for (sent, why) in [
            (long.clone(), "first part begins"),
            (
                format!("--b\r\nX: {long}\r\n\r\n\r\n--b--"),
                "head of a part has",
            ),
            (format!("--b{long}\r\n\r\n\r\n--b--"), "head of a part has"),
            ("--b\r\n\r\nno end".to_owned(), "ends within"),
            (
                "--b\r\nno colon\r\n\r\n\r\n--b--".to_owned(),
                "cannot be read",
            ),
            ("--bx\r\n\r\n\r\n--b--".to_owned(), "something behind"),
        ] {
            for cut in [1000, 1_000_000] {
                let problem = parts(sent.as_bytes(), cut).await.unwrap_err();
                let told = format!("{problem:?}");
                assert!(told.contains(why), "{why}: {told}");
            }
        }
        let mut body = body(b"--b\r\n\r\n0123456789\r\n--b--", 5);
        let mut all = Reader::new(&mut body, "b", 15);
        assert!(all.next().await.is_ok());
        let problem = loop {
            if let Err(problem) = all.chunk().await {
                break problem;
            }
        };
        assert_eq!(problem.kind(), "file_too_large");
    }
}
