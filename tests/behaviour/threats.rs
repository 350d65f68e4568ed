//! Attacks on callers' identities: the same response at every endpoint, no hint of other users' data,
//! and the caller's credentials are not sent beyond the bridge.

use crate::{
    identity::token,
    support::{
        ALL, Client, Mcp, Reply, TestBridge, echo,
        far::{Far, respond},
        servers, vars, with,
    },
};
use serde_json::json;

const SECRET: &str = "a secret of at least thirty-two bytes";

/// One call at each endpoint.
fn endpoints(client: &Client) -> Vec<(&'static str, Reply)> {
    let hello = json!({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {
        "protocolVersion": "2025-11-25", "capabilities": {},
        "clientInfo": {"name": "test", "version": "1"},
    }});
    let post = |path: &str| client.post(path, hello.to_string());
    vec![
        ("/echo", client.call("echo", "counter", json!({}))),
        ("/mcpo/echo", client.post("/mcpo/echo/counter", "{}")),
        ("/mcp/echo", post("/mcp/echo")),
        ("/mcp", post("/mcp")),
        ("GET /mcp/echo", client.get("/mcp/echo")),
        ("DELETE /mcp", client.request("DELETE", "/mcp")),
    ]
}

#[test]
fn a_forged_user_is_refused_at_every_door() {
    let bridge = TestBridge::builder(servers([("echo", echo())]))
        .var(vars::JWT_SECRET, SECRET)
        .var(vars::API_KEY, "sesame")
        .start();
    let unsigned = "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhbGljZSIsImV4cCI6NDEwMjQ0NDgwMH0.";
    for forged in [
        token("alice", "another secret of thirty-two bytes", 60),
        token("alice", SECRET, -3600),
        unsigned.to_owned(),
    ] {
        let client = bridge.client().bearer("sesame").in_chat("c1");
        for (endpoint, reply) in endpoints(&client.header("X-OpenWebUI-User-Jwt", &forged)) {
            assert_eq!(reply.status, 401, "{endpoint}: {}", reply.text());
        }
    }
    let twice = bridge.client().bearer("sesame").as_user("a").as_user("b");
    for (endpoint, reply) in endpoints(&twice) {
        assert_eq!(reply.status, 400, "{endpoint}: {}", reply.text());
    }
}

#[test]
fn where_tokens_count_a_header_makes_nobody_the_owner_of_a_session() {
    let bridge = TestBridge::builder(servers([("echo", echo())]))
        .var(vars::JWT_SECRET, SECRET)
        .var(vars::API_KEY, "sesame")
        .start();
    let keyed = || bridge.client().bearer("sesame").in_chat("c1");
    let alice = keyed().header("X-OpenWebUI-User-Jwt", token("alice", SECRET, 60));
    for server in ["echo", ALL] {
        let hers = Mcp::legacy(alice.clone(), server, &json!({}));
        let session = hers.session.as_deref().expect("a session");
        let claimed = Mcp::modern(keyed().as_user("alice"), server, json!({}));
        let thief = claimed.in_session(session);
        assert_eq!(thief.request("ping", json!({})).refusal(), (404, -32600));
        assert_eq!(thief.end(), 404);
        hers.request("ping", json!({})).result();
    }
}

#[test]
fn somebody_elses_session_is_answered_as_one_that_never_was() {
    let bridge = TestBridge::start(servers([("echo", echo())]));
    let first = bridge
        .client()
        .as_user("alice")
        .call("echo", "counter", json!({}));
    let hers = first.header("X-MCPO-Session").to_owned();
    let never = like(&hers);
    for who in [bridge.client().as_user("bob"), bridge.client()] {
        let said = |session: &str| {
            let reply = who
                .clone()
                .in_session(session)
                .call("echo", "counter", json!({}));
            (reply.status, reply.text().replace(session, "SESSION"))
        };
        let (status, text) = said(&hers);
        assert_eq!((status, text), said(&never));
        assert_eq!(status, 404);
    }
}

/// Another id of the same form.
fn like(id: &str) -> String {
    let (front, last) = id.split_at(id.len() - 1);
    format!("{front}{}", if last == "1" { "2" } else { "1" })
}

