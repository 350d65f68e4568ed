//! Key and user token together: the user of the token is the caller, and the token is sent only to
//! Open WebUI.

use std::fs;

use crate::support::{
    Client, FakeOpenWebUi, KEY, Mood, TOKEN, TestBridge, echo, servers, vars, with,
};
use serde_json::json;

fn builder(openwebui: &FakeOpenWebUi) -> crate::support::Builder {
    openwebui.user(TOKEN, "alice", "user");
    TestBridge::builder(servers([("echo", echo())]))
        .var(vars::API_KEY, KEY)
        .var(vars::TRUSTED_PROXIES, "none")
        .var(vars::OPENWEBUI_URL, openwebui.url())
}

/// A client like a connection of auth type session.
fn session(bridge: &TestBridge, token: &str, chat: &str) -> Client {
    let client = bridge.client().bearer(token).header("X-MCPO-Key", KEY);
    let client = client.in_chat(chat);
    client.header("X-OpenWebUI-Message-Id", "m1")
}

fn count(client: &Client) -> serde_json::Value {
    client.echo("counter", json!({}))
}

#[test]
fn the_user_of_the_token_is_the_caller_whatever_headers_say() {
    let openwebui = FakeOpenWebUi::start();
    openwebui.user("token-of-bob", "bob", "user");
    let bridge = builder(&openwebui).start();
    let alice = session(&bridge, TOKEN, "c1");
    assert_eq!(count(&alice), 1);
    assert_eq!(count(&alice.clone().as_user("bob")), 2);
    assert_eq!(count(&session(&bridge, "token-of-bob", "c1")), 1);
    // The same user, named by a header of a caller with the key.
    let named = bridge.client().bearer(KEY).as_user("alice").in_chat("c1");
    assert_eq!(count(&named), 3);
}

#[test]
fn a_token_alone_is_no_key_and_a_key_is_never_shown_to_open_webui() {
    let openwebui = FakeOpenWebUi::start();
    let bridge = builder(&openwebui).start();
    let call = |client: Client| client.call("echo", "echo", json!({"text": "x"})).status;
    assert_eq!(call(bridge.client().bearer(TOKEN)), 403);
    assert_eq!(call(bridge.client().bearer(KEY)), 200);
    let both = bridge.client().bearer(KEY).header("X-MCPO-Key", KEY);
    assert_eq!(call(both), 200);
    assert!(openwebui.asked("").is_empty());
}

#[test]
fn a_token_that_open_webui_refuses_is_401_on_both_doors() {
    let openwebui = FakeOpenWebUi::start();
    let bridge = builder(&openwebui).start();
    openwebui.user("token-of-carol", "carol", "pending");
    for token in ["made-up", "token-of-carol"] {
        let client = session(&bridge, token, "c1");
        let refused = client.call("echo", "counter", json!({}));
        assert_eq!(refused.status, 401);
        assert!(
            refused.text().contains("invalid_session"),
            "{}",
            refused.text()
        );
        let initialize = r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{}}"#;
        let refused = client.post("/mcp/echo", initialize);
        assert_eq!(refused.status, 401, "{}", refused.text());
    }
    assert!(!bridge.finished_log().contains("made-up"));
}

#[test]
fn automations_and_api_keys_are_their_users() {
    let openwebui = FakeOpenWebUi::start();
    let bridge = builder(&openwebui).start();
    openwebui.key("sk-of-alice", "alice");
    assert_eq!(count(&session(&bridge, TOKEN, "c1")), 1);
    assert_eq!(count(&session(&bridge, "sk-of-alice", "c1")), 2);
    openwebui.key("sk-of-bob", "bob");
    assert_eq!(count(&session(&bridge, "sk-of-bob", "c1")), 1);
    openwebui.mood("/user/status", Mood::Status(403));
    openwebui.key("sk-of-carol", "carol");
    let refused = session(&bridge, "sk-of-carol", "c1").call("echo", "counter", json!({}));
    assert_eq!(refused.status, 401, "{}", refused.text());
}

#[test]
fn who_cannot_be_verified_is_told_that_and_not_that_he_is_wrong() {
    let openwebui = FakeOpenWebUi::start();
    let bridge = builder(&openwebui).start();
    for (mood, status) in [
        (Mood::Status(500), 502),
        (Mood::Page, 502),
        (Mood::Silent, 503),
    ] {
        openwebui.mood("/auths/", mood);
        let refused = session(&bridge, TOKEN, "c1").call("echo", "counter", json!({}));
        assert_eq!(refused.status, status, "{}", refused.text());
        assert_eq!(refused.header("Retry-After"), "5");
        assert!(refused.text().contains("openwebui_unavailable"));
    }
    // Errors are not cached.
    openwebui.mood("/auths/", Mood::Well);
    assert_eq!(count(&session(&bridge, TOKEN, "c1")), 1);
}

