//! The numbers of `/metrics`: every name is in [`Metrics::new`].
//!
//! Labels are bounded: servers and tools come from the catalogue, routes from the router, all else
//! from this code. What a client sends never becomes a label, so no user is told apart and no
//! flood of made-up names fills the memory.

mod http;
mod labels;
mod process;

use std::{
    sync::{OnceLock, atomic::AtomicU64},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bridge_model::ServerName;
use prometheus_client::{
    encoding::text::encode,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram, info::Info},
    registry::{Metric, Registry},
};

use labels::{
    ByCall, ByKind, ByMode, ByOutcome, ByRequest, ByServer, ByServerState, ByStart, ByTool, ByWhat,
};

pub use http::Requested;
pub use labels::{ChildMode, ServerState};

/// What [`Metrics::render`] returns.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// All counters and gauges of one bridge. Every method is cheap and never waits long.
pub struct Metrics {
    registry: Registry,
    calls: Family<ByCall, Counter>,
    call_seconds: Family<ByTool, Histogram>,
    errors: Family<ByKind, Counter>,
    children: Family<ByMode, Gauge>,
    child_starts: Family<ByStart, Counter>,
    child_start_seconds: Family<ByServer, Histogram>,
    pooled: Family<ByServer, Gauge>,
    pool_asked: Family<ByStart, Counter>,
    sessions: Gauge,
    running: Gauge,
    waiting: Gauge,
    queue: OnceLock<Box<QueueLoad>>,
    files_published: Counter,
    files_given_up: Counter,
    published_bytes: Counter,
    downloaded_bytes: Counter,
    uploaded_bytes: Counter,
    gc_removed: Counter,
    openwebui_requests: Family<ByWhat, Counter>,
    forwarded: Family<ByOutcome, Counter>,
    http_requests: Family<ByRequest, Counter>,
    server_states: Family<ByServerState, Gauge>,
    resident_bytes: Gauge<u64, AtomicU64>,
    open_fds: Gauge<u64, AtomicU64>,
}

type QueueLoad = dyn Fn() -> (usize, usize) + Send + Sync;

/// Something that is counted as long as it lives.
#[derive(Debug)]
#[must_use = "it is counted until this is dropped"]
pub struct Live(Gauge);

impl Drop for Live {
    fn drop(&mut self) {
        self.0.dec();
    }
}

