//! A client of the bridge: blocking, with any header and any bytes; error statuses do not fail.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    time::Duration,
};

use serde_json::Value;
use ureq::{Agent, Body, http};

/// Longer than the timeouts that tests set, and than many starts on a busy machine; shorter than the test
/// runner's timeout.
const PATIENCE: Duration = Duration::from_secs(100);

/// Sends requests with a fixed set of headers. Cheap to clone and to move to a thread.
#[derive(Clone)]
pub struct Client {
    address: SocketAddr,
    agent: Agent,
    headers: Vec<(String, Vec<u8>)>,
}

impl Client {
    pub fn new(address: SocketAddr) -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .proxy(None)
            .timeout_global(Some(PATIENCE))
            .build();
        Self {
            address,
            agent: config.into(),
            headers: Vec::new(),
        }
    }

    /// Adds a header to every request; a second one with the same name is added to the first.
    #[must_use]
    pub fn header(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.headers
            .push((name.to_owned(), value.as_ref().to_vec()));
        self
    }

    /// Calls as this user, in the plain header of Open WebUI.
    #[must_use]
    pub fn as_user(self, user: &str) -> Self {
        self.header("X-OpenWebUI-User-Id", user)
    }

    /// Calls in this chat, in the plain header of Open WebUI.
    #[must_use]
    pub fn in_chat(self, chat: &str) -> Self {
        self.header("X-OpenWebUI-Chat-Id", chat)
    }

    /// Calls in the session named by an earlier answer.
    #[must_use]
    pub fn in_session(self, session: &str) -> Self {
        self.header("X-MCPO-Session", session)
    }

    /// Sends this key as a bearer token.
    #[must_use]
    pub fn bearer(self, key: &str) -> Self {
        self.header("Authorization", format!("Bearer {key}"))
    }

    /// `POST /{server}/{tool}` with JSON arguments.
    #[allow(clippy::needless_pass_by_value)] // so that a call reads `call("echo", "add", json!({…}))`
    pub fn call(&self, server: &str, tool: &str, arguments: Value) -> Reply {
        self.post(&format!("/{server}/{tool}"), arguments.to_string())
    }

    /// A call of the server `echo`, which must succeed; returns the JSON answer.
    #[track_caller]
    pub fn echo(&self, tool: &str, arguments: Value) -> Value {
        self.call("echo", tool, arguments).ok()
    }

    /// Posts a body with the JSON media type, whatever its content.
    pub fn post(&self, path: &str, body: impl Into<Vec<u8>>) -> Reply {
        let content = ("Content-Type".to_owned(), b"application/json".to_vec());
        self.send("POST", path, &[content], Some(body.into()))
    }

    /// Posts parts: a name, the file name if it is a file, and the content.
    pub fn post_parts(&self, path: &str, parts: &[(&str, Option<&str>, &[u8])]) -> Reply {
        let mut body = Vec::new();
        for (name, file, content) in parts {
            let file = file
                .map(|file| format!("; filename=\"{file}\""))
                .unwrap_or_default();
            let head = format!(
                "--boundary\r\nContent-Disposition: form-data; name=\"{name}\"{file}\r\n\r\n"
            );
            body.extend([head.as_bytes(), content, b"\r\n"].concat());
        }
        body.extend(b"--boundary--\r\n");
        let kind = b"multipart/form-data; boundary=boundary".to_vec();
        self.send(
            "POST",
            path,
            &[("Content-Type".to_owned(), kind)],
            Some(body),
        )
    }

    pub fn get(&self, path: &str) -> Reply {
        self.send("GET", path, &[], None)
    }

    /// A request of any method without a body.
    pub fn request(&self, method: &str, path: &str) -> Reply {
        self.send(method, path, &[], None)
    }

    /// Opens a link of an answer, whatever its host, as the user's browser does: without headers.
    pub fn download(&self, url: &str) -> Reply {
        let path = url.find("/files/").map_or(url, |start| &url[start..]);
        Self::new(self.address).get(path)
    }

    /// Whether the bridge accepts calls, as a load balancer checks it: on a separate connection.
    pub fn is_ready(&self) -> bool {
        let ask = b"GET /health/ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        let Ok(mut stream) = TcpStream::connect(self.address) else {
            return false;
        };
        let mut answer = Vec::new();
        let asked = stream
            .write_all(ask)
            .and_then(|()| stream.read_to_end(&mut answer));
        asked.is_ok() && answer.starts_with(b"HTTP/1.1 200")
    }

    fn send(
        &self,
        method: &str,
        path: &str,
        more: &[(String, Vec<u8>)],
        body: Option<Vec<u8>>,
    ) -> Reply {
        Reply::read(self.open(method, path, more, body))
    }

    /// Sends a request and returns the response as soon as its head has arrived; the body is read later.
    pub fn open(
        &self,
        method: &str,
        path: &str,
        more: &[(String, Vec<u8>)],
        body: Option<Vec<u8>>,
    ) -> http::Response<Body> {
        let uri = format!("http://{}{path}", self.address);
        let mut request = http::Request::builder().method(method).uri(uri);
        for (name, value) in self.headers.iter().chain(more) {
            let value = http::HeaderValue::from_bytes(value).expect("a header value");
            request = request.header(name, value);
        }
        let answer = match body {
            Some(body) => self.agent.run(request.body(body).expect("a request")),
            None => self.agent.run(request.body(()).expect("a request")),
        };
        answer.unwrap_or_else(|fault| panic!("{method} {path}: {fault}"))
    }

    /// Sends a call without waiting for its response: the test may hang up.
    pub fn begin(&self, server: &str, tool: &str, arguments: &Value) -> PendingCall {
        self.post_later(&format!("/{server}/{tool}"), arguments)
    }

    /// Posts JSON without waiting for the response.
    pub fn post_later(&self, path: &str, body: &Value) -> PendingCall {
        let body = body.to_string();
        let mut head = format!(
            "POST {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n",
            self.address,
            body.len()
        )
        .into_bytes();
        for (name, value) in &self.headers {
            head.extend([name.as_bytes(), b": ", value, b"\r\n"].concat());
        }
        head.extend([b"\r\n", body.as_bytes()].concat());
        PendingCall::open(self.address, &head)
    }

    /// Sends these bytes and returns all bytes received until the bridge closes the connection.
    pub fn raw(&self, bytes: &[u8]) -> String {
        PendingCall::open(self.address, bytes).rest()
    }
}

