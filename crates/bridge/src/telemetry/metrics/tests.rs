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
    let child = metrics.child_live(ChildMode::Shared);
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
