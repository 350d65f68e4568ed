//! Multipart bodies: files are streamed to disk, texts are kept in memory.

use axum::{
    body::{Body, HttpBody as _},
    http::HeaderMap,
};
use bridge_model::Caller;
use bridge_state::{StagedFile, StoreError};
use bytes::{Buf as _, Bytes, BytesMut};
use encoding_rs::{Encoding, SHIFT_JIS, UTF_8, WINDOWS_1252};
use http_body_util::BodyExt as _;
use memchr::memmem::Finder;
use percent_encoding::percent_decode;
use tokio::io::AsyncWriteExt as _;

use super::Problem;
use crate::{
    body::{BodyError, Share, Taken, content_type},
    call::{CallEngine, Incoming},
    config::Settings,
    core::Core,
};

/// A multipart body.
#[derive(Default)]
pub struct MultipartBody {
    /// The parts that are not files: names and texts.
    pub texts: Vec<(String, String)>,
    /// The files, with the names of their parts.
    pub files: Vec<(String, Incoming)>,
    /// The memory for bodies that the texts use.
    pub held: Option<Taken>,
}

/// Maximum number of parts that are not files.
const TEXTS: usize = 100;

/// Maximum number of bytes of all parts of a request.
pub fn most(settings: &Settings) -> u64 {
    let (files, listen) = (&settings.files, &settings.listen);
    let (largest, count) = (files.max_upload_bytes, files.max_per_call as u64);
    largest
        .saturating_mul(count)
        .saturating_add(listen.max_body_bytes)
}

/// Reads all parts. Limits: `MCPO_MAX_UPLOAD_BYTES` for each file, `MCPO_MAX_BODY_BYTES` for all texts
/// together, and as many files as a call may link.
pub async fn read(
    core: &Core,
    caller: &Caller,
    headers: &HeaderMap,
    body: &mut Body,
) -> Result<MultipartBody, Problem> {
    let (settings, boundary) = (&core.settings, boundary(headers)?);
    let most = most(settings);
    if body.size_hint().lower() > most {
        return Err(Problem::files_too_large(most));
    }
    let mut body = Reader::new(body, &boundary, most);
    let mut parts = MultipartBody::default();
    let mut texts = Texts {
        limit: settings.listen.max_body_bytes,
        taken: 0,
        share: core.bodies.for_caller(caller).begin(None),
    };
    while let Some(head) = body.next().await? {
        let disposition = Disposition::read(&head.disposition);
        let name = disposition.name;
        let Some(file_name) = disposition.file_name.or_else(|| unnamed(&head, &name)) else {
            if parts.texts.len() >= TEXTS {
                return Err(bad(&format!("more than {TEXTS} parts are not files")));
            }
            let text = text_field(&mut body, &name, &mut texts).await?;
            parts.texts.push((name, text));
            continue;
        };
        let first = body.chunk().await?;
        if file_name.is_empty() && first.is_none() {
            // A browser sends this for a field without a chosen file.
            continue;
        }
        let most = settings.files.max_per_call;
        if parts.files.len() >= most {
            return Err(Problem::too_many_files(most));
        }
        let file = file(&core.engine, &mut body, file_name, first).await?;
        parts.files.push((name, file));
    }
    parts.held = texts.share.into_taken();
    Ok(parts)
}

/// The boundary between the parts.
fn boundary(headers: &HeaderMap) -> Result<String, Problem> {
    let mut parameters = Parameters(content_type(headers));
    let boundary = parameters.find(|(name, _)| name.eq_ignore_ascii_case(b"boundary"));
    let (_, boundary) = boundary.unwrap_or_default();
    match String::from_utf8(boundary) {
        // RFC 2046 allows 70 characters.
        Ok(boundary) if (1..=200).contains(&boundary.len()) => Ok(boundary),
        _ => Err(bad("the Content-Type has no boundary parameter")),
    }
}

/// The name for a part without a file name that is a file according to its type.
fn unnamed(head: &Head, part: &str) -> Option<String> {
    let kind = head.content_type.to_ascii_lowercase();
    let text = kind.is_empty() || kind.starts_with(b"text/");
    let json = kind.starts_with(b"application/json");
    let form = kind.starts_with(b"application/x-www-form-urlencoded");
    let plain = part == "arguments" || part == "server";
    (!text && !json && !form && !plain).then(|| part.to_owned())
}

/// The memory of the parts that are not files.
struct Texts<'m> {
    limit: u64,
    taken: u64,
    share: Share<'m>,
}

