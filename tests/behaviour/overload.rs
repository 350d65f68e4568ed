//! The effect of slow, large and many requests on the bridge, at a small scale;
//! `scripts/load-connections` tests a large scale.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use rustix::process::Signal;
use serde_json::json;

use crate::support::{Builder, TestBridge, echo, eventually, servers, vars};

/// Timeout for operations that would never end without a limit.
const PATIENCE: Duration = Duration::from_secs(30);
const HALF_HEAD: &str = "POST /echo/echo HTTP/1.1\r\nHost: localhost\r\nX-a: ";

fn builder() -> Builder {
    TestBridge::builder(servers([("echo", echo())]))
}

fn open(address: SocketAddr, bytes: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).expect("the bridge listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream.write_all(bytes.as_bytes()).expect("it is sent");
    stream
}

/// All bytes until the bridge closes the connection.
fn rest(mut stream: TcpStream) -> String {
    let mut answer = Vec::new();
    if let Err(error) = stream.read_to_end(&mut answer) {
        let reset = error.kind() == std::io::ErrorKind::ConnectionReset;
        assert!(reset, "the bridge did not close: {error}");
    }
    String::from_utf8_lossy(&answer).into_owned()
}

fn head(path: &str, more: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         Accept: */*\r\n{more}\r\n"
    )
}

#[test]
fn a_head_that_does_not_come_ends_its_connection() {
    let bridge = builder().var(vars::HEAD_TIMEOUT, 1).start();
    for sent in ["", HALF_HEAD] {
        assert_eq!(rest(open(bridge.address(), sent)), "");
    }
    // Also after a complete request.
    let answer = rest(open(
        bridge.address(),
        &format!("GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n{HALF_HEAD}"),
    ));
    assert!(answer.ends_with("ok\n"), "{answer}");
}

#[test]
fn a_connection_without_a_request_ends_after_the_keep_alive() {
    let bridge = builder().var(vars::KEEP_ALIVE, 1).start();
    let live = "GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let answer = rest(open(bridge.address(), live));
    assert!(answer.ends_with("ok\n"), "{answer}");
    // A connection whose call takes longer than that is not idle.
    let slept = bridge.client().echo("sleep", json!({"seconds": 2}));
    assert!(slept.to_string().contains("slept"), "{slept}");
}

#[test]
fn a_body_that_does_not_come_is_408() {
    let bridge = builder().var(vars::BODY_TIMEOUT, 1).start();
    for (path, kind) in [
        ("/echo/echo", "application/json"),
        ("/mcp/echo", "application/json"),
        ("/files", "multipart/form-data; boundary=b"),
    ] {
        for framing in ["Content-Length: 500", "Transfer-Encoding: chunked"] {
            let part = if framing.starts_with('C') {
                "{"
            } else {
                "1\r\n{\r\n"
            };
            let sent = format!(
                "POST {path} HTTP/1.1\r\nHost: localhost\r\nX-OpenWebUI-User-Id: a\r\n\
                 X-OpenWebUI-Chat-Id: c\r\nAccept: */*\r\nContent-Type: {kind}\r\n{framing}\r\n\r\n{part}"
            );
            let answer = rest(open(bridge.address(), &sent));
            assert!(
                answer.starts_with("HTTP/1.1 408 "),
                "{path} {framing}: {answer}"
            );
            assert!(answer.contains("MCPO_BODY_TIMEOUT"), "{answer}");
        }
    }
}

