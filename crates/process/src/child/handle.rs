//! A running child, for the code that uses it.

use std::{sync::Arc, time::Duration};

use bridge_model::JobFolderPaths;
use bridge_protocol::{
    RawJson,
    era::Era,
    jsonrpc::{Reply, Said},
    method,
};
use bytes::Bytes;
use futures_util::FutureExt as _;
use reqwest::header::HeaderMap;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    sync::broadcast,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    ChildError, End, ExitStatus, Hello, MessageSink, Outcome, Profile, WeakNotifier,
    connection::{Closed, Connection, Listener},
    hello,
    hello::{HelloParts, Refused},
    launch,
    launch::Launch,
    log::ServerLog,
    process::{Process, Supervisors},
    short_tmp::ShortName,
    subscription::Subscriptions,
    supervisor,
};
use crate::{
    relative::relative_text,
    remote::{Failed, PerRequestHeadersGuard, RemoteHandle},
};

/// How long a failed call waits for the exit status of the child.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// A running, initialised server: a process, whose whole tree is killed when this is dropped, or a
/// session with a remote server, which is closed then.
pub struct Child {
    /// Its process, its connection and its log.
    pub parts: ChildParts,
    /// The response to `initialize` or `server/discover`.
    pub hello: Hello,
    /// For children of 2026-07-28, which send notifications only on request.
    subscriptions: Option<Subscriptions>,
}

/// The parts of a child that exist before it has answered `initialize`. Dropping it ends the child.
pub struct ChildParts {
    /// Unique among all children of this bridge.
    pub number: u64,
    /// The process or session.
    pub body: Body,
    /// The JSON-RPC connection.
    pub connection: Connection,
    /// The log of its stderr.
    pub log: ServerLog,
    /// The spellings of its folder's path.
    pub paths: JobFolderPaths,
    /// Held as long as the child lives.
    pub short_tmp: Option<Arc<ShortName>>,
    /// Maximum size of one message from it, in bytes.
    pub limit: usize,
    /// The receivers of notifications that belong to no request.
    pub news: broadcast::Sender<Said>,
    /// The metric that counts it, dropped with it.
    pub counted: Box<dyn Send + Sync>,
}

impl Child {
    /// The protocol era of the child.
    pub fn era(&self) -> Era {
        self.hello.era
    }

    /// Whether it can still answer calls.
    pub fn is_alive(&self) -> bool {
        self.parts.connection.is_open() && self.parts.body.is_there()
    }

    /// Sends a request of the bridge, in the child's form of the protocol. Dropping the future
    /// cancels the request at the child.
    pub async fn request(
        &self,
        method: &str,
        params: Option<&RawJson>,
    ) -> Result<Outcome, ChildError> {
        let uri = params.and_then(|params| params.member("uri")?.read().ok());
        if let Some(done) = self.instead_of(method, uri).await {
            return done.map(|()| Ok(RawJson::empty_object()));
        }
        let enveloped;
        let params = match self.era() {
            Era::Legacy => params,
            Era::Modern => {
                enveloped = hello::modern_params(params, &Profile::modern());
                Some(&enveloped)
            }
        };
        match self.parts.connection.request(method, params).await {
            Ok(Err(error)) => self.own_words(error).map(Err),
            Ok(outcome) => Ok(outcome),
            Err(closed) => Err(self.parts.closed(closed).await),
        }
    }

    /// Sends the message that `make` builds for this request's number. Dropping the future, or
    /// `cancelled`, cancels the request at the child; after `cancelled` it still waits for a late
    /// response. Other messages that the child sends meanwhile go to `sink`.
    pub async fn exchange(
        &self,
        make: impl FnOnce(u64) -> Bytes,
        cancelled: &CancellationToken,
        sink: Option<MessageSink>,
    ) -> Result<Reply, ChildError> {
        let exchange = self.parts.connection.exchange(make, true, cancelled, sink);
        match exchange.await {
            Ok(reply) => {
                if let Err(error) = &reply.outcome {
                    self.own_words(error.clone())?;
                }
                Ok(reply)
            }
            Err(closed) => Err(self.parts.closed(closed).await),
        }
    }

