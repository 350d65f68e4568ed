//! JSON-RPC messages in lines, split into their parts without changing the content.

use std::borrow::Cow;

use bytes::Bytes;
use serde_json::value::RawValue;

use crate::{RawJson, code, last_members, members, method, text};

pub use crate::raw_json::splice;

/// Maximum number of positions in a line at which a message is searched for behind other text.
const TRIED: usize = 8;
/// The first key of a message from a child.
const BEGINS: [&[u8]; 3] = [b"\"jsonrpc\"", b"\"id\"", b"\"result\""];

/// One message from a child. Members keep their bytes, and the line is kept whole: code that
/// forwards it replaces single values in place (see [`splice`]).
#[derive(Debug)]
pub enum Message {
    /// A response to the bridge's request with this number.
    Response {
        /// The request's number.
        number: u64,
        /// The response.
        reply: Reply,
    },
    /// A request of the child; `id` is set.
    Request(Said),
    /// A notification of the child; `id` is not set.
    Notification(Said),
}

/// A child's response.
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
    /// Parses a response again after its line was changed.
    pub fn read(line: &Bytes) -> Option<Self> {
        match message(line)? {
            Message::Response { reply, .. } => Some(reply),
            _ => None,
        }
    }
}

/// A request or notification of a child.
#[derive(Debug, Clone)]
pub struct Said {
    /// The whole message.
    pub line: Bytes,
    /// The id of a request.
    pub id: Option<RawJson>,
    /// The method.
    pub method: Box<str>,
    /// The params, within the line.
    pub params: Option<RawJson>,
}

impl Said {
    /// Parses a message again after its line was changed.
    pub fn read(line: &Bytes) -> Option<Self> {
        match message(line)? {
            Message::Request(said) | Message::Notification(said) => Some(said),
            Message::Response { .. } => None,
        }
    }

    /// A value within the params, by the keys of its path.
    pub fn param(&self, path: &[&str]) -> Option<RawJson> {
        self.params.as_ref()?.at(path)
    }
}

/// The members of a JSON-RPC message, within its text. A `null` member counts as absent, except for
/// an id, which must not be `null`, and a result, which may be.
#[derive(Debug, Clone, Copy)]
pub struct Envelope<'a> {
    /// `"2.0"`.
    pub jsonrpc: Option<&'a RawValue>,
    /// For requests and responses.
    pub id: Option<&'a RawValue>,
    /// For requests and notifications.
    pub method: Option<&'a RawValue>,
    /// For requests and notifications.
    pub params: Option<&'a RawValue>,
    /// For responses.
    pub result: Option<&'a RawValue>,
    /// For responses.
    pub error: Option<&'a RawValue>,
}