impl Texts<'_> {
    async fn take(&mut self, bytes: u64) -> Result<(), Problem> {
        self.taken = self.taken.saturating_add(bytes);
        if self.taken > self.limit {
            return Err(BodyError::TooLarge(self.limit).into());
        }
        Ok(self.share.grow(self.taken).await?)
    }
}

async fn text_field(
    body: &mut Reader<'_>,
    name: &str,
    texts: &mut Texts<'_>,
) -> Result<String, Problem> {
    let mut bytes = Vec::new();
    texts.take(name.len() as u64).await?;
    while let Some(chunk) = body.chunk().await? {
        texts.take(chunk.len() as u64).await?;
        bytes.extend_from_slice(&chunk);
    }
    String::from_utf8(bytes).map_err(|_| bad("a part that is not a file is not UTF-8"))
}

async fn file(
    engine: &CallEngine,
    body: &mut Reader<'_>,
    name: String,
    mut chunk: Option<Bytes>,
) -> Result<Incoming, Problem> {
    let limit = engine.settings.files.max_upload_bytes;
    let file = stage(engine).await?;
    let mut to = tokio::fs::File::from_std(file.data().map_err(unwritten)?);
    let mut size = 0;
    while let Some(bytes) = chunk {
        size += bytes.len() as u64;
        if size > limit {
            return Err(Problem::file_too_large(&name, limit));
        }
        to.write_all(&bytes).await.map_err(unwritten)?;
        chunk = body.chunk().await?;
    }
    to.flush().await.map_err(unwritten)?;
    Ok(Incoming { name, file, size })
}

/// Creates a temporary file.
pub async fn stage(engine: &CallEngine) -> Result<StagedFile, Problem> {
    let store = engine.store.clone();
    let staged = tokio::task::spawn_blocking(move || store.blobs().stage()).await;
    staged.expect("staging does not panic").map_err(full)
}

fn full(error: StoreError) -> Problem {
    crate::call::CallError::from(error).into()
}

/// The error if the received bytes could not be written.
pub fn unwritten(source: std::io::Error) -> Problem {
    full(StoreError::Io {
        action: "write",
        path: "an upload".into(),
        source,
    })
}

// The name of a part, in the forms that clients use.
//
// RFC 7578 requires UTF-8 in `filename`. Some clients nevertheless send `filename*` (RFC 5987), some
// percent-encode `filename`, and some send the bytes of their own code page.

/// The content of a `Content-Disposition` header.
#[derive(Debug, Default, PartialEq, Eq)]
struct Disposition {
    /// The part's own name.
    pub name: String,
    /// Set if the part is a file.
    pub file_name: Option<String>,
}

impl Disposition {
    /// Reads the header's value; ignores invalid parts of it.
    pub fn read(header: &[u8]) -> Self {
        let mut found = Self::default();
        let (mut plain, mut extended) = (None, None);
        for (name, value) in Parameters(header) {
            match name.to_ascii_lowercase().as_slice() {
                b"name" => found.name = decode_name(&value),
                b"name*" => found.name = extended_text(&value).unwrap_or(found.name),
                b"filename" => plain = Some(decode_name(&value)),
                b"filename*" => extended = extended_text(&value).or(Some(decode_name(&value))),
                _ => {}
            }
        }
        let percent = plain.as_deref().and_then(percent_encoded);
        found.file_name = extended.or(percent).or(plain);
        found
    }
}

/// The parameters after the first semicolon, unquoted.
struct Parameters<'h>(&'h [u8]);

impl Iterator for Parameters<'_> {
    type Item = (Vec<u8>, Vec<u8>);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let start = memchr::memchr(b';', self.0)?;
            self.0 = &self.0[start + 1..];
            let end = memchr::memchr2(b'=', b';', self.0)?;
            if self.0[end] == b';' {
                continue;
            }
            let name = self.0[..end].trim_ascii().to_vec();
            self.0 = self.0[end + 1..].trim_ascii_start();
            return Some((name, self.value()));
        }
    }
}

impl Parameters<'_> {
    fn value(&mut self) -> Vec<u8> {
        let Some(quoted) = self.0.strip_prefix(b"\"") else {
            let end = memchr::memchr(b';', self.0).unwrap_or(self.0.len());
            let value = self.0[..end].trim_ascii().to_vec();
            self.0 = &self.0[end..];
            return value;
        };
        let (mut value, mut at) = (Vec::new(), 0);
        while let Some(&byte) = quoted.get(at) {
            match (byte, quoted.get(at + 1)) {
                (b'"', _) => break,
                // A backslash may also be part of a path, or of a character in Shift-JIS.
                (b'\\', Some(&escaped @ (b'"' | b'\\'))) if !is_lead(&value) => {
                    value.push(escaped);
                    at += 2;
                }
                _ => {
                    value.push(byte);
                    at += 1;
                }
            }
        }
        self.0 = quoted.get(at..).unwrap_or_default();
        value
    }
}

