//! Both MCP endpoints: sessions, chats, rejections and requests for input.

use std::{fmt::Write as _, thread};

use crate::support::{
    ALL, Client, LEGACY, MODERN, Mcp, PendingCall, Scope, Stream, TestBridge, accepted, bytes,
    echo, eventually, library, scenarios, servers, vars, with, with_envelope,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

scenarios! {
    a_chat_goes_on_through_the_other_door_whatever_becomes_of_the_protocols_session,
    a_chat_begun_through_mcp_is_finished_through_openapi,
    files_are_linked_as_text_and_as_resource_links,
    a_client_without_a_chat_has_the_protocols_session_for_its_own,
    hosts_origins_and_forms_that_are_not_ours_are_refused,
    what_is_no_message_is_refused_with_the_code_of_the_specification,
    a_body_above_the_limit_is_refused,
    an_unknown_session_is_not_found_also_where_a_chat_is_named,
    someone_elses_session_is_not_found,
    an_unknown_version_is_refused_and_the_known_ones_are_named,
    modern_headers_that_are_missing_or_say_something_else_are_refused,
    a_modern_request_without_its_envelope_is_refused,
    methods_that_are_unknown_or_were_removed_are_not_found_by_modern_clients,
    an_unknown_method_is_an_answer_to_legacy_clients,
    only_offered_tools_are_listed_and_called,
    lists_and_greetings_start_no_process,
    with_a_key_every_method_asks_for_it,
    what_a_shared_server_logs_for_one_client_is_not_told_to_another,
    a_legacy_client_answers_what_the_child_asks_on_the_calls_stream,
    a_child_that_asks_a_client_who_cannot_answer_is_declined,
    a_child_that_asks_a_modern_client_who_cannot_answer_is_declined_and_its_call_goes_on,
    a_modern_clients_retry_resumes_the_pending_call,
    a_pending_call_belongs_to_one_user_and_one_request,
    pending_calls_are_told_apart_by_arguments_that_no_number_type_holds,
    a_cancelled_request_is_cancelled_in_the_child,
    hanging_up_cancels_the_request,
    hanging_up_a_stream_cancels_the_question,
    the_end_of_a_session_ends_its_stream,
    changed_lists_are_told_on_the_stream_and_listed_from_then_on,
    each_message_is_on_the_newest_of_a_sessions_streams_only,
    open_streams_and_pending_calls_hold_up_no_shutdown,
}

fn start() -> TestBridge {
    TestBridge::start(servers([("echo", echo())]))
}

fn shared(server: Value) -> Value {
    with(server, json!({"mode": "shared"}))
}

fn legacy(at: Scope, client: Client) -> Mcp {
    at.legacy(client, "echo", &json!({}))
}

fn modern(at: Scope, client: Client) -> Mcp {
    at.modern(client, "echo", json!({}))
}

// One chat through both endpoints.

fn a_chat_goes_on_through_the_other_door_whatever_becomes_of_the_protocols_session(at: Scope) {
    let bridge = start();
    let chat = bridge.chat("alice", "c1");
    assert_eq!(chat.echo("counter", json!({})), 1);
    let first = legacy(at, chat.clone());
    assert_eq!(first.text("counter", json!({})), "2");
    assert_eq!(first.end(), 200);
    assert_eq!(chat.echo("counter", json!({})), 3);
    assert_eq!(legacy(at, chat.clone()).text("counter", json!({})), "4");
    // A modern client requests other capabilities from a child that already runs.
    assert_eq!(modern(at, chat.clone()).text("counter", json!({})), "5");
    assert_eq!(chat.echo("counter", json!({})), 6);
}

fn a_chat_begun_through_mcp_is_finished_through_openapi(at: Scope) {
    let bridge = start();
    let chat = bridge.chat("alice", "c1");
    let mcp = legacy(at, chat.clone());
    let file = json!({"name": "deck.txt", "content": "half"});
    mcp.call("write_file", file);
    mcp.text("counter", json!({}));
    assert_eq!(mcp.end(), 200);
    assert_eq!(chat.echo("read_file", json!({"name": "deck.txt"})), "half");
    assert_eq!(chat.echo("counter", json!({})), 2);
    assert_eq!(bridge.workspaces().len(), 1);
}

fn files_are_linked_as_text_and_as_resource_links(at: Scope) {
    let bridge = start();
    let chat = bridge.chat("alice", "c1");
    for mcp in [legacy(at, chat.clone()), modern(at, chat.clone())] {
        let name = mcp.session.as_ref().map_or("m.txt", |_| "l.txt");
        let result = mcp.call("write_file", json!({"name": name, "content": "a deck"}));
        let content = result["content"].as_array().expect("blocks");
        assert_eq!(content[0]["text"], format!("Saved to {name}"));
        let [.., text, link] = &content[..] else {
            panic!("{result}")
        };
        assert_eq!(
            (&text["type"], &link["type"]),
            (&json!("text"), &json!("resource_link"))
        );
        assert_eq!((&link["name"], &link["size"]), (&json!(name), &json!(6)));
        let url = link["uri"].as_str().expect("a link");
        assert!(
            text["text"].as_str().is_some_and(|text| text.contains(url)),
            "{result}"
        );
        assert_eq!(chat.download(url).text(), "a deck");
    }
}

fn a_client_without_a_chat_has_the_protocols_session_for_its_own(at: Scope) {
    let bridge = start();
    let (first, second) = (legacy(at, bridge.client()), legacy(at, bridge.client()));
    assert_eq!(first.text("counter", json!({})), "1");
    assert_eq!(first.text("counter", json!({})), "2");
    assert_eq!(second.text("counter", json!({})), "1");
}

// Rejections.

const PING: &str = r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#;

/// Posts `PING` with these header lines and returns the status.
fn raw_status(bridge: &TestBridge, path: &str, lines: &[&str], body: &str) -> String {
    let mut head = format!("POST {path} HTTP/1.1\r\nConnection: close\r\n");
    for line in lines {
        let _ = write!(head, "{line}\r\n");
    }
    let _ = write!(head, "Content-Length: {}\r\n\r\n{body}", body.len());
    let answer = bridge.client().raw(head.as_bytes());
    answer.split(' ').nth(1).unwrap_or_default().to_owned()
}

fn hosts_origins_and_forms_that_are_not_ours_are_refused(at: Scope) {
    let bridge = start();
    let mcp = legacy(at, bridge.client());
    let host = format!("Host: {}", bridge.address());
    let session = format!(
        "Mcp-Session-Id: {}",
        mcp.session.as_deref().expect("a session")
    );
    let own_origin = format!("Origin: http://localhost:{}", bridge.address().port());
    let accept = "Accept: application/json, text/event-stream";
    let kind = "Content-Type: application/json";
    for (lines, status) in [
        (vec![&*host, accept, kind], "200"),
        (vec!["Host: evil.example", accept, kind], "403"),
        (
            vec![&host, "Origin: http://evil.example", accept, kind],
            "403",
        ),
        (
            vec![&host, "Origin: http://localhost:3000", accept, kind],
            "403",
        ),
        (vec![&host, "Origin: foo://localhost", accept, kind], "403"),
        (vec![&host, &own_origin, accept, kind], "200"),
        // Without the header any media type is accepted, as in HTTP.
        (vec![&host, kind], "200"),
        (vec![&host, "Accept: application/json", kind], "406"),
        (vec![&host, "Accept: text/event-stream", kind], "406"),
        (vec![&host, accept], "415"),
        (vec![&host, accept, "Content-Type: text/plain"], "415"),
        (
            vec![
                &host,
                accept,
                "Content-Type: application/json; charset=utf-8",
            ],
            "200",
        ),
    ] {
        let lines: Vec<_> = lines.into_iter().chain([&*session]).collect();
        let answered = raw_status(&bridge, &at.path("echo"), &lines, PING);
        assert_eq!(answered, status, "{lines:?}");
    }
}

fn what_is_no_message_is_refused_with_the_code_of_the_specification(at: Scope) {
    let bridge = start();
    for (body, status, code) in [
        (r#"{"jsonrpc":"2.0","id":1,"meth"#, 400, -32700),
        ("", 400, -32700),
        ("[]", 400, -32600),
        (&*format!("[{PING},{PING}]"), 400, -32600),
        (r#"{"id":1,"method":"ping"}"#, 400, -32600),
        (
            r#"{"jsonrpc":"2.0","id":null,"method":"ping"}"#,
            400,
            -32600,
        ),
        (r#"{"jsonrpc":"2.0","id":1}"#, 400, -32600),
        (
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":7}"#,
            400,
            -32602,
        ),
        (PING, 400, -32600), // no session
    ] {
        let reply = bridge.client().post(&at.path("echo"), body);
        let said = reply.expect(status);
        assert_eq!(said["error"]["code"], code, "{body}: {said}");
    }
    let old_version = bridge.client().header("MCP-Protocol-Version", LEGACY);
    assert_eq!(old_version.post(&at.path("echo"), "[]").status, 400);
}

fn a_body_above_the_limit_is_refused(at: Scope) {
    let bridge = TestBridge::builder(servers([("echo", echo())]))
        .var(vars::MAX_BODY_BYTES, 1000)
        .start();
    let body = PING.replace("ping", &"p".repeat(1000));
    assert_eq!(bridge.client().post(&at.path("echo"), body).status, 413);
}

#[test]
fn an_unknown_server_is_not_found() {
    let bridge = start();
    for path in ["/mcp/nobody", "/mcp/%2e%2e", "/mcp/echo/more"] {
        assert_eq!(bridge.client().post(path, PING).status, 404, "{path}");
    }
}

fn an_unknown_session_is_not_found_also_where_a_chat_is_named(at: Scope) {
    let bridge = start();
    let mcp = legacy(at, bridge.chat("alice", "c1"));
    let ended = legacy(at, bridge.chat("alice", "c1"));
    assert_eq!(ended.end(), 200);
    for unknown in [
        &mcp.in_session("nobody"),
        &mcp.in_session("1111111111111111111111"),
        &ended,
    ] {
        assert_eq!(unknown.send(PING).status, 404);
        assert_eq!(unknown.listen().status, 404);
        assert_eq!(unknown.end(), 404);
    }
    assert_eq!(mcp.send(PING).status, 200);
}

fn someone_elses_session_is_not_found(at: Scope) {
    let bridge = TestBridge::start(servers([("echo", echo()), ("other", echo())]));
    let mcp = legacy(at, bridge.chat("alice", "c1"));
    let session = mcp.session.as_deref().expect("a session");
    let mut foreign = vec![modern(at, bridge.chat("bob", "c1"))];
    for endpoint in ["echo", "other", ALL] {
        if at.path("echo") != Scope::One.path(endpoint) {
            let elsewhere = Mcp::modern(bridge.chat("alice", "c1"), endpoint, json!({}));
            foreign.push(elsewhere);
        }
    }
    for foreign in foreign {
        let foreign = foreign.in_session(session);
        assert_eq!(foreign.send(PING).status, 404);
        assert_eq!(foreign.listen().status, 404);
        assert_eq!(foreign.end(), 404);
    }
    assert_eq!(mcp.send(PING).status, 200, "it is still there");
}

fn an_unknown_version_is_refused_and_the_known_ones_are_named(at: Scope) {
    let bridge = start();
    let mcp = legacy(at, bridge.client());
    let session = mcp.session.as_deref().expect("a session");
    let newer = bridge.client().header("MCP-Protocol-Version", "2099-01-01");
    let reply = newer.post(&at.path("echo"), modern_list("2099-01-01"));
    let said = reply.expect(400);
    assert_eq!(said["error"]["code"], -32022, "{said}");
    assert_eq!(said["error"]["data"]["supported"], json!([MODERN]));
    assert_eq!(said["id"], 1);
    let made_up = bridge
        .client()
        .header("MCP-Protocol-Version", "banana")
        .header("Mcp-Session-Id", session);
    assert_eq!(made_up.post(&at.path("echo"), PING).status, 400);
}

fn modern_list(version: &str) -> String {
    let mut params = with_envelope(json!({}), &json!({}));
    params["_meta"]["io.modelcontextprotocol/protocolVersion"] = version.into();
    json!({"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": params}).to_string()
}

fn modern_headers_that_are_missing_or_say_something_else_are_refused(at: Scope) {
    let bridge = start();
    let name = &*at.tool("echo", "echo");
    let (coded, other) = (STANDARD.encode(name), at.tool("echo", "add"));
    let coded = format!("=?base64?{coded}?=");
    // The tool's name at the other endpoint.
    let elsewhere = if at == Scope::All {
        "echo"
    } else {
        "echo_echo"
    };
    let params = json!({"name": name, "arguments": {"text": "hi"}});
    let params = with_envelope(params, &json!({}));
    let call = json!({"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": params});
    let version = ("MCP-Protocol-Version", MODERN);
    let method = ("Mcp-Method", "tools/call");
    for (headers, status) in [
        (vec![version, method, ("Mcp-Name", name)], 200),
        (vec![version, method, ("Mcp-Name", &coded)], 200),
        (vec![version, method, ("Mcp-Name", &other)], 400),
        (vec![version, method, ("Mcp-Name", elsewhere)], 400),
        (
            vec![version, method, ("Mcp-Name", &name.to_uppercase())],
            400,
        ),
        (vec![version, method], 400),
        (vec![version, ("Mcp-Name", name)], 400),
        (
            vec![version, ("Mcp-Method", "tools/list"), ("Mcp-Name", name)],
            400,
        ),
        (
            vec![version, method, ("Mcp-Name", name), ("Mcp-Name", name)],
            400,
        ),
        (
            vec![("MCP-Protocol-Version", LEGACY), method, ("Mcp-Name", name)],
            400,
        ),
        (vec![method, ("Mcp-Name", name)], 400),
    ] {
        let client = headers
            .iter()
            .fold(bridge.client(), |client, (name, value)| {
                client.header(name, value)
            });
        let said = client
            .post(&at.path("echo"), call.to_string())
            .expect(status);
        assert_eq!(said["id"], 7, "{headers:?}");
        if status == 400 {
            assert_eq!(said["error"]["code"], -32020, "{headers:?}: {said}");
        }
    }
}

fn a_modern_request_without_its_envelope_is_refused(at: Scope) {
    let bridge = start();
    let client = bridge
        .client()
        .header("MCP-Protocol-Version", MODERN)
        .header("Mcp-Method", "tools/list");
    for params in [
        json!({}),
        json!({"_meta": {"io.modelcontextprotocol/protocolVersion": MODERN}}),
        json!({"_meta": {"io.modelcontextprotocol/clientCapabilities": {}}}),
    ] {
        let list = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": params});
        let said = client.post(&at.path("echo"), list.to_string()).expect(400);
        assert_eq!(said["error"]["code"], -32602, "{list}: {said}");
    }
}

fn methods_that_are_unknown_or_were_removed_are_not_found_by_modern_clients(at: Scope) {
    let bridge = start();
    let mcp = modern(at, bridge.client());
    for gone in [
        "initialize",
        "ping",
        "logging/setLevel",
        "resources/subscribe",
        "resources/unsubscribe",
        "tasks/get",
        "never/heard/of",
    ] {
        let refusal = mcp.request(gone, json!({})).refusal();
        assert_eq!(refusal, (404, -32601), "{gone}");
    }
}

fn an_unknown_method_is_an_answer_to_legacy_clients(at: Scope) {
    let bridge = start();
    let mcp = legacy(at, bridge.client());
    for unknown in ["tasks/get", "never/heard/of"] {
        let refusal = mcp.request(unknown, json!({})).refusal();
        assert_eq!(refusal, (200, -32601), "{unknown}");
    }
}

// Lists and their visibility.

fn only_offered_tools_are_listed_and_called(at: Scope) {
    let few = with(
        echo(),
        json!({"enabled_tools": ["echo", "add", "env"], "disabled_tools": ["env"]}),
    );
    let bridge = TestBridge::start(servers([("echo", few)]));
    for mcp in [legacy(at, bridge.client()), modern(at, bridge.client())] {
        let tools = mcp.request("tools/list", json!({})).result()["tools"].take();
        let names: Vec<_> = tools
            .as_array()
            .expect("tools")
            .iter()
            .map(|tool| &tool["name"])
            .collect();
        assert_eq!(names, [&*at.tool("echo", "echo"), &*at.tool("echo", "add")]);
        for hidden in ["env", "counter", "never_heard_of"] {
            let refusal = mcp.begin(hidden, json!({})).refusal();
            assert_eq!(refusal, (200, -32602), "{hidden}");
        }
        assert_eq!(mcp.text("echo", json!({"text": "hi"})), "hi");
    }
}

fn lists_and_greetings_start_no_process(at: Scope) {
    let bridge = TestBridge::start(servers([("echo", echo()), ("one", library("one", &[]))]));
    let client = bridge.client();
    // Reading the servers' lists starts processes, which end afterwards.
    legacy(at, client.clone());
    eventually("the learners are gone", || bridge.children().is_empty());
    let mcp = legacy(at, client.clone());
    let listed = [
        "tools/list",
        "prompts/list",
        "resources/list",
        "resources/templates/list",
    ];
    for method in listed.iter().chain(&["ping"]) {
        mcp.request(method, json!({})).result();
    }
    for method in listed.iter().chain(&["server/discover"]) {
        modern(at, client.clone())
            .request(method, json!({}))
            .result();
    }
    let children: Vec<_> = bridge.children().iter().map(ToString::to_string).collect();
    assert!(
        children.is_empty() && bridge.workspaces().is_empty(),
        "{children:?}"
    );
}

fn with_a_key_every_method_asks_for_it(at: Scope) {
    let bridge = TestBridge::builder(servers([("echo", echo())]))
        .var(vars::API_KEY, "sesame")
        .start();
    let mcp = legacy(at, bridge.client().bearer("sesame"));
    let session = mcp.session.as_deref().expect("a session");
    for (client, status) in [
        (bridge.client(), 401),
        (bridge.client().bearer("wrong"), 403),
    ] {
        let stranger = modern(at, client).in_session(session);
        for method in [
            "initialize",
            "ping",
            "tools/list",
            "tools/call",
            "never/heard/of",
        ] {
            assert_eq!(
                stranger.request(method, json!({})).status,
                status,
                "{method}"
            );
        }
        assert_eq!(stranger.listen().status, status);
        assert_eq!(stranger.end(), status);
    }
    for method in ["server/discover", "tools/list", "subscriptions/listen"] {
        let request = modern(at, bridge.client()).request(method, json!({}));
        assert_eq!(request.status, 401, "{method}");
        assert_eq!(request.headers["WWW-Authenticate"], "Bearer");
    }
    for (name, value) in [("Host", "evil.example"), ("Origin", "http://evil.example")] {
        let client = bridge.client().bearer("sesame").header(name, value);
        assert_eq!(client.post(&at.path("echo"), "{}").status, 403, "{name}");
    }
    for mcp in [mcp, modern(at, bridge.client().bearer("sesame"))] {
        assert_eq!(mcp.text("echo", json!({"text": "hi"})), "hi");
    }
}

#[test]
fn a_thousand_requests_with_id_one_get_their_own_answers() {
    let bridge = TestBridge::start(servers([("echo", shared(echo()))]));
    let clients: Vec<_> = (0..5)
        .map(|_| legacy(Scope::One, bridge.client()))
        .collect();
    let workers: Vec<_> = (0..200)
        .map(|worker| {
            let mcp = clients[worker % clients.len()].clone();
            thread::spawn(move || {
                for turn in 0..5 {
                    let text = format!("{worker}-{turn}");
                    assert_eq!(mcp.text("echo", json!({"text": text})), text);
                }
            })
        })
        .collect();
    for worker in workers {
        worker.join().expect("its own answers");
    }
}

fn what_a_shared_server_logs_for_one_client_is_not_told_to_another(at: Scope) {
    let bridge = TestBridge::start(servers([("echo", shared(echo()))]));
    let (alice, bob) = (legacy(at, bridge.client()), legacy(at, bridge.client()));
    alice.text("counter", json!({}));
    let mut news = alice.listen();
    // Two calls are running, so the bridge cannot know for which of them the child logs.
    let at_work = bob.clone();
    let other = thread::spawn(move || at_work.call("slow_progress", json!({"steps": 20})));
    bob.in_session(bob.session.as_deref().expect("a session"))
        .call("slow_progress", json!({"steps": 1}));
    alice.call("slow_progress", json!({"steps": 20}));
    other.join().expect("it is done");
    bob.call("change_tools", json!({}));
    assert_eq!(news.message()["method"], "notifications/tools/list_changed");
}

// Requests for input.

/// Asks the client through the tool `ask`.
fn asking(method: &str, ids: &Value) -> Value {
    json!({"method": method, "params": {"message": "sure?"}, "ids": ids})
}

fn asker() -> TestBridge {
    TestBridge::start(servers([("bytes", bytes())]))
}

fn sure() -> Value {
    accepted(json!({"sure": true}))
}

fn a_legacy_client_answers_what_the_child_asks_on_the_calls_stream(at: Scope) {
    let bridge = asker();
    for method in ["elicitation/create", "sampling/createMessage", "roots/list"] {
        let able = json!({"elicitation": {}, "sampling": {}, "roots": {}});
        let mcp = at.legacy(bridge.chat("alice", method), "bytes", &able);
        let mut stream = mcp.begin("ask", asking(method, &json!(["q"])));
        let asked = stream.message();
        assert_eq!(
            (&asked["method"], &asked["params"]["message"]),
            (&json!(method), &json!("sure?"))
        );
        mcp.answer(&asked, sure());
        assert_eq!(
            stream.result()["answers"],
            json!([["q", {"result": sure()}]])
        );
    }
}

fn a_child_that_asks_a_client_who_cannot_answer_is_declined(at: Scope) {
    let bridge = asker();
    let mcp = at.legacy(bridge.client(), "bytes", &json!({}));
    let result = mcp.call("ask", asking("elicitation/create", &json!(["q"])));
    assert_eq!(result["answers"][0][1]["error"]["code"], -32601, "{result}");
}

fn a_child_that_asks_a_modern_client_who_cannot_answer_is_declined_and_its_call_goes_on(at: Scope) {
    let bridge = asker();
    let mcp = at.modern(bridge.client(), "bytes", json!({"roots": {}}));
    let arguments = asking("elicitation/create", &json!(["q"]));
    let result = mcp.call("ask", arguments.clone());
    assert_eq!(result["answers"][0][1]["error"]["code"], -32601, "{result}");
    // A call that fails without the answer has the error of the specification.
    let failing = with(arguments, json!({"failed": true}));
    let answer = mcp.begin("ask", failing.clone());
    assert_eq!(answer.refusal(), (400, -32021));
    let legacy = at.legacy(bridge.client(), "bytes", &json!({}));
    assert_eq!(legacy.call("ask", failing)["isError"], true);
}

fn a_modern_clients_retry_resumes_the_pending_call(at: Scope) {
    let bridge = asker();
    let able = json!({"elicitation": {}});
    let mcp = at.modern(bridge.chat("alice", "c1"), "bytes", able);
    let arguments = asking("elicitation/create", &json!(["first", 2]));
    let pending = mcp.begin("ask", arguments.clone()).result();
    let asked = pending["inputRequests"].as_object().expect("questions");
    assert_eq!(asked.len(), 2, "{pending}");
    let again = || mcp.retry("ask", &arguments, &pending, &sure());
    let result = again().result();
    assert_eq!(result["resultType"], "complete");
    assert_eq!(
        result["answers"],
        json!([["first", {"result": sure()}], [2, {"result": sure()}]])
    );
    assert_eq!(again().refusal().1, -32602, "once only");
}

fn a_pending_call_belongs_to_one_user_and_one_request(at: Scope) {
    let bridge = asker();
    let able = json!({"elicitation": {}});
    let mcp = at.modern(bridge.chat("alice", "c1"), "bytes", able.clone());
    let arguments = asking("elicitation/create", &json!(["q"]));
    let pending = mcp.begin("ask", arguments.clone()).result();
    let bob = at.modern(bridge.chat("bob", "c1"), "bytes", able);
    let other = asking("elicitation/create", &json!(["other"]));
    let made_up = with(pending.clone(), json!({"requestState": "made-up"}));
    for (mcp, arguments, pending) in [
        (&bob, &arguments, &pending),
        (&mcp, &other, &pending),
        (&mcp, &arguments, &made_up),
    ] {
        let refusal = mcp.retry("ask", arguments, pending, &sure()).refusal();
        assert_eq!(refusal, (400, -32602));
    }
    let result = mcp.retry("ask", &arguments, &pending, &sure()).result();
    assert_eq!(result["answers"], json!([["q", {"result": sure()}]]));
}

fn pending_calls_are_told_apart_by_arguments_that_no_number_type_holds(at: Scope) {
    let bridge = asker();
    let mcp = at.modern(
        bridge.chat("alice", "c1"),
        "bytes",
        json!({"elicitation": {}}),
    );
    let call = |arguments: &Value, more: &str| {
        let meta = with_envelope(json!({}), &json!({"elicitation": {}}))["_meta"].to_string();
        let arguments = arguments.to_string().replacen('{', r#"{"huge":1e400,"#, 1);
        let name = mcp.tool("ask");
        let params = format!(r#"{{"name":"{name}","_meta":{meta},"arguments":{arguments}{more}}}"#);
        mcp.send(&format!(
            r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{params}}}"#
        ))
    };
    let arguments = asking("elicitation/create", &json!(["q"]));
    let pending = call(&arguments, "").result();
    let state = format!(
        r#","requestState":{},"inputResponses":{{}}"#,
        pending["requestState"]
    );
    let other = call(&asking("elicitation/create", &json!(["other"])), &state);
    assert_eq!(other.refusal(), (400, -32602));
}

// Cancellation.

fn raw_begin(at: Scope, mcp: &Mcp, client: &Client, arguments: &Value) -> PendingCall {
    let params = json!({"name": mcp.tool("sleep"), "arguments": arguments});
    let message = json!({"jsonrpc": "2.0", "id": "long", "method": "tools/call", "params": params});
    client
        .clone()
        .header("Accept", "application/json, text/event-stream")
        .header("Mcp-Session-Id", mcp.session.as_deref().expect("a session"))
        .post_later(&at.path("echo"), &message)
}

fn is_cancelled(mcp: &Mcp, seconds: &str) {
    eventually("the child hears of the cancellation", || {
        mcp.text("cancelled", json!({})) == seconds
    });
}

fn a_cancelled_request_is_cancelled_in_the_child(at: Scope) {
    let bridge = TestBridge::start(servers([
        ("echo", shared(echo())),
        ("other", shared(echo())),
    ]));
    let mcp = legacy(at, bridge.client());
    let sleeping = raw_begin(at, &mcp, &bridge.client(), &json!({"seconds": 60}));
    eventually("it sleeps", || mcp.text("sleeping", json!({})) == "1");
    let cancel = |mcp: &Mcp, id: &str| {
        let params = json!({"requestId": id, "reason": "enough"});
        mcp.notify("notifications/cancelled", params);
    };
    cancel(&legacy(at, bridge.client()), "long");
    cancel(&mcp, "other");
    assert_eq!(mcp.text("cancelled", json!({})), "[]");
    cancel(&mcp, "long");
    is_cancelled(&mcp, "[60]");
    let other = bridge.client().call("other", "cancelled", json!({}));
    assert_eq!(other.ok(), json!([]));
    sleeping.rest();
}

fn hanging_up_cancels_the_request(at: Scope) {
    let bridge = TestBridge::start(servers([("echo", shared(echo()))]));
    let mcp = legacy(at, bridge.client());
    let sleeping = raw_begin(at, &mcp, &bridge.client(), &json!({"seconds": 61}));
    eventually("it sleeps", || mcp.text("sleeping", json!({})) == "1");
    sleeping.hang_up();
    is_cancelled(&mcp, "[61]");
}

fn hanging_up_a_stream_cancels_the_question(at: Scope) {
    let bridge = TestBridge::start(servers([("bytes", shared(bytes()))]));
    let mcp = at.legacy(bridge.client(), "bytes", &json!({"elicitation": {}}));
    let mut stream: Stream = mcp.begin("ask", asking("elicitation/create", &json!(["q"])));
    stream.message();
    drop(stream);
    eventually("the child hears of the cancellation", || {
        let heard = mcp.call("heard", json!({}))["heard"].to_string();
        heard.contains(&base64_of(r#""method":"notifications/cancelled""#))
    });
}

/// Its form in an encoded line that begins with `{"jsonrpc":"2.0",`, which is 17 bytes.
fn base64_of(member: &str) -> String {
    let coded = STANDARD.encode(format!(r#"{{"jsonrpc":"2.0",{member}"#));
    let whole = coded.trim_end_matches('=');
    whole[..whole.len() / 4 * 4 - 4].to_owned()
}

fn the_end_of_a_session_ends_its_stream(at: Scope) {
    let bridge = start();
    let mcp = legacy(at, bridge.chat("alice", "c1"));
    let stream = mcp.listen();
    assert_eq!(stream.status, 200);
    assert_eq!(mcp.end(), 200);
    assert_eq!(stream.rest(), Vec::<String>::new());
}

fn changed_lists_are_told_on_the_stream_and_listed_from_then_on(at: Scope) {
    let bridge = start();
    let mcp = legacy(at, bridge.chat("alice", "c1"));
    mcp.call("counter", json!({}));
    let mut news = mcp.listen();
    mcp.call("change_tools", json!({}));
    assert_eq!(news.message()["method"], "notifications/tools/list_changed");
}

fn each_message_is_on_the_newest_of_a_sessions_streams_only(at: Scope) {
    let bridge = start();
    let mcp = legacy(at, bridge.chat("alice", "c1"));
    let changed = |stream: &mut Stream| {
        mcp.call("change_tools", json!({}));
        let message = stream.message();
        assert_eq!(message["method"], "notifications/tools/list_changed");
        stream.event_id.parse::<u64>().expect("a number")
    };
    mcp.call("counter", json!({}));
    let mut first = mcp.listen();
    let one = changed(&mut first);
    let mut second = mcp.listen();
    let two = changed(&mut second);
    let mut third = mcp.listen_after(&one.to_string());
    third.message();
    assert_eq!(
        third.event_id,
        two.to_string(),
        "what came after is sent again"
    );
    let three = changed(&mut third);
    drop((second, third));
    // The bridge does not notice the disconnect at once.
    let heard = thread::spawn(move || (first.message(), first.event_id));
    while !heard.is_finished() {
        mcp.call("change_tools", json!({}));
    }
    let (_, four) = heard.join().expect("a message");
    assert!(four.parse::<u64>().expect("a number") > three);
}

fn open_streams_and_pending_calls_hold_up_no_shutdown(at: Scope) {
    let bridge = asker();
    let able = json!({"elicitation": {}});
    let other = at.modern(bridge.chat("alice", "c1"), "bytes", able);
    let pending = other.begin("ask", asking("elicitation/create", &json!(["q"])));
    assert_eq!(pending.result()["resultType"], "input_required");
    let news = at.legacy(bridge.client(), "bytes", &json!({})).listen();
    let filter = json!({"notifications": {"toolsListChanged": true}});
    let listener = at.modern(bridge.chat("alice", "c2"), "bytes", json!({}));
    let mut listening = listener.request("subscriptions/listen", filter);
    listening.message();
    // The test passes if it ends within the harness's timeout.
    bridge.finish();
    assert_eq!(news.rest().len() + listening.rest().len(), 0);
}
