//! Lines of JSON-RPC: taken apart without touching what is inside.

use std::borrow::Cow;

use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use tokio::io::{AsyncRead, AsyncReadExt as _};

use crate::model::RawJson;

/// One message from a child. Members keep their bytes, and the line is kept whole: whoever passes
/// it on changes single values in place (see [`splice`]).
#[derive(Debug)]
pub enum Message {
    /// An answer to the request of ours with this number.
    Response { number: u64, reply: Reply },
    /// The child asks something; `id` is set.
    Request(Said),
    /// The child says something; `id` is not set.
    Notification(Said),
}

/// A child's answer.
#[derive(Debug, Clone)]
pub struct Reply {
    /// The whole message.
    pub line: Bytes,
    /// Its `id`, within the line.
    pub id: RawJson,
    /// Its `result` or its `error`, within the line.
    pub outcome: Result<RawJson, RawJson>,
}

impl Reply {
    /// Reads an answer again, after its line was changed.
    pub fn read(line: &Bytes) -> Option<Self> {
        match message(line)? {
            Message::Response { reply, .. } => Some(reply),
            _ => None,
        }
    }
}

/// A request or notification of a child's.
#[derive(Debug, Clone)]
pub struct Said {
    /// The whole message.
    pub line: Bytes,
    /// Of a request.
    pub id: Option<RawJson>,
    /// What it is.
    pub method: Box<str>,
    /// Within the line.
    pub params: Option<RawJson>,
}

impl Said {
    /// Reads a message again, after its line was changed.
    pub fn read(line: &Bytes) -> Option<Self> {
        match message(line)? {
            Message::Request(said) | Message::Notification(said) => Some(said),
            Message::Response { .. } => None,
        }
    }
}

/// The line with single values exchanged, everything else byte by byte. `edits` are parts of the
/// line, in any order, with what takes their place; parts of other buffers are left out.
pub fn splice(line: &Bytes, edits: &[(&RawJson, &[u8])]) -> Bytes {
    let mut places: Vec<_> = edits
        .iter()
        .filter_map(|(part, new)| Some((range_within(line, part.as_bytes())?, *new)))
        .collect();
    if places.is_empty() {
        return line.clone();
    }
    places.sort_by_key(|(range, _)| range.start);
    let mut out = Vec::with_capacity(line.len() + 64);
    let mut done = 0;
    for (range, new) in places {
        out.extend_from_slice(&line[done..range.start]);
        out.extend_from_slice(new);
        done = range.end;
    }
    out.extend_from_slice(&line[done..]);
    out.into()
}

fn range_within(line: &Bytes, part: &[u8]) -> Option<std::ops::Range<usize>> {
    let start = part.as_ptr().addr().checked_sub(line.as_ptr().addr())?;
    let end = start.checked_add(part.len())?;
    (end <= line.len()).then_some(start..end)
}

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow, default)]
    id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    method: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    params: Option<&'a RawValue>,
    /// `None` where the member is absent; `"result":null` is an answer.
    #[serde(borrow, default, deserialize_with = "present")]
    result: Option<&'a RawValue>,
    #[serde(borrow, default)]
    error: Option<&'a RawValue>,
}

fn present<'de: 'a, 'a, D: Deserializer<'de>>(member: D) -> Result<Option<&'a RawValue>, D::Error> {
    <&RawValue>::deserialize(member).map(Some)
}

/// Reads a line that is no message by itself: it may be a batch of them, or one to be mended. Empty
/// where it is not JSON-RPC.
pub fn messages(line: &Bytes) -> Vec<Message> {
    if line.trim_ascii_start().first() == Some(&b'[') {
        let batch: Vec<&RawValue> = serde_json::from_slice(line).unwrap_or_default();
        let parts = batch
            .into_iter()
            .map(|part| RawJson::within(line, part).into_bytes());
        return parts.filter_map(|part| message(&part)).collect();
    }
    // Bytes that are no UTF-8 must not cost the caller his answer.
    match String::from_utf8_lossy(line) {
        Cow::Owned(mended) => message(&Bytes::from(mended)).into_iter().collect(),
        Cow::Borrowed(_) => Vec::new(),
    }
}

