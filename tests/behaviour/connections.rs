//! `mcpo-bridge openwebui`, as far as it works without Open WebUI; the tests with the real one are
//! in `tests/openwebui/test_connections.py`.

use crate::support::{TestBridge, echo, servers, vars, with};
use serde_json::{Value, json};

const GROUP: &str = "0b8f2f5e-6d3a-4f5b-9a3c-0a1b2c3d4e5f";

fn printed(bridge: &TestBridge, arguments: &[&str]) -> (Vec<Value>, String) {
    let output = bridge.command(&[&["openwebui", "connections"], arguments].concat());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    let all = serde_json::from_slice(&output.stdout).expect("JSON");
    (all, said)
}

#[test]
fn connections_hold_no_key_unless_it_is_asked_for_and_grants_of_allow() {
    let allow = json!({"allow": {"groups": [GROUP, "sales"]}});
    let users = json!({"allow": {"roles": ["user"]}});
    let bridge = TestBridge::builder(servers([
        ("echo", echo()),
        ("a team", with(echo(), allow)),
        ("users", with(echo(), users)),
        ("off", with(echo(), json!({"disabled": true}))),
    ]))
    .var(vars::API_KEY, "robot:steel,openwebui:front")
    .prepare();
    let here = "--url=http://bridge:1/x/";
    let (all, said) = printed(&bridge, &[here]);
    let text = json!(all).to_string();
    assert!(!text.contains("front") && !text.contains("steel"), "{text}");
    assert!(said.contains("sales") && !said.contains(GROUP), "{said}");
    let urls: Vec<_> = all
        .iter()
        .map(|one| one["url"].as_str().expect("a url"))
        .collect();
    let expected =
        ["echo", "a%20team", "users"].map(|name| format!("http://bridge:1/x/mcpo/{name}"));
    assert_eq!(urls, expected);
    let grants = |at: usize| &all[at]["config"]["access_grants"];
    assert_eq!(grants(0)[0]["principal_id"], "*");
    let group = json!([{"principal_type": "group", "principal_id": GROUP, "permission": "read"}]);
    assert_eq!(*grants(1), group);
    assert_eq!(grants(2)[0]["principal_id"], "*");
    let (all, _) = printed(&bridge, &[here, "--show-key", "--compact"]);
    assert_eq!(
        (&all[0]["auth_type"], &all[0]["key"]),
        (&json!("bearer"), &json!("front"))
    );
    let (all, _) = printed(
        &bridge,
        &[
            here,
            "--show-key",
            "--session",
            "--type=mcp",
            "--key-name=robot",
            "--grant=admins",
        ],
    );
    let one = &all[0];
    assert_eq!(one["path"], "openapi.json");
    assert_eq!(one["url"], "http://bridge:1/x/mcp/echo");
    assert_eq!(
        (&one["auth_type"], &one["key"]),
        (&json!("session"), &json!(""))
    );
    assert_eq!(one["headers"]["X-MCPO-Key"], "steel");
    assert_eq!(
        one["headers"]["X-OpenWebUI-User-Id"],
        Value::Null,
        "the token says it"
    );
    assert_eq!(one["config"]["access_grants"], json!([]));
}

#[test]
fn a_connection_with_the_users_token_reads_its_document_as_it_is_printed() {
    let team = with(echo(), json!({"allow": {"users": ["alice"]}}));
    let bridge = TestBridge::builder(servers([("echo", echo()), ("team", team)]))
        .var(vars::API_KEY, "robot:steel,openwebui:front")
        .var(vars::STRICT_AUTH, "true")
        .var(vars::TRUSTED_PROXIES, "none")
        .start();
    let (hidden, _) = printed(&bridge, &["--session"]);
    assert_eq!(hidden[0]["path"], "${MCPO_SPEC_PATH}");
    let (all, said) = printed(&bridge, &["--session", "--show-key"]);
    assert!(!said.contains("MCPO_TRUSTED_PROXIES"), "{said}");
    for connection in all {
        let text = |key: &str| connection[key].as_str().expect("a text").to_owned();
        let (_, front) = text("url").split_once("/mcpo/").map_or_else(
            || panic!("{connection}"),
            |(origin, server)| (origin.to_owned(), format!("/mcpo/{server}")),
        );
        let document = bridge
            .client()
            .get(&format!("{front}/{}", text("path")))
            .ok();
        assert!(document["paths"]["/counter"].is_object(), "{document}");
        assert_eq!(
            bridge.client().get(&format!("{front}/openapi.json")).status,
            401
        );
    }
}

#[test]
fn what_cannot_be_made_is_said() {
    let bridge = TestBridge::builder(servers([("echo", echo())])).prepare();
    for (arguments, words) in [
        (&["connections", "--url", "bridge:8080"][..], "--bridge-url"),
        (&["connections", "--key-name", "x"], "--key-name"),
        (&["sync", "--url", "http://127.0.0.1:1"], "--admin-key-file"),
        (&["sync", "--url", "ftp://x", "--admin-key", "k"], "--url"),
        (
            &[
                "sync",
                "--url",
                "http://x",
                "--admin-key-file",
                "/nowhere/key",
            ],
            "/nowhere/key",
        ),
    ] {
        let output = bridge.command(&[&["openwebui"], arguments].concat());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(words), "{words}: {said}");
    }
}
