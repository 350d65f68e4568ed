//! Remote servers, presented as a pair of pipes: what is written is JSON-RPC in lines, what is
//! read is JSON-RPC in lines, and everything between is HTTP.
//!
//! ```text
//! stdin ─▶ lines ─▶ one POST each, side by side ─▶ JSON or SSE ─┐
//!                   the session's GET stream ───────────────────┴─▶ whole lines ─▶ stdout
//! ```
//! Messages keep their bytes, except that newlines between JSON tokens become spaces. A request
//! that cannot be answered gets a JSON-RPC error in its place. The end of stdin says goodbye to
//! the server; the end of stdout means that its session is lost.
//!
//! **A `tools/call` is sent once.** It is sent again only where no byte of it can have reached the
//! server: the connection was never made.

use std::{sync::Arc, time::Duration};

use reqwest::header::{HeaderName, HeaderValue};
use tokio::io::DuplexStream;

use crate::{config::RemoteSpec, model::RawJson};

/// How a connection to a remote server behaves.
#[derive(Clone)]
pub struct RemoteOptions {
    /// Certificate authorities and proxies.
    pub outbound: Outbound,
    /// Bounds making one connection, TLS included.
    pub connect_timeout: Duration,
    /// A request fails when the server sends nothing for so long, before its answer or within it:
    /// not below the longest deadline of a call. Streams that wait for news are not bounded.
    pub idle_timeout: Duration,
    /// Bytes of one message from the server.
    pub max_message: usize,
    /// Sent with every request, over the configured headers. Values may be secrets.
    pub extra_headers: Vec<(HeaderName, HeaderValue)>,
    /// Finds a tool's input schema, whose `x-mcp-header` marks say which arguments modern servers
    /// want to see in headers.
    pub tool_schema: Option<ToolSchema>,
}

/// Finds the input schema of a tool by its name.
pub type ToolSchema = Arc<dyn Fn(&str) -> Option<RawJson> + Send + Sync>;

/// A remote server that looks like a child's stdio.
pub struct RemotePipes {
    /// Takes messages, one in a line. Its end closes the session.
    pub stdin: DuplexStream,
    /// Gives messages, one in a line. Its end means that there is no session any more.
    pub stdout: DuplexStream,
    /// Dropping it ends everything.
    pub handle: RemoteHandle,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// The HTTP client could not be built.
    #[error("cannot prepare HTTP requests to {origin}: {why}")]
    Client {
        /// Scheme, host and port.
        origin: String,
        /// What the client said.
        why: String,
    },
}

/// Connects nothing yet: the first message does. Needs a tokio runtime.
pub fn connect(spec: &RemoteSpec, options: RemoteOptions) -> Result<RemotePipes, RemoteError> {
    todo!()
}