fn live(gauge: &Gauge) -> Live {
    gauge.inc();
    Live(gauge.clone())
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All at zero. The time of this call is reported as the start of the process.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("mcpo");
        let r = &mut registry;
        let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        add(r, "build", "The version that runs", build);
        let start: Gauge<f64, AtomicU64> = Gauge::default();
        start.set(seconds_since_epoch());
        add(
            r,
            "process_start_time_seconds",
            "When the bridge started, Unix time",
            start,
        );
        Self {
            calls: counted(r, "calls", "Calls of tools that ended"),
            call_seconds: timed(r, "call_duration_seconds", "From a call to its answer"),
            errors: counted(r, "errors", "Problems that callers were told of"),
            children: counted(r, "children", "Children that run now"),
            child_starts: counted(r, "child_starts", "Attempts to start a child"),
            child_start_seconds: timed(r, "child_start_duration_seconds", "Until a child is ready"),
            pooled: counted(
                r,
                "pool_children",
                "Children that are ready and nobody's yet",
            ),
            pool_asked: counted(
                r,
                "pool_asked",
                "Calls and chats that began with a child that was ready (hit), or did not (miss)",
            ),
            sessions: counted(r, "sessions", "Sessions that are open now"),
            running: counted(r, "calls_running", "Calls that run now"),
            waiting: counted(r, "calls_waiting", "Calls that wait for a place now"),
            queue: OnceLock::new(),
            files_published: counted(r, "files_published", "Files that became links"),
            files_given_up: counted(
                r,
                "files_given_up",
                "Files that got no link in time, for want of disk, or because nobody waited any more",
            ),
            published_bytes: counted(r, "published_bytes", "Bytes of files that became links"),
            downloaded_bytes: counted(r, "downloaded_bytes", "Bytes of files that were fetched"),
            uploaded_bytes: counted(r, "uploaded_bytes", "Bytes of files that were sent"),
            gc_removed: counted(r, "gc_removed", "Workspaces and links that expired"),
            openwebui_requests: counted(r, "openwebui_requests", "Requests to Open WebUI's API"),
            forwarded: counted(r, "forwarded_requests", "Requests sent on to other bridges"),
            http_requests: counted(r, "http_requests", "Requests that were answered"),
            server_states: counted(r, "server_state", "1 for the state that a server is in"),
            resident_bytes: counted(r, "process_resident_memory_bytes", "Memory of the bridge"),
            open_fds: counted(r, "process_open_fds", "Open file descriptors of the bridge"),
            registry,
        }
    }

    /// A request was sent on to another bridge, or could not be.
    pub fn forwarded(&self, outcome: &'static str) {
        self.forwarded.get_or_create(&ByOutcome { outcome }).inc();
    }

    /// A call ended. `server` and `tool` are the catalogue's; `outcome` is `ok`, `tool_error` or a
    /// kind of problem.
    pub fn call_ended(
        &self,
        server: &ServerName,
        tool: &str,
        outcome: &'static str,
        time: Duration,
    ) {
        let tool = ByTool::new(server, tool);
        self.call_seconds
            .get_or_create(&tool)
            .observe(time.as_secs_f64());
        self.calls.get_or_create(&tool.ended(outcome)).inc();
    }

    /// A caller was told of a problem of this kind.
    pub fn problem(&self, kind: &'static str) {
        self.errors.get_or_create(&ByKind { kind }).inc();
    }

    /// Counts a running child until the answer is dropped.
    pub fn child_live(&self, mode: ChildMode) -> Live {
        live(&self.children.get_or_create(&ByMode { mode }))
    }

    /// A child is ready after `time`.
    pub fn child_started(&self, server: &ServerName, time: Duration) {
        self.start_ended(server, "ok");
        let server = ByServer::new(server);
        self.child_start_seconds
            .get_or_create(&server)
            .observe(time.as_secs_f64());
    }

    /// A child did not become ready.
    pub fn child_start_failed(&self, server: &ServerName) {
        self.start_ended(server, "failed");
    }

    fn start_ended(&self, server: &ServerName, outcome: &'static str) {
        self.child_starts
            .get_or_create(&ByStart::new(server, outcome))
            .inc();
    }

    /// Counts a child that is ready and nobody's until the answer is dropped.
    pub fn pooled(&self, server: &ServerName) -> Live {
        live(&self.pooled.get_or_create(&ByServer::new(server)))
    }

    /// Somebody wanted a child of this server that is ready.
    pub fn pool_asked(&self, server: &ServerName, hit: bool) {
        let outcome = if hit { "hit" } else { "miss" };
        self.pool_asked
            .get_or_create(&ByStart::new(server, outcome))
            .inc();
    }

    /// Counts an open session until the answer is dropped.
    pub fn session_live(&self) -> Live {
        live(&self.sessions)
    }

    /// Where to read (running, waiting) calls at each scrape. The first closure stays.
    pub fn watch_queue(&self, load: impl Fn() -> (usize, usize) + Send + Sync + 'static) {
        let _ = self.queue.set(Box::new(load));
    }

    /// A file of `bytes` became a link.
    pub fn published(&self, bytes: u64) {
        self.files_published.inc();
        self.published_bytes.inc_by(bytes);
    }

    /// So many files got no link because their copies were given up.
    pub fn files_given_up(&self, count: u64) {
        self.files_given_up.inc_by(count);
    }

    /// `bytes` of files went out.
    pub fn downloaded(&self, bytes: u64) {
        self.downloaded_bytes.inc_by(bytes);
    }

    /// `bytes` of files came in.
    pub fn uploaded(&self, bytes: u64) {
        self.uploaded_bytes.inc_by(bytes);
    }

    /// A round of the collector removed so many workspaces and links.
    pub fn gc_removed(&self, count: u64) {
        self.gc_removed.inc_by(count);
    }

    /// Open WebUI was asked for something: `ok`, or why not.
    pub fn openwebui_asked(&self, what: &'static str, outcome: &'static str) {
        let labels = ByWhat { what, outcome };
        self.openwebui_requests.get_or_create(&labels).inc();
    }

    /// A server of the catalogue entered a state.
    pub fn server_state(&self, server: &ServerName, now: ServerState) {
        for state in ServerState::ALL {
            let labels = ByServerState::new(server, state);
            self.server_states
                .get_or_create(&labels)
                .set(i64::from(state == now));
        }
    }

    /// The catalogue forgot a server.
    pub fn server_gone(&self, server: &ServerName) {
        for state in ServerState::ALL {
            self.server_states
                .remove(&ByServerState::new(server, state));
        }
    }

    /// Everything, as [`CONTENT_TYPE`]. Reads a few files of `/proc`.
    pub fn render(&self) -> String {
        let (running, waiting) = self.queue.get().map_or((0, 0), |load| load());
        self.running.set(i64::try_from(running).unwrap_or(i64::MAX));
        self.waiting.set(i64::try_from(waiting).unwrap_or(i64::MAX));
        self.resident_bytes
            .set(process::resident_bytes().unwrap_or(0));
        self.open_fds.set(process::open_fds().unwrap_or(0));
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("a string takes everything");
        text
    }
}

fn add(registry: &mut Registry, name: &str, help: &str, metric: impl Metric) {
    registry.register(name, help, metric);
}

/// The library adds `_total` to counters, `_info` to infos and a full stop to the help.
fn counted<M: Metric + Clone + Default>(registry: &mut Registry, name: &str, help: &str) -> M {
    let metric = M::default();
    registry.register(name, help, metric.clone());
    metric
}

fn timed<L>(registry: &mut Registry, name: &str, help: &str) -> Family<L, Histogram>
where
    Family<L, Histogram>: Metric,
    L: Clone + std::hash::Hash + Eq,
{
    let metric = Family::new_with_constructor(histogram as fn() -> Histogram);
    registry.register(name, help, metric.clone());
    metric
}

/// From a warm child's answer to the longest deadline that is usual.
fn histogram() -> Histogram {
    Histogram::new([
        0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0,
    ])
}

fn seconds_since_epoch() -> f64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0.0, |since| since.as_secs_f64())
}

#[cfg(test)]
mod tests;
