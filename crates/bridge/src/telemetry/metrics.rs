//! The metrics of `/metrics`: all names are in [`Metrics::new`].
//!
//! Label values are bounded: servers and tools come from the catalogue, routes from the router, all others
//! from constants. Data from clients never becomes a label, so users cannot be distinguished and invented
//! names do not use up memory.

use std::{
    fmt::{self, Write as _},
    fs,
    sync::{Arc, OnceLock, atomic::AtomicU64},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::http::{Method, StatusCode};
use bridge_model::ServerName;
use prometheus_client::{
    encoding::{EncodeLabelValue, LabelValueEncoder, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram, info::Info},
    registry::{Metric, Registry},
};

use super::request_id::method_label;
use crate::{config::Mode, memory};

/// The content type of [`Metrics::render`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// All counters and gauges of one bridge. Every method is cheap and does not block for long.
pub struct Metrics {
    registry: Registry,
    calls: Labelled<3, Counter>,
    call_seconds: Labelled<2, Histogram>,
    errors: Labelled<1, Counter>,
    children: Labelled<1, Gauge>,
    child_starts: Labelled<2, Counter>,
    child_start_seconds: Labelled<1, Histogram>,
    pooled: Labelled<1, Gauge>,
    pool_asked: Labelled<2, Counter>,
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
    openwebui_requests: Labelled<2, Counter>,
    forwarded: Labelled<1, Counter>,
    http_requests: Labelled<3, Counter>,
    server_states: Labelled<2, Gauge>,
    resident_bytes: Gauge<u64, AtomicU64>,
    open_fds: Gauge<u64, AtomicU64>,
}

/// A metric with `N` labels.
type Labelled<const N: usize, M> = Family<[(&'static str, Label); N], M>;

type QueueLoad = dyn Fn() -> (usize, usize) + Send + Sync;

/// Counts something in a gauge until dropped.
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
    /// All metrics at zero. The time of this call is reported as the start of the process.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("mcpo");
        let r = &mut registry;
        let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        add(r, "build", "Version of the bridge", build);
        let start: Gauge<f64, AtomicU64> = counted(
            r,
            "process_start_time_seconds",
            "Start time of the bridge, in seconds since the Unix epoch",
        );
        start.set(seconds_since_epoch());
        Self {
            calls: counted(r, "calls", "Completed tool calls"),
            call_seconds: timed(
                r,
                "call_duration_seconds",
                "Duration of tool calls, in seconds",
            ),
            errors: counted(r, "errors", "Error responses returned to callers"),
            children: counted(r, "children", "Server processes running now"),
            child_starts: counted(r, "child_starts", "Attempts to start a server process"),
            child_start_seconds: timed(
                r,
                "child_start_duration_seconds",
                "Time until a server process is ready, in seconds",
            ),
            pooled: counted(r, "pool_children", "Warm processes not yet assigned"),
            pool_asked: counted(
                r,
                "pool_asked",
                "Calls and chats that started with a warm process (hit) or without one (miss)",
            ),
            sessions: counted(r, "sessions", "Sessions open now"),
            running: counted(r, "calls_running", "Tool calls running now"),
            waiting: counted(r, "calls_waiting", "Tool calls waiting in the queue now"),
            queue: OnceLock::new(),
            files_published: counted(r, "files_published", "Files published as links"),
            files_given_up: counted(
                r,
                "files_given_up",
                "Files not published because of a timeout, lack of disk space, or a disconnected \
                 client",
            ),
            published_bytes: counted(
                r,
                "published_bytes",
                "Size of files published as links, in bytes",
            ),
            downloaded_bytes: counted(r, "downloaded_bytes", "Size of downloaded files, in bytes"),
            uploaded_bytes: counted(r, "uploaded_bytes", "Size of uploaded files, in bytes"),
            gc_removed: counted(
                r,
                "gc_removed",
                "Expired workspaces and links that were removed",
            ),
            openwebui_requests: counted(r, "openwebui_requests", "Requests to Open WebUI's API"),
            forwarded: counted(
                r,
                "forwarded_requests",
                "Requests forwarded to other replicas",
            ),
            http_requests: counted(r, "http_requests", "HTTP requests that were answered"),
            server_states: counted(
                r,
                "server_state",
                "State of each server: 1 for the current state, 0 for the others",
            ),
            resident_bytes: counted(
                r,
                "process_resident_memory_bytes",
                "Resident memory of the bridge, in bytes",
            ),
            open_fds: counted(r, "process_open_fds", "Open file descriptors of the bridge"),
            registry,
        }
    }

    /// A request was forwarded to another bridge, or could not be.
    pub fn forwarded(&self, outcome: &'static str) {
        let labels = [("outcome", outcome.into())];
        self.forwarded.get_or_create(&labels).inc();
    }

    /// A call ended. `server` and `tool` are names from the catalogue; `outcome` is `ok`, `tool_error` or a
    /// kind of problem.
    pub fn call_ended(
        &self,
        server: &ServerName,
        tool: &str,
        outcome: &'static str,
        time: Duration,
    ) {
        let [server, tool] = [
            ("server", server.into()),
            ("tool", Label::Text(tool.into())),
        ];
        let labels = [server.clone(), tool.clone(), ("outcome", outcome.into())];
        self.calls.get_or_create(&labels).inc();
        let seconds = self.call_seconds.get_or_create(&[server, tool]);
        seconds.observe(time.as_secs_f64());
    }

    /// An error response of this kind was returned to a caller.
    pub fn problem(&self, kind: &'static str) {
        self.errors.get_or_create(&[("kind", kind.into())]).inc();
    }

    /// Counts a running child until the returned value is dropped.
    pub fn child_live(&self, mode: Mode) -> Live {
        let labels = [("mode", mode.as_str().into())];
        live(&self.children.get_or_create(&labels))
    }

    /// A child became ready after `time`.
    pub fn child_started(&self, server: &ServerName, time: Duration) {
        self.start_ended(server, "ok");
        let labels = [("server", server.into())];
        let seconds = self.child_start_seconds.get_or_create(&labels);
        seconds.observe(time.as_secs_f64());
    }

    /// A child did not become ready.
    pub fn child_start_failed(&self, server: &ServerName) {
        self.start_ended(server, "failed");
    }

    fn start_ended(&self, server: &ServerName, outcome: &'static str) {
        let labels = [("server", server.into()), ("outcome", outcome.into())];
        self.child_starts.get_or_create(&labels).inc();
    }

    /// Counts a warm process that is not assigned until the returned value is dropped.
    pub fn pooled(&self, server: &ServerName) -> Live {
        let labels = [("server", server.into())];
        live(&self.pooled.get_or_create(&labels))
    }

    /// A call needed a process of this server that could have been a warm one.
    pub fn pool_asked(&self, server: &ServerName, hit: bool) {
        let outcome = if hit { "hit" } else { "miss" };
        let labels = [("server", server.into()), ("outcome", outcome.into())];
        self.pool_asked.get_or_create(&labels).inc();
    }

    /// Counts an open session until the returned value is dropped.
    pub fn session_live(&self) -> Live {
        live(&self.sessions)
    }

    /// Sets the function that returns (running, waiting) calls for each scrape. The first one is kept.
    pub fn watch_queue(&self, load: impl Fn() -> (usize, usize) + Send + Sync + 'static) {
        let _ = self.queue.set(Box::new(load));
    }

    /// A file of `bytes` was published as a link.
    pub fn published(&self, bytes: u64) {
        self.files_published.inc();
        self.published_bytes.inc_by(bytes);
    }

    /// `count` files got no link because their copies were abandoned.
    pub fn files_given_up(&self, count: u64) {
        self.files_given_up.inc_by(count);
    }

    /// `bytes` of files were sent to clients.
    pub fn downloaded(&self, bytes: u64) {
        self.downloaded_bytes.inc_by(bytes);
    }

    /// `bytes` of files were received.
    pub fn uploaded(&self, bytes: u64) {
        self.uploaded_bytes.inc_by(bytes);
    }

    /// A clean-up round removed `count` workspaces and links.
    pub fn gc_removed(&self, count: u64) {
        self.gc_removed.inc_by(count);
    }

    /// A request to Open WebUI ended: `ok`, or the reason of its failure.
    pub fn openwebui_asked(&self, what: &'static str, outcome: &'static str) {
        let labels = [("what", what.into()), ("outcome", outcome.into())];
        self.openwebui_requests.get_or_create(&labels).inc();
    }

    /// A server of the catalogue entered a state.
    pub fn server_state(&self, server: &ServerName, now: ServerState) {
        for state in ServerState::ALL {
            let labels = [("server", server.into()), ("state", state.as_str().into())];
            let gauge = self.server_states.get_or_create(&labels);
            gauge.set(i64::from(state == now));
        }
    }

    /// A server was removed from the catalogue.
    pub fn server_gone(&self, server: &ServerName) {
        for state in ServerState::ALL {
            let labels = [("server", server.into()), ("state", state.as_str().into())];
            self.server_states.remove(&labels);
        }
    }

    /// All metrics, as [`CONTENT_TYPE`]. Reads a few files of `/proc`.
    pub fn render(&self) -> String {
        let (running, waiting) = self.queue.get().map_or((0, 0), |load| load());
        self.running.set(i64::try_from(running).unwrap_or(i64::MAX));
        self.waiting.set(i64::try_from(waiting).unwrap_or(i64::MAX));
        self.resident_bytes.set(resident_bytes().unwrap_or(0));
        self.open_fds.set(open_fds().unwrap_or(0));
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
    add(registry, name, help, metric.clone());
    metric
}

fn timed<const N: usize>(
    registry: &mut Registry,
    name: &str,
    help: &str,
) -> Labelled<N, Histogram> {
    let metric = Family::new_with_constructor(histogram as fn() -> Histogram);
    add(registry, name, help, metric.clone());
    metric
}

/// Buckets from the response time of a warm child to the longest usual timeout.
fn histogram() -> Histogram {
    Histogram::new([
        0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0,
    ])
}

fn seconds_since_epoch() -> f64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0.0, |since| since.as_secs_f64())
}

