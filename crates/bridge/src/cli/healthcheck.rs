//! `mcpo-bridge healthcheck`: for containers, whose images need no other HTTP client for it.

use std::{
    io,
    net::{IpAddr, TcpStream, ToSocketAddrs as _},
    path::PathBuf,
    time::{Duration, Instant},
};

use clap::Args;
use serde_json::Value;
use url::Url;

use super::{Failure, SettingsArgs, output::print};
use crate::config::Listen;

mod tls;

/// What `--help` adds.
pub const HELP: &str = "\
GETs /health where the settings say that the bridge listens. Exit code 0 if it answers 200 (also
when it is degraded: a failing server is no reason to restart the others), 1 otherwise.

Examples:
  HEALTHCHECK CMD [\"mcpo-bridge\", \"healthcheck\"]
  mcpo-bridge healthcheck --url http://127.0.0.1:8080/health";

/// Bytes of the answer that are read: more than any health report.
const LIMIT: u64 = 4 * 1024 * 1024;

/// What `healthcheck` is told.
#[derive(Args)]
pub struct HealthcheckArgs {
    /// Ask there instead; without a path, /health
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// Seconds for the whole exchange
    #[arg(long, value_name = "SECONDS", default_value_t = 5.0)]
    patience: f64,
    #[command(flatten)]
    settings: SettingsArgs,
}

/// Where to ask.
#[derive(Debug, PartialEq, Eq)]
struct Target {
    host: String,
    port: u16,
    path: String,
    /// Of a bridge that speaks HTTPS itself.
    certificate: Option<PathBuf>,
}

/// Asks. Every failure is exit code 1: Docker keeps 2 for itself.
pub fn run(args: HealthcheckArgs) -> Result<(), Failure> {
    let target = match &args.url {
        Some(url) => Target::parse(url)?,
        None => Target::of(&args.settings.resolve().map_err(Failure::failed)?.listen)?,
    };
    let patience = Duration::try_from_secs_f64(args.patience)
        .ok()
        .filter(|time| !time.is_zero())
        .ok_or_else(|| Failure::failed("--patience: a number of seconds above 0 is expected"))?;
    let (status, body) = target.get(patience).map_err(|error| {
        Failure::failed(format!(
            "no answer from {}: {error}; is the bridge running, and is this its address \
             (MCPO_HOST, MCPO_PORT)?",
            target.url()
        ))
    })?;
    let health: Value = serde_json::from_slice(&body).unwrap_or_default();
    if status != 200 {
        let why = health["reasons"].to_string();
        return Err(Failure::failed(format!(
            "{} answered {status}: {why}",
            target.url()
        )));
    }
    let said = health["status"].as_str().unwrap_or("ok");
    print(&format!("{said}\n"))
}

impl Target {
    /// Whoever listens on every address also listens on loopback.
    fn of(listen: &Listen) -> Result<Self, Failure> {
        if listen.port == 0 {
            return Err(Failure::failed(
                "with port 0 the system chose the bridge's port: name it with --url or MCPO_PORT",
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
                "--url: an http URL is expected, such as http://127.0.0.1:8080/health (for https \
                 leave it out: MCPO_SSL_CERTFILE says whom to ask)",
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
    fn get(&self, patience: Duration) -> io::Result<(u16, Vec<u8>)> {
        let until = Instant::now() + patience;
        let connection = self.connect(until)?;
        // Its own handle, because the deadline is the connection's and TLS hides it.
        let timer = connection.try_clone()?;
        timer.set_read_timeout(Some(left(until)?))?;
        let mut stream: Box<dyn tls::Stream> = match &self.certificate {
            Some(certificate) => tls::over(connection, certificate)?,
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
        parse_answer(&answer)
            .ok_or_else(|| io::Error::other("the answer is not HTTP: something else listens there"))
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
    fn it_asks_where_the_settings_say_that_the_bridge_listens() {
        let asked = |flags: &[&str]| {
            #[derive(clap::Parser)]
            struct Given {
                #[command(flatten)]
                args: HealthcheckArgs,
            }
            let given = ["x", "--allow-unauthenticated"].iter().chain(flags);
            let given: Given = clap::Parser::parse_from(given);
            let settings = given.args.settings.resolve().unwrap();
            Target::of(&settings.listen).map(|target| target.url())
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
    fn whoever_says_nothing_in_time_is_not_well() {
        let error = answering(b"").get(Duration::from_millis(50)).unwrap_err();
        // How a read's timeout is told differs among systems.
        let kinds = [io::ErrorKind::WouldBlock, io::ErrorKind::TimedOut];
        assert!(kinds.contains(&error.kind()), "{error}");
        let down = answering(b"HTTP/1.1 503 Service Unavailable\r\n\r\n{}");
        assert_eq!(down.get(Duration::from_secs(5)).unwrap().0, 503);
    }

    #[test]
    fn only_http_is_an_answer() {
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
