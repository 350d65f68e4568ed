//! `/files/{token}/{name}`: downloads. The token alone decides what is served.
//!
//! The content of a tool's file is untrusted, and served from the bridge's origin: it is always an attachment,
//! never sniffed, and sandboxed in case a browser displays it.

mod page;

use std::{
    fs::File,
    io,
    io::{IoSliceMut, Read as _},
    ops::RangeInclusive,
    sync::Arc,
};

use axum::{
    body::Body,
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header},
    response::Response,
};
use bridge_model::LinkToken;
use bridge_state::{Artifact, BlobId, ChatStore, GoneReason, Link, OpenBlob, Stamp, StoreError};
use bytes::Bytes;
use futures_util::stream::try_unfold;
use jiff::{
    Timestamp,
    fmt::rfc2822::{DateTimeParser, DateTimePrinter},
};
use page::Problem;
use parking_lot::Mutex;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use rustix::io::{ReadWriteFlags, preadv2};

use crate::config::Lang;

/// Set as an extension on answers for an artifact, also without its bytes (HEAD, 304, 416), for the
/// audit log.
#[derive(Debug, Clone)]
pub struct Served(pub Arc<Artifact>);

/// Serves the files of links. Needs no key: the token is the capability.
#[derive(Debug, Clone)]
pub struct Downloads {
    store: Arc<ChatStore>,
    language: Lang,
}

impl Downloads {
    /// For this jobs folder, with pages in this language for browsers that request none.
    pub fn new(store: Arc<ChatStore>, language: Lang) -> Self {
        Self { store, language }
    }

    /// Answers `GET` and `HEAD` of `/files/{token}/{name}`; every other path below `/files` is 404.
    pub async fn answer(&self, path: &str, method: &Method, headers: &HeaderMap) -> Response {
        let Some(token) = token(path) else {
            return page::answer(Problem::NotFound, self.language, headers);
        };
        let (store, method, sent) = (self.store.clone(), method.clone(), headers.clone());
        let found = tokio::task::spawn_blocking(move || match store.link(&token)? {
            Link::Live(artifact, blob) => live(&store, *artifact, &blob, &method, &sent),
            Link::Gone(GoneReason::Expired) => Ok(Err(Problem::Expired)),
            Link::Gone(GoneReason::Revoked) => Ok(Err(Problem::Revoked)),
            Link::Unknown => Ok(Err(Problem::NotFound)),
        });
        let found = match found.await {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => Err(unreadable(&error)),
            Err(error) => Err(unreadable(&error)),
        };
        found.unwrap_or_else(|problem| page::answer(problem, self.language, headers))
    }
}

fn unreadable(error: &dyn std::error::Error) -> Problem {
    tracing::error!(%error, "download failed");
    Problem::Unreadable
}

/// Matches exactly `/files/{token}/{name}`; the name is for users and may have been changed in transit.
fn token(path: &str) -> Option<LinkToken> {
    let (token, name) = path.strip_prefix("/files/")?.split_once('/')?;
    let one_name = !name.is_empty() && !name.contains('/');
    one_name.then(|| token.parse().ok())?
}

fn live(
    store: &ChatStore,
    artifact: Artifact,
    blob: &BlobId,
    method: &Method,
    headers: &HeaderMap,
) -> Result<Result<Response, Problem>, StoreError> {
    let selection = selection(&artifact, method, headers);
    let range = match &selection {
        Selection::Part(range) => Some(range.clone()),
        _ => None,
    };
    let data = store.blobs().get(blob, range)?;
    // The link expired after it was read.
    let data = data.ok_or(Problem::Expired);
    Ok(data.map(|data| bytes(artifact, data, &selection)))
}