// All requests are counted in one place, whatever handles them.

/// A request to count when it is answered. A request whose caller disconnects first is not counted.
pub struct Requested {
    route: Arc<str>,
    method: &'static str,
}

impl Requested {
    /// A request to the route with this pattern.
    pub fn at(route: Arc<str>, method: &Method) -> Self {
        let method = method_label(method);
        Self { route, method }
    }
}

impl Metrics {
    /// A request was answered.
    pub fn answered(&self, Requested { route, method }: Requested, status: StatusCode) {
        let labels = [
            ("route", Label::Text(route)),
            ("method", method.into()),
            ("status", class(status).into()),
        ];
        self.http_requests.get_or_create(&labels).inc();
    }
}

fn class(status: StatusCode) -> &'static str {
    match status.as_u16() / 100 {
        1 => "1xx",
        2 => "2xx",
        3 => "3xx",
        4 => "4xx",
        _ => "5xx",
    }
}

// The labels of metrics and their possible values.

/// The value of a label.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Label {
    Word(&'static str),
    Text(Arc<str>),
    Server(ServerName),
}

impl From<&'static str> for Label {
    fn from(word: &'static str) -> Self {
        Self::Word(word)
    }
}

impl From<&ServerName> for Label {
    fn from(server: &ServerName) -> Self {
        Self::Server(server.clone())
    }
}

