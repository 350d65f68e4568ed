//! Files written by a call become links, which open that version of that file and nothing else, and
//! expire.

use std::{
    io::{Cursor, Read},
    time::{Duration, Instant},
};

use crate::support::{Client, Reply, TestBridge, echo, eventually, rude, servers, vars, with};
use serde_json::{Value, json};

fn start() -> TestBridge {
    TestBridge::start(servers([("echo", echo())]))
}

fn write(client: &Client, name: &str, content: &str) -> Reply {
    client.call(
        "echo",
        "write_file",
        json!({"name": name, "content": content}),
    )
}

/// The names in an answer's `files`.
fn names(answer: &Value) -> Vec<&str> {
    let files = answer["files"].as_array().expect("files");
    files
        .iter()
        .map(|file| file["name"].as_str().expect("a name"))
        .collect()
}

#[test]
fn a_call_that_made_no_file_answers_with_the_tools_own_result() {
    let bridge = start();
    let chat = bridge.chat("alice", "c1");
    assert_eq!(chat.echo("add", json!({"a": 20, "b": 22})), 42);
    write(&chat, "a.txt", "a").ok();
    assert_eq!(chat.echo("read_file", json!({"name": "a.txt"})), "a");
}

#[test]
fn a_call_that_made_a_file_answers_with_result_files_and_message() {
    let bridge = start();
    let answer = write(&bridge.chat("alice", "c1"), "report.txt", "four").ok();
    assert_eq!(answer["result"], "Saved to report.txt");
    let file = &answer["files"][0];
    assert_eq!(file["name"], "report.txt");
    assert_eq!(file["size"], 4);
    assert_eq!(file["mime_type"], "text/plain");
    let expires = file["expires_at"].as_str().expect("a time");
    assert!(expires.contains('T'), "{expires}");
    let url = file["url"].as_str().expect("a url");
    let message = answer["message"].as_str().expect("a message");
    assert!(
        message.contains(&format!("[report.txt]({url})")),
        "{message}"
    );
    assert_eq!(answer.get("archive"), None, "one file needs no archive");
}

#[test]
fn a_link_is_short_and_stands_on_the_base_url() {
    let config = servers([("echo", echo())]);
    let bridge = TestBridge::builder(config)
        .var(vars::BASE_URL, "https://files.example/mcpo")
        .start();
    let link = write(&bridge.chat("alice", "c1"), "a b.txt", "a").link("a b.txt");
    let path = link
        .strip_prefix("https://files.example/mcpo/files/")
        .expect("the base url");
    let (token, name) = path.split_once('/').expect("a token and a name");
    assert_eq!(token.len(), 22, "{token}");
    assert!(
        name.is_ascii() && !name.contains(' '),
        "a space breaks markdown: {name}"
    );
}

#[test]
fn the_message_is_in_the_configured_language() {
    for (language, japanese) in [("ja", true), ("en", false)] {
        let config = servers([("echo", echo())]);
        let bridge = TestBridge::builder(config)
            .var(vars::LANG, language)
            .start();
        let answer = write(&bridge.chat("alice", "c1"), "a.txt", "a").ok();
        let message = answer["message"].as_str().expect("a message");
        let kana = message
            .chars()
            .any(|letter| ('ぁ'..='ヿ').contains(&letter));
        assert_eq!(kana, japanese, "{message}");
    }
}

#[test]
fn the_servers_instruction_follows_the_links() {
    let polite = with(echo(), json!({"post_instruction": "Thank the user."}));
    let bridge = TestBridge::start(servers([("echo", polite)]));
    let answer = write(&bridge.chat("alice", "c1"), "a.txt", "a").ok();
    assert!(
        answer["message"]
            .as_str()
            .is_some_and(|text| text.contains("Thank the user."))
    );
}

#[test]
fn an_overwritten_file_gets_a_new_link_and_the_old_one_keeps_its_bytes() {
    let bridge = start();
    let chat = bridge.chat("alice", "c1");
    let old = write(&chat, "a.txt", "old").link("a.txt");
    let new = write(&chat, "a.txt", "new").link("a.txt");
    assert_ne!(old, new);
    assert_eq!(chat.download(&old).text(), "old");
    assert_eq!(chat.download(&new).text(), "new");
}

#[test]
fn a_change_that_keeps_the_size_is_seen() {
    let bridge = start();
    let chat = bridge.chat("alice", "c1");
    for content in ["aaa", "bbb", "ccc"] {
        let link = write(&chat, "a.txt", content).link("a.txt");
        assert_eq!(chat.download(&link).text(), content);
    }
}

