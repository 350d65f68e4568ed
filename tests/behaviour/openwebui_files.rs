//! Files between a chat of Open WebUI and its folder, with the user's own token.

use crate::support::{
    CHAT, Client, FakeOpenWebUi, KEY, LONG, Mcp, Mood, TOKEN, TestBridge, echo, eventually,
    servers, session, vars, with,
};
use serde_json::{Value, json};

fn builder(openwebui: &FakeOpenWebUi) -> crate::support::Builder {
    openwebui.user(TOKEN, "alice", "user");
    openwebui.chat(CHAT, &json!([]));
    TestBridge::builder(servers([("echo", echo())]))
        .var(vars::API_KEY, KEY)
        .var(vars::OPENWEBUI_URL, openwebui.url())
}

fn write(client: &Client, name: &str) -> Value {
    client.echo("write_file", json!({"name": name, "content": "four"}))
}

#[test]
fn a_new_file_is_attached_to_the_message_and_linked_all_the_same() {
    let openwebui = FakeOpenWebUi::start();
    let bridge = builder(&openwebui).start();
    let answer = write(&session(&bridge, "m1"), "売上 \"1\".txt");
    assert!(answer["files"][0]["url"].is_string(), "{answer}");
    let uploads = openwebui.asked("/api/v1/files/");
    assert_eq!(uploads.len(), 1);
    assert!(
        uploads[0].path.ends_with("?process=false"),
        "{}",
        uploads[0].path
    );
    let body = String::from_utf8_lossy(&uploads[0].body);
    assert!(
        body.contains("filename=\"売上 %221%22.txt\"")
            || body.contains("filename=\"売上 \\\"1\\\".txt\""),
        "{body}"
    );
    assert!(
        body.contains("text/plain") && body.contains("\r\n\r\nfour\r\n"),
        "{body}"
    );
    let event = openwebui.asked("/event").remove(0);
    assert_eq!(
        event.path,
        format!("/api/v1/chats/{CHAT}/messages/m1/event")
    );
    let file = json!({"type": "file", "id": "uploaded-0", "name": "売上 \"1\".txt", "url": "uploaded-0", "size": 4});
    assert_eq!(
        openwebui.events(),
        [json!({"type": "files", "data": {"files": [file]}})]
    );
}

#[test]
fn the_mcp_door_attaches_files_too() {
    let openwebui = FakeOpenWebUi::start();
    let bridge = builder(&openwebui).start();
    let mcp = Mcp::legacy(session(&bridge, "m1"), "echo", &json!({}));
    mcp.call("write_file", json!({"name": "a.txt", "content": "four"}));
    assert_eq!(openwebui.events().len(), 1);
}

#[test]
fn several_files_are_one_event_and_their_archive_is_not_attached() {
    let openwebui = FakeOpenWebUi::start();
    let bridge = builder(&openwebui).start();
    session(&bridge, "m1").echo("write_many", json!({"count": 3}));
    let events = openwebui.events();
    assert_eq!(events.len(), 1);
    assert_eq!(events[0]["data"]["files"].as_array().map(Vec::len), Some(3));
}

#[test]
fn nothing_is_attached_where_open_webui_keeps_no_chat_or_no_token_came() {
    let openwebui = FakeOpenWebUi::start();
    let bridge = builder(&openwebui).start();
    let with_key = bridge.client().bearer(KEY).as_user("alice");
    write(
        &with_key
            .in_chat(CHAT)
            .header("X-OpenWebUI-Message-Id", "m1"),
        "a.txt",
    );
    let client = bridge.client().bearer(TOKEN).header("X-MCPO-Key", KEY);
    for chat in ["temporary:../../../x", "local:é", "channel:1"] {
        let temporary = client.clone().in_chat(chat);
        write(&temporary.header("X-OpenWebUI-Message-Id", "m1"), "a.txt");
    }
    write(&client.in_chat(CHAT), "a.txt");
    assert!(openwebui.asked("/api/v1/files/").is_empty());
    assert!(openwebui.events().is_empty());
}