/// Reads one line, which as a rule is one message.
pub fn message(line: &Bytes) -> Option<Message> {
    // All of it at once, instead of each text by itself.
    let text = str::from_utf8(line).ok()?;
    let envelope: Envelope<'_> = serde_json::from_str(text).ok()?;
    let raw = |part: &RawValue| RawJson::within(line, part);
    if let Some(method) = envelope.method {
        let said = Said {
            line: line.clone(),
            id: envelope.id.map(raw),
            method: method.into(),
            params: envelope.params.map(raw),
        };
        let asks = said.id.is_some();
        return Some(if asks {
            Message::Request(said)
        } else {
            Message::Notification(said)
        });
    }
    let id = envelope.id?;
    let outcome = match (envelope.error, envelope.result) {
        (Some(error), _) => Err(raw(error)),
        (None, Some(result)) => Ok(raw(result)),
        // A log line of the child's that happens to have a number.
        (None, None) => return None,
    };
    let reply = Reply {
        line: line.clone(),
        id: raw(id),
        outcome,
    };
    Some(Message::Response {
        number: number(id)?,
        reply,
    })
}

/// Some servers answer number 5 with `"5"`.
fn number(id: &RawValue) -> Option<u64> {
    id.get().trim_matches('"').parse().ok()
}

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
                let line = line.slice_ref(line.trim_ascii());
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

    /// What was said before the end without a newline still counts.
    fn last_line(&mut self) -> Line {
        self.searched = 0;
        let rest = self.buffer.split().freeze();
        let rest = rest.slice_ref(rest.trim_ascii());
        if rest.is_empty() {
            Line::End
        } else {
            Line::Whole(rest)
        }
    }
}

