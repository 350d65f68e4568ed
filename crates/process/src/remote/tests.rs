//! Tests against servers that misbehave deliberately.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::Request,
    http::{HeaderMap, Method, StatusCode},
    response::{IntoResponse as _, Response},
};
use futures_util::{StreamExt as _, stream};
use indexmap::IndexMap;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, DuplexStream, Lines},
    net::TcpListener,
    sync::mpsc,
    task::AbortHandle,
    time::timeout,
};
use url::Url;

use super::*;

mod failures;
mod legacy;
mod modern;
mod old_sse;
mod real;
mod streams;

/// Long for this machine, but short enough for a developer who waits for a hanging test.
const PATIENCE: Duration = Duration::from_secs(20);

/// A request as received by a server.
#[derive(Debug, Clone)]
struct Received {
    verb: Method,
    target: String,
    headers: HeaderMap,
    body: String,
    message: Value,
}

impl Received {
    fn method(&self) -> &str {
        self.message["method"].as_str().unwrap_or_default()
    }

    fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name);
        value.map_or("", |value| value.to_str().unwrap())
    }

    /// A successful response to it, as JSON.
    fn result(&self, result: &Value) -> Response {
        let id = &self.message["id"];
        json_body(&json!({"jsonrpc": "2.0", "id": id, "result": result}).to_string())
    }
}

/// An HTTP server with responses from a test.
struct Server {
    url: Url,
    seen: mpsc::UnboundedReceiver<Received>,
    task: AbortHandle,
}