#[test]
fn files_at_any_depth_are_found() {
    let bridge = start();
    let chat = bridge.chat("alice", "c1");
    let reply = write(&chat, "deep/er/still/a.txt", "deep");
    assert_eq!(names(&reply.ok()), ["deep/er/still/a.txt"]);
    let link = reply.link("deep/er/still/a.txt");
    assert_eq!(chat.download(&link).text(), "deep");
}

#[test]
fn several_files_also_come_as_one_archive() {
    let bridge = start();
    let chat = bridge.chat("alice", "c1");
    let answer = chat.echo("write_many", json!({"count": 3}));
    assert_eq!(names(&answer).len(), 3);
    let archive = answer["archive"]["url"].as_str().expect("an archive");
    let bytes = chat.download(archive).body;
    let mut zip = zip::ZipArchive::new(Cursor::new(bytes)).expect("a zip");
    let mut content = String::new();
    zip.by_name("many-00002.txt")
        .expect("the file")
        .read_to_string(&mut content)
        .expect("text");
    assert_eq!((zip.len(), content.as_str()), (3, "2"));
}

#[test]
fn the_folders_path_becomes_a_relative_name_in_text_and_structure() {
    let bridge = start();
    let reply = bridge
        .chat("alice", "c1")
        .call("echo", "save_report", json!({"name": "r.txt"}));
    let result = &reply.ok()["result"];
    assert_eq!(result["path"], "r.txt");
    assert_eq!(result["nested"][0]["path"], "file r.txt saved");
    assert!(!reply.text().contains("/work/"), "{}", reply.text());
    assert!(
        reply.text().contains("1.0"),
        "numbers keep their form: {}",
        reply.text()
    );
}

#[test]
fn a_download_is_an_attachment_that_no_browser_runs() {
    let bridge = start();
    let chat = bridge.chat("alice", "c1");
    for name in ["page.html", "picture.svg"] {
        let link = write(&chat, name, "<script>alert(1)</script>").link(name);
        let reply = chat.download(&link);
        assert!(
            reply
                .header("Content-Disposition")
                .starts_with("attachment")
        );
        assert_eq!(reply.header("X-Content-Type-Options"), "nosniff");
        assert!(reply.header("Content-Security-Policy").contains("sandbox"));
    }
}

#[test]
fn a_name_in_any_script_survives_the_download() {
    let bridge = start();
    let chat = bridge.chat("alice", "c1");
    let link = write(&chat, "売上 2026.txt", "a").link("売上 2026.txt");
    assert!(link.is_ascii() && !link.contains(' '), "{link}");
    let disposition = chat.download(&link);
    let disposition = disposition.header("Content-Disposition");
    assert!(
        disposition.contains("filename*=UTF-8''%E5%A3%B2%E4%B8%8A%202026.txt"),
        "{disposition}"
    );
}

#[test]
fn part_of_a_file_and_only_its_head_can_be_asked_for() {
    let bridge = start();
    let chat = bridge.chat("alice", "c1");
    let link = write(&chat, "a.txt", "0123456789").link("a.txt");
    let path = &link[link.find("/files/").expect("a path")..];
    let part = bridge.client().header("Range", "bytes=2-4").get(path);
    assert_eq!((part.status, part.text().as_str()), (206, "234"));
    assert_eq!(part.header("Content-Range"), "bytes 2-4/10");
    let beyond = bridge.client().header("Range", "bytes=20-").get(path);
    assert_eq!(beyond.status, 416);
    let head = bridge.client().request("HEAD", path);
    assert_eq!(
        (head.status, head.header("Content-Length"), head.body.len()),
        (200, "10", 0)
    );
    let tag = head.header("ETag").to_owned();
    assert_eq!(
        bridge
            .client()
            .header("If-None-Match", tag)
            .get(path)
            .status,
        304
    );
}