fn bytes(artifact: Artifact, data: OpenBlob, selection: &Selection) -> Response {
    let mut response = Response::new(Body::empty());
    let headers = response.headers_mut();
    describe_artifact(headers, &artifact);
    match selection {
        Selection::Whole => {
            headers.insert(header::CONTENT_LENGTH, artifact.size.into());
            *response.body_mut() = stream(data, artifact.size);
        }
        Selection::Part(range) => {
            let length = range.end() - range.start() + 1;
            headers.insert(header::CONTENT_LENGTH, length.into());
            let range = format!("bytes {}-{}/{}", range.start(), range.end(), artifact.size);
            insert(headers, header::CONTENT_RANGE, &range);
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            *response.body_mut() = stream(data, length);
        }
        Selection::NotModified => {
            headers.remove(header::CONTENT_TYPE);
            *response.status_mut() = StatusCode::NOT_MODIFIED;
        }
        Selection::OutOfRange => {
            headers.remove(header::CONTENT_DISPOSITION);
            headers.remove(header::CONTENT_TYPE);
            let range = format!("bytes */{}", artifact.size);
            insert(headers, header::CONTENT_RANGE, &range);
            *response.status_mut() = StatusCode::RANGE_NOT_SATISFIABLE;
        }
    }
    response.extensions_mut().insert(Served(Arc::new(artifact)));
    response
}

fn insert(headers: &mut HeaderMap, name: header::HeaderName, value: &str) {
    // Values contain only sanitized names; a value that is invalid nevertheless is omitted.
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

// The requested bytes (RFC 9110, chapters 13 and 14).

/// The form of the answer.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Selection {
    /// 200.
    Whole,
    /// 206.
    Part(RangeInclusive<u64>),
    /// 304.
    NotModified,
    /// 416.
    OutOfRange,
}

/// Several ranges in one request are answered with the whole file, as the standard allows.
fn selection(artifact: &Artifact, method: &Method, headers: &HeaderMap) -> Selection {
    if is_unmodified(artifact, headers) {
        return Selection::NotModified;
    }
    let Some(range) = text(headers, &header::RANGE) else {
        return Selection::Whole;
    };
    if method != Method::GET || !range_still_holds(artifact, headers) {
        return Selection::Whole;
    }
    // An invalid range is ignored, as the standard requires.
    let Ok(ranges) = http_range_header::parse_range_header(range) else {
        return Selection::Whole;
    };
    match ranges.validate(artifact.size).as_deref() {
        Ok([part]) if !range.contains(',') => Selection::Part(part.clone()),
        Ok(_) => Selection::Whole,
        Err(_) => Selection::OutOfRange,
    }
}

fn is_unmodified(artifact: &Artifact, headers: &HeaderMap) -> bool {
    if headers.contains_key(header::IF_NONE_MATCH) {
        let own = etag(artifact);
        return headers
            .get_all(header::IF_NONE_MATCH)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .map(|tag| tag.trim().trim_start_matches("W/"))
            .any(|tag| tag == "*" || tag == own);
    }
    text(headers, &header::IF_MODIFIED_SINCE)
        .and_then(|date| DateTimeParser::new().parse_timestamp(date).ok())
        .is_some_and(|date| artifact.created_at.as_second() <= date.as_second())
}

fn range_still_holds(artifact: &Artifact, headers: &HeaderMap) -> bool {
    let Some(known) = text(headers, &header::IF_RANGE) else {
        return !headers.contains_key(header::IF_RANGE);
    };
    known == etag(artifact) || known == http_date(artifact.created_at)
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}

// The headers of an artifact.

/// Prevents scripts and loads in the bridge's origin, in case a browser displays the content.
const SANDBOX: &str = "sandbox; default-src 'none'";

/// All of RFC 8187's `attr-char` except letters and digits.
const ATTR_CHAR: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'!')
    .remove(b'#')
    .remove(b'$')
    .remove(b'&')
    .remove(b'+')
    .remove(b'-')
    .remove(b'.')
    .remove(b'^')
    .remove(b'_')
    .remove(b'`')
    .remove(b'|')
    .remove(b'~');