/// Whether the value ends with the first byte of a Shift-JIS character, whose second byte may be a backslash.
fn is_lead(value: &[u8]) -> bool {
    if std::str::from_utf8(value).is_ok() {
        return false;
    }
    value.iter().fold(false, |open, byte| {
        !open && matches!(byte, 0x81..=0x9f | 0xe0..=0xfc)
    })
}

fn decode_name(bytes: &[u8]) -> String {
    if let Ok(text) = std::str::from_utf8(bytes) {
        return text.to_owned();
    }
    // 0x81 to 0x9F are the first bytes of most Japanese characters, and not used for Western European letters.
    if bytes.iter().any(|byte| matches!(byte, 0x81..=0x9f))
        && let Some(text) = SHIFT_JIS.decode_without_bom_handling_and_without_replacement(bytes)
    {
        return text.into_owned();
    }
    WINDOWS_1252
        .decode_without_bom_handling(bytes)
        .0
        .into_owned()
}

/// `UTF-8''%e2%82%ac.txt`
fn extended_text(bytes: &[u8]) -> Option<String> {
    let mut parts = bytes.splitn(3, |byte| *byte == b'\'');
    let (charset, _language, encoded) = (parts.next()?, parts.next()?, parts.next()?);
    let decoded: Vec<u8> = percent_decode(encoded).collect();
    let encoding = Encoding::for_label(charset).unwrap_or(UTF_8);
    let text = encoding.decode_without_bom_handling_and_without_replacement(&decoded);
    Some(text.map_or_else(|| decode_name(&decoded), std::borrow::Cow::into_owned))
}

/// A percent-encoded name; some clients encode all non-ASCII characters. Names such as `100%25.txt` and
/// `50%20off` may be literal.
fn percent_encoded(name: &str) -> Option<String> {
    if !name.is_ascii() || !name.contains('%') {
        return None;
    }
    let decoded = percent_decode(name.as_bytes()).decode_utf8().ok()?;
    (!decoded.is_ascii()).then(|| decoded.into_owned())
}

// A streaming parser for multipart bodies (RFC 7578): it buffers no more than the head of a part, and
// reads each byte a bounded number of times.

/// Maximum number of bytes before the first part.
const PREAMBLE: usize = 64 * 1024;

/// Maximum number of bytes in the head of a part.
const HEAD: usize = 16 * 1024;

/// Maximum number of headers of a part.
const HEADERS: usize = 32;

const END: &[u8] = b"\r\n\r\n";

