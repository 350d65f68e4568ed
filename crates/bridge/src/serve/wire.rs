//! The stream between a connection's socket and hyper, which tells heads from bodies for the time limits.
//!
//! hyper gets the bytes of one request at a time, so that each byte is known to be part of a head or of a
//! body. hyper accepts a line feed alone as the end of a line; a stricter proxy in front may not, and would
//! see another request. Such a head is made invalid here, so that hyper answers it with 400.
//!
//! ```text
//! Head ──blank line──▶ Parsed ──hyper knows the length──▶ Body ──its end──▶ Head
//!   │                     └──────hyper knows of chunks────▶ Chunks ──the last──▶ Head
//!   └──line feed alone──▶ Invalid
//! ```

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Buf as _, Bytes};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Sleep,
};

use super::open::{BodyLength, Connection, Unread};

/// How long the rest of a request is discarded after its answer; the default of nginx's `lingering_time`.
const DISCARD_LIMIT: Duration = Duration::from_secs(30);

/// A stream that records its reads and writes in its [`Connection`].
pub struct Wire<S> {
    stream: S,
    connection: Arc<Connection>,
    framing: Framing,
    /// Bytes that were read, and not passed to hyper yet.
    kept: Bytes,
    /// Set when the last answer has been sent: until when the rest of its request is discarded.
    discards: Option<Pin<Box<Sleep>>>,
}

enum Framing {
    /// A head, of which nothing or a part has been read.
    Head(Head),
    /// All of a head was passed to hyper, which has not parsed it yet.
    Parsed,
    /// A body, of which this number of bytes is left.
    Body(u64),
    /// A body in chunks.
    Chunks(Chunks),
    /// A head that hyper answers with 400.
    Invalid,
}

/// The part of a body in chunks that the next byte belongs to.
enum Chunks {
    /// The line with a chunk's size; what follows the digits is ignored.
    Size { size: u64, digits: bool },
    /// The bytes of a chunk that are left, including its line end.
    Data(u64),
    /// The lines after the last chunk; a blank one is the last.
    Trailers(Head),
}

/// The state of an incomplete head.
#[derive(Default)]
struct Head {
    /// Whether a line of it has been read; blank lines before it do not count.
    begun: bool,
    /// Bytes of the incomplete line.
    line: usize,
    last: u8,
}

/// What was found in the next bytes of a head.
#[derive(Debug, PartialEq, Eq)]
enum Scanned {
    /// No end.
    More,
    /// The end, before this index.
    End(usize),
    /// A line feed without a carriage return, at this index.
    Bare(usize),
}

impl<S> Wire<S> {
    pub fn new(stream: S, connection: Arc<Connection>) -> Self {
        Self {
            stream,
            connection,
            framing: Framing::Head(Head::default()),
            kept: Bytes::new(),
            discards: None,
        }
    }

    /// How many of these bytes hyper gets now; at least one.
    fn give(&mut self, bytes: &mut [u8]) -> usize {
        if self.connection.is_upgraded() {
            return bytes.len();
        }
        match &mut self.framing {
            Framing::Head(head) => {
                self.connection.note_head_read();
                match head.scan(bytes) {
                    Scanned::More => bytes.len(),
                    Scanned::End(end) => {
                        self.framing = Framing::Parsed;
                        end
                    }
                    Scanned::Bare(at) => {
                        // A NUL is invalid in any head.
                        bytes[at] = 0;
                        self.framing = Framing::Invalid;
                        at + 1
                    }
                }
            }
            Framing::Body(left) => {
                let now = usize::try_from(*left)
                    .unwrap_or(usize::MAX)
                    .min(bytes.len());
                *left -= now as u64;
                self.connection.note_body_read(now as u64);
                if *left == 0 {
                    self.framing = Framing::Head(Head::default());
                }
                now
            }
            Framing::Chunks(chunks) => {
                let end = chunks.scan(bytes);
                let now = end.unwrap_or(bytes.len());
                self.connection.note_body_read(now as u64);
                if end.is_some() {
                    self.framing = Framing::Head(Head::default());
                }
                now
            }
            Framing::Parsed | Framing::Invalid => bytes.len(),
        }
    }

