//! Requests that are trusted only by their address, and the information that unknown callers get.

use serde_json::{Value, json};

use crate::support::{Client, TestBridge, echo, eventually, rude, servers, vars};

/// Headers which show that a request from loopback originated on another machine.
const SIGNS: [(&str, &str); 9] = [
    ("Forwarded", "for=192.0.2.1"),
    ("X-Forwarded-For", "192.0.2.1"),
    ("X-Original-Forwarded-For", "192.0.2.1"),
    ("Via", "1.1 proxy.example"),
    ("CF-Connecting-IP", "192.0.2.1"),
    ("True-Client-IP", "192.0.2.1"),
    ("X-Client-IP", "192.0.2.1"),
    ("X-Envoy-External-Address", "192.0.2.1"),
    ("Sec-Fetch-Site", "cross-site"),
];

fn pid(client: &Client) -> Value {
    client.echo("where", json!({}))["pid"].clone()
}

#[test]
fn whatever_a_proxy_adds_a_user_is_not_known_by_its_address() {
    let bridge = TestBridge::start(servers([("echo", echo())]));
    let alice = bridge.chat("alice", "c1");
    let hers = pid(&alice);
    assert_eq!(pid(&alice), hers);
    for (name, value) in SIGNS {
        assert_ne!(pid(&alice.clone().header(name, value)), hers, "{name}");
    }
    // nginx's plain proxy_pass adds no header, and uses HTTP/1.0.
    let old = format!(
        "POST /echo/where HTTP/1.0\r\nHost: {}\r\nX-OpenWebUI-User-Id: alice\r\n\
         X-OpenWebUI-Chat-Id: c1\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{{}}",
        bridge.address()
    );
    let answer = bridge.client().raw(old.as_bytes());
    assert!(answer.contains("200 OK"), "{answer}");
    assert!(!answer.contains(&format!("\"pid\":{hers}")), "{answer}");
    assert_eq!(pid(&alice), hers, "she is still there");
}

#[test]
fn a_page_of_any_origin_is_no_user_unless_its_origin_was_named() {
    let bridge = TestBridge::builder(servers([("echo", echo())]))
        .var(vars::CORS_ALLOW_ORIGINS, "*,http://chat.example")
        .start();
    let alice = bridge.chat("alice", "c1");
    let hers = pid(&alice);
    for (origin, is_hers) in [
        ("http://evil.example", false),
        ("http://localhost:3000", false),
        ("null", false),
        ("http://chat.example", true),
        (
            &*format!("http://localhost:{}", bridge.address().port()),
            true,
        ),
    ] {
        let page = alice.clone().header("Origin", origin);
        assert_eq!(pid(&page) == hers, is_hers, "{origin}");
    }
    let warnings = bridge.client().get("/health").ok()["warnings"].to_string();
    assert!(warnings.contains("MCPO_CORS_ALLOW_ORIGINS=*"), "{warnings}");
    bridge.wait_for_log("MCPO_CORS_ALLOW_ORIGINS=*");
}

#[test]
fn a_user_who_is_known_by_his_address_is_a_warning_and_a_plain_start_is_none() {
    let bridge = TestBridge::start(servers([("echo", echo())]));
    bridge.client().get("/echo/openapi.json").ok();
    let warnings = || bridge.client().get("/health").ok()["warnings"].clone();
    assert_eq!(warnings(), json!([]));
    bridge.chat("alice", "c1").echo("counter", json!({}));
    assert!(warnings().to_string().contains("MCPO_API_KEY"));
    let log = bridge.finished_log();
    let warned: Vec<_> = log.lines().filter(|line| line.contains("WARN")).collect();
    assert_eq!(warned.len(), 1, "{log}");
    assert!(warned[0].contains("user headers are trusted"), "{log}");
}

#[test]
fn a_proxy_in_the_settings_without_a_key_is_a_warning() {
    for (name, value) in [
        (vars::BASE_URL, "https://files.example.com"),
        (vars::BASE_URL, "/"),
        ("MCPO_ROOT_PATH", "/bridge"),
        ("MCPO_ALLOWED_HOSTS", "bridge.example.com"),
    ] {
        let start = |builder: crate::support::Builder| {
            let bridge = builder.var(name, value).start();
            let health = bridge.client().bearer("sesame").get("/health").ok();
            health["warnings"].to_string().contains("proxy_pass")
        };
        let builder = || TestBridge::builder(servers([("echo", echo())]));
        assert!(start(builder()), "{name}");
        assert!(!start(builder().var(vars::API_KEY, "sesame")), "{name}");
    }
}

#[test]
fn health_names_servers_and_reasons_to_operators_alone() {
    for key in [None, Some("sesame")] {
        let mut builder = TestBridge::builder(servers([
            ("echo", echo()),
            ("broken-one", rude("exits_at_start")),
        ]));
        if let Some(key) = key {
            builder = builder.var(vars::API_KEY, key);
        }
        let bridge = builder.start();
        let client = bridge.client();
        eventually("the broken server is known", || {
            client.get("/health").ok()["status"] == "degraded"
        });
        let told = client.get("/health").ok();
        assert!(
            told["servers"]["broken-one"]["reason"].is_string(),
            "{told}"
        );
        let signs = [("Origin", "http://evil.example"), ("Origin", "null")];
        for (name, value) in SIGNS.into_iter().chain(signs) {
            let stranger = client.clone().header(name, value);
            let health = stranger.get("/health").ok();
            assert_eq!(health["status"], "degraded");
            let keys: Vec<_> = health.as_object().expect("an object").keys().collect();
            assert_eq!(keys, ["status", "timestamp"], "{name}");
            let ready = stranger.get("/health/ready").text();
            assert!(!ready.contains("broken-one"), "{ready}");
            if let Some(key) = key {
                let health = stranger.bearer(key).get("/health").ok();
                assert!(health["servers"]["echo"].is_object(), "{name}: {health}");
            }
        }
        // A web page that bound its own host name to the bridge's address.
        let rebound = b"GET /health HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n";
        let answer = client.raw(rebound);
        assert!(
            answer.contains("degraded") && !answer.contains("broken-one"),
            "{answer}"
        );
        let asked = bridge.command(&[
            "healthcheck",
            "--url",
            &format!("http://{}/", bridge.address()),
        ]);
        assert!(asked.status.success(), "{asked:?}");
    }
}
