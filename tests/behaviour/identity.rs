//! Authentication of callers.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::support::{Builder, Client, TestBridge, echo, servers, vars};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::json;

const SECRET: &str = "a secret of at least thirty-two bytes";

fn builder() -> Builder {
    TestBridge::builder(servers([("echo", echo())]))
}

fn counter(client: &Client) -> u16 {
    client.call("echo", "counter", json!({})).status
}

pub fn token(user: &str, secret: &str, lifetime: i64) -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("after 1970")
        .as_secs();
    let expires = now.cast_signed() + lifetime;
    let claims = json!({"sub": user, "iat": now, "exp": expires});
    let key = EncodingKey::from_secret(secret.as_bytes());
    encode(&Header::new(Algorithm::HS256), &claims, &key).expect("a token")
}

trait WithToken {
    fn token(self, token: &str) -> Self;
}

impl WithToken for Client {
    fn token(self, token: &str) -> Self {
        self.header("X-OpenWebUI-User-Jwt", token)
    }
}

#[test]
fn with_a_key_every_acting_route_asks_for_it_and_documents_are_open() {
    let bridge = builder().var(vars::API_KEY, "sesame").start();
    let client = bridge.client();
    let missing = client.call("echo", "counter", json!({}));
    assert_eq!(
        (missing.status, missing.header("WWW-Authenticate")),
        (401, "Bearer")
    );
    assert_eq!(counter(&client.clone().bearer("wrong")), 403);
    assert_eq!(counter(&client.clone().bearer("sesame")), 200);
    assert_eq!(counter(&client.clone().header("X-MCPO-Key", "sesame")), 200);
    // base64 of "anybody:sesame"
    assert_eq!(
        counter(
            &client
                .clone()
                .header("Authorization", "Basic YW55Ym9keTpzZXNhbWU=")
        ),
        200
    );
    for open in ["/echo/openapi.json", "/mcpo/echo/docs", "/docs", "/health"] {
        assert_eq!(client.get(open).status, 200, "{open}");
    }
}

#[test]
fn strict_auth_closes_the_documents_too() {
    let bridge = builder()
        .var(vars::API_KEY, "sesame")
        .arg("--strict-auth")
        .start();
    for closed in ["/echo/openapi.json", "/mcpo/echo/docs", "/docs"] {
        assert_eq!(bridge.client().get(closed).status, 401, "{closed}");
        assert_eq!(
            bridge.client().bearer("sesame").get(closed).status,
            200,
            "{closed}"
        );
    }
    assert_eq!(bridge.client().get("/health/live").status, 200);
}

#[test]
fn each_named_key_is_a_principal_of_its_own() {
    let bridge = builder().var(vars::API_KEY, "one:first,two:second").start();
    let chat = |key: &str| bridge.client().bearer(key).in_chat("c1");
    assert_eq!(chat("first").echo("counter", json!({})), 1);
    assert_eq!(chat("first").echo("counter", json!({})), 2);
    assert_eq!(chat("second").echo("counter", json!({})), 1);
}

#[test]
fn plain_headers_are_believed_from_loopback_and_not_through_a_proxy() {
    let bridge = builder().start();
    let alice = bridge.chat("alice", "c1");
    let hers = alice.echo("where", json!({}))["pid"].clone();
    assert_eq!(alice.echo("where", json!({}))["pid"], hers);
    for header in ["X-Forwarded-For", "Forwarded", "X-Forwarded-Proto"] {
        let proxied = alice.clone().header(header, "for=192.0.2.1");
        let reply = proxied.call("echo", "where", json!({}));
        // Served as an anonymous caller or rejected, but never as alice.
        assert!(
            reply.status >= 400 || reply.json()["pid"] != hers,
            "{header}: {}",
            reply.text()
        );
    }
}

#[test]
fn plain_headers_are_believed_from_whoever_has_the_key() {
    let bridge = builder().var(vars::API_KEY, "sesame").start();
    let alice = bridge
        .chat("alice", "c1")
        .bearer("sesame")
        .header("X-Forwarded-For", "192.0.2.1");
    assert_eq!(alice.echo("counter", json!({})), 1);
    assert_eq!(alice.echo("counter", json!({})), 2);
}

#[test]
fn a_signed_token_says_who_calls() {
    let bridge = builder().var(vars::JWT_SECRET, SECRET).start();
    let alice = bridge
        .client()
        .in_chat("c1")
        .token(&token("alice", SECRET, 60));
    let bob = bridge
        .client()
        .in_chat("c1")
        .token(&token("bob", SECRET, 60));
    assert_eq!(alice.echo("counter", json!({})), 1);
    assert_eq!(alice.echo("counter", json!({})), 2);
    assert_eq!(bob.echo("counter", json!({})), 1);
}