#[test]
fn a_file_that_cannot_be_attached_fails_no_call() {
    let openwebui = FakeOpenWebUi::start();
    let bridge = builder(&openwebui).var(vars::MAX_UPLOAD_BYTES, 4).start();
    for (part, mood) in [
        ("/files/", Mood::Status(413)),
        ("/files/", Mood::Page),
        ("/event", Mood::Status(401)),
    ] {
        openwebui.mood(part, mood);
        let answer = write(&session(&bridge, "m1"), "a.txt");
        assert!(answer["files"][0]["url"].is_string(), "{answer}");
        openwebui.mood(part, Mood::Well);
    }
    let long = json!({"name": "b.txt", "content": "fives"});
    session(&bridge, "m1").echo("write_file", long);
    eventually("all of it is in the log", || {
        bridge.log().matches("could not be attached").count() == 4
    });
    let metrics = bridge.client().get("/metrics").text();
    let refused = r#"mcpo_openwebui_requests_total{what="upload",outcome="refused"} 1"#;
    assert!(metrics.contains(refused), "{metrics}");
}

fn attached(openwebui: &FakeOpenWebUi, files: &[(&str, &str, &[u8])]) {
    let list = files.iter().map(|(id, name, bytes)| {
        openwebui.file(id, bytes);
        json!({"type": "file", "id": id, "url": id, "name": name, "size": bytes.len()})
    });
    openwebui.chat(CHAT, &list.collect::<Vec<_>>().into());
}

#[test]
fn what_the_user_attached_lies_in_the_folder_before_the_call() {
    let openwebui = FakeOpenWebUi::start();
    let bridge = builder(&openwebui).start();
    attached(&openwebui, &[("f1", "売上 1.csv", b"a,b")]);
    let client = session(&bridge, "m1");
    let answer = client.echo("read_file", json!({"name": "売上 1.csv"}));
    assert_eq!(answer["result"], "a,b");
    assert!(
        answer["notice"]
            .as_str()
            .is_some_and(|text| text.contains("売上 1.csv")),
        "{answer}"
    );
    assert_eq!(answer.get("files"), None, "no call made it");
    assert_eq!(
        client.echo("read_file", json!({"name": "売上 1.csv"})),
        "a,b"
    );
    assert_eq!(
        openwebui.asked("/api/v1/chats/").len(),
        1,
        "once for each message"
    );
    session(&bridge, "m2").echo("counter", json!({}));
    assert_eq!(openwebui.asked("/api/v1/chats/").len(), 2);
    assert_eq!(openwebui.asked("/content").len(), 1, "once for each file");
}

#[test]
fn a_file_is_not_brought_again_after_a_restart_or_once_it_was_deleted() {
    let openwebui = FakeOpenWebUi::start();
    let mut bridge = builder(&openwebui).start();
    attached(&openwebui, &[("f1", "a.csv", b"a,b")]);
    write(&session(&bridge, "m1"), "b.txt");
    bridge.restart();
    let work = bridge.work_with("a.csv");
    std::fs::remove_file(work.join("a.csv")).expect("it is there");
    write(&session(&bridge, "m2"), "c.txt");
    assert!(!work.join("a.csv").exists());
    assert_eq!(openwebui.asked("/content").len(), 1);
}

#[test]
fn an_attached_file_replaces_nothing_and_its_name_leads_nowhere() {
    let openwebui = FakeOpenWebUi::start();
    let bridge = builder(&openwebui).start();
    write(&session(&bridge, "m1"), "a.txt");
    attached(
        &openwebui,
        &[
            ("f1", "a.txt", b"new"),
            ("f2", "../../../evil", b"x"),
            ("f3", ".hidden", b"x"),
        ],
    );
    let answer = session(&bridge, "m2").echo("read_file", json!({"name": "a.txt"}));
    assert_eq!(answer["result"], "four");
    let notice = answer["notice"].as_str().expect("a notice");
    assert!(notice.contains("a-2.txt, evil, hidden"), "{notice}");
    let work = bridge.workspaces()[0].join("work");
    assert_eq!(
        std::fs::read(work.join("a-2.txt")).expect("it is there"),
        b"new"
    );
}

