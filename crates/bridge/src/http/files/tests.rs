use std::io::Write;

use bridge_state::{
    Done, PrincipalHash,
    testing::{Folder, alice, later, new_chat},
};
use serde_json::{Map, Value};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::*;

const TEXT: &[u8] = b"0123456789";
const HASH: &str = "hash";

struct Server {
    folder: Folder,
    store: Arc<ChatStore>,
    address: std::net::SocketAddr,
}

struct Reply {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Reply {
    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(": ")?;
            key.eq_ignore_ascii_case(name).then_some(value)
        })
    }

    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

impl Server {
    async fn start() -> Self {
        let folder = Folder::new();
        let store = Arc::new(folder.open());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let downloads = Downloads::new(store.clone(), PageLanguage::English);
        let router =
            axum::Router::new().fallback(move |request: axum::extract::Request| async move {
                let (path, method) = (request.uri().path(), request.method());
                downloads.answer(path, method, request.headers()).await
            });
        tokio::spawn(async { axum::serve(listener, router).await });
        Self {
            folder,
            store,
            address,
        }
    }

    fn publish(&self, name: &str, bytes: &[u8]) -> Artifact {
        let held = self.store.create(&new_chat()).unwrap();
        let artifact = Artifact {
            token: LinkToken::random(),
            name: name.into(),
            path: name.into(),
            ascii_name: "file.html".into(),
            size: bytes.len() as u64,
            mime_type: "text/html".into(),
            sha256: HASH.into(),
            created_at: self.folder.now,
            expires_at: later(self.folder.now, 600),
            gone_at: None,
            gone: None,
            job: held.job.id(),
            server: "s".into(),
            tool: "t".into(),
            principal: PrincipalHash::from(&alice()),
            other: Map::new(),
        };
        let mut staged = self.store.blobs().stage().unwrap();
        staged.file().write_all(bytes).unwrap();
        let blob = self.store.blobs().put(staged, HASH).unwrap();
        let done = Done {
            links: vec![(artifact.clone(), blob)],
            ..Done::default()
        };
        self.store.commit(&held.lease, done).unwrap();
        artifact
    }

    async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Reply {
        let mut request = format!("{method} {path} HTTP/1.1\r\nhost: h\r\nconnection: close\r\n");
        for (name, value) in headers {
            request = format!("{request}{name}: {value}\r\n");
        }
        request.push_str("\r\n");
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        let end = memchr::memmem::find(&answer, b"\r\n\r\n").unwrap();
        let head = String::from_utf8(answer[..end].to_vec()).unwrap();
        Reply {
            status: head.split(' ').nth(1).unwrap().parse().unwrap(),
            head,
            body: answer[end + 4..].to_vec(),
        }
    }

    async fn get(&self, artifact: &Artifact, headers: &[(&str, &str)]) -> Reply {
        self.send("GET", &artifact.url("/"), headers).await
    }
}

#[tokio::test]
async fn a_file_comes_whole_under_its_real_name_and_cannot_run() {
    let server = Server::start().await;
    let artifact = server.publish("売上 \"1\".html", TEXT);
    let reply = server.get(&artifact, &[]).await;
    assert_eq!((reply.status, reply.body.as_slice()), (200, TEXT));
    for (name, value) in [
        ("content-type", "text/html"),
        ("content-length", "10"),
        (
            "content-disposition",
            "attachment; filename=\"file.html\"; filename*=UTF-8''%E5%A3%B2%E4%B8%8A%20%221%22.html",
        ),
        ("etag", "\"hash\""),
        ("accept-ranges", "bytes"),
        ("x-content-type-options", "nosniff"),
        ("content-security-policy", "sandbox; default-src 'none'"),
        ("referrer-policy", "no-referrer"),
    ] {
        assert_eq!(reply.header(name), Some(value), "{name}");
    }
}

#[tokio::test]
async fn head_says_the_same_without_bytes() {
    let server = Server::start().await;
    let artifact = server.publish("a", TEXT);
    let reply = server
        .send("HEAD", &artifact.url("/"), &[("range", "bytes=0-1")])
        .await;
    assert_eq!((reply.status, reply.body.len()), (200, 0));
    assert_eq!(reply.header("content-length"), Some("10"));
}

#[tokio::test]
async fn ranges() {
    let server = Server::start().await;
    let artifact = server.publish("a", TEXT);
    for (range, status, body, said) in [
        ("bytes=2-4", 206, "234", Some("bytes 2-4/10")),
        ("bytes=7-", 206, "789", Some("bytes 7-9/10")),
        ("bytes=-2", 206, "89", Some("bytes 8-9/10")),
        ("bytes=8-99", 206, "89", Some("bytes 8-9/10")),
        ("bytes=10-", 416, "", Some("bytes */10")),
        ("bytes=0-1,4-5", 200, "0123456789", None),
        ("bytes=5-2", 200, "0123456789", None),
        ("lines=1-2", 200, "0123456789", None),
    ] {
        let reply = server.get(&artifact, &[("range", range)]).await;
        let got = (reply.status, reply.text(), reply.header("content-range"));
        assert_eq!(got, (status, body, said), "{range}");
    }
    let empty = server.publish("empty", b"");
    assert_eq!(server.get(&empty, &[]).await.status, 200);
    assert_eq!(
        server.get(&empty, &[("range", "bytes=0-")]).await.status,
        416
    );
}

