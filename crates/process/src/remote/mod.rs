//! Remote servers, presented as a pair of pipes: both directions carry JSON-RPC in lines, and the
//! transport between is HTTP.
//!
//! ```text
//! stdin ─▶ lines ─▶ one POST each, concurrently ─▶ JSON or SSE ─┐
//!                   the session's GET stream ───────────────────┴─▶ whole lines ─▶ stdout
//! ```
//! Messages keep their bytes, except that newlines between JSON tokens become spaces. A request
//! that cannot be answered gets a JSON-RPC error instead. When stdin ends, the session is closed at
//! the server; when stdout ends, the session is lost.
//!
//! If the server does not accept POST at `url`, the older transport is used.
//!
//! **A `tools/call` is sent once.** It is resent only if no byte of it can have reached the server:
//! no connection was established.

mod http;
mod lost;
mod message;
mod old_sse;
mod pipe;
mod streamable;
#[cfg(test)]
mod tests;

use std::{collections::HashMap, sync::Arc, time::Duration};

use bridge_protocol::RawJson;
use http::Http;
use lost::Mark;
use old_sse::OldSse;
use parking_lot::Mutex;
use pipe::{Input, Output};
use reqwest::header::HeaderMap;
use rustls::{ClientConfig, RootCertStore, crypto::ring};
use streamable::Streamable;
use tokio::io::DuplexStream;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::spec::{RemoteKind, RemoteSpec};

pub use lost::Failed;

/// Capacity of a pipe for a slow reader, in bytes.
const PIPE: usize = 64 * 1024;

/// The time for closing the session.
const GOODBYE: Duration = Duration::from_secs(5);

/// Options of the connection to a remote server.
#[derive(Clone)]
pub struct RemoteOptions {
    /// Certificate authorities and proxies.
    pub outbound: Outbound,
    /// The timeout for establishing one connection, including TLS.
    pub connect_timeout: Duration,
    /// A request fails if the server sends nothing for this time, before or within its response:
    /// not below the longest deadline of a call. Streams that wait for notifications are not
    /// bounded.
    pub idle_timeout: Duration,
    /// Maximum size of one message from the server, in bytes.
    pub max_message: usize,
    /// Finds a tool's input schema, whose `x-mcp-header` marks name the arguments that modern servers
    /// require in headers.
    pub tool_schema: Option<ToolSchema>,
}

/// Finds the input schema of a tool by its name.
pub type ToolSchema = Arc<dyn Fn(&str) -> Option<RawJson> + Send + Sync>;

/// A remote server with the interface of a child's stdio.
pub struct RemotePipes {
    /// Accepts messages, one per line. Closing it closes the session.
    pub stdin: DuplexStream,
    /// Returns messages, one per line. Its end means that the session has ended.
    pub stdout: DuplexStream,
    /// Dropping it ends the session.
    pub handle: RemoteHandle,
}

/// Does not connect: the first message does. Requires a tokio runtime.
pub fn connect(spec: &RemoteSpec, options: RemoteOptions) -> Result<RemotePipes, String> {
    let http = Http::new(spec, &options)?;
    let (stdin, our_stdin) = tokio::io::duplex(PIPE);
    let (our_stdout, stdout) = tokio::io::duplex(PIPE);
    let (output, lines) = Output::new();
    let hang_up = CancellationToken::new();
    let handle = RemoteHandle {
        _guard: hang_up.clone().drop_guard(),
        hang_up,
        gone: CancellationToken::new(),
        mark: http.mark.clone(),
        per_request_headers: http.per_request_headers.clone(),
    };
    let input = Input::new(our_stdin);
    let (hang_up, leaving) = (handle.hang_up.clone(), handle.gone.clone().drop_guard());
    let carrying = carry(
        spec.kind,
        http,
        input,
        output,
        options.tool_schema,
        hang_up.clone(),
    );
    tokio::spawn(async move {
        let writing = hang_up.run_until_cancelled(pipe::pump(lines, our_stdout));
        tokio::join!(writing, carrying);
        drop(leaving);
    });
    Ok(RemotePipes {
        stdin,
        stdout,
        handle,
    })
}

async fn carry(
    kind: RemoteKind,
    http: Http,
    mut input: Input,
    output: Output,
    tool_schema: Option<ToolSchema>,
    hang_up: CancellationToken,
) {
    match kind {
        RemoteKind::StreamableHttp => {
            let remote = Streamable::new(http.clone(), output.clone(), tool_schema);
            hang_up.run_until_cancelled(remote.serve(&mut input)).await;
            if let Some(refused) = remote.refused() {
                let older = OldSse::new(http, output);
                hang_up
                    .run_until_cancelled(older.serve(input, Some(refused)))
                    .await;
                return;
            }
            let _ = tokio::time::timeout(GOODBYE, remote.close_session()).await;
        }
        RemoteKind::Sse => {
            let remote = OldSse::new(http, output);
            hang_up.run_until_cancelled(remote.serve(input, None)).await;
        }
    }
}