#[test]
fn a_call_in_chunks_may_take_longer_than_a_body_may_be_silent() {
    let bridge = builder().var(vars::BODY_TIMEOUT, 1).start();
    let body = r#"{"seconds":4}"#;
    let sent = head(
        "/echo/sleep",
        "Transfer-Encoding: chunked\r\nConnection: close\r\n",
    );
    let sent = format!("{sent}{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
    let answer = rest(open(bridge.address(), &sent));
    assert!(answer.contains("slept"), "{answer}");
}

#[test]
fn half_requests_hold_up_no_stop() {
    let mut bridge = builder()
        .var(vars::SHUTDOWN_GRACE, 600)
        .var(vars::BODY_TIMEOUT, 600)
        .var(vars::HEAD_TIMEOUT, 600)
        .start();
    let half_body = head("/echo/echo", "Content-Length: 500\r\n") + "{";
    let live = "GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let behind = format!("{live}{HALF_HEAD}");
    let sent = ["", HALF_HEAD, &half_body, live, &behind];
    let _open = sent.map(|sent| open(bridge.address(), sent));
    bridge.chat("alice", "c").echo("counter", json!({}));
    bridge.signal(Signal::TERM);
    assert_eq!(bridge.wait_for_exit().code(), Some(0));
}

#[test]
fn silent_connections_make_room_for_users_of_the_same_address() {
    let bridge = builder()
        .var(vars::MAX_CONNECTIONS, 40)
        .var(vars::HEAD_TIMEOUT, 600)
        .start();
    let chat = bridge.chat("alice", "c");
    chat.echo("counter", json!({}));
    let mut silent = Vec::new();
    for turn in 2..12 {
        for _ in 0..30 {
            silent.push(open(bridge.address(), HALF_HEAD));
        }
        let counted = bridge.chat("alice", "c").echo("counter", json!({}));
        assert_eq!(counted, turn);
        assert_eq!(bridge.client().get("/health").status, 200);
    }
    let first = silent.swap_remove(0);
    assert_eq!(rest(first), "", "the longest silent one was closed");
}

#[test]
fn a_client_that_opens_hundreds_at_once_before_it_sends_loses_none() {
    let bridge = builder().var(vars::MAX_CONNECTIONS, 400).start();
    let mut opened: Vec<_> = (0..200).map(|_| open(bridge.address(), "")).collect();
    for stream in &mut opened {
        let request = "GET /health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).expect("it is sent");
    }
    for stream in opened {
        let answer = rest(stream);
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
}

#[test]
fn where_all_connections_are_answered_health_still_is_and_others_are_told() {
    let bridge = builder()
        .var(vars::MAX_CONNECTIONS, 4)
        .var(vars::MAX_CONCURRENT, 10)
        .start();
    let calls: Vec<_> = (0..4)
        .map(|number| {
            let name = format!("started{number}");
            let chat = bridge.chat("alice", &name);
            let sleep = json!({"seconds": 600, "touch": name});
            let call = chat.begin("echo", "sleep", &sleep);
            bridge.wait_for_file(&name);
            call
        })
        .collect();
    for _ in 0..3 {
        let asked = "GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        let health = bridge.client().raw(asked.as_bytes());
        assert!(health.starts_with("HTTP/1.1 200 "), "{health}");
        let refused = bridge.chat("bob", "c").begin("echo", "counter", &json!({}));
        let refused = refused.rest();
        assert!(refused.starts_with("HTTP/1.1 503 "), "{refused}");
        assert!(refused.contains("MCPO_MAX_CONNECTIONS"), "{refused}");
        assert!(
            refused.to_ascii_lowercase().contains("retry-after: "),
            "{refused}"
        );
    }
    calls
        .into_iter()
        .for_each(crate::support::PendingCall::hang_up);
    eventually("there is room again", || {
        let call = bridge.chat("bob", "c").begin("echo", "counter", &json!({}));
        call.rest().starts_with("HTTP/1.1 200 ")
    });
}

#[test]
fn a_body_is_refused_by_its_head_alone() {
    let bridge = builder().var(vars::API_KEY, "steel").start();
    let key = "Authorization: Bearer steel\r\n";
    let length = |bytes: u64| format!("{key}Content-Length: {bytes}\r\n");
    // None of them gets memory for its body, and none waits for it for more than a moment.
    for (path, more, status) in [
        ("/echo/echo", length(33 << 20), 413),
        ("/mcp/echo", length(33 << 20), 413),
        ("/mcp", length(33 << 20), 413),
        ("/echo/nothing", length(100), 404),
        ("/nobody/echo", length(100), 404),
        ("/mcp/nobody", length(100), 404),
        ("/echo/echo", "Content-Length: 100\r\n".to_owned(), 401),
        ("/mcp/echo", "Content-Length: 100\r\n".to_owned(), 401),
    ] {
        let answer = rest(open(bridge.address(), &head(path, &more)));
        let expected = format!("HTTP/1.1 {status} ");
        assert!(answer.starts_with(&expected), "{path} {more}: {answer}");
    }
    let files = format!(
        "POST /files HTTP/1.1\r\nHost: localhost\r\n{key}\
         Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 6000000000\r\n\r\n"
    );
    let answer = rest(open(bridge.address(), &files));
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
}

#[test]
fn a_client_that_is_answered_early_can_send_the_rest() {
    let bridge = builder().var(vars::API_KEY, "steel").start();
    let key = "Authorization: Bearer steel\r\n";
    let size = 34_000_000;
    let length = format!("Content-Length: {size}\r\n");
    for (path, more, status) in [
        ("/echo/echo", format!("{key}{length}"), 413),
        ("/echo/nothing", format!("{key}{length}"), 404),
        ("/echo/echo", length, 401),
        (
            "/echo/echo",
            "Transfer-Encoding: chunked\r\n".to_owned(),
            401,
        ),
        ("/echo/echo", format!("{key}Content-Length: x\r\n"), 400),
    ] {
        let mut stream = open(bridge.address(), &head(path, &more));
        let mut first = [0; 12];
        stream.read_exact(&mut first).expect("an answer");
        assert_eq!(first, format!("HTTP/1.1 {status}").as_bytes(), "{more}");
        // More than the kernel keeps of a connection that nobody reads.
        let sent = stream.write_all(&vec![b'0'; size]);
        assert!(sent.is_ok(), "{more}: {sent:?}");
        assert!(rest(stream).contains("\r\n\r\n"), "{more}");
    }
}

#[test]
fn heads_that_a_proxy_may_read_otherwise_are_400() {
    let bridge = builder().start();
    let close = "Connection: close\r\n";
    for sent in [
        "GET /health/live HTTP/1.1\nHost: localhost\n\n".to_owned(),
        format!("GET /health/live HTTP/1.1\r\nHost: localhost\n{close}\r\n"),
        format!("GET /health/live HTTP/1.1\r\nHost: localhost\r\n{close}\n"),
        head("/echo/counter", "Transfer-Encoding: gzip, chunked\r\n") + "0\r\n\r\n",
        head(
            "/echo/counter",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        ),
        head("/files", "Transfer-Encoding: x, chunked\r\n"),
    ] {
        let answer = rest(open(bridge.address(), &sent));
        assert!(answer.starts_with("HTTP/1.1 400 "), "{sent:?}: {answer}");
    }
    // After another request on the same connection.
    let live = "GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let counted = head("/echo/counter", "Content-Length: 2\r\n") + "{}";
    let sent = format!("{live}{counted}{live}GET / HTTP/1.1\nHost: localhost\r\n\r\n");
    let answer = rest(open(bridge.address(), &sent));
    assert_eq!(answer.matches("HTTP/1.1 200 ").count(), 3, "{answer}");
    assert!(answer.contains("HTTP/1.1 400 "), "{answer}");
}

/// Posts a multipart body in the form given here.
fn parts(bridge: &TestBridge, path: &str, body: &[u8]) -> String {
    let mut sent = format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\
         X-OpenWebUI-User-Id: alice\r\nX-OpenWebUI-Chat-Id: c\r\n\
         Content-Type: multipart/form-data; boundary=b\r\n\r\n",
        body.len()
    )
    .into_bytes();
    sent.extend_from_slice(body);
    let mut stream = TcpStream::connect(bridge.address()).expect("the bridge listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    // The response may arrive before everything is sent.
    let _ = stream.write_all(&sent);
    rest(stream)
}

#[test]
fn what_is_no_file_in_a_body_of_parts_is_bounded() {
    let bridge = builder().start();
    let head = "Content-Disposition: form-data; name=\"x\"";
    let end = "\r\n--b--\r\n";
    let long = "x".repeat(50_000);
    let many = format!("--b\r\n{head}\r\n\r\n\r\n").repeat(300);
    for (body, why) in [
        (
            format!("--b\r\nX: {long}\r\n\r\n{end}"),
            "headers of a part",
        ),
        (
            format!("{long}{long}\r\n--b\r\n\r\n{end}"),
            "first part starts",
        ),
        (format!("{many}--b--\r\n"), "are not files"),
    ] {
        for path in ["/files", "/echo/write_file"] {
            let answer = parts(&bridge, path, body.as_bytes());
            assert!(answer.starts_with("HTTP/1.1 400 "), "{why}: {answer}");
            assert!(answer.contains(why), "{why}: {answer}");
        }
    }
}

#[test]
fn an_upload_has_its_name_in_each_form_that_clients_send() {
    let bridge = builder().start();
    for (named, name) in [
        (&b"filename*=UTF-8''%E3%83%AC.xlsx"[..], "レ.xlsx"),
        (
            b"filename=\"x.xlsx\"; filename*=UTF-8''%E3%83%AD.xlsx",
            "ロ.xlsx",
        ),
        (b"filename=\"caf\xe9.txt\"", "café.txt"),
        (
            b"filename=\"\x83\x8c\x83|\x81[\x83g.xlsx\"",
            "レポート.xlsx",
        ),
        (b"FileName=\"upper.txt\"", "upper.txt"),
        (b"FILENAME*=utf-8'ja'%E3%83%AB.txt", "ル.txt"),
    ] {
        let body = [
            &b"--b\r\ncontent-disposition: form-data; name=\"file\"; "[..],
            named,
            b"\r\nContent-Type: application/octet-stream\r\n\r\n1\r\n--b--\r\n",
        ];
        let answer = parts(&bridge, "/files", &body.concat());
        assert!(answer.starts_with("HTTP/1.1 201 "), "{name}: {answer}");
        assert!(
            answer.contains(&format!("\"name\":\"{name}\"")),
            "{name}: {answer}"
        );
    }
    // A file without a file name is recognised as a file by its type.
    let body = "--b\r\nContent-Disposition: form-data; name=\"data\"\r\n\
                Content-Type: application/octet-stream\r\n\r\n1\r\n--b--\r\n";
    let answer = parts(&bridge, "/files", body.as_bytes());
    assert!(answer.contains("\"name\":\"data\""), "{answer}");
}

/// A line of `/proc/{pid}/status`, in MiB.
fn memory(bridge: &TestBridge, line: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", bridge.pid())).expect("it runs");
    let found = status.lines().find_map(|found| found.strip_prefix(line));
    let kib = found.expect("the line").trim().trim_end_matches(" kB");
    kib.parse::<u64>().expect("a number") / 1024
}

#[test]
fn hostile_bodies_at_once_take_no_more_than_the_budget() {
    const BUDGET: u64 = 32;
    let bridge = builder().var(vars::BODY_MEMORY, "32MiB").start();
    let chat = bridge.chat("alice", "c");
    chat.echo("counter", json!({}));
    let before = memory(&bridge, "VmRSS:");
    let values = format!("{{\"text\":[{}\"a\"]}}", "\"a\",".repeat(700_000));
    // Without the argument that the tool requires, so no process is started.
    let text = format!("{{\"number\":\"{}\"}}", "a".repeat(3_000_000));
    std::thread::scope(|scope| {
        for number in 0..12 {
            let (chat, body) = (
                bridge.chat("mallory", &number.to_string()),
                [&values, &text],
            );
            let body = body[number % 2].clone();
            let path = ["/echo/echo", "/mcp/echo", "/echo/echo"][number % 3];
            scope.spawn(move || {
                let reply = chat.header("Accept", "*/*").post(path, body);
                assert!(
                    [200, 400, 413, 422, 503].contains(&reply.status),
                    "{}",
                    reply.status
                );
            });
        }
    });
    let most = memory(&bridge, "VmHWM:");
    assert!(most < before + BUDGET + 24, "{before} MiB, then {most} MiB");
}

#[test]
fn too_many_values_are_413() {
    let bridge = builder().var(vars::MAX_BODY_VALUES, 10_000).start();
    let many = format!("{{\"text\":[{}1]}}", "1,".repeat(20_000));
    let refused = bridge.client().post("/echo/echo", many.clone()).expect(413);
    let told = refused.to_string();
    assert!(told.contains("MCPO_MAX_BODY_VALUES"), "{told}");
    let message = format!(
        r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"echo","arguments":{many}}}}}"#
    );
    let client = bridge.client().header("Accept", "*/*");
    client.post("/mcp/echo", message).expect(413);
    let commas = json!({"text": ",".repeat(50_000)});
    bridge.client().call("echo", "echo", commas).ok();
}