#[test]
fn with_a_secret_plain_headers_are_ignored() {
    let bridge = builder().var(vars::JWT_SECRET, SECRET).start();
    let alice = bridge
        .client()
        .in_chat("c1")
        .token(&token("alice", SECRET, 60));
    assert_eq!(alice.echo("counter", json!({})), 1);
    // A call without a token is rejected, or at least never alice's.
    let reply = bridge
        .chat("alice", "c1")
        .call("echo", "counter", json!({}));
    assert!(reply.status == 401 || reply.json() == 1, "{}", reply.text());
    let both = bridge.chat("bob", "c1").token(&token("alice", SECRET, 60));
    assert_eq!(
        both.echo("counter", json!({})),
        2,
        "the token counts, not the header"
    );
}

#[test]
fn a_bad_token_is_refused() {
    let bridge = builder().var(vars::JWT_SECRET, SECRET).start();
    let unsigned = "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhbGljZSIsImV4cCI6NDEwMjQ0NDgwMH0.";
    for bad in [
        token("alice", "another secret of thirty-two bytes", 60),
        token("alice", SECRET, -3600),
        unsigned.to_owned(),
        "not.a.token".to_owned(),
    ] {
        assert_eq!(
            counter(&bridge.client().in_chat("c1").token(&bad)),
            401,
            "{bad}"
        );
    }
}

#[test]
fn identity_headers_that_stand_twice_are_refused() {
    let bridge = builder().start();
    assert_eq!(counter(&bridge.chat("alice", "c1").as_user("bob")), 400);
    assert_eq!(counter(&bridge.chat("alice", "c1").in_chat("c2")), 400);
}

#[test]
fn listening_beyond_loopback_without_a_key_is_refused_unless_said() {
    let open = builder().var(vars::HOST, "0.0.0.0").prepare();
    let (_, said) = open.refuses_to_start();
    assert!(said.contains("MCPO_API_KEY"), "{said}");
    let with_key = builder()
        .var(vars::HOST, "0.0.0.0")
        .var(vars::API_KEY, "sesame")
        .start();
    with_key.finish();
    builder()
        .var(vars::HOST, "0.0.0.0")
        .var(vars::ALLOW_UNAUTHENTICATED, "true")
        .start()
        .finish();
}

#[test]
fn a_secret_can_come_from_a_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("key");
    std::fs::write(&file, "sesame\n").expect("a file");
    let bridge = builder().var("MCPO_API_KEY_FILE", file.display()).start();
    assert_eq!(counter(&bridge.client()), 401);
    assert_eq!(counter(&bridge.client().bearer("sesame")), 200);
}

#[test]
fn children_see_nothing_of_the_bridges_secrets_and_the_log_neither() {
    let bridge = builder()
        .var(vars::API_KEY, "open-sesame")
        .var(vars::JWT_SECRET, SECRET)
        .var(vars::LOG_LEVEL, "DEBUG")
        .var("UNRELATED", "of-no-concern")
        .start();
    let client = bridge
        .client()
        .bearer("open-sesame")
        .in_chat("the-chat")
        .token(&token("alice", SECRET, 60));
    client.echo("echo", json!({"text": "private-argument"}));
    let environment = client.echo("env", json!({})).to_string();
    for secret in ["open-sesame", SECRET, "of-no-concern"] {
        assert!(!environment.contains(secret), "{environment}");
    }
    for ours in ["MCPO_WORKDIR", "MCPO_JOB_ID", "HOME", "TMPDIR", "PATH"] {
        assert!(environment.contains(ours), "{ours}: {environment}");
    }
    let log = bridge.finished_log();
    for secret in ["open-sesame", SECRET, "private-argument"] {
        assert!(!log.contains(secret), "{secret} is in the log");
    }
}

#[test]
fn nothing_of_a_request_reaches_argv() {
    let bridge = builder().start();
    let chat = bridge.chat("alice", "canary-chat");
    chat.echo("echo", json!({"text": "canary-argument"}));
    for process in bridge.children() {
        assert!(!process.command.contains("canary"), "{process}");
        assert!(!process.command.contains("alice"), "{process}");
    }
}

#[test]
fn an_unknown_host_or_origin_is_refused() {
    let bridge = builder().start();
    let evil = |header: &str| {
        let request = format!(
            "POST /echo/counter HTTP/1.1\r\n{header}\r\nContent-Type: application/json\r\n\
             Content-Length: 2\r\nConnection: close\r\n\r\n{{}}"
        );
        bridge.client().raw(request.as_bytes())
    };
    let own = bridge.address();
    assert!(evil(&format!("Host: {own}")).starts_with("HTTP/1.1 200"));
    assert!(evil("Host: evil.example").starts_with("HTTP/1.1 403"));
    assert!(
        evil(&format!("Host: {own}\r\nOrigin: http://evil.example")).starts_with("HTTP/1.1 403")
    );
}