/// Sets the headers that are the same for the whole file, a part and a 304.
fn describe_artifact(headers: &mut HeaderMap, artifact: &Artifact) {
    protect(headers);
    insert(headers, header::CONTENT_TYPE, &artifact.mime_type);
    insert(headers, header::CONTENT_DISPOSITION, &disposition(artifact));
    insert(headers, header::ETAG, &etag(artifact));
    let created = http_date(artifact.created_at);
    insert(headers, header::LAST_MODIFIED, &created);
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    // Cached by the browser, but revalidated each time: a revoked link stays revoked.
    let cache = HeaderValue::from_static("private, no-cache");
    headers.insert(header::CACHE_CONTROL, cache);
}

/// Sets the headers of all answers below `/files`.
pub fn protect(headers: &mut HeaderMap) {
    for (name, value) in [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CONTENT_SECURITY_POLICY, SANDBOX),
        // The URL is the capability: it must not be sent to other sites.
        (header::REFERRER_POLICY, "no-referrer"),
        // Open WebUI has another origin, often of the same site, and may display a picture.
        (
            HeaderName::from_static("cross-origin-resource-policy"),
            "same-site",
        ),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
}

/// RFC 6266: an ASCII name for old clients, the real one for others.
fn disposition(artifact: &Artifact) -> String {
    let real = utf8_percent_encode(&artifact.name, ATTR_CHAR);
    let plain = &artifact.ascii_name;
    format!("attachment; filename=\"{plain}\"; filename*=UTF-8''{real}")
}

/// A strong entity tag: the hash of the bytes.
fn etag(artifact: &Artifact) -> String {
    format!("\"{}\"", artifact.sha256)
}

/// A date in the format of RFC 9110, in whole seconds.
fn http_date(time: Timestamp) -> String {
    let printed = DateTimePrinter::new().timestamp_to_rfc9110_string(&time);
    printed.unwrap_or_default()
}

// Streams the bytes of a download from the disk to the client.

/// Bytes per read and write. A download buffers several of these blocks, whatever its size: hyper buffers about
/// 400 KB for a slow client.
const CHUNK: u64 = 128 * 1024;

/// The next `length` bytes from the file's position. The open file stays readable if a cleanup deletes it
/// meanwhile. If its bytes change meanwhile, the connection is closed before the last of them, so that
/// a changed file is never complete.
pub fn stream(data: bridge_state::OpenBlob, length: u64) -> Body {
    let (data, stamp) = data.into_parts();
    send(data, Some(stamp), length)
}

fn send(data: File, stamp: Option<Stamp>, length: u64) -> Body {
    let reader = Reader {
        data,
        stamp,
        left: length,
        sent: Buffers::default(),
    };
    Body::from_stream(try_unfold(reader, Reader::next))
}

struct Reader {
    data: File,
    stamp: Option<Stamp>,
    left: u64,
    sent: Buffers,
}

impl Reader {
    async fn next(mut self) -> io::Result<Option<(Bytes, Self)>> {
        let size = usize::try_from(self.left.min(CHUNK)).unwrap_or(usize::MAX);
        if size == 0 {
            return Ok(None);
        }
        let mut block = self.sent.block(size);
        let read = at_once(&self.data, &mut block.bytes);
        if read > 0 {
            block.bytes.truncate(read);
        } else {
            let reading = tokio::task::spawn_blocking(move || {
                (&self.data).read_exact(&mut block.bytes)?;
                Ok::<_, io::Error>((self.data, block))
            });
            (self.data, block) = reading.await??;
        }
        self.left -= block.bytes.len() as u64;
        if self.left == 0
            && let Some(stamp) = &self.stamp
            && !stamp.still_holds(&self.data)?
        {
            return Err(io::Error::other("the file changed while it was sent"));
        }
        Ok(Some((Bytes::from_owner(block), self)))
    }
}

/// Reads from the page cache. 0 if the data is not in memory, or if the file system cannot tell (NFS): then a
/// thread has to wait for the disk.
fn at_once(data: &File, into: &mut [u8]) -> usize {
    let into = &mut [IoSliceMut::new(into)];
    preadv2(data, into, u64::MAX, ReadWriteFlags::NOWAIT).unwrap_or(0)
}

/// The buffers of one download whose blocks have been sent. They are reused: new memory for each block
/// would have to be zeroed, and would remain in the allocator's cache of each thread.
#[derive(Clone, Default)]
struct Buffers(Arc<Mutex<Vec<Vec<u8>>>>);