impl EncodeLabelValue for Label {
    fn encode(&self, to: &mut LabelValueEncoder) -> fmt::Result {
        to.write_str(match self {
            Self::Word(word) => word,
            Self::Text(text) => text,
            Self::Server(server) => server.as_str(),
        })
    }
}

/// The state of a server in the catalogue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ServerState {
    /// Its offer is not known yet.
    Learning,
    /// Its offer is known.
    Ready,
    /// It failed to start.
    Failed,
}

impl ServerState {
    const ALL: [Self; 3] = [Self::Learning, Self::Ready, Self::Failed];

    fn as_str(self) -> &'static str {
        match self {
            Self::Learning => "learning",
            Self::Ready => "ready",
            Self::Failed => "failed",
        }
    }
}

// Process metrics from the kernel.

/// Resident memory in bytes.
fn resident_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    memory::kibibytes(&status, "VmRSS:")
}

/// Number of open file descriptors, without the one used for counting.
fn open_fds() -> Option<u64> {
    let count = fs::read_dir("/proc/self/fd").ok()?.count();
    u64::try_from(count).ok()?.checked_sub(1)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use axum::{
        Router,
        body::Body,
        extract::{MatchedPath, Request, State},
        middleware::{Next, from_fn_with_state},
        routing::get,
    };
    use tower::ServiceExt as _;

    use super::*;

    fn excel() -> ServerName {
        "excel".parse().unwrap()
    }

    #[track_caller]
    fn has(metrics: &Metrics, line: &str) {
        let text = metrics.render();
        assert!(text.lines().any(|one| one == line), "no {line} in\n{text}");
    }

    #[test]
    fn calls_are_counted_and_timed_by_server_tool_and_outcome() {
        let metrics = Metrics::new();
        metrics.call_ended(&excel(), "read", "ok", Duration::from_millis(30));
        metrics.call_ended(&excel(), "read", "timeout", Duration::from_secs(40));
        metrics.problem("timeout");
        has(
            &metrics,
            r#"mcpo_calls_total{server="excel",tool="read",outcome="ok"} 1"#,
        );
        has(
            &metrics,
            r#"mcpo_calls_total{server="excel",tool="read",outcome="timeout"} 1"#,
        );
        let bucket = "mcpo_call_duration_seconds_bucket";
        has(
            &metrics,
            &format!(r#"{bucket}{{le="0.05",server="excel",tool="read"}} 1"#),
        );
        has(
            &metrics,
            &format!(r#"{bucket}{{le="+Inf",server="excel",tool="read"}} 2"#),
        );
        has(&metrics, r#"mcpo_errors_total{kind="timeout"} 1"#);
    }

    #[test]
    fn what_lives_is_counted_until_it_is_dropped() {
        let metrics = Metrics::new();
        let child = metrics.child_live(Mode::Shared);
        let session = metrics.session_live();
        has(&metrics, r#"mcpo_children{mode="shared"} 1"#);
        has(&metrics, "mcpo_sessions 1");
        drop((child, session));
        has(&metrics, r#"mcpo_children{mode="shared"} 0"#);
        has(&metrics, "mcpo_sessions 0");
    }

    #[test]
    fn starts_are_counted_and_only_good_ones_timed() {
        let metrics = Metrics::new();
        metrics.child_started(&excel(), Duration::from_secs(2));
        metrics.child_start_failed(&excel());
        has(
            &metrics,
            r#"mcpo_child_starts_total{server="excel",outcome="ok"} 1"#,
        );
        has(
            &metrics,
            r#"mcpo_child_starts_total{server="excel",outcome="failed"} 1"#,
        );
        has(
            &metrics,
            r#"mcpo_child_start_duration_seconds_count{server="excel"} 1"#,
        );
    }

    #[test]
    fn the_queue_is_read_at_each_scrape() {
        let metrics = Metrics::new();
        has(&metrics, "mcpo_calls_waiting 0");
        let waiting = Arc::new(std::sync::atomic::AtomicUsize::new(5));
        let seen = waiting.clone();
        metrics.watch_queue(move || (2, seen.load(std::sync::atomic::Ordering::Relaxed)));
        has(&metrics, "mcpo_calls_running 2");
        has(&metrics, "mcpo_calls_waiting 5");
        waiting.store(6, std::sync::atomic::Ordering::Relaxed);
        has(&metrics, "mcpo_calls_waiting 6");
    }

    #[test]
    fn bytes_and_files_add_up() {
        let metrics = Metrics::new();
        metrics.published(10);
        metrics.published(5);
        metrics.downloaded(7);
        metrics.gc_removed(3);
        has(&metrics, "mcpo_files_published_total 2");
        has(&metrics, "mcpo_published_bytes_total 15");
        has(&metrics, "mcpo_downloaded_bytes_total 7");
        has(&metrics, "mcpo_gc_removed_total 3");
    }

    #[test]
    fn a_server_is_in_one_state_until_it_is_gone() {
        let metrics = Metrics::new();
        metrics.server_state(&excel(), ServerState::Learning);
        metrics.server_state(&excel(), ServerState::Ready);
        has(
            &metrics,
            r#"mcpo_server_state{server="excel",state="ready"} 1"#,
        );
        has(
            &metrics,
            r#"mcpo_server_state{server="excel",state="learning"} 0"#,
        );
        metrics.server_gone(&excel());
        assert!(!metrics.render().contains("mcpo_server_state{"));
    }

    #[test]
    fn the_text_is_whole_and_names_are_ours() {
        let metrics = Metrics::new();
        let text = metrics.render();
        assert!(text.ends_with("# EOF\n"));
        assert_eq!(text.matches("# EOF").count(), 1);
        let version = env!("CARGO_PKG_VERSION");
        has(
            &metrics,
            &format!(r#"mcpo_build_info{{version="{version}"}} 1"#),
        );
        let values = text.lines().filter(|line| !line.starts_with('#'));
        for line in values {
            assert!(line.starts_with("mcpo_"), "{line}");
        }
    }

    #[test]
    fn the_process_is_looked_at_when_scraped() {
        let text = Metrics::new().render();
        let value = |name: &str| -> f64 {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap_or_else(|| panic!("no {name}"))
                .trim()
                .parse()
                .unwrap()
        };
        assert!(value("mcpo_process_resident_memory_bytes ") > 1_000_000.0);
        assert!(value("mcpo_process_open_fds ") >= 3.0);
        let age = seconds_since_epoch() - value("mcpo_process_start_time_seconds ");
        assert!((0.0..60.0).contains(&age), "{age}");
    }

    #[test]
    fn a_tool_with_an_odd_name_cannot_forge_a_line() {
        let metrics = Metrics::new();
        metrics.call_ended(&excel(), "a\"} 1\nmcpo_fake 1", "ok", Duration::ZERO);
        assert!(
            !metrics
                .render()
                .lines()
                .any(|line| line.starts_with("mcpo_fake"))
        );
    }

    #[tokio::test]
    async fn requests_are_counted_by_route_and_never_by_what_clients_made_up() {
        let metrics = Arc::new(Metrics::new());
        let count = |State(metrics): State<Arc<Metrics>>, request: Request, next: Next| async move {
            let route = request.extensions().get::<MatchedPath>();
            let route = route.map_or("none", MatchedPath::as_str);
            let requested = Requested::at(route.into(), request.method());
            let response = next.run(request).await;
            metrics.answered(requested, response.status());
            response
        };
        let app = Router::new()
            .route("/files/{token}", get(|| async {}))
            .layer(from_fn_with_state(metrics.clone(), count));
        for (method, path) in [
            ("GET", "/files/SECRET"),
            ("MADEUP", "/files/SECRET"),
            ("GET", "/WHAT"),
        ] {
            let request = Request::builder().method(method).uri(path);
            let request = request.body(Body::empty()).unwrap();
            app.clone().oneshot(request).await.unwrap();
        }
        let counted = "mcpo_http_requests_total";
        has(
            &metrics,
            &format!(r#"{counted}{{route="/files/{{token}}",method="GET",status="2xx"}} 1"#),
        );
        has(
            &metrics,
            &format!(r#"{counted}{{route="/files/{{token}}",method="other",status="4xx"}} 1"#),
        );
        has(
            &metrics,
            &format!(r#"{counted}{{route="none",method="GET",status="4xx"}} 1"#),
        );
        let text = metrics.render();
        assert!(
            !["SECRET", "MADEUP", "WHAT"]
                .iter()
                .any(|word| text.contains(word))
        );
    }
}