impl<'a> Envelope<'a> {
    const NAMES: [&'static str; 6] = ["jsonrpc", "id", "method", "params", "result", "error"];

    /// Rejects an object with duplicate members: a proxy in front of the bridge may have used the
    /// other one.
    pub fn strict(text: &'a str) -> Result<Self, serde_json::Error> {
        members(text, Self::NAMES).map(Self::from_members)
    }

    /// The last member with a name counts, and other members may hold values that no Rust type can
    /// hold.
    pub fn lenient(json: &'a [u8]) -> Option<Self> {
        last_members(json, Self::NAMES).map(Self::from_members)
    }

    fn from_members(
        [jsonrpc, id, method, params, result, error]: [Option<&'a RawValue>; 6],
    ) -> Self {
        let is_there = |raw: &&RawValue| raw.get() != "null";
        Self {
            jsonrpc: jsonrpc.filter(is_there),
            id,
            method: method.filter(is_there),
            params: params.filter(is_there),
            result,
            error: error.filter(is_there),
        }
    }

    /// The id, unless it is `null`.
    pub fn id(&self) -> Option<&'a RawValue> {
        self.id.filter(|id| id.get() != "null")
    }

    /// Whether it is a response.
    pub fn is_answer(&self) -> bool {
        self.result.is_some() || self.error.is_some()
    }
}

/// Parses a line that [`message`] rejects: a batch, a message that needs repair, or one behind
/// other text. Empty if the line contains no JSON-RPC.
pub fn messages(line: &Bytes) -> Vec<Message> {
    if line.first() == Some(&b'[') {
        let batch: Vec<&RawValue> = serde_json::from_slice(line).unwrap_or_default();
        let parts = batch
            .into_iter()
            .map(|part| RawJson::within(line, part).into_bytes());
        let found: Vec<Message> = parts.filter_map(|part| odd(&part)).collect();
        if !found.is_empty() {
            return found;
        }
    }
    // Bytes that are not UTF-8 must not make the answer unreadable.
    let line = match String::from_utf8_lossy(line) {
        Cow::Owned(mended) => Bytes::from(mended),
        Cow::Borrowed(_) => line.clone(),
    };
    if let Some(message) = odd(&line) {
        return vec![message];
    }
    // A line that is JSON as a whole contains nothing else: a log line that quotes a message is not
    // a message.
    if serde_json::from_slice::<&RawValue>(&line).is_ok() {
        return Vec::new();
    }
    behind(&line)
}

/// Messages behind other text in the same line: a prompt, progress output, control characters of a
/// terminal. Behind words only responses count: such log lines may also quote the requests that the
/// child received.
fn behind(line: &Bytes) -> Vec<Message> {
    let mut found = Vec::new();
    let mut at = 0;
    for _ in 0..TRIED {
        let Some(start) = begin(line, at) else {
            break;
        };
        let mut values = serde_json::Deserializer::from_slice(&line[start..]).into_iter();
        let value: Option<&RawValue> = values.next().and_then(Result::ok);
        let Some(value) = value else {
            at = start + 1;
            continue;
        };
        let part = RawJson::within(line, value).into_bytes();
        at = start + part.len();
        let bare = is_of_terminal(&line[..start]);
        found.extend(odd(&part).filter(|message| match message {
            Message::Response { .. } => true,
            Message::Request(_) | Message::Notification(_) => bare,
        }));
    }
    found
}

/// The start of the next object that may be a message.
fn begin(line: &[u8], from: usize) -> Option<usize> {
    let starts = memchr::memchr_iter(b'{', &line[from..]).map(|start| from + start);
    let mut starts = starts.filter(|start| {
        let inside = line[start + 1..].trim_ascii_start();
        BEGINS.iter().any(|begin| inside.starts_with(begin))
    });
    starts.next()
}

/// Whether it consists only of control characters and terminal escape sequences.
fn is_of_terminal(before: &[u8]) -> bool {
    let mut rest = before;
    while let Some((first, more)) = rest.split_first() {
        rest = match (first, more.first()) {
            (0x1b, Some(b'[')) => {
                let end = more[1..]
                    .iter()
                    .position(|byte| (0x40..=0x7e).contains(byte));
                match end {
                    Some(end) => &more[end + 2..],
                    None => return false,
                }
            }
            (0x1b, Some(_)) => &more[1..],
            (byte, _) if byte.is_ascii_control() || byte.is_ascii_whitespace() => more,
            _ => return false,
        };
    }
    true
}

/// Parses one line, which usually is one message.
pub fn message(line: &Bytes) -> Option<Message> {
    // One UTF-8 check for the whole line is faster than one for each string.
    let text = str::from_utf8(line).ok()?;
    read(line, Envelope::strict(text).ok()?)
}

/// Like [`message`], but tolerates duplicate members and names that are not valid text.
fn odd(line: &Bytes) -> Option<Message> {
    read(line, Envelope::lenient(line)?)
}

fn read(line: &Bytes, envelope: Envelope<'_>) -> Option<Message> {
    let raw = |part: &RawValue| RawJson::within(line, part);
    if let Some(method) = envelope.method.and_then(text) {
        let said = Said {
            line: line.clone(),
            id: envelope.id().map(raw),
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
    let id = envelope.id()?;
    let number = number(id.get())?;
    let outcome = match (envelope.error, envelope.result) {
        // Means "no error".
        (Some(error), Some(result)) if is_nothing(error) => Ok(result),
        (Some(error), _) if is_nothing(error) && error.get() != "{}" => return None,
        (Some(error), _) => match error_object(error) {
            None => Err(error),
            Some(object) => return odd(&splice(line, &[(&raw(error), object.as_bytes())])),
        },
        (None, Some(result)) => Ok(result),
        // A log line of the child that happens to have an `id`.
        (None, None) => return None,
    };
    let reply = Reply {
        line: line.clone(),
        id: raw(id),
        outcome: outcome.map(raw).map_err(raw),
    };
    Some(Message::Response { number, reply })
}

fn is_nothing(error: &RawValue) -> bool {
    matches!(error.get(), "false" | "0" | "\"\"" | "{}" | "[]")
}

/// The error as the protocol requires it, with all text that the child sent; `None` if it already
/// conforms.
fn error_object(error: &RawValue) -> Option<String> {
    let [code, message, data] =
        last_members(error.get().as_bytes(), ["code", "message", "data"]).unwrap_or_default();
    let number = code.and_then(|code| serde_json::from_str::<i64>(code.get()).ok());
    let is_text = |raw: &RawValue| raw.get().starts_with('"');
    if number.is_some() && message.is_some_and(is_text) {
        return None;
    }
    let text = |raw: &RawValue| match serde_json::from_str::<String>(raw.get()) {
        Ok(text) => text,
        Err(_) => raw.get().to_owned(),
    };
    let number = number.or_else(|| code.and_then(|code| text(code).trim().parse().ok()));
    let words = message.filter(|raw| raw.get() != "null").map(text);
    let words = words.unwrap_or_else(|| text(error));
    let data = data.map_or(error.get(), RawValue::get);
    Some(format!(
        r#"{{"code":{},"message":{},"data":{data}}}"#,
        number.unwrap_or(code::INTERNAL_ERROR),
        serde_json::Value::from(words),
    ))
}

/// The number of the bridge's request that an id denotes. Some servers answer number 5 with `"5"`,
/// and some with `5.0`.
pub fn number(id: &str) -> Option<u64> {
    /// Up to this value every whole number has an exact floating-point representation.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    let id = id.trim_matches('"').trim();
    id.parse().ok().or_else(|| {
        let float: f64 = id.parse().ok()?;
        let whole = float.fract() == 0.0 && (0.0..=EXACT).contains(&float);
        whole.then(|| format!("{float:.0}").parse().ok())?
    })
}

/// Writes one of the bridge's messages as a line.
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

/// Makes a message one line: newlines between tokens, which JSON allows, would end it early;
/// newlines inside strings are always escaped.
pub fn end_line(message: &mut Vec<u8>) {
    let breaks = message
        .iter_mut()
        .filter(|byte| matches!(byte, b'\n' | b'\r'));
    breaks.for_each(|byte| *byte = b' ');
    message.push(b'\n');
}

/// A notification that cancels a request of the bridge.
pub fn cancelled(number: u64) -> Bytes {
    let params = format!(r#"{{"requestId":{number},"reason":"the client disconnected"}}"#);
    line(None, method::CANCELLED, Some(params.as_bytes()))
}

/// Writes a response to a request of the child.
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
        let Message::Response { reply, .. } = one(r#"{"id":1,"error":{"code":-1,"message":""}}"#)
        else {
            panic!("an error");
        };
        let error = reply.outcome.unwrap_err();
        assert_eq!(error.as_str(), r#"{"code":-1,"message":""}"#);
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
            r#"{"level":"debug","sent":"{\"jsonrpc\":\"2.0\",\"id\":2,\"result\":{}}"}"#,
            r#"received {"jsonrpc":"2.0","id":2,"method":"tools/call"}"#,
            r#"half {"jsonrpc":"2.0","id":2,"result":{"#,
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

    fn answer(line: &str) -> Reply {
        let line = Bytes::copy_from_slice(line.as_bytes());
        let found = message(&line).map_or_else(|| messages(&line), |one| vec![one]);
        match found.into_iter().next() {
            Some(Message::Response { number: 5, reply }) => reply,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn ids_are_numbers_in_every_spelling() {
        for id in ["5", "\"5\"", "5.0", "\"5.0\"", "5e0", "0.5e1"] {
            answer(&format!(r#"{{"id":{id},"result":{{}}}}"#));
        }
        for id in ["5.5", "-5", "\"x\"", "[5]", "1e40", "true"] {
            assert_eq!(number(id), None, "{id}");
        }
    }

    #[test]
    fn an_answer_behind_something_else_in_its_line_is_found() {
        for line in [
            r#"Starting...{"jsonrpc":"2.0","id":5,"result":{}}"#,
            "\u{1b}[?25h\u{1b}[0m{ \"id\":5,\"result\":{}}",
            r#"Ok to proceed? (y) {"id":5,"jsonrpc":"2.0","result":{}} done"#,
            r#"{"half {"id":5,"result":{}}"#,
            r#"[1/3] {not json} {"jsonrpc":"2.0","id":5,"result":{}}"#,
            "\u{0}\u{0}{\"result\":{},\"id\":5}",
        ] {
            answer(line);
        }
        let both = Bytes::from_static(br#"{"id":5,"result":{}}{"id":6,"result":{}}"#);
        assert_eq!(messages(&both).len(), 2);
        let asked =
            Bytes::from_static(b"\x1b[2K{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\"}");
        assert!(matches!(messages(&asked)[..], [Message::Request(_)]));
    }

    #[test]
    fn looking_behind_words_is_bounded() {
        let hostile = Bytes::from(r#"x{"id":"#.repeat(200_000));
        assert!(messages(&hostile).is_empty());
    }

    #[test]
    fn odd_members_cost_no_answer() {
        for line in [
            r#"{"jsonrpc":"2.0","jsonrpc":"2.0","id":5,"result":{}}"#,
            r#"{"id":5,"id":5,"result":{}}"#,
            r#"{"id":5,"method":7,"result":{}}"#,
            r#"{"id":5,"\ud800":1,"\ud800":2,"result":{},"result":{}}"#,
            r#"{"id":5,"result":{},"error":false}"#,
            r#"{"id":5,"result":{},"error":{}}"#,
            r#"[{"id":5,"result":{}},{"id":5,"id":5}]"#,
        ] {
            assert!(answer(line).outcome.is_ok(), "{line}");
        }
    }

    #[test]
    fn an_odd_error_keeps_its_words_and_becomes_an_object() {
        for (said, code, words) in [
            (r#""it broke""#, -32603, "it broke"),
            (r#"{"message":"it broke"}"#, -32603, "it broke"),
            (r#"{"code":"-5","message":"it broke"}"#, -5, "it broke"),
            (
                r#"{"code":7,"message":{"text":"it broke"}}"#,
                7,
                r#"{"text":"it broke"}"#,
            ),
            (
                r#"{"code":1.5,"message":null,"detail":"it broke"}"#,
                -32603,
                "it broke",
            ),
            (r#"["it broke"]"#, -32603, "it broke"),
            ("42", -32603, "42"),
            ("true", -32603, "true"),
        ] {
            let reply = answer(&format!(r#"{{"id":5,"error":{said},"x":1.0}}"#));
            let error: serde_json::Value = reply.outcome.unwrap_err().read().unwrap();
            assert_eq!(error["code"], code, "{said}");
            assert!(
                error["message"].as_str().unwrap().contains(words),
                "{error}"
            );
            assert_eq!(reply.id.as_str(), "5");
            assert!(
                str::from_utf8(&reply.line)
                    .unwrap()
                    .ends_with(r#","x":1.0}"#)
            );
        }
        let sound = r#"{"id":5,"error":{ "code":-1,"message":"m","data":1.0 }}"#;
        assert_eq!(answer(sound).line, sound);
    }

    #[test]
    fn deep_json_passes() {
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(matches!(
            one(&format!(r#"{{"id":1,"result":{deep}}}"#)),
            Message::Response { .. }
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
