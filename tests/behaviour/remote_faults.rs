//! Remote servers that use the older transport, misbehave, or require information besides the body:
//! through the whole bridge.

use std::{
    net::TcpStream,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use crate::support::{
    Mcp, TestBridge, eventually,
    far::{self, Far, Seen},
    servers, with,
};
use serde_json::{Value, json};

fn near(url: &str, more: Value) -> TestBridge {
    TestBridge::start(servers([("far", with(json!({"url": url}), more))]))
}

fn endpoint(far: &Far) -> String {
    format!("{}/mcp", far.origin)
}

/// A server that does this for tool calls, and otherwise works.
fn at_calls(act: impl Fn(&Seen, &mut TcpStream) -> bool + Send + Sync + 'static) -> Far {
    Far::start(move |seen, stream| match seen.method() {
        "tools/call" => act(seen, stream),
        _ => far::respond(seen, stream),
    })
}

fn reason(bridge: &TestBridge) -> String {
    let reason = || bridge.client().get("/health").json()["servers"]["far"]["reason"].clone();
    eventually("the failure is known", || reason().is_string());
    reason().to_string()
}

#[test]
fn the_older_transport_works_through_both_doors_and_again_after_its_stream_ended() {
    for kind in [
        json!({"type": "sse"}),
        json!({"type": "streamable-http"}),
        json!({}),
    ] {
        let far = far::old_sse();
        let headers = json!({"headers": {"X-Team": "${TEAM}"}});
        let url = format!("{}/sse", far.origin);
        let entry = with(with(json!({"url": url}), kind.clone()), headers);
        let builder = TestBridge::builder(servers([("far", entry)]));
        let bridge = builder.var("TEAM", "blue").start();
        let chat = bridge.chat("alice", "c1");
        assert_eq!(
            chat.call("far", "echo", json!({"text": "a"})).ok(),
            "a",
            "{kind}"
        );
        let mcp = Mcp::legacy(chat.clone(), "far", &json!({}));
        assert_eq!(mcp.text("echo", json!({"text": "b"})), "b");
        assert_eq!(far.last("tools/call").header("x-team"), Some("blue"));
        let opened = far.count("GET");
        chat.call("far", "echo", json!({"text": "hang up"}));
        eventually("the session is found lost, and another one opened", || {
            let reply = chat.call("far", "echo", json!({"text": "c"}));
            reply.status == 200 && far.count("GET") > opened
        });
        let tried = far.count("POST initialize") - far.count("GET");
        assert_eq!(
            tried > 0,
            kind["type"] != "sse",
            "one POST for each stream that follows"
        );
    }
}

#[test]
fn marked_arguments_stand_in_headers_of_modern_calls() {
    let far = Far::start(far::respond);
    let bridge = near(&endpoint(&far), json!({"mode": "shared"}));
    let text = "schöne Grüße";
    let mcp = Mcp::modern(
        bridge
            .client()
            .header("Mcp-Param-Text", "=?base64?c2Now7ZuZSBHcsO8w59l?="),
        "far",
        json!({}),
    );
    eventually("it is known to speak the newest revision", || {
        assert_eq!(mcp.text("echo", json!({"text": text})), text);
        far.last("tools/call").header("mcp-protocol-version") == Some("2026-07-28")
    });
    let seen = far.last("tools/call");
    assert_eq!(seen.header("mcp-name"), Some("echo"));
    assert_eq!(
        seen.header("mcp-param-text"),
        Some("=?base64?c2Now7ZuZSBHcsO8w59l?=")
    );
}

#[test]
fn a_call_that_a_dying_server_took_is_not_sent_again() {
    let far = at_calls(|_, _| false);
    let bridge = near(&endpoint(&far), json!({}));
    let chat = bridge.chat("alice", "c1");
    for expected in 1..=2 {
        let failed = chat.call("far", "echo", json!({"text": "a"}));
        assert_eq!(failed.status, 502, "{}", failed.text());
        assert_eq!(far.count("POST tools/call"), expected);
    }
}

#[test]
fn a_call_that_was_refused_for_want_of_a_session_is_sent_in_a_new_one() {
    let forgot = AtomicBool::new(false);
    let far = at_calls(move |seen, stream| {
        if forgot.swap(true, Ordering::Relaxed) {
            far::respond(seen, stream)
        } else {
            far::write(stream, "404 Not Found", "", "")
        }
    });
    let bridge = near(&endpoint(&far), json!({}));
    let chat = bridge.chat("alice", "c1");
    assert!(
        chat.call("far", "echo", json!({"text": "a"}))
            .ok()
            .to_string()
            .contains('a')
    );
    assert_eq!(far.count("POST tools/call"), 2);
}

#[test]
fn a_redirect_to_another_origin_is_not_followed() {
    let elsewhere = Far::start(far::respond);
    let target = endpoint(&elsewhere);
    let far = Far::start(move |_, stream| {
        far::write(
            stream,
            "307 Temporary Redirect",
            &format!("Location: {target}\r\n"),
            "",
        )
    });
    let headers = json!({"headers": {"Authorization": "Bearer secret-of-the-file"}});
    let bridge = near(&endpoint(&far), headers);
    let reason = reason(&bridge);
    assert!(
        reason.contains("redirects") && reason.contains(&far.origin),
        "{reason}"
    );
    assert_eq!(
        elsewhere.count("POST initialize") + elsewhere.count("GET"),
        0
    );
}

#[test]
fn a_server_that_wants_other_credentials_is_named_with_the_key_to_mend() {
    let far = Far::start(|_, stream| far::write(stream, "401 Unauthorized", "", ""));
    let bridge = near(&endpoint(&far), json!({}));
    let reason = reason(&bridge);
    assert!(
        reason.contains("401 Unauthorized") && reason.contains("headers"),
        "{reason}"
    );
    assert_eq!(
        far.count("GET"),
        0,
        "the older transport would be refused too"
    );
}

#[test]
fn a_server_of_neither_transport_is_told_by_its_first_answer() {
    let far = Far::start(|seen, stream| {
        let status = if seen.verb == "GET" {
            "500 Oops"
        } else {
            "404 Not Found"
        };
        far::write(stream, status, "", "")
    });
    let bridge = near(&endpoint(&far), json!({}));
    let reason = reason(&bridge);
    assert!(reason.contains("404 Not Found"), "{reason}");
    assert!(far.count("GET") > 0, "the older transport was tried");
}

#[test]
fn a_call_to_a_silent_server_ends_at_its_deadline() {
    let far = at_calls(|_, _| {
        thread::sleep(Duration::from_secs(60));
        false
    });
    let bridge = near(&endpoint(&far), json!({"timeout": 10}));
    let failed = bridge
        .chat("alice", "c1")
        .call("far", "echo", json!({"text": "a"}));
    assert_eq!(failed.status, 504, "{}", failed.text());
    assert_eq!(far.count("POST tools/call"), 1);
}