#[test]
fn open_webui_that_is_down_is_503() {
    let openwebui = FakeOpenWebUi::start();
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let nobody = format!("http://{}", free.local_addr().expect("its address"));
    drop(free);
    let bridge = builder(&openwebui).var(vars::OPENWEBUI_URL, nobody).start();
    let refused = session(&bridge, TOKEN, "c1").call("echo", "counter", json!({}));
    assert_eq!(refused.status, 503, "{}", refused.text());
}

#[test]
fn open_webui_is_asked_once_for_many_requests() {
    let openwebui = FakeOpenWebUi::start();
    let bridge = builder(&openwebui).start();
    let together: Vec<_> = (0..16)
        .map(|chat| {
            let client = session(&bridge, TOKEN, &format!("c{chat}"));
            std::thread::spawn(move || client.echo("echo", json!({"text": "x"})))
        })
        .collect();
    for call in together {
        call.join().expect("an answer");
    }
    assert_eq!(openwebui.asked("/auths/").len(), 1);
    // A rejected token is cached, too.
    for _ in 0..3 {
        let client = session(&bridge, "made-up", "c1");
        assert_eq!(client.call("echo", "counter", json!({})).status, 401);
    }
    assert_eq!(openwebui.asked("/auths/").len(), 2);
}

#[test]
fn the_token_reaches_no_child_no_log_and_no_file() {
    let openwebui = FakeOpenWebUi::start();
    let bridge = builder(&openwebui).var(vars::LOG_LEVEL, "DEBUG").start();
    let client = session(&bridge, TOKEN, "c1");
    let environment = client.echo("env", json!({})).to_string();
    assert!(!environment.contains(TOKEN) && !environment.contains(KEY));
    client.echo("write_file", json!({"name": "a.txt", "content": "x"}));
    client.call("echo", "fail", json!({}));
    assert_eq!(openwebui.asked("/files/").len(), 1, "it was used");
    for text in [TOKEN, KEY] {
        assert!(
            !holds(&bridge.jobs(), text.as_bytes()),
            "{text} lies in the jobs folder"
        );
        let metrics = bridge.client().get("/metrics").text();
        assert!(!metrics.contains(text));
    }
    let log = bridge.finished_log();
    for text in [TOKEN, KEY] {
        assert!(!log.contains(text));
    }
}

#[test]
fn a_server_that_gets_headers_gets_neither_the_token_nor_what_was_not_believed() {
    let openwebui = FakeOpenWebUi::start();
    openwebui.user(TOKEN, "alice", "user");
    let names = [
        "Authorization",
        "Cookie",
        "X-MCPO-Key",
        "X-OpenWebUI-*",
        "X-Tenant",
    ];
    let forwarding = json!({"client_header_forwarding": {"enabled": true, "whitelist": names}});
    let bridge = TestBridge::builder(servers([("echo", with(echo(), forwarding))]))
        .var(vars::API_KEY, KEY)
        .var(vars::OPENWEBUI_URL, openwebui.url())
        .start();
    let client = session(&bridge, TOKEN, "c1")
        .as_user("bob")
        .header("X-Tenant", "a");
    let meta = client
        .header("Cookie", format!("token={TOKEN}"))
        .echo("meta", json!({}));
    let expected = json!({
        "x-tenant": "a", "x-openwebui-chat-id": "c1", "x-openwebui-message-id": "m1",
    });
    assert_eq!(meta["mcpo-bridge/headers"], expected);
}

fn holds(folder: &std::path::Path, text: &[u8]) -> bool {
    fs::read_dir(folder)
        .expect("a folder")
        .flatten()
        .any(|entry| {
            let path = entry.path();
            if path.is_dir() {
                return holds(&path, text);
            }
            let content = fs::read(&path).unwrap_or_default();
            content.windows(text.len()).any(|part| part == text)
        })
}

#[test]
fn strict_documents_open_to_trusted_addresses_and_to_the_path_secret() {
    let openwebui = FakeOpenWebUi::start();
    let far = builder(&openwebui).var(vars::STRICT_AUTH, "true").start();
    assert_eq!(far.client().get("/mcpo/echo/openapi.json").status, 401);
    let printed = far.command(&["openwebui", "spec-path"]);
    let path = String::from_utf8(printed.stdout).expect("text");
    for front in ["/mcpo/echo/", "/echo/"] {
        let document = far.client().get(&format!("{front}{}", path.trim())).ok();
        assert!(document["paths"]["/counter"].is_object(), "{document}");
    }
    assert_eq!(
        far.client().get("/mcpo/echo/made-up/openapi.json").status,
        401
    );
    far.wait_for_log("openwebui spec-path");
    far.finish();
    let near = builder(&openwebui)
        .var(vars::STRICT_AUTH, "true")
        .var(vars::TRUSTED_PROXIES, "127.0.0.1")
        .start();
    near.client().get("/mcpo/echo/openapi.json").ok();
    let proxied = near.client().header("X-Forwarded-For", "203.0.113.9");
    assert_eq!(proxied.get("/mcpo/echo/openapi.json").status, 401);
}
