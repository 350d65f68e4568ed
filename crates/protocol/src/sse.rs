//! Server-sent events, parsed as the HTML standard defines it, but as bytes: text that is not UTF-8
//! still reaches the reader of the message, and memory is bounded by the size of one event.

use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};

use crate::without_mark;

/// One event with data.
#[derive(Debug, PartialEq, Eq)]
pub struct Event {
    /// `message` if the server sends no event type.
    pub kind: Vec<u8>,
    /// The `data` lines, joined with newlines.
    pub data: Vec<u8>,
}

impl Event {
    /// Whether it carries an MCP message. An event without data only carries an id.
    pub fn is_message(&self) -> bool {
        self.kind == b"message" && !self.data.trim_ascii().is_empty()
    }
}

/// One message as an event. Messages are single lines.
pub fn event(id: Option<u64>, line: &[u8]) -> Bytes {
    let mut event = Vec::with_capacity(line.len() + 48);
    event.extend_from_slice(b"event: message\n");
    if let Some(id) = id {
        event.extend_from_slice(format!("id: {id}\n").as_bytes());
    }
    event.extend_from_slice(b"data: ");
    event.extend_from_slice(line);
    event.extend_from_slice(b"\n\n");
    event.into()
}

/// The position at which a stream can be resumed.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Cursor {
    /// The `id` of the last event, for `Last-Event-ID`.
    pub last_id: Option<Bytes>,
    /// The pause that the server requests before a reconnection.
    pub retry: Option<Duration>,
}

/// An event exceeds the limit: the stream cannot be read further.
#[derive(Debug, PartialEq, Eq)]
pub struct TooLong;

/// Parses chunks into events.
pub struct Parser {
    limit: usize,
    input: BytesMut,
    searched: usize,
    state: Position,
    kind: Vec<u8>,
    data: Vec<u8>,
    id: Option<Bytes>,
    cursor: Cursor,
    received_any: bool,
}

/// The position of the next byte.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Position {
    /// Before the first byte: a byte order mark may follow.
    Start,
    /// After `\r`: a following `\n` belongs to the same line end.
    AfterReturn,
    Line,
}

/// The allocation of a line above this size, in bytes, is not reused for the next lines.
const LARGE: usize = 16 * 1024;

const MARK: &[u8] = b"\xef\xbb\xbf";

impl Parser {
    /// `limit` bounds one event, in bytes; `cursor` is the position at which the stream resumes.
    pub fn new(limit: usize, cursor: Cursor) -> Self {
        Self {
            limit,
            input: BytesMut::new(),
            searched: 0,
            state: Position::Start,
            kind: Vec::new(),
            data: Vec::new(),
            id: cursor.last_id.clone(),
            cursor,
            received_any: false,
        }
    }

    /// Adds received bytes. Call [`Parser::event`] until it returns `None`.
    pub fn push(&mut self, chunk: &[u8]) {
        self.input.extend_from_slice(chunk);
    }

    /// The position after the last event.
    pub fn cursor(&self) -> &Cursor {
        &self.cursor
    }

    /// Whether the server sent anything except comments.
    pub fn received_any(&self) -> bool {
        self.received_any
    }

    /// The next complete event with data, if any.
    pub fn event(&mut self) -> Result<Option<Event>, TooLong> {
        while let Some(line) = self.line() {
            if line.is_empty() {
                if let Some(event) = self.dispatch() {
                    return Ok(Some(event));
                }
            } else {
                self.field(&line);
            }
            self.bounded()?;
        }
        self.bounded()?;
        Ok(None)
    }

    fn bounded(&self) -> Result<(), TooLong> {
        // Field names are not counted: only an attacker makes them long.
        let held = self.data.len().max(self.searched).max(self.kind.len());
        let id = self.id.as_ref().map_or(0, Bytes::len);
        if held.max(id) > self.limit + 64 {
            return Err(TooLong);
        }
        Ok(())
    }

    /// One line without its end; `None` until it is complete.
    fn line(&mut self) -> Option<Bytes> {
        match self.state {
            Position::Start => {
                let known = self.input.len().min(MARK.len());
                if self.input[..known] == MARK[..known] {
                    if known < MARK.len() {
                        return None;
                    }
                    self.input.advance(known);
                }
                self.state = Position::Line;
            }
            Position::AfterReturn => {
                if *self.input.first()? == b'\n' {
                    self.input.advance(1);
                }
                self.state = Position::Line;
            }
            Position::Line => {}
        }
        let Some(length) = memchr::memchr2(b'\n', b'\r', &self.input[self.searched..]) else {
            self.searched = self.input.len();
            return None;
        };
        let line = self.input.split_to(self.searched + length).freeze();
        self.searched = 0;
        if self.input.get_u8() == b'\r' {
            self.state = Position::AfterReturn;
        }
        // The rest of the buffer would keep the large line's allocation alive while the stream is
        // open.
        if line.len() > LARGE {
            self.input = BytesMut::from(&self.input[..]);
        }
        Some(line)
    }

