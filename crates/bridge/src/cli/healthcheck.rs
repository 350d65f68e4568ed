//! `mcpo-bridge healthcheck`: for containers, whose images need no other HTTP client for it.

use std::{
    io,
    io::{Read, Write},
    net::{IpAddr, TcpStream, ToSocketAddrs as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use clap::Args;
use rustls::{
    ClientConnection, StreamOwned,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use serde_json::Value;
use url::Url;

use super::{Failure, SettingsArgs, output::print};
use crate::{config::Listen, pinned::Pinned};

/// What `--help` adds.
pub const HELP: &str = "\
Requests /health at the address in the settings. Exit code 0 if the response is 200 (also when the status is \
degraded: one failing server is no reason to restart the others), 1 otherwise.

Examples:
  HEALTHCHECK CMD [\"mcpo-bridge\", \"healthcheck\"]
  mcpo-bridge healthcheck --url http://127.0.0.1:8080/health";

/// Bytes of the response that are read: more than any health report.
const LIMIT: u64 = 4 * 1024 * 1024;

/// The arguments of `healthcheck`.
#[derive(Args)]
pub struct HealthcheckArgs {
    /// URL to request instead; without a path, /health is used
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// Overall timeout
    #[arg(
        long,
        alias = "patience",
        value_name = "SECONDS",
        default_value_t = 5.0
    )]
    max_time: f64,
}

/// What is requested.
#[derive(Debug, PartialEq, Eq)]
struct Target {
    host: String,
    port: u16,
    path: String,
    /// Of a bridge that speaks HTTPS itself.
    certificate: Option<PathBuf>,
}

/// Every failure is exit code 1: Docker reserves 2.
pub fn run(args: &HealthcheckArgs, settings: &SettingsArgs) -> Result<(), Failure> {
    let target = match &args.url {
        Some(url) => Target::parse(url)?,
        None => Target::from_listen(&settings.resolve().map_err(Failure::failed)?.listen)?,
    };
    let timeout = Duration::try_from_secs_f64(args.max_time)
        .ok()
        .filter(|time| !time.is_zero())
        .ok_or_else(|| {
            Failure::failed("--max-time: expected a number of seconds greater than 0")
        })?;
    let (status, body) = target.get(timeout).map_err(|error| {
        Failure::failed(format!(
            "no response from {}: {error}; check that the bridge is running and listens there (MCPO_HOST, \
             MCPO_PORT)",
            target.url()
        ))
    })?;
    let health: Value = serde_json::from_slice(&body).unwrap_or_default();
    if status != 200 {
        let why = health["reasons"].to_string();
        return Err(Failure::failed(format!(
            "{} returned {status}: {why}",
            target.url()
        )));
    }
    let said = health["status"].as_str().unwrap_or("ok");
    print(&format!("{said}\n"))
}

impl Target {
    /// A bridge that listens on every address also listens on loopback.
    fn from_listen(listen: &Listen) -> Result<Self, Failure> {
        if listen.port == 0 {
            return Err(Failure::failed(
                "with port 0 the port is chosen by the system; give the actual one with --url or MCPO_PORT",
            ));
        }
        let host = match listen.host.parse::<IpAddr>() {
            Ok(IpAddr::V4(address)) if address.is_unspecified() => "127.0.0.1".to_owned(),
            Ok(IpAddr::V6(address)) if address.is_unspecified() => "::1".to_owned(),
            _ => listen.host.clone(),
        };
        Ok(Self {
            host,
            port: listen.port,
            path: format!("{}/health", listen.path_prefix),
            certificate: listen.tls.as_ref().map(|tls| tls.certificate.clone()),
        })
    }

    fn parse(text: &str) -> Result<Self, Failure> {
        let url = Url::parse(text).ok().filter(|url| url.scheme() == "http");
        let parts = url.as_ref().and_then(|url| {
            let host = url.host_str()?.trim_matches(['[', ']']).to_owned();
            Some((url, host, url.port_or_known_default()?))
        });
        let Some((url, host, port)) = parts else {
            return Err(Failure::failed(
                "--url: expected an http URL, such as http://127.0.0.1:8080/health (for https omit it: \
                 MCPO_SSL_CERTFILE is used)",
            ));
        };
        let path = match url.path() {
            "/" => "/health",
            path => path,
        };
        let path = path.to_owned();
        let certificate = None;
        Ok(Self {
            host,
            port,
            path,
            certificate,
        })
    }

    fn authority(&self) -> String {
        let Self { host, port, .. } = self;
        if host.contains(':') {
            format!("[{host}]:{port}")
        } else {
            format!("{host}:{port}")
        }
    }

    fn url(&self) -> String {
        let scheme = self.certificate.as_ref().map_or("http", |_| "https");
        format!("{scheme}://{}{}", self.authority(), self.path)
    }

    /// The status and the body.
    fn get(&self, timeout: Duration) -> io::Result<(u16, Vec<u8>)> {
        let until = Instant::now() + timeout;
        let connection = self.connect(until)?;
        // Its own handle, because the deadline is the connection's and TLS hides it.
        let timer = connection.try_clone()?;
        timer.set_read_timeout(Some(left(until)?))?;
        let mut stream: Box<dyn Stream> = match &self.certificate {
            Some(certificate) => tls_over(connection, certificate)?,
            None => Box::new(connection),
        };
        let request = format!(
            "GET {} HTTP/1.1\r\nHost: {}\r\nUser-Agent: mcpo-bridge-healthcheck\r\n\
             Accept: application/json\r\nConnection: close\r\n\r\n",
            self.path,
            self.authority()
        );
        timer.set_write_timeout(Some(left(until)?))?;
        stream.write_all(request.as_bytes())?;
        let mut answer = Vec::new();
        let mut part = [0; 8192];
        while (answer.len() as u64) < LIMIT {
            timer.set_read_timeout(Some(left(until)?))?;
            match stream.read(&mut part) {
                Ok(0) => break,
                Ok(read) => answer.extend_from_slice(&part[..read]),
                // TLS misses its own farewell where the other side just closes.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
                Err(error) => return Err(error),
            }
        }
        parse_answer(&answer).ok_or_else(|| {
            io::Error::other("the response is not HTTP: another program listens there")
        })
    }

    fn connect(&self, until: Instant) -> io::Result<TcpStream> {
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        for address in (self.host.as_str(), self.port).to_socket_addrs()? {
            match TcpStream::connect_timeout(&address, left(until)?) {
                Ok(stream) => return Ok(stream),
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

fn left(until: Instant) -> io::Result<Duration> {
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() {
        Err(io::ErrorKind::TimedOut.into())
    } else {
        Ok(left)
    }
}

/// The body as it was framed: chunks would not read as JSON, and only the status counts.
fn parse_answer(answer: &[u8]) -> Option<(u16, Vec<u8>)> {
    let end = memchr::memmem::find(answer, b"\r\n\r\n")?;
    let head = std::str::from_utf8(&answer[..end]).ok()?;
    let mut words = head.lines().next()?.split(' ');
    words.next().filter(|word| word.starts_with("HTTP/1."))?;
    let status = words.next()?.parse().ok()?;
    Some((status, answer[end + 4..].to_vec()))
}

// HTTPS with one bridge: the one that has the configured certificate, whatever names stand in it.

/// A connection of either kind.
pub trait Stream: Read + Write {}

impl<T: Read + Write> Stream for T {}

/// Speaks TLS over `stream` with a server that has the first certificate of this file. The names in it
/// are not checked: they are those that browsers use.
fn tls_over(stream: TcpStream, certificate: &Path) -> io::Result<Box<dyn Stream>> {
    let known = CertificateDer::from_pem_file(certificate).map_err(io::Error::other)?;
    let other =
        "another program listens there: its certificate is not the one in MCPO_SSL_CERTFILE";
    let pinned = Pinned::new(move |shown: &CertificateDer<'_>| *shown == known, other);
    let name = ServerName::try_from("localhost").map_err(io::Error::other)?;
    let connection = ClientConnection::new(Arc::new(pinned.client()), name);
    let connection = connection.map_err(io::Error::other)?;
    Ok(Box::new(StreamOwned::new(connection, stream)))
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;

    #[test]
    fn a_url_needs_no_path_and_no_port() {
        let target = |url: &str| Target::parse(url).map(|target| target.url());
        assert_eq!(target("http://h").unwrap(), "http://h:80/health");
        assert_eq!(target("http://[::1]:9/x").unwrap(), "http://[::1]:9/x");
        for bad in ["https://h/health", "h:8080", "", "file:///health"] {
            assert!(target(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn it_requests_the_address_in_the_settings() {
        let asked = |flags: &[&str]| {
            #[derive(clap::Parser)]
            struct Given {
                #[command(flatten)]
                settings: SettingsArgs,
            }
            let given = ["x", "--allow-unauthenticated"].iter().chain(flags);
            let given: Given = clap::Parser::parse_from(given);
            let settings = given.settings.resolve().unwrap();
            Target::from_listen(&settings.listen).map(|target| target.url())
        };
        let url = asked(&["--host", "0.0.0.0", "--port", "9", "--path-prefix", "/x"]);
        assert_eq!(url.unwrap(), "http://127.0.0.1:9/x/health");
        let url = asked(&["--host", "::", "--port", "9"]).unwrap();
        assert_eq!(url, "http://[::1]:9/health");
        let url = asked(&["--host", "bridge.internal", "--port", "9"]);
        assert_eq!(url.unwrap(), "http://bridge.internal:9/health");
        assert!(asked(&["--port", "0"]).is_err());
        let url = asked(&["--port", "9", "-t", "c.pem", "-K", "k.pem"]);
        assert_eq!(url.unwrap(), "https://127.0.0.1:9/health");
    }

    /// Serves one connection.
    fn answering(answer: &'static [u8]) -> Target {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(answer);
            if answer.is_empty() {
                // Until the client has had enough.
                let _ = stream.read(&mut [0; 1]);
            }
        });
        Target {
            host: "127.0.0.1".to_owned(),
            port,
            path: "/health".to_owned(),
            certificate: None,
        }
    }

    #[test]
    fn a_response_that_is_late_is_a_failure() {
        let error = answering(b"").get(Duration::from_millis(50)).unwrap_err();
        // The error of a read timeout differs among systems.
        let kinds = [io::ErrorKind::WouldBlock, io::ErrorKind::TimedOut];
        assert!(kinds.contains(&error.kind()), "{error}");
        let down = answering(b"HTTP/1.1 503 Service Unavailable\r\n\r\n{}");
        assert_eq!(down.get(Duration::from_secs(5)).unwrap().0, 503);
    }

    #[test]
    fn only_http_is_a_response() {
        let answer = parse_answer(b"HTTP/1.1 503 Service Unavailable\r\nA: b\r\n\r\n{}").unwrap();
        assert_eq!(answer, (503, b"{}".to_vec()));
        for bad in [
            &b"SSH-2.0-x\r\n\r\n"[..],
            b"HTTP/1.1 200 OK",
            b"",
            b"HTTP/1.1\r\n\r\n",
        ] {
            assert!(parse_answer(bad).is_none());
        }
    }
}
