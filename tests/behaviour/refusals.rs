//! Requests that are rejected before their body is read, byte by byte on one persistent connection.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
};

use crate::support::{TestBridge, echo, servers, vars};

/// A bridge that rejects callers without a key.
fn closed() -> TestBridge {
    TestBridge::builder(servers([("echo", echo())]))
        .var(vars::API_KEY, "key:steel")
        .start()
}

/// The head of a call with a body of this length.
fn head(length: usize, more: &str) -> String {
    format!(
        "POST /echo/counter HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n{more}\r\n"
    )
}

/// A response's status line and headers, after all of it was read.
fn answer(stream: &mut BufReader<TcpStream>) -> String {
    answer_and_body(stream).0
}

fn answer_and_body(stream: &mut BufReader<TcpStream>) -> (String, String) {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert_ne!(stream.read_line(&mut head).expect("an answer"), 0, "{head}");
    }
    let head = head.to_lowercase();
    let length = head.split("content-length: ").nth(1).expect("a length");
    let length = length.lines().next().and_then(|line| line.parse().ok());
    let mut body = vec![0; length.expect("a number")];
    stream.read_exact(&mut body).expect("a body");
    (head, String::from_utf8(body).expect("text"))
}

fn connect(bridge: &TestBridge) -> (TcpStream, BufReader<TcpStream>) {
    let stream = TcpStream::connect(bridge.address()).expect("the bridge listens");
    let reader = BufReader::new(stream.try_clone().expect("the same socket"));
    (stream, reader)
}

#[test]
fn a_short_body_is_read_and_its_connection_kept() {
    let bridge = closed();
    let (mut stream, mut reader) = connect(&bridge);
    for _ in 0..20 {
        stream.write_all(head(2, "").as_bytes()).expect("sent");
        stream.flush().expect("sent");
        stream.write_all(b"{}").expect("sent");
        let answer = answer(&mut reader);
        assert!(answer.starts_with("http/1.1 401"), "{answer}");
        assert!(!answer.contains("connection: close"), "{answer}");
    }
}

#[test]
fn where_a_long_one_is_left_unread_the_answer_says_that_the_connection_ends() {
    let bridge = closed();
    let (mut stream, mut reader) = connect(&bridge);
    stream
        .write_all(head(1 << 20, "").as_bytes())
        .expect("sent");
    let refused = answer(&mut reader);
    assert!(refused.starts_with("http/1.1 401"), "{refused}");
    assert!(refused.contains("connection: close"), "{refused}");
}

#[test]
fn a_client_that_waits_to_be_asked_for_its_body_is_not_asked() {
    let bridge = closed();
    let (mut stream, mut reader) = connect(&bridge);
    let waits = head(2, "Expect: 100-continue\r\n");
    stream.write_all(waits.as_bytes()).expect("sent");
    let refused = answer(&mut reader);
    assert!(refused.starts_with("http/1.1 401"), "{refused}");
    assert!(refused.contains("connection: close"), "{refused}");
}

#[test]
fn a_body_whose_pieces_are_no_pieces_is_called_broken_and_not_too_large() {
    let bridge = TestBridge::start(servers([("echo", echo())]));
    for path in ["/echo/counter", "/mcpo/echo/counter", "/mcp/echo"] {
        let (mut stream, mut reader) = connect(&bridge);
        let broken = format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\
             Content-Type: application/json\r\nAccept: */*\r\n\r\n2\r\n{{}}\r\nno number\r\n"
        );
        stream.write_all(broken.as_bytes()).expect("sent");
        let (head, body) = answer_and_body(&mut reader);
        assert!(head.starts_with("http/1.1 400"), "{path}: {head}");
        assert!(body.contains("cannot read the body"), "{path}: {body}");
    }
}
