//! The bytes of a connection on their way to hyper and back, as far as limits depend on them.
//!
//! hyper is given a head and what belongs to it, and nothing of the next request: so it is known for each
//! byte whether it is part of a head or of a body. hyper takes a line feed alone for the end of a line; a
//! stricter proxy in front may not, and would see another request. Such a head is spoilt here, so that
//! hyper answers it with 400.
//!
//! ```text
//! Head ──blank line──▶ Parsed ──hyper knows the length──▶ Body ──its end──▶ Head
//!   │                     └──────hyper knows of chunks────▶ Chunks ──the last──▶ Head
//!   └──line feed alone──▶ Spoilt
//! ```

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::{Buf as _, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::open::{BodyLength, Connection, Unread};

/// A stream whose reads and writes its [`Connection`] is told of.
pub struct Wire<S> {
    stream: S,
    connection: Arc<Connection>,
    framing: Framing,
    /// Read, and not given to hyper yet.
    kept: Bytes,
}

enum Framing {
    /// A head is awaited, or a part of it has come.
    Head(Head),
    /// All of a head was given to hyper, which has not said what follows.
    Parsed,
    /// So many bytes of a body follow.
    Body(u64),
    /// The chunks of a body follow.
    Chunks(Chunks),
    /// hyper answers with 400.
    Spoilt,
}

/// Where the next byte of a body in chunks stands.
enum Chunks {
    /// In the line with a chunk's size, so far; what follows the digits counts no more.
    Size { size: u64, digits: bool },
    /// So many bytes of a chunk, and the two that end its line, follow.
    Data(u64),
    /// In the lines behind the last chunk, of which a blank one is the last.
    Trailers(Head),
}

/// What is known of a head that is not complete.
#[derive(Default)]
struct Head {
    /// Some line of it has come; blank lines before it do not count.
    begun: bool,
    /// Bytes of the line that is not complete.
    line: usize,
    last: u8,
}

/// What a head's next bytes are.
#[derive(Debug, PartialEq, Eq)]
enum Scanned {
    /// Its end is not among them.
    More,
    /// It ends in front of this one.
    End(usize),
    /// A line feed without a carriage return is at this one.
    Bare(usize),
}

impl<S> Wire<S> {
    pub fn new(stream: S, connection: Arc<Connection>) -> Self {
        Self {
            stream,
            connection,
            framing: Framing::Head(Head::default()),
            kept: Bytes::new(),
        }
    }

    /// How many of these bytes hyper gets now; more than none of some.
    fn give(&mut self, bytes: &mut [u8]) -> usize {
        if self.connection.is_upgraded() {
            return bytes.len();
        }
        match &mut self.framing {
            Framing::Head(head) => {
                self.connection.read_of_head();
                match head.scan(bytes) {
                    Scanned::More => bytes.len(),
                    Scanned::End(end) => {
                        self.framing = Framing::Parsed;
                        end
                    }
                    Scanned::Bare(at) => {
                        // No head may have a NUL.
                        bytes[at] = 0;
                        self.framing = Framing::Spoilt;
                        at + 1
                    }
                }
            }
            Framing::Body(left) => {
                let now = usize::try_from(*left)
                    .unwrap_or(usize::MAX)
                    .min(bytes.len());
                *left -= now as u64;
                self.connection.read_of_body(now as u64);
                if *left == 0 {
                    self.framing = Framing::Head(Head::default());
                }
                now
            }
            Framing::Chunks(chunks) => {
                let end = chunks.scan(bytes);
                let now = end.unwrap_or(bytes.len());
                self.connection.read_of_body(now as u64);
                if end.is_some() {
                    self.framing = Framing::Head(Head::default());
                }
                now
            }
            Framing::Parsed | Framing::Spoilt => bytes.len(),
        }
    }

    /// Takes over what hyper found out of the last head.
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
    /// The first line may be the blank one.
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

    /// Where the body ends, if that is among these bytes. What is no chunk is left to hyper.
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
            this.connection.came();
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
        if came && matches!(this.framing, Framing::Spoilt) {
            // hyper may look at a head only once it has an end.
            this.kept = Bytes::from_static(b"\r\n\r\n");
        }
        buffer.set_filled(start + given);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Wire<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write(context, bytes);
        this.connection.wrote(written.is_ready());
        written
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write_vectored(context, parts);
        this.connection.wrote(written.is_ready());
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flushed = Pin::new(&mut this.stream).poll_flush(context);
        this.connection.wrote(flushed.is_ready());
        flushed
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write as _,
        net::{Ipv4Addr, SocketAddr, SocketAddrV4},
        time::Duration,
    };

    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader, DuplexStream},
        net::TcpListener,
    };

    use super::{
        super::open::{Admitted, Limits, Table},
        *,
    };

    const PEER: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0));

    impl Unread for BufReader<DuplexStream> {
        fn has_unread(&self) -> bool {
            false
        }
    }

    /// What hyper would read, request by request, however the bytes are cut.
    async fn requests(sent: &[u8], cut: usize, bodies: &[BodyLength]) -> Vec<String> {
        let (mut client, server) = tokio::io::duplex(1);
        let bytes = sent.to_vec();
        tokio::spawn(async move {
            for part in bytes.chunks(cut) {
                client.write_all(part).await.unwrap();
            }
        });
        let connection = Connection::untracked(PEER);
        // Read in one piece where a piece is larger than the pipe.
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
                    connection.begin(length);
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

    /// A connection of a table with one place, whose task reads what comes; what it read.
    async fn in_the_only_place(
        table: &Arc<Table>,
    ) -> (std::net::TcpStream, tokio::task::JoinHandle<Vec<u8>>) {
        let listener = TcpListener::bind(PEER).await.unwrap();
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().await.unwrap();
        let Admitted::In(connection, held) = table.admit(PEER).await else {
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
        connection.runs_in(task.abort_handle());
        // It looks, finds nothing, and has had its time.
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
        let (mut client, task) = in_the_only_place(&table).await;
        // The runtime hears of it only when it has nothing else to do.
        client.write_all(b"GET / HTTP/1.1").unwrap();
        let next = table.admit(PEER).await;
        assert!(matches!(next, Admitted::In(..)), "it seemed to be silent");
        assert_eq!(task.await.unwrap(), b"GET / HTTP/1.1");
        drop(next);
        // Who has sent nothing ends.
        let (_client, task) = in_the_only_place(&table).await;
        assert!(matches!(table.admit(PEER).await, Admitted::In(..)));
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
    async fn a_line_feed_alone_spoils_the_head_of_any_request() {
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
                    let spoilt = rest.contains('\0') && rest.ends_with("\r\n\r\n");
                    assert!(
                        spoilt || before.is_empty() && !rest.is_empty(),
                        "{cut} {rest:?}"
                    );
                    assert!(rest.contains('\0'), "{cut} {rest:?}");
                }
            }
        }
    }
}