#[tokio::test]
async fn conditions() {
    let server = Server::start().await;
    let artifact = server.publish("a", TEXT);
    let plain = server.get(&artifact, &[]).await;
    let modified = plain.header("last-modified").unwrap();
    for (headers, status) in [
        (vec![("if-none-match", "\"x\", W/\"hash\"")], 304),
        (vec![("if-none-match", "\"x\"")], 200),
        (
            vec![("if-none-match", "\"x\""), ("if-modified-since", modified)],
            200,
        ),
        (vec![("if-modified-since", modified)], 304),
        (
            vec![("if-modified-since", "Sun, 06 Nov 1994 08:49:37 GMT")],
            200,
        ),
        (vec![("range", "bytes=0-1"), ("if-range", "\"hash\"")], 206),
        (vec![("range", "bytes=0-1"), ("if-range", modified)], 206),
        (
            vec![("range", "bytes=0-1"), ("if-range", "W/\"hash\"")],
            200,
        ),
        (vec![("range", "bytes=0-1"), ("if-range", "\"x\"")], 200),
    ] {
        let reply = server.get(&artifact, &headers).await;
        assert_eq!(reply.status, status, "{headers:?}");
        assert_eq!(reply.header("etag"), Some("\"hash\""));
        assert_eq!(reply.body.is_empty(), status == 304);
    }
}

#[tokio::test]
async fn the_token_alone_decides() {
    let server = Server::start().await;
    let artifact = server.publish("a", TEXT);
    let token = artifact.token.as_str();
    for name in ["other.txt", "%E5%A3%B2", "..", "a?x=y"] {
        let reply = server
            .send("GET", &format!("/files/{token}/{name}"), &[])
            .await;
        assert_eq!(reply.status, 200, "{name}");
    }
    let guessed = LinkToken::random();
    for path in [
        "/files".to_owned(),
        "/files/".into(),
        format!("/files/{token}"),
        format!("/files/{token}/"),
        format!("/files/{token}/a/b"),
        format!("/files/{token}/../meta.json/x"),
        format!("/files/{}/a", guessed.as_str()),
        format!("/files/{}/a", &token[1..]),
        "/files/..%2f..%2fetc/passwd".into(),
        "/files//passwd".into(),
    ] {
        let reply = server.send("GET", &path, &[]).await;
        assert_eq!(reply.status, 404, "{path}");
        assert!(!reply.text().contains(token));
    }
}

#[tokio::test]
async fn an_ended_link_says_why_to_people_and_programs() {
    let server = Server::start().await;
    let artifact = server.publish("a", TEXT);
    server.store.revoke(&artifact.token).unwrap();
    let reply = server.get(&artifact, &[]).await;
    assert_eq!(reply.status, 410);
    assert_eq!(
        reply.header("content-type"),
        Some("application/problem+json")
    );
    let problem: Value = serde_json::from_slice(&reply.body).unwrap();
    assert_eq!(problem["status"], 410);
    assert!(problem["detail"].as_str().unwrap().contains("Ask the chat"));
    for (languages, expected) in [("ja,en;q=0.5", "取り消されました"), ("fr", "withdrawn")]
    {
        let asked = [
            ("accept", "text/html,*/*;q=0.8"),
            ("accept-language", languages),
        ];
        let reply = server.get(&artifact, &asked).await;
        assert_eq!(
            reply.header("content-type"),
            Some("text/html; charset=utf-8")
        );
        assert!(reply.text().contains(expected), "{}", reply.text());
    }
}

#[tokio::test]
async fn a_large_file_comes_through_whole_though_its_link_ends_meanwhile() {
    let server = Server::start().await;
    let bytes: Vec<u8> = (0..=u8::MAX).cycle().take(3_000_000).collect();
    let artifact = server.publish("a", &bytes);
    let Link::Live(found, blob) = server.store.link(&artifact.token).unwrap() else {
        panic!("published a moment ago");
    };
    let data = server.store.blobs().get(&blob, None).unwrap().unwrap();
    server.store.revoke(&artifact.token).unwrap();
    let response = super::bytes(*found, data, &Selection::Whole);
    let body = axum::body::to_bytes(response.into_body(), usize::MAX)
        .await
        .unwrap();
    assert!(body == bytes);
}