fn with_credentials(client: Client) -> Client {
    client
        .header("X-MCPO-Key", "sesame")
        .bearer("canary-of-authorization")
        .header("Cookie", "session=canary-of-cookie")
        .header("X-OpenWebUI-User-Name", "canary-of-name")
        .header("X-OpenWebUI-User-Email", "canary@example.com")
        .header("X-OpenWebUI-User-Groups", "canary-of-groups")
}

#[test]
fn nothing_that_came_with_a_request_goes_on_by_itself() {
    let far = Far::start(respond);
    let everything =
        json!({"client_header_forwarding": {"enabled": true, "whitelist": ["X-Own*"]}});
    let bridge = TestBridge::builder(servers([
        ("echo", echo()),
        ("some", with(echo(), everything)),
        (
            "far",
            json!({"url": format!("{}/mcp", far.origin), "type": "streamable-http"}),
        ),
    ]))
    .var(vars::API_KEY, "sesame")
    .start();
    let client = with_credentials(bridge.chat("alice", "c1"));
    for server in ["echo", "some"] {
        for tool in ["env", "meta"] {
            let seen = client.call(server, tool, json!({})).ok().to_string();
            assert!(
                !seen.contains("canary") && !seen.contains("sesame"),
                "{tool}: {seen}"
            );
        }
        let mcp = Mcp::legacy(client.clone(), server, &json!({}));
        assert!(!mcp.text("env", json!({})).contains("canary"));
    }
    let far_tool = client.call("far", "echo", json!({"text": "x"}));
    assert_eq!(far_tool.status, 200, "{}", far_tool.text());
    let sent = far.all();
    assert!(sent.iter().any(|head| head.contains("tools/call")));
    for head in sent {
        for ours in ["canary", "sesame", "alice", "openwebui"] {
            assert!(!head.contains(ours), "{ours}: {head}");
        }
    }
    let log = bridge.finished_log();
    assert!(!log.contains("canary-of-authorization"));
}

#[test]
fn a_remote_server_is_told_of_its_user_what_its_config_asks_for() {
    let far = Far::start(respond);
    let headers = json!({"X-For": "{MCPO_USER_ID} {MCPO_USER_NAME}", "X-Fixed": "yes"});
    let bridge = TestBridge::start(servers([(
        "far",
        json!({"url": format!("{}/mcp", far.origin), "type": "streamable-http", "headers": headers}),
    )]));
    let name = "Änn%0D%0AX-Evil:%201";
    let client = bridge
        .chat("alice", "c1")
        .header("X-OpenWebUI-User-Name", name);
    client.call("far", "echo", json!({"text": "x"}));
    let seen = far.last("tools/call");
    assert_eq!(seen.header("x-for"), Some("alice %C3%84nnX-Evil: 1"));
    assert_eq!(
        (seen.header("x-fixed"), seen.header("x-evil")),
        (Some("yes"), None)
    );
}

#[test]
fn tokens_jobs_and_sessions_are_in_the_log_as_digests() {
    let bridge = TestBridge::builder(servers([("echo", echo())]))
        .var(vars::LOG_LEVEL, "DEBUG")
        .start();
    let chat = bridge.chat("alice", "the-chat-of-alice");
    let made = chat.call(
        "echo",
        "write_file",
        json!({"name": "a.txt", "content": "x"}),
    );
    let link = made.link("a.txt");
    assert_eq!(bridge.client().download(&link).status, 200);
    let link_token = link.split('/').rev().nth(1).expect("a token").to_owned();
    let mcp = Mcp::legacy(chat, "echo", &json!({}));
    mcp.text("echo", json!({"text": "x"}));
    let session = mcp.session.clone().expect("a session");
    let job = bridge.workspaces().pop().expect("a workspace");
    let job = job
        .file_name()
        .and_then(|name| name.to_str())
        .expect("an id")
        .to_owned();
    let log = bridge.finished_log();
    assert!(log.contains("\"download\""), "{log}");
    for hidden in [link_token, session, job, "the-chat-of-alice".to_owned()] {
        assert!(!log.contains(&hidden), "{hidden} is in the log");
    }
}