/// Reads the parts in their order.
pub struct Reader<'b> {
    body: &'b mut Body,
    buffer: BytesMut,
    /// The delimiter after a part, with the line end before it.
    delimiter: Finder<'static>,
    /// Maximum number of bytes of the body, and the number received.
    most: u64,
    came: u64,
    /// Inside a part, or in the data before the first one.
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
    /// `most` is the maximum number of bytes of all parts together.
    pub fn new(body: &'b mut Body, boundary: &str, most: u64) -> Self {
        let delimiter = format!("\r\n--{boundary}");
        Self {
            body,
            // The first delimiter is at the start of the body, without a line end.
            buffer: BytesMut::from(&b"\r\n"[..]),
            delimiter: Finder::new(&delimiter).into_owned(),
            most,
            came: 0,
            inside: true,
            begun: false,
        }
    }

    /// The head of the next part, after skipping the rest of the current one; `None` after the last part.
    pub async fn next(&mut self) -> Result<Option<Head>, Problem> {
        // Data before the first part is skipped like the rest of a part.
        let mut skipped = 0;
        while let Some(chunk) = self.chunk().await? {
            skipped += chunk.len();
            if !self.begun && skipped > PREAMBLE {
                let why = format!("the first part starts after more than {PREAMBLE} bytes");
                return Err(bad(&why));
            }
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
        // The line end of the delimiter is included in the search: a head may be empty.
        let mut searched = 0;
        let end = loop {
            let found = memchr::memmem::find(&self.buffer[searched..], END);
            let end = found.map(|found| searched + found);
            searched = self.buffer.len().saturating_sub(END.len() - 1);
            if end.unwrap_or(searched) > HEAD {
                let why = format!("the headers of a part are larger than {HEAD} bytes");
                return Err(bad(&why));
            }
            match end {
                Some(end) => break end,
                None => self.fill().await?,
            }
        };
        let head = self.buffer.split_to(end + END.len());
        self.inside = true;
        let line = memchr::memmem::find(&head, b"\r\n").unwrap_or(0);
        if !head[..line].iter().all(|byte| matches!(byte, b' ' | b'\t')) {
            return Err(bad("unexpected data after a boundary"));
        }
        Head::parse(&head[line + 2..]).map(Some)
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

    /// Reads the next bytes of the body.
    async fn fill(&mut self) -> Result<(), Problem> {
        loop {
            let Some(frame) = self.body.frame().await else {
                return Err(bad("the body ends within a part"));
            };
            if let Ok(data) = frame.map_err(BodyError::from_error)?.into_data() {
                self.came = self.came.saturating_add(data.len() as u64);
                if self.came > self.most {
                    return Err(Problem::files_too_large(self.most));
                }
                self.buffer.extend_from_slice(&data);
                return Ok(());
            }
        }
    }
}

impl Head {
    fn parse(lines: &[u8]) -> Result<Self, Problem> {
        let mut headers = [httparse::EMPTY_HEADER; HEADERS];
        httparse::parse_headers(lines, &mut headers)
            .map_err(|error| bad(&format!("cannot read the headers of a part: {error}")))?;
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
mod names_tests {
    use super::*;

    fn file_name(header: &[u8]) -> Option<String> {
        let read = Disposition::read(header);
        assert_eq!(read.name, "file", "{}", header.escape_ascii());
        read.file_name
    }

    #[test]
    fn a_name_is_read_in_each_form_that_clients_send() {
        for (parameters, expected) in [
            (&b"filename=\"a.txt\""[..], "a.txt"),
            (b"FileName=\"a.txt\"", "a.txt"),
            (b"filename = a.txt ", "a.txt"),
            (b"filename=\"a;b=\\\"c\\\".txt\"; x=1", "a;b=\"c\".txt"),
            ("filename=\"レポート.xlsx\"".as_bytes(), "レポート.xlsx"),
            (b"filename*=UTF-8''%E3%83%AC.xlsx", "レ.xlsx"),
            (
                b"filename*=utf-8'ja'%E3%83%AC.xlsx; filename=\"x.xlsx\"",
                "レ.xlsx",
            ),
            (
                b"filename=\"x.xlsx\"; FILENAME*=UTF-8''%E3%83%AC.xlsx",
                "レ.xlsx",
            ),
            (b"filename*=iso-8859-1''caf%E9.txt", "café.txt"),
            (b"filename*=\"UTF-8''caf%C3%A9.txt\"", "café.txt"),
            (b"filename*=plain.txt", "plain.txt"),
            (b"filename=\"caf\xe9.txt\"", "café.txt"),
            (b"filename=\"r\xe9sum\xe9.txt\"", "résumé.txt"),
            // レポート表.xlsx in Shift-JIS; the second byte of the last character is a backslash.
            (
                b"filename=\"\x83\x8c\x83|\x81[\x83g\x95\\.xlsx\"",
                "レポート表.xlsx",
            ),
            (b"filename=\"\x95\\\"", "表"),
            (b"filename=\"%E3%83%AC.xlsx\"", "レ.xlsx"),
            (b"filename=\"50%20off.txt\"", "50%20off.txt"),
            (b"filename=\"C:\\dir\\a.txt\"", "C:\\dir\\a.txt"),
            (b"filename=\"no end", "no end"),
            (b"filename=\"\"", ""),
        ] {
            let header = [b"form-data; name=\"file\"; ", parameters].concat();
            assert_eq!(file_name(&header).as_deref(), Some(expected));
        }
    }

    #[test]
    fn a_part_without_a_file_name_is_none() {
        for header in [
            "form-data; name=file",
            "form-data;Name=\"file\";;x;y=",
            "a;name*=''file",
        ] {
            assert_eq!(file_name(header.as_bytes()), None, "{header}");
        }
        assert_eq!(Disposition::read(b""), Disposition::default());
        let empty = Disposition::read(b"form-data; name=\"\"; filename");
        assert_eq!(empty.file_name, None);
    }
}

#[cfg(test)]
mod reader_tests {
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
            (long.clone(), "first part starts"),
            (
                format!("--b\r\nX: {long}\r\n\r\n\r\n--b--"),
                "headers of a part are larger",
            ),
            (
                format!("--b{long}\r\n\r\n\r\n--b--"),
                "headers of a part are larger",
            ),
            ("--b\r\n\r\nno end".to_owned(), "ends within"),
            (
                "--b\r\nno colon\r\n\r\n\r\n--b--".to_owned(),
                "cannot read the headers",
            ),
            ("--bx\r\n\r\n\r\n--b--".to_owned(), "data after a boundary"),
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