/// Writes one message of ours as a line.
pub fn line(id: Option<&str>, method: &str, params: Option<&[u8]>) -> Bytes {
    let params_size = params.map_or(0, <[u8]>::len);
    let mut line = Vec::with_capacity(params_size + method.len() + 80);
    line.extend_from_slice(br#"{"jsonrpc":"2.0""#);
    if let Some(id) = id {
        line.extend_from_slice(br#","id":"#);
        line.extend_from_slice(id.as_bytes());
    }
    line.extend_from_slice(br#","method":"#);
    line.extend_from_slice(serde_json::Value::from(method).to_string().as_bytes());
    if let Some(params) = params {
        line.extend_from_slice(br#","params":"#);
        line.extend_from_slice(params);
    }
    line.push(b'}');
    end_line(&mut line);
    line.into()
}

/// Makes one line of a message: newlines between tokens, where JSON allows them, would end it
/// early; inside strings JSON has them escaped.
pub fn end_line(message: &mut Vec<u8>) {
    let breaks = message
        .iter_mut()
        .filter(|byte| matches!(byte, b'\n' | b'\r'));
    breaks.for_each(|byte| *byte = b' ');
    message.push(b'\n');
}

/// Tells the child that nobody waits for a request any more.
pub fn cancelled(number: u64) -> Bytes {
    let params = format!(r#"{{"requestId":{number},"reason":"the caller left"}}"#);
    line(None, "notifications/cancelled", Some(params.as_bytes()))
}

/// Writes an answer to a request of the child's.
pub fn answer(id: &RawJson, member: &str, value: &str) -> Bytes {
    Bytes::from(format!(
        "{{\"jsonrpc\":\"2.0\",\"id\":{},\"{member}\":{value}}}\n",
        id.as_str()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(line: &str) -> Message {
        message(&Bytes::copy_from_slice(line.as_bytes())).expect(line)
    }

    #[test]
    fn results_keep_their_bytes() {
        let odd = r#"{ "b" : 1.0, "a":1e400, "x":{"unknown":[18446744073709551616]} }"#;
        let Message::Response { number: 7, reply } = one(&format!(
            r#"{{"jsonrpc":"2.0","id":7,"result":{odd},"extra":1}}"#
        )) else {
            panic!("a result");
        };
        assert_eq!(reply.outcome.unwrap().as_str(), odd);
    }

    #[test]
    fn ids_as_strings_null_results_and_errors_are_answers() {
        assert!(matches!(
            one(r#"{"id":"7","result":{}}"#),
            Message::Response { number: 7, .. }
        ));
        assert!(matches!(
            one(r#"{"id":7,"result":null}"#),
            Message::Response { number: 7, .. }
        ));
        let Message::Response { reply, .. } = one(r#"{"id":1,"error":{"code":-1}}"#) else {
            panic!("an error");
        };
        assert_eq!(reply.outcome.unwrap_err().as_str(), r#"{"code":-1}"#);
    }

    #[test]
    fn requests_and_notifications_are_told_apart() {
        let Message::Request(said) = one(r#"{"id":"x","method":"ping"}"#) else {
            panic!("a request");
        };
        assert_eq!(
            (said.id.unwrap().as_str(), &*said.method),
            (r#""x""#, "ping")
        );
        assert!(matches!(
            one(r#"{"method":"n","params":{}}"#),
            Message::Notification(_)
        ));
    }

    #[test]
    fn a_splice_changes_single_values_and_nothing_else() {
        let line = r#"{ "id" :"7", "x":1.0,"result":{"a":1e400} }"#;
        let Message::Response { reply, .. } = one(line) else {
            panic!("a result")
        };
        let result = reply.outcome.unwrap();
        let elsewhere = RawJson::empty_object();
        let edits: [(&RawJson, &[u8]); 3] = [
            (&result, b"[]"),
            (&reply.id, b"\"my id\""),
            (&elsewhere, b"never"),
        ];
        let out = splice(&reply.line, &edits);
        assert_eq!(out, r#"{ "id" :"my id", "x":1.0,"result":[] }"#);
    }

    #[test]
    fn garbage_is_no_message_but_broken_text_in_an_answer_is_mended() {
        for garbage in [
            "hello",
            "{",
            "[1,2]",
            "42",
            r#"{"a":1}"#,
            r#"{"id":null,"result":1}"#,
            r#"{"id":2,"level":"info"}"#,
            r#"{"id":2,"error":null}"#,
        ] {
            let line = Bytes::from(garbage);
            let none = message(&line).is_none() && messages(&line).is_empty();
            assert!(none, "{garbage}");
        }
        let broken = Bytes::from_static(b"{\"id\":1,\"result\":{\"t\":\"\xff\"}}");
        assert_eq!(messages(&broken).len(), 1);
    }

    #[test]
    fn a_batch_is_many_messages() {
        let batch = Bytes::from_static(br#"[{"id":1,"result":{}},{"method":"m"},5]"#);
        assert_eq!(messages(&batch).len(), 2);
    }

    #[test]
    fn deep_json_passes() {
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(matches!(
            one(&format!(r#"{{"id":1,"result":{deep}}}"#)),
            Message::Response { .. }
        ));
    }

    #[tokio::test]
    async fn lines_are_split_trimmed_and_bounded() {
        let input: &[u8] = b"\n one \r\n\ntwo\nlast";
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

    #[test]
    fn our_lines_hold_no_newline_inside() {
        let text = line(Some("1"), "tools/call", Some(b"{\n\"a\":\r\n1}"));
        assert_eq!(
            text.iter().position(|byte| *byte == b'\n'),
            Some(text.len() - 1)
        );
        assert!(serde_json::from_slice::<serde_json::Value>(&text).is_ok());
    }
}