    /// Whether the client has sent, or may still send, a part of a request that hyper does not read any more.
    fn has_rest(&mut self) -> bool {
        self.follow();
        let within_request = match &self.framing {
            Framing::Head(head) => head.begun || head.line > 0,
            Framing::Parsed | Framing::Body(_) | Framing::Chunks(_) | Framing::Invalid => true,
        };
        (within_request || !self.kept.is_empty()) && !self.connection.is_upgraded()
    }

    /// Continues with the body that hyper found in the last head.
    fn follow(&mut self) {
        if matches!(self.framing, Framing::Parsed) {
            self.framing = match self.connection.body() {
                BodyLength::Bytes(0) => Framing::Head(Head::default()),
                BodyLength::Bytes(length) => Framing::Body(length),
                BodyLength::Chunked => Framing::Chunks(Chunks::first()),
                BodyLength::Unknown => Framing::Parsed,
            };
        }
    }
}

impl Head {
    /// The first line may be blank.
    fn trailers() -> Self {
        Self {
            begun: true,
            ..Self::default()
        }
    }

    fn scan(&mut self, bytes: &[u8]) -> Scanned {
        let mut line = 0;
        for at in memchr::memchr_iter(b'\n', bytes) {
            let before = match at {
                0 => self.last,
                at => bytes[at - 1],
            };
            if before != b'\r' {
                return Scanned::Bare(at);
            }
            let length = self.line + (at - line) - 1;
            if length == 0 && self.begun {
                return Scanned::End(at + 1);
            }
            self.begun |= length > 0;
            (self.line, line) = (0, at + 1);
        }
        self.line += bytes.len() - line;
        self.last = bytes.last().copied().unwrap_or(self.last);
        Scanned::More
    }
}

impl Chunks {
    fn first() -> Self {
        Self::Size {
            size: 0,
            digits: true,
        }
    }

    /// Where the body ends, if it ends in these bytes. hyper rejects invalid chunks.
    fn scan(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut at = 0;
        while at < bytes.len() {
            match self {
                Self::Size { size, digits } => {
                    let byte = bytes[at];
                    at += 1;
                    if byte == b'\n' {
                        *self = match *size {
                            0 => Self::Trailers(Head::trailers()),
                            size => Self::Data(size.saturating_add(2)),
                        };
                        continue;
                    }
                    match char::from(byte).to_digit(16) {
                        Some(digit) if *digits => {
                            *size = size.saturating_mul(16).saturating_add(digit.into());
                        }
                        _ => *digits = false,
                    }
                }
                Self::Data(left) => {
                    let rest = bytes.len() - at;
                    let now = usize::try_from(*left).unwrap_or(usize::MAX).min(rest);
                    *left -= now as u64;
                    at += now;
                    if *left == 0 {
                        *self = Self::first();
                    }
                }
                Self::Trailers(lines) => {
                    return match lines.scan(&bytes[at..]) {
                        Scanned::End(end) => Some(at + end),
                        Scanned::More | Scanned::Bare(_) => None,
                    };
                }
            }
        }
        None
    }
}