#[test]
fn what_cannot_be_brought_is_told_and_fails_no_call() {
    let openwebui = FakeOpenWebUi::start();
    let bridge = builder(&openwebui).var(vars::MAX_UPLOAD_BYTES, 4).start();
    attached(
        &openwebui,
        &[("f1", "big.bin", b"fives"), ("f2", "small.bin", b"four")],
    );
    let answer = session(&bridge, "m1").echo("counter", json!({}));
    assert_eq!(answer["result"], 1);
    let notice = answer["notice"].as_str().expect("a notice");
    assert!(
        notice.contains("big.bin: larger than 4 bytes") && notice.contains("small.bin"),
        "{notice}"
    );
    for (part, mood) in [
        ("/content", Mood::Status(404)),
        ("/api/v1/chats/", Mood::Page),
        ("/api/v1/chats/", Mood::Status(401)),
    ] {
        openwebui.mood(part, mood);
        let message = format!("{part}{}", openwebui.asked("").len());
        let message = message.replace(|letter: char| !letter.is_ascii_alphanumeric(), "");
        let answer = session(&bridge, &message).call("echo", "counter", json!({}));
        assert_eq!(answer.status, 200, "{}", answer.text());
        openwebui.mood(part, Mood::Well);
    }
}

#[test]
fn a_stateless_call_gets_the_attached_files_that_it_names() {
    let openwebui = FakeOpenWebUi::start();
    openwebui.user(TOKEN, "alice", "user");
    let once = with(echo(), json!({"mode": "stateless"}));
    let bridge = TestBridge::builder(servers([("echo", once)]))
        .var(vars::API_KEY, KEY)
        .var(vars::OPENWEBUI_URL, openwebui.url())
        .start();
    attached(
        &openwebui,
        &[("f1", "a.csv", b"a,b"), ("f2", "b.csv", b"c,d")],
    );
    let client = session(&bridge, "m1");
    assert_eq!(client.echo("read_file", json!({"name": "a.csv"})), "a,b");
    assert_eq!(openwebui.asked("/content").len(), 1, "only what is named");
}

fn lines(openwebui: &FakeOpenWebUi) -> Vec<Value> {
    let events = openwebui.events().into_iter();
    events.filter(|event| event["type"] == "status").collect()
}

#[test]
fn progress_shows_in_the_chat_and_goes_with_the_answer() {
    let openwebui = FakeOpenWebUi::start();
    let bridge = builder(&openwebui).start();
    let client = session(&bridge, "m1");
    client.echo("slow_progress", json!({"steps": 300}));
    let lines = lines(&openwebui);
    let (last, before) = lines.split_last().expect("lines");
    assert!(
        !before.is_empty() && before.len() < 20,
        "one a second: {lines:?}"
    );
    assert!(before.iter().all(|line| line["data"]["done"] == false));
    assert_eq!(
        (&last["data"]["done"], &last["data"]["hidden"]),
        (&json!(true), &json!(true))
    );
}

#[test]
fn a_short_call_shows_nothing_and_a_wait_for_a_turn_is_told() {
    let openwebui = FakeOpenWebUi::start();
    let bridge = builder(&openwebui).start();
    let client = session(&bridge, "m1");
    client.echo("counter", json!({}));
    assert!(lines(&openwebui).is_empty());
    let arguments = json!({"seconds": LONG, "touch": "begun", "until": "wake"});
    let long = client.begin("echo", "sleep", &arguments);
    bridge.wait_for_file("begun");
    let waits = client.begin("echo", "counter", &json!({}));
    eventually("its wait is told", || !lines(&openwebui).is_empty());
    bridge.wake("begun");
    assert!(waits.rest().starts_with("HTTP/1.1 200"));
    long.rest();
    let lines = lines(&openwebui);
    assert!(
        lines[0]["data"]["description"]
            .as_str()
            .is_some_and(|text| text.starts_with("Waiting")),
        "{lines:?}"
    );
}

#[test]
fn progress_of_the_mcp_door_shows_too_whether_its_client_asked_for_it_or_not() {
    let openwebui = FakeOpenWebUi::start();
    let bridge = builder(&openwebui).start();
    let steps = json!({"steps": 300});
    let mut mcp = Mcp::legacy(session(&bridge, "m1"), "echo", &json!({}));
    mcp.call("slow_progress", steps.clone());
    let silent = lines(&openwebui).len();
    assert!(silent > 1, "{:?}", openwebui.events());
    mcp = Mcp::modern(session(&bridge, "m2"), "echo", json!({}));
    mcp.call("slow_progress", steps);
    let lines = lines(&openwebui);
    assert!(lines.len() > silent + 1, "{lines:?}");
    assert_eq!(lines[lines.len() - 1]["data"]["hidden"], true);
}