#[test]
fn a_link_needs_no_key_and_opens_nothing_but_its_file() {
    let config = servers([("echo", echo())]);
    let bridge = TestBridge::builder(config)
        .var(vars::API_KEY, "sesame")
        .start();
    let chat = bridge.chat("alice", "c1").bearer("sesame");
    let link = write(&chat, "a.txt", "mine").link("a.txt");
    write(&chat, "b.txt", "sibling").ok();
    let path = link[link.find("/files/").expect("a path")..].to_owned();
    let token = path.split('/').nth(2).expect("a token").to_owned();
    let client = bridge.client();
    assert_eq!(client.get(&path).text(), "mine");
    let job = bridge.workspaces().pop().expect("a workspace");
    let job = job
        .file_name()
        .and_then(|name| name.to_str())
        .expect("a job id")
        .to_owned();
    for guess in [
        format!("/files/{token}"),
        format!("/files/{token}/"),
        format!("/files/{token}/../../metadata.json"),
        format!("/files/{token}/%2e%2e%2fmetadata.json"),
        format!("/files/{job}/metadata.json"),
        format!("/files/{job}/work/a.txt"),
        "/files/".to_owned(),
        "/files/1111111111111111111111/a.txt".to_owned(),
        "/files/%00/a.txt".to_owned(),
    ] {
        let reply = client.get(&guess);
        let text = reply.text();
        assert!(
            [400, 404].contains(&reply.status) || text == "mine",
            "{guess}: {} {text}",
            reply.status
        );
        assert!(
            !text.contains("sibling") && !text.contains(&job),
            "{guess}: {text}"
        );
    }
}

#[test]
fn links_out_of_the_folder_are_never_published() {
    let bridge = TestBridge::start(servers([("rude", rude("symlink_writer"))]));
    let reply = bridge.chat("alice", "c1").call("rude", "poke", json!({}));
    assert_eq!(names(&reply.ok()), ["honest.txt"]);
}

#[test]
fn an_expired_link_is_gone_and_says_so_to_people_and_programs() {
    let config = servers([("echo", echo())]);
    let bridge = TestBridge::builder(config)
        .var(vars::FILE_EXPIRY, 1)
        .var(vars::CLEANUP_INTERVAL, 1)
        .start();
    let chat = bridge.chat("alice", "c1");
    let began = Instant::now();
    let link = write(&chat, "a.txt", "a").link("a.txt");
    let early = chat.download(&link);
    assert!(
        early.text() == "a" || began.elapsed() > Duration::from_secs(1),
        "{}",
        early.text()
    );
    eventually("the link expires", || chat.download(&link).status == 410);
    let path = &link[link.find("/files/").expect("a path")..];
    let program = bridge
        .client()
        .header("Accept", "application/json")
        .get(path);
    assert!(program.expect(410)["detail"].is_string());
    let browser = bridge
        .client()
        .header("Accept", "text/html")
        .header("Accept-Language", "ja");
    let page = browser.get(path);
    assert!(page.header("Content-Type").starts_with("text/html"));
    assert!(page.text().contains("期限"), "{}", page.text());
    let unknown = browser.get("/files/1111111111111111111111/a.txt");
    assert_eq!(unknown.status, 404);
    assert!(unknown.header("Content-Type").starts_with("text/html"));
}

#[test]
fn a_workspace_is_collected_after_its_last_call_and_not_while_its_session_lives() {
    let config = servers([
        ("echo", echo()),
        ("brief", with(echo(), json!({"idle_timeout": 1}))),
    ]);
    let bridge = TestBridge::builder(config)
        .var(vars::FILE_EXPIRY, 1)
        .var(vars::FILE_RETENTION, 1)
        .var(vars::CLEANUP_INTERVAL, 1)
        .start();
    let live = bridge.chat("alice", "lives");
    live.echo("write_file", json!({"name": "a.txt", "content": "a"}));
    // On a busy machine its folder may be deleted by the time the answer is received.
    let file = json!({"name": "b.txt", "content": "b"});
    let ends = bridge
        .chat("alice", "ends")
        .call("brief", "write_file", file);
    ends.link("b.txt");
    eventually("the ended chat's folder is collected", || {
        bridge.workspaces().len() == 1
    });
    assert_eq!(live.echo("read_file", json!({"name": "a.txt"})), "a");
}

#[test]
fn the_records_beside_the_work_are_for_nobody_but_us() {
    use std::os::unix::fs::PermissionsExt;
    let bridge = start();
    write(&bridge.chat("alice", "c1"), "a.txt", "a").ok();
    let workspace = bridge.workspaces().pop().expect("a workspace");
    let metadata = std::fs::read_to_string(workspace.join("metadata.json")).expect("metadata");
    let metadata: Value = serde_json::from_str(&metadata).expect("JSON");
    for key in ["job_id", "created_at", "status"] {
        assert!(metadata[key].is_string(), "{key}: {metadata}");
    }
    assert!(
        !metadata.to_string().contains("alice"),
        "session keys are hashed: {metadata}"
    );
    for name in ["metadata.json", "journal.jsonl"] {
        let mode = workspace
            .join(name)
            .metadata()
            .expect("the file")
            .permissions()
            .mode();
        assert_eq!(mode & 0o077, 0, "{name}: {mode:o}");
    }
}