impl Server {
    async fn start<F, Fut>(answer: F) -> Self
    where
        F: Fn(Received) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Response> + Send,
    {
        let (sender, seen) = mpsc::unbounded_channel();
        let router = Router::new().fallback(async move |request: Request| {
            let (parts, body) = request.into_parts();
            let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
            let seen = Received {
                verb: parts.method,
                target: parts.uri.to_string(),
                headers: parts.headers,
                message: serde_json::from_slice(&body).unwrap_or_default(),
                body: String::from_utf8(body.to_vec()).unwrap(),
            };
            let _ = sender.send(seen.clone());
            answer(seen).await
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serve = async move { axum::serve(listener, router).await.unwrap() };
        Self {
            url: format!("http://{address}/mcp").parse().unwrap(),
            seen,
            task: tokio::spawn(serve).abort_handle(),
        }
    }

    /// A server of a legacy revision with a session; `answer` may replace its responses.
    async fn legacy<F>(answer: F) -> Self
    where
        F: Fn(&Received) -> Option<Response> + Clone + Send + Sync + 'static,
    {
        Self::start(move |seen| {
            let response = answer(&seen).unwrap_or_else(|| legacy(&seen));
            std::future::ready(response)
        })
        .await
    }

    async fn next(&mut self) -> Received {
        let next = timeout(PATIENCE, self.seen.recv()).await;
        next.expect("a request comes").expect("the server runs")
    }

    /// The next request with this JSON-RPC method; earlier requests are skipped.
    async fn until(&mut self, method: &str) -> Received {
        loop {
            let seen = self.next().await;
            if seen.method() == method {
                return seen;
            }
        }
    }

    /// The next request with this HTTP method; earlier requests are skipped.
    async fn until_verb(&mut self, verb: Method) -> Received {
        loop {
            let seen = self.next().await;
            if seen.verb == verb {
                return seen;
            }
        }
    }

    /// The number of received requests with this method that no test has read.
    fn count(&mut self, method: &str) -> usize {
        let unseen = std::iter::from_fn(|| self.seen.try_recv().ok());
        unseen.filter(|seen| seen.method() == method).count()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn legacy(seen: &Received) -> Response {
    match (seen.verb.as_str(), seen.method()) {
        ("GET", _) => StatusCode::METHOD_NOT_ALLOWED.into_response(),
        ("DELETE", _) => StatusCode::OK.into_response(),
        (_, "initialize") => {
            let result = json!({"protocolVersion": "2025-06-18", "capabilities": {}});
            let mut response = seen.result(&result);
            let session = "session-1".parse().unwrap();
            response.headers_mut().insert("mcp-session-id", session);
            response
        }
        (_, method) if method.starts_with("notifications/") => StatusCode::ACCEPTED.into_response(),
        (_, "") => StatusCode::ACCEPTED.into_response(),
        (_, method) => seen.result(&json!({ "asked": method })),
    }
}

fn json_body(text: &str) -> Response {
    let kind = [("content-type", "application/json")];
    (kind, text.to_owned()).into_response()
}

fn status(code: u16, body: &str) -> Response {
    let code = StatusCode::from_u16(code).unwrap();
    (code, body.to_owned()).into_response()
}

/// Events, followed by the end of the stream.
fn events(text: &str) -> Response {
    let kind = [("content-type", "text/event-stream; charset=utf-8")];
    (kind, text.to_owned()).into_response()
}

/// Events, followed by silence on an open stream.
fn open_events(text: &str) -> Response {
    let first = stream::iter([Ok::<_, Infallible>(Bytes::from(text.to_owned()))]);
    let body = Body::from_stream(first.chain(stream::pending()));
    ([("content-type", "text/event-stream")], body).into_response()
}

/// The start of a response, followed by a broken connection.
fn broken(kind: &'static str, text: &str) -> Response {
    let parts = [
        Ok(Bytes::from(text.to_owned())),
        Err(std::io::Error::other("broken on purpose")),
    ];
    // The second part must not overtake the first.
    let parts = stream::iter(parts).then(|part| async {
        tokio::task::yield_now().await;
        part
    });
    ([("content-type", kind)], Body::from_stream(parts)).into_response()
}

/// The bridge's side of the pipes.
struct Bridge {
    stdin: Option<DuplexStream>,
    stdout: Lines<BufReader<DuplexStream>>,
    handle: RemoteHandle,
}

impl Bridge {
    fn to(server: &Server) -> Self {
        Self::with(server, options())
    }

    fn with(server: &Server, options: RemoteOptions) -> Self {
        Self::open(&spec(server.url.clone()), options)
    }

    fn open(spec: &RemoteSpec, options: RemoteOptions) -> Self {
        let pipes = connect(spec, options).unwrap();
        Self {
            stdin: Some(pipes.stdin),
            stdout: BufReader::new(pipes.stdout).lines(),
            handle: pipes.handle,
        }
    }

    /// Connected, initialised, and ready for calls.
    async fn ready(server: &mut Server) -> Self {
        Self::ready_with(server, options()).await
    }

    async fn ready_with(server: &mut Server, options: RemoteOptions) -> Self {
        let mut bridge = Self::with(server, options);
        bridge.introduce().await;
        server.until("notifications/initialized").await;
        bridge
    }

    async fn introduce(&mut self) {
        let params = json!({"protocolVersion": "2025-11-25", "capabilities": {}});
        self.ask(0, "initialize", &params).await;
        let hello = self.hear().await;
        assert_eq!(hello["id"], 0, "{hello}");
        self.say(&json!({"jsonrpc": "2.0", "method": "notifications/initialized"}))
            .await;
    }

    async fn write(&mut self, line: &str) {
        let stdin = self.stdin.as_mut().expect("stdin is open");
        stdin.write_all(line.as_bytes()).await.unwrap();
        stdin.write_all(b"\n").await.unwrap();
    }

    async fn say(&mut self, message: &Value) {
        self.write(&message.to_string()).await;
    }

    async fn ask(&mut self, id: u64, method: &str, params: &Value) {
        let message = json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params});
        self.say(&message).await;
    }

    async fn call(&mut self, id: u64, tool: &str) {
        self.ask(id, "tools/call", &json!({"name": tool, "arguments": {}}))
            .await;
    }

    async fn line(&mut self) -> Option<String> {
        let line = timeout(PATIENCE, self.stdout.next_line()).await;
        line.expect("something comes").unwrap()
    }

    async fn hear(&mut self) -> Value {
        let line = self.line().await.expect("the pipe is open");
        serde_json::from_str(&line).expect(&line)
    }

    /// The message of the error response to this request.
    async fn error(&mut self, id: u64) -> String {
        let answer = self.hear().await;
        assert_eq!(answer["id"], id, "{answer}");
        let message = answer["error"]["message"].as_str();
        message.unwrap_or_else(|| panic!("{answer}")).to_owned()
    }

    async fn assert_ended(&mut self) {
        assert_eq!(self.line().await, None);
    }
}

fn spec(url: Url) -> RemoteSpec {
    let headers = [("Authorization", "Bearer configured"), ("X-Team", "a")];
    let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned()));
    RemoteSpec {
        url,
        kind: RemoteKind::StreamableHttp,
        headers: IndexMap::from(headers),
    }
}

fn options() -> RemoteOptions {
    RemoteOptions {
        outbound: Outbound::direct(),
        connect_timeout: PATIENCE,
        idle_timeout: PATIENCE,
        max_message: 4 * 1024 * 1024,
        tool_schema: None,
    }
}
