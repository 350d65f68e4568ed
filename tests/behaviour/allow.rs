//! Access to servers: the same at every endpoint, and without a hint of hidden servers.

use crate::support::{
    ALL, Builder, Client, Mcp, Reply, TestBridge, echo, eventually, servers, vars, with,
};
use serde_json::{Value, json};

/// Two keys: Open WebUI's, whose requests name users, and a program's, whose requests do not.
const KEYS: &str = "openwebui:front,robot:steel";
const SECRET: &str = "a secret of at least thirty-two bytes";

fn builder(allow: &Value) -> Builder {
    let team = with(echo(), json!({ "allow": allow }));
    TestBridge::builder(servers([("open", echo()), ("team", team)]))
        .var(vars::API_KEY, KEYS)
        .var("MCPO_TRUSTED_PROXIES", "none")
}

fn sales() -> Value {
    json!({"users": ["ann-id", "Ben@Example.com"], "groups": ["sales", "表計"], "roles": ["admin"],
           "keys": ["robot"]})
}

/// A client that sends the headers of Open WebUI for this user.
fn user(bridge: &TestBridge, id: &str) -> Client {
    bridge.chat(id, "c1").bearer("front")
}

fn hello() -> String {
    let params = json!({"protocolVersion": "2025-11-25", "capabilities": {},
                        "clientInfo": {"name": "test", "version": "1"}});
    json!({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params}).to_string()
}