    /// Sends these headers with the request of this number until the returned guard is dropped.
    /// `None` for a process, which has no headers.
    pub fn with_request_headers(
        &self,
        number: u64,
        headers: HeaderMap,
    ) -> Option<PerRequestHeadersGuard> {
        match &self.parts.body {
            Body::Local(_) => None,
            Body::Remote(remote) => Some(remote.per_request_headers.join(number, headers)),
        }
    }

    /// The error, unless it only means that a remote server did not respond.
    fn own_words(&self, error: RawJson) -> Result<RawJson, ChildError> {
        match self.parts.body.failed(&error) {
            None => Ok(error),
            Some(Failed { why, unread }) => Err(ChildError::Unanswered { why, unread }),
        }
    }

    /// Its future notifications that belong to no request.
    pub fn news(&self) -> broadcast::Receiver<Said> {
        self.parts.news.subscribe()
    }

    /// Emulates a method that children of 2026-07-28 no longer have; `None` for all other methods
    /// and children.
    pub async fn instead_of(
        &self,
        method: &str,
        uri: Option<String>,
    ) -> Option<Result<(), ChildError>> {
        if self.era() == Era::Legacy {
            return None;
        }
        match (method, &self.subscriptions, uri) {
            // Each later request carries the log level.
            (method::PING | method::SET_LEVEL, ..) => Some(Ok(())),
            (method::RESOURCES_SUBSCRIBE, Some(subscriptions), Some(uri)) => {
                Some(subscriptions.to_resource(&uri).await)
            }
            (method::RESOURCES_UNSUBSCRIBE, Some(subscriptions), Some(uri)) => {
                subscriptions.end_resource(&uri);
                Some(Ok(()))
            }
            _ => None,
        }
    }

    /// The number of its lines so far that were not JSON-RPC.
    pub fn noise_lines(&self) -> u64 {
        self.parts.connection.noise(|noise| noise.lines)
    }

    /// The last such line, without the workspace's path.
    pub fn noise(&self) -> Box<str> {
        let last = self.parts.connection.noise(|noise| noise.last.clone());
        relative_text(&last, &self.parts.paths).into()
    }

    /// For sending notifications later.
    pub fn notifier(&self) -> WeakNotifier {
        self.parts.connection.clone()
    }

    /// Whether it responds within `patience`.
    pub async fn answers_ping(&self, patience: Duration) -> bool {
        let (method, params) = match self.era() {
            Era::Legacy => (method::PING, None),
            // Modern servers have no ping, but must always answer this.
            Era::Modern => (
                method::DISCOVER,
                Some(hello::modern_params(None, &Profile::modern())),
            ),
        };
        let ping = self.parts.connection.request(method, params.as_ref());
        match tokio::time::timeout(patience, ping).await {
            Ok(Ok(Err(error))) => self.parts.body.failed(&error).is_none(),
            answer => matches!(answer, Ok(Ok(_))),
        }
    }

    /// Waits until its process tree has ended, without keeping it alive.
    pub fn gone(&self) -> impl Future<Output = ExitStatus> + Send + use<> {
        self.parts.body.gone()
    }

    /// Ends it and waits until its process tree has ended.
    pub async fn end(&self, how: End) -> ExitStatus {
        self.parts.end(how).await
    }
}

impl ChildParts {
    /// Sends `initialize` or `server/discover`. The child is ready once it has answered.
    pub async fn introduce(&self, profile: &Profile) -> Result<Result<Hello, Refused>, Closed> {
        hello::introduce(&self.connection, profile).await
    }

    /// The child with this response. A child of 2026-07-28 sends its notifications to `listener`,
    /// if there is one.
    pub fn into_child(self, hello: Hello, listener: Option<Listener>) -> Child {
        let listener = listener.filter(|_| hello.era == Era::Modern);
        let subscriptions = listener.map(|listener| {
            let (parts, _) = HelloParts::read(&hello.raw);
            Subscriptions::open(self.connection.clone(), &parts, listener)
        });
        Child {
            parts: self,
            hello,
            subscriptions,
        }
    }

    /// Ends it and waits until its process tree has ended.
    pub async fn end(&self, how: End) -> ExitStatus {
        // A child whose stdin is closed starts to exit by itself, which is useless if it is killed.
        if how != End::Kill {
            self.connection.close_stdin();
        }
        let status = self.body.end(how).await;
        self.connection.close_stdin();
        status
    }

