//! Files uploaded over HTTP: for a chat's folder, or with the call that needs them.

use crate::support::{Client, TestBridge, echo, servers, vars, with};
use serde_json::{Value, json};

fn start() -> TestBridge {
    TestBridge::start(servers([("echo", echo())]))
}

fn upload(client: &Client, name: &str, content: &[u8]) -> Value {
    client
        .post_parts("/files", &[("file", Some(name), content)])
        .expect(201)
}

#[test]
fn an_uploaded_file_lies_in_the_chats_folder_and_is_no_callers_new_file() {
    let bridge = start();
    let chat = bridge.chat("alice", "c1");
    let answer = upload(&chat, "売上 1.csv", b"a,b");
    let file = json!({"name": "売上 1.csv", "size": 3, "mime_type": "text/csv"});
    assert_eq!(answer, json!({"files": [file]}));
    assert_eq!(chat.echo("read_file", json!({"name": "売上 1.csv"})), "a,b");
    let others = bridge
        .chat("bob", "c1")
        .call("echo", "read_file", json!({"name": "売上 1.csv"}));
    assert_eq!(others.status, 500, "another user's chat of the same id");
}

#[test]
fn names_are_made_safe_and_collisions_get_a_number() {
    let bridge = start();
    let chat = bridge.chat("alice", "c1");
    let parts: [(&str, Option<&str>, &[u8]); 3] = [
        ("file", Some("a.txt"), b"1"),
        ("file", Some("a.txt"), b"2"),
        ("file", Some("../../a.txt"), b"3"),
    ];
    let answer = chat.post_parts("/files", &parts).expect(201);
    let names: Vec<_> = answer["files"].as_array().expect("files").iter().collect();
    assert_eq!(names[0]["name"], "a.txt");
    assert_eq!(names[1]["name"], "a-2.txt");
    assert_eq!(names[1]["sent_as"], "a.txt");
    assert_eq!(names[2]["name"], "a-3.txt");
    assert_eq!(chat.echo("read_file", json!({"name": "a.txt"})), 1);
    assert_eq!(chat.echo("read_file", json!({"name": "a-3.txt"})), 3);
}

#[test]
fn a_link_that_a_child_left_is_not_followed() {
    let bridge = start();
    let chat = bridge.chat("alice", "c1");
    upload(&chat, "first.txt", b"1");
    let work = bridge.work_with("first.txt");
    let outside = bridge.jobs().join("outside.txt");
    std::os::unix::fs::symlink(&outside, work.join("a.txt")).expect("a link");
    let answer = upload(&chat, "a.txt", b"new");
    assert_eq!(answer["files"][0]["name"], "a-2.txt");
    assert!(!outside.exists());
}

#[test]
fn a_caller_without_a_chat_gets_a_session_to_come_back_with() {
    let bridge = start();
    let reply = bridge
        .client()
        .post_parts("/files", &[("f", Some("a.txt"), b"1")]);
    reply.expect(201);
    let session = reply.header("X-MCPO-Session").to_owned();
    let back = bridge.client().in_session(&session);
    assert_eq!(back.echo("read_file", json!({"name": "a.txt"})), 1);
    let made_up = bridge.client().in_session("0123456789012345678901");
    let refused = made_up.post_parts("/files", &[("f", Some("a.txt"), b"1")]);
    assert_eq!(refused.status, 404, "{}", refused.text());
}

#[test]
fn a_server_with_a_folder_of_its_own_can_be_named() {
    let own = with(echo(), json!({"workspace": "own"}));
    let shared = with(echo(), json!({"mode": "shared"}));
    let bridge = TestBridge::start(servers([
        ("echo", echo()),
        ("own", own),
        ("shared", shared),
    ]));
    let chat = bridge.chat("alice", "c1");
    let file: (&str, Option<&str>, &[u8]) = ("file", Some("a.txt"), b"1");
    let named: (&str, Option<&str>, &[u8]) = ("server", None, b"own");
    chat.post_parts("/files?server=own", &[file]).expect(201);
    chat.post_parts("/files", &[named, file]).expect(201);
    let read = chat.call("own", "read_file", json!({"name": "a-2.txt"}));
    assert_eq!(read.ok(), 1);
    assert_eq!(
        chat.call("echo", "read_file", json!({"name": "a.txt"}))
            .status,
        500
    );
    for (server, status) in [("shared", 422), ("nobody", 404)] {
        let path = format!("/files?server={server}");
        assert_eq!(chat.post_parts(&path, &[file]).status, status);
    }
}

#[test]
fn uploads_ask_for_the_key_and_keep_within_the_limits() {
    let bridge = TestBridge::builder(servers([("echo", echo())]))
        .var(vars::API_KEY, "k")
        .var(vars::MAX_UPLOAD_BYTES, 100_000)
        .var(vars::MAX_WORKSPACE_BYTES, 150_000)
        .var(vars::MAX_FILES_PER_CALL, 2)
        .start();
    let file: (&str, Option<&str>, &[u8]) = ("file", Some("a.txt"), b"1");
    assert_eq!(bridge.client().post_parts("/files", &[file]).status, 401);
    let chat = bridge.client().bearer("k").as_user("alice").in_chat("c1");
    let large = vec![b'x'; 100_001];
    let refused = chat.post_parts("/files", &[("file", Some("a.txt"), &large)]);
    assert_eq!(refused.status, 413, "{}", refused.text());
    assert!(refused.text().contains("MCPO_MAX_UPLOAD_BYTES"));
    assert_eq!(chat.post_parts("/files", &[file, file, file]).status, 413);
    let two = [
        ("file", Some("a"), &large[1..]),
        ("file", Some("b"), &large[1..]),
    ];
    let refused = chat.post_parts("/files", &two);
    assert_eq!(refused.status, 507, "{}", refused.text());
    for bad in [&[][..], &[("words", None, &b"x"[..])]] {
        assert_eq!(chat.post_parts("/files", bad).status, 400);
    }
    assert_eq!(chat.post("/files", "{}").status, 400);
    assert!(bridge.workspaces().iter().all(|job| {
        let files = std::fs::read_dir(job.join("work")).expect("a folder");
        files.count() == 0
    }));
}

#[test]
fn a_call_may_bring_its_files() {
    let once = with(echo(), json!({"mode": "stateless"}));
    let bridge = TestBridge::start(servers([("echo", echo()), ("once", once)]));
    let chat = bridge.chat("alice", "c1");
    upload(&chat, "a.txt", b"old");
    let file: (&str, Option<&str>, &[u8]) = ("name", Some("a.txt"), b"new");
    for server in ["echo", "once"] {
        let answer = chat
            .post_parts(&format!("/{server}/read_file"), &[file])
            .ok();
        assert_eq!(answer, "new", "{server}");
    }
    let arguments: (&str, Option<&str>, &[u8]) = ("arguments", None, br#"{"name": "b.txt"}"#);
    let beside: (&str, Option<&str>, &[u8]) = ("other", Some("b.txt"), b"beside");
    let answer = chat
        .post_parts("/echo/read_file", &[arguments, beside])
        .ok();
    assert_eq!(answer, "beside");
    let twice = chat.post_parts("/echo/read_file", &[arguments, file]);
    assert_eq!(twice.status, 400, "{}", twice.text());
    let wrong = chat.post_parts("/echo/add", &[beside]);
    assert_eq!(wrong.status, 422, "{}", wrong.text());
}
