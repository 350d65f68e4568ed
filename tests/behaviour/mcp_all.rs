//! The endpoint of all servers, `/mcp`, where it does more than the one of a single server.

use crate::support::{
    ALL, Client, MODERN, Mcp, Stream, TestBridge, accepted, bytes, echo, eventually, library, odd,
    rude, servers, with, with_envelope,
};
use serde_json::{Value, json};

fn legacy(client: Client) -> Mcp {
    Mcp::legacy(client, ALL, &json!({}))
}

fn modern(client: Client) -> Mcp {
    Mcp::modern(client, ALL, json!({}))
}

fn both(bridge: &TestBridge, chat: &str) -> [Mcp; 2] {
    Mcp::both(&bridge.chat("alice", chat), ALL)
}

/// One member of each item of a list.
fn listed(mcp: &Mcp, method: &str, key: &str, member: &str) -> Vec<String> {
    let list = mcp.request(method, json!({})).result()[key].take();
    let items = list.as_array().expect("a list");
    let text = |item: &Value| item[member].as_str().expect("a text").to_owned();
    items.iter().map(text).collect()
}

fn tools(mcp: &Mcp) -> Vec<String> {
    listed(mcp, "tools/list", "tools", "name")
}

fn few(names: &Value) -> Value {
    with(echo(), json!({"enabled_tools": names}))
}

// Lists and their visibility.

#[test]
fn the_tools_of_all_servers_are_listed_in_the_configs_order_and_called() {
    let bridge = TestBridge::start(servers([
        ("zoo", few(&json!(["echo", "add"]))),
        (
            "ant",
            with(
                echo(),
                json!({"disabled_tools": ["die"], "enabled_tools": ["echo", "die"]}),
            ),
        ),
    ]));
    for mcp in both(&bridge, "c1") {
        assert_eq!(tools(&mcp), ["zoo_echo", "zoo_add", "ant_echo"]);
        assert_eq!(mcp.text("zoo_add", json!({"a": 1, "b": 2})), "3");
        assert_eq!(mcp.text("ant_echo", json!({"text": "hi"})), "hi");
        for hidden in [
            "zoo_counter",
            "ant_die",
            "ant_add",
            "echo",
            "none_echo",
            "zoo_",
        ] {
            assert_eq!(
                mcp.begin(hidden, json!({})).refusal(),
                (200, -32602),
                "{hidden}"
            );
        }
    }
}

#[test]
fn names_that_interfaces_refuse_are_changed_and_lead_back() {
    let bridge = TestBridge::start(servers([
        ("a", library("one", &[])),
        ("a_b", library("two", &[])),
        ("図書館", library("three", &[])),
    ]));
    for mcp in both(&bridge, "c1") {
        let names = tools(&mcp);
        let usual = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        assert!(
            names
                .iter()
                .all(|name| name.len() <= 64 && name.chars().all(usual)),
            "{names:?}"
        );
        let odd: Vec<_> = names.iter().filter(|name| name.contains("a_b_c")).collect();
        let said: Vec<_> = odd.iter().map(|name| mcp.text(name, json!({}))).collect();
        assert_eq!(said, ["one a.b/c", "two a.b/c", "three a.b/c"], "{odd:?}");
        let prompts = listed(&mcp, "prompts/list", "prompts", "name");
        assert_eq!(prompts[..2], ["a_greet", "a_b_greet"]);
        for (prompt, name) in prompts.iter().zip(["one", "two", "three"]) {
            let got = mcp.request("prompts/get", json!({"name": prompt})).result();
            let text = &got["messages"][0]["content"]["text"];
            assert_eq!(*text, format!("{name} greet"));
        }
    }
}