/// The names and ids of the files of all events of a type, in their order.
fn files_of(openwebui: &FakeOpenWebUi, kind: &str) -> Vec<Vec<(String, String)>> {
    let events = openwebui.events().into_iter();
    let events = events.filter(|event| event["type"] == kind);
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let files = |event: Value| {
        let files = event["data"]["files"].as_array().expect("files").clone();
        let files = files.iter();
        files
            .map(|file| (text(&file["name"]), text(&file["id"])))
            .collect()
    };
    events.map(files).collect()
}

#[test]
fn who_looks_at_the_chat_sees_each_file_of_the_message_once_with_its_latest_version() {
    let openwebui = FakeOpenWebUi::start();
    let bridge = builder(&openwebui).start();
    let client = session(&bridge, "m1");
    write(&client, "a.txt");
    write(&client, "b.txt");
    client.echo("write_file", json!({"name": "a.txt", "content": "newer"}));
    write(&session(&bridge, "m2"), "c.txt");
    let named = |all: Vec<Vec<(String, String)>>| {
        let line = |files: Vec<(String, String)>| {
            let files = files.into_iter();
            let files: Vec<_> = files.map(|(name, id)| format!("{name}={id}")).collect();
            files.join(" ")
        };
        all.into_iter().map(line).collect::<Vec<_>>()
    };
    let kept = [
        "a.txt=uploaded-0",
        "b.txt=uploaded-1",
        "a.txt=uploaded-2",
        "c.txt=uploaded-3",
    ];
    assert_eq!(named(files_of(&openwebui, "files")), kept);
    let shown = [
        "b.txt=uploaded-1 a.txt=uploaded-0",
        "a.txt=uploaded-2 b.txt=uploaded-1",
    ];
    assert_eq!(named(files_of(&openwebui, "chat:message:files")), shown);
}

#[test]
fn a_chat_that_shows_no_status_fails_no_call() {
    let openwebui = FakeOpenWebUi::start();
    let bridge = builder(&openwebui).start();
    openwebui.mood("/event", Mood::Status(500));
    let answer = session(&bridge, "m1").echo("slow_progress", json!({"steps": 150}));
    assert_eq!(answer, "done");
}

#[test]
fn pictures_and_pages_show_in_the_chat_where_the_config_says_so() {
    let openwebui = FakeOpenWebUi::start();
    openwebui.user(TOKEN, "alice", "user");
    openwebui.chat(CHAT, &json!([]));
    let shown = with(echo(), json!({"embed": ["image", "html"]}));
    let bridge = TestBridge::builder(servers([("echo", shown), ("plain", echo())]))
        .var(vars::API_KEY, KEY)
        .var(vars::OPENWEBUI_URL, openwebui.url())
        .start();
    let client = session(&bridge, "m1");
    for (name, content) in [
        ("a.html", "<p>hello</p>"),
        ("a.png", "no picture"),
        ("a.txt", "x"),
    ] {
        client.echo("write_file", json!({"name": name, "content": content}));
    }
    let page = json!({"name": "b.html", "content": "<p>not shown</p>"});
    client.call("plain", "write_file", page).ok();
    let events = openwebui.events().into_iter();
    let of_all = |event: &Value| event["type"] == "status" || event["type"] == "chat:message:files";
    let events: Vec<_> = events.filter(|event| !of_all(event)).collect();
    let kinds: Vec<_> = events
        .iter()
        .map(|event| event["type"].as_str().expect("a type"))
        .collect();
    assert_eq!(kinds, ["files", "embeds", "files", "files", "files"]);
    assert_eq!(events[1]["data"]["embeds"], json!(["<p>hello</p>"]));
    let page = json!({"name": "c.html", "content": "<p>more</p>"});
    client.echo("write_file", page);
    let all = openwebui.events().pop().expect("an event");
    assert_eq!(
        all["data"]["embeds"],
        json!(["<p>more</p>", "<p>hello</p>"])
    );
    assert_eq!(all["data"]["replace"], true);
    let picture = &events[2]["data"]["files"][0];
    assert_eq!(picture["type"], "image");
    let url = picture["url"].as_str().expect("a url");
    assert!(
        url.starts_with("/api/v1/files/") && url.ends_with("/content"),
        "{url}"
    );
    assert_eq!(events[3]["data"]["files"][0]["type"], "file");
}