struct Block {
    bytes: Vec<u8>,
    sent: Buffers,
}

impl Buffers {
    fn block(&self, size: usize) -> Block {
        let mut bytes = self.0.lock().pop().unwrap_or_default();
        bytes.resize(size, 0);
        let sent = self.clone();
        Block { bytes, sent }
    }
}

impl AsRef<[u8]> for Block {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        self.sent.0.lock().push(bytes);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use bridge_state::{
        Done, PrincipalHash,
        testing::{Folder, alice, later, new_chat},
    };
    use serde_json::{Map, Value};
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, TcpStream},
    };

    use super::*;

    const TEXT: &[u8] = b"0123456789";

    const HASH: &str = "hash";

    struct Server {
        folder: Folder,
        store: Arc<ChatStore>,
        address: std::net::SocketAddr,
    }

    struct Reply {
        status: u16,
        head: String,
        body: Vec<u8>,
    }

    impl Reply {
        fn header(&self, name: &str) -> Option<&str> {
            self.head.lines().find_map(|line| {
                let (key, value) = line.split_once(": ")?;
                key.eq_ignore_ascii_case(name).then_some(value)
            })
        }

        fn text(&self) -> &str {
            std::str::from_utf8(&self.body).unwrap()
        }
    }

    impl Server {
        async fn start() -> Self {
            let folder = Folder::new();
            let store = Arc::new(folder.open());
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let downloads = Downloads::new(store.clone(), Lang::En);
            let router =
                axum::Router::new().fallback(move |request: axum::extract::Request| async move {
                    let (path, method) = (request.uri().path(), request.method());
                    downloads.answer(path, method, request.headers()).await
                });
            tokio::spawn(async { axum::serve(listener, router).await });
            Self {
                folder,
                store,
                address,
            }
        }

        fn publish(&self, name: &str, bytes: &[u8]) -> Artifact {
            let held = self.store.create(&new_chat()).unwrap();
            let artifact = Artifact {
                token: LinkToken::random(),
                name: name.into(),
                path: name.into(),
                ascii_name: "file.html".into(),
                size: bytes.len() as u64,
                mime_type: "text/html".into(),
                sha256: HASH.into(),
                created_at: self.folder.now,
                expires_at: later(self.folder.now, 600),
                gone_at: None,
                gone: None,
                job: held.job.id(),
                server: "s".into(),
                tool: "t".into(),
                principal: PrincipalHash::from(&alice()),
                other: Map::new(),
            };
            let mut staged = self.store.blobs().stage().unwrap();
            staged.file().write_all(bytes).unwrap();
            let blob = self.store.blobs().put(staged, HASH).unwrap();
            let done = Done {
                links: vec![(artifact.clone(), blob)],
                ..Done::default()
            };
            self.store.commit(&held.lease, done).unwrap();
            artifact
        }

        async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Reply {
            let mut request =
                format!("{method} {path} HTTP/1.1\r\nhost: h\r\nconnection: close\r\n");
            for (name, value) in headers {
                request = format!("{request}{name}: {value}\r\n");
            }
            request.push_str("\r\n");
            let mut stream = TcpStream::connect(self.address).await.unwrap();
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await.unwrap();
            let end = memchr::memmem::find(&answer, b"\r\n\r\n").unwrap();
            let head = String::from_utf8(answer[..end].to_vec()).unwrap();
            Reply {
                status: head.split(' ').nth(1).unwrap().parse().unwrap(),
                head,
                body: answer[end + 4..].to_vec(),
            }
        }

        async fn get(&self, artifact: &Artifact, headers: &[(&str, &str)]) -> Reply {
            self.send("GET", &artifact.url("/"), headers).await
        }
    }

    #[tokio::test]
    async fn a_file_comes_whole_under_its_real_name_and_cannot_run() {
        let server = Server::start().await;
        let artifact = server.publish("売上 \"1\".html", TEXT);
        let reply = server.get(&artifact, &[]).await;
        assert_eq!((reply.status, reply.body.as_slice()), (200, TEXT));
        for (name, value) in [
            ("content-type", "text/html"),
            ("content-length", "10"),
            (
                "content-disposition",
                "attachment; filename=\"file.html\"; filename*=UTF-8''%E5%A3%B2%E4%B8%8A%20%221%22.html",
            ),
            ("etag", "\"hash\""),
            ("accept-ranges", "bytes"),
            ("x-content-type-options", "nosniff"),
            ("content-security-policy", "sandbox; default-src 'none'"),
            ("referrer-policy", "no-referrer"),
        ] {
            assert_eq!(reply.header(name), Some(value), "{name}");
        }
    }

    #[tokio::test]
    async fn head_says_the_same_without_bytes() {
        let server = Server::start().await;
        let artifact = server.publish("a", TEXT);
        let reply = server
            .send("HEAD", &artifact.url("/"), &[("range", "bytes=0-1")])
            .await;
        assert_eq!((reply.status, reply.body.len()), (200, 0));
        assert_eq!(reply.header("content-length"), Some("10"));
    }

    #[tokio::test]
    async fn ranges() {
        let server = Server::start().await;
        let artifact = server.publish("a", TEXT);
        for (range, status, body, said) in [
            ("bytes=2-4", 206, "234", Some("bytes 2-4/10")),
            ("bytes=7-", 206, "789", Some("bytes 7-9/10")),
            ("bytes=-2", 206, "89", Some("bytes 8-9/10")),
            ("bytes=8-99", 206, "89", Some("bytes 8-9/10")),
            ("bytes=10-", 416, "", Some("bytes */10")),
            ("bytes=0-1,4-5", 200, "0123456789", None),
            ("bytes=5-2", 200, "0123456789", None),
            ("lines=1-2", 200, "0123456789", None),
        ] {
            let reply = server.get(&artifact, &[("range", range)]).await;
            let got = (reply.status, reply.text(), reply.header("content-range"));
            assert_eq!(got, (status, body, said), "{range}");
        }
        let empty = server.publish("empty", b"");
        assert_eq!(server.get(&empty, &[]).await.status, 200);
        assert_eq!(
            server.get(&empty, &[("range", "bytes=0-")]).await.status,
            416
        );
    }

    #[tokio::test]
    async fn conditions() {
        let server = Server::start().await;
        let artifact = server.publish("a", TEXT);
        let plain = server.get(&artifact, &[]).await;
        let modified = plain.header("last-modified").unwrap();
        for (headers, status) in [
            (vec![("if-none-match", "\"x\", W/\"hash\"")], 304),
            (vec![("if-none-match", "\"x\"")], 200),
            (
                vec![("if-none-match", "\"x\""), ("if-modified-since", modified)],
                200,
            ),
            (vec![("if-modified-since", modified)], 304),
            (
                vec![("if-modified-since", "Sun, 06 Nov 1994 08:49:37 GMT")],
                200,
            ),
            (vec![("range", "bytes=0-1"), ("if-range", "\"hash\"")], 206),
            (vec![("range", "bytes=0-1"), ("if-range", modified)], 206),
            (
                vec![("range", "bytes=0-1"), ("if-range", "W/\"hash\"")],
                200,
            ),
            (vec![("range", "bytes=0-1"), ("if-range", "\"x\"")], 200),
        ] {
            let reply = server.get(&artifact, &headers).await;
            assert_eq!(reply.status, status, "{headers:?}");
            assert_eq!(reply.header("etag"), Some("\"hash\""));
            assert_eq!(reply.body.is_empty(), status == 304);
        }
    }

    #[tokio::test]
    async fn the_token_alone_decides() {
        let server = Server::start().await;
        let artifact = server.publish("a", TEXT);
        let token = artifact.token.as_str();
        for name in ["other.txt", "%E5%A3%B2", "..", "a?x=y"] {
            let reply = server
                .send("GET", &format!("/files/{token}/{name}"), &[])
                .await;
            assert_eq!(reply.status, 200, "{name}");
        }
        let guessed = LinkToken::random();
        for path in [
            "/files".to_owned(),
            "/files/".into(),
            format!("/files/{token}"),
            format!("/files/{token}/"),
            format!("/files/{token}/a/b"),
            format!("/files/{token}/../meta.json/x"),
            format!("/files/{}/a", guessed.as_str()),
            format!("/files/{}/a", &token[1..]),
            "/files/..%2f..%2fetc/passwd".into(),
            "/files//passwd".into(),
        ] {
            let reply = server.send("GET", &path, &[]).await;
            assert_eq!(reply.status, 404, "{path}");
            assert!(!reply.text().contains(token));
        }
    }

    #[tokio::test]
    async fn an_ended_link_says_why_to_people_and_programs() {
        let server = Server::start().await;
        let artifact = server.publish("a", TEXT);
        server.store.revoke(&artifact.token).unwrap();
        let reply = server.get(&artifact, &[]).await;
        assert_eq!(reply.status, 410);
        assert_eq!(
            reply.header("content-type"),
            Some("application/problem+json")
        );
        let problem: Value = serde_json::from_slice(&reply.body).unwrap();
        assert_eq!(problem["status"], 410);
        assert!(
            problem["detail"]
                .as_str()
                .unwrap()
                .contains("Ask for a new link")
        );
        for (languages, expected) in [("ja,en;q=0.5", "取り消されました"), ("fr", "revoked")]
        {
            let asked = [
                ("accept", "text/html,*/*;q=0.8"),
                ("accept-language", languages),
            ];
            let reply = server.get(&artifact, &asked).await;
            assert_eq!(
                reply.header("content-type"),
                Some("text/html; charset=utf-8")
            );
            assert!(reply.text().contains(expected), "{}", reply.text());
        }
    }

    #[tokio::test]
    async fn a_large_file_comes_through_whole_though_its_link_ends_meanwhile() {
        let server = Server::start().await;
        let bytes: Vec<u8> = (0..=u8::MAX).cycle().take(3_000_000).collect();
        let artifact = server.publish("a", &bytes);
        let Link::Live(found, blob) = server.store.link(&artifact.token).unwrap() else {
            panic!("published a moment ago");
        };
        let data = server.store.blobs().get(&blob, None).unwrap().unwrap();
        server.store.revoke(&artifact.token).unwrap();
        let response = super::bytes(*found, data, &Selection::Whole);
        let body = axum::body::to_bytes(response.into_body(), usize::MAX)
            .await
            .unwrap();
        assert!(body == bytes);
    }
}

