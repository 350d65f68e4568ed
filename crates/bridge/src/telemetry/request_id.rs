//! The id shared by all log lines of one request, and the line that ends the request.

use std::{
    fmt,
    hash::{BuildHasher as _, RandomState},
    str::FromStr,
    time::{Duration, Instant},
};

use axum::{
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode},
    response::Response,
};
use tracing::{Instrument as _, Span};

use super::AUDIT;

/// Taken from the request if it is valid; always in the response.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Maximum length of an id sent by a client.
const MAX_LENGTH: usize = 128;

/// The id of one request: 1–128 of `[A-Za-z0-9._-]`. In the extensions of every request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestId(HeaderValue);

/// The text is no request id.
#[derive(Debug, thiserror::Error)]
#[error("invalid request id: use 1 to {MAX_LENGTH} characters of A-Z a-z 0-9 . _ -, or omit it")]
pub struct InvalidRequestId;

impl RequestId {
    /// A new UUID. It is public, so it need not be unpredictable: this avoids a system call.
    pub fn random() -> Self {
        let half = || RandomState::new().hash_one(());
        let bytes = (u128::from(half()) << 64 | u128::from(half())).to_be_bytes();
        let id = uuid::Builder::from_random_bytes(bytes).into_uuid();
        let mut buffer = uuid::Uuid::encode_buffer();
        Self::of_fit(id.hyphenated().encode_lower(&mut buffer))
    }

    /// The caller's id, else a new one: an invalid id, or two of them, is no reason to refuse the request.
    pub fn from_headers(headers: &HeaderMap) -> Self {
        let mut sent = headers.get_all(REQUEST_ID).iter();
        match (sent.next(), sent.next()) {
            (Some(one), None) => one.to_str().ok().and_then(|text| text.parse().ok()),
            _ => None,
        }
        .unwrap_or_else(Self::random)
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        self.0.to_str().expect("its letters are ASCII")
    }

    /// The id as a header value.
    pub fn header(&self) -> &HeaderValue {
        &self.0
    }

    fn of_fit(text: &str) -> Self {
        Self(HeaderValue::from_str(text).expect("its letters are fit for a header"))
    }
}

impl FromStr for RequestId {
    type Err = InvalidRequestId;
    fn from_str(text: &str) -> Result<Self, InvalidRequestId> {
        let fit = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if (1..=MAX_LENGTH).contains(&text.len()) && text.bytes().all(fit) {
            Ok(Self::of_fit(text))
        } else {
            Err(InvalidRequestId)
        }
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The span of one request's log lines. `route` is a pattern, never the path, because links contain tokens.
///
/// It has the audit target, so that its lines have the request's id at every log level.
pub fn span(id: &RequestId, method: &Method, route: &str) -> Span {
    tracing::info_span!(
        target: AUDIT,
        "request",
        request_id = id.as_str(),
        method = method_label(method),
        route,
    )
}

/// Runs the handler within the request's span, and adds the id to its response.
pub async fn within(
    span: Span,
    id: &RequestId,
    answer: impl Future<Output = Response>,
) -> Response {
    let handled = async {
        let (began, status) = (Instant::now(), None);
        let mut line = EndLine { began, status };
        let response = answer.await;
        line.status = Some(response.status());
        response
    };
    let mut response = handled.instrument(span).await;
    response.headers_mut().insert(REQUEST_ID, id.0.clone());
    response
}

/// Clients may send any method name; logs and metrics use only these.
pub(super) fn method_label(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "DELETE" => "DELETE",
        "OPTIONS" => "OPTIONS",
        "PATCH" => "PATCH",
        _ => "other",
    }
}

/// Written on drop, so that a request whose caller closes the connection is logged too.
struct EndLine {
    began: Instant,
    status: Option<StatusCode>,
}

impl Drop for EndLine {
    fn drop(&mut self) {
        let duration_ms = milliseconds(self.began.elapsed());
        match self.status {
            Some(status) if status.is_server_error() => {
                tracing::info!(status = status.as_u16(), duration_ms, "request failed");
            }
            Some(status) => {
                tracing::debug!(status = status.as_u16(), duration_ms, "request completed");
            }
            None => tracing::debug!(duration_ms, "request cancelled by the client"),
        }
    }
}

/// A duration as the field `duration_ms` has it.
pub(super) fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use axum::{
        Extension, Router,
        body::Body,
        extract::{MatchedPath, Request},
        middleware::{Next, from_fn},
        routing::get,
    };
    use proptest::prelude::*;
    use tower::ServiceExt as _;
    use tracing::instrument::WithSubscriber as _;
    use uuid::Uuid;

    use super::*;
    use crate::{config::LogLevel, telemetry::logs::testing::Captured};

    fn app() -> Router {
        Router::new()
            .route(
                "/files/{token}",
                get(|Extension(id): Extension<RequestId>| async move {
                    tracing::warn!("inside");
                    id.to_string()
                }),
            )
            .route("/broken", get(|| async { StatusCode::BAD_GATEWAY }))
            .route("/slow", get(std::future::pending::<()>))
            .layer(from_fn(|request, next: Next| tied(request, next)))
    }