#[test]
fn the_memory_of_large_answers_and_bodies_comes_back() {
    let bridge = builder().var(vars::MAX_CONCURRENT, 4).start();
    let chats: Vec<_> = (0..6)
        .map(|chat| bridge.chat("alice", &chat.to_string()))
        .collect();
    for chat in &chats {
        chat.echo("counter", json!({}));
    }
    let before = memory(&bridge, "VmRSS:");
    let text = "x".repeat(4_000_000);
    for chat in &chats {
        let said = chat.echo("echo", json!({"text": text}));
        assert_eq!(said.as_str().expect("a text").len(), text.len());
    }
    eventually("the memory came back", || {
        memory(&bridge, "VmRSS:") < before + 15
    });
}

#[test]
fn a_root_path_that_is_a_route_is_a_fault_of_the_settings() {
    for (root, prefix) in [
        ("/mcpo", ""),
        ("/files", ""),
        ("/mcp/x", ""),
        ("/p/docs", "/p"),
    ] {
        let bridge = builder()
            .var("MCPO_ROOT_PATH", root)
            .var("MCPO_PATH_PREFIX", prefix)
            .prepare();
        let (code, said) = bridge.refuses_to_start();
        assert_eq!(code, Some(2), "{said}");
        assert!(
            said.contains("MCPO_ROOT_PATH") && said.contains(root),
            "{said}"
        );
    }
}