/// Holds the session. Dropping it ends everything at once, except a last request that closes the
/// session at the server.
pub struct RemoteHandle {
    hang_up: CancellationToken,
    _guard: DropGuard,
    gone: CancellationToken,
    /// Identifies the bridge's own errors.
    pub mark: Mark,
    /// Headers of single requests.
    pub per_request_headers: PerRequestHeaders,
}

impl RemoteHandle {
    /// Waits until the session has ended: at most some seconds after the end of stdin.
    pub fn gone(&self) -> impl Future<Output = ()> + Send + use<> {
        self.gone.clone().cancelled_owned()
    }

    /// Whether the session has ended or is ending: no further requests are possible.
    pub fn is_over(&self) -> bool {
        self.hang_up.is_cancelled() || self.gone.is_cancelled()
    }

    /// The same as dropping it.
    pub fn hang_up(&self) {
        self.hang_up.cancel();
    }
}

// Headers of single requests, from the requests of their callers.

/// The headers of requests in flight, by request id.
#[derive(Clone, Default)]
pub struct PerRequestHeaders(Arc<Mutex<HashMap<Box<str>, HeaderMap>>>);

/// Removes the headers of one request when dropped.
pub struct PerRequestHeadersGuard {
    per_request_headers: PerRequestHeaders,
    id: Box<str>,
}

impl PerRequestHeaders {
    /// Sends `headers` with every attempt of the request of this number, until the returned guard
    /// is dropped.
    pub fn join(&self, number: u64, headers: HeaderMap) -> PerRequestHeadersGuard {
        let id: Box<str> = number.to_string().into();
        self.0.lock().insert(id.clone(), headers);
        let per_request_headers = self.clone();
        PerRequestHeadersGuard {
            per_request_headers,
            id,
        }
    }

    /// Adds the headers of the request with this id, except those that are already set.
    pub fn add_to(&self, headers: &mut HeaderMap, id: Option<&str>) {
        let known = self.0.lock();
        let Some(own) = id.and_then(|id| known.get(id)) else {
            return;
        };
        let free: Vec<_> = own
            .keys()
            .filter(|name| !headers.contains_key(*name))
            .collect();
        for name in free {
            for value in own.get_all(name) {
                let mut value = value.clone();
                value.set_sensitive(true);
                headers.append(name, value);
            }
        }
    }

    /// Whether the request with this id has credentials of its own caller: a rejection then says
    /// nothing about the session, which other callers may use.
    pub fn has_credentials(&self, id: Option<&str>) -> bool {
        let known = self.0.lock();
        let own = id.and_then(|id| known.get(id));
        own.is_some_and(|own| {
            own.keys().any(|name| {
                let kinds = ["authorization", "cookie", "jwt", "token", "key", "secret"];
                kinds.iter().any(|kind| name.as_str().contains(kind))
            })
        })
    }
}

impl Drop for PerRequestHeadersGuard {
    fn drop(&mut self) {
        self.per_request_headers.0.lock().remove(&self.id);
    }
}

// Outgoing connections: the system's certificate authorities and proxies.

/// Certificate authorities and proxies. Cheap to clone.
#[derive(Clone)]
pub struct Outbound {
    tls: ClientConfig,
    /// False in tests only.
    asks_proxies: bool,
}

impl Outbound {
    /// Reads the system's certificates, or those in `SSL_CERT_FILE` and `SSL_CERT_DIR`, once at
    /// start. Uses `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY`. Without any certificates, servers
    /// with `http` URLs still work.
    pub fn from_environment() -> Self {
        let found = rustls_native_certs::load_native_certs();
        for error in &found.errors {
            tracing::warn!(%error, "some CA certificates cannot be read");
        }
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(found.certs);
        Self {
            tls: tls(roots),
            asks_proxies: true,
        }
    }

    /// Trusts no authority and uses no proxy.
    #[cfg(test)]
    pub fn direct() -> Self {
        Self {
            tls: tls(RootCertStore::empty()),
            asks_proxies: false,
        }
    }

    /// A client builder with these settings.
    pub fn builder(&self) -> reqwest::ClientBuilder {
        let builder = reqwest::Client::builder().tls_backend_preconfigured(self.tls.clone());
        if self.asks_proxies {
            builder
        } else {
            builder.no_proxy()
        }
    }
}

fn tls(roots: RootCertStore) -> ClientConfig {
    // Set explicitly, because a process-wide provider would be a global.
    ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring offers the versions that rustls has by default")
        .with_root_certificates(roots)
        .with_no_client_auth()
}