/// A call that was sent, whose response has not been read.
pub struct PendingCall(TcpStream);

impl PendingCall {
    fn open(address: SocketAddr, bytes: &[u8]) -> Self {
        let mut stream = TcpStream::connect(address).expect("the bridge listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream.write_all(bytes).expect("the bridge reads");
        Self(stream)
    }

    /// Closes the connection, as "Stop" in Open WebUI does.
    pub fn hang_up(self) {
        let _ = self.0.shutdown(Shutdown::Both);
    }

    /// The whole response, head and body.
    pub fn rest(mut self) -> String {
        let mut answer = Vec::new();
        let _ = self.0.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }
}

/// A response that was read completely.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: http::HeaderMap,
    pub body: Vec<u8>,
}

impl Reply {
    fn read(answer: http::Response<Body>) -> Self {
        let (head, mut body) = answer.into_parts();
        let limit = body.with_config().limit(u64::MAX);
        Self {
            status: head.status.as_u16(),
            headers: head.headers,
            body: limit.read_to_vec().expect("the whole body arrives"),
        }
    }

    /// The header's value, or "" if it is missing.
    pub fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name);
        value.map_or("", |value| value.to_str().expect("an ASCII header"))
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|fault| panic!("{fault} in {}: {}", self.status, self.text()))
    }

    /// The JSON of a call that must succeed.
    #[track_caller]
    pub fn ok(&self) -> Value {
        self.expect(200)
    }

    /// The JSON of a response that must have this status.
    #[track_caller]
    pub fn expect(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.text());
        self.json()
    }

    /// The link of the file `name` in a call's answer.
    #[track_caller]
    pub fn link(&self, name: &str) -> String {
        let answer = self.ok();
        let files = answer["files"].as_array().expect("the answer has files");
        let file = files.iter().find(|file| file["name"] == name);
        let file = file.unwrap_or_else(|| panic!("no file {name} in {answer:#}"));
        file["url"].as_str().expect("a file has a url").to_owned()
    }
}
