//! Files between bridges: whichever bridge receives a request with files, they are stored where the
//! chat runs.

use std::thread;

use serde_json::{Value, json};

use crate::support::{
    CHAT, Client, FakeOpenWebUi, KEY, Replicas, TOKEN, echo, just_echo, result_of, servers,
    session, vars, with,
};

type Part<'a> = (&'a str, Option<&'a str>, &'a [u8]);

/// The chat's client at each bridge; the first bridge holds the chat.
fn held(replicas: &Replicas) -> [Client; 2] {
    let [one, two] = [0, 1].map(|index| replicas.bridges[index].chat("alice", "c1"));
    assert_eq!(one.echo("counter", json!({})), 1);
    [one, two]
}

#[test]
fn an_upload_goes_to_the_bridge_that_holds_the_chat() {
    // The limit on bodies does not apply to files.
    let replicas = Replicas::with(2, &just_echo(), &[(vars::MAX_BODY_BYTES, "1000")]);
    let [one, two] = held(&replicas);
    let large = vec![b'x'; 3_000_000];
    let parts: [Part<'_>; 2] = [
        ("file", Some("a.txt"), b"1"),
        ("file", Some("large.txt"), &large),
    ];
    let answer = two.post_parts("/files", &parts).expect(201);
    assert_eq!(answer["files"][1]["size"], 3_000_000);
    let again = two.post_parts("/files", &parts[..1]).expect(201);
    assert_eq!(again["files"][0]["name"], "a-2.txt");
    let nothing = two.post_parts("/files", &[]);
    assert_eq!(nothing.status, 400, "{}", nothing.text());
    assert_eq!(one.echo("read_file", json!({"name": "a-2.txt"})), 1);
    assert_eq!(replicas.owners(), [0]);
    assert_eq!(replicas.workspaces().len(), 1);
    let metrics = replicas.bridges[1].client().get("/metrics").text();
    let answered = r#"mcpo_forwarded_requests_total{outcome="answered"} 2"#;
    assert!(metrics.contains(answered), "{metrics}");
}

#[test]
fn a_call_that_brings_files_goes_there_too() {
    let once = with(echo(), json!({"mode": "stateless"}));
    let own = with(echo(), json!({"workspace": "own"}));
    let config = servers([("echo", echo()), ("once", once), ("own", own)]);
    let replicas = Replicas::start(2, &config);
    let [one, two] = held(&replicas);
    let file: Part<'_> = ("name", Some("a.txt"), b"new");
    for server in ["echo", "once", "own"] {
        let answer = two
            .post_parts(&format!("/{server}/read_file"), &[file])
            .ok();
        assert_eq!(answer, "new", "{server}");
    }
    assert_eq!(one.echo("read_file", json!({"name": "a.txt"})), "new");
    assert_eq!(two.echo("counter", json!({})), 2);
    let wrong = two.post_parts("/echo/add", &[file]);
    assert_eq!(wrong.status, 422, "{}", wrong.text());
    assert_eq!(two.post_parts("/echo/nothing", &[file]).status, 404);
}

#[test]
fn what_is_too_much_is_refused_wherever_it_arrives() {
    let limits = [
        (vars::MAX_UPLOAD_BYTES, "100000"),
        (vars::MAX_FILES_PER_CALL, "2"),
        (vars::MAX_BODY_BYTES, "1000"),
    ];
    let replicas = Replicas::with(2, &just_echo(), &limits);
    let large = vec![b'x'; 100_001];
    let all = vec![b'x'; 300_000];
    for client in held(&replicas) {
        for content in [&large, &all] {
            let refused = client.post_parts("/files", &[("file", Some("a.txt"), content)]);
            assert_eq!(refused.status, 413, "{}", refused.text());
            let names_it = refused.text().contains("MCPO_MAX_UPLOAD_BYTES");
            assert!(names_it, "{}", refused.text());
        }
        let few: Part<'_> = ("file", Some("a.txt"), b"1");
        assert_eq!(client.post_parts("/files", &[few; 3]).status, 413);
    }
}

#[test]
fn first_uploads_of_a_chat_everywhere_at_once_meet_in_one_folder() {
    let replicas = Replicas::start(3, &just_echo());
    let name = |answer: Value| answer["files"][0]["name"].as_str().map(str::to_owned);
    let mut names: Vec<_> = thread::scope(|scope| {
        let uploads: Vec<_> = (0..9)
            .map(|_| {
                let client = replicas.next("alice", "c1");
                let file: Part<'_> = ("file", Some("a.txt"), b"1");
                scope.spawn(move || client.post_parts("/files", &[file]).expect(201))
            })
            .collect();
        let uploads = uploads.into_iter();
        uploads
            .map(|upload| name(upload.join().expect("an answer")).expect("a name"))
            .collect()
    });
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 9, "{names:?}");
    assert_eq!(replicas.workspaces().len(), 1);
}

#[test]
fn an_upload_to_the_chat_of_a_killed_bridge_is_taken_here() {
    let mut replicas = Replicas::start(2, &just_echo());
    let [_, two] = held(&replicas);
    replicas.kill_hard(0);
    let file: Part<'_> = ("file", Some("a.txt"), b"1");
    two.post_parts("/files", &[file]).expect(201);
    let read = two.echo("read_file", json!({"name": "a.txt"}));
    assert_eq!(result_of(&read), 1);
}

#[test]
fn files_go_between_open_webui_and_a_chat_that_another_bridge_holds() {
    let openwebui = FakeOpenWebUi::start();
    openwebui.user(TOKEN, "alice", "user");
    openwebui.file("f1", b"a,b");
    let attached = json!([{"type": "file", "id": "f1", "url": "f1", "name": "a.csv", "size": 3}]);
    openwebui.chat(CHAT, &json!([]));
    let settings = [
        (vars::API_KEY, KEY),
        (vars::OPENWEBUI_URL, &openwebui.url()),
    ];
    let replicas = Replicas::with(2, &just_echo(), &settings);
    let [one, two] = [&replicas.bridges[0], &replicas.bridges[1]];
    assert_eq!(session(one, "m1").echo("counter", json!({})), 1);
    openwebui.chat(CHAT, &attached);
    let answer = session(two, "m2").echo("read_file", json!({"name": "a.csv"}));
    assert_eq!(answer["result"], "a,b");
    let file = json!({"name": "b.txt", "content": "four"});
    let answer = session(two, "m2").echo("write_file", file);
    assert!(answer["files"][0]["url"].is_string(), "{answer}");
    assert_eq!(replicas.owners(), [0]);
    let event = openwebui.asked("/event").remove(0);
    let path = format!("/api/v1/chats/{CHAT}/messages/m2/event");
    assert_eq!(event.path, path);
    assert_eq!(openwebui.events()[0]["data"]["files"][0]["name"], "b.txt");
}
