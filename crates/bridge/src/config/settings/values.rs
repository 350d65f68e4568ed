//! The values of settings that have a type of their own.

use std::{net::IpAddr, path::PathBuf};

use bridge_model::ServerName;
use url::Url;

use super::{BaseUrl, Limits, Listen, Secret};

/// Servers and variables that are given on the command line itself, as with mcpo.
#[derive(Debug, Clone, Default)]
pub struct CommandLine {
    /// The one server that replaces the server file.
    pub server: Option<SingleServer>,
    /// Variables for every child, beneath the server's own, and for references in the file.
    pub env: Vec<(String, Secret)>,
}

/// A server without a file. It is served at the root, and by its name like any other.
#[derive(Debug, Clone)]
pub struct SingleServer {
    /// The last part of its URLs below `/mcpo` and `/mcp`.
    pub name: ServerName,
    /// A server file that holds this server alone: arguments and headers may be secrets.
    pub document: Secret,
}

/// A certificate and its key, as files.
#[derive(Debug, Clone)]
pub struct Tls {
    /// The chain, the server's own certificate first.
    pub certificate: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

/// A host, as a URL has it but for IPv6's brackets, and perhaps a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerAddress {
    /// Name or address.
    pub host: String,
    /// If it differs from the listening port.
    pub port: Option<u16>,
}

/// Python's level names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogLevel {
    /// Everything.
    Debug,
    /// What an operator wants to see.
    Info,
    /// What may need attention.
    Warning,
    /// What failed.
    Error,
    /// What stops the bridge.
    Critical,
}

/// The format of the log on standard output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Text on a terminal, JSON otherwise.
    Auto,
    /// One JSON object per line.
    Json,
    /// For people.
    Text,
}

/// The language of what users read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lang {
    /// English.
    En,
    /// Japanese.
    Ja,
}

/// What `journal.jsonl` keeps of each call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Journal {
    /// Request, response, times, files.
    Full,
    /// Times, files, sizes and outcome.
    Metadata,
    /// Nothing.
    Off,
}

impl Listen {
    /// Sets the port that the system chose for port 0; a default base URL follows.
    pub fn bound_to(&mut self, port: u16) {
        if self.base_url == BaseUrl::local(self.port, self.tls.is_some()) {
            self.base_url = BaseUrl::local(port, self.tls.is_some());
        }
        self.port = port;
    }

    /// The origins of our own pages: our port under each of our names, the base URL, and the default
    /// ports of HTTP and HTTPS of configured hosts, where a proxy listens.
    pub fn own_origins(&self) -> Vec<String> {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let mut own = Vec::from_iter(self.base_url.origin());
        for host in self.allowed_hosts.iter().filter(|host| *host != "*") {
            let shown = if host.contains(':') {
                format!("[{host}]")
            } else {
                host.clone()
            };
            let mut urls = vec![format!("{scheme}://{shown}:{}", self.port)];
            let is_base = self.base_url.host().as_ref() == Some(host);
            if !is_loopback(host) && !is_base {
                urls.extend([format!("http://{shown}"), format!("https://{shown}")]);
            }
            // Drops the scheme's own port, as browsers do.
            let parsed = urls.iter().filter_map(|url| Url::parse(url).ok());
            own.extend(parsed.map(|url| url.origin().ascii_serialization()));
        }
        own
    }
}

impl Limits {
    /// [`Self::max_message_bytes`] as a length in memory.
    pub fn max_message(&self) -> usize {
        usize::try_from(self.max_message_bytes).unwrap_or(usize::MAX)
    }
}

/// A name other than `localhost` may resolve to anything, so it counts as beyond.
pub(super) fn is_loopback(host: &str) -> bool {
    let address = host.parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.to_canonical().is_loopback())
}