    fn field(&mut self, line: &Bytes) {
        let colon = memchr::memchr(b':', line).unwrap_or(line.len());
        let name = &line[..colon];
        let value = line.get(colon + 1..).unwrap_or_default();
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match name {
            b"data" => {
                self.data.extend_from_slice(value);
                self.data.push(b'\n');
            }
            b"event" => self.kind = value.to_vec(),
            b"id" if !value.contains(&0) => self.id = Some(Bytes::copy_from_slice(value)),
            b"retry" => {
                let digits = std::str::from_utf8(value).ok();
                let millis = digits.and_then(|digits| digits.parse().ok());
                self.cursor.retry = millis.map(Duration::from_millis).or(self.cursor.retry);
            }
            // A comment or an unknown field.
            _ => return,
        }
        self.received_any = true;
    }

    /// The end of an event. An event without data only moves the cursor.
    fn dispatch(&mut self) -> Option<Event> {
        let kind = std::mem::take(&mut self.kind);
        let mut data = std::mem::take(&mut self.data);
        self.cursor.last_id = self.id.clone().filter(|id| !id.is_empty());
        data.pop()?;
        if data.starts_with(MARK) {
            data = without_mark(&data).to_vec();
        }
        let kind = if kind.is_empty() {
            b"message".to_vec()
        } else {
            kind
        };
        Some(Event { kind, data })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn events(stream: &[u8], chunk: usize) -> (Vec<(String, String)>, Cursor) {
        let mut parser = Parser::new(1000, Cursor::default());
        let mut found = Vec::new();
        for part in stream.chunks(chunk.max(1)) {
            parser.push(part);
            while let Some(event) = parser.event().unwrap() {
                let text = |bytes| String::from_utf8(bytes).unwrap();
                found.push((text(event.kind), text(event.data)));
            }
        }
        (found, parser.cursor().clone())
    }

    fn message(data: &str) -> (String, String) {
        ("message".to_owned(), data.to_owned())
    }

    /// A stream may be open for days.
    #[test]
    fn a_large_event_is_given_back_while_the_stream_is_open() {
        let mut parser = Parser::new(2_000_000, Cursor::default());
        parser.push(b"data: ");
        parser.push(&vec![b'x'; 1_000_000]);
        parser.push(b"\n\nda");
        let large = parser.event().unwrap().unwrap();
        assert_eq!(large.data.len(), 1_000_000);
        assert!(parser.event().unwrap().is_none());
        let held = parser.data.capacity() + parser.input.capacity();
        assert!(held <= LARGE, "{held}");
        // The rest of the large allocation must not be reclaimable.
        assert!(!parser.input.try_reclaim(LARGE));
        assert_eq!(parser.input, "da");
    }

    #[test]
    fn lines_of_data_are_joined_and_all_three_line_ends_count() {
        let stream =
            b"\xef\xbb\xbfdata: one\r\ndata:two\rdata\n\n: ping\n\ndata:  {\"a\":\ndata: 1}\r\r";
        for chunk in 1..stream.len() {
            let (found, _) = events(stream, chunk);
            assert_eq!(found, [message("one\ntwo\n"), message(" {\"a\":\n1}")]);
        }
    }

    #[test]
    fn a_byte_order_mark_in_front_of_an_events_data_is_no_part_of_it() {
        let (found, _) = events("data: \u{feff}{}\n\ndata:{}\n\n".as_bytes(), 7);
        assert_eq!(found, [message("{}"), message("{}")]);
    }

    #[test]
    fn ids_and_pauses_move_the_cursor_even_without_data() {
        let (found, cursor) = events(b"id: 7\nretry: 250\ndata:\n\n", 3);
        assert_eq!(found, [message("")]);
        assert_eq!(cursor.last_id.as_deref(), Some(&b"7"[..]));
        assert_eq!(cursor.retry, Some(Duration::from_millis(250)));
        let (found, cursor) = events(b"id: 8\n\nid: 9\ndata: cut off", 3);
        assert!(found.is_empty());
        // The event with id 9 is incomplete: the server must send it again.
        assert_eq!(cursor.last_id.as_deref(), Some(&b"8"[..]));
    }

    #[test]
    fn names_ids_with_nul_and_unknown_fields() {
        let (found, cursor) = events(b"event: endpoint\nid: a\0b\nnew: x\ndata: /m\n\n", 100);
        assert_eq!(found, [("endpoint".to_owned(), "/m".to_owned())]);
        assert_eq!(cursor.last_id, None);
    }

    #[test]
    fn an_event_above_the_limit_is_refused_however_it_comes() {
        let one_line = [b"data: ", &[b'x'; 2000][..]].concat();
        let many_lines = b"data: 0123456789\n".repeat(200);
        let id = [b"id: ", &[b'x'; 2000][..], b"\n"].concat();
        for stream in [one_line, many_lines, id] {
            let mut parser = Parser::new(1000, Cursor::default());
            let refused = stream.chunks(100).any(|chunk| {
                parser.push(chunk);
                parser.event() == Err(TooLong)
            });
            assert!(refused);
        }
    }

    proptest! {
        #[test]
        fn chunks_make_no_difference(stream in "(data: ?[a-z]{0,5}|id:[a-z]|:x|\r|\n|\r\n|\u{feff}){0,20}", chunk in 1..9_usize) {
            let stream = stream.as_bytes();
            prop_assert_eq!(events(stream, chunk), events(stream, stream.len()));
        }

        #[test]
        fn nothing_panics(stream: Vec<u8>, chunk in 1..9_usize) {
            let mut parser = Parser::new(64, Cursor::default());
            for part in stream.chunks(chunk) {
                parser.push(part);
                while let Ok(Some(_)) = parser.event() {}
            }
        }
    }
}
