//! Remote servers controlled by the test: simple HTTP, each on its own port. They end with the
//! test's process.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
};

use serde_json::{Value, json};

/// A server on its own port.
#[derive(Clone)]
pub struct Far {
    /// Scheme, host and port.
    pub origin: String,
    seen: Arc<Mutex<Vec<Seen>>>,
}

/// A received request.
#[derive(Clone, Debug)]
pub struct Seen {
    pub verb: String,
    pub path: String,
    head: String,
    /// Null if the body is not JSON.
    pub message: Value,
}

impl Seen {
    /// The JSON-RPC method, or "".
    pub fn method(&self) -> &str {
        self.message["method"].as_str().unwrap_or_default()
    }

    /// A header's value, by its name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
    }
}

impl Far {
    /// `answer` writes the response; `false` closes the connection.
    pub fn start(answer: impl Fn(&Seen, &mut TcpStream) -> bool + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let far = Self {
            origin: format!("http://{address}"),
            seen: Arc::default(),
        };
        let (seen, answer) = (far.seen.clone(), Arc::new(answer));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (seen, answer) = (seen.clone(), answer.clone());
                thread::spawn(move || serve(stream, &seen, &*answer));
            }
        });
        far
    }

    /// The number of requests with this verb, or with this verb and method.
    pub fn count(&self, what: &str) -> usize {
        let seen = self.seen.lock().expect("what was seen");
        let says =
            |one: &&Seen| what == one.verb || what == format!("{} {}", one.verb, one.method());
        seen.iter().filter(says).count()
    }

    /// The heads of all requests, unchanged.
    pub fn all(&self) -> Vec<String> {
        let seen = self.seen.lock().expect("what was seen");
        let whole =
            |one: &Seen| format!("{} {}\n{}\n{}", one.verb, one.path, one.head, one.message);
        seen.iter().map(whole).collect()
    }

    /// The last request with this method.
    pub fn last(&self, method: &str) -> Seen {
        let seen = self.seen.lock().expect("what was seen");
        let mut found = seen.iter().rev().filter(|one| one.method() == method);
        found
            .next()
            .unwrap_or_else(|| panic!("no {method}"))
            .clone()
    }
}

fn serve(
    mut stream: TcpStream,
    seen: &Mutex<Vec<Seen>>,
    answer: &(impl Fn(&Seen, &mut TcpStream) -> bool + ?Sized),
) {
    let Ok(read) = stream.try_clone() else { return };
    let mut reader = BufReader::new(read);
    while let Some(request) = read_request(&mut reader) {
        seen.lock().expect("what was seen").push(request.clone());
        if !answer(&request, &mut stream) {
            let _ = stream.shutdown(std::net::Shutdown::Both);
            return;
        }
    }
}

fn read_request(reader: &mut BufReader<TcpStream>) -> Option<Seen> {
    let mut head = String::new();
    while reader.read_line(&mut head).ok()? > 2 {}
    let mut first = head.split(' ');
    let (verb, path) = (first.next()?.to_owned(), first.next()?.to_owned());
    let mut request = Seen {
        verb,
        path,
        head,
        message: Value::Null,
    };
    let length = request
        .header("content-length")
        .and_then(|text| text.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    reader.read_exact(&mut body).ok()?;
    request.message = serde_json::from_slice(&body).unwrap_or_default();
    Some(request)
}

/// Writes a whole response; `headers` are lines that end with CRLF.
pub fn write(stream: &mut TcpStream, status: &str, headers: &str, body: &str) -> bool {
    let length = body.len();
    let answer = format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {length}\r\n\r\n{body}");
    stream.write_all(answer.as_bytes()).is_ok()
}

/// The responses of a small server over Streamable HTTP in both eras; it does not handle GET.
pub fn respond(seen: &Seen, stream: &mut TcpStream) -> bool {
    let headers = "Content-Type: application/json\r\nMcp-Session-Id: one\r\n";
    match (seen.verb.as_str(), &seen.message["id"]) {
        ("GET", _) => write(stream, "405 Method Not Allowed", headers, ""),
        (_, Value::Null) => write(stream, "202 Accepted", headers, ""),
        _ => write(
            stream,
            "200 OK",
            headers,
            &answer(&seen.message).to_string(),
        ),
    }
}

/// The answer to a request: one tool, `echo`, which returns its argument `text` as `Text`.
pub fn answer(message: &Value) -> Value {
    let text = json!({"type": "string", "x-mcp-header": "Text"});
    let schema = json!({"type": "object", "properties": {"text": text}});
    let result = match message["method"].as_str().unwrap_or_default() {
        "initialize" => json!({
            "protocolVersion": "2025-11-25",
            "capabilities": {"tools": {}},
            "serverInfo": {"name": "far", "version": "1"},
        }),
        "server/discover" => json!({
            "resultType": "complete",
            "supportedVersions": ["2026-07-28"],
            "capabilities": {"tools": {}},
            "serverInfo": {"name": "far", "version": "1"},
            "ttlMs": 0,
            "cacheScope": "private",
        }),
        "tools/list" => json!({
            "resultType": "complete",
            "tools": [{"name": "echo", "inputSchema": schema}],
            "ttlMs": 0,
            "cacheScope": "private",
        }),
        "tools/call" => json!({
            "resultType": "complete",
            "content": [{"type": "text", "text": message["params"]["arguments"]["text"]}],
        }),
        _ => json!({}),
    };
    json!({"jsonrpc": "2.0", "id": message["id"], "result": result})
}

/// A server of the transport of 2024-11-05: GET `/sse` opens a stream whose first event contains
/// the address for messages. It does not accept POST to `/sse`.
pub fn old_sse() -> Far {
    let streams: Mutex<Vec<TcpStream>> = Mutex::default();
    Far::start(move |seen, stream| {
        let mut streams = streams.lock().expect("the streams");
        let headers = "Content-Type: text/plain\r\n";
        match (seen.verb.as_str(), seen.path.split_once("?s=")) {
            ("GET", None) => {
                let number = streams.len();
                let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n";
                let first = format!("{head}event: endpoint\ndata: /messages?s={number}\n\n");
                streams.push(stream.try_clone().expect("a stream"));
                stream.write_all(first.as_bytes()).is_ok()
            }
            ("POST", Some(("/messages", number))) => {
                let number: usize = number.parse().expect("a number of ours");
                let line = answer(&seen.message);
                if !seen.message["id"].is_null() {
                    let event = format!("event: message\ndata: {line}\n\n");
                    let _ = streams[number].write_all(event.as_bytes());
                }
                if seen.message["params"]["arguments"]["text"] == "hang up" {
                    let _ = streams[number].shutdown(std::net::Shutdown::Both);
                }
                write(stream, "202 Accepted", headers, "Accepted")
            }
            _ => write(
                stream,
                "405 Method Not Allowed",
                headers,
                "Method Not Allowed",
            ),
        }
    })
}