#[test]
fn greetings_speak_for_all_servers() {
    let bridge = TestBridge::start(servers([
        ("one", library("one", &["instructions"])),
        ("two", library("two", &["instructions", "quiet"])),
        ("three", library("three", &[])),
    ]));
    let params = json!({"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}});
    let hello = json!({"jsonrpc": "2.0", "id": 9, "method": "initialize", "params": params});
    let reply = bridge.client().post("/mcp", hello.to_string());
    assert!(!reply.header("Mcp-Session-Id").is_empty());
    let legacy = reply.ok()["result"].take();
    assert_eq!(legacy["protocolVersion"], "2025-06-18");
    assert_eq!(legacy["serverInfo"]["name"], "mcpo-bridge");
    let modern = modern(bridge.client())
        .request("server/discover", json!({}))
        .result();
    assert_eq!(modern["supportedVersions"], json!([MODERN]));
    for hello in [&legacy, &modern] {
        let capabilities = json!({
            "tools": {"listChanged": true},
            "prompts": {"listChanged": true},
            "resources": {"listChanged": true, "subscribe": true},
            "completions": {},
            "logging": {},
        });
        assert_eq!(hello["capabilities"], capabilities);
        let text = hello["instructions"].as_str().expect("a text");
        let expected = "# one (tool names start with one_)\n\nAsk one.\n\n\
                        # two (tool names start with two_)\n\nAsk two.";
        assert_eq!(text, expected);
    }
}

#[test]
fn levels_and_subscriptions_to_lists_start_no_process() {
    let bridge = TestBridge::start(servers([("one", library("one", &[])), ("echo", echo())]));
    let mcp = legacy(bridge.client());
    eventually("the learners are gone", || bridge.children().is_empty());
    mcp.request("logging/setLevel", json!({"level": "error"}))
        .result();
    let filter = json!({"notifications": {"toolsListChanged": true}});
    let mut listening = modern(bridge.client()).request("subscriptions/listen", filter);
    listening.message();
    assert!(bridge.children().is_empty() && bridge.workspaces().is_empty());
}

#[test]
fn a_broken_and_a_slow_server_hurt_nobody_and_the_slow_ones_tools_come_later() {
    let folder = tempfile::tempdir().expect("a folder");
    let wait = folder.path().join("wait");
    std::fs::write(&wait, "").expect("the file");
    let slow = json!({"env": {"WAIT_FILE": wait}, "enabled_tools": ["log_line"]});
    let bridge = TestBridge::start(servers([
        ("broken", rude("exits_at_start")),
        ("slow", with(odd("waits"), slow)),
        ("echo", few(&json!(["echo"]))),
    ]));
    let mcp = legacy(bridge.chat("alice", "c1"));
    assert_eq!(tools(&mcp), ["echo_echo"]);
    assert_eq!(mcp.text("echo_echo", json!({"text": "hi"})), "hi");
    let broken = mcp.begin("broken_poke", json!({}));
    let status = broken.status;
    let said = broken.answer();
    assert_eq!(status, 502, "{said}");
    assert!(
        said["error"]["message"]
            .as_str()
            .is_some_and(|text| text.contains("'broken'"))
    );
    let mut news = mcp.listen();
    let filter = json!({"notifications": {"toolsListChanged": true}});
    let mut listening = modern(bridge.client()).request("subscriptions/listen", filter.clone());
    assert_eq!(
        listening.message()["params"]["notifications"],
        filter["notifications"]
    );
    std::fs::remove_file(&wait).expect("the file goes");
    assert_eq!(news.message()["method"], "notifications/tools/list_changed");
    let told = listening.message();
    assert_eq!(told["method"], "notifications/tools/list_changed");
    assert_eq!(
        told["params"]["_meta"]["io.modelcontextprotocol/subscriptionId"],
        1
    );
    assert_eq!(tools(&mcp), ["slow_log_line", "echo_echo"]);
}

#[test]
fn a_server_that_is_still_learnt_is_waited_for_when_it_is_called() {
    let slow = with(rude("slow_start"), json!({"env": {"START_SECONDS": "7"}}));
    let bridge = TestBridge::start(servers([("slow", slow), ("echo", echo())]));
    let mcp = legacy(bridge.chat("alice", "c1"));
    let called = mcp.request("tools/call", json!({"name": "slow_poke", "arguments": {}}));
    assert_eq!(called.status, 200);
    called.result();
}

#[test]
fn servers_come_and_go_with_the_config() {
    let bridge = TestBridge::start(servers([("one", library("one", &[]))]));
    let mcp = legacy(bridge.chat("alice", "c1"));
    let one = tools(&mcp);
    let mut news = mcp.listen();
    let expect = |news: &mut Stream, wanted: &[&str]| {
        for list in wanted {
            let method = format!("notifications/{list}/list_changed");
            assert_eq!(news.message()["method"], method);
        }
    };
    bridge.write_config(&servers([
        ("one", library("one", &[])),
        ("two", library("two", &["own"])),
    ]));
    expect(&mut news, &["tools", "prompts", "resources"]);
    let two = tools(&mcp);
    assert_eq!(two[..one.len()], one);
    assert_eq!(two.len(), 2 * one.len());
    bridge.write_config(&servers([("two", library("two", &["own"]))]));
    expect(&mut news, &["tools", "prompts", "resources"]);
    assert_eq!(tools(&mcp), two[one.len()..], "names stay");
    assert_eq!(mcp.begin("one_view", json!({})).refusal().1, -32602);
}

// The same children and folders as at other endpoints.

#[test]
fn a_chat_has_one_child_of_each_server_through_every_door() {
    let bridge = TestBridge::start(servers([("echo", echo()), ("other", echo())]));
    let chat = bridge.chat("alice", "c1");
    assert_eq!(chat.echo("counter", json!({})), 1);
    let all = legacy(chat.clone());
    assert_eq!(all.text("echo_counter", json!({})), "2");
    assert_eq!(all.text("other_counter", json!({})), "1");
    let one = Mcp::legacy(chat.clone(), "echo", &json!({}));
    assert_eq!(one.text("counter", json!({})), "3");
    assert_eq!(all.end(), 200);
    assert_eq!(modern(chat.clone()).text("echo_counter", json!({})), "4");
    assert_eq!(bridge.workspaces().len(), 1);
}

#[test]
fn files_of_one_server_are_the_others() {
    let bridge = TestBridge::start(servers([("echo", echo()), ("other", echo())]));
    let second = legacy(bridge.client());
    // In a chat, and in a separate protocol session.
    for mcp in both(&bridge, "c1")
        .into_iter()
        .chain([legacy(bridge.client())])
    {
        mcp.call(
            "echo_write_file",
            json!({"name": "a.txt", "content": "mine"}),
        );
        assert_eq!(
            mcp.text("other_read_file", json!({"name": "a.txt"})),
            "mine"
        );
    }
    assert_eq!(second.text("other_list_files", json!({})), "[]");
}

#[test]
fn a_call_keeps_every_byte_but_those_of_its_name() {
    let bridge = TestBridge::start(servers([("bytes", bytes()), ("echo", echo())]));
    let strange = r#""one":1.0,"huge":1e400,"lone":"\ud800","twice":1,"twice":2, "spaced" : [ ]"#;
    let params = |name: &str| {
        format!(r#"{{ "x":{{{strange}}},"name" : {name},"arguments":{{{strange}}},"last":-0.0}}"#)
    };
    let call = |name: &str| {
        let params = params(name);
        format!(
            r#"{{ "jsonrpc":"2.0","id":"\u0041","x":1E+2,"method":"tools/call","params":{params}}}"#
        )
    };
    let through = |mcp: &Mcp, name: &str| mcp.send(&call(name)).last_line();
    let chat = bridge.chat("alice", "c1");
    let one = Mcp::legacy(chat.clone(), "bytes", &json!({}));
    let expected = through(&one, r#""raw""#);
    assert!(expected.contains(&params(r#""raw""#)), "{expected}");
    assert_eq!(through(&legacy(chat), r#""b\u0079tes_raw""#), expected);
}

#[test]
fn a_tool_that_only_the_chats_process_has_can_be_called_where_lists_depend_on_it() {
    let own = with(echo(), json!({"session_lists": true}));
    let bridge = TestBridge::start(servers([("own", own), ("echo", echo())]));
    for mcp in both(&bridge, "c1") {
        mcp.call("own_change_tools", json!({}));
        assert_eq!(mcp.text("own_extra", json!({})), "extra");
        mcp.call("echo_change_tools", json!({}));
        assert_eq!(mcp.begin("echo_extra", json!({})).refusal().1, -32602);
    }
}

// Resources.

#[test]
fn resources_go_to_who_has_them_and_shared_uris_name_their_server() {
    let bridge = TestBridge::start(servers([
        ("one", library("one", &["own", "template"])),
        ("two", library("two", &["own"])),
        ("echo", echo()),
    ]));
    for mcp in both(&bridge, "c1") {
        let uris = listed(&mcp, "resources/list", "resources", "uri");
        let all = [
            "mcpo:one/test://shared",
            "test://one/own",
            "mcpo:two/test://shared",
            "test://two/own",
        ];
        assert_eq!(uris, all);
        let templates = listed(
            &mcp,
            "resources/templates/list",
            "resourceTemplates",
            "uriTemplate",
        );
        let all = [
            "mcpo:one/test://pages/{page}",
            "test://one/{id}",
            "mcpo:two/test://pages/{page}",
        ];
        assert_eq!(templates, all);
        for (uri, own, server) in [
            ("mcpo:one/test://shared", "test://shared", "one"),
            ("mcpo:two/test://shared", "test://shared", "two"),
            ("test://two/own", "test://two/own", "two"),
            ("mcpo:two/test://two/own", "test://two/own", "two"),
            ("test://one/7", "test://one/7", "one"),
            ("mcpo:one/test://pages/3", "test://pages/3", "one"),
            ("mcpo:two/never://listed", "never://listed", "two"),
        ] {
            let read = mcp.request("resources/read", json!({"uri": uri})).result();
            let content = &read["contents"][0];
            assert_eq!(content["text"], format!("{server} {own}"), "{uri}");
            // The content has the URI with which it can be read again.
            let again = content["uri"].as_str().expect("a uri");
            let again = mcp
                .request("resources/read", json!({"uri": again}))
                .result();
            assert_eq!(
                again["contents"][0]["text"],
                format!("{server} {own}"),
                "{uri}"
            );
        }
        for unclear in ["test://shared", "test://pages/3", "never://listed"] {
            let said = mcp
                .request("resources/read", json!({"uri": unclear}))
                .answer();
            assert_eq!(said["error"]["code"], -32602, "{said}");
            let named = [format!("mcpo:one/{unclear}"), format!("mcpo:two/{unclear}")];
            assert_eq!(said["error"]["data"]["uris"], json!(named), "{said}");
        }
        for unknown in ["mcpo:none/test://shared", "mcpo:echo", "mcpo:"] {
            let refusal = mcp
                .request("resources/read", json!({"uri": unknown}))
                .refusal();
            assert_eq!(refusal.1, -32602, "{unknown}");
        }
    }
}

#[test]
fn one_servers_resources_keep_their_uris_beside_servers_without_any() {
    let bridge = TestBridge::start(servers([
        ("one", library("one", &["own"])),
        ("two", library("two", &["quiet"])),
    ]));
    for mcp in both(&bridge, "c1") {
        let uris = listed(&mcp, "resources/list", "resources", "uri");
        assert_eq!(uris, ["test://shared", "test://one/own"]);
        let read = mcp
            .request("resources/read", json!({"uri": "never://listed"}))
            .result();
        assert_eq!(read["contents"][0]["text"], "one never://listed");
    }
}

#[test]
fn links_in_results_lead_back_to_their_server() {
    let bridge = TestBridge::start(servers([
        ("one", library("one", &["own"])),
        ("two", library("two", &[])),
    ]));
    for mcp in both(&bridge, "c1") {
        for (uri, expected) in [
            ("test://one/own", "test://one/own"),
            ("never://listed", "mcpo:one/never://listed"),
            ("test://shared", "mcpo:one/test://shared"),
            ("https://example.org/a", "https://example.org/a"),
        ] {
            let result = mcp.call("one_link", json!({"uri": uri}));
            assert_eq!(result["content"][0]["uri"], expected);
        }
        let list = mcp.request("tools/list", json!({})).result();
        let shows = list["tools"].as_array().expect("tools").iter();
        let shows = shows.filter(|tool| tool["_meta"]["odd"] == json!(1.0));
        let shows: Vec<_> = shows
            .map(|tool| &tool["_meta"]["ui"]["resourceUri"])
            .collect();
        assert_eq!(shows, ["mcpo:one/test://shared", "mcpo:two/test://shared"]);
    }
}

#[test]
fn completion_asks_the_server_of_the_prompt_or_template() {
    let bridge = TestBridge::start(servers([
        ("one", library("one", &[])),
        ("two", library("two", &["template"])),
    ]));
    for mcp in both(&bridge, "c1") {
        for (reference, expected) in [
            (
                json!({"type": "ref/prompt", "name": "two_greet"}),
                "two greet",
            ),
            (
                json!({"type": "ref/resource", "uri": "test://two/{id}"}),
                "two test://two/{id}",
            ),
            (
                json!({"type": "ref/resource", "uri": "mcpo:one/test://pages/{page}"}),
                "one test://pages/{page}",
            ),
        ] {
            let argument = json!({"name": "page", "value": "1"});
            let params = json!({"ref": reference, "argument": argument});
            let result = mcp.request("completion/complete", params).result();
            assert_eq!(result["completion"]["values"], json!([expected]));
        }
        let nobody = json!({"ref": {"type": "ref/prompt"}, "argument": {"name": "a", "value": ""}});
        assert_eq!(
            mcp.request("completion/complete", nobody).refusal(),
            (200, -32602)
        );
    }
}

#[test]
fn updates_of_subscribed_resources_come_with_the_uri_that_was_subscribed_to() {
    let bridge = TestBridge::start(servers([
        ("one", library("one", &["own"])),
        ("two", library("two", &[])),
    ]));
    let mcp = legacy(bridge.chat("alice", "c1"));
    let mut news = mcp.listen();
    for uri in ["mcpo:two/test://shared", "test://one/own"] {
        mcp.request("resources/subscribe", json!({"uri": uri}))
            .result();
    }
    assert_eq!(
        mcp.text("two_touch", json!({"uri": "test://shared"})),
        "test://shared"
    );
    let told = news.message();
    assert_eq!(told["method"], "notifications/resources/updated");
    assert_eq!(
        told["params"],
        json!({"uri": "mcpo:two/test://shared", "by": "two"})
    );
    mcp.request(
        "resources/unsubscribe",
        json!({"uri": "mcpo:two/test://shared"}),
    )
    .result();
    assert_eq!(
        mcp.text("one_touch", json!({"uri": "test://one/own"})),
        "test://one/own"
    );
    assert_eq!(news.message()["params"]["uri"], "test://one/own");
    assert_eq!(mcp.text("two_touch", json!({"uri": "other"})), "");
}

#[test]
fn one_subscription_listens_to_resources_of_several_servers() {
    let bridge = TestBridge::start(servers([
        ("one", library("one", &["own"])),
        ("two", library("two", &["own"])),
    ]));
    let mcp = modern(bridge.chat("alice", "c1"));
    let uris = [
        "mcpo:two/test://shared",
        "mcpo:one/test://one/own",
        "test://two/own",
    ];
    let filter = json!({"resourceSubscriptions": uris});
    let params = json!({"notifications": filter});
    let mut listening = mcp.request("subscriptions/listen", params);
    let acknowledged = listening.message();
    assert_eq!(
        acknowledged["method"],
        "notifications/subscriptions/acknowledged"
    );
    assert_eq!(acknowledged["params"]["notifications"], filter);
    for (tool, own, uri) in [
        ("two_touch", "test://shared", uris[0]),
        ("one_touch", "test://one/own", uris[1]),
        ("two_touch", "test://two/own", uris[2]),
    ] {
        mcp.call("one_touch", json!({"uri": "test://shared"}));
        mcp.call(tool, json!({"uri": own}));
        let told = listening.message();
        assert_eq!(told["params"]["uri"], uri);
        let id = &told["params"]["_meta"]["io.modelcontextprotocol/subscriptionId"];
        assert_eq!(*id, json!(1));
    }
    let unclear = json!({"notifications": {"resourceSubscriptions": ["test://shared"]}});
    assert_eq!(
        mcp.request("subscriptions/listen", unclear).refusal().1,
        -32602
    );
}

// Events during a request.

#[test]
fn changed_lists_of_any_child_are_told() {
    let bridge = TestBridge::start(servers([("one", library("one", &[])), ("echo", echo())]));
    let mcp = legacy(bridge.chat("alice", "c1"));
    let mut news = mcp.listen();
    mcp.call("echo_change_tools", json!({}));
    assert_eq!(news.message()["method"], "notifications/tools/list_changed");
    mcp.call("one_add_prompt", json!({}));
    assert_eq!(
        news.message()["method"],
        "notifications/prompts/list_changed"
    );
}

fn askers() -> TestBridge {
    TestBridge::start(servers([
        ("one", library("one", &[])),
        ("two", library("two", &[])),
    ]))
}

#[test]
fn questions_of_several_children_at_once_get_their_own_answers() {
    let bridge = askers();
    let mcp = Mcp::legacy(bridge.chat("alice", "c1"), ALL, &json!({"elicitation": {}}));
    // The chat's calls run one after the other; all its servers use id 1 for their question.
    let mut seen = Vec::new();
    for name in ["one", "two"] {
        let mut stream = mcp.begin(&format!("{name}_ask"), json!({}));
        let asked = stream.message();
        assert_eq!(asked["params"]["message"], format!("{name} asks"));
        assert!(!seen.contains(&asked["id"]), "{seen:?} {asked}");
        seen.push(asked["id"].clone());
        mcp.answer(&asked, accepted(json!({"to": name})));
        let said = stream.result()["content"][0]["text"].clone();
        assert_eq!(said, format!("{name} accept {{'to': '{name}'}}"));
    }
}

#[test]
fn questions_that_wait_side_by_side_are_told_apart() {
    let shared = |name: &str| with(library(name, &[]), json!({"mode": "shared"}));
    let bridge = TestBridge::start(servers([("one", shared("one")), ("two", shared("two"))]));
    let mcp = Mcp::legacy(bridge.client(), ALL, &json!({"elicitation": {}}));
    let call = |id: u32, name: &str| {
        let params = json!({"name": format!("{name}_ask"), "arguments": {}});
        let call = json!({"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": params});
        mcp.send(&call.to_string())
    };
    let (mut one, mut two) = (call(1, "one"), call(2, "two"));
    let asked = [one.message(), two.message()];
    assert_ne!(asked[0]["id"], asked[1]["id"]);
    for (stream, asked, name) in [(two, &asked[1], "two"), (one, &asked[0], "one")] {
        mcp.answer(asked, accepted(json!({"to": name})));
        let said = stream.result()["content"][0]["text"].clone();
        assert_eq!(said, format!("{name} accept {{'to': '{name}'}}"));
    }
}

#[test]
fn progress_with_an_answer_and_questions_taken_back_are_of_the_right_child() {
    let own = |name: &str| with(library(name, &[]), json!({"workspace": "own"}));
    let bridge = TestBridge::start(servers([("one", own("one")), ("two", own("two"))]));
    let able = json!({"elicitation": {}});
    let mcp = Mcp::legacy(bridge.chat("alice", "c1"), ALL, &able);
    let mut news = mcp.listen();
    // Both children use the id `q` for their question and `t` for its progress.
    let (mut one, mut two) = (
        mcp.begin("one_withdraw", json!({})),
        mcp.begin("two_withdraw", json!({})),
    );
    let asked = [one.message(), two.message()];
    let number = |asked: &Value| asked["id"].clone();
    assert_ne!(number(&asked[0]), number(&asked[1]));
    for (stream, asked, name) in [(two, &asked[1], "two"), (one, &asked[0], "one")] {
        assert_eq!(asked["params"]["_meta"]["progressToken"], number(asked));
        let params = json!({"progressToken": number(asked), "progress": 0.5});
        mcp.notify("notifications/progress", params);
        let lines = stream.rest();
        let mut messages: Vec<Value> = lines
            .iter()
            .map(|line| serde_json::from_str(line).expect("json"))
            .collect();
        let said = messages.pop().expect("an answer")["result"]["content"][0]["text"].take();
        assert_eq!(said, format!("{name} heard 0.5"));
        // Directly after the question it is sent in the call's stream; later it belongs to no
        // request.
        let withdrawn = messages.pop().unwrap_or_else(|| news.message());
        assert_eq!(withdrawn["method"], "notifications/cancelled");
        assert_eq!(withdrawn["params"]["requestId"], number(asked));
    }
}

#[test]
fn a_modern_clients_retry_resumes_the_call_of_its_server() {
    let bridge = askers();
    let mcp = Mcp::modern(bridge.chat("alice", "c1"), ALL, json!({"elicitation": {}}));
    let pending = mcp.begin("two_ask", json!({})).result();
    let mut asked = pending["inputRequests"]
        .as_object()
        .expect("a question")
        .values();
    let asked = asked.next().expect("a question");
    assert_eq!(asked["params"]["message"], "two asks");
    let retry = |tool: &str| mcp.retry(tool, &json!({}), &pending, &accepted(json!({})));
    assert_eq!(retry("one_ask").refusal(), (400, -32602));
    let result = retry("two_ask").result();
    assert_eq!(result["content"][0]["text"], "two accept {}");
}

#[test]
fn the_level_of_logs_reaches_each_child_when_it_first_serves_the_session() {
    let bridge = askers();
    let mcp = legacy(bridge.chat("alice", "c1"));
    assert_eq!(mcp.text("one_level", json!({})), "None");
    for level in ["warning", "error"] {
        mcp.request("logging/setLevel", json!({"level": level}))
            .result();
        assert_eq!(mcp.text("one_level", json!({})), level);
    }
    assert_eq!(mcp.text("two_level", json!({})), "error");
    let bad = mcp.request("logging/setLevel", json!({"level": "loud"}));
    assert_eq!(bad.refusal(), (200, -32602));
}

// Rejections.

#[test]
fn a_remote_server_is_sent_the_name_that_it_knows() {
    let far = TestBridge::start(servers([("echo", echo())]));
    let url = format!("http://{}/mcp/echo", far.address());
    let remote = |mode: &str| json!({"url": url, "type": "streamable-http", "mode": mode});
    let near = TestBridge::start(servers([
        ("lasting", remote("stateful")),
        ("all", remote("shared")),
    ]));
    for mcp in both(&near, "c1") {
        for server in ["lasting", "all"] {
            let tool = format!("{server}_echo");
            assert_eq!(mcp.text(&tool, json!({"text": server})), server);
        }
    }
}

#[test]
fn methods_that_name_no_server_are_not_found() {
    // This server answers every method, but gets none of these requests.
    let bridge = TestBridge::start(servers([("bytes", bytes())]));
    let (old, new) = (legacy(bridge.client()), modern(bridge.client()));
    for method in ["tasks/get", "never/heard/of"] {
        for (mcp, status) in [(&old, 200), (&new, 404)] {
            let refusal = mcp.request(method, json!({})).refusal();
            assert_eq!(refusal, (status, -32601), "{method}");
        }
    }
}

#[test]
fn the_endpoint_may_have_a_slash_behind_it_and_answers_without_any_server() {
    let bridge = TestBridge::start(servers([]));
    let list = with_envelope(json!({}), &json!({}));
    let list = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": list});
    let client = bridge
        .client()
        .header("MCP-Protocol-Version", MODERN)
        .header("Mcp-Method", "tools/list");
    for path in ["/mcp", "/mcp/"] {
        let listed = client.post(path, list.to_string()).ok();
        assert_eq!(listed["result"]["tools"], json!([]), "{path}");
    }
}