    /// Sets the id like the service does, where the handlers can find it.
    async fn tied(mut request: Request, next: Next) -> Response {
        let id = RequestId::from_headers(request.headers());
        request.extensions_mut().insert(id.clone());
        let route = request.extensions().get::<MatchedPath>().cloned();
        let route = route.as_ref().map_or("none", MatchedPath::as_str);
        let span = span(&id, request.method(), route);
        within(span, &id, next.run(request)).await
    }

    fn request(path: &str, ids: &[&str]) -> Request {
        let mut request = Request::get(path);
        for id in ids {
            request = request.header(REQUEST_ID, *id);
        }
        request.body(Body::empty()).unwrap()
    }

    async fn answer(path: &str, ids: &[&str]) -> (String, String, StatusCode) {
        let response = app().oneshot(request(path, ids)).await.unwrap();
        let id = response.headers()[REQUEST_ID].to_str().unwrap().to_owned();
        let status = response.status();
        let body = axum::body::to_bytes(response.into_body(), 1000)
            .await
            .unwrap();
        (id, String::from_utf8(body.to_vec()).unwrap(), status)
    }

    #[tokio::test]
    async fn a_good_id_is_kept_and_a_bad_one_replaced() {
        let (id, body, _) = answer("/files/t", &["Trace-1.a_b"]).await;
        assert_eq!((id.as_str(), body.as_str()), ("Trace-1.a_b", "Trace-1.a_b"));
        let long = "x".repeat(129);
        for bad in [
            &[][..],
            &[""],
            &["a b"],
            &["a\"b"],
            &[&long],
            &["one", "two"],
        ] {
            let (id, body, _) = answer("/files/t", bad).await;
            assert_eq!(id, body);
            assert!(Uuid::parse_str(&id).is_ok(), "{bad:?} became {id}");
        }
        let (id, _, status) = answer("/nowhere", &[]).await;
        assert!(Uuid::parse_str(&id).is_ok());
        assert_eq!(status, StatusCode::NOT_FOUND);
    }

    #[tokio::test]
    async fn lines_carry_the_id_and_the_route_and_never_the_path() {
        let log = Captured::json(LogLevel::Debug);
        answer("/files/SECRET?also=SECRET", &["r1"])
            .with_subscriber(log.dispatch.clone())
            .await;
        let lines = log.into_lines();
        assert_eq!(lines.len(), 2);
        for line in &lines {
            assert_eq!(line["request_id"], "r1");
            assert_eq!(line["route"], "/files/{token}");
            assert_eq!(line["method"], "GET");
            assert!(!line.to_string().contains("SECRET"));
        }
        assert_eq!(lines[0]["message"], "inside");
        assert_eq!(lines[1]["level"], "DEBUG");
        assert_eq!(lines[1]["status"], 200);
        assert!(lines[1]["duration_ms"].is_u64());
    }

    #[tokio::test]
    async fn at_info_only_failures_end_with_a_line() {
        let log = Captured::json(LogLevel::Info);
        async {
            answer("/nowhere", &[]).await;
            answer("/broken", &["r2"]).await;
        }
        .with_subscriber(log.dispatch.clone())
        .await;
        let lines = log.into_lines();
        assert_eq!(lines.len(), 1);
        assert_eq!(lines[0]["level"], "INFO");
        assert_eq!(lines[0]["status"], 502);
        assert_eq!(lines[0]["request_id"], "r2");
    }

    #[tokio::test]
    async fn the_id_is_there_even_where_the_level_hides_everything_else() {
        let log = Captured::json(LogLevel::Critical);
        let app = Router::new()
            .route(
                "/",
                get(|| async { tracing::info!(target: AUDIT, "audit") }),
            )
            .layer(from_fn(|request, next: Next| tied(request, next)));
        app.oneshot(request("/", &["r3"]))
            .with_subscriber(log.dispatch.clone())
            .await
            .unwrap();
        assert_eq!(log.into_lines()[0]["request_id"], "r3");
    }

    #[tokio::test]
    async fn a_caller_who_hangs_up_leaves_a_line() {
        let log = Captured::json(LogLevel::Debug);
        async {
            let mut call = std::pin::pin!(app().oneshot(request("/slow", &["r4"])));
            assert!(futures_util::poll!(&mut call).is_pending());
        }
        .with_subscriber(log.dispatch.clone())
        .await;
        let lines = log.into_lines();
        assert_eq!(lines[0]["message"], "request cancelled by the client");
        assert_eq!(lines[0]["request_id"], "r4");
    }

    proptest! {
        #[test]
        fn whatever_parses_is_fit_for_a_header_and_a_log(text in "\\PC{0,140}|[A-Za-z0-9._-]{0,140}") {
            let fit = (1..=128).contains(&text.len())
                && text.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
            prop_assert_eq!(text.parse::<RequestId>().is_ok(), fit);
            if let Ok(id) = text.parse::<RequestId>() {
                let header = id.header();
                prop_assert_eq!(header.to_str().unwrap(), &text);
            }
        }
    }
}