    /// The error for a response that will never arrive.
    pub async fn closed(&self, why: Closed) -> ChildError {
        match why {
            Closed::LineTooLong => ChildError::TooLong { limit: self.limit },
            Closed::StreamEnded => {
                // The process exits directly after the end of the stream, unless the child only
                // closed its stdout.
                let gone = tokio::time::timeout(LAST_WORDS, self.body.gone()).await;
                if gone.is_ok() && self.body.pid().is_some() {
                    // Its last output is in the pipe, and no process is left that could write more.
                    let _ = tokio::time::timeout(LAST_WORDS, self.log.heard_out()).await;
                }
                let died = ChildError::Died {
                    status: gone.unwrap_or(ExitStatus::Unknown),
                    said: self.log.last_words(),
                };
                died.without_folder(&self.paths)
            }
        }
    }
}

// A program that is run until it exits, for its output: below a supervisor like every child, so
// that it always ends with the bridge.

/// Maximum size of the output that is kept of each stream, in bytes; the rest is read and
/// discarded.
const KEPT: u64 = 32 * 1024 * 1024;

/// The result of a program.
pub struct Done {
    /// The exit status.
    pub status: ExitStatus,
    /// The output on stdout.
    pub stdout: Vec<u8>,
    /// The output on stderr.
    pub stderr: Vec<u8>,
}

/// Runs a program until it exits, or until `until`. Dropping the future kills its process tree.
pub async fn run(
    launch: Launch,
    supervisors: &Supervisors,
    until: Instant,
) -> Result<Done, ChildError> {
    let (process, pipes) = launch::start(&launch, supervisors, until).await?;
    drop(pipes.stdin);
    let all = async {
        let (stdout, stderr) = tokio::join!(read(pipes.stdout), read(pipes.stderr));
        let status = process.gone().await;
        Done {
            status,
            stdout,
            stderr,
        }
    };
    let done = tokio::time::timeout_at(until, all).await;
    done.map_err(|_| ChildError::Timeout)
}

async fn read(mut from: impl AsyncRead + Unpin) -> Vec<u8> {
    let mut kept = Vec::new();
    let _ = (&mut from).take(KEPT).read_to_end(&mut kept).await;
    let _ = tokio::io::copy(&mut from, &mut tokio::io::sink()).await;
    kept
}

// A child's process tree, or its session with a remote server.

/// The process or session of a child. Dropping it ends it at once.
pub enum Body {
    /// A process and its descendants.
    Local(Process),
    /// A session with a remote server.
    Remote(RemoteHandle),
}

impl Body {
    /// The process id, if it is a process.
    pub fn pid(&self) -> Option<u32> {
        match self {
            Self::Local(process) => Some(process.pid()),
            Self::Remote(_) => None,
        }
    }

    /// Whether it is still running; for a remote session, also that it was not asked to end.
    pub fn is_there(&self) -> bool {
        match self {
            Self::Local(process) => process.exit_status().is_none(),
            Self::Remote(remote) => !remote.is_over(),
        }
    }

    /// Memory of the process and its descendants: proportional set size, in bytes; 0 for a remote
    /// server. Reads all of `/proc`: blocks.
    pub fn memory(&self) -> u64 {
        self.pid().map_or(0, supervisor::memory)
    }

    /// Whether an error object means that a remote server did not respond, and why.
    pub fn failed(&self, error: &RawJson) -> Option<Failed> {
        match self {
            Self::Local(_) => None,
            Self::Remote(remote) => remote.mark.failed(error),
        }
    }

    /// Waits until it has ended completely, without keeping it alive.
    pub fn gone(&self) -> impl Future<Output = ExitStatus> + Send + use<> {
        match self {
            Self::Local(process) => process.gone().left_future(),
            Self::Remote(remote) => {
                let gone = remote.gone().map(|()| ExitStatus::SessionOver);
                gone.right_future()
            }
        }
    }

    /// Ends it after its stdin was closed, and waits until it has ended completely. It waits for
    /// the last messages of a remote server no longer than for the exit of a process.
    pub async fn end(&self, how: End) -> ExitStatus {
        let remote = match self {
            Self::Local(process) => {
                process.ask_to_end(how);
                return process.gone().await;
            }
            Self::Remote(remote) => remote,
        };
        let (before, after) = how.times();
        if timeout(before, remote.gone()).await.is_err() {
            remote.hang_up();
            let _ = timeout(after, remote.gone()).await;
        }
        ExitStatus::SessionOver
    }
}