/// Requests of every kind for a server.
fn everything(client: &Client, server: &str) -> Vec<(String, Reply)> {
    let stream = client
        .clone()
        .header("Accept", "text/event-stream")
        .header("Mcp-Session-Id", "00000000-0000-4000-8000-000000000000");
    let endpoint = format!("/mcp/{server}");
    let modern = Mcp::modern(client.clone(), server, json!({}));
    let list = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}});
    let mut all = vec![
        ("initialize", client.post(&endpoint, hello())),
        ("list", client.post(&endpoint, list.to_string())),
        ("no message", client.post(&endpoint, "no JSON")),
        ("stream", stream.get(&endpoint)),
        ("end", stream.request("DELETE", &endpoint)),
        ("call", client.call(server, "echo", json!({"text": "x"}))),
        ("unknown tool", client.call(server, "none", json!({}))),
        (
            "bad body",
            client.post(&format!("/{server}/echo"), "no JSON"),
        ),
    ];
    for front in ["", "/mcpo"] {
        for leaf in ["openapi.json", "docs", "echo", "none"] {
            all.push((leaf, client.get(&format!("{front}/{server}/{leaf}"))));
        }
    }
    let path = format!("/mcpo/{server}/echo");
    all.push(("call below /mcpo", client.post(&path, r#"{"text": "x"}"#)));
    let file: (&str, Option<&str>, &[u8]) = ("text", Some("a.txt"), b"x");
    let named: (&str, Option<&str>, &[u8]) = ("server", None, server.as_bytes());
    all.push(("call with files", client.post_parts(&path, &[file])));
    let path = format!("/files?server={server}");
    all.push(("upload", client.post_parts(&path, &[file])));
    all.push((
        "upload in parts",
        client.post_parts("/files", &[named, file]),
    ));
    let (status, code) = modern.begin("echo", json!({"text": "x"})).refusal();
    assert_eq!((status, code), (404, -32600), "a modern call of {server}");
    let named = |(what, reply): (&str, Reply)| (format!("{what} of {server}"), reply);
    all.into_iter().map(named).collect()
}

/// The parts of an answer that could reveal whether a server exists.
fn shown(reply: &Reply, server: &str) -> (u16, String, Vec<String>) {
    let headers = reply.headers.iter();
    let told = headers.filter(|(name, _)| !["date", "x-request-id"].contains(&name.as_str()));
    let mut told: Vec<String> = told
        .map(|(name, value)| format!("{name}: {value:?}"))
        .collect();
    told.sort();
    (reply.status, reply.text().replace(server, "SERVER"), told)
}

#[test]
fn for_others_there_is_no_such_server_on_any_surface() {
    let bridge = builder(&sales()).start();
    let mut ann = Mcp::legacy(user(&bridge, "ann-id"), "team", &json!({}));
    assert_eq!(ann.text("echo", json!({"text": "hi"})), "hi");
    let strangers = [
        user(&bridge, "bob"),
        bridge.client().as_user("ann-id"),
        bridge.client(),
    ];
    for (who, other) in strangers.iter().enumerate() {
        // Without a key only requests for documents get as far as the server's name.
        for ((what, hidden), (_, none)) in everything_of(other, "team", who)
            .into_iter()
            .zip(everything_of(other, "none", who))
        {
            assert_eq!(
                shown(&hidden, "team"),
                shown(&none, "none"),
                "{who}: {what}"
            );
        }
        for path in ["/docs", "/openapi.json", "/health"] {
            let text = other.get(path).text();
            assert!(
                text.contains("open") && !text.contains("team"),
                "{path}: {text}"
            );
        }
        assert_eq!(other.get("/metrics").status, 401);
    }
    // Another user's session does not exist for bob, even with its id.
    let session = ann.session.take().expect("a session");
    let thief = user(&bridge, "bob").header("Mcp-Session-Id", &session);
    assert_eq!(thief.request("DELETE", "/mcp/team").status, 404);
    assert_eq!(bridge.children().len(), 2, "ann's, and its supervisor");
    // The operator can see the reason.
    bridge.wait_for_log("not_allowed");
}

fn everything_of(client: &Client, server: &str, who: usize) -> Vec<(String, Reply)> {
    if who == 0 {
        return everything(client, server);
    }
    let paths = ["openapi.json", "docs", "echo"].map(|leaf| format!("/mcpo/{server}/{leaf}"));
    paths.map(|path| (path.clone(), client.get(&path))).into()
}

#[test]
fn all_servers_at_once_are_those_that_are_there_for_the_caller() {
    let bridge = builder(&sales()).start();
    for (id, expected) in [("ann-id", true), ("bob", false)] {
        let client = user(&bridge, id);
        for mcp in [
            Mcp::legacy(client.clone(), ALL, &json!({})),
            Mcp::modern(client, ALL, json!({})),
        ] {
            let list = mcp.request("tools/list", json!({})).result().to_string();
            assert!(list.contains("open_echo"));
            assert_eq!(list.contains("team_echo"), expected, "{id}");
            if expected {
                assert_eq!(mcp.text("team_echo", json!({"text": "hi"})), "hi");
                continue;
            }
            let said = |tool: &str| {
                let answer = mcp.begin(tool, json!({"text": "x"})).last_line();
                answer.replace(tool, "TOOL")
            };
            assert_eq!(said("team_echo"), said("none_echo"));
            let read = |server: &str| {
                let uri = format!("mcpo:{server}/test://a");
                let answer = mcp.request("resources/read", json!({ "uri": uri }));
                answer.last_line().replace(server, "SERVER")
            };
            assert_eq!(read("team"), read("none"));
        }
    }
}

#[test]
fn each_list_admits_by_itself() {
    let bridge = builder(&sales()).start();
    let anybody = || user(&bridge, "x-id");
    let groups = |value: &str| anybody().header("X-OpenWebUI-User-Groups", value);
    for (client, status) in [
        (user(&bridge, "ann-id"), 200),
        (
            anybody().header("X-OpenWebUI-User-Email", "ben@example.COM"),
            200,
        ),
        (anybody().header("X-OpenWebUI-User-Role", "admin"), 200),
        (groups("marketing, sales"), 200),
        (groups("%E8%A1%A8%E8%A8%88"), 200),
        (groups(r#"["a,b", "sales"]"#), 200),
        (bridge.client().bearer("steel"), 200),
        (anybody(), 404),
        (groups(""), 404),
        (groups("presales,sales2,SALES"), 404),
        (groups(r#"["presales,sales"]"#), 404),
        (groups(r#"["sales""#), 400),
        (groups("sales").header("X-OpenWebUI-User-Groups", "x"), 400),
        (anybody().header("X-OpenWebUI-User-Role", "user"), 404),
        // A request for a user has the user's rights, and not the key's.
        (bridge.client().bearer("steel").as_user("x-id"), 404),
    ] {
        let reply = client.call("team", "echo", json!({"text": "hi"}));
        assert_eq!(reply.status, status, "{}", reply.text());
        assert_eq!(
            client.call("open", "echo", json!({"text": "hi"})).status,
            match status {
                400 => 400,
                _ => 200,
            }
        );
    }
}

#[test]
fn a_key_that_names_no_user_reads_what_there_is_and_calls_nothing() {
    let bridge = builder(&sales()).start();
    let openwebui = bridge.client().bearer("front");
    // Open WebUI registers a connection and fetches the document in each turn with such requests.
    for path in ["/team/openapi.json", "/mcpo/team/docs"] {
        assert_eq!(openwebui.get(path).status, 200, "{path}");
    }
    for path in ["/docs", "/openapi.json", "/health", "/metrics"] {
        assert!(openwebui.get(path).text().contains("team"), "{path}");
    }
    eventually("the child that was asked what it offers has ended", || {
        bridge.children().is_empty()
    });
    let legacy = Mcp::legacy(openwebui.clone(), "team", &json!({}));
    let modern = Mcp::modern(openwebui.clone(), "team", json!({}));
    for mcp in [&legacy, &modern] {
        let list = mcp.request("tools/list", json!({})).result();
        assert!(list.to_string().contains("echo"));
        assert_eq!(
            mcp.begin("echo", json!({"text": "x"})).refusal(),
            (403, -32600)
        );
    }
    let reply = openwebui.call("team", "echo", json!({"text": "x"}));
    assert_eq!(reply.status, 403);
    let told = reply.text();
    assert!(told.contains("ENABLE_FORWARD_USER_INFO_HEADERS") && told.contains("allow.keys"));
    assert!(bridge.children().is_empty(), "nothing was started for it");
}

#[test]
fn groups_are_believed_of_a_key_and_of_nobody_else() {
    let token = super::identity::token("x-id", SECRET, 60);
    let settings = |keys: &str| {
        let team = with(
            echo(),
            json!({"allow": {"groups": ["sales"], "keys": ["front"]}}),
        );
        TestBridge::builder(servers([("team", team)]))
            .var(vars::API_KEY, keys)
            .var(vars::JWT_SECRET, SECRET)
            .var("MCPO_TRUSTED_PROXIES", "none")
            .start()
    };
    let call = |bridge: &TestBridge, key: &str| {
        let mut client = bridge
            .client()
            .header("X-OpenWebUI-User-Jwt", &token)
            .header("X-OpenWebUI-User-Groups", "sales");
        if !key.is_empty() {
            client = client.bearer(key);
        }
        client.call("team", "echo", json!({"text": "x"})).status
    };
    let keyed = settings("front:k");
    assert_eq!((call(&keyed, "k"), call(&keyed, "")), (200, 401));
    // Plain headers are ignored if tokens are configured, and a key alone is no user.
    let plain = keyed.client().bearer("k").as_user("x-id");
    let plain = plain.header("X-OpenWebUI-User-Groups", "sales");
    assert_eq!(plain.call("team", "echo", json!({"text": "x"})).status, 200);
    let open = settings("");
    assert_eq!(call(&open, ""), 404);
}

#[test]
fn a_reload_counts_at_once_and_ends_the_streams_of_who_is_out() {
    let bridge = builder(&sales()).start();
    let ann = user(&bridge, "ann-id");
    assert_eq!(ann.call("team", "counter", json!({})).ok(), 1);
    let mcp = Mcp::legacy(ann.clone(), "team", &json!({}));
    let stream = mcp.listen();
    let team = |users: Value| with(echo(), json!({"allow": {"users": users}}));
    let write = |users: Value| {
        bridge.write_config(&servers([("open", echo()), ("team", team(users))]));
    };
    write(json!(["somebody"]));
    eventually("ann is out", || ann.get("/team/openapi.json").status == 404);
    stream.rest();
    write(json!(["ann-id"]));
    eventually("ann is in again", || {
        ann.get("/team/openapi.json").status == 200
    });
    let count = ann.call("team", "counter", json!({})).ok();
    assert_eq!(count, 2, "her process lived on");
}

#[test]
fn of_the_user_a_child_gets_what_its_config_asks_for() {
    let asking = with(
        echo(),
        json!({"env": {
            "WHO": "{MCPO_USER_ID}/{MCPO_USER_NAME}/{MCPO_USER_EMAIL}/{MCPO_USER_ROLE}/{MCPO_USER_GROUPS}",
        }}),
    );
    let stateless = with(asking.clone(), json!({"mode": "stateless"}));
    let bridge = TestBridge::start(servers([
        ("asking", asking),
        ("stateless", stateless),
        ("silent", echo()),
    ]));
    let client = |id: &str| {
        bridge
            .chat(id, "c1")
            .header("X-OpenWebUI-User-Name", "%C3%84nn%20{MCPO_JOB_ID}%0A")
            .header("X-OpenWebUI-User-Email", format!("{id}@example.com"))
            .header("X-OpenWebUI-User-Role", "user")
            .header("X-OpenWebUI-User-Groups", "sales,a b")
    };
    for server in ["asking", "stateless"] {
        for id in ["ann", "ben"] {
            let env = client(id).call(server, "env", json!({})).ok();
            let expected = format!("{id}/Änn {{MCPO_JOB_ID}}/{id}@example.com/user/sales,a b");
            assert_eq!(env["WHO"], expected, "{server}");
        }
        let nobody = bridge.client().call(server, "env", json!({})).ok();
        assert_eq!(nobody["WHO"], "////", "{server}");
    }
    let env = client("ann")
        .call("silent", "env", json!({}))
        .ok()
        .to_string();
    for own in ["ann", "Änn", "sales"] {
        assert!(!env.contains(own), "{own}: {env}");
    }
}

#[test]
fn a_file_that_would_mix_or_show_users_is_refused() {
    for (more, place, fix) in [
        (
            json!({"mode": "shared", "env": {"WHO": "{MCPO_USER_ID}"}}),
            "echo.env.WHO",
            "stateful",
        ),
        (
            json!({"args": ["--user={MCPO_USER_EMAIL}"]}),
            "echo.args[0]",
            "env",
        ),
        (json!({"allow": {}}), "echo.allow", "disabled"),
        (json!({"allow": {"users": [" "]}}), "echo.allow", "remove"),
        (
            json!({"allow": ["ann"]}),
            "echo.allow",
            "an object of lists",
        ),
        (
            json!({"allow": {"users": "ann"}}),
            "echo.allow.users",
            "an object of lists",
        ),
    ] {
        let bridge = TestBridge::builder(servers([("echo", with(echo(), more))])).prepare();
        let (_, said) = bridge.refuses_to_start();
        assert!(
            said.contains(place) && said.contains(fix),
            "{place}: {said}"
        );
    }
}