impl<S: AsyncRead + Unread + Unpin> AsyncRead for Wire<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.follow();
        let start = buffer.filled().len();
        let came = this.kept.is_empty();
        if came {
            let in_body = matches!(this.framing, Framing::Body(_) | Framing::Chunks(_));
            if in_body && this.connection.is_late() {
                let why = "the body was received too slowly";
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, why)));
            }
            let read = Pin::new(&mut this.stream).poll_read(context, buffer);
            if read.is_pending() && in_body {
                this.connection.waits_for_body(context.waker());
            } else if read.is_pending() {
                let reader = context.waker();
                if this.connection.ends_before_head(reader, &this.stream) {
                    return Poll::Ready(Ok(()));
                }
            }
            std::task::ready!(read)?;
            if buffer.filled().len() == start {
                return Poll::Ready(Ok(()));
            }
            this.connection.note_received();
        } else {
            let now = this.kept.len().min(buffer.remaining());
            buffer.put_slice(&this.kept[..now]);
        }
        let bytes = &mut buffer.filled_mut()[start..];
        let given = this.give(bytes);
        if !came {
            this.kept.advance(given);
        } else if given < bytes.len() {
            this.kept = Bytes::copy_from_slice(&bytes[given..]);
        }
        if came && matches!(this.framing, Framing::Invalid) {
            // hyper may parse a head only when it is complete.
            this.kept = Bytes::from_static(b"\r\n\r\n");
        }
        buffer.set_filled(start + given);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Wire<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write(context, bytes);
        this.connection.note_write(written.is_ready());
        written
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write_vectored(context, parts);
        this.connection.note_write(written.is_ready());
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flushed = Pin::new(&mut this.stream).poll_flush(context);
        this.connection.note_write(flushed.is_ready());
        flushed
    }

    /// A socket that is closed with unread bytes is reset, and a client that is still sending its request may
    /// lose the answer (RFC 9112, section 9.6). So they are read until the client has closed its side.
    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.discards.is_none() {
            std::task::ready!(Pin::new(&mut this.stream).poll_shutdown(context))?;
            if !this.has_rest() {
                return Poll::Ready(Ok(()));
            }
            this.discards = Some(Box::pin(tokio::time::sleep(DISCARD_LIMIT)));
        }
        let timer = this.discards.as_mut().expect("set above");
        if timer.as_mut().poll(context).is_ready() || this.connection.ends_early(context.waker()) {
            return Poll::Ready(Ok(()));
        }
        loop {
            let mut bytes = [0; 16 * 1024];
            let mut buffer = ReadBuf::new(&mut bytes);
            let read = Pin::new(&mut this.stream).poll_read(context, &mut buffer);
            if std::task::ready!(read).is_err() || buffer.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write as _,
        net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    };

    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader, DuplexStream},
        net::TcpListener,
    };

    use super::{
        super::open::{Admission, Limits, Table},
        *,
    };

    const PEER: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0));

    impl Unread for BufReader<DuplexStream> {
        fn has_unread(&self) -> bool {
            false
        }
    }

    /// What hyper reads, request by request, if the bytes arrive in parts of this size.
    async fn requests(sent: &[u8], cut: usize, bodies: &[BodyLength]) -> Vec<String> {
        let (mut client, server) = tokio::io::duplex(1);
        let bytes = sent.to_vec();
        tokio::spawn(async move {
            for part in bytes.chunks(cut) {
                client.write_all(part).await.unwrap();
            }
        });
        let connection = Connection::untracked(PEER);
        // Reads a part at once even if it is larger than the pipe.
        let server = BufReader::with_capacity(cut, server);
        let mut wire = Wire::new(server, connection.clone());
        let (mut found, mut bodies) = (vec![Vec::new()], bodies.iter());
        let mut buffer = vec![0; 4096];
        loop {
            let read = wire.read(&mut buffer).await.unwrap();
            if read == 0 {
                break;
            }
            found.last_mut().unwrap().extend_from_slice(&buffer[..read]);
            match wire.framing {
                Framing::Parsed => {
                    let length = bodies.next().copied().unwrap_or(BodyLength::Bytes(0));
                    connection.begin_request(length);
                    if matches!(length, BodyLength::Bytes(0)) {
                        found.push(Vec::new());
                    }
                }
                Framing::Head(Head {
                    begun: false,
                    line: 0,
                    ..
                }) => found.push(Vec::new()),
                _ => {}
            }
        }
        let found = found.into_iter().filter(|part| !part.is_empty());
        found.map(|part| String::from_utf8(part).unwrap()).collect()
    }

    /// The only connection of a table for one, whose task returns what it has read.
    async fn open_only_connection(
        table: &Arc<Table>,
    ) -> (std::net::TcpStream, tokio::task::JoinHandle<Vec<u8>>) {
        let listener = TcpListener::bind(PEER).await.unwrap();
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().await.unwrap();
        let Admission::Accepted(connection, held) = table.admit(PEER).await else {
            panic!("a place")
        };
        let mut wire = Wire::new(server, connection.clone());
        let task = tokio::spawn(async move {
            let _held = held;
            let mut buffer = vec![0; 1000];
            let read = wire.read(&mut buffer).await.unwrap();
            buffer.truncate(read);
            buffer
        });
        connection.set_task(task.abort_handle());
        // It reads, finds nothing, and its grace passes.
        tokio::time::advance(Duration::from_millis(20)).await;
        (client, task)
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_whose_request_was_not_read_yet_is_not_silent() {
        let long = Duration::from_mins(10);
        let table = Table::new(Limits {
            most: 1,
            new_per_address: 1,
            head: long,
            body: long,
            idle: long,
        });
        let (mut client, task) = open_only_connection(&table).await;
        // The runtime learns of it only when it is idle.
        client.write_all(b"GET / HTTP/1.1").unwrap();
        let next = table.admit(PEER).await;
        assert!(
            matches!(next, Admission::Accepted(..)),
            "it counts as silent"
        );
        assert_eq!(task.await.unwrap(), b"GET / HTTP/1.1");
        drop(next);
        // A client that has sent nothing is closed.
        let (_client, task) = open_only_connection(&table).await;
        assert!(matches!(table.admit(PEER).await, Admission::Accepted(..)));
        assert_eq!(task.await.unwrap(), b"");
    }

    #[tokio::test]
    async fn requests_behind_each_other_are_given_one_by_one() {
        let parts = [
            "POST /a HTTP/1.1\r\nContent-Length: 5\r\n\r\n12\n\n5",
            "POST /b HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n\
             3;x=\"1\"\r\n\n\n\n\r\n00A\r\n0123456789\r\n0\r\nTrailer: 1\r\n\r\n",
            "GET /c HTTP/1.1\r\n\r\n",
            "POST /d HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "GET /e HTTP/1.1\r\nHost: x\r\n\r\n",
        ];
        let lengths = [
            BodyLength::Bytes(5),
            BodyLength::Chunked,
            BodyLength::Bytes(0),
            BodyLength::Chunked,
            BodyLength::Bytes(0),
        ];
        let sent = parts.concat();
        for cut in 1..sent.len() {
            let found = requests(sent.as_bytes(), cut, &lengths).await;
            assert_eq!(found, parts, "{cut}");
        }
    }

    #[tokio::test]
    async fn a_line_feed_alone_makes_the_head_of_any_request_invalid() {
        for head in [
            "GET / HTTP/1.1\nHost: x\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: x\n\r\n",
            "GET / HTTP/1.1\r\nHost: x\r\n\n",
            "\nGET / HTTP/1.1\r\n\r\n",
        ] {
            for before in ["", "POST / HTTP/1.1\r\nContent-Length: 1\r\n\r\n\n"] {
                let sent = format!("{before}{head}");
                for cut in 1..sent.len() {
                    let found = requests(sent.as_bytes(), cut, &[BodyLength::Bytes(1)]).await;
                    let found = found.concat();
                    let rest = found.strip_prefix(before).expect("the first is whole");
                    let invalid = rest.contains('\0') && rest.ends_with("\r\n\r\n");
                    assert!(
                        invalid || before.is_empty() && !rest.is_empty(),
                        "{cut} {rest:?}"
                    );
                    assert!(rest.contains('\0'), "{cut} {rest:?}");
                }
            }
        }
    }
}