#[cfg(test)]
mod stream_tests {
    use std::io::{Seek as _, SeekFrom, Write as _};

    use rustix::fs::{Advice, fadvise};

    use super::*;

    /// Several blocks, and not a whole number of them.
    fn bytes() -> Vec<u8> {
        (0..=250).cycle().take(5 * 128 * 1024 + 7).collect()
    }

    /// In the project's folder, since `/tmp` may be in memory, without a disk to wait for.
    fn file() -> File {
        let mut data = tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        data.write_all(&bytes()).unwrap();
        data.sync_all().unwrap();
        data.seek(SeekFrom::Start(3)).unwrap();
        data
    }

    async fn read(data: File, length: usize) -> Result<Bytes, axum::Error> {
        axum::body::to_bytes(send(data, None, length as u64), usize::MAX).await
    }

    #[tokio::test]
    async fn a_part_comes_as_it_is_written_be_it_in_memory_or_on_the_disk() {
        let whole = bytes();
        for (forgotten, length) in [(false, whole.len() - 3), (true, whole.len() - 3), (true, 5)] {
            let data = file();
            if forgotten {
                fadvise(&data, 0, None, Advice::DontNeed).unwrap();
            }
            let found = read(data, length).await.unwrap();
            assert!(found == whole[3..3 + length], "{forgotten} {length}");
        }
    }

    #[tokio::test]
    async fn a_file_that_ends_early_is_an_error_and_no_wait() {
        let error = read(file(), bytes().len()).await.unwrap_err();
        assert!(error.to_string().contains("fill whole buffer"), "{error}");
    }
}
