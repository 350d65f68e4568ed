//! Lost sessions of remote servers, with all forms of the error: the rejected call is sent again once, in a
//! new session.

use std::{
    collections::HashMap,
    io::Write as _,
    net::TcpStream,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use crate::support::{
    Mcp, TestBridge,
    far::{self, Far, Seen},
    servers, with,
};
use serde_json::{Value, json};

/// The response of a server that does not know a session.
type Refuse = fn(&Seen, &mut TcpStream) -> bool;

const JSON: &str = "Content-Type: application/json\r\n";

fn rpc_error(id: &Value, code: i64, words: &str) -> String {
    json!({"jsonrpc": "2.0", "id": id, "error": {"code": code, "message": words}}).to_string()
}

/// A server of Streamable HTTP that forgets its sessions if a call requests it in `text`.
fn forgetful(refuse: Refuse) -> Far {
    let (made, gone) = (AtomicUsize::new(0), AtomicUsize::new(0));
    Far::start(move |seen, stream| {
        let session = seen.header("mcp-session-id").unwrap_or_default();
        let known = session
            .parse()
            .is_ok_and(|number: usize| number > gone.load(Ordering::SeqCst));
        match (seen.verb.as_str(), seen.method()) {
            ("GET", _) => far::write(stream, "405 Method Not Allowed", JSON, ""),
            ("DELETE", _) => far::write(stream, "200 OK", JSON, ""),
            (_, "initialize") => {
                let number = made.fetch_add(1, Ordering::SeqCst) + 1;
                let head = format!("{JSON}Mcp-Session-Id: {number}\r\n");
                far::write(
                    stream,
                    "200 OK",
                    &head,
                    &far::answer(&seen.message).to_string(),
                )
            }
            _ if !known => refuse(seen, stream),
            _ => {
                if seen.message["params"]["arguments"]["text"] == "forget" {
                    gone.store(made.load(Ordering::SeqCst), Ordering::SeqCst);
                }
                far::respond(seen, stream)
            }
        }
    })
}

const SPELLINGS: &[(&str, Refuse)] = &[
    ("404", |seen, stream| {
        let error = rpc_error(&seen.message["id"], -32001, "Session not found");
        far::write(stream, "404 Not Found", JSON, &error)
    }),
    ("410", |_, stream| {
        far::write(stream, "410 Gone", "Content-Type: text/plain\r\n", "gone")
    }),
    ("400 of the example", |_, stream| {
        let error = rpc_error(
            &Value::Null,
            -32000,
            "Bad Request: No valid session ID provided",
        );
        far::write(stream, "400 Bad Request", JSON, &error)
    }),
    ("400 in words", |_, stream| {
        far::write(
            stream,
            "400 Bad Request",
            JSON,
            r#"{"error":"Invalid session ID"}"#,
        )
    }),
    ("400 naming the request", |seen, stream| {
        let error = rpc_error(&seen.message["id"], -32600, "the session has expired");
        far::write(stream, "400 Bad Request", JSON, &error)
    }),
    ("401", |_, stream| {
        far::write(
            stream,
            "401 Unauthorized",
            "WWW-Authenticate: Bearer\r\n",
            "",
        )
    }),
    ("an error in a 200", |seen, stream| {
        let error = rpc_error(&seen.message["id"], -32001, "Session not found");
        far::write(stream, "200 OK", JSON, &error)
    }),
    ("an error in a 200 of nobody", |_, stream| {
        let error = rpc_error(&Value::Null, -32600, "Session not found");
        far::write(stream, "200 OK", JSON, &error)
    }),
    ("an error in an event", |seen, stream| {
        let error = rpc_error(&seen.message["id"], -32600, "Unknown session");
        let body = format!("event: message\ndata: {error}\n\n");
        far::write(
            stream,
            "200 OK",
            "Content-Type: text/event-stream\r\n",
            &body,
        )
    }),
];

#[test]
fn a_lost_session_is_noticed_in_every_spelling_and_the_call_sent_again() {
    for mode in ["stateful", "shared", "stateless"] {
        for (spelling, refuse) in SPELLINGS {
            let far = forgetful(*refuse);
            let url = format!("{}/mcp", far.origin);
            let bridge = TestBridge::ready(servers([("far", json!({"url": url, "mode": mode}))]));
            let chat = bridge.chat("alice", "c1");
            assert_eq!(
                chat.call("far", "echo", json!({"text": "a"})).ok(),
                "a",
                "{mode} {spelling}"
            );
            chat.call("far", "echo", json!({"text": "forget"})).ok();
            let mcp = Mcp::legacy(chat.clone(), "far", &json!({}));
            for text in ["b", "c"] {
                assert_eq!(
                    mcp.text("echo", json!({"text": text})),
                    text,
                    "{mode} {spelling}"
                );
            }
        }
    }
}

#[test]
fn a_refusal_that_stays_is_told_after_one_try_in_a_new_session() {
    let far = Far::start(|seen, stream| match seen.method() {
        "tools/call" if seen.message["params"]["arguments"]["text"] == "no" => far::write(
            stream,
            "401 Unauthorized",
            "WWW-Authenticate: Bearer\r\n",
            "",
        ),
        _ => far::respond(seen, stream),
    });
    let url = format!("{}/mcp", far.origin);
    let bridge = TestBridge::ready(servers([("far", json!({"url": url}))]));
    let chat = bridge.chat("alice", "c1");
    chat.call("far", "echo", json!({"text": "yes"})).ok();
    let before = far.count("POST tools/call");
    let refused = chat.call("far", "echo", json!({"text": "no"}));
    assert_eq!(refused.status, 502);
    assert!(
        refused.text().contains("401 Unauthorized"),
        "{}",
        refused.text()
    );
    assert_eq!(far.count("POST tools/call"), before + 2);
}

#[test]
fn an_error_of_a_tool_about_a_session_of_its_own_is_passed_on_and_never_sent_again() {
    let far = Far::start(|seen, stream| match seen.method() {
        "tools/call" => {
            let error = rpc_error(
                &seen.message["id"],
                -32000,
                "the browser session was closed",
            );
            far::write(stream, "200 OK", JSON, &error)
        }
        _ => far::respond(seen, stream),
    });
    let url = format!("{}/mcp", far.origin);
    let bridge = TestBridge::ready(servers([("far", json!({"url": url}))]));
    let refused = bridge
        .chat("alice", "c1")
        .call("far", "echo", json!({"text": "a"}));
    assert!(
        refused.text().contains("browser session"),
        "{}",
        refused.text()
    );
    assert_eq!(far.count("POST tools/call"), 1);
}

/// A server of the older transport that loses its table of sessions at a call of "forget", while its
/// streams stay open, as with a load balancer.
fn old_and_forgetful(status: &'static str, body: &'static str) -> Far {
    let streams: Arc<Mutex<HashMap<usize, (TcpStream, bool)>>> = Arc::default();
    Far::start(move |seen, stream| {
        let mut streams = streams.lock().expect("the streams");
        let text = "Content-Type: text/plain\r\n";
        match (seen.verb.as_str(), seen.path.split_once("?s=")) {
            ("GET", None) => {
                let number = streams.len();
                let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n";
                let first = format!("{head}event: endpoint\ndata: /messages?s={number}\n\n");
                streams.insert(number, (stream.try_clone().expect("a stream"), true));
                stream.write_all(first.as_bytes()).is_ok()
            }
            ("POST", Some(("/messages", number))) => {
                let number: usize = number.parse().expect("a number of ours");
                if seen.message["params"]["arguments"]["text"] == "forget" {
                    streams.values_mut().for_each(|(_, known)| *known = false);
                    let (to, _) = streams.get_mut(&number).expect("a stream");
                    let event = format!("event: message\ndata: {}\n\n", far::answer(&seen.message));
                    let _ = to.write_all(event.as_bytes());
                    return far::write(stream, "202 Accepted", text, "Accepted");
                }
                let (to, known) = streams.get_mut(&number).expect("a stream");
                if !*known && status.starts_with('2') {
                    let event = rpc_error(&seen.message["id"], -32001, "Session not found");
                    let _ = to.write_all(format!("event: message\ndata: {event}\n\n").as_bytes());
                } else if !*known {
                    return far::write(stream, status, text, body);
                } else if !seen.message["id"].is_null() {
                    let event = format!("event: message\ndata: {}\n\n", far::answer(&seen.message));
                    let _ = to.write_all(event.as_bytes());
                }
                far::write(stream, "202 Accepted", text, "Accepted")
            }
            _ => far::write(stream, "405 Method Not Allowed", text, ""),
        }
    })
}

#[test]
fn a_session_of_the_older_transport_is_lost_though_its_stream_stays_open() {
    for (status, body) in [
        ("404 Not Found", "Could not find session"),
        ("410 Gone", ""),
        ("400 Bad Request", "No transport found for sessionId"),
        ("401 Unauthorized", ""),
        ("202 Accepted", ""),
    ] {
        for mode in ["stateful", "shared"] {
            let far = old_and_forgetful(status, body);
            let entry = json!({"url": format!("{}/sse", far.origin), "type": "sse"});
            let bridge = TestBridge::ready(servers([("far", with(entry, json!({"mode": mode})))]));
            let chat = bridge.chat("alice", "c1");
            assert_eq!(
                chat.call("far", "echo", json!({"text": "a"})).ok(),
                "a",
                "{status}"
            );
            chat.call("far", "echo", json!({"text": "forget"})).ok();
            for text in ["b", "c"] {
                let said = chat.call("far", "echo", json!({"text": text})).ok();
                // The first answer in a new session reports that the state of the old one is lost.
                let told = said["result"].as_str().or(said.as_str());
                assert_eq!(told, Some(text), "{mode} {status}: {said}");
            }
        }
    }
}

/// The response of an unusual server: header lines and body.
type Odd = fn(&Value) -> (String, String);

#[test]
fn answers_with_a_byte_order_mark_or_an_odd_id_are_answers() {
    let odd: [Odd; 5] = [
        |answer| (JSON.to_owned(), format!("\u{feff}{answer}")),
        |answer| {
            (
                "Content-Type: text/event-stream\r\n".to_owned(),
                format!("\u{feff}data: \u{feff}{answer}\n\n"),
            )
        },
        |answer| {
            (
                JSON.to_owned(),
                with(answer.clone(), json!({"id": null})).to_string(),
            )
        },
        |answer| {
            (
                JSON.to_owned(),
                with(answer.clone(), json!({"id": answer["id"].to_string()})).to_string(),
            )
        },
        |answer| {
            (
                JSON.to_owned(),
                with(answer.clone(), json!({"id": answer["id"].as_f64()})).to_string(),
            )
        },
    ];
    for (number, odd) in odd.into_iter().enumerate() {
        let far = Far::start(move |seen, stream| {
            if seen.message["id"].is_null() {
                return far::respond(seen, stream);
            }
            let (head, body) = odd(&far::answer(&seen.message));
            far::write(stream, "200 OK", &head, &body)
        });
        let url = format!("{}/mcp", far.origin);
        let bridge = TestBridge::ready(servers([("far", json!({"url": url}))]));
        let said = bridge
            .chat("alice", "c1")
            .call("far", "echo", json!({"text": "a"}));
        assert_eq!(said.ok(), "a", "{number}");
    }
}
